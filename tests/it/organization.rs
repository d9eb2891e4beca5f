//! The administration: projects, service accounts, API keys, rate limits, and the audit log.

use assistd::api::organization::audit_log::AuditLogFilter;
use assistd::api::organization::{Actor, Change, Project};
use assistd::api::{PageQuery, ProjectId, Timestamp};
use assistd::store;
use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

const PROJECTS: &str = "/v1/organization/projects";
const ADMIN_KEYS: &str = "/v1/organization/admin_api_keys";
const AUDIT_LOGS: &str = "/v1/organization/audit_logs";
const MEMBER_KEY: &str = "sk-test-member";
const ADMIN_KEY: &str = "sk-test-admin";

/// The usage of tools that are not served.
const NOT_SERVED: [&str; 1] = ["/organization/usage/file_search_calls"];

#[test]
fn every_operation_of_the_service_is_served() {
    let Some(service) = crate::support::contract::administration() else { return };
    let served: Vec<(String, &str)> = assistd::http::operations()
        .into_iter()
        .map(|operation| (without_names(operation.path.strip_prefix("/v1").unwrap()), operation.method))
        .collect();

    for (path, item) in service["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let is_served = served.contains(&(without_names(path), method.as_str()));
            assert_eq!(is_served, !NOT_SERVED.contains(&path.as_str()), "{method} {path}");
        }
    }
}

/// Returns a path without the names of its parameters.
fn without_names(path: &str) -> String {
    path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part }).collect::<Vec<_>>().join("/")
}

/// Starts a server with a key of each role; returns it with the client of an administrator.
async fn start(database: &Database) -> (Server, Client) {
    start_with(database, &[]).await
}

async fn start_with(database: &Database, settings: &[(&str, &str)]) -> (Server, Client) {
    let mut settings = settings.to_vec();
    settings.extend([("API_KEYS", MEMBER_KEY), ("ADMIN_KEYS", ADMIN_KEY)]);
    let server = Server::with(database, &Upstream::start().await, &settings).await;
    let admin = server.client.with_key(ADMIN_KEY);
    (server, admin)
}

fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_else(|| panic!("no {name} in {object:#}"))
}

fn ids(list: &Value) -> Vec<&str> {
    list["data"].as_array().unwrap().iter().map(|element| text(element, "id")).collect()
}

/// Creates a project; returns its path.
async fn create_project(admin: &Client, name: &str) -> String {
    let project = admin.post(PROJECTS, json!({"name": name})).await;
    format!("{PROJECTS}/{}", text(&project, "id"))
}

/// Creates a service account with a key in a project; returns the account.
async fn create_account(admin: &Client, project: &str, name: &str) -> Value {
    admin.post(&format!("{project}/service_accounts"), json!({"name": name})).await
}

async fn rejected(client: &Client, method: Method, path: &str, body: Option<Value>) -> (u16, String) {
    let (status, error) = client.send_rejected(method, path, body).await;
    (status, text(&error, "message").to_owned())
}

/// Returns the status of a request for the objects of the key's project.
async fn status_of(client: &Client, key: &str) -> u16 {
    client.with_key(key).send(Method::GET, "/v1/assistants", None).await.status
}

/// Reads a list page by page; returns the IDs in order.
async fn paged(admin: &Client, path: &str) -> Vec<String> {
    let separator = if path.contains('?') { '&' } else { '?' };
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let page = admin.get(&format!("{path}{separator}limit=2{after}")).await;
        found.extend(ids(&page).into_iter().map(str::to_owned));
        if page["has_more"] == false {
            return found;
        }
        assert_eq!(page["last_id"], json!(found.last().unwrap()));
        after = format!("&after={}", text(&page, "last_id"));
    }
}

both_stores!(a_project_is_created_listed_modified_and_archived, async |database: Database| {
    let (_server, admin) = start(&database).await;

    let created = admin
        .post(PROJECTS, json!({"name": "Team A", "residency": "EU_STORAGE_PROCESSING", "external_key_id": "x"}))
        .await;
    let path = format!("{PROJECTS}/{}", text(&created, "id"));
    let expected = json!({
        "id": created["id"], "object": "organization.project", "name": "Team A", "created_at": created["created_at"],
        "archived_at": null, "status": "active", "external_key_id": "x", "residency": "EU_STORAGE_PROCESSING",
    });
    assert_eq!(created, expected);
    assert_eq!(admin.get(&path).await, created);
    assert_eq!(ids(&admin.get(PROJECTS).await), [text(&created, "id"), "proj_default"]);

    let modified = admin.post(&path, json!({"name": "Team B", "external_key_id": null})).await;
    assert_eq!((text(&modified, "name"), &modified["external_key_id"]), ("Team B", &json!(null)));
    assert_eq!(admin.get(&path).await, modified);
    assert_eq!(admin.post(&path, json!({})).await, modified);

    let archived = admin.post(&format!("{path}/archive"), json!({})).await;
    assert_eq!(text(&archived, "status"), "archived");
    assert!(archived["archived_at"].is_i64());
    assert_eq!(admin.post(&format!("{path}/archive"), json!({})).await, archived, "archiving is idempotent");
    assert_eq!(ids(&admin.get(PROJECTS).await), ["proj_default"]);
    let all = admin.get(&format!("{PROJECTS}?include_archived=true")).await;
    assert_eq!(ids(&all), [text(&created, "id"), "proj_default"]);
    assert_eq!(all["data"][0], archived);
});

