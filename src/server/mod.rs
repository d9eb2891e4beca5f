//! Builds the server from its parts, starts it, and stops it.

mod connections;
mod models;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{Authenticator, Cache, EffectiveLimits, Requests, Tokens, WrongKeys};
use crate::api::organization::usage::DAY_S;
use crate::api::{Ids, Timestamp};
use crate::clock::Clock;
use crate::config::{self, Secret, Settings};
use crate::files::blobs::{Blobs, InvalidSettings};
use crate::files::reaper;
use crate::files::service::FileService;
use crate::host::is_loopback_address;
use crate::http::{self, App, Drain, Exporter, Shared};
use crate::liveness::Liveness;
use crate::llm::Models;
use crate::metrics::Metrics;
use crate::retrieval::extract::{self, Extractor};
use crate::retrieval::ingest::{self, Ingester};
use crate::retrieval::search::Retrieval;
use crate::runs::service::RunService;
use crate::runs::{Dependencies, sweeper, upkeep};
use crate::store::{self, Store};
use crate::tools::code_interpreter::engine;
use crate::tools::code_interpreter::install::{self, Installation};
use crate::tools::code_interpreter::sandbox::Sandbox;
use crate::tools::code_interpreter::sessions::{self, Interpreter};
use crate::tools::code_interpreter::wasm::Wasm;
use crate::traces::{self, Traces};
use crate::work;
use crate::work::{Queue, Supervisor, Worker};
use models::ServedModels;

