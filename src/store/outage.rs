//! Times at which the database is unavailable: logged once for all statements that fail.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::is_transient;

/// How often an outage that continues is logged.
const LOG_EVERY: Duration = Duration::from_mins(1);
/// Time without a failure after which an outage has ended: some statements may succeed while others fail.
const ENDS_AFTER: Duration = Duration::from_secs(2);

/// Logs when the database becomes unavailable, while it remains so, and when it is back.
#[derive(Debug)]
pub(super) struct Outage {
    /// The display name of the database.
    database: String,
    /// Whether there is an outage, to avoid the lock.
    is_down: AtomicBool,
    current: Mutex<Option<Current>>,
}

/// The current outage.
#[derive(Debug)]
struct Current {
    since: Instant,
    failed_at: Instant,
    logged_at: Instant,
    failures: u64,
}

/// What to log.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Began,
    Continues { unavailable_s: u64, failures: u64 },
    Ended { unavailable_s: u64, failures: u64 },
}

impl Outage {
    /// Creates the log of a database with this display name.
    pub fn new(database: String) -> Self {
        Self { database, is_down: AtomicBool::new(false), current: Mutex::default() }
    }

    /// Notes the outcome of a statement.
    pub fn observe<T>(&self, outcome: &Result<T, sqlx::Error>) {
        match outcome {
            Err(error) if is_outage(error) => self.log(self.failed(Instant::now()).as_ref(), Some(error)),
            _ if self.is_down.load(Ordering::Relaxed) => self.log(self.succeeded(Instant::now()).as_ref(), None),
            _ => {}
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, now: Instant) -> Option<Change> {
        let mut current = self.current();
        let Some(outage) = current.as_mut() else {
            *current = Some(Current { since: now, failed_at: now, logged_at: now, failures: 1 });
            self.is_down.store(true, Ordering::Relaxed);
            return Some(Change::Began);
        };
        outage.failures += 1;
        outage.failed_at = now;
        if now.duration_since(outage.logged_at) < LOG_EVERY {
            return None;
        }
        outage.logged_at = now;
        let unavailable_s = now.duration_since(outage.since).as_secs();
        Some(Change::Continues { unavailable_s, failures: outage.failures })
    }

    fn succeeded(&self, now: Instant) -> Option<Change> {
        let mut current = self.current();
        let outage = current.take_if(|outage| now.duration_since(outage.failed_at) >= ENDS_AFTER)?;
        self.is_down.store(false, Ordering::Relaxed);
        let unavailable_s = now.duration_since(outage.since).as_secs();
        Some(Change::Ended { unavailable_s, failures: outage.failures })
    }

    fn log(&self, change: Option<&Change>, error: Option<&sqlx::Error>) {
        let database = self.database.as_str();
        // As texts: the log leaves out other events that this error has caused.
        let error = error.map(ToString::to_string);
        match change {
            // The request or run that has failed first is one of many.
            Some(Change::Began) => {
                tracing::warn!(parent: None, database, error, "the database is unavailable; retrying");
            }
            Some(Change::Continues { unavailable_s, failures }) => {
                tracing::warn!(parent: None, database, error, unavailable_s, failures, "the database is still unavailable");
            }
            Some(Change::Ended { unavailable_s, failures }) => {
                tracing::info!(parent: None, database, unavailable_s, failures, "the database is back");
            }
            None => {}
        }
    }
}

/// Returns whether an error shows that the database is unavailable: it cannot be reached, is overloaded, or cannot write.
pub(super) fn is_outage(error: &sqlx::Error) -> bool {
    match error {
        // 40 is a conflict of two transactions, of which one is repeated.
        sqlx::Error::Database(database) => {
            database.code().is_some_and(|code| is_transient(&code) && !(code.len() == 5 && code.starts_with("40")))
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::WorkerCrashed => true,
        // The pool is closed when the server stops.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_logged_when_it_begins_once_per_minute_and_when_it_has_ended() {
        let outage = Outage::new("db".to_owned());
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);

        assert_eq!(outage.succeeded(at(0)), None);
        assert_eq!(outage.failed(at(0)), Some(Change::Began));
        for half_second in 1..120 {
            assert_eq!(outage.failed(at(half_second * 500)), None);
        }
        assert_eq!(outage.failed(at(60_000)), Some(Change::Continues { unavailable_s: 60, failures: 121 }));
        assert_eq!(outage.succeeded(at(61_000)), None, "other statements may still fail");
        assert_eq!(outage.succeeded(at(62_000)), Some(Change::Ended { unavailable_s: 62, failures: 121 }));
        assert_eq!(outage.succeeded(at(63_000)), None);
        assert_eq!(outage.failed(at(64_000)), Some(Change::Began));
    }

    #[test]
    fn a_closed_pool_and_a_rejected_statement_are_not_outages() {
        assert!(is_outage(&sqlx::Error::PoolTimedOut));
        assert!(!is_outage(&sqlx::Error::PoolClosed) && !is_outage(&sqlx::Error::RowNotFound));
    }
}
