//! Drives runs: the loop over effects. Runs are a kind of background work ([`crate::work::Job`]).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::images::SCALED_AT_ONCE_MAX;
use super::machine::{Effect, Input, Progress};
use super::stream::Live;
use super::transition::{self, Current, Initiator, Transitions};
use super::{Dependencies, Settings, retry_pauses};
use crate::access::Reservation;
use crate::api::error::{Error as ApiError, Kind};
use crate::api::organization::usage::ModelCall;
use crate::api::run::{ErrorCode, LastError, RunState};
use crate::api::usage::Usage;
use crate::api::{Message, Run, RunId};
use crate::llm::{self, Route};
use crate::store::{self, ClaimedRun, JobKind, Lease, NextLease, SavedText, Versioned};
use crate::work::{Attempt, Claim, Job, Outcome, Queue};

/// Maximum length of a text in the log, in characters.
const LOGGED_CHARS_MAX: usize = 300;

/// Drives runs for a worker.
#[derive(Debug)]
pub struct Driver {
    pub(super) dependencies: Dependencies,
    pub(super) settings: Settings,
    pub(super) transitions: Transitions,
    /// Memory for the prompts that are large, in KiB; see [`super::model_turn`].
    pub(super) prompt_memory: Arc<Semaphore>,
    /// Permits for images that are scaled down; see [`super::images`].
    pub(super) scaled_images: Arc<Semaphore>,
    lease: Duration,
    queue: Arc<Queue>,
    /// The owner whose run was claimed last. The next claim starts after this owner.
    last_owner: std::sync::Mutex<String>,
}

/// A run to drive.
#[derive(Debug)]
pub struct RunWork {
    run: Run,
    version: i64,
    lease: i64,
    /// Number of attempts since the run last made progress, including this one.
    attempts: u32,
    /// Whether the previous attempt has failed, and its server has stored that.
    has_failed: bool,
    /// The progress of the run, unless it must be loaded.
    progress: Option<Progress>,
    /// The published snapshot, owned here because the registry holds only weak references.
    live: Option<Arc<Live>>,
    /// All messages of the thread, if it was created together with the run.
    thread: Option<Vec<Message>>,
}

impl RunWork {
    /// Creates the work for a run that was leased by the commit that created or resumed it.
    #[must_use]
    pub fn leased(current: Current, live: Arc<Live>, thread: Option<Vec<Message>>) -> Claim<Box<Self>> {
        let Current { progress, version, lease } = current;
        let run = progress.run.clone();
        Claim {
            lease: Lease { id: run.spec.id.to_string(), number: lease },
            attempts: 1,
            last_failure: None,
            work: Box::new(Self {
                run,
                version,
                lease,
                attempts: 1,
                has_failed: false,
                progress: Some(progress),
                live: Some(live),
                thread,
            }),
        }
    }
}

/// A run that this server drives.
pub(super) struct LeasedRun {
    pub current: Current,
    pub live: Arc<Live>,
    pub thread: Option<Vec<Message>>,
    /// The tokens that are reserved for the current turn.
    pub reservation: Option<Reservation>,
    /// The model server of the current turn.
    pub route: Option<Route>,
    /// The cause of a failure, for the log, if the text for the client may have text of the model or of its server.
    pub cause: Option<llm::Cause>,
}

/// Why a run is no longer driven.
#[derive(Debug)]
pub(super) enum DriveError {
    /// Another server has claimed the run, or a client has deleted it.
    LeaseLost,
    /// A request or the sweeper has ended the run, and the end is published.
    EndedElsewhere,
    /// The server is stopping.
    Stopping,
    /// The attempt failed.
    Failed(String),
}

impl From<store::Error> for DriveError {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Stale => Self::LeaseLost,
            error => Self::Failed(error.to_string()),
        }
    }
}

/// Marks a run as driven by a worker of this server, until this is dropped.
struct Driven(Arc<Live>);

impl Driven {
    fn new(live: Arc<Live>) -> Self {
        live.set_driven(true);
        Self(live)
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        self.0.set_driven(false);
    }
}

impl Driver {
    /// Creates a driver that leases runs for the duration `lease`, and wakes `queue` when the next run of a thread is due.
    #[must_use]
    pub fn new(
        dependencies: Dependencies,
        settings: Settings,
        transitions: Transitions,
        lease: Duration,
        queue: Arc<Queue>,
    ) -> Self {
        let prompt_memory = Arc::new(Semaphore::new(settings.prompt_memory_max / 1024));
        let scaled_images = Arc::new(Semaphore::new(SCALED_AT_ONCE_MAX));
        let last_owner = std::sync::Mutex::default();
        Self { dependencies, settings, transitions, prompt_memory, scaled_images, lease, queue, last_owner }
    }

