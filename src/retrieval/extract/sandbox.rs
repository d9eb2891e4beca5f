//! Extracts the text of a file, or renders it, with the parser in a child process.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use super::child::{self, HEAD_BYTES, Parser};
use super::{FileFormat, Rejected, TEXT_BYTES_MAX, text};

/// Maximum size of a text file, in bytes: text in UTF-16 has up to two bytes for each byte in UTF-8.
const TEXT_FILE_BYTES_MAX: u64 = 2 * TEXT_BYTES_MAX as u64;
/// Address space of a child process for each byte of the file.
const MEMORY_FACTOR: u64 = 3;
/// Maximum time without progress while a file is sent to a child process, which reads it as fast as it can.
const SEND_IDLE_MAX: Duration = Duration::from_mins(1);

/// The limits of a child process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Address space in addition to three times the size of the file, in bytes.
    pub memory_bytes: u64,
    /// CPU time, in whole seconds.
    pub cpu: Duration,
    /// Time after the child process has the whole file. On a busy machine, this is longer than the CPU time.
    pub duration: Duration,
}

impl Default for Limits {
    /// A PDF of 300 pages takes two seconds, and 100 MB.
    fn default() -> Self {
        Self { memory_bytes: 1024 * 1024 * 1024, cpu: Duration::from_mins(1), duration: Duration::from_mins(3) }
    }
}

