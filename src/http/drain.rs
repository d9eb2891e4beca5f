//! Replies that go on for long, and the stop of the server: they get its grace time, and then end properly.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The long replies that are under way; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    under_way: TaskTracker,
    draining: CancellationToken,
    stopped: CancellationToken,
}

impl Drain {
    /// Counts a long reply as under way, for as long as the token lives.
    pub(super) fn register(&self) -> TaskTrackerToken {
        self.inner.under_way.token()
    }

    /// Whether no new work is started.
    pub(super) fn is_draining(&self) -> bool {
        self.inner.draining.is_cancelled()
    }

    /// Resolves when replies that are still under way must end.
    pub(super) async fn stopped(&self) {
        self.inner.stopped.cancelled().await;
    }

    /// Starts no new work from now on.
    pub fn start(&self) {
        self.inner.draining.cancel();
        self.inner.under_way.close();
    }

    /// Waits until all long replies have ended.
    pub async fn drained(&self) {
        self.inner.under_way.wait().await;
    }

    /// Has the replies that are still under way end, and waits for them, at most for `max`.
    pub async fn stop(&self, max: Duration) {
        self.inner.stopped.cancel();
        // Those whose clients read nothing end with their connections.
        let _ = tokio::time::timeout(max, self.inner.under_way.wait()).await;
    }
}
