//! The audit log: who changed projects, service accounts, API keys and limits.

use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::api_key::{ApiKey, KeyHolder};
use super::project::{ModifyProject, Project};
use super::rate_limit::{ModifyRateLimit, RATE_LIMIT_ID};
use super::service_account::{ModifyServiceAccount, ServiceAccount};
use super::{OPERATOR_ID, name};
use crate::api::error::Error;
use crate::api::id::{ApiKeyId, AuditLogId, ProjectId, ServiceAccountId};
use crate::api::rule::{At, Patch, Rule as _, array};
use crate::api::time::Timestamp;

/// Maximum number of values of a filter.
const FILTER_VALUES_MAX: usize = 100;

/// Who makes a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// A request with a key in the database.
    StoredKey(ApiKeyId),
    /// A request with a key of the settings.
    ConfiguredKey,
    /// A request from this machine, without a key.
    Local,
    /// The command line.
    CommandLine,
}

impl Actor {
    /// Returns the kind of the actor, and the ID of its key, or an empty text. [`Actor::from_stored`] is the inverse.
    #[must_use]
    pub fn as_stored(&self) -> (&'static str, &str) {
        match self {
            Self::StoredKey(id) => ("stored_key", id.as_str()),
            Self::ConfiguredKey => ("configured_key", ""),
            Self::Local => ("local", ""),
            Self::CommandLine => ("command_line", ""),
        }
    }

    /// Returns the actor that was stored.
    #[must_use]
    pub fn from_stored(kind: &str, key_id: &str) -> Self {
        match kind {
            "stored_key" => Self::StoredKey(ApiKeyId::from_stored(key_id)),
            "configured_key" => Self::ConfiguredKey,
            "local" => Self::Local,
            _ => Self::CommandLine,
        }
    }
}

/// Who makes a change, and when. Stored with the change, in the same transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Who makes the change.
    pub actor: Actor,
    /// The ID of the request; empty on the command line.
    pub request_id: String,
    /// When it is made.
    pub at: Timestamp,
}

/// What a change did.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The type of the event: `project.created` and others.
    pub kind: &'static str,
    /// The project, if the object belongs to one.
    pub project: Option<ProjectId>,
    /// The ID of the object.
    pub resource_id: String,
    /// The details of the event. Never has a key.
    pub details: Value,
}

impl Event {
    fn new(kind: &'static str, project: Option<&ProjectId>, id: &str, more: Option<(&str, Value)>) -> Self {
        let mut details = json!({"id": id});
        if let Some((name, value)) = more {
            details[name] = value;
        }
        Self { kind, project: project.cloned(), resource_id: id.to_owned(), details }
    }

    /// A project was created.
    #[must_use]
    pub fn project_created(project: &Project) -> Self {
        let data = json!({"name": project.name, "title": project.name});
        Self::new("project.created", Some(&project.id), project.id.as_str(), Some(("data", data)))
    }

    /// A project was modified.
    #[must_use]
    pub fn project_updated(id: &ProjectId, request: &ModifyProject) -> Self {
        let mut changes = Map::new();
        if let Some(name) = &request.name {
            changes.insert("title".to_owned(), json!(name));
        }
        match &request.external_key_id {
            Patch::Keep => {}
            Patch::Clear => drop(changes.insert("external_key_id".to_owned(), Value::Null)),
            Patch::Set(id) => drop(changes.insert("external_key_id".to_owned(), json!(id))),
        }
        let changes = Some(("changes_requested", Value::Object(changes)));
        Self::new("project.updated", Some(id), id.as_str(), changes)
    }

    /// A project was archived.
    #[must_use]
    pub fn project_archived(id: &ProjectId) -> Self {
        Self::new("project.archived", Some(id), id.as_str(), None)
    }

    /// A service account was created.
    #[must_use]
    pub fn service_account_created(project: &ProjectId, account: &ServiceAccount) -> Self {
        let data = json!({"name": account.name, "role": account.role});
        Self::new("service_account.created", Some(project), account.id.as_str(), Some(("data", data)))
    }

    /// A service account was modified.
    #[must_use]
    pub fn service_account_updated(project: &ProjectId, id: &ServiceAccountId, request: &ModifyServiceAccount) -> Self {
        let mut changes = Map::new();
        if let Some(name) = &request.name {
            changes.insert("name".to_owned(), json!(name));
        }
        if let Some(role) = &request.role {
            changes.insert("role".to_owned(), json!(role));
        }
        let changes = Some(("changes_requested", Value::Object(changes)));
        Self::new("service_account.updated", Some(project), id.as_str(), changes)
    }

