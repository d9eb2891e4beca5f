//! Renders the metrics, with the queue as it is in the database.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRef;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::state::App;
use crate::metrics::Metrics;
use crate::store::Store;

/// How long a measurement of the queue is used, so that frequent scrapes do not load the database.
const QUEUE_VALID: Duration = Duration::from_secs(1);

/// Renders the metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Exporter {
    metrics: Arc<Metrics>,
    database: Arc<dyn Store>,
    /// When the queue was last measured.
    measured_at: Arc<Mutex<Option<Instant>>>,
}

impl Exporter {
    /// Creates an exporter of these metrics and of the queue in the database.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, database: Arc<dyn Store>) -> Self {
        Self { metrics, database, measured_at: Arc::default() }
    }

    /// Returns all metrics as text. If the database does not answer, those of the queue are missing.
    pub(super) async fn render(&self) -> String {
        let mut measured_at = self.measured_at.lock().await;
        if measured_at.is_none_or(|at| at.elapsed() >= QUEUE_VALID) {
            match self.database.queue_states().await {
                Ok(states) => {
                    for state in states {
                        self.metrics.queue_measured(state.kind.label(), state.jobs, state.oldest_age_s);
                    }
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "failed to measure the queue");
                    self.metrics.queue_not_measured();
                }
            }
            *measured_at = Some(Instant::now());
        }
        drop(measured_at);
        self.metrics.render()
    }
}

impl FromRef<App> for Exporter {
    fn from_ref(app: &App) -> Self {
        app.exporter.clone()
    }
}
