//! Files, uploads and their parts: their rows. The bytes are stored by `files::Blobs`.
//!
//! A row is inserted as pending before its bytes are stored, and becomes visible when they are. A row is marked as deleted
//! before its bytes are deleted, and deleted afterwards. So at any time, a row names the bytes, and a crash leaves nothing
//! that is not found again:
//!
//! | state | visible | removed |
//! | --- | --- | --- |
//! | pending | no | when its lease ends, because the server was lost |
//! | processed, stored | yes | when it expires |
//! | deleted | no | immediately |

use std::time::Duration;

use async_trait::async_trait;

use super::Error;
use crate::api::file::Purpose;
use crate::api::{File, FileId, Page, PageQuery, PartId, ProjectId, Scope, Timestamp, Upload, UploadId, UploadPart};

/// Files.
#[async_trait]
pub trait Files {
    /// Stores the row of a file whose bytes are not yet stored. It is invisible. Unless the lease is renewed, row and bytes
    /// are removed when it ends.
    async fn create_pending_file(
        &self,
        scope: &Scope,
        id: &FileId,
        now: Timestamp,
        lease: Duration,
    ) -> Result<(), Error>;
    /// Makes a pending file visible. Returns false if its lease has ended and it was removed.
    async fn finish_file(&self, scope: &Scope, file: &File) -> Result<bool, Error>;
    /// Returns a file, unless it has expired.
    async fn file(&self, scope: &Scope, id: &FileId) -> Result<Option<File>, Error>;
    /// Returns a page of the files, or only of those with a purpose. Expired files are not listed.
    async fn list_files(&self, scope: &Scope, purpose: Option<Purpose>, query: &PageQuery)
    -> Result<Page<File>, Error>;
    /// Marks a file as deleted. Its bytes can then be deleted. Returns whether it existed.
    async fn delete_file(&self, scope: &Scope, id: &FileId) -> Result<bool, Error>;
}

/// Uploads and their parts.
#[async_trait]
pub trait Uploads {
    /// Stores a new upload.
    async fn create_upload(&self, scope: &Scope, upload: &Upload) -> Result<(), Error>;
    /// Returns an upload.
    async fn upload(&self, scope: &Scope, id: &UploadId) -> Result<Option<Upload>, Error>;
    /// Stores the row of a part whose bytes are not yet stored, like [`Files::create_pending_file`].
    async fn create_pending_part(&self, scope: &Scope, part: &UploadPart, lease: Duration) -> Result<(), Error>;
    /// Makes a pending part with this size visible. Returns false if its lease or its upload has ended.
    async fn finish_part(&self, scope: &Scope, part: &UploadPart, bytes: u64) -> Result<bool, Error>;
    /// Returns the parts of an upload and their sizes in bytes, in the order of their creation.
    async fn parts(&self, scope: &Scope, upload: &UploadId) -> Result<Vec<(PartId, u64)>, Error>;
    /// Stores the end of a pending upload, makes the pending file of a completed one visible, and marks all parts as
    /// deleted. Returns false, and changes nothing, if the upload is no longer pending or the lease of the file has ended.
    async fn end_upload(&self, scope: &Scope, upload: &Upload) -> Result<bool, Error>;
}

/// Names the bytes of a file or a part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId {
    /// What the bytes belong to.
    pub kind: BlobKind,
    /// The project.
    pub project: ProjectId,
    /// The ID of the file or the part.
    pub id: String,
}

/// What bytes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlobKind {
    /// A file.
    File,
    /// A part of an upload.
    Part,
}

impl BlobKind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::File, Self::Part];

    /// Returns the table of the rows.
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::File => "files",
            Self::Part => "upload_parts",
        }
    }
}

/// Removal of files and parts, for all projects.
#[async_trait]
pub trait Blobs {
    /// Renews the lease of a pending row, for `lease` from now. Returns false if it is no longer pending.
    async fn renew_pending(&self, blob: &BlobId, lease: Duration) -> Result<bool, Error>;
    /// Marks up to `limit` rows of a kind as deleted whose time has come, and returns them with those that are marked
    /// already. Several servers may return the same rows.
    async fn blobs_to_remove(&self, kind: BlobKind, limit: u32) -> Result<Vec<BlobId>, Error>;
    /// Marks a pending row as deleted, because its bytes will not be complete. It is removed after the time `after`.
    async fn discard_pending(&self, blob: &BlobId, after: Duration) -> Result<(), Error>;
    /// Deletes a row that is marked as deleted, after its bytes.
    async fn delete_blob_row(&self, blob: &BlobId) -> Result<(), Error>;
    /// Returns those of the IDs of a kind that have a row.
    async fn blobs_with_row(&self, kind: BlobKind, ids: &[String]) -> Result<Vec<String>, Error>;
    /// Deletes up to `limit` uploads that expired before a time, in any state. Returns their number.
    async fn delete_uploads_before(&self, before: Timestamp, limit: u32) -> Result<u64, Error>;
}
