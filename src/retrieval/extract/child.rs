//! The child process that parses one file: `assistd parse-file`.
//!
//! It limits itself, reads the file from standard input, and writes what it found to standard output:
//!
//! ```text
//! input    length (u64) │ bytes of the file │ nothing, until the parent closes it
//! output   kind (u8: P parsed, I invalid file, U unsupported file) │ length (u64) │ text, image (PNG) or message
//! ```
//!
//! Numbers are little-endian. The process ends if its parent closes its input, for example because the parent was killed.

use std::io::{Read, Write};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use rlimit::Resource;

use super::pdf::Library;
use super::{Rejected, doc, html, office, pdf, svg, text};
use crate::priority;

/// Makes the kernel end this process first if the machine runs out of memory.
const OOM_SCORE: &[u8] = b"1000";
/// Exit code if the process could not limit itself or read its input.
const EXIT_FAILED: u8 = 3;
/// Exit code if the parent has closed the input.
const EXIT_ORPHAN: i32 = 4;
/// Stack size of the thread that waits for the end of the input, in bytes.
const WATCHER_STACK_BYTES: usize = 64 * 1024;

/// What a child process parses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Parser {
    /// HTML.
    Html,
    /// A PDF, a Word document or a presentation, whatever its extension.
    Document,
    /// The same, with the second PDF library only.
    SecondPdf,
    /// An SVG image, which is rendered.
    Svg,
}

/// The arguments of the child process.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Arguments {
    /// What to parse.
    #[arg(value_enum)]
    pub parser: Parser,
    /// Maximum address space, in bytes.
    #[arg(long)]
    pub memory_bytes_max: u64,
    /// Maximum CPU time, in seconds.
    #[arg(long)]
    pub cpu_s_max: u64,
}

/// The kind of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Parsed = b'P' as isize,
    Invalid = b'I' as isize,
    Unsupported = b'U' as isize,
}

/// Length of the kind and the length at the beginning of an output, in bytes.
pub(super) const HEAD_BYTES: usize = 9;

/// Reads an output. Returns `None` if it is incomplete.
pub(super) fn read_output(mut output: Vec<u8>) -> Option<Result<Vec<u8>, Rejected>> {
    let (kind, rest) = output.split_first()?;
    let length = u64::from_le_bytes(*rest.first_chunk::<8>()?);
    let kind = [Kind::Parsed, Kind::Invalid, Kind::Unsupported].into_iter().find(|known| *known as u8 == *kind)?;
    if u64::try_from(output.len() - HEAD_BYTES).ok()? != length {
        return None;
    }
    output.drain(..HEAD_BYTES);
    let is_unsupported = match kind {
        Kind::Parsed => return Some(Ok(output)),
        Kind::Invalid => false,
        Kind::Unsupported => true,
    };
    Some(Err(Rejected { is_unsupported, message: String::from_utf8(output).ok()?.into() }))
}

/// Runs the child process.
#[must_use]
pub fn run(arguments: &Arguments) -> ExitCode {
    // A panic is an outcome, and its message can quote the file.
    std::panic::set_hook(Box::new(|_| {}));
    match limit(arguments).and_then(|()| read_input()) {
        Ok(bytes) => {
            let outcome = parse(arguments.parser, bytes);
            if write_output(&outcome).is_ok() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) }
        }
        Err(_) => ExitCode::from(EXIT_FAILED),
    }
}

/// Limits memory and CPU time, and forbids files, connections and processes: no file handle can be opened.
fn limit(arguments: &Arguments) -> std::io::Result<()> {
    // Both are improvements only.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    priority::lower_process();
    let limits = [
        (Resource::AS, arguments.memory_bytes_max),
        (Resource::CPU, arguments.cpu_s_max),
        (Resource::CORE, 0),
        (Resource::FSIZE, 0),
        (Resource::NOFILE, 0),
    ];
    for (resource, max) in limits {
        let (_, hard) = resource.get()?;
        let max = max.min(hard);
        // At the soft limit of CPU time, the process gets a signal, which the parent recognizes.
        let hard = if resource == Resource::CPU { (max + 1).min(hard) } else { max };
        resource.set(max, hard)?;
    }
    Ok(())
}

fn read_input() -> std::io::Result<Vec<u8>> {
    let mut input = std::io::stdin();
    let mut length = [0; 8];
    input.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(length).unwrap_or(usize::MAX))?;
    input.by_ref().take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    std::thread::Builder::new().stack_size(WATCHER_STACK_BYTES).spawn(move || {
        // Returns when the parent closes the input.
        let _ = input.read(&mut [0]);
        std::process::exit(EXIT_ORPHAN);
    })?;
    Ok(bytes)
}

fn write_output(outcome: &Result<Vec<u8>, Rejected>) -> std::io::Result<()> {
    let (kind, bytes) = match outcome {
        Ok(parsed) => (Kind::Parsed, parsed.as_slice()),
        Err(Rejected { is_unsupported: false, message }) => (Kind::Invalid, message.as_bytes()),
        Err(Rejected { is_unsupported: true, message }) => (Kind::Unsupported, message.as_bytes()),
    };
    let mut output = std::io::stdout().lock();
    output.write_all(&[kind as u8])?;
    output.write_all(&(bytes.len() as u64).to_le_bytes())?;
    output.write_all(bytes)?;
    output.flush()
}

/// Parses a file. Documents are recognized by their content, because some have the extension of another format.
fn parse(parser: Parser, bytes: Vec<u8>) -> Result<Vec<u8>, Rejected> {
    let caught = std::panic::catch_unwind(|| match parser {
        Parser::Html => clean(html::extract(bytes)?),
        Parser::Document => clean(document(&bytes, Library::Both)?),
        Parser::SecondPdf => clean(document(&bytes, Library::Second)?),
        Parser::Svg => svg::render(&bytes),
    });
    caught.unwrap_or_else(|_| Err(Rejected::damaged()))
}

fn clean(text: String) -> Result<Vec<u8>, Rejected> {
    let text = text::clean(text).text;
    if text.trim().is_empty() { Err(Rejected::empty()) } else { Ok(text.into_bytes()) }
}

fn document(bytes: &[u8], library: Library) -> Result<String, Rejected> {
    const ZIP: &[u8] = b"PK\x03\x04";
    const COMPOUND_FILE: &[u8] = b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1";
    // Programs accept some bytes before the header of a PDF.
    const PDF_OFFSET_MAX: usize = 1024;
    let beginning = &bytes[..bytes.len().min(PDF_OFFSET_MAX)];
    if bytes.starts_with(ZIP) {
        office::extract(bytes)
    } else if bytes.starts_with(COMPOUND_FILE) {
        doc::extract(bytes)
    } else if memchr::memmem::find(beginning, b"%PDF-").is_some() {
        pdf::extract(bytes, library)
    } else {
        Err(match text::binary_format(bytes) {
            Some(name) => {
                Rejected::unsupported(&format!("Its content is {name}: save it as .docx, .pptx, .pdf or .txt."))
            }
            None => Rejected::invalid(
                "its content has none of the formats PDF, Word and PowerPoint. Upload it with the extension of its format",
            ),
        })
    }
}
