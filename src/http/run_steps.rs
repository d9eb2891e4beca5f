//! `GET /v1/threads/{thread_id}/runs/{run_id}/steps`\
//! `GET /v1/threads/{thread_id}/runs/{run_id}/steps/{step_id}`

use axum::extract::State;
use axum::response::Response;

use super::error::Error;
use super::extract::{Ids, Include, ListQuery, include_schema};
use super::layers::auth::Caller;
use super::reply::{list, map_cursor, object};
use super::routes::{Routes, operation};
use super::state::App;
use super::threads::not_found_on_thread;
use crate::api::id::Id;
use crate::api::run_step::RunStepObject;
use crate::api::{RunId, RunStepId, ThreadId};

pub(super) fn routes() -> Routes {
    let collection = "/v1/threads/{thread_id}/runs/{run_id}/steps";
    let item = "/v1/threads/{thread_id}/runs/{run_id}/steps/{step_id}";
    Routes::of("Run steps")
        .get(
            collection,
            operation("listRunSteps", "Lists a run's steps.")
                .paginated::<RunStepObject>()
                .query("include[]", include_schema),
            list_run_steps,
        )
        .get(
            item,
            operation("getRunStep", "Retrieves a run step.")
                .response::<RunStepObject>()
                .query("include[]", include_schema),
            get_run_step,
        )
}

async fn list_run_steps(
    State(app): State<App>,
    caller: Caller,
    Ids((thread, run)): Ids<(ThreadId, RunId)>,
    include: Include,
    query: ListQuery,
) -> Result<Response, Error> {
    let page =
        app.store.list_steps(&caller.scope, &thread, &run, &query.page).await.map_err(map_cursor::<RunStepId>)?;
    if page.data.is_empty() && app.store.run(&caller.scope, &thread, &run).await?.is_none() {
        return Err(not_found_on_thread(&app, &caller, &thread, &run).await);
    }
    let object = |step| RunStepObject::from(step).with_content(include.result_content);
    Ok(list(&page, |step| step.id.as_str(), object))
}

async fn get_run_step(
    State(app): State<App>,
    caller: Caller,
    Ids((thread, run, id)): Ids<(ThreadId, RunId, RunStepId)>,
    include: Include,
) -> Result<Response, Error> {
    if let Some(step) = app.store.step(&caller.scope, &thread, &run, &id).await? {
        return Ok(object(&RunStepObject::from(&step).with_content(include.result_content)));
    }
    if app.store.run(&caller.scope, &thread, &run).await?.is_none() {
        return Err(not_found_on_thread(&app, &caller, &thread, &run).await);
    }
    Err(id.not_found().into())
}
