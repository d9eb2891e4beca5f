//! The tables `runs` and `run_steps`.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sqlx::Row as _;

use super::page::{List, page};
use super::{Backend, CLAIM_RUN, Db, Row, messages};
use crate::api::run::{RunState, Usage};
use crate::api::{
    Assistant, AssistantId, Message, Metadata, Page, PageQuery, Run, RunId, RunStep, RunStepId, Thread, ThreadId,
    Timestamp,
};
use crate::store::{Commit, Committed, Error, Ground, NewRun, Runs, Versioned, from_json, to_json};

const RUNS: &str = "runs";
const STEPS: &str = "run_steps";
const RUN_COLUMNS: &str = "id, version, due_at, spec, state, metadata";

/// The column `state`: what a commit changes of a run.
#[derive(Serialize, Deserialize)]
struct StateColumn<S> {
    state: S,
    usage: Usage,
}

pub(super) fn state_column(run: &Run) -> String {
    to_json(&StateColumn { state: &run.state, usage: run.usage })
}

fn run_from_row(row: &Row) -> Result<Versioned, Error> {
    let id: &str = row.try_get("id")?;
    let column: StateColumn<RunState> = from_json(RUNS, id, row.try_get("state")?)?;
    let run = Run {
        spec: Arc::new(from_json(RUNS, id, row.try_get("spec")?)?),
        metadata: from_json(RUNS, id, row.try_get("metadata")?)?,
        state: column.state,
        usage: column.usage,
    };
    let due_at = row.try_get::<Option<i64>, _>("due_at")?.map(Timestamp);
    Ok(Versioned { run, version: row.try_get("version")?, due_at })
}

/// A commit that was written, and the `metadata` of the message that it changed.
pub(super) struct Written(pub Option<String>);

fn step_from_row(row: &Row) -> Result<RunStep, Error> {
    from_json(STEPS, row.try_get("id")?, row.try_get("body")?)
}

#[async_trait]
impl Runs for Backend {
    async fn ground(&self, thread: Option<&ThreadId>, assistant: &AssistantId) -> Result<Ground, Error> {
        let thread = thread.map_or("", ThreadId::as_str);
        let row = sqlx::query::<Db>(
            "select (select body from assistants where id = $1) as assistant,
                    (select body from threads where id = $2) as thread,
                    exists (select 1 from messages where thread_id = $2) as has_messages",
        )
        .bind(assistant.as_str())
        .bind(thread)
        .fetch_one(self.reader())
        .await?;
        let assistant_body: Option<&str> = row.try_get("assistant")?;
        let thread_body: Option<&str> = row.try_get("thread")?;
        Ok(Ground {
            assistant: assistant_body
                .map(|body| from_json::<Assistant>("assistants", assistant.as_str(), body))
                .transpose()?,
            thread: thread_body.map(|body| from_json::<Thread>("threads", thread, body)).transpose()?,
            has_messages: row.try_get("has_messages")?,
        })
    }

    async fn create_run(&self, new: &NewRun<'_>) -> Result<(), Error> {
        loop {
            if self.insert_run(new).await? {
                return Ok(());
            }
            self.check_lock(&new.run.spec.thread_id).await?;
        }
    }

    async fn run(&self, thread: &ThreadId, id: &RunId) -> Result<Option<Versioned>, Error> {
        let row = sqlx::query::<Db>(
            "select id, version, due_at, spec, state, metadata from runs where id = $1 and thread_id = $2",
        )
        .bind(id.as_str())
        .bind(thread.as_str())
        .fetch_optional(self.reader())
        .await?;
        row.as_ref().map(run_from_row).transpose()
    }

    async fn list_runs(&self, thread: &ThreadId, query: &PageQuery) -> Result<Page<Run>, Error> {
        let list = List { table: RUNS, columns: RUN_COLUMNS, scope: &[("thread_id", thread.as_str())] };
        page(self, &list, query).await?.try_map(|row| Ok(run_from_row(&row)?.run))
    }

    async fn modify_run(&self, thread: &ThreadId, id: &RunId, metadata: &Metadata) -> Result<Option<Run>, Error> {
        let row = sqlx::query::<Db>(
            "update runs set metadata = $3 where id = $1 and thread_id = $2
             returning id, version, due_at, spec, state, metadata",
        )
        .bind(id.as_str())
        .bind(thread.as_str())
        .bind(to_json(metadata))
        .fetch_optional(self.writer())
        .await?;
        Ok(row.as_ref().map(run_from_row).transpose()?.map(|versioned| versioned.run))
    }

    async fn parts(&self, run: &RunId) -> Result<(Vec<RunStep>, Option<Message>), Error> {
        let rows = sqlx::query::<Db>("select id, body from run_steps where run_id = $1 order by created_at, seq")
            .bind(run.as_str())
            .fetch_all(self.reader())
            .await?;
        let steps = rows.iter().map(step_from_row).collect::<Result<Vec<_>, Error>>()?;
        if !steps.iter().any(RunStep::makes_message) {
            return Ok((steps, None));
        }
        let row = sqlx::query::<Db>("select id, created_at, metadata, body from messages where run_id = $1")
            .bind(run.as_str())
            .fetch_optional(self.reader())
            .await?;
        Ok((steps, row.as_ref().map(messages::from_row).transpose()?))
    }

