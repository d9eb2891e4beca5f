//! The SQLite driver. Only one server can use a file. The statements that both drivers share are in `sql/`.
//!
//! One connection writes and several read: with several writers, SQLite's busy handler makes waits long and unfair.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, SqliteConnection};
use tokio::sync::Mutex;

use super::pool::{Pool, Transaction};
use super::sqlite_copy::damaged;
use super::sqlite_file::{self, Lock, LockError, not_whole};
use super::unreadable::Unreadable;
use super::{
    ChunkKey, Commit, Error, FIRST_VERSION, Inspection, NearestChunks, NewChunk, NewRun, Opener, SavedText, Settings,
    Start, Store, to_json,
};
use crate::api::organization::usage::DAY_S;
use crate::api::{Message, RunId, RunStep, Scope, Thread, Timestamp, VectorStoreId};
use crate::clock::Clock;
use crate::metrics::Metrics;

/// The current time in Unix seconds: the value of the parameter `$fixed`, or the system's time if it is null.
macro_rules! now {
    ($fixed:literal) => {
        concat!("coalesce(", $fixed, ", unixepoch())")
    };
}

/// The end of a lease that starts now, rounded up, so that it is not shorter than requested.
macro_rules! lease_end {
    ($fixed:literal, $seconds:literal) => {
        concat!("(coalesce(", $fixed, ", unixepoch() + 1) + ", $seconds, ")")
    };
}

/// The strings of a JSON array, as rows.
macro_rules! json_texts {
    ($array:literal) => {
        concat!("select value from json_each(", $array, ")")
    };
}

/// The pairs of a string and a number in a JSON array, as rows (id, number).
macro_rules! json_pairs {
    ($array:literal) => {
        concat!("select value->>0 as id, value->>1 as number from json_each(", $array, ")")
    };
}

/// The byte strings of a JSON array of hex strings, as rows (hash).
macro_rules! json_blobs {
    ($array:literal) => {
        concat!("select unhex(value) as hash from json_each(", $array, ")")
    };
}

/// Nothing: a transaction that writes is the only one.
macro_rules! for_update {
    () => {
        ""
    };
}

/// Nothing: a transaction that writes is the only one.
macro_rules! for_share {
    () => {
        ""
    };
}

/// Nothing: a transaction that writes is the only one.
macro_rules! skip_locked {
    () => {
        ""
    };
}

#[path = "sql/access.rs"]
mod access;
#[path = "sql/api_keys.rs"]
mod api_keys;
#[path = "sql/assistants.rs"]
mod assistants;
#[path = "sql/audit_log.rs"]
mod audit_log;
#[path = "sql/budgets.rs"]
mod budgets;
#[path = "sql/code.rs"]
mod code;
#[path = "sql/files.rs"]
mod files;
#[path = "sql/ingestion.rs"]
mod ingestion;
#[path = "sql/jobs.rs"]
mod jobs;
#[path = "sql/ledger.rs"]
mod ledger;
#[path = "sql/messages.rs"]
mod messages;
#[path = "sql/page.rs"]
mod page;
#[path = "sql/projects.rs"]
mod projects;
#[path = "sql/resources.rs"]
mod resources;
#[path = "sql/runs.rs"]
mod runs;
#[path = "sql/schema.rs"]
mod schema;
#[path = "sql/search_data.rs"]
mod search_data;
#[path = "sql/segments.rs"]
mod segments;
#[path = "sql/service_accounts.rs"]
mod service_accounts;
#[path = "sql/store_files.rs"]
mod store_files;
#[path = "sql/threads.rs"]
mod threads;
#[path = "sql/uploads.rs"]
mod uploads;
#[path = "sql/vector_stores.rs"]
mod vector_stores;

use ingestion::ChunkOwner;
use runs::Written;
use store_files::{NewRow, finish};

type Db = sqlx::Sqlite;
type Row = sqlx::sqlite::SqliteRow;

/// Returns the migrations. A migration of a newer release in the database is not an error: during an upgrade, servers of
/// both releases start.
fn migrations() -> sqlx::migrate::Migrator {
    let mut migrations = sqlx::migrate!("migrations/sqlite");
    migrations.set_ignore_missing(true);
    migrations
}

