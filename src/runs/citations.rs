//! Turns the references that a model writes to its sources into marks. Pure.
//!
//! The passages that a run has found are numbered from 1, and the model is instructed to cite them as `[n]`. Models write
//! these references in many forms:
//!
//! | form | example |
//! | --- | --- |
//! | a number, or several, in any brackets | `[1]`, `【1】`, `［1］`, `[1, 2]`, `[1-3]`, `[^1]` |
//! | doubled brackets | `[[1]]`, `[[1], [2]]` |
//! | with a word before the number | `[Source 1]`, `[source: 1, 2]` |
//! | with the file name after it | `[1: a.txt]`, `[1†a.txt]`, `【4:0†a.txt】` |
//!
//! References in code and link texts (`[1](…)`) are left alone, and so are numbers without a source. Text is held back
//! only while it can still become a reference.

use serde::{Deserialize, Serialize};

use crate::api::FileId;

/// Maximum length of a reference with a file name, in bytes. Longer text is not held back.
const REFERENCE_BYTES_MAX: usize = 600;
/// Maximum length of a reference with numbers alone, in bytes.
const NUMBERS_BYTES_MAX: usize = 120;
/// Maximum number of sources in a range such as `[1-3]`.
const RANGE_MAX: usize = 20;
/// Maximum length of a quote, in characters.
const QUOTE_CHARS_MAX: usize = 1_000;
/// The number of the first search in the marks. The service used low numbers for the messages before the search.
const FIRST_SEARCH: usize = 4;

/// How references to sources are written in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CitationStyle {
    /// As marks with an annotation, like OpenAI's service: `【4:0†a.txt】`.
    #[default]
    Marks,
    /// As file names with an annotation: `[a.txt]`.
    Names,
    /// Not at all: references are removed.
    Off,
}

/// A passage that a run has found, which the model can cite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub file_id: FileId,
    /// Its name.
    pub file_name: String,
    /// The text of the passage.
    pub text: String,
    /// The number of the search of the run, from 0.
    pub search: usize,
    /// The number of the passage among those of the search, from 0.
    pub passage: usize,
}

impl Source {
    /// Returns the beginning of the passage.
    #[must_use]
    pub fn quote(&self) -> String {
        self.text.trim().chars().take(QUOTE_CHARS_MAX).collect()
    }

    /// Returns the text that stands for a reference to this source.
    #[must_use]
    pub fn mark(&self, style: CitationStyle) -> String {
        match style {
            CitationStyle::Marks => {
                format!("【{}:{}†{}】", FIRST_SEARCH + self.search, self.passage, self.file_name)
            }
            CitationStyle::Names => format!("[{}]", self.file_name),
            CitationStyle::Off => String::new(),
        }
    }
}

/// A piece of the text of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text.
    Text(String),
    /// A reference to the source with this index.
    Reference(usize),
}

/// Finds the references in the text of one turn, which arrives in pieces of any length.
#[derive(Debug)]
pub struct References<'a> {
    sources: &'a [Source],
    state: &'a mut State,
    pieces: Vec<Piece>,
}

/// What the text before has left open.
#[derive(Debug, Default)]
pub struct State {
    /// Text that may be the start of a reference. Begins with an opening bracket.
    held: String,
    /// Spaces before a possible reference, which are removed with it. Empty unless references are removed.
    spaces: String,
    removes_references: bool,
    code: Code,
    /// The length of the current run of backticks or tildes.
    run: Option<(char, usize)>,
    /// Whether the current run is at the start of its line.
    run_starts_line: bool,
    /// Whether the line has no text so far.
    line_is_blank: bool,
    last: Option<char>,
}

/// Whether the text is code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Code {
    #[default]
    No,
    /// Between backticks, of this number.
    Inline(usize),
    /// In a block, which ends with a line of at least as many of the same character.
    Block(char, usize),
}

impl State {
    /// Creates the state of a new turn.
    #[must_use]
    pub fn new(style: CitationStyle) -> Self {
        Self { removes_references: style == CitationStyle::Off, line_is_blank: true, ..Self::default() }
    }

    /// Adds text, and returns the pieces that are certain.
    #[must_use]
    pub fn push(&mut self, text: &str, sources: &[Source]) -> Vec<Piece> {
        let mut references = References { sources, state: self, pieces: Vec::new() };
        references.text(text);
        references.pieces
    }

