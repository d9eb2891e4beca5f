//! Who makes a request, and what they may do.

mod authenticator;
mod cache;
pub mod keys;
mod limits;
mod requests;
mod tokens;
mod wrong_keys;

use crate::api::{ApiKeyId, Scope};

pub use authenticator::{Authenticator, Rejection};
pub use cache::Cache;
pub use limits::EffectiveLimits;
pub use requests::{Budget, Requests};
pub use tokens::{Call, Reached, Reservation, Tokens};
pub use wrong_keys::{TooManyWrongKeys, WrongKeys};

/// What the caller of a request may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The objects of a project.
    Member,
    /// The administration of the organization.
    Admin,
    /// Both: a caller without a key on this machine, if there are no keys.
    Owner,
    /// Nothing: a service account without a role.
    None,
}

impl Role {
    /// Returns whether the caller may use the objects of its project.
    #[must_use]
    pub fn is_member(self) -> bool {
        matches!(self, Self::Member | Self::Owner)
    }

    /// Returns whether the caller may use the administration.
    #[must_use]
    pub fn is_admin(self) -> bool {
        matches!(self, Self::Admin | Self::Owner)
    }
}

/// The caller of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The project whose objects the caller may see and change.
    pub scope: Scope,
    /// What the caller may use.
    pub role: Role,
    /// The API key, if it is stored. Keys in the settings have no ID.
    pub api_key_id: Option<ApiKeyId>,
    /// The owner of the runs that the caller creates. Runs are claimed from the owners in turn.
    pub owner: String,
}

impl Principal {
    /// Returns whether the request has no key: it is from this machine, and there are no keys.
    #[must_use]
    pub fn is_keyless(&self) -> bool {
        self.api_key_id.is_none() && self.owner.is_empty()
    }
}
