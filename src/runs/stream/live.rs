//! The snapshots of the runs that this server drives or streams, and the readers that wait for them to change.
//!
//! A run has one snapshot for any number of readers, and a reader buffers no events: a slow reader delays no other one,
//! and a reader that never reads holds no memory that grows.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, watch};

use super::transcript::{LiveCall, Snapshot, Transcript};
use crate::api::error::Error;
use crate::api::run::RunState;
use crate::api::stream::CallGrowth;
use crate::api::{Message, RunId, StreamEvent, Thread, ThreadId, Timestamp};
use crate::runs::machine::Progress;
use crate::runs::turn::TurnEvent;

/// Bytes of text after which a reader takes no more at once: what a slow client makes the server hold.
const TAKE_BYTES: usize = 32 * 1024;

/// The runs that are driven or streamed here.
#[derive(Debug, Default)]
pub struct Registry {
    lives: Mutex<HashMap<RunId, Weak<Live>>>,
}

impl Registry {
    /// Returns a run's snapshot, a new one if there is none.
    pub fn open(&self, run: &RunId) -> Arc<Live> {
        let mut lives = lock(&self.lives);
        if let Some(live) = lives.get(run).and_then(Weak::upgrade) {
            return live;
        }
        // Unused entries are removed before the map would grow.
        if lives.len() == lives.capacity() {
            lives.retain(|_, live| live.strong_count() > 0);
        }
        let live = Arc::new(Live::new(run.clone()));
        lives.insert(run.clone(), Arc::downgrade(&live));
        live
    }

    /// Returns a run's snapshot if it is driven or streamed here.
    pub fn get(&self, run: &RunId) -> Option<Arc<Live>> {
        lock(&self.lives).get(run).and_then(Weak::upgrade)
    }

    /// Replaces a run's snapshot, for the next part of its life; readers of the one before keep it.
    pub fn renew(&self, run: &RunId) -> Arc<Live> {
        let live = Arc::new(Live::new(run.clone()));
        lock(&self.lives).insert(run.clone(), Arc::downgrade(&live));
        live
    }

    /// Removes a run's snapshot, unless it has a newer one; those who hold it keep it.
    pub fn forget(&self, run: &RunId, live: &Arc<Live>) {
        let mut lives = lock(&self.lives);
        if lives.get(run).is_some_and(|known| known.as_ptr() == Arc::as_ptr(live)) {
            lives.remove(run);
        }
    }

    /// All snapshots in use.
    pub fn all(&self) -> Vec<Arc<Live>> {
        lock(&self.lives).values().filter_map(Weak::upgrade).collect()
    }
}

/// One run's snapshot.
#[derive(Debug)]
pub struct Live {
    run: RunId,
    inner: Mutex<Inner>,
    /// Changes with the snapshot; readers wait for it.
    changes: watch::Sender<u64>,
    /// Whether a worker of this server drives the run.
    driven: AtomicBool,
    version: AtomicI64,
    /// Held while a change of the run is committed and published, so that changes are published in their order.
    pub gate: tokio::sync::Mutex<()>,
    /// Somebody else may have changed the run: its driver reads it again.
    pub changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    snapshot: Option<Snapshot>,
    /// Whether the message has text that was not saved.
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

    /// The run.
    #[must_use]
    pub fn run(&self) -> &RunId {
        &self.run
    }

    /// The run's thread; none before the first publication.
    #[must_use]
    pub fn thread_id(&self) -> Option<ThreadId> {
        let inner = lock(&self.inner);
        inner.snapshot.as_ref().map(|snapshot| snapshot.progress.run.spec.thread_id.clone())
    }

    /// The run's deadline; none before the first publication.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        lock(&self.inner).snapshot.as_ref().map(|snapshot| snapshot.progress.run.spec.expires_at)
    }

    /// The newest version that was published.
    #[must_use]
    pub fn version(&self) -> i64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether a worker of this server drives the run, and so publishes all of it.
    #[must_use]
    pub fn is_driven(&self) -> bool {
        self.driven.load(Ordering::Acquire)
    }

    /// Records whether a worker of this server drives the run.
    pub fn set_driven(&self, is_driven: bool) {
        self.driven.store(is_driven, Ordering::Release);
    }

    /// How many readers there are.
    #[must_use]
    pub fn listeners(&self) -> usize {
        self.changes.receiver_count()
    }

    /// Publishes what is stored of the run.
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

    /// Adds the thread that the run's request created, after the first publication.
    pub fn publish_thread(&self, thread: Thread) {
        self.change(|inner| {
            if let Some(snapshot) = &mut inner.snapshot {
                snapshot.thread = Some(thread);
            }
        });
    }

    /// Adds what the model has written, and wakes the readers once.
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

    /// Returns the message if it has text that was not saved, with the version of the run that it belongs to.
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

    /// Has the message saved again: its text was not stored.
    pub fn mark_unsaved(&self) {
        lock(&self.inner).is_unsaved = true;
    }

    /// Begins to read, from where the transcript begins.
    pub fn subscribe(self: &Arc<Self>, transcript: Transcript) -> Listener {
        let mut changes = self.changes.subscribe();
        changes.mark_changed();
        Listener { live: self.clone(), changes, transcript }
    }
}

/// Adds a piece to the snapshot; returns whether the message has grown.
fn push(snapshot: &mut Snapshot, event: &TurnEvent, has_listeners: bool) -> bool {
    let Snapshot { progress, calls, text_pieces, refusal_pieces, .. } = snapshot;
    match event {
        TurnEvent::Text(_) | TurnEvent::Refusal(_) if progress.message.is_none() => false,
        TurnEvent::Text(text) => {
            progress.append(text);
            if has_listeners {
                text_pieces.push(progress.text().len());
            }
            true
        }
        TurnEvent::Refusal(words) => {
            progress.append_refusal(words);
            if has_listeners {
                refusal_pieces.push(progress.refusal().len());
            }
            true
        }
        TurnEvent::Call(_, CallGrowth::Begun { id, name }) => {
            calls.push(LiveCall { id: id.clone(), name: name.clone(), arguments: String::new(), pieces: Vec::new() });
            false
        }
        TurnEvent::Call(index, CallGrowth::Arguments(more)) => {
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
    /// Returns the next events, none when there is nothing new; says as well whether more will follow.
    pub fn take(&mut self) -> (Vec<StreamEvent>, bool) {
        self.changes.mark_unchanged();
        let inner = lock(&self.live.inner);
        let events = match &inner.snapshot {
            Some(snapshot) => self.transcript.advance(snapshot, TAKE_BYTES),
            None => Vec::new(),
        };
        (events, !self.transcript.is_closed())
    }

    /// Waits until there may be more to take.
    pub async fn wait(&mut self) {
        // The sender is in the snapshot, which this holds: it cannot be gone.
        let _ = self.changes.changed().await;
    }

    /// The snapshot that is read.
    #[must_use]
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }
}

/// A panic while a lock was held leaves nothing half-changed here: every change is an assignment or one push.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
