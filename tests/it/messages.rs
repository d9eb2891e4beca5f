//! Messages: create, list, retrieve, modify, delete.

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::database::Database;
use crate::support::form::Form;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

both_stores!(a_message_is_created_retrieved_modified_and_deleted, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let thread = client.create_thread("first").await;
    let path = format!("/v1/threads/{thread}/messages");

    let form = Form::default().text("purpose", "assistants").file("file", "a.txt", b"words");
    let file = form.send(client, "/v1/files").await.body["id"].clone();
    let created = client
        .post(
            &path,
            json!({"role": "user", "metadata": {"k": "v"},
                "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}],
                "attachments": [{"file_id": file, "tools": [{"type": "file_search"}]}]}),
        )
        .await;

    let members: Vec<&String> = created.as_object().unwrap().keys().collect();
    assert_eq!(
        members,
        [
            "id",
            "object",
            "created_at",
            "assistant_id",
            "thread_id",
            "run_id",
            "status",
            "incomplete_details",
            "incomplete_at",
            "completed_at",
            "role",
            "content",
            "attachments",
            "metadata"
        ]
    );
    assert_eq!(
        created["content"],
        json!([{"type": "text", "text": {"value": "look", "annotations": []}},
               {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "auto"}}])
    );
    assert_eq!(created["attachments"], json!([{"file_id": file, "tools": [{"type": "file_search"}]}]));
    assert_eq!((&created["status"], &created["run_id"]), (&json!("completed"), &Value::Null));

    let item = format!("{path}/{}", created["id"].as_str().unwrap());
    assert_eq!(client.get(&item).await, created);
    assert_eq!(client.post(&item, json!({"metadata": {"a": "b"}})).await["metadata"], json!({"a": "b"}));
    assert_eq!(client.post(&item, json!({})).await["metadata"], json!({"a": "b"}));
    assert_eq!(client.post(&item, json!({"metadata": null})).await["metadata"], json!({}));
    assert_eq!(client.delete(&item).await["object"], "thread.message.deleted");
    let (status, error) = client.send_rejected(Method::GET, &item, None).await;
    let id = created["id"].as_str().unwrap();
    assert_eq!((status, &error["message"]), (404, &json!(format!("No message found with id '{id}'."))));
    assert_eq!(client.get(&path).await["data"].as_array().unwrap().len(), 1);
});

both_stores!(a_thread_with_an_active_run_rejects_messages_and_runs, async |database: Database| {
    use crate::support::upstream::Answer;
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("first").await);
    let run = client.create_run(&assistant, &thread).await;
    let id = run.rsplit('/').next().unwrap();
    upstream.wait_for_requests(1).await;

    let message =
        client.post_rejected(&format!("/v1/threads/{thread}/messages"), json!({"role": "user", "content": "x"})).await;
    let second = client.post_rejected(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant})).await;

    assert_eq!(message, format!("Can't add messages to {thread} while a run {id} is active."));
    assert_eq!(second, format!("Thread {thread} already has an active run {id}."));
    upstream.resume();
    client.wait_for_status(&run, "completed").await;
    client.post(&format!("/v1/threads/{thread}/messages"), json!({"role": "user", "content": "x"})).await;
});

both_stores!(messages_can_be_filtered_by_run, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("first").await);
    let mut runs = Vec::new();
    for _ in 0..2 {
        let run = client.create_run(&assistant, &thread).await;
        client.wait_for_status(&run, "completed").await;
        runs.push(run.rsplit('/').next().unwrap().to_owned());
    }

    let page = client.get(&format!("/v1/threads/{thread}/messages?run_id={}", runs[0])).await;

    let found: Vec<&Value> = page["data"].as_array().unwrap().iter().map(|message| &message["run_id"]).collect();
    assert_eq!(found, [&json!(runs[0])]);
});
