//! `POST /v1/threads/runs`\
//! `POST /v1/threads/{thread_id}/runs`\
//! `GET /v1/threads/{thread_id}/runs`\
//! `GET /v1/threads/{thread_id}/runs/{run_id}`\
//! `POST /v1/threads/{thread_id}/runs/{run_id}`\
//! `POST /v1/threads/{thread_id}/runs/{run_id}/cancel`\
//! `POST /v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs`

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;

use super::error::Error;
use super::extract::{Ids, Include, Json, ListQuery, include_schema};
use super::layers::auth::Caller;
use super::reply::{list, map_cursor, object};
use super::routes::{Routes, operation};
use super::sse;
use super::state::App;
use super::threads::{check_thread_exists, not_found_on_thread};
use crate::api::error::Kind;
use crate::api::run::RunObject;
use crate::api::{CreateRun, CreateThreadAndRun, ModifyRun, Run, RunId, SubmitToolOutputs, ThreadId};
use crate::metrics::StreamKind;
use crate::runs::service::{CreatedRun, Failure};

/// The poll interval of the SDKs' poll helpers; without it they wait 1 to 5 s.
const POLL_AFTER_MS: HeaderName = HeaderName::from_static("openai-poll-after-ms");
const RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");
const POLL_AFTER: HeaderValue = HeaderValue::from_static("100");

pub(super) fn routes() -> Routes {
    let collection = "/v1/threads/{thread_id}/runs";
    let item = "/v1/threads/{thread_id}/runs/{run_id}";
    let with_thread =
        operation("createThreadAndRun", "Creates a thread and a run on it.").request::<CreateThreadAndRun>();
    let create = operation("createRun", "Creates a run on a thread.").request::<CreateRun>();
    let modify = operation("modifyRun", "Modifies a run's metadata.").request::<ModifyRun>();
    let submit = operation("submitToolOutputsToRun", "Submits the outputs of all of a run's required calls.");
    let submit = submit.request::<SubmitToolOutputs>().response::<RunObject>().streaming();
    Routes::of("Runs")
        .post("/v1/threads/runs", with_thread.response::<RunObject>().streaming(), create_thread_and_run)
        .post(collection, create.response::<RunObject>().query("include[]", include_schema).streaming(), create_run)
        .get(collection, operation("listRuns", "Lists a thread's runs.").paginated::<RunObject>(), list_runs)
        .get(item, operation("getRun", "Retrieves a run.").response::<RunObject>(), get_run)
        .post(item, modify.response::<RunObject>(), modify_run)
        .post(
            "/v1/threads/{thread_id}/runs/{run_id}/cancel",
            operation("cancelRun", "Cancels a run.").response::<RunObject>(),
            cancel_run,
        )
        .post("/v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs", submit, submit_tool_outputs)
}

async fn create_thread_and_run(
    State(app): State<App>,
    caller: Caller,
    include: Include,
    Json(request): Json<CreateThreadAndRun>,
) -> Result<Response, Error> {
    let created = app.runs.create_thread_and_run(&caller, request).await?;
    Ok(run_or_stream_response(&app, created, &include))
}

async fn create_run(
    State(app): State<App>,
    Ids((thread,)): Ids<(ThreadId,)>,
    caller: Caller,
    include: Include,
    Json(request): Json<CreateRun>,
) -> Result<Response, Error> {
    let created = app.runs.create_run(&caller, &thread, request).await?;
    Ok(run_or_stream_response(&app, created, &include))
}

fn run_or_stream_response(app: &App, created: CreatedRun, include: &Include) -> Response {
    if created.adds_files {
        app.store_files.wake();
    }
    match created.listener {
        None => run_response(&created.run),
        Some(listener) => {
            let open_stream = app.metrics.stream_opened(StreamKind::Run);
            sse::stream(listener, include.result_content, app.settings.keep_alive, &app.drain, open_stream)
        }
    }
}

fn run_response(run: &Run) -> Response {
    let mut response = object(&RunObject::from(run));
    if !run.state.has_ended() {
        response.headers_mut().insert(POLL_AFTER_MS, POLL_AFTER);
    }
    response
}

async fn list_runs(
    State(app): State<App>,
    caller: Caller,
    Ids((thread,)): Ids<(ThreadId,)>,
    query: ListQuery,
) -> Result<Response, Error> {
    let page = app.runs.list_runs(&caller.scope, &thread, &query.page).await.map_err(map_cursor::<RunId>)?;
    if page.data.is_empty() {
        check_thread_exists(&app, &caller, &thread).await?;
    }
    Ok(list(&page, |run| run.spec.id.as_str(), RunObject::from))
}

async fn get_run(
    State(app): State<App>,
    caller: Caller,
    Ids((thread, id)): Ids<(ThreadId, RunId)>,
) -> Result<Response, Error> {
    map_missing(&app, &caller, &thread, &id, app.runs.run(&caller.scope, &thread, &id).await).await
}

async fn modify_run(
    State(app): State<App>,
    caller: Caller,
    Ids((thread, id)): Ids<(ThreadId, RunId)>,
    Json(request): Json<ModifyRun>,
) -> Result<Response, Error> {
    map_missing(&app, &caller, &thread, &id, app.runs.modify_run(&caller.scope, &thread, &id, request).await).await
}

async fn cancel_run(
    State(app): State<App>,
    caller: Caller,
    Ids((thread, id)): Ids<(ThreadId, RunId)>,
) -> Result<Response, Error> {
    map_missing(&app, &caller, &thread, &id, app.runs.cancel_run(&caller.scope, &thread, &id).await).await
}

async fn submit_tool_outputs(
    State(app): State<App>,
    caller: Caller,
    Ids((thread, id)): Ids<(ThreadId, RunId)>,
    headers: HeaderMap,
    include: Include,
    Json(request): Json<SubmitToolOutputs>,
) -> Result<Response, Error> {
    // The SDKs send the retry count. Any other repeated submission is rejected, as by the service.
    let retries = headers.get(RETRY_COUNT).and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    let is_retry = retries.is_some_and(|count| count > 0);
    match app.runs.submit_tool_outputs(&caller.scope, &thread, &id, request, is_retry).await {
        Ok(resumed) => Ok(run_or_stream_response(&app, resumed, &include)),
        Err(failure) => map_missing(&app, &caller, &thread, &id, Err(failure)).await,
    }
}

async fn map_missing(
    app: &App,
    caller: &Caller,
    thread: &ThreadId,
    id: &RunId,
    run: Result<Run, Failure>,
) -> Result<Response, Error> {
    match run {
        Ok(run) => Ok(run_response(&run)),
        Err(Failure::Rejected(error)) if error.kind == Kind::NotFound => {
            Err(not_found_on_thread(app, caller, thread, id).await)
        }
        Err(failure) => Err(failure.into()),
    }
}
