//! Where state is stored: one contract, two drivers.
//!
//! Every call is one decision and one transaction: when it fails, nothing of it has happened, except that the
//! acknowledgement of a commit may be lost ([`Error::Unavailable`]). Lists are ordered by (`created_at`, order of
//! insertion). Within a thread the order of messages is decided under the thread's row lock, and their times never go
//! back.
//!
//! A run is driven by the server that holds its lease ([`Jobs`]). The run's `version` is the fence: each commit names the
//! version that it was computed from, so whoever was overtaken by a cancellation, by the sweeper or by another server
//! writes nothing and gets [`Error::Stale`]. Lease times and deadlines are compared with the database's clock.
//!
//! A row of a variant that this release does not know is skipped with a warning (`docs/migrations.md`).

mod jobs;
mod pool;
mod postgres;
mod sqlite;
mod unreadable;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::api::{
    Assistant, AssistantId, Message, MessageId, Metadata, ModifyAssistant, ModifyThread, Page, PageQuery, Run, RunId,
    RunStep, RunStepId, Thread, ThreadId, Timestamp,
};
use crate::clock::Clock;

pub use jobs::{JobKind, Jobs, Lease};
pub use sqlite::Synchronous;

/// Why a call did nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be reached, is too busy, or cannot write; a retry can help.
    #[error("the database is not available: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// The database refused a statement; a retry does not help.
    #[error("the database refused a statement: {0}")]
    Refused(#[source] sqlx::Error),
    /// A row is not a valid value.
    #[error("row {id} of {table} is not a valid value")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The row's id.
        id: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The run was changed since it was read, or the lease does not stand any more.
    #[error("the run was changed concurrently")]
    Stale,
    /// The thread is locked by an active run.
    #[error("thread has the active run {0}")]
    ThreadBusy(RunId),
    /// The thread does not exist.
    #[error("the thread does not exist")]
    NoThread,
    /// The element named as a list's cursor is not in the list.
    #[error("the list has no element {0} to page from")]
    NoCursor(String),
    /// The schema could not be brought up to date.
    #[error("the schema could not be brought up to date")]
    Migration(#[source] sqlx::migrate::MigrateError),
    /// The configured database cannot be used.
    #[error("{0}")]
    InvalidUrl(String),
}

impl Error {
    /// A wait for the database that took too long.
    #[must_use]
    pub fn timed_out() -> Self {
        Self::Unavailable(sqlx::Error::PoolTimedOut)
    }
}

/// Assistants.
#[async_trait]
pub trait Assistants {
    /// Stores a new assistant.
    async fn create_assistant(&self, assistant: &Assistant) -> Result<(), Error>;
    /// Returns an assistant.
    async fn assistant(&self, id: &AssistantId) -> Result<Option<Assistant>, Error>;
    /// Returns a page of all assistants.
    async fn list_assistants(&self, query: &PageQuery) -> Result<Page<Assistant>, Error>;
    /// Changes an assistant; changes made at the same time both take effect.
    async fn modify_assistant(&self, id: &AssistantId, change: &ModifyAssistant) -> Result<Option<Assistant>, Error>;
    /// Deletes an assistant; returns whether there was one. Its runs and messages stay.
    async fn delete_assistant(&self, id: &AssistantId) -> Result<bool, Error>;
}

/// Threads.
#[async_trait]
pub trait Threads {
    /// Stores a new thread and its first messages, in their order.
    async fn create_thread(&self, thread: &Thread, messages: &[Message]) -> Result<(), Error>;
    /// Returns a thread.
    async fn thread(&self, id: &ThreadId) -> Result<Option<Thread>, Error>;
    /// Returns a page of all threads.
    async fn list_threads(&self, query: &PageQuery) -> Result<Page<Thread>, Error>;
    /// Changes a thread; changes made at the same time both take effect.
    async fn modify_thread(&self, id: &ThreadId, change: &ModifyThread) -> Result<Option<Thread>, Error>;
    /// Deletes a thread with its messages, runs and steps; returns whether there was one. An active run of it writes
    /// nothing any more.
    async fn delete_thread(&self, id: &ThreadId) -> Result<bool, Error>;
}

/// Messages.
#[async_trait]
pub trait Messages {
    /// Stores a new message at the end of its thread, and returns it as stored: never older than the one before it.
    ///
    /// # Errors
    /// [`Error::NoThread`], and [`Error::ThreadBusy`] while a run is active, unless `while_busy`: the message is then for
    /// the runs that are created after it.
    async fn create_message(&self, message: Message, while_busy: bool) -> Result<Message, Error>;
    /// Returns a message of a thread.
    async fn message(&self, thread: &ThreadId, id: &MessageId) -> Result<Option<Message>, Error>;
    /// Returns a page of a thread's messages, or of those that `run` wrote.
    async fn list_messages(
        &self,
        thread: &ThreadId,
        run: Option<&RunId>,
        query: &PageQuery,
    ) -> Result<Page<Message>, Error>;
    /// Returns a page of a run's prompt context, newest first: messages up to the run's creation, with earlier replies
    /// placed after the messages they answered.
    ///
    /// At most `rows` messages, and about `bytes` of them; always at least one. What is beyond is not read.
    async fn conversation_page(
        &self,
        thread: &ThreadId,
        run: &RunId,
        before: Option<ConversationCursor>,
        rows: u32,
        bytes: usize,
    ) -> Result<ConversationPage, Error>;
    /// Returns the first message of a run's prompt context.
    async fn oldest_message(&self, thread: &ThreadId, run: &RunId) -> Result<Option<Message>, Error>;
    /// Replaces a message's metadata.
    async fn modify_message(
        &self,
        thread: &ThreadId,
        id: &MessageId,
        metadata: &Metadata,
    ) -> Result<Option<Message>, Error>;
    /// Deletes a message; returns whether there was one. The order of the rest stays.
    async fn delete_message(&self, thread: &ThreadId, id: &MessageId) -> Result<bool, Error>;
}

/// A position in a run's prompt context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversationCursor {
    /// Where the message stands in the context.
    pub context_seq: i64,
    /// Its own insertion number in the thread.
    pub seq: i64,
}

