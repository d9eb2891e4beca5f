//! The bytes of files and parts: in a local folder, or in a bucket of an S3-compatible service.
//!
//! Keys: `files/PROJECT/FILE_ID` and `parts/PROJECT/PART_ID`. Bytes appear under their key when they are complete, never
//! before: a folder has a temporary file `KEY#1` until then, a bucket a multipart upload.

use std::fs::Permissions;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{ClientOptions, HttpClient, HttpConnector};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, GetOptions, GetRange, GetResultPayload, ObjectStore, ObjectStoreExt as _, PutPayload, RetryConfig,
    WriteMultipart,
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;
use tokio_util::task::TaskTracker;

use crate::api::{ProjectId, Timestamp};
use crate::host::is_loopback;
use crate::store::{BlobId, BlobKind};

/// Size of a piece that is written to a folder, in bytes.
const FOLDER_PIECE_BYTES: usize = 1024 * 1024;
/// Size of a piece that is sent to a bucket, in bytes: the minimum of S3.
const BUCKET_PIECE_BYTES: usize = 5 * 1024 * 1024;
/// Maximum number of pieces that S3 accepts.
const BUCKET_PIECES_MAX: u64 = 10_000;
/// Maximum size of a file in a bucket, in bytes.
pub const BUCKET_FILE_BYTES_MAX: u64 = BUCKET_PIECE_BYTES as u64 * BUCKET_PIECES_MAX;
/// Number of pieces in flight at which the next one waits. With the piece that is being filled, an upload therefore uses
/// at most three pieces of memory.
const PIECES_IN_FLIGHT: usize = 2;
/// Size of a piece that is read from a folder, in bytes.
const READ_BYTES: usize = 256 * 1024;
/// Connect timeout of the S3 service.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time without a response or a byte of the S3 service.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of retries of a request to the S3 service.
const RETRIES_MAX: usize = 3;
/// Maximum time after the start of a request to the S3 service in which it is retried.
const RETRY_TIME: Duration = Duration::from_secs(15);
/// The suffix of the temporary file of a file that is being written to a folder.
const TEMPORARY_SUFFIX: &str = "#1";

/// The storage of bytes failed. A retry can help.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] object_store::Error);

impl Error {
    /// Returns whether the bytes do not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self.0, object_store::Error::NotFound { .. })
    }
}

/// The setting `files_url` is invalid.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSettings {
    /// It has another form than the two that are supported.
    #[error("files_url is \"{0}\"; it must be empty, file:///path or s3://bucket/prefix")]
    Url(String),
    /// The folder has a path that cannot be used.
    #[error("the folder of files is {0:?}; its path must be UTF-8 without control characters")]
    Folder(PathBuf),
    /// The S3 service cannot be used with these settings.
    #[error("files_url: the S3 settings are invalid: {0}")]
    S3(#[source] object_store::Error),
}

/// Where bytes are stored.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `file:///path` or `s3://bucket/prefix`. Empty: the folder `folder`.
    pub url: String,
    /// The default folder.
    pub folder: PathBuf,
    /// URL of the S3 service. Empty: that of AWS.
    pub s3_endpoint: String,
    /// Region of the bucket.
    pub s3_region: String,
    /// Access key ID. `None`: the AWS credentials of the machine.
    pub s3_access_key: Option<SecretString>,
    /// Secret access key.
    pub s3_secret_key: Option<SecretString>,
    /// Whether the bucket is in the path of a request, and not in the host name.
    pub s3_path_style: bool,
}

/// Returns the error of a URL. One with an @ may contain a key.
fn invalid(url: &str) -> InvalidSettings {
    InvalidSettings::Url(if url.contains('@') { "***".to_owned() } else { url.to_owned() })
}

/// Returns an absolute path without `..`, resolved as the system does.
fn without_parents(path: &FilePath) -> PathBuf {
    let mut resolved = PathBuf::new();
    for component in path.components() {
        if component == Component::ParentDir {
            // The parent of a symbolic link is that of its target.
            resolved = resolved.canonicalize().unwrap_or(resolved);
            resolved.pop();
        } else {
            resolved.push(component);
        }
    }
    resolved
}

/// The storage of bytes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    /// The folder, unless the bytes are in a bucket.
    folder: Option<PathBuf>,
    piece_bytes: usize,
    display_name: String,
    /// Runs clean-ups after interrupted writes.
    tasks: TaskTracker,
}

/// Stored bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBlob {
    /// What they belong to.
    pub blob: BlobId,
    /// When they were stored.
    pub stored_at: Timestamp,
}