    /// A service account was deleted.
    #[must_use]
    pub fn service_account_deleted(project: &ProjectId, id: &ServiceAccountId) -> Self {
        Self::new("service_account.deleted", Some(project), id.as_str(), None)
    }

    /// A key was created.
    #[must_use]
    pub fn api_key_created(holder: &KeyHolder, key: &ApiKey) -> Self {
        let mut data = json!({"name": key.name, "expires_at": key.expires_at});
        if let Some(account) = holder.service_account() {
            data["service_account_id"] = json!(account);
        }
        Self::new("api_key.created", holder.project(), key.id.as_str(), Some(("data", data)))
    }

    /// A key was deleted.
    #[must_use]
    pub fn api_key_deleted(project: Option<&ProjectId>, id: &ApiKeyId) -> Self {
        Self::new("api_key.deleted", project, id.as_str(), None)
    }

    /// The limits of a project were modified.
    #[must_use]
    pub fn rate_limit_updated(project: &ProjectId, request: &ModifyRateLimit) -> Self {
        let changes = Some(("changes_requested", request.changes()));
        Self::new("rate_limit.updated", Some(project), RATE_LIMIT_ID, changes)
    }
}

/// An entry of the audit log.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditLog {
    /// The ID of the entry.
    pub id: AuditLogId,
    /// When the change was made.
    pub effective_at: Timestamp,
    /// The type of the event.
    pub kind: String,
    /// The project and its name, if the object belongs to one.
    pub project: Option<(ProjectId, String)>,
    /// Who made the change.
    pub actor: Actor,
    /// The ID of the request; empty on the command line.
    pub request_id: String,
    /// The details of the event.
    pub details: Value,
}

/// The wire form of an [`AuditLog`].
///
/// Differs: `request_id` and `source` of the actor are ours.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AuditLogObject<'a> {
    id: &'a AuditLogId,
    #[serde(rename = "type")]
    kind: &'a str,
    effective_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<ProjectName<'a>>,
    actor: ActorObject<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    /// The details of the event, in a property with the name of its type.
    #[serde(flatten)]
    details: Map<String, Value>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ProjectName<'a> {
    id: &'a ProjectId,
    name: &'a str,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ActorObject<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    source: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<ActorKey<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<ActorSession>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ActorKey<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a ApiKeyId>,
    #[serde(rename = "type")]
    kind: &'static str,
    user: ActorUser,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ActorSession {
    user: ActorUser,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ActorUser {
    id: &'static str,
    email: &'static str,
}

impl<'a> From<&'a Actor> for ActorObject<'a> {
    fn from(actor: &'a Actor) -> Self {
        let (source, _) = actor.as_stored();
        let user = ActorUser { id: OPERATOR_ID, email: "" };
        let key = |id| Some(ActorKey { id, kind: "user", user: ActorUser { id: OPERATOR_ID, email: "" } });
        match actor {
            Actor::StoredKey(id) => Self { kind: "api_key", source, api_key: key(Some(id)), session: None },
            Actor::ConfiguredKey => Self { kind: "api_key", source, api_key: key(None), session: None },
            Actor::Local | Actor::CommandLine => {
                Self { kind: "session", source, api_key: None, session: Some(ActorSession { user }) }
            }
        }
    }
}

impl<'a> From<&'a AuditLog> for AuditLogObject<'a> {
    fn from(log: &'a AuditLog) -> Self {
        Self {
            id: &log.id,
            kind: &log.kind,
            effective_at: log.effective_at,
            project: log.project.as_ref().map(|(id, name)| ProjectName { id, name }),
            actor: (&log.actor).into(),
            request_id: (!log.request_id.is_empty()).then_some(log.request_id.as_str()),
            details: std::iter::once((log.kind.clone(), log.details.clone())).collect(),
        }
    }
}

/// The filters of a list of the audit log. An empty list means that the parameter is not given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditLogFilter {
    /// Bounds of the time.
    pub effective_at: Vec<(Bound, i64)>,
    /// The projects.
    pub project_ids: Vec<String>,
    /// The types of the events.
    pub event_types: Vec<String>,
    /// The keys of the requests. The operator's ID selects all entries, because the operator owns all keys.
    pub actor_ids: Vec<String>,
    /// The objects that were changed.
    pub resource_ids: Vec<String>,
}

