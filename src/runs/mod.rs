//! Runs: what handlers ask for. The life of a run is in [`machine`]; [`executor`] drives it.

pub mod events;
pub mod executor;
pub mod machine;
pub mod prompt;
pub mod sweeper;
pub mod turn;

use std::sync::Arc;
use std::time::Duration;

use crate::api::error::{Error, Kind};
use crate::api::id::Id;
use crate::api::run::{FunctionCall, RunState, ToolOutput};
use crate::api::tool::ToolResources;
use crate::api::{
    CreateRun, CreateThread, CreateThreadAndRun, ModifyRun, Page, PageQuery, Run, RunId, StreamEvent,
    SubmitToolOutputs, Thread, ThreadId, Timestamp,
};
use crate::store::{self, FIRST_VERSION, Ground, NewRun, Versioned};

use events::Listener;
use executor::{BusyThread, Executor};
use machine::{Input, Progress};

/// How often a listener looks at the store for a run that another server drives.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// Why a request about a run was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The client can be told.
    #[error(transparent)]
    Refused(#[from] Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What handlers ask for; cheap to clone.
#[derive(Debug, Clone)]
pub struct Runs {
    pub(crate) executor: Arc<Executor>,
}

/// A run that was just created or resumed, and its stream when one was asked for.
#[derive(Debug)]
pub struct Created {
    /// The run as it began: queued.
    pub run: Run,
    /// What is told of it, from the beginning.
    pub listener: Option<Listener>,
}

impl Runs {
    /// Asks an executor on behalf of handlers.
    #[must_use]
    pub fn new(executor: Arc<Executor>) -> Self {
        Self { executor }
    }

    /// Whether the server is stopping and takes no new runs.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.executor.is_draining()
    }

    /// Whether a thread with an active run takes messages, and runs that wait.
    #[must_use]
    pub fn may_wait(&self) -> bool {
        self.executor.settings.busy_thread == BusyThread::Queue
    }

    /// Creates a run on a thread. While another one is active it waits for its turn, where the settings say so.
    ///
    /// # Errors
    /// 404 for an unknown thread or assistant; 400 while another run is active, and for an empty thread without
    /// instructions.
    pub async fn create_run(&self, thread_id: &ThreadId, request: CreateRun) -> Result<Created, Failure> {
        let ground = self.executor.parts.store.ground(Some(thread_id), &request.assistant_id).await?;
        if ground.thread.is_none() {
            return Err(thread_id.not_found().into());
        }
        self.create(None, thread_id, request, ToolResources::default(), ground).await
    }

    /// Creates a thread and a run on it.
    ///
    /// # Errors
    /// As [`Runs::create_run`].
    pub async fn create_thread_and_run(&self, request: CreateThreadAndRun) -> Result<Created, Failure> {
        let parts = &self.executor.parts;
        let (thread, run, tool_resources) = request.split();
        let thread = thread.unwrap_or(CreateThread { messages: None, tool_resources: None, metadata: None });
        let (thread, messages) = thread.into_thread(parts.ids.make(), parts.clock.now());
        let ground =
            Ground { has_messages: !messages.is_empty(), ..parts.store.ground(None, &run.assistant_id).await? };
        let run = CreateRun { additional_messages: Some(messages), ..run };
        let thread_id = thread.id.clone();
        self.create(Some(thread), &thread_id, run, tool_resources, ground).await
    }

    async fn create(
        &self,
        thread: Option<Thread>,
        thread_id: &ThreadId,
        request: CreateRun,
        tool_resources: ToolResources,
        ground: Ground,
    ) -> Result<Created, Failure> {
        let executor = &self.executor;
        let parts = &executor.parts;
        if executor.is_draining() {
            return Err(Error::new(Kind::Unavailable, "The server is stopping and takes no new runs.").into());
        }
        let assistant = ground.assistant.ok_or_else(|| request.assistant_id.not_found())?;
        let streamed = request.stream == Some(true);
        let now = parts.clock.now();
        let (run, messages) =
            request.into_run(&parts.ids, thread_id, &assistant, tool_resources, now, executor.settings.expires_after_s);
        run.spec.tool_choice.check(&run.spec.tools)?;
        if !ground.has_messages && messages.is_empty() && run.spec.instructions.is_empty() {
            return Err(Error::invalid(
                "Run creation requires a Thread with a user message or an assistant with instructions.",
            )
            .code("invalid_thread")
            .into());
        }
        let messages: Vec<_> =
            messages.into_iter().map(|message| message.into_message(&parts.ids, thread_id, now)).collect();

        // With a free slot the run is created in progress, which saves a claim; without one it is queued.
        let slot = executor.slot();
        let started = slot.as_ref().map(|_| {
            machine::step(&Progress::new(run.clone()), Input::Claimed, now, &parts.ids)
                .expect("a queued run can be claimed")
        });
        let stored = started.as_ref().map_or(&run, |started| &started.progress.run);
        let due_at = if slot.is_some() { executor.lease_end() } else { now };
        let log = executor.logs.open(&run.spec.id);
        let listener = streamed.then(|| log.listen());
        let new = NewRun { run: stored, thread: thread.as_ref(), messages: &messages, due_at: Some(due_at) };
        match parts.store.create_run(&new).await {
            Err(store::Error::ThreadBusy(_)) if self.may_wait() => {
                let waiting = NewRun { run: &run, due_at: None, ..new };
                parts.store.create_run(&waiting).await.map_err(|error| refused(error, thread_id, &Locked::Run))?;
                log.tell(machine::created(&run));
                drop(slot);
                // The run before may have ended just now, and found nobody to give its turn to.
                executor.give_turn(thread_id).await;
                return Ok(Created { run, listener });
            }
            other => other.map_err(|error| refused(error, thread_id, &Locked::Run))?,
        }

        let whole_thread = thread.is_some().then_some(messages);
        log.tell(thread.map(StreamEvent::ThreadCreated));
        log.tell(machine::created(&run));
        match (slot, started) {
            (Some(slot), Some(started)) => {
                log.tell(started.events);
                executor.start(slot, started.progress, FIRST_VERSION, log, whole_thread);
            }
            _ => executor.queue(),
        }
        Ok(Created { run, listener })
    }

    /// Gives a run; one whose time is up has expired.
    ///
    /// # Errors
    /// 404 for an unknown run.
    pub async fn run(&self, thread: &ThreadId, id: &RunId) -> Result<Run, Failure> {
        let found = self.executor.parts.store.run(thread, id).await?.ok_or_else(|| id.not_found())?;
        if self.is_ours_to_expire(&found) {
            return Ok(self.expire(found).await?);
        }
        Ok(found.run)
    }

    /// Gives a page of a thread's runs; those whose time is up have expired.
    ///
    /// # Errors
    /// As the store says.
    pub async fn list_runs(&self, thread: &ThreadId, query: &PageQuery) -> Result<Page<Run>, store::Error> {
        let parts = &self.executor.parts;
        let mut page = parts.store.list_runs(thread, query).await?;
        let now = parts.clock.now();
        for run in page.data.iter_mut().filter(|run| run.is_overdue(now)) {
            match parts.store.run(thread, &run.spec.id).await? {
                Some(found) if self.is_ours_to_expire(&found) => *run = self.expire(found).await?,
                Some(_) | None => {}
            }
        }
        Ok(page)
    }

    /// Changes a run's metadata.
    ///
    /// # Errors
    /// 404 for an unknown run; 400 while it is in progress, as recorded.
    pub async fn modify_run(&self, thread: &ThreadId, id: &RunId, request: ModifyRun) -> Result<Run, Failure> {
        let mut run = self.run(thread, id).await?;
        if let RunState::InProgress { .. } = run.state {
            let status = run.state.status();
            return Err(Error::invalid(format!("Cannot update run with status '{status}'.")).into());
        }
        request.metadata.apply(&mut run.metadata);
        let modified = self.executor.parts.store.modify_run(thread, id, &run.metadata).await?;
        Ok(modified.ok_or_else(|| id.not_found())?)
    }

    /// Asks for a run to be stopped, and gives it as `cancelling`. It is `cancelled` as soon as its executor has
    /// stopped; at once where there is none.
    ///
    /// # Errors
    /// 404 for an unknown run; 400 for one that is over or being cancelled.
    pub async fn cancel_run(&self, thread: &ThreadId, id: &RunId) -> Result<Run, Failure> {
        let parts = &self.executor.parts;
        loop {
            let now = parts.clock.now();
            let found = parts.store.run(thread, id).await?.ok_or_else(|| id.not_found())?;
            if self.is_ours_to_expire(&found) {
                self.expire(found).await?;
                continue;
            }
            if found.run.state.is_over() || matches!(found.run.state, RunState::Cancelling { .. }) {
                let status = found.run.state.status();
                return Err(Error::invalid(format!("Cannot cancel run with status '{status}'.")).into());
            }
            let driven = found.due_at.is_some_and(|due_at| due_at > now);
            let due_at = found.due_at.unwrap_or(now);
            let Some(cancelling) = self.step(found, Input::CancelRequested, Some(due_at)).await? else { continue };
            let run = cancelling.run.clone();
            if driven {
                match self.executor.logs.get(id).filter(|log| log.is_driven()) {
                    Some(log) => log.changed.notify_one(),
                    None => self.ring(id).await,
                }
            } else {
                self.step(cancelling, Input::Stopped, None).await?;
            }
            return Ok(run);
        }
    }

    /// Has the server that drives a run look at it. Should that fail, it looks of its own accord within a second.
    async fn ring(&self, id: &RunId) {
        if let Err(error) = self.executor.parts.store.ring(id).await {
            tracing::warn!(error = &error as &dyn std::error::Error, run.id = %id, "another server cannot be rung");
        }
    }

    /// Takes the client's answers to all calls of a run, and lets the run go on; gives it as queued.
    ///
    /// # Errors
    /// 404 for an unknown run; 400 when none are due, and when they are not one for each call. Of two callers at once,
    /// one wins.
    pub async fn submit_tool_outputs(
        &self,
        thread: &ThreadId,
        id: &RunId,
        request: SubmitToolOutputs,
    ) -> Result<Created, Failure> {
        let executor = &self.executor;
        let parts = &executor.parts;
        if executor.is_draining() {
            return Err(Error::new(Kind::Unavailable, "The server is stopping and takes no tool outputs.").into());
        }
        let now = parts.clock.now();
        let found = parts.store.run(thread, id).await?.ok_or_else(|| id.not_found())?;
        let run = if self.is_ours_to_expire(&found) { self.expire(found.clone()).await? } else { found.run };
        let RunState::RequiresAction { calls, .. } = &run.state else {
            return Err(not_accepting(&run));
        };
        let outputs = outputs_in_order(calls, request.tool_outputs)?;

        let (steps, message) = parts.store.parts(id).await?;
        let progress = Progress { run, steps, message };
        let invalid = |error: machine::InvalidTransition| Error::new(Kind::Server, error.to_string());
        let resumed = machine::step(&progress, Input::OutputsSubmitted(outputs), now, &parts.ids).map_err(invalid)?;
        let queued = resumed.progress.run.clone();

        // With a free slot the run goes on in the same commit; without one it waits.
        let slot = executor.slot();
        let (transition, due_at) = match &slot {
            Some(_) => {
                let claimed = machine::step(&resumed.progress, Input::Claimed, now, &parts.ids).map_err(invalid)?;
                (resumed.and(claimed), executor.lease_end())
            }
            None => (resumed, now),
        };
        let committed = match parts.store.commit(transition.commit(found.version, Some(due_at))).await {
            Ok(committed) => committed,
            Err(store::Error::Stale) => {
                let now = parts.store.run(thread, id).await?.ok_or_else(|| id.not_found())?;
                return Err(not_accepting(&now.run));
            }
            Err(error) => return Err(error.into()),
        };
        let log = executor.logs.renew(id);
        log.begin_at(&progress);
        let listener = (request.stream == Some(true)).then(|| log.listen());
        log.tell(transition.events);
        match slot {
            Some(slot) => executor.start(slot, transition.progress, committed.version, log, None),
            None => executor.queue(),
        }
        Ok(Created { run: queued, listener })
    }

    /// Whether a run's time is up and no executor is about to end it, with its newest text.
    fn is_ours_to_expire(&self, found: &Versioned) -> bool {
        let now = self.executor.parts.clock.now();
        let late = Timestamp(now.0 - sweeper::HEAD_START_S);
        let is_driven = found.due_at.is_some_and(|due_at| due_at > now);
        found.run.is_overdue(if is_driven { late } else { now })
    }

    /// Ends a run whose time is up, and gives what it has become: expired, or the end that came first.
    pub(crate) async fn expire(&self, found: Versioned) -> Result<Run, store::Error> {
        let spec = found.run.spec.clone();
        let before = found.run.clone();
        if let Some(ended) = self.step(found, Input::DeadlinePassed, None).await? {
            if let Some(log) = self.executor.logs.get(&spec.id) {
                log.changed.notify_one();
            }
            return Ok(ended.run);
        }
        let found = self.executor.parts.store.run(&spec.thread_id, &spec.id).await?;
        Ok(found.map_or(before, |found| found.run))
    }

    /// Steps a run from outside its executor: writes, then tells. Gives nothing when somebody else was faster.
    async fn step(
        &self,
        found: Versioned,
        input: Input,
        due_at: Option<Timestamp>,
    ) -> Result<Option<Versioned>, store::Error> {
        let parts = &self.executor.parts;
        let id = found.run.spec.id.clone();
        let log = self.executor.logs.get(&id);
        let _gate = match &log {
            Some(log) => Some(log.gate.lock().await),
            None => None,
        };
        let (steps, message) = parts.store.parts(&id).await?;
        let progress = Progress { run: found.run, steps, message };
        let Ok(transition) = machine::step(&progress, input, parts.clock.now(), &parts.ids) else { return Ok(None) };
        let due_at = if transition.progress.run.state.is_over() { None } else { due_at };
        match parts.store.commit(transition.commit(found.version, due_at)).await {
            Ok(committed) => {
                let transition = transition.written(&committed);
                if let Some(log) = &log {
                    log.tell(transition.events);
                }
                if transition.progress.run.state.is_over() {
                    self.executor.give_turn(&transition.progress.run.spec.thread_id).await;
                }
                Ok(Some(Versioned { run: transition.progress.run, version: committed.version, due_at }))
            }
            Err(store::Error::Stale) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until there may be more to tell of the run that `listener` follows. A run that no executor here drives is
    /// looked up in the store, so that its stream goes on wherever it is driven, and ends when it does.
    pub async fn follow(&self, listener: &mut Listener, thread: &ThreadId, id: &RunId) {
        let log = listener.log().clone();
        loop {
            if log.is_driven() {
                return listener.wait().await;
            }
            tokio::select! {
                () = listener.wait() => return,
                () = self.executor.stopped() => return log.tell([executor::stopping(id)]),
                () = tokio::time::sleep(FOLLOW_EVERY) => {}
            }
            match self.look(thread, id).await {
                Ok(Some(progress)) => {
                    let _gate = log.gate.lock().await;
                    if !log.is_driven() {
                        log.tell_missing(&progress);
                    }
                }
                Ok(None) => log.tell([StreamEvent::Error(id.not_found())]),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, run.id = %id, "a run cannot be followed");
                }
            }
        }
    }

    async fn look(&self, thread: &ThreadId, id: &RunId) -> Result<Option<Progress>, store::Error> {
        let store = &self.executor.parts.store;
        let Some(found) = store.run(thread, id).await? else { return Ok(None) };
        let (steps, message) = store.parts(id).await?;
        Ok(Some(Progress { run: found.run, steps, message }))
    }
}

