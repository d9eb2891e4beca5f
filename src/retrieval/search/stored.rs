//! Searches an index that is partly in the database: the lists of the queries' words are read, and the nearest vectors are
//! found by the database, or in blocks of all vectors.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::snapshot::{FileFacts, Snapshot};
use super::{Error, Inner, Located, Question, Searched, UPDATE_ATTEMPTS_MAX};
use crate::api::{Scope, StoreFileId, VectorStoreId};
use crate::retrieval::index::{ChunkLocation, FileLocation, Nearest, PartNumber, SegmentId, StoreIndex, parts_of};
use crate::retrieval::rank::DEPTH;
use crate::store::{self, ChunkKey, VectorsIn};

/// If a filter leaves at most this many chunks, all of them are compared with the query, instead of the nearest ones of the
/// whole vector store.
const COMPARED_CHUNKS_MAX: usize = 10_000;
/// Maximum number of nearest vectors that the database is asked for, if many of them are not allowed by a filter.
const NEAREST_MAX: u32 = 20_000;
/// Number of blocks of vectors that are read at once.
const BLOCKS_PAGE: u32 = 8;
/// Number of embeddings that are read at once.
const EMBEDDINGS_PAGE: usize = 1_000;

/// Chunks with their scores by the embedding, for each query.
type NearestChunks = Vec<Vec<(ChunkLocation, f32)>>;

impl Inner {
    /// Returns the candidates of each query.
    pub(super) async fn search_stored(
        &self,
        scope: &Scope,
        id: &VectorStoreId,
        number: usize,
        mut snapshot: Arc<Snapshot>,
        question: &Arc<Question>,
        model: Option<&str>,
    ) -> Result<Vec<Vec<Located>>, Error> {
        for _ in 0..UPDATE_ATTEMPTS_MAX {
            if let Some(found) = self.candidates_of_stored(id, number, &snapshot, question, model).await? {
                return Ok(found);
            }
            // A server has replaced a segment since the index was read.
            self.cache.forget(&Self::key(scope, id));
            match self.open(scope, id).await? {
                Searched::Index(opened) => snapshot = opened,
                Searched::Parts => return self.scan(scope, id, number, question, model).await,
            }
        }
        Err(store::Error::timed_out().into())
    }

    /// Returns `None` if a segment no longer exists.
    async fn candidates_of_stored(
        &self,
        id: &VectorStoreId,
        number: usize,
        snapshot: &Arc<Snapshot>,
        question: &Arc<Question>,
        model: Option<&str>,
    ) -> Result<Option<Vec<Vec<Located>>>, Error> {
        let lexical = Arc::new(question.lexical(&snapshot.index));
        let segments: Vec<String> = snapshot.segments.iter().map(|(id, _)| id.as_str().to_owned()).collect();
        let Some(parts) = self.store.segment_parts(&segments, &parts_of(&lexical)).await? else { return Ok(None) };
        let nearest = match model {
            Some(model) if snapshot.model.as_deref() == Some(model) => {
                self.nearest(id, snapshot, question, model).await?
            }
            _ => Vec::new(),
        };
        let (index, asked) = (snapshot.index.clone(), question.clone());
        let mut candidates = blocking(move || {
            let parts: HashMap<(SegmentId, PartNumber), Vec<u8>> =
                parts.into_iter().map(|((id, part), data)| ((SegmentId::new(&id), part), data)).collect();
            let index = index.with_lists(&lexical, &parts);
            let of_query = |(query, lexical)| {
                let nearest = nearest.get(query).map_or(&[][..], Vec::as_slice);
                let candidates = asked.candidates_of(query, lexical, &index, nearest);
                let located = candidates.into_iter().map(|candidate| Located {
                    store: number,
                    candidate,
                    facts: index.file(candidate.file).map(|(facts, _)| facts.clone()),
                });
                located.collect()
            };
            lexical.iter().enumerate().map(of_query).collect::<Vec<Vec<Located>>>()
        })
        .await?;
        if let Some(model) = model {
            self.add_vector_scores(&mut candidates, &snapshot.index, question, model).await?;
        }
        Ok(Some(candidates))
    }

    /// Computes the scores by the embedding of the candidates that were found by words in stored segments.
    async fn add_vector_scores(
        &self,
        candidates: &mut [Vec<Located>],
        index: &StoreIndex<FileFacts>,
        question: &Question,
        model: &str,
    ) -> Result<(), Error> {
        let is_missing =
            |located: &Located| located.candidate.vector.is_none() && index.is_stored(located.candidate.file);
        let key = |located: &Located| file_key(index, located.candidate.file).map(|id| (id, located.candidate.number));
        let keys: Vec<ChunkKey> =
            candidates.iter().flatten().filter(|located| is_missing(located)).filter_map(key).collect();
        let embeddings = self.embeddings(model, &keys).await?;
        for (query, of_query) in candidates.iter_mut().enumerate() {
            let Some(vector) = question.vector(query) else { continue };
            for located in of_query.iter_mut().filter(|located| is_missing(located)) {
                let embedding = key(located).and_then(|key| embeddings.get(&key));
                located.candidate.vector = embedding.and_then(|embedding| vector.score(embedding));
            }
        }
        Ok(())
    }

    async fn embeddings(&self, model: &str, keys: &[ChunkKey]) -> Result<HashMap<ChunkKey, Vec<u8>>, Error> {
        let mut all = HashMap::with_capacity(keys.len());
        for some in keys.chunks(EMBEDDINGS_PAGE) {
            all.extend(self.store.chunk_embeddings(model, some).await?);
        }
        Ok(all)
    }

