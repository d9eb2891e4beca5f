//! Languages: their codes, stemmers and detection. Pure.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use rust_stemmers::{Algorithm, Stemmer};

use super::stop_words::STOP_WORDS;
use super::words::{Form, for_each_word};

/// A language whose words are stemmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Language {
    Arabic,
    Danish,
    Dutch,
    English,
    Finnish,
    French,
    German,
    Greek,
    Hungarian,
    Italian,
    Norwegian,
    Portuguese,
    Romanian,
    Russian,
    Spanish,
    Swedish,
    Tamil,
    Turkish,
}

/// The languages with their codes, in the order of the enum.
const LANGUAGES: [(Language, &str, Algorithm); 18] = [
    (Language::Arabic, "ar", Algorithm::Arabic),
    (Language::Danish, "da", Algorithm::Danish),
    (Language::Dutch, "nl", Algorithm::Dutch),
    (Language::English, "en", Algorithm::English),
    (Language::Finnish, "fi", Algorithm::Finnish),
    (Language::French, "fr", Algorithm::French),
    (Language::German, "de", Algorithm::German),
    (Language::Greek, "el", Algorithm::Greek),
    (Language::Hungarian, "hu", Algorithm::Hungarian),
    (Language::Italian, "it", Algorithm::Italian),
    (Language::Norwegian, "no", Algorithm::Norwegian),
    (Language::Portuguese, "pt", Algorithm::Portuguese),
    (Language::Romanian, "ro", Algorithm::Romanian),
    (Language::Russian, "ru", Algorithm::Russian),
    (Language::Spanish, "es", Algorithm::Spanish),
    (Language::Swedish, "sv", Algorithm::Swedish),
    (Language::Tamil, "ta", Algorithm::Tamil),
    (Language::Turkish, "tr", Algorithm::Turkish),
];

/// Number of ways to analyze a text: each language, and without one.
pub const ANALYSES: usize = LANGUAGES.len() + 1;

/// Number of samples of a text from which its language is detected: at its beginning, middle and end.
const SAMPLES: usize = 3;
/// Maximum length of a sample, in bytes.
const SAMPLE_BYTES: usize = 4 * 1024;
/// Least number of stop words that show a language: a single one can be a name or an abbreviation.
const HITS_MIN: u32 = 2;
/// A text with fewer words than this can be in English without a stop word.
const FEW_WORDS: u32 = 20;

impl Language {
    /// Returns the language with an ISO 639-1 code, if its words are stemmed.
    #[must_use]
    pub fn from_code(code: &str) -> Option<Self> {
        LANGUAGES.iter().find(|(_, of, _)| *of == code).map(|(language, _, _)| *language)
    }

    /// Returns the ISO 639-1 code.
    #[must_use]
    pub fn code(self) -> &'static str {
        LANGUAGES[self as usize].1
    }

    /// Creates a stemmer for lowercase words.
    pub(super) fn stemmer(self) -> Stemmer {
        Stemmer::create(LANGUAGES[self as usize].2)
    }

    /// Reports whether a lowercase word is so common in this language that it says nothing about a text.
    #[must_use]
    pub fn is_stop_word(self, word: &str) -> bool {
        STOP_WORD_LANGUAGES.get(word).is_some_and(|languages| languages & (1 << self as u32) != 0)
    }

    /// The least share of stop words in a text of this language, as one of this many words. It is lower in languages that
    /// express with endings what others express with words, and in scripts that few languages share.
    const fn words_per_stop_word(self) -> u32 {
        match self {
            Self::Tamil => 30,
            Self::Arabic | Self::Greek | Self::Turkish | Self::Finnish => 14,
            _ => 8,
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.code())
    }
}

/// Each stop word with a bit for each of its languages.
static STOP_WORD_LANGUAGES: LazyLock<HashMap<&'static str, u32>> = LazyLock::new(|| {
    let mut languages = HashMap::new();
    for (language, words) in STOP_WORDS {
        for word in words.split_whitespace() {
            *languages.entry(word).or_default() |= 1 << language as u32;
        }
    }
    languages
});

/// A set of ways to analyze a text: languages, and without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Analyses(u32);

