//! Middleware of all requests: request ID, duration, and log line.

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;
use tracing::Instrument;
use uuid::Uuid;

use super::auth::{Caller, PresentedKey, RateOfKeysExceeded};
use crate::api;
use crate::http::error::{Cause, Rejected, error_response};
use crate::http::routes::unprefixed;
use crate::http::state::{App, ClientAddress};

/// Maximum length of the reason of a rejection in the log, in characters.
const REASON_CHARS_MAX: usize = 300;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
const VERSION: HeaderName = HeaderName::from_static("openai-version");
const CONTENT_TYPE_OPTIONS: HeaderName = HeaderName::from_static("x-content-type-options");
/// Request headers that are echoed in the response.
const ECHOED: [HeaderName; 2] =
    [HeaderName::from_static("openai-organization"), HeaderName::from_static("openai-project")];

/// The ID of a request, which its response has in `x-request-id`.
#[derive(Debug, Clone)]
pub(in crate::http) struct RequestId(pub String);

/// Assigns a request ID, runs the request, and adds the headers of every response.
pub(in crate::http) async fn request(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = format!("req_{}", Uuid::now_v7().simple());
    let route = request.extensions().get::<MatchedPath>().map_or_else(String::new, |path| path.as_str().to_owned());
    let method = request.method().clone();
    let echoed: Vec<(HeaderName, HeaderValue)> = ECHOED
        .iter()
        .filter_map(|name| request.headers().get(name).map(|value| (name.clone(), value.clone())))
        .collect();
    let key = PresentedKey::of(request.headers());
    let address = request.extensions().get::<ClientAddress>().copied();
    let span = tracing::info_span!("request", request.id = %id);
    request.extensions_mut().insert(RequestId(id.clone()));

    let mut response = next.run(request).instrument(span.clone()).await;
    let _entered = span.enter();
    if let Some(Cause(cause)) = response.extensions_mut().remove::<Cause>() {
        // The response contains the ID, so each error is logged.
        tracing::error!(request.id = %id, error = &*cause as &dyn std::error::Error, %method, route, "request failed");
        response = error_response(&api::Error::server(&id)).into_response();
    }
    if let Some(rejected) = response.extensions_mut().remove::<Rejected>() {
        log_rejection(&rejected, &response, &key, address, (&method, &route));
    }
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::debug!(%method, route, status = response.status().as_u16(), duration_ms, "request");
    app.metrics.request_answered(method.as_str(), unprefixed(&route), response.status().as_u16(), began.elapsed());

    let headers = response.headers_mut();
    headers.extend(echoed);
    headers.insert(REQUEST_ID, HeaderValue::from_str(&id).expect("an ID is ASCII"));
    headers.insert(PROCESSING_MS, HeaderValue::from(duration_ms));
    headers.insert(VERSION, HeaderValue::from_static("2020-10-01"));
    headers.insert(CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response.map(Body::new)
}

/// Logs a request that was rejected with 401, 403 or 429. Repetitions are summed up.
fn log_rejection(
    rejected: &Rejected,
    response: &Response,
    key: &PresentedKey,
    address: Option<ClientAddress>,
    (method, route): (&Method, &str),
) {
    let status = response.status().as_u16();
    let address = address.map(|ClientAddress(address)| address.to_canonical().to_string());
    if response.extensions().get::<RateOfKeysExceeded>().is_some() {
        tracing::warn!(status, address, "request rejected: too many wrong API keys from this address");
        return;
    }
    let key = key.masked();
    let project = response.extensions().get::<Caller>().map(|caller| caller.scope.to_string());
    let Rejected { code, reason } = rejected;
    let reason: Option<String> = reason.as_ref().map(|reason| reason.chars().take(REASON_CHARS_MAX).collect());
    tracing::warn!(status, code, key, project.id = project, address, %method, route, reason, "request rejected");
}
