//! The tables `runs` and `run_steps`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sqlx::Row as _;

use super::page::{List, Parent, page, read};
use super::resources::{attach_to_thread, check_resources, find_files};
use super::store_files::finish;
use super::threads::prepare_thread;
use super::{Backend, CLAIM_RUN, Db, Row, insert_run, ledger, messages, seconds};
use crate::api::run::RunState;
use crate::api::usage::Usage;
use crate::api::{
    Assistant, AssistantId, Message, Metadata, Page, PageQuery, Run, RunId, RunStep, RunStepId, Scope, Thread,
    ThreadId, Timestamp,
};
use crate::store::pool::Transaction;
use crate::store::{
    ClaimedRun, Commit, Committed, Error, NewRun, NextLease, RunContext, RunEngine, Runs, SavedText, Versioned,
    from_json, to_json,
};

const RUNS: &str = "runs";
const STEPS: &str = "run_steps";
const RUN_COLUMNS: &str = "id, version, due_at, revision, claims, spec, state, metadata";

/// The column `state`: the part of a run that commits change.
#[derive(Serialize, Deserialize)]
struct StateColumn<S> {
    state: S,
    usage: Usage,
    #[serde(default, skip_serializing_if = "is_zero")]
    lost_calls: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde requires")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

pub(super) fn state_column(run: &Run) -> String {
    to_json(&StateColumn { state: &run.state, usage: run.usage, lost_calls: run.lost_calls })
}

fn run_from_row(row: &Row) -> Result<Versioned, Error> {
    let id: &str = row.try_get("id")?;
    let column: StateColumn<RunState> = from_json(RUNS, id, row.try_get("state")?)?;
    let run = Run {
        spec: Arc::new(from_json(RUNS, id, row.try_get("spec")?)?),
        metadata: from_json(RUNS, id, row.try_get("metadata")?)?,
        state: column.state,
        usage: column.usage,
        lost_calls: column.lost_calls,
    };
    let due_at = row.try_get::<Option<i64>, _>("due_at")?.map(Timestamp);
    let (version, revision, lease) = (row.try_get("version")?, row.try_get("revision")?, row.try_get("claims")?);
    Ok(Versioned { run, version, due_at, revision, lease })
}

/// The result of a commit.
pub(super) struct Written {
    /// The number of the newest lease.
    pub lease: i64,
    /// The stored metadata of the changed message.
    pub metadata: Option<String>,
}

/// Returns the change of the lease as SQL parameters: the kind, and a duration in seconds.
pub(super) fn next_lease_columns(next: NextLease) -> (i64, i64) {
    match next {
        NextLease::Keep => (0, 0),
        NextLease::Acquire(duration) => (1, seconds(duration)),
        NextLease::Due => (2, 0),
        NextLease::None => (3, 0),
    }
}

/// Fails if a new run would exceed the limit of its project. Locks the project's row until the end of the transaction, so
/// that concurrent callers are counted.
pub(super) async fn check_active_runs(tx: &mut Transaction<Db>, new: &NewRun<'_>) -> Result<(), Error> {
    let spec = &new.run.spec;
    sqlx::query::<Db>(
        "insert into project_locks (project_id, uses) values ($1, 1)
         on conflict (project_id) do update set uses = project_locks.uses + 1",
    )
    .bind(spec.scope.as_str())
    .execute(&mut *tx)
    .await?;
    let (active,): (i64,) =
        sqlx::query_as::<Db, _>("select count(*) from runs where (active or waits) and project_id = $1 and id <> $2")
            .bind(spec.scope.as_str())
            .bind(spec.id.as_str())
            .fetch_one(&mut *tx)
            .await?;
    let (active, limit) = (u64::try_from(active).unwrap_or(0), new.active_runs_max);
    if active >= limit { Err(Error::TooManyRuns { active, limit }) } else { Ok(()) }
}

fn step_from_row(row: &Row) -> Result<RunStep, Error> {
    from_json(STEPS, row.try_get("id")?, row.try_get("body")?)
}

#[async_trait]
impl Runs for Backend {
    async fn run_context(
        &self,
        scope: &Scope,
        thread: Option<&ThreadId>,
        assistant: &AssistantId,
    ) -> Result<RunContext, Error> {
        let thread = thread.map_or("", ThreadId::as_str);
        let row = sqlx::query::<Db>(
            "select (select body from assistants where id = $1 and project_id = $3) as assistant,
                    (select body from threads where id = $2 and project_id = $3) as thread,
                    exists (select 1 from messages where thread_id = $2 and project_id = $3) as has_messages",
        )
        .bind(assistant.as_str())
        .bind(thread)
        .bind(scope.as_str())
        .fetch_one(self.reader())
        .await?;
        let assistant_body: Option<&str> = row.try_get("assistant")?;
        let thread_body: Option<&str> = row.try_get("thread")?;
        let mut context = RunContext {
            assistant: assistant_body
                .map(|body| from_json::<Assistant>("assistants", assistant.as_str(), body))
                .transpose()?,
            thread: thread_body.map(|body| from_json::<Thread>("threads", thread, body)).transpose()?,
            has_messages: row.try_get("has_messages")?,
        };
        let of_assistant = context.assistant.iter_mut().map(|assistant| &mut assistant.tool_resources);
        let of_thread = context.thread.iter_mut().map(|thread| &mut thread.tool_resources);
        let mut resources: Vec<_> = of_assistant.chain(of_thread).collect();
        self.remove_deleted_files(scope, &mut resources).await?;
        Ok(context)
    }