    /// Ends the text, and returns the rest.
    #[must_use]
    pub fn finish(&mut self, sources: &[Source]) -> Vec<Piece> {
        let mut references = References { sources, state: self, pieces: Vec::new() };
        references.release(true);
        let spaces = std::mem::take(&mut references.state.spaces);
        references.emit_text(&spaces);
        references.pieces
    }
}

impl References<'_> {
    fn text(&mut self, text: &str) {
        for character in text.chars() {
            if !self.state.held.is_empty() {
                self.state.held.push(character);
                self.release(false);
                continue;
            }
            self.character(character);
        }
    }

    /// Adds a character that continues no reference.
    fn character(&mut self, character: char) {
        let is_escaped = self.state.last == Some('\\');
        self.follow_code(character);
        if self.state.code == Code::No && is_opening(character) && !is_escaped {
            self.state.held.push(character);
            return;
        }
        if self.state.removes_references && character == ' ' {
            self.state.spaces.push(character);
            return;
        }
        let spaces = std::mem::take(&mut self.state.spaces);
        self.emit_text(&spaces);
        self.emit_text(character.encode_utf8(&mut [0; 4]));
    }

    /// Emits what the held text has become: a reference, or text. The first bracket of text that is not a reference is
    /// emitted, and the rest is read again.
    fn release(&mut self, is_last: bool) {
        if self.state.held.is_empty() {
            return;
        }
        match read(&self.state.held, self.sources, is_last) {
            Read::Incomplete => {}
            Read::Reference { bytes, references } => {
                let rest = self.state.held.split_off(bytes);
                let first = self.state.held.chars().next();
                self.state.held.clear();
                self.emit_references(&references, first.unwrap_or('['));
                self.state.last = Some(']');
                self.state.line_is_blank = false;
                self.again(&rest, is_last);
            }
            Read::Text => {
                let held = std::mem::take(&mut self.state.held);
                let mut characters = held.chars();
                if let Some(first) = characters.next() {
                    let spaces = std::mem::take(&mut self.state.spaces);
                    self.emit_text(&spaces);
                    self.emit_text(first.encode_utf8(&mut [0; 4]));
                }
                self.again(characters.as_str(), is_last);
            }
        }
    }

    /// Reads text again that followed a bracket.
    fn again(&mut self, text: &str, is_last: bool) {
        self.text(text);
        if is_last {
            self.release(true);
        }
    }

    fn emit_references(&mut self, references: &[Reference], opening: char) {
        let is_removed = self.state.removes_references && references.iter().all(|found| found.source.is_some());
        let spaces = std::mem::take(&mut self.state.spaces);
        if !is_removed {
            self.emit_text(&spaces);
        }
        for reference in references {
            if let Some(source) = reference.source {
                self.pieces.push(Piece::Reference(source));
            } else {
                let closing = closing(opening);
                self.emit_text(&format!("{opening}{}{closing}", reference.number));
            }
        }
    }

    fn emit_text(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        match self.pieces.last_mut() {
            Some(Piece::Text(last)) => last.push_str(text),
            Some(Piece::Reference(_)) | None => self.pieces.push(Piece::Text(text.to_owned())),
        }
    }

    /// Notes whether the text after this character is code.
    fn follow_code(&mut self, character: char) {
        let state = &mut *self.state;
        match state.run {
            Some((current, length)) if current == character => state.run = Some((current, length + 1)),
            Some((current, length)) => {
                state.run = None;
                state.code = after_run(state.code, current, length, state.run_starts_line);
            }
            None => {}
        }
        if state.run.is_none() && matches!(character, '`' | '~') {
            state.run = Some((character, 1));
            state.run_starts_line = state.line_is_blank;
        }
        if character == '\n' {
            // Inline code ends with its paragraph.
            if state.line_is_blank && matches!(state.code, Code::Inline(_)) {
                state.code = Code::No;
            }
            state.line_is_blank = true;
        } else if !character.is_whitespace() && !matches!(character, '`' | '~' | '>' | '-' | '*') {
            state.line_is_blank = false;
        }
        state.last = Some(character);
    }
}

