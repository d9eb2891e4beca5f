//! Turns texts into terms for lexical search. Pure.
//!
//! A term is a 32-bit hash of a word, stemmed in the language of its file; equal texts have equal terms on every machine.
//! `words` finds the words, `language` detects the language and stems.
//!
//! The terms of a chunk are stored. [`Terms::to_bytes`] names the version of the analysis: if it changes, stored terms are
//! not used any more ([`Terms::from_bytes`] returns `None`), and the text is analyzed again.

mod language;
mod stop_words;
mod words;

use std::collections::HashMap;

use rust_stemmers::Stemmer;

pub use language::{ANALYSES, Analyses, Language, analysis_index, detect};
pub use words::{Form, WORD_BYTES_MAX, for_each_word};

/// Version of the analysis. Increment it when the terms of any text change.
const VERSION: u8 = 1;
/// Maximum number of words whose terms an [`Analyzer`] remembers.
const REMEMBERED_WORDS_MAX: usize = 16 * 1024;
/// Maximum number of different terms of a query. Further ones are ignored.
pub const QUERY_TERMS_MAX: usize = 256;

/// The terms of a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Terms {
    /// Length of the chunk in words.
    pub words: u32,
    /// Each term with its number of occurrences, sorted by term.
    pub counts: Vec<(u32, u32)>,
}

impl Terms {
    /// Encodes the terms: the version as one byte, the number of words as varint, and for each term the hash (little-endian)
    /// and the count as varint.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(6 + 5 * self.counts.len());
        bytes.push(VERSION);
        write_varint(&mut bytes, self.words);
        for (term, count) in &self.counts {
            bytes.extend(term.to_le_bytes());
            write_varint(&mut bytes, *count);
        }
        bytes
    }

    /// Decodes terms. Returns `None` if they have another version or are damaged.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (version, mut rest) = bytes.split_first()?;
        if *version != VERSION {
            return None;
        }
        let words = read_varint(&mut rest)?;
        let mut counts: Vec<(u32, u32)> = Vec::with_capacity(rest.len() / 5);
        while !rest.is_empty() {
            let (term, after) = rest.split_first_chunk()?;
            rest = after;
            let term = u32::from_le_bytes(*term);
            if counts.last().is_some_and(|(last, _)| *last >= term) {
                return None;
            }
            counts.push((term, read_varint(&mut rest)?));
        }
        Some(Self { words, counts })
    }
}

/// Appends a number in seven bits per byte, the lowest first; the highest bit of a byte says that another one follows.
pub(super) fn write_varint(bytes: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        #[expect(clippy::cast_possible_truncation, reason = "takes the lowest seven bits")]
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "less than 128")]
    bytes.push(value as u8);
}

/// Reads what [`write_varint`] wrote, and advances `bytes`. Returns `None` if the bytes end too early or the number is too
/// large.
pub(super) fn read_varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0;
    for shift in [0, 7, 14, 21, 28] {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u32::from(byte & 0x7f);
        value |= bits.checked_shl(shift).filter(|shifted| shifted >> shift == bits)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Analyzes the chunks of a file, which has one language.
pub struct Analyzer {
    language: Option<Language>,
    stemmer: Option<Stemmer>,
    remembered: HashMap<Box<str>, u32>,
}

impl Analyzer {
    /// Creates an analyzer for texts in a language, or without stems.
    #[must_use]
    pub fn new(language: Option<Language>) -> Self {
        Self { language, stemmer: language.map(Language::stemmer), remembered: HashMap::new() }
    }

    /// Returns the terms of a chunk.
    #[must_use]
    pub fn analyze(&mut self, text: &str) -> Terms {
        let mut words = 0;
        let mut terms = Vec::with_capacity(text.len() / 5);
        for_each_word(text, self.language, &mut |word, form| {
            words += u32::from(form != Form::Unigram);
            terms.push(self.term(word, form));
        });
        terms.sort_unstable();
        let mut counts: Vec<(u32, u32)> = Vec::with_capacity(terms.len() / 2);
        for term in terms {
            match counts.last_mut() {
                Some((last, count)) if *last == term => *count += 1,
                _ => counts.push((term, 1)),
            }
        }
        Terms { words, counts }
    }

    /// Returns the term of a word.
    fn term(&mut self, word: &str, form: Form) -> u32 {
        match &self.stemmer {
            Some(stemmer) if form == Form::Word => {
                if let Some(term) = self.remembered.get(word) {
                    return *term;
                }
                let term = hash(&stemmer.stem(word));
                if self.remembered.len() >= REMEMBERED_WORDS_MAX {
                    self.remembered.clear();
                }
                self.remembered.insert(word.into(), term);
                term
            }
            _ => hash(word),
        }
    }
}

/// Returns the hash of a word: FNV-1a with 64 bits, whose bits are then mixed into 32.
fn hash(word: &str) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in word.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    u32::try_from(hash >> 32).expect("32 bits are left")
}

