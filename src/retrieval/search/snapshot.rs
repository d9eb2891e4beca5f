//! The index of a vector store at one of its versions, and the pages of changes from which it is made.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::json;

use crate::api::vector_store::Attributes;
use crate::api::{FileId, StoreFileId, VectorStoreId};
use crate::llm::tokens::json_bytes;
use crate::retrieval::index::{Change, Facts, IndexChunk, IndexFile, SegmentId, StoreIndex};
use crate::retrieval::lexical::{Analyzer, Language, Terms};
use crate::store::{self, ChunkKey, IndexSegment, IndexedChunk, IndexedFile, StoreState, VectorsIn};

/// Changed files that are read at once.
const FILES_PAGE: u32 = 1_000;
/// Size of the chunks that are read at once, in bytes.
const CHUNKS_PAGE_BYTES: usize = 8 * 1024 * 1024;
/// Number of texts that are read at once, if they must be analyzed again.
const TEXTS_PAGE: usize = 64;

/// What a result says about its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileFacts {
    pub(super) id: StoreFileId,
    pub(super) file_id: FileId,
    pub(super) filename: String,
    pub(super) attributes: Attributes,
}

impl FileFacts {
    fn of(file: &IndexedFile) -> Facts<Self> {
        let facts = Self {
            id: file.id.clone(),
            file_id: file.file_id.clone(),
            filename: file.filename.clone(),
            attributes: file.attributes.clone(),
        };
        let texts = facts.id.as_str().len() + facts.file_id.as_str().len() + facts.filename.len();
        // In memory, a pair takes about this much more than its JSON.
        let attributes = json_bytes(&json!(facts.attributes)) * 4;
        Facts { bytes: size_of::<Self>() + texts + attributes, facts: Arc::new(facts) }
    }
}

/// The index of a vector store at one of its versions.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) index: StoreIndex<FileFacts>,
    /// The model of its vectors and their dimensions, as `model@dimensions`. `None`: it has no vectors.
    pub(super) model: Option<String>,
    /// It has all changes up to this version, and maybe later ones.
    pub(super) version: i64,
    /// It has no file that was removed before the vector store was purged up to this version.
    purged_version: i64,
    /// The stored segments of the index, and where their vectors are; `None`: they have none.
    pub(super) segments: Arc<[(SegmentId, Option<VectorsIn>)]>,
}

impl Snapshot {
    /// Creates the snapshot before the first change, for the state of the vector store at this time.
    pub(super) fn empty(model: Option<String>, state: &StoreState) -> Self {
        let dimensions = model.as_deref().and_then(dimensions);
        Self {
            index: StoreIndex::new(dimensions),
            model,
            version: 0,
            purged_version: state.purged_version,
            segments: Arc::default(),
        }
    }

    /// Adds those of the stored segments that can be used. Returns the IDs of the others. `finds_vectors`: whether the
    /// database does.
    pub(super) fn add_segments(&mut self, stored: &[IndexSegment], finds_vectors: bool) -> Vec<String> {
        let (mut used, mut unused) = (self.segments.to_vec(), Vec::new());
        for segment in stored {
            let id = SegmentId::new(&segment.id);
            // Without a model, their vectors are not needed.
            let has_model = self.model.is_none() || self.model == segment.embedding_model;
            let has_vectors = self.model.is_some() && segment.embedding_model.is_some();
            let is_usable = has_model && (!has_vectors || segment.vectors == VectorsIn::Blocks || finds_vectors);
            match is_usable.then(|| self.index.clone().with_stored(id.clone(), &segment.body)).flatten() {
                Some(index) => {
                    self.index = index;
                    used.push((id, has_vectors.then_some(segment.vectors)));
                }
                None => unused.push(segment.id.clone()),
            }
        }
        self.segments = used.into();
        unused
    }

    /// Reports whether chunks are found by an embedding.
    pub(super) fn has_vectors(&self) -> bool {
        self.index.vectors() > 0 || self.segments.iter().any(|(_, vectors)| vectors.is_some())
    }

    /// Reports whether the database finds vectors of segments.
    pub(super) fn has_vectors_in_database(&self) -> bool {
        self.segments.iter().any(|(_, vectors)| *vectors == Some(VectorsIn::Database))
    }

