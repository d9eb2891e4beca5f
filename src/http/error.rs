//! Converts errors to a status and a body.

use std::any::Any;
use std::sync::Arc;

use axum::Json;
use axum::extract::OriginalUri;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::api;
use crate::api::VectorStore;
use crate::api::error::Kind;
use crate::api::id::Id as _;
use crate::api::organization::{Project, ProjectApiKey};
use crate::api::vector_store::{no_files_error, no_vector_stores_error};
use crate::retrieval::search;
use crate::runs::service::Failure;
use crate::work::panic_message;
use crate::{files, llm, store};

/// An error of a request.
#[derive(Debug)]
pub(super) enum Error {
    /// Returned to the client.
    Public(api::Error),
    /// Logged; the client receives a generic 500.
    Internal(Arc<dyn std::error::Error + Send + Sync>),
}

/// A rejected request, stored in the response until it is logged: 401, 403 or 429.
#[derive(Debug, Clone)]
pub(super) struct Rejected {
    /// The error code.
    pub code: Option<&'static str>,
    /// The error message, unless the code and the API key say enough.
    pub reason: Option<String>,
}

/// The cause of a 500, stored in the response until it is logged.
#[derive(Clone)]
pub(super) struct Cause(pub Arc<dyn std::error::Error + Send + Sync>);

impl From<api::Error> for Error {
    fn from(error: api::Error) -> Self {
        Self::Public(error)
    }
}

impl From<store::Error> for Error {
    /// An unavailable database is a 503, which clients retry.
    fn from(error: store::Error) -> Self {
        match error {
            error @ store::Error::Unavailable(_) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the database is unavailable");
                Self::Public(api::Error::new(Kind::Unavailable, "The database is not available. Please retry."))
            }
            store::Error::NoFiles(ids) => Self::Public(no_files_error(&ids)),
            store::Error::NoVectorStores(ids) => Self::Public(no_vector_stores_error(&ids)),
            store::Error::Invalid(error) => Self::Public(error),
            store::Error::VectorStoreExpired(id) => Self::Public(VectorStore::expired_error(&id)),
            store::Error::NoProject(id) => Self::Public(id.not_found()),
            store::Error::ProjectArchived(name) => Self::Public(Project::archived_error(&name)),
            store::Error::NoServiceAccount(id) => Self::Public(id.not_found()),
            store::Error::KeyOfServiceAccount => Self::Public(ProjectApiKey::service_account_error()),
            error => Self::Internal(Arc::new(error)),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Rejected(error) => Self::Public(error),
            Failure::Store(error) => error.into(),
        }
    }
}

impl From<search::Error> for Error {
    fn from(error: search::Error) -> Self {
        match error {
            search::Error::NoStore(id) => Self::Public(id.not_found()),
            search::Error::Expired(id) => Self::Public(VectorStore::expired_error(&id)),
            search::Error::Store(error) => error.into(),
        }
    }
}

impl From<files::Error> for Error {
    /// If the storage of files is unavailable, nothing was stored, and clients can retry.
    fn from(error: files::Error) -> Self {
        let unavailable = |error: &files::Error, message| {
            tracing::warn!(error = error as &dyn std::error::Error, "a file was not stored or read");
            Self::Public(api::Error::new(Kind::Unavailable, message))
        };
        match error {
            files::Error::Rejected(error) => Self::Public(error),
            files::Error::Store(error) => error.into(),
            error @ files::Error::Blobs(_) => {
                unavailable(&error, "The storage of files is not available. Please retry.")
            }
            error @ files::Error::LeaseEnded => {
                unavailable(&error, "The server could not store the file in time. Please retry.")
            }
            error @ files::Error::TooMany => {
                unavailable(&error, "The server is receiving too many files (received_files_max). Please retry.")
            }
        }
    }
}

impl From<llm::Error> for Error {
    fn from(error: llm::Error) -> Self {
        Self::Public(api::Error::new(Kind::BadGateway, error.to_string()))
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        match self {
            Self::Public(error) => error_response(&error),
            Self::Internal(cause) => {
                let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
                response.extensions_mut().insert(Cause(cause));
                response
            }
        }
    }
}

