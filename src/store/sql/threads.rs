//! The table `threads`.

use async_trait::async_trait;
use sqlx::Row as _;

use super::page::{List, page, project, read};
use super::resources::{check_resources, find_files, store_new};
use super::store_files::finish;
use super::{Backend, Db, Row, insert_thread};
use crate::api::rule::Patch;
use crate::api::tool::NewResources;
use crate::api::{Message, ModifyThread, Page, PageQuery, RunId, Scope, Thread, ThreadId};
use crate::store::pool::Transaction;
use crate::store::{Error, Threads, from_json, to_json};

const TABLE: &str = "threads";

fn from_row(row: &Row) -> Result<Thread, Error> {
    from_json(TABLE, row.try_get("id")?, row.try_get("body")?)
}

/// Stores what is created with a new thread. Returns the thread with the files that its messages attach.
pub(super) async fn prepare_thread(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    thread: &Thread,
    new: &NewResources,
) -> Result<Thread, Error> {
    let found = find_files(tx, fixed_time, scope, new).await?;
    let mut thread = thread.clone();
    check_resources(&mut *tx, fixed_time, scope, &thread.tool_resources, new.vector_store.as_ref()).await?;
    store_new(tx, fixed_time, scope, &mut thread.tool_resources, (new, &found, thread.created_at)).await?;
    Ok(thread)
}

#[async_trait]
impl Threads for Backend {
    async fn create_thread(
        &self,
        scope: &Scope,
        thread: &Thread,
        messages: &[Message],
        new: &NewResources,
    ) -> Result<Thread, Error> {
        if new.is_empty() && thread.tool_resources.is_empty() {
            self.insert_thread(scope, thread, messages).await?;
            return Ok(thread.clone());
        }
        let mut tx = self.begin().await?;
        let outcome = async {
            let thread = prepare_thread(&mut tx, self.fixed_time(), scope, thread, new).await?;
            insert_thread(&mut tx, scope, &thread, messages).await?;
            Ok(thread)
        }
        .await;
        finish(tx, outcome).await
    }

    async fn thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Thread>, Error> {
        let row = sqlx::query::<Db>("select id, body from threads where id = $1 and project_id = $2")
            .bind(id.as_str())
            .bind(scope.as_str())
            .fetch_optional(self.reader())
            .await?;
        let Some(row) = row else { return Ok(None) };
        let mut thread = from_row(&row)?;
        self.remove_deleted_files(scope, &mut [&mut thread.tool_resources]).await?;
        Ok(Some(thread))
    }

    async fn list_threads(&self, scope: &Scope, query: &PageQuery) -> Result<Page<Thread>, Error> {
        let filter = [project(scope)];
        let rows =
            page(self, &List { table: TABLE, columns: "id, body", body: "body", filter: &filter, parent: None }, query)
                .await?;
        let mut page = read(self, &rows, from_row)?;
        let mut resources: Vec<_> = page.data.iter_mut().map(|thread| &mut thread.tool_resources).collect();
        self.remove_deleted_files(scope, &mut resources).await?;
        Ok(page)
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
            if let Patch::Set(resources) = &change.tool_resources {
                check_resources(self.reader(), self.fixed_time(), scope, resources, None).await?;
            }
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
                self.remove_deleted_files(scope, &mut [&mut thread.tool_resources]).await?;
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
            "delete from code_files where thread_id = $1 and project_id = $2",
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