/// A part of a run's prompt context.
#[derive(Debug, Clone, PartialEq)]
pub struct ConversationPage {
    /// The messages, newest first.
    pub messages: Vec<Message>,
    /// Where older messages begin; none when there are no more.
    pub next: Option<ConversationCursor>,
}

/// What a new run needs of its thread and its assistant, read at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct RunContext {
    /// The assistant, if it exists.
    pub assistant: Option<Assistant>,
    /// The thread, if it exists.
    pub thread: Option<Thread>,
    /// Whether the thread has any message.
    pub has_messages: bool,
}

/// How a new run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// In progress, under a lease of this duration with the number 1.
    Leased(Duration),
    /// In the queue.
    Due,
    /// Behind the runs of its thread, see [`Runs::promote_run`].
    Waiting,
}

/// A run to store, with what belongs to it.
#[derive(Debug, Clone, Copy)]
pub struct NewRun<'a> {
    /// The run.
    pub run: &'a Run,
    /// Its thread, when it is created with the run.
    pub thread: Option<&'a Thread>,
    /// Messages to add to the thread before the run.
    pub messages: &'a [Message],
    /// Who asked for it: owners take turns in the queue.
    pub owner: &'a str,
    /// How it begins.
    pub start: Start,
}

/// A run as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned {
    /// The run.
    pub run: Run,
    /// Identifies this state of it: the fence for the next commit.
    pub version: i64,
    /// When it may be claimed; in the future while a server holds its lease.
    pub due_at: Option<Timestamp>,
    /// Rises with each commit and each saved text.
    pub revision: i64,
    /// The number of its newest lease.
    pub lease: i64,
}

/// The version of a run that has just been created.
pub const FIRST_VERSION: i64 = 1;

/// What a commit makes of a run's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextLease {
    /// It stays.
    Keep,
    /// A new one of this duration begins; that is an attempt.
    Take(Duration),
    /// None: the run may be claimed at once.
    Due,
    /// None: the run has no driver.
    None,
}

