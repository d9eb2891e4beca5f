//! Changes the state of runs: locks, steps, commits, publishes. Used by both the service and the driver.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::machine::{self, Effect, Input, InvalidTransition, Progress, Transition};
use super::stream::{Live, Registry};
use super::{Dependencies, retry_pauses};
use crate::api::{Run, RunId};
use crate::store::{self, Commit, Committed, NewRun, NextLease};

/// How long a request retries a commit, or waits for the lock of a run, while the database is unavailable.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// A run as this server knows it.
#[derive(Debug, Clone)]
pub struct Current {
    /// The run, its steps and its message.
    pub progress: Progress,
    /// The version of this state. The next commit succeeds only if it is still current.
    pub version: i64,
    /// The number of the newest lease.
    pub lease: i64,
}

/// Why a transition failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The run was changed since it was read.
    #[error("the run was changed concurrently")]
    Stale,
    /// The input is not allowed in the run's state.
    #[error(transparent)]
    Invalid(#[from] InvalidTransition),
    /// The store failed. The commit may still have been written.
    #[error(transparent)]
    Store(store::Error),
}

/// Who applies a transition. Determines how long a commit is retried while the database is unavailable, and who publishes.
#[derive(Debug, Clone, Copy)]
pub enum Initiator<'a> {
    /// A request. Retries for a short time. If a worker of this server drives the run, that worker publishes.
    Service,
    /// The worker that drives the run. Retries until the server stops.
    Driver(&'a CancellationToken),
}

impl Initiator<'_> {
    fn may_retry(self, began: Instant) -> bool {
        match self {
            Self::Service => began.elapsed() < REQUEST_TIMEOUT,
            Self::Driver(stopping) => !stopping.is_cancelled(),
        }
    }

    /// Waits for the lock of the run. A request does not wait for a driver that retries a commit.
    async fn lock(self, live: &Live) -> Result<MutexGuard<'_, ()>, Error> {
        match self {
            Self::Service => {
                let locked = timeout(REQUEST_TIMEOUT, live.gate.lock()).await;
                locked.map_err(|_| Error::Store(store::Error::timed_out()))
            }
            Self::Driver(_) => Ok(live.gate.lock().await),
        }
    }
}

/// Applies transitions to runs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Transitions {
    dependencies: Dependencies,
    registry: Arc<Registry>,
}

impl Transitions {
    /// Creates transitions that commit to the store of `dependencies` and publish in `registry`.
    #[must_use]
    pub fn new(dependencies: Dependencies, registry: Arc<Registry>) -> Self {
        Self { dependencies, registry }
    }

