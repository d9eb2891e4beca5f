//! Runs and messages on a thread with an active run, with `busy_thread = "queue"`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::database::Database;
use crate::support::server::{Server, Wish};
use crate::support::sse::{names, parse};
use crate::support::upstream::{Answer, Upstream};

const QUEUE: (&str, &str) = ("BUSY_THREAD", "queue");

/// What the model was told each time, by role.
fn prompts(upstream: &Upstream) -> Vec<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let messages = |request: &Value| {
        let said = request["messages"].as_array().unwrap().iter();
        said.map(|message| (text(&message["role"]), text(&message["content"]))).collect()
    };
    upstream.requests().iter().map(messages).collect()
}

/// The pairs that a conversation of these texts has, users and assistants in turn.
fn conversation(texts: &[&str]) -> Vec<(String, String)> {
    let roles = ["user", "assistant"].into_iter().cycle();
    roles.zip(texts).map(|(role, text)| (role.to_owned(), (*text).to_owned())).collect()
}

both_stores!(runs_wait_their_turn_and_each_answers_its_own_messages, async |database: Database| {
    let upstream = Upstream::saying([Answer::Pause(vec!["one"]), Answer::Words(vec!["two"])]).await;
    let server = Server::with(&database, &upstream, &[QUEUE]).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("first").await);
    let messages = format!("/v1/threads/{thread}/messages");
    let first = client.run(&assistant, &thread).await;
    upstream.asked(1).await;

    client.post(&messages, json!({"role": "user", "content": "second"})).await;
    let body = json!({"assistant_id": assistant, "stream": true});
    let second = client.begin(&format!("/v1/threads/{thread}/runs"), body).await;
    let late = json!({"assistant_id": assistant, "additional_messages": [{"role": "user", "content": "third"}]});
    let third = client.post(&format!("/v1/threads/{thread}/runs"), late).await;
    assert_eq!((&third["status"], &third["started_at"]), (&json!("queued"), &Value::Null));
    upstream.go_on();

    client.until(&first, "completed").await;
    let second = parse(&second.text().await.unwrap());
    assert_eq!(
        names(&second)[..4],
        ["run.created", "run.queued", "run.in_progress", "run.step.created"],
        "a run that waits is told as any other"
    );
    client.until(&format!("/v1/threads/{thread}/runs/{}", third["id"].as_str().unwrap()), "completed").await;
    let expected = [
        conversation(&["first"]),
        conversation(&["first", "one!", "second"]),
        conversation(&["first", "one!", "second", "two", "third"]),
    ];
    assert_eq!(prompts(&upstream), expected);
});

both_stores!(a_hundred_runs_at_once_have_their_turns_one_by_one, async |database: Database| {
    let upstream = Upstream::start().await;
    let server = Server::with(&database, &upstream, &[QUEUE]).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("0").await);
    let runs = format!("/v1/threads/{thread}/runs");

    let attempts = (1..=100).map(|number| {
        let (client, runs) = (client.clone(), runs.clone());
        let question = json!([{"role": "user", "content": number.to_string()}]);
        let body = json!({"assistant_id": assistant, "additional_messages": question});
        tokio::spawn(async move { client.post(&runs, body).await["id"].as_str().unwrap().to_owned() })
    });
    for run in futures_util::future::join_all(attempts).await {
        client.until(&format!("{runs}/{}", run.unwrap()), "completed").await;
    }

    let prompts = prompts(&upstream);
    assert_eq!(prompts.len(), 100);
    for (turn, prompt) in prompts.iter().enumerate() {
        let answers = prompt.iter().filter(|(role, _)| role == "assistant").count();
        assert_eq!((answers, prompt.len()), (turn, 2 * turn + 2), "turn {turn} sees all turns before it, and its own");
        assert_eq!(prompt.last().unwrap().0, "user");
    }
});

both_stores!(a_run_that_waits_can_be_cancelled_and_expires, async |database: Database| {
    let upstream = Upstream::saying([Answer::Pause(vec!["Hm"])]).await;
    let wish = Wish { database: &database, upstream: &upstream, settings: &[QUEUE], by_hand: true };
    let server = Server::wish(wish).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("Hi").await);
    client.run(&assistant, &thread).await;
    upstream.asked(1).await;
    let cancelled = client.run(&assistant, &thread).await;
    let expired = client.run(&assistant, &thread).await;

    assert_eq!(client.post(&format!("{cancelled}/cancel"), json!({})).await["status"], "cancelling");
    assert_eq!(client.get(&cancelled).await["status"], "cancelled");
    let outputs = json!({"tool_outputs": [{"tool_call_id": "call_1", "output": ""}]});
    let complaint = client.complaint(&format!("{expired}/submit_tool_outputs"), outputs).await;
    assert_eq!(complaint, "Runs in status \"queued\" do not accept tool outputs.");
    server.clock.advance(600);

    client.until(&expired, "expired").await;
    assert_eq!(upstream.requests().len(), 1);
    // The thread is free again.
    let last = client.run(&assistant, &thread).await;
    client.until(&last, "completed").await;
});

both_stores!(a_thread_is_deleted_with_the_runs_that_wait, async |database: Database| {
    let upstream = Upstream::saying([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[QUEUE]).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("Hi").await);
    client.run(&assistant, &thread).await;
    upstream.asked(1).await;
    let body = json!({"assistant_id": assistant, "stream": true});
    let waiting = client.begin(&format!("/v1/threads/{thread}/runs"), body).await;

    client.delete(&format!("/v1/threads/{thread}")).await;

    let events = parse(&waiting.text().await.unwrap());
    assert_eq!(names(&events), ["run.created", "run.queued", "error", "done"]);
    upstream.left().await;
});

both_stores!(a_run_whose_turn_was_lost_with_its_server_gets_it_from_another, async |database: Database| {
    let upstream = Upstream::saying([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[QUEUE, ("SHUTDOWN_GRACE_S", "0")]).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("Hi").await);
    let first = client.run(&assistant, &thread).await;
    upstream.asked(1).await;
    let waiting = client.run(&assistant, &thread).await;
    assert_eq!(client.send(Method::GET, &waiting, None).await.body["status"], "queued");
    server.stop().await;

    // The setting may have changed meanwhile: what was accepted is done.
    let server = Server::start(&database, &upstream).await;
    server.client.until(&first, "completed").await;
    server.client.until(&waiting, "completed").await;
});

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_server_is_notified_of_a_changed_run() {
    use assistd::api::{Ids, RunId};
    use futures_util::StreamExt as _;
    let Some(database) = Database::postgres().await else { return };
    let (one, other) = (database.open().await, database.open().await);
    let mut changes = other.run_changes();
    let run: RunId = Ids::unique_everywhere().make();

    let notified = tokio::spawn(async move { changes.next().await });
    // Before the other one listens, notifications are lost.
    while !notified.is_finished() {
        one.notify_run_changed(&run).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }

    assert_eq!(notified.await.unwrap(), Some(run));
}