/// The number of tables with a name: 0 or 1.
const TABLE_EXISTS: &str = "select count(*) from sqlite_master where type = 'table' and name = $1";

/// How long a statement waits for a lock. Only other programs, such as the `sqlite3` shell, can hold one for long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Claims the oldest due run of the next owner, or of the first owner if none is after the last one.
const CLAIM_RUN: &str = concat!(
    "with next as (
        select coalesce(
            (select id from runs where owner > $3 and due_at <= ",
    now!("$1"),
    " and attempts <= $5 and id not in (",
    json_texts!("$4"),
    ") order by owner, due_at, seq limit 1),
            (select id from runs where owner <= $3 and due_at <= ",
    now!("$1"),
    " and attempts <= $5 and id not in (",
    json_texts!("$4"),
    ") order by owner, due_at, seq limit 1)
        ) as next_id
    ), before as (
        select id as before_id, due_at as due_before from runs where id = (select next_id from next)
    )
    update runs
    set due_at = ",
    lease_end!("$1", "$2"),
    ", version = version + 1, claims = claims + 1, attempts = attempts + 1
    from before
    where id = before_id
    returning id, version, due_at, revision, claims, attempts, last_failure, owner, spec, state, metadata,
              (select due_before from before) as due_before"
);

/// Claims the file that has been due longest of the next vector store, like [`CLAIM_RUN`].
const CLAIM_STORE_FILE: &str = concat!(
    "with next as (
        select coalesce(
            (select id from vector_store_files where vector_store_id > $3 and due_at <= ",
    now!("$1"),
    " and attempts <= $5 and id not in (",
    json_texts!("$4"),
    ") order by vector_store_id, due_at, seq limit 1),
            (select id from vector_store_files where vector_store_id <= $3 and due_at <= ",
    now!("$1"),
    " and attempts <= $5 and id not in (",
    json_texts!("$4"),
    ") order by vector_store_id, due_at, seq limit 1)
        ) as next_id
    ), before as (
        select id as before_id, due_at as due_before from vector_store_files where id = (select next_id from next)
    )
    update vector_store_files
    set due_at = ",
    lease_end!("$1", "$2"),
    ", claims = claims + 1, attempts = attempts + 1
    from before
    where id = before_id
    returning id, project_id, vector_store_id, file_id, filename, chunking, chunks, language, embedding_model, claims,
              attempts, last_failure, (select due_before from before) as due_before"
);

/// Returns the number of readers. Each is a thread that uses a processor while it reads. With more readers than processors,
/// polling readers would slow down the writer and delay commits.
fn readers(connections_max: u32) -> u32 {
    let processors = std::thread::available_parallelism().map_or(2, |count| count.get().max(2));
    connections_max.min(u32::try_from(processors).unwrap_or(u32::MAX))
}

/// Returns the duration in whole seconds.
fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// Whether commits survive a power failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Synchronous {
    /// Each commit is written to disk before it is acknowledged.
    Full,
    /// A power failure can lose the last commits; a crash of the server cannot.
    Normal,
}

/// The SQLite driver: one file, one writer, several readers.
#[derive(Debug)]
pub struct Backend {
    writer: Pool<Db>,
    readers: Pool<Db>,
    /// Open until the store is closed: the shared memory of the file is deleted with the last connection, and readers
    /// cannot create it.
    anchor: Mutex<Option<SqliteConnection>>,
    path: PathBuf,
    /// Locked until the store is closed, so that no other server can open the file; `None` for a command next to a server.
    _lock: Option<Lock>,
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
    unreadable: Unreadable,
}

impl Backend {
    pub(super) async fn open(
        settings: &Settings,
        clock: Arc<Clock>,
        metrics: Arc<Metrics>,
        opener: Opener,
    ) -> Result<Self, Error> {
        let path = sqlite_file::path_of(&settings.url)?;
        let lock = match (Lock::take(&path), opener) {
            (Ok(lock), _) => Some(lock),
            // The server that uses the file has checked and migrated it.
            (Err(LockError::InUse(_)), Opener::Command) => None,
            (Err(LockError::InUse(error) | LockError::Failed(error)), _) => return Err(error),
        };
        if let Some(lock) = &lock {
            create_or_check(&path, lock).await?;
        }
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(match settings.synchronous {
                Synchronous::Full => SqliteSynchronous::Full,
                Synchronous::Normal => SqliteSynchronous::Normal,
            })
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true);
        let mut first = SqliteConnection::connect_with(&options).await?;
        if let Some(lock) = &lock {
            migrations().run(&mut first).await.map_err(Error::Migration)?;
            if let Err(error) = schema::record_release(&mut first).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "failed to record the release in the database"
                );
            }
            lock.mark_checked();
        } else {
            check_schema(&mut first, &path).await?;
        }
        sqlite_file::own_by_folder_owner(&path);
        if opener == Opener::Server {
            sqlite_file::make_private(&path);
            clear_leases(&mut first).await;
        }
        let name = format!("sqlite://{}", path.display());
        let (size, timeout) = (readers(settings.connections_max), settings.statement_timeout);
        let writer = Pool::new(options.clone(), 1, timeout, name.as_str(), metrics.pool("sqlite_writer"));
        let readers = Pool::new(options.read_only(true), size, timeout, name, metrics.pool("sqlite_readers"));
        let anchor = Mutex::new(Some(first));
        Ok(Self { writer, readers, anchor, path, _lock: lock, clock, metrics, unreadable: Unreadable::default() })
    }

    /// Returns the time of a manual clock.
    fn fixed_time(&self) -> Option<i64> {
        self.clock.fixed().map(|now| now.0)
    }

    fn reader(&self) -> &Pool<Db> {
        &self.readers
    }

    fn writer(&self) -> &Pool<Db> {
        &self.writer
    }

    async fn begin(&self) -> Result<Transaction<Db>, Error> {
        Ok(self.writer.begin("begin immediate").await?)
    }

    /// SQLite has no vectors: nothing to remove.
    #[expect(clippy::unused_async, reason = "as in Postgres")]
    async fn drop_vector_indexes(&self, _: &str) -> Result<bool, Error> {
        Ok(true)
    }

    async fn insert_thread(&self, scope: &Scope, thread: &Thread, messages: &[Message]) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let outcome = insert_thread(&mut tx, scope, thread, messages).await;
        finish(tx, outcome).await
    }

    async fn insert_message(
        &self,
        scope: &Scope,
        message: &Message,
        while_busy: bool,
    ) -> Result<Option<Timestamp>, Error> {
        let mut tx = self.begin().await?;
        let outcome = insert_message(&mut tx, scope, message, while_busy).await;
        finish(tx, outcome).await
    }

    async fn insert_run(&self, new: &NewRun<'_>) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let outcome = insert_run(&mut tx, self.fixed_time(), new).await;
        finish(tx, outcome).await
    }

    /// Writes a commit. Returns `None` if the run is no longer at the commit's version.
    async fn write_commit(&self, commit: &Commit<'_>) -> Result<Option<Written>, Error> {
        let run = &commit.run.spec;
        let active = !commit.run.state.has_ended();
        let (next_lease, lease) = runs::next_lease_columns(commit.next_lease);
        let mut tx = self.begin().await?;
        let claims: Option<(i64,)> = sqlx::query_as::<Db, _>(concat!(
            "update runs
             set active = active and $3,
                 waits = waits and $3,
                 version = version + 1,
                 revision = revision + 1,
                 due_at = case
                     when waits then null
                     when $4 = 0 then due_at
                     when $4 = 1 then ",
            lease_end!("$7", "$6"),
            "        when $4 = 2 then ",
            now!("$7"),
            "    end,
                 claims = claims + ($4 = 1),
                 attempts = case when $8 then 0 else attempts end + ($4 = 1),
                 last_failure = case when $8 then null else last_failure end,
                 state = $5
             where id = $1 and version = $2
             returning claims"
        ))
        .bind(run.id.as_str())
        .bind(commit.version)
        .bind(active)
        .bind(next_lease)
        .bind(runs::state_column(commit.run))
        .bind(lease)
        .bind(self.fixed_time())
        .bind(commit.made_progress)
        .fetch_optional(&mut tx)
        .await?;
        let Some((lease,)) = claims else {
            tx.rollback().await?;
            return Ok(None);
        };
        let new = commit.new_message;
        if !active || new.is_some() {
            let (seq, created_at): (i64, i64) = sqlx::query_as::<Db, _>(
                "update threads
                 set active_run = case when $3 then active_run else nullif(active_run, $2) end,
                     message_seq = message_seq + $4, message_at = max(message_at, $5)
                 where id = $1
                 returning message_seq, message_at",
            )
            .bind(run.thread_id.as_str())
            .bind(run.id.as_str())
            .bind(active)
            .bind(i64::from(new.is_some()))
            .bind(new.map_or(0, |message| message.created_at.0))
            .fetch_one(&mut tx)
            .await?;
            if let Some(message) = new {
                write_message(&mut tx, &run.scope, message, seq, created_at).await?;
            }
        }
        let metadata = match commit.changed_message {
            Some(message) => update_message(&mut tx, message).await?,
            None => None,
        };
        for step in commit.steps {
            write_step(&mut tx, &run.scope, step).await?;
        }
        for step in commit.removed_steps {
            sqlx::query::<Db>("delete from run_steps where id = $1 and run_id = $2")
                .bind(step.as_str())
                .bind(run.id.as_str())
                .execute(&mut tx)
                .await?;
        }
        for call in commit.calls {
            ledger::insert_call(call, self.fixed_time()).execute(&mut tx).await?;
        }
        tx.commit().await?;
        Ok(Some(Written { lease, metadata }))
    }

    /// Inserts the sums of old rows of the ledger and deletes the rows, in one transaction.
    async fn replace_calls_by_sums(&self, before: Timestamp, limit: u32) -> Result<u64, Error> {
        let mut tx = self.begin().await?;
        let old: Vec<(i64,)> = sqlx::query_as::<Db, _>(
            "select seq from model_calls
             where created_at < $1 and (run_id <> '' or created_at % $3 <> 0)
             order by created_at
             limit $2",
        )
        .bind(before.0)
        .bind(i64::from(limit))
        .bind(DAY_S)
        .fetch_all(&mut tx)
        .await?;
        let numbers = to_json(&old.iter().map(|(seq,)| seq).collect::<Vec<_>>());
        sqlx::query::<Db>(
            "insert into model_calls
                 (kind, project_id, api_key_id, assistant_id, thread_id, run_id, model, created_at, input_tokens,
                  cached_tokens, output_tokens, stood, requests)
             select kind, project_id, api_key_id, assistant_id, '', '', model, created_at - created_at % $2,
                    sum(input_tokens), sum(cached_tokens), sum(output_tokens), stood, sum(requests)
             from model_calls
             where seq in (select value from json_each($1))
             group by kind, project_id, api_key_id, assistant_id, model, created_at - created_at % $2, stood",
        )
        .bind(&numbers)
        .bind(DAY_S)
        .execute(&mut tx)
        .await?;
        sqlx::query::<Db>("delete from model_calls where seq in (select value from json_each($1))")
            .bind(&numbers)
            .execute(&mut tx)
            .await?;
        tx.commit().await?;
        Ok(u64::try_from(old.len()).unwrap_or(u64::MAX))
    }

    async fn write_messages(&self, texts: &[SavedText<'_>]) -> Result<Vec<RunId>, Error> {
        let mut tx = self.begin().await?;
        let mut saved = Vec::with_capacity(texts.len());
        for SavedText { run, version, message } in texts {
            let done = sqlx::query::<Db>("update runs set revision = revision + 1 where id = $1 and version = $2")
                .bind(run.as_str())
                .bind(version)
                .execute(&mut tx)
                .await?;
            if done.rows_affected() == 1 {
                update_message(&mut tx, message).await?;
                saved.push((*run).clone());
            }
        }
        tx.commit().await?;
        Ok(saved)
    }
}

