//! Projects and their keys, created as an administrator does.

use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Client, Reply};

/// The key of the administrator in the settings of tests.
pub const ADMIN_KEY: &str = "sk-admin-test";

/// Sends a request as an administrator.
pub async fn administer(client: &Client, method: Method, path: &str, body: Option<&Value>) -> Reply {
    let mut request = client.request(method, path).bearer_auth(ADMIN_KEY);
    if let Some(body) = body {
        request = request.json(body);
    }
    Client::read(request.send().await.unwrap()).await
}

/// Creates a project with a service account; returns the ID of the project and the key of the account.
pub async fn create_project(client: &Client, name: &str) -> (String, String) {
    let project = administer(client, Method::POST, "/v1/organization/projects", Some(&json!({"name": name}))).await;
    let project = project.body["id"].as_str().unwrap().to_owned();
    let (key, _) = create_key(client, &project).await;
    (project, key)
}

/// Creates a service account of a project; returns its key and the ID of the key.
pub async fn create_key(client: &Client, project: &str) -> (String, String) {
    let path = format!("/v1/organization/projects/{project}/service_accounts");
    let account = administer(client, Method::POST, &path, Some(&json!({"name": "app"}))).await;
    let key = &account.body["api_key"];
    (key["value"].as_str().unwrap().to_owned(), key["id"].as_str().unwrap().to_owned())
}
