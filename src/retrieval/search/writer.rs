//! Writes the indexes of large vector stores to the database, as segments. One server at a time does this for a vector store.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::cache::{Cache, Key};
use super::snapshot::{Changes, Failure, FileFacts, Snapshot, Vectors, dimensions};
use super::stored::blocking;
use super::{Inner, MEMORY_CHUNKS_MAX, Searched};
use crate::api::{Scope, StoreFileId, VectorStoreId};
use crate::retrieval::index::{Change, IndexFile, StoreIndex, from_f16_bytes};
use crate::store::{self, ChunkKey, FIRST_BLOCK, IndexClaim, IndexSegment, StoreState, VectorsIn};

/// Minimum interval between two times that this server looks whether the database has an index of the vectors, in seconds.
const CHECK_EVERY_S: i64 = 300;
/// How long a claim lasts that is not renewed.
const CLAIM: Duration = Duration::from_mins(5);
/// Minimum interval between two times that this server begins to write the same index, in seconds.
const EVERY_S: i64 = 60;

impl Inner {
    /// Writes the index of a vector store to the database in the background if it should not be in memory.
    pub(super) fn write_if_large(&self, scope: &Scope, id: &VectorStoreId, searched: &Searched, model: Option<&str>) {
        let (model, task, every_s) = match searched {
            Searched::Index(snapshot) if snapshot.index.resident_chunks() <= self.memory_chunks_max => {
                if !snapshot.has_vectors_in_database() {
                    return;
                }
                (snapshot.model.as_deref(), Task::CheckVectors, CHECK_EVERY_S)
            }
            Searched::Index(snapshot) => (snapshot.model.as_deref(), Task::WriteFull, EVERY_S),
            Searched::Parts => (model, Task::WriteAll, EVERY_S),
        };
        let key = Self::key(scope, id);
        if !self.cache.must_store(&key, self.clock.now(), every_s) {
            return;
        }
        let writer = Writer {
            store: self.store.clone(),
            cache: self.cache.clone(),
            key,
            model: model.map(str::to_owned),
            segment_chunks: self.memory_chunks_max.clamp(1, MEMORY_CHUNKS_MAX),
            segment_bytes: self.cache.bytes_max() / 2,
            task,
        };
        let mut writers = self.writers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while writers.try_join_next().is_some() {}
        writers.spawn(async move { writer.run().await });
    }
}

/// Writes the index of one vector store.
struct Writer {
    store: Arc<dyn store::Store>,
    cache: Arc<Cache>,
    key: Key,
    /// The model of the embeddings, as `model@dimensions`.
    model: Option<String>,
    /// A segment is written when it has this many chunks.
    segment_chunks: usize,
    /// It is also written when its index takes this much memory.
    segment_bytes: usize,
    task: Task,
}

/// What a writer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    /// Writes all segments that are full.
    WriteFull,
    /// Writes also a last segment that is smaller.
    WriteAll,
    /// Builds the database's index of the vectors, if that has failed before.
    CheckVectors,
}

/// Segments that are being written.
struct Segments {
    claim: IndexClaim,
    /// The files and chunks that were read and are not in a segment yet.
    rest: StoreIndex<FileFacts>,
    /// All files that were read.
    files: HashSet<String>,
    vectors: VectorsIn,
    /// Those that are not published yet.
    added: Vec<String>,
    /// Those that are replaced.
    replaced: Vec<String>,
    chunks: usize,
}

