//! Azure's paths: the same API under other base paths.

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

const BASE_PATHS: [&str; 5] = [
    "/openai",
    "/openai/v1",
    "/api/projects/my-project",
    "/api/projects/my-project/openai",
    "/api/projects/my-project/openai/v1",
];

both_stores!(the_api_is_served_under_azures_base_paths, async |database: Database| {
    let server = Server::with(&database, &Upstream::start().await, &[("API_KEYS", "sk-one")]).await;
    let send = async |method: Method, path: &str, body: Option<Value>| {
        let path = format!("{path}?api-version=2025-05-01");
        let mut request = server.client.request(method, &path).header("api-key", "sk-one");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let reply = Client::read(request.send().await.unwrap()).await;
        assert_eq!(reply.status, 200, "{path}: {:#}", reply.body);
        reply.body
    };

    for base in BASE_PATHS {
        let assistant = send(Method::POST, &format!("{base}/assistants"), Some(json!({"model": "m"}))).await;
        let body = json!({"assistant_id": assistant["id"], "thread": {"messages": [{"role": "user", "content": "x"}]}});
        let run = send(Method::POST, &format!("{base}/threads/runs"), Some(body)).await;
        let thread = run["thread_id"].as_str().unwrap();
        let path = format!("{base}/threads/{thread}/runs/{}", run["id"].as_str().unwrap());
        while send(Method::GET, &path, None).await["status"] != "completed" {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let messages = send(Method::GET, &format!("/v1/threads/{thread}/messages"), None).await;
        assert_eq!(messages["data"].as_array().unwrap().len(), 2, "all base paths share one store");
        let model = send(Method::GET, &format!("{base}/models/org/large"), None).await;
        assert_eq!(model["id"], "org/large");
    }
    for path in ["/openai/xyz", "/api/projects/my-project/xyz"] {
        let request = server.client.request(Method::GET, path).header("api-key", "sk-one");
        let reply = Client::read(request.send().await.unwrap()).await;
        assert_eq!(reply.status, 404);
        let message = reply.body["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("Invalid URL (GET {path}). assistd does not serve")), "{message}");
    }
});

both_stores!(a_deployment_name_selects_the_model_of_a_chat_completion, async |database: Database| {
    let upstream = Upstream::start().await;
    let server = Server::start(&database, &upstream).await;
    let messages = json!([{"role": "user", "content": "Hi"}]);

    let path = "/openai/deployments/small/chat/completions";
    server.client.request(Method::POST, path).json(&json!({"messages": messages})).send().await.unwrap();
    let named = json!({"model": "", "messages": messages});
    server.client.request(Method::POST, path).json(&named).send().await.unwrap();

    let models: Vec<Value> = upstream.requests().iter().map(|request| request["model"].clone()).collect();
    assert_eq!(models, ["small", "small"]);
});
