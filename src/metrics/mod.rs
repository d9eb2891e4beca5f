//! Metrics: what this server has done and does, in the text format of Prometheus.
//!
//! A part of the server that does something counts it with one function of [`Metrics`], which says what has happened. The
//! values of labels are bounded: they are words of this program, routes, names in the settings, or the names of models, of
//! which there are at most [`MODELS_MAX`]. The names are those of OpenTelemetry's conventions where it has one.

mod models;

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, prometheus_text};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use models::ModelNames;

pub use models::{MODELS_MAX, OTHER_MODEL};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Buckets of requests, in seconds: those of OpenTelemetry's conventions for HTTP.
const REQUEST_BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Buckets of whole runs, in seconds. The last is above the default deadline of runs.
const RUN_BUCKETS: [f64; 12] = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0];
/// Buckets of model calls, in seconds: those of OpenTelemetry's conventions for generative AI.
const CALL_BUCKETS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// Buckets of the tokens of a call: those of OpenTelemetry's conventions for generative AI.
const TOKEN_BUCKETS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
/// Buckets of the wait for a database connection, in seconds. The last is the default timeout.
const WAIT_BUCKETS: [f64; 10] = [0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Methods of HTTP. Others are counted as [`OTHER_METHOD`], because clients choose them freely.
const METHODS: [&str; 7] = ["GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"];
/// The label of other methods, as in OpenTelemetry's conventions.
const OTHER_METHOD: &str = "_OTHER";

/// A family of histograms.
type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Declares the labels of a metric.
macro_rules! labels {
    ($name:ident { $($label:ident: $kind:ty),+ }) => {
        #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name {
            $($label: $kind),+
        }

        impl Labels for $name {
            const NAMES: &'static [&'static str] = &[$(stringify!($label)),+];
        }
    };
}

/// The labels of a metric.
trait Labels: EncodeLabelSet + Clone + Debug + Hash + Eq + Send + Sync + 'static {
    /// Their names.
    const NAMES: &'static [&'static str];
}

