//! The limits of the size and number of a session's files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::memory::{Errno, Result};

/// The files of a session. What is removed counts until the limit is reached, and the folder is measured again.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    used: Size,
    limits: Size,
}

#[derive(Debug, Clone, Copy, Default)]
struct Size {
    bytes: u64,
    files: u64,
}

impl Disk {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, used: Size::default(), limits: Size::default() }
    }

    /// Sets the limits, and measures the folder, to which the server may have added files.
    pub fn set_limits(&mut self, bytes: u64, files: u64) {
        self.limits = Size { bytes, files };
        self.measure();
    }

    /// Counts bytes that are about to be written, and fails if there is no room for them.
    pub fn add_bytes(&mut self, bytes: u64) -> Result<()> {
        self.add(Size { bytes, files: 0 })
    }

    /// Counts a file or folder that is about to be made.
    pub fn add_file(&mut self) -> Result<()> {
        self.add(Size { bytes: 0, files: 1 })
    }

    fn add(&mut self, more: Size) -> Result<()> {
        if !self.fits(more) {
            self.measure();
            if !self.fits(more) {
                return Err(Errno::NOSPC);
            }
        }
        self.used = self.used.plus(more);
        Ok(())
    }

    fn fits(&self, more: Size) -> bool {
        let total = self.used.plus(more);
        (more.bytes == 0 || total.bytes <= self.limits.bytes) && (more.files == 0 || total.files <= self.limits.files)
    }

    fn measure(&mut self) {
        // A folder that cannot be read counts as full.
        self.used = size(&self.folder).unwrap_or(Size { bytes: u64::MAX, files: u64::MAX });
    }
}

impl Size {
    fn plus(self, more: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(more.bytes), files: self.files.saturating_add(more.files) }
    }
}

fn size(folder: &Path) -> io::Result<Size> {
    let mut size = Size::default();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = fs::symlink_metadata(entry.path())?;
        size = size.plus(Size { bytes: if metadata.is_file() { metadata.len() } else { 0 }, files: 1 });
        if metadata.is_dir() {
            size = size.plus(self::size(&entry.path())?);
        }
    }
    Ok(size)
}
