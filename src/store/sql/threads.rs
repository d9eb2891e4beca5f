//! The table `threads`.

use async_trait::async_trait;
use sqlx::Row as _;

use super::page::{List, page, read};
use super::{Backend, Db, Row};
use crate::api::{Message, ModifyThread, Page, PageQuery, RunId, Thread, ThreadId};
use crate::store::{Error, Threads, from_json, to_json};

const TABLE: &str = "threads";

fn from_row(row: &Row) -> Result<Thread, Error> {
    from_json(TABLE, row.try_get("id")?, row.try_get("body")?)
}

#[async_trait]
impl Threads for Backend {
    async fn create_thread(&self, thread: &Thread, messages: &[Message]) -> Result<(), Error> {
        self.insert_thread(thread, messages).await
    }

    async fn thread(&self, id: &ThreadId) -> Result<Option<Thread>, Error> {
        let row = sqlx::query::<Db>("select id, body from threads where id = $1")
            .bind(id.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(from_row).transpose()
    }

    async fn list_threads(&self, query: &PageQuery) -> Result<Page<Thread>, Error> {
        let rows = page(self, &List { table: TABLE, columns: "id, body", body: "body", scope: &[] }, query).await?;
        read(self, &rows, from_row)
    }

    async fn modify_thread(&self, id: &ThreadId, change: &ModifyThread) -> Result<Option<Thread>, Error> {
        loop {
            let row = sqlx::query::<Db>("select id, body, version from threads where id = $1")
                .bind(id.as_str())
                .fetch_optional(self.reader())
                .await?;
            let Some(row) = row else { return Ok(None) };
            let mut thread = from_row(&row)?;
            change.clone().apply(&mut thread);
            let done =
                sqlx::query::<Db>("update threads set body = $3, version = $2 + 1 where id = $1 and version = $2")
                    .bind(id.as_str())
                    .bind(row.try_get::<i64, _>("version")?)
                    .bind(to_json(&thread))
                    .execute(self.writer())
                    .await?;
            if done.rows_affected() == 1 {
                return Ok(Some(thread));
            }
        }
    }

    /// Locks rows in the order of a run's commit: the runs, then the thread. The lock of the thread prevents new messages
    /// and runs until everything is deleted.
    async fn delete_thread(&self, id: &ThreadId) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        sqlx::query::<Db>("update runs set due_at = null where thread_id = $1")
            .bind(id.as_str())
            .execute(&mut tx)
            .await?;
        let done = sqlx::query::<Db>("delete from threads where id = $1").bind(id.as_str()).execute(&mut tx).await?;
        for sql in [
            "delete from messages where thread_id = $1",
            "delete from run_steps where thread_id = $1",
            "delete from runs where thread_id = $1",
        ] {
            sqlx::query::<Db>(sql).bind(id.as_str()).execute(&mut tx).await?;
        }
        tx.commit().await?;
        Ok(done.rows_affected() == 1)
    }
}

impl Backend {
    /// Fails if the thread does not exist or is locked.
    pub(super) async fn check_lock(&self, id: &ThreadId) -> Result<(), Error> {
        let row: Option<(Option<String>,)> = sqlx::query_as::<Db, _>(
            "select coalesce(active_run, (select id from runs where thread_id = $1 and waits order by seq limit 1))
             from threads where id = $1",
        )
        .bind(id.as_str())
        .fetch_optional(self.reader())
        .await?;
        match row {
            None => Err(Error::NoThread),
            Some((Some(run),)) => Err(Error::ThreadBusy(RunId::from_stored(run))),
            Some((None,)) => Ok(()),
        }
    }
}