    /// Reports whether this has all changes of a state.
    pub(super) fn is_current(&self, state: &StoreState) -> bool {
        self.version >= state.version && self.can_advance(state)
    }

    /// Reports whether this has the embeddings of a model, as `model@dimensions`, if there are any. Without embeddings, it
    /// suits all: it would have been built again for the first file that has some.
    pub(super) fn suits(&self, model: Option<&str>) -> bool {
        model.is_none() || self.model.is_none() || self.model.as_deref() == model
    }

    /// Reports whether this can be made current by later changes: the removals since then are still known.
    pub(super) fn can_advance(&self, state: &StoreState) -> bool {
        state.purged_version <= self.version.max(self.purged_version)
    }
}

/// Returns the dimensions of `model@dimensions`.
pub(super) fn dimensions(model: &str) -> Option<usize> {
    model.rsplit_once('@')?.1.parse().ok()
}

/// Returns the name of `model@dimensions`.
pub(super) fn model_name(model: &str) -> &str {
    model.rsplit_once('@').map_or(model, |(name, _)| name)
}

/// Which embeddings are read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Vectors<'a> {
    /// Those of a model, as `model@dimensions`.
    Of(&'a str),
    /// None. If a file has embeddings of the model with this name, they are wanted after all.
    None {
        /// The name.
        wanted: Option<&'a str>,
    },
}

/// A page of changes.
pub(super) struct ChangesPage {
    pub(super) changes: Vec<Change<FileFacts>>,
    /// If this page completes a version: the version.
    pub(super) version: Option<i64>,
}

/// Why changes were not read.
pub(super) enum Failure {
    Store(store::Error),
    /// A file has embeddings of this model, which are wanted.
    NewModel(String),
    /// Removals may have been forgotten before they were read: the index must be built anew.
    Forgotten,
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

/// Reads the changes of a vector store in pages of bounded size.
pub(super) struct Changes<'a> {
    store: &'a dyn store::Store,
    id: &'a VectorStoreId,
    vectors: Vectors<'a>,
    /// The changes up to this version were read.
    since: i64,
    /// The files whose chunks are being read.
    files: HashMap<StoreFileId, IndexedFile>,
    /// The last chunk that was read of these files.
    after: Option<ChunkKey>,
    /// The version that is complete when the chunks of these files have been read.
    next_version: i64,
}

impl<'a> Changes<'a> {
    pub(super) fn new(store: &'a dyn store::Store, id: &'a VectorStoreId, vectors: Vectors<'a>, since: i64) -> Self {
        Self { store, id, vectors, since, files: HashMap::new(), after: None, next_version: since }
    }

    /// Returns the next page of changes, or `None` after the last one.
    ///
    /// The chunks of a file are read unless `is_known` says that the file is in the index: the chunks of a file never
    /// change.
    pub(super) async fn next(
        &mut self,
        is_known: &(dyn Fn(&IndexedFile) -> bool + Sync),
    ) -> Result<Option<ChangesPage>, Failure> {
        if !self.files.is_empty() {
            return self.next_chunks().await.map(Some);
        }
        let changed = self.store.changed_files(self.id, self.since, FILES_PAGE).await?;
        let Some(last) = changed.last() else { return Ok(None) };
        self.next_version = last.changed_version;
        let mut changes = Vec::new();
        for file in changed {
            let key = file.id.to_string();
            if file.is_deleted {
                changes.push(Change::Remove { key });
            } else if is_known(&file) {
                changes.push(Change::Replace { key, facts: FileFacts::of(&file) });
            } else {
                self.check_model(&file)?;
                self.files.insert(file.id.clone(), file);
            }
        }
        let version = self.files.is_empty().then(|| self.complete());
        Ok(Some(ChangesPage { changes, version }))
    }

    fn complete(&mut self) -> i64 {
        self.files.clear();
        self.after = None;
        self.since = self.next_version;
        self.since
    }

    fn check_model(&self, file: &IndexedFile) -> Result<(), Failure> {
        let (Vectors::None { wanted: Some(wanted) }, Some(model)) = (self.vectors, &file.embedding_model) else {
            return Ok(());
        };
        if model_name(model) == wanted { Err(Failure::NewModel(model.clone())) } else { Ok(()) }
    }

