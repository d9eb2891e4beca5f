//! What was told of a run while it goes on, for the clients that listen to its stream.
//!
//! One log a run, and each listener reads it at its own pace: a slow one holds up nobody, and memory grows with the
//! answer, not with the listeners. A log lives while someone writes or reads it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, watch};

use super::machine::Progress;
use crate::api::error::{Error, Kind};
use crate::api::message::{Content, MessageState};
use crate::api::run::RunState;
use crate::api::run_step::{StepDetails, StepState, ToolCall};
use crate::api::stream::{CallGrowth, MessageDelta, MessageEvent, RunEvent, StepDelta, StepEvent};
use crate::api::{Message, MessageId, Run, RunId, RunStep, RunStepId, StreamEvent};

/// The logs of the runs that are written or read here and now.
#[derive(Debug, Default)]
pub struct Logs {
    logs: Mutex<HashMap<RunId, Weak<Log>>>,
}

impl Logs {
    /// Gives a run's log, a new one if there is none.
    pub fn open(&self, run: &RunId) -> Arc<Log> {
        let mut logs = lock(&self.logs);
        if let Some(log) = logs.get(run).and_then(Weak::upgrade) {
            return log;
        }
        // Room is doubled when it is used up; that is the time to drop what nobody holds any more.
        if logs.len() == logs.capacity() {
            logs.retain(|_, log| log.strong_count() > 0);
        }
        let log = Arc::new(Log::default());
        logs.insert(run.clone(), Arc::downgrade(&log));
        log
    }

    /// Gives a run's log if someone has it open.
    pub fn get(&self, run: &RunId) -> Option<Arc<Log>> {
        lock(&self.logs).get(run).and_then(Weak::upgrade)
    }

    /// Gives a run a new log, for the next part of its life; those who hold the one before keep it.
    pub fn renew(&self, run: &RunId) -> Arc<Log> {
        let log = Arc::new(Log::default());
        lock(&self.logs).insert(run.clone(), Arc::downgrade(&log));
        log
    }

    /// Forgets a run's log, unless it has a newer one; those who hold it keep it.
    pub fn forget(&self, run: &RunId, log: &Arc<Log>) {
        let mut logs = lock(&self.logs);
        if logs.get(run).is_some_and(|known| known.as_ptr() == Arc::as_ptr(log)) {
            logs.remove(run);
        }
    }
}

/// What was told of one run.
#[derive(Debug, Default)]
pub struct Log {
    told: Mutex<Told>,
    /// How many entries there are; listeners wait for it to grow.
    length: watch::Sender<usize>,
    /// Whether anyone has ever asked to listen; without listeners nothing is kept.
    listened: AtomicBool,
    /// Whether an executor in this process drives the run.
    driven: AtomicBool,
    /// Held while a change of the run is written and told, so that it is told in the order in which it is written.
    pub gate: tokio::sync::Mutex<()>,
    /// Rung when somebody else has changed the run, for the executor to look.
    pub changed: Notify,
}

#[derive(Debug, Default)]
struct Told {
    entries: Vec<Entry>,
    message_id: Option<MessageId>,
    text: String,
    run: Option<RunEvent>,
    started: bool,
    begun: Vec<RunStepId>,
    ended: Vec<RunStepId>,
    /// Steps that are not told, because another one was open when they began: strict readers allow one open step at a
    /// time. Calls beside a message are told by `requires_action`.
    muted: Vec<RunStepId>,
    /// Whether the message is not told, for its step is not; the next stream introduces it.
    message_muted: bool,
    /// The step of a message that was begun before this stream, until it is introduced.
    message_step: Option<RunStep>,
    message: Option<MessageEvent>,
    closed: bool,
}

#[derive(Debug)]
enum Entry {
    Event(Box<StreamEvent>),
    /// These bytes of `Told::text`.
    Text(Range<usize>),
}

impl Log {
    /// Begins to listen, from the first entry on.
    pub fn listen(self: &Arc<Self>) -> Listener {
        self.listened.store(true, Ordering::Relaxed);
        Listener { length: self.length.subscribe(), log: self.clone(), next: 0 }
    }

    /// Whether an executor in this process drives the run, and so tells all of it.
    pub fn is_driven(&self) -> bool {
        self.driven.load(Ordering::Acquire)
    }

