//! What handlers reach.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::auth::Keys;
use super::drain::Drain;
use super::limit::Limits;
use crate::api::Ids;
use crate::clock::Clock;
use crate::liveness::Liveness;
use crate::llm::Models;
use crate::runs::service::RunService;
use crate::store::Store;

/// What handlers reach; cheap to clone.
#[derive(Debug, Clone)]
pub struct App {
    /// Where everything is kept.
    pub store: Arc<dyn Store>,
    /// Where runs are asked for.
    pub runs: RunService,
    /// The model servers.
    pub models: Arc<Models>,
    /// What time it is.
    pub clock: Arc<Clock>,
    /// Names for what is made.
    pub ids: Arc<Ids>,
    /// The replies that take long, for an orderly stop.
    pub drain: Drain,
    /// Which background loops are down.
    pub liveness: Arc<Liveness>,
    /// Who may ask.
    pub keys: Arc<Keys>,
    /// How often each of them may.
    pub limits: Arc<Option<Limits>>,
    /// Bounds.
    pub settings: Arc<Settings>,
}

/// Bounds of requests and replies.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Most bytes of a request's body.
    pub body_bytes_max: usize,
    /// Memory that all bodies take together while they are read and parsed, in bytes.
    pub bodies_bytes_max: usize,
    /// The share of it that is free, in KiB.
    pub bodies: Arc<Semaphore>,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How long a stream may be silent before a comment shows that it lives.
    pub keep_alive: Duration,
    /// Origins of web pages whose scripts may ask; `*` is any.
    pub cors_origins: Vec<String>,
}
