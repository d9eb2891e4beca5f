//! `POST /v1/vector_stores/{vector_store_id}/files`\
//! `GET /v1/vector_stores/{vector_store_id}/files`\
//! `GET /v1/vector_stores/{vector_store_id}/files/{file_id}`\
//! `POST /v1/vector_stores/{vector_store_id}/files/{file_id}`\
//! `DELETE /v1/vector_stores/{vector_store_id}/files/{file_id}`\
//! `GET /v1/vector_stores/{vector_store_id}/files/{file_id}/content`\
//! `POST /v1/vector_stores/{vector_store_id}/files/{file_id}/retry`

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, stream};
use schemars::JsonSchema;
use serde_json::json;

use super::super::error::Error;
use super::super::extract::{Ids, Json, Query};
use super::super::layers::auth::Caller;
use super::super::reply::{deleted, list, object, poll_again};
use super::super::routes::{Documentation, Routes, operation};
use super::super::state::App;
use super::find_store;
use crate::api::id::Id;
use crate::api::vector_store::{
    CreateVectorStoreFile, ModifyVectorStoreFile, StoreFileObject, StoreFileStatus, TextPart, no_file_error,
};
use crate::api::{self, FileId, Page, Scope, StoreFile, VectorStore, VectorStoreId};
use crate::store::{self, Objects, TextPage};

/// Size of the parts in which the text of a file is read from the store and sent, in bytes.
const TEXT_BYTES: usize = 256 * 1024;

pub(super) fn add_routes(routes: Routes) -> Routes {
    let collection = "/v1/vector_stores/{vector_store_id}/files";
    let item = "/v1/vector_stores/{vector_store_id}/files/{file_id}";
    let create =
        operation("createVectorStoreFile", "Adds a file to a vector store.").request::<CreateVectorStoreFile>();
    let get = operation("getVectorStoreFile", "Retrieves a file of a vector store.");
    let modify = operation("updateVectorStoreFileAttributes", "Replaces the attributes of a file of a vector store.");
    let delete = operation("deleteVectorStoreFile", "Removes a file from a vector store, but does not delete it.");
    let content = operation("retrieveVectorStoreFileContent", "Retrieves the text of a file of a vector store.");
    let retry = operation("retryVectorStoreFile", "Processes a file again that has failed or was cancelled.");
    routes
        .post(collection, create.response::<StoreFileObject>(), create_vector_store_file)
        .get(
            collection,
            by_status(operation("listVectorStoreFiles", "Lists files of a vector store.")),
            list_vector_store_files,
        )
        .get(item, get.response::<StoreFileObject>(), get_vector_store_file)
        .post(
            item,
            modify.request::<ModifyVectorStoreFile>().response::<StoreFileObject>(),
            update_vector_store_file_attributes,
        )
        .delete(item, delete.deletes("vector_store.file.deleted"), delete_vector_store_file)
        .get(
            "/v1/vector_stores/{vector_store_id}/files/{file_id}/content",
            content.response::<ContentPage>(),
            retrieve_vector_store_file_content,
        )
        .post(
            "/v1/vector_stores/{vector_store_id}/files/{file_id}/retry",
            retry.response::<StoreFileObject>(),
            retry_vector_store_file,
        )
}

/// Documents a list of files that can be filtered by status.
pub(super) fn by_status(list: Documentation) -> Documentation {
    let names = |_: &mut schemars::SchemaGenerator| json!({"type": "string", "enum": StoreFileStatus::ALL.map(StoreFileStatus::name)});
    list.paginated::<StoreFileObject>().query("filter", names)
}

/// The response with the text of a file. It is written in parts.
#[derive(JsonSchema)]
#[schemars(rename = "VectorStoreFileContentPage")]
#[expect(dead_code, reason = "only its schema is used")]
struct ContentPage<'a> {
    object: &'static str,
    data: Vec<TextPart<'a>>,
    has_more: bool,
    next_page: Option<String>,
}

async fn create_vector_store_file(
    State(app): State<App>,
    caller: Caller,
    Ids((store,)): Ids<(VectorStoreId,)>,
    Json(request): Json<CreateVectorStoreFile>,
) -> Result<Response, Error> {
    let file = request.into_file(&app.ids);
    let added = app.store.add_store_file(&caller.scope, &store, &file, app.clock.now()).await?;
    app.store_files.wake();
    Ok(file_response(&added.ok_or_else(|| store.not_found())?))
}

async fn list_vector_store_files(
    State(app): State<App>,
    caller: Caller,
    Ids((store,)): Ids<(VectorStoreId,)>,
    query: Query,
) -> Result<Response, Error> {
    let (page, status) = (query.page()?, parse_filter(&query)?);
    find_store(&app, &caller, &store).await?;
    let files = app.store.list_store_files(&caller.scope, &store, None, status, &page).await;
    Ok(files_response(&files.map_err(|error| map_file_cursor(error, &store))?))
}