/// What one transition of a run writes, all or nothing.
#[derive(Debug)]
pub struct Commit<'a> {
    /// The run as it becomes.
    pub run: &'a Run,
    /// The version that this was computed from.
    pub version: i64,
    /// What becomes of the lease.
    pub next_lease: NextLease,
    /// Whether attempts are counted anew.
    pub made_progress: bool,
    /// Steps, new or changed.
    pub steps: &'a [RunStep],
    /// Steps to delete.
    pub removed_steps: &'a [RunStepId],
    /// The run's message, if this commit creates it.
    pub new_message: Option<&'a Message>,
    /// The run's message, if it exists and has changed. A message that a client has deleted stays deleted.
    pub changed_message: Option<&'a Message>,
}

/// What came of a commit.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    /// Identifies the new state of the run.
    pub version: i64,
    /// The number of the newest lease.
    pub lease: i64,
    /// The metadata of the changed message, which clients may change; none when it is gone.
    pub metadata: Option<Metadata>,
}

/// A run that was claimed.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedRun {
    /// The run.
    pub versioned: Versioned,
    /// Attempts since it last made progress, this one included.
    pub attempts: u32,
    /// What ended the attempt before, if it was recorded.
    pub last_failure: Option<String>,
    /// Who asked for it.
    pub owner: String,
}

/// The message of a run as far as it is written.
#[derive(Debug, Clone, Copy)]
pub struct SavedText<'a> {
    /// The run.
    pub run: &'a RunId,
    /// The run's version when this was written.
    pub version: i64,
    /// Its message.
    pub message: &'a Message,
}

