//! The indexes in memory, bounded in bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::snapshot::Snapshot;
use crate::api::{ProjectId, Timestamp, VectorStoreId};

/// Identifies the index of a vector store. The project is part of it, although IDs are unique.
pub(super) type Key = (ProjectId, VectorStoreId);

/// Memory of an entry in addition to its index, in bytes.
const ENTRY_BYTES: usize = 1_024;

/// The indexes of the vector stores that were searched last.
#[derive(Debug)]
pub(super) struct Cache {
    bytes_max: usize,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<Key, Entry>,
    bytes: usize,
    /// Increases with each use.
    uses: u64,
}

#[derive(Debug, Default)]
struct Entry {
    /// Locked by the task that changes the index.
    update: Arc<tokio::sync::Mutex<()>>,
    snapshot: Option<Arc<Snapshot>>,
    bytes: usize,
    last_use: u64,
    /// The index would be larger than the cache.
    is_too_large: bool,
    /// When the vector store was last marked as used by this server.
    touched_at: Option<Timestamp>,
    /// When this server last began to write the index to the database.
    stored_at: Option<Timestamp>,
}

/// What is known of an index.
pub(super) enum Cached {
    /// The index. It may not be current.
    Snapshot(Arc<Snapshot>),
    /// It is not in memory.
    Missing,
    /// It does not fit into the cache.
    TooLarge,
}

impl Cache {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, entries: Mutex::default() }
    }

    /// Returns the maximum memory of all indexes, in bytes.
    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an index, and marks it as used.
    pub(super) fn get(&self, key: &Key) -> Cached {
        let mut entries = self.lock();
        entries.uses += 1;
        let uses = entries.uses;
        let Some(entry) = entries.by_key.get_mut(key) else { return Cached::Missing };
        entry.last_use = uses;
        match &entry.snapshot {
            Some(snapshot) => Cached::Snapshot(snapshot.clone()),
            None if entry.is_too_large => Cached::TooLarge,
            None => Cached::Missing,
        }
    }

    /// Returns the lock of the task that changes an index.
    pub(super) fn update_lock(&self, key: &Key) -> Arc<tokio::sync::Mutex<()>> {
        let mut entries = self.lock();
        let lock = entries.entry(key).update.clone();
        entries.evict(self.bytes_max, key);
        lock
    }

    /// Stores an index. If all do not fit, those that were not used for the longest time are removed. Returns `false` if the
    /// index alone does not fit: then it is not stored.
    pub(super) fn put(&self, key: &Key, snapshot: Arc<Snapshot>) -> bool {
        let bytes = snapshot.index.bytes() + ENTRY_BYTES;
        let fits = bytes <= self.bytes_max;
        let mut entries = self.lock();
        let entry = entries.entry(key);
        let before = std::mem::replace(&mut entry.bytes, if fits { bytes } else { ENTRY_BYTES });
        entry.snapshot = fits.then_some(snapshot);
        entry.is_too_large = !fits;
        let now = entry.bytes;
        entries.bytes = entries.bytes - before + now;
        entries.evict(self.bytes_max, key);
        fits
    }

    /// Makes room for an index that is being built and has this size now. Returns `false` if it alone does not fit.
    pub(super) fn grow(&self, key: &Key, index_bytes: usize) -> bool {
        let bytes = index_bytes + ENTRY_BYTES;
        if bytes > self.bytes_max {
            return false;
        }
        let mut entries = self.lock();
        let entry = entries.entry(key);
        let before = entry.bytes;
        entry.bytes = before.max(bytes);
        let now = entry.bytes;
        entries.bytes = entries.bytes - before + now;
        entries.evict(self.bytes_max, key);
        true
    }

    /// Records that an index has `bytes` in all. If this is clearly less than the size of the cache, its index is built again.
    pub(super) fn measured(&self, key: &Key, bytes: usize) {
        let mut entries = self.lock();
        if bytes < self.bytes_max / 10 * 9 {
            entries.entry(key).is_too_large = false;
        }
    }

    /// Removes an index from memory: it is read again for the next search.
    pub(super) fn forget(&self, key: &Key) {
        let mut entries = self.lock();
        let entry = entries.entry(key);
        entry.snapshot = None;
        entry.is_too_large = false;
        let before = std::mem::replace(&mut entry.bytes, ENTRY_BYTES);
        entries.bytes = entries.bytes - before + ENTRY_BYTES;
    }

    /// Reports whether to write an index to the database, if that is tried at most every `interval_s`, and assumes that it is
    /// then done.
    pub(super) fn must_store(&self, key: &Key, now: Timestamp, interval_s: i64) -> bool {
        let mut entries = self.lock();
        let entry = entries.entry(key);
        let is_due = entry.stored_at.is_none_or(|at| now.0 - at.0 >= interval_s);
        if is_due {
            entry.stored_at = Some(now);
        }
        is_due
    }

    /// Reports whether a vector store must be marked as used, if that is needed every `interval_s`, and assumes that it is
    /// then done.
    pub(super) fn must_touch(&self, key: &Key, now: Timestamp, interval_s: i64) -> bool {
        let mut entries = self.lock();
        let Some(entry) = entries.by_key.get_mut(key) else { return true };
        let is_due = entry.touched_at.is_none_or(|at| now.0 - at.0 >= interval_s);
        if is_due {
            entry.touched_at = Some(now);
        }
        is_due
    }
}

