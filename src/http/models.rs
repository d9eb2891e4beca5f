//! `GET /v1/models`\
//! `GET /v1/models/{model}`\
//! `DELETE /v1/models/{model}`

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use serde_json::json;

use super::error::Error;
use super::reply::object;
use super::state::App;
use crate::api;
use crate::api::error::Kind;

pub(super) fn routes() -> Router<App> {
    // Names of models may have slashes in them.
    Router::new()
        .route("/v1/models", get(list_models))
        .route("/v1/models/{*model}", get(get_model).delete(delete_model))
}

async fn list_models(State(app): State<App>) -> Response {
    object(&json!({"object": "list", "data": app.models.list().await}))
}

async fn get_model(State(app): State<App>, path: Result<Path<String>, PathRejection>) -> Result<Response, Error> {
    let Path(name) = path.map_err(|_| api::Error::invalid("The path is not valid UTF-8."))?;
    match app.models.list().await.into_iter().find(|model| model.id == name) {
        Some(model) => Ok(object(&model)),
        None => Err(api::Error::new(Kind::NotFound, format!("The model '{name}' does not exist"))
            .at("model")
            .code("model_not_found")
            .into()),
    }
}

/// The models are their servers' own: what is not there is told as such, and what is there stays.
async fn delete_model(state: State<App>, path: Result<Path<String>, PathRejection>) -> Result<Response, Error> {
    get_model(state, path).await?;
    Err(api::Error::invalid("This server does not delete models; their own server does.").into())
}
