//! Vector stores: their rows, the jobs that process their files, and what searches read.
//!
//! The version of a vector store is raised in the transaction of each change of what can be found, and the changed file gets
//! this version. So an index in memory is current if it has the version, and otherwise reads the files with a later one.
//! A deleted file remains as a row for [`TOMBSTONE_KEPT_S`], so that indexes learn of it. An index that is older than the
//! newest removed row (`purged_version`) must be built anew.
//!
//! Rows are locked in the order: files, vector stores, files of vector stores.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;

use super::{Error, Lease};
use crate::api::vector_store::{
    Attributes, ChunkingStrategy, IndexSummary, NewStoreFile, StoreFileError, StoreFileStatus,
};
use crate::api::{
    FileBatch, FileBatchId, FileId, ModifyVectorStore, Page, PageQuery, ProjectId, Scope, StoreFile, StoreFileId,
    Timestamp, VectorStore, VectorStoreId,
};

/// How long the row of a deleted file is kept after its chunks are removed, in seconds.
pub const TOMBSTONE_KEPT_S: i64 = 3_600;
/// How long the files of an expired vector store are kept, in seconds.
pub const EXPIRED_KEPT_S: i64 = 86_400;

/// A batch of files to add.
#[derive(Debug, Clone)]
pub struct NewFileBatch {
    /// The batch ID.
    pub id: FileBatchId,
    /// When it was created.
    pub created_at: Timestamp,
}

/// A part of the text of a file: chunks without their overlaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextPage {
    /// The texts of consecutive chunks.
    pub texts: Vec<String>,
    /// The number of the last chunk, if there are more.
    pub next: Option<u32>,
}

/// Vector stores, their files, and batches of files. `Ok(None)`: the vector store, the file or the batch does not exist.
#[async_trait]
pub trait VectorStores {
    /// Stores a new vector store with files. Returns it as stored.
    ///
    /// # Errors
    /// [`Error::NoFiles`], [`Error::Invalid`] if a file cannot be searched.
    async fn create_vector_store(
        &self,
        scope: &Scope,
        store: &VectorStore,
        files: &[NewStoreFile],
    ) -> Result<VectorStore, Error>;
    /// Returns a vector store.
    async fn vector_store(&self, scope: &Scope, id: &VectorStoreId) -> Result<Option<VectorStore>, Error>;
    /// Returns a page of all vector stores.
    async fn list_vector_stores(&self, scope: &Scope, query: &PageQuery) -> Result<Page<VectorStore>, Error>;
    /// Modifies a vector store, which counts as a use of it. Concurrent changes all take effect.
    ///
    /// # Errors
    /// [`Error::VectorStoreExpired`] if the request changes the expiry of an expired vector store.
    async fn modify_vector_store(
        &self,
        scope: &Scope,
        id: &VectorStoreId,
        change: &ModifyVectorStore,
    ) -> Result<Option<VectorStore>, Error>;
    /// Deletes a vector store. Its files are removed in the background. Returns whether it existed.
    async fn delete_vector_store(&self, scope: &Scope, id: &VectorStoreId) -> Result<bool, Error>;
    /// Sets the last use of the vector stores that have not expired, which postpones their expiry. Writes at most once per
    /// minute for each.
    async fn touch_vector_stores(&self, scope: &Scope, ids: &[VectorStoreId]) -> Result<(), Error>;
    /// Adds a file to a vector store. A file that is there already is unchanged, but processed again if it has failed or was
    /// cancelled.
    ///
    /// # Errors
    /// [`Error::NoFiles`], [`Error::Invalid`] if the file cannot be searched, [`Error::VectorStoreExpired`].
    async fn add_store_file(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        file: &NewStoreFile,
        now: Timestamp,
    ) -> Result<Option<StoreFile>, Error>;
    /// Adds files to a vector store as a batch, like [`VectorStores::add_store_file`]. The batch has also the files that
    /// were there already.
    ///
    /// # Errors
    /// Those of [`VectorStores::add_store_file`].
    async fn add_file_batch(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        batch: &NewFileBatch,
        files: &[NewStoreFile],
    ) -> Result<Option<FileBatch>, Error>;
    /// Returns a file of a vector store.
    async fn store_file(&self, scope: &Scope, store: &VectorStoreId, file: &FileId)
    -> Result<Option<StoreFile>, Error>;
    /// Returns a page of the files of a vector store or of one of its batches, or only of those with a status. The cursors
    /// are file IDs.
    async fn list_store_files(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        batch: Option<&FileBatchId>,
        status: Option<StoreFileStatus>,
        query: &PageQuery,
    ) -> Result<Page<StoreFile>, Error>;
    /// Replaces the attributes of a file.
    async fn modify_store_file(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        file: &FileId,
        attributes: &Attributes,
    ) -> Result<Option<StoreFile>, Error>;
    /// Processes a file again that has failed or was cancelled. Another one is returned unchanged.
    async fn retry_store_file(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        file: &FileId,
    ) -> Result<Option<StoreFile>, Error>;
    /// Removes a file from a vector store. Returns whether it was there.
    async fn delete_store_file(&self, scope: &Scope, store: &VectorStoreId, file: &FileId) -> Result<bool, Error>;
    /// Returns a batch.
    async fn file_batch(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        id: &FileBatchId,
    ) -> Result<Option<FileBatch>, Error>;
    /// Cancels the files of a batch that are in progress. A batch without such files is unchanged.
    async fn cancel_file_batch(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        id: &FileBatchId,
    ) -> Result<Option<FileBatch>, Error>;
    /// Returns a part of the text of a file, after the chunk with the number `after`: about `bytes_max` bytes, but at least
    /// one chunk, if there is one. A file whose text is not stored has none.
    async fn store_file_text(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        file: &FileId,
        after: Option<u32>,
        bytes_max: usize,
    ) -> Result<Option<TextPage>, Error>;
    /// Returns what the index of a vector store has.
    async fn index_summary(&self, scope: &Scope, id: &VectorStoreId) -> Result<Option<IndexSummary>, Error>;
}