/// Timeout of each step of the shutdown after the grace period.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Timeout for streams to end after the grace period.
const STREAMS_STOP_MAX: Duration = Duration::from_secs(2);
/// Maximum number of connections to the listener of metrics.
const METRICS_CONNECTIONS_MAX: usize = 16;
/// How often the clock is synchronized with the database's.
const SYNCHRONIZE_EVERY: Duration = Duration::from_secs(30);
/// How often old rows of the usage ledger are summed.
const ROLL_UP_EVERY: Duration = Duration::from_hours(1);
/// How often the sizes of vector stores are measured.
const MEASURE_EVERY: Duration = Duration::from_hours(1);
/// Maximum number of rows that one statement sums.
const ROLL_UP_ROWS: u32 = 5_000;
/// Pause between two such statements, so that requests are served in between.
const ROLL_UP_PAUSE: Duration = Duration::from_millis(100);

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is invalid.
    #[error(transparent)]
    Settings(#[from] config::Error),
    /// The store cannot be opened.
    #[error("failed to open the database")]
    Store(#[from] store::Error),
    /// The path of this program is not known, which extracts the texts of files.
    #[error("failed to find the path of this program")]
    Program(#[source] std::io::Error),
    /// Traces cannot be exported.
    #[error(transparent)]
    Traces(#[from] traces::Error),
    /// The storage of files cannot be used.
    #[error(transparent)]
    Files(#[from] InvalidSettings),
    /// Other machines can connect, and no API keys are configured.
    #[error(
        "listen is {listen}, which other machines can reach, and no API keys are configured: anyone could use your models and \
         read your threads. Set ASSISTD_API_KEYS (or api_keys in the file) to a long random string, create a key with \
         `assistd keys create`, or listen on 127.0.0.1"
    )]
    NoKeys {
        /// The setting `listen`.
        listen: String,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Returns whether a setting is the cause, so that another start fails as well.
    #[must_use]
    pub fn is_setting(&self) -> bool {
        match self {
            Self::Settings(_) | Self::Files(_) | Self::Traces(_) | Self::NoKeys { .. } => true,
            Self::Store(_) | Self::Program(_) | Self::Listen { .. } => false,
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// The address it listens on, with the actual port if the settings say 0.
    pub address: SocketAddr,
    /// The address on which only the metrics are served, if there is one.
    pub metrics_address: Option<SocketAddr>,
    /// The display name of the store.
    pub store: String,
    /// Where files are stored, for the banner.
    pub files: String,
    /// The default model and its server, for the banner.
    pub model: String,
    /// The model name of the example request.
    pub model_name: String,
    /// The embedding model and its server, for the banner.
    pub embeddings: String,
    /// Whether requests need a key.
    pub has_keys: bool,
    runs: RunService,
    ingestion: Arc<Worker<Ingester>>,
    drain: Drain,
    tokens: Arc<Tokens>,
    database: Arc<dyn Store>,
    interpreter: Interpreter,
    traces: Traces,
    /// Stops the background loops.
    stopping: CancellationToken,
    /// Stops accepting connections.
    closing: CancellationToken,
    tasks: TaskTracker,
    grace: Duration,
}

impl Server {
    /// Opens the store, finds a model server, and starts to listen.
    ///
    /// # Errors
    /// If a setting is invalid, the store cannot be opened, or the address is in use.
    pub async fn start(settings: &Settings, clock: Arc<Clock>) -> Result<Self, Error> {
        let program = Extractor::current_program().map_err(Error::Program)?;
        Self::start_with_program(settings, clock, program).await
    }

    /// Starts like [`Server::start`], and extracts the texts of files with another program than the running one.
    ///
    /// # Errors
    /// Those of [`Server::start`].
    pub async fn start_with_program(settings: &Settings, clock: Arc<Clock>, program: PathBuf) -> Result<Self, Error> {
        let address = settings.address()?;
        let metrics = Arc::new(Metrics::new());
        let database = store::open(&settings.store(), clock.clone(), metrics.clone()).await?;
        let has_keys = has_keys(settings, &*database, address).await?;
        let tasks = TaskTracker::new();
        let ids = Arc::new(Ids::unique_everywhere());
        let files = files(settings, &database, &clock, &ids, &tasks)?;
        let ServedModels { models, shown: model, example: model_name, embedder, embeddings } =
            ServedModels::of(settings, &metrics).await;
        metrics.name_models(models.configured_names());
        let (listener, metrics_listener) = listeners(settings, address).await?;
        let address = listener.local_addr().unwrap_or(address);
        let metrics_address = metrics_listener.as_ref().and_then(|listener| listener.local_addr().ok());

        let cache = Arc::new(Cache::default());
        let limits = Arc::new(EffectiveLimits::new(database.clone(), cache.clone(), settings.default_limits()));
        let tokens = Arc::new(Tokens::new(database.clone(), clock.clone(), limits.clone()));
        let retrieval =
            Retrieval::new(database.clone(), clock.clone(), models.clone(), embedder.clone(), settings.search());
        let traces = traces_to(settings)?;
        let interpreter = interpreter(settings, &database, &files, &ids, program.clone());
        let dependencies = Dependencies {
            store: database.clone(),
            models: models.clone(),
            limits: limits.clone(),
            tokens: tokens.clone(),
            files: files.clone(),
            retrieval: retrieval.clone(),
            interpreter: interpreter.clone(),
            metrics: metrics.clone(),
            traces: traces.clone(),
            clock: clock.clone(),
            ids: ids.clone(),
        };
        let runs = RunService::new(dependencies, settings.runs(), settings.run_work());
        let store_files = Arc::<Queue>::default();
        let ingestion = {
            let extractor = Extractor::new(program, settings.ingest_concurrency, extract::Limits::default());
            let (store, files, tokens) = (database.clone(), files.clone(), tokens.clone());
            let dependencies = ingest::Dependencies { store, files, extractor, embedder, tokens };
            ingestion(dependencies, settings.ingest(), store_files.clone(), metrics.clone())
        };
        let authenticator = authenticator(settings, &database, &clock, cache, address);
        let (liveness, drain) = (Arc::new(Liveness::default()), Drain::default());
        let app = App::new(Shared {
            exporter: Exporter::new(metrics.clone(), database.clone()),
            metrics,
            drain: drain.clone(),
            liveness: liveness.clone(),
            store: database.clone(),
            database: database.clone(),
            files: files.clone(),
            store_files,
            retrieval,
            runs: runs.clone(),
            models: models.clone(),
            ids,
            limits,
            tokens: tokens.clone(),
            requests: Arc::new(Requests::new(database.clone(), clock.clone())),
            clock,
            authenticator: authenticator.clone(),
            wrong_keys: Arc::new(WrongKeys::default()),
            settings: Arc::new(settings.http()),
        });

        let (stopping, closing) = (CancellationToken::new(), CancellationToken::new());
        let supervisor = Supervisor::new(tasks.clone(), stopping.clone(), liveness.clone());
        start_loops(&supervisor, &runs, &ingestion, &database);
        remove_files(&supervisor, &files);
        supervisor.supervise("check API keys", move || authenticator.clone().watch());
        sum_usage(&supervisor, &database, &app.clock, settings.usage_days);
        measure_sizes(&supervisor, &database, &app.clock);
        close_sessions(&supervisor, &interpreter);
        refresh_model_lists(&supervisor, &models);
        serve(settings, app, (listener, metrics_listener), &tasks, &closing);
        Ok(Self {
            address,
            metrics_address,
            store: store_name(&*database),
            files: files.blobs().display_name().to_owned(),
            model,
            model_name,
            embeddings,
            has_keys,
            runs,
            ingestion,
            drain,
            tokens,
            database,
            interpreter,
            traces,
            stopping,
            closing,
            tasks,
            grace: Duration::from_secs(settings.shutdown_grace_s),
        })
    }

    /// Stops the server. First accepts no new work and waits, up to the grace period, until active runs, streams and
    /// proxied requests have ended. Then releases unfinished runs to other servers, and closes connections, loops and the
    /// store. Each step has a timeout. The processing of files stops immediately; it continues where it was.
    pub async fn stop(self) {
        tracing::info!(grace_s = self.grace.as_secs(), "stopping");
        self.runs.start_drain();
        self.drain.start();
        self.ingestion.start_drain();
        self.ingestion.stop_now();
        let drained = async { tokio::join!(self.runs.drained(), self.drain.drained()) };
        if tokio::time::timeout(self.grace, drained).await.is_err() {
            let tasks = self.runs.worker().active_tasks();
            tracing::warn!(tasks, "grace period expired; unfinished runs are released to other servers");
        }
        if tokio::time::timeout(STOP_MAX, self.runs.stop_now()).await.is_err() {
            tracing::warn!("failed to release runs in time; other servers claim them when their leases expire");
        }
        if tokio::time::timeout(STOP_MAX, self.ingestion.drained()).await.is_err() {
            tracing::warn!("failed to release files in time; other servers claim them when their leases expire");
        }
        self.drain.stop(STREAMS_STOP_MAX).await;
        self.closing.cancel();
        self.stopping.cancel();
        self.tasks.close();
        let closed = async {
            self.tasks.wait().await;
            self.interpreter.close_all();
            self.tokens.drained().await;
            self.traces.stop().await;
            self.database.close().await;
        };
        if tokio::time::timeout(STOP_MAX, closed).await.is_err() {
            tracing::warn!("connections or background loops were still open at exit");
        }
        tracing::info!("stopped");
    }
}

/// Creates the searches of vector stores for a command, which works beside a server.
pub async fn retrieval_of_command(settings: &Settings, database: &Arc<dyn Store>, clock: &Arc<Clock>) -> Retrieval {
    let ServedModels { models, embedder, .. } = ServedModels::of(settings, &Arc::default()).await;
    Retrieval::new(database.clone(), clock.clone(), models, embedder, settings.search())
}

fn measure_sizes(supervisor: &Supervisor, database: &Arc<dyn Store>, clock: &Arc<Clock>) {
    let (database, clock) = (database.clone(), clock.clone());
    supervisor.supervise("measure vector stores", move || measure_vector_stores(database.clone(), clock.clone()));
}

/// Returns whether requests need a key. They do if others than this machine can connect.
async fn has_keys(settings: &Settings, database: &dyn Store, address: SocketAddr) -> Result<bool, Error> {
    let has_keys = settings.has_keys() || database.has_keys().await?;
    if !has_keys && !is_loopback_address(address.ip()) {
        return Err(Error::NoKeys { listen: settings.listen.clone() });
    }
    Ok(has_keys)
}

/// Creates what authenticates API keys.
fn authenticator(
    settings: &Settings,
    database: &Arc<dyn Store>,
    clock: &Arc<Clock>,
    cache: Arc<Cache>,
    address: SocketAddr,
) -> Arc<Authenticator> {
    Arc::new(Authenticator::new(
        database.clone(),
        clock.clone(),
        cache,
        settings.api_keys.iter().map(Secret::expose),
        settings.admin_keys.iter().map(Secret::expose),
        is_loopback_address(address.ip()),
    ))
}

/// Creates what exports traces, if there is a receiver.
fn traces_to(settings: &Settings) -> Result<Traces, traces::Error> {
    match settings.otlp_endpoint.expose() {
        "" => Ok(Traces::default()),
        endpoint => Traces::to(endpoint),
    }
}

fn remove_files(supervisor: &Supervisor, files: &FileService) {
    let files = files.clone();
    supervisor.supervise("remove files", move || reaper::reap(files.clone()));
}

fn close_sessions(supervisor: &Supervisor, interpreter: &Interpreter) {
    let interpreter = interpreter.clone();
    supervisor.supervise("close sessions", move || interpreter.clone().close_idle());
}

/// Loads the runtime of the code interpreter, or returns why there is none.
fn sandbox(settings: &Settings) -> Result<Arc<dyn Sandbox>, String> {
    let unusable = |error: &dyn std::fmt::Display| {
        tracing::error!(error = %error, "the code interpreter cannot be used");
        "The code interpreter of this server cannot be used; see the server's log.".to_owned()
    };
    let installed = Installation::find(&settings.code_interpreter_dir()).map_err(|error| unusable(&error))?;
    let installed = installed.ok_or_else(|| {
        format!(
            "The code interpreter is not installed on this server. Install it with \"{}\" and restart the server.",
            install::COMMAND
        )
    })?;
    let engine = engine::engine().map_err(|error| unusable(&error))?;
    let wasm = Wasm::load(engine, installed, settings.code_memory_bytes_max).map_err(|error| unusable(&error))?;
    Ok(Arc::new(wasm))
}

/// Creates what runs code. If the runtime cannot be used, runs that need it fail.
fn interpreter(
    settings: &Settings,
    database: &Arc<dyn Store>,
    files: &FileService,
    ids: &Arc<Ids>,
    program: PathBuf,
) -> Interpreter {
    let code_sessions = settings.code_sessions();
    let renderer = Extractor::new(program, code_sessions.calls_max, sessions::RENDER_LIMITS);
    Interpreter::new(sandbox(settings), code_sessions, database.clone(), files.clone(), ids.clone(), renderer)
}

fn connection_bounds(settings: &Settings) -> connections::Settings {
    connections::Settings {
        connections_max: settings.connections_max,
        head_bytes_max: settings.head_bytes_max,
        header_timeout: Duration::from_secs(settings.header_timeout_s),
        write_timeout: Duration::from_secs(settings.write_timeout_s),
        reserved_handles: 2 * u64::from(settings.database_connections_max),
    }
}

/// Opens the storage of files. Logs a warning if several servers can use the database, but not the files.
fn files(
    settings: &Settings,
    database: &Arc<dyn Store>,
    clock: &Arc<Clock>,
    ids: &Arc<Ids>,
    tasks: &TaskTracker,
) -> Result<FileService, InvalidSettings> {
    let blobs = Blobs::open(&settings.blobs(), tasks.clone())?;
    if database.is_shared() && blobs.is_local() {
        tracing::warn!(
            folder = blobs.display_name(),
            "files are stored in a local folder: several servers on this database need an S3 bucket or a folder that they \
             share (files_url)"
        );
    }
    // Another folder than the default may be shared with other users on purpose.
    if settings.files_url.is_empty()
        && let Err(error) = blobs.make_private()
    {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, folder = blobs.display_name(), "other users may read the folder of files");
    }
    let (database, clock, ids) = (database.clone(), clock.clone(), ids.clone());
    Ok(FileService::new(database, blobs, clock, ids, settings.files(), tasks.clone()))
}

/// Refreshes the cached lists of models: some servers report the context windows, which runs read from the lists.
fn refresh_model_lists(supervisor: &Supervisor, models: &Arc<Models>) {
    let models = models.clone();
    supervisor.supervise("refresh model lists", move || {
        let models = models.clone();
        async move { models.refresh_lists().await }
    });
}

/// Starts the background loops of runs and of the files of vector stores.
fn start_loops(
    supervisor: &Supervisor,
    runs: &RunService,
    ingestion: &Arc<Worker<Ingester>>,
    database: &Arc<dyn Store>,
) {
    let worker = ingestion.clone();
    supervisor.supervise("claim due files", move || worker.clone().claim_due_jobs());
    let worker = ingestion.clone();
    supervisor.supervise("renew leases of files", move || worker.clone().renew_leases());
    let worker = runs.worker().clone();
    supervisor.supervise("claim due runs", move || worker.clone().claim_due_jobs());
    let worker = runs.worker().clone();
    supervisor.supervise("renew leases", move || worker.clone().renew_leases());
    let service = runs.clone();
    supervisor.supervise("save texts", move || upkeep::save_texts(service.clone()));
    let service = runs.clone();
    supervisor.supervise("listen for changes", move || upkeep::listen_for_changes(service.clone()));
    let service = runs.clone();
    supervisor.supervise("compare with the store", move || upkeep::compare_with_store(service.clone()));
    let service = runs.clone();
    supervisor.supervise("sweep runs", move || sweeper::sweep(service.clone()));
    let database = database.clone();
    supervisor.supervise("synchronize the clock", move || synchronize_clock(database.clone()));
}

/// Starts the loop that sums the usage ledger; none if `days` is 0.
fn sum_usage(supervisor: &Supervisor, database: &Arc<dyn Store>, clock: &Arc<Clock>, days: u32) {
    if days > 0 {
        let (database, clock) = (database.clone(), clock.clone());
        supervisor.supervise("sum the usage ledger", move || roll_up_calls(database.clone(), clock.clone(), days));
    }
}

/// Measures the sizes of vector stores for the usage of projects, without end. Several servers can do this concurrently.
async fn measure_vector_stores(database: Arc<dyn Store>, clock: Arc<Clock>) {
    loop {
        if let Err(error) = database.measure_vector_stores(clock.now()).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "failed to measure the sizes of vector stores; retrying within an hour");
        }
        tokio::time::sleep(MEASURE_EVERY).await;
    }
}

/// Replaces the rows of the usage ledger that are older than `days` by their sums for each day, without end. Several servers
/// can do this concurrently.
async fn roll_up_calls(database: Arc<dyn Store>, clock: Arc<Clock>, days: u32) {
    loop {
        // Whole days, so that a day has one sum for each group.
        let before = Timestamp(clock.now().0 - i64::from(days) * DAY_S).day_start();
        loop {
            match database.roll_up_calls(before, ROLL_UP_ROWS).await {
                Ok(0) => break,
                Ok(rows) => tracing::debug!(rows, "rows of the usage ledger were summed by day"),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "failed to sum old rows of the usage ledger; retrying within an hour");
                    break;
                }
            }
            tokio::time::sleep(ROLL_UP_PAUSE).await;
        }
        tokio::time::sleep(ROLL_UP_EVERY).await;
    }
}

