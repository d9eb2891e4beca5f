//! Uploads: files that are sent in parts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Error, Kind};
use super::file::{ExpiresAfter, File, FileObject, Purpose, filename, purpose};
use super::id::{PartId, UploadId};
use super::rule::{array, id, large_integer, object, string};
use super::time::Timestamp;
use crate::request;

/// How long parts can be added to an upload, in seconds.
pub const EXPIRES_AFTER_S: u64 = 3_600;
/// Maximum number of parts of an upload.
pub const PARTS_MAX: usize = 10_000;
/// Maximum length of a media type, in characters.
const MIME_TYPE_CHARS_MAX: usize = 256;
/// Maximum length of a checksum, in characters.
const CHECKSUM_CHARS_MAX: usize = 64;
/// Maximum of `bytes` that can be stored; the setting `upload_bytes_max` is lower.
const BYTES_MAX: u64 = i64::MAX.unsigned_abs();

request! {
    /// Body of `POST /uploads`.
    pub struct CreateUpload {
        required filename: String = filename();
        required purpose: Purpose = purpose();
        required bytes: u64 = large_integer(1, BYTES_MAX);
        required mime_type: String = string(0, MIME_TYPE_CHARS_MAX);
        optional expires_after: ExpiresAfter = object();
    }
}

impl CreateUpload {
    /// Returns the requested upload.
    ///
    /// # Errors
    /// 400 if the purpose does not allow the extension or the media type.
    pub fn into_upload(self, id: UploadId, now: Timestamp) -> Result<Upload, Error> {
        self.purpose.check_filename(&self.filename)?;
        self.purpose.check_mime_type(&self.mime_type)?;
        Ok(Upload {
            id,
            created_at: now,
            filename: self.filename,
            bytes: self.bytes,
            purpose: self.purpose,
            expires_after_s: self.expires_after.map(|expires_after| expires_after.seconds),
            state: UploadState::Pending,
        })
    }
}

request! {
    /// Body of `POST /uploads/{upload_id}/complete`.
    pub struct CompleteUpload {
        required part_ids: Vec<PartId> = array(id(), 1, PARTS_MAX);
        optional md5: String = string(0, CHECKSUM_CHARS_MAX);
    }
}

/// A file that is sent in parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// The upload ID.
    pub id: UploadId,
    /// When it was created.
    pub created_at: Timestamp,
    /// The name of the file.
    pub filename: String,
    /// The announced size of the file, in bytes.
    pub bytes: u64,
    /// What the file is for.
    pub purpose: Purpose,
    /// When the file will expire, in seconds after its creation.
    pub expires_after_s: Option<u64>,
    /// The state.
    pub state: UploadState,
}

/// The state of an upload. A pending upload whose time has passed is expired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UploadState {
    /// Parts can be added.
    Pending,
    /// The parts were joined to this file.
    Completed(Box<File>),
    /// The client has cancelled it.
    Cancelled,
}

impl Upload {
    /// Returns when the upload expires.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        self.created_at.plus(EXPIRES_AFTER_S)
    }

    /// Returns the `status` property.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> &'static str {
        match &self.state {
            UploadState::Pending if now >= self.expires_at() => "expired",
            UploadState::Pending => "pending",
            UploadState::Completed(_) => "completed",
            UploadState::Cancelled => "cancelled",
        }
    }

    /// Checks that the upload is pending, to do what `action` says: `cancel`, `complete`, `add parts to`.
    ///
    /// # Errors
    /// 400 `Cannot complete upload with status 'cancelled'.`
    pub fn check_pending(&self, now: Timestamp, action: &str) -> Result<(), Error> {
        match self.status(now) {
            "pending" => Ok(()),
            status => Err(Error::invalid(format!("Cannot {action} upload with status '{status}'."))),
        }
    }

    /// Selects the parts of a request, in its order. `parts` are those of the upload, with their sizes.
    ///
    /// # Errors
    /// 404 if a part is unknown; 400 if it is listed twice, or the sizes do not add up to `bytes`.
    pub fn select_parts(&self, requested: &[PartId], parts: &[(PartId, u64)]) -> Result<Vec<(PartId, u64)>, Error> {
        let mut left: std::collections::HashMap<&PartId, u64> = parts.iter().map(|(id, bytes)| (id, *bytes)).collect();
        let mut selected = Vec::with_capacity(requested.len());
        for (index, id) in requested.iter().enumerate() {
            let Some(bytes) = left.remove(id) else { return Err(self.no_part(index, id, parts)) };
            selected.push((id.clone(), bytes));
        }
        let sum: u64 = selected.iter().map(|(_, bytes)| bytes).sum();
        if sum == self.bytes {
            return Ok(selected);
        }
        Err(Error::invalid(format!(
            "The parts have {sum} bytes in total, but the upload was created for a file of {} bytes.",
            self.bytes
        ))
        .at("part_ids"))
    }

    fn no_part(&self, index: usize, part: &PartId, parts: &[(PartId, u64)]) -> Error {
        let param = format!("part_ids[{index}]");
        if parts.iter().any(|(known, _)| known == part) {
            return Error::invalid(format!("Invalid '{param}': the part '{part}' is listed twice.")).at(param);
        }
        let message = format!("No part found with id '{part}' in upload '{}'.", self.id);
        Error::new(Kind::NotFound, message).at(param)
    }

    /// Returns the file of the completed upload.
    #[must_use]
    pub fn to_file(&self, id: super::id::FileId, now: Timestamp) -> File {
        let expires_after = self.expires_after_s.map(|seconds| ExpiresAfter { anchor: "created_at", seconds });
        File {
            id,
            created_at: now,
            purpose: self.purpose,
            filename: self.filename.clone(),
            bytes: self.bytes,
            expires_at: super::file::expiry(self.purpose, expires_after.as_ref(), now),
        }
    }
}

