//! `POST /v1/chat/completions`\
//! `POST /v1/embeddings`
//!
//! Forwarded to the model's server, so that an application needs only one base URL. Only `model` is read. The usage is
//! recorded in the ledger before the end of the response is sent.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};
use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::drain::Drain;
use super::error::Error;
use super::extract::{Object, Params};
use super::layers::auth::Caller;
use super::routes::{Routes, operation};
use super::state::App;
use crate::access::{self, Reservation};
use crate::api;
use crate::api::error::Kind;
use crate::api::organization::usage::{CallKind, ModelCall};
use crate::api::rule::{At, Rule as _, missing, required, string};
use crate::api::usage::Usage;
use crate::llm::forwarded::UsageReader;
use crate::llm::tokens::PromptSample;
use crate::llm::{self, Endpoint, Proxied};
use crate::metrics::StreamKind;
use crate::store::{self, Store};

/// Maximum length of a model name, in characters.
const MODEL_CHARS_MAX: usize = 256;
/// Members of a request that limit its output tokens.
const OUTPUT_MAX_MEMBERS: [&str; 2] = ["max_completion_tokens", "max_tokens"];
/// How long a request waits while other calls of its project may reach a limit of tokens.
const RESERVE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pauses before the call is recorded again while the database is unavailable. The response ends afterwards in any case.
const RECORD_PAUSES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_millis(1_500)];

pub(super) fn routes() -> Routes {
    let create =
        operation("createChatCompletion", "Forwards a chat completion to the model's server; only `model` is read.");
    let embed =
        operation("createEmbedding", "Forwards a request for embeddings to the model's server; only `model` is read.");
    Routes::of("Forwarded to model servers")
        .post("/v1/chat/completions", create.request_schema(body_schema).streaming(), create_chat_completion)
        .post("/v1/embeddings", embed.request_schema(body_schema), create_embedding)
}

fn body_schema(schemas: &mut SchemaGenerator) -> Value {
    let model = string(1, MODEL_CHARS_MAX).schema(schemas);
    json!({"type": "object", "properties": {"model": model}, "required": ["model"]})
}

async fn create_chat_completion(
    app: State<App>,
    caller: Caller,
    params: Params,
    body: Object,
) -> Result<Response, Error> {
    forward(app, &caller, Endpoint::ChatCompletions, &params, body).await
}

async fn create_embedding(app: State<App>, caller: Caller, params: Params, body: Object) -> Result<Response, Error> {
    forward(app, &caller, Endpoint::Embeddings, &params, body).await
}

/// Forwards the request to the model's server and returns its response. An alias is replaced. A deployment in an Azure path
/// overrides `model`.
async fn forward(
    State(app): State<App>,
    caller: &Caller,
    endpoint: Endpoint,
    params: &Params,
    Object(mut members): Object,
) -> Result<Response, Error> {
    if app.drain.is_draining() {
        return Err(stopping().into());
    }
    if let Some(deployment) = params.get("deployment") {
        members.insert("model".to_owned(), Value::String(deployment.to_owned()));
    }
    if !members.contains_key("model") {
        return Err(missing(&At::Member(&At::Root, "model")).into());
    }
    let name = required(&mut members, "model", &string(1, MODEL_CHARS_MAX), &At::Root)?;
    let route = match endpoint {
        Endpoint::ChatCompletions => app.models.route(&name).await,
        Endpoint::Embeddings => app.models.route_embeddings(&name).await,
    };
    members.insert("model".to_owned(), Value::String(route.model));
    let open_response = app.drain.register();
    let prompt = PromptSample::of_forwarded(&members);
    let reservation = tokio::select! {
        biased;
        () = app.drain.stopped() => return Err(stopping().into()),
        reservation = reserve_tokens(&app, caller, &prompt, &members) => reservation?,
    };
    let proxied = tokio::select! {
        biased;
        () = app.drain.stopped() => return Err(stopping().into()),
        proxied = route.server.proxy(endpoint, members) => proxied?,
    };
    let Proxied { status, content_type, retry_after, is_stream, usage_was_added, body } = proxied;
    let recorder = (status < 400).then(|| {
        let reader =
            if is_stream { UsageReader::of_stream(endpoint, usage_was_added) } else { UsageReader::of_json(endpoint) };
        Recorder::new(&app, new_call(caller, endpoint, name), prompt, reader, reservation)
    });
    let pieces = until_stopped(body, is_stream, app.drain.clone());
    let mut open_stream = is_stream.then(|| app.metrics.stream_opened(StreamKind::Forwarded));
    let pieces = async_stream::stream! {
        let _open_response = open_response;
        let mut pieces = std::pin::pin!(recorded(pieces, recorder, is_stream));
        while let Some(piece) = pieces.next().await {
            yield piece;
        }
        if let Some(open_stream) = &mut open_stream {
            open_stream.complete();
        }
    };
    // An empty part would be the end of a chunked body.
    let bytes = pieces.map(|piece| piece.map(Piece::into_bytes));
    let bytes = bytes.filter(|bytes| std::future::ready(!bytes.as_ref().is_ok_and(Bytes::is_empty)));
    let mut response = Response::new(Body::from_stream(bytes));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    if let Some(kind) = content_type.and_then(|kind| HeaderValue::from_str(&kind).ok()) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    if let Some(after) = retry_after.and_then(|after| HeaderValue::from_str(&after).ok()) {
        response.headers_mut().insert(header::RETRY_AFTER, after);
    }
    Ok(response)
}