both_stores!(an_archived_project_cannot_be_changed_and_its_keys_are_rejected, async |database: Database| {
    let (server, admin) = start(&database).await;
    let project = create_project(&admin, "Old").await;
    let account = create_account(&admin, &project, "app").await;
    let key = text(&account["api_key"], "value");
    let accounts = format!("{project}/service_accounts");
    let account_path = format!("{accounts}/{}", text(&account, "id"));
    assert_eq!(status_of(&server.client, key).await, 200);

    admin.post(&format!("{project}/archive"), json!({})).await;

    assert_eq!(status_of(&server.client, key).await, 401);
    for (method, path, body) in [
        (Method::POST, project.clone(), json!({"name": "New"})),
        (Method::POST, accounts.clone(), json!({"name": "app"})),
        (Method::POST, account_path.clone(), json!({"name": "app"})),
        (Method::DELETE, account_path.clone(), json!(null)),
        (Method::POST, format!("{account_path}/api_keys"), json!({})),
        (Method::POST, format!("{project}/rate_limits/rl_all"), json!({"max_active_runs": 1})),
    ] {
        let rejection = rejected(&admin, method.clone(), &path, Some(body).filter(|body| !body.is_null())).await;
        assert_eq!(rejection, (400, "Project Old is archived".to_owned()), "{method} {path}");
    }
    let keys = admin.get(&format!("{project}/api_keys")).await;
    assert_eq!(keys["data"][0]["owner_project_access"], "inactive", "the keys are kept");
    assert_eq!(ids(&admin.get(&accounts).await), [text(&account, "id")]);

    let archive = format!("{PROJECTS}/proj_default/archive");
    let rejection = rejected(&admin, Method::POST, &archive, None).await;
    assert_eq!(rejection, (400, "The default project cannot be archived.".to_owned()));
});

both_stores!(a_service_account_has_keys_that_are_deleted_with_it, async |database: Database| {
    let (server, admin) = start(&database).await;
    let project = create_project(&admin, "P").await;
    let accounts = format!("{project}/service_accounts");

    let created = admin.post(&accounts, json!({"name": "app", "expires_in_seconds": 3600})).await;
    let key = &created["api_key"];
    let expires_at = created["created_at"].as_i64().unwrap() + 3600;
    assert_eq!(
        created,
        json!({
            "object": "organization.project.service_account", "id": created["id"], "name": "app", "role": "member",
            "created_at": created["created_at"],
            "api_key": {
                "object": "organization.project.service_account.api_key", "value": key["value"], "name": "Secret Key",
                "created_at": created["created_at"], "expires_at": expires_at, "id": key["id"],
            },
        })
    );
    let value = text(key, "value");
    assert!(value.starts_with("sk-svcacct-") && value.len() == "sk-svcacct-".len() + 43, "{value}");
    assert!(text(&created, "id").starts_with("svc_acct_"));

    let path = format!("{accounts}/{}", text(&created, "id"));
    let account = admin.get(&path).await;
    assert_eq!(account.as_object().unwrap().keys().collect::<Vec<_>>(), ["object", "id", "name", "role", "created_at"]);
    let modified = admin.post(&path, json!({"name": "renamed", "role": "owner"})).await;
    assert_eq!((text(&modified, "name"), text(&modified, "role")), ("renamed", "owner"));
    assert_eq!(admin.get(&path).await, modified);

    let second = admin.post(&format!("{path}/api_keys"), json!({"name": "second", "scopes": []})).await;
    assert_eq!((text(&second, "name"), &second["expires_at"]), ("second", &json!(null)));
    for value in [value, text(&second, "value")] {
        assert_eq!(status_of(&server.client, value).await, 200);
    }

    let deleted = admin.delete(&path).await;
    let expected =
        json!({"id": created["id"], "object": "organization.project.service_account.deleted", "deleted": true});
    assert_eq!(deleted, expected);
    assert_eq!(admin.get(&format!("{project}/api_keys")).await["data"], json!([]));
    for value in [value, text(&second, "value")] {
        assert_eq!(status_of(&server.client, value).await, 401);
    }
    let message = format!("No service account found with id '{}'.", text(&created, "id"));
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(rejected(&admin, method, &path, None).await, (404, message.clone()));
    }
});