impl Blobs {
    /// Opens the storage. Does not contact it: a folder is created with its first file.
    ///
    /// # Errors
    /// If the settings are invalid.
    pub fn open(settings: &Settings, tasks: TaskTracker) -> Result<Self, InvalidSettings> {
        let url = settings.url.as_str();
        if let Some(rest) = url.strip_prefix("s3://") {
            return Self::open_bucket(settings, rest, tasks);
        }
        let folder = match url.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => PathBuf::from(path),
            None if url.is_empty() => settings.folder.clone(),
            _ => return Err(invalid(url)),
        };
        Self::open_folder(&folder, tasks).ok_or(InvalidSettings::Folder(folder))
    }

    /// Returns `None` if the path is not valid.
    fn open_folder(folder: &FilePath, tasks: TaskTracker) -> Option<Self> {
        let folder = without_parents(&std::path::absolute(folder).ok()?);
        let prefix = Path::from_absolute_path(&folder).ok()?;
        Some(Self {
            store: Arc::new(PrefixStore::new(LocalFileSystem::new().with_fsync(true), prefix)),
            display_name: format!("file://{}", folder.display()),
            folder: Some(folder),
            piece_bytes: FOLDER_PIECE_BYTES,
            tasks,
        })
    }

    fn open_bucket(settings: &Settings, rest: &str, tasks: TaskTracker) -> Result<Self, InvalidSettings> {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_valid = |character: char| character.is_ascii_alphanumeric() || ".-_".contains(character);
        if bucket.is_empty() || !bucket.chars().all(is_valid) {
            return Err(invalid(&settings.url));
        }
        let endpoint = settings.s3_endpoint.as_str();
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_region(settings.s3_region.as_str())
            .with_virtual_hosted_style_request(!settings.s3_path_style)
            .with_allow_http(endpoint.starts_with("http://"))
            .with_retry(RetryConfig {
                backoff: BackoffConfig::default(),
                max_retries: RETRIES_MAX,
                retry_timeout: RETRY_TIME,
            })
            .with_http_connector(Connector { endpoint: endpoint.to_owned() });
        if !endpoint.is_empty() {
            builder = builder.with_config(AmazonS3ConfigKey::Endpoint, endpoint);
        }
        if let Some(key) = &settings.s3_access_key {
            builder = builder.with_access_key_id(key.expose_secret());
        }
        if let Some(key) = &settings.s3_secret_key {
            builder = builder.with_secret_access_key(key.expose_secret());
        }
        let store = builder.build().map_err(InvalidSettings::S3)?;
        let prefix = Path::parse(prefix).map_err(|error| InvalidSettings::S3(error.into()))?;
        Ok(Self {
            store: Arc::new(PrefixStore::new(store, prefix)),
            folder: None,
            piece_bytes: BUCKET_PIECE_BYTES,
            display_name: format!("s3://{rest}"),
            tasks,
        })
    }

    /// Returns the URL of the folder or bucket.
    #[must_use]
    pub fn display_name(&self) -> &str {
        &self.display_name
    }

    /// Returns whether the bytes are in a local folder, which other servers share only if it is mounted there.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.folder.is_some()
    }

    /// Stores the bytes of a stream. They appear when they are complete; after an error, or if the future is dropped,
    /// nothing remains. Uses at most three pieces of memory. Returns their number.
    ///
    /// # Errors
    /// The error of the stream, or [`Error`].
    pub async fn put<E: From<Error>>(
        &self,
        blob: &BlobId,
        content: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<u64, E> {
        let mut content = std::pin::pin!(content);
        let path = key(blob);
        let mut bytes = 0_u64;
        let mut first: Vec<u8> = Vec::new();
        while first.len() < self.piece_bytes {
            let Some(chunk) = content.try_next().await? else {
                self.store.put(&path, PutPayload::from(first)).await.map_err(Error)?;
                return Ok(bytes);
            };
            bytes += chunk.len() as u64;
            first.extend_from_slice(&chunk);
        }
        let upload = self.store.put_multipart(&path).await.map_err(Error)?;
        let upload = WriteMultipart::new_with_chunk_size(upload, self.piece_bytes);
        let mut writer = Writer { upload: Some(upload), tasks: self.tasks.clone() };
        let outcome = async {
            writer.write(&std::mem::take(&mut first)).await?;
            while let Some(chunk) = content.try_next().await? {
                bytes += chunk.len() as u64;
                writer.write(&chunk).await?;
            }
            Ok::<u64, E>(bytes)
        }
        .await;
        match outcome {
            Ok(bytes) => {
                writer.finish().await?;
                Ok(bytes)
            }
            Err(error) => {
                writer.abort().await;
                Err(error)
            }
        }
    }

    /// Lets only the owner enter the folder. Folders of older releases could be read by others.
    ///
    /// # Errors
    /// If the permissions cannot be changed.
    pub fn make_private(&self) -> std::io::Result<()> {
        let Some(folder) = self.folder.as_deref().filter(|folder| folder.exists()) else { return Ok(()) };
        std::fs::set_permissions(folder, Permissions::from_mode(0o700))
    }

    /// Checks that the storage can be read. A folder that does not exist yet is empty.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn check(&self) -> Result<(), Error> {
        self.list(BlobKind::File).try_next().await.map(drop)
    }

    /// Returns the folder, unless the bytes are in a bucket.
    #[must_use]
    pub fn folder(&self) -> Option<&FilePath> {
        self.folder.as_deref()
    }

    /// Opens bytes for reading, all of them or a range.
    ///
    /// # Errors
    /// [`Error`], also if there are none.
    pub async fn open_range(
        &self,
        blob: &BlobId,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, Error> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let found = self.store.get_opts(&key(blob), options).await?;
        match found.payload {
            GetResultPayload::File(file, _) => {
                let mut file = tokio::fs::File::from_std(file);
                let length = found.range.end - found.range.start;
                let start = found.range.start;
                file.seek(std::io::SeekFrom::Start(start)).await.map_err(unreadable)?;
                Ok(ReaderStream::with_capacity(file.take(length), READ_BYTES).boxed())
            }
            GetResultPayload::Stream(stream) => Ok(stream.map_err(std::io::Error::from).boxed()),
        }
    }

    /// Deletes bytes, and what an interrupted write has left in a folder. Succeeds if there is nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn delete(&self, blob: &BlobId) -> Result<(), Error> {
        let path = key(blob);
        if let Some(folder) = &self.folder {
            let temporary = folder.join(format!("{path}{TEMPORARY_SUFFIX}"));
            match tokio::fs::remove_file(temporary).await {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
        match self.store.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lists the bytes of a kind. Objects with other names than ours are left out.
    pub fn list(&self, kind: BlobKind) -> BoxStream<'static, Result<StoredBlob, Error>> {
        let listed = self.store.list(Some(&Path::from(folder_of(kind))));
        listed
            .map_err(Error)
            .try_filter_map(move |object| {
                let stored_at = Timestamp(object.last_modified.timestamp());
                let blob = blob_of(kind, &object.location);
                std::future::ready(Ok(blob.map(|blob| StoredBlob { blob, stored_at })))
            })
            .boxed()
    }
}

