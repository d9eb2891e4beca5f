//! A scripted chat-completions server on loopback: it says what a test tells it to, and remembers what it was asked.

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

/// What it answers to one request. After the last scripted answer it says `Hello`.
#[derive(Debug, Clone)]
pub enum Answer {
    /// These tokens, an end, and a usage of 7 read and one token written each.
    Words(Vec<&'static str>),
    /// These tokens with this finish reason.
    Finish(Vec<&'static str>, &'static str),
    /// These tokens; then it waits until the test says [`Upstream::go_on`] or the server hangs up, and says `!`.
    Pause(Vec<&'static str>),
    /// These tokens, then calls of these functions with these arguments, in fragments as OpenAI sends them.
    Calls(Vec<&'static str>, Vec<(&'static str, &'static str)>),
    /// These tokens, then the connection breaks.
    Cut(Vec<&'static str>),
    /// A status, headers and a JSON body.
    Status(u16, Vec<(&'static str, &'static str)>, Value),
    /// These bytes as an event stream.
    Raw(&'static str),
    /// These bytes as an event stream that does not end before the server hangs up.
    Hang(&'static str),
    /// This answer, once the script goes on.
    Held(Box<Answer>),
}

#[derive(Debug)]
struct Script {
    answers: Mutex<VecDeque<Answer>>,
    requests: Mutex<Vec<Value>>,
    keys: Mutex<Vec<Option<String>>>,
    asked: Notify,
    steps: Semaphore,
    left: Notify,
}

/// The server; it lives as long as the test's runtime.
#[derive(Debug, Clone)]
pub struct Upstream {
    pub url: String,
    script: Arc<Script>,
}

impl Upstream {
    pub async fn start() -> Self {
        Self::saying([]).await
    }

    pub async fn saying(answers: impl IntoIterator<Item = Answer>) -> Self {
        let script = Arc::new(Script {
            answers: Mutex::new(answers.into_iter().collect()),
            requests: Mutex::default(),
            keys: Mutex::default(),
            asked: Notify::new(),
            steps: Semaphore::new(0),
            left: Notify::new(),
        });
        let router = Router::new()
            .route("/v1/chat/completions", post(complete))
            .route("/v1/models", get(models))
            .with_state(script.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, script }
    }

    /// Lets one paused answer go on.
    pub fn go_on(&self) {
        self.script.steps.add_permits(1);
    }

    /// Waits until it has been asked this many times.
    pub async fn asked(&self, times: usize) {
        loop {
            let notified = self.script.asked.notified();
            if self.script.requests.lock().unwrap().len() >= times {
                return;
            }
            notified.await;
        }
    }

    /// Waits until a paused answer's connection was closed.
    pub async fn left(&self) {
        self.script.left.notified().await;
    }

    pub fn requests(&self) -> Vec<Value> {
        self.script.requests.lock().unwrap().clone()
    }

    pub fn keys(&self) -> Vec<Option<String>> {
        self.script.keys.lock().unwrap().clone()
    }
}

async fn models() -> impl IntoResponse {
    axum::Json(json!({"object": "list", "data": [
        {"id": "small", "object": "model", "created": 1, "owned_by": "us"},
        {"id": "org/large", "object": "model", "created": 2, "owned_by": "us"},
    ]}))
}

async fn complete(State(script): State<Arc<Script>>, headers: HeaderMap, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let streamed = request["stream"] == true;
    script.requests.lock().unwrap().push(request);
    let key = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    script.keys.lock().unwrap().push(key);
    script.asked.notify_waiters();
    let mut answer = script.answers.lock().unwrap().pop_front().unwrap_or(Answer::Words(vec!["Hello"]));
    while let Answer::Held(held) = answer {
        script.steps.acquire().await.unwrap().forget();
        answer = *held;
    }
    match answer {
        Answer::Words(words) if !streamed => whole(&words),
        Answer::Words(words) => events(&frames(&words, Some("stop"))),
        Answer::Finish(words, reason) => events(&frames(&words, Some(reason))),
        Answer::Calls(words, calls) => events(&call_frames(&words, &calls)),
        Answer::Raw(text) => events(&[text.to_owned()]),
        Answer::Hang(text) => hang(script, text),
        Answer::Held(_) => unreachable!("taken out above"),
        Answer::Cut(words) => cut(frames(&words, None)),
        Answer::Pause(words) => pause(script, frames(&words, None)),
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

fn frames(words: &[&str], finish: Option<&str>) -> Vec<String> {
    let mut frames = vec![chunk(&json!({"role": "assistant", "content": ""}), None)];
    frames.extend(words.iter().map(|word| chunk(&json!({"content": word}), None)));
    if let Some(reason) = finish {
        frames.push(chunk(&json!({}), Some(reason)));
        let usage = json!({"prompt_tokens": 7, "completion_tokens": words.len(), "total_tokens": 7 + words.len()});
        frames.push(format!("data: {}\n\n", json!({"id": "chatcmpl-1", "choices": [], "usage": usage})));
        frames.push("data: [DONE]\n\n".to_owned());
    }
    frames
}

/// Ids are `up_0`, `up_1`, … in each turn; arguments come in pieces of four bytes.
fn call_frames(words: &[&str], calls: &[(&str, &str)]) -> Vec<String> {
    let mut all = frames(words, None);
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

fn cut(frames: Vec<String>) -> Response {
    stream(async_stream::stream! {
        yield Ok(Bytes::from(frames.concat()));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        yield Err(std::io::Error::other("cut"));
    })
}

/// Tells the script when its connection is closed before it has ended.
struct Left(Option<Arc<Script>>);

impl Drop for Left {
    fn drop(&mut self) {
        if let Some(script) = &self.0 {
            script.left.notify_one();
        }
    }
}

fn pause(script: Arc<Script>, first: Vec<String>) -> Response {
    stream(async_stream::stream! {
        let mut left = Left(Some(script.clone()));
        yield Ok::<_, std::io::Error>(Bytes::from(first.concat()));
        script.steps.acquire().await.unwrap().forget();
        yield Ok(Bytes::from(frames(&["!"], Some("stop"))[1..].concat()));
        left.0.take();
    })
}

fn hang(script: Arc<Script>, text: &'static str) -> Response {
    stream(async_stream::stream! {
        let _left = Left(Some(script));
        yield Ok::<_, std::io::Error>(Bytes::from(text));
        std::future::pending::<()>().await;
    })
}

fn whole(words: &[&str]) -> Response {
    let text = words.concat();
    axum::Json(json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "refusal": null},
                     "finish_reason": "stop", "logprobs": null}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}}))
    .into_response()
}
