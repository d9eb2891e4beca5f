//! The open files and folders of the guest.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, DirEntry, Metadata, MetadataExt as _, OpenOptions};

use super::super::folder::Size;
use super::super::sandbox::Folder as SessionFolder;
use super::disk::Disk;
use super::memory::{Errno, Result};
use super::{Mount, coarse, current_time};

/// Maximum number of open files and folders.
const OPEN_MAX: usize = 256;
/// Maximum number of open folders, whose entries are in the memory of the server.
const OPEN_FOLDERS_MAX: usize = 64;
/// Maximum number of components of a path: deeper folders would make each search slow.
const DEPTH_MAX: usize = 64;
/// Maximum size of a file, in bytes, below which positions do not overflow.
const FILE_BYTES_MAX: u64 = 1 << 48;

/// Rights of WASI that say how a file is opened.
const RIGHT_READ: u64 = 1 << 1;
const RIGHT_WRITE: u64 = 1 << 6;
/// Flags of `path_open`.
const CREATE: i32 = 1;
const DIRECTORY: i32 = 2;
const EXCLUSIVE: i32 = 4;
const TRUNCATE: i32 = 8;
/// The flag of a file to which everything is appended.
const APPEND: u16 = 1;
/// Types of files.
const CHARACTER_DEVICE: u8 = 2;
const FOLDER: u8 = 3;
const REGULAR_FILE: u8 = 4;
const LINK: u8 = 7;

/// What a number of the guest refers to.
pub(super) enum Descriptor {
    /// Nothing is read from it.
    Input,
    /// What is printed.
    Output,
    Folder(Folder),
    File(OpenFile),
}

/// An open folder.
pub(super) struct Folder {
    dir: Dir,
    /// The name of the mount, if it is the mount itself.
    mount: Option<&'static str>,
    is_writable: bool,
    /// What was in the folder when it was read from its beginning.
    entries: Vec<Entry>,
}

struct Entry {
    name: Vec<u8>,
    inode: u64,
    kind: u8,
}

/// An open file.
pub(super) struct OpenFile {
    file: File,
    flags: u16,
    can_write: bool,
    /// Whether its times can be set: it is neither an original nor a file of the runtime.
    can_change: bool,
}

/// How a file is opened.
pub(super) struct How {
    pub how: i32,
    pub rights: u64,
    pub flags: i32,
}

/// All of them, by number.
pub(super) struct Files {
    open: HashMap<u32, Descriptor>,
    disk: Disk,
    /// Files that cannot be changed: their names, and their inodes. An inode can have other names, which can be changed.
    original_names: HashSet<OsString>,
    original_inodes: HashSet<u64>,
}

impl Files {
    /// Opens the mounts of a session.
    pub fn new(mounts: &[Mount], folder: &SessionFolder) -> io::Result<Self> {
        let mut open = HashMap::from([(0, Descriptor::Input), (1, Descriptor::Output), (2, Descriptor::Output)]);
        for (mount, fd) in mounts.iter().zip(3..) {
            let dir = Dir::open_ambient_dir(&mount.path, ambient_authority())?;
            let folder = Folder { dir, mount: Some(mount.name), is_writable: mount.is_writable, entries: Vec::new() };
            open.insert(fd, Descriptor::Folder(folder));
        }
        let disk = Disk::new(folder);
        Ok(Self { open, disk, original_names: HashSet::new(), original_inodes: HashSet::new() })
    }

    /// Sets the limits, and measures the folder, to which the server may have added files.
    pub fn set_limits(&mut self, bytes: u64, files: u64) {
        self.disk.set_limits(Size { bytes, files });
        // A folder that cannot be read counts as full.
        let _ = self.measure();
    }

    pub fn set_originals(&mut self, paths: &[PathBuf]) {
        self.original_names = paths.iter().filter_map(|path| path.file_name()).map(OsStr::to_ascii_lowercase).collect();
        let inode = |path: &PathBuf| std::fs::symlink_metadata(path).ok().map(|metadata| metadata.ino());
        self.original_inodes = paths.iter().filter_map(inode).collect();
    }

    pub fn get(&self, fd: u32) -> Result<&Descriptor> {
        self.open.get(&fd).ok_or(Errno::BADF)
    }

    fn file(&self, fd: u32) -> Result<&OpenFile> {
        match self.get(fd)? {
            Descriptor::File(file) => Ok(file),
            Descriptor::Folder(_) => Err(Errno::ISDIR),
            Descriptor::Input | Descriptor::Output => Err(Errno::SPIPE),
        }
    }