    /// Makes the longest-waiting run of a thread due, if there is one. Called after the previous run has ended.
    pub async fn promote_next_run(&self, run: &Run) {
        if !self.settings.queues_on_busy_thread() {
            return;
        }
        match self.dependencies.store.promote_run(&run.spec.thread_id).await {
            Ok(Some(_)) => self.queue.wake(),
            Ok(None) => {}
            // The sweeper will promote it.
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "failed to promote the next run of a thread");
            }
        }
    }

    fn owner(&self) -> std::sync::MutexGuard<'_, String> {
        self.last_owner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn run_to_rest(&self, work: &mut RunWork, attempt: &Attempt) -> Result<(), DriveError> {
        let live = work.live.take().unwrap_or_else(|| self.transitions.registry().open(&work.run.spec.id));
        let _driven = Driven::new(live.clone());
        let began = Instant::now();
        let is_claimed = work.progress.is_none();
        let progress = match work.progress.take() {
            Some(progress) => progress,
            None => self.load_progress(work).await?,
        };
        let current = Current { progress, version: work.version, lease: work.lease };
        let mut run =
            LeasedRun { current, live, thread: work.thread.take(), reservation: None, route: None, cause: None };
        if is_claimed {
            let is_started = matches!(run.current.progress.run.state, RunState::InProgress { .. });
            if is_started && !work.has_failed {
                let attempts = work.attempts;
                tracing::warn!(attempts, "run taken over from a server that was lost or has stopped");
            }
            let LeasedRun { current, live, .. } = &run;
            let _gate = live.gate.lock().await;
            live.publish(&current.progress, current.version, current.lease);
        }
        let outcome = self.perform_effects(&mut run, attempt, is_claimed).await;
        match outcome {
            Ok(()) | Err(DriveError::EndedElsewhere) => {
                self.transitions.registry().forget(&work.run.spec.id, &run.live);
                let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                log_rest(&run, duration_ms, outcome.is_ok());
                Ok(())
            }
            Err(DriveError::Stopping) => {
                self.save(&run).await;
                run.live.fail(Transitions::stopping_error(&work.run.spec.id));
                Err(DriveError::Stopping)
            }
            Err(error) => Err(error),
        }
    }

    /// Performs the effects of the state machine until the run has ended or requires action.
    async fn perform_effects(
        &self,
        run: &mut LeasedRun,
        attempt: &Attempt,
        is_claimed: bool,
    ) -> Result<(), DriveError> {
        let mut effect = match &run.current.progress.run.state {
            _ if !is_claimed => Effect::CallModel,
            RunState::Queued { .. } | RunState::InProgress { .. } => {
                let is_overdue = run.current.progress.run.is_overdue(self.dependencies.clock.now());
                let usage = Usage::default();
                let input = if is_overdue { Input::DeadlinePassed { usage } } else { Input::Claimed };
                Box::pin(self.apply(run, attempt, input)).await?
            }
            RunState::Cancelling { .. } => {
                Box::pin(self.apply(run, attempt, Input::Stopped { usage: Usage::default() })).await?
            }
            // Not expected: such a run is never due.
            RunState::RequiresAction { .. }
            | RunState::Cancelled { .. }
            | RunState::Failed { .. }
            | RunState::Completed { .. }
            | RunState::Incomplete { .. }
            | RunState::Expired { .. } => {
                self.clear_lease(run).await?;
                Effect::AwaitClient
            }
        };
        loop {
            effect = match effect {
                Effect::CallModel | Effect::ReadAnswer => {
                    let input = self.model_turn(run, attempt).await?;
                    let effect = Box::pin(self.apply(run, attempt, input)).await?;
                    // The turn is recorded, and no longer needs a reservation.
                    run.reservation = None;
                    effect
                }
                Effect::RunTools => {
                    run.route = None;
                    let input = self.run_tools(run, attempt).await?;
                    Box::pin(self.apply(run, attempt, input)).await?
                }
                // The model call has already ended when the driver learns of the cancellation.
                Effect::StopModel => {
                    Box::pin(self.apply(run, attempt, Input::Stopped { usage: Usage::default() })).await?
                }
                Effect::Enqueue => {
                    self.queue.wake();
                    return Ok(());
                }
                Effect::AwaitClient | Effect::Finish => return Ok(()),
            };
        }
    }

    /// Applies an input. If the run was changed concurrently, reloads it and applies the input that follows from the change.
    ///
    /// Callers box the future, so that a run that waits for its model does not hold the memory of a commit.
    pub(super) async fn apply(
        &self,
        run: &mut LeasedRun,
        attempt: &Attempt,
        input: Input,
    ) -> Result<Effect, DriveError> {
        let _critical = attempt.critical();
        let mut input = input;
        loop {
            let initiator = Initiator::Driver(attempt.stopping());
            let usage = input.usage();
            match self.transitions.apply(&run.current, vec![input], next_lease, initiator).await {
                Ok((current, effect)) => {
                    run.current = current;
                    if effect == Effect::Finish {
                        self.promote_next_run(&run.current.progress.run).await;
                    }
                    return Ok(effect);
                }
                Err(transition::Error::Stale) => {
                    let spec = run.current.progress.run.spec.clone();
                    let found =
                        self.retry(|| self.dependencies.store.run(&spec.scope, &spec.thread_id, &spec.id)).await?;
                    input = self.reload(run, found, usage).await?;
                }
                Err(transition::Error::Invalid(error)) => return Err(DriveError::Failed(error.to_string())),
                Err(transition::Error::Store(error)) if attempt.stopping().is_cancelled() => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "run released without its newest text");
                    return Err(DriveError::Stopping);
                }
                Err(transition::Error::Store(error)) => return Err(error.into()),
            }
        }
    }

    /// Loads a concurrent change of the run, and returns the input that follows from it. The current turn has used
    /// `usage`.
    pub(super) async fn reload(
        &self,
        run: &mut LeasedRun,
        found: Option<Versioned>,
        usage: Usage,
    ) -> Result<Input, DriveError> {
        let spec = &run.current.progress.run.spec;
        let Some(found) = found else {
            self.record_deleted_call(run, usage).await;
            run.live.fail(ApiError::new(
                Kind::NotFound,
                format!("Thread {} was deleted while run {} was active.", spec.thread_id, spec.id),
            ));
            return Err(DriveError::LeaseLost);
        };
        if found.lease != run.current.lease {
            return Err(DriveError::LeaseLost);
        }
        if matches!(found.run.state, RunState::Cancelling { .. }) {
            // The text in memory is newer than the stored text.
            run.current.progress.run = found.run;
            run.current.version = found.version;
            let _gate = run.live.gate.lock().await;
            run.live.publish(&run.current.progress, run.current.version, run.current.lease);
            return Ok(Input::Stopped { usage });
        }
        if found.run.state.has_ended() {
            run.current = self.retry(|| self.transitions.load(found.clone())).await?;
            let _gate = run.live.gate.lock().await;
            run.live.publish(&run.current.progress, run.current.version, run.current.lease);
            return Err(DriveError::EndedElsewhere);
        }
        Err(DriveError::LeaseLost)
    }

    /// Records the call of a run that was deleted, and whose commit therefore records nothing.
    async fn record_deleted_call(&self, run: &LeasedRun, usage: Usage) {
        if usage == Usage::default() {
            return;
        }
        let call = ModelCall::of_run(&run.current.progress.run.spec, usage, false);
        if let Err(error) = self.retry(|| self.dependencies.store.record_call(&call)).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, tokens = usage.total_tokens, "failed to record the usage of a deleted run");
        }
    }

    /// Retries while the database is unavailable. The attempt cancels this when its lease is lost.
    pub(super) async fn retry<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, store::Error>
    where
        F: Future<Output = Result<T, store::Error>>,
    {
        for pause in retry_pauses() {
            match attempt().await {
                Err(error @ store::Error::Unavailable(_)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "database unavailable; retrying");
                    tokio::time::sleep(pause).await;
                }
                other => return other,
            }
        }
        unreachable!("the pauses have no end")
    }

    async fn load_progress(&self, work: &RunWork) -> Result<Progress, DriveError> {
        let store = &self.dependencies.store;
        let (steps, message) = self.retry(|| store.progress(&work.run.spec.id)).await?;
        Ok(Progress { run: work.run.clone(), steps, message })
    }

    /// Clears the lease of a run that needs no driver.
    async fn clear_lease(&self, run: &LeasedRun) -> Result<(), DriveError> {
        let Current { progress, version, .. } = &run.current;
        let commit = store::Commit {
            run: &progress.run,
            version: *version,
            next_lease: NextLease::None,
            made_progress: false,
            steps: &[],
            removed_steps: &[],
            new_message: None,
            changed_message: None,
            calls: &[],
        };
        self.dependencies.store.commit(commit).await?;
        Ok(())
    }

    /// Saves the newest text of a run that is released.
    async fn save(&self, run: &LeasedRun) {
        let Current { progress, version, .. } = &run.current;
        let Some(message) = &progress.message else { return };
        let text = SavedText { run: &progress.run.spec.id, version: *version, message };
        if let Err(error) = self.dependencies.store.save_messages(&[text]).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "failed to save the text of a released run");
        }
    }
}

