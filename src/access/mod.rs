//! Who makes a request, and what they may do.

use crate::api::{ApiKeyId, Scope};

/// The caller of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The project whose objects the caller may see and change.
    pub scope: Scope,
    /// The API key, if it is stored. Keys in the settings have no ID.
    pub api_key_id: Option<ApiKeyId>,
    /// The owner of the runs that the caller creates. Runs are claimed from the owners in turn.
    pub owner: String,
}
