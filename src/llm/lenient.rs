//! Reads JSON that is almost valid. Pure.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// Finds the ends of the values in a JSON text, byte by byte.
#[derive(Debug, Clone, Default)]
pub struct Scanner {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Scanner {
    /// Whether the next byte is inside a string.
    #[must_use]
    pub fn in_string(&self) -> bool {
        self.in_string
    }

    /// Scans the next byte. Returns whether it ends an object, an array or a string that is not inside another value.
    pub fn push(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => {
                    self.in_string = false;
                    return self.depth == 0;
                }
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// Parses a JSON text. Repairs invalid syntax that some servers send: raw control characters in strings are escaped,
/// and values such as `NaN` become null. Returns `None` if the text is still invalid.
#[must_use]
pub fn parse(text: &str) -> Option<Value> {
    let parsed = serde_json::from_str(text).ok();
    parsed.or_else(|| {
        let is_structure = text.trim_start().starts_with(['{', '[']);
        is_structure.then(|| serde_json::from_str(&with_null_words(&escaped(text))).ok()).flatten()
    })
}

/// Escapes raw control characters in the strings of a JSON text that arrives in pieces.
#[derive(Debug, Clone, Default)]
pub struct Escaper {
    scanner: Scanner,
}

impl Escaper {
    /// Returns the next piece with its control characters escaped.
    pub fn push(&mut self, piece: &str) -> String {
        let mut escaped = String::with_capacity(piece.len());
        for character in piece.chars() {
            let in_string = self.scanner.in_string();
            if character.is_ascii() {
                self.scanner.push(character as u8);
            }
            if in_string {
                push_escaped(&mut escaped, character);
            } else {
                escaped.push(character);
            }
        }
        escaped
    }
}

/// Appends a character of a string.
fn push_escaped(text: &mut String, character: char) {
    match character {
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        '\t' => text.push_str("\\t"),
        control if control < ' ' => {
            let _ = write!(text, "\\u{:04x}", control as u32);
        }
        other => text.push(other),
    }
}

/// Escapes raw control characters in the strings of a JSON text.
fn escaped(text: &str) -> String {
    Escaper::default().push(text)
}

/// Replaces words outside of strings that are not JSON with null.
fn with_null_words(text: &str) -> String {
    let mut scanner = Scanner::default();
    let mut replaced = String::with_capacity(text.len());
    let mut word = String::new();
    for character in text.chars() {
        let in_string = scanner.in_string();
        if character.is_ascii() {
            scanner.push(character as u8);
        }
        if in_string {
            replaced.push(character);
        } else if character.is_whitespace() || matches!(character, '{' | '}' | '[' | ']' | ',' | ':' | '"') {
            push_word(&mut replaced, &mut word);
            replaced.push(character);
        } else {
            word.push(character);
        }
    }
    push_word(&mut replaced, &mut word);
    replaced
}

fn push_word(text: &mut String, word: &mut String) {
    if !word.is_empty() {
        text.push_str(if serde_json::from_str::<Value>(word).is_ok() { word } else { "null" });
        word.clear();
    }
}

/// Reads a number, also one that is written as a string.
#[must_use]
pub fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.trim().parse().ok()).filter(|number: &f64| number.is_finite())
}

/// Reads an integer, also one that is written as a float or a string.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a cast from float saturates")]
pub fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| number(value).map(|number| number as i64))
}

/// Returns the arguments of a function call as a JSON object if the text is valid or can be repaired unambiguously.
/// Otherwise returns the text unchanged, and the client decides.
///
/// Repairs an absent or null text; an empty object before the object; the same object twice; an object in a string
/// or in a Markdown code block; raw control characters in strings. For a function that takes no arguments, also repairs
/// `[]` and `""`.
#[must_use]
pub fn arguments(text: &str, takes_arguments: bool) -> String {
    let trimmed = text.trim();
    let is_nothing = matches!(trimmed, "" | "null") || (!takes_arguments && matches!(trimmed, "[]" | "\"\""));
    if is_nothing {
        return "{}".to_owned();
    }
    if is_object(trimmed) {
        return text.to_owned();
    }
    one_object(trimmed)
        .or_else(|| one_object(code_block(trimmed)?))
        .or_else(|| object_in_string(trimmed))
        .or_else(|| one_object(&escaped(trimmed)))
        .unwrap_or_else(|| text.to_owned())
}

