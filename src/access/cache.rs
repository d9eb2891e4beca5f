//! What this server has read about keys and projects.
//!
//! Each change of a key, a project or a limit increments a revision in the database. Every server reads the revision once
//! per second, and drops what it has cached when the revision has changed. Cached values are used only if the revision was
//! read within [`MAX_AGE`], so that a revoked key is rejected everywhere within that time, even if the database does not
//! respond.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::authenticator::{Digest, KnownKey};
use crate::api::Scope;
use crate::api::organization::Limits;

/// How long values are used without reading the revision.
const MAX_AGE: Duration = Duration::from_secs(4);
/// Maximum number of cached keys, and of cached limits. When it is reached, they are dropped.
const ENTRIES_MAX: usize = 10_000;

/// The cached values.
#[derive(Debug, Default)]
pub struct Values {
    /// The keys, by their digests. `None`: there is no such key.
    pub keys: HashMap<Digest, Option<KnownKey>>,
    /// Whether there is any key.
    pub has_keys: Option<bool>,
    /// The limits of projects.
    pub limits: HashMap<Scope, Limits>,
}

/// Identifies the time between two losses of the cache: what was read in one of them is not cached in a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Generation(u64);

#[derive(Debug, Default)]
struct Inner {
    generation: Generation,
    revision: i64,
    /// When the revision was last read.
    checked_at: Option<Instant>,
    values: Values,
}

/// Values that are valid for one revision.
#[derive(Debug, Default)]
pub struct Cache {
    inner: Mutex<Inner>,
}

impl Cache {
    /// Returns what `read` finds in the cache.
    ///
    /// # Errors
    /// The generation in which to read the value from the database, if it is not cached.
    pub fn get<T>(&self, read: impl FnOnce(&Values) -> Option<T>) -> Result<T, Generation> {
        let inner = self.lock();
        let is_fresh = inner.checked_at.is_some_and(|at| at.elapsed() < MAX_AGE);
        let found = if is_fresh { read(&inner.values) } else { None };
        found.ok_or(inner.generation)
    }

    /// Adds a value that was read in this generation, unless the cache was dropped since.
    pub fn add(&self, generation: Generation, add: impl FnOnce(&mut Values)) {
        let mut inner = self.lock();
        if inner.generation != generation {
            return;
        }
        if inner.values.keys.len() >= ENTRIES_MAX || inner.values.limits.len() >= ENTRIES_MAX {
            inner.values = Values::default();
        }
        add(&mut inner.values);
    }

    /// Drops all values.
    pub fn clear(&self) {
        let mut inner = self.lock();
        inner.generation.0 += 1;
        inner.values = Values::default();
    }

    /// Notes the revision of the database, which was read after `began`. Drops all values if it has changed.
    pub fn confirm(&self, revision: i64, began: Instant) {
        if self.lock().revision != revision {
            self.clear();
        }
        let mut inner = self.lock();
        inner.revision = revision;
        inner.checked_at = Some(began);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_cached_until_the_revision_changes() {
        let cache = Cache::default();
        let has_keys = || cache.get(|values| values.has_keys);
        let generation = has_keys().unwrap_err();
        cache.add(generation, |values| values.has_keys = Some(true));
        assert!(has_keys().is_err(), "the revision was never read");

        cache.confirm(0, Instant::now());
        assert_eq!(has_keys(), Ok(true));
        cache.confirm(0, Instant::now());
        assert_eq!(has_keys(), Ok(true));

        cache.confirm(1, Instant::now());
        assert!(has_keys().is_err());
        cache.add(generation, |values| values.has_keys = Some(true));
        assert!(has_keys().is_err(), "it was read before the change");
        if let Some(long_ago) = Instant::now().checked_sub(MAX_AGE) {
            let generation = has_keys().unwrap_err();
            cache.add(generation, |values| values.has_keys = Some(true));
            cache.confirm(1, long_ago);
            assert!(has_keys().is_err(), "the revision was read too long ago");
        }
    }
}