/// Returns the response for an error.
pub(super) fn error_response(error: &api::Error) -> Response {
    error_response_with(error, None)
}

/// Returns the response for an error, with a sibling `detail` of `error`.
pub(super) fn error_response_with(error: &api::Error, detail: Option<Value>) -> Response {
    let status = StatusCode::from_u16(error.kind.status()).expect("every kind has a valid status");
    let mut body = json!({"error": error.body()});
    if let Some(detail) = detail {
        body["detail"] = detail;
    }
    let mut response = (status, Json(body)).into_response();
    let is_rejected =
        [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    if is_rejected {
        let reason = (status == StatusCode::FORBIDDEN).then(|| error.message.clone());
        response.extensions_mut().insert(Rejected { code: error.code, reason });
    }
    // One second is usually enough for another server to respond, or for this one to restart.
    let retry_after = error.retry_after_s.or((error.kind == Kind::Unavailable).then_some(1));
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from(seconds));
    }
    response
}

/// Returns the response on a connection above the connection limit, which serves only health checks.
#[must_use]
pub fn overloaded() -> Response {
    let error = api::Error::new(Kind::Unavailable, "The server has too many connections. Please retry.");
    let mut response = error_response(&error);
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}

/// The first segments of the paths of all operations, after `/v1`.
const FIRST_SEGMENTS: [&str; 10] = [
    "assistants",
    "threads",
    "files",
    "uploads",
    "vector_stores",
    "models",
    "chat",
    "embeddings",
    "organization",
    "usage",
];

/// Returns 404 `Invalid URL (POST /v1/xyz). …`, with a hint.
pub(super) async fn no_such_url(method: Method, OriginalUri(uri): OriginalUri) -> Error {
    let path = uri.path();
    api::Error::new(Kind::NotFound, format!("Invalid URL ({method} {path}). {}", hint_for(path))).into()
}

/// Returns why a path is not served.
fn hint_for(path: &str) -> String {
    let mut segments = path.split('/').skip(1);
    match (segments.next(), segments.next()) {
        (Some(first), _) if FIRST_SEGMENTS.contains(&first) => format!(
            "The paths of the API begin with /v1: use /v1{path}, or set the base URL of your client to one that ends in /v1."
        ),
        (Some("v1"), Some("v1")) => {
            "The path has /v1 twice: set the base URL of your client to one that ends in a single /v1.".to_owned()
        }
        _ => "assistd does not serve this path; GET /openapi.json lists the paths that it serves.".to_owned(),
    }
}

/// Returns 405 for a path that exists with another method.
pub(super) async fn no_such_method(method: Method, OriginalUri(uri): OriginalUri) -> Error {
    api::Error::new(
        Kind::MethodNotAllowed,
        format!("Not allowed to {method} on {}. (HINT: Perhaps you meant to use a different HTTP method?)", uri.path()),
    )
    .code("method_not_supported")
    .into()
}

/// Returns 500 for a handler that panicked.
#[expect(clippy::needless_pass_by_value, reason = "the signature is required by the layer")]
pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let cause: Box<dyn std::error::Error + Send + Sync> =
        format!("a handler panicked: {}", panic_message(&*panic)).into();
    Error::Internal(Arc::from(cause)).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_path_without_the_version_is_recognized_for_all_operations() {
        let operations = crate::http::operations();
        let first = operations.iter().filter_map(|operation| operation.path.split('/').nth(2));

        assert_eq!(first.collect::<BTreeSet<_>>(), BTreeSet::from(FIRST_SEGMENTS));
        for (path, expected) in [
            ("/threads/runs", "use /v1/threads/runs"),
            ("/v1/v1/threads", "/v1 twice"),
            ("/v1/responses", "assistd does not serve this path"),
            ("/", "assistd does not serve this path"),
        ] {
            assert!(hint_for(path).contains(expected), "{path}: {}", hint_for(path));
        }
    }
}
