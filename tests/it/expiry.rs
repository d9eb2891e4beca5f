//! Runs whose time is up.

use serde_json::{Value, json};

use crate::both_stores;
use crate::support::database::Database;
use crate::support::server::{Server, Wish};
use crate::support::sse::{names, parse};
use crate::support::upstream::{Answer, Upstream};

both_stores!(a_run_past_its_deadline_expires_with_its_text, async |database: Database| {
    let upstream = Upstream::saying([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::wish(Wish { database: &database, upstream: &upstream, settings: &[], by_hand: true }).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("Hi").await);
    let stream =
        client.begin(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true})).await;
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
    let expired = client.until(&run, "expired").await;
    assert_eq!(expired["expires_at"], Value::Null);
    assert!(expired["usage"]["total_tokens"].as_u64().unwrap() > 0, "the model was paid: {expired}");
    upstream.left().await;
    client.post(&format!("/v1/threads/{thread}/messages"), json!({"role": "user", "content": "again"})).await;
});

both_stores!(a_queued_run_expires_when_it_is_looked_at, async |database: Database| {
    let upstream = Upstream::saying([Answer::Pause(vec!["Hm"])]).await;
    let settings = [("MAX_CONCURRENT_RUNS", "1")];
    let server =
        Server::wish(Wish { database: &database, upstream: &upstream, settings: &settings, by_hand: true }).await;
    let client = &server.client;
    let assistant = client.assistant().await;
    client.run(&assistant, &client.thread("first").await).await;
    upstream.asked(1).await;
    let run = client.run(&assistant, &client.thread("second").await).await;

    server.clock.advance(600);

    assert_eq!(client.get(&run).await["status"], "expired");
    assert_eq!(client.get(&format!("{run}/steps")).await["data"], json!([]));
});
