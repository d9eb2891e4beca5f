//! The limits of the size and number of a session's files.

use std::path::PathBuf;

use super::super::folder::{self, Size};
use super::super::sandbox::Folder;
use super::memory::Result;

/// The files of a session. What is removed counts until the limit is reached, and the folder is measured again.
#[derive(Debug)]
pub(super) struct Disk {
    data: PathBuf,
    tmp: PathBuf,
    used: Size,
    limits: Size,
}

impl Disk {
    pub fn new(folder: &Folder) -> Self {
        Self { data: folder.data(), tmp: folder.tmp(), used: Size::default(), limits: Size::default() }
    }

    pub fn set_limits(&mut self, limits: Size) {
        self.limits = limits;
    }

    /// Returns whether there is room for more.
    pub fn fits(&self, more: Size) -> bool {
        let total = self.used + more;
        (more.bytes == 0 || total.bytes <= self.limits.bytes) && (more.files == 0 || total.files <= self.limits.files)
    }

    /// Counts what is about to be written.
    pub fn add(&mut self, more: Size) {
        self.used = self.used + more;
    }

    /// Measures the folder. `removed` is what has no name any more and is still open.
    ///
    /// # Errors
    /// If the folder cannot be read, or its folders are too deep. It counts as full then.
    pub fn measure(&mut self, removed: Size) -> Result<()> {
        self.used = Size { bytes: u64::MAX, files: u64::MAX };
        self.used = folder::size(&self.data)? + folder::size(&self.tmp)? + removed;
        Ok(())
    }
}
