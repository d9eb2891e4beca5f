//! The table `api_keys`.

use async_trait::async_trait;
use sqlx::Row as _;

use super::audit_log::{begin_change, record};
use super::page::{List, page, read};
use super::projects::begin_project_change;
use super::{Backend, Db, Row};
use crate::api::organization::api_key::{ApiKey, KeyHolder, OwnerAccess, ProjectApiKey};
use crate::api::organization::service_account::AccountRole;
use crate::api::organization::{Change, Event, ServiceAccount};
use crate::api::{ApiKeyId, Page, PageQuery, ProjectId, ServiceAccountId, Timestamp};
use crate::store::Error;
use crate::store::pool::Transaction;
use crate::store::{ApiKeys, NewApiKey};

/// The keys with their owners.
const TABLE: &str = "(
    select k.seq, k.id, k.project_id, k.service_account_id, k.redacted_value, k.name, k.created_at, k.expires_at,
           k.last_used_at, a.name as account_name, a.role as account_role, a.created_at as account_created_at,
           case when p.status <> 'active' or a.role = 'none' then 'inactive' else 'active' end as owner_access
    from api_keys k
    left join projects p on p.id = k.project_id
    left join service_accounts a on a.id = k.service_account_id
) as keys";
const COLUMNS: &str = "id, service_account_id, redacted_value, name, created_at, expires_at, last_used_at, \
                       account_name, account_role, account_created_at, owner_access";
/// The columns of a key of the administration, which has no owner in the database.
const ADMIN_COLUMNS: &str = "id, redacted_value, name, created_at, expires_at, last_used_at";

fn key_of(row: &Row) -> Result<ApiKey, Error> {
    Ok(ApiKey {
        id: ApiKeyId::from_stored(row.try_get::<&str, _>("id")?),
        name: row.try_get("name")?,
        redacted_value: row.try_get("redacted_value")?,
        created_at: Timestamp(row.try_get("created_at")?),
        expires_at: row.try_get::<Option<i64>, _>("expires_at")?.map(Timestamp),
        last_used_at: row.try_get::<Option<i64>, _>("last_used_at")?.map(Timestamp),
    })
}

fn project_key_of(row: &Row) -> Result<ProjectApiKey, Error> {
    let account: &str = row.try_get("service_account_id")?;
    let account = if account.is_empty() { None } else { Some(ServiceAccountId::from_stored(account)) };
    let service_account = match account {
        None => None,
        Some(id) => Some(ServiceAccount {
            id,
            created_at: Timestamp(row.try_get("account_created_at")?),
            name: row.try_get("account_name")?,
            role: AccountRole::from_stored(row.try_get("account_role")?),
        }),
    };
    let is_active = row.try_get::<&str, _>("owner_access")? == OwnerAccess::Active.as_str();
    let access = if is_active { OwnerAccess::Active } else { OwnerAccess::Inactive };
    Ok(ProjectApiKey { key: key_of(row)?, service_account, access })
}