    async fn create_run(&self, new: &NewRun<'_>) -> Result<(), Error> {
        let spec = &new.run.spec;
        loop {
            match self.try_to_insert_run(new).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(Error::Rejected(sqlx::Error::Database(error))) if error.is_unique_violation() => {
                    // This is a retry, and the acknowledgement of an earlier commit was lost.
                    if self.run(&spec.scope, &spec.thread_id, &spec.id).await?.is_some() {
                        return Ok(());
                    }
                    return Err(Error::Rejected(sqlx::Error::Database(error)));
                }
                Err(error) => return Err(error),
            }
            match self.check_lock(&spec.scope, &spec.thread_id).await {
                Err(Error::ThreadBusy(run)) if run == spec.id => return Ok(()),
                other => other?,
            }
        }
    }

    async fn run(&self, scope: &Scope, thread: &ThreadId, id: &RunId) -> Result<Option<Versioned>, Error> {
        let row = sqlx::query::<Db>(
            "select id, version, due_at, revision, claims, spec, state, metadata from runs
             where id = $1 and thread_id = $2 and project_id = $3",
        )
        .bind(id.as_str())
        .bind(thread.as_str())
        .bind(scope.as_str())
        .fetch_optional(self.reader())
        .await?;
        row.as_ref().map(run_from_row).transpose()
    }

    async fn list_runs(&self, scope: &Scope, thread: &ThreadId, query: &PageQuery) -> Result<Page<Run>, Error> {
        let parent = Some(Parent::Thread(scope, thread));
        let list = List { table: RUNS, columns: RUN_COLUMNS, body: "spec", filter: &[], parent };
        read(self, &page(self, &list, query).await?, |row| Ok(run_from_row(row)?.run))
    }

    async fn modify_run(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        id: &RunId,
        metadata: &Metadata,
    ) -> Result<Option<Run>, Error> {
        let row = sqlx::query::<Db>(
            "update runs set metadata = $3 where id = $1 and thread_id = $2 and project_id = $4
             returning id, version, due_at, revision, claims, spec, state, metadata",
        )
        .bind(id.as_str())
        .bind(thread.as_str())
        .bind(to_json(metadata))
        .bind(scope.as_str())
        .fetch_optional(self.writer())
        .await?;
        Ok(row.as_ref().map(run_from_row).transpose()?.map(|versioned| versioned.run))
    }