impl Entries {
    fn entry(&mut self, key: &Key) -> &mut Entry {
        self.uses += 1;
        let uses = self.uses;
        if !self.by_key.contains_key(key) {
            self.bytes += ENTRY_BYTES;
        }
        let entry = self.by_key.entry(key.clone()).or_insert_with(|| Entry { bytes: ENTRY_BYTES, ..Entry::default() });
        entry.last_use = uses;
        entry
    }

    /// Removes entries until all fit, those that were not used for the longest time first, and not `kept`.
    fn evict(&mut self, bytes_max: usize, kept: &Key) {
        while self.bytes > bytes_max {
            let oldest = self.by_key.iter().filter(|(key, _)| *key != kept).min_by_key(|(_, entry)| entry.last_use);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { return };
            if let Some(removed) = self.by_key.remove(&key) {
                self.bytes -= removed.bytes;
                tracing::debug!(vector_store.id = %key.1, bytes = removed.bytes, "removed an index from memory");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retrieval::index::{Change, Facts, IndexChunk, IndexFile};
    use crate::retrieval::lexical::Terms;
    use crate::store::StoreState;

    fn key(name: &str) -> Key {
        (ProjectId::from_stored("proj_a"), VectorStoreId::from_stored(name))
    }

    /// Returns an index with about this many bytes.
    fn snapshot(bytes: u32) -> Arc<Snapshot> {
        let state =
            StoreState { version: 1, purged_version: 0, expires_at: None, is_expired: false, is_in_progress: false };
        let mut snapshot = Snapshot::empty(None, &state);
        let facts = crate::retrieval::search::snapshot::FileFacts {
            id: crate::api::StoreFileId::from_stored("vsf_1"),
            file_id: crate::api::FileId::from_stored("file-1"),
            filename: String::new(),
            attributes: crate::api::vector_store::Attributes::default(),
        };
        // A term takes 14 bytes.
        let terms = Terms { words: 1, counts: (0..bytes / 14).map(|term| (term, 1)).collect() };
        snapshot.index = snapshot.index.apply([Change::Add(IndexFile {
            key: "vsf_1".to_owned(),
            order: 0,
            language: None,
            facts: Facts { facts: Arc::new(facts), bytes: 0 },
            chunks: vec![IndexChunk { number: 0, terms, vector: None }],
        })]);
        Arc::new(snapshot)
    }

    fn has(cache: &Cache, name: &str) -> bool {
        matches!(cache.get(&key(name)), Cached::Snapshot(_))
    }

    #[test]
    fn the_index_that_was_not_used_for_the_longest_time_is_removed() {
        let cache = Cache::new(35_000);

        assert!(cache.put(&key("a"), snapshot(10_000)) && cache.put(&key("b"), snapshot(10_000)));
        assert!(has(&cache, "a"));
        assert!(cache.put(&key("c"), snapshot(10_000)));

        assert!(has(&cache, "a") && !has(&cache, "b") && has(&cache, "c"));
        assert!(cache.lock().bytes <= 35_000);
        assert!(cache.put(&key("d"), snapshot(32_000)));
        assert!(!has(&cache, "a") && !has(&cache, "c") && has(&cache, "d"));
    }

    #[test]
    fn an_index_that_is_larger_than_the_cache_is_not_stored_until_it_is_smaller() {
        let cache = Cache::new(30_000);

        assert!(!cache.put(&key("a"), snapshot(40_000)));

        assert!(matches!(cache.get(&key("a")), Cached::TooLarge));
        cache.measured(&key("a"), 29_000);
        assert!(matches!(cache.get(&key("a")), Cached::TooLarge));
        cache.measured(&key("a"), 20_000);
        assert!(matches!(cache.get(&key("a")), Cached::Missing));
        assert!(cache.put(&key("a"), snapshot(20_000)));
        assert!(has(&cache, "a"));
    }

    #[test]
    fn an_index_that_is_being_built_takes_the_room_of_others() {
        let cache = Cache::new(34_000);
        assert!(cache.put(&key("a"), snapshot(10_000)) && cache.put(&key("b"), snapshot(10_000)));

        assert!(cache.grow(&key("c"), 5_000) && has(&cache, "a") && has(&cache, "b"));
        assert!(cache.grow(&key("c"), 15_000) && !has(&cache, "a") && has(&cache, "b"));
        assert!(!cache.grow(&key("c"), 34_000));
        assert!(cache.put(&key("c"), snapshot(15_000)));
        assert!(cache.lock().bytes <= 34_000);
    }

    #[test]
    fn entries_without_an_index_are_bounded_too() {
        let cache = Cache::new(10 * ENTRY_BYTES);

        for name in 0..100 {
            let _ = cache.update_lock(&key(&name.to_string()));
        }

        assert!(cache.lock().by_key.len() <= 10);
    }

    #[test]
    fn a_store_is_marked_as_used_at_intervals() {
        let cache = Cache::new(100_000);
        let _ = cache.update_lock(&key("a"));

        assert!(cache.must_touch(&key("a"), Timestamp(100), 30));
        assert!(!cache.must_touch(&key("a"), Timestamp(129), 30));
        assert!(cache.must_touch(&key("a"), Timestamp(130), 30));
    }
}