impl Analyses {
    /// Adds a language, or the analysis without one.
    pub fn insert(&mut self, language: Option<Language>) {
        self.0 |= 1 << analysis_index(language);
    }

    /// Returns those for which a count is not zero; the counts are in the order of [`analysis_index`].
    #[must_use]
    pub fn of_counts(counts: &[u64; ANALYSES]) -> Self {
        let bits = counts.iter().enumerate().map(|(index, count)| u32::from(*count > 0) << index);
        Self(bits.fold(0, |set, bit| set | bit))
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Returns the members of the set.
    pub fn iter(self) -> impl Iterator<Item = Option<Language>> {
        let all = std::iter::once(None).chain(LANGUAGES.iter().map(|(language, _, _)| Some(*language)));
        all.filter(move |language| self.0 & (1 << analysis_index(*language)) != 0)
    }
}

/// Returns the index of a way to analyze a text, below [`ANALYSES`]: 0 for no language.
#[must_use]
pub fn analysis_index(language: Option<Language>) -> usize {
    language.map_or(0, |language| language as usize + 1)
}

/// Detects the language of a text from its most common words. Reads a bounded part of it.
///
/// Returns `None` if the text is in no language whose words are stemmed, or in several. A text of a few words in plain ASCII,
/// with no sign of another language, is English.
#[must_use]
pub fn detect(text: &str) -> Option<Language> {
    let mut evidence = Evidence::default();
    for sample in samples(text) {
        for_each_word(sample, Some(Language::English), &mut |word, form| evidence.add(word, form));
    }
    evidence.language()
}

/// Returns the parts of a text that are read: all of a short one.
fn samples(text: &str) -> impl Iterator<Item = &str> {
    let is_short = text.len() <= SAMPLES * SAMPLE_BYTES;
    let between = if is_short { 0 } else { (text.len() - SAMPLE_BYTES) / (SAMPLES - 1) };
    (0..if is_short { 1 } else { SAMPLES }).map(move |index| {
        let start = text.ceil_char_boundary(index * between);
        let end = if is_short { text.len() } else { text.floor_char_boundary(index * between + SAMPLE_BYTES) };
        &text[start..end.max(start)]
    })
}

/// Counts of the words of a text.
#[derive(Default)]
struct Evidence {
    words: u32,
    has_other_letters: bool,
    /// For each language, the number of its stop words in the text.
    hits: [u32; LANGUAGES.len()],
    /// The same, where a word counts less if several languages have it.
    weighted_hits: [f32; LANGUAGES.len()],
}

impl Evidence {
    fn add(&mut self, word: &str, form: Form) {
        if form != Form::Word {
            // Characters of scripts without spaces are words of no language here.
            self.words += u32::from(form == Form::Bigram);
            self.has_other_letters |= form == Form::Bigram;
            return;
        }
        self.words += 1;
        self.has_other_letters |= !word.is_ascii();
        let Some(languages) = STOP_WORD_LANGUAGES.get(word) else { return };
        #[expect(clippy::cast_precision_loss, reason = "at most the number of languages")]
        let weight = 1.0 / languages.count_ones() as f32;
        for index in 0..LANGUAGES.len() {
            if languages & (1 << index) != 0 {
                self.hits[index] += 1;
                self.weighted_hits[index] += weight;
            }
        }
    }

