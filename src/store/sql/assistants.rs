//! The table `assistants`.

use async_trait::async_trait;
use sqlx::Row as _;

use super::page::{List, page, project, read};
use super::{Backend, Db, Row};
use crate::api::{Assistant, AssistantId, ModifyAssistant, Page, PageQuery, Scope};
use crate::store::{Assistants, Error, from_json, to_json};

const TABLE: &str = "assistants";

fn from_row(row: &Row) -> Result<Assistant, Error> {
    from_json(TABLE, row.try_get("id")?, row.try_get("body")?)
}

#[async_trait]
impl Assistants for Backend {
    async fn create_assistant(&self, scope: &Scope, assistant: &Assistant) -> Result<(), Error> {
        sqlx::query::<Db>(
            "insert into assistants (id, created_at, version, body, project_id) values ($1, $2, 1, $3, $4)",
        )
        .bind(assistant.id.as_str())
        .bind(assistant.created_at.0)
        .bind(to_json(assistant))
        .bind(scope.as_str())
        .execute(self.writer())
        .await?;
        Ok(())
    }

    async fn assistant(&self, scope: &Scope, id: &AssistantId) -> Result<Option<Assistant>, Error> {
        let row = sqlx::query::<Db>("select id, body from assistants where id = $1 and project_id = $2")
            .bind(id.as_str())
            .bind(scope.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(from_row).transpose()
    }

    async fn list_assistants(&self, scope: &Scope, query: &PageQuery) -> Result<Page<Assistant>, Error> {
        let filter = [project(scope)];
        let rows =
            page(self, &List { table: TABLE, columns: "id, body", body: "body", filter: &filter, parent: None }, query)
                .await?;
        read(self, &rows, from_row)
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
