//! The command that makes a backup: a copy of the SQLite database, and of the bytes of files beside it.
//!
//! The database is copied first. A file that is deleted afterwards, before its bytes are copied, expires in the copy, as if it
//! had been deleted just before the backup. Files that are added afterwards are not in the backup. So each file in the backup
//! has its bytes.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Output;
use crate::config::Settings;
use crate::files::blobs::{self, Blobs, InvalidSettings, unreadable};
use crate::store::{self, BlobId, DatabaseCopy};

/// The suffix of the folder of files, beside the copy of the database.
const FILES_SUFFIX: &str = ".files";
/// Number of files that are copied at the same time. Each waits for the disk at its end.
const CONCURRENCY: usize = 8;

/// The arguments of `backup`.
#[derive(Debug, Args)]
pub struct BackupArguments {
    /// The copy of the database. It must not exist. The bytes of files are copied to the folder FILE.files.
    file: PathBuf,
    /// Do not copy the bytes of files.
    #[arg(long)]
    without_files: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The backup failed, or is not complete.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path names nothing that can be written.
    #[error("\"{0}\" does not name a file; expected a path such as /backups/assistd.db")]
    NoName(String),
    /// The target exists.
    #[error("{0} exists; a backup does not replace anything")]
    Exists(String),
    /// The target cannot be written.
    #[error("failed to write {path}")]
    Write {
        /// The path.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The database cannot be copied.
    #[error("failed to copy the database")]
    Database(#[from] store::Error),
    /// The storage of files cannot be used.
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
    /// The bytes of a file cannot be copied.
    #[error("failed to copy the bytes of {id}")]
    Blob {
        /// The ID of the file or part.
        id: String,
        /// The cause.
        #[source]
        source: blobs::Error,
    },
    /// It was stopped.
    #[error("the backup was stopped")]
    Stopped,
    /// Files of the database have no bytes.
    #[error("{count} files have no bytes in {storage}, such as {example}; check files_url and data_dir")]
    NoBytes {
        /// How many.
        count: usize,
        /// Where their bytes should be.
        storage: String,
        /// One of them.
        example: String,
    },
}

impl Error {
    fn write(path: &Path, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        if source.kind() == std::io::ErrorKind::AlreadyExists {
            return Self::Exists(path.display().to_string());
        }
        Self::Write { path: path.display().to_string(), source }
    }
}

/// Where the bytes of files are, after a backup.
enum Files {
    /// In this folder of the backup.
    Copied { folder: PathBuf, count: usize, bytes: u64 },
    /// Where they were; the backup does not have them.
    Left { storage: String, count: usize },
}

/// Makes a backup under temporary names, and renames it when it is complete and on the disk. If it fails or is stopped, nothing
/// remains.
///
/// # Errors
/// [`Error`].
pub async fn run(
    settings: &Settings,
    arguments: &BackupArguments,
    stopping: &CancellationToken,
) -> Result<Output, Error> {
    let target = Target::new(&arguments.file)?;
    let partial = Partial::create(&target)?;
    let tasks = TaskTracker::new();
    let source = Blobs::open(&settings.blobs(), tasks.clone())?;
    let (store, database) = (settings.store(), partial.database());
    let mut copy = tokio::select! {
        copy = DatabaseCopy::create(&store, &database) => copy?,
        () = stopping.cancelled() => return Err(Error::Stopped),
    };
    let blobs = copy.blobs().await?;
    let files = if arguments.without_files || !source.is_local() {
        Files::Left { storage: source.display_name().to_owned(), count: blobs.len() }
    } else {
        let destination = open_files(&partial, tasks)?;
        let (count, bytes) = copy_files(&source, &destination, &blobs, &mut copy, stopping).await?;
        Files::Copied { folder: target.files.clone(), count, bytes }
    };
    let bytes = copy.finish().await?;
    partial.publish(&target, matches!(files, Files::Copied { .. }))?;
    Ok(output(&target.file, bytes, &files, arguments.json))
}

/// Creates the folder for the bytes of files.
fn open_files(partial: &Partial, tasks: TaskTracker) -> Result<Blobs, Error> {
    let folder = partial.files();
    DirBuilder::new().create(&folder).map_err(|error| Error::write(&folder, error))?;
    let settings = blobs::Settings {
        url: String::new(),
        folder,
        s3_endpoint: String::new(),
        s3_region: String::new(),
        s3_access_key: None,
        s3_secret_key: None,
        s3_path_style: false,
    };
    Ok(Blobs::open(&settings, tasks)?)
}

/// Copies the bytes of files. Returns how many there are, and their size.
async fn copy_files(
    source: &Blobs,
    target: &Blobs,
    blobs: &[BlobId],
    copy: &mut DatabaseCopy,
    stopping: &CancellationToken,
) -> Result<(usize, u64), Error> {
    // After an error, no copy is started, and those in progress end: an abandoned one would create files later.
    let ending = stopping.child_token();
    let copied = stream::iter(blobs).map(async |blob| {
        if ending.is_cancelled() {
            return Err(Error::Stopped);
        }
        copy_file(source, target, blob).await.inspect_err(|_| ending.cancel())
    });
    let copied: Vec<Result<(&BlobId, Option<u64>), Error>> = copied.buffer_unordered(CONCURRENCY).collect().await;
    let (copied, failed): (Vec<_>, Vec<_>) = copied.into_iter().partition(Result::is_ok);
    let mut failed: Vec<Error> = failed.into_iter().filter_map(Result::err).collect();
    if !failed.is_empty() {
        let cause = failed.iter().position(|error| !matches!(error, Error::Stopped)).unwrap_or(0);
        return Err(failed.swap_remove(cause));
    }
    let copied: Vec<(&BlobId, Option<u64>)> = copied.into_iter().flatten().collect();
    let mut lost = Vec::new();
    for (blob, _) in copied.iter().filter(|(_, bytes)| bytes.is_none()) {
        if copy.still_exists(blob).await? {
            lost.push(*blob);
        } else {
            copy.expire(blob).await?;
        }
    }
    if let Some(example) = lost.first() {
        let storage = source.display_name().to_owned();
        return Err(Error::NoBytes { count: lost.len(), storage, example: example.id.clone() });
    }
    let sizes: Vec<u64> = copied.into_iter().filter_map(|(_, bytes)| bytes).collect();
    Ok((sizes.len(), sizes.iter().sum()))
}

/// Copies the bytes of a file. Returns their size, or `None` if there are none.
async fn copy_file<'b>(source: &Blobs, target: &Blobs, blob: &'b BlobId) -> Result<(&'b BlobId, Option<u64>), Error> {
    let failed = |source| Error::Blob { id: blob.id.clone(), source };
    let bytes = match source.open_range(blob, None).await {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return Ok((blob, None)),
        Err(error) => return Err(failed(error)),
    };
    let size = target.put(blob, bytes.map_err(unreadable)).await.map_err(failed)?;
    Ok((blob, Some(size)))
}

/// The paths of a backup.
struct Target {
    file: PathBuf,
    files: PathBuf,
    folder: PathBuf,
    name: String,
}

impl Target {
    /// Checks that nothing is at the paths, and that their folder exists.
    fn new(path: &Path) -> Result<Self, Error> {
        let file = std::path::absolute(path).map_err(|error| Error::write(path, error))?;
        let (Some(folder), Some(name), false) =
            (file.parent(), file.file_name(), path.as_os_str().to_string_lossy().ends_with('/'))
        else {
            return Err(Error::NoName(path.display().to_string()));
        };
        let name = name.to_string_lossy().into_owned();
        let files = folder.join(format!("{name}{FILES_SUFFIX}"));
        if let Some(exists) = [&file, &files].into_iter().find(|path| path.symlink_metadata().is_ok()) {
            return Err(Error::Exists(exists.display().to_string()));
        }
        Ok(Self { folder: folder.to_owned(), files, name, file: file.clone() })
    }
}

/// The temporary folder of a backup that is being made. It is deleted on drop.
struct Partial {
    folder: PathBuf,
}

impl Partial {
    fn create(target: &Target) -> Result<Self, Error> {
        // In the folder of the target, so that it can be renamed.
        let folder = target.folder.join(format!(".{}.partial-{}", target.name, std::process::id()));
        DirBuilder::new().mode(0o700).create(&folder).map_err(|error| Error::write(&folder, error))?;
        Ok(Self { folder })
    }

