//! Vector stores: files whose text can be searched.

mod attributes;
mod chunking;
mod extension;
mod file;
mod filter;
mod index;
mod search;

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Error, Kind};
use super::id::{FileId, Ids, VectorStoreId};
use super::metadata::{Metadata, metadata};
use super::rule::{Patch, array, id, integer, object, one_of, string};
use super::time::Timestamp;
use crate::request;

pub use attributes::{Attributes, AttributesRule, attributes};
pub use chunking::{ChunkingStrategy, StaticChunking, StaticChunkingSizes, StaticChunkingStrategy, chunking_strategy};
pub use extension::{check_supported, extension, is_supported};
pub use file::{
    CreateFileBatch, CreateVectorStoreFile, FileBatch, FileBatchObject, ModifyVectorStoreFile, NewStoreFile, StoreFile,
    StoreFileError, StoreFileErrorCode, StoreFileObject, StoreFileState, StoreFileStatus, TextPart, each_once,
    mutually_exclusive, no_file_error,
};
pub use filter::{Comparison, ComparisonRequest, CompoundRequest, Filter, filter};
pub use index::{IndexSummary, IndexedGroup, VectorStoreIndex};
pub use search::{
    HybridSearch, HybridWeights, SearchRankingOptions, SearchResult, SearchResults, VectorStoreSearchRequest,
};

/// Maximum length of a name, in characters.
const NAME_CHARS_MAX: usize = 256;
/// Maximum length of a description, in characters.
const DESCRIPTION_CHARS_MAX: usize = 512;
/// Maximum number of files in a request that creates a vector store.
const FILES_MAX: usize = 500;
/// Minimum and maximum of `expires_after.days`.
const EXPIRES_AFTER_DAYS: (u32, u32) = (1, 365);
/// Length of a day, in seconds.
const DAY_S: u64 = 86_400;

/// A collection of files whose text can be searched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VectorStore {
    /// The vector store ID.
    pub id: VectorStoreId,
    /// When it was created.
    pub created_at: Timestamp,
    /// What the client has set.
    pub settings: VectorStoreSettings,
    /// When it was last searched, modified, or given files.
    pub last_active_at: Timestamp,
    /// When it expires. `None`: never.
    pub expires_at: Option<Timestamp>,
    /// Whether it has expired.
    pub is_expired: bool,
    /// Number of its files in each state.
    pub file_counts: FileCounts,
    /// The size of its files, in bytes.
    pub usage_bytes: u64,
}

/// The part of a vector store that clients set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VectorStoreSettings {
    /// At most 256 characters.
    pub name: Option<String>,
    /// At most 512 characters.
    pub description: Option<String>,
    /// How long after its last use it expires. `None`: never.
    pub expires_after_days: Option<u32>,
    /// The metadata set by the client.
    pub metadata: Metadata,
}

impl VectorStoreSettings {
    /// Returns when a vector store expires that was last used at this time.
    #[must_use]
    pub fn expires_at(&self, last_active_at: Timestamp) -> Option<Timestamp> {
        self.expires_after_days.map(|days| last_active_at.plus(u64::from(days) * DAY_S))
    }
}

/// Number of files in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileCounts {
    /// Files that are being processed.
    pub in_progress: u64,
    /// Files that can be searched.
    pub completed: u64,
    /// Files that could not be processed.
    pub failed: u64,
    /// Files whose processing was cancelled.
    pub cancelled: u64,
}

impl FileCounts {
    /// Returns the number of files.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.in_progress + self.completed + self.failed + self.cancelled
    }

    /// Counts `number` files in a state.
    pub fn add(&mut self, status: StoreFileStatus, number: u64) {
        match status {
            StoreFileStatus::InProgress => self.in_progress += number,
            StoreFileStatus::Completed => self.completed += number,
            StoreFileStatus::Failed => self.failed += number,
            StoreFileStatus::Cancelled => self.cancelled += number,
        }
    }
}

impl VectorStore {
    /// Creates a vector store without files.
    #[must_use]
    pub fn new(id: VectorStoreId, settings: VectorStoreSettings, now: Timestamp) -> Self {
        let expires_at = settings.expires_at(now);
        Self {
            id,
            created_at: now,
            settings,
            last_active_at: now,
            expires_at,
            is_expired: false,
            file_counts: FileCounts::default(),
            usage_bytes: 0,
        }
    }

    /// Returns the `status` property. Files that have failed do not prevent `completed`.
    #[must_use]
    pub fn status(&self) -> &'static str {
        if self.is_expired {
            "expired"
        } else if self.file_counts.in_progress > 0 {
            "in_progress"
        } else {
            "completed"
        }
    }

    /// Returns 400 `Vector store 'vs_x' has expired`.
    ///
    /// Source: a quoted fragment of a 400 of the service.
    #[must_use]
    pub fn expired_error(id: &VectorStoreId) -> Error {
        Error::invalid(format!("Vector store '{id}' has expired and can no longer be used. Create a new one."))
    }
}

