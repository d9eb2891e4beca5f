//! Durable background work of any kind: claimed under a lease, driven, and retried a bounded number of times.
//!
//! A [`Job`] says how its work is claimed and driven; a [`Worker`] runs it:
//!
//! ```text
//! claim (attempt + 1) ──▶ drive ──▶ done: the job's own commit has ended the lease
//!    ▲                      │  └──▶ lease lost: everything the attempt awaits is dropped; another server drives it
//!    │                      ├─────▶ stopping: the lease is released, and the attempt is not counted
//!    └──── due again ◀──────┴─────▶ failed or panicked: the cause is stored; after `max_attempts` the job gives up
//! ```
//!
//! A loop of its own renews all leases in one statement, independently of the driven work. A lease that
//! has lapsed because the database was away is not lost before another server has taken it: the work goes on, and this
//! server does not claim it a second time. Jobs that have lost several servers are driven a few at a time (`trials`).

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

use crate::store::{self, JobKind, Jobs, Lease};

pub use lease::Attempt;
pub use supervisor::Supervisor;

use lease::Leases;
use trials::{Trial, Trials};

/// The poll interval of the queue, in addition to notifications.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// Pause after the first failed attempt; each later one is twice as long.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The longest pause between two attempts.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// How many times a release, or the record of a failure, is tried while the database is away. After that, the lease
/// ends by itself.
const WRITE_TRIES: u32 = 3;

/// A kind of background work.
#[async_trait]
pub trait Job: Send + Sync + 'static {
    /// What a claim returns, and [`Job::drive`] receives.
    type Work: Send + 'static;

    /// The table that holds the jobs.
    const KIND: JobKind;

    /// The span in which an attempt is logged, with the ids of its work.
    fn span(&self, work: &Self::Work) -> tracing::Span;

    /// Claims the next job that is due and has had at most `attempts_max` attempts, except those named: this server drives
    /// them already.
    ///
    /// # Errors
    /// As the store says.
    async fn claim(&self, except: &[String], attempts_max: u32) -> Result<Option<Claim<Self::Work>>, store::Error>;

    /// Drives a claimed job until it is done, or cannot go on. Dropped when the lease is lost, except while it holds an
    /// [`Attempt::critical`] guard. Must return soon after [`Attempt::stopping`] is cancelled.
    async fn drive(&self, work: &mut Self::Work, attempt: &Attempt) -> Outcome;

    /// Ends the job for good, after `attempts` attempts without a result; `cause` ended the last one.
    ///
    /// # Errors
    /// As the store says; the job is then claimed, and given up, again.
    async fn give_up(&self, work: Self::Work, attempts: u32, cause: &str) -> Result<(), store::Error>;
}

/// A job that this server has claimed.
#[derive(Debug)]
pub struct Claim<W> {
    /// The lease.
    pub lease: Lease,
    /// How many attempts there were since the job last made progress, this one included.
    pub attempts: u32,
    /// What ended the attempt before, if that is known.
    pub last_failure: Option<String>,
    /// What to drive.
    pub work: W,
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    /// The job's own commit has ended the lease.
    Done,
    /// Another server, or a client, has changed the job, and is responsible for it now.
    LeaseLost,
    /// The server is stopping: another one may claim the job at once.
    Stopped,
    /// The attempt failed; the text is the cause.
    Failed(String),
}

/// How jobs are driven.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Jobs driven at the same time; others wait in the store.
    pub concurrency_max: usize,
    /// How long a job stays with a server that does not renew its lease.
    pub lease: Duration,
    /// Attempts without progress before a job is given up.
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
    /// Whether the next free slot goes to the store's due jobs before it goes to new ones.
    may_have_due_jobs: AtomicBool,
    look: Notify,
}

impl Queue {
    /// Notifies the worker that a job is due in the store.
    pub fn wake(&self) {
        self.may_have_due_jobs.store(true, Ordering::Relaxed);
        self.look.notify_one();
    }
}

/// Claims and drives jobs of one kind.
#[derive(Debug)]
pub struct Worker<J> {
    job: Arc<J>,
    jobs: Arc<dyn Jobs>,
    settings: Settings,
    slots: Arc<Semaphore>,
    leases: Arc<Leases>,
    trials: Arc<Trials>,
    queue: Arc<Queue>,
    tasks: TaskTracker,
    /// Nothing new is claimed or started.
    draining: CancellationToken,
    /// Unfinished jobs are released.
    stopping: CancellationToken,
}

