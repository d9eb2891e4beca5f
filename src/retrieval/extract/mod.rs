//! Extracts the text of files, and renders SVG images.
//!
//! Text files are decoded in process. The parsers of other formats run in a child process (`sandbox`, `child`), because a
//! hostile file can make a parser panic, loop, or use up memory.
//!
//! | format | parser |
//! | --- | --- |
//! | text | `text` |
//! | HTML | `html`, over a tokenizer |
//! | `.docx`, `.pptx` | `office`, over the parts of the ZIP archive |
//! | `.doc` | `doc`, over the streams of the compound file |
//! | PDF | `pdf`: one library, and another one if the first fails or finds nothing |
//! | SVG, which is rendered | `svg` |

pub mod child;
mod doc;
mod html;
mod layout;
mod office;
mod pdf;
mod sandbox;
mod svg;
mod text;

use std::borrow::Cow;

use crate::api::vector_store::{extension, is_supported};

pub use sandbox::{Error, Extractor, Limits};

/// Maximum length of the text of a file, in bytes: more than 12 for each of the 5,000,000 tokens that a file may have.
pub const TEXT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The format of a file, by the extension of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileFormat {
    /// Plain text, including source code, Markdown and JSON.
    Text,
    /// HTML.
    Html,
    /// PDF.
    Pdf,
    /// Word, since 2007.
    Docx,
    /// Presentations, since 2007.
    Pptx,
    /// Word, 97 to 2003.
    Doc,
}

impl FileFormat {
    /// Returns the format of a file with this name, or `None` if it [cannot be searched](is_supported).
    #[must_use]
    pub fn of(filename: &str) -> Option<Self> {
        if !is_supported(filename) {
            return None;
        }
        Some(match extension(filename)?.as_str() {
            "html" => Self::Html,
            "pdf" => Self::Pdf,
            "docx" => Self::Docx,
            "pptx" => Self::Pptx,
            "doc" => Self::Doc,
            _ => Self::Text,
        })
    }
}

/// Why a file has no text that can be searched. A retry does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejected {
    /// Whether the format of the content is not supported, and not only this content.
    pub is_unsupported: bool,
    /// The cause and what to do, in the words of the service where it had some.
    pub message: Cow<'static, str>,
}

impl Rejected {
    /// Creates the error for a file that cannot be parsed. `cause` completes the sentence.
    ///
    /// Source: quoted errors of the service begin in the same way.
    fn invalid(cause: &str) -> Self {
        let message = format!("The file could not be parsed because {cause}.").into();
        Self { is_unsupported: false, message }
    }

    /// Creates the error for a format that is not supported. `advice` says what to do.
    ///
    /// Source: quoted errors of the service begin in the same way.
    fn unsupported(advice: &str) -> Self {
        Self { is_unsupported: true, message: format!("The file type is not supported. {advice}").into() }
    }

    fn too_long() -> Self {
        let max = TEXT_BYTES_MAX / (1024 * 1024);
        Self::invalid(&format!("it is too large: it has more than {max} MB of text. Split it into several files"))
    }

    /// Creates the error for a file with about this many tokens.
    pub(super) fn too_many_tokens(tokens: u64, max: u64) -> Self {
        Self::invalid(&format!(
            "it is too large: it has about {tokens} tokens, and a file can have {max}. Split it into several files"
        ))
    }

    fn empty() -> Self {
        Self::invalid("it contains no text")
    }

    fn encrypted() -> Self {
        Self::invalid("it is protected by a password. Remove the password and upload it again")
    }

    fn damaged() -> Self {
        Self::invalid("its content is damaged. Open it in the program that made it, save it, and upload it again")
    }
}
