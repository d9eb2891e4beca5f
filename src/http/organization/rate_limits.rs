//! `GET /v1/organization/projects/{project_id}/rate_limits`\
//! `POST /v1/organization/projects/{project_id}/rate_limits/{rate_limit_id}`

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::check_project;
use crate::api::organization::rate_limit::{ModifyRateLimit, RATE_LIMIT_ID, RateLimitObject, check_id};
use crate::api::page::{LIMIT_MAX, List};
use crate::api::{Page, ProjectId, RateLimitId};
use crate::http::error::Error;
use crate::http::extract::{AnyIds, Json, Query};
use crate::http::layers::auth::Admin;
use crate::http::reply::{list, object};
use crate::http::routes::{Routes, operation};
use crate::http::state::App;

pub(super) fn routes() -> Routes {
    let collection = "/v1/organization/projects/{project_id}/rate_limits";
    let item = "/v1/organization/projects/{project_id}/rate_limits/{rate_limit_id}";
    let lists = operation("listProjectRateLimits", "Lists the rate limits of a project: one, for all models.")
        .response::<List<RateLimitObject>>()
        .query("limit", |_| json!({"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_MAX}))
        .query("after", |_| json!({"type": "string"}))
        .query("before", |_| json!({"type": "string"}));
    let modify = operation("modifyProjectRateLimit", "Modifies the rate limits of a project.");
    Routes::of("Project rate limits").get(collection, lists, list_rate_limits).post(
        item,
        modify.request::<ModifyRateLimit>().response::<RateLimitObject>(),
        modify_rate_limit,
    )
}

async fn list_rate_limits(
    State(app): State<App>,
    AnyIds((project,)): AnyIds<(ProjectId,)>,
    query: Query,
) -> Result<Response, Error> {
    let query = query.page()?;
    check_project(&app, &project).await?;
    for cursor in [&query.after, &query.before].into_iter().flatten() {
        check_id(&RateLimitId::from_stored(cursor))?;
    }
    let mut data = Vec::new();
    if query.after.is_none() && query.before.is_none() {
        data.push(app.database.project_limits(&project).await?.or(app.limits.defaults()));
    }
    Ok(list(&Page { data, has_more: false }, |_| RATE_LIMIT_ID, RateLimitObject::from))
}

async fn modify_rate_limit(
    State(app): State<App>,
    admin: Admin,
    AnyIds((project, id)): AnyIds<(ProjectId, RateLimitId)>,
    Json(request): Json<ModifyRateLimit>,
) -> Result<Response, Error> {
    check_project(&app, &project).await?;
    check_id(&id)?;
    let limits = app.database.modify_limits(&project, &request, &admin.change(app.clock.now())).await?;
    Ok(object(&RateLimitObject::from(&limits.or(app.limits.defaults()))))
}
