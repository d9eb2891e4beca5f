//! The run engine under faults: crashes during a turn, disconnected clients, unavailable databases.

use std::time::Duration;

use assistd::api::rule::Request as _;
use assistd::api::{CreateAssistant, CreateMessage, CreateRun, CreateThread, Ids, Scope};
use assistd::clock::Clock;
use assistd::store::{JobKind, Lease, NewRun, Start};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::run::{NOTHING, origin};
use crate::support::server::Server;
use crate::support::sse::{names, parse, text};
use crate::support::upstream::{Answer, Upstream};

/// The start of a tool call, without its end.
const PARTIAL_CALL: &str = concat!(
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"up\",\"function\":",
    "{\"name\":\"weather\",\"arguments\":\"{\\\"in\"}}]}}]}\n\n"
);
/// The start of a call, which the token limit cuts off.
const CUT_CALL: &str = concat!(
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"up\",\"function\":",
    "{\"name\":\"weather\",\"arguments\":\"{\\\"in\"}}]},\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n"
);
/// Text and a tool call, without usage.
const TEXT_AND_CALL: &str = concat!(
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Let me see. Grüße!\"}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"up\",\"function\":",
    "{\"name\":\"weather\",\"arguments\":\"{}\"}}]},\"finish_reason\":\"tool_calls\"}]}\n\n",
    "data: [DONE]\n\n"
);
/// Text, without usage.
const TEXT: &str = concat!(
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Sunny.\"},\"finish_reason\":\"stop\"}]}\n\n",
    "data: [DONE]\n\n"
);

async fn assistant(client: &Client) -> String {
    let tools = json!([{"type": "function", "function": {"name": "weather"}}]);
    let created = client.post("/v1/assistants", json!({"model": "m", "tools": tools})).await;
    created["id"].as_str().unwrap().to_owned()
}

/// Creates a run that requires the output of one call; returns its path, and the body that submits the output.
async fn run_requiring_action(client: &Client) -> (String, Value) {
    let run = client.create_run(&assistant(client).await, &client.create_thread("Hi").await).await;
    let run_object = client.wait_for_status(&run, "requires_action").await;
    let call = &run_object["required_action"]["submit_tool_outputs"]["tool_calls"][0]["id"];
    (run, json!({"tool_outputs": [{"tool_call_id": call, "output": "sunny"}]}))
}

both_stores!(a_run_interrupted_during_a_tool_call_restarts_and_completes, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Hang(PARTIAL_CALL), Answer::Tokens(vec!["Sunny"])]).await;
    let first = Server::with(&database, &upstream, &[("SHUTDOWN_GRACE_S", "0")]).await;
    let run = first.client.create_run(&assistant(&first.client).await, &first.client.create_thread("Hi").await).await;
    while first.client.get(&format!("{run}/steps")).await["data"].as_array().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    first.stop().await;

    let second = Server::start(&database, &upstream).await;

    second.client.wait_for_status(&run, "completed").await;
    let steps = second.client.get(&format!("{run}/steps")).await;
    let kinds: Vec<_> = steps["data"].as_array().unwrap().iter().map(|step| step["type"].clone()).collect();
    assert_eq!(kinds, ["message_creation"], "the interrupted call is deleted");
    assert_eq!(upstream.requests().len(), 2);
});

both_stores!(a_run_completes_after_its_open_message_is_deleted, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Raw(TEXT_AND_CALL), Answer::Raw(TEXT)]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (run, outputs) = run_requiring_action(client).await;
    let thread = run.split("/runs/").next().unwrap();
    let messages = client.get(&format!("{thread}/messages")).await;
    let message = messages["data"][0]["id"].as_str().unwrap();
    client.delete(&format!("{thread}/messages/{message}")).await;

    client.post(&format!("{run}/submit_tool_outputs"), outputs).await;

    client.wait_for_status(&run, "completed").await;
    let messages = client.get(&format!("{thread}/messages")).await;
    assert_eq!(messages["data"][0]["content"][0]["text"]["value"], "Sunny.");
    assert_eq!(upstream.requests().len(), 2, "one model request for each turn");
});