/// A term of a query.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryTerm {
    /// The hash.
    pub term: u32,
    /// For each way to analyze ([`analysis_index`]), how often the query has the term; 0 where it has another stem.
    pub counts: [f32; ANALYSES],
}

/// A query as terms, for each language of a collection: a chunk is compared with the terms of its own language.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LexicalQuery {
    /// The terms, sorted by hash.
    pub terms: Vec<QueryTerm>,
}

impl LexicalQuery {
    /// Analyzes a query for a collection with these languages.
    ///
    /// Stop words of the language, and of the query's own language, are ignored, unless the query has only stop words.
    #[must_use]
    pub fn new(text: &str, analyses: Analyses) -> Self {
        let own = detect(text);
        let mut terms: HashMap<u32, [f32; ANALYSES]> = HashMap::new();
        for language in analyses.iter() {
            let is_stop_word = |word: &str| {
                own.is_some_and(|own| own.is_stop_word(word))
                    || language.is_some_and(|language| language.is_stop_word(word))
            };
            for term in query_terms(text, language, &is_stop_word) {
                if terms.len() < QUERY_TERMS_MAX || terms.contains_key(&term) {
                    terms.entry(term).or_insert([0.0; ANALYSES])[analysis_index(language)] += 1.0;
                }
            }
        }
        let mut terms: Vec<_> = terms.into_iter().map(|(term, counts)| QueryTerm { term, counts }).collect();
        terms.sort_unstable_by_key(|term| term.term);
        Self { terms }
    }
}

