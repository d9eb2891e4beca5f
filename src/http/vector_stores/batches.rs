//! `POST /v1/vector_stores/{vector_store_id}/file_batches`\
//! `GET /v1/vector_stores/{vector_store_id}/file_batches/{batch_id}`\
//! `POST /v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel`\
//! `GET /v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/files`

use axum::extract::State;
use axum::response::Response;

use super::super::error::Error;
use super::super::extract::{Ids, Json, Query};
use super::super::layers::auth::Caller;
use super::super::reply::{object, poll_again};
use super::super::routes::{Routes, operation};
use super::super::state::App;
use super::files::{by_status, files_response, map_file_cursor, parse_filter};
use super::find_store;
use crate::api::error::Kind;
use crate::api::id::Id;
use crate::api::vector_store::{CreateFileBatch, FileBatchObject};
use crate::api::{self, FileBatch, FileBatchId, VectorStoreId};
use crate::store::NewFileBatch;

pub(super) fn add_routes(routes: Routes) -> Routes {
    let collection = "/v1/vector_stores/{vector_store_id}/file_batches";
    let item = "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}";
    let create = operation("createVectorStoreFileBatch", "Adds files to a vector store as a batch.");
    let get = operation("getVectorStoreFileBatch", "Retrieves a batch of files.");
    let cancel = operation("cancelVectorStoreFileBatch", "Cancels the files of a batch that are in progress.");
    routes
        .post(
            collection,
            create.request::<CreateFileBatch>().response::<FileBatchObject>(),
            create_vector_store_file_batch,
        )
        .get(item, get.response::<FileBatchObject>(), get_vector_store_file_batch)
        .post(
            "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel",
            cancel.response::<FileBatchObject>(),
            cancel_vector_store_file_batch,
        )
        .get(
            "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/files",
            by_status(operation("listFilesInVectorStoreBatch", "Lists files of a batch.")),
            list_files_in_vector_store_batch,
        )
}

async fn create_vector_store_file_batch(
    State(app): State<App>,
    caller: Caller,
    Ids((store,)): Ids<(VectorStoreId,)>,
    Json(request): Json<CreateFileBatch>,
) -> Result<Response, Error> {
    let files = request.into_files(&app.ids)?;
    let batch = NewFileBatch { id: app.ids.generate(), created_at: app.clock.now() };
    let batch = app.store.add_file_batch(&caller.scope, &store, &batch, &files).await?;
    app.store_files.wake();
    Ok(batch_response(&batch.ok_or_else(|| store.not_found())?))
}

async fn get_vector_store_file_batch(
    State(app): State<App>,
    caller: Caller,
    Ids((store, id)): Ids<(VectorStoreId, FileBatchId)>,
) -> Result<Response, Error> {
    Ok(batch_response(&find_batch(&app, &caller, &store, &id).await?))
}

async fn cancel_vector_store_file_batch(
    State(app): State<App>,
    caller: Caller,
    Ids((store, id)): Ids<(VectorStoreId, FileBatchId)>,
) -> Result<Response, Error> {
    match app.store.cancel_file_batch(&caller.scope, &store, &id).await? {
        Some(batch) => Ok(batch_response(&batch)),
        None => Err(batch_not_found(&app, &caller, &store, &id).await),
    }
}

async fn list_files_in_vector_store_batch(
    State(app): State<App>,
    caller: Caller,
    Ids((store, id)): Ids<(VectorStoreId, FileBatchId)>,
    query: Query,
) -> Result<Response, Error> {
    let (page, status) = (query.page()?, parse_filter(&query)?);
    find_batch(&app, &caller, &store, &id).await?;
    let files = app.store.list_store_files(&caller.scope, &store, Some(&id), status, &page).await;
    Ok(files_response(&files.map_err(|error| map_file_cursor(error, &store))?))
}

fn batch_response(batch: &FileBatch) -> Response {
    poll_again(object(&FileBatchObject::from(batch)), batch.file_counts.in_progress)
}

async fn find_batch(app: &App, caller: &Caller, store: &VectorStoreId, id: &FileBatchId) -> Result<FileBatch, Error> {
    match app.store.file_batch(&caller.scope, store, id).await? {
        Some(batch) => Ok(batch),
        None => Err(batch_not_found(app, caller, store, id).await),
    }
}

/// Returns the error for a missing batch. If the vector store itself is missing, the error names the vector store.
async fn batch_not_found(app: &App, caller: &Caller, store: &VectorStoreId, id: &FileBatchId) -> Error {
    match find_store(app, caller, store).await {
        Ok(_) => {
            let message = format!("No file batch found with id '{id}' in vector store '{store}'.");
            api::Error::new(Kind::NotFound, message).into()
        }
        Err(error) => error,
    }
}
