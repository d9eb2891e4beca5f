//! The time of day, from one place.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::api::Timestamp;

/// Tells the time: that of a database, that of the system, or one moved by hand.
#[derive(Debug)]
pub struct Clock {
    by_hand: Option<AtomicI64>,
    /// A time in Unix milliseconds, and when it was. The time passes from there by the monotonic clock, so a change of the
    /// system's clock does not move it.
    anchor: Mutex<Option<(Instant, i64)>>,
}

impl Clock {
    /// The system's clock, until it is synchronized with a database's.
    #[must_use]
    pub fn system() -> Self {
        Self { by_hand: None, anchor: Mutex::default() }
    }

    /// A clock that changes only by [`Clock::advance`].
    #[must_use]
    pub fn by_hand(start: Timestamp) -> Self {
        Self { by_hand: Some(AtomicI64::new(start.0)), anchor: Mutex::default() }
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
        if let Some((then, unix_ms)) = *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) {
            let passed = i64::try_from(then.elapsed().as_millis()).unwrap_or(i64::MAX);
            return Timestamp(unix_ms.saturating_add(passed) / 1_000);
        }
        #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the system")]
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX))
    }

    /// The time of a clock that is moved by hand; none for a real one. The store compares with the database's clock
    /// unless there is one.
    #[must_use]
    pub fn fixed(&self) -> Option<Timestamp> {
        self.by_hand.as_ref().map(|time| Timestamp(time.load(Ordering::Relaxed)))
    }

    /// Sets a real clock to the database's time, in Unix milliseconds, as it was at `then`.
    pub fn synchronize(&self, unix_ms: i64, then: Instant) {
        *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) = Some((then, unix_ms));
    }

    /// Moves a clock that is moved by hand; does nothing to a real one.
    pub fn advance(&self, seconds: i64) {
        if let Some(time) = &self.by_hand {
            time.fetch_add(seconds, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_follows_the_database_and_not_the_system() {
        let clock = Clock::system();

        clock.synchronize(5_000_000, Instant::now());

        assert!((5_000..5_010).contains(&clock.now().0));
        assert_eq!(clock.fixed(), None);
    }

    #[test]
    fn a_manual_clock_changes_only_when_it_is_advanced() {
        let clock = Clock::by_hand(Timestamp(5));

        clock.advance(3);
        clock.synchronize(5_000_000, Instant::now());

        assert_eq!((clock.now(), clock.fixed()), (Timestamp(8), Some(Timestamp(8))));
    }
}
