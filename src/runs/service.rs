//! What handlers call: creates, resumes, cancels and retrieves runs.
//!
//! The part of a request that changes a run completes even if the client disconnects.

use std::sync::Arc;

use super::drive::{Driver, RunWork};
use super::machine::{Effect, Input, Progress};
use super::stream::{Listener, Registry, Transcript};
use super::transition::{self, Current, Initiator, Transitions};
use super::{Dependencies, Settings, sweeper};
use crate::access::Principal;
use crate::api::error::{Error, Kind};
use crate::api::id::Id;
use crate::api::run::{RunOrigin, RunState, ToolOutput};
use crate::api::run_step::StepState;
use crate::api::tool::{FunctionCall, NewResources, ToolCall, ToolResources};
use crate::api::usage::Usage;
use crate::api::{
    CreateRun, CreateThread, CreateThreadAndRun, Message, ModifyRun, Page, PageQuery, Run, RunId, Scope,
    SubmitToolOutputs, Thread, ThreadId, Timestamp,
};
use crate::store::{self, FIRST_VERSION, NewRun, NextLease, RunContext, Start, Versioned};
use crate::work::{self, Queue, Worker};

/// The number of the lease under which a run is created in progress.
const FIRST_LEASE: i64 = 1;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The request was rejected with this error.
    #[error(transparent)]
    Rejected(#[from] Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The operations on runs that handlers call. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RunService {
    pub(super) dependencies: Dependencies,
    pub(super) settings: Settings,
    pub(super) transitions: Transitions,
    pub(super) driver: Arc<Driver>,
    pub(super) worker: Arc<Worker<Driver>>,
    pub(super) queue: Arc<Queue>,
}

/// A created or resumed run, and its stream if it was requested.
#[derive(Debug)]
pub struct CreatedRun {
    /// The run, queued.
    pub run: Run,
    /// Its events from the start.
    pub listener: Option<Listener>,
    /// Whether files were added to a vector store with it.
    pub adds_files: bool,
}

/// A new run and what is stored with it.
struct NewRunParts {
    run: Run,
    /// The thread, if the request creates it.
    thread: Option<Thread>,
    messages: Vec<Message>,
    /// What is created with the thread, and the files that the messages attach to it.
    new: NewResources,
    /// The owner of the run. Runs are claimed from the owners in turn.
    owner: String,
    /// Maximum number of active runs of the project; 0: no limit.
    active_runs_max: u64,
    streamed: bool,
}

impl RunService {
    /// Creates the service and its worker; `work` sets the number of concurrent runs and the duration of their leases.
    #[must_use]
    pub fn new(dependencies: Dependencies, settings: Settings, work: work::Settings) -> Self {
        let transitions = Transitions::new(dependencies.clone(), Arc::new(Registry::default()));
        let queue = Arc::new(Queue::default());
        let driver =
            Driver::new(dependencies.clone(), settings.clone(), transitions.clone(), work.lease, queue.clone());
        let driver = Arc::new(driver);
        let metrics = dependencies.metrics.clone();
        let worker = Worker::new(driver.clone(), dependencies.store.clone(), queue.clone(), work, metrics);
        Self { dependencies, settings, transitions, driver, worker, queue }
    }

    /// Returns the worker that drives runs on this server.
    #[must_use]
    pub fn worker(&self) -> &Arc<Worker<Driver>> {
        &self.worker
    }

