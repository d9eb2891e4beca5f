//! `POST /v1/vector_stores/{vector_store_id}/search`

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

use super::super::error::Error;
use super::super::extract::{Ids, Json};
use super::super::layers::auth::Caller;
use super::super::reply::object;
use super::super::routes::{Routes, operation};
use super::super::state::App;
use crate::api::VectorStoreId;
use crate::api::vector_store::{SearchResult, SearchResults, VectorStoreSearchRequest};
use crate::retrieval::search::{self, LexicalOnly, Query};

/// Says that only words were compared, and why. Ours; the service had no search by words alone.
const SEARCH_HEADER: HeaderName = HeaderName::from_static("assistd-search");

pub(super) fn add_routes(routes: Routes) -> Routes {
    let search = operation("searchVectorStore", "Searches the chunks of a vector store's files.")
        .request::<VectorStoreSearchRequest>()
        .response::<SearchResults>();
    routes.post("/v1/vector_stores/{vector_store_id}/search", search, search_vector_store)
}

async fn search_vector_store(
    State(app): State<App>,
    caller: Caller,
    Ids((id,)): Ids<(VectorStoreId,)>,
    Json(request): Json<VectorStoreSearchRequest>,
) -> Result<Response, Error> {
    let query = Query {
        limit: request.limit(),
        score_threshold: request.score_threshold(),
        weights: request.weights(),
        rewrite: request.rewrite_query.unwrap_or(false),
        texts: request.query,
        filter: request.filters,
        caller: search::Caller { api_key_id: caller.api_key_id.clone(), origin: None },
    };
    let found = app.retrieval.search(&caller.scope, &[id], &query).await?;
    let results = found.hits.iter().map(result).collect();
    let mut response = object(&SearchResults::new(&found.queries, results));
    if let Some(reason) = &found.lexical_only {
        response.headers_mut().insert(SEARCH_HEADER, header_value(reason));
    }
    Ok(response)
}

fn result(hit: &search::Hit) -> SearchResult<'_> {
    SearchResult::new(&hit.file_id, &hit.filename, hit.score, &hit.attributes, &hit.text)
}

fn header_value(reason: &LexicalOnly) -> HeaderValue {
    HeaderValue::from_static(match reason {
        LexicalOnly::ModelFailed(_) => "lexical; the embedding model failed",
        LexicalOnly::NoEmbeddings => "lexical; the files have no embeddings of the model",
    })
}
