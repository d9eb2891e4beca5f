//! Computes searches in memory, on a few threads. Searches that wait for the same index are computed together, because most of
//! the time of a search is that of reading the vectors.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::snapshot::Snapshot;
use super::{Located, Question};

/// Maximum number of searches that are computed together. The memory of each has some bytes for each chunk.
const TOGETHER_MAX: usize = 8;

/// What is computed for a search: the best chunks of its indexes.
#[derive(Debug)]
pub(super) struct Computation {
    /// The indexes, with the numbers of their vector stores.
    pub snapshots: Vec<(usize, Arc<Snapshot>)>,
    /// The candidates that were found elsewhere: for each vector store, those of each query.
    pub found: Vec<Vec<Vec<Located>>>,
    pub question: Arc<Question>,
}

/// The best chunks of a search, with their scores.
pub(super) type Best = Vec<(Located, f64)>;

impl Computation {
    /// Computes one search.
    pub fn run(self) -> Best {
        Self::run_all(vec![self]).pop().unwrap_or_default()
    }

    /// Computes searches that have the same indexes.
    fn run_all(computations: Vec<Self>) -> Vec<Best> {
        let Some(first) = computations.first() else { return Vec::new() };
        let snapshots = first.snapshots.clone();
        let questions: Vec<&Question> = computations.iter().map(|computation| &*computation.question).collect();
        let mut candidates: Vec<Vec<Vec<Located>>> =
            questions.iter().map(|question| question.queries.iter().map(|_| Vec::new()).collect()).collect();
        for (number, snapshot) in &snapshots {
            for (all, of_index) in candidates.iter_mut().zip(Question::candidates(&questions, *number, snapshot)) {
                extend(all, of_index);
            }
        }
        let best = |(computation, mut all): (Self, Vec<Vec<Located>>)| {
            computation.found.into_iter().for_each(|of_store| extend(&mut all, of_store));
            computation.question.best(all)
        };
        computations.into_iter().zip(candidates).map(best).collect()
    }

    fn has_same_indexes(&self, other: &Self) -> bool {
        let pairs = || self.snapshots.iter().zip(&other.snapshots);
        self.snapshots.len() == other.snapshots.len()
            && pairs().all(|((number, snapshot), (other_number, other))| {
                number == other_number && Arc::ptr_eq(snapshot, other)
            })
    }
}

/// Adds the candidates of each query.
fn extend(all: &mut [Vec<Located>], more: Vec<Vec<Located>>) {
    for (all, more) in all.iter_mut().zip(more) {
        all.extend(more);
    }
}

/// Computes searches on at most a number of threads. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Computations {
    state: Arc<Mutex<State>>,
    threads_max: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    threads: usize,
}

#[derive(Debug)]
struct Waiting {
    computation: Computation,
    result: oneshot::Sender<Best>,
}

impl Computations {
    pub fn new(threads_max: usize) -> Self {
        Self { state: Arc::default(), threads_max }
    }

    /// Computes a search. Returns `None` if that has failed.
    pub async fn run(&self, computation: Computation) -> Option<Best> {
        let (result, computed) = oneshot::channel();
        let starts_thread = {
            let mut state = self.lock();
            state.waiting.push_back(Waiting { computation, result });
            let starts_thread = state.threads < self.threads_max;
            state.threads += usize::from(starts_thread);
            starts_thread
        };
        if starts_thread {
            let computations = self.clone();
            tokio::task::spawn_blocking(move || computations.work());
        }
        computed.await.ok()
    }

    /// Computes searches as long as some wait.
    fn work(&self) {
        while let Some(batch) = self.next() {
            let (computations, results): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|waiting| (waiting.computation, waiting.result)).unzip();
            // After a panic, the searches of the batch have failed, and the others go on.
            let best = catch_unwind(AssertUnwindSafe(|| Computation::run_all(computations))).unwrap_or_default();
            for (best, result) in best.into_iter().zip(results) {
                // The search may have been cancelled.
                let _ = result.send(best);
            }
        }
    }

    /// Takes the search that waits for the longest time, and others in the same indexes. If none waits, removes
    /// the thread from the count and returns `None`.
    fn next(&self) -> Option<Vec<Waiting>> {
        let mut state = self.lock();
        state.waiting.retain(|waiting| !waiting.result.is_closed());
        let Some(first) = state.waiting.pop_front() else {
            state.threads -= 1;
            return None;
        };
        let mut batch = vec![first];
        let mut index = 0;
        while batch.len() < TOGETHER_MAX && index < state.waiting.len() {
            if state.waiting[index].computation.has_same_indexes(&batch[0].computation) {
                batch.extend(state.waiting.remove(index));
            } else {
                index += 1;
            }
        }
        Some(batch)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