both_stores!(a_service_account_without_a_role_may_use_nothing, async |database: Database| {
    let (server, admin) = start(&database).await;
    let project = create_project(&admin, "P").await;
    let body = json!({"name": "app", "create_service_account_only": true});

    let account = admin.post(&format!("{project}/service_accounts"), body).await;

    assert_eq!((text(&account, "role"), &account["api_key"]), ("none", &json!(null)));
    let path = format!("{project}/service_accounts/{}", text(&account, "id"));
    let key = admin.post(&format!("{path}/api_keys"), json!({})).await;
    assert_eq!(status_of(&server.client, text(&key, "value")).await, 401);
    let access = async |access: &str| {
        let list = admin.get(&format!("{project}/api_keys?owner_project_access={access}")).await;
        ids(&list).len()
    };
    assert_eq!((access("active").await, access("inactive").await, access("any").await), (0, 1, 1));

    admin.post(&path, json!({"role": "member"})).await;

    assert_eq!(status_of(&server.client, text(&key, "value")).await, 200);
    assert_eq!((access("active").await, access("inactive").await, access("any").await), (1, 0, 1));
});

both_stores!(a_project_key_is_retrieved_without_its_value_and_deleted, async |database: Database| {
    let (server, admin) = start(&database).await;
    let project = create_project(&admin, "P").await;
    let account = create_account(&admin, &project, "app").await;
    let (id, value) = (text(&account["api_key"], "id"), text(&account["api_key"], "value"));
    let keys = format!("{project}/api_keys");
    let path = format!("{keys}/{id}");

    let key = admin.get(&path).await;

    let secret = value.strip_prefix("sk-svcacct-").unwrap();
    let redacted = format!("sk-svcacct-{}***{}", &secret[..3], &secret[secret.len() - 4..]);
    assert_eq!(
        key,
        json!({
            "object": "organization.project.api_key", "redacted_value": redacted, "name": "Secret Key",
            "created_at": account["created_at"], "last_used_at": null, "expires_at": null, "id": id,
            "owner_project_access": "active",
            "owner": {"type": "service_account", "service_account": {
                "id": account["id"], "name": "app", "created_at": account["created_at"], "role": "member",
            }},
        })
    );
    assert_eq!(admin.get(&keys).await["data"], json!([key]));
    let message = "API keys cannot be deleted for the service account, please delete the service account";
    assert_eq!(rejected(&admin, Method::DELETE, &path, None).await, (400, message.to_owned()));

    // Keys without a service account come from the command line.
    let digest = assistd::api::organization::api_key::digest("sk-proj-of-the-operator");
    database
        .execute(&format!(
            "insert into api_keys (id, project_id, digest, redacted_value, name, created_at)
             values ('key_operator', '{}', '{digest}', 'sk-proj-***ator', 'by hand', 5)",
            project.rsplit('/').next().unwrap()
        ))
        .await;
    assert_eq!(status_of(&server.client, "sk-proj-of-the-operator").await, 200);
    let path = format!("{keys}/key_operator");
    let user = json!({"id": "user-operator", "email": "", "name": "operator", "created_at": 5, "role": "owner"});
    assert_eq!(admin.get(&path).await["owner"], json!({"type": "user", "user": user}));
    let deleted = admin.delete(&path).await;
    assert_eq!(
        deleted,
        json!({"id": "key_operator", "object": "organization.project.api_key.deleted", "deleted": true})
    );
    assert_eq!(status_of(&server.client, "sk-proj-of-the-operator").await, 401);
    let message = "No API key found with id 'key_operator'.".to_owned();
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(rejected(&admin, method, &path, None).await, (404, message.clone()));
    }
});

