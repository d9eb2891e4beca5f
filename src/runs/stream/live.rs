//! The snapshots of the runs that this server drives or streams, and the readers that wait for them to change.
//!
//! All readers of a run share one snapshot, and no events are buffered per reader. So a slow reader does not delay the
//! others, and a reader that never reads does not use growing memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, watch};

use super::transcript::{LiveCall, LiveTool, Snapshot, Transcript};
use crate::api::error::Error;
use crate::api::run::RunSpec;
use crate::api::run::RunState;
use crate::api::stream::CallGrowth;
use crate::api::{Message, RunId, StreamEvent, Thread, Timestamp};
use crate::runs::machine::Progress;
use crate::runs::turn::TurnEvent;

/// Size of the text that a reader takes at once, in bytes. Limits the memory that a slow client uses.
const TAKE_BYTES: usize = 32 * 1024;

/// The runs that this server drives or streams.
#[derive(Debug, Default)]
pub struct Registry {
    lives: Mutex<HashMap<RunId, Weak<Live>>>,
}

impl Registry {
    /// Returns the snapshot of a run. Creates it if there is none.
    pub fn open(&self, run: &RunId) -> Arc<Live> {
        let mut lives = lock(&self.lives);
        if let Some(live) = lives.get(run).and_then(Weak::upgrade) {
            return live;
        }
        // Removes unused entries before the map grows.
        if lives.len() == lives.capacity() {
            lives.retain(|_, live| live.strong_count() > 0);
        }
        let live = Arc::new(Live::new(run.clone()));
        lives.insert(run.clone(), Arc::downgrade(&live));
        live
    }

    /// Returns the snapshot of a run if this server drives or streams it.
    pub fn get(&self, run: &RunId) -> Option<Arc<Live>> {
        lock(&self.lives).get(run).and_then(Weak::upgrade)
    }

    /// Replaces the snapshot of a run that is resumed. Readers of the previous snapshot keep it.
    pub fn renew(&self, run: &RunId) -> Arc<Live> {
        let live = Arc::new(Live::new(run.clone()));
        lock(&self.lives).insert(run.clone(), Arc::downgrade(&live));
        live
    }

    /// Removes the snapshot of a run, unless it was replaced by a newer one. Its readers keep it.
    pub fn forget(&self, run: &RunId, live: &Arc<Live>) {
        let mut lives = lock(&self.lives);
        if lives.get(run).is_some_and(|known| known.as_ptr() == Arc::as_ptr(live)) {
            lives.remove(run);
        }
    }

    /// Returns all snapshots in use.
    pub fn all(&self) -> Vec<Arc<Live>> {
        lock(&self.lives).values().filter_map(Weak::upgrade).collect()
    }
}

/// One run's snapshot.
#[derive(Debug)]
pub struct Live {
    run: RunId,
    inner: Mutex<Inner>,
    /// Notifies readers of changes of the snapshot.
    changes: watch::Sender<u64>,
    /// Whether a worker of this server drives the run.
    driven: AtomicBool,
    version: AtomicI64,
    /// Locked while a change of the run is committed and published, so that changes are published in order.
    pub gate: tokio::sync::Mutex<()>,
    /// Notifies the driver that the run may have been changed and must be reloaded.
    pub changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    snapshot: Option<Snapshot>,
    /// Whether the message has unsaved text.
    is_unsaved: bool,
}