/// Reserves the tokens of a request, if its project has limits of tokens. Waits while other calls of the project may reach a
/// limit.
async fn reserve_tokens(
    app: &App,
    caller: &Caller,
    prompt: &PromptSample,
    members: &Map<String, Value>,
) -> Result<Option<Reservation>, Error> {
    if !app.limits.of(&caller.scope).await?.limits_tokens() {
        return Ok(None);
    }
    let sample = prompt.clone();
    let prompt = tokio::task::spawn_blocking(move || sample.estimate()).await.unwrap_or_default();
    let id = format!("fwd_{}", Uuid::now_v7().simple());
    let output_max = OUTPUT_MAX_MEMBERS.iter().find_map(|name| members.get(*name)?.as_u64());
    let call = access::Call { id: &id, scope: &caller.scope, prompt: prompt as u64, output_max };
    let Ok(reserved) = tokio::time::timeout(RESERVE_TIMEOUT, app.tokens.reserve(&call)).await else {
        let message = "Rate limit reached for tokens of the project: other calls that have not ended may reach the limit. \
                       Please try again in 1s.";
        return Err(api::Error::new(Kind::TokensLimited, message).code("rate_limit_exceeded").retry_after(1).into());
    };
    reserved?.map_err(|reached| reached.error().into())
}

/// A part of a response.
enum Piece {
    /// Bytes of the model server.
    Answer(Bytes),
    /// Our end of a stream that cannot continue.
    Broken(Bytes),
}

impl Piece {
    fn into_bytes(self) -> Bytes {
        match self {
            Self::Answer(bytes) | Self::Broken(bytes) => bytes,
        }
    }
}

/// Returns the parts of a body until this server stops. A stream that breaks ends with an error event.
fn until_stopped(
    mut body: BoxStream<'static, Result<Bytes, llm::Error>>,
    is_stream: bool,
    drain: Drain,
) -> impl Stream<Item = Result<Piece, llm::Error>> {
    async_stream::stream! {
        loop {
            tokio::select! {
                biased;
                () = drain.stopped() => {
                    if is_stream {
                        yield Ok(Piece::Broken(last_frames("The server is stopping; this stream cannot continue.")));
                    } else {
                        yield Err(llm::Error::Unavailable("The server is stopping.".into()));
                    }
                    return;
                }
                bytes = body.next() => match bytes {
                    Some(Err(error)) if is_stream => {
                        yield Ok(Piece::Broken(last_frames(&error.to_string())));
                        return;
                    }
                    Some(bytes) => yield bytes.map(Piece::Answer),
                    None => return,
                }
            }
        }
    }
}

/// Returns the parts of a response, and records its call before the last of them.
fn recorded(
    pieces: impl Stream<Item = Result<Piece, llm::Error>>,
    recorder: Option<Recorder>,
    is_stream: bool,
) -> impl Stream<Item = Result<Piece, llm::Error>> {
    async_stream::stream! {
        let mut pieces = std::pin::pin!(pieces);
        let Some(mut recorder) = recorder else {
            while let Some(piece) = pieces.next().await {
                yield piece;
            }
            return;
        };
        // The last bytes that are not part of a stream are held until the call is recorded.
        let mut held = Bytes::new();
        let mut end = None;
        while let Some(piece) = pieces.next().await {
            let Ok(Piece::Answer(bytes)) = piece else {
                end = Some(piece);
                break;
            };
            let bytes = recorder.reader.push(bytes);
            if recorder.reader.has_ended() {
                recorder.record(true).await;
            }
            yield Ok(Piece::Answer(if is_stream { bytes } else { std::mem::replace(&mut held, bytes) }));
        }
        let rest = recorder.reader.end();
        recorder.record(end.is_none()).await;
        yield Ok(Piece::Answer(if is_stream { rest } else { held }));
        if let Some(end) = end {
            yield end;
        }
    }
}

