//! Writes the text of a document: joins blanks, separates lines and paragraphs, and bounds the length. Pure.

use super::{Rejected, TEXT_BYTES_MAX};

/// What separates two texts, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Separator {
    None,
    Space,
    /// Between the cells of a table.
    Tab,
    Line,
    /// An empty line.
    Paragraph,
}

/// A text that is being written.
#[derive(Debug)]
pub struct Layout {
    text: String,
    /// Written before the next text, so that none is at the end.
    separator: Separator,
}

impl Default for Layout {
    fn default() -> Self {
        Self { text: String::new(), separator: Separator::None }
    }
}

impl Layout {
    /// Writes a text as it is.
    ///
    /// # Errors
    /// If the whole text becomes longer than [`TEXT_BYTES_MAX`].
    pub fn push(&mut self, text: &str) -> Result<(), Rejected> {
        if text.is_empty() {
            return Ok(());
        }
        if self.text.len() + text.len() > TEXT_BYTES_MAX {
            return Err(Rejected::too_long());
        }
        let separator = std::mem::replace(&mut self.separator, Separator::None);
        if !self.text.is_empty() {
            self.text.push_str(match separator {
                Separator::None => "",
                Separator::Space => " ",
                Separator::Tab => "\t",
                Separator::Line => "\n",
                Separator::Paragraph => "\n\n",
            });
        }
        self.text.push_str(text);
        Ok(())
    }

    /// Writes a text, with each run of blanks in it as one space.
    ///
    /// # Errors
    /// As [`Layout::push`].
    pub fn push_words(&mut self, text: &str) -> Result<(), Rejected> {
        let is_blank = |character: char| matches!(character, ' ' | '\t' | '\n' | '\r' | '\x0C');
        let mut words = text.split(is_blank);
        let first = words.next().unwrap_or_default();
        self.push(first)?;
        for word in words {
            self.separate(Separator::Space);
            self.push(word)?;
        }
        Ok(())
    }

    /// Separates what was written from the next text by a space.
    pub fn space(&mut self) {
        self.separate(Separator::Space);
    }

    /// Separates what was written from the next text by a tab.
    pub fn tab(&mut self) {
        self.separate(Separator::Tab);
    }

    /// Separates what was written from the next text by a line break.
    pub fn line(&mut self) {
        self.separate(Separator::Line);
    }

    /// Separates what was written from the next text by an empty line.
    pub fn paragraph(&mut self) {
        self.separate(Separator::Paragraph);
    }

    fn separate(&mut self, separator: Separator) {
        self.separator = self.separator.max(separator);
    }

    /// Returns the text.
    pub fn finish(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_separator_is_written_and_none_at_the_ends() {
        let mut layout = Layout::default();

        layout.paragraph();
        layout.push_words("  one\n two ").unwrap();
        layout.tab();
        layout.push_words("three").unwrap();
        layout.line();
        layout.paragraph();
        layout.space();
        layout.push("  four").unwrap();
        layout.line();

        assert_eq!(layout.finish(), "one two\tthree\n\n  four");
    }

    #[test]
    fn a_text_that_is_too_long_is_rejected() {
        let mut layout = Layout::default();
        let part = "x".repeat(TEXT_BYTES_MAX);

        layout.push(&part).unwrap();

        assert_eq!(layout.push("x"), Err(Rejected::too_long()));
    }
}