    fn database(&self) -> PathBuf {
        self.folder.join("database")
    }

    fn files(&self) -> PathBuf {
        self.folder.join("files")
    }

    /// Renames the backup to its final names: the database last, so that it exists only if the backup is complete.
    fn publish(self, target: &Target, has_files: bool) -> Result<(), Error> {
        let synchronize = |folder: &Path| {
            std::fs::File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|error| Error::write(folder, error))
        };
        make_private(&self.folder).map_err(|error| Error::write(&self.folder, error))?;
        if has_files {
            rename(&self.files(), &target.files)?;
        }
        let renamed = rename(&self.database(), &target.file).and_then(|()| synchronize(&target.folder));
        if renamed.is_err() && has_files {
            let _ = std::fs::remove_dir_all(&target.files);
        }
        renamed
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Lets only the owner read what is in a folder.
fn make_private(folder: &Path) -> std::io::Result<()> {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let is_folder = entry.file_type()?.is_dir();
        std::fs::set_permissions(entry.path(), Permissions::from_mode(if is_folder { 0o700 } else { 0o600 }))?;
        if is_folder {
            make_private(&entry.path())?;
        }
    }
    Ok(())
}

/// Renames a file or folder to a name that does not exist.
fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // The file system cannot rename without replacing.
        Err(Errno::INVAL | Errno::NOSYS) if to.symlink_metadata().is_err() => {
            std::fs::rename(from, to).map_err(|error| Error::write(to, error))
        }
        Err(error) => Err(Error::write(to, error)),
    }
}

fn output(file: &Path, bytes: u64, files: &Files, json: bool) -> Output {
    let path = file.display().to_string();
    let note = match files {
        Files::Left { storage, count } => {
            Some(format!("the bytes of {count} files are in {storage}, and not in the backup; copy them as well"))
        }
        Files::Copied { .. } => None,
    };
    if json {
        let files = match files {
            Files::Copied { folder, count, bytes } => {
                json!({"path": folder.display().to_string(), "count": count, "bytes": bytes})
            }
            Files::Left { storage, count } => json!({"not_copied": storage, "count": count}),
        };
        return Output::json(&json!({"path": path, "bytes": bytes, "files": files}));
    }
    let mut result = format!("{path}  {bytes} bytes\n");
    if let Files::Copied { folder, count, bytes } = files {
        result = format!("{result}{}  {count} files, {bytes} bytes\n", folder.display());
    }
    Output { result, note }
}