both_stores!(a_run_whose_outputs_were_submitted_without_a_stream_keeps_its_lease, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Raw(TEXT_AND_CALL), Answer::Pause(vec!["Sunny"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (run, outputs) = run_requiring_action(client).await;

    client.post(&format!("{run}/submit_tool_outputs"), outputs).await;

    upstream.wait_for_requests(2).await;
    // In the meantime, the server compares its runs with the store several times.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(client.get(&run).await["status"], "in_progress");
    upstream.resume();
    client.wait_for_status(&run, "completed").await;
    assert_eq!(upstream.requests().len(), 2, "one model request for each turn");
});

both_stores!(a_run_completes_after_its_client_disconnects, async |database: Database| {
    let upstream = Upstream::start().await;
    // A run without a driver would wait until its lease expires.
    let server = Server::with(&database, &upstream, &[("RUN_LEASE_S", "120")]).await;
    let client = &server.client;
    let assistant = client.create_assistant().await;
    let address = client.base_url.trim_start_matches("http://").to_owned();
    let mut threads = Vec::new();
    for round in 0..48_u64 {
        let thread = client.create_thread("Hi").await;
        let body = json!({"assistant_id": assistant}).to_string();
        let request = format!(
            "POST /v1/threads/{thread}/runs HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut socket = tokio::net::TcpStream::connect(&address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_micros(round * 250)).await;
        drop(socket);
        threads.push(thread);
    }

    let mut created = 0;
    for thread in threads {
        let runs = client.get(&format!("/v1/threads/{thread}/runs")).await;
        for run in runs["data"].as_array().unwrap() {
            created += 1;
            client
                .wait_for_status(&format!("/v1/threads/{thread}/runs/{}", run["id"].as_str().unwrap()), "completed")
                .await;
        }
    }
    assert!(created > 0, "every client disconnected before its run was created");
});

both_stores!(a_failed_run_reports_the_token_usage_of_its_model, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Calls(vec![], vec![("unknown", "{}")])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let run = client.create_run(&assistant(client).await, &client.create_thread("Hi").await).await;

    let failed = client.wait_for_status(&run, "failed").await;

    assert_eq!(failed["usage"]["total_tokens"], 30);
    let steps = client.get(&format!("{run}/steps")).await;
    let of_steps: u64 =
        steps["data"].as_array().unwrap().iter().filter_map(|step| step["usage"]["total_tokens"].as_u64()).sum();
    assert_eq!(of_steps, 30, "{steps:#}");
});

both_stores!(a_cancelled_run_reports_its_token_usage, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Once", " upon", " a", " time"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let run = client.create_run(&client.create_assistant().await, &client.create_thread("Tell me a story").await).await;
    let thread = run.split("/runs/").next().unwrap();
    while client.get(&format!("{thread}/messages")).await["data"].as_array().unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    client.post(&format!("{run}/cancel"), json!({})).await;

    let cancelled = client.wait_for_status(&run, "cancelled").await;
    assert!(cancelled["usage"]["prompt_tokens"].as_u64().unwrap() > 0, "{cancelled:#}");
    assert!(cancelled["usage"]["completion_tokens"].as_u64().unwrap() > 0, "{cancelled:#}");
});

both_stores!(a_run_cancelled_before_its_model_answers_reports_no_usage, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Held(Box::new(Answer::Tokens(vec!["Hi"])))]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let run = client.create_run(&client.create_assistant().await, &client.create_thread("Hi").await).await;
    upstream.wait_for_requests(1).await;

    client.post(&format!("{run}/cancel"), json!({})).await;

    let cancelled = client.wait_for_status(&run, "cancelled").await;
    assert_eq!(cancelled["usage"]["total_tokens"], 0, "{cancelled:#}");
});

both_stores!(a_call_cut_off_by_the_token_limit_makes_the_run_incomplete, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Raw(CUT_CALL)]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;

    let run = client.create_run(&assistant(client).await, &client.create_thread("Hi").await).await;

    let incomplete = client.wait_for_status(&run, "incomplete").await;
    assert_eq!(incomplete["incomplete_details"], json!({"reason": "max_completion_tokens"}));
    let steps = client.get(&format!("{run}/steps?order=asc")).await["data"].clone();
    assert_eq!((&steps[0]["type"], &steps[1]["type"]), (&json!("tool_calls"), &json!("message_creation")));
    assert_eq!(steps[0]["step_details"]["tool_calls"], json!([]), "the call was not made");
    assert_eq!((&steps[0]["status"], steps.as_array().unwrap().len()), (&json!("completed"), 2));
});

