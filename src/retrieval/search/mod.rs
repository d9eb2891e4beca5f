//! Searches vector stores.
//!
//! A search reads the versions of its vector stores from the database, and brings their indexes in memory up to date
//! (`snapshot.rs`, `cache.rs`), so it finds what was committed before it on any server. Searches that wait for the same index are
//! computed together (`computations.rs`). The texts of results that are found often are in memory (`texts.rs`).
//!
//! The index of a large vector store is written to the database in the background (`writer.rs`). Then memory has only the
//! files and lengths of its chunks, and a search reads the inverted lists of its words, and finds vectors in the database
//! (`stored.rs`). Until that is done, an index that does not fit into the cache is searched by reading the chunks in parts
//! (`scan.rs`): slower. The scores are the same in all cases.
//!
//! If a vector store has embeddings, those of the queries are requested (`questions.rs`). If that fails, words decide alone,
//! and [`Found::lexical_only`] says why.

mod cache;
mod computations;
mod questions;
mod scan;
mod snapshot;
mod stored;
mod texts;
mod writer;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::cache::{Cache, Cached, Key};
use self::computations::{Computation, Computations};
use self::questions::{EmbeddedQueries, Questions};
use self::snapshot::{Changes, Failure, FileFacts, Snapshot, Vectors, model_name};
use self::texts::Texts;
use super::index::{self, Candidate, ChunkLocation, QueryVector, StoreIndex};
use super::lexical::LexicalQuery;
use super::rank::{DEPTH, Ranked, merge_queries, rank};
use super::repeated::{RepeatedWarning, Repetitions};
use crate::api::organization::usage::CallOrigin;
use crate::api::vector_store::{Attributes, Filter, HybridWeights};
use crate::api::{ApiKeyId, FileId, Scope, VectorStoreId};
use crate::clock::Clock;
use crate::llm::{self, Embedder, Models};
use crate::store::{self, StoreState};

/// Searches in fewer chunks than this take less time than handing them to another thread.
const INLINE_CHUNKS: usize = 2_000;
/// Maximum number of chunks of an index in memory, if the database finds vectors: from about this size on, that is faster.
const MEMORY_CHUNKS_MAX: usize = 50_000;
/// Number of indexes that are built from the first change at a time.
const BUILDS_MAX: usize = 4;
/// Number of vector stores that are searched in parts at a time.
const SCANS_MAX: usize = 2;
/// How often a search starts again because removals were forgotten while it read changes.
const UPDATE_ATTEMPTS_MAX: usize = 5;
/// Minimum interval between two times that this server marks a vector store as used, in seconds.
const TOUCH_EVERY_S: i64 = 30;
/// The memory for texts is this part of the memory for indexes.
const TEXTS_SHARE: usize = 16;

/// The settings of searches.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Maximum memory of all indexes, in bytes.
    pub cache_bytes_max: usize,
    /// Maximum number of chunks of a vector store whose index is in memory as a whole. `None`: 50,000 if the database finds
    /// vectors, otherwise as many as fit.
    pub memory_chunks_max: Option<usize>,
    /// The weights of a search that names none.
    pub weights: HybridWeights,
    /// The model that rewrites queries. `None`: they are searched for as they are.
    pub rewrite_model: Option<String>,
}

/// What to search for.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// The queries. A chunk is found by the one that fits best.
    pub texts: Vec<String>,
    /// Only files with such attributes are found.
    pub filter: Option<Filter>,
    /// Maximum number of chunks.
    pub limit: usize,
    /// Minimum score, 0 to 1.
    pub score_threshold: f64,
    /// The weights of embeddings and words. `None`: those of the settings.
    pub weights: Option<HybridWeights>,
    /// Whether a model may rewrite the queries, if the settings name one.
    pub rewrite: bool,
    /// Whose usage it is.
    pub caller: Caller,
}

