//! The clock, the only source of the current time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::api::Timestamp;

/// A clock: synchronized with a database, the system clock, or a manual clock for tests.
#[derive(Debug)]
pub struct Clock {
    manual: Option<AtomicI64>,
    /// A database time in Unix milliseconds, and when it was read. The monotonic clock measures the time since then, so a
    /// change of the system clock has no effect.
    anchor: Mutex<Option<(Instant, i64)>>,
}

impl Clock {
    /// Creates a clock that follows the system clock until it is synchronized with a database.
    #[must_use]
    pub fn system() -> Self {
        Self { manual: None, anchor: Mutex::default() }
    }

    /// Creates a manual clock, which changes only by [`Clock::advance`].
    #[must_use]
    pub fn manual(start: Timestamp) -> Self {
        Self { manual: Some(AtomicI64::new(start.0)), anchor: Mutex::default() }
    }

    /// Returns the current time in whole Unix seconds; 0 for a system clock before 1970.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        if let Some(time) = &self.manual {
            return Timestamp(time.load(Ordering::Relaxed));
        }
        if let Some((then, unix_ms)) = *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) {
            let passed = i64::try_from(then.elapsed().as_millis()).unwrap_or(i64::MAX);
            return Timestamp(unix_ms.saturating_add(passed) / 1_000);
        }
        #[expect(clippy::disallowed_methods, reason = "this is the only place that reads the system clock")]
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX))
    }

    /// Returns the time of a manual clock, which the store uses instead of the database's clock; `None` for a real clock.
    #[must_use]
    pub fn fixed(&self) -> Option<Timestamp> {
        self.manual.as_ref().map(|time| Timestamp(time.load(Ordering::Relaxed)))
    }

    /// Synchronizes a real clock: at `then`, the database's time was `unix_ms`, in Unix milliseconds.
    pub fn synchronize(&self, unix_ms: i64, then: Instant) {
        *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) = Some((then, unix_ms));
    }

    /// Advances a manual clock. Has no effect on a real clock.
    pub fn advance(&self, seconds: i64) {
        if let Some(time) = &self.manual {
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
        let clock = Clock::manual(Timestamp(5));

        clock.advance(3);
        clock.synchronize(5_000_000, Instant::now());

        assert_eq!((clock.now(), clock.fixed()), (Timestamp(8), Some(Timestamp(8))));
    }
}
