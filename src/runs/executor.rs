//! Drives runs: takes a lease, asks the model, writes and tells what comes of it. The only loop that does.
//!
//! A run is started at once by the server that created it while that server has a free slot; else it waits in the
//! store, and whoever has a slot next takes the one that waits longest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::events::{Log, Logs};
use super::machine::{self, Effect, Input, Progress};
use super::prompt::{self, Budget, Fitted};
use super::turn::{News, Turn};
use crate::api::error::Kind;
use crate::api::run::{ErrorCode, LastError, RunIncompleteReason, RunSpec, RunState, Usage};
use crate::api::stream::{RefusalDelta, StepDelta};
use crate::api::{Error as ApiError, Ids, Message, RunId, StreamEvent, ThreadId, Timestamp};
use crate::clock::Clock;
use crate::llm::{self, ChatRequest, FinishReason, Models, tokens};
use crate::store::{self, Store, Versioned};

/// How often text is made durable and, where it must be, the lease is renewed.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How often the queue is looked at, besides whenever there is a reason to.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// The first pause before a write that the database could not take is tried again; each later one is twice as long.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Most bytes of one answer, its calls' arguments included; a model that writes more is stopped.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What an executor needs of the rest.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Where runs are kept.
    pub store: Arc<dyn Store>,
    /// Whom to ask.
    pub models: Arc<Models>,
    /// What time it is.
    pub clock: Arc<Clock>,
    /// Names for what is made.
    pub ids: Arc<Ids>,
}

/// How runs are driven.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Runs driven at a time; the rest wait in order.
    pub concurrent_runs_max: usize,
    /// How long a run stays ours without a sign of life, in seconds.
    pub lease_s: u64,
    /// When a run is given up, in seconds after its creation.
    pub expires_after_s: u64,
    /// Most turns in which the model calls tools.
    pub tool_rounds_max: usize,
    /// What becomes of a run or a message on a thread with an active run.
    pub busy_thread: BusyThread,
}

/// What becomes of a run or a message on a thread with an active run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BusyThread {
    /// It is refused, as the service did.
    Reject,
    /// A run waits for its turn; a message is for the runs that are created after it.
    Queue,
}

/// Drives runs.
#[derive(Debug)]
pub struct Executor {
    pub(super) parts: Parts,
    pub(super) settings: Settings,
    pub(super) logs: Logs,
    slots: Arc<Semaphore>,
    /// Whether a run of ours may wait in the store: then the next free slot looks there.
    queued: AtomicBool,
    look: Notify,
    tasks: TaskTracker,
    /// Nothing new is begun.
    draining: CancellationToken,
    /// What is under way is let go of.
    stopping: CancellationToken,
}

/// The right to drive one more run.
#[derive(Debug)]
pub struct Slot {
    _permit: OwnedSemaphorePermit,
}

/// A run that this executor drives.
struct Held {
    progress: Progress,
    version: i64,
    lease_until: Timestamp,
    log: Arc<Log>,
    /// The whole thread, when it was made together with the run.
    thread: Option<Vec<Message>>,
}

/// Why this executor does not drive the run any further.
enum Lost {
    /// Someone else has changed it.
    Overtaken,
    /// The database is away, or has refused; the lease runs out and the run is taken up again.
    Store(store::Error),
    /// The server stops; the run is for others.
    Stopping,
}

