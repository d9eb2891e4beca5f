//! The storage interface, with drivers for Postgres and SQLite.
//!
//! Each call is one transaction: if it fails, nothing was changed, except that the acknowledgement of a commit may have
//! been lost ([`Error::Unavailable`]). Lists are ordered by (`created_at`, order of insertion). The row lock of a thread
//! serializes the insertion of its messages, and their times never decrease.
//!
//! A run is driven by the server that holds its lease ([`Jobs`]). The `version` of the run is the fence: each commit names
//! the version that it was computed from. If a cancellation, the sweeper or another server has changed the run since, the
//! commit writes nothing and fails with [`Error::Stale`]. Lease times and deadlines are compared with the database's clock.
//!
//! The calls that requests make take a [`Scope`]: an object of another project is treated like one that does not exist.
//! [`RunEngine`], [`Blobs`], [`Jobs`] and [`Ingestion`] work across projects, and handlers cannot call them: they hold
//! [`Objects`].
//!
//! A row with a variant that this release does not know is skipped with a warning (`docs/upgrading.md`).

mod access;
mod budgets;
mod code;
mod files;
mod jobs;
mod ledger;
mod organization;
mod outage;
mod pool;
mod postgres;
mod schema;
mod segments;
mod sqlite;
mod sqlite_copy;
mod sqlite_file;
mod unreadable;
mod vector_stores;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::api::organization::usage::ModelCall;
use crate::api::tool::NewResources;
use crate::api::{
    self, Assistant, AssistantId, FileId, Message, MessageId, Metadata, ModifyAssistant, ModifyThread, Page, PageQuery,
    ProjectId, Run, RunId, RunStep, RunStepId, Scope, ServiceAccountId, Thread, ThreadId, Timestamp, VectorStoreId,
};
use crate::clock::Clock;
use crate::metrics::Metrics;

pub use access::{AccessData, StoredKey};
pub use budgets::{Budgets, Reserved, Settled, SettledTokens, TakenRequests, TokenLimit, TokenReservation, UsedTokens};
pub use code::CodeSessions;
pub use files::{BlobId, BlobKind, Blobs, Files, Uploads};
pub use jobs::{JobKind, Jobs, Lease, QueueState};
pub use ledger::{Ledger, USAGE_GROUPS_MAX};
pub use organization::{ApiKeys, AuditLogs, NewApiKey, Organization, Projects, ServiceAccounts};
pub use schema::{RELEASE, Schema};
pub use segments::{FIRST_BLOCK, IndexClaim, IndexSegment, NearestChunks, Segments, VectorsIn};
pub use sqlite::Synchronous;
pub use sqlite_copy::DatabaseCopy;
pub use vector_stores::{
    ChunkKey, ChunkText, ChunkToEmbed, ClaimedStoreFile, CompletedFile, EXPIRED_KEPT_S, IndexedChunk, IndexedFile,
    Ingestion, NewChunk, NewFileBatch, SearchData, StoreState, TOMBSTONE_KEPT_S, TextPage, VectorStores,
};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be reached, is overloaded, or cannot write. A retry can help.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// The database rejected a statement. A retry does not help.
    #[error("the database rejected a statement: {0}")]
    Rejected(#[source] sqlx::Error),
    /// A row is not a valid value.
    #[error("row {id} of {table} is not a valid value")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The row's ID.
        id: String,
        /// The parse error.
        #[source]
        source: serde_json::Error,
    },
    /// The run was changed since it was read, or the lease is no longer valid.
    #[error("the run was changed concurrently")]
    Stale,
    /// The thread is locked by an active run.
    #[error("thread has the active run {0}")]
    ThreadBusy(RunId),
    /// The project has as many active runs as it may.
    #[error("the project has {active} active runs, of which it may have {limit}")]
    TooManyRuns {
        /// Number of active runs.
        active: u64,
        /// Maximum number of active runs.
        limit: u64,
    },
    /// The thread does not exist.
    #[error("the thread does not exist")]
    NoThread,
    /// Files do not exist.
    #[error("{} files do not exist", .0.len())]
    NoFiles(Vec<FileId>),
    /// Vector stores do not exist.
    #[error("{} vector stores do not exist", .0.len())]
    NoVectorStores(Vec<VectorStoreId>),
    /// A file cannot be used as requested; the error says why.
    #[error(transparent)]
    Invalid(api::Error),
    /// The vector store has expired.
    #[error("vector store {0} has expired")]
    VectorStoreExpired(VectorStoreId),
    /// The project does not exist.
    #[error("project {0} does not exist")]
    NoProject(ProjectId),
    /// The project with this name is archived.
    #[error("project {0} is archived")]
    ProjectArchived(String),
    /// The service account does not exist.
    #[error("service account {0} does not exist")]
    NoServiceAccount(ServiceAccountId),
    /// The key belongs to a service account, and is deleted with it.
    #[error("the API key belongs to a service account")]
    KeyOfServiceAccount,
    /// The cursor is not in the list.
    #[error("the list does not contain the cursor {0}")]
    NoCursor(String),
    /// A migration failed.
    #[error("failed to migrate the database schema")]
    Migration(#[source] sqlx::migrate::MigrateError),
    /// The configured database cannot be used.
    #[error("{0}")]
    InvalidUrl(String),
    /// The file is damaged or not a database of assistd. A server would start with missing data.
    #[error(
        "{path} is not a whole database: {reason}. Restore a backup made by `assistd backup`, or, to start with an empty \
         database, move the file away"
    )]
    NotWhole {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer release has removed what this release reads.
    #[error(
        "the database was migrated by assistd {written_by} (schema {schema}), and this is assistd {release} (schema \
         {known}), which can no longer use it. Start assistd {written_by}, or restore a backup from before the upgrade",
        release = schema::RELEASE
    )]
    NewerRelease {
        /// The version of that release.
        written_by: String,
        /// The last migration of the database.
        schema: i64,
        /// The last migration of this release.
        known: i64,
    },
    /// The database is not a SQLite file, which can be copied.
    #[error("the database is Postgres, which `pg_dump` backs up (docs/backup.md)")]
    NotOneFile,
}

