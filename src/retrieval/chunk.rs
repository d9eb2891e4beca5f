//! Divides a text into chunks by tokens. Pure.
//!
//! Tokens are those of `cl100k_base`, the tokenizer of OpenAI's embedding models. The text is read in pieces: a word with the
//! space before it, a run of spaces or line ends, or a part of a longer run. The tokenizer never joins two of these (except
//! inside a divided run), so a chunk has as many tokens as its pieces together. A piece has a bounded length because the
//! tokenizer takes quadratic time for a long run without spaces. The whole takes linear time for any text.

use std::collections::{HashMap, VecDeque};
use std::ops::{Range, RangeInclusive};

use unicode_normalization::char::is_combining_mark;

/// Sizes of chunks that the API allows, in tokens.
pub const CHUNK_TOKENS: RangeInclusive<usize> = 100..=4_096;
/// Maximum length of a piece, in bytes, and so in tokens: less than half of the smallest chunk.
const PIECE_BYTES_MAX: usize = 48;
/// Longest piece whose count is cached, in bytes. Longer ones rarely repeat.
const CACHED_BYTES_MAX: usize = 24;
/// Maximum number of cached counts.
const CACHED_PIECES_MAX: usize = 32 * 1024;
/// How far back a boundary is searched for, as a share of the chunk or overlap: one fifth.
const SEARCHED_SHARE: usize = 5;

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The chunk's bytes in the text.
    pub range: Range<usize>,
    /// The number of leading bytes that are also the end of the chunk before; 0 for the first.
    pub overlap_bytes: usize,
    /// The chunk's length in tokens.
    pub tokens: usize,
}

/// How well a text can be divided at a byte, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Boundary {
    Inside,
    Word,
    Sentence,
    Line,
    Paragraph,
}

/// A part of the text that is not divided further.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// The byte after the piece.
    end: usize,
    tokens: usize,
    /// The boundary at `end`.
    boundary: Boundary,
}

/// Divides a text into chunks of at most `max_tokens`, each of which repeats about the last `overlap_tokens` (not more) of
/// the chunk before.
///
/// `max_tokens` is limited to [`CHUNK_TOKENS`] and `overlap_tokens` to half of it. In the last fifth of a chunk, the division
/// is made after a paragraph, otherwise after a line, a sentence or a word; the start of an overlap is chosen in the same way.
/// The chunks cover the text in order, except for white space at its end that needs a chunk of its own. Returns nothing for a
/// blank text.
#[must_use]
pub fn chunks(text: &str, max_tokens: usize, overlap_tokens: usize) -> Vec<Chunk> {
    let max_tokens = max_tokens.clamp(*CHUNK_TOKENS.start(), *CHUNK_TOKENS.end());
    let overlap_tokens = overlap_tokens.min(max_tokens / 2);
    let content_end = text.trim_end().len();
    let mut chunks = Vec::new();
    let mut pieces = Pieces::new(text).peekable();
    // The pieces from `start`, which have `tokens` in total.
    let mut window: VecDeque<Piece> = VecDeque::new();
    let (mut start, mut tokens, mut covered) = (0, 0, 0);
    while covered < content_end {
        while let Some(piece) = pieces.next_if(|piece| tokens + piece.tokens <= max_tokens) {
            tokens += piece.tokens;
            window.push_back(piece);
        }
        let is_last = pieces.peek().is_none();
        let length = if is_last { window.len() } else { cut(&window, tokens, max_tokens) };
        let Some(last) = length.checked_sub(1).and_then(|index| window.get(index)).copied() else { break };
        let chunk_tokens = window.iter().take(length).map(|piece| piece.tokens).sum();
        chunks.push(Chunk { range: start..last.end, overlap_bytes: covered - start, tokens: chunk_tokens });
        covered = last.end;
        if is_last {
            break;
        }
        let skipped = overlap_start(&window, length, overlap_tokens);
        for piece in window.drain(..skipped) {
            tokens -= piece.tokens;
            start = piece.end;
        }
    }
    chunks
}

