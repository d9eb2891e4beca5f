//! Streams: their events, their order, and clients that are slow or leave.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sse::{names, parse, text};
use crate::support::upstream::{Answer, Upstream};

/// The beginning of every stream of a run whose model writes something.
const WRITING: [&str; 7] = [
    "run.created",
    "run.queued",
    "run.in_progress",
    "run.step.created",
    "run.step.in_progress",
    "message.created",
    "message.in_progress",
];

both_stores!(a_plain_answer_is_streamed_token_by_token_in_the_recorded_order, async |database: Database| {
    let upstream = Upstream::saying([Answer::Words(vec!["Hello", "!", " How"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("Hi").await);

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
    assert_eq!(names(&events), [&WRITING[..], &rest].concat());
    assert_eq!(text(&events), "Hello! How");
    assert_eq!(events[0].data, events[1].data, "created and queued are equal");
    assert_eq!(events[3].data, events[4].data);
    assert_eq!(events[5].data, events[6].data);
    assert_eq!(events[7].data["delta"]["content"][0]["text"], json!({"value": "Hello", "annotations": []}));
    assert_eq!(events[8].data["delta"]["content"][0]["text"], json!({"value": "!"}));
    let run = &events[12].data;
    assert_eq!((&run["usage"]["total_tokens"], &run["expires_at"]), (&json!(10), &Value::Null));
    let path = format!("/v1/threads/{thread}/runs/{}", run["id"].as_str().unwrap());
    let mut stored = client.get(&path).await;
    stored["tool_resources"] = run["tool_resources"].clone();
    assert_eq!(&stored, run, "what was told last is what is kept");
});

both_stores!(a_thread_made_on_the_way_is_told_first, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let body = json!({"assistant_id": client.assistant().await, "stream": true,
        "thread": {"messages": [{"role": "user", "content": "Hi"}]}});

    let events = client.stream("/v1/threads/runs", body).await;

    assert_eq!(events[0].name, "thread.created");
    assert_eq!(events[0].data["tool_resources"], json!({"code_interpreter": {"file_ids": []}}));
    assert_eq!(names(&events)[1..8], WRITING);
});

both_stores!(a_failing_model_ends_the_stream_with_what_it_said, async |database: Database| {
    let broken = json!({"error": {"message": "no memory left"}});
    let upstream =
        Upstream::saying([Answer::Status(500, vec![], broken.clone()), Answer::Status(500, vec![], broken)]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("Hi").await);

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
    assert_eq!(messages["data"].as_array().unwrap().len(), 1, "no message came of it");
});

both_stores!(a_model_that_breaks_off_leaves_an_incomplete_message, async |database: Database| {
    let upstream = Upstream::saying([Answer::Cut(vec!["Hal", "lo"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("Hi").await);

    let events =
        client.stream(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true})).await;

    let rest = ["message.delta", "message.delta", "message.incomplete", "run.step.failed", "run.failed", "done"];
    assert_eq!(names(&events), [&WRITING[..], &rest].concat());
    let messages = client.get(&format!("/v1/threads/{thread}/messages")).await;
    let newest = &messages["data"][0];
    assert_eq!(
        (&newest["status"], &newest["incomplete_details"]),
        (&json!("incomplete"), &json!({"reason": "run_failed"}))
    );
    assert_eq!(newest["content"][0]["text"]["value"], "Hallo");
});

both_stores!(an_answer_cut_at_a_limit_is_incomplete, async |database: Database| {
    let upstream =
        Upstream::saying([Answer::Finish(vec!["To be"], "length"), Answer::Finish(vec!["To be"], "content_filter")])
            .await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("Hi").await);

    for reason in ["max_tokens", "content_filter"] {
        let body = json!({"assistant_id": assistant, "stream": true});
        let events = client.stream(&format!("/v1/threads/{thread}/runs"), body).await;

        let rest = ["message.delta", "message.incomplete", "run.step.completed", "run.incomplete", "done"];
        assert_eq!(names(&events), [&WRITING[..], &rest].concat());
        assert_eq!(events[8].data["incomplete_details"]["reason"], reason);
        assert_eq!(events[10].data["incomplete_details"]["reason"], "max_completion_tokens");
        assert!(events[10].data["completed_at"].is_i64());
    }
});

both_stores!(a_client_that_leaves_does_not_stop_its_run, async |database: Database| {
    let upstream = Upstream::saying([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("Hi").await);

    let stream =
        client.begin(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true})).await;
    upstream.asked(1).await;
    drop(stream);
    upstream.go_on();

    let runs = client.get(&format!("/v1/threads/{thread}/runs")).await;
    let path = format!("/v1/threads/{thread}/runs/{}", runs["data"][0]["id"].as_str().unwrap());
    client.until(&path, "completed").await;
    let messages = client.get(&format!("/v1/threads/{thread}/messages")).await;
    assert_eq!(messages["data"][0]["content"][0]["text"]["value"], "Hm!");
});

both_stores!(a_client_that_does_not_read_does_not_slow_the_run, async |database: Database| {
    let words: Vec<&'static str> = vec!["a word that is long enough to fill what lies between us, "; 20_000];
    let upstream = Upstream::saying([Answer::Words(words.clone())]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("Hi").await);

    let stream =
        client.begin(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true})).await;
    let runs = client.get(&format!("/v1/threads/{thread}/runs")).await;
    let path = format!("/v1/threads/{thread}/runs/{}", runs["data"][0]["id"].as_str().unwrap());
    client.until(&path, "completed").await;
    let events = parse(&stream.text().await.unwrap());

    assert_eq!(text(&events), words.concat(), "and then it reads all of it");
});