    async fn claim_run(&self, now: Timestamp, until: Timestamp) -> Result<Option<Versioned>, Error> {
        let row = sqlx::query::<Db>(CLAIM_RUN).bind(now.0).bind(until.0).fetch_optional(self.writer()).await?;
        row.as_ref().map(run_from_row).transpose()
    }

    async fn commit(&self, commit: Commit<'_>) -> Result<Committed, Error> {
        let Written(metadata) = self.write_commit(&commit).await?.ok_or(Error::Stale)?;
        let id = commit.changed_message.map_or("", |message| message.id.as_str());
        let metadata = metadata.map(|metadata| from_json(messages::TABLE, id, &metadata)).transpose()?;
        Ok(Committed { version: commit.version + 1, metadata })
    }

    async fn keep(&self, run: &RunId, version: i64, until: Timestamp, message: Option<&Message>) -> Result<(), Error> {
        if self.write_lease(run, version, until, message).await? { Ok(()) } else { Err(Error::Stale) }
    }

    async fn release(&self, run: &RunId, version: i64, now: Timestamp) -> Result<(), Error> {
        let done = sqlx::query::<Db>("update runs set due_at = $3 where id = $1 and version = $2 and due_at > $3")
            .bind(run.as_str())
            .bind(version)
            .bind(now.0)
            .execute(self.writer())
            .await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(Error::Stale) }
    }

    async fn promote_run(&self, thread: &ThreadId, now: Timestamp) -> Result<Option<RunId>, Error> {
        self.writer().in_time(Box::pin(self.promote(thread, now))).await
    }

    async fn stalled_threads(&self, limit: u32) -> Result<Vec<ThreadId>, Error> {
        let rows: Vec<(String,)> = sqlx::query_as::<Db, _>(
            "select distinct thread_id from runs as waiting
             where waits
               and not exists (select 1 from runs where runs.thread_id = waiting.thread_id and runs.active)
             limit $1",
        )
        .bind(i64::from(limit))
        .fetch_all(self.reader())
        .await?;
        Ok(rows.into_iter().map(|(id,)| ThreadId::from_stored(id)).collect())
    }

    async fn overdue_runs(&self, before: Timestamp, limit: u32) -> Result<Vec<Versioned>, Error> {
        let rows = sqlx::query::<Db>(
            "select id, version, due_at, spec, state, metadata from runs
             where id in (
                 select id from runs where active and expires_at < $1
                 union all
                 select id from runs where waits and expires_at < $1
             )
             order by expires_at
             limit $2",
        )
        .bind(before.0)
        .bind(i64::from(limit))
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(run_from_row).collect()
    }

    async fn step(&self, thread: &ThreadId, run: &RunId, id: &RunStepId) -> Result<Option<RunStep>, Error> {
        let row = sqlx::query::<Db>("select id, body from run_steps where id = $1 and run_id = $2 and thread_id = $3")
            .bind(id.as_str())
            .bind(run.as_str())
            .bind(thread.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(step_from_row).transpose()
    }

    async fn list_steps(&self, thread: &ThreadId, run: &RunId, query: &PageQuery) -> Result<Page<RunStep>, Error> {
        let scope = [("run_id", run.as_str()), ("thread_id", thread.as_str())];
        let list = List { table: STEPS, columns: "id, body", scope: &scope };
        page(self, &list, query).await?.try_map(|row| step_from_row(&row))
    }
}

impl Backend {
    /// Rows are locked in the order of a commit: the run, then its thread. A run that was cancelled meanwhile leaves
    /// nothing to promote; whoever has cancelled it promotes the next.
    async fn promote(&self, thread: &ThreadId, now: Timestamp) -> Result<Option<RunId>, Error> {
        let mut tx = self.begin().await?;
        let next: Option<(String,)> = sqlx::query_as::<Db, _>(
            "update runs set version = version + 1
             where waits and id = (select id from runs where thread_id = $1 and waits order by seq limit 1)
             returning id",
        )
        .bind(thread.as_str())
        .fetch_optional(&mut *tx)
        .await?;
        let Some((next,)) = next else {
            tx.rollback().await?;
            return Ok(None);
        };
        let freed = sqlx::query::<Db>("update threads set active_run = $2 where id = $1 and active_run is null")
            .bind(thread.as_str())
            .bind(&next)
            .execute(&mut *tx)
            .await?;
        if freed.rows_affected() == 0 {
            tx.rollback().await?;
            return Ok(None);
        }
        sqlx::query::<Db>("update runs set active = true, waits = false, due_at = $2 where id = $1")
            .bind(&next)
            .bind(now.0)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Some(RunId::from_stored(next)))
    }
}