    fn folder(&self, fd: u32) -> Result<&Folder> {
        match self.get(fd)? {
            Descriptor::Folder(folder) => Ok(folder),
            Descriptor::File(_) | Descriptor::Input | Descriptor::Output => Err(Errno::NOTDIR),
        }
    }

    /// Returns a folder below which the guest can change a path.
    fn writable(&self, fd: u32, path: &Path) -> Result<&Folder> {
        let folder = self.folder(fd)?;
        check_depth(path)?;
        if !folder.is_writable {
            return Err(Errno::ROFS);
        }
        if self.is_original(folder, path) { Err(Errno::ACCES) } else { Ok(folder) }
    }

    /// Returns whether a path is the name of an original by which it is known, whatever folder it is relative to.
    fn is_original(&self, folder: &Folder, path: &Path) -> bool {
        // Some file systems do not distinguish upper and lower case.
        let is_name = path.file_name().is_some_and(|name| self.original_names.contains(&name.to_ascii_lowercase()));
        is_name && folder.dir.symlink_metadata(path).is_ok_and(|metadata| self.is_original_file(&metadata))
    }

    fn is_original_file(&self, metadata: &Metadata) -> bool {
        self.original_inodes.contains(&metadata.ino())
    }

    /// Counts what is about to be written.
    ///
    /// # Errors
    /// If that exceeds a limit.
    fn take(&mut self, more: Size) -> Result<()> {
        if !self.disk.fits(more) {
            self.measure()?;
            if !self.disk.fits(more) {
                return Err(Errno::NOSPC);
            }
        }
        self.disk.add(more);
        Ok(())
    }

    fn take_bytes(&mut self, bytes: u64) -> Result<()> {
        self.take(Size { bytes, files: 0 })
    }

    fn take_file(&mut self) -> Result<()> {
        self.take(Size { bytes: 0, files: 1 })
    }

    fn measure(&mut self) -> Result<()> {
        let mut removed = HashMap::new();
        for descriptor in self.open.values() {
            let Descriptor::File(open) = descriptor else { continue };
            let metadata = open.file.metadata()?;
            if metadata.nlink() == 0 {
                removed.insert(metadata.ino(), metadata.len());
            }
        }
        self.disk.measure(Size { bytes: removed.values().sum(), files: removed.len() as u64 })
    }

    /// Replaces a name of an original by a copy.
    fn copy_first(&mut self, fd: u32, path: &Path) -> Result<()> {
        self.take(Size { bytes: self.folder(fd)?.dir.metadata(path)?.len(), files: 1 })?;
        let dir = &self.folder(fd)?.dir;
        let (copy, mut target) = create_beside(dir, path)?;
        let copied = io::copy(&mut dir.open(path)?, &mut target).and_then(|_| dir.rename(&copy, dir, path));
        if copied.is_err() {
            let _ = dir.remove_file(&copy);
        }
        Ok(copied?)
    }

