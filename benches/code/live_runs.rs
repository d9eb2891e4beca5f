//! Runs that answer a user while many sessions run code on the same server.

use std::convert::Infallible;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_stream::stream;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use crate::Result;
use crate::client::{Client, Marks};

/// Clients whose runs are measured.
const CLIENTS: usize = 8;
/// How long a server can take to become ready.
const READY_TIMEOUT: Duration = Duration::from_mins(1);
/// Number of tokens of an answer, the time until the first one, and between tokens.
const TOKENS: usize = 32;
const FIRST_TOKEN_AFTER: Duration = Duration::from_millis(100);
const TOKEN_INTERVAL: Duration = Duration::from_millis(10);
/// The code of each call: some tens of milliseconds of processor time. Its value shows whether it ran.
const CODE: &str = "sum(range(1_000_000))";
const VALUE: &str = "499999500000";
/// Marks of the streams of runs.
const MARKS: Marks = Marks { first_token: "event: thread.message.delta", completed: "event: thread.run.completed" };

/// What is measured.
pub struct Setup {
    /// The installation of the runtime.
    pub installation: PathBuf,
    /// Number of threads that run code.
    pub sessions: usize,
    /// How long each measurement lasts.
    pub duration: Duration,
}

/// Measures the time to the first token of runs, alone and beside code, and prints a table.
pub fn measure(setup: &Setup) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("assistd-bench-runs-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measured = runtime.block_on(measure_in(setup, &folder));
    std::fs::remove_dir_all(folder)?;
    measured
}

async fn measure_in(setup: &Setup, folder: &Path) -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let model = listener.local_addr()?;
    let models = || async { Json(json!({"object": "list", "data": [{"id": "m", "object": "model"}]})) };
    let router = Router::new().route("/v1/chat/completions", post(complete)).route("/v1/models", get(models));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let server = Server::start(setup, folder, model).await?;
    let mut client = Client::new(server.address);
    let plain = create(&mut client, &json!({"model": "m"})).await?;
    let coding = create(&mut client, &json!({"model": "m", "tools": [{"type": "code_interpreter"}]})).await?;

    let alone = first_tokens(server.address, &plain, setup.duration).await?;
    let stop = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..setup.sessions)
        .map(|_| tokio::spawn(run_code(server.address, coding.clone(), Arc::clone(&stop))))
        .collect();
    // Until each thread has a session.
    tokio::time::sleep(setup.duration / 4).await;
    let beside = first_tokens(server.address, &plain, setup.duration).await?;
    stop.store(1, Ordering::Relaxed);
    let (mut calls, mut failed) = (0, 0);
    for thread in threads {
        let (ran, lost) = thread.await??;
        calls += ran;
        failed += lost;
    }
    println!("| first token of {CLIENTS} clients | p50 / p99, ms | target |\n| --- | --- | --- |");
    println!("| without code | {:.0} / {:.0} | |", percentile(&alone, 50), percentile(&alone, 99));
    println!(
        "| while {} sessions run code: {calls} calls, {failed} failed | {:.0} / {:.0} | p99 at most doubled, none failed |",
        setup.sessions,
        percentile(&beside, 50),
        percentile(&beside, 99)
    );
    Ok(())
}

/// Streams runs for a time. Returns the times to their first tokens, in order.
async fn first_tokens(address: SocketAddr, assistant: &Value, duration: Duration) -> Result<Vec<Duration>> {
    let until = Instant::now() + duration;
    let client = |assistant: Value| async move {
        let mut client = Client::new(address);
        let body = Bytes::from(thread_and_run(&assistant).to_string());
        let mut times = Vec::new();
        while Instant::now() < until {
            times.push(client.stream("/v1/threads/runs", body.clone(), MARKS).await?.first_token);
        }
        Ok::<_, crate::Error>(times)
    };
    let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(client(assistant.clone()))).collect();
    let mut all = Vec::new();
    for client in clients {
        all.extend(client.await??);
    }
    all.sort_unstable();
    Ok(all)
}