impl Query {
    /// Creates a query without a filter, for at most `limit` chunks.
    #[must_use]
    pub fn new(texts: Vec<String>, limit: usize) -> Self {
        Self {
            texts,
            filter: None,
            limit,
            score_threshold: 0.0,
            weights: None,
            rewrite: false,
            caller: Caller::default(),
        }
    }
}

/// Whose usage a search is, for the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caller {
    /// The API key, if it is stored.
    pub api_key_id: Option<ApiKeyId>,
    /// The run, if one searches.
    pub origin: Option<CallOrigin>,
}

/// A chunk that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// The vector store.
    pub store: VectorStoreId,
    /// The file.
    pub file_id: FileId,
    /// The file's name.
    pub filename: String,
    /// The file's attributes.
    pub attributes: Attributes,
    /// The chunk's number in the file.
    pub number: u32,
    /// The score, 0 to 1. Scores never increase from one hit to the next.
    pub score: f64,
    /// The lexical score, 0 to 1: the share of the query's words, weighted by their rarity.
    pub lexical: f64,
    /// The cosine of the angle between the embeddings of the chunk and of the query, if both have one.
    pub vector: Option<f64>,
    /// The chunk's text.
    pub text: String,
    /// Leading bytes of the text that the chunk before has as well.
    pub overlap_bytes: usize,
}

/// The result of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The best chunks, in their order.
    pub hits: Vec<Hit>,
    /// The queries that were searched for: those of the request, or rewritten ones.
    pub queries: Vec<String>,
    /// Why only words were compared, although there is an embedding model; `None` if embeddings were compared as well.
    pub lexical_only: Option<LexicalOnly>,
    /// Tokens of the queries that the embedding model has counted; 0 if their embeddings were in memory.
    pub embedding_tokens: u32,
}

/// Why only words were compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LexicalOnly {
    /// The embedding model failed.
    #[error("the embedding model failed")]
    ModelFailed(#[source] llm::Error),
    /// The files have no embeddings of the model.
    #[error("the files have no embeddings of the model")]
    NoEmbeddings,
}

/// Why a search failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The vector store does not exist in the project.
    #[error("vector store {0} does not exist")]
    NoStore(VectorStoreId),
    /// The vector store has expired.
    #[error("vector store {0} has expired")]
    Expired(VectorStoreId),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Searches vector stores. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Retrieval(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn store::Store>,
    clock: Arc<Clock>,
    questions: Questions,
    weights: HybridWeights,
    cache: Arc<Cache>,
    /// See [`Settings::memory_chunks_max`].
    memory_chunks_max: usize,
    /// The tasks that write indexes to the database. They end with this value.
    writers: Mutex<JoinSet<()>>,
    builds: Semaphore,
    scans: Semaphore,
    /// The texts of chunks.
    texts: Texts,
    /// Computes searches in large indexes, on as many threads as there are processors.
    computations: Computations,
    /// Searches whose queries have no embeddings.
    by_words: RepeatedWarning,
}

/// A vector store that is searched.
enum Searched {
    Index(Arc<Snapshot>),
    /// It is read in parts.
    Parts,
}

/// A chunk of a search: the vector store, the position of its file in that, and its number.
type Place = (usize, i64, u32);

/// A candidate of one of the vector stores. The facts of its file are there if the vector store was read in parts.
#[derive(Debug, Clone)]
struct Located {
    store: usize,
    candidate: Candidate,
    facts: Option<Arc<FileFacts>>,
}

impl Located {
    fn place(&self) -> Place {
        (self.store, self.candidate.order, self.candidate.number)
    }
}