impl Error {
    /// Returns the error of a wait for the database that timed out.
    #[must_use]
    pub fn timed_out() -> Self {
        Self::Unavailable(sqlx::Error::PoolTimedOut)
    }
}

/// Assistants.
#[async_trait]
pub trait Assistants {
    /// Stores a new assistant, and what is created with it.
    ///
    /// # Errors
    /// [`Error::NoFiles`], [`Error::NoVectorStores`], [`Error::Invalid`] if a file cannot be searched.
    async fn create_assistant(&self, scope: &Scope, assistant: &Assistant, new: &NewResources) -> Result<(), Error>;
    /// Returns an assistant.
    async fn assistant(&self, scope: &Scope, id: &AssistantId) -> Result<Option<Assistant>, Error>;
    /// Returns a page of all assistants.
    async fn list_assistants(&self, scope: &Scope, query: &PageQuery) -> Result<Page<Assistant>, Error>;
    /// Modifies an assistant. Concurrent changes all take effect.
    ///
    /// # Errors
    /// [`Error::NoFiles`], [`Error::NoVectorStores`].
    async fn modify_assistant(
        &self,
        scope: &Scope,
        id: &AssistantId,
        change: &ModifyAssistant,
    ) -> Result<Option<Assistant>, Error>;
    /// Deletes an assistant, but not its runs and messages. Returns whether it existed.
    async fn delete_assistant(&self, scope: &Scope, id: &AssistantId) -> Result<bool, Error>;
}

/// Threads.
#[async_trait]
pub trait Threads {
    /// Stores a new thread and its first messages, in order, and what is created with it. Returns the thread as stored: with
    /// the files that the messages attach.
    ///
    /// # Errors
    /// [`Error::NoFiles`], [`Error::NoVectorStores`], [`Error::VectorStoreExpired`], [`Error::Invalid`] if files cannot be
    /// attached or are not images.
    async fn create_thread(
        &self,
        scope: &Scope,
        thread: &Thread,
        messages: &[Message],
        new: &NewResources,
    ) -> Result<Thread, Error>;
    /// Returns a thread.
    async fn thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Thread>, Error>;
    /// Returns a page of all threads.
    async fn list_threads(&self, scope: &Scope, query: &PageQuery) -> Result<Page<Thread>, Error>;
    /// Modifies a thread. Concurrent changes all take effect.
    ///
    /// # Errors
    /// [`Error::NoFiles`], [`Error::NoVectorStores`].
    async fn modify_thread(&self, scope: &Scope, id: &ThreadId, change: &ModifyThread)
    -> Result<Option<Thread>, Error>;
    /// Deletes a thread with its messages, runs and steps. Returns whether it existed. An active run can then write nothing.
    async fn delete_thread(&self, scope: &Scope, id: &ThreadId) -> Result<bool, Error>;
}