impl Executor {
    /// An executor with all its slots free.
    #[must_use]
    pub fn new(parts: Parts, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(settings.concurrent_runs_max)),
            parts,
            settings,
            logs: Logs::default(),
            queued: AtomicBool::new(false),
            look: Notify::new(),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
        })
    }

    /// A slot, if one is free.
    pub fn slot(&self) -> Option<Slot> {
        if self.draining.is_cancelled() {
            return None;
        }
        let permit = self.slots.clone().try_acquire_owned().ok()?;
        Some(Slot { _permit: permit })
    }

    /// Whether nothing new is begun any more.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Says that a run waits in the store.
    pub fn queue(&self) {
        self.queued.store(true, Ordering::Relaxed);
        self.look.notify_one();
    }

    /// When a lease that is taken now ends.
    pub fn lease_end(&self) -> Timestamp {
        self.parts.clock.now().plus(self.settings.lease_s)
    }

    /// Drives a run that was written as in progress. A `thread` that is known already is not read again.
    pub fn start(
        self: &Arc<Self>,
        slot: Slot,
        progress: Progress,
        version: i64,
        log: Arc<Log>,
        thread: Option<Vec<Message>>,
    ) {
        log.set_driven(true);
        let held = Held { progress, version, lease_until: self.lease_end(), log, thread };
        let executor = self.clone();
        self.tasks.spawn(async move {
            executor.drive(held, true).await;
            executor.next(slot).await;
        });
    }

    /// Takes waiting runs as slots come free, until nothing new may be begun.
    pub async fn work(self: Arc<Self>) {
        let mut poll = tokio::time::interval(POLL_EVERY);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.draining.cancelled() => return,
                () = self.look.notified() => {}
                _ = poll.tick() => {}
            }
            while let Some(slot) = self.slot() {
                let Some(held) = self.claim().await else { break };
                let executor = self.clone();
                self.tasks.spawn(async move {
                    executor.drive(held, false).await;
                    executor.next(slot).await;
                });
            }
        }
    }

    /// Looks at each run of ours for which another server rings, until `stopping`.
    pub async fn answer_rings(self: Arc<Self>, stopping: CancellationToken) {
        let mut rings = self.parts.store.rings();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                ring = rings.next() => {
                    if let Some(log) = ring.and_then(|run| self.logs.get(&run)) {
                        log.changed.notify_one();
                    }
                }
            }
        }
    }

    /// Lets the next run of a thread have its turn, when runs wait there; for whoever has ended the one before.
    pub async fn give_turn(&self, thread: &ThreadId) {
        if self.settings.busy_thread == BusyThread::Queue {
            match self.parts.store.promote_run(thread, self.parts.clock.now()).await {
                Ok(Some(_)) => self.queue(),
                Ok(None) => {}
                // The sweeper makes up for it.
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the next run of a thread must wait");
                }
            }
        }
    }

    /// Lets no new run begin; gives those under way until `grace` is over, then lets go of them, for others to take up.
    pub async fn stop(&self, grace: Duration) {
        self.draining.cancel();
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                runs = self.tasks.len(),
                "runs are still going after the grace time; others will take them up"
            );
        }
        self.stopping.cancel();
        self.tasks.wait().await;
    }

    /// A slot that has come free goes to the runs that wait, before it is given to new ones.
    async fn next(self: Arc<Self>, slot: Slot) {
        while self.queued.load(Ordering::Relaxed) && !self.draining.is_cancelled() {
            match self.claim().await {
                Some(held) => self.drive(held, false).await,
                None => self.queued.store(false, Ordering::Relaxed),
            }
        }
        drop(slot);
    }

    async fn claim(&self) -> Option<Held> {
        let now = self.parts.clock.now();
        let lease_until = self.lease_end();
        let claimed = match self.parts.store.claim_run(now, lease_until).await {
            Ok(claimed) => claimed?,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the queue cannot be read");
                return None;
            }
        };
        let Versioned { run, version, .. } = claimed;
        let (steps, message) = match self.parts.store.parts(&run.spec.id).await {
            Ok(parts) => parts,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, run.id = %run.spec.id, "a claimed run cannot be read");
                return None;
            }
        };
        let log = self.logs.open(&run.spec.id);
        log.set_driven(true);
        Some(Held { progress: Progress { run, steps, message }, version, lease_until, log, thread: None })
    }

    #[tracing::instrument(name = "run", skip_all, fields(
        run.id = %held.progress.run.spec.id,
        thread.id = %held.progress.run.spec.thread_id,
    ))]
    async fn drive(&self, mut held: Held, claimed: bool) {
        let began = Instant::now();
        let outcome = self.carry(&mut held, claimed).await;
        held.log.set_driven(false);
        let run = &held.progress.run;
        match outcome {
            Ok(()) => {
                self.logs.forget(&run.spec.id, &held.log);
                let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                let what = if run.state.is_over() { "run ended" } else { "run waits for the client" };
                tracing::info!(status = run.state.status(), duration_ms, tokens = run.usage.total_tokens, "{what}");
                if run.state.is_over() {
                    self.give_turn(&run.spec.thread_id).await;
                }
            }
            Err(Lost::Overtaken) => tracing::debug!("run is in other hands"),
            Err(Lost::Store(error)) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "run is given up for now; it is taken up again when its lease ends"
                );
            }
            Err(Lost::Stopping) => self.let_go(&held).await,
        }
    }

    /// Takes a run from where it stands to its end.
    async fn carry(&self, held: &mut Held, claimed: bool) -> Result<(), Lost> {
        let first = match held.progress.run.state {
            RunState::Cancelling { .. } => Some(Input::Stopped),
            _ if held.progress.run.is_overdue(self.parts.clock.now()) => Some(Input::DeadlinePassed),
            _ if claimed => None,
            _ => Some(Input::Claimed),
        };
        let mut effect = Effect::CallModel;
        if let Some(input) = first {
            effect = self.step_or_look(held, input).await?;
            held.log.check_text(&held.progress);
        }
        while effect == Effect::CallModel {
            let input = self.answer(held).await?;
            effect = match input {
                Some(input) => self.step_or_look(held, input).await?,
                None => self.look(held).await?,
            };
        }
        Ok(())
    }

    /// Steps the run; when somebody else was faster, does what has become of it instead.
    async fn step_or_look(&self, held: &mut Held, input: Input) -> Result<Effect, Lost> {
        match self.step(held, input).await {
            Err(Lost::Overtaken) => self.look(held).await,
            other => other,
        }
    }

    /// Steps the run, writes what changed, then tells it. A database that is away is given as long as the lease lasts.
    async fn step(&self, held: &mut Held, input: Input) -> Result<Effect, Lost> {
        let log = held.log.clone();
        let _gate = log.gate.lock().await;
        let name = input.name();
        let Ok(transition) = machine::step(&held.progress, input, self.now(held), &self.parts.ids) else {
            tracing::error!(input = name, status = held.progress.run.state.status(), "the run takes no such input");
            return Err(Lost::Overtaken);
        };
        let run = &transition.progress.run;
        let lease_until = self.lease_end();
        let due_at = run.state.needs_executor().then_some(lease_until);
        let store = &self.parts.store;
        let write = || store.commit(transition.commit(held.version, due_at));
        let committed = self.patiently(held.lease_until, write).await?;
        let transition = transition.written(&committed);
        held.version = committed.version;
        held.lease_until = lease_until;
        held.progress = transition.progress;
        log.tell(transition.events);
        Ok(transition.effect)
    }

    /// Never earlier than the run's creation, by a server whose clock may have been ahead of ours.
    fn now(&self, held: &Held) -> Timestamp {
        self.parts.clock.now().max(held.progress.run.spec.created_at)
    }

    /// Looks at what somebody else has made of the run.
    async fn look(&self, held: &mut Held) -> Result<Effect, Lost> {
        let spec = held.progress.run.spec.clone();
        let store = &self.parts.store;
        let found = self.patiently(held.lease_until, || store.run(&spec.thread_id, &spec.id)).await?;
        let Some(found) = found else {
            held.log.tell([StreamEvent::Error(ApiError::new(
                Kind::NotFound,
                format!("Thread {} was deleted while run {} was active.", spec.thread_id, spec.id),
            ))]);
            return Err(Lost::Overtaken);
        };
        if matches!(found.run.state, RunState::Cancelling { .. }) {
            // Our text is newer than what is stored of it.
            held.progress.run = found.run;
            held.version = found.version;
            held.log.tell_missing(&held.progress);
            return self.step(held, Input::Stopped).await;
        }
        if found.run.state.is_over() {
            let (steps, message) = self.patiently(held.lease_until, || store.parts(&spec.id)).await?;
            held.progress = Progress { run: found.run, steps, message };
            let _gate = held.log.gate.lock().await;
            held.log.tell_missing(&held.progress);
            return Ok(Effect::Release);
        }
        Err(Lost::Overtaken)
    }

    /// Reads or writes until it succeeds: a database that is away is given as long as the lease lasts.
    async fn patiently<T, F>(&self, lease_until: Timestamp, attempt: impl Fn() -> F) -> Result<T, Lost>
    where
        F: Future<Output = Result<T, store::Error>>,
    {
        let mut pause = RETRY_PAUSE;
        loop {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(store::Error::Stale) => return Err(Lost::Overtaken),
                Err(error @ store::Error::Unavailable(_)) if self.parts.clock.now() < lease_until => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the database is away from a run; trying again"
                    );
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => return Err(Lost::Store(error)),
            }
        }
    }

    /// Whether somebody else has changed the run. A database that is away for a while does no harm: the next look, or
    /// the next write, will tell.
    async fn was_changed(&self, held: &Held) -> Result<bool, Lost> {
        let spec = &held.progress.run.spec;
        match self.parts.store.run(&spec.thread_id, &spec.id).await {
            Ok(found) => Ok(found.is_none_or(|found| found.version != held.version)),
            Err(error @ store::Error::Unavailable(_)) if self.parts.clock.now() < held.lease_until => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a run cannot be looked at; trying again");
                Ok(false)
            }
            Err(error) => Err(Lost::Store(error)),
        }
    }

    /// Asks the model and takes its answer; gives what came of it, or nothing when there is reason to look.
    async fn answer(&self, held: &mut Held) -> Result<Option<Input>, Lost> {
        let thread = if let Some(thread) = held.thread.take() {
            thread
        } else {
            let spec = held.progress.run.spec.clone();
            self.patiently(held.lease_until, || self.read_thread(&spec)).await?
        };
        if let Some(reason) = held.progress.run.limit_reached() {
            return Ok(Some(Input::LimitReached(reason)));
        }
        let mut request = prompt::build(&held.progress, &thread);
        drop(thread);
        let models = &self.parts.models;
        let route = models.route(&request.model).await;
        let window = models.window(&request.model, &route.model).await;
        request.model.clone_from(&route.model);
        let budget = prompt::budget(&held.progress, window).counted(models.ratio(&route.model));
        let Some(Fitted { request, counted }) = fit(request, budget).await else {
            return Ok(Some(Input::LimitReached(RunIncompleteReason::MaxPromptTokens)));
        };
        let request = Arc::new(request);
        let mut answer = route.server.chat(request.clone());

        let log = held.log.clone();
        let mut saves = tokio::time::interval_at(Instant::now() + SAVE_EVERY, SAVE_EVERY);
        saves.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut saved_bytes = held.progress.text().len();
        let mut turn = Turn::new(!held.progress.run.spec.parallel_tool_calls);
        let mut is_first_text = true;
        loop {
            tokio::select! {
                biased;
                () = log.changed.notified() => {
                    if self.was_changed(held).await? {
                        return Ok(None);
                    }
                }
                () = self.stopping.cancelled() => return Err(Lost::Stopping),
                _ = saves.tick() => {
                    if held.progress.run.is_overdue(self.parts.clock.now()) {
                        return Ok(Some(Input::DeadlinePassed));
                    }
                    let bytes = held.progress.text().len();
                    if bytes != saved_bytes || self.half_leased(held) {
                        match self.save(held).await {
                            Err(Lost::Overtaken) => return Ok(None),
                            other => other?,
                        }
                        saved_bytes = bytes;
                    } else if self.parts.store.is_shared() && self.was_changed(held).await? {
                        // Another server may have cancelled it, and cannot ring here.
                        return Ok(None);
                    }
                }
                deltas = answer.next() => match deltas {
                    None => {
                        if let (Some(ours), Some(usage)) = (counted, &turn.usage) {
                            models.learn_ratio(&route.model, ours, usage.prompt_tokens);
                        }
                        let usage = usage(held, &turn, request, counted).await;
                        return Ok(Some(self.replied(held, turn, usage)));
                    }
                    Some(Err(error)) => return Ok(Some(Input::Failed(last_error(&error)))),
                    Some(Ok(deltas)) => {
                        let news = deltas.into_iter().flat_map(|delta| turn.take(delta, &self.parts.ids)).collect();
                        match self.hear(held, news, &mut is_first_text).await {
                            Err(Lost::Overtaken) => return Ok(None),
                            other => other?,
                        }
                        if held.progress.text().len() + turn.argument_bytes() > ANSWER_BYTES_MAX {
                            let usage = usage(held, &turn, request, counted).await;
                            return Ok(Some(cut(held, usage)));
                        }
                    }
                }
            }
        }
    }

    /// What the end of the model's answer means for the run.
    fn replied(&self, held: &Held, turn: Turn, usage: Usage) -> Input {
        let finish = turn.finish.unwrap_or(FinishReason::Stop);
        let rounds = held.progress.rounds();
        if rounds > self.settings.tool_rounds_max && held.progress.open_calls().is_some() {
            return Input::Failed(failed(format!(
                "The model called tools in {rounds} turns and was still not done (max_tool_rounds)."
            )));
        }
        let known = prompt::functions(&held.progress.run.spec);
        match turn.into_calls(&known) {
            Ok(calls) => Input::ModelReplied { usage, finish, calls },
            Err(what) => Input::Failed(failed(what)),
        }
    }

    /// What the model is to see of a run's thread, and no more: one message is the run's own, which it will not see.
    async fn read_thread(&self, spec: &RunSpec) -> Result<Vec<Message>, store::Error> {
        let newest = prompt::last_messages(spec).map(|count| count.saturating_add(1));
        self.parts.store.conversation(&spec.thread_id, &spec.id, newest).await
    }

    /// Takes what the model has newly said into the run, and tells it.
    async fn hear(&self, held: &mut Held, news: Vec<News>, is_first_text: &mut bool) -> Result<(), Lost> {
        let log = held.log.clone();
        let mut pieces: Vec<String> = Vec::new();
        for item in news {
            match item {
                News::Text(text) => {
                    if held.progress.message.is_none() {
                        self.step(held, Input::TextBegan).await?;
                    }
                    // A later turn goes on with the text of the turns before after an empty line.
                    let goes_on = std::mem::take(is_first_text) && !held.progress.text().is_empty();
                    let text = if goes_on { format!("\n\n{text}") } else { text };
                    held.progress.append(&text);
                    pieces.push(text);
                }
                News::Refusal(words) => {
                    if held.progress.message.is_none() {
                        self.step(held, Input::TextBegan).await?;
                    }
                    log.tell_text(held.progress.message.as_ref(), std::mem::take(&mut pieces));
                    let index = held.progress.append_refusal(&words);
                    if let Some(message) = &held.progress.message {
                        let delta = RefusalDelta { message_id: message.id.clone(), index, value: words };
                        log.tell([StreamEvent::RefusalDelta(delta)]);
                    }
                }
                News::Call(index, growth) => {
                    log.tell_text(held.progress.message.as_ref(), std::mem::take(&mut pieces));
                    if held.progress.open_calls().is_none() {
                        self.step(held, Input::CallsBegan).await?;
                    }
                    if let Some(step) = held.progress.open_calls() {
                        let delta = StepDelta { step_id: step.id.clone(), index, growth };
                        log.tell([StreamEvent::StepDelta(delta)]);
                    }
                }
            }
        }
        log.tell_text(held.progress.message.as_ref(), pieces);
        Ok(())
    }

    fn half_leased(&self, held: &Held) -> bool {
        self.parts.clock.now().plus(self.settings.lease_s / 2) >= held.lease_until
    }

    /// Makes the text so far durable and keeps the lease. A database that is away for a while does no harm.
    async fn save(&self, held: &mut Held) -> Result<(), Lost> {
        let until = self.lease_end();
        let run = &held.progress.run.spec.id;
        match self.parts.store.keep(run, held.version, until, held.progress.message.as_ref()).await {
            Ok(()) => {
                held.lease_until = until;
                Ok(())
            }
            Err(store::Error::Stale) => Err(Lost::Overtaken),
            Err(error @ store::Error::Unavailable(_)) if self.parts.clock.now() < held.lease_until => {
                tracing::warn!(error = &error as &dyn std::error::Error, "text cannot be written; trying again");
                Ok(())
            }
            Err(error) => Err(Lost::Store(error)),
        }
    }

    /// Leaves a run to others, with all that was written of it.
    async fn let_go(&self, held: &Held) {
        let store = &self.parts.store;
        let run = &held.progress.run.spec.id;
        let kept = match store.keep(run, held.version, held.lease_until, held.progress.message.as_ref()).await {
            Ok(()) => store.release(run, held.version, self.parts.clock.now()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::warn!(error = &error as &dyn std::error::Error, "a run is taken up only when its lease ends");
        }
        held.log.tell([stopping(run)]);
    }

    /// Waits until the server lets go of what is under way.
    pub async fn stopped(&self) {
        self.stopping.cancelled().await;
    }
}

