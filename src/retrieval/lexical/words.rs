//! Finds the words of a text. Pure.
//!
//! A word is a run of letters, digits and their marks. Runs that are joined by `_`, `.`, `@` and the like, or that are
//! written in camel case, are one identifier: it counts as a whole and with its parts. Scripts without spaces between words
//! are divided into pairs of characters.

use std::borrow::Cow;

use unicode_normalization::char::is_combining_mark;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfkc_quick};

use super::language::Language;

/// Maximum length of a word, in bytes. The rest of a longer one is ignored.
pub const WORD_BYTES_MAX: usize = 64;

/// What a found word is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Letters in lowercase, which can be stemmed.
    Word,
    /// A number or an identifier.
    Exact,
    /// Two characters of a script without spaces, or one that stands alone.
    Bigram,
    /// A Chinese character that is also part of a [`Form::Bigram`]: a query may have it alone.
    Unigram,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Lower,
    Upper,
    Digit,
    /// A mark of the letter before it.
    Mark,
    /// Part of a word without a meaning of its own, such as a soft hyphen.
    Ignored,
    /// Joins two runs into one identifier.
    Joiner,
    Apostrophe,
    Han,
    /// A character of another script of East Asia.
    Kana,
    /// A character of a script of South East Asia that is written without spaces.
    SouthEast,
    Other,
}

impl Class {
    const fn of_ascii(character: u8) -> Self {
        match character {
            b'a'..=b'z' => Self::Lower,
            b'A'..=b'Z' => Self::Upper,
            b'0'..=b'9' => Self::Digit,
            b'_' | b'.' | b'@' | b',' => Self::Joiner,
            b'\'' => Self::Apostrophe,
            _ => Self::Other,
        }
    }

    fn of(character: char) -> Self {
        if let Ok(ascii) = u8::try_from(character)
            && ascii.is_ascii()
        {
            return Self::of_ascii(ascii);
        }
        match character {
            '\u{ad}' | '\u{200c}' | '\u{200d}' | '\u{2060}' | '\u{feff}' | '\u{fe00}'..='\u{fe0f}' | 'ـ' => {
                Self::Ignored
            }
            '\u{2019}' => Self::Apostrophe,
            '\u{2e80}'..='\u{2fdf}'
            | '々'..='〇'
            | '\u{3400}'..='\u{4dbf}'
            | '\u{4e00}'..='\u{9fff}'
            | '\u{f900}'..='\u{faff}'
            | '\u{20000}'..='\u{3ffff}' => Self::Han,
            '\u{30fb}' | '\u{30a0}' => Self::Other,
            '\u{1100}'..='\u{11ff}'
            | '\u{3041}'..='\u{318f}'
            | '\u{31a0}'..='\u{31bf}'
            | '\u{31f0}'..='\u{31ff}'
            | '\u{a960}'..='\u{a97f}'
            | '\u{ac00}'..='\u{d7ff}'
            | '\u{ff66}'..='\u{ff9f}'
            | '\u{1b000}'..='\u{1b16f}' => Self::Kana,
            '\u{e01}'..='\u{e3a}'
            | '\u{e40}'..='\u{e4e}'
            | '\u{e81}'..='\u{ece}'
            | '\u{edc}'..='\u{edf}'
            | '\u{1000}'..='\u{103f}'
            | '\u{104c}'..='\u{108f}'
            | '\u{1780}'..='\u{17d3}' => Self::SouthEast,
            _ if character.is_uppercase() => Self::Upper,
            _ if character.is_alphabetic() => Self::Lower,
            _ if character.is_numeric() => Self::Digit,
            _ if is_combining_mark(character) => Self::Mark,
            _ => Self::Other,
        }
    }

    /// Reports whether characters of this class are divided into pairs.
    const fn is_dense(self) -> bool {
        matches!(self, Self::Han | Self::Kana | Self::SouthEast)
    }

