//! Graceful shutdown of open responses: they may finish within the grace period. Then the server ends them with an
//! error.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Tracks open streaming responses. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    open: TaskTracker,
    draining: CancellationToken,
    stopped: CancellationToken,
}

impl Drain {
    /// Registers a response as open until the token is dropped.
    pub(super) fn register(&self) -> TaskTrackerToken {
        self.inner.open.token()
    }

    /// Runs a task for which the shutdown waits as for an open response.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Outside of the runtime, the server has stopped.
        if tokio::runtime::Handle::try_current().is_ok() {
            self.inner.open.spawn(task);
        }
    }

    /// Returns whether new work is rejected.
    pub(super) fn is_draining(&self) -> bool {
        self.inner.draining.is_cancelled()
    }

    /// Resolves when open responses must end.
    pub(super) async fn stopped(&self) {
        self.inner.stopped.cancelled().await;
    }

    /// Rejects new work from now on.
    pub fn start(&self) {
        self.inner.draining.cancel();
        self.inner.open.close();
    }

    /// Waits until all open responses have ended.
    pub async fn drained(&self) {
        self.inner.open.wait().await;
    }

    /// Ends the open responses, and waits for them for at most `max`.
    pub async fn stop(&self, max: Duration) {
        self.inner.stopped.cancel();
        // Responses to clients that read nothing end when their connections are closed.
        let _ = tokio::time::timeout(max, self.inner.open.wait()).await;
    }
}