/// Returns the number of pieces of a chunk: the window, which has `tokens`, up to the best boundary near its end.
fn cut(window: &VecDeque<Piece>, tokens: usize, max_tokens: usize) -> usize {
    let least = max_tokens - max_tokens / SEARCHED_SHARE;
    let mut best = (Boundary::Inside, window.len());
    let mut total = tokens;
    for (index, piece) in window.iter().enumerate().rev() {
        if total < least {
            break;
        }
        if piece.boundary > best.0 {
            best = (piece.boundary, index + 1);
        }
        total -= piece.tokens;
    }
    best.1
}

/// Returns the number of pieces before the overlap with a chunk of `length` pieces: at least one.
fn overlap_start(window: &VecDeque<Piece>, length: usize, overlap_tokens: usize) -> usize {
    let least = overlap_tokens - overlap_tokens / SEARCHED_SHARE;
    let mut best: Option<(Boundary, usize)> = None;
    let (mut start, mut total) = (length, 0);
    // The piece before `start` has the boundary at which the overlap would start.
    while start > 1 && total + window[start - 1].tokens <= overlap_tokens {
        start -= 1;
        total += window[start].tokens;
        let boundary = window[start - 1].boundary;
        if total >= least && best.is_none_or(|(chosen, _)| boundary >= chosen) {
            best = Some((boundary, start));
        }
    }
    best.map_or(start, |(_, start)| start)
}

/// The pieces of a text, in order.
struct Pieces<'a> {
    text: &'a str,
    start: usize,
    counts: HashMap<&'a str, usize>,
}

impl<'a> Pieces<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, start: 0, counts: HashMap::new() }
    }

    fn count(&mut self, piece: &'a str) -> usize {
        let count = || tiktoken_rs::cl100k_base_singleton().count_ordinary(piece);
        if piece.len() > CACHED_BYTES_MAX {
            return count();
        }
        if let Some(tokens) = self.counts.get(piece) {
            return *tokens;
        }
        if self.counts.len() >= CACHED_PIECES_MAX {
            self.counts.clear();
        }
        let tokens = count();
        self.counts.insert(piece, tokens);
        tokens
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let rest = &self.text[self.start..];
        if rest.is_empty() {
            return None;
        }
        let length = piece_length(rest);
        let tokens = self.count(&rest[..length]);
        self.start += length;
        Some(Piece { end: self.start, tokens, boundary: boundary(self.text, self.start) })
    }
}

/// Returns the length of the first piece of a text that is not empty.
fn piece_length(text: &str) -> usize {
    let window = &text[..text.floor_char_boundary(PIECE_BYTES_MAX)];
    let spaces = window.len() - window.trim_start().len();
    let run = &window[..spaces];
    if let Some(line_end) = run.rfind(['\n', '\r']) {
        return line_end + 1;
    }
    match run.char_indices().next_back() {
        // A single space belongs to the word after it, like the last of several.
        Some((0, _)) if spaces < window.len() => word_end(window, spaces, text),
        Some((last, _)) if spaces < window.len() && last > 0 => last,
        Some(_) => spaces,
        None => word_end(window, 0, text),
    }
}

/// Returns the end of the word that starts at `start`. `window` is the beginning of `text` that is searched.
fn word_end(window: &str, start: usize, text: &str) -> usize {
    let mut characters = window[start..].char_indices().peekable();
    let mut after_symbol = None;
    while let Some((offset, character)) = characters.next() {
        let end = start + offset + character.len_utf8();
        let next = characters.peek().map(|(_, next)| *next);
        if next.is_some_and(char::is_whitespace) {
            return if character.is_alphanumeric() { end } else { end + line_ends(&window[end..]) };
        }
        let closes = ends_dense_sentence(character) || is_closing(character);
        if closes && next.is_some_and(|next| !ends_dense_sentence(next) && !is_closing(next)) {
            let sentence = window[..end].trim_end_matches(is_closing);
            if sentence.ends_with(ends_dense_sentence) {
                return end;
            }
        }
        if !character.is_alphanumeric() && !is_combining_mark(character) && end > PIECE_BYTES_MAX / 2 {
            after_symbol = Some(end);
        }
    }
    let ends_here = text[window.len()..].chars().next().is_none_or(char::is_whitespace);
    if ends_here {
        return window.len();
    }
    after_symbol.unwrap_or_else(|| before_marks(window, text))
}