    async fn step(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        run: &RunId,
        id: &RunStepId,
    ) -> Result<Option<RunStep>, Error> {
        let sql = "select id, body from run_steps
                   where id = $1 and run_id = $2 and thread_id = $3 and project_id = $4";
        let row = sqlx::query::<Db>(sql)
            .bind(id.as_str())
            .bind(run.as_str())
            .bind(thread.as_str())
            .bind(scope.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(step_from_row).transpose()
    }

    async fn list_steps(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        run: &RunId,
        query: &PageQuery,
    ) -> Result<Page<RunStep>, Error> {
        let (filter, parent) = ([("run_id", run.as_str())], Some(Parent::Thread(scope, thread)));
        let list = List { table: STEPS, columns: "id, body", body: "body", filter: &filter, parent };
        read(self, &page(self, &list, query).await?, step_from_row)
    }
}

#[async_trait]
impl RunEngine for Backend {
    async fn progress(&self, run: &RunId) -> Result<(Vec<RunStep>, Option<Message>), Error> {
        let rows = sqlx::query::<Db>("select id, body from run_steps where run_id = $1 order by created_at, seq")
            .bind(run.as_str())
            .fetch_all(self.reader())
            .await?;
        let steps = rows.iter().map(step_from_row).collect::<Result<Vec<_>, Error>>()?;
        if !steps.iter().any(RunStep::creates_message) {
            return Ok((steps, None));
        }
        let row = sqlx::query::<Db>("select id, created_at, metadata, body from messages where run_id = $1")
            .bind(run.as_str())
            .fetch_optional(self.reader())
            .await?;
        Ok((steps, row.as_ref().map(messages::from_row).transpose()?))
    }

    async fn claim_run(
        &self,
        lease: Duration,
        after_owner: &str,
        except: &[RunId],
        attempts_max: u32,
    ) -> Result<Option<ClaimedRun>, Error> {
        loop {
            let mut excluded: Vec<String> = except.iter().map(ToString::to_string).collect();
            excluded.extend(self.unreadable.ids());
            let row = sqlx::query::<Db>(CLAIM_RUN)
                .bind(self.fixed_time())
                .bind(seconds(lease))
                .bind(after_owner)
                .bind(to_json(&excluded))
                .bind(i64::from(attempts_max))
                .fetch_optional(self.writer())
                .await?;
            let Some(row) = row else { return Ok(None) };
            let claimed = self.unreadable.skip(claimed_from_row(&row))?;
            if claimed.is_some() {
                return Ok(claimed);
            }
            self.undo_claim(&row).await?;
        }
    }

    async fn commit(&self, commit: Commit<'_>) -> Result<Committed, Error> {
        let Written { lease, metadata } = self.write_commit(&commit).await?.ok_or(Error::Stale)?;
        for call in commit.calls {
            ledger::count_tokens(&self.metrics, call);
        }
        let id = commit.changed_message.map_or("", |message| message.id.as_str());
        let metadata = metadata.map(|metadata| from_json(messages::TABLE, id, &metadata)).transpose()?;
        Ok(Committed { version: commit.version + 1, lease, metadata })
    }