    /// Stores a new run. Retries store it once, even if the acknowledgement of a commit was lost.
    ///
    /// # Errors
    /// Those of [`store::Runs::create_run`].
    pub async fn create(&self, new: &NewRun<'_>) -> Result<(), store::Error> {
        let began = Instant::now();
        for pause in retry_pauses() {
            match self.dependencies.store.create_run(new).await {
                Err(error @ store::Error::Unavailable(_)) if Initiator::Service.may_retry(began) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "failed to store a run; retrying");
                    tokio::time::sleep(pause).await;
                }
                Ok(()) => {
                    self.dependencies.metrics.run_created();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        unreachable!("the pauses have no end")
    }

    /// Applies the inputs in one commit and publishes the new state. Returns it with the effect to perform. `next_lease`
    /// returns the change of the lease for this effect.
    ///
    /// # Errors
    /// [`Error::Stale`] if the run was changed since `current` was read; [`Error::Invalid`] if an input is not allowed in
    /// the run's state.
    pub async fn apply(
        &self,
        current: &Current,
        inputs: Vec<Input>,
        next_lease: impl FnOnce(Effect) -> NextLease,
        initiator: Initiator<'_>,
    ) -> Result<(Current, Effect), Error> {
        let live = self.registry.get(&current.progress.run.spec.id);
        let _gate = match &live {
            Some(live) => Some(initiator.lock(live).await?),
            None => None,
        };
        let transition = self.step(&current.progress, inputs)?;
        let next_lease = next_lease(transition.effect);
        let committed = self.commit(&transition, current.version, next_lease, initiator).await?;
        let Committed { version, lease, metadata } = committed;
        if transition.progress.run.state.has_ended() {
            self.count_end(&transition.progress.run);
            if matches!(initiator, Initiator::Service) {
                log_end(&transition.progress.run);
            }
        }
        let transition = transition.with_metadata(metadata);
        let now = Current { progress: transition.progress, version, lease };
        if let Some(live) = &live {
            match initiator {
                Initiator::Service if live.is_driven() => live.changed.notify_one(),
                Initiator::Service | Initiator::Driver(_) => live.publish(&now.progress, version, lease),
            }
        }
        Ok((now, transition.effect))
    }

    /// Counts a run that has ended, and exports its trace. No transition leads from an end.
    fn count_end(&self, run: &Run) {
        let Dependencies { clock, metrics, traces, .. } = &self.dependencies;
        metrics.run_ended(run.state.status(), run.state.end_reason(), clock.now().0 - run.spec.created_at.0);
        traces.run_ended(run);
    }

    /// Computes the transition of all inputs, without storing it.
    pub(super) fn step(&self, progress: &Progress, inputs: Vec<Input>) -> Result<Transition, InvalidTransition> {
        let Dependencies { clock, ids, .. } = &self.dependencies;
        let mut inputs = inputs.into_iter();
        let first = inputs.next().expect("a transition has an input");
        let mut transition = machine::step(progress, first, clock.now(), ids)?;
        for input in inputs {
            let next = machine::step(&transition.progress, input, clock.now(), ids)?;
            transition = transition.and(next);
        }
        Ok(transition)
    }

    /// Commits, and retries while the database is unavailable. If an acknowledgement was lost, reads the run to find out
    /// whether the commit was written.
    async fn commit(
        &self,
        transition: &Transition,
        version: i64,
        next_lease: NextLease,
        initiator: Initiator<'_>,
    ) -> Result<Committed, Error> {
        let began = Instant::now();
        let message = transition.message.as_ref();
        let mut may_be_written = false;
        for pause in retry_pauses() {
            let commit = Commit {
                run: &transition.progress.run,
                version,
                next_lease,
                made_progress: transition.made_progress,
                steps: &transition.steps,
                removed_steps: &transition.removed_steps,
                new_message: message.filter(|_| transition.message_is_new),
                changed_message: message.filter(|_| !transition.message_is_new),
                calls: &transition.calls,
            };
            match self.dependencies.store.commit(commit).await {
                Ok(committed) => return Ok(committed),
                Err(store::Error::Stale) if may_be_written => return self.written(transition, version).await,
                Err(store::Error::Stale) => return Err(Error::Stale),
                Err(error @ store::Error::Unavailable(_)) if initiator.may_retry(began) => {
                    may_be_written = true;
                    tracing::warn!(error = &error as &dyn std::error::Error, "commit failed; retrying");
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(Error::Store(error)),
            }
        }
        unreachable!("the pauses have no end")
    }

    /// Returns the result of an earlier attempt of this commit, if it was written.
    async fn written(&self, transition: &Transition, version: i64) -> Result<Committed, Error> {
        let run = &transition.progress.run;
        let found = self
            .dependencies
            .store
            .run(&run.spec.scope, &run.spec.thread_id, &run.spec.id)
            .await
            .map_err(Error::Store)?;
        let is_written = |found: &store::Versioned| {
            found.version == version + 1 && found.run.state == run.state && found.run.usage == run.usage
        };
        match found.filter(is_written) {
            Some(found) => Ok(Committed { version: found.version, lease: found.lease, metadata: None }),
            None => Err(Error::Stale),
        }
    }

    /// Loads the steps and the message of a run.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn load(&self, found: store::Versioned) -> Result<Current, store::Error> {
        let store::Versioned { run, version, lease, .. } = found;
        let (steps, message) = self.dependencies.store.progress(&run.spec.id).await?;
        Ok(Current { progress: Progress { run, steps, message }, version, lease })
    }

    /// Returns the registry in which runs are published.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns the error that ends the stream of an active run when the server stops.
    #[must_use]
    pub fn stopping_error(run: &RunId) -> crate::api::Error {
        crate::api::Error::new(
            crate::api::error::Kind::Unavailable,
            format!(
                "The server is stopping. Run {run} continues on another server or after a restart. Retrieve the run \
                 for its result."
            ),
        )
    }
}

/// Logs that a run has ended without a driver, which would log it.
fn log_end(run: &Run) {
    let _span = tracing::info_span!("run", run.id = %run.spec.id, thread.id = %run.spec.thread_id).entered();
    tracing::info!(status = run.state.status(), tokens = run.usage.total_tokens, "run ended");
}
