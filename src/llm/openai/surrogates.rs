//! Joins surrogate pairs that a server splits across two events. Pure.
//!
//! JSON encodes a character outside the basic plane as two escapes. Some servers send one escape at the end of an event
//! and the other at the start of the next; neither event is valid JSON on its own.

/// Length of `\u0000`, in bytes.
const ESCAPE_BYTES: usize = 6;

/// Joins surrogate pairs that are split across events.
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
        let mut rest = event;
        while let Some(start) = rest.find('\\') {
            let (before, escape) = rest.split_at(start);
            joined.push_str(before);
            let Some(unit) = code_unit(escape) else {
                // Every other escape has one character after its backslash.
                let end = 1 + escape[1..].chars().next().map_or(0, char::len_utf8);
                joined.push_str(&escape[..end]);
                rest = &escape[end..];
                continue;
            };
            let (this, after) = escape.split_at(ESCAPE_BYTES);
            rest = after;
            match unit {
                0xD800..=0xDBFF => match code_unit(after) {
                    Some(0xDC00..=0xDFFF) => {
                        joined.push_str(this);
                        joined.push_str(&after[..ESCAPE_BYTES]);
                        rest = &after[ESCAPE_BYTES..];
                    }
                    _ => self.high = Some(this.to_owned()),
                },
                0xDC00..=0xDFFF => match self.high.take() {
                    Some(high) => {
                        joined.push_str(&high);
                        joined.push_str(this);
                    }
                    None => joined.push_str("\\ufffd"),
                },
                _ => joined.push_str(this),
            }
        }
        joined.push_str(rest);
        joined
    }
}

/// Returns the UTF-16 code unit that `text` starts with, if it starts with a `\u` escape.
fn code_unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    u16::from_str_radix(digits, 16).ok()
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
}