/// Logs that a run has ended or requires action. If it has failed here, logs the cause.
fn log_rest(run: &LeasedRun, duration_ms: u64, has_ended_here: bool) {
    let Run { state, usage, .. } = &run.current.progress.run;
    let tokens = usage.total_tokens;
    if let RunState::Failed { error, .. } = state
        && has_ended_here
    {
        let bounded = |text: &str| -> String { text.chars().take(LOGGED_CHARS_MAX).collect() };
        let cause = bounded(run.cause.as_ref().map_or(error.message.as_str(), |cause| &cause.for_log));
        let status = run.cause.as_ref().and_then(|cause| cause.status);
        let upstream = run.route.as_ref().map(|route| route.server.name());
        let model = run.route.as_ref().map(|route| bounded(&route.model));
        tracing::warn!(code = error.code.name(), upstream, model, status, cause, duration_ms, tokens, "run failed");
        return;
    }
    let reason = match state {
        RunState::Incomplete { reason, .. } => Some(reason.name()),
        _ => None,
    };
    let what = if state.has_ended() { "run ended" } else { "run requires action" };
    tracing::info!(status = state.status(), reason, duration_ms, tokens, "{what}");
}

/// Returns the lease of a run whose driver performs this effect next.
fn next_lease(effect: Effect) -> NextLease {
    match effect {
        Effect::CallModel | Effect::ReadAnswer | Effect::RunTools | Effect::StopModel => NextLease::Keep,
        // The driver does not resume runs.
        Effect::Enqueue => NextLease::Due,
        Effect::AwaitClient | Effect::Finish => NextLease::None,
    }
}