/// Messages.
#[async_trait]
pub trait Messages {
    /// Appends a message to its thread, and attaches its files to the thread. Returns it as stored: its time is at least that
    /// of the previous message.
    ///
    /// # Errors
    /// [`Error::NoThread`]; [`Error::ThreadBusy`] if a run is active, unless `while_busy` is set: then the message is
    /// visible to the runs created after it. If files cannot be attached, those of [`Threads::create_thread`].
    async fn create_message(
        &self,
        scope: &Scope,
        message: Message,
        while_busy: bool,
        new: &NewResources,
    ) -> Result<Message, Error>;
    /// Returns a message of a thread.
    async fn message(&self, scope: &Scope, thread: &ThreadId, id: &MessageId) -> Result<Option<Message>, Error>;
    /// Returns a page of a thread's messages, or only of those written by `run`.
    async fn list_messages(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        run: Option<&RunId>,
        query: &PageQuery,
    ) -> Result<Page<Message>, Error>;
    /// Returns a page of a run's prompt context, newest first: messages up to the run's creation, with earlier replies
    /// placed after the messages they answered.
    ///
    /// The page has at most `rows` messages with a total size of about `bytes`, but at least one message, if there is one.
    async fn conversation_page(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        run: &RunId,
        before: Option<ConversationCursor>,
        rows: u32,
        bytes: usize,
    ) -> Result<ConversationPage, Error>;
    /// Returns the first message of a run's prompt context.
    async fn oldest_message(&self, scope: &Scope, thread: &ThreadId, run: &RunId) -> Result<Option<Message>, Error>;
    /// Replaces a message's metadata.
    async fn modify_message(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        id: &MessageId,
        metadata: &Metadata,
    ) -> Result<Option<Message>, Error>;
    /// Deletes a message. Returns whether it existed.
    async fn delete_message(&self, scope: &Scope, thread: &ThreadId, id: &MessageId) -> Result<bool, Error>;
}

/// A position in a run's prompt context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversationCursor {
    /// The position of the message in the context.
    pub context_seq: i64,
    /// The insertion number of the message in its thread.
    pub seq: i64,
}

/// A part of a run's prompt context.
#[derive(Debug, Clone, PartialEq)]
pub struct ConversationPage {
    /// The messages, newest first.
    pub messages: Vec<Message>,
    /// The cursor of the next page; `None` if there are no older messages.
    pub next: Option<ConversationCursor>,
}

/// The thread and the assistant of a new run, from one snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct RunContext {
    /// The assistant, if it exists.
    pub assistant: Option<Assistant>,
    /// The thread, if it exists.
    pub thread: Option<Thread>,
    /// Whether the thread has any message.
    pub has_messages: bool,
}

/// The initial state of a new run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// In progress, under a lease with this duration and the number 1.
    Leased(Duration),
    /// Queued.
    Due,
    /// Waiting for the runs before it on its thread; see [`RunEngine::promote_run`].
    Waiting,
}

/// A run to store, with its thread and messages.
#[derive(Debug, Clone, Copy)]
pub struct NewRun<'a> {
    /// The run.
    pub run: &'a Run,
    /// The thread, if it is created with the run.
    pub thread: Option<&'a Thread>,
    /// Messages to add to the thread before the run.
    pub messages: &'a [Message],
    /// What is created with the thread, and the files that the messages attach to it.
    pub new: &'a NewResources,
    /// The owner of the run. Runs are claimed from the owners in turn.
    pub owner: &'a str,
    /// Maximum number of active and waiting runs of the project, this run included; 0: no limit.
    pub active_runs_max: u64,
    /// The initial state.
    pub start: Start,
}

/// A stored run.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned {
    /// The run.
    pub run: Run,
    /// The version of this state: the fence for the next commit.
    pub version: i64,
    /// When the run can be claimed; in the future while a server holds its lease.
    pub due_at: Option<Timestamp>,
    /// Incremented by each commit and each saved text.
    pub revision: i64,
    /// The number of the newest lease.
    pub lease: i64,
}