/// Clears all leases. No other server uses the file, so they are from earlier processes. If this fails, for example on a
/// full disk, the leases expire.
async fn clear_leases(connection: &mut SqliteConnection) {
    for sql in [
        "update runs set due_at = 0 where due_at is not null",
        "update vector_store_files set due_at = 0 where due_at is not null",
    ] {
        if let Err(error) = sqlx::query::<Db>(sql).execute(&mut *connection).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "failed to clear old leases; jobs are claimed when their leases expire"
            );
        }
    }
}

/// Creates the database, or checks that it is whole and that this release can use it.
async fn create_or_check(path: &Path, lock: &Lock) -> Result<(), Error> {
    if !path.exists() {
        if sqlite_file::has_log(path) {
            let log = sqlite_file::beside(path, "-wal");
            return Err(not_whole(path, format!("the file is missing, but {} has its last changes", log.display())));
        }
        return create(path).await;
    }
    let is_copy = sqlite_file::check_header(path)?;
    let mut connection = connect(path, false).await.map_err(|error| damaged(path, error))?;
    check_schema(&mut connection, path).await?;
    // Reads the whole file. Later starts trust what this server wrote.
    if is_copy || !lock.is_checked() {
        quick_check(&mut connection, path).await?;
    }
    connection.close().await?;
    Ok(())
}

