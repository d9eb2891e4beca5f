//! A disk that can be filled.

use std::path::PathBuf;
use std::process::Command;

/// A small disk that is unmounted on drop.
pub struct Disk(pub PathBuf);

impl Disk {
    /// Mounts a disk of this size, such as `4m`. Returns `None` if that is not permitted.
    pub fn mount(size: &str) -> Option<Self> {
        let path = std::env::temp_dir().join(format!("assistd-disk-{}", uuid::Uuid::now_v7().simple()));
        std::fs::create_dir_all(&path).expect("failed to create a folder");
        let mount = ["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"];
        if Command::new("mount").args(mount).arg(&path).output().is_ok_and(|output| output.status.success()) {
            return Some(Self(path));
        }
        let _ = std::fs::remove_dir(&path);
        None
    }

    /// Writes until there is no space left.
    pub fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.filler()).expect("failed to create a file");
        while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    }

    /// Frees the space.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("the disk was not filled");
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the server under test may still have its file open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
        let _ = std::fs::remove_dir(&self.0);
    }
}
