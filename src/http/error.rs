//! The one page where what went wrong becomes a status and a body.

use std::any::Any;
use std::sync::Arc;

use axum::Json;
use axum::extract::OriginalUri;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::api;
use crate::api::error::Kind;
use crate::runs::service::Failure;
use crate::{llm, store};

/// What went wrong with a request.
#[derive(Debug)]
pub(super) enum Error {
    /// The client is told.
    Told(api::Error),
    /// The log is told; the client hears that it was our fault.
    Hidden(Arc<dyn std::error::Error + Send + Sync>),
}

/// The cause of a 500, on its way to the log.
#[derive(Clone)]
pub(super) struct Cause(pub Arc<dyn std::error::Error + Send + Sync>);

impl From<api::Error> for Error {
    fn from(error: api::Error) -> Self {
        Self::Told(error)
    }
}

impl From<store::Error> for Error {
    /// A database that is away is a 503, which clients retry.
    fn from(error: store::Error) -> Self {
        match error {
            error @ store::Error::Unavailable(_) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a request found the database away");
                Self::Told(api::Error::new(Kind::Unavailable, "The database is not available. Please retry."))
            }
            error => Self::Hidden(Arc::new(error)),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) => Self::Told(error),
            Failure::Store(error) => error.into(),
        }
    }
}

impl From<llm::Error> for Error {
    fn from(error: llm::Error) -> Self {
        Self::Told(api::Error::new(Kind::BadGateway, error.to_string()))
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        match self {
            Self::Told(error) => told(&error),
            Self::Hidden(cause) => {
                let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
                response.extensions_mut().insert(Cause(cause));
                response
            }
        }
    }
}

/// The reply for a refusal.
pub(super) fn told(error: &api::Error) -> Response {
    let status = StatusCode::from_u16(error.kind.status()).expect("every kind has a valid status");
    let mut response = (status, Json(json!({"error": error.body()}))).into_response();
    if error.kind == Kind::Unavailable {
        // Another server answers by then, or this one is back.
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    if matches!(error.kind, Kind::TooLarge | Kind::Timeout) {
        // The rest of the body is not read, so nothing else can come over this connection.
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    }
    response
}

/// The reply on a connection that is for health checks alone, because there are as many others as there may be.
#[must_use]
pub fn overloaded() -> Response {
    let error = api::Error::new(Kind::Unavailable, "The server has too many connections. Please retry.");
    let mut response = told(&error);
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}

/// 404 `Invalid URL (POST /v1/xyz)`
pub(super) async fn no_such_url(method: Method, OriginalUri(uri): OriginalUri) -> Error {
    api::Error::new(Kind::NotFound, format!("Invalid URL ({method} {})", uri.path())).into()
}

/// 405 for a path that exists with another method.
pub(super) async fn no_such_method(method: Method, OriginalUri(uri): OriginalUri) -> Error {
    api::Error::new(
        Kind::MethodNotAllowed,
        format!("Not allowed to {method} on {}. (HINT: Perhaps you meant to use a different HTTP method?)", uri.path()),
    )
    .code("method_not_supported")
    .into()
}

/// A handler that panicked is our fault.
#[expect(clippy::needless_pass_by_value, reason = "the layer gives the panic away")]
pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let words = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let cause: Box<dyn std::error::Error + Send + Sync> =
        format!("a handler panicked: {}", words.unwrap_or("without words")).into();
    Error::Hidden(Arc::from(cause)).into_response()
}
