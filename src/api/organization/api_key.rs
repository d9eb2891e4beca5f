//! API keys: of projects, and of the administration.

use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::service_account::{AccountRole, ServiceAccount};
use super::{OPERATOR_ID, OPERATOR_NAME, name};
use crate::api::error::Error;
use crate::api::id::{ApiKeyId, ProjectId, ServiceAccountId};
use crate::api::rule::{At, Rule, custom, integer, wrong_type};
use crate::api::time::Timestamp;
use crate::request;

/// Number of random bytes in a key.
pub const RANDOM_BYTES: usize = 32;
/// Maximum lifetime of a key, in seconds.
const EXPIRES_IN_S_MAX: u32 = 31_536_000;
/// Number of random characters at the start and at the end of a redacted key.
const SHOWN_CHARS: (usize, usize) = (3, 4);

/// What a key is for, which its prefix shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// A project.
    Project,
    /// A project, through a service account.
    ServiceAccount,
    /// The administration.
    Admin,
}

impl KeyKind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Project => "sk-proj-",
            Self::ServiceAccount => "sk-svcacct-",
            Self::Admin => "sk-admin-",
        }
    }
}

/// A new key. It is shown once, and not stored.
#[derive(Clone, PartialEq, Eq)]
pub struct NewKey {
    value: String,
    redacted_value: String,
}

impl NewKey {
    /// Creates a key from random bytes of the operating system.
    #[must_use]
    pub fn generate(kind: KeyKind, random: &[u8; RANDOM_BYTES]) -> Self {
        let (prefix, secret) = (kind.prefix(), URL_SAFE_NO_PAD.encode(random));
        let (first, last) = SHOWN_CHARS;
        let redacted_value = format!("{prefix}{}***{}", &secret[..first], &secret[secret.len() - last..]);
        Self { value: format!("{prefix}{secret}"), redacted_value }
    }

    /// Returns the key.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.value
    }

    /// Returns the first and last characters of the key, by which it can be recognized: `sk-proj-abc***wxyz`.
    #[must_use]
    pub fn redacted_value(&self) -> &str {
        &self.redacted_value
    }

    /// Returns the digest of the key, which is stored.
    #[must_use]
    pub fn digest(&self) -> String {
        digest(&self.value)
    }
}

/// Does not print the key.
impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NewKey").field(&self.redacted_value).finish()
    }
}

/// Returns the SHA-256 digest of a key, in hex.
#[must_use]
pub fn digest(key: &str) -> String {
    Sha256::digest(key.as_bytes()).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

/// A stored API key, without the key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The ID of the key.
    pub id: ApiKeyId,
    /// 1 to 256 characters.
    pub name: String,
    /// The first and last characters of the key.
    pub redacted_value: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it expires; `None`: never.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, with an accuracy of about a minute.
    pub last_used_at: Option<Timestamp>,
}

impl ApiKey {
    /// Returns a new key that is stored for `key`.
    #[must_use]
    pub fn new(id: ApiKeyId, key: &NewKey, name: String, expires_in_seconds: Option<u32>, now: Timestamp) -> Self {
        Self {
            id,
            name,
            redacted_value: key.redacted_value().to_owned(),
            created_at: now,
            expires_at: expires_in_seconds.map(|seconds| now.plus(seconds.into())),
            last_used_at: None,
        }
    }
}

/// What a key may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyHolder {
    /// The administration.
    Organization,
    /// A project.
    Project(ProjectId),
    /// A project, as long as the service account exists and has a role.
    ServiceAccount(ProjectId, ServiceAccountId),
}

impl KeyHolder {
    /// Returns the kind of the holder's keys.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        match self {
            Self::Organization => KeyKind::Admin,
            Self::Project(_) => KeyKind::Project,
            Self::ServiceAccount(..) => KeyKind::ServiceAccount,
        }
    }

    /// Returns the project, if the key is for one.
    #[must_use]
    pub fn project(&self) -> Option<&ProjectId> {
        match self {
            Self::Organization => None,
            Self::Project(project) | Self::ServiceAccount(project, _) => Some(project),
        }
    }

    /// Returns the service account, if it owns the key.
    #[must_use]
    pub fn service_account(&self) -> Option<&ServiceAccountId> {
        match self {
            Self::Organization | Self::Project(_) => None,
            Self::ServiceAccount(_, account) => Some(account),
        }
    }
}

/// Whether the owner of a key may use the project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OwnerAccess {
    /// It may.
    Active,
    /// The project is archived, or the service account has no role.
    Inactive,
}

impl OwnerAccess {
    /// Returns the name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
        }
    }
}

/// A key of a project, with its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectApiKey {
    /// The key.
    pub key: ApiKey,
    /// The service account that owns the key; `None`: the operator.
    pub service_account: Option<ServiceAccount>,
    /// Whether the owner may use the project.
    pub access: OwnerAccess,
}

impl ProjectApiKey {
    /// Returns the error for deleting a key of a service account.
    #[must_use]
    pub fn service_account_error() -> Error {
        Error::invalid("API keys cannot be deleted for the service account, please delete the service account")
    }
}