both_stores!(retrying_a_submission_of_tool_outputs_is_idempotent, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Raw(TEXT_AND_CALL), Answer::Tokens(vec!["Sun", "ny"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (run, outputs) = run_requiring_action(client).await;
    let path = format!("{run}/submit_tool_outputs");
    client.post(&path, outputs.clone()).await;
    client.wait_for_status(&run, "completed").await;

    let mut streamed = outputs.clone();
    streamed["stream"] = json!(true);
    let retry = |body: &Value| {
        let request = client.request(Method::POST, &path).header("x-stainless-retry-count", "1");
        request.json(body).send()
    };
    let again = Client::read(retry(&outputs).await.unwrap()).await;
    let events = parse(&retry(&streamed).await.unwrap().text().await.unwrap());
    let mut others = outputs.clone();
    others["tool_outputs"][0]["output"] = json!("rainy");
    let other = Client::read(retry(&others).await.unwrap()).await;

    assert_eq!((again.status, &again.body["status"]), (200, &json!("completed")));
    assert_eq!(names(&events).first_chunk::<3>().unwrap(), &["run.step.completed", "run.queued", "run.in_progress"]);
    assert_eq!(names(&events).last_chunk::<2>().unwrap(), &["run.completed", "done"]);
    assert_eq!(text(&events), "\n\nSunny");
    assert_eq!(other.status, 400);
    assert_eq!(upstream.requests().len(), 2);
});

both_stores!(a_run_fails_with_the_last_error_after_its_last_attempt, async |database: Database| {
    let run = {
        let (store, ids, now) = (database.open().await, Ids::unique_everywhere(), Clock::system().now());
        let assistant = CreateAssistant::parse(json!({"model": "m"})).unwrap().into_assistant(&ids, now).0;
        let (thread, ..) = CreateThread::parse(json!({})).unwrap().into_thread(&ids, now);
        let hi = CreateMessage::parse(json!({"role": "user", "content": "Hi"})).unwrap();
        store
            .create_thread(&Scope::default_project(), &thread, &[hi.into_message(&ids, &thread.id, now)], &NOTHING)
            .await
            .unwrap();
        let request = CreateRun::parse(json!({"assistant_id": assistant.id})).unwrap();
        let (run, _) = request.into_run(&ids, origin(&thread.id, &assistant, now));
        store
            .create_run(&NewRun {
                run: &run,
                thread: None,
                messages: &[],
                new: &NOTHING,
                owner: "",
                active_runs_max: 0,
                start: Start::Due,
            })
            .await
            .unwrap();
        for _ in 0..3 {
            let claimed = store.claim_run(Duration::from_secs(15), "", &[], u32::MAX).await.unwrap().unwrap();
            let lease = Lease { id: run.spec.id.to_string(), number: claimed.versioned.lease };
            store.record_failed_attempt(JobKind::Run, &lease, "connection reset", Duration::ZERO).await.unwrap();
        }
        store.close().await;
        format!("/v1/threads/{}/runs/{}", thread.id, run.spec.id)
    };
    let upstream = Upstream::start().await;

    let server = Server::with(&database, &upstream, &[("MAX_ATTEMPTS", "3")]).await;

    let failed = server.client.wait_for_status(&run, "failed").await;
    let message = failed["last_error"]["message"].as_str().unwrap();
    assert!(message.contains("3 times") && message.contains("connection reset"), "{message}");
    assert_eq!(upstream.requests().len(), 0);
    let thread = run.split("/runs/").next().unwrap();
    server.client.post(&format!("{thread}/messages"), json!({"role": "user", "content": "unlocked"})).await;
});

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_completes_after_the_database_was_unavailable_for_longer_than_the_lease() {
    use sqlx::{Connection, Executor, PgConnection};
    let Some(database) = Database::postgres().await else { return };
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[("RUN_LEASE_S", "5")]).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let body = json!({"assistant_id": assistant, "stream": true});
    let stream = client.open_stream(&format!("/v1/threads/{thread}/runs"), body).await;
    upstream.wait_for_requests(1).await;
    let (url, name) = database.url.rsplit_once('/').unwrap();
    let mut admin = PgConnection::connect(&format!("{url}/postgres")).await.unwrap();
    let allow = |open: bool| sqlx::AssertSqlSafe(format!("alter database {name} with allow_connections {open}"));
    let terminate = format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'");

    admin.execute(allow(false)).await.unwrap();
    admin.execute(sqlx::AssertSqlSafe(terminate)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(7_500)).await;
    admin.execute(allow(true)).await.unwrap();
    // Long enough for this server to find its run due and claim it a second time.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    upstream.resume();

    let events = parse(&stream.text().await.unwrap());
    assert_eq!(names(&events).last_chunk::<2>().unwrap(), &["run.completed", "done"]);
    assert_eq!(text(&events), "Hm!");
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_follows_a_run_that_another_server_drives() {
    let Some(database) = Database::postgres().await else { return };
    let upstream =
        Upstream::scripted([Answer::Calls(vec![], vec![("weather", "{}")]), Answer::Pause(vec!["busy"])]).await;
    let first = Server::start(&database, &upstream).await;
    let second = Server::with(&database, &upstream, &[("MAX_CONCURRENT_RUNS", "1")]).await;
    let (run, mut outputs) = run_requiring_action(&first.client).await;
    second.client.create_run(&second.client.create_assistant().await, &second.client.create_thread("busy").await).await;
    upstream.wait_for_requests(2).await;
    outputs["stream"] = json!(true);

    let events = second.client.stream(&format!("{run}/submit_tool_outputs"), outputs).await;

    let expected = [
        "run.step.completed",
        "run.queued",
        "run.in_progress",
        "run.step.created",
        "run.step.in_progress",
        "message.created",
        "message.in_progress",
        "message.delta",
        "message.completed",
        "run.step.completed",
        "run.completed",
        "done",
    ];
    assert_eq!(names(&events), expected);
    assert_eq!(text(&events), "Hello");
    upstream.resume();
}
