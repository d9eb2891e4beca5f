//! `GET /v1/organization/usage/completions`\
//! `GET /v1/organization/usage/embeddings`\
//! `GET /v1/organization/usage/vector_stores`\
//! `GET /v1/organization/usage/code_interpreter_sessions`
//!
//! For members of a project, the same queries about their project:\
//! `GET /v1/usage`\
//! `GET /v1/usage/completions`\
//! `GET /v1/usage/embeddings`

use axum::extract::{RawQuery, State};
use axum::response::Response;
use serde_json::{Value, json};

use crate::api::Scope;
use crate::api::organization::usage::{CallKind, UsageKind, UsagePage, UsageQuery};
use crate::http::error::Error;
use crate::http::layers::auth::Caller;
use crate::http::reply::object;
use crate::http::routes::{Documentation, Routes, operation};
use crate::http::state::App;

pub(super) fn routes() -> Routes {
    Routes::of("Usage")
        .get(
            "/v1/organization/usage/completions",
            documented("usageCompletions", "Returns the usage of chat completions, also by runs, of all projects.")
                .query("batch", |_| json!({"type": "boolean"})),
            get_completions,
        )
        .get(
            "/v1/organization/usage/embeddings",
            documented("usageEmbeddings", "Returns the usage of embeddings of all projects."),
            get_embeddings,
        )
        .get(
            "/v1/organization/usage/vector_stores",
            with_range(operation("usageVectorStores", "Returns the sizes of vector stores of all projects."))
                .query("bucket_width", |_| json!({"type": "string", "enum": ["1d"], "default": "1d"})),
            get_vector_stores,
        )
        .get(
            "/v1/organization/usage/code_interpreter_sessions",
            with_range(operation(
                "usageCodeInterpreterSessions",
                "Returns the number of sessions of the code interpreter of all projects, by the time of their start.",
            ))
            .query("bucket_width", |_| json!({"type": "string", "enum": ["1m", "1h", "1d"], "default": "1d"})),
            get_code_interpreter_sessions,
        )
}

pub(in crate::http) fn project_routes() -> Routes {
    Routes::of("Usage")
        .get(
            "/v1/usage",
            documented("projectUsage", "Returns the usage of chat completions, also by runs, of the key's project."),
            get_project_completions,
        )
        .get(
            "/v1/usage/completions",
            documented("projectUsageCompletions", "The same as /v1/usage."),
            get_project_completions,
        )
        .get(
            "/v1/usage/embeddings",
            documented("projectUsageEmbeddings", "Returns the usage of embeddings of the key's project."),
            get_project_embeddings,
        )
}

fn documented(id: &'static str, summary: &'static str) -> Documentation {
    with_range(operation(id, summary))
        .query("bucket_width", |_| json!({"type": "string", "enum": ["1m", "1h", "1d"], "default": "1d"}))
        .query("user_ids", |_| texts())
        .query("api_key_ids", |_| texts())
        .query("models", |_| texts())
}

/// Adds the response, and the parameters of all kinds of usage.
fn with_range(operation: Documentation) -> Documentation {
    operation
        .response::<UsagePage>()
        .required_query("start_time", |_| json!({"type": "integer", "minimum": 0}))
        .query("end_time", |_| json!({"type": "integer", "minimum": 0}))
        .query("project_ids", |_| texts())
        .query("group_by", |_| texts())
        .query("limit", |_| json!({"type": "integer", "minimum": 1, "maximum": 1_440}))
        .query("page", |_| json!({"type": "string"}))
}

fn texts() -> Value {
    json!({"type": "array", "items": {"type": "string"}})
}

async fn get_completions(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response, Error> {
    usage(&app, CallKind::Completions, query, None).await
}

async fn get_embeddings(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response, Error> {
    usage(&app, CallKind::Embeddings, query, None).await
}

async fn get_vector_stores(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response, Error> {
    usage(&app, UsageKind::VectorStores, query, None).await
}

async fn get_code_interpreter_sessions(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response, Error> {
    usage(&app, UsageKind::CodeInterpreterSessions, query, None).await
}

async fn get_project_completions(
    State(app): State<App>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, Error> {
    usage(&app, CallKind::Completions, query, Some(&caller.scope)).await
}

async fn get_project_embeddings(
    State(app): State<App>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, Error> {
    usage(&app, CallKind::Embeddings, query, Some(&caller.scope)).await
}

/// Returns the usage of a project, or of all projects.
async fn usage(
    app: &App,
    kind: impl Into<UsageKind>,
    query: Option<String>,
    scope: Option<&Scope>,
) -> Result<Response, Error> {
    let pairs: Vec<(String, String)> =
        serde_urlencoded::from_str(query.as_deref().unwrap_or_default()).unwrap_or_default();
    let pairs = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let query = UsageQuery::parse(kind, pairs, app.clock.now())?;
    let query = match scope {
        Some(scope) => query.limited_to(scope),
        None => query,
    };
    Ok(object(&app.database.usage(&query).await?))
}
