//! The stored parts of the indexes of large vector stores.
//!
//! A segment has the inverted lists and the vectors of some files of a vector store. The chunks of a file never change, so a
//! segment is valid as long as it exists; whether a file was removed is in its row. One server at a time writes the segments
//! of a vector store. They are published together when they are complete.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;

use super::{ChunkKey, Error};
use crate::api::VectorStoreId;

/// Number of the first part of a segment that is a block of vectors. Those before are inverted lists.
pub const FIRST_BLOCK: u32 = 4_096;

/// Where the vectors of a segment are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VectorsIn {
    /// In blocks, which a search reads all.
    Blocks,
    /// In the database, which finds the nearest.
    Database,
}

/// A segment without its lists and vectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexSegment {
    /// Identifies it.
    pub id: String,
    /// The model of the vectors and its dimensions, as `model@dimensions`.
    pub embedding_model: Option<String>,
    /// Where the vectors are.
    pub vectors: VectorsIn,
    /// Number of chunks.
    pub chunks: u64,
    /// The files and the lengths of the chunks.
    pub body: Vec<u8>,
}

/// A claim to write the segments of a vector store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexClaim {
    /// The vector store.
    pub store: VectorStoreId,
    /// Identifies the claim.
    pub owner: String,
}

/// Segments of the indexes of vector stores. Callers must have checked the project of the vector store.
#[async_trait]
pub trait Segments {
    /// Claims a vector store for a duration, or renews the claim. Returns `false` if another one is valid.
    async fn claim_index(&self, claim: &IndexClaim, duration: Duration) -> Result<bool, Error>;
    /// Ends a claim.
    async fn release_index(&self, claim: &IndexClaim) -> Result<(), Error>;
    /// Returns the published segments of a vector store, the oldest first.
    async fn segments(&self, store: &VectorStoreId) -> Result<Vec<IndexSegment>, Error>;
    /// Stores a segment, which is not published yet, with its parts in the order of their numbers.
    ///
    /// # Errors
    /// [`Error::Stale`] if the claim is no longer valid.
    async fn add_segment(
        &self,
        claim: &IndexClaim,
        segment: &IndexSegment,
        parts: &[(u32, Vec<u8>)],
    ) -> Result<(), Error>;
    /// Publishes segments, and removes others, at once.
    ///
    /// # Errors
    /// [`Error::Stale`] if the claim is no longer valid, or the vector store was deleted.
    async fn publish_segments(&self, claim: &IndexClaim, added: &[String], removed: &[String]) -> Result<(), Error>;
    /// Returns those parts of segments that exist. `None`: one of the segments does not.
    async fn segment_parts(
        &self,
        segments: &[String],
        parts: &[u32],
    ) -> Result<Option<HashMap<(String, u32), Vec<u8>>>, Error>;
    /// Returns the next blocks of vectors of a segment, after the part with the number `after`: up to `limit`.
    async fn vector_blocks(&self, segment: &str, after: Option<u32>, limit: u32) -> Result<Vec<(u32, Vec<u8>)>, Error>;
    /// Returns the embeddings of those chunks that have one of a model, given as `model@dimensions`: little-endian 16-bit
    /// floats.
    async fn chunk_embeddings(&self, model: &str, keys: &[ChunkKey]) -> Result<HashMap<ChunkKey, Vec<u8>>, Error>;
    /// Removes a segment that is not needed. Returns whether there may be more.
    async fn remove_segment(&self) -> Result<bool, Error>;
}

/// Finds the vectors that are nearest to another one in the database, if it can do that.
#[async_trait]
pub trait NearestChunks {
    /// Returns the name and the version of what finds vectors, or `None` if the database cannot.
    fn vector_search(&self) -> Option<&str>;
    /// Stores the embeddings of chunks, to find them. Returns `false` if the database cannot find vectors with this number of
    /// dimensions.
    async fn add_vectors(
        &self,
        store: &VectorStoreId,
        dimensions: usize,
        vectors: &[(ChunkKey, Vec<f32>)],
    ) -> Result<bool, Error>;
    /// Builds what finds the vectors of a vector store quickly, unless it is there and valid. Takes about a minute for 100,000 of
    /// them. Builds of several vector stores follow each other, also those of several servers.
    async fn index_vectors(&self, store: &VectorStoreId, dimensions: usize) -> Result<(), Error>;
    /// Returns up to `limit` chunks of a vector store whose embeddings are near to another one, about the nearest ones. `None`:
    /// the database cannot find vectors.
    async fn nearest_chunks(
        &self,
        store: &VectorStoreId,
        embedding: &[f32],
        limit: u32,
    ) -> Result<Option<Vec<ChunkKey>>, Error>;
}
