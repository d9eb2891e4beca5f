//! Threads: create, list, retrieve, modify, delete.

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

both_stores!(a_thread_is_created_retrieved_modified_and_deleted, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;

    let created = client
        .post(
            "/v1/threads",
            json!({"metadata": {"k": "v"}, "messages": [
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
            ]}),
        )
        .await;

    let members: Vec<&String> = created.as_object().unwrap().keys().collect();
    assert_eq!(members, ["id", "object", "created_at", "metadata", "tool_resources"]);
    assert_eq!(created["tool_resources"], json!({}));
    let path = format!("/v1/threads/{}", created["id"].as_str().unwrap());
    let mut retrieved = client.get(&path).await;
    assert_eq!(
        retrieved["tool_resources"].take(),
        json!({"code_interpreter": {"file_ids": []}}),
        "as in the recording"
    );
    retrieved["tool_resources"] = json!({});
    assert_eq!(retrieved, created);
    let messages = client.get(&format!("{path}/messages?order=asc")).await;
    let texts: Vec<(&Value, &Value)> = messages["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| (&message["role"], &message["content"][0]["text"]["value"]))
        .collect();
    assert_eq!(texts, [(&json!("user"), &json!("one")), (&json!("assistant"), &json!("two"))]);

    let modified = client.post(&path, json!({"metadata": null})).await;
    assert_eq!(modified["metadata"], json!({}));
    assert_eq!(client.delete(&path).await, json!({"id": created["id"], "object": "thread.deleted", "deleted": true}));
    let (status, error) = client.send_rejected(Method::GET, &format!("{path}/messages"), None).await;
    let id = created["id"].as_str().unwrap();
    assert_eq!((status, &error["message"]), (404, &json!(format!("No thread found with id '{id}'."))));
});

both_stores!(a_thread_can_be_created_without_a_body, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;

    let reply = server.client.send(Method::POST, "/v1/threads", None).await;

    assert_eq!((reply.status, &reply.body["metadata"]), (200, &json!({})));
});

both_stores!(threads_can_be_listed, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(client.post("/v1/threads", json!({})).await["id"].clone());
    }

    let page = client.get("/v1/threads?limit=2&order=asc").await;
    let rest = client.get(&format!("/v1/threads?order=asc&after={}", ids[1].as_str().unwrap())).await;

    assert_eq!((&page["first_id"], &page["last_id"], &page["has_more"]), (&ids[0], &ids[1], &json!(true)));
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["has_more"]), (1, &json!(false)));
});

both_stores!(a_malformed_id_is_rejected_with_the_parameter_name, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;

    let (status, error) = server.client.send_rejected(Method::GET, "/v1/threads/undefined", None).await;

    assert_eq!(status, 400);
    assert_eq!(error["message"], "Invalid 'thread_id': 'undefined'. Expected an ID that begins with 'thread'.");
    assert_eq!((&error["param"], &error["code"]), (&json!("thread_id"), &json!("invalid_value")));
});