impl<J: Job> Worker<J> {
    /// A worker with all its slots free; [`Worker::claim_due_jobs`] and [`Worker::renew_leases`] are its loops.
    #[must_use]
    pub fn new(job: Arc<J>, jobs: Arc<dyn Jobs>, queue: Arc<Queue>, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            job,
            jobs,
            slots: Arc::new(Semaphore::new(settings.concurrency_max)),
            leases: Arc::default(),
            trials: Arc::default(),
            settings,
            queue,
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
        })
    }

    /// A free slot, if there is one and the server is not stopping.
    #[must_use]
    pub fn slot(&self) -> Option<Slot> {
        if self.draining.is_cancelled() {
            return None;
        }
        let permit = self.slots.clone().try_acquire_owned().ok()?;
        Some(Slot { _permit: permit })
    }

    /// Whether nothing new is started any more.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// The duration of a lease.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.settings.lease
    }

    /// Runs work to its end, also when its caller is dropped, such as a handler whose client has hung up. A drain waits
    /// for it.
    ///
    /// # Panics
    /// When the work panics.
    pub async fn uninterrupted<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        match self.tasks.spawn(work.in_current_span()).await {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Drives a job that is leased already.
    pub fn start(self: &Arc<Self>, slot: Slot, claim: Claim<J::Work>) {
        self.start_claimed(slot, claim, None);
    }

    fn start_claimed(self: &Arc<Self>, slot: Slot, claim: Claim<J::Work>, trial: Option<Trial>) {
        // Registered before the task starts, so that the lease is renewed from the beginning.
        let attempt = self.attempt(&claim.lease);
        let worker = self.clone();
        self.tasks.spawn(async move {
            worker.drive(claim, attempt, trial).await;
            // Boxed: most tasks drive one job, and wait long.
            Box::pin(worker.drive_queued(slot)).await;
        });
    }

    /// Claims due jobs while there are slots, until the drain begins; never returns.
    pub async fn claim_due_jobs(self: Arc<Self>) {
        let mut poll = tokio::time::interval(POLL_EVERY);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.draining.cancelled() => std::future::pending().await,
                () = self.queue.look.notified() => {}
                _ = poll.tick() => {}
            }
            while let Some(slot) = self.slot() {
                let Some((claim, trial)) = self.claim().await else { break };
                self.start_claimed(slot, claim, trial);
            }
        }
    }

    /// Renews the leases of everything under way, at a third of the lease, until everything has stopped.
    pub async fn renew_leases(self: Arc<Self>) {
        self.leases.renew(&*self.jobs, J::KIND, self.settings.lease).await;
    }

    /// Starts nothing new from now on.
    pub fn start_drain(&self) {
        self.draining.cancel();
        self.tasks.close();
    }

    /// Waits until everything under way has ended.
    pub async fn drained(&self) {
        self.tasks.wait().await;
    }

    /// How many tasks are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.tasks.len()
    }

    /// Releases the leases of unfinished jobs, for other servers to claim.
    pub fn stop_now(&self) {
        self.stopping.cancel();
    }

    /// A token that is cancelled when the server releases its unfinished jobs.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    fn attempt(&self, lease: &Lease) -> Attempt {
        Leases::hold(&self.leases, lease.clone(), self.settings.lease, self.stopping.clone())
    }

    /// Drives what is due before its slot is free for new work.
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

    /// Claims a due job; one that has lost several servers only with a trial.
    async fn claim(&self) -> Option<(Claim<J::Work>, Option<Trial>)> {
        let trial = Trials::begin(&self.trials);
        let attempts_max = if trial.is_some() { u32::MAX } else { trials::ATTEMPTS_MAX - 1 };
        match self.job.claim(&self.leases.not_to_claim(), attempts_max).await {
            Ok(claim) => claim.map(|claim| {
                let trial = trial.filter(|_| claim.attempts > trials::ATTEMPTS_MAX);
                (claim, trial)
            }),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "due jobs cannot be claimed");
                None
            }
        }
    }

    async fn drive(&self, claim: Claim<J::Work>, attempt: Attempt, trial: Option<Trial>) {
        let span = self.job.span(&claim.work);
        let mut driven = Box::pin(self.drive_in_span(claim, attempt).instrument(span));
        if let Some(trial) = trial {
            let is_over = tokio::time::timeout(trials::DURATION, &mut driven).await.is_ok();
            trial.passed();
            self.queue.wake();
            if is_over {
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
        let driven = AssertUnwindSafe(self.job.drive(&mut work, &attempt)).catch_unwind();
        let outcome = tokio::select! {
            biased;
            outcome = driven => outcome.unwrap_or_else(|panic| Outcome::Failed(panic_text(&*panic))),
            () = attempt.lost() => Outcome::LeaseLost,
        };
        match outcome {
            Outcome::Done => {}
            Outcome::LeaseLost => tracing::info!(attempts, "the lease was lost; this attempt ends"),
            Outcome::Stopped => self.write("release", || self.jobs.release_lease(J::KIND, &lease)).await,
            Outcome::Failed(cause) if attempts >= self.settings.attempts_max => {
                tracing::error!(attempts, cause, "the last attempt failed");
                self.give_up(work, attempts, &cause).await;
            }
            Outcome::Failed(cause) => {
                let pause = retry_after(attempts);
                tracing::error!(attempts, cause, retry_in_s = pause.as_secs(), "an attempt failed");
                self.write("failure", || self.jobs.record_failed_attempt(J::KIND, &lease, &cause, pause)).await;
            }
        }
    }

    async fn give_up(&self, work: J::Work, attempts: u32, cause: &str) {
        if let Err(error) = self.job.give_up(work, attempts, cause).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, attempts, "a job cannot be given up; it is claimed again when its lease ends");
        }
    }

    /// Writes how an attempt ended. Should the database be away, the end of the lease does the same, later.
    async fn write<F>(&self, what: &'static str, attempt: impl Fn() -> F)
    where
        F: Future<Output = Result<(), store::Error>>,
    {
        for _ in 0..WRITE_TRIES {
            match attempt().await {
                Ok(()) | Err(store::Error::Stale) => return,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        what,
                        "the end of an attempt is not stored"
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

/// The text of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a message"))
}

/// A panic while a lock was held leaves nothing half-changed here: every change is one assignment or insertion.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
