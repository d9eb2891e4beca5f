//! Which background loops are down, for the readiness check.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// The background loops that are down.
#[derive(Debug, Default)]
pub struct Liveness {
    down: Mutex<BTreeSet<&'static str>>,
}

impl Liveness {
    /// Sets whether a loop is running.
    pub fn set(&self, name: &'static str, is_running: bool) {
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        if is_running {
            down.remove(name);
        } else {
            down.insert(name);
        }
    }

    /// Returns the names of the loops that are down.
    #[must_use]
    pub fn down(&self) -> Vec<&'static str> {
        self.down.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}