    /// Returns whether the server is shutting down and accepts no new runs.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.worker.is_draining()
    }

    /// Returns whether a thread with an active run accepts messages and queues further runs.
    #[must_use]
    pub fn queues_on_busy_thread(&self) -> bool {
        self.settings.queues_on_busy_thread()
    }

    /// Creates a run on a thread. If another run is active and the settings allow it, the new run waits until
    /// the runs before it have ended.
    ///
    /// # Errors
    /// 404 if the thread or the assistant does not exist; 400 if another run is active, or if there are neither messages
    /// nor instructions.
    pub async fn create_run(
        &self,
        principal: &Principal,
        thread_id: &ThreadId,
        request: CreateRun,
    ) -> Result<CreatedRun, Failure> {
        self.check_draining()?;
        let store = &self.dependencies.store;
        let context = store.run_context(&principal.scope, Some(thread_id), &request.assistant_id).await?;
        if context.thread.is_none() {
            return Err(thread_id.not_found().into());
        }
        let resources = (ToolResources::default(), NewResources::default());
        self.create(principal, None, thread_id, request, resources, context).await
    }

    /// Creates a thread and a run on it.
    ///
    /// # Errors
    /// Those of [`RunService::create_run`].
    pub async fn create_thread_and_run(
        &self,
        principal: &Principal,
        request: CreateThreadAndRun,
    ) -> Result<CreatedRun, Failure> {
        self.check_draining()?;
        let Dependencies { store, clock, ids, .. } = &self.dependencies;
        let (thread, run, tool_resources) = request.split();
        let thread = thread.unwrap_or(CreateThread { messages: None, tool_resources: None, metadata: None });
        let (thread, messages, new) = thread.into_thread(ids, clock.now());
        let context = store.run_context(&principal.scope, None, &run.assistant_id).await?;
        let context = RunContext { has_messages: !messages.is_empty(), ..context };
        let run = CreateRun { additional_messages: Some(messages), ..run };
        let thread_id = thread.id.clone();
        self.create(principal, Some(thread), &thread_id, run, (tool_resources, new), context).await
    }

    fn check_draining(&self) -> Result<(), Error> {
        if self.is_draining() {
            return Err(Error::new(Kind::Unavailable, "The server is stopping and starts no new runs."));
        }
        Ok(())
    }

    async fn create(
        &self,
        principal: &Principal,
        thread: Option<Thread>,
        thread_id: &ThreadId,
        request: CreateRun,
        (tool_resources, mut new_resources): (ToolResources, NewResources),
        context: RunContext,
    ) -> Result<CreatedRun, Failure> {
        let Dependencies { clock, ids, .. } = &self.dependencies;
        let assistant = context.assistant.ok_or_else(|| request.assistant_id.not_found())?;
        let streamed = request.stream == Some(true);
        let now = clock.now();
        let origin = RunOrigin {
            scope: principal.scope.clone(),
            api_key_id: principal.api_key_id.clone(),
            thread_id,
            assistant: &assistant,
            tool_resources,
            now,
            expires_after_s: self.settings.expires_after_s,
        };
        let (run, messages) = request.into_run(ids, origin);
        run.spec.tool_choice.check(&run.spec.tools)?;
        if !context.has_messages && messages.is_empty() && run.spec.instructions.is_empty() {
            return Err(Error::invalid(
                "Run creation requires a Thread with a user message or an assistant with instructions.",
            )
            .code("invalid_thread")
            .into());
        }
        let messages: Vec<_> = messages.into_iter().map(|message| message.into_message(ids, thread_id, now)).collect();
        let param = if thread.is_some() { "thread.messages" } else { "additional_messages" };
        new_resources.attach(&messages, param, ids, now)?;
        if let Some(reached) = self.dependencies.tokens.reached(&principal.scope).await? {
            return Err(reached.error().into());
        }
        let active_runs_max = self.dependencies.limits.of(&principal.scope).await?.active_runs;
        let owner = principal.owner.clone();
        let new = NewRunParts { run, thread, messages, new: new_resources, owner, active_runs_max, streamed };
        let service = self.clone();
        self.worker.uninterrupted(async move { service.store_and_start(new).await }).await
    }

    /// Stores a new run and starts it. If a slot is free, the run is created in progress, which saves a claim; otherwise it
    /// is created queued, and a worker claims it later.
    async fn store_and_start(&self, new: NewRunParts) -> Result<CreatedRun, Failure> {
        let NewRunParts { run, mut thread, messages, new, owner, active_runs_max, streamed } = new;
        let queued = Progress::new(run.clone());
        let mut slot = self.worker.slot();
        let started = match &slot {
            Some(_) => self.transitions.step(&queued, vec![Input::Claimed]).map_err(|error| invalid(&error))?.progress,
            None => queued.clone(),
        };
        let start = if slot.is_some() { Start::Leased(self.worker.lease()) } else { Start::Due };
        let row = NewRun {
            run: &started.run,
            thread: thread.as_ref(),
            messages: &messages,
            new: &new,
            owner: &owner,
            active_runs_max,
            start,
        };
        let is_busy = match self.transitions.create(&row).await {
            Err(store::Error::ThreadBusy(_)) if self.queues_on_busy_thread() => {
                slot = None;
                let waiting = NewRun { run: &run, start: Start::Waiting, ..row };
                let stored = self.transitions.create(&waiting).await;
                stored.map_err(|error| busy_thread_error(error, &run.spec.thread_id, Addition::Run))?;
                true
            }
            stored => {
                stored.map_err(|error| busy_thread_error(error, &run.spec.thread_id, Addition::Run))?;
                false
            }
        };
        if let (Some(created), Some(_)) = (&mut thread, &new.attachments) {
            // The files of its messages are attached.
            match self.dependencies.store.thread(&run.spec.scope, &created.id).await {
                Ok(Some(stored)) => *created = stored,
                // It was deleted concurrently.
                Ok(None) => {}
                // The run is stored, so the request succeeds; only the event `thread.created` lacks the attached files.
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, thread.id = %created.id, "failed to read a new thread with its attached files");
                }
            }
        }
        let (progress, lease) = if slot.is_some() { (started, FIRST_LEASE) } else { (queued, 0) };
        let live = self.transitions.registry().open(&run.spec.id);
        let whole_thread = thread.is_some().then_some(messages);
        live.publish(&progress, FIRST_VERSION, lease);
        if let Some(thread) = thread {
            live.publish_thread(thread);
        }
        let listener = streamed.then(|| live.subscribe(Transcript::of_new_run()));
        match slot {
            Some(slot) => {
                let current = Current { progress, version: FIRST_VERSION, lease };
                self.worker.start(slot, RunWork::leased(current, live, whole_thread));
            }
            // The active run may have ended before this run was stored, and then nothing else promotes this run.
            None if is_busy => self.driver.promote_next_run(&run).await,
            None => self.queue.wake(),
        }
        Ok(CreatedRun { run, listener, adds_files: new.search_files().next().is_some() })
    }

    /// Returns a run. Expires it first if its deadline has passed.
    ///
    /// # Errors
    /// 404 if the run does not exist.
    pub async fn run(&self, scope: &Scope, thread: &ThreadId, id: &RunId) -> Result<Run, Failure> {
        let found = self.find(scope, thread, id).await?;
        if self.may_expire(&found) {
            return Ok(self.expire(found).await?);
        }
        Ok(found.run)
    }

    async fn find(&self, scope: &Scope, thread: &ThreadId, id: &RunId) -> Result<Versioned, Failure> {
        Ok(self.dependencies.store.run(scope, thread, id).await?.ok_or_else(|| id.not_found())?)
    }

    /// Returns a page of a thread's runs. Expires those whose deadline has passed.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list_runs(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        query: &PageQuery,
    ) -> Result<Page<Run>, store::Error> {
        let Dependencies { store, clock, .. } = &self.dependencies;
        let mut page = store.list_runs(scope, thread, query).await?;
        let now = clock.now();
        for run in page.data.iter_mut().filter(|run| run.is_overdue(now)) {
            match store.run(scope, thread, &run.spec.id).await? {
                Some(found) if self.may_expire(&found) => *run = self.expire(found).await?,
                Some(_) | None => {}
            }
        }
        Ok(page)
    }

    /// Changes a run's metadata.
    ///
    /// # Errors
    /// 404 if the run does not exist; 400 if it is in progress, as in the recordings of OpenAI's service.
    pub async fn modify_run(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        id: &RunId,
        request: ModifyRun,
    ) -> Result<Run, Failure> {
        let mut run = self.run(scope, thread, id).await?;
        if let RunState::InProgress { .. } = run.state {
            let status = run.state.status();
            return Err(Error::invalid(format!("Cannot update run with status '{status}'.")).into());
        }
        request.metadata.apply(&mut run.metadata);
        let modified = self.dependencies.store.modify_run(scope, thread, id, &run.metadata).await?;
        Ok(modified.ok_or_else(|| id.not_found())?)
    }

    /// Requests the cancellation of a run, and returns the run as `cancelling`. It becomes `cancelled` when its driver has
    /// stopped, or immediately if it has no driver.
    ///
    /// # Errors
    /// 404 if the run does not exist; 400 if it has ended or is already being cancelled.
    pub async fn cancel_run(&self, scope: &Scope, thread: &ThreadId, id: &RunId) -> Result<Run, Failure> {
        let (service, scope, thread, id) = (self.clone(), scope.clone(), thread.clone(), id.clone());
        self.worker.uninterrupted(async move { service.cancel(&scope, &thread, &id).await }).await
    }

    async fn cancel(&self, scope: &Scope, thread: &ThreadId, id: &RunId) -> Result<Run, Failure> {
        loop {
            let found = self.find(scope, thread, id).await?;
            if self.may_expire(&found) {
                self.expire(found).await?;
                continue;
            }
            if found.run.state.has_ended() || matches!(found.run.state, RunState::Cancelling { .. }) {
                let status = found.run.state.status();
                return Err(Error::invalid(format!("Cannot cancel run with status '{status}'.")).into());
            }
            let is_driven = found.due_at.is_some_and(|due_at| due_at > self.dependencies.clock.now());
            let started_at = found.run.state.started_at();
            let current = self.transitions.load(found).await?;
            let (inputs, next_lease) = if is_driven {
                (vec![Input::CancelRequested], NextLease::Keep)
            } else {
                (vec![Input::CancelRequested, Input::Stopped { usage: Usage::default() }], NextLease::None)
            };
            match self.transitions.apply(&current, inputs, |_| next_lease, Initiator::Service).await {
                Ok((current, effect)) => {
                    self.perform(effect, &current.progress.run).await;
                    // OpenAI's service returns `cancelling`, even if the run is already cancelled.
                    return Ok(Run { state: RunState::Cancelling { started_at }, ..current.progress.run });
                }
                Err(transition::Error::Stale | transition::Error::Invalid(_)) => {}
                Err(transition::Error::Store(error)) => return Err(error.into()),
            }
        }
    }

    /// Stores the outputs of all calls of a run and resumes the run; returns it as queued.
    ///
    /// A retry (`is_retry`) of a request that already succeeded with the same outputs succeeds again.
    ///
    /// # Errors
    /// 404 if the run does not exist; 400 if it requires no outputs, or if there is not exactly one output for each call.
    /// Of several concurrent callers, only one succeeds.
    pub async fn submit_tool_outputs(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        id: &RunId,
        request: SubmitToolOutputs,
        is_retry: bool,
    ) -> Result<CreatedRun, Failure> {
        if self.is_draining() {
            let message = "The server is stopping and accepts no tool outputs.";
            return Err(Error::new(Kind::Unavailable, message).into());
        }
        let (service, scope, thread, id) = (self.clone(), scope.clone(), thread.clone(), id.clone());
        self.worker.uninterrupted(async move { service.submit(&scope, &thread, &id, request, is_retry).await }).await
    }

    async fn submit(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        id: &RunId,
        request: SubmitToolOutputs,
        is_retry: bool,
    ) -> Result<CreatedRun, Failure> {
        let streamed = request.stream == Some(true);
        loop {
            let mut found = self.find(scope, thread, id).await?;
            if self.may_expire(&found) {
                found.run = self.expire(found.clone()).await?;
            }
            let current = self.transitions.load(found).await?;
            let RunState::RequiresAction { calls, .. } = &current.progress.run.state else {
                let before = is_retry.then(|| before_outputs(&current.progress, &request.tool_outputs)).flatten();
                let before = before.ok_or_else(|| not_accepting(&current.progress.run))?;
                return Ok(self.resubmitted(&current, &before, streamed));
            };
            let outputs = outputs_in_order(calls, request.tool_outputs.clone())?;
            match self.resume(&current, outputs, streamed).await {
                Err(transition::Error::Stale) => {}
                Err(transition::Error::Invalid(error)) => return Err(invalid(&error)),
                Err(transition::Error::Store(error)) => return Err(error.into()),
                Ok(resumed) => return Ok(resumed),
            }
        }
    }

    /// Resumes a run. If a slot is free, the same commit leases the run to this server; otherwise a worker claims it later.
    async fn resume(
        &self,
        before: &Current,
        outputs: Vec<String>,
        streamed: bool,
    ) -> Result<CreatedRun, transition::Error> {
        let slot = self.worker.slot();
        let submitted = Input::OutputsSubmitted(outputs);
        let (inputs, next_lease) = match &slot {
            Some(_) => (vec![submitted, Input::Claimed], NextLease::Acquire(self.worker.lease())),
            None => (vec![submitted], NextLease::Due),
        };
        let started_at = before.progress.run.state.started_at();
        let (current, effect) = self.transitions.apply(before, inputs, |_| next_lease, Initiator::Service).await?;
        // Readers of the previous stream keep the previous snapshot; the resumed run has a new stream.
        let live = self.transitions.registry().renew(&before.progress.run.spec.id);
        live.publish(&current.progress, current.version, current.lease);
        let listener = streamed.then(|| live.subscribe(Transcript::of_resumed_run(&before.progress)));
        let run = Run { state: RunState::Queued { started_at }, ..current.progress.run.clone() };
        match slot {
            Some(slot) => self.worker.start(slot, RunWork::leased(current, live, None)),
            None => self.perform(effect, &run).await,
        }
        Ok(CreatedRun { run, listener, adds_files: false })
    }

    /// Responds to a client that has already submitted the same outputs.
    fn resubmitted(&self, current: &Current, before: &Progress, streamed: bool) -> CreatedRun {
        let run = &current.progress.run;
        let live = self.transitions.registry().open(&run.spec.id);
        if !live.is_driven() {
            live.publish(&current.progress, current.version, current.lease);
        }
        let listener = streamed.then(|| live.subscribe(Transcript::of_resumed_run(before)));
        CreatedRun { run: run.clone(), listener, adds_files: false }
    }

    /// Returns whether the deadline of a run has passed. A driver has some more seconds to end its run with the newest text.
    fn may_expire(&self, found: &Versioned) -> bool {
        let now = self.dependencies.clock.now();
        let is_driven = found.due_at.is_some_and(|due_at| due_at > now);
        let grace = if is_driven { sweeper::GRACE_S } else { 0 };
        found.run.is_overdue(Timestamp(now.0 - grace))
    }

    /// Expires a run whose deadline has passed. Returns the run, which may have ended for another reason in the meantime.
    pub(super) async fn expire(&self, found: Versioned) -> Result<Run, store::Error> {
        let before = found.run.clone();
        let usage = Usage::default();
        if let Some(run) = self.end(found, Input::DeadlinePassed { usage }).await? {
            return Ok(run);
        }
        let spec = &before.spec;
        let found = self.dependencies.store.run(&spec.scope, &spec.thread_id, &spec.id).await?;
        Ok(found.map_or(before, |found| found.run))
    }

    /// Ends a run without its driver. Returns `None` if it was changed concurrently.
    pub(super) async fn end(&self, found: Versioned, input: Input) -> Result<Option<Run>, store::Error> {
        let current = self.transitions.load(found).await?;
        match self.transitions.apply(&current, vec![input], |_| NextLease::None, Initiator::Service).await {
            Ok((current, effect)) => {
                self.perform(effect, &current.progress.run).await;
                Ok(Some(current.progress.run))
            }
            Err(transition::Error::Stale | transition::Error::Invalid(_)) => Ok(None),
            Err(transition::Error::Store(error)) => Err(error),
        }
    }

    /// Performs the effect of a transition.
    async fn perform(&self, effect: Effect, run: &Run) {
        match effect {
            Effect::StopModel => self.notify_driver(&run.spec.id).await,
            Effect::Enqueue | Effect::CallModel | Effect::RunTools => self.queue.wake(),
            Effect::Finish => self.driver.promote_next_run(run).await,
            Effect::ReadAnswer | Effect::AwaitClient => {}
        }
    }

    /// Notifies the server that drives a run. If that fails, the server notices the change within a second.
    async fn notify_driver(&self, id: &RunId) {
        // The transition has already notified a driver of this server.
        if self.transitions.registry().get(id).is_some_and(|live| live.is_driven()) {
            return;
        }
        if let Err(error) = self.dependencies.store.notify_run_changed(id).await {
            tracing::warn!(error = &error as &dyn std::error::Error, run.id = %id, "NOTIFY failed");
        }
    }

    /// Stops accepting new runs. Ends the streams of runs without a driver, unless another server can drive them.
    pub fn start_drain(&self) {
        self.worker.start_drain();
        if !self.dependencies.store.is_shared() {
            self.end_followed_streams();
        }
    }

    /// Waits until all active runs and requests have ended.
    pub async fn drained(&self) {
        self.worker.drained().await;
    }

    /// Releases the active runs to other servers, and ends the streams of runs without a driver on this server.
    pub async fn stop_now(&self) {
        self.worker.stop_now();
        self.end_followed_streams();
        self.worker.drained().await;
    }

    fn end_followed_streams(&self) {
        for live in self.transitions.registry().all().iter().filter(|live| !live.is_driven()) {
            live.fail(Transitions::stopping_error(live.run()));
        }
    }
}