/// Returns 404 `Files [file-a, file-b] were not found`.
///
/// Source: a quoted 404 of the service.
#[must_use]
pub fn no_files_error<'a>(ids: impl IntoIterator<Item = &'a FileId>) -> Error {
    Error::new(Kind::NotFound, format!("Files [{}] were not found", joined(ids.into_iter().map(FileId::as_str))))
}

/// Returns 404 `Vector stores [vs_a] were not found`.
///
/// The service's text is not recorded; this is that of [`no_files_error`].
#[must_use]
pub fn no_vector_stores_error<'a>(ids: impl IntoIterator<Item = &'a VectorStoreId>) -> Error {
    let ids = joined(ids.into_iter().map(VectorStoreId::as_str));
    Error::new(Kind::NotFound, format!("Vector stores [{ids}] were not found"))
}

fn joined<'a>(ids: impl Iterator<Item = &'a str>) -> String {
    ids.collect::<Vec<_>>().join(", ")
}

/// The wire form of a [`VectorStore`], with its properties in the recorded order.
#[derive(Debug, Serialize, JsonSchema)]
pub struct VectorStoreObject<'a> {
    id: &'a VectorStoreId,
    object: &'static str,
    created_at: Timestamp,
    name: Option<&'a str>,
    description: Option<&'a str>,
    usage_bytes: u64,
    file_counts: FileCountsObject,
    status: &'static str,
    expires_after: Option<ExpiresAfter>,
    expires_at: Option<Timestamp>,
    last_active_at: Timestamp,
    metadata: &'a Metadata,
}

/// The wire form of [`FileCounts`], with its properties in the recorded order.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "FileCounts")]
pub struct FileCountsObject {
    in_progress: u64,
    completed: u64,
    failed: u64,
    cancelled: u64,
    total: u64,
}

/// The wire form of `expires_after`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "VectorStoreExpiration")]
struct ExpiresAfter {
    anchor: &'static str,
    days: u32,
}

impl From<&FileCounts> for FileCountsObject {
    fn from(counts: &FileCounts) -> Self {
        let FileCounts { in_progress, completed, failed, cancelled } = *counts;
        Self { in_progress, completed, failed, cancelled, total: counts.total() }
    }
}

impl<'a> From<&'a VectorStore> for VectorStoreObject<'a> {
    fn from(store: &'a VectorStore) -> Self {
        Self {
            id: &store.id,
            object: "vector_store",
            created_at: store.created_at,
            name: store.settings.name.as_deref(),
            description: store.settings.description.as_deref(),
            usage_bytes: store.usage_bytes,
            file_counts: FileCountsObject::from(&store.file_counts),
            status: store.status(),
            expires_after: store.settings.expires_after_days.map(|days| ExpiresAfter { anchor: ANCHOR, days }),
            expires_at: store.expires_at,
            last_active_at: store.last_active_at,
            metadata: &store.settings.metadata,
        }
    }
}

/// The only anchor of an expiry.
const ANCHOR: &str = "last_active_at";

request! {
    /// The `expires_after` of a vector store.
    pub struct VectorStoreExpiresAfter {
        required anchor: &'static str = one_of(&[(ANCHOR, ANCHOR)]);
        required days: u32 = integer(EXPIRES_AFTER_DAYS.0, EXPIRES_AFTER_DAYS.1);
    }
}

request! {
    /// Body of `POST /vector_stores`.
    pub struct CreateVectorStore {
        optional name: String = string(0, NAME_CHARS_MAX);
        optional description: String = string(0, DESCRIPTION_CHARS_MAX);
        optional file_ids: Vec<FileId> = array(id(), 0, FILES_MAX);
        optional expires_after: VectorStoreExpiresAfter = object();
        optional chunking_strategy: ChunkingStrategy = chunking_strategy();
        optional metadata: Metadata = metadata();
    }
}

impl CreateVectorStore {
    /// Returns the requested vector store and its files.
    #[must_use]
    pub fn into_vector_store(self, ids: &Ids, now: Timestamp) -> (VectorStore, Vec<NewStoreFile>) {
        let settings = VectorStoreSettings {
            name: self.name,
            description: self.description,
            expires_after_days: self.expires_after.map(|expires_after| expires_after.days),
            metadata: self.metadata.unwrap_or_default(),
        };
        let chunking = self.chunking_strategy.unwrap_or_default();
        let files = self.file_ids.unwrap_or_default();
        let files = files.into_iter().map(|file_id| NewStoreFile {
            id: ids.generate(),
            file_id,
            attributes: Attributes::default(),
            chunking,
        });
        (VectorStore::new(ids.generate(), settings, now), file::each_once(files.collect()))
    }
}