/// A file of a vector store that was claimed, to process it.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedStoreFile {
    /// The lease. Its ID is that of the file in the vector store.
    pub lease: Lease,
    /// Number of attempts since the file last made progress, including this one.
    pub attempts: u32,
    /// The cause of the previous failure, if it was recorded.
    pub last_failure: Option<String>,
    /// The project.
    pub project: ProjectId,
    /// The vector store.
    pub vector_store: VectorStoreId,
    /// The file.
    pub file_id: FileId,
    /// The name of the file. A NUL character is replaced.
    pub filename: String,
    /// How the text is split.
    pub chunking: ChunkingStrategy,
    /// Number of chunks, if an earlier attempt has stored all of them.
    pub chunks: Option<u32>,
    /// The language of the stored chunks.
    pub language: Option<String>,
    /// The model of the embeddings that an earlier attempt has stored.
    pub embedding_model: Option<String>,
}

impl ClaimedStoreFile {
    /// Identifies the file in the vector store.
    #[must_use]
    pub fn id(&self) -> StoreFileId {
        StoreFileId::from_stored(&self.lease.id)
    }
}

/// A chunk to store.
#[derive(Debug, Clone, PartialEq)]
pub struct NewChunk {
    /// The text.
    pub text: String,
    /// Leading bytes of the text that the chunk before has as well.
    pub overlap_bytes: u32,
    /// Number of tokens.
    pub tokens: u32,
    /// The words of the text, analysed.
    pub terms: Vec<u8>,
    /// SHA-256 of the text.
    pub content_hash: [u8; 32],
    /// Its embedding, if it is known: little-endian 16-bit floats.
    pub embedding: Option<Vec<u8>>,
}

/// A chunk without an embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkToEmbed {
    /// Its number in the file.
    pub number: u32,
    /// The text.
    pub text: String,
    /// SHA-256 of the text.
    pub content_hash: [u8; 32],
}

/// The end of the processing of a file.
#[derive(Debug, Clone, Copy)]
pub struct CompletedFile<'a> {
    /// Size of the text, in bytes.
    pub usage_bytes: u64,
    /// The model of the embeddings and its dimensions, as `model@dimensions`. `None`: there are none.
    pub embedding_model: Option<&'a str>,
    /// The language and the chunks, unless they are stored already.
    pub text: Option<(Option<&'a str>, &'a [NewChunk])>,
}

