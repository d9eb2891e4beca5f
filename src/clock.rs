//! The time of day, from one place.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::api::Timestamp;

/// Tells the time: the system's, or one moved by hand.
#[derive(Debug)]
pub struct Clock {
    by_hand: Option<AtomicI64>,
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self { by_hand: None }
    }

    /// A clock that stands still until [`Clock::advance`].
    #[must_use]
    pub fn by_hand(start: Timestamp) -> Self {
        Self { by_hand: Some(AtomicI64::new(start.0)) }
    }

    /// Now, in whole Unix seconds.
    ///
    /// # Panics
    /// Never: a system clock before 1970 reads as 0.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        if let Some(time) = &self.by_hand {
            return Timestamp(time.load(Ordering::Relaxed));
        }
        #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the system")]
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX))
    }

    /// Moves a clock that is moved by hand; does nothing to the system's.
    pub fn advance(&self, seconds: i64) {
        if let Some(time) = &self.by_hand {
            time.fetch_add(seconds, Ordering::Relaxed);
        }
    }
}
