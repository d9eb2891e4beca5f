//! A chat-completions server that plays the script in the last user message, and records its answers.
//!
//! Each answer has a unique name (`A1`, `A2`, …), which is part of each of its words and calls, so that a mix of two answers
//! is detected. Usage is counted in words.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The answers of the model in a run. The script is in the user message of the run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Script {
    /// Identifies the run.
    pub tag: String,
    /// One entry per model call.
    pub turns: Vec<Turn>,
}

/// One model call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Turn {
    pub words: usize,
    /// Duration of the words, in milliseconds.
    pub duration_ms: u64,
    /// Number of function calls after the words.
    pub calls: usize,
    /// The built-in tool that is called after the words instead.
    pub tool: Option<BuiltIn>,
}

/// A built-in tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BuiltIn {
    FileSearch,
    /// The code counts the calls of its thread in a file, waits, and prints the name of the answer and the count.
    Code,
}

impl Script {
    /// Returns the text of the message with the script.
    pub fn message(&self) -> String {
        format!("SCRIPT {}", serde_json::to_string(self).expect("a script is JSON"))
    }

    fn read(message: &Value) -> Option<Self> {
        let text = message["content"].as_str()?;
        serde_json::from_str(text.strip_prefix("SCRIPT ")?).ok()
    }
}

/// An answer that was started.
#[derive(Debug, Clone)]
pub struct Answer {
    pub name: String,
    pub words: usize,
    pub calls: usize,
    pub tool: Option<BuiltIn>,
    pub prompt_tokens: u64,
    /// Whether the whole answer was sent.
    pub is_complete: bool,
}

impl Answer {
    pub fn word(&self, index: usize) -> String {
        format!("{}.{index}", self.name)
    }

    /// Returns the code that it runs, if it runs code.
    pub fn code(&self) -> String {
        format!(
            "with open('count', 'a') as file: file.write('x')\nimport time; time.sleep(0.4)\nprint('{}', len(open('count').read()))",
            self.name
        )
    }

    pub fn total_tokens(&self) -> u64 {
        self.prompt_tokens + (self.words + self.calls) as u64
    }
}

/// Called with the tag of each request before it is answered.
type Hook = Box<dyn Fn(&str) + Send + Sync>;

#[derive(Default)]
struct Inner {
    answers: Mutex<HashMap<(String, usize), Vec<Answer>>>,
    count: Mutex<usize>,
    hook: Mutex<Option<Hook>>,
    /// How often each text was embedded.
    embedded: Mutex<HashMap<String, usize>>,
}

/// The server. Runs as long as the runtime.
#[derive(Clone)]
pub struct Upstream {
    pub url: String,
    inner: Arc<Inner>,
}

impl Upstream {
    pub async fn start() -> Self {
        let inner = Arc::new(Inner::default());
        let router = Router::new()
            .route("/v1/chat/completions", post(complete))
            .route("/v1/embeddings", post(embed))
            .route("/v1/models", get(async || axum::Json(json!({"object": "list", "data": [{"id": "scripted"}]}))))
            .layer(DefaultBodyLimit::disable())
            .with_state(inner.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}/v1", listener.local_addr().expect("it is bound"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, inner }
    }

    /// Calls `hook` with the tag of each further request.
    pub fn on_request(&self, hook: impl Fn(&str) + Send + Sync + 'static) {
        *lock(&self.inner.hook) = Some(Box::new(hook));
    }

    /// Returns the answers to a model call, in the order in which they were started.
    pub fn answers(&self, tag: &str, turn: usize) -> Vec<Answer> {
        lock(&self.inner.answers).get(&(tag.to_owned(), turn)).cloned().unwrap_or_default()
    }

    /// Returns how many texts were embedded again.
    pub fn embedded_again(&self) -> usize {
        lock(&self.inner.embedded).values().map(|times| times - 1).sum()
    }

