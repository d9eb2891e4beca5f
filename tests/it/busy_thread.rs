//! Runs and messages on a thread with an active run, with `busy_thread = "queue"`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sse::{names, parse};
use crate::support::upstream::{Answer, Upstream};

const QUEUE: (&str, &str) = ("BUSY_THREAD", "queue");

/// Returns the messages of each model request, as role and text.
fn prompts(upstream: &Upstream) -> Vec<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let messages = |request: &Value| {
        let sent = request["messages"].as_array().unwrap().iter();
        sent.map(|message| (text(&message["role"]), text(&message["content"]))).collect()
    };
    upstream.requests().iter().map(messages).collect()
}

/// A conversation of these texts, with the roles user and assistant in turn.
fn conversation(texts: &[&str]) -> Vec<(String, String)> {
    let roles = ["user", "assistant"].into_iter().cycle();
    roles.zip(texts).map(|(role, text)| (role.to_owned(), (*text).to_owned())).collect()
}

both_stores!(queued_runs_are_processed_in_order_and_each_answers_its_own_messages, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["one"]), Answer::Tokens(vec!["two"])]).await;
    let server = Server::with(&database, &upstream, &[QUEUE]).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("first").await);
    let messages = format!("/v1/threads/{thread}/messages");
    let first = client.create_run(&assistant, &thread).await;
    upstream.wait_for_requests(1).await;

    client.post(&messages, json!({"role": "user", "content": "second"})).await;
    let body = json!({"assistant_id": assistant, "stream": true});
    let second = client.open_stream(&format!("/v1/threads/{thread}/runs"), body).await;
    let body = json!({"assistant_id": assistant, "additional_messages": [{"role": "user", "content": "third"}]});
    let third = client.post(&format!("/v1/threads/{thread}/runs"), body).await;
    assert_eq!((&third["status"], &third["started_at"]), (&json!("queued"), &Value::Null));
    upstream.resume();

    client.wait_for_status(&first, "completed").await;
    let second = parse(&second.text().await.unwrap());
    assert_eq!(
        names(&second)[..4],
        ["run.created", "run.queued", "run.in_progress", "run.step.created"],
        "a waiting run sends the same events as any other"
    );
    client.wait_for_status(&format!("/v1/threads/{thread}/runs/{}", third["id"].as_str().unwrap()), "completed").await;
    let expected = [
        conversation(&["first"]),
        conversation(&["first", "one!", "second"]),
        conversation(&["first", "one!", "second", "two", "third"]),
    ];
    assert_eq!(prompts(&upstream), expected);
});

both_stores!(a_hundred_concurrent_runs_are_processed_one_by_one, async |database: Database| {
    let upstream = Upstream::start().await;
    let server = Server::with(&database, &upstream, &[QUEUE]).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("0").await);
    let runs = format!("/v1/threads/{thread}/runs");

    let attempts = (1..=100).map(|number| {
        let (client, runs) = (client.clone(), runs.clone());
        let question = json!([{"role": "user", "content": number.to_string()}]);
        let body = json!({"assistant_id": assistant, "additional_messages": question});
        tokio::spawn(async move { client.post(&runs, body).await["id"].as_str().unwrap().to_owned() })
    });
    for run in futures_util::future::join_all(attempts).await {
        client.wait_for_status(&format!("{runs}/{}", run.unwrap()), "completed").await;
    }

    let prompts = prompts(&upstream);
    assert_eq!(prompts.len(), 100);
    for (turn, prompt) in prompts.iter().enumerate() {
        let answers = prompt.iter().filter(|(role, _)| role == "assistant").count();
        assert_eq!(
            (answers, prompt.len()),
            (turn, 2 * turn + 2),
            "turn {turn} sees all earlier turns and its own message"
        );
        assert_eq!(prompt.last().unwrap().0, "user");
    }
});

both_stores!(a_waiting_run_can_be_cancelled_and_can_expire, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with_manual_clock(&database, &upstream, &[QUEUE]).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    client.create_run(&assistant, &thread).await;
    upstream.wait_for_requests(1).await;
    let cancelled = client.create_run(&assistant, &thread).await;
    let expired = client.create_run(&assistant, &thread).await;

    assert_eq!(client.post(&format!("{cancelled}/cancel"), json!({})).await["status"], "cancelling");
    assert_eq!(client.get(&cancelled).await["status"], "cancelled");
    let outputs = json!({"tool_outputs": [{"tool_call_id": "call_1", "output": ""}]});
    let complaint = client.post_rejected(&format!("{expired}/submit_tool_outputs"), outputs).await;
    assert_eq!(complaint, "Runs in status \"queued\" do not accept tool outputs.");
    server.clock.advance(600);

    client.wait_for_status(&expired, "expired").await;
    assert_eq!(upstream.requests().len(), 1);
    // The thread is unlocked.
    let last = client.create_run(&assistant, &thread).await;
    client.wait_for_status(&last, "completed").await;
});

both_stores!(deleting_a_thread_deletes_its_waiting_runs, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[QUEUE]).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    client.create_run(&assistant, &thread).await;
    upstream.wait_for_requests(1).await;
    let body = json!({"assistant_id": assistant, "stream": true});
    let waiting = client.open_stream(&format!("/v1/threads/{thread}/runs"), body).await;

    client.delete(&format!("/v1/threads/{thread}")).await;

    let events = parse(&waiting.text().await.unwrap());
    assert_eq!(names(&events), ["run.created", "run.queued", "error", "done"]);
    upstream.wait_for_disconnect().await;
});

both_stores!(a_waiting_run_is_promoted_by_another_server_after_a_stop, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[QUEUE, ("SHUTDOWN_GRACE_S", "0")]).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let first = client.create_run(&assistant, &thread).await;
    upstream.wait_for_requests(1).await;
    let waiting = client.create_run(&assistant, &thread).await;
    assert_eq!(client.send(Method::GET, &waiting, None).await.body["status"], "queued");
    server.stop().await;

    // Waiting runs are processed even if the setting has changed since.
    let server = Server::start(&database, &upstream).await;
    server.client.wait_for_status(&first, "completed").await;
    server.client.wait_for_status(&waiting, "completed").await;
});

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_server_is_notified_of_a_changed_run() {
    use assistd::api::{Ids, RunId};
    use futures_util::StreamExt as _;
    let Some(database) = Database::postgres().await else { return };
    let (sender, receiver) = (database.open().await, database.open().await);
    let mut changes = receiver.run_changes();
    let run: RunId = Ids::unique_everywhere().generate();

    let notified = tokio::spawn(async move { changes.next().await });
    // Notifications are lost until the receiver listens.
    while !notified.is_finished() {
        sender.notify_run_changed(&run).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }

    assert_eq!(notified.await.unwrap(), Some(run));
}
