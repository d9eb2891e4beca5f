//! Projects: each has its own API keys and objects, which other projects cannot see.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::name;
use crate::api::error::Error;
use crate::api::id::ProjectId;
use crate::api::rule::{Rule, one_of};
use crate::api::time::Timestamp;
use crate::request;

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

/// The rule for `residency`.
fn residency() -> impl Rule<Out = &'static str> {
    one_of(&[
        ("GLOBAL", "GLOBAL"),
        ("US_STORAGE_PROCESSING", "US_STORAGE_PROCESSING"),
        ("EU_STORAGE_PROCESSING", "EU_STORAGE_PROCESSING"),
        ("JP_STORAGE", "JP_STORAGE"),
        ("KR_STORAGE", "KR_STORAGE"),
        ("CA_STORAGE", "CA_STORAGE"),
        ("SG_STORAGE", "SG_STORAGE"),
        ("IN_STORAGE", "IN_STORAGE"),
        ("AU_STORAGE", "AU_STORAGE"),
        ("GB_STORAGE", "GB_STORAGE"),
        ("AE_STORAGE", "AE_STORAGE"),
        ("AE_STORAGE_PROCESSING", "AE_STORAGE_PROCESSING"),
    ])
}

/// A project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// The project ID.
    pub id: ProjectId,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was archived; `None` if it is active. Its keys are then rejected, and it cannot be modified.
    pub archived_at: Option<Timestamp>,
    /// 1 to 256 characters.
    pub name: String,
    /// The ID of an encryption key outside; stored and returned.
    pub external_key_id: Option<String>,
    /// Where the data of the project is stored; stored and returned.
    pub residency: Option<String>,
}

impl Project {
    /// Returns `active` or `archived`.
    #[must_use]
    pub fn status(&self) -> &'static str {
        if self.archived_at.is_some() { "archived" } else { "active" }
    }

    /// Returns the error for a change of an archived project.
    #[must_use]
    pub fn archived_error(name: &str) -> Error {
        Error::invalid(format!("Project {name} is archived"))
    }

    /// Returns the error for archiving the default project.
    #[must_use]
    pub fn default_project_error() -> Error {
        Error::invalid("The default project cannot be archived.")
    }
}

/// The wire form of a [`Project`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct ProjectObject<'a> {
    id: &'a ProjectId,
    object: &'static str,
    name: &'a str,
    created_at: Timestamp,
    archived_at: Option<Timestamp>,
    status: &'static str,
    external_key_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    residency: Option<&'a str>,
}

impl<'a> From<&'a Project> for ProjectObject<'a> {
    fn from(project: &'a Project) -> Self {
        Self {
            id: &project.id,
            object: "organization.project",
            name: &project.name,
            created_at: project.created_at,
            archived_at: project.archived_at,
            status: project.status(),
            external_key_id: project.external_key_id.as_deref(),
            residency: project.residency.as_deref(),
        }
    }
}

request! {
    /// Body of `POST /organization/projects`.
    pub struct CreateProject {
        required name: String = name();
        optional residency: &'static str = residency();
        optional external_key_id: String = name();
    }
}

impl CreateProject {
    /// Returns the requested project.
    #[must_use]
    pub fn into_project(self, id: ProjectId, now: Timestamp) -> Project {
        Project {
            id,
            created_at: now,
            archived_at: None,
            name: self.name,
            external_key_id: self.external_key_id,
            residency: self.residency.map(str::to_owned),
        }
    }
}

request! {
    /// Body of `POST /organization/projects/{project_id}`.
    pub struct ModifyProject {
        optional name: String = name();
        patch external_key_id: String = name();
    }
}

impl ModifyProject {
    /// Applies the request to a project.
    pub fn apply(self, project: &mut Project) {
        if let Some(name) = self.name {
            project.name = name;
        }
        self.external_key_id.apply_optional(&mut project.external_key_id);
    }
}
