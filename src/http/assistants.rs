//! `POST /v1/assistants`\
//! `GET /v1/assistants`\
//! `GET /v1/assistants/{assistant_id}`\
//! `POST /v1/assistants/{assistant_id}`\
//! `DELETE /v1/assistants/{assistant_id}`

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use super::error::Error;
use super::extract::{Ids, Json, ListQuery};
use super::reply::{cursor, deleted, list, object};
use super::state::App;
use crate::api::assistant::AssistantObject;
use crate::api::id::Id;
use crate::api::{AssistantId, CreateAssistant, ModifyAssistant};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/assistants", post(create_assistant).get(list_assistants))
        .route("/v1/assistants/{assistant_id}", get(get_assistant).post(modify_assistant).delete(delete_assistant))
}

async fn create_assistant(State(app): State<App>, Json(request): Json<CreateAssistant>) -> Result<Response, Error> {
    let assistant = request.into_assistant(app.ids.make(), app.clock.now());
    app.store.create_assistant(&assistant).await?;
    Ok(object(&AssistantObject::from(&assistant)))
}

async fn list_assistants(State(app): State<App>, query: ListQuery) -> Result<Response, Error> {
    let page = app.store.list_assistants(&query.page).await.map_err(cursor::<AssistantId>)?;
    Ok(list(&page, |assistant| assistant.id.as_str(), AssistantObject::from))
}

async fn get_assistant(State(app): State<App>, Ids((id,)): Ids<(AssistantId,)>) -> Result<Response, Error> {
    let assistant = app.store.assistant(&id).await?.ok_or_else(|| id.not_found())?;
    Ok(object(&AssistantObject::from(&assistant)))
}

async fn modify_assistant(
    State(app): State<App>,
    Ids((id,)): Ids<(AssistantId,)>,
    Json(request): Json<ModifyAssistant>,
) -> Result<Response, Error> {
    let assistant = app.store.modify_assistant(&id, &request).await?.ok_or_else(|| id.not_found())?;
    Ok(object(&AssistantObject::from(&assistant)))
}

async fn delete_assistant(State(app): State<App>, Ids((id,)): Ids<(AssistantId,)>) -> Result<Response, Error> {
    if !app.store.delete_assistant(&id).await? {
        return Err(id.not_found().into());
    }
    Ok(deleted(&id, "assistant.deleted").into_response())
}