fn is_object(text: &str) -> bool {
    serde_json::from_str::<Map<String, Value>>(text).is_ok()
}

/// Returns the object of a text that contains several values, if all others are empty objects or repetitions of it.
fn one_object(text: &str) -> Option<String> {
    let mut found: Option<(&str, Map<String, Value>)> = None;
    for part in values(text)? {
        let object: Map<String, Value> = serde_json::from_str(part).ok()?;
        match &found {
            Some((_, before)) if object == *before || object.is_empty() => {}
            Some((_, before)) if !before.is_empty() => return None,
            Some(_) | None => found = Some((part, object)),
        }
    }
    found.map(|(part, _)| part.to_owned())
}

/// Splits a text into consecutive values. Returns `None` if the last one is not complete.
fn values(text: &str) -> Option<Vec<&str>> {
    let mut scanner = Scanner::default();
    let (mut parts, mut start) = (Vec::new(), 0);
    for (index, byte) in text.bytes().enumerate() {
        if scanner.push(byte) {
            parts.push(text[start..=index].trim());
            start = index + 1;
        }
    }
    text[start..].trim().is_empty().then_some(parts)
}

/// Returns the text of a Markdown code block.
fn code_block(text: &str) -> Option<&str> {
    let (_language, rest) = text.strip_prefix("```")?.split_once('\n')?;
    rest.trim_end().strip_suffix("```").map(str::trim)
}

/// Returns the object in a JSON string that contains one.
fn object_in_string(text: &str) -> Option<String> {
    let inner: Value = serde_json::from_str(text).or_else(|_| serde_json::from_str(&escaped(text))).ok()?;
    let inner = inner.as_str()?.trim();
    if is_object(inner) { Some(inner.to_owned()) } else { one_object(inner).or_else(|| one_object(&escaped(inner))) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_that_are_not_json_are_null_and_control_characters_are_escaped() {
        assert_eq!(
            parse("{\"a\": NaN, \"b\": [-Infinity, 1e400], \"c\": \"x\ty NaN\"}"),
            Some(json!({"a": null, "b": [null, null], "c": "x\ty NaN"}))
        );
        assert_eq!(parse("{\"a\": "), None);
        assert_eq!(parse("not json at all"), None);
    }

    #[test]
    fn unambiguous_arguments_are_repaired() {
        let repaired = [
            ("{}{\"a\":1}", "{\"a\":1}"),
            ("{\"a\":1}{}", "{\"a\":1}"),
            ("{\"a\":1}{\"a\":1}", "{\"a\":1}"),
            ("{\"a\":1}\n{\"a\": 1}\n", "{\"a\":1}"),
            ("\"{\\\"a\\\": 1}\"", "{\"a\": 1}"),
            ("```json\n{\"a\": 1}\n```", "{\"a\": 1}"),
            ("{\"a\":\"x\ny\"}", "{\"a\":\"x\\ny\"}"),
            ("", "{}"),
            ("null", "{}"),
        ];
        for (text, expected) in repaired {
            assert_eq!(arguments(text, true), expected, "{text}");
        }
        assert_eq!((arguments("[]", false), arguments("\"\"", false)), ("{}".to_owned(), "{}".to_owned()));
    }

    #[test]
    fn arguments_that_are_valid_or_ambiguous_are_unchanged() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
        let unchanged = [
            " {\"a\": 1} ",
            "{\"a\":1}{\"b\":2}",
            "{\"a\":",
            "{\"a\":1} and more",
            "[]",
            "\"\"",
            "[1]",
            "{\"a\":\"\\ud83d\"}",
            "{\"a\":1e400}",
            "{'a': 1}",
            deep.as_str(),
        ];
        for text in unchanged {
            assert_eq!(arguments(text, true), text);
        }
    }
}
