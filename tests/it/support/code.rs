//! The runtime of the code interpreter, which `tests/run` installs.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::skip;
use assistd::tools::code_interpreter::engine;
use assistd::tools::code_interpreter::install::Installation;
use assistd::tools::code_interpreter::sandbox::{End, Folder, Limits, Sandbox, Session};
use assistd::tools::code_interpreter::wasm::Wasm;
use tokio_util::sync::CancellationToken;

/// Names the data folder of the installation.
const VARIABLE: &str = "ASSISTD_TEST_CODE_INTERPRETER";
/// Maximum memory of a session, in bytes.
const MEMORY_MAX: usize = 512 * 1024 * 1024;

/// Returns the folder in which the runtime is installed; `None`, with a message, if it is not. In CI, it must be.
pub fn installed() -> Option<String> {
    let folder = std::env::var(VARIABLE).ok().filter(|folder| !folder.is_empty());
    let folder = folder.map(|folder| format!("{folder}/code-interpreter"));
    if folder.is_none() {
        skip("runtime of the code interpreter (ASSISTD_TEST_CODE_INTERPRETER), which tests/run installs");
    }
    folder
}

/// Returns the runtime; `None`, with a message, if it is not installed. Under `CI=true`, it must be.
pub fn runtime() -> Option<Arc<Wasm>> {
    static RUNTIME: OnceLock<Arc<Wasm>> = OnceLock::new();
    let folder = PathBuf::from(installed()?);
    let load = || {
        let installed = Installation::find(&folder).unwrap().expect("it is installed");
        Arc::new(Wasm::load(engine::engine().unwrap(), installed, MEMORY_MAX).unwrap())
    };
    Some(RUNTIME.get_or_init(load).clone())
}

/// A session in a folder of its own.
pub struct Python {
    pub session: Box<dyn Session>,
    /// What code sees as `/mnt/data`.
    pub folder: PathBuf,
    all: Folder,
    pub limits: Limits,
}

impl Python {
    /// Opens a session; `None` if the runtime is not installed.
    pub fn start() -> Option<Self> {
        Self::start_in(std::env::temp_dir().join(format!("assistd-test-code-{}", uuid::Uuid::now_v7())))
    }

    /// Opens a session whose files are in this folder, which is removed with it; `None` if the runtime is not installed.
    pub fn start_in(path: PathBuf) -> Option<Self> {
        let (sandbox, all) = (runtime()?, Folder { path });
        let session = sandbox.open(&all).unwrap();
        let limits = Limits { time: Duration::from_mins(1), output_bytes: 100_000, disk_bytes: 1_000_000, files: 50 };
        Some(Self { session, folder: all.data(), all, limits })
    }

    /// Runs code and returns how it ended, and what it has printed.
    pub fn run(&mut self, code: &str) -> (End, String) {
        let ran = self.session.run(code, &self.limits, &CancellationToken::new());
        (ran.end, ran.output)
    }

    /// Runs code that completes.
    pub fn print(&mut self, code: &str) -> String {
        let (end, output) = self.run(code);
        assert_eq!(end, End::Completed, "{code}: {output}");
        output
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.all.path);
    }
}
