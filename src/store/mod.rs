//! Where state is kept: one contract, two drivers.
//!
//! Every call is one decision and one transaction: when it fails, nothing of it has happened. Lists run by
//! (`created_at`, order of insertion). Within a thread the order of messages is given under the thread's row lock, and
//! their times never go back.
//!
//! A run is driven by whoever holds its lease. The run's `version` is the fence: each commit names the version that it
//! was computed from, so whoever was overtaken by a cancel, by the sweeper or by another executor writes nothing and
//! gets [`Error::Stale`].

mod pool;
mod postgres;
mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::api::{
    Assistant, AssistantId, Message, MessageId, Metadata, ModifyAssistant, ModifyThread, Page, PageQuery, Run, RunId,
    RunStep, RunStepId, Thread, ThreadId, Timestamp,
};

pub use sqlite::Synchronous;

/// Why a call did nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be reached or is too busy; a retry can help.
    #[error("the database is not available: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// The database refused a statement; a retry does not help.
    #[error("the database refused a statement: {0}")]
    Refused(#[source] sqlx::Error),
    /// A row makes no valid value.
    #[error("row {id} of {table} makes no valid value")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The row's id.
        id: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Someone else has changed the run since it was read.
    #[error("the run was changed by someone else")]
    Stale,
    /// The thread is locked by a run that is still going.
    #[error("thread has the active run {0}")]
    ThreadBusy(RunId),
    /// There is no such thread.
    #[error("no such thread")]
    NoThread,
    /// The element named as a list's cursor is not in the list.
    #[error("no element {0} to page from")]
    NoCursor(String),
    /// The schema could not be brought up to date.
    #[error("the schema could not be brought up to date")]
    Migration(#[source] sqlx::migrate::MigrateError),
    /// The place for the database cannot be used.
    #[error("{0}")]
    Place(String),
}

/// Assistants.
#[async_trait]
pub trait Assistants {
    /// Keeps a new assistant.
    async fn create_assistant(&self, assistant: &Assistant) -> Result<(), Error>;
    /// Gives an assistant.
    async fn assistant(&self, id: &AssistantId) -> Result<Option<Assistant>, Error>;
    /// Gives a page of all assistants.
    async fn list_assistants(&self, query: &PageQuery) -> Result<Page<Assistant>, Error>;
    /// Changes an assistant; changes made at the same time both take effect.
    async fn modify_assistant(&self, id: &AssistantId, change: &ModifyAssistant) -> Result<Option<Assistant>, Error>;
    /// Drops an assistant; says whether there was one. Its runs and messages stay.
    async fn delete_assistant(&self, id: &AssistantId) -> Result<bool, Error>;
}

/// Threads.
#[async_trait]
pub trait Threads {
    /// Keeps a new thread and its first messages, in their order.
    async fn create_thread(&self, thread: &Thread, messages: &[Message]) -> Result<(), Error>;
    /// Gives a thread.
    async fn thread(&self, id: &ThreadId) -> Result<Option<Thread>, Error>;
    /// Gives a page of all threads.
    async fn list_threads(&self, query: &PageQuery) -> Result<Page<Thread>, Error>;
    /// Changes a thread; changes made at the same time both take effect.
    async fn modify_thread(&self, id: &ThreadId, change: &ModifyThread) -> Result<Option<Thread>, Error>;
    /// Drops a thread with its messages, runs and steps; says whether there was one. A run that is still going writes
    /// nothing any more.
    async fn delete_thread(&self, id: &ThreadId) -> Result<bool, Error>;
}

/// Messages.
#[async_trait]
pub trait Messages {
    /// Keeps a new message at the end of its thread, and gives it as kept: never older than the one before it.
    ///
    /// # Errors
    /// [`Error::NoThread`], and [`Error::ThreadBusy`] while a run is active, unless `while_busy`: the message is then for
    /// the runs that are created after it.
    async fn create_message(&self, message: Message, while_busy: bool) -> Result<Message, Error>;
    /// Gives a message of a thread.
    async fn message(&self, thread: &ThreadId, id: &MessageId) -> Result<Option<Message>, Error>;
    /// Gives a page of a thread's messages, or of those that `run` wrote.
    async fn list_messages(
        &self,
        thread: &ThreadId,
        run: Option<&RunId>,
        query: &PageQuery,
    ) -> Result<Page<Message>, Error>;
    /// Gives what a run answers: the thread as it was when the run was created, with the messages of the runs before,
    /// each behind what its run had answered. All of it, or the `newest` ones, oldest first; what is not asked for is
    /// not read.
    async fn conversation(&self, thread: &ThreadId, run: &RunId, newest: Option<usize>) -> Result<Vec<Message>, Error>;
    /// Replaces a message's metadata.
    async fn modify_message(
        &self,
        thread: &ThreadId,
        id: &MessageId,
        metadata: &Metadata,
    ) -> Result<Option<Message>, Error>;
    /// Drops a message; says whether there was one. The order of the rest stays.
    async fn delete_message(&self, thread: &ThreadId, id: &MessageId) -> Result<bool, Error>;
}

/// What a new run needs to know of its thread and its assistant, read at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Ground {
    /// The assistant, if it is there.
    pub assistant: Option<Assistant>,
    /// The thread, if it is there.
    pub thread: Option<Thread>,
    /// Whether the thread has any message.
    pub has_messages: bool,
}