    const fn is_part_of_word(self) -> bool {
        matches!(self, Self::Lower | Self::Upper | Self::Digit | Self::Mark | Self::Ignored)
    }

    const fn starts_word(self) -> bool {
        matches!(self, Self::Lower | Self::Upper | Self::Digit)
    }
}

/// Calls `each` with the words of a text, in order. The language decides on apostrophes and on the lowercase of `I`.
pub fn for_each_word(text: &str, language: Option<Language>, each: &mut dyn FnMut(&str, Form)) {
    let text = normalized(text);
    let mut scanner = Scanner { text: &text, language, buffer: String::new(), each };
    let mut start = 0;
    while let Some(character) = text[start..].chars().next() {
        let class = Class::of(character);
        start = if class.starts_word() {
            scanner.word(start)
        } else if class.is_dense() {
            scanner.dense(start, class)
        } else {
            start + character.len_utf8()
        };
    }
}

/// Returns a text in NFKC, which has one form for each character, such as those of full width.
fn normalized(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfkc_quick(text.chars()) == IsNormalized::Yes {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.nfkc().collect())
}

struct Scanner<'a> {
    text: &'a str,
    language: Option<Language>,
    buffer: String,
    each: &'a mut dyn FnMut(&str, Form),
}

/// What a run of letters and digits has.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
struct Run {
    has_joiner: bool,
    has_letter: bool,
    has_digit: bool,
    /// An uppercase letter follows a lowercase letter or precedes two of them.
    is_camel: bool,
}

impl Scanner<'_> {
    /// Reads the word that starts at `start`, and returns its end.
    fn word(&mut self, start: usize) -> usize {
        let mut run = Run::default();
        let mut end = start;
        let (mut previous, mut before_previous) = (Class::Other, Class::Other);
        let mut characters = self.text[start..].char_indices().peekable();
        while let Some((offset, character)) = characters.next() {
            let class = Class::of(character);
            let next = characters.peek().map_or(Class::Other, |(_, next)| Class::of(*next));
            match class {
                _ if class.is_part_of_word() => {
                    run.has_letter |= matches!(class, Class::Lower | Class::Upper);
                    run.has_digit |= class == Class::Digit;
                    run.is_camel |= class == Class::Upper && previous == Class::Lower
                        || class == Class::Lower
                            && previous == Class::Upper
                            && before_previous == Class::Upper
                            && next == Class::Lower;
                    if !matches!(class, Class::Mark | Class::Ignored) {
                        (before_previous, previous) = (previous, class);
                    }
                }
                Class::Joiner if joins(character, previous, next) => {
                    run.has_joiner = true;
                    (before_previous, previous) = (previous, class);
                }
                Class::Apostrophe if next.starts_word() && self.language == Some(Language::English) => {
                    (before_previous, previous) = (previous, class);
                }
                _ => break,
            }
            end = start + offset + character.len_utf8();
        }
        let sign = language_sign(&self.text[start..]).filter(|sign| start + sign.len() > end);
        let end = sign.map_or(end, |sign| start + sign.len());
        self.emit_word(start..end, &run);
        end
    }

    fn emit_word(&mut self, range: std::ops::Range<usize>, run: &Run) {
        let word = &self.text[range];
        let is_plain = !run.has_joiner && !run.is_camel;
        if is_plain && !word.ends_with(['+', '#']) {
            let form = if run.has_letter && !run.has_digit { Form::Word } else { Form::Exact };
            self.emit(word, form);
            return;
        }
        // Letters alone can be a word after all: "eBay", "siRNAs".
        let is_word =
            !run.has_joiner && !run.has_digit && word.chars().all(|character| Class::of(character).is_part_of_word());
        if word.len() <= WORD_BYTES_MAX {
            if is_initialism(word) {
                self.emit(&word.replace('.', ""), Form::Word);
                return;
            }
            self.emit(word, if is_word { Form::Word } else { Form::Exact });
        }
        if !run.has_letter {
            return;
        }
        for part in word.split(['_', '.', '@', ',', '+', '#']) {
            for part in CamelParts(part) {
                let mut classes = part.chars().map(Class::of);
                let has_digit = classes.any(|class| class == Class::Digit);
                if part.len() > 1 && part.len() < word.len() {
                    self.emit(part, if has_digit { Form::Exact } else { Form::Word });
                }
            }
        }
    }

    fn emit(&mut self, word: &str, form: Form) {
        let word = &word[..word.floor_char_boundary(WORD_BYTES_MAX)];
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        for character in word.chars() {
            match character {
                'I' if self.language == Some(Language::Turkish) => buffer.push('ı'),
                'İ' => buffer.push('i'),
                'ς' | 'Σ' => buffer.push('σ'),
                '\u{2019}' => buffer.push('\''),
                _ if character.is_ascii() => buffer.push(character.to_ascii_lowercase()),
                _ if Class::of(character) == Class::Ignored => {}
                _ => buffer.extend(character.to_lowercase()),
            }
        }
        (self.each)(&buffer, form);
        self.buffer = buffer;
    }

    /// Reads the run of characters of a dense script that starts at `start`, and returns its end.
    fn dense(&mut self, start: usize, class: Class) -> usize {
        let is_south_east = class == Class::SouthEast;
        let mut previous = None;
        let mut pairs = 0_u32;
        let mut end = self.text.len();
        for (offset, character) in self.text[start..].char_indices() {
            let index = start + offset;
            let class = Class::of(character);
            let continues = class.is_dense() && (class == Class::SouthEast) == is_south_east
                || matches!(class, Class::Mark | Class::Ignored);
            if !continues {
                end = index;
                break;
            }
            let after = index + character.len_utf8();
            if class == Class::Han {
                (self.each)(&self.text[index..after], Form::Unigram);
            }
            if let Some(previous) = previous {
                pairs += 1;
                (self.each)(&self.text[previous..after], Form::Bigram);
            }
            previous = Some(index);
        }
        if pairs == 0 {
            let single = &self.text[start..end];
            (self.each)(&single[..single.floor_char_boundary(WORD_BYTES_MAX)], Form::Bigram);
        }
        end
    }
}

