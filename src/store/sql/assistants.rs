//! The table `assistants`.

use async_trait::async_trait;
use sqlx::Row as _;

use super::page::{List, page, project, read};
use super::resources::{check_resources, find_files, store_new};
use super::store_files::finish;
use super::{Backend, Db, Row};
use crate::api::rule::Patch;
use crate::api::tool::NewResources;
use crate::api::{Assistant, AssistantId, ModifyAssistant, Page, PageQuery, Scope};
use crate::store::{Assistants, Error, from_json, to_json};

const TABLE: &str = "assistants";

fn from_row(row: &Row) -> Result<Assistant, Error> {
    from_json(TABLE, row.try_get("id")?, row.try_get("body")?)
}

async fn insert<'e>(
    db: impl sqlx::Executor<'e, Database = Db>,
    scope: &Scope,
    assistant: &Assistant,
) -> Result<(), Error> {
    sqlx::query::<Db>("insert into assistants (id, created_at, version, body, project_id) values ($1, $2, 1, $3, $4)")
        .bind(assistant.id.as_str())
        .bind(assistant.created_at.0)
        .bind(to_json(assistant))
        .bind(scope.as_str())
        .execute(db)
        .await?;
    Ok(())
}

#[async_trait]
impl Assistants for Backend {
    async fn create_assistant(&self, scope: &Scope, assistant: &Assistant, new: &NewResources) -> Result<(), Error> {
        if new.is_empty() && assistant.tool_resources.is_empty() {
            return insert(self.writer(), scope, assistant).await;
        }
        let mut tx = self.begin().await?;
        let outcome = async {
            let time = self.fixed_time();
            let found = find_files(&mut tx, time, scope, new).await?;
            check_resources(&mut tx, time, scope, &assistant.tool_resources, new.vector_store.as_ref()).await?;
            let mut resources = assistant.tool_resources.clone();
            store_new(&mut tx, time, scope, &mut resources, (new, &found, assistant.created_at)).await?;
            insert(&mut tx, scope, assistant).await
        }
        .await;
        finish(tx, outcome).await
    }

    async fn assistant(&self, scope: &Scope, id: &AssistantId) -> Result<Option<Assistant>, Error> {
        let row = sqlx::query::<Db>("select id, body from assistants where id = $1 and project_id = $2")
            .bind(id.as_str())
            .bind(scope.as_str())
            .fetch_optional(self.reader())
            .await?;
        let Some(row) = row else { return Ok(None) };
        let mut assistant = from_row(&row)?;
        self.remove_deleted_files(scope, &mut [&mut assistant.tool_resources]).await?;
        Ok(Some(assistant))
    }

    async fn list_assistants(&self, scope: &Scope, query: &PageQuery) -> Result<Page<Assistant>, Error> {
        let filter = [project(scope)];
        let rows =
            page(self, &List { table: TABLE, columns: "id, body", body: "body", filter: &filter, parent: None }, query)
                .await?;
        let mut page = read(self, &rows, from_row)?;
        let mut resources: Vec<_> = page.data.iter_mut().map(|assistant| &mut assistant.tool_resources).collect();
        self.remove_deleted_files(scope, &mut resources).await?;
        Ok(page)
    }

    async fn modify_assistant(
        &self,
        scope: &Scope,
        id: &AssistantId,
        change: &ModifyAssistant,
    ) -> Result<Option<Assistant>, Error> {
        loop {
            let row = sqlx::query::<Db>("select id, body, version from assistants where id = $1 and project_id = $2")
                .bind(id.as_str())
                .bind(scope.as_str())
                .fetch_optional(self.reader())
                .await?;
            let Some(row) = row else { return Ok(None) };
            if let Patch::Set(resources) = &change.tool_resources {
                check_resources(self.reader(), self.fixed_time(), scope, resources, None).await?;
            }
            let mut assistant = from_row(&row)?;
            change.clone().apply(&mut assistant);
            let sql = "update assistants set body = $3, version = $2 + 1
                       where id = $1 and version = $2 and project_id = $4";
            let done = sqlx::query::<Db>(sql)
                .bind(id.as_str())
                .bind(row.try_get::<i64, _>("version")?)
                .bind(to_json(&assistant))
                .bind(scope.as_str())
                .execute(self.writer())
                .await?;
            if done.rows_affected() == 1 {
                self.remove_deleted_files(scope, &mut [&mut assistant.tool_resources]).await?;
                return Ok(Some(assistant));
            }
        }
    }

    async fn delete_assistant(&self, scope: &Scope, id: &AssistantId) -> Result<bool, Error> {
        let done = sqlx::query::<Db>("delete from assistants where id = $1 and project_id = $2")
            .bind(id.as_str())
            .bind(scope.as_str())
            .execute(self.writer())
            .await?;
        Ok(done.rows_affected() == 1)
    }
}
