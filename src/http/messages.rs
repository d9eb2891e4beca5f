//! `POST /v1/threads/{thread_id}/messages`\
//! `GET /v1/threads/{thread_id}/messages`\
//! `GET /v1/threads/{thread_id}/messages/{message_id}`\
//! `POST /v1/threads/{thread_id}/messages/{message_id}`\
//! `DELETE /v1/threads/{thread_id}/messages/{message_id}`

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::error::Error;
use super::extract::{Ids, Json, ListQuery};
use super::layers::auth::Caller;
use super::reply::{deleted, list, map_cursor, object};
use super::routes::{Routes, operation};
use super::state::App;
use super::threads::{check_thread_exists, not_found_on_thread};
use crate::api::message::MessageObject;
use crate::api::rule::Patch;
use crate::api::tool::NewResources;
use crate::api::{CreateMessage, MessageId, Metadata, ModifyMessage, ThreadId};
use crate::runs::service::{Addition, busy_thread_error};

pub(super) fn routes() -> Routes {
    let collection = "/v1/threads/{thread_id}/messages";
    let item = "/v1/threads/{thread_id}/messages/{message_id}";
    let create = operation("createMessage", "Creates a message at the end of a thread.").request::<CreateMessage>();
    let list =
        operation("listMessages", "Lists a thread's messages, or those of one run.").paginated::<MessageObject>();
    let modify = operation("modifyMessage", "Modifies a message's metadata.").request::<ModifyMessage>();
    let delete = operation("deleteMessage", "Deletes a message.").deletes("thread.message.deleted");
    Routes::of("Messages")
        .post(collection, create.response::<MessageObject>(), create_message)
        .get(collection, list.filter("run_id"), list_messages)
        .get(item, operation("getMessage", "Retrieves a message.").response::<MessageObject>(), get_message)
        .post(item, modify.response::<MessageObject>(), modify_message)
        .delete(item, delete, delete_message)
}

async fn create_message(
    State(app): State<App>,
    caller: Caller,
    Ids((thread,)): Ids<(ThreadId,)>,
    Json(request): Json<CreateMessage>,
) -> Result<Response, Error> {
    let now = app.clock.now();
    let message = request.into_message(&app.ids, &thread, now);
    let mut new = NewResources::default();
    new.attach(std::slice::from_ref(&message), "", &app.ids, now)?;
    let stored = app.store.create_message(&caller.scope, message, app.runs.queues_on_busy_thread(), &new).await;
    let message = stored.map_err(|error| busy_thread_error(error, &thread, Addition::Message))?;
    app.wake_for(&new);
    Ok(object(&MessageObject::from(&message)))
}

async fn list_messages(
    State(app): State<App>,
    caller: Caller,
    Ids((thread,)): Ids<(ThreadId,)>,
    query: ListQuery,
) -> Result<Response, Error> {
    let page = app.store.list_messages(&caller.scope, &thread, query.run.as_ref(), &query.page).await;
    let page = page.map_err(map_cursor::<MessageId>)?;
    if page.data.is_empty() {
        check_thread_exists(&app, &caller, &thread).await?;
    }
    Ok(list(&page, |message| message.id.as_str(), MessageObject::from))
}

async fn get_message(
    State(app): State<App>,
    caller: Caller,
    Ids((thread, id)): Ids<(ThreadId, MessageId)>,
) -> Result<Response, Error> {
    match app.store.message(&caller.scope, &thread, &id).await? {
        Some(message) => Ok(object(&MessageObject::from(&message))),
        None => Err(not_found_on_thread(&app, &caller, &thread, &id).await),
    }
}

async fn modify_message(
    State(app): State<App>,
    caller: Caller,
    Ids((thread, id)): Ids<(ThreadId, MessageId)>,
    Json(request): Json<ModifyMessage>,
) -> Result<Response, Error> {
    let modified = match request.metadata {
        Patch::Keep => app.store.message(&caller.scope, &thread, &id).await?,
        Patch::Clear => app.store.modify_message(&caller.scope, &thread, &id, &Metadata::default()).await?,
        Patch::Set(metadata) => app.store.modify_message(&caller.scope, &thread, &id, &metadata).await?,
    };
    match modified {
        Some(message) => Ok(object(&MessageObject::from(&message))),
        None => Err(not_found_on_thread(&app, &caller, &thread, &id).await),
    }
}

async fn delete_message(
    State(app): State<App>,
    caller: Caller,
    Ids((thread, id)): Ids<(ThreadId, MessageId)>,
) -> Result<Response, Error> {
    if !app.store.delete_message(&caller.scope, &thread, &id).await? {
        return Err(not_found_on_thread(&app, &caller, &thread, &id).await);
    }
    Ok(deleted(&id, "thread.message.deleted").into_response())
}