/// Reports whether a joiner joins what stands before and after it.
fn joins(joiner: char, previous: Class, next: Class) -> bool {
    match joiner {
        // A decimal or thousands separator.
        ',' => previous == Class::Digit && next == Class::Digit,
        _ => next.starts_word(),
    }
}

/// Returns the name of a programming language that ends with signs, if a text starts with one.
fn language_sign(text: &str) -> Option<&str> {
    let letters = text.find(|character: char| !character.is_ascii_alphanumeric()).unwrap_or(text.len());
    let signs = &text[letters..];
    let length = match () {
        () if letters == 0 => return None,
        () if signs.starts_with("++") => 2,
        () if signs.starts_with('#') && letters <= 2 => 1,
        () => return None,
    };
    let is_end = !signs[length..].starts_with(|character: char| character.is_alphanumeric() || character == '+');
    is_end.then(|| &text[..letters + length])
}

/// Reports whether a word is single letters with dots between them, such as "U.S.A".
fn is_initialism(word: &str) -> bool {
    word.contains('.')
        && word.split('.').all(|part| {
            let mut characters = part.chars();
            characters.next().is_some_and(char::is_alphabetic) && characters.next().is_none()
        })
}

/// The parts of a word in camel case.
struct CamelParts<'a>(&'a str);