both_stores!(an_admin_key_is_created_used_and_deleted, async |database: Database| {
    let (server, admin) = start(&database).await;

    let created = admin.post(ADMIN_KEYS, json!({"name": "ops", "expires_in_seconds": 60})).await;
    let value = text(&created, "value").to_owned();
    assert!(value.starts_with("sk-admin-"), "{value}");
    assert_eq!(created["expires_at"].as_i64().unwrap(), created["created_at"].as_i64().unwrap() + 60);
    let path = format!("{ADMIN_KEYS}/{}", text(&created, "id"));
    let mut expected = created.clone();
    expected.as_object_mut().unwrap().shift_remove("value");
    assert_eq!(admin.get(&path).await, expected);
    let user = &expected["owner"];
    assert_eq!((text(user, "type"), text(user, "object"), text(user, "role")), ("user", "organization.user", "owner"));

    let by_key = server.client.with_key(&value);
    let second = by_key.post(ADMIN_KEYS, json!({"name": "second"})).await;
    assert_eq!(second["expires_at"], json!(null));
    let listed = admin.get(ADMIN_KEYS).await;
    assert_eq!(ids(&listed), [text(&created, "id"), text(&second, "id")], "oldest first");
    let newest_first = admin.get(&format!("{ADMIN_KEYS}?order=desc")).await;
    assert_eq!(ids(&newest_first), [text(&second, "id"), text(&created, "id")]);

    let deleted = by_key.delete(&path).await;
    assert_eq!(deleted, json!({"id": created["id"], "object": "organization.admin_api_key.deleted", "deleted": true}));
    assert_eq!(by_key.send(Method::GET, ADMIN_KEYS, None).await.status, 401, "a key may delete itself");
    let message = format!("No API key found with id '{}'.", text(&created, "id"));
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(rejected(&admin, method, &path, None).await, (404, message.clone()));
    }
});

both_stores!(rate_limits_are_modified_within_their_bounds_and_reset, async |database: Database| {
    let (_server, admin) = start_with(&database, &[("REQUESTS_PER_MINUTE", "5000"), ("TOKENS_PER_DAY", "7")]).await;
    let project = create_project(&admin, "P").await;
    let list = format!("{project}/rate_limits");
    let path = format!("{list}/rl_all");
    let limit = |requests: u64, tokens: u64, runs: u64| {
        json!({
            "object": "project.rate_limit", "id": "rl_all", "model": "*", "max_requests_per_1_minute": requests,
            "max_tokens_per_1_minute": tokens, "max_tokens_per_1_day": 7, "max_tokens_per_1_month": 0,
            "max_active_runs": runs,
        })
    };
    let listed = json!({
        "object": "list", "data": [limit(5000, 0, 0)], "first_id": "rl_all", "last_id": "rl_all", "has_more": false,
    });
    assert_eq!(admin.get(&list).await, listed, "the defaults of the settings");

    let body = json!({"max_requests_per_1_minute": 4000, "max_tokens_per_1_minute": 1_000_000_000_000_000_u64});
    assert_eq!(admin.post(&path, body).await, limit(4000, 1_000_000_000_000_000, 0));
    assert_eq!(admin.post(&path, json!({"max_active_runs": 3})).await, limit(4000, 1_000_000_000_000_000, 3));
    let body = json!({"max_requests_per_1_minute": null, "max_tokens_per_1_minute": 0});
    assert_eq!(admin.post(&path, body).await, limit(5000, 0, 3), "null is the default, and 0 no limit");
    assert_eq!(admin.get(&list).await["data"], json!([limit(5000, 0, 3)]));
    assert_eq!(admin.get(&format!("{list}?after=rl_all")).await["data"], json!([]));

    for (name, value, bound) in [
        ("max_requests_per_1_minute", json!(-1), ">= 0"),
        ("max_requests_per_1_minute", json!(2_147_483_648_u64), "<= 2147483647"),
        ("max_active_runs", json!(2_147_483_648_u64), "<= 2147483647"),
        ("max_tokens_per_1_minute", json!(1_000_000_000_000_001_u64), "<= 1000000000000000"),
        ("max_tokens_per_1_day", json!(u64::MAX), "<= 1000000000000000"),
        ("max_tokens_per_1_month", json!(-5), ">= 0"),
    ] {
        let message = admin.post_rejected(&path, json!({name: value})).await;
        assert!(message.starts_with(&format!("Invalid '{name}': integer")), "{message}");
        assert!(message.contains(&format!("Expected a value {bound}, but got {value} instead.")), "{message}");
    }
    for name in ["max_images_per_1_minute", "max_requests_per_1_day", "batch_1_day_max_input_tokens"] {
        let message = admin.post_rejected(&path, json!({name: 5})).await;
        assert_eq!(message, format!("Invalid '{name}': this limit is not supported."));
    }
    assert_eq!(admin.get(&list).await["data"], json!([limit(5000, 0, 3)]), "rejected changes have no effect");
});

