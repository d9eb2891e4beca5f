//! `GET /v1/organization/projects/{project_id}/service_accounts`\
//! `POST /v1/organization/projects/{project_id}/service_accounts`\
//! `GET /v1/organization/projects/{project_id}/service_accounts/{service_account_id}`\
//! `POST /v1/organization/projects/{project_id}/service_accounts/{service_account_id}`\
//! `DELETE /v1/organization/projects/{project_id}/service_accounts/{service_account_id}`\
//! `POST /v1/organization/projects/{project_id}/service_accounts/{service_account_id}/api_keys`

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::{check_project, generate_key};
use crate::api::id::Id as _;
use crate::api::organization::ApiKey;
use crate::api::organization::api_key::{CreatedKeyObject, KeyHolder};
use crate::api::organization::service_account::{
    CreateServiceAccount, CreateServiceAccountKey, CreatedAccountObject, DEFAULT_KEY_NAME, ModifyServiceAccount,
    ServiceAccountObject,
};
use crate::api::{ProjectId, ServiceAccountId};
use crate::http::error::Error;
use crate::http::extract::{AnyIds, Json, Query};
use crate::http::layers::auth::Admin;
use crate::http::reply::{deleted, list, map_cursor, object};
use crate::http::routes::{Routes, operation};
use crate::http::state::App;
use crate::store::NewApiKey;

const DELETED: &str = "organization.project.service_account.deleted";

pub(super) fn routes() -> Routes {
    let collection = "/v1/organization/projects/{project_id}/service_accounts";
    let item = "/v1/organization/projects/{project_id}/service_accounts/{service_account_id}";
    let keys = "/v1/organization/projects/{project_id}/service_accounts/{service_account_id}/api_keys";
    let lists = operation("listProjectServiceAccounts", "Lists the service accounts of a project.");
    let create = operation(
        "createProjectServiceAccount",
        "Creates a service account and, by default, an API key for it, which is shown only in this response.",
    );
    let get = operation("getProjectServiceAccount", "Retrieves a service account.");
    let modify = operation("modifyProjectServiceAccount", "Modifies a service account.");
    let delete = operation("deleteProjectServiceAccount", "Deletes a service account and its API keys.");
    let create_key = operation(
        "createProjectServiceAccountApiKey",
        "Creates an API key for a service account. The key is shown only in this response.",
    );
    Routes::of("Service accounts")
        .get(collection, lists.paginated::<ServiceAccountObject>(), list_service_accounts)
        .post(
            collection,
            create.request::<CreateServiceAccount>().response::<CreatedAccountObject>(),
            create_service_account,
        )
        .get(item, get.response::<ServiceAccountObject>(), get_service_account)
        .post(item, modify.request::<ModifyServiceAccount>().response::<ServiceAccountObject>(), modify_service_account)
        .delete(item, delete.deletes(DELETED), delete_service_account)
        .post(
            keys,
            create_key.request::<CreateServiceAccountKey>().response::<CreatedKeyObject>(),
            create_service_account_key,
        )
}

async fn list_service_accounts(
    State(app): State<App>,
    AnyIds((project,)): AnyIds<(ProjectId,)>,
    query: Query,
) -> Result<Response, Error> {
    let query = query.page()?;
    check_project(&app, &project).await?;
    let page = app.database.list_service_accounts(&project, &query).await.map_err(map_cursor::<ServiceAccountId>)?;
    Ok(list(&page, |account| account.id.as_str(), ServiceAccountObject::from))
}

async fn create_service_account(
    State(app): State<App>,
    admin: Admin,
    AnyIds((project,)): AnyIds<(ProjectId,)>,
    Json(request): Json<CreateServiceAccount>,
) -> Result<Response, Error> {
    check_project(&app, &project).await?;
    let (now, with_key, expires_in_seconds) = (app.clock.now(), request.with_key()?, request.expires_in_seconds);
    let account = request.into_account(app.ids.generate(), with_key, now);
    let change = admin.change(now);
    if !with_key {
        app.database.create_service_account(&project, &account, None, &change).await?;
        return Ok(object(&CreatedAccountObject::new(&account, None)));
    }
    let holder = KeyHolder::ServiceAccount(project.clone(), account.id.clone());
    let secret = generate_key(&holder)?;
    let key = ApiKey::new(app.ids.generate(), &secret, DEFAULT_KEY_NAME.to_owned(), expires_in_seconds, now);
    let new = NewApiKey { secret: &secret, key: &key, holder: &holder };
    app.database.create_service_account(&project, &account, Some(&new), &change).await?;
    Ok(object(&CreatedAccountObject::new(&account, Some(CreatedKeyObject::new(&key, &secret)))))
}

async fn get_service_account(
    State(app): State<App>,
    AnyIds((project, id)): AnyIds<(ProjectId, ServiceAccountId)>,
) -> Result<Response, Error> {
    check_project(&app, &project).await?;
    let account = app.database.service_account(&project, &id).await?.ok_or_else(|| id.not_found())?;
    Ok(object(&ServiceAccountObject::from(&account)))
}

async fn modify_service_account(
    State(app): State<App>,
    admin: Admin,
    AnyIds((project, id)): AnyIds<(ProjectId, ServiceAccountId)>,
    Json(request): Json<ModifyServiceAccount>,
) -> Result<Response, Error> {
    let change = admin.change(app.clock.now());
    let account = app.database.modify_service_account(&project, &id, &request, &change).await?;
    let account = account.ok_or_else(|| id.not_found())?;
    Ok(object(&ServiceAccountObject::from(&account)))
}

async fn delete_service_account(
    State(app): State<App>,
    admin: Admin,
    AnyIds((project, id)): AnyIds<(ProjectId, ServiceAccountId)>,
) -> Result<Response, Error> {
    if !app.database.delete_service_account(&project, &id, &admin.change(app.clock.now())).await? {
        return Err(id.not_found().into());
    }
    Ok(deleted(&id, DELETED).into_response())
}

async fn create_service_account_key(
    State(app): State<App>,
    admin: Admin,
    AnyIds((project, id)): AnyIds<(ProjectId, ServiceAccountId)>,
    Json(request): Json<CreateServiceAccountKey>,
) -> Result<Response, Error> {
    let now = app.clock.now();
    let holder = KeyHolder::ServiceAccount(project, id);
    let secret = generate_key(&holder)?;
    let name = request.name.unwrap_or_else(|| DEFAULT_KEY_NAME.to_owned());
    let key = ApiKey::new(app.ids.generate(), &secret, name, request.expires_in_seconds, now);
    let new = NewApiKey { secret: &secret, key: &key, holder: &holder };
    app.database.create_key(&new, &admin.change(now)).await?;
    Ok(object(&CreatedKeyObject::new(&key, &secret)))
}