labels!(RequestLabels { http_request_method: &'static str, http_route: String, http_response_status_code: u16 });
labels!(RunEndLabels { status: &'static str, reason: &'static str });
labels!(KindLabels { kind: &'static str });
labels!(AttemptLabels { kind: &'static str, outcome: &'static str });
labels!(StreamEndLabels { kind: &'static str, end: &'static str });
labels!(FirstChunkLabels { gen_ai_operation_name: &'static str, gen_ai_request_model: Arc<str>, upstream: Arc<str> });
labels!(CallLabels {
    gen_ai_operation_name: &'static str,
    gen_ai_request_model: Arc<str>,
    upstream: Arc<str>,
    error_type: &'static str
});
labels!(TokenLabels {
    gen_ai_operation_name: &'static str,
    gen_ai_request_model: Arc<str>,
    gen_ai_token_type: &'static str
});
labels!(UpstreamErrorLabels { upstream: Arc<str>, status: UpstreamStatus });
labels!(PoolLabels { db_client_connection_pool_name: &'static str });

/// How a request to a model server failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamError {
    /// The status of the response.
    Status(u16),
    /// No connection was made, or it was closed before the first byte.
    Connection,
    /// Nothing was received before the timeout.
    Timeout,
    /// The answer ended early, stalled, or could not be read.
    Answer,
}

/// The label of an error of a model server.
type UpstreamStatus = std::borrow::Cow<'static, str>;

impl UpstreamError {
    fn label(self) -> UpstreamStatus {
        match self {
            // The conventions of HTTP allow any other number, and a server may send each of them.
            Self::Status(status @ 300..600) => status.to_string().into(),
            Self::Status(_) => "other".into(),
            Self::Connection => "connection".into(),
            Self::Timeout => "timeout".into(),
            Self::Answer => "answer".into(),
        }
    }
}

/// A kind of stream to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// The events of a run.
    Run,
    /// A forwarded answer of a model server.
    Forwarded,
}

impl StreamKind {
    fn label(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Forwarded => "forwarded",
        }
    }
}

/// What a metric is called and what it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The name, with its unit.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of the labels.
    pub labels: &'static [&'static str],
    /// The meaning.
    pub help: &'static str,
}

/// All metrics of a server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    descriptions: Vec<Description>,
    models: ModelNames,
    requests: Histograms<RequestLabels>,
    open_streams: Family<KindLabels, Gauge>,
    ended_streams: Family<StreamEndLabels, Counter>,
    created_runs: Counter,
    ended_runs: Family<RunEndLabels, Counter>,
    run_durations: Histogram,
    queued_jobs: Family<KindLabels, Gauge>,
    oldest_jobs: Family<KindLabels, Gauge>,
    active_jobs: Family<KindLabels, Gauge>,
    attempts: Family<AttemptLabels, Counter>,
    given_up_jobs: Family<KindLabels, Counter>,
    first_chunks: Histograms<FirstChunkLabels>,
    calls: Histograms<CallLabels>,
    tokens: Histograms<TokenLabels>,
    upstream_errors: Family<UpstreamErrorLabels, Counter>,
    pool_waits: Histograms<PoolLabels>,
    pool_timeouts: Family<PoolLabels, Counter>,
}

/// Registers metrics, and remembers their descriptions.
#[derive(Default)]
struct Builder {
    registry: Registry,
    descriptions: Vec<Description>,
}

impl Builder {
    fn add<M>(&mut self, name: &str, metric: &M, labels: &'static [&'static str], help: &'static str)
    where
        M: EncodeMetric + TypedMetric + Clone + Debug + Send + Sync + 'static,
    {
        self.registry.register(name, help, metric.clone());
        let kind = M::TYPE.as_str();
        let suffix = if kind == "counter" { "_total" } else { "" };
        self.descriptions.push(Description { name: format!("{name}{suffix}"), kind, labels, help });
    }

    fn counter(&mut self, name: &str, help: &'static str) -> Counter {
        let counter = Counter::default();
        self.add(name, &counter, &[], help);
        counter
    }

    fn histogram(&mut self, name: &str, make: fn() -> Histogram, help: &'static str) -> Histogram {
        let histogram = make();
        self.add(name, &histogram, &[], help);
        histogram
    }

    fn counters<L: Labels>(&mut self, name: &str, help: &'static str) -> Family<L, Counter> {
        let family = Family::default();
        self.add(name, &family, L::NAMES, help);
        family
    }

    fn gauges<L: Labels>(&mut self, name: &str, help: &'static str) -> Family<L, Gauge> {
        let family = Family::default();
        self.add(name, &family, L::NAMES, help);
        family
    }

    fn histograms<L: Labels>(&mut self, name: &str, make: fn() -> Histogram, help: &'static str) -> Histograms<L> {
        let family = Histograms::new_with_constructor(make);
        self.add(name, &family, L::NAMES, help);
        family
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Creates the metrics of a server, all of them zero.
    #[must_use]
    pub fn new() -> Self {
        let mut of = Builder::default();
        Self {
            requests: of.histograms(
                "http_server_request_duration_seconds",
                || Histogram::new(REQUEST_BUCKETS),
                "Time from the headers of a request to those of its response",
            ),
            open_streams: of.gauges("assistd_open_streams", "Streams to clients that are open"),
            ended_streams: of.counters("assistd_streams_ended", "Streams to clients that have ended"),
            created_runs: of.counter("assistd_runs_created", "Runs that this server has created"),
            ended_runs: of.counters("assistd_runs_ended", "Runs that this server has ended"),
            run_durations: of.histogram(
                "assistd_run_duration_seconds",
                || Histogram::new(RUN_BUCKETS),
                "Time from the creation of a run to its end, in whole seconds",
            ),
            queued_jobs: of.gauges("assistd_queued_jobs", "Jobs in the database that wait for a server"),
            oldest_jobs: of.gauges("assistd_oldest_queued_job_age_seconds", "How long the oldest of these jobs waits"),
            active_jobs: of.gauges("assistd_active_jobs", "Jobs that this server drives"),
            attempts: of.counters("assistd_attempts", "Attempts at jobs that have ended"),
            given_up_jobs: of.counters("assistd_jobs_given_up", "Jobs that have failed after their last attempt"),
            first_chunks: of.histograms(
                "gen_ai_client_operation_time_to_first_chunk_seconds",
                || Histogram::new(CALL_BUCKETS),
                "Time from a model call of a run to the first part of the answer",
            ),
            calls: of.histograms(
                "gen_ai_client_operation_duration_seconds",
                || Histogram::new(CALL_BUCKETS),
                "Time from a model call of a run to the end of the answer",
            ),
            tokens: of.histograms(
                "gen_ai_client_token_usage",
                || Histogram::new(TOKEN_BUCKETS),
                "Tokens of a model call, as in the usage of the organization",
            ),
            upstream_errors: of.counters("assistd_upstream_errors", "Failed requests to model servers"),
            pool_waits: of.histograms(
                "db_client_connection_wait_time_seconds",
                || Histogram::new(WAIT_BUCKETS),
                "Wait for a connection to the database",
            ),
            pool_timeouts: of.counters("db_client_connection_timeouts", "Waits for a connection that timed out"),
            models: ModelNames::default(),
            registry: of.registry,
            descriptions: of.descriptions,
        }
    }

    /// Returns the descriptions of all metrics.
    #[must_use]
    pub fn descriptions(&self) -> &[Description] {
        &self.descriptions
    }

    /// Returns all metrics that have a value, in the text format of Prometheus.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_text::encode(&mut text, &self.registry);
        text
    }

    /// Reserves labels for the models with these names, so that they do not depend on how many others are used.
    pub fn name_models<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            self.models.reserve(name);
        }
    }

    /// A request was answered. `route` is the pattern of its path, or empty if there is none.
    pub fn request_answered(&self, method: &str, route: String, status: u16, duration: Duration) {
        let method = METHODS.into_iter().find(|known| *known == method).unwrap_or(OTHER_METHOD);
        let labels =
            RequestLabels { http_request_method: method, http_route: route, http_response_status_code: status };
        self.requests.get_or_create(&labels).observe(duration.as_secs_f64());
    }

    /// A stream to a client was opened. It is open until the result is dropped.
    #[must_use]
    pub fn stream_opened(&self, kind: StreamKind) -> OpenStream {
        let open = self.open_streams.get_or_create_owned(&KindLabels { kind: kind.label() });
        open.inc();
        OpenStream { open, ended: self.ended_streams.clone(), kind, is_complete: false }
    }

    /// A run was created.
    pub fn run_created(&self) {
        self.created_runs.inc();
    }

    /// A run has ended with this status, this many seconds after its creation. `reason` says why it did not complete; empty
    /// if there is only one reason.
    pub fn run_ended(&self, status: &'static str, reason: &'static str, seconds: i64) {
        self.ended_runs.get_or_create(&RunEndLabels { status, reason }).inc();
        self.run_durations.observe(f64::from(i32::try_from(seconds.max(0)).unwrap_or(i32::MAX)));
    }

    /// So many jobs wait in the database, the oldest of them for so long.
    pub fn queue_measured(&self, kind: &'static str, jobs: i64, oldest_age_s: i64) {
        self.queued_jobs.get_or_create(&KindLabels { kind }).set(jobs);
        self.oldest_jobs.get_or_create(&KindLabels { kind }).set(oldest_age_s);
    }

    /// The database does not answer: the queue is not known.
    pub fn queue_not_measured(&self) {
        self.queued_jobs.clear();
        self.oldest_jobs.clear();
    }

    /// This server drives a job. It is active until the result is dropped.
    #[must_use]
    pub fn job_started(&self, kind: &'static str) -> ActiveJob {
        let active = self.active_jobs.get_or_create_owned(&KindLabels { kind });
        active.inc();
        ActiveJob { active }
    }

    /// An attempt at a job has ended.
    pub fn attempt_ended(&self, kind: &'static str, outcome: &'static str) {
        self.attempts.get_or_create(&AttemptLabels { kind, outcome }).inc();
    }

    /// A job has failed after its last attempt.
    pub fn job_given_up(&self, kind: &'static str) {
        self.given_up_jobs.get_or_create(&KindLabels { kind }).inc();
    }

    /// A run calls a model of the server `upstream`. `model` is the name that was requested.
    #[must_use]
    pub fn call_started(self: &Arc<Self>, model: &str, upstream: &str) -> Call {
        Call {
            metrics: self.clone(),
            model: model.to_owned(),
            upstream: upstream.into(),
            began: Instant::now(),
            first_chunk: None,
            has_ended: false,
        }
    }

    /// A model call has used tokens. `operation` is `chat` or `embeddings`.
    pub fn tokens_used(&self, operation: &'static str, model: &str, input: u32, output: u32) {
        let model = self.models.label(model);
        for (kind, tokens) in [("input", input), ("output", output)] {
            if tokens > 0 {
                let labels = TokenLabels {
                    gen_ai_operation_name: operation,
                    gen_ai_request_model: model.clone(),
                    gen_ai_token_type: kind,
                };
                self.tokens.get_or_create(&labels).observe(f64::from(tokens));
            }
        }
    }

    /// A request to the model server `upstream` has failed. It may be retried.
    pub fn upstream_failed(&self, upstream: &str, error: UpstreamError) {
        self.upstream_errors
            .get_or_create(&UpstreamErrorLabels { upstream: upstream.into(), status: error.label() })
            .inc();
    }

    /// Returns the metrics of the pool of database connections with this name.
    #[must_use]
    pub fn pool(&self, name: &'static str) -> PoolMetrics {
        let labels = PoolLabels { db_client_connection_pool_name: name };
        PoolMetrics {
            waits: self.pool_waits.get_or_create_owned(&labels),
            timeouts: self.pool_timeouts.get_or_create_owned(&labels),
        }
    }
}