both_stores!(unknown_ids_are_rejected_with_404, async |database: Database| {
    let (_server, admin) = start(&database).await;
    let project = create_project(&admin, "P").await;
    let other = create_project(&admin, "Other").await;
    let account = create_account(&admin, &other, "app").await;
    let (account, key) = (text(&account, "id"), text(&account["api_key"], "id"));
    let named = Some(json!({"name": "x"}));

    let no_project = |id: &str| format!("No project found with id '{id}'.");
    for id in ["proj_x", "nope", "proj_%20"] {
        let message = no_project(&id.replace("%20", " "));
        for (method, path, body) in [
            (Method::GET, "", None),
            (Method::POST, "", named.clone()),
            (Method::POST, "/archive", None),
            (Method::GET, "/service_accounts", None),
            (Method::POST, "/service_accounts", named.clone()),
            (Method::GET, "/service_accounts/svc_acct_x", None),
            (Method::POST, "/service_accounts/svc_acct_x", named.clone()),
            (Method::DELETE, "/service_accounts/svc_acct_x", None),
            (Method::POST, "/service_accounts/svc_acct_x/api_keys", None),
            (Method::GET, "/api_keys", None),
            (Method::GET, "/api_keys/key_x", None),
            (Method::DELETE, "/api_keys/key_x", None),
            (Method::GET, "/rate_limits", None),
            (Method::POST, "/rate_limits/rl_all", None),
        ] {
            let rejection = rejected(&admin, method.clone(), &format!("{PROJECTS}/{id}{path}"), body).await;
            assert_eq!(rejection, (404, message.clone()), "{method} {path}");
        }
    }
    for (method, path, body, noun, id) in [
        (Method::GET, format!("{project}/service_accounts/{account}"), None, "service account", account),
        (Method::POST, format!("{project}/service_accounts/{account}"), named.clone(), "service account", account),
        (Method::DELETE, format!("{project}/service_accounts/{account}"), None, "service account", account),
        (Method::POST, format!("{project}/service_accounts/{account}/api_keys"), None, "service account", account),
        (Method::GET, format!("{project}/api_keys/{key}"), None, "API key", key),
        (Method::DELETE, format!("{project}/api_keys/{key}"), None, "API key", key),
        (Method::POST, format!("{project}/rate_limits/rl_x"), None, "rate limit", "rl_x"),
        (Method::GET, format!("{ADMIN_KEYS}/{key}"), None, "API key", key),
        (Method::DELETE, format!("{ADMIN_KEYS}/{key}"), None, "API key", key),
        (Method::GET, format!("{PROJECTS}?after=proj_x"), None, "project", "proj_x"),
        (Method::GET, format!("{project}/service_accounts?after={account}"), None, "service account", account),
        (Method::GET, format!("{project}/api_keys?after={key}"), None, "API key", key),
        (Method::GET, format!("{project}/rate_limits?after=rl_x"), None, "rate limit", "rl_x"),
        (Method::GET, format!("{ADMIN_KEYS}?after={key}"), None, "API key", key),
        (Method::GET, format!("{AUDIT_LOGS}?after=audit_log-x"), None, "audit log", "audit_log-x"),
    ] {
        let rejection = rejected(&admin, method.clone(), &path, body).await;
        assert_eq!(rejection, (404, format!("No {noun} found with id '{id}'.")), "{method} {path}");
    }
    assert_eq!(ids(&admin.get(&format!("{other}/service_accounts")).await), [account], "nothing was deleted");
});

both_stores!(invalid_values_are_rejected_with_400, async |database: Database| {
    let (_server, admin) = start(&database).await;
    let project = create_project(&admin, "P").await;
    let accounts = format!("{project}/service_accounts");
    let account = create_account(&admin, &project, "app").await;
    let keys = format!("{accounts}/{}/api_keys", text(&account, "id"));

    for (path, body, message) in [
        (PROJECTS, json!({}), "Missing required parameter: 'name'."),
        (PROJECTS, json!({"name": ""}), "Invalid 'name': empty string."),
        (PROJECTS, json!({"name": "n".repeat(257)}), "Invalid 'name': string too long."),
        (PROJECTS, json!({"name": "a\0b"}), "Invalid 'name': the string contains a NUL character."),
        (PROJECTS, json!({"name": "n", "residency": "MOON"}), "Invalid value: 'MOON'."),
        (PROJECTS, json!({"name": "n", "owner": "me"}), "Unknown parameter: 'owner'."),
        (&accounts, json!({"name": "n", "expires_in_seconds": 0}), "Invalid 'expires_in_seconds': integer below"),
        (
            &accounts,
            json!({"name": "n", "expires_in_seconds": 5, "create_service_account_only": true}),
            "'expires_in_seconds' cannot be used when 'create_service_account_only' is true.",
        ),
        (&keys, json!({"scopes": ["api.model.read"]}), "Invalid 'scopes': scopes are not supported."),
        (
            ADMIN_KEYS,
            json!({"name": "n", "expires_in_seconds": 31_536_001}),
            "Invalid 'expires_in_seconds': integer above",
        ),
    ] {
        let rejection = admin.post_rejected(path, body).await;
        assert!(rejection.starts_with(message), "{path}: {rejection}");
    }
    for (query, message) in [
        ("projects?include_archived=maybe", "Invalid value: 'maybe'. Supported values are: 'true' and 'false'."),
        ("projects?limit=0", "Invalid 'limit': integer below minimum value."),
        ("projects/proj_default/api_keys?owner_project_access=some", "Invalid value: 'some'."),
        ("projects/proj_default/rate_limits?limit=101", "Invalid 'limit': integer above maximum value."),
        ("audit_logs?effective_at[gt]=now", "Invalid type for 'effective_at[gt]'"),
        ("audit_logs?actor_emails[]=a@b.example", "Invalid 'actor_emails'"),
    ] {
        let (status, rejection) = rejected(&admin, Method::GET, &format!("/v1/organization/{query}"), None).await;
        assert_eq!(status, 400, "{query}");
        assert!(rejection.starts_with(message), "{query}: {rejection}");
    }
});

