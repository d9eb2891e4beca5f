//! The store in a SQLite file: one server, no set-up. Here is what only SQLite says; the rest is in `sql/`.
//!
//! One connection writes and many read: with several writers SQLite's busy handler makes waits unfair and long.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, SqliteConnection};
use tokio::sync::Mutex;

use super::pool::{Pool, Transaction};
use super::{Commit, Error, NewRun, Settings, Store, to_json};
use crate::api::{Message, RunId, RunStep, Thread, Timestamp};

#[path = "sql/assistants.rs"]
mod assistants;
#[path = "sql/messages.rs"]
mod messages;
#[path = "sql/page.rs"]
mod page;
#[path = "sql/runs.rs"]
mod runs;
#[path = "sql/threads.rs"]
mod threads;

use runs::Written;

type Db = sqlx::Sqlite;
type Row = sqlx::sqlite::SqliteRow;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

/// How long a statement waits for a lock; only a person's own tools can hold one for long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const CLAIM_RUN: &str = "
    update runs set due_at = $2, version = version + 1
    where id = (select id from runs where due_at <= $1 order by due_at, seq limit 1)
    returning id, version, due_at, spec, state, metadata";

/// How hard SQLite tries to keep the newest commits through a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Synchronous {
    /// Every commit is on the disk before it is acknowledged.
    Full,
    /// A power cut may take the last commits; a crash of the server takes none.
    Normal,
}

/// One file, one writer, many readers.
#[derive(Debug)]
pub struct Backend {
    writer: Pool<Db>,
    readers: Pool<Db>,
    /// Open to the end: readers cannot make the file's shared memory, which goes with the last connection.
    anchor: Mutex<Option<SqliteConnection>>,
    path: PathBuf,
    /// Held to the end: it keeps a second server off the file.
    _lock: File,
}

impl Backend {
    pub(super) async fn open(settings: &Settings) -> Result<Self, Error> {
        let path = settings.url.trim_start_matches("sqlite:").trim_start_matches("//");
        let path = path.split('?').next().unwrap_or_default();
        if path.is_empty() || path == ":memory:" {
            return Err(Error::Place("database_url names no file; write it as sqlite://path/to/file.db".to_owned()));
        }
        let path = PathBuf::from(path);
        let lock = lock(&path)?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(match settings.synchronous {
                Synchronous::Full => SqliteSynchronous::Full,
                Synchronous::Normal => SqliteSynchronous::Normal,
            })
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true);
        let mut first = SqliteConnection::connect_with(&options).await?;
        MIGRATIONS.run(&mut first).await.map_err(Error::Migration)?;
        // This process is the only one: whatever was leased before it started is due now.
        sqlx::query::<Db>("update runs set due_at = 0 where due_at is not null").execute(&mut first).await?;
        let writer = Pool::new(options.clone(), 1, settings.statement_max);
        let readers = Pool::new(options.read_only(true), settings.connections_max, settings.statement_max);
        Ok(Self { writer, readers, anchor: Mutex::new(Some(first)), path, _lock: lock })
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

    async fn insert_thread(&self, thread: &Thread, messages: &[Message]) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        insert_thread_row(&mut tx, thread, messages, None).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Gives the message's time, or nothing when the thread is locked or not there.
    async fn insert_message(&self, message: &Message, while_busy: bool) -> Result<Option<Timestamp>, Error> {
        let mut tx = self.begin().await?;
        let place: Option<(i64, i64)> = sqlx::query_as::<Db, _>(
            "update threads set message_seq = message_seq + 1, message_at = max(message_at, $2)
             where id = $1
               and ($3 or active_run is null and not exists (select 1 from runs where thread_id = $1 and waits))
             returning message_seq, message_at",
        )
        .bind(message.thread_id.as_str())
        .bind(message.created_at.0)
        .bind(while_busy)
        .fetch_optional(&mut *tx)
        .await?;
        let Some((seq, created_at)) = place else {
            tx.rollback().await?;
            return Ok(None);
        };
        write_message(&mut tx, message, seq, created_at).await?;
        tx.commit().await?;
        Ok(Some(Timestamp(created_at)))
    }