    /// Says whether an executor in this process drives the run; listeners look up when it does not any more.
    pub fn set_driven(&self, driven: bool) {
        self.driven.store(driven, Ordering::Release);
        self.length.send_modify(|_| ());
    }

    /// Tells what has happened; what comes behind the last event of a run is dropped.
    pub fn tell(&self, events: impl IntoIterator<Item = StreamEvent>) {
        if !self.listened.load(Ordering::Relaxed) {
            return;
        }
        let mut told = lock(&self.told);
        for event in events {
            told.tell(event);
        }
        self.length.send_replace(told.entries.len());
    }

    /// Tells that the text of `message` has grown by `pieces`; a message that this stream has not heard of, because it
    /// was begun before, is introduced with the text before them.
    pub fn tell_text(&self, message: Option<&Message>, pieces: Vec<String>) {
        if pieces.is_empty() || !self.listened.load(Ordering::Relaxed) {
            return;
        }
        let mut told = lock(&self.told);
        if let Some(message) = message.filter(|_| told.message.is_none()) {
            let grown = pieces.iter().map(String::len).sum();
            told.introduce(message, grown);
        }
        for piece in pieces {
            told.tell_text(&piece);
        }
        self.length.send_replace(told.entries.len());
    }

    /// Ends the stream with an error when it has told text that the run does not have any more, because its executor
    /// was lost and another one asks the model again. What was told cannot be taken back.
    pub fn check_text(&self, progress: &Progress) {
        let mut told = lock(&self.told);
        if !progress.text().starts_with(told.text.as_str()) {
            told.tell(begun_anew(&progress.run.spec.id));
            self.length.send_replace(told.entries.len());
        }
    }

    /// Begins in the middle of a run: what it has done so far was told by the streams before. A message that is still
    /// open is introduced again, with its step, when it goes on or ends.
    pub fn begin_at(&self, progress: &Progress) {
        let mut told = lock(&self.told);
        told.message_step = progress.steps.iter().find(|step| step.makes_message() && step.is_open()).cloned();
        let others = progress.steps.iter().filter(|step| !step.makes_message() || !step.is_open());
        for step in others {
            told.begun.push(step.id.clone());
            if !step.is_open() {
                told.ended.push(step.id.clone());
            }
        }
    }

    /// Tells whatever of a run's stored state was not told yet: for changes that others have made.
    pub fn tell_missing(&self, progress: &Progress) {
        if !self.listened.load(Ordering::Relaxed) {
            return;
        }
        let mut told = lock(&self.told);
        told.tell_missing(progress);
        self.length.send_replace(told.entries.len());
    }
}

impl Told {
    fn tell(&mut self, event: StreamEvent) {
        if self.closed || self.is_muted(&event) {
            return;
        }
        match &event {
            StreamEvent::ThreadCreated(_)
            | StreamEvent::Step(StepEvent::InProgress, _)
            | StreamEvent::RefusalDelta(_)
            | StreamEvent::StepDelta(_)
            | StreamEvent::Error(_) => {}
            StreamEvent::Run(kind, _) => {
                self.run = Some(*kind);
                self.started |= *kind == RunEvent::InProgress;
            }
            StreamEvent::Step(StepEvent::Created, step) => self.begun.push(step.id.clone()),
            StreamEvent::Step(_, step) => self.ended.push(step.id.clone()),
            StreamEvent::Message(kind, message) => {
                let is_end = matches!(kind, MessageEvent::Completed | MessageEvent::Incomplete);
                if is_end && self.message.is_none() {
                    self.introduce(message, 0);
                }
                self.message = Some(*kind);
                self.message_id = Some(message.id.clone());
            }
            StreamEvent::MessageDelta(delta) => {
                self.tell_text(&delta.value);
                return;
            }
        }
        self.closed = event.is_last();
        self.entries.push(Entry::Event(Box::new(event)));
    }