both_stores!(paging_returns_each_element_once, async |database: Database| {
    let (_server, admin) = start(&database).await;
    let project = create_project(&admin, "P").await;
    let (mut accounts, mut keys, mut admin_keys) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..5 {
        let account = create_account(&admin, &project, &number.to_string()).await;
        accounts.insert(0, text(&account, "id").to_owned());
        keys.insert(0, text(&account["api_key"], "id").to_owned());
        let key = admin.post(ADMIN_KEYS, json!({"name": "n"})).await;
        admin_keys.push(text(&key, "id").to_owned());
    }
    let mut projects = vec!["proj_default".to_owned(), project.rsplit('/').next().unwrap().to_owned()];
    for number in 0..3 {
        let path = create_project(&admin, &number.to_string()).await;
        projects.push(path.rsplit('/').next().unwrap().to_owned());
    }
    projects.reverse();

    assert_eq!(paged(&admin, PROJECTS).await, projects);
    assert_eq!(paged(&admin, &format!("{project}/service_accounts")).await, accounts);
    assert_eq!(paged(&admin, &format!("{project}/api_keys?owner_project_access=active")).await, keys);
    assert_eq!(paged(&admin, ADMIN_KEYS).await, admin_keys);
    let logs = paged(&admin, AUDIT_LOGS).await;
    assert_eq!(logs.len(), 4 + 5 * 3);
    assert_eq!(logs, ids(&admin.get(&format!("{AUDIT_LOGS}?limit=100")).await));
    let before = admin.get(&format!("{AUDIT_LOGS}?limit=2&before={}", logs[5])).await;
    assert_eq!(ids(&before), [&logs[3], &logs[4]].map(String::as_str));
});

/// Sends a request as an administrator; returns the response and its request ID.
async fn change(admin: &Client, method: Method, path: &str, body: Value) -> (Value, String) {
    let reply = admin.send(method, path, Some(&body)).await;
    assert_eq!(reply.status, 200, "{path}: {:#}", reply.body);
    (reply.body, reply.headers["x-request-id"].to_str().unwrap().to_owned())
}