/// Creates the database under a temporary name, and renames it when its tables exist. So a file without tables is not one
/// that a server was creating when it crashed.
async fn create(path: &Path) -> Result<(), Error> {
    let new = sqlite_file::beside(path, ".new");
    let remove = || {
        for suffix in ["", "-journal"] {
            let _ = std::fs::remove_file(sqlite_file::beside(&new, suffix));
        }
    };
    remove();
    let created = async {
        let mut connection = connect(&new, true).await?;
        migrations().run(&mut connection).await.map_err(Error::Migration)?;
        connection.close().await?;
        std::fs::rename(&new, path).map_err(|error| Error::from(sqlx::Error::Io(error)))
    }
    .await;
    if created.is_err() {
        remove();
    }
    created
}

/// Connects without a change of the file's settings.
async fn connect(path: &Path, creates: bool) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(creates).busy_timeout(BUSY_TIMEOUT);
    SqliteConnection::connect_with(&options).await
}

/// Checks that a file has the tables of a server, and that this release can use them.
pub(super) async fn check_schema(connection: &mut SqliteConnection, path: &Path) -> Result<(), Error> {
    let schema = schema::read_schema(connection).await.map_err(|error| damaged(path, error))?;
    if schema.version == 0 {
        return Err(not_whole(path, "it has no tables of assistd"));
    }
    schema.check_usable(schema::known_version())
}

