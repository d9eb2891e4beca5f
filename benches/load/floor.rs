//! The floor: a minimal server that does the least durable work per request, in a separate process.
//!
//! For a run, it inserts the thread and its message, inserts the run, forwards the bytes of the model server as they arrive,
//! and inserts the answer and updates the run before it forwards `[DONE]`. It validates nothing and has no keys, leases or
//! events.
//!
//! `GET  /ready`
//! `GET  /v1/assistants`
//! `POST /v1/assistants`
//! `POST /v1/threads`
//! `POST /v1/threads/runs`
//! `GET  /v1/threads/{thread_id}/runs/{run_id}`
//! `POST /v1/threads/{thread_id}/messages`
//! `GET  /v1/threads/{thread_id}/messages`
//! `GET  /v1/threads/{thread_id}/messages/{message_id}`

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream::try_unfold;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::floor_store::{FloorStore, Message, Role};
use crate::{Error, Result};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    database_url: String,
    #[arg(long)]
    upstream: SocketAddr,
}

struct Floor {
    store: FloorStore,
    http: Client<HttpConnector, Full<Bytes>>,
    completions_url: String,
}

type Shared = State<Arc<Floor>>;
type Reply<T> = Result<T, Failure>;

/// Serves until the process is killed.
pub async fn serve(args: &Args) -> Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let floor = Floor {
        store: FloorStore::open(&args.database_url).await?,
        http: Client::builder(TokioExecutor::new()).build(connector),
        completions_url: format!("http://{}/v1/chat/completions", args.upstream),
    };
    let router = Router::new()
        .route("/ready", get(|| async { StatusCode::OK }))
        .route("/v1/assistants", get(list_assistants).post(create_assistant))
        .route("/v1/threads", post(create_thread))
        .route("/v1/threads/runs", post(create_thread_and_run))
        .route("/v1/threads/{thread_id}/runs/{run_id}", get(get_run))
        .route("/v1/threads/{thread_id}/messages", get(list_messages).post(create_message))
        .route("/v1/threads/{thread_id}/messages/{message_id}", get(get_message))
        .with_state(Arc::new(floor));
    accept(TcpListener::bind(args.listen).await?, router).await;
    Ok(())
}

/// Serves a router on a listener, without delaying small writes.
pub async fn accept(listener: TcpListener, router: Router) {
    let listener = listener.tap_io(|stream| {
        // A connection that is already closed fails at its first read.
        let _ = stream.set_nodelay(true);
    });
    let _ = axum::serve(listener, router).await;
}

/// A failed request, returned as a 500 with the error text.
struct Failure(Error);

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0.to_string()).into_response()
    }
}

async fn list_assistants() -> Json<Value> {
    Json(json!({"object": "list", "data": []}))
}

#[derive(Deserialize)]
struct CreateAssistant {
    model: String,
}

/// Stores nothing: the ID of an assistant is its model.
async fn create_assistant(Json(request): Json<CreateAssistant>) -> Json<Value> {
    Json(json!({"id": request.model}))
}

async fn create_thread(State(floor): Shared) -> Reply<Json<Value>> {
    let thread_id = new_id("thread");
    floor.store.create_thread(&thread_id).await?;
    Ok(Json(json!({"id": thread_id})))
}

#[derive(Deserialize)]
struct CreateThreadAndRun {
    assistant_id: String,
    thread: CreateThread,
    #[serde(default)]
    stream: bool,
}

#[derive(Deserialize)]
struct CreateThread {
    messages: Vec<CreateMessage>,
}

#[derive(Deserialize)]
struct CreateMessage {
    content: String,
}

/// A started run.
struct StartedRun {
    floor: Arc<Floor>,
    id: String,
    thread_id: String,
    model_answer: Incoming,
}

async fn create_thread_and_run(State(floor): Shared, Json(request): Json<CreateThreadAndRun>) -> Reply<Response> {
    let [CreateMessage { content }] = &request.thread.messages[..] else {
        return Err("the floor supports exactly one message".into());
    };
    let (id, thread_id) = (new_id("run"), new_id("thread"));
    floor.store.create_thread_and_message(&thread_id, &Message::new(Role::User, content.clone())).await?;
    floor.store.start_run(&id, &thread_id).await?;
    let model_answer = floor.call_model(&request.assistant_id, content).await?;
    let body = json!({"id": id, "thread_id": thread_id, "status": "in_progress"});
    let run = StartedRun { floor, id, thread_id, model_answer };
    if request.stream {
        return Ok(([(CONTENT_TYPE, "text/event-stream; charset=utf-8")], run.into_stream()).into_response());
    }
    tokio::spawn(async move {
        if let Err(error) = run.finish().await {
            eprintln!("floor: {error}");
        }
    });
    Ok(Json(body).into_response())
}