    /// Says whether the thread was there and free, or need not be.
    async fn insert_run(&self, new: &NewRun<'_>) -> Result<bool, Error> {
        let spec = &new.run.spec;
        let mut tx = self.begin().await?;
        let mut sees_to = count(new.messages);
        if let Some(thread) = new.thread {
            let active_run = new.due_at.map(|_| &spec.id);
            insert_thread_row(&mut tx, thread, new.messages, active_run).await?;
        } else {
            let place: Option<(i64, i64)> = sqlx::query_as::<Db, _>(
                "update threads
                 set active_run = case when $5 then active_run else $2 end,
                     message_seq = message_seq + $3,
                     message_at = max(message_at, $4)
                 where id = $1
                   and ($5 or active_run is null and not exists (select 1 from runs where thread_id = $1 and waits))
                 returning message_seq - $3, message_at",
            )
            .bind(spec.thread_id.as_str())
            .bind(spec.id.as_str())
            .bind(count(new.messages))
            .bind(spec.created_at.0)
            .bind(new.due_at.is_none())
            .fetch_optional(&mut *tx)
            .await?;
            let Some((seq, created_at)) = place else {
                tx.rollback().await?;
                return Ok(false);
            };
            for (message, seq) in new.messages.iter().zip(seq + 1..) {
                write_message(&mut tx, message, seq, created_at).await?;
            }
            sees_to += seq;
        }
        sqlx::query::<Db>(
            "insert into runs
                 (id, thread_id, active, waits, version, created_at, expires_at, due_at, sees_to, spec, state, metadata)
             values ($1, $2, $6 is not null, $6 is null, $3, $4, $5, $6, $10, $7, $8, $9)",
        )
        .bind(spec.id.as_str())
        .bind(spec.thread_id.as_str())
        .bind(super::FIRST_VERSION)
        .bind(spec.created_at.0)
        .bind(spec.expires_at.0)
        .bind(new.due_at.map(|due_at| due_at.0))
        .bind(to_json(&**spec))
        .bind(runs::state_column(new.run))
        .bind(to_json(&new.run.metadata))
        .bind(sees_to)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Writes nothing when the run is not at the commit's version any more.
    async fn write_commit(&self, commit: &Commit<'_>) -> Result<Option<Written>, Error> {
        let run = &commit.run.spec;
        let active = !commit.run.state.is_over();
        let mut tx = self.begin().await?;
        let done = sqlx::query::<Db>(
            "update runs
             set active = active and $3,
                 waits = waits and $3,
                 version = version + 1,
                 due_at = case when waits then null else $4 end,
                 state = $5
             where id = $1 and version = $2",
        )
        .bind(run.id.as_str())
        .bind(commit.version)
        .bind(active)
        .bind(commit.due_at.map(|due_at| due_at.0))
        .bind(runs::state_column(commit.run))
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            tx.rollback().await?;
            return Ok(None);
        }
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
            .fetch_one(&mut *tx)
            .await?;
            if let Some(message) = new {
                write_message(&mut tx, message, seq, created_at).await?;
            }
        }
        let metadata = match commit.changed_message {
            Some(message) => update_message(&mut tx, message).await?,
            None => None,
        };
        for step in commit.steps {
            write_step(&mut tx, step).await?;
        }
        tx.commit().await?;
        Ok(Some(Written(metadata)))
    }

    /// Says whether the run was still at `version`.
    async fn write_lease(
        &self,
        run: &RunId,
        version: i64,
        until: Timestamp,
        message: Option<&Message>,
    ) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let done = sqlx::query::<Db>("update runs set due_at = $3 where id = $1 and version = $2")
            .bind(run.as_str())
            .bind(version)
            .bind(until.0)
            .execute(&mut *tx)
            .await?;
        if done.rows_affected() == 0 {
            tx.rollback().await?;
            return Ok(false);
        }
        if let Some(message) = message {
            update_message(&mut tx, message).await?;
        }
        tx.commit().await?;
        Ok(true)
    }
}

