//! The folders of sessions: made when a session opens, searched for what code has written, and removed when it closes.
//!
//! ```text
//! FOLDER/                 of all servers that use this data folder; private
//!     SERVER/             of one server
//!         lock            locked as long as the server runs
//!         SESSION/
//!             data/       mounted as /mnt/data
//!             tmp/        mounted as /tmp
//!             loading     a file that is being loaded
//! ```

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::hash::BuildHasher;
use std::io;
use std::ops::Add;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, Metadata, MetadataExt as _};

/// The folder in which the figures are that code has shown.
const FIGURES: &str = ".figures";
/// Maximum depth of folders. Each level needs a file handle while a folder is searched.
const DEPTH_MAX: usize = 128;
/// Maximum depth of the files that are stored for users.
const FOUND_DEPTH_MAX: usize = 16;

/// The folder of a server's sessions. It is removed with the server, or by the next one that starts.
#[derive(Debug)]
pub struct ServerFolder {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl ServerFolder {
    /// Makes the folder of a server with this name, and removes those of servers that no longer run.
    pub fn create(all: &Path, name: &str) -> io::Result<Self> {
        create_private(all)?;
        let path = all.join(name);
        create_private(&path)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path.join("lock"))?;
        lock.try_lock()?;
        let folder = Self { path, _lock: lock };
        folder.remove_abandoned(all)?;
        Ok(folder)
    }

    /// Returns the folder of a session.
    #[must_use]
    pub fn of_session(&self, id: &str) -> PathBuf {
        self.path.join(id)
    }

    fn remove_abandoned(&self, all: &Path) -> io::Result<()> {
        for entry in fs::read_dir(all)? {
            let path = entry?.path();
            if path == self.path {
                continue;
            }
            // A folder without lock is being made, or being removed.
            let Ok(lock) = OpenOptions::new().write(true).open(path.join("lock")) else { continue };
            if lock.try_lock().is_ok() {
                fs::remove_dir_all(&path)?;
            }
        }
        Ok(())
    }
}

impl Drop for ServerFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(error = &error as &dyn std::error::Error, "failed to remove the folder of sessions");
        }
    }
}

/// Makes a folder that only this user can read.
pub fn create_private(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// What identifies a version of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file that code has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its path below the folder.
    pub path: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// Its version.
    pub stamp: Stamp,
}

/// Calls `visit` with everything below a folder: its path below the folder, and what it is. The entries of a folder are visited
/// if `visit` returns true for it. Links are not followed, and paths can be longer than the system allows.
///
/// # Errors
/// If a folder cannot be read, or the folders are too deep.
pub fn walk(folder: &Path, visit: &mut impl FnMut(&Path, &Metadata) -> bool) -> io::Result<()> {
    walk_below(&Dir::open_ambient_dir(folder, ambient_authority())?, &mut PathBuf::new(), 0, visit)
}

fn walk_below(
    dir: &Dir,
    path: &mut PathBuf,
    depth: usize,
    visit: &mut impl FnMut(&Path, &Metadata) -> bool,
) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other("the folders are too deep"));
    }
    for entry in dir.entries()? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        path.push(entry.file_name());
        if visit(path, &metadata) && metadata.is_dir() {
            walk_below(&entry.open_dir()?, path, depth + 1, visit)?;
        }
        path.pop();
    }
    Ok(())
}

/// Bytes, and files and folders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// The bytes of files.
    pub bytes: u64,
    /// The number of files and folders.
    pub files: u64,
}

impl Add for Size {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(more.bytes), files: self.files.saturating_add(more.files) }
    }
}

/// Returns the size of everything in a folder. A file with several names has its bytes once.
///
/// # Errors
/// If a folder cannot be read, or the folders are too deep.
pub fn size(folder: &Path) -> io::Result<Size> {
    let (mut size, mut linked) = (Size::default(), HashSet::new());
    walk(folder, &mut |_, metadata| {
        let is_new = metadata.is_file() && (metadata.nlink() == 1 || linked.insert(metadata.ino()));
        size = size + Size { bytes: if is_new { metadata.len() } else { 0 }, files: 1 };
        true
    })?;
    Ok(size)
}

/// Returns the regular files in a folder, ordered by path, without hidden ones.
pub fn files(folder: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    walk(folder, &mut |path, metadata| {
        let name = path.file_name().and_then(OsStr::to_str);
        let is_shown = name.is_some_and(|name| !name.starts_with('.') && name != "__pycache__");
        // A file whose path is not Unicode cannot be stored for users.
        if let Some(path) = path.to_str().filter(|_| is_shown && metadata.is_file()) {
            found.push(Found { path: path.to_owned(), bytes: metadata.len(), stamp: Stamp::of(metadata) });
        }
        is_shown && path.components().count() <= FOUND_DEPTH_MAX
    })?;
    found.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(found)
}

/// Returns the files that are not in `seen` or have changed.
#[must_use]
pub fn changed<S: BuildHasher>(files: Vec<Found>, seen: &HashMap<String, Stamp, S>) -> Vec<Found> {
    files.into_iter().filter(|file| seen.get(&file.path) != Some(&file.stamp)).collect()
}

/// Returns the figures that code has shown, in their order.
pub fn figures(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = folder.join(FIGURES);
    // Code could have replaced the folder by something else.
    match fs::symlink_metadata(&folder) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let mut figures = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if fs::symlink_metadata(&path)?.is_file() {
            figures.push(path);
        }
    }
    figures.sort();
    Ok(figures)
}

/// Opens a regular file for reading, and does not follow a link.
pub fn open(path: &Path) -> io::Result<File> {
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(no_follow).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an empty folder.
    fn empty(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("assistd-folder-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        create_private(&path).unwrap();
        path
    }

    #[test]
    fn only_regular_files_are_found_and_links_are_not_followed() {
        let folder = empty("found");
        fs::write(folder.join("a.txt"), "a").unwrap();
        fs::create_dir_all(folder.join("sub/deep")).unwrap();
        fs::write(folder.join("sub/deep/b"), "bb").unwrap();
        fs::write(folder.join(".hidden"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.join("link")).unwrap();
        std::os::unix::fs::symlink("/etc", folder.join("etc")).unwrap();

        let found = files(&folder).unwrap();

        let names: Vec<(&str, u64)> = found.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
        assert_eq!(names, [("a.txt", 1), ("sub/deep/b", 2)]);
        let seen: HashMap<_, _> = found.iter().map(|file| (file.path.clone(), file.stamp)).collect();
        assert_eq!(changed(files(&folder).unwrap(), &seen), []);
        fs::write(folder.join("a.txt"), "b").unwrap();
        let changes = changed(files(&folder).unwrap(), &seen);
        assert_eq!(changes.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["a.txt"]);
        assert!(open(&folder.join("link")).is_err() && open(&folder.join("sub")).is_err());
        assert!(open(&folder.join("a.txt")).is_ok());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_folders_of_lost_servers_are_removed_and_those_of_running_ones_are_not() {
        let all = empty("servers");
        fs::create_dir_all(all.join("lost/session")).unwrap();
        fs::write(all.join("lost/lock"), "").unwrap();
        let running = ServerFolder::create(&all, "running").unwrap();
        create_private(&running.of_session("s")).unwrap();

        let next = ServerFolder::create(&all, "next").unwrap();

        assert!(!all.join("lost").exists() && running.of_session("s").exists());
        drop((running, next));
        assert_eq!(fs::read_dir(&all).unwrap().count(), 0);
        fs::remove_dir_all(all).unwrap();
    }
}