/// Returns the length of a window without the start of a character sequence that continues after it.
fn before_marks(window: &str, text: &str) -> usize {
    let continues = |character: char| {
        is_combining_mark(character)
            || matches!(character, '\u{200d}' | '\u{fe00}'..='\u{fe0f}' | '\u{1f3fb}'..='\u{1f3ff}')
    };
    let mut next = text[window.len()..].chars().next();
    for (index, character) in window.char_indices().rev() {
        if !next.is_some_and(continues) && character != '\u{200d}' {
            return index + character.len_utf8();
        }
        if index < window.len() / 2 {
            break;
        }
        next = Some(character);
    }
    window.len()
}

/// Returns the length of the line ends at the start of a text. The tokenizer joins them with punctuation.
fn line_ends(text: &str) -> usize {
    text.len() - text.trim_start_matches(['\n', '\r']).len()
}

/// Reports whether a character ends a sentence without a space after it.
fn ends_dense_sentence(character: char) -> bool {
    matches!(character, '。' | '！' | '？' | '｡')
}

/// Reports whether a character closes a quotation or parenthesis.
fn is_closing(character: char) -> bool {
    matches!(character, '"' | '\'' | ')' | ']' | '»' | '”' | '’' | '」' | '』' | '】' | '）' | '〉' | '》')
}

