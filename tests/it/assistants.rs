//! Assistants: create, list, retrieve, modify, delete.

use reqwest::Method;
use serde_json::json;

use crate::both_stores;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

both_stores!(an_assistant_is_created_retrieved_modified_and_deleted, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;

    let created = client
        .post(
            "/v1/assistants",
            json!({"model": "gpt-4o", "name": "n", "description": null, "instructions": "be kind",
                "tools": [{"type": "code_interpreter"}, {"type": "function", "function": {"name": "f"}}],
                "metadata": {"z": "1", "a": "2"}, "temperature": 0.5, "response_format": {"type": "json_object"}}),
        )
        .await;

    let members: Vec<&String> = created.as_object().unwrap().keys().collect();
    assert_eq!(
        members,
        [
            "id",
            "object",
            "created_at",
            "name",
            "description",
            "model",
            "instructions",
            "tools",
            "top_p",
            "temperature",
            "reasoning_effort",
            "tool_resources",
            "metadata",
            "response_format"
        ]
    );
    assert_eq!(created["tool_resources"], json!({"code_interpreter": {"file_ids": []}}));
    assert_eq!(created["metadata"].to_string(), r#"{"z":"1","a":"2"}"#, "metadata keeps its order");
    assert_eq!((&created["temperature"], &created["top_p"]), (&json!(0.5), &json!(1.0)));

    let path = format!("/v1/assistants/{}", created["id"].as_str().unwrap());
    assert_eq!(client.get(&path).await, created);

    let modified = client.post(&path, json!({"name": null, "metadata": {"b": "3"}, "tools": []})).await;
    assert_eq!(modified["name"], json!(null));
    assert_eq!(modified["instructions"], "be kind");
    assert_eq!((&modified["metadata"], &modified["tools"]), (&json!({"b": "3"}), &json!([])));
    assert_eq!(client.get(&path).await, modified);

    let deleted = client.delete(&path).await;
    assert_eq!(deleted, json!({"id": created["id"], "object": "assistant.deleted", "deleted": true}));
    let (status, error) = client.send_rejected(Method::GET, &path, None).await;
    let id = created["id"].as_str().unwrap();
    assert_eq!(
        (status, error["message"].as_str().unwrap()),
        (404, format!("No assistant found with id '{id}'.").as_str())
    );
    assert_eq!(client.send_rejected(Method::DELETE, &path, None).await.0, 404);
});

both_stores!(invalid_bodies_are_rejected_with_an_api_error, async |database: Database| {
    let server = Server::with(&database, &Upstream::start().await, &[("BODY_BYTES_MAX", "1000")]).await;
    let send = async |kind: &'static str, body: String| {
        let request = server.client.request(Method::POST, "/v1/assistants").header("content-type", kind).body(body);
        let reply = crate::support::client::Client::read(request.send().await.unwrap()).await;
        crate::support::contract::check_error(&reply.body);
        (reply.status, reply.body["error"]["message"].as_str().unwrap().to_owned())
    };

    let (status, message) = send("application/json", "{\"model\": ".to_owned()).await;
    assert_eq!(status, 400);
    assert!(message.starts_with("We could not parse the JSON body of your request."), "{message}");
    let (status, message) = send("text/plain", "{}".to_owned()).await;
    assert_eq!(status, 415);
    assert!(message.starts_with("Unsupported content type: 'text/plain'."), "{message}");
    let (status, message) = send("application/json", format!("{{\"model\": \"{}\"}}", "m".repeat(2_000))).await;
    assert_eq!(status, 413);
    assert!(message.contains("larger than 1000 bytes"), "{message}");
});

both_stores!(every_response_has_the_headers_that_clients_read, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;

    let served = server.client.send(Method::GET, "/v1/assistants", None).await;
    let rejected = server.client.send(Method::POST, "/v1/xyz", None).await;

    for reply in [&served, &rejected] {
        let id = reply.headers["x-request-id"].to_str().unwrap();
        assert!(id.starts_with("req_") && id.len() == "req_".len() + 32, "{id}");
        assert!(reply.headers["openai-processing-ms"].to_str().unwrap().parse::<u64>().is_ok());
        assert_eq!(reply.headers["openai-version"], "2020-10-01");
        assert_eq!(reply.headers["content-type"], "application/json");
    }
    let message = rejected.body["error"]["message"].as_str().unwrap();
    assert_eq!(rejected.status, 404);
    assert!(message.starts_with("Invalid URL (POST /v1/xyz). assistd does not serve this path"), "{message}");
    for (path, expected) in [("/threads/x", "use /v1/threads/x"), ("/v1/v1/threads", "a single /v1")] {
        let message = server.client.send(Method::GET, path, None).await.body["error"]["message"].to_string();
        assert!(message.contains(expected), "{path}: {message}");
    }
    let wrong_method = server.client.send(Method::PUT, "/v1/assistants", None).await;
    assert_eq!(wrong_method.status, 405);
});
