//! Responses shared by several handlers.

use axum::Json;
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::error::Error;
use crate::api::Page;
use crate::api::error::Error as ApiError;
use crate::api::id::Id;
use crate::api::page::List;
use crate::store;

/// Returns an object.
pub(super) fn object(object: &impl Serialize) -> Response {
    Json(object).into_response()
}

/// Returns a page of objects as a list object.
pub(super) fn list<'a, T, W: Serialize>(
    page: &'a Page<T>,
    id: impl Fn(&'a T) -> &'a str,
    wire: impl Fn(&'a T) -> W,
) -> Response {
    let first = page.data.first().map(&id);
    let last = page.data.last().map(&id);
    Json(List::new(page.data.iter().map(wire).collect(), first, last, page.has_more)).into_response()
}

/// How long polling clients should wait at least, in milliseconds. Without a header, they wait one to five seconds.
const POLL_AFTER_MS: u64 = 200;
/// How long polling clients should wait at most, in milliseconds.
const POLL_AFTER_MS_MAX: u64 = 1_000;

/// Asks clients that poll an object with files in progress to do so soon. Polling helpers of several SDKs read this header.
pub(super) fn poll_again(mut response: Response, files_in_progress: u64) -> Response {
    if files_in_progress > 0 {
        let pause = (POLL_AFTER_MS + files_in_progress - 1).min(POLL_AFTER_MS_MAX);
        response.headers_mut().insert("openai-poll-after-ms", HeaderValue::from(pause));
    }
    response
}

/// Returns the response for a deleted object.
pub(super) fn deleted(id: &dyn std::fmt::Display, object: &str) -> Json<Value> {
    Json(json!({"id": id.to_string(), "object": object, "deleted": true}))
}

/// Maps an unknown cursor to the error for a missing object.
pub(super) fn map_cursor<T: Id>(error: store::Error) -> Error {
    match error {
        store::Error::NoCursor(id) => ApiError::not_found(T::NOUN, &id).into(),
        error => error.into(),
    }
}