#[async_trait]
impl Job for Driver {
    type Work = Box<RunWork>;

    const KIND: JobKind = JobKind::Run;

    fn span(&self, work: &Box<RunWork>) -> tracing::Span {
        let spec = &work.run.spec;
        tracing::info_span!("run", run.id = %spec.id, thread.id = %spec.thread_id)
    }

    async fn claim(&self, except: &[String], attempts_max: u32) -> Result<Option<Claim<Box<RunWork>>>, store::Error> {
        let except: Vec<RunId> = except.iter().map(RunId::from_stored).collect();
        let after_owner = self.owner().clone();
        let claimed = self.dependencies.store.claim_run(self.lease, &after_owner, &except, attempts_max).await?;
        let Some(ClaimedRun { versioned, attempts, last_failure, owner }) = claimed else { return Ok(None) };
        *self.owner() = owner;
        let Versioned { run, version, lease, .. } = versioned;
        let has_failed = last_failure.is_some();
        Ok(Some(Claim {
            lease: Lease { id: run.spec.id.to_string(), number: lease },
            attempts,
            last_failure,
            work: Box::new(RunWork {
                run,
                version,
                lease,
                attempts,
                has_failed,
                progress: None,
                live: None,
                thread: None,
            }),
        }))
    }

    async fn drive(&self, work: &mut Box<RunWork>, attempt: &Attempt) -> Outcome {
        match self.run_to_rest(work, attempt).await {
            Ok(()) => Outcome::Done,
            Err(DriveError::LeaseLost | DriveError::EndedElsewhere) => Outcome::LeaseLost,
            Err(DriveError::Stopping) => Outcome::Stopped,
            Err(DriveError::Failed(cause)) => Outcome::Failed(cause),
        }
    }

    /// Fails the run, or cancels it if its cancellation was requested.
    async fn give_up(&self, work: Box<RunWork>, attempts: u32, cause: &str) -> Result<(), store::Error> {
        let spec = work.run.spec.clone();
        let message = format!("The run was attempted {attempts} times without completing. Last cause: {cause}.");
        loop {
            let Some(found) = self.dependencies.store.run(&spec.scope, &spec.thread_id, &spec.id).await? else {
                return Ok(());
            };
            let usage = Usage::default();
            let input = match &found.run.state {
                RunState::Queued { .. } | RunState::InProgress { .. } => {
                    let error = LastError { code: ErrorCode::ServerError, message: message.clone() };
                    Input::Failed { error, usage }
                }
                RunState::Cancelling { .. } => Input::Stopped { usage },
                _ => return Ok(()),
            };
            let is_failure = matches!(input, Input::Failed { .. });
            let current = self.transitions.load(found).await?;
            match self.transitions.apply(&current, vec![input], |_| NextLease::None, Initiator::Service).await {
                Ok((current, _)) => {
                    let cause: String = cause.chars().take(LOGGED_CHARS_MAX).collect();
                    let code = is_failure.then(|| ErrorCode::ServerError.name());
                    let what = if is_failure { "run failed" } else { "run cancelled after failed attempts" };
                    tracing::warn!(code, attempts, cause, "{what}");
                    self.promote_next_run(&current.progress.run).await;
                    return Ok(());
                }
                Err(transition::Error::Stale) => {}
                Err(transition::Error::Invalid(_)) => return Ok(()),
                Err(transition::Error::Store(error)) => return Err(error),
            }
        }
    }
}
