//! The files of a vector store, and batches of them.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Attributes, ChunkingStrategy, FileCounts, FileCountsObject, attributes, chunking_strategy};
use crate::api::error::{Error, Kind};
use crate::api::id::{FileBatchId, FileId, Ids, StoreFileId, VectorStoreId};
use crate::api::rule::{At, array, id, missing, object, unsupported_value};
use crate::api::time::Timestamp;
use crate::request;

/// Maximum number of files of a batch.
const BATCH_FILES_MAX: usize = 2_000;

/// A file of a vector store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreFile {
    /// The file.
    pub file_id: FileId,
    /// The vector store.
    pub vector_store_id: VectorStoreId,
    /// When it was added to the vector store.
    pub created_at: Timestamp,
    /// The state of its processing.
    pub state: StoreFileState,
    /// The size of its text, in bytes. 0 until it is completed.
    pub usage_bytes: u64,
    /// How its text is split.
    pub chunking: ChunkingStrategy,
    /// The attributes set by the client.
    pub attributes: Attributes,
}

/// The state of a file of a vector store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreFileState {
    /// It is being processed, or waits for that.
    InProgress,
    /// It can be searched.
    Completed,
    /// It could not be processed.
    Failed(StoreFileError),
    /// Its processing was cancelled.
    Cancelled,
}

impl StoreFileState {
    /// Returns the status.
    #[must_use]
    pub fn status(&self) -> StoreFileStatus {
        match self {
            Self::InProgress => StoreFileStatus::InProgress,
            Self::Completed => StoreFileStatus::Completed,
            Self::Failed(_) => StoreFileStatus::Failed,
            Self::Cancelled => StoreFileStatus::Cancelled,
        }
    }
}

/// The status of a file of a vector store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of the API reference")]
pub enum StoreFileStatus {
    InProgress,
    Completed,
    Failed,
    Cancelled,
}

impl StoreFileStatus {
    /// All statuses, in the order of the API reference.
    pub const ALL: [Self; 4] = [Self::InProgress, Self::Completed, Self::Failed, Self::Cancelled];

    /// Returns the name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns the status with a name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Parses the query parameter `filter`.
    ///
    /// # Errors
    /// 400 with the supported values.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::of_name(text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|status| status.name()).collect();
            unsupported_value(&At::Member(&At::Root, "filter"), text, &names)
        })
    }
}

/// Why a file of a vector store could not be processed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "VectorStoreFileError")]
pub struct StoreFileError {
    /// The kind of the error.
    pub code: StoreFileErrorCode,
    /// What a person can do about it.
    pub message: String,
}

/// The kinds of errors of files of a vector store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "VectorStoreFileErrorCode")]
pub enum StoreFileErrorCode {
    /// The server or the model server failed. A retry can help.
    ServerError,
    /// The file has no text that can be read.
    UnsupportedFile,
    /// The file is damaged, or too large.
    InvalidFile,
}

/// A file to add to a vector store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewStoreFile {
    /// Identifies the file in the vector store. It is not in the API.
    pub id: StoreFileId,
    /// The file.
    pub file_id: FileId,
    /// Its attributes.
    pub attributes: Attributes,
    /// How its text is split.
    pub chunking: ChunkingStrategy,
}

/// The wire form of a [`StoreFile`], with its properties in the recorded order.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "VectorStoreFileObject")]
pub struct StoreFileObject<'a> {
    id: &'a FileId,
    object: &'static str,
    usage_bytes: u64,
    created_at: Timestamp,
    vector_store_id: &'a VectorStoreId,
    status: &'static str,
    last_error: Option<&'a StoreFileError>,
    chunking_strategy: ChunkingStrategy,
    attributes: &'a Attributes,
}

impl<'a> From<&'a StoreFile> for StoreFileObject<'a> {
    fn from(file: &'a StoreFile) -> Self {
        Self {
            id: &file.file_id,
            object: "vector_store.file",
            usage_bytes: file.usage_bytes,
            created_at: file.created_at,
            vector_store_id: &file.vector_store_id,
            status: file.state.status().name(),
            last_error: match &file.state {
                StoreFileState::Failed(error) => Some(error),
                StoreFileState::InProgress | StoreFileState::Completed | StoreFileState::Cancelled => None,
            },
            chunking_strategy: file.chunking,
            attributes: &file.attributes,
        }
    }
}