    pub fn mount_name(&self, fd: u32) -> Result<&'static str> {
        // The guest asks for all numbers until one is not open.
        self.folder(fd).map_err(|_| Errno::BADF)?.mount.ok_or(Errno::BADF)
    }

    pub fn close(&mut self, fd: u32) -> Result<()> {
        match self.get(fd)? {
            // What is printed later is still output.
            Descriptor::Input | Descriptor::Output => Ok(()),
            Descriptor::Folder(Folder { mount: Some(_), .. }) => Err(Errno::PERM),
            Descriptor::Folder(_) | Descriptor::File(_) => {
                self.open.remove(&fd);
                Ok(())
            }
        }
    }

    pub fn set_flags(&mut self, fd: u32, flags: i32) -> Result<()> {
        match self.open.get_mut(&fd).ok_or(Errno::BADF)? {
            Descriptor::File(file) => file.flags = u16::try_from(flags).map_err(|_| Errno::INVAL)?,
            Descriptor::Input | Descriptor::Output | Descriptor::Folder(_) => {}
        }
        Ok(())
    }

    pub fn read(&mut self, fd: u32, target: &mut [u8]) -> Result<u32> {
        if matches!(self.get(fd)?, Descriptor::Input) {
            return Ok(0);
        }
        let mut file = &self.file(fd)?.file;
        Ok(count(file.read(target)?))
    }

    pub fn read_at(&self, fd: u32, target: &mut [u8], offset: u64) -> Result<u32> {
        Ok(count(self.file(fd)?.file.read_at(target, offset)?))
    }

    pub fn write(&mut self, fd: u32, source: &[u8]) -> Result<()> {
        let open = self.file(fd)?;
        let mut file = &open.file;
        let offset = if open.flags & APPEND == 0 { file.stream_position()? } else { file.metadata()?.len() };
        self.write_at(fd, source, offset)?;
        file = &self.file(fd)?.file;
        file.seek(SeekFrom::Start(offset + source.len() as u64))?;
        Ok(())
    }

    pub fn write_at(&mut self, fd: u32, source: &[u8], offset: u64) -> Result<()> {
        let open = self.file(fd)?;
        if !open.can_write {
            return Err(Errno::BADF);
        }
        let end = offset.checked_add(source.len() as u64).filter(|end| *end <= FILE_BYTES_MAX).ok_or(Errno::NOSPC)?;
        self.take_bytes(end.saturating_sub(open.file.metadata()?.len()))?;
        Ok(self.file(fd)?.file.write_all_at(source, offset)?)
    }

    pub fn set_size(&mut self, fd: u32, size: u64) -> Result<()> {
        let open = self.file(fd)?;
        if !open.can_write || size > FILE_BYTES_MAX {
            return Err(Errno::INVAL);
        }
        self.take_bytes(size.saturating_sub(open.file.metadata()?.len()))?;
        Ok(self.file(fd)?.file.set_len(size)?)
    }

    pub fn seek(&mut self, fd: u32, offset: i64, whence: i32) -> Result<u64> {
        let mut file = &self.file(fd)?.file;
        let to = match whence {
            0 => SeekFrom::Start(u64::try_from(offset).map_err(|_| Errno::INVAL)?),
            1 => SeekFrom::Current(offset),
            2 => SeekFrom::End(offset),
            _ => return Err(Errno::INVAL),
        };
        Ok(file.seek(to)?)
    }

    /// Returns the entries of a folder from a position on, as many as have room.
    pub fn entries(&mut self, fd: u32, cookie: u64, bytes: usize) -> Result<Vec<u8>> {
        let Descriptor::Folder(folder) = self.open.get_mut(&fd).ok_or(Errno::BADF)? else { return Err(Errno::NOTDIR) };
        if cookie == 0 {
            folder.entries = read_entries(&folder.dir)?;
        }
        let mut written = Vec::new();
        let skipped = usize::try_from(cookie).map_err(|_| Errno::INVAL)?;
        for (entry, next) in folder.entries.iter().zip(1_u64..).skip(skipped) {
            written.extend_from_slice(&next.to_le_bytes());
            written.extend_from_slice(&entry.inode.to_le_bytes());
            written.extend_from_slice(&count(entry.name.len()).to_le_bytes());
            written.extend_from_slice(&[entry.kind, 0, 0, 0]);
            written.extend_from_slice(&entry.name);
            if written.len() >= bytes {
                break;
            }
        }
        // A part of an entry says that there are more.
        written.truncate(bytes);
        Ok(written)
    }

    pub fn open(&mut self, fd: u32, path: &Path, how: &How) -> Result<u32> {
        if self.open.len() >= OPEN_MAX {
            return Err(Errno::MFILE);
        }
        check_depth(path)?;
        let writes = how.rights & RIGHT_WRITE != 0 || how.how & (CREATE | TRUNCATE) != 0;
        let folder = self.folder(fd)?;
        let existing = folder.dir.metadata(path);
        let is_folder = existing.as_ref().is_ok_and(cap_std::fs::Metadata::is_dir);
        if is_folder && how.how & EXCLUSIVE == 0 {
            if writes && how.how & DIRECTORY == 0 {
                return Err(Errno::ISDIR);
            }
            let (dir, is_writable) = (folder.dir.open_dir(path)?, folder.is_writable);
            if self.open.values().filter(|open| matches!(open, Descriptor::Folder(_))).count() >= OPEN_FOLDERS_MAX {
                return Err(Errno::MFILE);
            }
            let opened = Folder { dir, mount: None, is_writable, entries: Vec::new() };
            return Ok(self.insert(Descriptor::Folder(opened)));
        }
        if how.how & DIRECTORY != 0 {
            return Err(existing.err().map_or(Errno::NOTDIR, Errno::from));
        }
        // Neither a device nor a pipe, which could block.
        if existing.as_ref().is_ok_and(|metadata| !metadata.is_file()) {
            return Err(Errno::ACCES);
        }
        let mut can_change = folder.is_writable;
        if writes {
            self.writable(fd, path)?;
            match &existing {
                Ok(metadata) if self.is_original_file(metadata) => self.copy_first(fd, path)?,
                Err(_) if how.how & CREATE != 0 => self.take_file()?,
                Ok(_) | Err(_) => {}
            }
        } else {
            can_change &= !existing.as_ref().is_ok_and(|metadata| self.is_original_file(metadata));
        }
        let mut options = OpenOptions::new();
        options.read(how.rights & RIGHT_READ != 0 || !writes);
        // A file can be created or truncated by a guest that only reads it afterwards.
        options.write(writes).truncate(how.how & TRUNCATE != 0);
        options.create(how.how & CREATE != 0).create_new(how.how & CREATE != 0 && how.how & EXCLUSIVE != 0);
        let file = self.folder(fd)?.dir.open_with(path, &options)?.into_std();
        if !file.metadata()?.is_file() {
            return Err(Errno::ACCES);
        }
        let flags = u16::try_from(how.flags).map_err(|_| Errno::INVAL)?;
        let can_write = how.rights & RIGHT_WRITE != 0;
        Ok(self.insert(Descriptor::File(OpenFile { file, flags, can_write, can_change })))
    }

    fn insert(&mut self, descriptor: Descriptor) -> u32 {
        let fd = (0..u32::MAX).find(|fd| !self.open.contains_key(fd)).unwrap_or(u32::MAX);
        self.open.insert(fd, descriptor);
        fd
    }

    pub fn create_directory(&mut self, fd: u32, path: &Path) -> Result<()> {
        let folder = self.writable(fd, path)?;
        if folder.dir.symlink_metadata(path).is_ok() {
            return Err(Errno::EXIST);
        }
        let is_below_mount = folder.mount.is_some();
        self.take_file()?;
        self.folder(fd)?.dir.create_dir(path)?;
        if !is_below_mount && self.measure().is_err() {
            self.folder(fd)?.dir.remove_dir(path)?;
            return Err(Errno::NAMETOOLONG);
        }
        Ok(())
    }

    pub fn remove_directory(&self, fd: u32, path: &Path) -> Result<()> {
        Ok(self.writable(fd, path)?.dir.remove_dir(path)?)
    }

    pub fn remove_file(&self, fd: u32, path: &Path) -> Result<()> {
        let folder = self.writable(fd, path)?;
        if folder.dir.symlink_metadata(path)?.is_dir() {
            return Err(Errno::ISDIR);
        }
        Ok(folder.dir.remove_file(path)?)
    }

    pub fn rename(&mut self, fd: u32, path: &Path, to_fd: u32, to: &Path) -> Result<()> {
        let (from, target) = (self.writable(fd, path)?, self.writable(to_fd, to)?);
        let is_folder = from.dir.symlink_metadata(path)?.is_dir();
        from.dir.rename(path, &target.dir, to)?;
        if is_folder && self.measure().is_err() {
            self.folder(to_fd)?.dir.rename(to, &self.folder(fd)?.dir, path)?;
            return Err(Errno::NAMETOOLONG);
        }
        Ok(())
    }

    pub fn path_metadata(&self, fd: u32, path: &Path, follows: bool) -> Result<[u8; 64]> {
        let dir = &self.folder(fd)?.dir;
        let metadata = if follows { dir.metadata(path)? } else { dir.symlink_metadata(path)? };
        let times = [
            (metadata.atime(), metadata.atime_nsec()),
            (metadata.mtime(), metadata.mtime_nsec()),
            (metadata.ctime(), metadata.ctime_nsec()),
        ];
        let kind = match metadata.file_type() {
            kind if kind.is_dir() => FOLDER,
            kind if kind.is_file() => REGULAR_FILE,
            kind if kind.is_symlink() => LINK,
            _ => 0,
        };
        Ok(file_status(metadata.ino(), kind, metadata.len(), times))
    }

    pub fn set_times(&self, fd: u32, accessed: u64, modified: u64, which: i32) -> Result<()> {
        let open = self.file(fd)?;
        if !open.can_change {
            return Err(Errno::PERM);
        }
        Ok(open.file.set_times(times(accessed, modified, which))?)
    }

    pub fn path_set_times(&mut self, fd: u32, path: &Path, accessed: u64, modified: u64, which: i32) -> Result<()> {
        let metadata = self.writable(fd, path)?.dir.metadata(path)?;
        // Times of folders are not kept.
        if metadata.is_dir() {
            return Ok(());
        }
        if self.is_original_file(&metadata) {
            self.copy_first(fd, path)?;
        }
        let file = self.folder(fd)?.dir.open(path)?.into_std();
        Ok(file.set_times(times(accessed, modified, which))?)
    }
}

