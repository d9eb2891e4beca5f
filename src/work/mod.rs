//! Durable background work of any kind: claimed under a lease, driven, and retried a bounded number of times.
//!
//! A [`Job`] says how its work is claimed and driven; a [`Worker`] runs it:
//!
//! ```text
//! claim (attempt + 1) ──▶ drive ──▶ done: the job's last commit has cleared the lease
//!    ▲                      │  └──▶ lease lost: the attempt is cancelled; another server drives the job
//!    │                      ├─────▶ stopping: the lease is released, and the attempt is not counted
//!    └──── due again ◀──────┴─────▶ failed or panicked: the cause is stored; after `attempts_max` the job is given up
//! ```
//!
//! A separate loop renews all leases in a few statements, independently of the driven work. A lease that has expired
//! because the database was unavailable is lost only when another server claims the job. Until then the work continues,
//! and this server does not claim the job again. Jobs whose server was lost repeatedly are driven a few at a time
//! (`trials`).

mod lease;
mod supervisor;
mod trials;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::metrics::Metrics;
use crate::store::{self, JobKind, Jobs, Lease};

pub use lease::Attempt;
pub use supervisor::Supervisor;

use lease::Leases;
use trials::{Trial, Trials};

/// The poll interval of the queue, in addition to notifications.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// Pause after the first failed attempt. Doubles with each further attempt.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Maximum pause between two attempts.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// Maximum number of times that the outcome of an attempt is written while the database is unavailable. After that, the
/// lease expires.
const WRITE_ATTEMPTS_MAX: u32 = 3;

/// A kind of background work.
#[async_trait]
pub trait Job: Send + Sync + 'static {
    /// What a claim returns and [`Job::drive`] receives.
    type Work: Send + 'static;

    /// The kind, which determines the table of the jobs.
    const KIND: JobKind;

    /// Returns the span of an attempt, with the IDs of the job.
    fn span(&self, work: &Self::Work) -> tracing::Span;

    /// Claims the next due job with at most `attempts_max` attempts. Skips the jobs in `except`, which this server already
    /// drives.
    ///
    /// # Errors
    /// Those of the store.
    async fn claim(&self, except: &[String], attempts_max: u32) -> Result<Option<Claim<Self::Work>>, store::Error>;

    /// Drives a claimed job until it is done or cannot continue. The future is dropped when the lease is lost, except while
    /// it holds an [`Attempt::critical`] guard. Must return soon after [`Attempt::stopping`] is cancelled.
    async fn drive(&self, work: &mut Self::Work, attempt: &Attempt) -> Outcome;

    /// Ends the job after `attempts` failed attempts. `cause` is the cause of the last failure.
    ///
    /// # Errors
    /// Those of the store. The job is then claimed and given up again.
    async fn give_up(&self, work: Self::Work, attempts: u32, cause: &str) -> Result<(), store::Error>;
}

/// A job that this server has claimed.
#[derive(Debug)]
pub struct Claim<W> {
    /// The lease.
    pub lease: Lease,
    /// Number of attempts since the job last made progress, including this one.
    pub attempts: u32,
    /// The cause of the previous failure, if known.
    pub last_failure: Option<String>,
    /// The work to drive.
    pub work: W,
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    /// The last commit of the job has cleared the lease.
    Done,
    /// Another server has claimed the job, or a client has ended it.
    LeaseLost,
    /// The server is stopping. Another server can claim the job immediately.
    Stopped,
    /// The attempt failed with this cause.
    Failed(String),
    /// The attempt failed with this cause, because another server does not work. The job has logged it, for all such jobs
    /// together.
    Waiting(String),
}

impl Outcome {
    /// Returns the label of the outcome in metrics.
    fn label(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::LeaseLost => "lease_lost",
            Self::Stopped => "stopped",
            Self::Failed(_) => "failed",
            Self::Waiting(_) => "waiting",
        }
    }
}

/// The settings of a worker.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Maximum number of jobs that are driven concurrently. Further jobs wait in the store.
    pub concurrency_max: usize,
    /// The duration of a lease. After that time without renewal, another server can claim the job.
    pub lease: Duration,
    /// Maximum number of attempts without progress.
    pub attempts_max: u32,
}

/// The right to drive one more job.
#[derive(Debug)]
pub struct Slot {
    _permit: OwnedSemaphorePermit,
}

/// Wakes a worker when a job may be due in the store.
#[derive(Debug, Default)]
pub struct Queue {
    /// Whether a free slot is used for due jobs in the store before new jobs.
    may_have_due_jobs: AtomicBool,
    wake: Notify,
}

impl Queue {
    /// Notifies the worker that a job is due in the store.
    pub fn wake(&self) {
        self.may_have_due_jobs.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }
}

