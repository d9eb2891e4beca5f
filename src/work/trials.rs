//! Jobs whose attempts were lost more than once: any of them may be what ends the server. They are driven one at a time, and
//! more at once with each that does the server no harm, so that one job cannot use up the attempts of the others.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::lock;

/// After this time a job counts as harmless even if it is not done: a job that ends its server does so early.
pub(super) const DURATION: Duration = Duration::from_secs(1);
/// Up to this number of attempts, a job is driven concurrently with any number of others.
pub(super) const ATTEMPTS_MAX: u32 = 2;

/// How many such jobs are driven, and how many may be.
#[derive(Debug)]
pub(super) struct Trials {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    under_way: usize,
    allowed: usize,
}

impl Default for Trials {
    fn default() -> Self {
        Self { state: Mutex::new(State { under_way: 0, allowed: 1 }) }
    }
}

impl Trials {
    /// The right to drive one such job, while fewer than allowed are driven.
    pub(super) fn begin(trials: &Arc<Self>) -> Option<Trial> {
        let mut state = lock(&trials.state);
        if state.under_way >= state.allowed {
            return None;
        }
        state.under_way += 1;
        Some(Trial(trials.clone()))
    }
}

/// A job of this kind that is driven.
#[derive(Debug)]
pub(super) struct Trial(Arc<Trials>);

impl Trial {
    /// The job did the server no harm: one more may be driven at once.
    pub(super) fn passed(self) {
        lock(&self.0.state).allowed += 1;
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        lock(&self.0.state).under_way -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_jobs_are_tried_at_once_with_each_that_passes() {
        let trials = Arc::<Trials>::default();
        let first = Trials::begin(&trials).unwrap();
        assert!(Trials::begin(&trials).is_none(), "one at a time");

        first.passed();

        let second = Trials::begin(&trials).unwrap();
        let third = Trials::begin(&trials).unwrap();
        assert!(Trials::begin(&trials).is_none(), "two at a time");
        drop((second, third));
        assert!(Trials::begin(&trials).is_some(), "an unused right is given back, and allows no more");
    }
}
