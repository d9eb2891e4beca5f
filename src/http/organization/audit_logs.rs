//! `GET /v1/organization/audit_logs`

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use crate::api::AuditLogId;
use crate::api::organization::audit_log::{AuditLogFilter, AuditLogObject, filter_schema};
use crate::http::error::Error;
use crate::http::extract::Query;
use crate::http::reply::{list, map_cursor};
use crate::http::routes::{MakeSchema, Routes, operation};
use crate::http::state::App;

pub(super) fn routes() -> Routes {
    let seconds: MakeSchema = |_| json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX});
    let lists = operation("listAuditLogs", "Lists changes of projects, service accounts, API keys and rate limits.")
        .paginated::<AuditLogObject>()
        .query("effective_at[gt]", seconds)
        .query("effective_at[gte]", seconds)
        .query("effective_at[lt]", seconds)
        .query("effective_at[lte]", seconds)
        .query("project_ids[]", filter_schema)
        .query("event_types[]", filter_schema)
        .query("actor_ids[]", filter_schema)
        .query("resource_ids[]", filter_schema);
    Routes::of("Audit logs").get("/v1/organization/audit_logs", lists, list_audit_logs)
}

async fn list_audit_logs(State(app): State<App>, query: Query) -> Result<Response, Error> {
    let filter = AuditLogFilter::parse(query.pairs())?;
    let page = app.database.list_audit_logs(&filter, &query.page()?).await.map_err(map_cursor::<AuditLogId>)?;
    Ok(list(&page, |log| log.id.as_str(), AuditLogObject::from))
}