/// Synchronizes the clock with the database's, without end.
async fn synchronize_clock(database: Arc<dyn Store>) {
    loop {
        tokio::time::sleep(SYNCHRONIZE_EVERY).await;
        if let Err(error) = database.synchronize_clock().await {
            tracing::debug!(error = &error as &dyn std::error::Error, "failed to read the database's clock");
        }
    }
}

/// Creates the worker that processes the files of vector stores.
fn ingestion(
    dependencies: ingest::Dependencies,
    settings: ingest::Settings,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
) -> Arc<Worker<Ingester>> {
    let work = work::Settings {
        concurrency_max: settings.concurrency_max,
        lease: settings.lease,
        attempts_max: settings.attempts_max,
    };
    let jobs = dependencies.store.clone();
    Worker::new(Arc::new(Ingester::new(dependencies, settings, queue.clone())), jobs, queue, work, metrics)
}

/// Returns the display name of the store, for the banner, with what finds vectors in it.
fn store_name(store: &dyn Store) -> String {
    let name = store.display_name();
    match store.vector_search() {
        Some(extension) => format!("{name} ({extension})"),
        None if store.is_shared() => format!("{name} (without pgvector)"),
        None => name,
    }
}

/// Returns the listener of the API, and that of the metrics, if they have one of their own.
async fn listeners(settings: &Settings, address: SocketAddr) -> Result<(TcpListener, Option<TcpListener>), Error> {
    let metrics = match settings.metrics_address()? {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    Ok((listen(address).await?, metrics))
}

/// Serves the API and the metrics until `closing` is cancelled.
fn serve(
    settings: &Settings,
    app: App,
    (listener, metrics_listener): (TcpListener, Option<TcpListener>),
    tasks: &TaskTracker,
    closing: &CancellationToken,
) {
    let bounds = connection_bounds(settings);
    let connections_max = connections::connections_allowed(&bounds);
    if let Some(listener) = metrics_listener {
        let (router, bounds) = (http::metrics_router(app.exporter.clone()), bounds.clone());
        tasks.spawn(connections::serve(listener, router, bounds, METRICS_CONNECTIONS_MAX, closing.clone()));
    }
    tasks.spawn(connections::serve(listener, http::router(app), bounds, connections_max, closing.clone()));
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}
