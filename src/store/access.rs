//! What the authentication of requests reads.

use async_trait::async_trait;

use super::Error;
use crate::api::organization::ProjectLimits;
use crate::api::{ApiKeyId, ProjectId, Timestamp};

/// A stored API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// The key's ID.
    pub id: ApiKeyId,
    /// The project; `None`: a key for the administration.
    pub project_id: Option<ProjectId>,
    /// Whether the project is not archived.
    pub project_is_active: bool,
    /// Whether the owner may use the project: false for a service account without a role.
    pub owner_has_role: bool,
    /// When the key expires, if ever.
    pub expires_at: Option<Timestamp>,
}

/// What the authentication of requests reads and writes.
#[async_trait]
pub trait AccessData {
    /// Returns the key with this digest: the SHA-256 digest of the key in hexadecimal digits.
    async fn key_by_digest(&self, digest: &str) -> Result<Option<StoredKey>, Error>;
    /// Returns whether there is any key, even if it has expired.
    async fn has_keys(&self) -> Result<bool, Error>;
    /// Returns the revision of keys, projects and limits, which each change of them increments.
    async fn access_revision(&self) -> Result<i64, Error>;
    /// Records that keys were used, unless a use within the last minute is recorded.
    async fn record_key_use(&self, ids: &[ApiKeyId], at: Timestamp) -> Result<(), Error>;
    /// Returns the limits that a project has of its own.
    async fn project_limits(&self, project: &ProjectId) -> Result<ProjectLimits, Error>;
}