/// The version of a new run.
pub const FIRST_VERSION: i64 = 1;

/// How a commit changes the lease of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextLease {
    /// Leaves the lease unchanged.
    Keep,
    /// Acquires a new lease with this duration, which counts as an attempt.
    Acquire(Duration),
    /// Clears the lease. The run can be claimed immediately.
    Due,
    /// Clears the lease. The run needs no driver.
    None,
}

/// The atomic write of one transition of a run.
#[derive(Debug)]
pub struct Commit<'a> {
    /// The new state of the run.
    pub run: &'a Run,
    /// The version from which the transition was computed.
    pub version: i64,
    /// The change of the lease.
    pub next_lease: NextLease,
    /// Whether to reset the number of attempts.
    pub made_progress: bool,
    /// New and changed steps.
    pub steps: &'a [RunStep],
    /// Steps to delete.
    pub removed_steps: &'a [RunStepId],
    /// The run's message, if this commit creates it.
    pub new_message: Option<&'a Message>,
    /// The run's message, if it already exists and has changed. A message that a client has deleted remains deleted.
    pub changed_message: Option<&'a Message>,
    /// The model calls that the transition has ended, all of them of this run. They are recorded in the usage ledger.
    pub calls: &'a [ModelCall],
}

/// The result of a commit.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    /// The new version of the run.
    pub version: i64,
    /// The number of the newest lease.
    pub lease: i64,
    /// The stored metadata of the changed message, which clients can modify; `None` if the message was deleted.
    pub metadata: Option<Metadata>,
}

/// A run that was claimed.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedRun {
    /// The run.
    pub versioned: Versioned,
    /// Number of attempts since the run last made progress, including this one.
    pub attempts: u32,
    /// The cause of the previous failure, if it was recorded.
    pub last_failure: Option<String>,
    /// The owner of the run.
    pub owner: String,
}

/// The unfinished message of a run.
#[derive(Debug, Clone, Copy)]
pub struct SavedText<'a> {
    /// The run.
    pub run: &'a RunId,
    /// The version of the run.
    pub version: i64,
    /// The message.
    pub message: &'a Message,
}