impl Descriptor {
    /// Returns the `fdstat`.
    pub fn status(&self) -> [u8; 24] {
        let (kind, flags) = match self {
            Self::Input | Self::Output => (CHARACTER_DEVICE, 0),
            Self::Folder(_) => (FOLDER, 0),
            Self::File(file) => (REGULAR_FILE, file.flags),
        };
        let mut status = [0; 24];
        status[0] = kind;
        status[2..4].copy_from_slice(&flags.to_le_bytes());
        // All rights: what is not allowed fails.
        status[8..].fill(0xFF);
        status
    }

    /// Returns the `filestat`.
    pub fn metadata(&self) -> Result<[u8; 64]> {
        match self {
            Self::Input | Self::Output => Ok(file_status(0, CHARACTER_DEVICE, 0, [(0, 0); 3])),
            Self::Folder(folder) => {
                let metadata = folder.dir.dir_metadata()?;
                let modified = (metadata.mtime(), metadata.mtime_nsec());
                Ok(file_status(metadata.ino(), FOLDER, 0, [modified; 3]))
            }
            Self::File(open) => {
                let metadata = open.file.metadata()?;
                let times = [
                    (metadata.atime(), metadata.atime_nsec()),
                    (metadata.mtime(), metadata.mtime_nsec()),
                    (metadata.ctime(), metadata.ctime_nsec()),
                ];
                Ok(file_status(metadata.ino(), REGULAR_FILE, metadata.len(), times))
            }
        }
    }
}

