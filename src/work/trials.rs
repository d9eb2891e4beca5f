//! Limits the concurrency of suspect jobs: jobs whose server was lost repeatedly, and which may crash it. At first, they are
//! driven one at a time; each one that proves harmless raises the limit by one. So a job that crashes servers does not use
//! up the attempts of the others.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::lock;

/// After this time, a job is considered harmless even if it is not done. A job that crashes its server does so early.
pub(super) const DURATION: Duration = Duration::from_secs(1);
/// Maximum number of attempts of a job that is not suspect.
pub(super) const ATTEMPTS_MAX: u32 = 2;

/// The number of suspect jobs that are driven, and their current limit.
#[derive(Debug)]
pub(super) struct Trials {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    active: usize,
    allowed: usize,
}

impl Default for Trials {
    fn default() -> Self {
        Self { state: Mutex::new(State { active: 0, allowed: 1 }) }
    }
}

impl Trials {
    /// Returns a permit to drive a suspect job, unless the limit is reached.
    pub(super) fn begin(trials: &Arc<Self>) -> Option<Trial> {
        let mut state = lock(&trials.state);
        if state.active >= state.allowed {
            return None;
        }
        state.active += 1;
        Some(Trial(trials.clone()))
    }
}

/// A permit to drive a suspect job.
#[derive(Debug)]
pub(super) struct Trial(Arc<Trials>);

impl Trial {
    /// Raises the limit by one, because the job was harmless.
    pub(super) fn passed(self) {
        lock(&self.0.state).allowed += 1;
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        lock(&self.0.state).active -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_passed_trial_allows_one_more_concurrent_job() {
        let trials = Arc::<Trials>::default();
        let first = Trials::begin(&trials).unwrap();
        assert!(Trials::begin(&trials).is_none(), "one at a time");

        first.passed();

        let second = Trials::begin(&trials).unwrap();
        let third = Trials::begin(&trials).unwrap();
        assert!(Trials::begin(&trials).is_none(), "two at a time");
        drop((second, third));
        assert!(Trials::begin(&trials).is_some(), "a permit that has not passed is returned without raising the limit");
    }
}