/// Runs and their steps.
#[async_trait]
pub trait Runs {
    /// Returns the thread and the assistant of a new run. `thread` is `None` if the request also creates the thread.
    async fn run_context(
        &self,
        scope: &Scope,
        thread: Option<&ThreadId>,
        assistant: &AssistantId,
    ) -> Result<RunContext, Error>;
    /// Stores a new run at [`FIRST_VERSION`], its thread and its messages. Idempotent: a run that is already stored is not
    /// stored again.
    ///
    /// # Errors
    /// [`Error::NoThread`]; for a run that does not wait, [`Error::ThreadBusy`] if another run is active or waiting. Of
    /// several concurrent callers, only one succeeds. [`Error::TooManyRuns`] if the project has too many active runs.
    async fn create_run(&self, new: &NewRun<'_>) -> Result<(), Error>;
    /// Returns a run of a thread.
    async fn run(&self, scope: &Scope, thread: &ThreadId, id: &RunId) -> Result<Option<Versioned>, Error>;
    /// Returns a page of a thread's runs.
    async fn list_runs(&self, scope: &Scope, thread: &ThreadId, query: &PageQuery) -> Result<Page<Run>, Error>;
    /// Replaces a run's metadata, without changing the version of the run.
    async fn modify_run(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        id: &RunId,
        metadata: &Metadata,
    ) -> Result<Option<Run>, Error>;
    /// Returns a step of a run.
    async fn step(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        run: &RunId,
        id: &RunStepId,
    ) -> Result<Option<RunStep>, Error>;
    /// Returns a page of a run's steps.
    async fn list_steps(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        run: &RunId,
        query: &PageQuery,
    ) -> Result<Page<RunStep>, Error>;
}

/// What the run engine calls, for the runs of all projects.
#[async_trait]
pub trait RunEngine {
    /// Returns the progress of a run: its steps, in order, and its message.
    async fn progress(&self, run: &RunId) -> Result<(Vec<RunStep>, Option<Message>), Error>;
    /// Claims a due run for the duration `lease`. Returns `None` if no run is due.
    ///
    /// Selects the next owner after `after_owner` that has a due run, and of that owner the run that has been due longest.
    /// Until the lease expires, no other caller can claim the run. The claim increments the version of the run, so that a
    /// server that lost the run can write nothing. Skips the runs in `except`, and runs with more than `attempts_max`
    /// attempts since they last made progress.
    async fn claim_run(
        &self,
        lease: Duration,
        after_owner: &str,
        except: &[RunId],
        attempts_max: u32,
    ) -> Result<Option<ClaimedRun>, Error>;
    /// Writes a transition. A run that has ended unlocks its thread.
    ///
    /// # Errors
    /// [`Error::Stale`] if the run is no longer at `commit.version` or was deleted.
    async fn commit(&self, commit: Commit<'_>) -> Result<Committed, Error>;
    /// Writes the messages of the runs that are still at the given version. Returns the IDs of these runs.
    async fn save_messages(&self, texts: &[SavedText<'_>]) -> Result<Vec<RunId>, Error>;
    /// Returns the versions and revisions of the runs that exist.
    async fn run_revisions(&self, runs: &[RunId]) -> Result<Vec<(RunId, i64, i64)>, Error>;
    /// If a thread has no active run, makes its longest-waiting run active and due. Returns the ID of that run, or `None`
    /// if there is none to promote.
    async fn promote_run(&self, thread: &ThreadId) -> Result<Option<RunId>, Error>;
    /// Returns up to `limit` threads with waiting runs but no active run, because the server that should have promoted one
    /// was lost.
    async fn stalled_threads(&self, limit: u32) -> Result<Vec<ThreadId>, Error>;
    /// Returns up to `limit` runs that have not ended and whose deadline passed more than `grace` ago.
    async fn overdue_runs(&self, grace: Duration, limit: u32) -> Result<Vec<Versioned>, Error>;
    /// Returns up to `limit` runs that are being cancelled but that no server drives.
    async fn lapsed_cancelling_runs(&self, limit: u32) -> Result<Vec<Versioned>, Error>;
}

/// What requests may call. Each call is limited to the objects of a project.
pub trait Objects:
    Assistants + Threads + Messages + Runs + Files + Uploads + VectorStores + Send + Sync + std::fmt::Debug
{
}

impl<T: Assistants + Threads + Messages + Runs + Files + Uploads + VectorStores + Send + Sync + std::fmt::Debug> Objects
    for T
{
}

/// The whole storage interface.
#[async_trait]
pub trait Store:
    Objects
    + RunEngine
    + Blobs
    + Jobs
    + Ingestion
    + SearchData
    + Segments
    + NearestChunks
    + AccessData
    + Budgets
    + CodeSessions
    + Ledger
    + Organization
{
    /// Checks that the database responds and can write.
    async fn check(&self) -> Result<(), Error>;
    /// Synchronizes the clock with the database's clock.
    async fn synchronize_clock(&self) -> Result<(), Error>;
    /// Closes all connections, after their current calls.
    async fn close(&self);
    /// Returns the URL of the database, without the credentials.
    fn display_name(&self) -> String;
    /// Returns whether several servers can use the database.
    fn is_shared(&self) -> bool;
    /// Notifies the other servers that a run was changed. Notifications can be lost.
    async fn notify_run_changed(&self, run: &RunId) -> Result<(), Error>;
    /// Returns a stream of the runs that servers report as changed from now on, without end.
    fn run_changes(&self) -> BoxStream<'static, RunId>;
}

/// The settings of the store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `sqlite://path` or `postgres://…`.
    pub url: String,
    /// Maximum number of connections (Postgres) or of readers (SQLite).
    pub connections_max: u32,
    /// Timeout of a statement. When it expires, the statement fails and its connection is closed.
    pub statement_timeout: Duration,
    /// How long to wait at startup for a database that is unavailable.
    pub start_timeout: Duration,
    /// Whether SQLite commits survive a power failure.
    pub synchronous: Synchronous,
}

/// Opens the database and migrates its schema to the current version. Creates a SQLite file if it does not exist.
///
/// If several servers start concurrently, one migrates and the others wait for it. The store compares times with the
/// database's clock, or with `clock` if that is a manual clock. A real `clock` is synchronized with the database's.
///
/// Waits for connections and the tokens of the usage ledger are counted in `metrics`.
///
/// # Errors
/// [`Error::InvalidUrl`] if the URL is invalid or another server uses the file; otherwise those of the database.
pub async fn open(settings: &Settings, clock: Arc<Clock>, metrics: Arc<Metrics>) -> Result<Arc<dyn Store>, Error> {
    open_as(settings, clock, metrics, Opener::Server).await
}

/// Opens the database for a command of the shell. A server may be using it at the same time.
///
/// # Errors
/// Those of [`open`].
pub async fn open_beside_server(settings: &Settings, clock: Arc<Clock>) -> Result<Arc<dyn Store>, Error> {
    open_as(settings, clock, Arc::default(), Opener::Command).await
}

/// What is known about a database without changing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The URL of the database, without the credentials.
    pub display_name: String,
    /// The software of the database and its version.
    pub software: String,
    /// The version of its schema.
    pub schema: Schema,
    /// The last migration of this release.
    pub known_version: i64,
    /// Whether it has API keys.
    pub has_keys: bool,
    /// The file (SQLite).
    pub path: Option<PathBuf>,
    /// Whether a server is using the file (SQLite).
    pub is_in_use: bool,
    /// What finds vectors in the database, if anything does.
    pub vector_search: Option<String>,
}

/// Inspects the database, which a server may be using. Neither creates nor migrates it. Returns `None` if it is a SQLite file
/// that does not exist.
///
/// # Errors
/// Why a server could not use the database.
pub async fn inspect(settings: &Settings) -> Result<Option<Inspection>, Error> {
    check_url(&settings.url)?;
    if settings.url.starts_with("sqlite:") {
        sqlite::inspect(settings).await
    } else {
        postgres::inspect(settings).await.map(Some)
    }
}

/// Returns the file of a database, if it is a SQLite file.
#[must_use]
pub fn file_of(settings: &Settings) -> Option<PathBuf> {
    settings.url.starts_with("sqlite:").then(|| sqlite_file::path_of(&settings.url).ok()).flatten()
}

/// Checks the form of a database URL.
///
/// # Errors
/// [`Error::InvalidUrl`]. The text has no part of a password.
pub fn check_url(url: &str) -> Result<(), Error> {
    if url.starts_with("sqlite:") {
        sqlite_file::path_of(url).map(drop)
    } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
        postgres::options(url).map(drop)
    } else {
        // What is before the first colon could be a part of a password, unless it has the form of a scheme.
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        let is_scheme = scheme.bytes().all(|byte| byte.is_ascii_alphabetic() || b"+-.".contains(&byte));
        let begins = if is_scheme && !scheme.is_empty() {
            format!("begins with \"{scheme}:\"")
        } else {
            "is not a URL".to_owned()
        };
        Err(Error::InvalidUrl(format!("database_url {begins}; it must begin with \"sqlite://\" or \"postgres://\"")))
    }
}

/// Who opens a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opener {
    /// A server, of which a SQLite file can have one.
    Server,
    /// A command of the shell, next to a server.
    Command,
}

