//! `POST /v1/threads`\
//! `GET /v1/threads`\
//! `GET /v1/threads/{thread_id}`\
//! `POST /v1/threads/{thread_id}`\
//! `DELETE /v1/threads/{thread_id}`

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::error::Error;
use super::extract::{Ids, Json, ListQuery};
use super::layers::auth::Caller;
use super::reply::{deleted, list, map_cursor, object};
use super::routes::{Routes, operation};
use super::state::App;
use crate::api::id::Id;
use crate::api::thread::ThreadObject;
use crate::api::{CreateThread, ModifyThread, ThreadId};

pub(super) fn routes() -> Routes {
    let collection = "/v1/threads";
    let item = "/v1/threads/{thread_id}";
    let create = operation("createThread", "Creates a thread with messages.").request::<CreateThread>();
    let modify = operation("modifyThread", "Modifies a thread.").request::<ModifyThread>();
    let delete = operation("deleteThread", "Deletes a thread with its messages, runs and steps.");
    Routes::of("Threads")
        .post(collection, create.response::<ThreadObject>(), create_thread)
        .get(collection, operation("listThreads", "Lists threads.").paginated::<ThreadObject>(), list_threads)
        .get(item, operation("getThread", "Retrieves a thread.").response::<ThreadObject>(), get_thread)
        .post(item, modify.response::<ThreadObject>(), modify_thread)
        .delete(item, delete.deletes("thread.deleted"), delete_thread)
}

async fn create_thread(
    State(app): State<App>,
    caller: Caller,
    Json(request): Json<CreateThread>,
) -> Result<Response, Error> {
    let now = app.clock.now();
    let (thread, messages, mut new) = request.into_thread(&app.ids, now);
    let messages: Vec<_> =
        messages.into_iter().map(|message| message.into_message(&app.ids, &thread.id, now)).collect();
    new.attach(&messages, "messages", &app.ids, now)?;
    let thread = app.store.create_thread(&caller.scope, &thread, &messages, &new).await?;
    app.wake_for(&new);
    Ok(object(&ThreadObject::from(&thread)))
}

/// Differs: the service had no endpoint to list threads, the feature that its users requested most.
async fn list_threads(State(app): State<App>, caller: Caller, query: ListQuery) -> Result<Response, Error> {
    let page = app.store.list_threads(&caller.scope, &query.page).await.map_err(map_cursor::<ThreadId>)?;
    Ok(list(&page, |thread| thread.id.as_str(), ThreadObject::from))
}

async fn get_thread(State(app): State<App>, caller: Caller, Ids((id,)): Ids<(ThreadId,)>) -> Result<Response, Error> {
    let thread = app.store.thread(&caller.scope, &id).await?.ok_or_else(|| id.not_found())?;
    Ok(object(&ThreadObject::from(&thread).retrieved()))
}

async fn modify_thread(
    State(app): State<App>,
    caller: Caller,
    Ids((id,)): Ids<(ThreadId,)>,
    Json(request): Json<ModifyThread>,
) -> Result<Response, Error> {
    let thread = app.store.modify_thread(&caller.scope, &id, &request).await?.ok_or_else(|| id.not_found())?;
    Ok(object(&ThreadObject::from(&thread)))
}

async fn delete_thread(
    State(app): State<App>,
    caller: Caller,
    Ids((id,)): Ids<(ThreadId,)>,
) -> Result<Response, Error> {
    if !app.store.delete_thread(&caller.scope, &id).await? {
        return Err(id.not_found().into());
    }
    Ok(deleted(&id, "thread.deleted").into_response())
}

/// Returns the error for a missing object on a thread. If the thread itself is missing, the error names the thread.
pub(super) async fn not_found_on_thread(app: &App, caller: &Caller, thread: &ThreadId, id: &impl Id) -> Error {
    match app.store.thread(&caller.scope, thread).await {
        Ok(Some(_)) => id.not_found().into(),
        Ok(None) => thread.not_found().into(),
        Err(error) => error.into(),
    }
}

/// Fails with 404 if the thread does not exist. Used when a list on a thread is empty.
pub(super) async fn check_thread_exists(app: &App, caller: &Caller, thread: &ThreadId) -> Result<(), Error> {
    match app.store.thread(&caller.scope, thread).await? {
        Some(_) => Ok(()),
        None => Err(thread.not_found().into()),
    }
}
