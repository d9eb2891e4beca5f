//! What the index of a vector store has: models of embeddings, languages, sizes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::api::id::VectorStoreId;

/// The searchable files of a vector store, in groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexSummary {
    /// Raised with each change of what can be found.
    pub version: i64,
    /// The files with the same embedding model and language.
    pub groups: Vec<IndexedGroup>,
}

/// Searchable files with the same embedding model and language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedGroup {
    /// The model of their embeddings and its dimensions, as `model@dimensions`. `None`: they have no embeddings.
    pub embedding_model: Option<String>,
    /// Their language, if it was detected.
    pub language: Option<String>,
    /// Number of files.
    pub files: u64,
    /// Number of chunks.
    pub chunks: u64,
    /// Size of their texts, in bytes.
    pub usage_bytes: u64,
}

/// The wire form of an [`IndexSummary`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct VectorStoreIndex<'a> {
    object: &'static str,
    vector_store_id: &'a VectorStoreId,
    /// Raised with each change of what can be found.
    version: i64,
    files: u64,
    chunks: u64,
    usage_bytes: u64,
    /// The chunks of each embedding model. Without a model: chunks that are found by their words only.
    embeddings: Vec<Embeddings<'a>>,
    /// The files of each detected language.
    languages: BTreeMap<&'a str, u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "VectorStoreEmbeddings")]
struct Embeddings<'a> {
    model: Option<&'a str>,
    dimensions: Option<u32>,
    files: u64,
    chunks: u64,
}

impl<'a> VectorStoreIndex<'a> {
    /// Creates the wire form.
    #[must_use]
    pub fn new(id: &'a VectorStoreId, summary: &'a IndexSummary) -> Self {
        let (mut models, mut languages) = (BTreeMap::<Option<&str>, (u64, u64)>::new(), BTreeMap::new());
        for group in &summary.groups {
            let (files, chunks) = models.entry(group.embedding_model.as_deref()).or_default();
            *files += group.files;
            *chunks += group.chunks;
            if let Some(language) = &group.language {
                *languages.entry(language.as_str()).or_default() += group.files;
            }
        }
        let embeddings = models.into_iter().map(|(model, (files, chunks))| {
            let parts = model.map(|model| model.rsplit_once('@').unwrap_or((model, "")));
            Embeddings {
                model: parts.map(|(name, _)| name),
                dimensions: parts.and_then(|(_, dimensions)| dimensions.parse().ok()),
                files,
                chunks,
            }
        });
        Self {
            object: "vector_store.index",
            vector_store_id: id,
            version: summary.version,
            files: summary.groups.iter().map(|group| group.files).sum(),
            chunks: summary.groups.iter().map(|group| group.chunks).sum(),
            usage_bytes: summary.groups.iter().map(|group| group.usage_bytes).sum(),
            embeddings: embeddings.collect(),
            languages,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files_are_summed_by_model_and_by_language() {
        let group = |embedding_model: Option<&str>, language: Option<&str>, files: u64| IndexedGroup {
            embedding_model: embedding_model.map(str::to_owned),
            language: language.map(str::to_owned),
            files,
            chunks: files * 10,
            usage_bytes: files * 100,
        };
        let groups = vec![
            group(None, Some("de"), 1),
            group(Some("all-minilm:l6@384"), Some("de"), 2),
            group(Some("all-minilm:l6@384"), None, 3),
        ];
        let id = VectorStoreId::from_stored("vs_1");

        let wire = serde_json::to_value(VectorStoreIndex::new(&id, &IndexSummary { version: 7, groups })).unwrap();

        assert_eq!(
            wire,
            json!({
                "object": "vector_store.index", "vector_store_id": "vs_1", "version": 7, "files": 6, "chunks": 60,
                "usage_bytes": 600,
                "embeddings": [
                    {"model": null, "dimensions": null, "files": 1, "chunks": 10},
                    {"model": "all-minilm:l6", "dimensions": 384, "files": 5, "chunks": 50},
                ],
                "languages": {"de": 3},
            })
        );
    }
}
