//! Projects: each has its own API keys and objects, which other projects cannot see.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::api::id::ProjectId;

/// The ID of the project that always exists. It owns everything that was stored before there were projects.
pub const DEFAULT_PROJECT: &str = "proj_default";

/// The project whose objects a call may see and change.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scope(ProjectId);

impl Scope {
    /// Creates the scope of a project.
    #[must_use]
    pub fn of(project: ProjectId) -> Self {
        Self(project)
    }

    /// Returns the scope of the default project.
    #[must_use]
    pub fn default_project() -> Self {
        Self(ProjectId::from_stored(DEFAULT_PROJECT))
    }

    /// Returns the project.
    #[must_use]
    pub fn project(&self) -> &ProjectId {
        &self.0
    }

    /// Returns the project ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
