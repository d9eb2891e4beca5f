//! The table `threads`.

use async_trait::async_trait;
use sqlx::Row as _;

use super::page::{List, page, project, read};
use super::{Backend, Db, Row};
use crate::api::{Message, ModifyThread, Page, PageQuery, RunId, Scope, Thread, ThreadId};
use crate::store::{Error, Threads, from_json, to_json};

const TABLE: &str = "threads";

fn from_row(row: &Row) -> Result<Thread, Error> {
    from_json(TABLE, row.try_get("id")?, row.try_get("body")?)
}

#[async_trait]
impl Threads for Backend {
    async fn create_thread(&self, scope: &Scope, thread: &Thread, messages: &[Message]) -> Result<(), Error> {
        self.insert_thread(scope, thread, messages).await
    }

    async fn thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Thread>, Error> {
        let row = sqlx::query::<Db>("select id, body from threads where id = $1 and project_id = $2")
            .bind(id.as_str())
            .bind(scope.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(from_row).transpose()
    }

    async fn list_threads(&self, scope: &Scope, query: &PageQuery) -> Result<Page<Thread>, Error> {
        let filter = [project(scope)];
        let rows =
            page(self, &List { table: TABLE, columns: "id, body", body: "body", filter: &filter, parent: None }, query)
                .await?;
        read(self, &rows, from_row)
    }

    async fn modify_thread(
        &self,
        scope: &Scope,
        id: &ThreadId,
        change: &ModifyThread,
    ) -> Result<Option<Thread>, Error> {
        loop {
            let row = sqlx::query::<Db>("select id, body, version from threads where id = $1 and project_id = $2")
                .bind(id.as_str())
                .bind(scope.as_str())
                .fetch_optional(self.reader())
                .await?;
            let Some(row) = row else { return Ok(None) };
            let mut thread = from_row(&row)?;
            change.clone().apply(&mut thread);
            let sql = "update threads set body = $3, version = $2 + 1
                       where id = $1 and version = $2 and project_id = $4";
            let done = sqlx::query::<Db>(sql)
                .bind(id.as_str())
                .bind(row.try_get::<i64, _>("version")?)
                .bind(to_json(&thread))
                .bind(scope.as_str())
                .execute(self.writer())
                .await?;
            if done.rows_affected() == 1 {
                return Ok(Some(thread));
            }
        }
    }

    /// Locks rows in the order of a run's commit: the runs, then the thread. The lock of the thread prevents new messages
    /// and runs until everything is deleted.
    async fn delete_thread(&self, scope: &Scope, id: &ThreadId) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        sqlx::query::<Db>("update runs set due_at = null where thread_id = $1 and project_id = $2")
            .bind(id.as_str())
            .bind(scope.as_str())
            .execute(&mut tx)
            .await?;
        let done = sqlx::query::<Db>("delete from threads where id = $1 and project_id = $2")
            .bind(id.as_str())
            .bind(scope.as_str())
            .execute(&mut tx)
            .await?;
        for sql in [
            "delete from messages where thread_id = $1 and project_id = $2",
            "delete from run_steps where thread_id = $1 and project_id = $2",
            "delete from runs where thread_id = $1 and project_id = $2",
        ] {
            sqlx::query::<Db>(sql).bind(id.as_str()).bind(scope.as_str()).execute(&mut tx).await?;
        }
        tx.commit().await?;
        Ok(done.rows_affected() == 1)
    }
}

impl Backend {
    /// Fails if the thread does not exist or is locked.
    pub(super) async fn check_lock(&self, scope: &Scope, id: &ThreadId) -> Result<(), Error> {
        let row: Option<(Option<String>,)> = sqlx::query_as::<Db, _>(
            "select coalesce(active_run, (select id from runs where thread_id = $1 and waits order by seq limit 1))
             from threads where id = $1 and project_id = $2",
        )
        .bind(id.as_str())
        .bind(scope.as_str())
        .fetch_optional(self.reader())
        .await?;
        match row {
            None => Err(Error::NoThread),
            Some((Some(run),)) => Err(Error::ThreadBusy(RunId::from_stored(run))),
            Some((None,)) => Ok(()),
        }
    }
}