/// Returns the kind of the boundary at a byte of a text.
fn boundary(text: &str, index: usize) -> Boundary {
    let (before, after) = text.split_at(index);
    let before = &before[before.ceil_char_boundary(before.len().saturating_sub(2 * PIECE_BYTES_MAX))..];
    let next = after.chars().next();
    if before.ends_with(['\n', '\r']) {
        if next.is_some_and(|next| matches!(next, '\n' | '\r')) {
            return Boundary::Inside;
        }
        let blank = &before[before.trim_end().len()..];
        let lines = blank.matches('\n').count().max(blank.matches('\r').count());
        return if lines > 1 { Boundary::Paragraph } else { Boundary::Line };
    }
    let is_before_space = next.is_none_or(char::is_whitespace);
    let sentence = before.trim_end_matches(is_closing);
    let ends_sentence =
        sentence.ends_with(ends_dense_sentence) || is_before_space && sentence.ends_with(['.', '!', '?', '…']);
    if ends_sentence {
        Boundary::Sentence
    } else if is_before_space || before.ends_with(char::is_whitespace) {
        Boundary::Word
    } else {
        Boundary::Inside
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens(text: &str) -> usize {
        tiktoken_rs::cl100k_base_singleton().count_ordinary(text)
    }

    /// Checks what holds for every text.
    fn check(text: &str, max_tokens: usize, overlap_tokens: usize) -> Vec<Chunk> {
        let chunks = chunks(text, max_tokens, overlap_tokens);
        let mut covered = 0;
        for (index, chunk) in chunks.iter().enumerate() {
            assert_eq!(chunk.range.start + chunk.overlap_bytes, covered, "chunk {index} continues the one before");
            assert!(chunk.range.end > covered, "chunk {index} adds text");
            assert!(chunk.tokens <= max_tokens, "chunk {index} has {} tokens", chunk.tokens);
            let overlap = &text[chunk.range.start..covered];
            assert!(index > 0 || overlap.is_empty());
            assert!(tokens(overlap) <= overlap_tokens + PIECE_BYTES_MAX, "overlap {overlap:?}");
            covered = chunk.range.end;
        }
        assert!(text[covered..].trim().is_empty(), "{:?} is not covered", &text[covered..]);
        chunks
    }

    fn prose(paragraphs: usize) -> String {
        let sentence = "The quick brown fox jumps over the lazy dog; it costs 12.50 Euro, doesn't it? ";
        let paragraph = |index: usize| format!("{index}. {}", sentence.repeat(index % 7 + 1).trim_end());
        (0..paragraphs).map(paragraph).collect::<Vec<_>>().join("\n\n")
    }

    #[test]
    fn a_short_text_is_one_chunk() {
        let text = "Hello, world!\n";

        assert_eq!(
            chunks(text, 800, 400),
            vec![Chunk { range: 0..text.len(), overlap_bytes: 0, tokens: tokens(text) }]
        );
        assert_eq!(chunks("", 800, 400), Vec::new());
        assert_eq!(chunks(" \n\n\t", 800, 400), Vec::new());
    }

    #[test]
    fn chunks_of_prose_have_the_tokens_that_the_tokenizer_counts() {
        let text = prose(200);
        let chunks = check(&text, 800, 400);

        for chunk in &chunks {
            assert_eq!(chunk.tokens, tokens(&text[chunk.range.clone()]));
        }
        for pair in chunks.windows(2) {
            let overlap = tokens(&text[pair[1].range.start..pair[0].range.end]);
            assert!((320..=400).contains(&overlap), "{overlap}");
            assert!(pair[0].tokens >= 640, "{}", pair[0].tokens);
        }
    }

    #[test]
    fn a_division_prefers_paragraphs_then_lines_then_sentences_then_words() {
        let ends = |separator: &str, end: &str| {
            let text = format!("{}{separator}", "word ".repeat(9).trim_end()).repeat(60);
            let chunks = check(&text, 100, 0);
            chunks.len() > 5 && chunks[..chunks.len() - 1].iter().all(|chunk| text[..chunk.range.end].ends_with(end))
        };

        assert!(ends(".\r\n\r\nA line.\nAnd a sentence. And words ", "\r\n\r\n"));
        assert!(ends("\nAnd a sentence. And words ", "\n"));
        assert!(ends(". And words ", "."));
        assert!(ends("? And words ", "?"));
        assert!(ends("!\" And words ", "!\""));
        let text = "word ".repeat(1_000);
        assert!(check(&text, 100, 50).iter().all(|chunk| text[..chunk.range.end].trim_end().ends_with("word")));
    }

    #[test]
    fn a_text_without_spaces_is_divided_after_its_sentences() {
        let text = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。「何でも薄暗い所で泣いていた。」"
            .repeat(40);
        let chunks = check(&text, 200, 100);

        assert!(chunks.len() > 10);
        for chunk in &chunks[..chunks.len() - 1] {
            assert!(text[chunk.range.clone()].ends_with(['。', '」']), "{}", &text[chunk.range.clone()]);
        }
    }

    #[test]
    fn hostile_texts_take_linear_time() {
        let texts =
            ["a", "\u{1F600}", "語", "\n", " ", "\u{301}", "a\u{301}", "=", "0", "\u{200d}", "\t \n", "'s", "。", "é"];
        for unit in texts {
            let text = unit.repeat(400_000 / unit.len());

            let started = std::time::Instant::now();
            check(&format!("start {text} end"), 800, 400);

            assert!(started.elapsed() < std::time::Duration::from_secs(20), "{unit:?} takes {:?}", started.elapsed());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

        #[test]
        fn chunks_cover_any_text(
            words in prop::collection::vec(
                prop_oneof![
                    4 => "[a-zA-Z]{1,12}[.,!?]?",
                    2 => "[ \n\r\t]{1,4}",
                    1 => "\\PC{1,20}",
                    1 => "[ぁ-ん。「」亜-腕]{1,30}",
                    1 => "[0-9.,:-]{1,60}",
                    1 => ".{0,80}",
                ],
                0..400,
            ),
            separator in prop_oneof![Just(" "), Just(""), Just("\n")],
            max_tokens in 100_usize..600,
            overlap_percent in 0_usize..=50,
        ) {
            let text = words.join(separator);
            let chunks = check(&text, max_tokens, max_tokens * overlap_percent / 100);
            for chunk in &chunks {
                let counted = tokens(&text[chunk.range.clone()]);
                // Divided runs have some more tokens.
                prop_assert!(counted <= chunk.tokens + 2, "{counted} > {}", chunk.tokens);
            }
        }
    }
}
