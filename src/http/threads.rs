//! `POST /v1/threads`\
//! `GET /v1/threads`\
//! `GET /v1/threads/{thread_id}`\
//! `POST /v1/threads/{thread_id}`\
//! `DELETE /v1/threads/{thread_id}`

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::error::Error;
use super::extract::{Ids, Json, ListQuery};
use super::reply::{cursor, deleted, list, object};
use super::routes::{Routes, about};
use super::state::App;
use crate::api::id::Id;
use crate::api::thread::ThreadObject;
use crate::api::{CreateThread, ModifyThread, ThreadId};

pub(super) fn routes() -> Routes {
    let all = "/v1/threads";
    let one = "/v1/threads/{thread_id}";
    let create = about("createThread", "Creates a thread, with messages.").takes::<CreateThread>();
    let modify = about("modifyThread", "Modifies a thread.").takes::<ModifyThread>();
    let delete = about("deleteThread", "Deletes a thread with its messages, runs and steps.");
    Routes::of("Threads")
        .post(all, create.gives::<ThreadObject>(), create_thread)
        .get(all, about("listThreads", "Lists threads.").pages::<ThreadObject>(), list_threads)
        .get(one, about("getThread", "Retrieves a thread.").gives::<ThreadObject>(), get_thread)
        .post(one, modify.gives::<ThreadObject>(), modify_thread)
        .delete(one, delete.deletes("thread.deleted"), delete_thread)
}

async fn create_thread(State(app): State<App>, Json(request): Json<CreateThread>) -> Result<Response, Error> {
    let now = app.clock.now();
    let (thread, messages) = request.into_thread(app.ids.make(), now);
    let messages: Vec<_> =
        messages.into_iter().map(|message| message.into_message(&app.ids, &thread.id, now)).collect();
    app.store.create_thread(&thread, &messages).await?;
    Ok(object(&ThreadObject::from(&thread)))
}

/// Differs: the service had no list of threads, and its users asked for one more than for anything else.
async fn list_threads(State(app): State<App>, query: ListQuery) -> Result<Response, Error> {
    let page = app.store.list_threads(&query.page).await.map_err(cursor::<ThreadId>)?;
    Ok(list(&page, |thread| thread.id.as_str(), ThreadObject::from))
}

async fn get_thread(State(app): State<App>, Ids((id,)): Ids<(ThreadId,)>) -> Result<Response, Error> {
    let thread = app.store.thread(&id).await?.ok_or_else(|| id.not_found())?;
    Ok(object(&ThreadObject::from(&thread).retrieved()))
}

async fn modify_thread(
    State(app): State<App>,
    Ids((id,)): Ids<(ThreadId,)>,
    Json(request): Json<ModifyThread>,
) -> Result<Response, Error> {
    let thread = app.store.modify_thread(&id, &request).await?.ok_or_else(|| id.not_found())?;
    Ok(object(&ThreadObject::from(&thread)))
}

async fn delete_thread(State(app): State<App>, Ids((id,)): Ids<(ThreadId,)>) -> Result<Response, Error> {
    if !app.store.delete_thread(&id).await? {
        return Err(id.not_found().into());
    }
    Ok(deleted(&id, "thread.deleted").into_response())
}

/// The refusal for something that was not found on a thread: the thread itself, when that is what is missing.
pub(super) async fn missing(app: &App, thread: &ThreadId, id: &impl Id) -> Error {
    match app.store.thread(thread).await {
        Ok(Some(_)) => id.not_found().into(),
        Ok(None) => thread.not_found().into(),
        Err(error) => error.into(),
    }
}

/// Refuses an empty list of something on a thread that is not there.
pub(super) async fn check_exists(app: &App, thread: &ThreadId) -> Result<(), Error> {
    match app.store.thread(thread).await? {
        Some(_) => Ok(()),
        None => Err(thread.not_found().into()),
    }
}