/// Returns 404 `No file found with id 'file-x' in vector store 'vs_x'.`
#[must_use]
pub fn no_file_error(file: &FileId, store: &VectorStoreId) -> Error {
    Error::new(Kind::NotFound, format!("No file found with id '{file}' in vector store '{store}'."))
}

/// A batch of files that were added to a vector store together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBatch {
    /// The batch ID.
    pub id: FileBatchId,
    /// When it was created.
    pub created_at: Timestamp,
    /// The vector store.
    pub vector_store_id: VectorStoreId,
    /// Whether a client has cancelled it.
    pub is_cancelled: bool,
    /// Number of its files in each state.
    pub file_counts: FileCounts,
}

impl FileBatch {
    /// Returns the `status` property: `failed` only if all files have failed.
    #[must_use]
    pub fn status(&self) -> &'static str {
        let counts = &self.file_counts;
        if self.is_cancelled {
            "cancelled"
        } else if counts.in_progress > 0 {
            "in_progress"
        } else if counts.failed > 0 && counts.failed == counts.total() {
            "failed"
        } else {
            "completed"
        }
    }
}

/// The wire form of a [`FileBatch`], with its properties in the recorded order.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "VectorStoreFileBatchObject")]
pub struct FileBatchObject<'a> {
    id: &'a FileBatchId,
    object: &'static str,
    created_at: Timestamp,
    status: &'static str,
    vector_store_id: &'a VectorStoreId,
    file_counts: FileCountsObject,
}

impl<'a> From<&'a FileBatch> for FileBatchObject<'a> {
    fn from(batch: &'a FileBatch) -> Self {
        Self {
            id: &batch.id,
            object: "vector_store.file_batch",
            created_at: batch.created_at,
            status: batch.status(),
            vector_store_id: &batch.vector_store_id,
            file_counts: FileCountsObject::from(&batch.file_counts),
        }
    }
}

/// A part of the text of a file.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "VectorStoreText")]
pub struct TextPart<'a> {
    r#type: &'static str,
    text: &'a str,
}

