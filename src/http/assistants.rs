//! `POST /v1/assistants`\
//! `GET /v1/assistants`\
//! `GET /v1/assistants/{assistant_id}`\
//! `POST /v1/assistants/{assistant_id}`\
//! `DELETE /v1/assistants/{assistant_id}`

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::error::Error;
use super::extract::{Ids, Json, ListQuery};
use super::layers::auth::Caller;
use super::reply::{deleted, list, map_cursor, object};
use super::routes::{Routes, operation};
use super::state::App;
use crate::api::assistant::AssistantObject;
use crate::api::id::Id;
use crate::api::{AssistantId, CreateAssistant, ModifyAssistant};

pub(super) fn routes() -> Routes {
    let collection = "/v1/assistants";
    let item = "/v1/assistants/{assistant_id}";
    let create = operation("createAssistant", "Creates an assistant.").request::<CreateAssistant>();
    let modify = operation("modifyAssistant", "Modifies an assistant.").request::<ModifyAssistant>();
    Routes::of("Assistants")
        .post(collection, create.response::<AssistantObject>(), create_assistant)
        .get(
            collection,
            operation("listAssistants", "Lists assistants.").paginated::<AssistantObject>(),
            list_assistants,
        )
        .get(item, operation("getAssistant", "Retrieves an assistant.").response::<AssistantObject>(), get_assistant)
        .post(item, modify.response::<AssistantObject>(), modify_assistant)
        .delete(
            item,
            operation("deleteAssistant", "Deletes an assistant.").deletes("assistant.deleted"),
            delete_assistant,
        )
}

async fn create_assistant(
    State(app): State<App>,
    caller: Caller,
    Json(request): Json<CreateAssistant>,
) -> Result<Response, Error> {
    let (assistant, new) = request.into_assistant(&app.ids, app.clock.now());
    app.store.create_assistant(&caller.scope, &assistant, &new).await?;
    app.wake_for(&new);
    Ok(object(&AssistantObject::from(&assistant)))
}

async fn list_assistants(State(app): State<App>, caller: Caller, query: ListQuery) -> Result<Response, Error> {
    let page = app.store.list_assistants(&caller.scope, &query.page).await.map_err(map_cursor::<AssistantId>)?;
    Ok(list(&page, |assistant| assistant.id.as_str(), AssistantObject::from))
}

async fn get_assistant(
    State(app): State<App>,
    caller: Caller,
    Ids((id,)): Ids<(AssistantId,)>,
) -> Result<Response, Error> {
    let assistant = app.store.assistant(&caller.scope, &id).await?.ok_or_else(|| id.not_found())?;
    Ok(object(&AssistantObject::from(&assistant)))
}

async fn modify_assistant(
    State(app): State<App>,
    caller: Caller,
    Ids((id,)): Ids<(AssistantId,)>,
    Json(request): Json<ModifyAssistant>,
) -> Result<Response, Error> {
    let assistant = app.store.modify_assistant(&caller.scope, &id, &request).await?.ok_or_else(|| id.not_found())?;
    Ok(object(&AssistantObject::from(&assistant)))
}

async fn delete_assistant(
    State(app): State<App>,
    caller: Caller,
    Ids((id,)): Ids<(AssistantId,)>,
) -> Result<Response, Error> {
    if !app.store.delete_assistant(&caller.scope, &id).await? {
        return Err(id.not_found().into());
    }
    Ok(deleted(&id, "assistant.deleted").into_response())
}