    async fn next_chunks(&mut self) -> Result<ChangesPage, Failure> {
        let mut ids: Vec<StoreFileId> = self.files.keys().cloned().collect();
        // Those before the last one were read.
        ids.retain(|id| self.after.as_ref().is_none_or(|(last, _)| id >= last));
        ids.sort_unstable();
        let chunks = self.store.index_chunks(&ids, self.after.as_ref(), CHUNKS_PAGE_BYTES).await?;
        let Some(last) = chunks.last() else {
            return Ok(ChangesPage { changes: Vec::new(), version: Some(self.complete()) });
        };
        self.after = Some((last.store_file.clone(), last.number));
        let changes = self.parts(chunks).await?.into_iter().map(Change::Add).collect();
        Ok(ChangesPage { changes, version: None })
    }

    /// Returns the files, or parts of them, that have these chunks.
    async fn parts(&self, chunks: Vec<IndexedChunk>) -> Result<Vec<IndexFile<FileFacts>>, Failure> {
        let wanted = match self.vectors {
            Vectors::Of(model) => Some(model),
            Vectors::None { .. } => None,
        };
        let mut parts: Vec<(Part, Vec<IndexedChunk>)> = Vec::new();
        for mut chunk in chunks {
            let Some(file) = self.files.get(&chunk.store_file) else { continue };
            if wanted.is_none() || file.embedding_model.as_deref() != wanted {
                chunk.embedding = None;
            }
            match parts.last_mut() {
                Some((part, chunks)) if part.file.id == chunk.store_file => chunks.push(chunk),
                _ => parts.push((Part::new(file.clone()), vec![chunk])),
            }
        }
        // Decoding some megabytes takes a while.
        let decode = move || parts.into_iter().map(|(part, chunks)| part.decode(chunks)).collect::<Vec<_>>();
        let mut decoded = tokio::task::spawn_blocking(decode).await.unwrap_or_default();
        for (part, stale) in &mut decoded {
            self.analyze(part, std::mem::take(stale)).await?;
        }
        Ok(decoded.into_iter().map(|(part, _)| part).collect())
    }

    /// Analyzes the texts of chunks whose terms are those of another version.
    async fn analyze(&self, part: &mut IndexFile<FileFacts>, mut stale: VecDeque<usize>) -> Result<(), Failure> {
        let id = part.facts.facts.id.clone();
        while !stale.is_empty() {
            let indexes: Vec<usize> = stale.drain(..stale.len().min(TEXTS_PAGE)).collect();
            let keys: Vec<ChunkKey> = indexes.iter().map(|index| (id.clone(), part.chunks[*index].number)).collect();
            let mut texts = self.store.chunk_texts(&keys).await?;
            let texts: Vec<String> =
                keys.iter().map(|key| texts.remove(key).map(|text| text.text).unwrap_or_default()).collect();
            let language = part.language;
            let analyze = move || {
                let mut analyzer = Analyzer::new(language);
                texts.iter().map(|text| analyzer.analyze(text)).collect::<Vec<_>>()
            };
            let analyzed = tokio::task::spawn_blocking(analyze).await.unwrap_or_default();
            for (index, terms) in indexes.into_iter().zip(analyzed) {
                part.chunks[index].terms = terms;
            }
        }
        Ok(())
    }
}

/// A file whose chunks are decoded.
struct Part {
    file: IndexedFile,
}

impl Part {
    fn new(file: IndexedFile) -> Self {
        Self { file }
    }

    /// Decodes the chunks. Returns the indexes of those whose terms cannot be used as well.
    fn decode(self, chunks: Vec<IndexedChunk>) -> (IndexFile<FileFacts>, VecDeque<usize>) {
        let mut stale = VecDeque::new();
        let chunk = |(index, chunk): (usize, IndexedChunk)| {
            let terms = Terms::from_bytes(&chunk.terms).unwrap_or_else(|| {
                stale.push_back(index);
                Terms::default()
            });
            IndexChunk { number: chunk.number, terms, vector: chunk.embedding }
        };
        let chunks = chunks.into_iter().enumerate().map(chunk).collect();
        let part = IndexFile {
            key: self.file.id.to_string(),
            order: self.file.seq,
            language: self.file.language.as_deref().and_then(Language::from_code),
            facts: FileFacts::of(&self.file),
            chunks,
        };
        (part, stale)
    }
}