/// The text of a file could not be extracted, through no fault of the file. A retry can help.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes of the file could not be read.
    #[error("failed to read the file: {0}")]
    Read(#[source] std::io::Error),
    /// The child process could not be started, or could not limit itself.
    #[error("failed to run a process that parses files: {0}")]
    Process(#[source] std::io::Error),
}

/// Opens the bytes of a file. Called again if another parser is tried.
pub type Open<'a> = &'a (dyn Fn() -> BoxStream<'a, std::io::Result<Bytes>> + Send + Sync);

/// Extracts the text of files, and renders images. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Extractor {
    program: PathBuf,
    limits: Limits,
    /// Limits the files that are in memory at once.
    slots: Arc<Semaphore>,
}

/// How a child process ended.
enum Ended {
    Parsed(Result<Vec<u8>, Rejected>),
    /// It exceeded its CPU time, or the deadline.
    TooSlow,
    /// A signal has ended it: its stack or memory was used up.
    Crashed,
}

impl Extractor {
    /// Creates an extractor that runs at most `concurrency_max` child processes of this program.
    #[must_use]
    pub fn new(program: PathBuf, concurrency_max: usize, limits: Limits) -> Self {
        Self { program, limits, slots: Arc::new(Semaphore::new(concurrency_max)) }
    }

    /// Returns the path of the running program. It is valid after the program was replaced or deleted by an upgrade, where
    /// the operating system allows it.
    ///
    /// # Errors
    /// If the operating system does not know it.
    pub fn current_program() -> std::io::Result<PathBuf> {
        // Leads to the running program, whatever is at its path now.
        const RUNNING: &str = "/proc/self/exe";
        if cfg!(target_os = "linux") && std::path::Path::new(RUNNING).exists() {
            return Ok(PathBuf::from(RUNNING));
        }
        std::env::current_exe()
    }

    /// Extracts the text of a file with `length` bytes. The text has at least one visible character, and at most
    /// [`TEXT_BYTES_MAX`] bytes.
    ///
    /// Waits while `concurrency_max` other files are processed. If the future is dropped, the child process is killed.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn extract(
        &self,
        format: FileFormat,
        length: u64,
        open: Open<'_>,
    ) -> Result<Result<String, Rejected>, Error> {
        // It is never closed.
        let _slot = self.slots.acquire().await;
        match format {
            FileFormat::Text => Self::decode(length, open).await,
            FileFormat::Html => self.text(Parser::Html, length, open).await,
            FileFormat::Pdf | FileFormat::Docx | FileFormat::Pptx | FileFormat::Doc => {
                self.text(Parser::Document, length, open).await
            }
        }
    }

    /// Renders an SVG image as PNG. Like [`Extractor::extract`] otherwise.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn render_svg(&self, svg: Bytes) -> Result<Result<Vec<u8>, Rejected>, Error> {
        let _slot = self.slots.acquire().await;
        let length = svg.len() as u64;
        self.parse(Parser::Svg, length, &|| futures_util::stream::iter([Ok(svg.clone())]).boxed()).await
    }

    async fn text(&self, parser: Parser, length: u64, open: Open<'_>) -> Result<Result<String, Rejected>, Error> {
        let text = |bytes| String::from_utf8(bytes).map_err(|_| Rejected::damaged());
        Ok(self.parse(parser, length, open).await?.and_then(text))
    }

    async fn decode(length: u64, open: Open<'_>) -> Result<Result<String, Rejected>, Error> {
        if length > TEXT_FILE_BYTES_MAX {
            return Ok(Err(Rejected::too_long()));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        let mut content = open();
        while let Some(chunk) = content.try_next().await.map_err(Error::Read)? {
            bytes.extend_from_slice(&chunk);
        }
        let decoded = tokio::task::spawn_blocking(move || {
            let text = text::decode(bytes)?;
            match text.len() {
                ..=TEXT_BYTES_MAX if text.trim().is_empty() => Err(Rejected::empty()),
                ..=TEXT_BYTES_MAX => Ok(text),
                _ => Err(Rejected::too_long()),
            }
        });
        Ok(decoded.await.unwrap_or_else(|_| Err(Rejected::damaged())))
    }

    async fn parse(&self, parser: Parser, length: u64, open: Open<'_>) -> Result<Result<Vec<u8>, Rejected>, Error> {
        let mut ended = self.run(parser, length, open).await?;
        if parser == Parser::Document && !matches!(ended, Ended::Parsed(_)) {
            // The first PDF library may have ended its process.
            ended = self.run(Parser::SecondPdf, length, open).await?;
        }
        Ok(match ended {
            Ended::Parsed(parsed) => parsed,
            Ended::TooSlow => Err(Rejected::invalid(&format!(
                "that would take more than {} seconds. Split it into several files, or export it as text",
                self.limits.cpu.as_secs()
            ))),
            Ended::Crashed => Err(Rejected::invalid(
                "that would need too much memory: its content is damaged or very complex. Export it as text",
            )),
        })
    }

    /// Runs a child process on a file.
    async fn run(&self, parser: Parser, length: u64, open: Open<'_>) -> Result<Ended, Error> {
        let mut child = self.start(parser, length)?;
        let mut input = child.stdin.take().expect("it is piped");
        let mut output = child.stdout.take().expect("it is piped").take((HEAD_BYTES + TEXT_BYTES_MAX + 1) as u64);
        let send = async {
            input.write_all(&length.to_le_bytes()).await?;
            let mut content = open();
            while let Some(chunk) = content.next().await {
                let chunk = chunk.map_err(Sent::Unreadable)?;
                tokio::time::timeout(SEND_IDLE_MAX, input.write_all(&chunk)).await.map_err(|_| Sent::Stuck)??;
            }
            input.flush().await?;
            Ok::<(), Sent>(())
        };
        let mut received = Vec::new();
        let receive = output.read_to_end(&mut received);
        tokio::pin!(send, receive);
        // A child process that ends before it has read the file is judged by its output.
        let is_received = tokio::select! {
            sent = &mut send => match sent {
                Ok(()) | Err(Sent::Closed) => false,
                Err(Sent::Unreadable(error)) => return Err(Error::Read(error)),
                Err(Sent::Stuck) => return Ok(Ended::TooSlow),
            },
            received = &mut receive => {
                received.map_err(Error::Process)?;
                true
            }
        };
        if !is_received {
            match tokio::time::timeout(self.limits.duration, receive).await {
                Ok(received) => received.map_err(Error::Process)?,
                Err(_) => return Ok(Ended::TooSlow),
            };
        }
        drop(output);
        let status = tokio::time::timeout(self.limits.duration, child.wait())
            .await
            .map_err(|_| Error::Process(std::io::ErrorKind::TimedOut.into()))?;
        judge(status.map_err(Error::Process)?, received)
    }

    fn start(&self, parser: Parser, length: u64) -> Result<Child, Error> {
        let mut command = Command::new(&self.program);
        let parser = clap::ValueEnum::to_possible_value(&parser).expect("no value is hidden");
        command
            .arg0("assistd")
            .arg("parse-file")
            .arg(parser.get_name())
            .arg(format!("--memory-bytes-max={}", self.limits.memory_bytes + MEMORY_FACTOR * length))
            .arg(format!("--cpu-s-max={}", self.limits.cpu.as_secs()))
            .env_clear()
            // Libraries start no further threads, each of which would need address space.
            .env("RAYON_NUM_THREADS", "1")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Signals from the terminal are for the server.
            .process_group(0)
            .kill_on_drop(true);
        command.spawn().map_err(Error::Process)
    }
}

/// Why a file was not sent completely.
enum Sent {
    /// The child process has closed its input.
    Closed,
    Unreadable(std::io::Error),
    /// The child process does not read.
    Stuck,
}

impl From<std::io::Error> for Sent {
    fn from(_: std::io::Error) -> Self {
        Self::Closed
    }
}

fn judge(status: ExitStatus, output: Vec<u8>) -> Result<Ended, Error> {
    use std::os::unix::process::ExitStatusExt as _;

    match (status.code(), status.signal()) {
        (Some(0), _) => match child::read_output(output) {
            Some(parsed) => Ok(Ended::Parsed(parsed)),
            None => Err(Error::Process(std::io::Error::other("its output is incomplete"))),
        },
        (Some(code), _) => Err(Error::Process(std::io::Error::other(format!("it ended with exit code {code}")))),
        (None, Some(signal)) if signal == Signal::XCPU.as_raw() => Ok(Ended::TooSlow),
        (None, _) => Ok(Ended::Crashed),
    }
}
