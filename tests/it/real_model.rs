//! A test with a real model. To run it, name a server that offers chat completions, for example
//! `ASSISTD_TEST_MODEL_URL=http://127.0.0.1:11434/v1 ASSISTD_TEST_MODEL=qwen3:8b cargo test --test it real_model`.
//! The test checks the life cycle of the run, not the text of the answer.

use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sse::{names, text};
use crate::support::upstream::Upstream;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_model_answers_streamed_and_polled_runs_and_stops_at_a_limit() {
    let Ok(url) = std::env::var("ASSISTD_TEST_MODEL_URL") else {
        eprintln!("skipped: no ASSISTD_TEST_MODEL_URL");
        return;
    };
    let model = std::env::var("ASSISTD_TEST_MODEL").unwrap_or_default();
    let mut upstream = Upstream::start().await;
    upstream.url = url;
    let database = Database::sqlite();
    let server = Server::with(&database, &upstream, &[("DEFAULT_MODEL", model.as_str())]).await;
    let client = &server.client;
    let body = json!({"model": "gpt-4o", "instructions": "Answer in one short sentence.", "temperature": 0.0});
    let assistant = client.post("/v1/assistants", body).await["id"].clone();
    let thread = client.create_thread("What is the capital of France?").await;
    let runs = format!("/v1/threads/{thread}/runs");

    let events = client.stream(&runs, json!({"assistant_id": assistant, "stream": true})).await;
    assert_eq!(names(&events).last_chunk::<2>().unwrap(), &["run.completed", "done"]);
    assert!(!text(&events).is_empty());
    let usage = &events[events.len() - 2].data["usage"];
    assert!(usage["prompt_tokens"].as_u64() > Some(0) && usage["completion_tokens"].as_u64() > Some(0), "{usage}");

    let message = json!({"role": "user", "content": "Count from one to a hundred."});
    client.post(&format!("/v1/threads/{thread}/messages"), message).await;
    // The API description requires 256 or more; the service accepted 16.
    let request = json!({"assistant_id": assistant, "max_completion_tokens": 16});
    let reply = client.request(reqwest::Method::POST, &runs).json(&request).send().await.unwrap();
    let run: Value = reply.json().await.unwrap();
    let path = format!("{runs}/{}", run["id"].as_str().unwrap());
    let ended = loop {
        let now: Value = client.request(reqwest::Method::GET, &path).send().await.unwrap().json().await.unwrap();
        if !["queued", "in_progress"].contains(&now["status"].as_str().unwrap()) {
            break now;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!((&ended["status"], &ended["usage"]["completion_tokens"]), (&json!("incomplete"), &json!(16)));
}
