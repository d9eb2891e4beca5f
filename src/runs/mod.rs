//! Runs: their lifecycle and processing.
//!
//! | file | what it does |
//! | --- | --- |
//! | [`service`] | what handlers call: create, submit tool outputs, cancel, retrieve |
//! | [`machine`] | the lifecycle as a pure function |
//! | [`transition`] | changes the state of a run: locks, steps, commits, publishes |
//! | [`drive`] | the loop over effects, as a job of a [`crate::work::Worker`] |
//! | `model_turn` | one model call |
//! | [`tools`] | runs the built-in tools that the model has called |
//! | [`code`] | the code interpreter as the model sees it; pure |
//! | [`file_search`] | the file search as the model sees it; pure |
//! | [`citations`] | turns the references that the model writes into marks; pure |
//! | [`file_paths`] | finds the paths of files that code has written in the text; pure |
//! | `observed_call` | what is counted and traced about one model call |
//! | [`turn`] | folds the model's deltas into text, calls and usage; pure |
//! | `images` | image files in prompts |
//! | `scaling` | scales images down; pure |
//! | [`prompt`] | converts a thread to chat messages within a budget; pure |
//! | [`stream`] | the event streams of runs |
//! | [`upkeep`] | background loops: save text, detect changes by other servers, follow runs driven elsewhere |
//! | [`sweeper`] | ends overdue runs and promotes waiting runs that have no driver |

pub mod citations;
pub mod code;
pub mod drive;
pub mod file_paths;
pub mod file_search;
mod images;
pub mod machine;
mod model_turn;
mod observed_call;
pub mod prompt;
mod scaling;
pub mod service;
pub mod stream;
pub mod sweeper;
pub mod tools;
pub mod transition;
pub mod turn;
pub mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::access::{EffectiveLimits, Tokens};
use crate::api::Ids;
use crate::clock::Clock;
use crate::files::service::FileService;
use crate::llm::Models;
use crate::metrics::Metrics;
use crate::retrieval::search::Retrieval;
use crate::store::Store;
use crate::tools::code_interpreter::sessions::Interpreter;
use crate::traces::Traces;

use citations::CitationStyle;

/// First pause before a store call is retried while the database is unavailable.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Maximum pause between retries.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The dependencies of runs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dependencies {
    /// Where runs are stored.
    pub store: Arc<dyn Store>,
    /// The model servers.
    pub models: Arc<Models>,
    /// The limits of projects.
    pub limits: Arc<EffectiveLimits>,
    /// Reserves tokens of projects.
    pub tokens: Arc<Tokens>,
    /// Files and their bytes.
    pub files: FileService,
    /// Searches vector stores.
    pub retrieval: Retrieval,
    /// Runs code.
    pub interpreter: Interpreter,
    /// Counts runs and model calls.
    pub metrics: Arc<Metrics>,
    /// Exports traces of runs.
    pub traces: Traces,
    /// The time.
    pub clock: Arc<Clock>,
    /// Generates IDs.
    pub ids: Arc<Ids>,
}

/// The settings of runs.
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
    /// Maximum total memory of all prompts larger than 256 KiB, in bytes. Further prompts wait.
    pub prompt_memory_max: usize,
    /// Maximum size of the longer side of an image, in pixels; larger images are scaled down. `None`: images are sent
    /// unchanged.
    pub image_side_max: Option<u32>,
    /// Maximum number of tokens of the results of one file search.
    pub search_tokens_max: usize,
    /// How references to files are written in messages.
    pub citations: CitationStyle,
    /// Whether annotations have the cited passage.
    pub quotes_passages: bool,
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
    /// It is rejected, as by OpenAI's service.
    Reject,
    /// A run waits until the runs before it have ended. A message is visible to the runs created after it.
    Queue,
}

/// Returns the pauses between retries while the database is unavailable, without end.
fn retry_pauses() -> impl Iterator<Item = Duration> + Send {
    std::iter::successors(Some(RETRY_PAUSE), |pause| Some((*pause * 2).min(RETRY_PAUSE_MAX)))
}
