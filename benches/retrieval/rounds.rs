//! What a search within a run adds, compared with a call of a function whose output the client submits.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use crate::Result;
use crate::client::Client;
use crate::ingest::percentiles;
use crate::quality::{http_client, post, upload_text, wait_until_processed};
use crate::server::{Server, Setup};
use crate::speed::text;

/// Number of runs of each kind.
const RUNS: usize = 100;
/// Number of files that are searched, and the words of each.
const FILES: usize = 100;
const FILE_WORDS: usize = 500;

/// Measures runs with one round of a tool, and prints a table.
pub async fn measure(setup: &Setup, database_url: &str) -> Result<()> {
    let server = Server::start_with(setup, database_url, false).await?;
    let mut client = Client::new(server.address);
    let http = http_client()?;
    let mut random = fastrand::Rng::with_seed(2);
    let mut files = Vec::new();
    for number in 0..FILES {
        files.push(upload_text(&http, &server, &format!("{number}.txt"), &text(&mut random, FILE_WORDS)).await?);
    }
    let store = post(&mut client, "/v1/vector_stores", &json!({"file_ids": files})).await?;
    wait_until_processed(&mut client, &format!("/v1/vector_stores/{}", store["id"].as_str().unwrap_or_default()))
        .await?;
    let resources = json!({"file_search": {"vector_store_ids": [store["id"]]}});
    let searching = json!({"model": "fast", "tools": [{"type": "file_search"}], "tool_resources": resources});
    let searching = post(&mut client, "/v1/assistants", &searching).await?;
    let function = json!({"name": "look_up", "parameters": {"type": "object", "properties": {}}});
    let calling = json!({"model": "fast", "tools": [{"type": "function", "function": function}]});
    let calling = post(&mut client, "/v1/assistants", &calling).await?;

    let (mut searches, mut calls) = (Vec::new(), Vec::new());
    // In turns, so that a disturbance affects both.
    for _ in 0..RUNS {
        calls.push(run(&mut client, &calling).await?);
        searches.push(run(&mut client, &searching).await?);
    }
    let (search, call) = (percentiles(&mut searches), percentiles(&mut calls));
    println!("| streamed run with one round of | p50 / p99, ms | target |\n| --- | --- | --- |");
    println!("| a function, with its submitted output | {:.1} / {:.1} | |", call.0, call.1);
    println!(
        "| file search in {FILES} chunks | {:.1} / {:.1} | at most 15 ms more at p50: {:+.1} ms |\n",
        search.0,
        search.1,
        search.0 - call.0
    );
    Ok(())
}

/// Creates a thread and a run, streams it, and submits an output if it requires one. Returns how long that took.
async fn run(client: &mut Client, assistant: &Value) -> Result<Duration> {
    let started = Instant::now();
    let body = json!({"assistant_id": assistant["id"], "stream": true,
                      "thread": {"messages": [{"role": "user", "content": "Hello"}]}});
    let mut events = stream(client, "/v1/threads/runs", &body).await?;
    if let Some(run) = data_of(&events, "thread.run.requires_action") {
        let call = &run["required_action"]["submit_tool_outputs"]["tool_calls"][0]["id"];
        let output = json!({"stream": true, "tool_outputs": [{"tool_call_id": call, "output": "w1 w2 w3"}]});
        let id = |name: &str| run[name].as_str().unwrap_or_default().to_owned();
        let path = format!("/v1/threads/{}/runs/{}/submit_tool_outputs", id("thread_id"), id("id"));
        events = stream(client, &path, &output).await?;
    }
    if data_of(&events, "thread.run.completed").is_none() {
        let end: String = events.chars().rev().take(600).collect();
        return Err(format!("a run did not complete: {}", end.chars().rev().collect::<String>()).into());
    }
    Ok(started.elapsed())
}

async fn stream(client: &mut Client, path: &str, body: &Value) -> Result<String> {
    let bytes = client.fetch(Method::POST, path, Bytes::from(body.to_string())).await?;
    Ok(String::from_utf8(bytes.to_vec())?)
}

/// Returns the data of the first event with a name.
fn data_of(events: &str, name: &str) -> Option<Value> {
    let mut events = events.split("\n\n").filter_map(|event| event.split_once('\n'));
    let (_, data) = events.find(|(first, _)| first.strip_prefix("event: ") == Some(name))?;
    serde_json::from_str(data.strip_prefix("data: ")?).ok()
}