impl Live {
    fn new(run: RunId) -> Self {
        Self {
            run,
            inner: Mutex::default(),
            changes: watch::Sender::new(0),
            driven: AtomicBool::new(false),
            version: AtomicI64::new(0),
            gate: tokio::sync::Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Returns the run ID.
    #[must_use]
    pub fn run(&self) -> &RunId {
        &self.run
    }

    /// Returns the specification of the run; `None` before the first publication.
    #[must_use]
    pub fn spec(&self) -> Option<Arc<RunSpec>> {
        lock(&self.inner).snapshot.as_ref().map(|snapshot| snapshot.progress.run.spec.clone())
    }

    /// Returns the deadline of the run; `None` before the first publication.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        lock(&self.inner).snapshot.as_ref().map(|snapshot| snapshot.progress.run.spec.expires_at)
    }

    /// Returns the newest published version.
    #[must_use]
    pub fn version(&self) -> i64 {
        self.version.load(Ordering::Acquire)
    }

    /// Returns whether a worker of this server drives the run, and therefore publishes all changes.
    #[must_use]
    pub fn is_driven(&self) -> bool {
        self.driven.load(Ordering::Acquire)
    }

    /// Sets whether a worker of this server drives the run.
    pub fn set_driven(&self, is_driven: bool) {
        self.driven.store(is_driven, Ordering::Release);
    }

    /// Returns the number of readers.
    #[must_use]
    pub fn listeners(&self) -> usize {
        self.changes.receiver_count()
    }

    /// Publishes the stored state of the run.
    pub fn publish(&self, progress: &Progress, version: i64, lease: i64) {
        self.version.store(version, Ordering::Release);
        {
            let mut inner = lock(&self.inner);
            match &mut inner.snapshot {
                Some(snapshot) => {
                    let continues = lease == snapshot.lease && progress.text().starts_with(snapshot.progress.text());
                    if !continues {
                        snapshot.text_pieces.clear();
                        snapshot.refusal_pieces.clear();
                    }
                    let open = |progress: &Progress| progress.open_calls().map(|step| step.id.clone());
                    let is_other = open(progress).is_some() && open(progress) != open(&snapshot.progress);
                    if lease != snapshot.lease || is_other {
                        snapshot.calls.clear();
                    }
                    snapshot.progress.clone_from(progress);
                    snapshot.lease = lease;
                }
                None => {
                    inner.snapshot = Some(Snapshot {
                        thread: None,
                        progress: progress.clone(),
                        calls: Vec::new(),
                        lease,
                        text_pieces: Vec::new(),
                        refusal_pieces: Vec::new(),
                        error: None,
                    });
                }
            }
        }
        self.wake();
    }

    /// Adds the thread that the request created. Called after the first publication.
    pub fn publish_thread(&self, thread: Thread) {
        self.change(|inner| {
            if let Some(snapshot) = &mut inner.snapshot {
                snapshot.thread = Some(thread);
            }
        });
    }

    /// Adds what the model has written, and wakes the readers.
    pub fn push(&self, events: &[TurnEvent]) {
        if events.is_empty() {
            return;
        }
        let has_listeners = self.listeners() > 0;
        self.change(|inner| {
            let Some(snapshot) = &mut inner.snapshot else { return };
            for event in events {
                inner.is_unsaved |= push(snapshot, event, has_listeners);
            }
        });
    }

    /// Ends the streams with an error.
    pub fn fail(&self, error: Error) {
        self.change(|inner| {
            if let Some(snapshot) = &mut inner.snapshot {
                snapshot.error.get_or_insert(error);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut lock(&self.inner));
        self.wake();
    }

    fn wake(&self) {
        if self.listeners() > 0 {
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Returns the version of the run and its message if the message has unsaved text, and marks it as saved.
    pub fn take_unsaved(&self) -> Option<(i64, Message)> {
        let mut inner = lock(&self.inner);
        if !std::mem::take(&mut inner.is_unsaved) {
            return None;
        }
        let progress = &inner.snapshot.as_ref()?.progress;
        if !matches!(progress.run.state, RunState::InProgress { .. }) {
            return None;
        }
        Some((self.version(), progress.message.clone()?))
    }

    /// Marks the message as unsaved, after saving it has failed.
    pub fn mark_unsaved(&self) {
        lock(&self.inner).is_unsaved = true;
    }

    /// Creates a reader that starts where the transcript starts.
    pub fn subscribe(self: &Arc<Self>, transcript: Transcript) -> Listener {
        let mut changes = self.changes.subscribe();
        changes.mark_changed();
        Listener { live: self.clone(), changes, transcript }
    }
}

/// Adds a piece to the snapshot. Returns whether the message has grown.
fn push(snapshot: &mut Snapshot, event: &TurnEvent, has_listeners: bool) -> bool {
    let Snapshot { progress, calls, text_pieces, refusal_pieces, .. } = snapshot;
    match event {
        TurnEvent::Text(_) | TurnEvent::Mark(_) | TurnEvent::Refusal(_) if progress.message.is_none() => false,
        TurnEvent::Text(text) => {
            progress.append(text);
            if has_listeners {
                text_pieces.push(progress.text().len());
            }
            true
        }
        TurnEvent::Mark(mark) => {
            progress.append_mark(mark);
            if has_listeners {
                text_pieces.push(progress.text().len());
            }
            true
        }
        TurnEvent::Refusal(text) => {
            progress.append_refusal(text);
            if has_listeners {
                refusal_pieces.push(progress.refusal().len());
            }
            true
        }
        // The outputs of code are in the stored call.
        TurnEvent::CallsStarted | TurnEvent::Call(_, CallGrowth::Output(..)) => false,
        TurnEvent::Call(_, CallGrowth::BuiltIn(call)) => {
            calls.push(LiveCall::new(call.id.clone(), LiveTool::BuiltIn(call.tool.clone())));
            false
        }
        TurnEvent::Call(_, CallGrowth::Started { id, name }) => {
            calls.push(LiveCall::new(id.clone(), LiveTool::Function(name.clone())));
            false
        }
        TurnEvent::Call(index, CallGrowth::Arguments(more) | CallGrowth::Code(more)) => {
            if let Some(call) = calls.get_mut(*index as usize) {
                call.arguments.push_str(more);
                call.pieces.push(call.arguments.len());
            }
            false
        }
    }
}

/// A reader of a run's stream.
#[derive(Debug)]
pub struct Listener {
    live: Arc<Live>,
    changes: watch::Receiver<u64>,
    transcript: Transcript,
}

impl Listener {
    /// Returns the new events, if any, and whether more will follow.
    pub fn take(&mut self) -> (Vec<StreamEvent>, bool) {
        self.changes.mark_unchanged();
        let inner = lock(&self.live.inner);
        let events = match &inner.snapshot {
            Some(snapshot) => self.transcript.advance(snapshot, TAKE_BYTES),
            None => Vec::new(),
        };
        (events, !self.transcript.is_closed())
    }

    /// Waits until there may be new events.
    pub async fn wait(&mut self) {
        // Cannot fail, because this reader holds the snapshot, which owns the sender.
        let _ = self.changes.changed().await;
    }

    /// Returns the snapshot that is read.
    #[must_use]
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }
}

/// Locks a mutex, even if a thread panicked while it held the lock: every change is a single assignment or push, so the
/// value is consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
