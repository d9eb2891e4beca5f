//! The runtime of the code interpreter, which `tests/run` installs.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use super::skip;
use assistd::tools::code_interpreter::engine;
use assistd::tools::code_interpreter::install::Installation;
use assistd::tools::code_interpreter::wasm::Wasm;

/// Names the folder of the installation.
const VARIABLE: &str = "ASSISTD_TEST_CODE_INTERPRETER";
/// Maximum memory of a session, in bytes.
const MEMORY_MAX: usize = 512 * 1024 * 1024;

/// Returns the folder in which the runtime is installed; `None`, with a message, if it is not. In CI, it must be.
pub fn installed() -> Option<String> {
    let folder = std::env::var(VARIABLE).ok().filter(|folder| !folder.is_empty());
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
