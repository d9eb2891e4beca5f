//! Receives files and parts, joins parts, and opens files for reading.
//!
//! | step | row | bytes | after a crash |
//! | --- | --- | --- | --- |
//! | `receive` | pending, under a lease | arrive | the reaper removes both when the lease ends |
//! | [`Received::finish_file`] and others | visible | complete | nothing to do |
//! | [`Received::discard`], or the client disconnects | deleted | are deleted | the reaper removes both |

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use md5::{Digest as _, Md5};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use super::blobs::{self, Blobs};
use super::{Error, LEASE, RENEW_EVERY};
use crate::api::file::{CreateFile, empty_file, expiry, no_such_file};
use crate::api::id::{Generate, Id as _};
use crate::api::upload::{CompleteUpload, PARTS_MAX, UploadState, checksum_mismatch, too_many_parts};
use crate::api::{File, FileId, Ids, PartId, Scope, Timestamp, Upload, UploadId, UploadPart};
use crate::clock::Clock;
use crate::store::{BlobId, BlobKind, Store};

/// How long after a client has disconnected its bytes are removed. A write that is in progress has then ended.
const DISCARD_AFTER: Duration = Duration::from_secs(5);

/// The limits of files.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Maximum size of all parts of an upload, in bytes.
    pub upload_bytes_max: u64,
    /// Maximum number of files and parts that are received or joined at the same time.
    pub concurrency_max: usize,
    /// Maximum wait for the others at this limit.
    pub wait_max: Duration,
}

/// Stores and reads files. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FileService {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    blobs: Blobs,
    clock: Arc<Clock>,
    ids: Arc<Ids>,
    settings: Settings,
    slots: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// What bytes are received for.
enum Target<'a> {
    File(&'a FileId),
    Part(&'a UploadPart),
}

impl Target<'_> {
    fn blob(&self, scope: &Scope) -> BlobId {
        let (kind, id) = match self {
            Self::File(id) => (BlobKind::File, id.to_string()),
            Self::Part(part) => (BlobKind::Part, part.id.to_string()),
        };
        BlobId { kind, project: scope.project().clone(), id }
    }
}

/// Bytes that were stored, with their pending row. If it is dropped, both are removed.
#[derive(Debug)]
pub struct Received {
    service: FileService,
    scope: Scope,
    blob: BlobId,
    bytes: u64,
    /// Whether row and bytes belong to a finished file or part, or are being removed.
    is_settled: bool,
    _slot: OwnedSemaphorePermit,
}

