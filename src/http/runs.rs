//! `POST /v1/threads/runs`\
//! `POST /v1/threads/{thread_id}/runs`\
//! `GET /v1/threads/{thread_id}/runs`\
//! `GET /v1/threads/{thread_id}/runs/{run_id}`\
//! `POST /v1/threads/{thread_id}/runs/{run_id}`\
//! `POST /v1/threads/{thread_id}/runs/{run_id}/cancel`\
//! `POST /v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs`

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

use super::error::Error;
use super::extract::{Ids, Json, ListQuery};
use super::reply::{cursor, list, object};
use super::routes::{Routes, about};
use super::sse;
use super::state::App;
use super::threads::{check_exists, missing};
use crate::api::error::Kind;
use crate::api::run::RunObject;
use crate::api::{CreateRun, CreateThreadAndRun, ModifyRun, Run, RunId, SubmitToolOutputs, ThreadId};
use crate::runs::{Created, Failure};

/// Tells the SDKs' poll helpers to ask again soon; left to themselves they wait 1 to 5 s.
const POLL_AFTER_MS: HeaderName = HeaderName::from_static("openai-poll-after-ms");
const POLL_AFTER: HeaderValue = HeaderValue::from_static("100");

pub(super) fn routes() -> Routes {
    let all = "/v1/threads/{thread_id}/runs";
    let one = "/v1/threads/{thread_id}/runs/{run_id}";
    let with_thread = about("createThreadAndRun", "Creates a thread and runs it.").takes::<CreateThreadAndRun>();
    let create = about("createRun", "Creates a run on a thread.").takes::<CreateRun>();
    let modify = about("modifyRun", "Modifies a run's metadata.").takes::<ModifyRun>();
    let submit = about("submitToolOutputsToRun", "Answers a run's calls, all of them at once.");
    let submit = submit.takes::<SubmitToolOutputs>().gives::<RunObject>().streams();
    Routes::of("Runs")
        .post("/v1/threads/runs", with_thread.gives::<RunObject>().streams(), create_thread_and_run)
        .post(all, create.gives::<RunObject>().streams(), create_run)
        .get(all, about("listRuns", "Lists a thread's runs.").pages::<RunObject>(), list_runs)
        .get(one, about("getRun", "Retrieves a run.").gives::<RunObject>(), get_run)
        .post(one, modify.gives::<RunObject>(), modify_run)
        .post(
            "/v1/threads/{thread_id}/runs/{run_id}/cancel",
            about("cancelRun", "Stops a run.").gives::<RunObject>(),
            cancel_run,
        )
        .post("/v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs", submit, submit_tool_outputs)
}

async fn create_thread_and_run(
    State(app): State<App>,
    Json(request): Json<CreateThreadAndRun>,
) -> Result<Response, Error> {
    let created = app.runs.create_thread_and_run(request).await?;
    Ok(begun(app, created))
}

async fn create_run(
    State(app): State<App>,
    Ids((thread,)): Ids<(ThreadId,)>,
    Json(request): Json<CreateRun>,
) -> Result<Response, Error> {
    let created = app.runs.create_run(&thread, request).await?;
    Ok(begun(app, created))
}

fn begun(app: App, created: Created) -> Response {
    let Created { run, listener } = created;
    match listener {
        None => one(&run),
        Some(listener) => {
            let (thread, id) = (run.spec.thread_id.clone(), run.spec.id.clone());
            sse::stream(app.runs, listener, thread, id, app.settings.keep_alive)
        }
    }
}

fn one(run: &Run) -> Response {
    let mut response = object(&RunObject::from(run));
    if !run.state.is_over() {
        response.headers_mut().insert(POLL_AFTER_MS, POLL_AFTER);
    }
    response
}

async fn list_runs(
    State(app): State<App>,
    Ids((thread,)): Ids<(ThreadId,)>,
    query: ListQuery,
) -> Result<Response, Error> {
    let page = app.runs.list_runs(&thread, &query.page).await.map_err(cursor::<RunId>)?;
    if page.data.is_empty() {
        check_exists(&app, &thread).await?;
    }
    Ok(list(&page, |run| run.spec.id.as_str(), RunObject::from))
}

async fn get_run(State(app): State<App>, Ids((thread, id)): Ids<(ThreadId, RunId)>) -> Result<Response, Error> {
    found(&app, &thread, &id, app.runs.run(&thread, &id).await).await
}

async fn modify_run(
    State(app): State<App>,
    Ids((thread, id)): Ids<(ThreadId, RunId)>,
    Json(request): Json<ModifyRun>,
) -> Result<Response, Error> {
    found(&app, &thread, &id, app.runs.modify_run(&thread, &id, request).await).await
}

async fn cancel_run(State(app): State<App>, Ids((thread, id)): Ids<(ThreadId, RunId)>) -> Result<Response, Error> {
    found(&app, &thread, &id, app.runs.cancel_run(&thread, &id).await).await
}

async fn submit_tool_outputs(
    State(app): State<App>,
    Ids((thread, id)): Ids<(ThreadId, RunId)>,
    Json(request): Json<SubmitToolOutputs>,
) -> Result<Response, Error> {
    match app.runs.submit_tool_outputs(&thread, &id, request).await {
        Ok(resumed) => Ok(begun(app, resumed)),
        Err(failure) => found(&app, &thread, &id, Err(failure)).await,
    }
}

async fn found(app: &App, thread: &ThreadId, id: &RunId, run: Result<Run, Failure>) -> Result<Response, Error> {
    match run {
        Ok(run) => Ok(one(&run)),
        Err(Failure::Refused(error)) if error.kind == Kind::NotFound => Err(missing(app, thread, id).await),
        Err(failure) => Err(failure.into()),
    }
}