/// A write in several pieces. If it is dropped before its end, it is aborted.
struct Writer {
    upload: Option<WriteMultipart>,
    tasks: TaskTracker,
}

impl Writer {
    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        let upload = self.upload.as_mut().expect("present until the end");
        // At most one piece at a time is completed by a write.
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(FOLDER_PIECE_BYTES));
            upload.wait_for_capacity(PIECES_IN_FLIGHT).await?;
            upload.write(now);
            bytes = later;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<(), Error> {
        let upload = self.upload.take().expect("present until the end");
        upload.finish().await?;
        Ok(())
    }

    async fn abort(mut self) {
        if let Some(upload) = self.upload.take() {
            abort(upload).await;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            self.tasks.spawn(abort(upload));
        }
    }
}

async fn abort(upload: WriteMultipart) {
    if let Err(error) = upload.abort().await {
        tracing::warn!(error = &error as &dyn std::error::Error, "failed to abort the write of a file");
    }
}

/// Returns the error for bytes that a folder cannot read or delete.
#[must_use]
pub fn unreadable(error: std::io::Error) -> Error {
    Error(object_store::Error::Generic { store: "folder", source: Box::new(error) })
}

fn folder_of(kind: BlobKind) -> &'static str {
    match kind {
        BlobKind::File => "files",
        BlobKind::Part => "parts",
    }
}

/// Returns the key of bytes. IDs have no characters that a path cannot have.
fn key(blob: &BlobId) -> Path {
    Path::from_iter([folder_of(blob.kind), blob.project.as_str(), blob.id.as_str()])
}

/// Returns what the bytes with a key belong to, or `None` if the key is not one of ours.
fn blob_of(kind: BlobKind, key: &Path) -> Option<BlobId> {
    let parts: Vec<_> = key.parts().collect();
    let [folder, project, id] = parts.as_slice() else { return None };
    (folder.as_ref() == folder_of(kind)).then(|| BlobId {
        kind,
        project: ProjectId::from_stored(project.as_ref()),
        id: id.as_ref().to_owned(),
    })
}

