//! `POST /v1/vector_stores`\
//! `GET /v1/vector_stores`\
//! `GET /v1/vector_stores/{vector_store_id}`\
//! `POST /v1/vector_stores/{vector_store_id}`\
//! `DELETE /v1/vector_stores/{vector_store_id}`\
//! `GET /v1/vector_stores/{vector_store_id}/index`

mod batches;
mod files;
mod search;

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::error::Error;
use super::extract::{Ids, Json, ListQuery};
use super::layers::auth::Caller;
use super::reply::{deleted, list, map_cursor, object, poll_again};
use super::routes::{Routes, operation};
use super::state::App;
use crate::api::id::Id;
use crate::api::vector_store::{CreateVectorStore, ModifyVectorStore, VectorStoreIndex, VectorStoreObject};
use crate::api::{VectorStore, VectorStoreId};

pub(super) fn routes() -> Routes {
    let collection = "/v1/vector_stores";
    let item = "/v1/vector_stores/{vector_store_id}";
    let create = operation("createVectorStore", "Creates a vector store with files.").request::<CreateVectorStore>();
    let modify = operation("modifyVectorStore", "Modifies a vector store.").request::<ModifyVectorStore>();
    let index = operation("getVectorStoreIndex", "Retrieves what searches of a vector store can find.");
    let routes = Routes::of("Vector stores")
        .post(collection, create.response::<VectorStoreObject>(), create_vector_store)
        .get(
            collection,
            operation("listVectorStores", "Lists vector stores.").paginated::<VectorStoreObject>(),
            list_vector_stores,
        )
        .get(
            item,
            operation("getVectorStore", "Retrieves a vector store.").response::<VectorStoreObject>(),
            get_vector_store,
        )
        .post(item, modify.response::<VectorStoreObject>(), modify_vector_store)
        .delete(
            item,
            operation("deleteVectorStore", "Deletes a vector store, but not its files.")
                .deletes("vector_store.deleted"),
            delete_vector_store,
        )
        .get("/v1/vector_stores/{vector_store_id}/index", index.response::<VectorStoreIndex>(), get_vector_store_index);
    search::add_routes(batches::add_routes(files::add_routes(routes)))
}

async fn create_vector_store(
    State(app): State<App>,
    caller: Caller,
    Json(request): Json<CreateVectorStore>,
) -> Result<Response, Error> {
    let (store, files) = request.into_vector_store(&app.ids, app.clock.now());
    let store = app.store.create_vector_store(&caller.scope, &store, &files).await?;
    app.store_files.wake();
    Ok(store_response(&store))
}

async fn list_vector_stores(State(app): State<App>, caller: Caller, query: ListQuery) -> Result<Response, Error> {
    let page = app.store.list_vector_stores(&caller.scope, &query.page).await.map_err(map_cursor::<VectorStoreId>)?;
    Ok(list(&page, |store| store.id.as_str(), VectorStoreObject::from))
}

async fn get_vector_store(
    State(app): State<App>,
    caller: Caller,
    Ids((id,)): Ids<(VectorStoreId,)>,
) -> Result<Response, Error> {
    Ok(store_response(&find_store(&app, &caller, &id).await?))
}

async fn modify_vector_store(
    State(app): State<App>,
    caller: Caller,
    Ids((id,)): Ids<(VectorStoreId,)>,
    Json(request): Json<ModifyVectorStore>,
) -> Result<Response, Error> {
    let store = app.store.modify_vector_store(&caller.scope, &id, &request).await?.ok_or_else(|| id.not_found())?;
    Ok(store_response(&store))
}

async fn delete_vector_store(
    State(app): State<App>,
    caller: Caller,
    Ids((id,)): Ids<(VectorStoreId,)>,
) -> Result<Response, Error> {
    if !app.store.delete_vector_store(&caller.scope, &id).await? {
        return Err(id.not_found().into());
    }
    Ok(deleted(&id, "vector_store.deleted").into_response())
}

/// Differs: the service did not show the models of the embeddings, the chunks and the languages.
async fn get_vector_store_index(
    State(app): State<App>,
    caller: Caller,
    Ids((id,)): Ids<(VectorStoreId,)>,
) -> Result<Response, Error> {
    let summary = app.store.index_summary(&caller.scope, &id).await?.ok_or_else(|| id.not_found())?;
    Ok(object(&VectorStoreIndex::new(&id, &summary)))
}

fn store_response(store: &VectorStore) -> Response {
    poll_again(object(&VectorStoreObject::from(store)), store.file_counts.in_progress)
}

/// Returns a vector store, or 404.
async fn find_store(app: &App, caller: &Caller, id: &VectorStoreId) -> Result<VectorStore, Error> {
    Ok(app.store.vector_store(&caller.scope, id).await?.ok_or_else(|| id.not_found())?)
}