/// The wire form of a [`ProjectApiKey`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct ProjectApiKeyObject<'a> {
    object: &'static str,
    redacted_value: &'a str,
    name: &'a str,
    created_at: Timestamp,
    last_used_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    id: &'a ApiKeyId,
    owner_project_access: OwnerAccess,
    owner: KeyOwner<'a>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum KeyOwner<'a> {
    User { user: OwnerUser },
    ServiceAccount { service_account: OwnerAccount<'a> },
}

#[derive(Debug, Serialize, JsonSchema)]
struct OwnerUser {
    id: &'static str,
    email: &'static str,
    name: &'static str,
    created_at: Timestamp,
    role: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
struct OwnerAccount<'a> {
    id: &'a ServiceAccountId,
    name: &'a str,
    created_at: Timestamp,
    role: AccountRole,
}

impl<'a> From<&'a ProjectApiKey> for ProjectApiKeyObject<'a> {
    fn from(stored: &'a ProjectApiKey) -> Self {
        let key = &stored.key;
        let owner = match &stored.service_account {
            Some(account) => KeyOwner::ServiceAccount {
                service_account: OwnerAccount {
                    id: &account.id,
                    name: &account.name,
                    created_at: account.created_at,
                    role: account.role,
                },
            },
            None => KeyOwner::User {
                user: OwnerUser {
                    id: OPERATOR_ID,
                    email: "",
                    name: OPERATOR_NAME,
                    created_at: key.created_at,
                    role: "owner",
                },
            },
        };
        Self {
            object: "organization.project.api_key",
            redacted_value: &key.redacted_value,
            name: &key.name,
            created_at: key.created_at,
            last_used_at: key.last_used_at,
            expires_at: key.expires_at,
            id: &key.id,
            owner_project_access: stored.access,
            owner,
        }
    }
}

/// The wire form of a new key of a service account. It has the key itself, so it is not `Debug`.
#[derive(Serialize, JsonSchema)]
pub struct CreatedKeyObject<'a> {
    object: &'static str,
    value: &'a str,
    name: &'a str,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
    id: &'a ApiKeyId,
}

impl<'a> CreatedKeyObject<'a> {
    /// Creates the wire form.
    #[must_use]
    pub fn new(stored: &'a ApiKey, key: &'a NewKey) -> Self {
        Self {
            object: "organization.project.service_account.api_key",
            value: key.expose(),
            name: &stored.name,
            created_at: stored.created_at,
            expires_at: stored.expires_at,
            id: &stored.id,
        }
    }
}

/// The wire form of a key of the administration. `value` is set when the key is created, so it is not `Debug`.
#[derive(Serialize, JsonSchema)]
pub struct AdminApiKeyObject<'a> {
    object: &'static str,
    id: &'a ApiKeyId,
    name: &'a str,
    redacted_value: &'a str,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
    last_used_at: Option<Timestamp>,
    owner: AdminOwner,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
}

#[derive(Serialize, JsonSchema)]
struct AdminOwner {
    #[serde(rename = "type")]
    kind: &'static str,
    object: &'static str,
    id: &'static str,
    name: &'static str,
    created_at: Timestamp,
    role: &'static str,
}

impl<'a> AdminApiKeyObject<'a> {
    /// Creates the wire form of a new key, which shows it.
    #[must_use]
    pub fn created(stored: &'a ApiKey, key: &'a NewKey) -> Self {
        Self { value: Some(key.expose()), ..Self::from(stored) }
    }
}

impl<'a> From<&'a ApiKey> for AdminApiKeyObject<'a> {
    fn from(key: &'a ApiKey) -> Self {
        Self {
            object: "organization.admin_api_key",
            id: &key.id,
            name: &key.name,
            redacted_value: &key.redacted_value,
            created_at: key.created_at,
            expires_at: key.expires_at,
            last_used_at: key.last_used_at,
            owner: AdminOwner {
                kind: "user",
                object: "organization.user",
                id: OPERATOR_ID,
                name: OPERATOR_NAME,
                created_at: key.created_at,
                role: "owner",
            },
            value: None,
        }
    }
}

/// The rule for `expires_in_seconds`.
pub(super) fn expires_in_seconds() -> impl Rule<Out = u32> {
    integer(1, EXPIRES_IN_S_MAX)
}

/// The rule for `scopes`: only an empty list. A key that ignored its scopes could do more than the client intends.
pub(super) fn reject_scopes() -> impl Rule<Out = ()> {
    let read = |value: Value, at: &At<'_>| match value {
        Value::Array(scopes) if scopes.is_empty() => Ok(()),
        Value::Array(_) => Err(Error::invalid(format!(
            "Invalid '{at}': scopes are not supported. A key may use everything in its project."
        ))
        .at(at.to_string())
        .code("unsupported_parameter")),
        other => Err(wrong_type(at, "an array of strings", &other)),
    };
    custom(read, |_: &mut SchemaGenerator| json!({"type": "array", "items": {"type": "string"}, "maxItems": 0}))
}

request! {
    /// Body of `POST /organization/admin_api_keys`.
    pub struct CreateAdminApiKey {
        required name: String = name();
        optional expires_in_seconds: u32 = expires_in_seconds();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_shows_its_kind_and_has_all_random_bits() {
        let random = std::array::from_fn(|index| u8::try_from(index).unwrap());
        for (kind, prefix) in
            [(KeyKind::Project, "sk-proj-"), (KeyKind::ServiceAccount, "sk-svcacct-"), (KeyKind::Admin, "sk-admin-")]
        {
            let key = NewKey::generate(kind, &random);

            let secret = key.expose().strip_prefix(prefix).unwrap();
            assert_eq!(URL_SAFE_NO_PAD.decode(secret).unwrap(), random);
            assert_eq!(key.redacted_value(), format!("{prefix}AAE***dHh8"));
            assert_eq!((key.digest().len(), key.digest()), (64, digest(key.expose())));
            let debug = format!("{key:?}");
            assert!(debug.contains("AAE***") && !debug.contains(secret), "{debug}");
        }
    }
}
