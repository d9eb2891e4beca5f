//! What was told of a run while it goes on, for the clients that listen to its stream.
//!
//! One log a run, and each listener reads it at its own pace: a slow one holds up nobody, and memory grows with the
//! answer, not with the listeners. A log lives while someone writes or reads it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, watch};

use super::machine::Progress;
use crate::api::message::{Content, MessageState};
use crate::api::run::{RunState, Usage};
use crate::api::run_step::StepState;
use crate::api::stream::{MessageDelta, MessageEvent, RunEvent, StepEvent};
use crate::api::{Message, MessageId, Run, RunId, RunStep, StreamEvent};

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

    /// Forgets a run's log; those who hold it keep it.
    pub fn forget(&self, run: &RunId) {
        lock(&self.logs).remove(run);
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
    step: Option<StepEvent>,
    message: Option<MessageEvent>,
    closed: bool,
}

#[derive(Debug)]
enum Entry {
    Event(Box<StreamEvent>),
    /// Text up to this byte of `Told::text`.
    Text(usize),
}

impl Log {
    /// Begins to listen, from the first entry on.
    pub fn listen(self: &Arc<Self>) -> Listener {
        self.listened.store(true, Ordering::Relaxed);
        Listener { length: self.length.subscribe(), log: self.clone(), next: 0, text_at: 0 }
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

    /// Tells that the message's text has grown.
    pub fn tell_text<'a>(&self, pieces: impl IntoIterator<Item = &'a str>) {
        if !self.listened.load(Ordering::Relaxed) {
            return;
        }
        let mut told = lock(&self.told);
        for piece in pieces {
            told.tell_text(piece);
        }
        self.length.send_replace(told.entries.len());
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
        if self.closed {
            return;
        }
        match &event {
            StreamEvent::ThreadCreated(_) | StreamEvent::Error(_) => {}
            StreamEvent::Run(kind, _) => {
                self.run = Some(*kind);
                self.started |= *kind == RunEvent::InProgress;
            }
            StreamEvent::Step(kind, _) => self.step = Some(*kind),
            StreamEvent::Message(kind, message) => {
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

    fn tell_text(&mut self, piece: &str) {
        if self.closed || piece.is_empty() {
            return;
        }
        self.text.push_str(piece);
        self.entries.push(Entry::Text(self.text.len()));
    }

    fn tell_missing(&mut self, progress: &Progress) {
        let Progress { run, step, message } = progress;
        if !self.started
            && let Some(started_at) = run.state.started_at()
        {
            let begun = Run { state: RunState::InProgress { started_at }, ..run.clone() };
            self.tell(StreamEvent::Run(RunEvent::InProgress, begun));
        }
        if let (Some(step), Some(message)) = (step, message) {
            self.tell_parts(step, message);
        }
        if matches!(run.state, RunState::Cancelling { .. } | RunState::Cancelled { .. })
            && !matches!(self.run, Some(RunEvent::Cancelling))
        {
            let started_at = run.state.started_at();
            let cancelling = Run { state: RunState::Cancelling { started_at }, ..run.clone() };
            self.tell(StreamEvent::Run(RunEvent::Cancelling, cancelling));
        }
        if let Some(ended) = ending(&run.state) {
            self.tell_end(step.as_ref(), message.as_ref());
            self.tell(StreamEvent::Run(ended, run.clone()));
        }
    }

    fn tell_parts(&mut self, step: &RunStep, message: &Message) {
        if self.step.is_none() {
            let begun = RunStep { state: StepState::InProgress, usage: None::<Usage>, ..step.clone() };
            self.tell(StreamEvent::Step(StepEvent::Created, begun.clone()));
            self.tell(StreamEvent::Step(StepEvent::InProgress, begun));
        }
        if self.message.is_none() {
            let begun = Message { state: MessageState::InProgress, content: Vec::new(), ..message.clone() };
            self.tell(StreamEvent::Message(MessageEvent::Created, begun.clone()));
            self.tell(StreamEvent::Message(MessageEvent::InProgress, begun));
        }
        if let Some(Content::Text { text }) = message.content.first()
            && let Some(more) = text.value.strip_prefix(self.text.as_str())
        {
            let more = more.to_owned();
            self.tell_text(&more);
        }
    }

    fn tell_end(&mut self, step: Option<&RunStep>, message: Option<&Message>) {
        let (Some(step), Some(message)) = (step, message) else { return };
        let message_event = match message.state {
            MessageState::InProgress => return,
            MessageState::Completed { .. } => MessageEvent::Completed,
            MessageState::Incomplete { .. } => MessageEvent::Incomplete,
        };
        if self.message != Some(message_event) {
            self.tell(StreamEvent::Message(message_event, message.clone()));
        }
        let step_event = match step.state {
            StepState::InProgress => return,
            StepState::Completed { .. } => StepEvent::Completed,
            StepState::Cancelled { .. } => StepEvent::Cancelled,
            StepState::Failed { .. } => StepEvent::Failed,
            StepState::Expired { .. } => StepEvent::Expired,
        };
        if self.step != Some(step_event) {
            self.tell(StreamEvent::Step(step_event, step.clone()));
        }
    }
}

fn ending(state: &RunState) -> Option<RunEvent> {
    match state {
        RunState::Queued { .. }
        | RunState::InProgress { .. }
        | RunState::RequiresAction { .. }
        | RunState::Cancelling { .. } => None,
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
    text_at: usize,
}

/// Most events that a listener takes at once: bounds what a slow client makes us hold.
const TAKE_MAX: usize = 256;

impl Listener {
    /// Takes the next events, at most 256; none when all were taken. Says as well whether more are to come.
    ///
    /// # Panics
    /// Never: text is told after its message.
    pub fn take(&mut self) -> (Vec<StreamEvent>, bool) {
        self.length.mark_unchanged();
        let told = lock(&self.log.told);
        let mut events = Vec::new();
        for entry in told.entries.iter().skip(self.next).take(TAKE_MAX) {
            events.push(match entry {
                Entry::Event(event) => (**event).clone(),
                Entry::Text(end) => {
                    let first = self.text_at == 0;
                    let value = told.text[self.text_at..*end].to_owned();
                    self.text_at = *end;
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