/// Stores a key whose holder was checked.
pub(super) async fn insert_key(tx: &mut Transaction<Db>, new: &NewApiKey<'_>, change: &Change) -> Result<(), Error> {
    let NewApiKey { secret, key, holder } = new;
    sqlx::query::<Db>(
        "insert into api_keys
             (id, project_id, service_account_id, digest, redacted_value, name, created_at, expires_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(key.id.as_str())
    .bind(holder.project().map_or("", ProjectId::as_str))
    .bind(holder.service_account().map_or("", ServiceAccountId::as_str))
    .bind(secret.digest())
    .bind(&key.redacted_value)
    .bind(&key.name)
    .bind(key.created_at.0)
    .bind(key.expires_at.map(|at| at.0))
    .execute(&mut *tx)
    .await?;
    record(tx, &Event::api_key_created(holder, key), change).await
}

/// Deletes a key without a service account. Returns whether it existed.
async fn delete_key(db: &Backend, project: Option<&ProjectId>, id: &ApiKeyId, change: &Change) -> Result<bool, Error> {
    let mut tx = begin_change(db).await?;
    let Some((holder, account)) = holder_of_key(&mut tx, id).await?.filter(|(holder, _)| holder.as_ref() == project)
    else {
        tx.rollback().await?;
        return Ok(false);
    };
    if !account.is_empty() {
        tx.rollback().await?;
        return Err(Error::KeyOfServiceAccount);
    }
    remove_key(tx, holder.as_ref(), id, change).await
}

/// Returns the project and the service account of a key, if it exists.
async fn holder_of_key(tx: &mut Transaction<Db>, id: &ApiKeyId) -> Result<Option<(Option<ProjectId>, String)>, Error> {
    let row: Option<(String, String)> =
        sqlx::query_as::<Db, _>("select project_id, service_account_id from api_keys where id = $1")
            .bind(id.as_str())
            .fetch_optional(&mut *tx)
            .await?;
    Ok(row.map(|(project, account)| ((!project.is_empty()).then(|| ProjectId::from_stored(project)), account)))
}

async fn remove_key(
    mut tx: Transaction<Db>,
    project: Option<&ProjectId>,
    id: &ApiKeyId,
    change: &Change,
) -> Result<bool, Error> {
    sqlx::query::<Db>("delete from api_keys where id = $1").bind(id.as_str()).execute(&mut tx).await?;
    record(&mut tx, &Event::api_key_deleted(project, id), change).await?;
    tx.commit().await?;
    Ok(true)
}

#[async_trait]
impl ApiKeys for Backend {
    async fn create_key(&self, new: &NewApiKey<'_>, change: &Change) -> Result<(), Error> {
        let mut tx = match new.holder.project() {
            Some(project) => begin_project_change(self, project).await?.0,
            None => begin_change(self).await?,
        };
        if let KeyHolder::ServiceAccount(project, account) = new.holder {
            let found = sqlx::query::<Db>("select 1 from service_accounts where id = $1 and project_id = $2")
                .bind(account.as_str())
                .bind(project.as_str())
                .fetch_optional(&mut tx)
                .await?;
            if found.is_none() {
                tx.rollback().await?;
                return Err(Error::NoServiceAccount(account.clone()));
            }
        }
        insert_key(&mut tx, new, change).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn project_key(&self, project: &ProjectId, id: &ApiKeyId) -> Result<Option<ProjectApiKey>, Error> {
        let filter = [("project_id", project.as_str()), ("id", id.as_str())];
        let list = List { table: TABLE, columns: COLUMNS, body: "name", filter: &filter, parent: None };
        let keys = page(self, &list, &PageQuery::default()).await?;
        keys.data.first().map(project_key_of).transpose()
    }

    async fn list_project_keys(
        &self,
        project: &ProjectId,
        access: Option<OwnerAccess>,
        query: &PageQuery,
    ) -> Result<Page<ProjectApiKey>, Error> {
        let mut filter = vec![("project_id", project.as_str())];
        filter.extend(access.map(|access| ("owner_access", access.as_str())));
        let list = List { table: TABLE, columns: COLUMNS, body: "name", filter: &filter, parent: None };
        let rows = page(self, &list, query).await?;
        read(self, &rows, project_key_of)
    }

    async fn delete_project_key(&self, project: &ProjectId, id: &ApiKeyId, change: &Change) -> Result<bool, Error> {
        delete_key(self, Some(project), id, change).await
    }

    async fn admin_key(&self, id: &ApiKeyId) -> Result<Option<ApiKey>, Error> {
        let filter = [("project_id", ""), ("id", id.as_str())];
        let list = List { table: "api_keys", columns: ADMIN_COLUMNS, body: "name", filter: &filter, parent: None };
        let keys = page(self, &list, &PageQuery::default()).await?;
        keys.data.first().map(key_of).transpose()
    }

    async fn list_admin_keys(&self, query: &PageQuery) -> Result<Page<ApiKey>, Error> {
        let filter = [("project_id", "")];
        let list = List { table: "api_keys", columns: ADMIN_COLUMNS, body: "name", filter: &filter, parent: None };
        let rows = page(self, &list, query).await?;
        read(self, &rows, key_of)
    }

    async fn delete_admin_key(&self, id: &ApiKeyId, change: &Change) -> Result<bool, Error> {
        delete_key(self, None, id, change).await
    }

    async fn revoke_key(&self, id: &ApiKeyId, change: &Change) -> Result<bool, Error> {
        let mut tx = begin_change(self).await?;
        let Some((project, _)) = holder_of_key(&mut tx, id).await? else {
            tx.rollback().await?;
            return Ok(false);
        };
        remove_key(tx, project.as_ref(), id, change).await
    }
}