/// Reads the whole file and checks its structure.
pub(super) async fn quick_check(connection: &mut SqliteConnection, path: &Path) -> Result<(), Error> {
    let found: Result<(String,), _> = sqlx::query_as("pragma quick_check(1)").fetch_one(connection).await;
    match found {
        Ok((text,)) if text == "ok" => Ok(()),
        Ok((text,)) => Err(not_whole(path, text.replace('\n', " "))),
        Err(error) => Err(damaged(path, error)),
    }
}

/// Inspects the database. Returns `None` if the file does not exist.
pub(super) async fn inspect(settings: &Settings) -> Result<Option<Inspection>, Error> {
    let path = sqlite_file::path_of(&settings.url)?;
    if !path.exists() && !sqlite_file::has_log(&path) {
        return Ok(None);
    }
    sqlite_file::check_header(&path)?;
    let is_in_use = sqlite_file::is_in_use(&path);
    // Without a server and without changes beside the file, reading it as immutable creates no files.
    let is_still = !is_in_use && !sqlite_file::has_log(&path);
    let options =
        SqliteConnectOptions::new().filename(&path).read_only(true).immutable(is_still).busy_timeout(BUSY_TIMEOUT);
    let mut connection = SqliteConnection::connect_with(&options).await.map_err(|error| damaged(&path, error))?;
    check_schema(&mut connection, &path).await?;
    quick_check(&mut connection, &path).await?;
    let schema = schema::read_schema(&mut connection).await?;
    let has_keys = schema::has_keys(&mut connection).await?;
    let (version,): (String,) = sqlx::query_as("select sqlite_version()").fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(Some(Inspection {
        display_name: format!("sqlite://{}", path.display()),
        software: format!("SQLite {version}"),
        schema,
        known_version: schema::known_version(),
        has_keys,
        path: Some(path),
        is_in_use,
        vector_search: None,
    }))
}

