//! Runs: the lifecycle of an assistant's answer.
//!
//! | file | what it does |
//! | --- | --- |
//! | [`service`] | what handlers call: create, submit tool outputs, cancel, retrieve |
//! | [`machine`] | the lifecycle as a pure function |
//! | [`transition`] | the one way to move a run: lock, step, commit, publish |
//! | [`drive`] | the loop over effects, as a job of a [`crate::work::Worker`] |
//! | `model_turn` | one model call |
//! | [`turn`] | folds the model's deltas into text, calls and usage; pure |
//! | [`prompt`] | from a thread to chat messages, within a budget; pure |
//! | [`stream`] | what readers of a stream are sent |
//! | [`upkeep`] | background loops: saves text, notices changes by other servers, follows streams |
//! | [`sweeper`] | ends overdue runs and promotes waiting runs that have no driver |

pub mod drive;
pub mod machine;
mod model_turn;
pub mod prompt;
pub mod service;
pub mod stream;
pub mod sweeper;
pub mod transition;
pub mod turn;
pub mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::api::Ids;
use crate::clock::Clock;
use crate::llm::Models;
use crate::store::Store;

/// The first pause before a call of the store is tried again while the database is away.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The longest such pause.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// What runs need of the other parts; cheap to clone.
#[derive(Debug, Clone)]
pub struct Dependencies {
    /// Where runs are stored.
    pub store: Arc<dyn Store>,
    /// The model servers.
    pub models: Arc<Models>,
    /// The time.
    pub clock: Arc<Clock>,
    /// Makes ids.
    pub ids: Arc<Ids>,
}

/// How runs are created and driven.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Seconds from a run's creation to its deadline.
    pub expires_after_s: u64,
    /// Maximum number of turns of one run in which the model calls tools.
    pub tool_rounds_max: usize,
    /// What happens to a run or a message on a thread with an active run.
    pub busy_thread: BusyThread,
    /// Maximum size of one prompt, in bytes; a longer thread is truncated in the middle.
    pub prompt_bytes_max: usize,
    /// Memory that prompts of more than 256 KiB take together, in bytes; further ones wait.
    pub prompt_memory_max: usize,
}

impl Settings {
    fn queues_on_busy_thread(&self) -> bool {
        self.busy_thread == BusyThread::Queue
    }
}

/// What happens to a run or a message on a thread with an active run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BusyThread {
    /// It is rejected, as by OpenAI.
    Reject,
    /// A run waits for its turn; a message is for the runs that are created after it.
    Queue,
}

/// The pauses between tries while the database is away; without end.
fn retry_pauses() -> impl Iterator<Item = Duration> + Send {
    std::iter::successors(Some(RETRY_PAUSE), |pause| Some((*pause * 2).min(RETRY_PAUSE_MAX)))
}