impl FileService {
    /// Creates the service. Clean-ups run on `tasks`.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        blobs: Blobs,
        clock: Arc<Clock>,
        ids: Arc<Ids>,
        settings: Settings,
        tasks: TaskTracker,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(settings.concurrency_max.min(Semaphore::MAX_PERMITS)));
        Self { inner: Arc::new(Inner { store, blobs, clock, ids, settings, slots, tasks }) }
    }

    /// Returns the storage of the bytes.
    #[must_use]
    pub fn blobs(&self) -> &Blobs {
        &self.inner.blobs
    }

    /// Returns the store of the rows.
    pub(super) fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    pub(super) fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    fn generate<T: Generate>(&self) -> T {
        self.inner.ids.generate()
    }

    /// Stores the bytes of a new file. It is invisible until [`Received::finish_file`].
    ///
    /// # Errors
    /// The error of the stream; 400 if there are no bytes; [`Error::TooMany`]; those of the storage. Nothing is stored then.
    pub async fn receive_file(
        &self,
        scope: &Scope,
        content: impl Stream<Item = Result<Bytes, Error>> + Send,
    ) -> Result<Received, Error> {
        let received = self.receive(scope, &Target::File(&self.generate()), content).await?;
        received.check_not_empty("file").await
    }

    /// Adds a part to an upload.
    ///
    /// # Errors
    /// Like [`FileService::receive_file`]; 404 if the upload is unknown, 400 if it has ended or has too many parts.
    pub async fn add_part(
        &self,
        scope: &Scope,
        upload: &UploadId,
        content: impl Stream<Item = Result<Bytes, Error>> + Send,
    ) -> Result<UploadPart, Error> {
        let settings = &self.inner.settings;
        self.pending_upload(scope, upload, "add parts to").await?;
        let part = UploadPart { id: self.generate(), created_at: self.now(), upload_id: upload.clone() };
        let received = self.receive(scope, &Target::Part(&part), content).await?.check_not_empty("data").await?;
        let parts = self.inner.store.parts(scope, upload).await?;
        let bytes: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
        if parts.len() >= PARTS_MAX || bytes + received.bytes > settings.upload_bytes_max {
            received.discard().await;
            return Err(too_many_parts(settings.upload_bytes_max).into());
        }
        if self.inner.store.finish_part(scope, &part, received.bytes).await? {
            received.settle();
            return Ok(part);
        }
        received.discard().await;
        // The upload may have ended meanwhile.
        self.pending_upload(scope, upload, "add parts to").await?;
        Err(Error::LeaseEnded)
    }

    /// Joins the parts of an upload to a file. Returns the completed upload.
    ///
    /// # Errors
    /// 404 if the upload or a part is unknown; 400 if the upload has ended, or the parts or their checksum are wrong;
    /// [`Error::TooMany`]; those of the storage. The upload is still pending then, and can be completed again.
    pub async fn complete_upload(
        &self,
        scope: &Scope,
        id: &UploadId,
        request: &CompleteUpload,
    ) -> Result<Upload, Error> {
        let mut upload = self.pending_upload(scope, id, "complete").await?;
        let parts = self.inner.store.parts(scope, id).await?;
        let parts = upload.select_parts(&request.part_ids, &parts)?;
        let file = upload.to_file(self.generate(), self.now());
        let mut checksum = Md5::new();
        let content = self.joined(scope, parts).inspect_ok(|bytes| checksum.update(bytes));
        let received = self.receive(scope, &Target::File(&file.id), content).await?;
        let checksum = hex::encode(checksum.finalize());
        if let Some(requested) = request.md5.as_ref().filter(|requested| !requested.eq_ignore_ascii_case(&checksum)) {
            received.discard().await;
            return Err(checksum_mismatch(requested, &checksum).into());
        }
        upload.state = UploadState::Completed(Box::new(file));
        if self.inner.store.end_upload(scope, &upload).await? {
            received.settle();
            return Ok(upload);
        }
        received.discard().await;
        self.pending_upload(scope, id, "complete").await?;
        Err(Error::LeaseEnded)
    }

    /// Cancels an upload. Its parts are removed. Returns the cancelled upload.
    ///
    /// # Errors
    /// 404 if the upload is unknown, 400 if it has ended; those of the storage.
    pub async fn cancel_upload(&self, scope: &Scope, id: &UploadId) -> Result<Upload, Error> {
        let mut upload = self.pending_upload(scope, id, "cancel").await?;
        upload.state = UploadState::Cancelled;
        if !self.inner.store.end_upload(scope, &upload).await? {
            return Err(self.pending_upload(scope, id, "cancel").await.err().unwrap_or(Error::LeaseEnded));
        }
        Ok(upload)
    }

    /// Opens a file that may be downloaded, or a range of it.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn open_range(
        &self,
        scope: &Scope,
        file: &File,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, Error> {
        Ok(self.inner.blobs.open_range(&Target::File(&file.id).blob(scope), range).await?)
    }

    /// Deletes a file. If its bytes cannot be deleted now, the reaper deletes them.
    ///
    /// # Errors
    /// 404 if the file is unknown; those of the store.
    pub async fn delete_file(&self, scope: &Scope, id: &FileId) -> Result<(), Error> {
        if !self.inner.store.delete_file(scope, id).await? {
            return Err(no_such_file(id.as_str()).into());
        }
        self.remove(&Target::File(id).blob(scope)).await;
        Ok(())
    }

    /// Deletes the bytes and then the row of a file or a part that is marked as deleted. Returns whether this succeeded;
    /// if not, the reaper tries again.
    pub(super) async fn remove(&self, blob: &BlobId) -> bool {
        if let Err(error) = self.inner.blobs.delete(blob).await {
            tracing::warn!(error = &error as &dyn std::error::Error, blob.id, "failed to delete the bytes of a file");
            return false;
        }
        if let Err(error) = self.inner.store.delete_blob_row(blob).await {
            tracing::warn!(error = &error as &dyn std::error::Error, blob.id, "failed to delete the row of a file");
            return false;
        }
        true
    }

    async fn pending_upload(&self, scope: &Scope, id: &UploadId, action: &str) -> Result<Upload, Error> {
        let upload = self.inner.store.upload(scope, id).await?.ok_or_else(|| id.not_found())?;
        upload.check_pending(self.now(), action)?;
        Ok(upload)
    }

    /// Stores a pending row and then the bytes, and renews the lease meanwhile.
    async fn receive(
        &self,
        scope: &Scope,
        target: &Target<'_>,
        content: impl Stream<Item = Result<Bytes, Error>> + Send,
    ) -> Result<Received, Error> {
        let slot = self.inner.slots.clone().acquire_owned();
        let slot = tokio::time::timeout(self.inner.settings.wait_max, slot).await;
        let Ok(Ok(slot)) = slot else { return Err(Error::TooMany) };
        match target {
            Target::File(id) => self.inner.store.create_pending_file(scope, id, self.now(), LEASE).await?,
            Target::Part(part) => self.inner.store.create_pending_part(scope, part, LEASE).await?,
        }
        let mut received = Received {
            service: self.clone(),
            scope: scope.clone(),
            blob: target.blob(scope),
            bytes: 0,
            is_settled: false,
            _slot: slot,
        };
        let stored = tokio::select! {
            stored = self.inner.blobs.put(&received.blob, content) => stored,
            () = self.renew(&received.blob) => Err(Error::LeaseEnded),
        };
        match stored {
            Ok(bytes) => {
                received.bytes = bytes;
                Ok(received)
            }
            Err(error) => {
                received.discard().await;
                Err(error)
            }
        }
    }

    /// Renews the lease of a pending row, until it has ended.
    async fn renew(&self, blob: &BlobId) {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match self.inner.store.renew_pending(blob, LEASE).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, blob.id, "failed to renew a lease");
                }
            }
        }
    }

    /// Returns the bytes of parts, one after the other.
    fn joined(
        &self,
        scope: &Scope,
        parts: Vec<(PartId, u64)>,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Send + use<> {
        let (blobs, project) = (self.inner.blobs.clone(), scope.project().clone());
        futures_util::stream::iter(parts)
            .then(move |(part, _)| {
                let (blobs, project) = (blobs.clone(), project.clone());
                async move {
                    let blob = BlobId { kind: BlobKind::Part, project, id: part.to_string() };
                    blobs.open_range(&blob, None).await.map_err(Error::from)
                }
            })
            .map_ok(|bytes| bytes.map_err(|error| Error::Blobs(blobs::unreadable(error))))
            .try_flatten()
    }
}