/// Returns the run as it was before these outputs were submitted, or `None` if the newest outputs differ from them.
fn before_outputs(progress: &Progress, outputs: &[ToolOutput]) -> Option<Progress> {
    let index =
        progress.steps.iter().rposition(|step| step.calls_functions() && step.turn.is_some() && !step.is_open())?;
    let step = &progress.steps[index];
    let tool_calls = step.tool_calls();
    let is_same = tool_calls.len() == outputs.len()
        && tool_calls.iter().all(|call| {
            outputs.iter().any(|output| {
                output.tool_call_id.as_deref() == Some(call.id.as_str())
                    && output.output.as_deref().unwrap_or_default()
                        == call.function().and_then(|function| function.output.as_deref()).unwrap_or_default()
            })
        });
    if !is_same || !matches!(step.state, StepState::Completed { .. }) {
        return None;
    }
    let turn = step.turn.clone()?;
    let mut before = progress.clone();
    before.steps.truncate(index + 1);
    before.steps[index].state = StepState::InProgress;
    for step in before.steps.iter_mut().filter(|step| step.creates_message()) {
        step.state = StepState::InProgress;
    }
    let calls = tool_calls.iter().filter_map(ToolCall::required).collect();
    let started_at = progress.run.state.started_at().unwrap_or(progress.run.spec.created_at);
    before.run.state = RunState::RequiresAction { started_at, calls };
    if before.steps.iter().any(crate::api::RunStep::creates_message) {
        before.truncate(turn.text_bytes, turn.refusal_bytes);
    } else {
        before.message = None;
    }
    Some(before)
}

