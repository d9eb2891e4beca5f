//! `GET /v1/models`\
//! `GET /v1/models/{model}`\
//! `DELETE /v1/models/{model}`

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::error::Error;
use super::extract::Params;
use super::reply::object;
use super::routes::{Routes, operation};
use super::state::App;
use crate::api;
use crate::api::error::Kind;
use crate::llm::ModelObject;

pub(super) fn routes() -> Routes {
    // Model names may contain slashes.
    let item = "/v1/models/{*model}";
    let list = operation("listModels", "Lists the models of all model servers, and the configured aliases.");
    Routes::of("Models")
        .get("/v1/models", list.list::<ModelObject>(), list_models)
        .get(item, operation("retrieveModel", "Retrieves a model.").response::<ModelObject>(), get_model)
        .delete(item, operation("deleteModel", "Always rejected: models belong to their servers."), delete_model)
}

async fn list_models(State(app): State<App>) -> Response {
    object(&json!({"object": "list", "data": app.models.list().await}))
}

async fn get_model(State(app): State<App>, params: Params) -> Result<Response, Error> {
    let name = params.get("model").unwrap_or_default();
    match app.models.list().await.into_iter().find(|model| model.id == name) {
        Some(model) => Ok(object(&model)),
        None => Err(api::Error::new(Kind::NotFound, format!("The model '{name}' does not exist"))
            .at("model")
            .code("model_not_found")
            .into()),
    }
}

/// Rejects the request, because models belong to their servers. An unknown model is reported as not found.
async fn delete_model(state: State<App>, params: Params) -> Result<Response, Error> {
    get_model(state, params).await?;
    Err(api::Error::invalid("Models cannot be deleted here. Delete the model on its own server.").into())
}