/// Creates a file in the folder of another one. Returns its path and the file.
fn create_beside(dir: &Dir, path: &Path) -> io::Result<(PathBuf, cap_std::fs::File)> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    for number in 0.. {
        let copy = path.with_file_name(format!(".copy-{number}"));
        match dir.open_with(&copy, &options) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            opened => return Ok((copy, opened?)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn check_depth(path: &Path) -> Result<()> {
    if path.components().count() > DEPTH_MAX { Err(Errno::NAMETOOLONG) } else { Ok(()) }
}

fn read_entries(dir: &Dir) -> Result<Vec<Entry>> {
    let special = |name: &str| Entry { name: name.as_bytes().to_vec(), inode: 0, kind: FOLDER };
    let mut entries = vec![special("."), special("..")];
    let entry = |entry: DirEntry| {
        let kind = match entry.file_type()? {
            kind if kind.is_dir() => FOLDER,
            kind if kind.is_file() => REGULAR_FILE,
            kind if kind.is_symlink() => LINK,
            _ => 0,
        };
        let inode = entry.metadata()?.ino();
        Ok::<_, io::Error>(Entry { name: entry.file_name().as_bytes().to_vec(), inode, kind })
    };
    for found in dir.entries()? {
        // It may have been removed since.
        if let Ok(found) = found.and_then(entry) {
            entries.push(found);
        }
    }
    Ok(entries)
}

/// Returns a `filestat`. Its times are as coarse as the clocks.
fn file_status(inode: u64, kind: u8, bytes: u64, times: [(i64, i64); 3]) -> [u8; 64] {
    let mut status = [0; 64];
    status[8..16].copy_from_slice(&inode.to_le_bytes());
    status[16] = kind;
    status[24..32].copy_from_slice(&1_u64.to_le_bytes());
    status[32..40].copy_from_slice(&bytes.to_le_bytes());
    for (index, (seconds, nanoseconds)) in times.into_iter().enumerate() {
        let time = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        let time = u64::try_from(time).map_or(0, coarse);
        status[40 + 8 * index..48 + 8 * index].copy_from_slice(&time.to_le_bytes());
    }
    status
}

/// Returns the times that the guest sets: none, given ones, or the current time.
fn times(accessed: u64, modified: u64, which: i32) -> std::fs::FileTimes {
    let time = |nanoseconds: u64, given: i32, now: i32| match which {
        which if which & given != 0 => UNIX_EPOCH.checked_add(Duration::from_nanos(nanoseconds)),
        which if which & now != 0 => Some(current_time()),
        _ => None,
    };
    let mut times = std::fs::FileTimes::new();
    if let Some(accessed) = time(accessed, 1, 2) {
        times = times.set_accessed(accessed);
    }
    if let Some(modified) = time(modified, 4, 8) {
        times = times.set_modified(modified);
    }
    times
}

fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
