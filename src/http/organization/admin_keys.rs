//! `GET /v1/organization/admin_api_keys`\
//! `POST /v1/organization/admin_api_keys`\
//! `GET /v1/organization/admin_api_keys/{api_key_id}`\
//! `DELETE /v1/organization/admin_api_keys/{api_key_id}`

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::generate_key;
use crate::api::ApiKeyId;
use crate::api::id::Id as _;
use crate::api::organization::ApiKey;
use crate::api::organization::api_key::{AdminApiKeyObject, CreateAdminApiKey, KeyHolder};
use crate::http::error::Error;
use crate::http::extract::{AnyIds, Json, Query};
use crate::http::layers::auth::Admin;
use crate::http::reply::{deleted, list, map_cursor, object};
use crate::http::routes::{Routes, operation};
use crate::http::state::App;
use crate::store::NewApiKey;

const DELETED: &str = "organization.admin_api_key.deleted";

pub(super) fn routes() -> Routes {
    let collection = "/v1/organization/admin_api_keys";
    let item = "/v1/organization/admin_api_keys/{api_key_id}";
    let lists = operation("listAdminApiKeys", "Lists the API keys of administrators, oldest first by default.");
    let create = operation(
        "createAdminApiKey",
        "Creates an API key for an administrator. The key is shown only in this response.",
    );
    let get = operation("getAdminApiKey", "Retrieves an API key of an administrator.");
    let delete = operation("deleteAdminApiKey", "Deletes an API key of an administrator.");
    Routes::of("Admin API keys")
        .get(collection, lists.paginated::<AdminApiKeyObject>().oldest_first(), list_admin_keys)
        .post(collection, create.request::<CreateAdminApiKey>().response::<AdminApiKeyObject>(), create_admin_key)
        .get(item, get.response::<AdminApiKeyObject>(), get_admin_key)
        .delete(item, delete.deletes(DELETED), delete_admin_key)
}

async fn list_admin_keys(State(app): State<App>, query: Query) -> Result<Response, Error> {
    let query = query.page_oldest_first()?;
    let page = app.database.list_admin_keys(&query).await.map_err(map_cursor::<ApiKeyId>)?;
    Ok(list(&page, |key| key.id.as_str(), AdminApiKeyObject::from))
}

async fn create_admin_key(
    State(app): State<App>,
    admin: Admin,
    Json(request): Json<CreateAdminApiKey>,
) -> Result<Response, Error> {
    let (now, holder) = (app.clock.now(), KeyHolder::Organization);
    let secret = generate_key(&holder)?;
    let key = ApiKey::new(app.ids.generate(), &secret, request.name, request.expires_in_seconds, now);
    let new = NewApiKey { secret: &secret, key: &key, holder: &holder };
    app.database.create_key(&new, &admin.change(now)).await?;
    Ok(object(&AdminApiKeyObject::created(&key, &secret)))
}

async fn get_admin_key(State(app): State<App>, AnyIds((id,)): AnyIds<(ApiKeyId,)>) -> Result<Response, Error> {
    let key = app.database.admin_key(&id).await?.ok_or_else(|| id.not_found())?;
    Ok(object(&AdminApiKeyObject::from(&key)))
}

async fn delete_admin_key(
    State(app): State<App>,
    admin: Admin,
    AnyIds((id,)): AnyIds<(ApiKeyId,)>,
) -> Result<Response, Error> {
    if !app.database.delete_admin_key(&id, &admin.change(app.clock.now())).await? {
        return Err(id.not_found().into());
    }
    Ok(deleted(&id, DELETED).into_response())
}