impl<'a> Iterator for CamelParts<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.0.is_empty() {
            return None;
        }
        let (mut previous, mut before_previous) = (Class::Other, Class::Other);
        let mut previous_index = 0;
        let mut characters = self.0.char_indices().peekable();
        let mut end = self.0.len();
        while let Some((index, character)) = characters.next() {
            let class = Class::of(character);
            let next = characters.peek().map_or(Class::Other, |(_, next)| Class::of(*next));
            if class == Class::Upper && previous == Class::Lower {
                end = index;
                break;
            }
            let ends_capitals = class == Class::Lower && previous == Class::Upper && before_previous == Class::Upper;
            if ends_capitals && next == Class::Lower {
                end = previous_index;
                break;
            }
            if !matches!(class, Class::Mark | Class::Ignored) {
                (before_previous, previous, previous_index) = (previous, class, index);
            }
        }
        let (part, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_in(text: &str, language: Option<Language>) -> Vec<String> {
        let mut words = Vec::new();
        for_each_word(text, language, &mut |word, form| {
            if form != Form::Unigram {
                words.push(word.to_owned());
            }
        });
        words
    }

    fn words(text: &str) -> String {
        words_in(text, Some(Language::English)).join(" ")
    }

    #[test]
    fn words_are_runs_of_letters_and_digits_in_lowercase() {
        assert_eq!(words("The refund—paid within 30 days (net)."), "the refund paid within 30 days net");
        assert_eq!(words("Grüße aus KÖLN, ΟΔΟΣ"), "grüße aus köln οδοσ");
        assert_eq!(words("हिन्दी में"), "हिन्दी में");
        assert_eq!(words("co\u{ad}operate"), "cooperate");
        assert_eq!(words("don’t state-of-the-art"), "don't state of the art");
        assert_eq!(words("  ... ,, '' __ "), "");
    }

    #[test]
    fn an_apostrophe_joins_words_only_in_english() {
        assert_eq!(words_in("l'homme", Some(Language::French)), ["l", "homme"]);
        assert_eq!(words_in("Ankara'da", Some(Language::Turkish)), ["ankara", "da"]);
        assert_eq!(words_in("Isparta İzmir", Some(Language::Turkish)), ["ısparta", "izmir"]);
    }

    #[test]
    fn identifiers_are_found_as_a_whole_and_in_parts() {
        assert_eq!(words("max_num_results"), "max_num_results max num results");
        assert_eq!(words("maxNumResults"), "maxnumresults max num results");
        assert_eq!(words("HTTPServer siRNAs"), "httpserver http server sirnas si rnas");
        assert_eq!(words("__init__(self)"), "init self");
        assert_eq!(words("anna.smith@example.com"), "anna.smith@example.com anna smith example com");
        assert_eq!(words("v1.2.3 and 1.2.3 or 1,000.50"), "v1.2.3 v1 and 1.2.3 or 1,000.50");
        assert_eq!(words("https://example.com/a/b?c=d"), "https example.com example com a b c d");
        assert_eq!(words("C++, C# and F#; a+b"), "c++ c# and f# a b");
        assert_eq!(words("the U.S.A. and e.g. this"), "the usa and eg this");
        assert_eq!(words("p53 GPT-4o"), "p53 gpt 4o");
    }

    #[test]
    fn dense_scripts_are_divided_into_pairs() {
        assert_eq!(words("東京都に住む"), "東京 京都 都に に住 住む");
        assert_eq!(words("猫"), "猫");
        assert_eq!(words("한국어 말"), "한국 국어 말");
        assert_eq!(words("ﾄｳｷｮｳ"), "トウ ウキ キョ ョウ");
        assert_eq!(words("GPT-4を使うＡＢＣ"), "gpt 4 を使 使う abc");
        assert_eq!(words("ไทย"), "ไท ทย");
    }

    #[test]
    fn a_chinese_character_can_be_found_alone() {
        let mut unigrams = Vec::new();
        for_each_word("猫が好き", None, &mut |word, form| {
            if form == Form::Unigram {
                unigrams.push(word.to_owned());
            }
        });

        assert_eq!(unigrams, ["猫", "好"]);
    }

    #[test]
    fn words_have_a_bounded_length() {
        let text = format!("{} {} {}", "a".repeat(10_000), "a.".repeat(10_000), "語\u{301}".repeat(10_000));

        for_each_word(&text, None, &mut |word, _| assert!(word.len() <= 2 * WORD_BYTES_MAX));
    }
}
