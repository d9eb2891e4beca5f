//! Streams: their events, the order of events, and clients that read slowly or disconnect.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sse::{names, parse, text};
use crate::support::upstream::{Answer, Upstream};

/// The first events of every stream of a run whose model generates text.
const TEXT_STARTED: [&str; 7] = [
    "run.created",
    "run.queued",
    "run.in_progress",
    "run.step.created",
    "run.step.in_progress",
    "message.created",
    "message.in_progress",
];

both_stores!(a_text_answer_is_streamed_token_by_token_in_the_recorded_order, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Tokens(vec!["Hello", "!", " How"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);

    let events =
        client.stream(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true})).await;

    let rest = [
        "message.delta",
        "message.delta",
        "message.delta",
        "message.completed",
        "run.step.completed",
        "run.completed",
        "done",
    ];
    assert_eq!(names(&events), [&TEXT_STARTED[..], &rest].concat());
    assert_eq!(text(&events), "Hello! How");
    assert_eq!(events[0].data, events[1].data, "the created and queued events have equal payloads");
    assert_eq!(events[3].data, events[4].data);
    assert_eq!(events[5].data, events[6].data);
    assert_eq!(events[7].data["delta"]["content"][0]["text"], json!({"value": "Hello", "annotations": []}));
    assert_eq!(events[8].data["delta"]["content"][0]["text"], json!({"value": "!"}));
    let run = &events[12].data;
    assert_eq!((&run["usage"]["total_tokens"], &run["expires_at"]), (&json!(10), &Value::Null));
    let path = format!("/v1/threads/{thread}/runs/{}", run["id"].as_str().unwrap());
    let mut stored = client.get(&path).await;
    stored["tool_resources"] = run["tool_resources"].clone();
    assert_eq!(&stored, run, "the last event equals the stored run");
});

both_stores!(a_thread_created_with_its_run_is_the_first_event, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let body = json!({"assistant_id": client.create_assistant().await, "stream": true,
        "thread": {"messages": [{"role": "user", "content": "Hi"}]}});

    let events = client.stream("/v1/threads/runs", body).await;

    assert_eq!(events[0].name, "thread.created");
    assert_eq!(events[0].data["tool_resources"], json!({"code_interpreter": {"file_ids": []}}));
    assert_eq!(names(&events)[1..8], TEXT_STARTED);
});

both_stores!(a_model_error_fails_the_run_with_the_models_message, async |database: Database| {
    let broken = json!({"error": {"message": "no memory left"}});
    let upstream =
        Upstream::scripted([Answer::Status(500, vec![], broken.clone()), Answer::Status(500, vec![], broken)]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);

    let events =
        client.stream(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true})).await;

    assert_eq!(names(&events), ["run.created", "run.queued", "run.in_progress", "run.failed", "done"]);
    let run = &events[3].data;
    assert_eq!(run["last_error"]["code"], "server_error");
    assert!(run["last_error"]["message"].as_str().unwrap().contains("answered 500: no memory left"));
    let path = format!("/v1/threads/{thread}/runs/{}/steps", run["id"].as_str().unwrap());
    let steps = client.get(&path).await;
    let steps = steps["data"].as_array().unwrap();
    assert_eq!(
        (steps.len(), &steps[0]["type"], &steps[0]["status"]),
        (1, &json!("message_creation"), &json!("failed"))
    );
    assert_eq!(steps[0]["last_error"], run["last_error"]);
    let messages = client.get(&format!("/v1/threads/{thread}/messages")).await;
    assert_eq!(messages["data"].as_array().unwrap().len(), 1, "no message is created");
});

both_stores!(a_model_that_disconnects_leaves_an_incomplete_message, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Disconnect(vec!["Hal", "lo"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);

    let events =
        client.stream(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true})).await;

    let rest = ["message.delta", "message.delta", "message.incomplete", "run.step.failed", "run.failed", "done"];
    assert_eq!(names(&events), [&TEXT_STARTED[..], &rest].concat());
    let messages = client.get(&format!("/v1/threads/{thread}/messages")).await;
    let newest = &messages["data"][0];
    assert_eq!(
        (&newest["status"], &newest["incomplete_details"]),
        (&json!("incomplete"), &json!({"reason": "run_failed"}))
    );
    assert_eq!(newest["content"][0]["text"]["value"], "Hallo");
});

both_stores!(an_answer_that_reaches_a_limit_is_incomplete, async |database: Database| {
    let upstream =
        Upstream::scripted([Answer::Finish(vec!["To be"], "length"), Answer::Finish(vec!["To be"], "content_filter")])
            .await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);

    for reason in ["max_tokens", "content_filter"] {
        let body = json!({"assistant_id": assistant, "stream": true});
        let events = client.stream(&format!("/v1/threads/{thread}/runs"), body).await;

        let rest = ["message.delta", "message.incomplete", "run.step.completed", "run.incomplete", "done"];
        assert_eq!(names(&events), [&TEXT_STARTED[..], &rest].concat());
        assert_eq!(events[8].data["incomplete_details"]["reason"], reason);
        assert_eq!(events[10].data["incomplete_details"]["reason"], "max_completion_tokens");
        assert!(events[10].data["completed_at"].is_i64());
    }
});