request! {
    /// Body of `POST /vector_stores/{vector_store_id}`.
    pub struct ModifyVectorStore {
        patch name: String = string(0, NAME_CHARS_MAX);
        patch expires_after: VectorStoreExpiresAfter = object();
        patch metadata: Metadata = metadata();
    }
}

impl ModifyVectorStore {
    /// Returns whether the request changes when the vector store expires.
    #[must_use]
    pub fn changes_expiry(&self) -> bool {
        !matches!(self.expires_after, Patch::Keep)
    }

    /// Applies the request.
    pub fn apply(self, settings: &mut VectorStoreSettings) {
        self.name.apply_optional(&mut settings.name);
        self.metadata.apply(&mut settings.metadata);
        match self.expires_after {
            Patch::Keep => {}
            Patch::Clear => settings.expires_after_days = None,
            Patch::Set(expires_after) => settings.expires_after_days = Some(expires_after.days),
        }
    }
}

/// Returns the schema of a request type, for rules that check more than one property.
fn schema_of_request<T: super::rule::Request>(schemas: &mut SchemaGenerator) -> Value {
    super::rule::Rule::schema(&object::<T>(), schemas)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::rule::Request as _;

    fn store(request: Value) -> (VectorStore, Vec<NewStoreFile>) {
        CreateVectorStore::parse(request).unwrap().into_vector_store(&Ids::counting(), Timestamp(1_000))
    }

    #[test]
    fn a_vector_store_has_the_recorded_properties() {
        let (mut store, files) = store(json!({
            "file_ids": ["file-a", "file-b"], "name": "n", "expires_after": {"anchor": "last_active_at", "days": 3},
            "chunking_strategy": {"type": "auto"}, "metadata": {"k": "v"},
        }));
        store.file_counts.add(StoreFileStatus::InProgress, 2);

        assert_eq!(
            serde_json::to_string(&VectorStoreObject::from(&store)).unwrap(),
            json!({
                "id": store.id, "object": "vector_store", "created_at": 1_000, "name": "n", "description": null,
                "usage_bytes": 0,
                "file_counts": {"in_progress": 2, "completed": 0, "failed": 0, "cancelled": 0, "total": 2},
                "status": "in_progress", "expires_after": {"anchor": "last_active_at", "days": 3},
                "expires_at": 260_200, "last_active_at": 1_000, "metadata": {"k": "v"},
            })
            .to_string()
        );
        assert_eq!(files.len(), 2);
    }

    #[test]
    fn the_status_depends_on_the_expiry_and_then_on_the_files() {
        let (mut store, _) = store(json!({}));
        assert_eq!(store.status(), "completed");
        store.file_counts.add(StoreFileStatus::Failed, 1);
        assert_eq!(store.status(), "completed");
        store.file_counts.add(StoreFileStatus::InProgress, 1);
        assert_eq!(store.status(), "in_progress");
        store.is_expired = true;
        assert_eq!(store.status(), "expired");
    }

    #[test]
    fn a_modification_keeps_what_it_does_not_name() {
        let (store, _) = store(json!({"name": "n", "description": "d", "metadata": {"k": "v"},
            "expires_after": {"anchor": "last_active_at", "days": 3}}));
        let modified = |request: Value| {
            let mut settings = store.settings.clone();
            let request = ModifyVectorStore::parse(request).unwrap();
            let changes_expiry = request.changes_expiry();
            request.apply(&mut settings);
            (settings, changes_expiry)
        };

        assert_eq!(modified(json!({})), (store.settings.clone(), false));
        let cleared = VectorStoreSettings { description: Some("d".to_owned()), ..VectorStoreSettings::default() };
        assert_eq!(modified(json!({"name": null, "metadata": null, "expires_after": null})), (cleared, true));
        let days = json!({"expires_after": {"anchor": "last_active_at", "days": 365}});
        assert_eq!(modified(days).0.expires_after_days, Some(365));
    }

    #[test]
    fn requests_are_checked() {
        let param = |request: Value| CreateVectorStore::parse(request).unwrap_err().param.unwrap();

        assert_eq!(param(json!({"file_ids": vec!["file-a"; 501]})), "file_ids");
        assert_eq!(param(json!({"file_ids": ["vs_a"]})), "file_ids[0]");
        assert_eq!(param(json!({"name": "x".repeat(257)})), "name");
        for days in [0, 366] {
            let expires_after = json!({"anchor": "last_active_at", "days": days});
            assert_eq!(param(json!({"expires_after": expires_after})), "expires_after.days");
        }
        let anchor = json!({"expires_after": {"anchor": "created_at", "days": 1}});
        assert_eq!(
            CreateVectorStore::parse(anchor).unwrap_err().message,
            "Invalid value: 'created_at'. Supported values are: 'last_active_at'."
        );
    }
}