/// Parses the query parameter `filter`.
pub(super) fn parse_filter(query: &Query) -> Result<Option<StoreFileStatus>, api::Error> {
    query.get("filter").map(StoreFileStatus::parse).transpose()
}

/// Maps an unknown cursor to the error for a missing file.
pub(super) fn map_file_cursor(error: store::Error, store: &VectorStoreId) -> Error {
    match error {
        store::Error::NoCursor(id) => no_file_error(&FileId::from_stored(id), store).into(),
        error => error.into(),
    }
}

/// Returns a page of files.
pub(super) fn files_response(page: &Page<StoreFile>) -> Response {
    list(page, |file| file.file_id.as_str(), StoreFileObject::from)
}

async fn get_vector_store_file(
    State(app): State<App>,
    caller: Caller,
    Ids((store, file)): Ids<(VectorStoreId, FileId)>,
) -> Result<Response, Error> {
    match app.store.store_file(&caller.scope, &store, &file).await? {
        Some(file) => Ok(file_response(&file)),
        None => Err(file_not_found(&app, &caller, &store, &file).await),
    }
}

async fn update_vector_store_file_attributes(
    State(app): State<App>,
    caller: Caller,
    Ids((store, file)): Ids<(VectorStoreId, FileId)>,
    Json(request): Json<ModifyVectorStoreFile>,
) -> Result<Response, Error> {
    match app.store.modify_store_file(&caller.scope, &store, &file, &request.attributes).await? {
        Some(file) => Ok(file_response(&file)),
        None => Err(file_not_found(&app, &caller, &store, &file).await),
    }
}

async fn delete_vector_store_file(
    State(app): State<App>,
    caller: Caller,
    Ids((store, file)): Ids<(VectorStoreId, FileId)>,
) -> Result<Response, Error> {
    if !app.store.delete_store_file(&caller.scope, &store, &file).await? {
        return Err(file_not_found(&app, &caller, &store, &file).await);
    }
    Ok(deleted(&file, "vector_store.file.deleted").into_response())
}

/// Differs: the service could not process a single file again.
async fn retry_vector_store_file(
    State(app): State<App>,
    caller: Caller,
    Ids((store, file)): Ids<(VectorStoreId, FileId)>,
) -> Result<Response, Error> {
    if find_store(&app, &caller, &store).await?.is_expired {
        return Err(VectorStore::expired_error(&store).into());
    }
    match app.store.retry_store_file(&caller.scope, &store, &file).await? {
        Some(file) => {
            app.store_files.wake();
            Ok(file_response(&file))
        }
        None => Err(no_file_error(&file, &store).into()),
    }
}

async fn retrieve_vector_store_file_content(
    State(app): State<App>,
    caller: Caller,
    Ids((store, file)): Ids<(VectorStoreId, FileId)>,
) -> Result<Response, Error> {
    let Some(first) = app.store.store_file_text(&caller.scope, &store, &file, None, TEXT_BYTES).await? else {
        return Err(file_not_found(&app, &caller, &store, &file).await);
    };
    let body = Body::from_stream(content(app.store.clone(), caller.scope.clone(), store, file, first));
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

/// Returns the JSON of a [`ContentPage`] in parts, so that a long text does not have to be in memory. If the file is deleted
/// meanwhile, the response is cut off.
fn content(
    store: Arc<dyn Objects>,
    scope: Scope,
    vector_store: VectorStoreId,
    file: FileId,
    first: TextPage,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    const START: &str = "{\"object\":\"vector_store.file_content.page\",\"data\":[";
    const END: &str = "],\"has_more\":false,\"next_page\":null}";
    let state = Some((first, START));
    stream::try_unfold(state, move |state| {
        let (store, scope) = (store.clone(), scope.clone());
        let (vector_store, file) = (vector_store.clone(), file.clone());
        async move {
            let Some((page, start)) = state else { return Ok(None) };
            let parts: Vec<String> = page.texts.iter().map(|text| json!(TextPart::new(text)).to_string()).collect();
            let mut text = start.to_owned() + &parts.join(",");
            let Some(last) = page.next else {
                text.push_str(END);
                return Ok(Some((Bytes::from(text), None)));
            };
            let next = store.store_file_text(&scope, &vector_store, &file, Some(last), TEXT_BYTES).await;
            let next = next.map_err(io::Error::other)?.ok_or_else(|| io::Error::other("the file was deleted"))?;
            let separator = if next.texts.is_empty() { "" } else { "," };
            Ok(Some((Bytes::from(text), Some((next, separator)))))
        }
    })
}

fn file_response(file: &StoreFile) -> Response {
    let is_in_progress = file.state.status() == StoreFileStatus::InProgress;
    poll_again(object(&StoreFileObject::from(file)), u64::from(is_in_progress))
}

/// Returns the error for a missing file. If the vector store itself is missing, the error names the vector store.
async fn file_not_found(app: &App, caller: &Caller, store: &VectorStoreId, file: &FileId) -> Error {
    match find_store(app, caller, store).await {
        Ok(_) => no_file_error(file, store).into(),
        Err(error) => error,
    }
}
