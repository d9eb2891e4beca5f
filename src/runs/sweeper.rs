//! Sweeps runs without a driver: ends those whose deadline has passed and those whose cancellation was not completed, and
//! promotes waiting runs of threads without an active run. A run that cannot be ended does not stop the sweep.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::machine::Input;
use super::service::RunService;
use crate::api::usage::Usage;
use crate::store::{self, Versioned};

/// The sweep interval.
const EVERY: Duration = Duration::from_secs(1);
/// Seconds after the deadline during which the driver of a run can still end it, with the newest text.
pub(super) const GRACE_S: i64 = 2;
/// Maximum number of runs of each kind per sweep. The next sweep handles the rest.
const RUNS_MAX: u32 = 100;

/// Sweeps once per interval, without end.
pub async fn sweep(runs: RunService) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        report("overdue runs", end_overdue_runs(&runs).await);
        report("cancelled runs", end_cancelled_runs(&runs).await);
        report("waiting runs", promote_waiting_runs(&runs).await);
    }
}

fn report(what: &'static str, outcome: Result<(), store::Error>) {
    if let Err(error) = outcome {
        tracing::warn!(error = &error as &dyn std::error::Error, what, "sweep failed");
    }
}

async fn end_overdue_runs(runs: &RunService) -> Result<(), store::Error> {
    let grace = Duration::from_secs(GRACE_S.unsigned_abs());
    for overdue in runs.dependencies.store.overdue_runs(grace, RUNS_MAX).await? {
        let run = overdue.run.spec.id.clone();
        if let Err(error) = runs.expire(overdue).await {
            tracing::warn!(error = &error as &dyn std::error::Error, run.id = %run, "failed to end an overdue run");
        }
    }
    Ok(())
}

async fn end_cancelled_runs(runs: &RunService) -> Result<(), store::Error> {
    for cancelled in runs.dependencies.store.lapsed_cancelling_runs(RUNS_MAX).await? {
        let Versioned { run, .. } = &cancelled;
        let run = run.spec.id.clone();
        if let Err(error) = runs.end(cancelled, Input::Stopped { usage: Usage::default() }).await {
            tracing::warn!(error = &error as &dyn std::error::Error, run.id = %run, "failed to end a cancelled run");
        }
    }
    Ok(())
}

async fn promote_waiting_runs(runs: &RunService) -> Result<(), store::Error> {
    let store = &runs.dependencies.store;
    for thread in store.stalled_threads(RUNS_MAX).await? {
        match store.promote_run(&thread).await {
            Ok(Some(_)) => runs.queue.wake(),
            Ok(None) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, thread.id = %thread, "failed to promote the next run of a thread");
            }
        }
    }
    Ok(())
}