/// A stream to a client that is open until this is dropped.
#[derive(Debug)]
pub struct OpenStream {
    open: Gauge,
    ended: Family<StreamEndLabels, Counter>,
    kind: StreamKind,
    is_complete: bool,
}

impl OpenStream {
    /// The stream was sent to its end. Otherwise, the client has disconnected.
    pub fn complete(&mut self) {
        self.is_complete = true;
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.open.dec();
        let end = if self.is_complete { "complete" } else { "disconnected" };
        self.ended.get_or_create(&StreamEndLabels { kind: self.kind.label(), end }).inc();
    }
}

/// A job that is driven until this is dropped.
#[derive(Debug)]
pub struct ActiveJob {
    active: Gauge,
}

impl Drop for ActiveJob {
    fn drop(&mut self) {
        self.active.dec();
    }
}

/// A model call of a run. If it is dropped before its end, it was interrupted.
#[derive(Debug)]
pub struct Call {
    metrics: Arc<Metrics>,
    model: String,
    upstream: Arc<str>,
    began: Instant,
    first_chunk: Option<Duration>,
    has_ended: bool,
}

impl Call {
    /// A part of the answer has arrived. Cheap after the first one.
    pub fn chunk_received(&mut self) {
        if self.first_chunk.is_none() {
            self.first_chunk = Some(self.began.elapsed());
        }
    }

