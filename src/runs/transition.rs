//! The one way to move a run: lock, step, commit, publish. The service and the driver both use it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::machine::{self, Effect, Input, InvalidTransition, Progress, Transition};
use super::stream::{Live, Registry};
use super::{Dependencies, retry_pauses};
use crate::api::RunId;
use crate::store::{self, Commit, Committed, NewRun, NextLease};

/// How long a request retries a commit, or waits for the lock of a run, while the database is unavailable.
const REQUEST_PATIENCE: Duration = Duration::from_secs(2);

/// A run as this server knows it.
#[derive(Debug, Clone)]
pub struct Current {
    /// The run and what it has done.
    pub progress: Progress,
    /// Identifies this state of it; the next commit names it.
    pub version: i64,
    /// The number of its newest lease.
    pub lease: i64,
}

/// Why a run was not moved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else has changed the run since it was read.
    #[error("the run was changed concurrently")]
    Stale,
    /// The input is not allowed in the run's state.
    #[error(transparent)]
    Invalid(#[from] InvalidTransition),
    /// The store failed; a commit may have been written nevertheless.
    #[error(transparent)]
    Store(store::Error),
}

/// Who moves a run, and so how long a commit is retried while the database is away, and who publishes.
#[derive(Debug, Clone, Copy)]
pub enum Mover<'a> {
    /// A request: it answers 503 soon. Where a worker of this server drives the run, that publishes.
    Service,
    /// The worker that drives the run: it retries until its server stops.
    Driver(&'a CancellationToken),
}

impl Mover<'_> {
    fn may_retry(self, began: Instant) -> bool {
        match self {
            Self::Service => began.elapsed() < REQUEST_PATIENCE,
            Self::Driver(stopping) => !stopping.is_cancelled(),
        }
    }

    /// Waits for the lock of the run. A request does not wait for a driver that retries a commit.
    async fn lock(self, live: &Live) -> Result<MutexGuard<'_, ()>, Error> {
        match self {
            Self::Service => {
                let locked = timeout(REQUEST_PATIENCE, live.gate.lock()).await;
                locked.map_err(|_| Error::Store(store::Error::timed_out()))
            }
            Self::Driver(_) => Ok(live.gate.lock().await),
        }
    }
}

/// Moves runs; cheap to clone.
#[derive(Debug, Clone)]
pub struct Transitions {
    dependencies: Dependencies,
    registry: Arc<Registry>,
}

impl Transitions {
    /// Commits to the store of `dependencies`, and publishes in `registry`.
    #[must_use]
    pub fn new(dependencies: Dependencies, registry: Arc<Registry>) -> Self {
        Self { dependencies, registry }
    }

    /// Stores a new run. A commit whose acknowledgement is lost is found again by the run's id.
    ///
    /// # Errors
    /// As [`store::Runs::create_run`].
    pub async fn create(&self, new: &NewRun<'_>) -> Result<(), store::Error> {
        let began = Instant::now();
        for pause in retry_pauses() {
            match self.dependencies.store.create_run(new).await {
                Err(error @ store::Error::Unavailable(_)) if Mover::Service.may_retry(began) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a run cannot be stored; trying again");
                    tokio::time::sleep(pause).await;
                }
                other => return other,
            }
        }
        unreachable!("the pauses have no end")
    }

    /// Applies inputs in one commit, publishes what came of it, and returns the run now with what to do next.
    ///
    /// # Errors
    /// [`Error::Stale`] when `current` is not what is stored; [`Error::Invalid`] when the run does not accept an input.
    pub async fn apply(
        &self,
        current: &Current,
        inputs: Vec<Input>,
        next_lease: NextLease,
        mover: Mover<'_>,
    ) -> Result<(Current, Effect), Error> {
        let live = self.registry.get(&current.progress.run.spec.id);
        let _gate = match &live {
            Some(live) => Some(mover.lock(live).await?),
            None => None,
        };
        let transition = self.step(&current.progress, inputs)?;
        let committed = self.commit(&transition, current.version, next_lease, mover).await?;
        let Committed { version, lease, metadata } = committed;
        let transition = transition.with_metadata(metadata);
        let now = Current { progress: transition.progress, version, lease };
        if let Some(live) = &live {
            match mover {
                Mover::Service if live.is_driven() => live.changed.notify_one(),
                Mover::Service | Mover::Driver(_) => live.publish(&now.progress, version, lease),
            }
        }
        Ok((now, transition.effect))
    }

    /// Computes what the inputs make of a run, without storing it.
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

    /// Commits, again while the database is away. After a lost acknowledgement the run is read back, and a commit that
    /// was written counts as one.
    async fn commit(
        &self,
        transition: &Transition,
        version: i64,
        next_lease: NextLease,
        mover: Mover<'_>,
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
            };
            match self.dependencies.store.commit(commit).await {
                Ok(committed) => return Ok(committed),
                Err(store::Error::Stale) if may_be_written => return self.written(transition, version).await,
                Err(store::Error::Stale) => return Err(Error::Stale),
                Err(error @ store::Error::Unavailable(_)) if mover.may_retry(began) => {
                    may_be_written = true;
                    tracing::warn!(error = &error as &dyn std::error::Error, "a commit failed; trying again");
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(Error::Store(error)),
            }
        }
        unreachable!("the pauses have no end")
    }

    /// Whether an earlier try of this commit was written.
    async fn written(&self, transition: &Transition, version: i64) -> Result<Committed, Error> {
        let run = &transition.progress.run;
        let found = self.dependencies.store.run(&run.spec.thread_id, &run.spec.id).await.map_err(Error::Store)?;
        let is_written = |found: &store::Versioned| {
            found.version == version + 1 && found.run.state == run.state && found.run.usage == run.usage
        };
        match found.filter(is_written) {
            Some(found) => Ok(Committed { version: found.version, lease: found.lease, metadata: None }),
            None => Err(Error::Stale),
        }
    }

    /// Reads what is stored of a run.
    ///
    /// # Errors
    /// As the store says.
    pub async fn load(&self, found: store::Versioned) -> Result<Current, store::Error> {
        let store::Versioned { run, version, lease, .. } = found;
        let (steps, message) = self.dependencies.store.progress(&run.spec.id).await?;
        Ok(Current { progress: Progress { run, steps, message }, version, lease })
    }

    /// The registry of the runs that are published here.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What the stream of an unfinished run ends with when the server stops.
    #[must_use]
    pub fn stopping_error(run: &RunId) -> crate::api::Error {
        crate::api::Error::new(
            crate::api::error::Kind::Unavailable,
            format!(
                "The server is stopping. Run {run} continues on another server, or when this one is back; retrieve the run for its result."
            ),
        )
    }
}
