//! The scripted model server, in the process of the benchmark.
//!
//! `POST /v1/chat/completions`
//! `GET /v1/models`

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream::iter;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::Result;

/// Number of tokens of an answer.
pub const TOKENS: usize = 64;
/// Paced: time from the request to the first token.
const FIRST_TOKEN_AFTER: Duration = Duration::from_millis(100);
/// Paced: time between tokens.
const TOKEN_INTERVAL: Duration = Duration::from_millis(10);
/// Slow: time between tokens.
const SLOW_INTERVAL: Duration = Duration::from_secs(1);
/// The duration of a paced answer.
pub const PACED_ANSWER: Duration = Duration::from_millis(100 + 10 * (TOKENS as u64 - 1));

/// How the model answers, selected by the model name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// All tokens immediately, to measure throughput.
    Fast,
    /// After 100 ms, one token per 10 ms, to measure added latency.
    Paced,
    /// One token immediately, then nothing until [`Upstream::end_idle_answers`].
    Idle,
    /// One token per second until [`Upstream::end_idle_answers`].
    Slow,
}

impl Mode {
    pub const ALL: [Self; 4] = [Self::Fast, Self::Paced, Self::Idle, Self::Slow];

    pub fn model(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Paced => "paced",
            Self::Idle => "idle",
            Self::Slow => "slow",
        }
    }

    fn of_model(name: &str) -> Self {
        Self::ALL.into_iter().find(|mode| mode.model() == name).unwrap_or(Self::Fast)
    }
}

/// A running model server. Stopped when dropped.
pub struct Upstream {
    address: SocketAddr,
    script: Arc<Script>,
    task: JoinHandle<()>,
}

impl Upstream {
    /// Starts the model server on a free port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let script = Arc::new(Script::new());
        let router = Router::new()
            .route("/v1/chat/completions", post(create_chat_completion))
            .route("/v1/models", get(list_models))
            .with_state(Arc::clone(&script));
        let task = tokio::spawn(crate::floor::accept(listener, router));
        Ok(Self { address, script, task })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the idle and slow answers that are open.
    pub fn end_idle_answers(&self) {
        self.script.idle_answers_end.send_replace(());
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The prebuilt server-sent events of an answer.
struct Script {
    role: Bytes,
    tokens: Vec<Bytes>,
    finish: Bytes,
    finish_with_usage: Bytes,
    idle_answers_end: watch::Sender<()>,
}

impl Script {
    fn new() -> Self {
        let role =
            chunk(&json!([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]), None);
        let tokens: Vec<Bytes> = (0..TOKENS)
            .map(|n| chunk(&json!([{"index": 0, "delta": {"content": word(n)}, "finish_reason": null}]), None))
            .collect();
        let stop = chunk(&json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]), None);
        let usage = chunk(&json!([]), Some(usage()));
        let done = Bytes::from_static(b"data: [DONE]\n\n");
        Self {
            finish: joined([&stop, &done]),
            finish_with_usage: joined([&stop, &usage, &done]),
            role,
            tokens,
            idle_answers_end: watch::Sender::new(()),
        }
    }

    fn finish(&self, with_usage: bool) -> Bytes {
        if with_usage { self.finish_with_usage.clone() } else { self.finish.clone() }
    }
}

fn word(n: usize) -> String {
    format!(" w{n:02}")
}

fn usage() -> serde_json::Value {
    json!({"prompt_tokens": 9, "completion_tokens": TOKENS, "total_tokens": 9 + TOKENS})
}

/// One server-sent event of a streamed completion.
fn chunk(choices: &serde_json::Value, usage: Option<serde_json::Value>) -> Bytes {
    let mut chunk = json!({
        "id": "chatcmpl-load", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "load", "choices": choices
    });
    if let Some(usage) = usage {
        chunk["usage"] = usage;
    }
    Bytes::from(format!("data: {chunk}\n\n"))
}

fn joined<'a>(parts: impl IntoIterator<Item = &'a Bytes>) -> Bytes {
    let parts: Vec<&[u8]> = parts.into_iter().map(AsRef::as_ref).collect();
    Bytes::from(parts.concat())
}

#[derive(Deserialize)]
struct CompletionRequest {
    model: String,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

async fn create_chat_completion(State(script): State<Arc<Script>>, Json(request): Json<CompletionRequest>) -> Response {
    let mode = Mode::of_model(&request.model);
    if !request.stream {
        return whole_completion(mode).await;
    }
    let with_usage = request.stream_options.is_some_and(|options| options.include_usage);
    let body = match mode {
        Mode::Fast => fast_answer(&script, with_usage),
        Mode::Paced => paced_answer(script, with_usage),
        Mode::Idle => idle_answer(script, with_usage),
        Mode::Slow => slow_answer(script, with_usage),
    };
    ([(CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// Sends each token in a separate frame, as model servers do, but without pauses.
fn fast_answer(script: &Script, with_usage: bool) -> Body {
    let mut frames = Vec::with_capacity(TOKENS + 2);
    frames.push(script.role.clone());
    frames.extend_from_slice(&script.tokens);
    frames.push(script.finish(with_usage));
    Body::from_stream(iter(frames.into_iter().map(Ok::<_, Infallible>)))
}

fn paced_answer(script: Arc<Script>, with_usage: bool) -> Body {
    let mut due = Instant::now() + FIRST_TOKEN_AFTER;
    Body::from_stream(async_stream::stream! {
        for (n, token) in script.tokens.iter().enumerate() {
            sleep_until(due).await;
            due += TOKEN_INTERVAL;
            let first = n == 0;
            yield Ok::<_, Infallible>(if first { joined([&script.role, token]) } else { token.clone() });
        }
        yield Ok(script.finish(with_usage));
    })
}

fn idle_answer(script: Arc<Script>, with_usage: bool) -> Body {
    let mut end = script.idle_answers_end.subscribe();
    Body::from_stream(async_stream::stream! {
        yield Ok::<_, Infallible>(joined([&script.role, &script.tokens[0]]));
        // Fails only if the server has stopped, and then the answer can end as well.
        let _ = end.changed().await;
        yield Ok(script.finish(with_usage));
    })
}

fn slow_answer(script: Arc<Script>, with_usage: bool) -> Body {
    let mut end = script.idle_answers_end.subscribe();
    Body::from_stream(async_stream::stream! {
        yield Ok::<_, Infallible>(joined([&script.role, &script.tokens[0]]));
        for token in script.tokens.iter().cycle() {
            if tokio::time::timeout(SLOW_INTERVAL, end.changed()).await.is_ok() {
                break;
            }
            yield Ok(token.clone());
        }
        yield Ok(script.finish(with_usage));
    })
}

/// Returns the answer without streaming, after the same time as the streamed one.
async fn whole_completion(mode: Mode) -> Response {
    if mode == Mode::Paced {
        tokio::time::sleep(PACED_ANSWER).await;
    }
    let text: String = (0..TOKENS).map(word).collect();
    Json(json!({
        "id": "chatcmpl-load", "object": "chat.completion", "created": 1_700_000_000, "model": mode.model(), "usage": usage(),
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    }))
    .into_response()
}

async fn list_models() -> Json<serde_json::Value> {
    let models: Vec<_> = Mode::ALL
        .iter()
        .map(|mode| json!({"id": mode.model(), "object": "model", "created": 1_700_000_000, "owned_by": "load"}))
        .collect();
    Json(json!({"object": "list", "data": models}))
}