both_stores!(silence_is_filled_with_comment_lines_that_no_empty_line_follows, async |database: Database| {
    let upstream = Upstream::saying([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[("KEEP_ALIVE_S", "1")]).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("Hi").await);

    let stream =
        client.begin(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true})).await;
    let mut bytes = stream.bytes_stream();
    let mut seen = String::new();
    while !seen.contains(": keep-alive\n") {
        seen.push_str(std::str::from_utf8(&bytes.next().await.unwrap().unwrap()).unwrap());
    }
    upstream.go_on();
    while let Some(more) = bytes.next().await {
        seen.push_str(std::str::from_utf8(&more.unwrap()).unwrap());
    }

    assert!(!seen.contains(": keep-alive\n\n"));
    assert_eq!(text(&parse(&seen)), "Hm!");
});

both_stores!(each_token_is_sent_as_it_comes, async |database: Database| {
    let upstream = Upstream::saying([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("Hi").await);

    let stream =
        client.begin(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true})).await;
    let mut bytes = stream.bytes_stream();
    let mut seen = String::new();
    while !seen.contains("\"value\":\"Hm\"") {
        let more = tokio::time::timeout(Duration::from_secs(20), bytes.next()).await;
        seen.push_str(std::str::from_utf8(&more.expect("the token is held back").unwrap().unwrap()).unwrap());
    }

    assert!(!seen.contains("thread.run.completed"));
    upstream.go_on();
});

// A crash loses a second of an answer at most.
both_stores!(text_is_durable_while_it_is_written, async |database: Database| {
    let upstream = Upstream::saying([Answer::Pause(vec!["Hm", "m"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.assistant().await, client.thread("Hi").await);
    client.run(&assistant, &thread).await;

    let message = loop {
        let messages = client.get(&format!("/v1/threads/{thread}/messages")).await;
        if messages["data"][0]["content"][0]["text"]["value"] == "Hmm" {
            break messages["data"][0].clone();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };

    assert_eq!(message["status"], "in_progress");
    upstream.go_on();
});

/// A run that another server drives is followed through the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_when_another_server_drives_its_run() {
    let Some(database) = Database::postgres().await else { return };
    let upstream = Upstream::saying([Answer::Pause(vec!["busy"]), Answer::Words(vec!["Hello", "!"])]).await;
    let first = Server::with(&database, &upstream, &[("MAX_CONCURRENT_RUNS", "1")]).await;
    let client = &first.client;
    let assistant = client.assistant().await;
    client.run(&assistant, &client.thread("keeps the only slot").await).await;
    upstream.asked(1).await;

    let thread = client.thread("Hi").await;
    let stream =
        client.begin(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true})).await;
    let second = Server::start(&database, &upstream).await;
    let events = parse(&stream.text().await.unwrap());

    assert_eq!(names(&events)[..7], WRITING);
    assert_eq!(
        names(&events).last_chunk::<4>().unwrap(),
        &["message.completed", "run.step.completed", "run.completed", "done"]
    );
    assert_eq!(text(&events), "Hello!");
    let path = format!("/v1/threads/{thread}/runs/{}", events[0].data["id"].as_str().unwrap());
    assert_eq!(second.client.send(Method::GET, &path, None).await.body["status"], "completed");
    upstream.go_on();
}