/// Returns the call of a request, before its tokens are known.
fn new_call(caller: &Caller, endpoint: Endpoint, model: String) -> ModelCall {
    ModelCall {
        kind: match endpoint {
            Endpoint::ChatCompletions => CallKind::Completions,
            Endpoint::Embeddings => CallKind::Embeddings,
        },
        scope: caller.scope.clone(),
        api_key_id: caller.api_key_id.clone(),
        origin: None,
        model,
        input_tokens: 0,
        cached_tokens: 0,
        output_tokens: 0,
        stood: false,
    }
}

/// Records the call of a request once: when its response ends, or when the client disconnects.
struct Recorder {
    reader: UsageReader,
    prompt: PromptSample,
    database: Arc<dyn Store>,
    drain: Drain,
    /// The call, until it is recorded.
    call: Option<ModelCall>,
    reservation: Option<Reservation>,
}

impl Recorder {
    fn new(
        app: &App,
        call: ModelCall,
        prompt: PromptSample,
        reader: UsageReader,
        reservation: Option<Reservation>,
    ) -> Self {
        let (database, drain) = (app.database.clone(), app.drain.clone());
        Self { reader, prompt, database, drain, call: Some(call), reservation }
    }

    /// Records the call, unless it is recorded already. `stood` says whether the client is sent the whole answer.
    async fn record(&mut self, stood: bool) {
        if let Some(recording) = self.recording(stood) {
            // A task, because a client that disconnects now does not undo it.
            let (done, is_done) = tokio::sync::oneshot::channel();
            self.drain.spawn(async move {
                recording.await;
                let _ = done.send(());
            });
            let _ = is_done.await;
        }
    }

    /// Returns the future that records the call. `None` if it is recorded already, or if the model wrote nothing.
    fn recording(&mut self, stood: bool) -> Option<impl Future<Output = ()> + Send + use<>> {
        let has_content = self.reader.has_content();
        let call = self.call.take()?;
        // Embeddings are not read, but a whole response has some.
        let may_be_unread = stood && call.kind == CallKind::Embeddings;
        if !has_content && !may_be_unread {
            return None;
        }
        let (reported, written, prompt) = (self.reader.usage(), self.reader.written().clone(), self.prompt.clone());
        let database = self.database.clone();
        let reservation = self.reservation.take();
        Some(async move {
            let _reservation = reservation;
            let usage = match reported {
                Some(usage) => usage,
                // Counting takes a few milliseconds, and longer the first time.
                None => tokio::task::spawn_blocking(move || Usage::counted(prompt.estimate(), written.estimate()))
                    .await
                    .unwrap_or_default(),
            };
            let call = ModelCall {
                input_tokens: usage.prompt_tokens,
                cached_tokens: usage.prompt_token_details.cached_tokens,
                output_tokens: usage.completion_tokens,
                stood,
                ..call
            };
            record(&database, &call).await;
        })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(recording) = self.recording(false) {
            self.drain.spawn(recording);
        }
    }
}

async fn record(database: &Arc<dyn Store>, call: &ModelCall) {
    let mut pauses = RECORD_PAUSES.into_iter();
    while let Err(error) = database.record_call(call).await {
        if matches!(error, store::Error::Unavailable(_))
            && let Some(pause) = pauses.next()
        {
            tokio::time::sleep(pause).await;
            continue;
        }
        let tokens = call.input_tokens.saturating_add(call.output_tokens);
        let error = &error as &dyn std::error::Error;
        tracing::error!(error, model = call.model, tokens, "failed to record the usage of a forwarded request");
        return;
    }
}

fn stopping() -> api::Error {
    api::Error::new(Kind::Unavailable, "The server is stopping and starts no new requests.")
}

/// Returns the end of a stream that cannot continue. Starts with an empty line, because an event may be partial.
fn last_frames(message: &str) -> Bytes {
    let error = api::Error::new(Kind::Unavailable, message);
    Bytes::from(format!("\n\ndata: {}\n\ndata: [DONE]\n\n", json!({"error": error.body()})))
}