    fn language(&self) -> Option<Language> {
        let by_weight = |left: &usize, right: &usize| self.weighted_hits[*left].total_cmp(&self.weighted_hits[*right]);
        let best = (0..LANGUAGES.len()).rev().max_by(by_weight)?;
        let language = LANGUAGES[best].0;
        if self.hits[best] < HITS_MIN {
            let is_english = self.words < FEW_WORDS && !self.has_other_letters;
            return is_english.then_some(Language::English);
        }
        let is_enough = self.hits[best] * language.words_per_stop_word() >= self.words;
        is_enough.then_some(language)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_language_of_a_sentence_is_detected() {
        let sentences = [
            (Some(Language::English), "The refund is paid within thirty days of the return of the goods."),
            (
                Some(Language::German),
                "Die Erstattung wird innerhalb von dreißig Tagen nach der Rückgabe der Ware gezahlt.",
            ),
            (
                Some(Language::French),
                "Le remboursement est effectué dans les trente jours qui suivent le retour de la marchandise.",
            ),
            (
                Some(Language::Spanish),
                "El reembolso se paga en los treinta días siguientes a la devolución de la mercancía.",
            ),
            (
                Some(Language::Portuguese),
                "O reembolso é pago no prazo de trinta dias após a devolução da mercadoria, não antes.",
            ),
            (Some(Language::Italian), "Il rimborso viene pagato entro trenta giorni dalla restituzione della merce."),
            (
                Some(Language::Dutch),
                "De terugbetaling wordt binnen dertig dagen na het terugsturen van de goederen betaald.",
            ),
            (
                Some(Language::Swedish),
                "Återbetalningen görs inom trettio dagar efter att varan har skickats tillbaka till oss.",
            ),
            (
                Some(Language::Danish),
                "Pengene bliver betalt tilbage inden for tredive dage efter at varen er blevet sendt af kunden.",
            ),
            (
                Some(Language::Norwegian),
                "Pengene blir betalt tilbake innen tretti dager etter at varen er sendt, hvis du ikke har brukt den selv.",
            ),
            (
                Some(Language::Finnish),
                "Rahat maksetaan takaisin kolmenkymmenen päivän kuluessa siitä kun tavara on palautettu, mutta ei sitä ennen.",
            ),
            (
                Some(Language::Hungarian),
                "A vételárat az áru visszaküldése után harminc napon belül visszafizetjük, ha nem sérült meg.",
            ),
            (
                Some(Language::Romanian),
                "Banii sunt returnați în termen de treizeci de zile de la data la care ați trimis produsul.",
            ),
            (
                Some(Language::Turkish),
                "Ücret, ürün iade edildikten sonra otuz gün içinde geri ödenir ve bunun için bir form gerekir.",
            ),
            (
                Some(Language::Russian),
                "Деньги возвращаются в течение тридцати дней после того, как товар был отправлен на склад.",
            ),
            (Some(Language::Greek), "Τα χρήματα επιστρέφονται μέσα σε τριάντα ημέρες από την επιστροφή του προϊόντος."),
            (Some(Language::Arabic), "يتم رد المبلغ في غضون ثلاثين يوما من إعادة البضاعة إلى المتجر"),
            (Some(Language::Tamil), "பொருளை திருப்பி அனுப்பிய பிறகு முப்பது நாட்களில் பணம் திருப்பித் தரப்படும் என்று கூறினார்"),
            (None, "返品後三十日以内に返金いたします。ご不明な点はお問い合わせください。"),
            (None, "Zwrot pieniędzy następuje w ciągu trzydziestu dni od dnia odesłania towaru przez kupującego."),
            (None, "Vrácení peněz proběhne během třiceti dnů po vrácení zboží, jestliže nebylo poškozeno ani použito."),
            (Some(Language::English), "refunds"),
            (Some(Language::German), "Wie lange dauert die Erstattung und wer zahlt?"),
        ];
        for (language, sentence) in sentences {
            assert_eq!(detect(sentence), language, "{sentence}");
        }
    }

    #[test]
    fn a_long_text_is_detected_from_samples() {
        let text = "Der Hund und die Katze sind nicht im Haus. ".repeat(200_000);

        assert_eq!(detect(&text), Some(Language::German));
        assert_eq!(detect(&"語".repeat(100_000)), None);
        assert_eq!(detect(""), Some(Language::English));
    }

    #[test]
    fn a_code_names_one_language() {
        for (index, (language, code, _)) in LANGUAGES.into_iter().enumerate() {
            assert_eq!(language as usize, index);
            assert_eq!(Language::from_code(code), Some(language));
            assert_eq!(language.code(), code);
        }
        assert_eq!(Language::from_code("xx"), None);
    }

    #[test]
    fn a_set_of_analyses_has_what_was_added() {
        let mut analyses = Analyses::default();
        analyses.insert(Some(Language::Turkish));
        analyses.insert(None);

        assert_eq!(analyses.iter().collect::<Vec<_>>(), vec![None, Some(Language::Turkish)]);
    }
}