impl Floor {
    async fn call_model(&self, model: &str, content: &str) -> Result<Incoming> {
        let body = json!({
            "model": model, "stream": true, "stream_options": {"include_usage": true},
            "messages": [{"role": "user", "content": content}]
        });
        let request = hyper::Request::post(&self.completions_url)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))?;
        let response = self.http.request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(format!("the model server returned {}", response.status()).into());
        }
        Ok(response.into_body())
    }
}

impl StartedRun {
    /// Forwards the bytes of the model server as they arrive. Forwards the last ones after the end of the run is durable.
    fn into_stream(self) -> Body {
        Body::from_stream(try_unfold((self, Answer::default()), |(mut run, mut answer)| async move {
            let bytes = run.read(&mut answer).await?;
            Ok::<_, Error>(bytes.map(|bytes| (bytes, (run, answer))))
        }))
    }

    /// Reads the whole answer of the model.
    async fn finish(mut self) -> Result<()> {
        let mut answer = Answer::default();
        while self.read(&mut answer).await?.is_some() {}
        Ok(())
    }

    async fn read(&mut self, answer: &mut Answer) -> Result<Option<Bytes>> {
        let Some(frame) = self.model_answer.frame().await else { return Ok(None) };
        let bytes = frame?.into_data().unwrap_or_default();
        answer.read(&bytes)?;
        if answer.done {
            let message = Message::new(Role::Assistant, std::mem::take(&mut answer.text));
            self.floor.store.end_run(&self.id, &self.thread_id, &message).await?;
            answer.done = false;
        }
        Ok(Some(bytes))
    }
}

/// The part of a streamed completion that was read.
#[derive(Default)]
struct Answer {
    text: String,
    done: bool,
    /// The start of an incomplete line.
    unread: Vec<u8>,
}

#[derive(Deserialize)]
struct Chunk {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Delta,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

impl Answer {
    fn read(&mut self, bytes: &[u8]) -> Result<()> {
        self.unread.extend_from_slice(bytes);
        let Some(end) = self.unread.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        let rest = self.unread.split_off(end);
        for line in self.unread.split(|byte| *byte == b'\n') {
            match line.strip_prefix(b"data: ") {
                Some(b"[DONE]") => self.done = true,
                Some(chunk) => {
                    let chunk: Chunk = serde_json::from_slice(chunk)?;
                    self.text.extend(chunk.choices.into_iter().filter_map(|choice| choice.delta.content));
                }
                None => {}
            }
        }
        self.unread = rest;
        Ok(())
    }
}

async fn get_run(State(floor): Shared, Path((thread_id, run_id)): Path<(String, String)>) -> Reply<Json<Value>> {
    let status = floor.store.get_run_status(&thread_id, &run_id).await?;
    Ok(Json(json!({"id": run_id, "thread_id": thread_id, "status": status})))
}

async fn create_message(
    State(floor): Shared,
    Path(thread_id): Path<String>,
    Json(request): Json<CreateMessage>,
) -> Reply<Json<Value>> {
    let message = Message::new(Role::User, request.content);
    floor.store.create_message(&thread_id, &message).await?;
    Ok(Json(message_object(&thread_id, &message)))
}

async fn get_message(State(floor): Shared, Path((thread_id, id)): Path<(String, String)>) -> Reply<Json<Value>> {
    let message = floor.store.get_message(&thread_id, &id).await?;
    Ok(Json(message_object(&thread_id, &message)))
}

async fn list_messages(State(floor): Shared, Path(thread_id): Path<String>) -> Reply<Json<Value>> {
    let messages = floor.store.list_newest_messages(&thread_id).await?;
    let messages: Vec<_> = messages.iter().map(|message| message_object(&thread_id, message)).collect();
    Ok(Json(json!({"object": "list", "data": messages})))
}

fn message_object(thread_id: &str, message: &Message) -> Value {
    json!({
        "id": message.id, "object": "thread.message", "created_at": 1_700_000_000, "thread_id": thread_id,
        "role": message.role, "content": [{"type": "text", "text": {"value": message.text, "annotations": []}}]
    })
}

/// Returns a new, time-ordered ID.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", Uuid::now_v7().simple())
}