both_stores!(each_change_is_in_the_audit_log_with_its_actor_and_request, async |database: Database| {
    let (server, configured) = start(&database).await;
    let (admin_key, created_key) = change(&configured, Method::POST, ADMIN_KEYS, json!({"name": "ops"})).await;
    let admin = server.client.with_key(text(&admin_key, "value"));

    let (project, created) = change(&admin, Method::POST, PROJECTS, json!({"name": "Team A"})).await;
    let (id, path) = (text(&project, "id"), format!("{PROJECTS}/{}", text(&project, "id")));
    let (_, updated) = change(&admin, Method::POST, &path, json!({"name": "Team B"})).await;
    let accounts = format!("{path}/service_accounts");
    let (account, account_created) = change(&admin, Method::POST, &accounts, json!({"name": "app"})).await;
    let account_path = format!("{accounts}/{}", text(&account, "id"));
    let (_, account_updated) = change(&admin, Method::POST, &account_path, json!({"role": "owner"})).await;
    let keys = format!("{account_path}/api_keys");
    let (second, second_created) = change(&admin, Method::POST, &keys, json!({"name": "second"})).await;
    let limits = json!({"max_active_runs": 3, "max_tokens_per_1_day": null});
    let limits_path = format!("{path}/rate_limits/rl_all");
    let (_, limits_updated) = change(&admin, Method::POST, &limits_path, limits.clone()).await;
    let (_, account_deleted) = change(&admin, Method::DELETE, &account_path, json!({})).await;
    let (_, archived) = change(&admin, Method::POST, &format!("{path}/archive"), json!({})).await;
    let admin_key_path = format!("{ADMIN_KEYS}/{}", text(&admin_key, "id"));
    let (_, key_deleted) = change(&configured, Method::DELETE, &admin_key_path, json!({})).await;
    configured.post_rejected(&path, json!({"name": "too late"})).await;

    let logs = configured.get(&format!("{AUDIT_LOGS}?order=asc")).await;

    let (account_id, first_key) = (&account["id"], &account["api_key"]["id"]);
    let data = |name: &str| json!({"name": name, "expires_at": null, "service_account_id": account_id});
    let expected = [
        ("api_key.created", &created_key, json!({"id": admin_key["id"], "data": {"name": "ops", "expires_at": null}})),
        ("project.created", &created, json!({"id": id, "data": {"name": "Team A", "title": "Team A"}})),
        ("project.updated", &updated, json!({"id": id, "changes_requested": {"title": "Team B"}})),
        (
            "service_account.created",
            &account_created,
            json!({"id": account_id, "data": {"name": "app", "role": "member"}}),
        ),
        ("api_key.created", &account_created, json!({"id": first_key, "data": data("Secret Key")})),
        (
            "service_account.updated",
            &account_updated,
            json!({"id": account_id, "changes_requested": {"role": "owner"}}),
        ),
        ("api_key.created", &second_created, json!({"id": second["id"], "data": data("second")})),
        ("rate_limit.updated", &limits_updated, json!({"id": "rl_all", "changes_requested": limits})),
        ("api_key.deleted", &account_deleted, json!({"id": first_key})),
        ("api_key.deleted", &account_deleted, json!({"id": second["id"]})),
        ("service_account.deleted", &account_deleted, json!({"id": account_id})),
        ("project.archived", &archived, json!({"id": id})),
        ("api_key.deleted", &key_deleted, json!({"id": admin_key["id"]})),
    ];
    let mut got = logs["data"].as_array().unwrap().clone();
    // The keys of a service account are deleted in any order.
    got[8..10].sort_by_key(|log| log["api_key.deleted"]["id"] != *first_key);
    assert_eq!(got.len(), expected.len(), "{logs:#}");
    for (log, (kind, request_id, details)) in got.iter().zip(expected) {
        let is_configured = [&created_key, &key_deleted].contains(&request_id);
        let user = json!({"id": "user-operator", "email": ""});
        let actor = if is_configured {
            json!({"type": "api_key", "source": "configured_key", "api_key": {"type": "user", "user": user}})
        } else {
            let key = json!({"id": admin_key["id"], "type": "user", "user": user});
            json!({"type": "api_key", "source": "stored_key", "api_key": key})
        };
        let mut whole = json!({
            "id": log["id"], "type": kind, "effective_at": log["effective_at"], "actor": actor,
            "request_id": request_id, kind: details,
        });
        if !is_configured {
            whole["project"] = json!({"id": id, "name": "Team B"});
        }
        assert_eq!(*log, whole);
    }
    let all = logs.to_string();
    for value in [&admin_key["value"], &account["api_key"]["value"], &second["value"]] {
        assert!(!all.contains(value.as_str().unwrap()), "the log has a key");
    }
});

both_stores!(the_audit_log_is_filtered, async |database: Database| {
    let (server, configured) = start(&database).await;
    let admin_key = configured.post(ADMIN_KEYS, json!({"name": "ops"})).await;
    let admin = server.client.with_key(text(&admin_key, "value"));
    let first = configured.post(PROJECTS, json!({"name": "first"})).await;
    let second = admin.post(PROJECTS, json!({"name": "second"})).await;
    admin.post(&format!("{PROJECTS}/{}", text(&second, "id")), json!({"name": "renamed"})).await;
    let kinds = async |query: &str| {
        let logs = admin.get(&format!("{AUDIT_LOGS}?order=asc&{query}")).await;
        logs["data"].as_array().unwrap().iter().map(|log| text(log, "type").to_owned()).collect::<Vec<_>>().join(" ")
    };
    let at = first["created_at"].as_i64().unwrap();
    let (first, second, key) = (text(&first, "id"), text(&second, "id"), text(&admin_key, "id"));

    let all = "api_key.created project.created project.created project.updated";
    assert_eq!(kinds("").await, all);
    assert_eq!(kinds(&format!("project_ids[]={second}")).await, "project.created project.updated");
    let both = format!("project_ids[]={second}&project_ids[]={first}&event_types[]=project.created");
    assert_eq!(kinds(&both).await, "project.created project.created");
    assert_eq!(kinds("event_types[]=project.updated&event_types[]=login.failed").await, "project.updated");
    assert_eq!(kinds(&format!("actor_ids[]={key}")).await, "project.created project.updated");
    assert_eq!(kinds("actor_ids[]=user-operator").await, all, "the operator owns all keys");
    assert_eq!(kinds(&format!("resource_ids[]={key}")).await, "api_key.created");
    assert_eq!(kinds(&format!("effective_at[gte]={}&effective_at[lte]={}", at - 60, at + 60)).await, all);
    assert_eq!(kinds(&format!("effective_at[gt]={}", at + 60)).await, "");
    assert_eq!(kinds(&format!("effective_at[lt]={}", at - 60)).await, "");
    let page = admin.get(&format!("{AUDIT_LOGS}?limit=1&project_ids[]={second}")).await;
    assert_eq!((text(&page["data"][0], "type"), &page["has_more"]), ("project.updated", &json!(true)));
});