async fn open_as(
    settings: &Settings,
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
    opener: Opener,
) -> Result<Arc<dyn Store>, Error> {
    check_url(&settings.url)?;
    if settings.url.starts_with("sqlite:") {
        Ok(Arc::new(sqlite::Backend::open(settings, clock, metrics, opener).await?))
    } else {
        Ok(Arc::new(postgres::Backend::open(settings, clock, metrics).await?))
    }
}

/// Returns whether the unavailability of the database has caused an error. The store logs that once for all such errors.
#[must_use]
pub fn is_outage(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(cause) = error {
        if cause.downcast_ref::<sqlx::Error>().is_some_and(outage::is_outage) {
            return true;
        }
        error = cause.source();
    }
    false
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => {
                if database.code().is_some_and(|code| is_transient(&code)) {
                    Self::Unavailable(error)
                } else {
                    Self::Rejected(error)
                }
            }
            // A proxy whose database is unavailable can send bytes that are not Postgres' protocol.
            sqlx::Error::Io(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable(error),
            _ => Self::Rejected(error),
        }
    }
}

/// Returns whether a database error is transient.
fn is_transient(code: &str) -> bool {
    // Postgres: connection exceptions (08), transaction rollback (40), insufficient resources (53), operator intervention
    // (57), system errors (58), and a server that is temporarily read-only (25006).
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
fn to_json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("plain values with string keys always serialize to JSON")
}