/// Processing of the files of vector stores, for all projects. A file is a job of the kind
/// [`StoreFile`](super::JobKind::StoreFile).
///
/// Calls with a lease fail with [`Error::Stale`] if it is no longer valid: because another server has claimed the file, or
/// because a client has deleted or cancelled it.
#[async_trait]
pub trait Ingestion {
    /// Claims a due file for the duration `lease`. Returns `None` if no file is due.
    ///
    /// Selects the next vector store after `after_store` that has a due file, and of that store the file that has been due
    /// longest. Skips the files in `except`, and those with more than `attempts_max` attempts since they last made progress.
    async fn claim_store_file(
        &self,
        lease: Duration,
        after_store: &str,
        except: &[String],
        attempts_max: u32,
    ) -> Result<Option<ClaimedStoreFile>, Error>;
    /// Stores the chunks of a file, and replaces earlier ones. Many chunks are stored in several transactions; until the last
    /// one, the file counts as not chunked.
    async fn save_chunks(&self, lease: &Lease, language: Option<&str>, chunks: &[NewChunk]) -> Result<(), Error>;
    /// Returns up to `limit` chunks without an embedding of this model, in order, after the chunk with the number `after`.
    async fn chunks_to_embed(
        &self,
        id: &StoreFileId,
        model: &str,
        after: Option<u32>,
        limit: u32,
    ) -> Result<Vec<ChunkToEmbed>, Error>;
    /// Returns the stored embeddings of texts with these hashes, by the same model, of the same project.
    async fn known_embeddings(
        &self,
        project: &ProjectId,
        model: &str,
        hashes: &[[u8; 32]],
    ) -> Result<HashMap<[u8; 32], Vec<u8>>, Error>;
    /// Stores embeddings by chunk number. Those of another model are removed.
    async fn save_embeddings(&self, lease: &Lease, model: &str, embeddings: &[(u32, Vec<u8>)]) -> Result<(), Error>;
    /// Makes a file searchable.
    async fn complete_store_file(&self, lease: &Lease, completed: &CompletedFile<'_>) -> Result<(), Error>;
    /// Ends the processing of a file with an error.
    async fn fail_store_file(&self, lease: &Lease, error: &StoreFileError) -> Result<(), Error>;
    /// Removes some of the data of deleted files and vector stores, and of those that expired some time ago: up to about
    /// `limit` rows. Returns whether there may be more.
    async fn remove_store_data(&self, limit: u32) -> Result<bool, Error>;
}

/// What can be found in a vector store at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreState {
    /// Raised by each change.
    pub version: i64,
    /// An index with an older version must be built anew.
    pub purged_version: i64,
    /// When the vector store expires.
    pub expires_at: Option<Timestamp>,
    /// Whether it has expired.
    pub is_expired: bool,
    /// Whether some of its files are in progress.
    pub is_in_progress: bool,
}

/// A file that can be found, or that was removed.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexedFile {
    /// Identifies the file in the vector store.
    pub id: StoreFileId,
    /// The file.
    pub file_id: FileId,
    /// The name of the file.
    pub filename: String,
    /// The attributes.
    pub attributes: Attributes,
    /// The language of the text, if it was detected.
    pub language: Option<String>,
    /// The model of the embeddings and its dimensions, as `model@dimensions`.
    pub embedding_model: Option<String>,
    /// The version of the vector store after the change.
    pub changed_version: i64,
    /// Increases with each file that is added.
    pub seq: i64,
    /// Whether it was removed.
    pub is_deleted: bool,
}

/// What an index has of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedChunk {
    /// Identifies the file in the vector store.
    pub store_file: StoreFileId,
    /// Its number in the file.
    pub number: u32,
    /// Number of tokens.
    pub tokens: u32,
    /// The words of the text, analysed.
    pub terms: Vec<u8>,
    /// Its embedding: little-endian 16-bit floats.
    pub embedding: Option<Vec<u8>>,
}

/// Identifies a chunk: its file in the vector store, and its number.
pub type ChunkKey = (StoreFileId, u32);

/// The text of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkText {
    /// The text.
    pub text: String,
    /// Leading bytes of the text that the chunk before has as well.
    pub overlap_bytes: u32,
}

/// What searches read. Only [`SearchData::store_state`] checks the project: callers must call it first.
#[async_trait]
pub trait SearchData {
    /// Returns the state of a vector store.
    async fn store_state(&self, scope: &Scope, id: &VectorStoreId) -> Result<Option<StoreState>, Error>;
    /// Returns the files that were changed after the version `since`, in the order of (`changed_version`, `seq`): about
    /// `limit`, but always all changes of a version. Returns an empty list after the last change.
    async fn changed_files(&self, store: &VectorStoreId, since: i64, limit: u32) -> Result<Vec<IndexedFile>, Error>;
    /// Returns chunks of these files in the order of their keys, after the key `after`: about `bytes_max` bytes, but at least
    /// one chunk, if there is one.
    async fn index_chunks(
        &self,
        files: &[StoreFileId],
        after: Option<&ChunkKey>,
        bytes_max: usize,
    ) -> Result<Vec<IndexedChunk>, Error>;
    /// Returns the texts of those chunks that exist.
    async fn chunk_texts(&self, keys: &[ChunkKey]) -> Result<HashMap<ChunkKey, ChunkText>, Error>;
}