impl Writer {
    async fn run(self) {
        let store = &self.key.1;
        let claim = IndexClaim { store: store.clone(), owner: Uuid::now_v7().to_string() };
        let started = Instant::now();
        let outcome = match self.store.claim_index(&claim, CLAIM).await {
            Ok(true) if self.task == Task::CheckVectors => self.check_vectors(&claim).await,
            Ok(true) => self.write(claim.clone()).await,
            // Another server does it.
            Ok(false) => return,
            Err(error) => Err(error.into()),
        };
        match outcome {
            Ok(chunks) if chunks > 0 => tracing::info!(
                vector_store.id = %store, chunks, duration_ms = started.elapsed().as_millis(),
                "wrote the index of a large vector store to the database"
            ),
            Err(Failure::Store(store::Error::Stale)) => self.report_lost_claim().await,
            Err(Failure::Store(error)) => tracing::warn!(
                vector_store.id = %store, error = &error as &dyn std::error::Error,
                "failed to write the index of a large vector store to the database; it is tried again"
            ),
            // Nothing was to be written, or the index is of another model meanwhile.
            Ok(_) | Err(Failure::NewModel(_) | Failure::Forgotten) => {}
        }
        // Otherwise, the claim ends by itself.
        let _ = self.store.release_index(&claim).await;
        if self.task != Task::CheckVectors {
            self.cache.forget(&self.key);
        }
    }

    /// Logs why the claim is no longer valid.
    async fn report_lost_claim(&self) {
        let (project, store) = &self.key;
        match self.store.store_state(&Scope::of(project.clone()), store).await {
            Ok(Some(state)) if !state.is_expired => tracing::warn!(
                vector_store.id = %store,
                "stopped writing the index of a large vector store to the database; another server writes it"
            ),
            Ok(_) => tracing::debug!(
                vector_store.id = %store,
                "stopped writing the index of a large vector store to the database; it was deleted or has expired"
            ),
            Err(error) => tracing::warn!(
                vector_store.id = %store, error = &error as &dyn std::error::Error,
                "stopped writing the index of a large vector store to the database; the claim is no longer valid"
            ),
        }
    }

    /// Builds the database's index of the vectors, unless it exists. Returns the number of chunks that were written: none.
    async fn check_vectors(&self, claim: &IndexClaim) -> Result<usize, Failure> {
        if let Some(dimensions) = self.model.as_deref().and_then(dimensions) {
            self.index_vectors(claim, dimensions).await?;
        }
        Ok(0)
    }

    /// Writes segments of the files that are not in one yet. Returns the number of chunks that were written.
    async fn write(&self, claim: IndexClaim) -> Result<usize, Failure> {
        let store = &self.key.1;
        let state =
            StoreState { version: 0, purged_version: 0, expires_at: None, is_expired: false, is_in_progress: false };
        let mut known = Snapshot::empty(self.model.clone(), &state);
        let replaced = known.add_segments(&self.store.segments(store).await?, self.store.vector_search().is_some());
        let dimensions = self.model.as_deref().and_then(dimensions);
        let vectors = match dimensions {
            Some(dimensions) if self.store.add_vectors(store, dimensions, &[]).await? => VectorsIn::Database,
            _ => VectorsIn::Blocks,
        };
        let rest = StoreIndex::new(dimensions.filter(|_| vectors == VectorsIn::Blocks));
        let mut segments =
            Segments { claim, rest, files: HashSet::new(), vectors, added: Vec::new(), replaced, chunks: 0 };
        let wanted = self.model.as_deref().map_or(Vectors::None { wanted: None }, Vectors::Of);
        let mut changes = Changes::new(&*self.store, store, wanted, 0);
        loop {
            let page = {
                let (known, files) = (&known.index, &segments.files);
                let is_known = |id: &str| known.has_chunks(id) || files.contains(id);
                changes.next(&|file| is_known(file.id.as_str())).await?
            };
            let Some(page) = page else { break };
            let mut added = Vec::new();
            let mut replaced = Vec::new();
            for change in page.changes {
                match change {
                    Change::Add(file) => added.push(file),
                    Change::Replace { .. } | Change::Remove { .. } => replaced.push(change),
                }
            }
            known.index = known.index.apply(replaced);
            segments.files.extend(added.iter().map(|file| file.key.clone()));
            if let (VectorsIn::Database, Some(dimensions)) = (segments.vectors, dimensions) {
                self.store.add_vectors(store, dimensions, &vectors_of(&added, dimensions)).await?;
            }
            let before = segments.rest;
            segments.rest = blocking(move || before.apply(added.into_iter().map(Change::Add))).await?;
            let is_version_complete = page.version.is_some();
            let has_parts = !segments.added.is_empty();
            let is_full = segments.rest.chunks() >= self.segment_chunks || segments.rest.bytes() >= self.segment_bytes;
            if is_full || is_version_complete && has_parts {
                self.add(&mut segments).await?;
            }
            // In the middle of a version, a file can be in the middle of its chunks.
            if is_version_complete && !segments.added.is_empty() {
                self.publish(&mut segments).await?;
            }
            self.renew(&segments.claim).await?;
        }
        // Segments of which most files were removed are not worth reading.
        let is_emptied = |segment: &crate::retrieval::index::StoredSegment| segment.live_chunks * 2 < segment.chunks;
        let emptied = known.index.stored().filter(is_emptied).map(|segment| segment.id.as_str().to_owned());
        segments.replaced.extend(emptied);
        if self.task == Task::WriteAll {
            self.add(&mut segments).await?;
        }
        if let (VectorsIn::Database, Some(dimensions)) = (segments.vectors, dimensions) {
            self.index_vectors(&segments.claim, dimensions).await?;
        }
        if !segments.added.is_empty() || !segments.replaced.is_empty() {
            self.publish(&mut segments).await?;
        }
        Ok(segments.chunks)
    }

