//! Converts transitions of the state machine to commits, for tests of the store.

use assistd::runs::machine::Transition;
use assistd::store::{Commit, NextLease};

/// Returns the commit of a transition, for a run at `version`.
pub fn commit(transition: &Transition, version: i64, next_lease: NextLease) -> Commit<'_> {
    let message = transition.message.as_ref();
    Commit {
        run: &transition.progress.run,
        version,
        next_lease,
        made_progress: transition.made_progress,
        steps: &transition.steps,
        removed_steps: &transition.removed_steps,
        new_message: message.filter(|_| transition.message_is_new),
        changed_message: message.filter(|_| !transition.message_is_new),
        calls: &transition.calls,
    }
}