/// A run to keep, with what comes along with it.
#[derive(Debug)]
pub struct NewRun<'a> {
    /// The run.
    pub run: &'a Run,
    /// Its thread, when it is made on the way.
    pub thread: Option<&'a Thread>,
    /// Messages to add to the thread before the run.
    pub messages: &'a [Message],
    /// When an executor may take it; none: it waits for its turn, see [`Runs::promote_run`].
    pub due_at: Option<Timestamp>,
}

/// A run as it was read: the fence for the next commit.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned {
    /// The run.
    pub run: Run,
    /// Names this state of it.
    pub version: i64,
    /// When an executor may take it; in the future while one holds it.
    pub due_at: Option<Timestamp>,
}

/// The version of a run that has just been created.
pub const FIRST_VERSION: i64 = 1;

/// What one transition of a run writes, all or nothing.
#[derive(Debug)]
pub struct Commit<'a> {
    /// The run as it shall be.
    pub run: &'a Run,
    /// The version that this was computed from.
    pub version: i64,
    /// When an executor may take the run; none when there is nothing to do for it.
    pub due_at: Option<Timestamp>,
    /// Steps, new or changed.
    pub steps: &'a [RunStep],
    /// The run's message, when it is begun by this.
    pub new_message: Option<&'a Message>,
    /// The run's message, when it was begun before and has changed. One that was deleted since stays deleted.
    pub changed_message: Option<&'a Message>,
}

/// What has become of a commit.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    /// Names the new state of the run.
    pub version: i64,
    /// The pairs that the changed message has, which are the client's to change; none when it is gone.
    pub metadata: Option<Metadata>,
}