/// What the streams of unfinished runs end with when the server stops.
#[must_use]
pub fn stopping(run: &RunId) -> StreamEvent {
    StreamEvent::Error(ApiError::new(
        Kind::Unavailable,
        format!("The server is stopping. Run {run} goes on when it is back; retrieve it to see how it ends."),
    ))
}

/// What the cut of an endless answer means for the run: calls that are cut cannot be made.
fn cut(held: &Held, usage: Usage) -> Input {
    if held.progress.open_calls().is_some() {
        return Input::Failed(failed("The model called a function and did not come to an end.".to_owned()));
    }
    Input::ModelReplied { usage, finish: FinishReason::Length, calls: Vec::new() }
}

/// What a turn cost: as its server says, else by our own count of what was sent, which may be known already.
async fn usage(held: &Held, turn: &Turn, request: Arc<ChatRequest>, counted: Option<usize>) -> Usage {
    if let Some(usage) = turn.usage {
        return usage;
    }
    let said = &held.progress.text()[held.progress.settled_bytes()..];
    let texts: Vec<String> = turn.call_texts().chain([said]).map(str::to_owned).collect();
    let count = tokio::task::spawn_blocking(move || {
        let written = texts.iter().map(|text| tokens::count(text)).sum();
        Usage::counted(counted.unwrap_or_else(|| tokens::count_request(&request)), written)
    });
    count.await.unwrap_or_default()
}

/// Cuts a prompt to its budget, off the threads that serve others: counting a long one takes a while.
async fn fit(request: ChatRequest, budget: Budget) -> Option<Fitted> {
    if budget.of_run.is_none() && budget.of_model.is_none() {
        return Some(Fitted { request, counted: None });
    }
    tokio::task::spawn_blocking(move || prompt::fit(request, budget)).await.ok().flatten()
}

fn failed(message: String) -> LastError {
    LastError { code: ErrorCode::ServerError, message }
}

fn last_error(error: &llm::Error) -> LastError {
    let code = match error {
        llm::Error::RateLimited(_) => ErrorCode::RateLimitExceeded,
        llm::Error::Unavailable(_) | llm::Error::Refused(_) => ErrorCode::ServerError,
    };
    // Clients know the service's words for what may pass, and some try again when they read them.
    let message = match error {
        llm::Error::Unavailable(what) => format!("Sorry, something went wrong. {what}"),
        llm::Error::RateLimited(what) | llm::Error::Refused(what) => what.clone(),
    };
    LastError { code, message }
}