impl<'a> TextPart<'a> {
    /// Creates a part.
    #[must_use]
    pub fn new(text: &'a str) -> Self {
        Self { r#type: "text", text }
    }
}

request! {
    /// Body of `POST /vector_stores/{vector_store_id}/files`, and each file of a batch.
    pub struct CreateVectorStoreFile {
        required file_id: FileId = id();
        optional attributes: Attributes = attributes();
        optional chunking_strategy: ChunkingStrategy = chunking_strategy();
    }
}

impl CreateVectorStoreFile {
    /// Returns the file to add.
    #[must_use]
    pub fn into_file(self, ids: &Ids) -> NewStoreFile {
        NewStoreFile {
            id: ids.generate(),
            file_id: self.file_id,
            attributes: self.attributes.unwrap_or_default(),
            chunking: self.chunking_strategy.unwrap_or_default(),
        }
    }
}

request! {
    /// Body of `POST /vector_stores/{vector_store_id}/file_batches`. Either `file_ids` or `files` is required.
    pub struct CreateFileBatch {
        optional file_ids: Vec<FileId> = array(id(), 1, BATCH_FILES_MAX);
        optional files: Vec<CreateVectorStoreFile> = array(object(), 1, BATCH_FILES_MAX);
        optional attributes: Attributes = attributes();
        optional chunking_strategy: ChunkingStrategy = chunking_strategy();
    }
}

impl CreateFileBatch {
    /// Returns the files to add, each once. `attributes` and `chunking_strategy` of the batch apply to `file_ids` only.
    ///
    /// # Errors
    /// 400 unless the request has either `file_ids` or `files`.
    pub fn into_files(self, ids: &Ids) -> Result<Vec<NewStoreFile>, Error> {
        let (attributes, chunking) = (self.attributes.unwrap_or_default(), self.chunking_strategy.unwrap_or_default());
        let files: Vec<NewStoreFile> = match (self.file_ids, self.files) {
            (Some(_), Some(_)) => {
                let message =
                    "Mutually exclusive parameters. Ensure you are only providing one of: 'file_ids' or 'files'.";
                return Err(Error::invalid(message).code("mutually_exclusive_parameters"));
            }
            (None, None) => return Err(missing(&At::Member(&At::Root, "file_ids"))),
            (Some(file_ids), None) => file_ids
                .into_iter()
                .map(|file_id| NewStoreFile { id: ids.generate(), file_id, attributes: attributes.clone(), chunking })
                .collect(),
            (None, Some(files)) => files.into_iter().map(|file| file.into_file(ids)).collect(),
        };
        Ok(each_once(files))
    }
}

/// Returns 400 for two parameters of which a request can have one.
#[must_use]
pub fn mutually_exclusive(one: &str, other: &str) -> Error {
    Error::invalid(format!(
        "Mutually exclusive parameters. Ensure you are only providing one of: '{one}' or '{other}'."
    ))
    .code("mutually_exclusive_parameters")
}

/// Removes files that are listed again.
#[must_use]
pub fn each_once(mut files: Vec<NewStoreFile>) -> Vec<NewStoreFile> {
    let mut seen = HashSet::new();
    files.retain(|file| seen.insert(file.file_id.clone()));
    files
}

request! {
    /// Body of `POST /vector_stores/{vector_store_id}/files/{file_id}`.
    pub struct ModifyVectorStoreFile {
        required attributes: Attributes = attributes();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::rule::Request as _;

    fn batch(request: Value) -> Result<Vec<NewStoreFile>, Error> {
        CreateFileBatch::parse(request)?.into_files(&Ids::counting())
    }

    #[test]
    fn the_files_of_a_batch_are_listed_with_common_or_own_options() {
        let sizes =
            |size: u32| json!({"type": "static", "static": {"max_chunk_size_tokens": size, "chunk_overlap_tokens": 0}});
        let tokens = |file: &NewStoreFile| file.chunking.sizes().max_chunk_size_tokens;

        let common = batch(json!({
            "file_ids": ["file-a", "file-b", "file-a"], "attributes": {"k": 1}, "chunking_strategy": sizes(200),
        }));
        let own = batch(json!({"attributes": {"k": 1}, "chunking_strategy": sizes(200), "files": [
            {"file_id": "file-a", "attributes": {"k": 2}}, {"file_id": "file-b", "chunking_strategy": sizes(300)},
        ]}));

        let common = common.unwrap();
        assert_eq!(common.iter().map(|file| file.file_id.as_str()).collect::<Vec<_>>(), ["file-a", "file-b"]);
        assert!(common.iter().all(|file| file.attributes.get("k") == Some(&json!(1)) && tokens(file) == 200));
        let own = own.unwrap();
        assert_eq!(own[0].attributes.get("k"), Some(&json!(2)));
        assert_eq!((tokens(&own[0]), tokens(&own[1])), (800, 300));
        assert_eq!(own[1].attributes, Attributes::default());
    }

    #[test]
    fn a_batch_has_either_file_ids_or_files() {
        let error = |request: Value| {
            let error = batch(request).unwrap_err();
            (error.code.unwrap(), error.param)
        };

        assert_eq!(error(json!({})), ("missing_required_parameter", Some("file_ids".to_owned())));
        let both = json!({"file_ids": ["file-a"], "files": [{"file_id": "file-a"}]});
        assert_eq!(error(both), ("mutually_exclusive_parameters", None));
        assert_eq!(error(json!({"file_ids": []})), ("empty_array", Some("file_ids".to_owned())));
        let many = json!({"file_ids": vec!["file-a"; 2_001]});
        assert_eq!(error(many), ("array_above_max_length", Some("file_ids".to_owned())));
        let nameless = json!({"files": [{"attributes": {}}]});
        assert_eq!(error(nameless), ("missing_required_parameter", Some("files[0].file_id".to_owned())));
    }

    #[test]
    fn a_batch_has_failed_only_if_all_files_have_failed() {
        let status = |counts: [u64; 4], is_cancelled: bool| {
            let mut file_counts = FileCounts::default();
            StoreFileStatus::ALL.into_iter().zip(counts).for_each(|(status, count)| file_counts.add(status, count));
            let batch = FileBatch {
                id: FileBatchId::from_stored("vsfb_1"),
                created_at: Timestamp(1),
                vector_store_id: VectorStoreId::from_stored("vs_1"),
                is_cancelled,
                file_counts,
            };
            batch.status()
        };

        assert_eq!(status([1, 1, 1, 0], false), "in_progress");
        assert_eq!(status([0, 1, 1, 0], false), "completed");
        assert_eq!(status([0, 0, 2, 0], false), "failed");
        assert_eq!(status([0, 0, 0, 0], false), "completed");
        assert_eq!(status([0, 1, 0, 1], true), "cancelled");
    }
}