/// Runs and their steps.
#[async_trait]
pub trait Runs {
    /// Reads what a new run stands on; `thread` is none when the run makes its own.
    async fn ground(&self, thread: Option<&ThreadId>, assistant: &AssistantId) -> Result<Ground, Error>;
    /// Keeps a new run at [`FIRST_VERSION`], its thread and its messages.
    ///
    /// # Errors
    /// [`Error::NoThread`]; and, for a run that does not wait, [`Error::ThreadBusy`] while another run is active or waits:
    /// of several callers at once, one wins.
    async fn create_run(&self, new: &NewRun<'_>) -> Result<(), Error>;
    /// Gives a run of a thread.
    async fn run(&self, thread: &ThreadId, id: &RunId) -> Result<Option<Versioned>, Error>;
    /// Gives a page of a thread's runs.
    async fn list_runs(&self, thread: &ThreadId, query: &PageQuery) -> Result<Page<Run>, Error>;
    /// Replaces a run's metadata; the run's version stays.
    async fn modify_run(&self, thread: &ThreadId, id: &RunId, metadata: &Metadata) -> Result<Option<Run>, Error>;
    /// Gives what a run has done: its steps, in order, and its message.
    async fn parts(&self, run: &RunId) -> Result<(Vec<RunStep>, Option<Message>), Error>;
    /// Leases the run that has been due for longest, until `until`; none when nothing is due.
    ///
    /// Until then no other caller gets this run. The version is raised, so an executor that lost it can write nothing.
    async fn claim_run(&self, now: Timestamp, until: Timestamp) -> Result<Option<Versioned>, Error>;
    /// Writes a transition. A run that is over frees its thread.
    ///
    /// # Errors
    /// [`Error::Stale`] when the run is not at `commit.version` any more, or is gone.
    async fn commit(&self, commit: Commit<'_>) -> Result<Committed, Error>;
    /// Keeps a lease until `until` and writes the message as far as it goes; the version stays.
    ///
    /// # Errors
    /// [`Error::Stale`] as in [`Runs::commit`].
    async fn keep(&self, run: &RunId, version: i64, until: Timestamp, message: Option<&Message>) -> Result<(), Error>;
    /// Makes a leased run due at once, for any executor.
    async fn release(&self, run: &RunId, version: i64, now: Timestamp) -> Result<(), Error>;
    /// Makes the run of a thread that has waited longest the active one, due at once, when no run is active. Gives it, or
    /// nothing when there is nothing to do.
    async fn promote_run(&self, thread: &ThreadId, now: Timestamp) -> Result<Option<RunId>, Error>;
    /// Gives up to `limit` threads on which runs wait and none is active: whoever should have promoted one has died.
    async fn stalled_threads(&self, limit: u32) -> Result<Vec<ThreadId>, Error>;
    /// Gives up to `limit` runs whose deadline lay before `before` and that are still going.
    async fn overdue_runs(&self, before: Timestamp, limit: u32) -> Result<Vec<Versioned>, Error>;
    /// Gives a step of a run.
    async fn step(&self, thread: &ThreadId, run: &RunId, id: &RunStepId) -> Result<Option<RunStep>, Error>;
    /// Gives a page of a run's steps.
    async fn list_steps(&self, thread: &ThreadId, run: &RunId, query: &PageQuery) -> Result<Page<RunStep>, Error>;
}

/// All that is kept.
#[async_trait]
pub trait Store: Assistants + Threads + Messages + Runs + Send + Sync + std::fmt::Debug {
    /// Asks the database for a sign of life.
    async fn ping(&self) -> Result<(), Error>;
    /// Ends all connections, after the calls that are under way.
    async fn close(&self);
    /// What to call it in a banner: the file, or the server without its password.
    fn place(&self) -> String;
    /// Whether other processes work on it as well.
    fn is_shared(&self) -> bool;
    /// Rings for a run that another process may drive: someone has changed it. A hint, which may get lost.
    async fn ring(&self, run: &RunId) -> Result<(), Error>;
    /// The runs that are rung for, by this process or another, from now on and without end.
    fn rings(&self) -> BoxStream<'static, RunId>;
}

/// How to reach the database.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `sqlite://path` or `postgres://…`.
    pub url: String,
    /// Most connections at a time (Postgres), or most readers (SQLite).
    pub connections_max: u32,
    /// How long a statement may take before it is given up, and its connection with it.
    pub statement_max: Duration,
    /// How hard SQLite tries to keep the newest commits through a power cut.
    pub synchronous: Synchronous,
}

/// Opens the database, makes it if it is a file that is not there, and brings its schema up to date.
///
/// Several callers may do so at once: one migrates, the others wait for it.
///
/// # Errors
/// [`Error::Place`] when the URL is of no known kind or a file is in use by another server; else as the database says.
pub async fn open(settings: &Settings) -> Result<Arc<dyn Store>, Error> {
    if settings.url.starts_with("sqlite:") {
        Ok(Arc::new(sqlite::Backend::open(settings).await?))
    } else if settings.url.starts_with("postgres:") || settings.url.starts_with("postgresql:") {
        Ok(Arc::new(postgres::Backend::open(settings).await?))
    } else {
        let scheme = settings.url.split(':').next().unwrap_or_default();
        Err(Error::Place(format!(
            "database_url begins with \"{scheme}:\"; it must begin with \"sqlite://\" or \"postgres://\""
        )))
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => {
                // Postgres: 57P0x is a shutdown, 53xxx means out of resources, 40xxx a lost race. SQLite: 5 and 6 are
                // "busy" and "locked".
                let passing = database.code().is_some_and(|code| {
                    code.starts_with("57P")
                        || code.starts_with("53")
                        || code.starts_with("40")
                        || code == "5"
                        || code == "6"
                });
                if passing { Self::Unavailable(error) } else { Self::Refused(error) }
            }
            // A proxy whose database is away says things that are no Postgres.
            sqlx::Error::Io(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable(error),
            _ => Self::Refused(error),
        }
    }
}

/// Reads a JSON column.
fn from_json<T: serde::de::DeserializeOwned>(table: &'static str, id: &str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|source| Error::Inconsistent { table, id: id.to_owned(), source })
}

/// Writes a JSON column.
fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain values with string keys always make JSON")
}
