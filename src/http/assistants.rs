//! `POST /v1/assistants`\
//! `GET /v1/assistants`\
//! `GET /v1/assistants/{assistant_id}`\
//! `POST /v1/assistants/{assistant_id}`\
//! `DELETE /v1/assistants/{assistant_id}`

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::error::Error;
use super::extract::{Ids, Json, ListQuery};
use super::reply::{cursor, deleted, list, object};
use super::routes::{Routes, about};
use super::state::App;
use crate::api::assistant::AssistantObject;
use crate::api::id::Id;
use crate::api::{AssistantId, CreateAssistant, ModifyAssistant};

pub(super) fn routes() -> Routes {
    let all = "/v1/assistants";
    let one = "/v1/assistants/{assistant_id}";
    let create = about("createAssistant", "Creates an assistant.").takes::<CreateAssistant>();
    let modify = about("modifyAssistant", "Modifies an assistant.").takes::<ModifyAssistant>();
    Routes::of("Assistants")
        .post(all, create.gives::<AssistantObject>(), create_assistant)
        .get(all, about("listAssistants", "Lists assistants.").pages::<AssistantObject>(), list_assistants)
        .get(one, about("getAssistant", "Retrieves an assistant.").gives::<AssistantObject>(), get_assistant)
        .post(one, modify.gives::<AssistantObject>(), modify_assistant)
        .delete(one, about("deleteAssistant", "Deletes an assistant.").deletes("assistant.deleted"), delete_assistant)
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