/// Takes the file's lock, and makes the folder for it.
fn lock(path: &Path) -> Result<File, Error> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::Place(format!("the database {} cannot be opened: {error}", path.display()))
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|error| failed(&error))?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::create(PathBuf::from(name)).map_err(|error| failed(&error))?;
    file.try_lock().map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => failed(&"another server is using it"),
        std::fs::TryLockError::Error(error) => failed(&error),
    })?;
    Ok(file)
}

fn count(messages: &[Message]) -> i64 {
    i64::try_from(messages.len()).expect("a request's messages fit in memory")
}

async fn insert_thread_row(
    tx: &mut SqliteConnection,
    thread: &Thread,
    messages: &[Message],
    active_run: Option<&RunId>,
) -> Result<(), Error> {
    sqlx::query::<Db>(
        "insert into threads (id, created_at, version, message_seq, message_at, active_run, body)
         values ($1, $2, 1, $3, $2, $4, $5)",
    )
    .bind(thread.id.as_str())
    .bind(thread.created_at.0)
    .bind(count(messages))
    .bind(active_run.map(RunId::as_str))
    .bind(to_json(thread))
    .execute(&mut *tx)
    .await?;
    for (message, seq) in messages.iter().zip(1..) {
        write_message(tx, message, seq, thread.created_at.0).await?;
    }
    Ok(())
}

async fn write_message(tx: &mut SqliteConnection, message: &Message, seq: i64, created_at: i64) -> Result<(), Error> {
    sqlx::query::<Db>(
        "insert into messages (id, thread_id, seq, created_at, run_id, metadata, body, place)
         values ($1, $2, $3, $4, $5, $6, $7, (select sees_to from runs where id = $5))",
    )
    .bind(message.id.as_str())
    .bind(message.thread_id.as_str())
    .bind(seq)
    .bind(created_at)
    .bind(message.author.as_ref().map(|author| author.run_id.as_str()))
    .bind(to_json(&message.metadata))
    .bind(to_json(message))
    .execute(tx)
    .await?;
    Ok(())
}

/// Gives the `metadata` that the message has. A message that was deleted meanwhile stays deleted.
async fn update_message(tx: &mut SqliteConnection, message: &Message) -> Result<Option<String>, Error> {
    let kept: Option<(String,)> =
        sqlx::query_as::<Db, _>("update messages set body = $2 where id = $1 returning metadata")
            .bind(message.id.as_str())
            .bind(to_json(message))
            .fetch_optional(tx)
            .await?;
    Ok(kept.map(|(metadata,)| metadata))
}

async fn write_step(tx: &mut SqliteConnection, step: &RunStep) -> Result<(), Error> {
    sqlx::query::<Db>(
        "insert into run_steps (id, run_id, thread_id, created_at, body)
         values ($1, $2, $3, $4, $5)
         on conflict (id) do update set body = excluded.body",
    )
    .bind(step.id.as_str())
    .bind(step.run_id.as_str())
    .bind(step.thread_id.as_str())
    .bind(step.created_at.0)
    .bind(to_json(step))
    .execute(tx)
    .await?;
    Ok(())
}

#[async_trait]
impl Store for Backend {
    async fn ping(&self) -> Result<(), Error> {
        sqlx::query::<Db>("select 1").execute(&self.readers).await?;
        Ok(())
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
        if let Some(anchor) = self.anchor.lock().await.take() {
            // It is gone either way.
            let _ = anchor.close().await;
        }
    }

    fn place(&self) -> String {
        format!("sqlite://{}", self.path.display())
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn ring(&self, _run: &RunId) -> Result<(), Error> {
        Ok(())
    }

    fn rings(&self) -> BoxStream<'static, RunId> {
        futures_util::stream::pending().boxed()
    }
}