    /// Builds the database's index of the vectors, unless it exists, and keeps the claim meanwhile.
    async fn index_vectors(&self, claim: &IndexClaim, dimensions: usize) -> Result<(), Failure> {
        let mut building = std::pin::pin!(self.store.index_vectors(&self.key.1, dimensions));
        loop {
            tokio::select! {
                built = &mut building => return Ok(built?),
                () = tokio::time::sleep(CLAIM / 3) => self.renew(claim).await?,
            }
        }
    }

    async fn renew(&self, claim: &IndexClaim) -> Result<(), Failure> {
        if self.store.claim_index(claim, CLAIM).await? { Ok(()) } else { Err(store::Error::Stale.into()) }
    }

    /// Writes a segment of the rest, which is not published yet.
    async fn add(&self, segments: &mut Segments) -> Result<(), Failure> {
        let empty = StoreIndex::new(
            self.model.as_deref().and_then(dimensions).filter(|_| segments.vectors == VectorsIn::Blocks),
        );
        let rest = std::mem::replace(&mut segments.rest, empty);
        if rest.chunks() == 0 {
            return Ok(());
        }
        let form = blocking(move || rest.to_stored()).await?;
        let segment = IndexSegment {
            id: Uuid::now_v7().to_string(),
            embedding_model: self.model.clone(),
            vectors: segments.vectors,
            chunks: form.chunks as u64,
            body: form.body,
        };
        let mut parts = form.lists;
        parts.extend((FIRST_BLOCK..).zip(form.vectors));
        self.store.add_segment(&segments.claim, &segment, &parts).await?;
        segments.chunks += form.chunks;
        segments.added.push(segment.id);
        Ok(())
    }

    async fn publish(&self, segments: &mut Segments) -> Result<(), Failure> {
        self.store.publish_segments(&segments.claim, &segments.added, &segments.replaced).await?;
        segments.added.clear();
        segments.replaced.clear();
        Ok(())
    }
}

/// Returns the embeddings of the chunks that have one with this number of dimensions.
fn vectors_of(files: &[IndexFile<FileFacts>], dimensions: usize) -> Vec<(ChunkKey, Vec<f32>)> {
    let mut vectors = Vec::new();
    for file in files {
        let of_chunk = |chunk: &crate::retrieval::index::IndexChunk| {
            let vector = from_f16_bytes(chunk.vector.as_ref()?);
            let has_direction = vector.iter().any(|value| *value != 0.0);
            (vector.len() == dimensions && has_direction)
                .then(|| ((StoreFileId::from_stored(&file.key), chunk.number), vector))
        };
        vectors.extend(file.chunks.iter().filter_map(of_chunk));
    }
    vectors
}