both_stores!(changes_increment_the_revision_and_rejected_ones_do_not, async |database: Database| {
    let store = database.open().await;
    let change = Change { actor: Actor::CommandLine, request_id: String::new(), at: Timestamp(1_000) };
    let project = |id: &str| Project {
        id: ProjectId::from_stored(id),
        created_at: Timestamp(1_000),
        archived_at: None,
        name: id.to_owned(),
        external_key_id: None,
        residency: None,
    };
    let first = store.access_revision().await.unwrap();
    store.create_project(&project("proj_a"), &change).await.unwrap();
    store.create_project(&project("proj_a"), &change).await.unwrap_err();
    let unknown = store.archive_project(&ProjectId::from_stored("proj_b"), &change).await.unwrap_err();
    assert!(matches!(unknown, store::Error::NoProject(_)), "{unknown:?}");
    assert_eq!(store.access_revision().await.unwrap(), first + 1);

    // Concurrent changes all take effect, each once.
    let ids: Vec<String> = (0..8).map(|number| format!("proj_{number}")).collect();
    let creations = ids.iter().map(async |id| store.create_project(&project(id), &change).await.unwrap());
    futures_util::future::join_all(creations).await;
    assert_eq!(store.access_revision().await.unwrap(), first + 9);
    let logs = store.list_audit_logs(&AuditLogFilter::default(), &PageQuery::default()).await.unwrap();
    assert_eq!(logs.data.len(), 9);
    assert!(logs.data.iter().all(|log| log.actor == Actor::CommandLine && log.request_id.is_empty()));
    store.close().await;
});

both_stores!(a_key_is_stored_only_as_its_digest, async |database: Database| {
    let (_server, admin) = start(&database).await;
    let account = create_account(&admin, &format!("{PROJECTS}/proj_default"), "app").await;
    let value = text(&account["api_key"], "value");

    for path in [format!("{PROJECTS}/proj_default/api_keys"), AUDIT_LOGS.to_owned()] {
        let list = admin.get(&path).await.to_string();
        assert!(!list.contains(value), "{path} has the key");
    }
    let digest = assistd::api::organization::api_key::digest(value);
    let row = database.text("select digest || ' ' || redacted_value || ' ' || name from api_keys").await;
    assert_eq!(row, format!("{digest} sk-svcacct-{}***{} Secret Key", &value[11..14], &value[value.len() - 4..]));
});

both_stores!(members_cannot_use_the_administration, async |database: Database| {
    let (server, admin) = start(&database).await;
    let account = create_account(&admin, &format!("{PROJECTS}/proj_default"), "app").await;

    for key in [MEMBER_KEY, text(&account["api_key"], "value")] {
        let member = server.client.with_key(key);
        let (status, message) = rejected(&member, Method::GET, PROJECTS, None).await;
        assert_eq!(status, 401);
        assert!(message.contains("Missing scopes: api.management.read."), "{message}");
        let (status, message) = rejected(&member, Method::POST, PROJECTS, Some(json!({"name": "n"}))).await;
        assert_eq!(status, 401);
        assert!(message.contains("Missing scopes: api.management.write."), "{message}");
        let (_, message) = rejected(&member, Method::GET, AUDIT_LOGS, None).await;
        assert!(message.contains("Missing scopes: api.audit_logs.read."), "{message}");
    }
    assert_eq!(ids(&admin.get(PROJECTS).await), ["proj_default"]);
});

both_stores!(without_keys_this_machine_administers_until_the_first_key_exists, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;

    let key = server.client.post(ADMIN_KEYS, json!({"name": "first"})).await;

    let (status, _) = rejected(&server.client, Method::GET, ADMIN_KEYS, None).await;
    assert_eq!(status, 401);
    let admin = server.client.with_key(text(&key, "value"));
    let logs = admin.get(AUDIT_LOGS).await;
    let user = json!({"id": "user-operator", "email": ""});
    assert_eq!(logs["data"][0]["actor"], json!({"type": "session", "source": "local", "session": {"user": user}}));
    assert_eq!(admin.get("/openai/v1/organization/admin_api_keys").await["data"][0]["id"], key["id"]);
});
