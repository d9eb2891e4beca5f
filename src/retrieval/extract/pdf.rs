//! Extracts the text of PDF files.
//!
//! Two libraries, because neither reads all files: the first one returns the better text and order of columns, but fails on
//! some fonts, and panics where it is unsure.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use pdf_extract::encryption::DecryptionError;
use pdf_extract::{ConvertToFmt, Document, MediaBox, OutputDev, OutputError, PlainTextOutput, Transform};
use unpdf::ParseOptions;

use super::{Rejected, TEXT_BYTES_MAX, text};

/// Which library reads the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// The first one, and the second one if the first fails or finds nothing.
    Both,
    /// Only the second one, because the first has ended its process.
    Second,
}

/// What a library found.
enum Found {
    Text(String),
    /// Pages without text.
    NoText,
}

/// Returns the text of a PDF, with an empty line between two pages.
///
/// # Errors
/// If it is encrypted or damaged, has no text, or its text is too long.
pub fn extract(bytes: &[u8], library: Library) -> Result<String, Rejected> {
    let first = match library {
        Library::Both => caught(|| with_pdf_extract(bytes)),
        Library::Second => Err(Rejected::damaged()),
    };
    match first {
        Ok(Found::Text(text)) => return Ok(text),
        Err(rejected) if rejected == Rejected::encrypted() || rejected == Rejected::too_long() => return Err(rejected),
        Ok(Found::NoText) | Err(_) => {}
    }
    let second = caught(|| with_unpdf(bytes));
    match (first, second) {
        (_, Ok(Found::Text(text))) => Ok(text),
        (_, Err(rejected)) if rejected == Rejected::encrypted() || rejected == Rejected::too_long() => Err(rejected),
        (Ok(Found::NoText), _) | (_, Ok(Found::NoText)) => Err(without_text()),
        (_, Err(rejected)) => Err(rejected),
    }
}

fn without_text() -> Rejected {
    Rejected::unsupported(
        "It is a PDF without text, such as a scan: run text recognition (OCR) on it, and upload the result.",
    )
}

fn caught(read: impl FnOnce() -> Result<Found, Rejected>) -> Result<Found, Rejected> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(Rejected::damaged()))
}

fn found(text: String) -> Found {
    let text = text::clean(text).text;
    if text.trim().is_empty() { Found::NoText } else { Found::Text(text) }
}

fn with_pdf_extract(bytes: &[u8]) -> Result<Found, Rejected> {
    let mut document = Document::load_mem(bytes).map_err(|error| rejected(&error))?;
    if document.is_encrypted() {
        // Most encrypted files can be read without a password, and only restrict printing and the like.
        document.decrypt("").map_err(|error| rejected(&error))?;
    }
    let text = PageText::default();
    let mut pages = Pages { output: PlainTextOutput::new(text.clone()), text: text.clone() };
    match pdf_extract::output_doc(&document, &mut pages) {
        Ok(()) if document.get_pages().is_empty() => Err(Rejected::damaged()),
        Ok(()) => Ok(found(text.0.take())),
        Err(OutputError::FormatError(_)) => Err(Rejected::too_long()),
        Err(OutputError::PdfError(error)) => Err(rejected(&error)),
        Err(OutputError::IoError(_)) => Err(Rejected::damaged()),
    }
}

fn rejected(error: &pdf_extract::Error) -> Rejected {
    match error {
        pdf_extract::Error::Decryption(DecryptionError::IncorrectPassword) => Rejected::encrypted(),
        _ => Rejected::damaged(),
    }
}

fn with_unpdf(bytes: &[u8]) -> Result<Found, Rejected> {
    let options = ParseOptions::new().lenient().sequential().with_resources(false);
    let document = unpdf::parse_bytes_with_options(bytes, options).map_err(|error| match error {
        unpdf::Error::Encrypted | unpdf::Error::InvalidPassword => Rejected::encrypted(),
        _ => Rejected::damaged(),
    })?;
    if document.pages.is_empty() {
        return Err(Rejected::damaged());
    }
    let text = document.plain_text();
    if text.len() > TEXT_BYTES_MAX { Err(Rejected::too_long()) } else { Ok(found(text)) }
}

/// The text of the pages that were read. Cheap to clone.
#[derive(Clone, Default)]
struct PageText(Rc<RefCell<String>>);

impl std::fmt::Write for PageText {
    /// Fails if the text is too long.
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        let mut text = self.0.borrow_mut();
        if text.len() + part.len() > TEXT_BYTES_MAX {
            return Err(std::fmt::Error);
        }
        text.push_str(part);
        Ok(())
    }
}

impl ConvertToFmt for PageText {
    type Writer = Self;

    fn convert(self) -> Self {
        self
    }
}

/// Separates pages by an empty line.
struct Pages {
    output: PlainTextOutput<PageText>,
    text: PageText,
}

impl OutputDev for Pages {
    fn begin_page(
        &mut self,
        number: u32,
        media_box: &MediaBox,
        art_box: Option<(f64, f64, f64, f64)>,
    ) -> Result<(), OutputError> {
        self.output.begin_page(number, media_box, art_box)
    }

    fn end_page(&mut self) -> Result<(), OutputError> {
        self.output.end_page()?;
        Ok(std::fmt::Write::write_str(&mut self.text, "\n\n")?)
    }

    fn output_character(
        &mut self,
        transform: &Transform,
        width: f64,
        spacing: f64,
        font_size: f64,
        character: &str,
    ) -> Result<(), OutputError> {
        self.output.output_character(transform, width, spacing, font_size, character)
    }

    fn begin_word(&mut self) -> Result<(), OutputError> {
        self.output.begin_word()
    }

    fn end_word(&mut self) -> Result<(), OutputError> {
        self.output.end_word()
    }

    fn end_line(&mut self) -> Result<(), OutputError> {
        self.output.end_line()
    }
}