/// Claims and drives jobs of one kind.
#[derive(Debug)]
pub struct Worker<J> {
    job: Arc<J>,
    jobs: Arc<dyn Jobs>,
    settings: Settings,
    metrics: Arc<Metrics>,
    slots: Arc<Semaphore>,
    leases: Arc<Leases>,
    trials: Arc<Trials>,
    queue: Arc<Queue>,
    tasks: TaskTracker,
    /// Cancelled when no more jobs are claimed or started.
    draining: CancellationToken,
    /// Cancelled when unfinished jobs are released.
    stopping: CancellationToken,
}

impl<J: Job> Worker<J> {
    /// Creates a worker. The caller must run its loops, [`Worker::claim_due_jobs`] and [`Worker::renew_leases`].
    #[must_use]
    pub fn new(
        job: Arc<J>,
        jobs: Arc<dyn Jobs>,
        queue: Arc<Queue>,
        settings: Settings,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            job,
            jobs,
            slots: Arc::new(Semaphore::new(settings.concurrency_max)),
            leases: Arc::default(),
            trials: Arc::default(),
            settings,
            metrics,
            queue,
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
        })
    }

    /// Returns a free slot, unless there is none or the server is stopping.
    #[must_use]
    pub fn slot(&self) -> Option<Slot> {
        if self.draining.is_cancelled() {
            return None;
        }
        let permit = self.slots.clone().try_acquire_owned().ok()?;
        Some(Slot { _permit: permit })
    }

    /// Returns whether the worker no longer starts jobs.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Returns the duration of a lease.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.settings.lease
    }

    /// Completes the work even if the caller is dropped, such as a handler whose client has disconnected. A drain waits for
    /// the work.
    ///
    /// # Panics
    /// If the work panics.
    pub async fn uninterrupted<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        match self.tasks.spawn(work.in_current_span()).await {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Drives a job that is already leased.
    pub fn start(self: &Arc<Self>, slot: Slot, claim: Claim<J::Work>) {
        self.start_claimed(slot, claim, None);
    }

    fn start_claimed(self: &Arc<Self>, slot: Slot, claim: Claim<J::Work>, trial: Option<Trial>) {
        // Registered before the task starts, so that the lease is renewed from the start.
        let attempt = self.attempt(&claim.lease);
        let worker = self.clone();
        self.tasks.spawn(async move {
            worker.drive(claim, attempt, trial).await;
            // Boxed to save memory: most tasks drive only one job and wait for it.
            Box::pin(worker.drive_queued(slot)).await;
        });
    }

    /// Claims due jobs while there are free slots, until the drain starts. Never returns.
    pub async fn claim_due_jobs(self: Arc<Self>) {
        let mut poll = tokio::time::interval(POLL_EVERY);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.draining.cancelled() => std::future::pending().await,
                () = self.queue.wake.notified() => {}
                _ = poll.tick() => {}
            }
            while let Some(slot) = self.slot() {
                let Some((claim, trial)) = self.claim().await else { break };
                self.start_claimed(slot, claim, trial);
            }
        }
    }

    /// Renews the leases of all driven jobs at a third of their duration. Never returns.
    pub async fn renew_leases(self: Arc<Self>) {
        self.leases.renew(&*self.jobs, J::KIND, self.settings.lease).await;
    }

    /// Stops claiming and starting jobs.
    pub fn start_drain(&self) {
        self.draining.cancel();
        self.tasks.close();
    }

    /// Waits until all active tasks have ended.
    pub async fn drained(&self) {
        self.tasks.wait().await;
    }

    /// Returns the number of active tasks.
    #[must_use]
    pub fn active_tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Releases the leases of unfinished jobs, so that other servers can claim them.
    pub fn stop_now(&self) {
        self.stopping.cancel();
    }

    /// Returns the token that is cancelled when the server releases its unfinished jobs.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    fn attempt(&self, lease: &Lease) -> Attempt {
        Leases::hold(&self.leases, lease.clone(), self.settings.lease, self.stopping.clone())
    }

    /// Drives due jobs before the slot becomes free for new jobs.
    async fn drive_queued(self: Arc<Self>, slot: Slot) {
        while self.queue.may_have_due_jobs.load(Ordering::Relaxed) && !self.draining.is_cancelled() {
            match self.claim().await {
                Some((claim, trial)) => {
                    let attempt = self.attempt(&claim.lease);
                    self.drive(claim, attempt, trial).await;
                }
                None => self.queue.may_have_due_jobs.store(false, Ordering::Relaxed),
            }
        }
        drop(slot);
    }

    /// Claims a due job. Jobs whose server was lost repeatedly are claimed only with a trial.
    async fn claim(&self) -> Option<(Claim<J::Work>, Option<Trial>)> {
        let trial = Trials::begin(&self.trials);
        let attempts_max = if trial.is_some() { u32::MAX } else { trials::ATTEMPTS_MAX - 1 };
        match self.job.claim(&self.leases.not_to_claim(), attempts_max).await {
            Ok(claim) => claim.map(|claim| {
                let trial = trial.filter(|_| claim.attempts > trials::ATTEMPTS_MAX);
                (claim, trial)
            }),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "failed to claim a due job");
                None
            }
        }
    }

    async fn drive(&self, claim: Claim<J::Work>, attempt: Attempt, trial: Option<Trial>) {
        let span = self.job.span(&claim.work);
        let mut driven = Box::pin(self.drive_in_span(claim, attempt).instrument(span));
        if let Some(trial) = trial {
            let has_ended = tokio::time::timeout(trials::DURATION, &mut driven).await.is_ok();
            trial.passed();
            self.queue.wake();
            if has_ended {
                return;
            }
        }
        driven.await;
    }

    async fn drive_in_span(&self, claim: Claim<J::Work>, attempt: Attempt) {
        let Claim { lease, attempts, last_failure, mut work } = claim;
        if attempts > self.settings.attempts_max {
            let cause = last_failure.unwrap_or_else(|| "the server that processed it was lost".to_owned());
            self.give_up(work, self.settings.attempts_max, &cause).await;
            return;
        }
        let active = self.metrics.job_started(J::KIND.label());
        let driven = AssertUnwindSafe(self.job.drive(&mut work, &attempt)).catch_unwind();
        let outcome = tokio::select! {
            biased;
            outcome = driven => outcome.unwrap_or_else(|panic| Outcome::Failed(panic_text(&*panic))),
            () = attempt.lost() => Outcome::LeaseLost,
        };
        drop(active);
        self.metrics.attempt_ended(J::KIND.label(), outcome.label());
        let is_last = attempts >= self.settings.attempts_max;
        let pause = retry_after(attempts);
        let cause = match outcome {
            Outcome::Done => return,
            Outcome::LeaseLost => {
                tracing::info!(attempts, "lease lost");
                return;
            }
            Outcome::Stopped => {
                self.write("release", || self.jobs.release_lease(J::KIND, &lease)).await;
                return;
            }
            Outcome::Failed(cause) => {
                let retry_in_s = (!is_last).then_some(pause.as_secs());
                tracing::error!(attempts, cause, retry_in_s, "attempt failed");
                cause
            }
            Outcome::Waiting(cause) => {
                let retry_in_s = (!is_last).then_some(pause.as_secs());
                tracing::debug!(attempts, retry_in_s, "attempt failed");
                cause
            }
        };
        if is_last {
            self.give_up(work, attempts, &cause).await;
        } else {
            self.write("failure", || self.jobs.record_failed_attempt(J::KIND, &lease, &cause, pause)).await;
        }
    }

    async fn give_up(&self, work: J::Work, attempts: u32, cause: &str) {
        self.metrics.job_given_up(J::KIND.label());
        if let Err(error) = self.job.give_up(work, attempts, cause).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, attempts, "failed to give up a job; retrying when its lease expires");
        }
    }

    /// Writes the outcome of an attempt. If the database remains unavailable, the lease expires instead.
    async fn write<F>(&self, what: &'static str, attempt: impl Fn() -> F)
    where
        F: Future<Output = Result<(), store::Error>>,
    {
        for _ in 0..WRITE_ATTEMPTS_MAX {
            match attempt().await {
                Ok(()) | Err(store::Error::Stale) => return,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        what,
                        "failed to store the outcome of an attempt"
                    );
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}

fn retry_after(attempts: u32) -> Duration {
    (RETRY_AFTER * 2_u32.saturating_pow(attempts.saturating_sub(1))).min(RETRY_AFTER_MAX)
}

/// Returns the message of a panic, for the log.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    format!("panicked: {}", panic_message(panic))
}

/// Returns the message of a panic up to its first quotation, because messages quote values, such as a part of a text.
pub(crate) fn panic_message(panic: &dyn std::any::Any) -> String {
    const CHARS_MAX: usize = 200;
    if let Some(text) = panic.downcast_ref::<&'static str>() {
        return (*text).to_owned();
    }
    let text = panic.downcast_ref::<String>().map_or("without a message", String::as_str);
    let unquoted = text.split(['"', '`', '\'', '\n']).next().unwrap_or_default();
    let unquoted: String = unquoted.chars().take(CHARS_MAX).collect();
    if unquoted.len() < text.len() { format!("{unquoted}…") } else { unquoted }
}

/// Locks a mutex, even if a thread panicked while it held the lock: every change is a single assignment or insertion, so
/// the value is consistent.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