/// Returns the schema of a filter with several values. An empty value is ignored, so the schema cannot count them.
#[must_use]
pub fn filter_schema(schemas: &mut SchemaGenerator) -> Value {
    let mut value = name().schema(schemas);
    value["minLength"] = json!(0);
    json!({"type": "array", "items": value, "description": format!("At most {FILTER_VALUES_MAX} values.")})
}

/// A bound of a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Later than.
    After,
    /// At or after.
    From,
    /// Earlier than.
    Before,
    /// At or before.
    Until,
}

impl AuditLogFilter {
    /// Parses the filters; ignores other parameters. An empty value means that the parameter is not given.
    ///
    /// # Errors
    /// 400 if a value is invalid or a list is too long, or for `actor_emails`.
    pub fn parse(parameters: &[(String, String)]) -> Result<Self, Error> {
        if let Some(value) = values(parameters, "actor_emails").next() {
            return Err(Error::invalid(format!(
                "Invalid 'actor_emails': '{value}'. The filter is not supported, because there are no users with email \
                 addresses."
            ))
            .at("actor_emails")
            .code("unsupported_parameter"));
        }
        let mut filter = Self {
            effective_at: Vec::new(),
            project_ids: list(parameters, "project_ids")?,
            event_types: list(parameters, "event_types")?,
            actor_ids: list(parameters, "actor_ids")?,
            resource_ids: list(parameters, "resource_ids")?,
        };
        let bounds = [("gt", Bound::After), ("gte", Bound::From), ("lt", Bound::Before), ("lte", Bound::Until)];
        for (name, bound) in bounds {
            let name = format!("effective_at[{name}]");
            if let Some(value) = values(parameters, &name).next() {
                filter.effective_at.push((bound, seconds(&name, value)?));
            }
        }
        if filter.actor_ids.iter().any(|id| id == OPERATOR_ID) {
            filter.actor_ids.clear();
        }
        Ok(filter)
    }
}

/// Returns the values of a parameter, which may be written with brackets: `project_ids[]`.
fn values<'a>(parameters: &'a [(String, String)], name: &'a str) -> impl Iterator<Item = &'a str> {
    let named = move |(given, _): &&(String, String)| given.strip_suffix("[]").unwrap_or(given) == name;
    parameters.iter().filter(named).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
}

fn list(parameters: &[(String, String)], param: &str) -> Result<Vec<String>, Error> {
    let values = values(parameters, param).map(|value| json!(value)).collect();
    array(name(), 0, FILTER_VALUES_MAX).read(Value::Array(values), &At::Member(&At::Root, param))
}

fn seconds(param: &str, value: &str) -> Result<i64, Error> {
    value.parse().map_err(|_| {
        Error::invalid(format!("Invalid type for '{param}': expected an integer, but got a string instead: '{value}'."))
            .at(param)
            .code("invalid_type")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_is_stored_and_read_back() {
        let key = Actor::StoredKey(ApiKeyId::from_stored("key_1"));
        for actor in [key, Actor::ConfiguredKey, Actor::Local, Actor::CommandLine] {
            let (kind, key_id) = actor.as_stored();
            assert_eq!(Actor::from_stored(kind, key_id), actor);
        }
    }

    #[test]
    fn filters_are_parsed_and_bounded() {
        let parse = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            AuditLogFilter::parse(&pairs).map_err(|error| error.message)
        };

        let filter = parse(&[
            ("effective_at[gte]", "5"),
            ("project_ids[]", "proj_1"),
            ("project_ids", "proj_2"),
            ("actor_ids[]", "key_1"),
            ("actor_ids[]", OPERATOR_ID),
            ("event_types[]", ""),
            ("limit", "3"),
        ]);
        let expected = AuditLogFilter {
            effective_at: vec![(Bound::From, 5)],
            project_ids: vec!["proj_1".to_owned(), "proj_2".to_owned()],
            ..AuditLogFilter::default()
        };
        assert_eq!(filter, Ok(expected));

        let too_many = parse(&[("resource_ids[]", "x"); FILTER_VALUES_MAX + 1]).unwrap_err();
        assert!(too_many.starts_with("Invalid 'resource_ids': array too long."), "{too_many}");
        assert!(parse(&[("effective_at[lt]", "now")]).unwrap_err().contains("expected an integer"));
        assert!(parse(&[("actor_emails[]", "a@b.example")]).unwrap_err().contains("not supported"));
        assert!(parse(&[("event_types[]", "a\0")]).unwrap_err().contains("NUL"));
    }
}
