//! Surrogate escapes in JSON texts. JSON escapes a character outside of the Basic Multilingual Plane as a pair, such as
//! `\ud83d\ude00`; parsers reject one half without the other.

/// Length of `\u0000`, in bytes.
const ESCAPE_BYTES: usize = 6;
/// The escape of U+FFFD, the replacement character. It is as long as the escape that it replaces.
const REPLACEMENT: &str = "\\ufffd";

/// Joins surrogate pairs that a server splits across two events of a stream: one escape at the end of an event, and the other
/// at the start of the next. Neither event is valid JSON on its own.
#[derive(Debug, Default)]
pub struct SurrogateJoiner {
    /// The high surrogate at the end of the last event, as its escape.
    high: Option<String>,
}

impl SurrogateJoiner {
    /// Returns the event with complete characters only.
    ///
    /// A high surrogate is stored until the next event, which has the low one. A low surrogate without a high one becomes
    /// U+FFFD.
    pub fn push(&mut self, event: &str) -> String {
        let mut joined = String::with_capacity(event.len());
        let mut copied = 0;
        while let Some((start, half)) = next_lone_surrogate(event.as_bytes(), copied) {
            let end = start + ESCAPE_BYTES;
            joined.push_str(&event[copied..start]);
            copied = end;
            match half {
                Half::High => self.high = Some(event[start..end].to_owned()),
                Half::Low => match self.high.take() {
                    Some(high) => {
                        joined.push_str(&high);
                        joined.push_str(&event[start..end]);
                    }
                    None => joined.push_str(REPLACEMENT),
                },
            }
        }
        joined.push_str(&event[copied..]);
        joined
    }
}

/// Replaces each lone surrogate escape with the escape of U+FFFD, in place. Returns whether there was one.
pub fn replace_lone_surrogates(text: &mut [u8]) -> bool {
    let mut checked = 0;
    while let Some((start, _)) = next_lone_surrogate(text, checked) {
        checked = start + ESCAPE_BYTES;
        text[start..checked].copy_from_slice(REPLACEMENT.as_bytes());
    }
    checked > 0
}

/// One half of a surrogate pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    High,
    Low,
}

impl Half {
    /// Returns the half that `text` starts with, if it starts with the escape of one.
    fn of(text: &[u8]) -> Option<Self> {
        match code_unit(text)? {
            0xD800..=0xDBFF => Some(Self::High),
            0xDC00..=0xDFFF => Some(Self::Low),
            _ => None,
        }
    }
}

/// Returns the start of the first surrogate escape at or after `from` that is not part of a pair. `from` is not inside of
/// an escape.
fn next_lone_surrogate(text: &[u8], from: usize) -> Option<(usize, Half)> {
    let mut at = from;
    loop {
        let start = at + text.get(at..)?.iter().position(|byte| *byte == b'\\')?;
        let escape = &text[start..];
        let next = escape.get(ESCAPE_BYTES..).and_then(Half::of);
        at = match (Half::of(escape), next) {
            (Some(Half::High), Some(Half::Low)) => start + 2 * ESCAPE_BYTES,
            (Some(half), _) => return Some((start, half)),
            // In any other escape, only the character after the backslash can be a backslash.
            (None, _) => start + 2,
        };
    }
}

/// Returns the UTF-16 code unit that `text` starts with, if it starts with a `\u` escape.
fn code_unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_pair_is_joined_and_a_lone_surrogate_is_replaced() {
        let mut joiner = SurrogateJoiner::default();

        assert_eq!(joiner.push(r#""a\"\ud83d""#), r#""a\"""#);
        assert_eq!(joiner.push(r#""\ude00 \ud83d\ude00""#), r#""\ud83d\ude00 \ud83d\ude00""#);
        assert_eq!(joiner.push(r#""\ude00\\ud83d""#), r#""\ufffd\\ud83d""#);
    }

    #[test]
    fn lone_surrogates_are_replaced_in_place() {
        let replaced = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            let is_changed = replace_lone_surrogates(&mut bytes);
            (String::from_utf8(bytes).unwrap(), is_changed)
        };

        for (text, expected) in [
            (r#"{"a\ud83d": "b\ude00c"}"#, r#"{"a\ufffd": "b\ufffdc"}"#),
            (r#""\ud83d\ud83d\ude00\ude00""#, r#""\ufffd\ud83d\ude00\ufffd""#),
            (r#""\\\uD83D\n""#, r#""\\\ufffd\n""#),
            (r#""\ud83d"#, r#""\ufffd"#),
        ] {
            assert_eq!(replaced(text), (expected.to_owned(), true), "{text}");
        }
        for text in [r#""\ud83d\ude00 \\ud83d \u0041 \ud8""#, r#""\u""#, r#""\"#, "\"\u{1F600}\"", ""] {
            assert_eq!(replaced(text), (text.to_owned(), false), "{text}");
        }
    }
}