fn not_accepting(run: &Run) -> Failure {
    Error::invalid(format!("Runs in status \"{}\" do not accept tool outputs.", run.state.status())).into()
}

/// The outputs in the order of the calls; there must be one for each.
fn outputs_in_order(calls: &[FunctionCall], given: Vec<ToolOutput>) -> Result<Vec<String>, Error> {
    let mut given: Vec<(String, String)> = given
        .into_iter()
        .map(|output| (output.tool_call_id.unwrap_or_default(), output.output.unwrap_or_default()))
        .collect();
    let list = |ids: Vec<&str>| ids.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ");
    let expected = list(calls.iter().map(|call| call.id.as_str()).collect());
    let got = list(given.iter().map(|(id, _)| id.as_str()).collect());
    let refused = || Error::invalid(format!("Expected tool outputs for call_ids [{expected}], got [{got}]"));
    if given.len() != calls.len() {
        return Err(refused());
    }
    calls
        .iter()
        .map(|call| {
            let place = given.iter().position(|(id, _)| id == call.id.as_str()).ok_or_else(refused)?;
            Ok(given.swap_remove(place).1)
        })
        .collect()
}

/// What was to be added to a thread.
pub enum Locked {
    /// A message.
    Message,
    /// A run.
    Run,
}

/// Tells the client of a thread that is not there or locked, in the recorded words that clients match on.
#[must_use]
pub fn refused(error: store::Error, thread: &ThreadId, what: &Locked) -> Failure {
    match (error, what) {
        (store::Error::NoThread, _) => thread.not_found().into(),
        (store::Error::ThreadBusy(run), Locked::Message) => {
            Error::invalid(format!("Can't add messages to {thread} while a run {run} is active.")).into()
        }
        (store::Error::ThreadBusy(run), Locked::Run) => {
            Error::invalid(format!("Thread {thread} already has an active run {run}.")).into()
        }
        (error, _) => error.into(),
    }
}