    async fn save_messages(&self, texts: &[SavedText<'_>]) -> Result<Vec<RunId>, Error> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        // Sorted, so that all servers lock rows in the same order.
        let mut texts = texts.to_vec();
        texts.sort_unstable_by(|one, other| one.run.as_str().cmp(other.run.as_str()));
        self.write_messages(&texts).await
    }

    async fn run_revisions(&self, runs: &[RunId]) -> Result<Vec<(RunId, i64, i64)>, Error> {
        let ids: Vec<&str> = runs.iter().map(RunId::as_str).collect();
        let rows: Vec<(String, i64, i64)> = sqlx::query_as::<Db, _>(concat!(
            "select id, version, revision from runs where id in (",
            json_texts!("$1"),
            ")"
        ))
        .bind(to_json(&ids))
        .fetch_all(self.reader())
        .await?;
        Ok(rows.into_iter().map(|(id, version, revision)| (RunId::from_stored(id), version, revision)).collect())
    }

    /// Locks rows in the order of a commit: the run, then its thread. If the run was cancelled concurrently, promotes none,
    /// because the cancellation promotes the next run.
    async fn promote_run(&self, thread: &ThreadId) -> Result<Option<RunId>, Error> {
        let mut tx = self.begin().await?;
        let next: Option<(String,)> = sqlx::query_as::<Db, _>(
            "update runs set version = version + 1, revision = revision + 1
             where waits and id = (select id from runs where thread_id = $1 and waits order by seq limit 1)
             returning id",
        )
        .bind(thread.as_str())
        .fetch_optional(&mut tx)
        .await?;
        let Some((next,)) = next else {
            tx.rollback().await?;
            return Ok(None);
        };
        let freed = sqlx::query::<Db>("update threads set active_run = $2 where id = $1 and active_run is null")
            .bind(thread.as_str())
            .bind(&next)
            .execute(&mut tx)
            .await?;
        if freed.rows_affected() == 0 {
            tx.rollback().await?;
            return Ok(None);
        }
        sqlx::query::<Db>(concat!(
            "update runs set active = true, waits = false, due_at = ",
            now!("$2"),
            " where id = $1"
        ))
        .bind(&next)
        .bind(self.fixed_time())
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(Some(RunId::from_stored(next)))
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

    async fn overdue_runs(&self, grace: Duration, limit: u32) -> Result<Vec<Versioned>, Error> {
        let rows = sqlx::query::<Db>(concat!(
            "select id, version, due_at, revision, claims, spec, state, metadata from runs
             where id in (
                 select id from runs where active and expires_at + $2 < ",
            now!("$1"),
            "    union all
                 select id from runs where waits and expires_at + $2 < ",
            now!("$1"),
            ")
             order by expires_at
             limit $3"
        ))
        .bind(self.fixed_time())
        .bind(seconds(grace))
        .bind(i64::from(limit))
        .fetch_all(self.reader())
        .await?;
        self.unreadable.skip_all(rows.iter().map(run_from_row))
    }

    async fn lapsed_cancelling_runs(&self, limit: u32) -> Result<Vec<Versioned>, Error> {
        let rows = sqlx::query::<Db>(concat!(
            "select id, version, due_at, revision, claims, spec, state, metadata from runs
             where substr(state, 1, 22) = '{\"state\":{\"cancelling\"' and (due_at is null or due_at <= ",
            now!("$1"),
            ")
             limit $2"
        ))
        .bind(self.fixed_time())
        .bind(i64::from(limit))
        .fetch_all(self.reader())
        .await?;
        self.unreadable.skip_all(rows.iter().map(run_from_row))
    }
}

impl Backend {
    /// Inserts a run and what is created with it. Returns false if the thread does not exist, or is locked and the run does
    /// not wait.
    async fn try_to_insert_run(&self, new: &NewRun<'_>) -> Result<bool, Error> {
        let spec = &new.run.spec;
        let of_thread = new.thread.is_some_and(|thread| !thread.tool_resources.is_empty());
        let has_resources = !new.new.is_empty() || of_thread || !spec.tool_resources.is_empty();
        if new.active_runs_max == 0 && !has_resources {
            return self.insert_run(new).await;
        }
        let (mut tx, time, scope) = (self.begin().await?, self.fixed_time(), &spec.scope);
        let outcome = async {
            if let Some(thread) = new.thread {
                let thread = prepare_thread(&mut tx, time, scope, thread, new.new).await?;
                check_resources(&mut tx, time, scope, &spec.tool_resources, None).await?;
                if new.active_runs_max > 0 {
                    check_active_runs(&mut tx, new).await?;
                }
                return insert_run(&mut tx, time, &NewRun { thread: Some(&thread), ..*new }).await;
            }
            let found = find_files(&mut tx, time, scope, new.new).await?;
            if new.active_runs_max > 0 {
                check_active_runs(&mut tx, new).await?;
            }
            let is_inserted = insert_run(&mut tx, time, new).await?;
            if is_inserted && new.new.attachments.is_some() {
                let new = (new.new, &found, spec.created_at);
                attach_to_thread(&mut tx, time, scope, &spec.thread_id, new).await?;
            }
            Ok(is_inserted)
        }
        .await;
        finish(tx, outcome).await
    }

    /// Undoes the claim of an unreadable run, so that a server with a newer release can claim it.
    async fn undo_claim(&self, row: &Row) -> Result<(), Error> {
        sqlx::query::<Db>(
            "update runs
             set version = version - 1, claims = claims - 1, attempts = attempts - 1, due_at = $3
             where id = $1 and version = $2",
        )
        .bind(row.try_get::<&str, _>("id")?)
        .bind(row.try_get::<i64, _>("version")?)
        .bind(row.try_get::<i64, _>("due_before")?)
        .execute(self.writer())
        .await?;
        Ok(())
    }
}

fn claimed_from_row(row: &Row) -> Result<ClaimedRun, Error> {
    let attempts: i64 = row.try_get("attempts")?;
    Ok(ClaimedRun {
        versioned: run_from_row(row)?,
        attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        last_failure: row.try_get("last_failure")?,
        owner: row.try_get("owner")?,
    })
}