impl Retrieval {
    /// Creates the service. Without an `embedder`, words decide alone.
    #[must_use]
    pub fn new(
        store: Arc<dyn store::Store>,
        clock: Arc<Clock>,
        models: Arc<Models>,
        embedder: Option<Arc<dyn Embedder>>,
        settings: Settings,
    ) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Inner {
            texts: Texts::new(store.clone(), settings.cache_bytes_max / TEXTS_SHARE),
            questions: Questions::new(store.clone(), models, embedder, settings.rewrite_model),
            memory_chunks_max: settings.memory_chunks_max.unwrap_or(match store.vector_search() {
                Some(_) => MEMORY_CHUNKS_MAX,
                None => usize::MAX,
            }),
            store,
            clock,
            weights: settings.weights,
            cache: Arc::new(Cache::new(settings.cache_bytes_max)),
            writers: Mutex::default(),
            builds: Semaphore::new(BUILDS_MAX),
            scans: Semaphore::new(SCANS_MAX),
            computations: Computations::new(processors),
            by_words: RepeatedWarning::default(),
        }))
    }

    /// Searches vector stores together. This counts as a use of them.
    ///
    /// Finds what was committed before the call, also by other servers.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn search(&self, scope: &Scope, stores: &[VectorStoreId], query: &Query) -> Result<Found, Error> {
        let inner = &*self.0;
        let stores = &distinct(stores);
        let queries = async {
            if query.rewrite {
                inner.questions.rewrite(scope, &query.texts, &query.caller).await
            } else {
                query.texts.clone()
            }
        };
        let searched = futures_util::future::try_join_all(stores.iter().map(|id| inner.open(scope, id)));
        let (searched, queries) = tokio::join!(searched, queries);
        let mut searched = searched?;
        let weights = query.weights.unwrap_or(inner.weights);
        let (embedded, lexical_only) = inner.embed(scope, stores, &mut searched, &queries, weights, query).await?;
        let words_only = HybridWeights { embedding: 0.0, text: 1.0 };
        let question = Arc::new(Question {
            limit: query.limit,
            score_threshold: query.score_threshold,
            // Without embeddings, weights have no meaning.
            weights: if embedded.is_some() { weights } else { words_only },
            filter: query.filter.clone(),
            vectors: embedded.as_ref().map(|embedded| embedded.vectors.clone()),
            queries: queries.clone(),
        });
        let model = embedded.as_ref().map(|embedded| embedded.model.as_str());
        for (id, searched) in stores.iter().zip(&searched) {
            inner.write_if_large(scope, id, searched, model);
        }
        let best = inner.best(scope, stores, &searched, &question, model).await?;
        let (hits, touched) = tokio::join!(inner.hits(stores, &searched, best), inner.touch(scope, stores));
        if let Err(error) = touched {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "failed to store the last use of a vector store");
        }
        let embedding_tokens = embedded.map_or(0, |embedded| embedded.tokens);
        Ok(Found { hits: hits?, queries, lexical_only, embedding_tokens })
    }
}

/// Returns the vector stores, each once.
fn distinct(stores: &[VectorStoreId]) -> Vec<VectorStoreId> {
    let mut seen = HashSet::new();
    stores.iter().filter(|id| seen.insert(*id)).cloned().collect()
}

/// What is computed for a search.
#[derive(Debug)]
struct Question {
    queries: Vec<String>,
    /// The embeddings of the queries.
    vectors: Option<Vec<Option<Arc<QueryVector>>>>,
    filter: Option<Filter>,
    limit: usize,
    score_threshold: f64,
    weights: HybridWeights,
}

impl Question {
    fn vector(&self, query: usize) -> Option<&Arc<QueryVector>> {
        self.vectors.as_ref()?.get(query)?.as_ref()
    }