/// Returns the terms of a query in a language, in order; without stop words if there are others.
fn query_terms(text: &str, language: Option<Language>, is_stop_word: &dyn Fn(&str) -> bool) -> Vec<u32> {
    let mut analyzer = Analyzer::new(language);
    let (mut all, mut meaningful) = (Vec::new(), Vec::new());
    for_each_word(text, language, &mut |word, form| {
        // Pairs of characters say more than the characters.
        if form == Form::Unigram {
            return;
        }
        let term = analyzer.term(word, form);
        all.push(term);
        if form != Form::Word || !is_stop_word(word) {
            meaningful.push(term);
        }
    });
    if meaningful.is_empty() { all } else { meaningful }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terms(text: &str, language: Option<Language>) -> Terms {
        Analyzer::new(language).analyze(text)
    }

    fn analyses(languages: &[Option<Language>]) -> Analyses {
        let mut analyses = Analyses::default();
        for language in languages {
            analyses.insert(*language);
        }
        analyses
    }

    /// Returns the number of terms that a query in a language shares with a text in it.
    fn shared(query: &str, text: &str, language: Option<Language>) -> usize {
        let query = LexicalQuery::new(query, analyses(&[language]));
        let text = terms(text, language);
        query.terms.iter().filter(|term| text.counts.iter().any(|(of_text, _)| *of_text == term.term)).count()
    }

    #[test]
    fn terms_are_the_same_on_every_machine() {
        assert_eq!(
            terms("Refunds, refunded: 30", Some(Language::English)).counts,
            vec![(hash("30"), 1), (hash("refund"), 2)]
        );
        assert_eq!((hash(""), hash("refund"), hash("語")), (3_971_628_530, 2_416_465_230, 2_550_393_091));
    }

    #[test]
    fn words_with_the_same_stem_are_found() {
        assert_eq!(shared("running dogs", "The dog runs.", Some(Language::English)), 2);
        assert_eq!(shared("Häuser", "Das Haus", Some(Language::German)), 1);
        assert_eq!(shared("chevaux", "le cheval", Some(Language::French)), 1);
        assert_eq!(shared("the dog", "The dog runs.", None), 1);
        assert_eq!(shared("猫", "猫が好き", None), 1);
        assert_eq!(shared("max_num_results", "set maxNumResults = 5", Some(Language::English)), 3);
        assert_eq!(shared("CAFÉ", "cafe\u{301}", None), 1);
    }

    #[test]
    fn stop_words_count_only_in_a_query_without_other_words() {
        let english = analyses(&[Some(Language::English)]);

        assert_eq!(LexicalQuery::new("What is the refund?", english), LexicalQuery::new("refund", english));
        assert_eq!(LexicalQuery::new("to be or not to be", english).terms.len(), 4);
        let german = analyses(&[Some(Language::German)]);
        assert_eq!(LexicalQuery::new("What is the refund?", german).terms.len(), 1);
    }

    #[test]
    fn a_query_has_the_terms_of_each_language() {
        let query = LexicalQuery::new("running 30", analyses(&[None, Some(Language::English)]));

        assert_eq!(query.terms.len(), 3);
        let counts = |term: u32| {
            let term = query.terms.iter().find(|found| found.term == term).unwrap();
            (term.counts[0], term.counts[analysis_index(Some(Language::English))])
        };
        assert_eq!(counts(hash("running")), (1.0, 0.0));
        assert_eq!(counts(hash("run")), (0.0, 1.0));
        assert_eq!(counts(hash("30")), (1.0, 1.0));
    }

    #[test]
    fn a_query_has_a_bounded_number_of_terms() {
        let text = (0..10_000).map(|number| format!("x{number}")).collect::<Vec<_>>().join(" ");

        assert_eq!(LexicalQuery::new(&text, analyses(&[None])).terms.len(), QUERY_TERMS_MAX);
    }

    #[test]
    fn damaged_terms_and_those_of_another_version_are_rejected() {
        let bytes = terms("one two three", None).to_bytes();

        assert_eq!(Terms::from_bytes(&[]), None);
        assert_eq!(Terms::from_bytes(&[VERSION + 1, 0]), None);
        assert_eq!(Terms::from_bytes(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Terms::from_bytes(&[VERSION, 0x80, 0x80, 0x80, 0x80, 0x10]), None);
        assert_eq!(Terms::from_bytes(&[VERSION, 1, 5, 0, 0, 0, 1, 5, 0, 0, 0, 1]), None);
    }

    proptest! {
        #[test]
        fn any_text_can_be_analyzed(text in "\\PC{0,200}", index in 0..ANALYSES) {
            let mut all = Analyses::default();
            (0..18).for_each(|index| all.insert(Language::from_code(language_code(index))));
            all.insert(None);
            let language = all.iter().nth(index).unwrap();
            let analyzed = terms(&text, language);

            prop_assert_eq!(Terms::from_bytes(&analyzed.to_bytes()), Some(analyzed.clone()));
            prop_assert!(LexicalQuery::new(&text, all).terms.len() <= QUERY_TERMS_MAX);
            // What is found with a text as query is in the text.
            if analyzed.counts.len() < QUERY_TERMS_MAX {
                let query = LexicalQuery::new(&text, analyses(&[language]));
                for term in query.terms {
                    prop_assert!(analyzed.counts.iter().any(|(of_text, _)| *of_text == term.term));
                }
            }
        }

        #[test]
        fn any_terms_are_decoded_as_they_were(
            words in any::<u32>(),
            counts in prop::collection::btree_map(any::<u32>(), any::<u32>(), 0..50),
        ) {
            let terms = Terms { words, counts: counts.into_iter().collect() };
            prop_assert_eq!(Terms::from_bytes(&terms.to_bytes()), Some(terms));
        }
    }

    fn language_code(index: usize) -> &'static str {
        ["ar", "da", "nl", "en", "fi", "fr", "de", "el", "hu", "it", "no", "pt", "ro", "ru", "es", "sv", "ta", "tr"]
            [index]
    }
}
