//! The interface of what runs code.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Opens sessions.
pub trait Sandbox: Send + Sync + fmt::Debug {
    /// Opens a session whose files are in a folder of the host. Blocks for some milliseconds.
    fn open(&self, folder: &Folder) -> Result<Box<dyn Session>, Error>;
}

/// The folder of a session.
#[derive(Debug, Clone)]
pub struct Folder {
    /// Its path on the host.
    pub path: PathBuf,
}

impl Folder {
    /// What code sees as `/mnt/data`.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// What code sees as `/tmp`.
    #[must_use]
    pub fn tmp(&self) -> PathBuf {
        self.path.join("tmp")
    }
}

/// An interpreter that keeps its variables between calls.
pub trait Session: Send {
    /// Runs code, and returns when it has ended. Blocks up to the time limit. If `stop` is cancelled, the code is stopped.
    ///
    /// A session that [is lost](End::is_lost) is not used again.
    fn run(&mut self, code: &str, limits: &Limits, stop: &CancellationToken) -> Execution;

    /// Names the files that users have given. Code can neither write nor remove them. Other names of them in the folder, hard
    /// links, are replaced by copies when code writes to them.
    fn set_originals(&mut self, paths: &[PathBuf]);

    /// Returns the memory of the session, in bytes.
    fn memory_bytes(&self) -> u64;
}

/// Limits of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum time.
    pub time: Duration,
    /// Maximum size of the output, in bytes. The rest is dropped.
    pub output_bytes: usize,
    /// Maximum size of all files in `/mnt/data` and `/tmp`, in bytes. Writes beyond it fail with "No space left on device".
    pub disk_bytes: u64,
    /// Maximum number of files and folders in `/mnt/data` and `/tmp`. Creating more fails in the same way.
    pub files: u64,
}

/// What code has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execution {
    /// What the code has printed, and the value of its last expression, as a notebook shows it; then the traceback, if an
    /// exception ended it. At most [`Limits::output_bytes`] long.
    pub output: String,
    /// Whether output was dropped.
    pub is_truncated: bool,
    /// How it ended.
    pub end: End,
    /// How long it took.
    pub duration: Duration,
}

impl Execution {
    /// Returns what is known of code whose interpreter failed for this reason.
    #[must_use]
    pub fn crashed(reason: String, duration: Duration) -> Self {
        Self { output: String::new(), is_truncated: false, end: End::Crashed(reason), duration }
    }
}

/// How code ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The last statement was executed.
    Completed,
    /// An exception ended it. The session continues.
    Raised,
    /// The code ended the interpreter, for example with `sys.exit`.
    Exited,
    /// The time limit was reached.
    TimedOut,
    /// `stop` was cancelled.
    Stopped,
    /// The interpreter failed, for this reason.
    Crashed(String),
}

impl End {
    /// Returns whether the session and its variables are lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        !matches!(self, Self::Completed | Self::Raised)
    }
}

/// Why a session cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);
