//! Ends runs whose time is up, whoever should have driven them, and gives their turn to runs that wait in vain.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Runs;
use crate::store;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(1);
/// Seconds after the deadline in which a run's own executor may still end it, with its newest text.
pub(super) const HEAD_START_S: i64 = 2;
/// Most runs of one look; the rest are for the next.
const RUNS_MAX: u32 = 100;

/// Looks every second, until `stopping`.
pub async fn sweep(runs: Runs, stopping: CancellationToken) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = sweep_once(&runs).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "overdue runs cannot be looked for");
        }
    }
}

async fn sweep_once(runs: &Runs) -> Result<(), store::Error> {
    let parts = &runs.executor.parts;
    let mut before = parts.clock.now();
    before.0 -= HEAD_START_S;
    for overdue in parts.store.overdue_runs(before, RUNS_MAX).await? {
        runs.expire(overdue).await?;
    }
    for thread in parts.store.stalled_threads(RUNS_MAX).await? {
        if parts.store.promote_run(&thread, parts.clock.now()).await?.is_some() {
            runs.executor.queue();
        }
    }
    Ok(())
}