    /// Returns the chunks of stored segments that may be among the nearest to each query.
    async fn nearest(
        &self,
        id: &VectorStoreId,
        snapshot: &Arc<Snapshot>,
        question: &Arc<Question>,
        model: &str,
    ) -> Result<NearestChunks, Error> {
        let has = |wanted| snapshot.segments.iter().any(|(_, vectors)| *vectors == Some(wanted));
        let mut found: Vec<Vec<ChunkLocation>> = question.queries.iter().map(|_| Vec::new()).collect();
        if has(VectorsIn::Database) {
            let matches = question.filter.as_ref().map(|filter| |facts: &FileFacts| filter.matches(&facts.attributes));
            let is_allowed = matches.as_ref().map(|matches| matches as &(dyn Fn(&FileFacts) -> bool + Sync));
            for (query, found) in found.iter_mut().enumerate() {
                if let Some(vector) = question.vector(query) {
                    *found = self.nearest_in_database(id, &snapshot.index, &vector.values(), is_allowed).await?;
                }
            }
        }
        if has(VectorsIn::Blocks) {
            for (found, in_blocks) in found.iter_mut().zip(self.nearest_in_blocks(snapshot, question).await?) {
                found.extend(in_blocks);
            }
        }
        // A chunk can have been found for several queries.
        let index = &snapshot.index;
        let keys: BTreeSet<ChunkKey> =
            found.iter().flatten().filter_map(|location| chunk_key(index, *location)).collect();
        let embeddings = self.embeddings(model, &Vec::from_iter(keys)).await?;
        let scored = |(query, locations): (usize, Vec<ChunkLocation>)| {
            let score = |location| {
                let embedding = embeddings.get(&chunk_key(index, location)?)?;
                Some((location, question.vector(query)?.score(embedding)?))
            };
            locations.into_iter().filter_map(score).collect()
        };
        Ok(found.into_iter().enumerate().map(scored).collect())
    }

    /// Asks the database for the nearest chunks, for more of them if too few are allowed. If few chunks are allowed, returns
    /// all of them.
    async fn nearest_in_database(
        &self,
        id: &VectorStoreId,
        index: &StoreIndex<FileFacts>,
        embedding: &[f32],
        is_allowed: Option<&(dyn Fn(&FileFacts) -> bool + Sync)>,
    ) -> Result<Vec<ChunkLocation>, Error> {
        let is_allowed = is_allowed.map(|is_allowed| |facts: &FileFacts| is_allowed(facts));
        if let Some(is_allowed) = &is_allowed
            && index.stored_chunks(Some(is_allowed)) <= COMPARED_CHUNKS_MAX
        {
            return Ok(index.stored_keys(is_allowed).into_iter().map(|(location, ..)| location).collect());
        }
        let mut limit = u32::try_from(2 * DEPTH).unwrap_or(NEAREST_MAX);
        loop {
            let Some(keys) = self.store.nearest_chunks(id, embedding, limit).await? else { return Ok(Vec::new()) };
            let is_allowed = is_allowed.as_ref().map(|is_allowed| is_allowed as &dyn Fn(&FileFacts) -> bool);
            let locations =
                keys.iter().filter_map(|(file, number)| index.locate_stored(file.as_str(), *number, is_allowed));
            let locations: Vec<ChunkLocation> = locations.collect();
            let is_last = keys.len() < limit as usize || limit >= NEAREST_MAX;
            if locations.len() >= DEPTH || is_last {
                return Ok(locations);
            }
            limit = limit.saturating_mul(4).min(NEAREST_MAX);
        }
    }

    /// Reads all vectors, and returns those that may be among the nearest to each query.
    async fn nearest_in_blocks(
        &self,
        snapshot: &Arc<Snapshot>,
        question: &Arc<Question>,
    ) -> Result<Vec<Vec<ChunkLocation>>, Error> {
        let nearest = |query| question.vector(query).map(|vector| Nearest::new(vector.clone(), DEPTH));
        let mut nearest: Vec<Option<Nearest>> = (0..question.queries.len()).map(nearest).collect();
        let in_blocks = snapshot.segments.iter().filter(|(_, vectors)| *vectors == Some(VectorsIn::Blocks));
        for (segment, _) in in_blocks {
            let mut after = None;
            loop {
                let blocks = self.store.vector_blocks(segment.as_str(), after, BLOCKS_PAGE).await?;
                let Some((last, _)) = blocks.last() else { break };
                after = Some(*last);
                let (segment, snapshot, question) = (segment.clone(), snapshot.clone(), question.clone());
                nearest = blocking(move || {
                    let matches =
                        question.filter.as_ref().map(|filter| |facts: &FileFacts| filter.matches(&facts.attributes));
                    let is_allowed = matches.as_ref().map(|matches| matches as &dyn Fn(&FileFacts) -> bool);
                    for of_query in nearest.iter_mut().flatten() {
                        for (_, block) in &blocks {
                            of_query.read(&snapshot.index, &segment, block, is_allowed);
                        }
                    }
                    nearest
                })
                .await?;
            }
        }
        Ok(nearest.into_iter().map(|nearest| nearest.map(Nearest::into_chunks).unwrap_or_default()).collect())
    }
}

fn file_key(index: &StoreIndex<FileFacts>, file: FileLocation) -> Option<StoreFileId> {
    index.file(file).map(|(_, key)| StoreFileId::from_stored(key))
}

fn chunk_key(index: &StoreIndex<FileFacts>, location: ChunkLocation) -> Option<ChunkKey> {
    index.chunk_key(location).map(|(key, number)| (StoreFileId::from_stored(key), number))
}

pub(super) async fn blocking<T: Send + 'static>(
    compute: impl FnOnce() -> T + Send + 'static,
) -> Result<T, store::Error> {
    tokio::task::spawn_blocking(compute).await.map_err(|_| store::Error::timed_out())
}
