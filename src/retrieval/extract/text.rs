//! Decodes text files: UTF-8, UTF-16 and ASCII. Pure.
//!
//! | what the bytes are | encoding |
//! | --- | --- |
//! | they start with a byte order mark | that of the mark |
//! | UTF-16 without a mark, in which all zero bytes are at even (or all at odd) positions | UTF-16 |
//! | anything else that is UTF-8 | UTF-8, of which ASCII is a part |
//! | anything else | rejected |

use super::Rejected;

/// A text with more than one control character in this many is a binary file.
const CONTROLS_RATIO: usize = 10;
/// Number of control characters that any text may have.
const CONTROLS_ALLOWED: usize = 16;
/// Length of the beginning in which zero bytes are looked for, in bytes.
const SAMPLE_BYTES: usize = 64 * 1024;

const UTF8_MARK: &[u8] = &[0xEF, 0xBB, 0xBF];
const UTF16_LITTLE_MARK: &[u8] = &[0xFF, 0xFE];
const UTF16_BIG_MARK: &[u8] = &[0xFE, 0xFF];
const UTF32_LITTLE_MARK: &[u8] = &[0xFF, 0xFE, 0, 0];
const UTF32_BIG_MARK: &[u8] = &[0, 0, 0xFE, 0xFF];

/// The order of the bytes of a UTF-16 code unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByteOrder {
    Little,
    Big,
}

/// Decodes a text file. The text has line feeds as line breaks and no other control characters than tabs.
///
/// # Errors
/// If the bytes are not text in one of the encodings.
pub fn decode(bytes: Vec<u8>) -> Result<String, Rejected> {
    if let Some(name) = binary_format(&bytes) {
        return Err(Rejected::invalid(&format!(
            "it is not text but {name}. Upload it with the extension of its format, or export it as text"
        )));
    }
    if bytes.starts_with(UTF32_LITTLE_MARK) || bytes.starts_with(UTF32_BIG_MARK) {
        return Err(not_text("it is UTF-32"));
    }
    let text = match utf16_order(&bytes) {
        Some(order) => decode_utf16(&bytes, order)?,
        None => decode_utf8(bytes)?,
    };
    let Cleaned { text, controls, characters } = clean(text);
    if controls > CONTROLS_ALLOWED + characters / CONTROLS_RATIO {
        return Err(Rejected::invalid("it is not text: it has many control characters. Upload a text file"));
    }
    Ok(text)
}

fn decode_utf8(mut bytes: Vec<u8>) -> Result<String, Rejected> {
    if bytes.starts_with(UTF8_MARK) {
        bytes.drain(..UTF8_MARK.len());
    }
    String::from_utf8(bytes).map_err(|error| {
        let position = error.utf8_error().valid_up_to();
        let byte = error.as_bytes().get(position).copied().unwrap_or_default();
        not_text(&format!("the byte 0x{byte:02X} at position {position} is not valid UTF-8"))
    })
}

fn not_text(cause: &str) -> Rejected {
    Rejected::invalid(&format!("its text is not in UTF-8, UTF-16 or ASCII: {cause}. Save it as UTF-8"))
}

/// Returns the byte order of UTF-16, or `None` if the bytes are not UTF-16.
fn utf16_order(bytes: &[u8]) -> Option<ByteOrder> {
    if bytes.starts_with(UTF16_LITTLE_MARK) {
        return Some(ByteOrder::Little);
    }
    if bytes.starts_with(UTF16_BIG_MARK) {
        return Some(ByteOrder::Big);
    }
    // Characters below U+0100, such as spaces and line breaks, have a zero byte. No character has two of them, so that all
    // zero bytes are at the same position of their code unit.
    if !bytes.len().is_multiple_of(2) {
        return None;
    }
    let sample = &bytes[..bytes.len().min(SAMPLE_BYTES)];
    let zeros = |offset: usize| sample.iter().skip(offset).step_by(2).filter(|byte| **byte == 0).count();
    let order = match (zeros(0), zeros(1)) {
        (0, 1..) => ByteOrder::Little,
        (1.., 0) => ByteOrder::Big,
        _ => return None,
    };
    // UTF-8 with single zero bytes is not UTF-16.
    let is_plausible = |unit: Result<char, _>| unit.is_ok_and(|unit| !is_unexpected(unit));
    let is_utf16 = char::decode_utf16(units(sample, order)).all(is_plausible);
    let is_cut = sample.len() < bytes.len();
    (is_utf16 || is_cut && starts_plausibly(sample, order)).then_some(order)
}