    /// Returns the number of repeated model calls.
    pub fn repeated(&self) -> usize {
        lock(&self.inner.answers).values().map(|answers| answers.len() - 1).sum()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn complete(State(inner): State<Arc<Inner>>, axum::Json(request): axum::Json<Value>) -> Response {
    let messages = request["messages"].as_array().expect("a request has messages");
    // There is none if the thread was deleted in the meantime.
    let last_user = messages.iter().rposition(|message| message["role"] == "user").unwrap_or_default();
    let Some(script) = messages.get(last_user).and_then(Script::read) else {
        return axum::http::StatusCode::BAD_REQUEST.into_response();
    };
    let index = messages[last_user..].iter().filter(|message| message["tool_calls"].is_array()).count();
    if let Some(hook) = lock(&inner.hook).as_ref() {
        hook(&script.tag);
    }
    let Some(turn) = script.turns.get(index).cloned() else {
        return axum::http::StatusCode::BAD_REQUEST.into_response();
    };
    let name = {
        let mut count = lock(&inner.count);
        *count += 1;
        format!("A{count}")
    };
    let prompt_tokens = messages.len() as u64;
    let calls = if turn.tool.is_some() { 1 } else { turn.calls };
    let answer = Answer { name, words: turn.words, calls, tool: turn.tool, prompt_tokens, is_complete: false };
    let key = (script.tag, index);
    lock(&inner.answers).entry(key.clone()).or_default().push(answer.clone());
    let body = Body::from_stream(play(inner, key, answer, turn.duration_ms));
    ([("content-type", "text/event-stream")], body).into_response()
}

fn play(
    inner: Arc<Inner>,
    key: (String, usize),
    answer: Answer,
    duration_ms: u64,
) -> impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> + Send {
    async_stream::stream! {
        let pause = Duration::from_millis(duration_ms / answer.words.max(1) as u64);
        for index in 0..answer.words {
            yield chunk(&json!({"content": format!("{} ", answer.word(index))}), None);
            tokio::time::sleep(pause).await;
        }
        for index in 0..answer.calls {
            let (name, arguments) = match answer.tool {
                Some(BuiltIn::FileSearch) => ("file_search".to_owned(), json!({"query": "common"})),
                Some(BuiltIn::Code) => ("python".to_owned(), json!({"code": answer.code()})),
                None => (format!("tool_{index}"), json!({"answer": answer.name, "call": index})),
            };
            let arguments = arguments.to_string();
            let function = json!({"name": name, "arguments": ""});
            let id = format!("up_{}_{index}", answer.name);
            yield chunk(&json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]}), None);
            let (first, second) = arguments.split_at(arguments.len() / 2);
            for piece in [first, second] {
                yield chunk(&json!({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}), None);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        yield chunk(&json!({}), Some(if answer.calls == 0 { "stop" } else { "tool_calls" }));
        if let Some(answer) = lock(&inner.answers).get_mut(&key)
            .and_then(|answers| answers.iter_mut().find(|other| other.name == answer.name))
        {
            answer.is_complete = true;
        }
        let completion_tokens = answer.words + answer.calls;
        let usage = json!({"prompt_tokens": answer.prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": answer.total_tokens()});
        yield Ok(Bytes::from(format!("data: {}\n\ndata: [DONE]\n\n", json!({"choices": [], "usage": usage}))));
    }
}

/// Returns embeddings by the letters of the texts.
async fn embed(State(inner): State<Arc<Inner>>, axum::Json(request): axum::Json<Value>) -> Response {
    let texts = match &request["input"] {
        Value::String(text) => vec![text.clone()],
        texts => texts.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect(),
    };
    let data: Vec<Value> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            *lock(&inner.embedded).entry(text.clone()).or_default() += 1;
            let mut vector = [0.0_f32; 32];
            text.bytes().for_each(|byte| vector[usize::from(byte % 32)] += 1.0);
            json!({"object": "embedding", "index": index, "embedding": vector})
        })
        .collect();
    let usage = json!({"prompt_tokens": texts.len(), "total_tokens": texts.len()});
    axum::Json(json!({"object": "list", "data": data, "model": request["model"], "usage": usage})).into_response()
}

#[expect(clippy::unnecessary_wraps, reason = "an item of a body")]
fn chunk(delta: &Value, finish_reason: Option<&str>) -> Result<Bytes, std::io::Error> {
    let chunk = json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]});
    Ok(Bytes::from(format!("data: {chunk}\n\n")))
}