fn invalid(error: &super::machine::InvalidTransition) -> Failure {
    Error::new(Kind::Server, error.to_string()).into()
}

fn not_accepting(run: &Run) -> Failure {
    Error::invalid(format!("Runs in status \"{}\" do not accept tool outputs.", run.state.status())).into()
}

/// Returns the outputs in the order of the calls. Fails unless there is exactly one output for each call.
fn outputs_in_order(calls: &[FunctionCall], given: Vec<ToolOutput>) -> Result<Vec<String>, Error> {
    let mut given: Vec<(String, String)> = given
        .into_iter()
        .map(|output| (output.tool_call_id.unwrap_or_default(), output.output.unwrap_or_default()))
        .collect();
    let list = |ids: Vec<&str>| ids.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ");
    let expected = list(calls.iter().map(|call| call.id.as_str()).collect());
    let got = list(given.iter().map(|(id, _)| id.as_str()).collect());
    let mismatch = || Error::invalid(format!("Expected tool outputs for call_ids [{expected}], got [{got}]"));
    if given.len() != calls.len() {
        return Err(mismatch());
    }
    calls
        .iter()
        .map(|call| {
            let index = given.iter().position(|(id, _)| id == call.id.as_str()).ok_or_else(mismatch)?;
            Ok(given.swap_remove(index).1)
        })
        .collect()
}

/// What a request adds to a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addition {
    /// A message.
    Message,
    /// A run.
    Run,
}

/// Returns the client's error for a thread that does not exist or is locked. The messages are those of OpenAI's service,
/// because clients match on them.
#[must_use]
pub fn busy_thread_error(error: store::Error, thread: &ThreadId, addition: Addition) -> Failure {
    match (error, addition) {
        (store::Error::NoThread, _) => thread.not_found().into(),
        (store::Error::TooManyRuns { active, limit }, _) => {
            let message = format!(
                "Rate limit reached for active runs of the project: Limit {limit}, Active {active}. Please try again when \
                 one of them has ended."
            );
            Error::new(Kind::RateLimited, message).code("rate_limit_exceeded").retry_after(1).into()
        }
        (store::Error::ThreadBusy(run), Addition::Message) => {
            Error::invalid(format!("Can't add messages to {thread} while a run {run} is active.")).into()
        }
        (store::Error::ThreadBusy(run), Addition::Run) => {
            Error::invalid(format!("Thread {thread} already has an active run {run}.")).into()
        }
        (error, _) => error.into(),
    }
}
