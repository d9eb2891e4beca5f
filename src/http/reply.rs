//! Forms that several replies share.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::error::Error;
use crate::api::Page;
use crate::api::error::Error as ApiError;
use crate::api::id::Id;
use crate::api::page::List;
use crate::store;

/// An object as it is.
pub(super) fn object(object: &impl Serialize) -> Response {
    Json(object).into_response()
}

/// A page of objects in the list form.
pub(super) fn list<'a, T, W: Serialize>(
    page: &'a Page<T>,
    id: impl Fn(&'a T) -> &'a str,
    wire: impl Fn(&'a T) -> W,
) -> Response {
    let first = page.data.first().map(&id);
    let last = page.data.last().map(&id);
    Json(List::new(page.data.iter().map(wire).collect(), first, last, page.has_more)).into_response()
}

/// What stands in for an object that was deleted.
pub(super) fn deleted(id: &dyn std::fmt::Display, word: &str) -> Json<Value> {
    Json(json!({"id": id.to_string(), "object": word, "deleted": true}))
}

/// A cursor that names nothing is told as the object that is not there.
pub(super) fn cursor<T: Id>(error: store::Error) -> Error {
    match error {
        store::Error::NoCursor(id) => ApiError::not_found(T::NOUN, &id).into(),
        error => error.into(),
    }
}