/// Runs and their steps.
#[async_trait]
pub trait Runs {
    /// Reads what a new run needs; `thread` is none when the run creates its own.
    async fn run_context(&self, thread: Option<&ThreadId>, assistant: &AssistantId) -> Result<RunContext, Error>;
    /// Stores a new run at [`FIRST_VERSION`], its thread and its messages. A run that is stored already, because an
    /// acknowledgement was lost, is stored once.
    ///
    /// # Errors
    /// [`Error::NoThread`]; and, for a run that does not wait, [`Error::ThreadBusy`] while another run is active or waits:
    /// of several callers at once, one wins.
    async fn create_run(&self, new: &NewRun<'_>) -> Result<(), Error>;
    /// Returns a run of a thread.
    async fn run(&self, thread: &ThreadId, id: &RunId) -> Result<Option<Versioned>, Error>;
    /// Returns a page of a thread's runs.
    async fn list_runs(&self, thread: &ThreadId, query: &PageQuery) -> Result<Page<Run>, Error>;
    /// Replaces a run's metadata; the run's version stays.
    async fn modify_run(&self, thread: &ThreadId, id: &RunId, metadata: &Metadata) -> Result<Option<Run>, Error>;
    /// Returns what a run has done: its steps, in order, and its message.
    async fn progress(&self, run: &RunId) -> Result<(Vec<RunStep>, Option<Message>), Error>;
    /// Claims a due run, under a lease of this duration; none when no run is due.
    ///
    /// Owners take turns: the next owner behind `after_owner` that has a due run, and of that owner the run that has been
    /// due longest. Until the lease ends no other caller gets the run. Its version rises, so a server that lost it can
    /// write nothing. Runs in `except`, and runs that had more than `attempts_max` attempts since they last made progress, are
    /// not claimed.
    async fn claim_run(
        &self,
        lease: Duration,
        after_owner: &str,
        except: &[RunId],
        attempts_max: u32,
    ) -> Result<Option<ClaimedRun>, Error>;
    /// Writes a transition. A run that is over frees its thread.
    ///
    /// # Errors
    /// [`Error::Stale`] when the run is not at `commit.version` any more, or is gone.
    async fn commit(&self, commit: Commit<'_>) -> Result<Committed, Error>;
    /// Writes the messages of runs that are still at their version; returns the ids of those.
    async fn save_messages(&self, texts: &[SavedText<'_>]) -> Result<Vec<RunId>, Error>;
    /// Returns the versions and revisions of those runs that exist.
    async fn run_revisions(&self, runs: &[RunId]) -> Result<Vec<(RunId, i64, i64)>, Error>;
    /// Makes the run of a thread that has waited longest the active one, due at once, when no run is active. Returns its
    /// id, or none when there is nothing to do.
    async fn promote_run(&self, thread: &ThreadId) -> Result<Option<RunId>, Error>;
    /// Returns up to `limit` threads on which runs wait and none is active: the server that should have promoted one was
    /// lost.
    async fn stalled_threads(&self, limit: u32) -> Result<Vec<ThreadId>, Error>;
    /// Returns up to `limit` runs that are not over although their deadline, and `grace`, have passed.
    async fn overdue_runs(&self, grace: Duration, limit: u32) -> Result<Vec<Versioned>, Error>;
    /// Returns up to `limit` runs that are being cancelled and that no server drives.
    async fn lapsed_cancelling_runs(&self, limit: u32) -> Result<Vec<Versioned>, Error>;
    /// Returns a step of a run.
    async fn step(&self, thread: &ThreadId, run: &RunId, id: &RunStepId) -> Result<Option<RunStep>, Error>;
    /// Returns a page of a run's steps.
    async fn list_steps(&self, thread: &ThreadId, run: &RunId, query: &PageQuery) -> Result<Page<RunStep>, Error>;
}

/// Everything that is stored.
#[async_trait]
pub trait Store: Assistants + Threads + Messages + Runs + Jobs + Send + Sync + std::fmt::Debug {
    /// Checks that the database answers, and that it can write.
    async fn check(&self) -> Result<(), Error>;
    /// Sets the clock to the database's.
    async fn synchronize_clock(&self) -> Result<(), Error>;
    /// Closes all connections, after the calls that are under way.
    async fn close(&self);
    /// The file, or the server without its password.
    fn display_name(&self) -> String;
    /// Whether other servers use it as well.
    fn is_shared(&self) -> bool;
    /// Notifies the other servers that a run was changed. A hint, which may get lost.
    async fn notify_run_changed(&self, run: &RunId) -> Result<(), Error>;
    /// The runs that servers notify of, from now on and without end.
    fn run_changes(&self) -> BoxStream<'static, RunId>;
}

/// How to reach the database.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `sqlite://path` or `postgres://…`.
    pub url: String,
    /// Maximum number of connections (Postgres), or of readers (SQLite).
    pub connections_max: u32,
    /// How long a statement may take; then it fails, and its connection is closed.
    pub statement_timeout: Duration,
    /// How long to wait at start for a database that is away.
    pub start_timeout: Duration,
    /// How hard SQLite tries to keep the newest commits through a power cut.
    pub synchronous: Synchronous,
}

/// Opens the database, creates it if it is a file that does not exist, and brings its schema up to date.
///
/// Several callers may do so at once: one migrates, the others wait for it. The store compares times with the database's
/// clock, or with `clock` where that is moved by hand; a real `clock` is set to the database's.
///
/// # Errors
/// [`Error::InvalidUrl`] when the URL cannot be used or a file is in use by another server; else as the database says.
pub async fn open(settings: &Settings, clock: Arc<Clock>) -> Result<Arc<dyn Store>, Error> {
    if settings.url.starts_with("sqlite:") {
        Ok(Arc::new(sqlite::Backend::open(settings, clock).await?))
    } else if settings.url.starts_with("postgres:") || settings.url.starts_with("postgresql:") {
        Ok(Arc::new(postgres::Backend::open(settings, clock).await?))
    } else {
        let scheme = settings.url.split(':').next().unwrap_or_default();
        Err(Error::InvalidUrl(format!(
            "database_url begins with \"{scheme}:\"; it must begin with \"sqlite://\" or \"postgres://\""
        )))
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => {
                if database.code().is_some_and(|code| is_passing(&code)) {
                    Self::Unavailable(error)
                } else {
                    Self::Refused(error)
                }
            }
            // A proxy whose database is away sends what is not Postgres' protocol.
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

/// Whether a database's error may pass by itself.
fn is_passing(code: &str) -> bool {
    // Postgres: connections (08), lost races (40), resources (53), intervention by the operator (57), system errors (58),
    // and a server that is read-only for now (25006).
    let classes = ["08", "40", "53", "57", "58"];
    if code.len() == 5 {
        return classes.iter().any(|class| code.starts_with(class)) || code == "25006";
    }
    // SQLite, in the low byte: busy, locked, read-only, I/O error, full, cannot open.
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 8 | 10 | 13 | 14))
}

/// Reads a JSON column.
fn from_json<T: serde::de::DeserializeOwned>(table: &'static str, id: &str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|source| Error::Inconsistent { table, id: id.to_owned(), source })
}

/// Writes a JSON column.
fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain values with string keys always make JSON")
}