/// Returns whether all characters of a sample are plausible, except the last one, which can be half of a pair.
fn starts_plausibly(sample: &[u8], order: ByteOrder) -> bool {
    let whole = &sample[..sample.len().saturating_sub(2)];
    char::decode_utf16(units(whole, order)).all(|unit| unit.is_ok_and(|unit| !is_unexpected(unit)))
}

/// Returns whether a character does not occur in text files: control characters, private use, and unassigned planes.
fn is_unexpected(character: char) -> bool {
    let is_blank = matches!(character, '\t' | '\n' | '\r' | '\x0C');
    character.is_control() && !is_blank || matches!(character, '\u{E000}'..='\u{F8FF}' | '\u{FFF0}'..='\u{FFFB}')
}

fn units(bytes: &[u8], order: ByteOrder) -> impl Iterator<Item = u16> {
    let (pairs, _) = bytes.as_chunks::<2>();
    pairs.iter().map(move |pair| match order {
        ByteOrder::Little => u16::from_le_bytes(*pair),
        ByteOrder::Big => u16::from_be_bytes(*pair),
    })
}

fn decode_utf16(bytes: &[u8], order: ByteOrder) -> Result<String, Rejected> {
    if !bytes.len().is_multiple_of(2) {
        return Err(not_text("it is UTF-16 with an odd number of bytes, so that its end is missing"));
    }
    let mut text = String::with_capacity(bytes.len() / 2);
    for unit in char::decode_utf16(units(bytes, order)) {
        text.push(unit.unwrap_or(char::REPLACEMENT_CHARACTER));
    }
    Ok(text)
}

/// Decodes an XML part, which is UTF-8 or UTF-16. Replaces what is invalid.
pub fn decode_lossy(bytes: Vec<u8>) -> String {
    match utf16_order(&bytes) {
        Some(order) => {
            char::decode_utf16(units(&bytes, order)).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
        }
        None => String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    }
}

/// A text without the characters that [`clean`] removes.
#[derive(Debug, PartialEq, Eq)]
pub struct Cleaned {
    /// The text.
    pub text: String,
    /// Number of control characters that were removed.
    pub controls: usize,
    /// Number of characters before, if any was removed or replaced.
    pub characters: usize,
}

/// Replaces line breaks by line feeds, and removes control characters and byte order marks.
pub fn clean(text: String) -> Cleaned {
    if !needs_cleaning(&text) {
        return Cleaned { text, controls: 0, characters: 0 };
    }
    let mut cleaned = Cleaned { text: String::with_capacity(text.len()), controls: 0, characters: 0 };
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        cleaned.characters += 1;
        match character {
            '\r' => {
                rest.next_if_eq(&'\n');
                cleaned.text.push('\n');
            }
            '\x0B' | '\x0C' | '\u{85}' => cleaned.text.push('\n'),
            '\t' | '\n' => cleaned.text.push(character),
            '\u{FEFF}' | '\u{FFFE}' | '\u{FFFF}' => {}
            _ if character.is_control() => cleaned.controls += 1,
            _ => cleaned.text.push(character),
        }
    }
    cleaned
}

/// Returns whether a text may have characters that [`clean`] changes. Looks at bytes, which is fast.
fn needs_cleaning(text: &str) -> bool {
    let bytes = text.as_bytes();
    // U+0080 to U+009F begin with 0xC2; the byte order mark, U+FFFE and U+FFFF with 0xEF.
    bytes.iter().any(|byte| (*byte < 0x20 && *byte != b'\n' && *byte != b'\t') || *byte == 0x7F)
        || bytes.windows(2).any(|pair| pair[0] == 0xC2 && (0x80..=0x9F).contains(&pair[1]))
        || bytes.windows(2).any(|pair| pair[0] == 0xEF && matches!(pair[1], 0xBB | 0xBF))
}

