//! Supervises background loops: restarts them when they end or panic, and reports them to the readiness check.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::panic_text;
use crate::liveness::Liveness;

/// Pause before a loop is restarted.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// Starts loops, and restarts them when they end or panic, until `stopping` is cancelled.
#[derive(Debug, Clone)]
pub struct Supervisor {
    tasks: TaskTracker,
    stopping: CancellationToken,
    liveness: Arc<Liveness>,
}

impl Supervisor {
    /// Creates a supervisor that runs loops on `tasks` until `stopping` is cancelled, and reports their state to `liveness`.
    #[must_use]
    pub fn new(tasks: TaskTracker, stopping: CancellationToken, liveness: Arc<Liveness>) -> Self {
        Self { tasks, stopping, liveness }
    }

    /// Runs a loop. `start` starts and restarts it.
    pub fn supervise<F>(&self, name: &'static str, start: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Self { stopping, liveness, .. } = self.clone();
        self.tasks.spawn(async move {
            loop {
                liveness.set(name, true);
                let ended = tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    ended = AssertUnwindSafe(start()).catch_unwind() => ended,
                };
                if stopping.is_cancelled() {
                    return;
                }
                liveness.set(name, false);
                let cause = ended.map_or_else(|panic| panic_text(&*panic), |()| "it returned".to_owned());
                tracing::error!(name, cause, "background loop ended; restarting");
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(RESTART_AFTER) => {}
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_panics_is_reported_and_restarted() {
        let (tasks, stopping, liveness) = (TaskTracker::new(), CancellationToken::new(), Arc::new(Liveness::default()));
        let starts = Arc::new(AtomicU32::new(0));
        let supervisor = Supervisor::new(tasks.clone(), stopping.clone(), liveness.clone());
        let counted = starts.clone();

        supervisor.supervise("counting", move || {
            let start = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(start > 0, "the first start panics");
                std::future::pending::<()>().await;
            }
        });

        tokio::time::sleep(RESTART_AFTER / 2).await;
        assert_eq!((starts.load(Ordering::SeqCst), liveness.down()), (1, vec!["counting"]));
        tokio::time::sleep(RESTART_AFTER).await;
        assert_eq!((starts.load(Ordering::SeqCst), liveness.down()), (2, vec![]));
        stopping.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