impl Received {
    /// Returns the number of bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes the file visible.
    ///
    /// # Errors
    /// 400 if the purpose does not allow the file name; [`Error::LeaseEnded`]; those of the store. Nothing is stored then.
    pub async fn finish_file(self, filename: String, request: &CreateFile) -> Result<File, Error> {
        if let Err(error) = request.purpose.check_filename(&filename) {
            self.discard().await;
            return Err(error.into());
        }
        let now = self.service.now();
        let file = File {
            id: FileId::from_stored(&self.blob.id),
            created_at: now,
            purpose: request.purpose,
            filename,
            bytes: self.bytes,
            expires_at: expiry(request.purpose, request.expires_after.as_ref(), now),
        };
        if self.service.inner.store.finish_file(&self.scope, &file).await? {
            self.settle();
            return Ok(file);
        }
        self.discard().await;
        Err(Error::LeaseEnded)
    }

    /// Removes row and bytes.
    pub async fn discard(mut self) {
        self.is_settled = true;
        let service = &self.service;
        match service.inner.store.discard_pending(&self.blob, Duration::ZERO).await {
            Ok(()) => {
                service.remove(&self.blob).await;
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, self.blob.id, "failed to discard a file; it is removed when its lease ends");
            }
        }
    }

    async fn check_not_empty(self, field: &str) -> Result<Self, Error> {
        if self.bytes > 0 {
            return Ok(self);
        }
        self.discard().await;
        Err(empty_file(field).into())
    }

    fn settle(mut self) {
        self.is_settled = true;
    }
}

impl Drop for Received {
    /// The future of a handler is dropped when its client disconnects.
    fn drop(&mut self) {
        if self.is_settled || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let (service, blob) = (self.service.clone(), self.blob.clone());
        self.service.inner.tasks.spawn(async move {
            if let Err(error) = service.inner.store.discard_pending(&blob, DISCARD_AFTER).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, blob.id, "failed to discard a file; it is removed when its lease ends");
            }
        });
    }
}