/// Returns whether the text after a run of backticks or tildes is code.
fn after_run(before: Code, character: char, length: usize, starts_line: bool) -> Code {
    match before {
        Code::Block(fence, opened) if fence == character && length >= opened && starts_line => Code::No,
        Code::Inline(opened) if character == '`' && length == opened => Code::No,
        Code::Block(..) | Code::Inline(_) => before,
        Code::No if starts_line && length >= 3 => Code::Block(character, length),
        Code::No if character == '`' => Code::Inline(length),
        Code::No => Code::No,
    }
}

/// A number or name in a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reference {
    number: usize,
    /// The index of the source; `None` if there is none with this number.
    source: Option<usize>,
}

/// What a text that begins with a bracket is.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    /// More text may make it a reference.
    Incomplete,
    /// A reference of this length.
    Reference { bytes: usize, references: Vec<Reference> },
    /// Not a reference.
    Text,
}

fn is_opening(character: char) -> bool {
    matches!(character, '[' | '【' | '［')
}

fn is_closing(character: char) -> bool {
    matches!(character, ']' | '】' | '］')
}

fn closing(opening: char) -> char {
    match opening {
        '【' => '】',
        '［' => '］',
        _ => ']',
    }
}

/// Reads a text that begins with an opening bracket. `is_last`: no more text follows.
fn read(text: &str, sources: &[Source], is_last: bool) -> Read {
    let Some(end) = end_of_brackets(text) else {
        let can_continue = !is_last && text.len() < REFERENCE_BYTES_MAX && is_beginning(text, sources);
        return if can_continue { Read::Incomplete } else { Read::Text };
    };
    let inner = &text[..end];
    let rest = &text[end..];
    if text.starts_with('[') {
        match rest.chars().next() {
            // A link.
            Some('(') => return Read::Text,
            None if !is_last && references(inner, sources).is_some() => return Read::Incomplete,
            _ => {}
        }
    }
    match references(inner, sources) {
        Some(references) if references.iter().any(|reference| reference.source.is_some()) => {
            Read::Reference { bytes: end, references }
        }
        _ => Read::Text,
    }
}

/// Returns the end of the bracket that the text begins with, if it is closed.
fn end_of_brackets(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, character) in text.char_indices() {
        if is_opening(character) {
            depth += 1;
        } else if is_closing(character) {
            depth -= 1;
            if depth == 0 {
                return Some(at + character.len_utf8());
            }
        }
    }
    None
}

/// The words that may stand before the numbers.
const WORDS: [&str; 12] = [
    "sources",
    "source",
    "references",
    "reference",
    "refs",
    "ref",
    "citations",
    "citation",
    "cite",
    "documents",
    "document",
    "doc",
];

/// Returns whether a text that begins with a bracket, and is not closed, can become a reference.
fn is_beginning(text: &str, sources: &[Source]) -> bool {
    let inner = text.trim_start_matches(|character| is_opening(character) || character.is_whitespace());
    if inner.is_empty() {
        return text.len() <= 16;
    }
    let lower = inner.to_ascii_lowercase();
    if WORDS.iter().any(|word| word.starts_with(&lower)) {
        return true;
    }
    let (_, numbers) = without_word(inner);
    match numbers.split_once('†') {
        Some((before, _)) => is_position(before),
        None => is_list(numbers) || named(numbers).is_some_and(|(number, name)| starts_name(number, name, sources)),
    }
}

/// Removes a word before the numbers, with the punctuation after it.
fn without_word(inner: &str) -> (bool, &str) {
    let lower = inner.to_ascii_lowercase();
    match WORDS.iter().find(|word| lower.starts_with(*word)) {
        Some(word) => (true, inner[word.len()..].trim_start_matches([' ', ':', '#', '.'])),
        None => (false, inner),
    }
}

/// Returns whether a text has only numbers and what separates them.
fn is_list(text: &str) -> bool {
    let is_allowed = |character: char| {
        character.is_ascii_digit()
            || is_opening(character)
            || is_closing(character)
            || matches!(character, ' ' | ',' | ';' | '、' | '，' | '；' | '^' | '#' | '-' | '–' | ':')
    };
    text.len() <= NUMBERS_BYTES_MAX && text.chars().all(is_allowed)
}