/// Creates the HTTP client of an S3 service. There is no timeout for a whole request, because its body can be large.
#[derive(Debug)]
struct Connector {
    endpoint: String,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        // Fails if a provider is already installed, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        #[expect(clippy::disallowed_methods, reason = "the only place that creates clients for S3 services")]
        let mut client = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT);
        let url = reqwest::Url::parse(&self.endpoint).ok();
        if url.as_ref().and_then(reqwest::Url::host_str).is_some_and(is_loopback) {
            // A proxy cannot reach this machine's loopback.
            client = client.no_proxy();
        }
        let client =
            client.build().map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })?;
        Ok(HttpClient::new(client))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn open(folder: &FilePath) -> Blobs {
        let settings = Settings {
            url: String::new(),
            folder: folder.to_owned(),
            s3_endpoint: String::new(),
            s3_region: String::new(),
            s3_access_key: None,
            s3_secret_key: None,
            s3_path_style: true,
        };
        Blobs::open(&settings, TaskTracker::new()).unwrap()
    }

    fn blob(id: &str) -> BlobId {
        BlobId { kind: BlobKind::File, project: ProjectId::from_stored("proj_1"), id: id.to_owned() }
    }

    fn pieces(count: usize) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        stream::iter((0..count).map(|number| Ok(Bytes::from(vec![u8::try_from(number % 251).unwrap(); 100_000]))))
    }

    async fn read(blobs: &Blobs, blob: &BlobId, range: Option<Range<u64>>) -> Vec<u8> {
        let stream = blobs.open_range(blob, range).await.unwrap();
        stream.try_collect::<Vec<Bytes>>().await.unwrap().concat()
    }

    async fn stored(blobs: &Blobs) -> Vec<String> {
        let listed: Vec<StoredBlob> = blobs.list(BlobKind::File).try_collect().await.unwrap();
        listed.into_iter().map(|stored| stored.blob.id).collect()
    }

    fn files_in(folder: &FilePath) -> usize {
        let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
        entries.map(|entry| entry.unwrap().path()).map(|path| if path.is_dir() { files_in(&path) } else { 1 }).sum()
    }

    /// A folder that is deleted on drop. Its name has a character that URLs encode.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("assistd blobs {} {name}", std::process::id())))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn bytes_are_read_as_they_were_written() {
        let folder = Folder::new("read");
        let blobs = open(&folder.0);
        assert_eq!(stored(&blobs).await, Vec::<String>::new());

        assert_eq!(blobs.put(&blob("file-small"), pieces(1)).await.unwrap(), 100_000);
        assert_eq!(blobs.put(&blob("file-large"), pieces(35)).await.unwrap(), 3_500_000);

        assert_eq!(read(&blobs, &blob("file-small"), None).await, vec![0; 100_000]);
        let large = read(&blobs, &blob("file-large"), None).await;
        assert_eq!((large.len(), large[3_499_999]), (3_500_000, 34));
        assert_eq!(read(&blobs, &blob("file-large"), Some(99_999..100_001)).await, [0, 1]);
        let mut names = stored(&blobs).await;
        names.sort();
        assert_eq!(names, ["file-large", "file-small"]);
        blobs.delete(&blob("file-large")).await.unwrap();
        blobs.delete(&blob("file-large")).await.unwrap();
        assert_eq!(stored(&blobs).await, ["file-small"]);
        assert!(blobs.open_range(&blob("file-large"), None).await.is_err());
    }

    #[tokio::test]
    async fn an_interrupted_write_leaves_nothing() {
        let folder = Folder::new("interrupted");
        let blobs = open(&folder.0);
        let broken = || {
            let error = Error(object_store::Error::Generic { store: "test", source: "broken".into() });
            pieces(20).chain(stream::iter([Err(error)]))
        };

        blobs.put(&blob("file-1"), broken()).await.unwrap_err();
        assert_eq!(files_in(&folder.0), 0, "after an error");

        let endless = pieces(20).chain(stream::pending());
        tokio::time::timeout(Duration::from_millis(300), blobs.put(&blob("file-2"), endless)).await.unwrap_err();
        blobs.tasks.close();
        blobs.tasks.wait().await;
        assert_eq!(files_in(&folder.0), 0, "after the future was dropped");
    }

    #[tokio::test]
    async fn the_temporary_file_of_a_lost_server_is_deleted_with_the_bytes() {
        let folder = Folder::new("lost");
        let blobs = open(&folder.0);
        let temporary = folder.0.join("files/proj_1/file-1#1");
        std::fs::create_dir_all(temporary.parent().unwrap()).unwrap();
        std::fs::write(&temporary, "half").unwrap();

        assert_eq!(stored(&blobs).await, Vec::<String>::new());
        blobs.delete(&blob("file-1")).await.unwrap();

        assert_eq!(files_in(&folder.0), 0);
    }
}
