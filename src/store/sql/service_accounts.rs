//! The table `service_accounts`.

use async_trait::async_trait;
use sqlx::Row as _;

use super::api_keys::insert_key;
use super::audit_log::record;
use super::page::{List, page, read};
use super::projects::begin_project_change;
use super::{Backend, Db, Row};
use crate::api::organization::service_account::{AccountRole, ModifyServiceAccount};
use crate::api::organization::{Change, Event, ServiceAccount};
use crate::api::{ApiKeyId, Page, PageQuery, ProjectId, ServiceAccountId, Timestamp};
use crate::store::Error;
use crate::store::{NewApiKey, ServiceAccounts};

const TABLE: &str = "service_accounts";
const COLUMNS: &str = "id, created_at, name, role";
const SELECT: &str = "select id, created_at, name, role from service_accounts where id = $1 and project_id = $2";

fn from_row(row: &Row) -> Result<ServiceAccount, Error> {
    Ok(ServiceAccount {
        id: ServiceAccountId::from_stored(row.try_get::<&str, _>("id")?),
        created_at: Timestamp(row.try_get("created_at")?),
        name: row.try_get("name")?,
        role: AccountRole::from_stored(row.try_get("role")?),
    })
}

#[async_trait]
impl ServiceAccounts for Backend {
    async fn create_service_account(
        &self,
        project: &ProjectId,
        account: &ServiceAccount,
        key: Option<&NewApiKey<'_>>,
        change: &Change,
    ) -> Result<(), Error> {
        let (mut tx, _) = begin_project_change(self, project).await?;
        sqlx::query::<Db>(
            "insert into service_accounts (id, project_id, created_at, name, role) values ($1, $2, $3, $4, $5)",
        )
        .bind(account.id.as_str())
        .bind(project.as_str())
        .bind(account.created_at.0)
        .bind(&account.name)
        .bind(account.role.as_str())
        .execute(&mut tx)
        .await?;
        record(&mut tx, &Event::service_account_created(project, account), change).await?;
        if let Some(key) = key {
            insert_key(&mut tx, key, change).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    async fn service_account(
        &self,
        project: &ProjectId,
        id: &ServiceAccountId,
    ) -> Result<Option<ServiceAccount>, Error> {
        let query = sqlx::query::<Db>(SELECT).bind(id.as_str()).bind(project.as_str());
        query.fetch_optional(self.reader()).await?.as_ref().map(from_row).transpose()
    }

    async fn list_service_accounts(
        &self,
        project: &ProjectId,
        query: &PageQuery,
    ) -> Result<Page<ServiceAccount>, Error> {
        let filter = [("project_id", project.as_str())];
        let rows =
            page(self, &List { table: TABLE, columns: COLUMNS, body: "name", filter: &filter, parent: None }, query)
                .await?;
        read(self, &rows, from_row)
    }

    async fn modify_service_account(
        &self,
        project: &ProjectId,
        id: &ServiceAccountId,
        request: &ModifyServiceAccount,
        change: &Change,
    ) -> Result<Option<ServiceAccount>, Error> {
        let (mut tx, _) = begin_project_change(self, project).await?;
        let query = sqlx::query::<Db>(SELECT).bind(id.as_str()).bind(project.as_str());
        let Some(row) = query.fetch_optional(&mut tx).await? else {
            tx.rollback().await?;
            return Ok(None);
        };
        let mut account = from_row(&row)?;
        request.clone().apply(&mut account);
        sqlx::query::<Db>("update service_accounts set name = $2, role = $3 where id = $1")
            .bind(id.as_str())
            .bind(&account.name)
            .bind(account.role.as_str())
            .execute(&mut tx)
            .await?;
        record(&mut tx, &Event::service_account_updated(project, id, request), change).await?;
        tx.commit().await?;
        Ok(Some(account))
    }

    async fn delete_service_account(
        &self,
        project: &ProjectId,
        id: &ServiceAccountId,
        change: &Change,
    ) -> Result<bool, Error> {
        let (mut tx, _) = begin_project_change(self, project).await?;
        let done = sqlx::query::<Db>("delete from service_accounts where id = $1 and project_id = $2")
            .bind(id.as_str())
            .bind(project.as_str())
            .execute(&mut tx)
            .await?;
        if done.rows_affected() == 0 {
            tx.rollback().await?;
            return Ok(false);
        }
        let keys: Vec<(String,)> =
            sqlx::query_as::<Db, _>("delete from api_keys where service_account_id = $1 returning id")
                .bind(id.as_str())
                .fetch_all(&mut tx)
                .await?;
        for (key,) in keys {
            let event = Event::api_key_deleted(Some(project), &ApiKeyId::from_stored(key));
            record(&mut tx, &event, change).await?;
        }
        record(&mut tx, &Event::service_account_deleted(project, id), change).await?;
        tx.commit().await?;
        Ok(true)
    }
}
