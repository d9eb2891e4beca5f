//! A scripted chat-completions server on loopback: it returns scripted answers and records the requests.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

/// The answer to one request. After the last scripted answer, the server answers `Hello`.
#[derive(Debug, Clone)]
pub enum Answer {
    /// These tokens, a finish reason, and a usage of 7 prompt tokens and one completion token each.
    Tokens(Vec<&'static str>),
    /// These tokens, with this finish reason.
    Finish(Vec<&'static str>, &'static str),
    /// These tokens; then `!` after the test calls [`Upstream::resume`], unless the connection is closed first.
    Pause(Vec<&'static str>),
    /// These tokens, then calls of these functions with these arguments, in fragments as OpenAI sends them.
    Calls(Vec<&'static str>, Vec<(&'static str, &'static str)>),
    /// These tokens, then a broken connection.
    Disconnect(Vec<&'static str>),
    /// A status, headers and a JSON body.
    Status(u16, Vec<(&'static str, &'static str)>, Value),
    /// These bytes as an event stream.
    Raw(&'static str),
    /// A body with this content type.
    Body(&'static str, String),
    /// These bytes as an event stream that stays open until the connection is closed.
    Hang(&'static str),
    /// This answer, after the test calls [`Upstream::resume`].
    Held(Box<Answer>),
}

#[derive(Debug)]
struct Script {
    answers: Mutex<VecDeque<Answer>>,
    requests: Mutex<Vec<Value>>,
    keys: Mutex<Vec<Option<String>>>,
    /// The entries of the list of models, or the status of a response without one.
    models: Mutex<Result<Value, u16>>,
    requested: Notify,
    resumed: Semaphore,
    disconnected: Notify,
}

/// The server; it ends with the test's runtime.
#[derive(Debug, Clone)]
pub struct Upstream {
    pub url: String,
    script: Arc<Script>,
}

impl Upstream {
    pub async fn start() -> Self {
        Self::scripted([]).await
    }

    pub async fn scripted(answers: impl IntoIterator<Item = Answer>) -> Self {
        let script = Arc::new(Script {
            answers: Mutex::new(answers.into_iter().collect()),
            requests: Mutex::default(),
            keys: Mutex::default(),
            models: Mutex::new(Ok(json!([
                {"id": "small", "object": "model", "created": 1, "owned_by": "us"},
                {"id": "org/large", "object": "model", "created": 2, "owned_by": "us"},
            ]))),
            requested: Notify::new(),
            resumed: Semaphore::new(0),
            disconnected: Notify::new(),
        });
        let router = Router::new()
            .route("/v1/chat/completions", post(complete))
            .route("/v1/embeddings", post(complete))
            .route("/v1/models", get(models))
            .with_state(script.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, script }
    }

    /// Adds answers to those that are left.
    pub fn then(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script.answers.lock().unwrap().extend(answers);
    }

    /// Resumes one paused or held answer.
    pub fn resume(&self) {
        self.script.resumed.add_permits(1);
    }

    /// Waits until it has received this many requests.
    pub async fn wait_for_requests(&self, times: usize) {
        loop {
            let notified = self.script.requested.notified();
            if self.script.requests.lock().unwrap().len() >= times {
                return;
            }
            notified.await;
        }
    }

    /// Waits until the connection of a paused answer is closed.
    pub async fn wait_for_disconnect(&self) {
        self.script.disconnected.notified().await;
    }

    /// Replaces the list of models by these names.
    pub fn list_models(&self, names: &[&str]) {
        self.set_models(names.iter().map(|name| json!({"id": name})).collect());
    }

    /// Replaces the entries of the list of models.
    pub fn set_models(&self, entries: Value) {
        *self.script.models.lock().unwrap() = Ok(entries);
    }

    /// Answers requests for the list of models with this status.
    pub fn reject_listing(&self, status: u16) {
        *self.script.models.lock().unwrap() = Err(status);
    }

    pub fn requests(&self) -> Vec<Value> {
        self.script.requests.lock().unwrap().clone()
    }

    pub fn keys(&self) -> Vec<Option<String>> {
        self.script.keys.lock().unwrap().clone()
    }
}

async fn models(State(script): State<Arc<Script>>) -> Response {
    match script.models.lock().unwrap().clone() {
        Ok(models) => axum::Json(json!({"object": "list", "data": models})).into_response(),
        Err(status) => StatusCode::from_u16(status).unwrap().into_response(),
    }
}

async fn complete(State(script): State<Arc<Script>>, headers: HeaderMap, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let streamed = request["stream"] == true;
    script.requests.lock().unwrap().push(request);
    let key = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    script.keys.lock().unwrap().push(key);
    script.requested.notify_waiters();
    let mut answer = script.answers.lock().unwrap().pop_front().unwrap_or(Answer::Tokens(vec!["Hello"]));
    while let Answer::Held(held) = answer {
        script.resumed.acquire().await.unwrap().forget();
        answer = *held;
    }
    match answer {
        Answer::Tokens(tokens) if !streamed => completion(&tokens),
        Answer::Tokens(tokens) => events(&frames(&tokens, Some("stop"))),
        Answer::Finish(tokens, reason) => events(&frames(&tokens, Some(reason))),
        Answer::Calls(tokens, calls) => events(&call_frames(&tokens, &calls)),
        Answer::Raw(text) => events(&[text.to_owned()]),
        Answer::Body(content_type, body) => ([("content-type", content_type)], body).into_response(),
        Answer::Hang(text) => hang(script, text),
        Answer::Held(_) => unreachable!("unwrapped above"),
        Answer::Disconnect(tokens) => disconnect(frames(&tokens, None)),
        Answer::Pause(tokens) => pause(script, frames(&tokens, None)),
        Answer::Status(status, headers, body) => {
            let mut response = (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response();
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        }
    }
}

fn chunk(delta: &Value, finish: Option<&str>) -> String {
    let chunk = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
    format!("data: {chunk}\n\n")
}

fn frames(tokens: &[&str], finish: Option<&str>) -> Vec<String> {
    let mut frames = vec![chunk(&json!({"role": "assistant", "content": ""}), None)];
    frames.extend(tokens.iter().map(|token| chunk(&json!({"content": token}), None)));
    if let Some(reason) = finish {
        frames.push(chunk(&json!({}), Some(reason)));
        let usage = json!({"prompt_tokens": 7, "completion_tokens": tokens.len(), "total_tokens": 7 + tokens.len()});
        frames.push(format!("data: {}\n\n", json!({"id": "chatcmpl-1", "choices": [], "usage": usage})));
        frames.push("data: [DONE]\n\n".to_owned());
    }
    frames
}

/// IDs are `up_0`, `up_1`, … in each turn; arguments are sent in fragments of four bytes.
fn call_frames(tokens: &[&str], calls: &[(&str, &str)]) -> Vec<String> {
    let mut all = frames(tokens, None);
    for (index, (name, arguments)) in calls.iter().enumerate() {
        let call = |id: Option<String>, name: Option<&str>, arguments: &str| {
            let mut call = json!({"index": index, "function": {"arguments": arguments}});
            if let (Some(id), Some(name)) = (id, name) {
                call["id"] = json!(id);
                call["type"] = json!("function");
                call["function"]["name"] = json!(name);
            }
            chunk(&json!({"tool_calls": [call]}), None)
        };
        all.push(call(Some(format!("up_{index}")), Some(name), ""));
        let pieces = arguments.as_bytes().chunks(4).map(|piece| std::str::from_utf8(piece).unwrap());
        all.extend(pieces.map(|piece| call(None, None, piece)));
    }
    all.push(chunk(&json!({}), Some("tool_calls")));
    let usage = json!({"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30});
    all.push(format!("data: {}\n\n", json!({"id": "chatcmpl-1", "choices": [], "usage": usage})));
    all.push("data: [DONE]\n\n".to_owned());
    all
}

fn events(frames: &[String]) -> Response {
    ([("content-type", "text/event-stream")], frames.concat()).into_response()
}

fn stream(frames: impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static) -> Response {
    ([("content-type", "text/event-stream")], Body::from_stream(frames)).into_response()
}

fn disconnect(frames: Vec<String>) -> Response {
    stream(async_stream::stream! {
        yield Ok(Bytes::from(frames.concat()));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        yield Err(std::io::Error::other("scripted disconnect"));
    })
}

/// Notifies the script if the connection is closed before the end of the answer.
struct DisconnectGuard(Option<Arc<Script>>);

impl Drop for DisconnectGuard {
    fn drop(&mut self) {
        if let Some(script) = &self.0 {
            script.disconnected.notify_one();
        }
    }
}

fn pause(script: Arc<Script>, first: Vec<String>) -> Response {
    stream(async_stream::stream! {
        let mut guard = DisconnectGuard(Some(script.clone()));
        yield Ok::<_, std::io::Error>(Bytes::from(first.concat()));
        script.resumed.acquire().await.unwrap().forget();
        yield Ok(Bytes::from(frames(&["!"], Some("stop"))[1..].concat()));
        guard.0.take();
    })
}

fn hang(script: Arc<Script>, text: &'static str) -> Response {
    stream(async_stream::stream! {
        let _guard = DisconnectGuard(Some(script));
        yield Ok::<_, std::io::Error>(Bytes::from(text));
        std::future::pending::<()>().await;
    })
}

fn completion(tokens: &[&str]) -> Response {
    let text = tokens.concat();
    axum::Json(json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "refusal": null},
                     "finish_reason": "stop", "logprobs": null}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}}))
    .into_response()
}
