//! The file of a SQLite database: its path, its lock, and whether it is whole.

use std::fs::{File, Metadata, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::Error;

/// Length of the header of a SQLite file, in bytes.
const HEADER_BYTES: usize = 100;
/// How each SQLite file begins.
const MAGIC: &[u8] = b"SQLite format 3\0";
/// The suffixes of the files of a database.
const SUFFIXES: [&str; 4] = ["", "-wal", "-shm", ".lock"];
/// Parameters of URLs for SQLite, as other programs write them.
const URL_PARAMETERS: [&str; 4] = ["mode=", "cache=", "immutable=", "vfs="];

/// Returns the path in a URL of the form `sqlite://path`. All characters of the path are taken as they are.
///
/// # Errors
/// [`Error::InvalidUrl`].
pub(super) fn path_of(url: &str) -> Result<PathBuf, Error> {
    let path = url.strip_prefix("sqlite:").unwrap_or(url);
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.is_empty() || path == ":memory:" {
        return Err(Error::InvalidUrl(
            "database_url does not name a file; write it as sqlite://path/to/file.db".to_owned(),
        ));
    }
    if let Some((_, parameters)) = path.rsplit_once('?')
        && URL_PARAMETERS.iter().any(|known| parameters.starts_with(known))
    {
        return Err(Error::InvalidUrl(format!(
            "database_url ends in \"?{parameters}\"; a SQLite URL has no parameters: write it as sqlite://path/to/file.db"
        )));
    }
    // SQLite would read such a name as a URL.
    let path = if path.starts_with("file:") { Path::new(".").join(path) } else { PathBuf::from(path) };
    if !path.is_symlink() {
        return Ok(path);
    }
    // One file has one lock, however it is named. A link without a target must not be replaced by an empty database.
    path.canonicalize().map_err(|error| open_error(&path, &error))
}

/// Returns the path of a file that belongs to the database, such as `-wal`.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Returns the error for a file that is not a whole database.
pub(super) fn not_whole(path: &Path, reason: impl Into<String>) -> Error {
    Error::NotWhole { path: path.display().to_string(), reason: reason.into() }
}

/// Why the lock file is not locked.
pub(super) enum LockError {
    /// A server has locked it.
    InUse(Error),
    /// It cannot be locked.
    Failed(Error),
}

/// The locked lock file next to a database.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Creates the folder of the database file, and locks the lock file next to it.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let failed = |error: &dyn std::fmt::Display| LockError::Failed(open_error(path, error));
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|error| failed(&error))?;
        }
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        let file = options.open(beside(path, ".lock")).map_err(|error| failed(&error))?;
        own_by_folder_owner(path);
        file.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => LockError::InUse(open_error(path, &"another server is using it")),
            std::fs::TryLockError::Error(error) => failed(&error),
        })?;
        Ok(Self(file))
    }

    /// Returns whether a server has checked the whole database at this path.
    pub fn is_checked(&self) -> bool {
        self.0.metadata().is_ok_and(|file| file.len() > 0)
    }

    /// Records that the whole database was checked. Otherwise, the next start checks it again.
    pub fn mark_checked(&self) {
        if !self.is_checked() {
            let _ = (&self.0).write_all(b"checked\n");
        }
    }
}

/// Changes the owner of the files that root has created to that of their folder. Otherwise, a server that runs as that user could
/// not open them after a command that root has run. Links are left alone: the owner of the folder could link to any file.
pub(super) fn own_by_folder_owner(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(folder) = folder.metadata() else { return };
    for file in SUFFIXES.map(|suffix| beside(path, suffix)) {
        let is_created_by_root = |found: Metadata| found.is_file() && found.uid() == 0 && found.nlink() == 1;
        if folder.uid() != 0
            && file.symlink_metadata().is_ok_and(is_created_by_root)
            && let Err(error) = std::os::unix::fs::lchown(&file, Some(folder.uid()), Some(folder.gid()))
        {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, file = %file.display(), "failed to change the owner of a file of the database");
        }
    }
}

/// Lets only the owner read the files of the database. Files of older releases were readable for others.
pub(super) fn make_private(path: &Path) {
    for file in SUFFIXES.map(|suffix| beside(path, suffix)) {
        let Ok(found) = file.metadata() else { continue };
        let mode = found.permissions().mode();
        if mode & 0o077 != 0
            && let Err(error) = std::fs::set_permissions(&file, Permissions::from_mode(mode & 0o700))
        {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, file = %file.display(), "other users can read a file of the database");
        }
    }
}

/// Returns whether a server is using the database. Creates no files.
pub(super) fn is_in_use(path: &Path) -> bool {
    let Ok(file) = File::open(beside(path, ".lock")) else { return false };
    matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock))
}

fn open_error(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::InvalidUrl(format!("failed to open the database {}: {error}", path.display()))
}

/// Returns whether there are changes that are not yet in the file: those since its last checkpoint.
pub(super) fn has_log(path: &Path) -> bool {
    std::fs::metadata(beside(path, "-wal")).is_ok_and(|log| log.len() > 0)
}

/// Checks that a file can be a database of a server, by its header and the files beside it. Returns whether it is a copy that
/// no server has used yet.
///
/// # Errors
/// [`Error::NotWhole`], or [`Error::InvalidUrl`] if the file cannot be read.
pub(super) fn check_header(path: &Path) -> Result<bool, Error> {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    let file = File::open(path).map_err(|error| open_error(path, &error))?;
    file.take(HEADER_BYTES as u64).read_to_end(&mut header).map_err(|error| open_error(path, &error))?;
    if header.is_empty() {
        return Err(not_whole(path, "it is empty"));
    }
    if header.len() < HEADER_BYTES || !header.starts_with(MAGIC) {
        return Err(not_whole(path, "it is not a SQLite file"));
    }
    // The versions of the format are 1 in a copy, until a server uses it. Such a file has no log.
    let is_copy = header[18..20] == [1, 1];
    if is_copy && has_log(path) {
        let log = beside(path, "-wal");
        return Err(not_whole(
            path,
            format!("{} has the changes of another database; move it away with its -shm file", log.display()),
        ));
    }
    Ok(is_copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_as_it_is() {
        let path = |url| path_of(url).unwrap();

        assert_eq!(path("sqlite:///var/a?b#c%20d/x.db"), Path::new("/var/a?b#c%20d/x.db"));
        assert_eq!(path("sqlite://x.db?old"), Path::new("x.db?old"));
        assert_eq!(path("sqlite:x.db"), Path::new("x.db"));
        assert_eq!(path("sqlite:////var/x.db"), Path::new("//var/x.db"));
        assert_eq!(path("sqlite://file:x.db"), Path::new("./file:x.db"));
    }

    #[test]
    fn a_url_with_parameters_is_rejected() {
        let error = path_of("sqlite://x.db?mode=rwc").unwrap_err().to_string();

        assert!(error.contains("ends in \"?mode=rwc\""), "{error}");
        assert!(path_of("sqlite://").is_err() && path_of("sqlite::memory:").is_err());
    }
}