    /// Returns the candidates of some questions in an index, for each question and each of its queries.
    fn candidates(questions: &[&Self], store: usize, snapshot: &Snapshot) -> Vec<Vec<Vec<Located>>> {
        let index = &snapshot.index;
        let lexical: Vec<Vec<LexicalQuery>> = questions.iter().map(|question| question.lexical(index)).collect();
        let filters: Vec<_> = questions.iter().map(|question| question.is_allowed()).collect();
        let mut asked = Vec::new();
        for ((question, lexical), filter) in questions.iter().zip(&lexical).zip(&filters) {
            for (number, lexical) in lexical.iter().enumerate() {
                let filter = filter.as_ref().map(|filter| filter as index::IsAllowed<'_, FileFacts>);
                asked.push((question.vector(number), lexical, index.statistics(lexical), filter));
            }
        }
        let queries: Vec<_> = asked
            .iter()
            .map(|(vector, lexical, statistics, is_allowed)| {
                let vector = vector.map(|vector| &**vector);
                (index::Query { lexical, statistics, vector, depth: DEPTH, nearest: &[] }, *is_allowed)
            })
            .collect();
        let located = |candidate| Located { store, candidate, facts: None };
        let mut found = index.candidates_of_all(&queries).into_iter();
        let of_question = |question: &&Self| {
            let of_queries = found.by_ref().take(question.queries.len());
            of_queries.map(|candidates| candidates.into_iter().map(located).collect()).collect()
        };
        questions.iter().map(of_question).collect()
    }

    fn is_allowed(&self) -> Option<impl Fn(&FileFacts) -> bool> {
        self.filter.as_ref().map(|filter| |facts: &FileFacts| filter.matches(&facts.attributes))
    }

    /// Returns the words of the queries, for an index.
    fn lexical(&self, index: &StoreIndex<FileFacts>) -> Vec<LexicalQuery> {
        self.queries.iter().map(|text| LexicalQuery::new(text, index.analyses())).collect()
    }

    /// Returns the candidates of a query. `nearest` are chunks of stored segments with their scores by the embedding.
    fn candidates_of(
        &self,
        query: usize,
        lexical: &LexicalQuery,
        index: &StoreIndex<FileFacts>,
        nearest: &[(ChunkLocation, f32)],
    ) -> Vec<Candidate> {
        let is_allowed = self.is_allowed();
        let is_allowed = is_allowed.as_ref().map(|is_allowed| is_allowed as index::IsAllowed<'_, FileFacts>);
        let statistics = index.statistics(lexical);
        let vector = self.vector(query).map(|vector| &**vector);
        let query = index::Query { lexical, statistics: &statistics, vector, depth: DEPTH, nearest };
        index.candidates(&query, is_allowed)
    }

    /// Returns the best of all candidates, which are given for each query.
    fn best(&self, candidates: Vec<Vec<Located>>) -> Vec<(Located, f64)> {
        let mut located: HashMap<Place, (f64, Located)> = HashMap::new();
        let ranking = |of_query: Vec<Located>| -> Vec<(Place, Ranked)> {
            let candidates: Vec<Candidate> = of_query.iter().map(|located| located.candidate).collect();
            let ranked = rank(&candidates, self.weights, self.limit, 0.0);
            let mut placed = Vec::with_capacity(ranked.len());
            for ranked in ranked {
                let found = &of_query[ranked.index];
                // The parts of a score are those of the query that found the chunk best.
                let best = located.entry(found.place()).or_insert_with(|| (ranked.key, found.clone()));
                if ranked.key > best.0 {
                    *best = (ranked.key, found.clone());
                }
                placed.push((found.place(), ranked));
            }
            placed
        };
        let rankings: Vec<_> = candidates.into_iter().map(ranking).collect();
        let merged = merge_queries(rankings, self.limit, self.score_threshold);
        let best = merged.into_iter().filter_map(|(place, ranked)| Some((located.remove(&place)?.1, ranked.score)));
        best.collect()
    }
}

impl Inner {
    fn key(scope: &Scope, id: &VectorStoreId) -> Key {
        (scope.project().clone(), id.clone())
    }

    /// Returns the current index of a vector store, or says that it must be read in parts.
    async fn open(&self, scope: &Scope, id: &VectorStoreId) -> Result<Searched, Error> {
        let state = self.store.store_state(scope, id).await?.ok_or_else(|| Error::NoStore(id.clone()))?;
        if state.is_expired {
            return Err(Error::Expired(id.clone()));
        }
        let model = self.questions.model_key();
        self.current(scope, id, &state, model.as_deref()).await
    }

    /// Returns an index that has all changes of a state, with the embeddings of a model, as `model@dimensions`, if it is
    /// known.
    async fn current(
        &self,
        scope: &Scope,
        id: &VectorStoreId,
        state: &StoreState,
        model: Option<&str>,
    ) -> Result<Searched, Error> {
        let key = Self::key(scope, id);
        let is_current = |snapshot: &Snapshot| snapshot.is_current(state) && snapshot.suits(model);
        match self.cache.get(&key) {
            Cached::Snapshot(snapshot) if is_current(&snapshot) => return Ok(Searched::Index(snapshot)),
            Cached::TooLarge => return Ok(Searched::Parts),
            Cached::Snapshot(_) | Cached::Missing => {}
        }
        // One task changes the index; the others wait for the result.
        let lock = self.cache.update_lock(&key);
        let _guard = lock.lock().await;
        let before = match self.cache.get(&key) {
            Cached::Snapshot(snapshot) if is_current(&snapshot) => return Ok(Searched::Index(snapshot)),
            Cached::TooLarge => return Ok(Searched::Parts),
            Cached::Snapshot(snapshot) => Some(snapshot),
            Cached::Missing => None,
        };
        let usable = before.filter(|before| before.can_advance(state) && before.suits(model));
        self.update(scope, id, state.clone(), model.map(str::to_owned), usable).await
    }

    /// Brings an index up to date, or builds it. If the state changes so that this is not possible, starts again.
    async fn update(
        &self,
        scope: &Scope,
        id: &VectorStoreId,
        mut state: StoreState,
        mut model: Option<String>,
        mut before: Option<Arc<Snapshot>>,
    ) -> Result<Searched, Error> {
        for _ in 0..UPDATE_ATTEMPTS_MAX {
            let mut build = None;
            let snapshot = if let Some(snapshot) = before.take() {
                Snapshot::clone(&snapshot)
            } else {
                build = self.builds.acquire().await.ok();
                if model.is_none() {
                    model = self.stored_model(scope, id).await?;
                }
                let mut empty = Snapshot::empty(model.clone(), &state);
                empty.add_segments(&self.store.segments(id).await?, self.store.vector_search().is_some());
                empty
            };
            let advanced = self.advance(scope, id, snapshot, &state).await;
            drop(build);
            match advanced {
                Ok(searched) => return Ok(searched),
                Err(Failure::Forgotten) => {
                    state = self.store.store_state(scope, id).await?.ok_or_else(|| Error::NoStore(id.clone()))?;
                }
                Err(Failure::NewModel(found)) => model = Some(found),
                Err(Failure::Store(error)) => return Err(error.into()),
            }
        }
        Err(store::Error::timed_out().into())
    }

    /// Makes all changes since a snapshot. The snapshots on the way are stored, so that a search that is cancelled has not
    /// worked in vain.
    async fn advance(
        &self,
        scope: &Scope,
        id: &VectorStoreId,
        mut snapshot: Snapshot,
        state: &StoreState,
    ) -> Result<Searched, Failure> {
        let key = Self::key(scope, id);
        let before = snapshot.clone();
        let started = Instant::now();
        let model = snapshot.model.clone();
        let vectors = match &model {
            Some(model) => Vectors::Of(model),
            None => Vectors::None { wanted: self.questions.model() },
        };
        let mut changes = Changes::new(&*self.store, id, vectors, snapshot.version);
        loop {
            let page = changes.next(&|file| snapshot.index.has_chunks(file.id.as_str())).await?;
            let Some(page) = page else { break };
            let changed = snapshot.index;
            let (index, bytes) = tokio::task::spawn_blocking(move || {
                let index = changed.apply(page.changes);
                let bytes = index.bytes();
                (index, bytes)
            })
            .await
            .map_err(|_| store::Error::timed_out())?;
            snapshot.index = index;
            if let Some(version) = page.version {
                self.check_removals(scope, id, &before).await?;
                snapshot.version = version;
                self.cache.put(&key, Arc::new(snapshot.clone()));
            }
            if !self.cache.grow(&key, bytes) {
                self.cache.put(&key, Arc::new(snapshot));
                tracing::warn!(
                    vector_store.id = %id, bytes, "the index of a vector store is larger than search_cache_bytes_max; it is \
                     searched in parts"
                );
                return Ok(Searched::Parts);
            }
        }
        self.check_removals(scope, id, &before).await?;
        // The row of the newest change may have been removed, so that no change has the version of the state.
        snapshot.version = snapshot.version.max(state.version);
        let snapshot = Arc::new(snapshot);
        self.cache.put(&key, snapshot.clone());
        tracing::debug!(
            vector_store.id = %id, chunks = snapshot.index.chunks(), version = snapshot.version,
            duration_ms = started.elapsed().as_millis(), "updated an index"
        );
        Ok(Searched::Index(snapshot))
    }

    /// Fails if removals after a snapshot may have been forgotten before they were read. The version that the changes lead to
    /// does not show this, so it must be called after they were read, and before what they lead to is used.
    async fn check_removals(&self, scope: &Scope, id: &VectorStoreId, before: &Snapshot) -> Result<(), Failure> {
        let state = self.store.store_state(scope, id).await?;
        if state.is_none_or(|state| before.can_advance(&state)) { Ok(()) } else { Err(Failure::Forgotten) }
    }

    /// Returns the model of the embeddings that most chunks have, among those of the configured model.
    async fn stored_model(&self, scope: &Scope, id: &VectorStoreId) -> Result<Option<String>, Error> {
        let Some(name) = self.questions.model() else { return Ok(None) };
        let Some(summary) = self.store.index_summary(scope, id).await? else { return Ok(None) };
        let mut chunks: HashMap<&str, u64> = HashMap::new();
        for group in &summary.groups {
            if let Some(model) = group.embedding_model.as_deref().filter(|model| model_name(model) == name) {
                *chunks.entry(model).or_default() += group.chunks;
            }
        }
        Ok(chunks.into_iter().max_by_key(|(model, chunks)| (*chunks, *model)).map(|(model, _)| model.to_owned()))
    }

    /// Returns the embeddings of the queries if they can be compared with any, or the reason why they cannot. Replaces
    /// indexes with embeddings of another model.
    async fn embed(
        &self,
        scope: &Scope,
        stores: &[VectorStoreId],
        searched: &mut [Searched],
        queries: &[String],
        weights: HybridWeights,
        query: &Query,
    ) -> Result<(Option<EmbeddedQueries>, Option<LexicalOnly>), Error> {
        if self.questions.model().is_none() || weights.embedding <= 0.0 {
            return Ok((None, None));
        }
        let (mut has_chunks, mut has_vectors) = (false, false);
        for (id, searched) in stores.iter().zip(searched.iter()) {
            match searched {
                Searched::Index(snapshot) => {
                    has_chunks |= snapshot.index.chunks() > 0;
                    has_vectors |= snapshot.has_vectors();
                }
                Searched::Parts => {
                    has_chunks = true;
                    has_vectors |= self.stored_model(scope, id).await?.is_some();
                }
            }
        }
        if !has_vectors {
            return Ok((None, has_chunks.then_some(LexicalOnly::NoEmbeddings)));
        }
        let embedded = match self.questions.embed(scope, queries, &query.caller).await {
            Ok(embedded) => embedded,
            Err(error) => {
                let cause = error.for_log();
                tracing::debug!(cause, "the queries have no embeddings; searching by words only");
                if let Some(Repetitions { times: searches, .. }) = self.by_words.count("", Instant::now()) {
                    let model = self.questions.model();
                    tracing::warn!(model, searches, cause, "searches use words only: the queries have no embeddings");
                }
                return Ok((None, Some(LexicalOnly::ModelFailed(error))));
            }
        };
        for (id, searched) in stores.iter().zip(searched.iter_mut()) {
            if matches!(searched, Searched::Index(snapshot) if !snapshot.suits(Some(&embedded.model))) {
                let state = self.store.store_state(scope, id).await?.ok_or_else(|| Error::NoStore(id.clone()))?;
                *searched = self.current(scope, id, &state, Some(&embedded.model)).await?;
            }
        }
        let is_found = |searched: &Searched| match searched {
            Searched::Index(snapshot) => snapshot.has_vectors(),
            Searched::Parts => true,
        };
        if !searched.iter().any(is_found) {
            return Ok((None, Some(LexicalOnly::NoEmbeddings)));
        }
        Ok((Some(embedded), None))
    }

    /// Returns the best chunks of all vector stores with their scores.
    async fn best(
        &self,
        scope: &Scope,
        stores: &[VectorStoreId],
        searched: &[Searched],
        question: &Arc<Question>,
        model: Option<&str>,
    ) -> Result<Vec<(Located, f64)>, Error> {
        let mut found = Vec::new();
        let mut snapshots = Vec::new();
        for (number, (id, searched)) in stores.iter().zip(searched).enumerate() {
            match searched {
                Searched::Index(snapshot) if snapshot.segments.is_empty() => snapshots.push((number, snapshot.clone())),
                Searched::Index(snapshot) => {
                    found.push(self.search_stored(scope, id, number, snapshot.clone(), question, model).await?);
                }
                Searched::Parts => {
                    found.push(self.scan(scope, id, number, question, model).await?);
                }
            }
        }
        let chunks: usize = snapshots.iter().map(|(_, snapshot)| snapshot.index.chunks()).sum();
        let computation = Computation { snapshots, found, question: question.clone() };
        if chunks * question.queries.len() < INLINE_CHUNKS {
            return Ok(computation.run());
        }
        Ok(self.computations.run(computation).await.ok_or_else(store::Error::timed_out)?)
    }

    /// Adds the texts to the best chunks. Those that were removed meanwhile may be left out.
    async fn hits(
        &self,
        stores: &[VectorStoreId],
        searched: &[Searched],
        best: Vec<(Located, f64)>,
    ) -> Result<Vec<Hit>, Error> {
        let facts_of = |located: &Located| match (&located.facts, searched.get(located.store)) {
            (Some(facts), _) => Some(facts.clone()),
            (None, Some(Searched::Index(snapshot))) => {
                snapshot.index.file(located.candidate.file).map(|(facts, _)| facts.clone())
            }
            (None, _) => None,
        };
        let best: Vec<_> =
            best.into_iter().filter_map(|(located, score)| Some((facts_of(&located)?, located, score))).collect();
        if best.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<_> =
            best.iter().map(|(facts, located, _)| (facts.id.clone(), located.candidate.number)).collect();
        let mut texts = self.texts.of(&keys).await?;
        let hits = best.into_iter().zip(keys).filter_map(|((facts, located, score), key)| {
            let text = texts.remove(&key)?;
            Some(Hit {
                store: stores.get(located.store)?.clone(),
                file_id: facts.file_id.clone(),
                filename: facts.filename.clone(),
                attributes: facts.attributes.clone(),
                number: located.candidate.number,
                score,
                lexical: located.candidate.lexical.into(),
                vector: located.candidate.vector.map(f64::from),
                text: text.text.clone(),
                overlap_bytes: text.overlap_bytes as usize,
            })
        });
        Ok(hits.collect())
    }

    /// Marks vector stores as used, at most twice per minute each.
    async fn touch(&self, scope: &Scope, stores: &[VectorStoreId]) -> Result<(), store::Error> {
        let now = self.clock.now();
        let is_due = |id: &&VectorStoreId| self.cache.must_touch(&Self::key(scope, id), now, TOUCH_EVERY_S);
        let due: Vec<VectorStoreId> = stores.iter().filter(is_due).cloned().collect();
        if due.is_empty() { Ok(()) } else { self.store.touch_vector_stores(scope, &due).await }
    }
}
