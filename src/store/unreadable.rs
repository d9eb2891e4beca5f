//! Rows of a variant that this release does not know: skipped with a warning, once a row.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Error;

/// How long such a row is left alone before it is tried again: a claim would find it first each time.
const SKIP_FOR: Duration = Duration::from_mins(1);
/// Maximum number of rows that are remembered.
const ROWS_MAX: usize = 1_000;

/// The rows that could not be read, and since when.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    rows: Mutex<HashMap<String, Instant>>,
}

impl Unreadable {
    /// Returns the value, or none when its row cannot be read: that is logged, once in a while for each row.
    pub fn skip<T>(&self, value: Result<T, Error>) -> Result<Option<T>, Error> {
        match value {
            Ok(value) => Ok(Some(value)),
            Err(Error::Inconsistent { table, id, source }) => {
                self.note(table, &id, &source);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// As [`Unreadable::skip`], for many.
    pub fn skip_all<T>(&self, values: impl Iterator<Item = Result<T, Error>>) -> Result<Vec<T>, Error> {
        values.filter_map(|value| self.skip(value).transpose()).collect()
    }

    fn note(&self, table: &'static str, id: &str, cause: &serde_json::Error) {
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

    /// The rows that are left alone for now.
    pub fn ids(&self) -> Vec<String> {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        rows.retain(|_, since| now.duration_since(*since) <= SKIP_FOR);
        rows.keys().cloned().collect()
    }
}
