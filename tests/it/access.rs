//! API keys of projects: who is accepted, and how fast a change reaches all servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::projects::{ADMIN_KEY, administer, create_key, create_project};
use crate::support::server::Server;
use crate::support::upstream::Upstream;

/// The time within which all servers reject a revoked key.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);

async fn list(client: &Client, key: &str) -> (u16, Value) {
    let response = client.request(Method::GET, "/v1/assistants").bearer_auth(key).send().await.unwrap();
    let reply = Client::read(response).await;
    (reply.status, reply.body)
}

async fn start(database: &Database, upstream: &Upstream, count: usize) -> Vec<Server> {
    let mut servers = Vec::new();
    for _ in 0..count {
        servers.push(Server::with(database, upstream, &[("ADMIN_KEYS", ADMIN_KEY)]).await);
    }
    servers
}

both_stores!(a_revoked_key_is_rejected_by_all_servers_under_load, async |database: Database| {
    let count = if database.url.starts_with("postgres") { 3 } else { 1 };
    let servers = start(&database, &Upstream::start().await, count).await;
    let (project, _) = create_project(&servers[0].client, "team").await;
    let path = format!("/v1/organization/projects/{project}/service_accounts");
    let account = administer(&servers[0].client, Method::POST, &path, Some(&json!({"name": "app"}))).await.body;
    let key: Arc<str> = account["api_key"]["value"].as_str().unwrap().into();
    let (stopped, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..count * 4)
        .map(|number| {
            let (client, key) = (servers[number % count].client.clone(), key.clone());
            let (stopped, accepted) = (stopped.clone(), accepted.clone());
            tokio::spawn(async move {
                let mut last_accepted = Instant::now();
                while !stopped.load(Ordering::Relaxed) {
                    let (status, body) = list(&client, &key).await;
                    assert!(status == 200 || status == 401, "{status}: {body}");
                    if status == 200 {
                        last_accepted = Instant::now();
                        accepted.fetch_add(1, Ordering::Relaxed);
                    }
                }
                last_accepted
            })
        })
        .collect();
    while accepted.load(Ordering::Relaxed) < 50 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let deleted =
        administer(&servers[0].client, Method::DELETE, &format!("{path}/{}", account["id"].as_str().unwrap()), None)
            .await;
    assert_eq!(deleted.status, 200, "{}", deleted.body);
    let revoked = Instant::now();
    tokio::time::sleep(REVOKED_WITHIN).await;
    stopped.store(true, Ordering::Relaxed);

    for last_accepted in futures_util::future::join_all(load).await {
        let after = last_accepted.unwrap().saturating_duration_since(revoked);
        assert!(after < REVOKED_WITHIN, "a server accepted the key {after:?} after it was revoked");
    }
    for server in &servers {
        let (status, body) = list(&server.client, &key).await;
        assert_eq!((status, &body["error"]["code"]), (401, &json!("invalid_api_key")));
    }
});

both_stores!(keys_that_are_not_accepted_get_the_errors_of_the_service, async |database: Database| {
    let servers = start(&database, &Upstream::start().await, 1).await;
    let client = &servers[0].client;
    let (project, key) = create_project(client, "team").await;
    let (other_key, _) = create_key(client, &project).await;
    assert_eq!((list(client, &key).await.0, list(client, &other_key).await.0), (200, 200));
    let projects = async |key: &str| {
        let response = client.request(Method::GET, "/v1/organization/projects").bearer_auth(key).send().await.unwrap();
        Client::read(response).await
    };

    let wrong_role = projects(&key).await;
    assert_eq!(wrong_role.status, 401);
    let message = wrong_role.body["error"]["message"].as_str().unwrap();
    assert!(message.contains("Missing scopes: api.management.read."), "{message}");
    assert_eq!(projects(ADMIN_KEY).await.status, 200);
    let (status, body) = list(client, ADMIN_KEY).await;
    assert_eq!(status, 401);
    assert!(body["error"]["message"].as_str().unwrap().contains("Missing scopes: api.assistants.read."), "{body}");

    let admin = json!({"name": "short", "expires_in_seconds": 1});
    let short = administer(client, Method::POST, "/v1/organization/admin_api_keys", Some(&admin)).await.body;
    let short = short["value"].as_str().unwrap();
    assert_eq!(projects(short).await.status, 200);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let expired = projects(short).await;
    assert_eq!((expired.status, &expired.body["error"]["code"]), (401, &json!("invalid_api_key")));
    assert!(expired.body["error"]["message"].as_str().unwrap().contains("The key has expired."), "{}", expired.body);

    administer(client, Method::POST, &format!("/v1/organization/projects/{project}/archive"), None).await;
    let (status, body) = list(client, &key).await;
    assert_eq!((status, &body["error"]["code"]), (401, &json!("not_authorized_invalid_project")));
    let unknown_url = client.request(Method::GET, "/v1/organization/xyz").bearer_auth("sk-wrong").send().await.unwrap();
    assert_eq!(unknown_url.status(), 401, "an unknown URL reveals nothing without a key");
});
