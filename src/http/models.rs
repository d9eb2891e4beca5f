//! `GET /v1/models`\
//! `GET /v1/models/{model}`\
//! `DELETE /v1/models/{model}`

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::error::Error;
use super::extract::Params;
use super::reply::object;
use super::routes::{Routes, about};
use super::state::App;
use crate::api;
use crate::api::error::Kind;
use crate::llm::ModelObject;

pub(super) fn routes() -> Routes {
    // Names of models may have slashes in them.
    let one = "/v1/models/{*model}";
    let list = about("listModels", "Lists the models of all model servers, and the names in the settings.");
    Routes::of("Models")
        .get("/v1/models", list.lists::<ModelObject>(), list_models)
        .get(one, about("retrieveModel", "Retrieves a model.").gives::<ModelObject>(), get_model)
        .delete(one, about("deleteModel", "Refused: models are their servers' own."), delete_model)
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

/// The models are their servers' own: what is not there is told as such, and what is there stays.
async fn delete_model(state: State<App>, params: Params) -> Result<Response, Error> {
    get_model(state, params).await?;
    Err(api::Error::invalid("This server does not delete models; their own server does.").into())
}