/// Returns 400 for a file whose MD5 digest is not the requested one.
#[must_use]
pub fn checksum_mismatch(requested: &str, actual: &str) -> Error {
    Error::invalid(format!("The MD5 checksum of the file is '{actual}', but '{requested}' was expected.")).at("md5")
}

/// Returns 400 for a part that exceeds the parts or bytes that an upload can have.
#[must_use]
pub fn too_many_parts(bytes_max: u64) -> Error {
    Error::invalid(format!(
        "The upload has too many parts. It can have at most {PARTS_MAX} parts with {bytes_max} bytes in total."
    ))
}

/// The wire form of an [`Upload`], with its properties in the recorded order.
#[derive(Debug, Serialize, JsonSchema)]
pub struct UploadObject<'a> {
    id: &'a UploadId,
    object: &'static str,
    bytes: u64,
    created_at: Timestamp,
    filename: &'a str,
    purpose: &'static str,
    status: &'static str,
    expires_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<FileObject<'a>>,
}

impl<'a> UploadObject<'a> {
    /// Creates the wire form of an upload at a time, which determines whether it has expired.
    #[must_use]
    pub fn new(upload: &'a Upload, now: Timestamp) -> Self {
        Self {
            id: &upload.id,
            object: "upload",
            bytes: upload.bytes,
            created_at: upload.created_at,
            filename: &upload.filename,
            purpose: upload.purpose.name(),
            status: upload.status(now),
            expires_at: upload.expires_at(),
            file: match &upload.state {
                UploadState::Completed(file) => Some(FileObject::from(&**file)),
                UploadState::Pending | UploadState::Cancelled => None,
            },
        }
    }
}

/// A part of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadPart {
    /// The part ID.
    pub id: PartId,
    /// When it was created.
    pub created_at: Timestamp,
    /// The upload.
    pub upload_id: UploadId,
}

/// The wire form of an [`UploadPart`], with its properties in the recorded order.
#[derive(Debug, Serialize, JsonSchema)]
pub struct UploadPartObject<'a> {
    id: &'a PartId,
    object: &'static str,
    created_at: Timestamp,
    upload_id: &'a UploadId,
}

impl<'a> From<&'a UploadPart> for UploadPartObject<'a> {
    fn from(part: &'a UploadPart) -> Self {
        Self { id: &part.id, object: "upload.part", created_at: part.created_at, upload_id: &part.upload_id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(bytes: u64) -> Upload {
        Upload {
            id: UploadId::from_stored("upload_1"),
            created_at: Timestamp(1_000),
            filename: "a.txt".to_owned(),
            bytes,
            purpose: Purpose::Assistants,
            expires_after_s: None,
            state: UploadState::Pending,
        }
    }

    fn part(id: &str, bytes: u64) -> (PartId, u64) {
        (PartId::from_stored(id), bytes)
    }

    #[test]
    fn parts_are_selected_in_the_requested_order_and_must_have_the_announced_size() {
        let parts = [part("part_a", 3), part("part_b", 4), part("part_c", 9)];
        let requested = |ids: &[&str]| ids.iter().map(|id| PartId::from_stored(*id)).collect::<Vec<_>>();
        let select = |ids: &[&str]| upload(7).select_parts(&requested(ids), &parts).map_err(|error| error.message);

        assert_eq!(select(&["part_b", "part_a"]), Ok(vec![part("part_b", 4), part("part_a", 3)]));
        for (ids, message) in [
            (&["part_a"][..], "The parts have 3 bytes in total, but the upload was created for a file of 7 bytes."),
            (&["part_a", "part_a"], "Invalid 'part_ids[1]': the part 'part_a' is listed twice."),
            (&["part_a", "part_x"], "No part found with id 'part_x' in upload 'upload_1'."),
        ] {
            assert_eq!(select(ids), Err(message.to_owned()));
        }
    }

    #[test]
    fn a_pending_upload_expires_after_an_hour() {
        let pending = upload(1);

        assert_eq!(pending.status(Timestamp(4_599)), "pending");
        assert_eq!(
            pending.check_pending(Timestamp(4_600), "complete").unwrap_err().message,
            "Cannot complete upload with status 'expired'."
        );
        let cancelled = Upload { state: UploadState::Cancelled, ..pending };
        assert_eq!(cancelled.status(Timestamp(4_600)), "cancelled");
    }
}
