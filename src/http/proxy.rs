//! `POST /v1/chat/completions`\
//! `POST /v1/embeddings`
//!
//! Forwarded to the model's server, so that an application needs only one base URL. Only `model` is read.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt as _;
use schemars::SchemaGenerator;
use serde_json::{Value, json};

use super::error::Error;
use super::extract::{Object, Params};
use super::routes::{Routes, operation};
use super::state::App;
use crate::api;
use crate::api::error::Kind;
use crate::api::rule::{At, Rule as _, missing, required, string};
use crate::llm::{self, Endpoint};

/// Maximum length of a model name, in characters.
const MODEL_CHARS_MAX: usize = 256;

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

async fn create_chat_completion(app: State<App>, params: Params, body: Object) -> Result<Response, Error> {
    forward(app, Endpoint::ChatCompletions, &params, body).await
}

async fn create_embedding(app: State<App>, params: Params, body: Object) -> Result<Response, Error> {
    forward(app, Endpoint::Embeddings, &params, body).await
}

/// Forwards the request to the model's server and returns its response. An alias is replaced. A deployment in an Azure path
/// overrides `model`.
async fn forward(
    State(app): State<App>,
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
    let route = app.models.route(&name).await;
    members.insert("model".to_owned(), Value::String(route.model));
    let open_response = app.drain.register();
    let proxied = tokio::select! {
        biased;
        () = app.drain.stopped() => return Err(stopping().into()),
        proxied = route.server.proxy(endpoint, members) => proxied?,
    };
    let is_stream = proxied.is_stream;
    let mut body = proxied.body;
    let drain = app.drain.clone();
    let bytes = async_stream::stream! {
        let _open_response = open_response;
        loop {
            tokio::select! {
                biased;
                () = drain.stopped() => {
                    if is_stream {
                        yield Ok(last_frames("The server is stopping; this stream cannot continue."));
                    } else {
                        yield Err(llm::Error::Unavailable("The server is stopping.".to_owned()));
                    }
                    return;
                }
                bytes = body.next() => match bytes {
                    Some(Err(error)) if is_stream => {
                        yield Ok(last_frames(&error.to_string()));
                        return;
                    }
                    Some(bytes) => yield bytes,
                    None => return,
                }
            }
        }
    };
    let mut response = Response::new(Body::from_stream(bytes));
    *response.status_mut() = StatusCode::from_u16(proxied.status).unwrap_or(StatusCode::BAD_GATEWAY);
    if let Some(kind) = proxied.content_type.and_then(|kind| HeaderValue::from_str(&kind).ok()) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    if let Some(after) = proxied.retry_after.and_then(|after| HeaderValue::from_str(&after).ok()) {
        response.headers_mut().insert(header::RETRY_AFTER, after);
    }
    Ok(response)
}

fn stopping() -> api::Error {
    api::Error::new(Kind::Unavailable, "The server is stopping and starts no new requests.")
}

/// Returns the end of a stream that cannot continue. Starts with an empty line, because an event may be partial.
fn last_frames(message: &str) -> Bytes {
    let error = api::Error::new(Kind::Unavailable, message);
    Bytes::from(format!("\n\ndata: {}\n\ndata: [DONE]\n\n", json!({"error": error.body()})))
}
