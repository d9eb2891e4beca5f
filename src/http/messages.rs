//! `POST /v1/threads/{thread_id}/messages`\
//! `GET /v1/threads/{thread_id}/messages`\
//! `GET /v1/threads/{thread_id}/messages/{message_id}`\
//! `POST /v1/threads/{thread_id}/messages/{message_id}`\
//! `DELETE /v1/threads/{thread_id}/messages/{message_id}`

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::error::Error;
use super::extract::{Ids, Json, ListQuery};
use super::reply::{cursor, deleted, list, object};
use super::routes::{Routes, about};
use super::state::App;
use super::threads::{check_exists, missing};
use crate::api::message::MessageObject;
use crate::api::rule::Patch;
use crate::api::{CreateMessage, MessageId, Metadata, ModifyMessage, ThreadId};
use crate::runs::service::{Addition, busy_thread_error};

pub(super) fn routes() -> Routes {
    let all = "/v1/threads/{thread_id}/messages";
    let one = "/v1/threads/{thread_id}/messages/{message_id}";
    let create = about("createMessage", "Creates a message at the end of a thread.").takes::<CreateMessage>();
    let list = about("listMessages", "Lists a thread's messages, or those of one run.").pages::<MessageObject>();
    let modify = about("modifyMessage", "Modifies a message's metadata.").takes::<ModifyMessage>();
    let delete = about("deleteMessage", "Deletes a message.").deletes("thread.message.deleted");
    Routes::of("Messages")
        .post(all, create.gives::<MessageObject>(), create_message)
        .get(all, list.filtered_by("run_id"), list_messages)
        .get(one, about("getMessage", "Retrieves a message.").gives::<MessageObject>(), get_message)
        .post(one, modify.gives::<MessageObject>(), modify_message)
        .delete(one, delete, delete_message)
}

async fn create_message(
    State(app): State<App>,
    Ids((thread,)): Ids<(ThreadId,)>,
    Json(request): Json<CreateMessage>,
) -> Result<Response, Error> {
    let message = request.into_message(&app.ids, &thread, app.clock.now());
    let stored = app.store.create_message(message, app.runs.queues_on_busy_thread()).await;
    let message = stored.map_err(|error| busy_thread_error(error, &thread, Addition::Message))?;
    Ok(object(&MessageObject::from(&message)))
}

async fn list_messages(
    State(app): State<App>,
    Ids((thread,)): Ids<(ThreadId,)>,
    query: ListQuery,
) -> Result<Response, Error> {
    let page = app.store.list_messages(&thread, query.run.as_ref(), &query.page).await;
    let page = page.map_err(cursor::<MessageId>)?;
    if page.data.is_empty() {
        check_exists(&app, &thread).await?;
    }
    Ok(list(&page, |message| message.id.as_str(), MessageObject::from))
}

async fn get_message(State(app): State<App>, Ids((thread, id)): Ids<(ThreadId, MessageId)>) -> Result<Response, Error> {
    match app.store.message(&thread, &id).await? {
        Some(message) => Ok(object(&MessageObject::from(&message))),
        None => Err(missing(&app, &thread, &id).await),
    }
}

async fn modify_message(
    State(app): State<App>,
    Ids((thread, id)): Ids<(ThreadId, MessageId)>,
    Json(request): Json<ModifyMessage>,
) -> Result<Response, Error> {
    let modified = match request.metadata {
        Patch::Keep => app.store.message(&thread, &id).await?,
        Patch::Clear => app.store.modify_message(&thread, &id, &Metadata::default()).await?,
        Patch::Set(metadata) => app.store.modify_message(&thread, &id, &metadata).await?,
    };
    match modified {
        Some(message) => Ok(object(&MessageObject::from(&message))),
        None => Err(missing(&app, &thread, &id).await),
    }
}

async fn delete_message(
    State(app): State<App>,
    Ids((thread, id)): Ids<(ThreadId, MessageId)>,
) -> Result<Response, Error> {
    if !app.store.delete_message(&thread, &id).await? {
        return Err(missing(&app, &thread, &id).await);
    }
    Ok(deleted(&id, "thread.message.deleted").into_response())
}