    /// Whether the event is of a step that is not told; notes such steps as they begin.
    fn is_muted(&mut self, event: &StreamEvent) -> bool {
        let is_other_open = self.begun.iter().any(|step| !self.ended.contains(step));
        match event {
            StreamEvent::Step(StepEvent::Created, step) if is_other_open => {
                self.muted.push(step.id.clone());
                self.message_muted |= step.makes_message();
                true
            }
            StreamEvent::Step(_, step) => self.muted.contains(&step.id),
            StreamEvent::StepDelta(delta) => self.muted.contains(&delta.step_id),
            StreamEvent::Message(..) | StreamEvent::MessageDelta(_) | StreamEvent::RefusalDelta(_) => {
                self.message_muted
            }
            StreamEvent::ThreadCreated(_) | StreamEvent::Run(..) | StreamEvent::Error(_) => false,
        }
    }

    fn tell_text(&mut self, piece: &str) {
        if self.closed || self.message_muted || piece.is_empty() {
            return;
        }
        let start = self.text.len();
        self.text.push_str(piece);
        self.entries.push(Entry::Text(start..self.text.len()));
    }

    /// Tells of a message that was begun before this stream, as it was before its last `grown` bytes.
    fn introduce(&mut self, message: &Message, grown: usize) {
        let mut before = Message { state: MessageState::InProgress, ..message.clone() };
        if let Some(Content::Text { text }) = before.content.first_mut() {
            text.value.truncate(text.value.len() - grown);
            self.text.clone_from(&text.value);
            if text.value.is_empty() {
                before.content.clear();
            }
        }
        if let Some(step) = self.message_step.take() {
            self.tell_step_begin(&step);
        }
        self.tell(StreamEvent::Message(MessageEvent::Created, before.clone()));
        self.tell(StreamEvent::Message(MessageEvent::InProgress, before));
    }

    fn tell_missing(&mut self, progress: &Progress) {
        let run = &progress.run;
        if !self.started
            && let Some(started_at) = run.state.started_at()
        {
            let begun = Run { state: RunState::InProgress { started_at }, ..run.clone() };
            self.tell(StreamEvent::Run(RunEvent::InProgress, begun));
        }
        for step in &progress.steps {
            match (&step.details, &progress.message) {
                (StepDetails::MessageCreation { .. }, Some(message)) => self.tell_message(step, message),
                (StepDetails::ToolCalls { tool_calls }, _) => self.tell_calls(step, tool_calls),
                (StepDetails::MessageCreation { .. }, None) => {}
            }
        }
        if matches!(run.state, RunState::Cancelling { .. } | RunState::Cancelled { .. })
            && !matches!(self.run, Some(RunEvent::Cancelling))
        {
            let started_at = run.state.started_at();
            let cancelling = Run { state: RunState::Cancelling { started_at }, ..run.clone() };
            self.tell(StreamEvent::Run(RunEvent::Cancelling, cancelling));
        }
        if let Some(ended) = ending(&run.state) {
            if let Some(message) = &progress.message {
                self.tell_message_end(message);
            }
            for step in &progress.steps {
                self.tell_step_end(step);
            }
            self.tell(StreamEvent::Run(ended, run.clone()));
        }
    }

    fn tell_step_begin(&mut self, step: &RunStep) -> bool {
        if self.begun.contains(&step.id) || self.muted.contains(&step.id) {
            return false;
        }
        let begun = RunStep { state: StepState::InProgress, ..step.clone() };
        self.tell(StreamEvent::Step(StepEvent::Created, begun.clone()));
        self.tell(StreamEvent::Step(StepEvent::InProgress, begun));
        true
    }

    fn tell_message(&mut self, step: &RunStep, message: &Message) {
        self.tell_step_begin(step);
        if self.message.is_none() {
            let begun = Message { state: MessageState::InProgress, content: Vec::new(), ..message.clone() };
            self.tell(StreamEvent::Message(MessageEvent::Created, begun.clone()));
            self.tell(StreamEvent::Message(MessageEvent::InProgress, begun));
        }
        let Some(Content::Text { text }) = message.content.first() else { return };
        match text.value.strip_prefix(self.text.as_str()) {
            Some(more) => {
                let more = more.to_owned();
                self.tell_text(&more);
            }
            None => self.tell(begun_anew(&step.run_id)),
        }
    }

