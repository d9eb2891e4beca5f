//! Rows with a variant that this release does not know. They are skipped with a warning.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Error;

/// How long an unreadable row is excluded from claims, and how often it is logged.
const SKIP_FOR: Duration = Duration::from_mins(1);
/// Maximum number of remembered rows.
const ROWS_MAX: usize = 1_000;

/// The unreadable rows, and when each was found.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    rows: Mutex<HashMap<String, Instant>>,
}

impl Unreadable {
    /// Returns the value, or `None` if the row is unreadable, which is logged once per [`SKIP_FOR`].
    pub fn skip<T>(&self, value: Result<T, Error>) -> Result<Option<T>, Error> {
        match value {
            Ok(value) => Ok(Some(value)),
            Err(Error::Inconsistent { table, id, source }) => {
                self.record(table, &id, &source);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Like [`Unreadable::skip`], for several values.
    pub fn skip_all<T>(&self, values: impl Iterator<Item = Result<T, Error>>) -> Result<Vec<T>, Error> {
        values.filter_map(|value| self.skip(value).transpose()).collect()
    }

    fn record(&self, table: &'static str, id: &str, cause: &serde_json::Error) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if rows.len() >= ROWS_MAX {
            rows.clear();
        }
        let is_new = rows.get(id).is_none_or(|since| now.duration_since(*since) > SKIP_FOR);
        if is_new {
            rows.insert(id.to_owned(), now);
            let cause = cause as &dyn std::error::Error;
            tracing::warn!(error = cause, table, id, "row skipped: a newer release may have written it");
        }
    }

    /// Returns the IDs of the rows that are currently excluded.
    pub fn ids(&self) -> Vec<String> {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        rows.retain(|_, since| now.duration_since(*since) <= SKIP_FOR);
        rows.keys().cloned().collect()
    }
}
