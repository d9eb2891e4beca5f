//! `GET /v1/organization/projects/{project_id}/api_keys`\
//! `GET /v1/organization/projects/{project_id}/api_keys/{api_key_id}`\
//! `DELETE /v1/organization/projects/{project_id}/api_keys/{api_key_id}`

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::check_project;
use crate::api::id::Id as _;
use crate::api::organization::api_key::{OwnerAccess, ProjectApiKeyObject};
use crate::api::rule::{At, unsupported_value};
use crate::api::{ApiKeyId, ProjectId};
use crate::http::error::Error;
use crate::http::extract::{AnyIds, Query};
use crate::http::layers::auth::Admin;
use crate::http::reply::{deleted, list, map_cursor, object};
use crate::http::routes::{Routes, operation};
use crate::http::state::App;

const DELETED: &str = "organization.project.api_key.deleted";
const OWNER_ACCESS: &str = "owner_project_access";

pub(super) fn routes() -> Routes {
    let collection = "/v1/organization/projects/{project_id}/api_keys";
    let item = "/v1/organization/projects/{project_id}/api_keys/{api_key_id}";
    let lists = operation("listProjectApiKeys", "Lists the API keys of a project.")
        .paginated::<ProjectApiKeyObject>()
        .query(OWNER_ACCESS, |_| json!({"type": "string", "enum": ["active", "inactive", "any"], "default": "any"}));
    let get = operation("getProjectApiKey", "Retrieves an API key of a project.");
    let delete = operation(
        "deleteProjectApiKey",
        "Deletes an API key of a project. A key of a service account is deleted with the service account.",
    );
    Routes::of("Project API keys")
        .get(collection, lists, list_project_keys)
        .get(item, get.response::<ProjectApiKeyObject>(), get_project_key)
        .delete(item, delete.deletes(DELETED), delete_project_key)
}

async fn list_project_keys(
    State(app): State<App>,
    AnyIds((project,)): AnyIds<(ProjectId,)>,
    query: Query,
) -> Result<Response, Error> {
    let access = match query.get(OWNER_ACCESS) {
        None | Some("any") => None,
        Some("active") => Some(OwnerAccess::Active),
        Some("inactive") => Some(OwnerAccess::Inactive),
        Some(other) => {
            let at = At::Member(&At::Root, OWNER_ACCESS);
            return Err(unsupported_value(&at, other, &["active", "inactive", "any"]).into());
        }
    };
    let query = query.page()?;
    check_project(&app, &project).await?;
    let page = app.database.list_project_keys(&project, access, &query).await.map_err(map_cursor::<ApiKeyId>)?;
    Ok(list(&page, |stored| stored.key.id.as_str(), ProjectApiKeyObject::from))
}

async fn get_project_key(
    State(app): State<App>,
    AnyIds((project, id)): AnyIds<(ProjectId, ApiKeyId)>,
) -> Result<Response, Error> {
    check_project(&app, &project).await?;
    let key = app.database.project_key(&project, &id).await?.ok_or_else(|| id.not_found())?;
    Ok(object(&ProjectApiKeyObject::from(&key)))
}

async fn delete_project_key(
    State(app): State<App>,
    admin: Admin,
    AnyIds((project, id)): AnyIds<(ProjectId, ApiKeyId)>,
) -> Result<Response, Error> {
    check_project(&app, &project).await?;
    if !app.database.delete_project_key(&project, &id, &admin.change(app.clock.now())).await? {
        return Err(id.not_found().into());
    }
    Ok(deleted(&id, DELETED).into_response())
}
