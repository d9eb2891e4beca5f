//! Cancelling runs.

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sse::{names, parse};
use crate::support::upstream::{Answer, Upstream};

both_stores!(cancelling_during_an_answer_stores_the_text_and_closes_the_model_stream, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let stream = client
        .open_stream(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true}))
        .await;
    let run = loop {
        let messages = client.get(&format!("/v1/threads/{thread}/messages")).await;
        if let Some(run) = messages["data"][0]["run_id"].as_str() {
            break format!("/v1/threads/{thread}/runs/{run}");
        }
    };

    // Some clients send no body and no content type.
    let reply = client.send(Method::POST, &format!("{run}/cancel"), None).await;

    assert_eq!(
        (reply.status, &reply.body["status"], &reply.body["cancelled_at"]),
        (200, &json!("cancelling"), &Value::Null)
    );
    upstream.wait_for_disconnect().await;
    let events = parse(&stream.text().await.unwrap());
    let end = ["message.delta", "run.cancelling", "message.incomplete", "run.step.cancelled", "run.cancelled", "done"];
    assert_eq!(names(&events)[7..], end);
    let cancelled = client.wait_for_status(&run, "cancelled").await;
    assert!(cancelled["cancelled_at"].is_i64());
    let messages = client.get(&format!("/v1/threads/{thread}/messages")).await;
    let newest = &messages["data"][0];
    assert_eq!(
        (&newest["status"], &newest["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("run_cancelled"))
    );
    assert_eq!(newest["content"][0]["text"]["value"], "Hm");
    client.post(&format!("/v1/threads/{thread}/messages"), json!({"role": "user", "content": "go on"})).await;
});

both_stores!(a_queued_run_is_cancelled_immediately_without_steps, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[("MAX_CONCURRENT_RUNS", "1")]).await;
    let client = &server.client;
    let assistant = client.create_assistant().await;
    client.create_run(&assistant, &client.create_thread("first").await).await;
    upstream.wait_for_requests(1).await;
    let thread = client.create_thread("second").await;
    let stream = client
        .open_stream(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true}))
        .await;
    let runs = client.get(&format!("/v1/threads/{thread}/runs")).await;
    let run = format!("/v1/threads/{thread}/runs/{}", runs["data"][0]["id"].as_str().unwrap());

    assert_eq!(client.post(&format!("{run}/cancel"), json!({})).await["status"], "cancelling");

    assert_eq!(client.get(&run).await["status"], "cancelled");
    let events = parse(&stream.text().await.unwrap());
    assert_eq!(names(&events), ["run.created", "run.queued", "run.cancelling", "run.cancelled", "done"]);
    assert_eq!(client.get(&format!("{run}/steps")).await["data"], json!([]));
    upstream.resume();
});

both_stores!(a_finished_run_cannot_be_cancelled, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let run = client.create_run(&client.create_assistant().await, &client.create_thread("Hi").await).await;
    client.wait_for_status(&run, "completed").await;

    let complaint = client.post_rejected(&format!("{run}/cancel"), json!({})).await;

    assert_eq!(complaint, "Cannot cancel run with status 'completed'.");
});

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_reaches_a_run_that_another_server_drives() {
    let Some(database) = Database::postgres().await else { return };
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let driver = Server::with(&database, &upstream, &[("RUN_LEASE_S", "5")]).await;
    let other = Server::start(&database, &upstream).await;
    let client = &driver.client;
    let run = client.create_run(&client.create_assistant().await, &client.create_thread("Hi").await).await;
    upstream.wait_for_requests(1).await;

    assert_eq!(other.client.post(&format!("{run}/cancel"), json!({})).await["status"], "cancelling");

    other.client.wait_for_status(&run, "cancelled").await;
    upstream.wait_for_disconnect().await;
}
