//! Runs that expire.

use serde_json::{Value, json};

use crate::both_stores;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sse::{names, parse};
use crate::support::upstream::{Answer, Upstream};

both_stores!(a_run_past_its_deadline_expires_with_its_partial_text, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with_manual_clock(&database, &upstream, &[]).await;
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
    assert_eq!(client.get(&run).await["expires_at"], json!(1_000_600));

    server.clock.advance(600);

    let events = parse(&stream.text().await.unwrap());
    assert_eq!(names(&events)[8..], ["message.incomplete", "run.step.expired", "run.expired", "done"]);
    let expired = client.wait_for_status(&run, "expired").await;
    assert_eq!(expired["expires_at"], Value::Null);
    assert!(expired["usage"]["total_tokens"].as_u64().unwrap() > 0, "the usage until then is reported: {expired}");
    upstream.wait_for_disconnect().await;
    client.post(&format!("/v1/threads/{thread}/messages"), json!({"role": "user", "content": "again"})).await;
});

both_stores!(a_queued_run_expires_when_it_is_retrieved, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let settings = [("MAX_CONCURRENT_RUNS", "1")];
    let server = Server::with_manual_clock(&database, &upstream, &settings).await;
    let client = &server.client;
    let assistant = client.create_assistant().await;
    client.create_run(&assistant, &client.create_thread("first").await).await;
    upstream.wait_for_requests(1).await;
    let run = client.create_run(&assistant, &client.create_thread("second").await).await;

    server.clock.advance(600);

    assert_eq!(client.get(&run).await["status"], "expired");
    assert_eq!(client.get(&format!("{run}/steps")).await["data"], json!([]));
});