/// Inserts a thread and its first messages.
async fn insert_thread(
    tx: &mut Transaction<Db>,
    scope: &Scope,
    thread: &Thread,
    messages: &[Message],
) -> Result<(), Error> {
    insert_thread_row(tx, scope, thread, messages, None).await
}

/// Inserts a message. Returns the message's time, or `None` if the thread is locked or does not exist.
async fn insert_message(
    tx: &mut Transaction<Db>,
    scope: &Scope,
    message: &Message,
    while_busy: bool,
) -> Result<Option<Timestamp>, Error> {
    let found: Option<(i64, i64)> = sqlx::query_as::<Db, _>(
        "update threads set message_seq = message_seq + 1, message_at = max(message_at, $2)
         where id = $1
           and project_id = $4
           and ($3 or active_run is null and not exists (select 1 from runs where thread_id = $1 and waits))
         returning message_seq, message_at",
    )
    .bind(message.thread_id.as_str())
    .bind(message.created_at.0)
    .bind(while_busy)
    .bind(scope.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    let Some((seq, created_at)) = found else {
        return Ok(None);
    };
    write_message(tx, scope, message, seq, created_at).await?;
    Ok(Some(Timestamp(created_at)))
}

/// Inserts a run. Returns false if the thread does not exist, or is locked and the run does not wait.
async fn insert_run(tx: &mut Transaction<Db>, fixed_time: Option<i64>, new: &NewRun<'_>) -> Result<bool, Error> {
    let spec = &new.run.spec;
    // 0: leased, 1: due, 2: waiting.
    let (start, lease) = match new.start {
        Start::Leased(lease) => (0_i64, seconds(lease)),
        Start::Due => (1, 0),
        Start::Waiting => (2, 0),
    };
    let waits = new.start == Start::Waiting;
    let mut context_max_seq = count(new.messages);
    if let Some(thread) = new.thread {
        let active_run = (!waits).then_some(&spec.id);
        insert_thread_row(tx, &spec.scope, thread, new.messages, active_run).await?;
    } else {
        let found: Option<(i64, i64)> = sqlx::query_as::<Db, _>(
            "update threads
             set active_run = case when $5 then active_run else $2 end,
                 message_seq = message_seq + $3,
                 message_at = max(message_at, $4)
             where id = $1
               and project_id = $6
               and ($5 or active_run is null and not exists (select 1 from runs where thread_id = $1 and waits))
             returning message_seq - $3, message_at",
        )
        .bind(spec.thread_id.as_str())
        .bind(spec.id.as_str())
        .bind(count(new.messages))
        .bind(spec.created_at.0)
        .bind(waits)
        .bind(spec.scope.as_str())
        .fetch_optional(&mut *tx)
        .await?;
        let Some((seq, created_at)) = found else {
            return Ok(false);
        };
        for (message, seq) in new.messages.iter().zip(seq + 1..) {
            write_message(tx, &spec.scope, message, seq, created_at).await?;
        }
        context_max_seq += seq;
    }
    sqlx::query::<Db>(concat!(
        "insert into runs
             (id, project_id, thread_id, active, waits, version, created_at, expires_at, due_at, claims, attempts,
              owner, sees_to, spec, state, metadata)
         values ($1, $14, $2, $6 <> 2, $6 = 2, $3, $4, $5,
                 case $6 when 0 then ",
        lease_end!("$12", "$11"),
        "        when 1 then ",
        now!("$12"),
        "        end,
                 case $6 when 0 then 1 else 0 end, case $6 when 0 then 1 else 0 end, $13, $10, $7, $8, $9)"
    ))
    .bind(spec.id.as_str())
    .bind(spec.thread_id.as_str())
    .bind(FIRST_VERSION)
    .bind(spec.created_at.0)
    .bind(spec.expires_at.0)
    .bind(start)
    .bind(to_json(&**spec))
    .bind(runs::state_column(new.run))
    .bind(to_json(&new.run.metadata))
    .bind(context_max_seq)
    .bind(lease)
    .bind(fixed_time)
    .bind(new.owner)
    .bind(spec.scope.as_str())
    .execute(&mut *tx)
    .await?;
    Ok(true)
}

/// Inserts files of a vector store, in this order.
async fn insert_store_files(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    store: &VectorStoreId,
    now: Timestamp,
    rows: &[NewRow<'_>],
) -> Result<(), Error> {
    for row in rows {
        sqlx::query::<Db>(concat!(
            "insert into vector_store_files
                 (id, project_id, vector_store_id, file_id, filename, created_at, status, usage_bytes, attributes,
                  chunking, changed_version, due_at, claims, attempts)
             values ($1, $2, $3, $4, $5, $6, 'in_progress', 0, $7, $8, 0, ",
            now!("$9"),
            ", 0, 0)"
        ))
        .bind(row.file.id.as_str())
        .bind(scope.as_str())
        .bind(store.as_str())
        .bind(row.file.file_id.as_str())
        .bind(&row.filename)
        .bind(now.0)
        .bind(&row.attributes)
        .bind(&row.chunking)
        .bind(fixed_time)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// Inserts chunks of a file, of which the first has the number `first`.
async fn insert_chunks(
    tx: &mut Transaction<Db>,
    owner: &ChunkOwner,
    first: usize,
    chunks: &[NewChunk],
) -> Result<(), Error> {
    for (chunk, number) in chunks.iter().zip(first..) {
        sqlx::query::<Db>(
            "insert into vector_store_chunks
                 (store_file_id, number, project_id, vector_store_id, text, overlap_bytes, tokens, terms, content_hash,
                  embedding)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(&owner.store_file)
        .bind(i64::try_from(number).unwrap_or(i64::MAX))
        .bind(&owner.project)
        .bind(&owner.store)
        // As in Postgres, which cannot store NUL characters.
        .bind(chunk.text.replace('\0', "\u{fffd}"))
        .bind(i64::from(chunk.overlap_bytes))
        .bind(i64::from(chunk.tokens))
        .bind(chunk.terms.as_slice())
        .bind(chunk.content_hash.as_slice())
        .bind(chunk.embedding.as_deref())
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// Stores parts of a segment.
async fn insert_segment_parts(tx: &mut Transaction<Db>, segment: &str, parts: &[(u32, Vec<u8>)]) -> Result<(), Error> {
    for (number, data) in parts {
        sqlx::query::<Db>("insert into vector_store_segment_parts (segment_id, number, data) values ($1, $2, $3)")
            .bind(segment)
            .bind(i64::from(*number))
            .bind(data.as_slice())
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

/// SQLite has no vectors: nothing to remove.
async fn remove_vectors(_: &mut Transaction<Db>, _: &[&str]) -> Result<(), Error> {
    Ok(())
}

/// Stores the embeddings of chunks of a file.
async fn update_embeddings(
    tx: &mut Transaction<Db>,
    store_file: &str,
    embeddings: &[(u32, Vec<u8>)],
) -> Result<(), Error> {
    for (number, embedding) in embeddings {
        sqlx::query::<Db>("update vector_store_chunks set embedding = $3 where store_file_id = $1 and number = $2")
            .bind(store_file)
            .bind(i64::from(*number))
            .bind(embedding.as_slice())
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

fn count(messages: &[Message]) -> i64 {
    i64::try_from(messages.len()).expect("a request's messages fit in memory")
}

async fn insert_thread_row(
    tx: &mut Transaction<Db>,
    scope: &Scope,
    thread: &Thread,
    messages: &[Message],
    active_run: Option<&RunId>,
) -> Result<(), Error> {
    sqlx::query::<Db>(
        "insert into threads (id, project_id, created_at, version, message_seq, message_at, active_run, body)
         values ($1, $6, $2, 1, $3, $2, $4, $5)",
    )
    .bind(thread.id.as_str())
    .bind(thread.created_at.0)
    .bind(count(messages))
    .bind(active_run.map(RunId::as_str))
    .bind(to_json(thread))
    .bind(scope.as_str())
    .execute(&mut *tx)
    .await?;
    for (message, seq) in messages.iter().zip(1..) {
        write_message(tx, scope, message, seq, thread.created_at.0).await?;
    }
    Ok(())
}

async fn write_message(
    tx: &mut Transaction<Db>,
    scope: &Scope,
    message: &Message,
    seq: i64,
    created_at: i64,
) -> Result<(), Error> {
    sqlx::query::<Db>(
        "insert into messages (id, project_id, thread_id, seq, created_at, run_id, metadata, body, place)
         values ($1, $8, $2, $3, $4, $5, $6, $7, (select sees_to from runs where id = $5))",
    )
    .bind(message.id.as_str())
    .bind(message.thread_id.as_str())
    .bind(seq)
    .bind(created_at)
    .bind(message.author.as_ref().map(|author| author.run_id.as_str()))
    .bind(to_json(&message.metadata))
    .bind(to_json(message))
    .bind(scope.as_str())
    .execute(&mut *tx)
    .await?;
    Ok(())
}

/// Updates a message. Returns its stored metadata, or `None` if it was deleted.
async fn update_message(tx: &mut Transaction<Db>, message: &Message) -> Result<Option<String>, Error> {
    let stored: Option<(String,)> =
        sqlx::query_as::<Db, _>("update messages set body = $2 where id = $1 returning metadata")
            .bind(message.id.as_str())
            .bind(to_json(message))
            .fetch_optional(&mut *tx)
            .await?;
    Ok(stored.map(|(metadata,)| metadata))
}

async fn write_step(tx: &mut Transaction<Db>, scope: &Scope, step: &RunStep) -> Result<(), Error> {
    sqlx::query::<Db>(
        "insert into run_steps (id, project_id, run_id, thread_id, created_at, body)
         values ($1, $6, $2, $3, $4, $5)
         on conflict (id) do update set body = excluded.body",
    )
    .bind(step.id.as_str())
    .bind(step.run_id.as_str())
    .bind(step.thread_id.as_str())
    .bind(step.created_at.0)
    .bind(to_json(step))
    .bind(scope.as_str())
    .execute(&mut *tx)
    .await?;
    Ok(())
}

#[async_trait]
impl NearestChunks for Backend {
    fn vector_search(&self) -> Option<&str> {
        None
    }

    async fn add_vectors(&self, _: &VectorStoreId, _: usize, _: &[(ChunkKey, Vec<f32>)]) -> Result<bool, Error> {
        Ok(false)
    }

    async fn index_vectors(&self, _: &VectorStoreId, _: usize) -> Result<(), Error> {
        Ok(())
    }

    async fn nearest_chunks(&self, _: &VectorStoreId, _: &[f32], _: u32) -> Result<Option<Vec<ChunkKey>>, Error> {
        Ok(None)
    }
}

#[async_trait]
impl Store for Backend {
    async fn check(&self) -> Result<(), Error> {
        sqlx::query::<Db>("select 1").execute(&self.readers).await?;
        // Writes a page, as a commit does, to detect a full disk.
        let mut tx = self.begin().await?;
        sqlx::query::<Db>("update checks set count = count + 1").execute(&mut tx).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn synchronize_clock(&self) -> Result<(), Error> {
        // The database's clock is the system clock, which may have been changed since the last synchronization.
        let (unix_ms,): (i64,) = sqlx::query_as::<Db, _>("select cast(unixepoch('subsec') * 1000 as integer)")
            .fetch_one(&self.readers)
            .await?;
        self.clock.synchronize(unix_ms, Instant::now());
        Ok(())
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
        if let Some(anchor) = self.anchor.lock().await.take() {
            // The connection is unusable afterwards, even if closing fails.
            let _ = anchor.close().await;
        }
    }

    fn display_name(&self) -> String {
        format!("sqlite://{}", self.path.display())
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn notify_run_changed(&self, _run: &RunId) -> Result<(), Error> {
        Ok(())
    }

    fn run_changes(&self) -> BoxStream<'static, RunId> {
        futures_util::stream::pending().boxed()
    }
}