/// Returns the name of a binary format, by the first bytes of a file.
pub fn binary_format(bytes: &[u8]) -> Option<&'static str> {
    const SIGNATURES: [(&[u8], &str); 13] = [
        (b"%PDF-", "a PDF"),
        (b"PK\x03\x04", "a ZIP archive or an Office document"),
        (b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1", "an Office document of before 2007"),
        (b"\x1F\x8B", "a gzip archive"),
        (b"7z\xBC\xAF\x27\x1C", "a 7z archive"),
        (b"Rar!\x1A\x07", "a RAR archive"),
        (b"\x89PNG\r\n\x1A\n", "a PNG image"),
        (b"\xFF\xD8\xFF", "a JPEG image"),
        (b"GIF87a", "a GIF image"),
        (b"GIF89a", "a GIF image"),
        (b"\x7FELF", "a program"),
        (b"SQLite format 3\0", "a SQLite database"),
        (b"{\\rtf", "a document in Rich Text Format"),
    ];
    SIGNATURES.iter().find(|(signature, _)| bytes.starts_with(signature)).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, order: ByteOrder, mark: &[u8]) -> Vec<u8> {
        let bytes = text.encode_utf16().flat_map(|unit| match order {
            ByteOrder::Little => unit.to_le_bytes(),
            ByteOrder::Big => unit.to_be_bytes(),
        });
        mark.iter().copied().chain(bytes).collect()
    }

    #[test]
    fn the_encodings_of_the_service_are_decoded() {
        for text in ["plain", "naïve café\nsecond line", "你好，世界。\n第二行", "🙂 x", "Привет, мир"]
        {
            let expected = Ok(text.to_owned());
            assert_eq!(decode(text.as_bytes().to_vec()), expected);
            assert_eq!(decode([UTF8_MARK, text.as_bytes()].concat()), expected);
            assert_eq!(decode(utf16(text, ByteOrder::Little, UTF16_LITTLE_MARK)), expected);
            assert_eq!(decode(utf16(text, ByteOrder::Big, UTF16_BIG_MARK)), expected);
            assert_eq!(decode(utf16(text, ByteOrder::Little, &[])), expected, "without a mark");
            assert_eq!(decode(utf16(text, ByteOrder::Big, &[])), expected, "without a mark");
        }
    }

    #[test]
    fn a_long_text_in_utf16_without_a_mark_is_recognized_wherever_its_sample_ends() {
        let text = format!("x{}", "🙂\n🙂🙂".repeat(40_000));

        assert_eq!(decode(utf16(&text, ByteOrder::Little, &[])), Ok(text));
    }

    #[test]
    fn other_encodings_are_rejected_with_the_position() {
        for (bytes, part) in [
            (b"caf\xE9".as_slice(), "the byte 0xE9 at position 3 is not valid UTF-8. Save it as UTF-8."),
            (b"\x83\x65\x83\x58\x83\x67", "the byte 0x83 at position 0"),
            (b"cut: \xE4\xBD", "the byte 0xE4 at position 5"),
            (b"\xFF\xFE\0\0a\0\0\0", "it is UTF-32"),
            (b"\xFF\xFEa\0b", "odd number of bytes"),
            (b"\x89PNG\r\n\x1A\n", "it is not text but a PNG image"),
            (b"%PDF-1.7\n", "it is not text but a PDF"),
        ] {
            let Rejected { is_unsupported, message } = decode(bytes.to_vec()).unwrap_err();
            assert!(message.contains(part), "{message}");
            assert!(message.starts_with("The file could not be parsed because ") && !is_unsupported);
        }
    }

    #[test]
    fn line_breaks_are_unified_and_control_characters_are_removed() {
        assert_eq!(decode(b"a\r\nb\rc\x0Cd\0\x1B[1me\tf".to_vec()), Ok("a\nb\nc\nd[1me\tf".to_owned()));
        assert_eq!(decode("a\u{85}b\u{FEFF}c\u{9F}\u{FFFE}".as_bytes().to_vec()), Ok("a\nbc".to_owned()));
        assert_eq!(decode("é\u{2028}\u{A0}ÿ".as_bytes().to_vec()), Ok("é\u{2028}\u{A0}ÿ".to_owned()));
    }

    #[test]
    fn a_binary_file_that_happens_to_be_valid_utf8_is_rejected() {
        let bytes: Vec<u8> = (0..32_u8).cycle().take(1_000).collect();

        assert!(decode(bytes).unwrap_err().message.contains("control characters"));
    }

    proptest::proptest! {
        #[test]
        fn decoded_texts_are_clean(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            if let Ok(text) = decode(bytes) {
                let is_clean = |character: char| matches!(character, '\t' | '\n') || !character.is_control();
                proptest::prop_assert!(text.chars().all(is_clean));
            }
        }
    }
}
