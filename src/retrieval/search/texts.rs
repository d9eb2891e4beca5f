//! Texts of the chunks that were found last, in memory and bounded in bytes.

use std::collections::HashMap;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::store::{ChunkKey, ChunkText, Error, Store};

/// Memory of an entry in addition to its text, in bytes.
const ENTRY_BYTES: u64 = 160;
/// Typical size of a text, in bytes: 800 tokens.
const TEXT_BYTES: u64 = 3_500;

/// Reads texts, and remembers those that are read often. The text of a chunk that searches find never changes.
#[derive(Debug)]
pub(super) struct Texts {
    store: Arc<dyn Store>,
    remembered: Cache<ChunkKey, Arc<ChunkText>, Bytes>,
}

/// Weighs an entry by its memory.
#[derive(Debug, Clone)]
struct Bytes;

impl Weighter<ChunkKey, Arc<ChunkText>> for Bytes {
    fn weight(&self, _key: &ChunkKey, text: &Arc<ChunkText>) -> u64 {
        text.text.len() as u64 + ENTRY_BYTES
    }
}

impl Texts {
    pub(super) fn new(store: Arc<dyn Store>, bytes_max: usize) -> Self {
        let bytes_max = bytes_max as u64;
        let entries = usize::try_from(bytes_max / (TEXT_BYTES + ENTRY_BYTES)).unwrap_or(usize::MAX);
        Self { store, remembered: Cache::with_weighter(entries, bytes_max, Bytes) }
    }

    /// Returns the texts of chunks. Those that were removed meanwhile may be missing.
    pub(super) async fn of(&self, keys: &[ChunkKey]) -> Result<HashMap<ChunkKey, Arc<ChunkText>>, Error> {
        let mut found = HashMap::with_capacity(keys.len());
        let mut missing = Vec::new();
        for key in keys {
            match self.remembered.get(key) {
                Some(text) => {
                    found.insert(key.clone(), text);
                }
                None => missing.push(key.clone()),
            }
        }
        if !missing.is_empty() {
            for (key, text) in self.store.chunk_texts(&missing).await? {
                let text = Arc::new(text);
                self.remembered.insert(key.clone(), text.clone());
                found.insert(key, text);
            }
        }
        Ok(found)
    }
}
