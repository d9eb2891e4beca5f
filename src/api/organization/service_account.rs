//! Service accounts of projects, which own API keys.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::api_key::{CreatedKeyObject, expires_in_seconds, reject_scopes};
use super::name;
use crate::api::error::Error;
use crate::api::id::ServiceAccountId;
use crate::api::rule::{boolean, one_of};
use crate::api::time::Timestamp;
use crate::request;

/// The name of the key that is created with a service account.
pub const DEFAULT_KEY_NAME: &str = "Secret Key";

/// The role of a service account in its project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccountRole {
    /// May use the project.
    Owner,
    /// May use the project.
    Member,
    /// May not use the project.
    None,
}

impl AccountRole {
    /// Returns the role by its stored name. An unknown role, of a newer release, may not use the project.
    #[must_use]
    pub fn from_stored(name: &str) -> Self {
        match name {
            "owner" => Self::Owner,
            "member" => Self::Member,
            _ => Self::None,
        }
    }

    /// Returns whether keys of the service account may use the project.
    #[must_use]
    pub fn may_use(self) -> bool {
        self != Self::None
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Member => "member",
            Self::None => "none",
        }
    }
}

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// The ID of the service account.
    pub id: ServiceAccountId,
    /// When it was created.
    pub created_at: Timestamp,
    /// 1 to 256 characters.
    pub name: String,
    /// Whether its keys may use the project.
    pub role: AccountRole,
}

/// The wire form of a [`ServiceAccount`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct ServiceAccountObject<'a> {
    object: &'static str,
    id: &'a ServiceAccountId,
    name: &'a str,
    role: AccountRole,
    created_at: Timestamp,
}

impl<'a> From<&'a ServiceAccount> for ServiceAccountObject<'a> {
    fn from(account: &'a ServiceAccount) -> Self {
        Self {
            object: "organization.project.service_account",
            id: &account.id,
            name: &account.name,
            role: account.role,
            created_at: account.created_at,
        }
    }
}

/// The wire form of a new [`ServiceAccount`] with its key. It has the key itself, so it is not `Debug`.
#[derive(Serialize, JsonSchema)]
pub struct CreatedAccountObject<'a> {
    #[serde(flatten)]
    account: ServiceAccountObject<'a>,
    api_key: Option<CreatedKeyObject<'a>>,
}

impl<'a> CreatedAccountObject<'a> {
    /// Creates the wire form. The key is shown here only.
    #[must_use]
    pub fn new(account: &'a ServiceAccount, api_key: Option<CreatedKeyObject<'a>>) -> Self {
        Self { account: account.into(), api_key }
    }
}

request! {
    /// Body of `POST /organization/projects/{project_id}/service_accounts`.
    pub struct CreateServiceAccount {
        required name: String = name();
        optional create_service_account_only: bool = boolean();
        optional expires_in_seconds: u32 = expires_in_seconds();
    }
}

impl CreateServiceAccount {
    /// Returns whether a key is created with the service account.
    ///
    /// # Errors
    /// 400 if a key is not created but has a lifetime.
    pub fn with_key(&self) -> Result<bool, Error> {
        let with_key = !self.create_service_account_only.unwrap_or(false);
        if !with_key && self.expires_in_seconds.is_some() {
            return Err(Error::invalid(
                "'expires_in_seconds' cannot be used when 'create_service_account_only' is true.",
            )
            .at("expires_in_seconds"));
        }
        Ok(with_key)
    }

    /// Returns the requested service account. Without a key, it has no role.
    #[must_use]
    pub fn into_account(self, id: ServiceAccountId, with_key: bool, now: Timestamp) -> ServiceAccount {
        let role = if with_key { AccountRole::Member } else { AccountRole::None };
        ServiceAccount { id, created_at: now, name: self.name, role }
    }
}

request! {
    /// Body of `POST /organization/projects/{project_id}/service_accounts/{service_account_id}`.
    pub struct ModifyServiceAccount {
        optional name: String = name();
        optional role: AccountRole = one_of(&[("member", AccountRole::Member), ("owner", AccountRole::Owner)]);
    }
}

impl ModifyServiceAccount {
    /// Applies the request to a service account.
    pub fn apply(self, account: &mut ServiceAccount) {
        if let Some(name) = self.name {
            account.name = name;
        }
        account.role = self.role.unwrap_or(account.role);
    }
}

request! {
    /// Body of `POST /organization/projects/{project_id}/service_accounts/{service_account_id}/api_keys`.
    pub struct CreateServiceAccountKey {
        optional name: String = name();
        optional scopes: () = reject_scopes();
        optional expires_in_seconds: u32 = expires_in_seconds();
    }
}
