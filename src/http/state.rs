//! The state shared by all handlers.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::drain::Drain;
use super::exporter::Exporter;
use crate::access::{Authenticator, EffectiveLimits, Requests, Tokens, WrongKeys};
use crate::api::Ids;
use crate::api::tool::NewResources;
use crate::clock::Clock;
use crate::files::service::FileService;
use crate::liveness::Liveness;
use crate::llm::Models;
use crate::metrics::Metrics;
use crate::retrieval::search::Retrieval;
use crate::runs::service::RunService;
use crate::store::{Objects, Store};
use crate::work::Queue;

/// The state of all handlers. Cheap to clone, which happens several times for each request.
#[derive(Debug, Clone)]
pub struct App(Arc<Shared>);

/// What handlers share.
#[derive(Debug)]
pub struct Shared {
    /// The objects of all projects.
    pub store: Arc<dyn Objects>,
    /// The whole store, for health checks.
    pub database: Arc<dyn Store>,
    /// Stores and reads files.
    pub files: FileService,
    /// Searches vector stores.
    pub retrieval: Retrieval,
    /// Wakes the worker that processes the files of vector stores.
    pub store_files: Arc<Queue>,
    /// Creates and drives runs.
    pub runs: RunService,
    /// Counts requests and streams.
    pub metrics: Arc<Metrics>,
    /// Renders the metrics.
    pub exporter: Exporter,
    /// The model servers.
    pub models: Arc<Models>,
    /// The clock.
    pub clock: Arc<Clock>,
    /// Generates IDs.
    pub ids: Arc<Ids>,
    /// Tracks open responses for a graceful shutdown.
    pub drain: Drain,
    /// Reports background loops that are down.
    pub liveness: Arc<Liveness>,
    /// Authenticates API keys.
    pub authenticator: Arc<Authenticator>,
    /// Limits the rate of wrong API keys.
    pub wrong_keys: Arc<WrongKeys>,
    /// The limits of projects.
    pub limits: Arc<EffectiveLimits>,
    /// Reserves tokens of projects.
    pub tokens: Arc<Tokens>,
    /// Counts the requests of projects.
    pub requests: Arc<Requests>,
    /// The limits of requests and responses.
    pub settings: Arc<Settings>,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl App {
    /// Creates the state.
    #[must_use]
    pub fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// Wakes the worker that processes the files of vector stores, if there are new ones.
    pub(super) fn wake_for(&self, new: &NewResources) {
        if new.search_files().next().is_some() {
            self.store_files.wake();
        }
    }
}

/// The address of the client of a request: an extension that the server adds to each request.
#[derive(Debug, Clone, Copy)]
pub struct ClientAddress(pub IpAddr);

/// Limits of requests and responses.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Maximum request body size, in bytes.
    pub body_bytes_max: usize,
    /// Maximum memory of all bodies while they are read and parsed, in bytes.
    pub bodies_bytes_max: usize,
    /// The free part of this memory, in KiB.
    pub bodies: Arc<Semaphore>,
    /// Timeout for receiving a body.
    pub body_timeout: Duration,
    /// How long a client may pause while it sends a file.
    pub body_idle_timeout: Duration,
    /// Maximum size of a file, in bytes.
    pub file_bytes_max: u64,
    /// Maximum size of a file that is sent in parts, in bytes.
    pub upload_bytes_max: u64,
    /// Maximum size of a part, in bytes.
    pub upload_part_bytes_max: u64,
    /// Interval of keep-alive comments on an idle stream.
    pub keep_alive: Duration,
    /// Whether `/metrics` is served with the API, and not by a listener of its own.
    pub serves_metrics: bool,
    /// Origins allowed by CORS. `*`: any origin.
    pub cors_origins: Vec<String>,
}