/// Runs code on one thread until `stop` is set. Returns how many calls there were, and how many of them failed.
async fn run_code(address: SocketAddr, assistant: Value, stop: Arc<AtomicUsize>) -> Result<(usize, usize)> {
    let mut client = Client::new(address);
    let thread = client.fetch_json::<Value>(Method::POST, "/v1/threads", Bytes::from("{}")).await?;
    let path = format!("/v1/threads/{}", thread["id"].as_str().unwrap_or_default());
    let message = Bytes::from(json!({"role": "user", "content": "Hello"}).to_string());
    let body = Bytes::from(json!({"assistant_id": assistant["id"], "stream": true}).to_string());
    let (mut calls, mut failed) = (0, 0);
    while stop.load(Ordering::Relaxed) == 0 {
        client.fetch(Method::POST, &format!("{path}/messages"), message.clone()).await?;
        let events = client.fetch(Method::POST, &format!("{path}/runs"), body.clone()).await?;
        let events = String::from_utf8_lossy(&events);
        calls += 1;
        failed += usize::from(!events.contains(VALUE) || !events.contains(MARKS.completed));
    }
    Ok((calls, failed))
}

fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

fn thread_and_run(assistant: &Value) -> Value {
    json!({"assistant_id": assistant["id"], "stream": true, "thread": {"messages": [{"role": "user", "content": "Hello"}]}})
}

async fn create(client: &mut Client, assistant: &Value) -> Result<Value> {
    client.fetch_json(Method::POST, "/v1/assistants", Bytes::from(assistant.to_string())).await
}

/// Answers a streamed chat completion: calls the function that is offered, if any, and then answers.
async fn complete(Json(request): Json<Value>) -> Response {
    let is_answer =
        request["messages"].as_array().and_then(|messages| messages.last()?["role"].as_str()) == Some("tool");
    let function = request["tools"][0]["function"]["name"].as_str().filter(|_| !is_answer).map(str::to_owned);
    let chunk = |delta: &Value, finish: Option<&str>| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
        let chunk =
            json!({"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]});
        Bytes::from(format!("data: {chunk}\n\n"))
    };
    let (deltas, finish) = match &function {
        Some(name) => {
            let function = json!({"name": name, "arguments": json!({"code": CODE}).to_string()});
            let call = json!({"index": 0, "id": "call_1", "type": "function", "function": function});
            (vec![json!({"role": "assistant", "tool_calls": [call]})], "tool_calls")
        }
        None => ((0..TOKENS).map(|token| json!({"content": format!("w{token} ")})).collect(), "stop"),
    };
    let chunks: Vec<Bytes> =
        deltas.iter().map(|delta| chunk(delta, None)).chain([chunk(&json!({}), Some(finish))]).collect();
    let body = Body::from_stream(stream! {
        tokio::time::sleep(FIRST_TOKEN_AFTER).await;
        for chunk in chunks {
            yield Ok::<_, Infallible>(chunk);
            tokio::time::sleep(TOKEN_INTERVAL).await;
        }
        yield Ok(Bytes::from("data: [DONE]\n\n"));
    });
    ([(CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// A server in a process of its own, which is killed when this is dropped.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    async fn start(setup: &Setup, folder: &Path, model: SocketAddr) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = File::create(folder.join("server.log"))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_assistd"));
        // Removes the settings of the caller's environment.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ASSISTD_") {
                command.env_remove(name);
            }
        }
        let child = command
            .env("ASSISTD_LISTEN", address.to_string())
            .env("ASSISTD_DATA_DIR", folder.join("data"))
            .env("ASSISTD_DATABASE_URL", format!("sqlite://{}", folder.join("assistd.db").display()))
            .env("ASSISTD_UPSTREAM_URL", format!("http://{model}/v1"))
            .env("ASSISTD_CODE_INTERPRETER_DIR", std::path::absolute(&setup.installation)?)
            .env("ASSISTD_MAX_CONCURRENT_RUNS", (setup.sessions + 2 * CLIENTS).to_string())
            .env("ASSISTD_LOG", "warn")
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut server = Self { child, address };
        let (mut client, deadline) = (Client::new(address), Instant::now() + READY_TIMEOUT);
        while let Err(error) = client.fetch(Method::GET, "/ready", Bytes::new()).await {
            if server.child.try_wait()?.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(folder.join("server.log")).unwrap_or_default();
                return Err(format!("the server is not ready ({error}): {log}").into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if the process has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
