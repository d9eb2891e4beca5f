//! Compiles the module in a child process, because this needs so much memory that the operating system may end it.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::super::engine::{engine, portable_engine};
use super::Options;
use super::unpack::create_file;

/// Memory that the compilation needs.
pub const MEMORY: &str = "2.5 GB";
/// Maximum length of the child's message, in bytes.
const MESSAGE_BYTES_MAX: u64 = 4_096;

/// Why a module cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The child process cannot be started.
    #[error("the compiler cannot be started")]
    Start(#[source] std::io::Error),
    /// The module is invalid, or the result cannot be written.
    #[error("the module cannot be compiled: {0}")]
    Failed(String),
    /// A signal has ended the child process.
    #[error(
        "the compiler was ended ({0}). Compiling needs {MEMORY} of memory: free some, or raise the limit of the container"
    )]
    Killed(ExitStatus),
}

/// The arguments of the child process.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The module.
    module: PathBuf,
    /// Where to write the compiled module.
    compiled: PathBuf,
    /// Compile for every processor of this architecture.
    #[arg(long)]
    portable: bool,
}

/// Compiles a module with a child process. If the future is dropped, the child is killed.
pub(super) async fn compile(options: &Options, module: &Path, compiled: &Path) -> Result<(), Error> {
    let mut command = Command::new(&options.program);
    command.args(["code-interpreter", "compile-module"]).arg(module).arg(compiled);
    if options.portable {
        command.arg("--portable");
    }
    // It ends when its standard input is closed, so that it does not outlive us.
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(Error::Start)?;
    let open = child.stdin.take();
    let mut message = String::new();
    if let Some(stderr) = child.stderr.take() {
        // Not UTF-8 only if the child is not ours; then the status remains.
        let _ = stderr.take(MESSAGE_BYTES_MAX).read_to_string(&mut message).await;
    }
    let status = child.wait().await.map_err(Error::Start)?;
    drop(open);
    match status.code() {
        Some(0) => Ok(()),
        Some(_) if !message.contains("out of memory") => Err(Error::Failed(message.trim().to_owned())),
        _ => Err(Error::Killed(status)),
    }
}

/// Runs in the child process.
#[must_use]
pub fn run(arguments: &Arguments) -> ExitCode {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    match compile_here(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compile_here(arguments: &Arguments) -> wasmtime::Result<()> {
    let module = std::fs::read(&arguments.module)?;
    let engine = if arguments.portable { portable_engine()? } else { engine()? };
    let compiled = engine.precompile_module(&module)?;
    let mut file = create_file(&arguments.compiled)?;
    std::io::Write::write_all(&mut file, &compiled)?;
    Ok(file.sync_all()?)
}