    /// Calls are stored when they are whole, and told as a whole then.
    fn tell_calls(&mut self, step: &RunStep, calls: &[ToolCall]) {
        if calls.is_empty() {
            return;
        }
        let bare = RunStep { details: StepDetails::ToolCalls { tool_calls: Vec::new() }, ..step.clone() };
        if self.tell_step_begin(&bare) {
            for (index, call) in (0..).zip(calls) {
                let growths = [
                    CallGrowth::Begun { id: call.id.clone(), name: call.function.name.clone() },
                    CallGrowth::Arguments(call.function.arguments.clone()),
                ];
                for growth in growths {
                    self.tell(StreamEvent::StepDelta(StepDelta { step_id: step.id.clone(), index, growth }));
                }
            }
        }
        self.tell_step_end(step);
    }

    fn tell_message_end(&mut self, message: &Message) {
        let event = match message.state {
            MessageState::InProgress => return,
            MessageState::Completed { .. } => MessageEvent::Completed,
            MessageState::Incomplete { .. } => MessageEvent::Incomplete,
        };
        if self.message != Some(event) {
            self.tell(StreamEvent::Message(event, message.clone()));
        }
    }

    fn tell_step_end(&mut self, step: &RunStep) {
        let event = match step.state {
            StepState::InProgress => return,
            StepState::Completed { .. } => StepEvent::Completed,
            StepState::Cancelled { .. } => StepEvent::Cancelled,
            StepState::Failed { .. } => StepEvent::Failed,
            StepState::Expired { .. } => StepEvent::Expired,
        };
        if self.begun.contains(&step.id) && !self.ended.contains(&step.id) {
            self.tell(StreamEvent::Step(event, step.clone()));
        }
    }
}

fn begun_anew(run: &RunId) -> StreamEvent {
    StreamEvent::Error(Error::new(
        Kind::Server,
        format!("The server that wrote this answer was lost, and it is written anew. Retrieve run {run} to read it."),
    ))
}

fn ending(state: &RunState) -> Option<RunEvent> {
    match state {
        RunState::Queued { .. } | RunState::InProgress { .. } | RunState::Cancelling { .. } => None,
        RunState::RequiresAction { .. } => Some(RunEvent::RequiresAction),
        RunState::Cancelled { .. } => Some(RunEvent::Cancelled),
        RunState::Failed { .. } => Some(RunEvent::Failed),
        RunState::Completed { .. } => Some(RunEvent::Completed),
        RunState::Incomplete { .. } => Some(RunEvent::Incomplete),
        RunState::Expired { .. } => Some(RunEvent::Expired),
    }
}

/// A place in a log, moving forward.
#[derive(Debug)]
pub struct Listener {
    log: Arc<Log>,
    length: watch::Receiver<usize>,
    next: usize,
}

/// Most events that a listener takes at once, and bytes of text after which it takes no more: bounds what a slow client
/// makes us hold.
const TAKE_MAX: usize = 256;
const TAKE_BYTES: usize = 32 * 1024;

impl Listener {
    /// Takes the next events, at most 256; none when all were taken. Says as well whether more are to come.
    ///
    /// # Panics
    /// Never: text is told after its message.
    pub fn take(&mut self) -> (Vec<StreamEvent>, bool) {
        self.length.mark_unchanged();
        let told = lock(&self.log.told);
        let mut events = Vec::new();
        let mut bytes = 0;
        for entry in told.entries.iter().skip(self.next).take(TAKE_MAX) {
            if bytes > TAKE_BYTES {
                break;
            }
            events.push(match entry {
                Entry::Event(event) => (**event).clone(),
                Entry::Text(range) => {
                    let first = range.start == 0;
                    let value = told.text[range.clone()].to_owned();
                    bytes += value.len();
                    let message_id = told.message_id.clone().expect("text is told after its message");
                    StreamEvent::MessageDelta(MessageDelta { message_id, value, first })
                }
            });
        }
        self.next += events.len();
        (events, !told.closed || self.next < told.entries.len())
    }

    /// Waits until there may be more to take.
    pub async fn wait(&mut self) {
        // The sender is in the log, which this holds: it cannot be gone.
        let _ = self.length.changed().await;
    }

    /// The log that is read.
    #[must_use]
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }
}

/// A panic while a lock was held leaves nothing half-changed here: every change is one push.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