/// Returns whether a text is the position before a dagger: `4:0` or `4`.
fn is_position(text: &str) -> bool {
    let mut parts = text.trim().splitn(2, ':');
    parts.all(|part| !part.is_empty() && part.len() <= 9 && part.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Splits `1: a.txt` into the number and the name.
fn named(text: &str) -> Option<(usize, &str)> {
    let (number, name) = text.split_once(':')?;
    Some((number.trim().parse().ok()?, name.trim_start()))
}

fn starts_name(number: usize, name: &str, sources: &[Source]) -> bool {
    source(number, sources).is_some_and(|index| sources[index].file_name.starts_with(name))
}

/// Returns the index of the source with a number.
fn source(number: usize, sources: &[Source]) -> Option<usize> {
    number.checked_sub(1).filter(|index| *index < sources.len())
}

/// Returns what a closed bracket refers to; `None` if it is not a reference.
fn references(text: &str, sources: &[Source]) -> Option<Vec<Reference>> {
    let inner = text.trim_matches(|character| is_opening(character) || is_closing(character) || character == ' ');
    let (_, numbers) = without_word(inner);
    if let Some((position, name)) = numbers.split_once('†') {
        return is_position(position).then(|| vec![by_position(position.trim(), name.trim(), sources)]);
    }
    if let Some((number, name)) = named(numbers).filter(|(_, name)| !name.is_empty() && !is_list(name)) {
        let index = source(number, sources).filter(|index| sources[*index].file_name == name)?;
        return Some(vec![Reference { number, source: Some(index) }]);
    }
    if !is_list(numbers) || numbers.contains(':') {
        return None;
    }
    let separators = |character: char| !(character.is_ascii_digit() || matches!(character, '-' | '–'));
    let mut found = Vec::new();
    for part in numbers.split(separators).filter(|part| !part.is_empty()) {
        let mut ends = part.split(['-', '–']);
        let (first, last) = (ends.next()?.parse::<usize>().ok()?, ends.next());
        let last = last.map_or(Some(first), |last| last.parse().ok())?;
        if ends.next().is_some() || last < first || last - first >= RANGE_MAX {
            return None;
        }
        found.extend((first..=last).map(|number| Reference { number, source: source(number, sources) }));
    }
    (!found.is_empty()).then_some(found)
}

/// Finds the source of `4:0†a.txt`: a mark of ours, else the number of a source, else the only source with the name.
fn by_position(position: &str, name: &str, sources: &[Source]) -> Reference {
    let (first, second) = position.split_once(':').unwrap_or((position, ""));
    let number = first.parse().unwrap_or(0);
    let is_named = |source: &Source| name.is_empty() || name == "source" || source.file_name == name;
    let is_marked = |source: &&Source| {
        second.parse() == Ok(source.passage) && number == FIRST_SEARCH + source.search && is_named(source)
    };
    let index_of = |wanted: &Source| sources.iter().position(|source| std::ptr::eq(source, wanted));
    let by_mark = || sources.iter().find(is_marked).and_then(index_of);
    let by_number = || source(number, sources).filter(|index| is_named(&sources[*index]));
    let by_name = || sources.iter().position(|source| source.file_name == name);
    Reference { number, source: by_mark().or_else(by_number).or_else(by_name) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::id::Ids;

    fn sources() -> Vec<Source> {
        let ids = Ids::counting();
        let source = |name: &str, search, passage| Source {
            file_id: ids.generate(),
            file_name: name.to_owned(),
            text: String::new(),
            search,
            passage,
        };
        vec![source("a.txt", 0, 0), source("b.txt", 0, 1), source("über.txt", 1, 0)]
    }

    /// Returns a text with `<n>` for each reference, read in pieces of this many characters.
    fn read_in_pieces(text: &str, length: usize, style: CitationStyle) -> String {
        let sources = sources();
        let mut state = State::new(style);
        let characters: Vec<char> = text.chars().collect();
        let mut pieces = Vec::new();
        for chunk in characters.chunks(length) {
            pieces.extend(state.push(&chunk.iter().collect::<String>(), &sources));
        }
        pieces.extend(state.finish(&sources));
        let shown = |piece: Piece| match piece {
            Piece::Text(text) => text,
            Piece::Reference(index) => format!("<{}>", index + 1),
        };
        pieces.into_iter().map(shown).collect()
    }

    fn marked(text: &str) -> String {
        let whole = read_in_pieces(text, text.len().max(1), CitationStyle::Marks);
        for length in 1..5 {
            assert_eq!(read_in_pieces(text, length, CitationStyle::Marks), whole, "{text:?} in pieces of {length}");
        }
        whole
    }

    #[test]
    fn references_are_found_in_every_form() {
        for (text, expected) in [
            ("cake [1].", "cake <1>."),
            ("cake[1][2]", "cake<1><2>"),
            ("[[1]]", "<1>"),
            ("[[1], [2]]", "<1><2>"),
            ("[[1]][[2]]", "<1><2>"),
            ("[1, 2]", "<1><2>"),
            ("[1,2; 3]", "<1><2><3>"),
            ("[1-3]", "<1><2><3>"),
            ("【1】", "<1>"),
            ("【1、2】", "<1><2>"),
            ("［2］", "<2>"),
            ("【4:0†a.txt】", "<1>"),
            ("【4:1†source】", "<2>"),
            ("【5:0†über.txt】", "<3>"),
            ("【9:7†b.txt】", "<2>"),
            ("【1†source】", "<1>"),
            ("[1†a.txt]", "<1>"),
            ("[^1]", "<1>"),
            ("[Source 1]", "<1>"),
            ("[source: 1, 2]", "<1><2>"),
            ("[1: a.txt]", "<1>"),
            ("[ 1 ]", "<1>"),
            ("[1, 9]", "<1>[9]"),
            ("([1])", "(<1>)"),
            ("- [1] is\n- [2]", "- <1> is\n- <2>"),
        ] {
            assert_eq!(marked(text), expected, "{text}");
        }
    }

    #[test]
    fn other_brackets_stay_text() {
        for text in [
            "[9]",
            "[0]",
            "[]",
            "[a]",
            "[1](https://example.com)",
            "[1.5]",
            "\\[1\\]",
            "[see 1]",
            "[x] done",
            "【nothing】",
            "[1: b.txt]",
            "[2024-11-27]",
            "[12:30]",
            "[[",
            "[1",
            "[99999999999999999999999]",
            "[1-]",
            "[source",
            "[source of all]",
        ] {
            assert_eq!(marked(text), text);
        }
    }

    #[test]
    fn code_is_left_alone() {
        for (text, expected) in [
            ("`a[1]` [1]", "`a[1]` <1>"),
            ("``a`[1]`` [1]", "``a`[1]`` <1>"),
            ("```rust\na[1]\n```\n[1]", "```rust\na[1]\n```\n<1>"),
            ("~~~\na[1]\n~~~\n[1]", "~~~\na[1]\n~~~\n<1>"),
            ("- ```\n  a[1]\n  ```\n- [1]", "- ```\n  a[1]\n  ```\n- <1>"),
            ("````\n```\n[1]\n````\n[2]", "````\n```\n[1]\n````\n<2>"),
            ("it`s\n\n[1]", "it`s\n\n<1>"),
            ("a ~ b [1]", "a ~ b <1>"),
        ] {
            assert_eq!(marked(text), expected, "{text}");
        }
    }

    #[test]
    fn references_are_removed_with_the_space_before_them() {
        for length in 1..8 {
            assert_eq!(
                read_in_pieces("cake [1]. Yes [9] [x] [2]", length, CitationStyle::Off),
                "cake<1>. Yes [9] [x]<2>"
            );
        }
    }

    #[test]
    fn text_is_held_back_only_while_it_can_become_a_reference() {
        let sources = sources();
        let mut state = State::new(CitationStyle::Marks);

        assert_eq!(state.push("cake [", &sources), [Piece::Text("cake ".into())]);
        assert_eq!(state.push("1", &sources), []);
        assert_eq!(state.push("x", &sources), [Piece::Text("[1x".into())]);
        assert_eq!(state.push(" 【1】", &sources), [Piece::Text(" ".into()), Piece::Reference(0)]);
    }

    proptest! {
        #[test]
        fn no_text_is_lost(text in "[\\[\\]【】［］†:0-9 a.txt`~\n(,-]{0,60}", length in 1_usize..7) {
            let whole = read_in_pieces(&text, 1000, CitationStyle::Marks);

            prop_assert_eq!(&read_in_pieces(&text, length, CitationStyle::Marks), &whole);
            if !whole.contains('<') {
                prop_assert_eq!(whole, text);
            }
        }
    }
}