both_stores!(a_client_that_disconnects_does_not_stop_its_run, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);

    let stream = client
        .open_stream(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true}))
        .await;
    upstream.wait_for_requests(1).await;
    drop(stream);
    upstream.resume();

    let runs = client.get(&format!("/v1/threads/{thread}/runs")).await;
    let path = format!("/v1/threads/{thread}/runs/{}", runs["data"][0]["id"].as_str().unwrap());
    client.wait_for_status(&path, "completed").await;
    let messages = client.get(&format!("/v1/threads/{thread}/messages")).await;
    assert_eq!(messages["data"][0]["content"][0]["text"]["value"], "Hm!");
});

both_stores!(a_client_that_does_not_read_does_not_slow_the_run, async |database: Database| {
    let tokens: Vec<&'static str> = vec!["a word that is long enough to fill the socket buffers, "; 20_000];
    let upstream = Upstream::scripted([Answer::Tokens(tokens.clone())]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);

    let stream = client
        .open_stream(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true}))
        .await;
    let runs = client.get(&format!("/v1/threads/{thread}/runs")).await;
    let path = format!("/v1/threads/{thread}/runs/{}", runs["data"][0]["id"].as_str().unwrap());
    client.wait_for_status(&path, "completed").await;
    let events = parse(&stream.text().await.unwrap());

    assert_eq!(text(&events), tokens.concat(), "the client still receives the whole text");
});

both_stores!(an_idle_stream_sends_keep_alive_comments_without_an_empty_line, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[("KEEP_ALIVE_S", "1")]).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);

    let stream = client
        .open_stream(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true}))
        .await;
    let mut bytes = stream.bytes_stream();
    let mut seen = String::new();
    while !seen.contains(": keep-alive\n") {
        seen.push_str(std::str::from_utf8(&bytes.next().await.unwrap().unwrap()).unwrap());
    }
    upstream.resume();
    while let Some(more) = bytes.next().await {
        seen.push_str(std::str::from_utf8(&more.unwrap()).unwrap());
    }

    assert!(!seen.contains(": keep-alive\n\n"));
    assert_eq!(text(&parse(&seen)), "Hm!");
});

both_stores!(each_token_is_sent_as_soon_as_it_arrives, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);

    let stream = client
        .open_stream(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true}))
        .await;
    let mut bytes = stream.bytes_stream();
    let mut seen = String::new();
    while !seen.contains("\"value\":\"Hm\"") {
        let more = tokio::time::timeout(Duration::from_secs(20), bytes.next()).await;
        seen.push_str(std::str::from_utf8(&more.expect("the token is delayed").unwrap().unwrap()).unwrap());
    }

    assert!(!seen.contains("thread.run.completed"));
    upstream.resume();
});

// A crash loses at most one second of an answer.
both_stores!(partial_text_is_stored_while_the_model_generates, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm", "m"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    client.create_run(&assistant, &thread).await;

    let message = loop {
        let messages = client.get(&format!("/v1/threads/{thread}/messages")).await;
        if messages["data"][0]["content"][0]["text"]["value"] == "Hmm" {
            break messages["data"][0].clone();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };

    assert_eq!(message["status"], "in_progress");
    upstream.resume();
});

/// The stream reads the progress of a run that another server drives from the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_follows_its_run_when_another_server_claims_it() {
    let Some(database) = Database::postgres().await else { return };
    let upstream = Upstream::scripted([Answer::Pause(vec!["busy"]), Answer::Tokens(vec!["Hello", "!"])]).await;
    let first = Server::with(&database, &upstream, &[("MAX_CONCURRENT_RUNS", "1")]).await;
    let client = &first.client;
    let assistant = client.create_assistant().await;
    client.create_run(&assistant, &client.create_thread("occupies the only slot").await).await;
    upstream.wait_for_requests(1).await;

    let thread = client.create_thread("Hi").await;
    let stream = client
        .open_stream(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true}))
        .await;
    let second = Server::start(&database, &upstream).await;
    let events = parse(&stream.text().await.unwrap());

    assert_eq!(names(&events)[..7], TEXT_STARTED);
    assert_eq!(
        names(&events).last_chunk::<4>().unwrap(),
        &["message.completed", "run.step.completed", "run.completed", "done"]
    );
    assert_eq!(text(&events), "Hello!");
    let path = format!("/v1/threads/{thread}/runs/{}", events[0].data["id"].as_str().unwrap());
    assert_eq!(second.client.send(Method::GET, &path, None).await.body["status"], "completed");
    upstream.resume();
}