    /// The answer is complete.
    pub fn completed(mut self) {
        let model = self.metrics.models.label(&self.model);
        self.record(model, "");
    }

    /// The call has failed.
    pub fn failed(mut self, error_type: &'static str) {
        let model = self.metrics.models.known(&self.model);
        self.record(model, error_type);
    }

    fn record(&mut self, model: Arc<str>, error_type: &'static str) {
        self.has_ended = true;
        let metrics = &self.metrics;
        if let Some(first_chunk) = self.first_chunk {
            let labels = FirstChunkLabels {
                gen_ai_operation_name: "chat",
                gen_ai_request_model: model.clone(),
                upstream: self.upstream.clone(),
            };
            metrics.first_chunks.get_or_create(&labels).observe(first_chunk.as_secs_f64());
        }
        let labels = CallLabels {
            gen_ai_operation_name: "chat",
            gen_ai_request_model: model,
            upstream: self.upstream.clone(),
            error_type,
        };
        metrics.calls.get_or_create(&labels).observe(self.began.elapsed().as_secs_f64());
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.has_ended {
            let model = self.metrics.models.known(&self.model);
            self.record(model, "interrupted");
        }
    }
}

/// The metrics of a pool of database connections.
#[derive(Debug, Clone)]
pub struct PoolMetrics {
    waits: Histogram,
    timeouts: Counter,
}

impl PoolMetrics {
    /// A connection was acquired, or the wait for one has failed, after this time.
    pub fn waited(&self, duration: Duration) {
        self.waits.observe(duration.as_secs_f64());
    }

    /// The wait for a connection has timed out.
    pub fn timed_out(&self) {
        self.timeouts.inc();
    }
}

#[cfg(test)]
mod tests;
