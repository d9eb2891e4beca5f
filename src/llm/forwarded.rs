//! Reads the usage of a response while it is forwarded. Pure.
//!
//! The response is forwarded as it arrives. Only the chunk with the usage is removed from a stream whose client did not
//! ask for it.

use bytes::{Bytes, BytesMut};
use serde_json::Value;

use super::openai::{embeddings_usage, usage};
use super::sse::Parser;
use super::{Endpoint, tokens};
use crate::api::usage::Usage;

/// Maximum size of a member of a JSON response that is read, in bytes. A longer one is read up to here.
const MEMBER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Maximum size of the part of an answer's text from which its tokens are estimated, in bytes.
const SAMPLE_BYTES_MAX: usize = 64 * 1024;
/// The members of an answer or of its changes that contain written text.
const TEXT_MEMBERS: [&str; 5] = ["content", "refusal", "reasoning_content", "reasoning", "tool_calls"];

/// Reads the usage of one response.
#[derive(Debug)]
pub struct UsageReader {
    endpoint: Endpoint,
    form: Form,
    usage: Option<Usage>,
    written: Written,
}

#[derive(Debug)]
enum Form {
    Events {
        parser: Parser,
        /// Whether the whole stream was read, or cannot be read any further.
        has_ended: bool,
        /// The events from which the usage is removed; `None`: nothing is removed.
        held: Option<HeldEvent>,
    },
    Json(Members),
}

/// The text that the model has written.
#[derive(Debug, Clone, Default)]
pub struct Written {
    /// The start of the text.
    sample: String,
    /// Length of the whole text, in bytes.
    bytes: usize,
}

impl Written {
    fn push(&mut self, text: &str) {
        self.bytes += text.len();
        let room = SAMPLE_BYTES_MAX.saturating_sub(self.sample.len());
        self.sample.push_str(&text[..text.floor_char_boundary(room)]);
    }

    /// Adds the texts of a message, or of a change of it.
    fn push_message(&mut self, message: &Value) {
        for member in TEXT_MEMBERS {
            match &message[member] {
                Value::String(text) => self.push(text),
                Value::Array(calls) => calls.iter().for_each(|call| self.push_call(call)),
                _ => {}
            }
        }
    }

    fn push_call(&mut self, call: &Value) {
        for member in ["name", "arguments"] {
            self.push(call["function"][member].as_str().unwrap_or_default());
        }
        self.push(call["text"].as_str().unwrap_or_default());
    }

    /// Estimates the tokens of the text, in bounded time.
    #[must_use]
    pub fn estimate(&self) -> usize {
        let tokens = tokens::estimate(&self.sample);
        if self.bytes == self.sample.len() { tokens } else { tokens * self.bytes / self.sample.len().max(1) }
    }
}

impl UsageReader {
    /// Creates the reader of an event stream. If `hides_usage` is set, the chunk that has only the usage is removed.
    #[must_use]
    pub fn of_stream(endpoint: Endpoint, hides_usage: bool) -> Self {
        let held = hides_usage.then(HeldEvent::default);
        let form = Form::Events { parser: Parser::default(), has_ended: false, held };
        Self { endpoint, form, usage: None, written: Written::default() }
    }

    /// Creates the reader of a JSON object.
    #[must_use]
    pub fn of_json(endpoint: Endpoint) -> Self {
        Self { endpoint, form: Form::Json(Members::default()), usage: None, written: Written::default() }
    }

    /// Reads the next bytes. Returns the bytes to forward now.
    pub fn push(&mut self, bytes: Bytes) -> Bytes {
        match &mut self.form {
            Form::Json(members) => {
                members.push(&bytes);
                bytes
            }
            Form::Events { parser, has_ended, held } => {
                match parser.push(&bytes) {
                    Ok(events) => {
                        for event in events {
                            *has_ended |= event.data == "[DONE]";
                            let Ok(chunk) = serde_json::from_str::<Value>(&event.data) else { continue };
                            self.usage = usage(&chunk["usage"]).or(self.usage);
                            for choice in chunk["choices"].as_array().into_iter().flatten() {
                                self.written.push_message(&choice["delta"]);
                                self.written.push_message(&choice["message"]);
                            }
                        }
                    }
                    Err(_) => *has_ended = true,
                }
                match held {
                    None => bytes,
                    Some(held) => {
                        let complete = held.push(&bytes);
                        if *has_ended { [complete, held.take()].concat().into() } else { complete }
                    }
                }
            }
        }
    }

    /// Returns the bytes that were not forwarded yet, after the end of the response.
    pub fn end(&mut self) -> Bytes {
        match &mut self.form {
            Form::Events { held: Some(held), .. } => held.take(),
            Form::Events { held: None, .. } => Bytes::new(),
            Form::Json(members) => {
                let read = |json: &[u8]| serde_json::from_slice::<Value>(json).unwrap_or_default();
                let reported = read(&members.usage);
                self.usage = match self.endpoint {
                    Endpoint::ChatCompletions => usage(&reported),
                    Endpoint::Embeddings => embeddings_usage(&reported),
                };
                for choice in read(&members.choices).as_array().into_iter().flatten() {
                    self.written.push_message(&choice["message"]);
                }
                Bytes::new()
            }
        }
    }

    /// Returns whether a stream has sent its end marker.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.form, Form::Events { has_ended: true, .. })
    }

    /// Returns the usage that the server has reported so far.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Returns the text so far.
    #[must_use]
    pub fn written(&self) -> &Written {
        &self.written
    }

    /// Returns whether the model has written anything.
    #[must_use]
    pub fn has_content(&self) -> bool {
        self.usage.is_some() || self.written.bytes > 0
    }
}

/// Splits a stream into its events, without changing their bytes, and removes those that have only the usage.
#[derive(Debug, Default)]
struct HeldEvent {
    /// The bytes of the current, incomplete event.
    bytes: BytesMut,
    /// The number of these bytes that were scanned.
    scanned: usize,
    /// Whether the current line is empty so far.
    is_line_empty: bool,
    /// Whether the last scanned byte was a carriage return; a line feed may follow.
    after_return: bool,
}

impl HeldEvent {
    fn push(&mut self, bytes: &[u8]) -> Bytes {
        self.bytes.extend_from_slice(bytes);
        let mut complete = BytesMut::new();
        while let Some(byte) = self.bytes.get(self.scanned).copied() {
            self.scanned += 1;
            let is_second_half = self.after_return && byte == b'\n';
            self.after_return = byte == b'\r';
            if is_second_half {
                continue;
            }
            if !matches!(byte, b'\n' | b'\r') {
                self.is_line_empty = false;
                continue;
            }
            if self.is_line_empty {
                // The line feed after a carriage return belongs to the same line.
                if byte == b'\r' && self.bytes.get(self.scanned) == Some(&b'\n') {
                    self.scanned += 1;
                    self.after_return = false;
                }
                let event = self.bytes.split_to(self.scanned);
                self.scanned = 0;
                if !has_only_usage(&event) {
                    complete.extend_from_slice(&event);
                }
            }
            self.is_line_empty = true;
        }
        complete.freeze()
    }

    fn take(&mut self) -> Bytes {
        self.scanned = 0;
        let event = self.bytes.split().freeze();
        if has_only_usage(&event) { Bytes::new() } else { event }
    }
}

fn has_only_usage(event: &[u8]) -> bool {
    let mut parser = Parser::default();
    let Ok(events) = parser.push(event) else { return false };
    let last = parser.end();
    let mut events = events.into_iter().chain(last);
    let (Some(event), None) = (events.next(), events.next()) else { return false };
    let Ok(chunk) = serde_json::from_str::<Value>(&event.data) else { return false };
    chunk["usage"].is_object() && chunk["choices"].as_array().is_some_and(Vec::is_empty)
}

/// Extracts two members of a JSON object while it arrives. The other members can be large, and are not in memory.
#[derive(Debug, Default)]
struct Members {
    usage: Vec<u8>,
    choices: Vec<u8>,
    depth: usize,
    is_text: bool,
    is_escaped: bool,
    /// The last text at the first level: the name of the member, before its value.
    text: Vec<u8>,
    current: Option<Member>,
}

#[derive(Debug, Clone, Copy)]
enum Member {
    Usage,
    Choices,
}

impl Members {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.push_byte(*byte);
        }
    }

    fn push_byte(&mut self, byte: u8) {
        let is_first_level = self.depth == 1 && !self.is_text;
        if is_first_level && matches!(byte, b',' | b'}') {
            self.current = None;
        }
        match self.current {
            Some(Member::Usage) if self.usage.len() < MEMBER_BYTES_MAX => self.usage.push(byte),
            Some(Member::Choices) if self.choices.len() < MEMBER_BYTES_MAX => self.choices.push(byte),
            Some(_) | None => {}
        }
        if self.is_text {
            let was_escaped = std::mem::take(&mut self.is_escaped);
            match byte {
                b'"' if !was_escaped => self.is_text = false,
                b'\\' if !was_escaped => self.is_escaped = true,
                _ => {}
            }
            if self.is_text && self.depth == 1 && self.text.len() <= "choices".len() {
                self.text.push(byte);
            }
            return;
        }
        match byte {
            b'"' => {
                self.is_text = true;
                self.text.clear();
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b':' if is_first_level && self.current.is_none() => {
                self.current = match self.text.as_slice() {
                    b"usage" => Some(Member::Usage),
                    b"choices" => Some(Member::Choices),
                    _ => None,
                };
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n\
        : comment\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\r\n\r\n\
        data: {\"choices\":[]}\r\rdata: [DONE]\n";
    const WITHOUT_USAGE: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n: comment\n\n\
        data: {\"choices\":[]}\r\rdata: [DONE]\n";

    fn read(mut reader: UsageReader, text: &str, cuts: &[usize]) -> (String, Option<Usage>, usize) {
        let mut forwarded = Vec::new();
        let mut start = 0;
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).chain([text.len()]).collect();
        cuts.sort_unstable();
        for cut in cuts {
            forwarded.extend_from_slice(&reader.push(Bytes::copy_from_slice(&text.as_bytes()[start..cut])));
            start = cut;
        }
        forwarded.extend_from_slice(&reader.end());
        (String::from_utf8(forwarded).unwrap(), reader.usage(), reader.written().bytes)
    }

    proptest! {
        #[test]
        fn only_the_chunk_with_the_usage_is_removed_wherever_the_bytes_are_split(
            cuts in prop::collection::vec(0_usize..400, 0..12),
        ) {
            let hiding = UsageReader::of_stream(Endpoint::ChatCompletions, true);
            let (forwarded, usage, bytes) = read(hiding, STREAM, &cuts);
            // A carriage return and its line feed may have been split.
            prop_assert_eq!(forwarded.trim_start_matches('\n').replace("\n\n\ndata", "\n\ndata"), WITHOUT_USAGE);
            prop_assert_eq!((usage.unwrap().prompt_tokens, bytes), (7, 2));

            let (forwarded, usage, _) = read(UsageReader::of_stream(Endpoint::ChatCompletions, false), STREAM, &cuts);
            prop_assert_eq!(forwarded, STREAM);
            prop_assert_eq!(usage.unwrap().completion_tokens, 2);
        }

        #[test]
        fn the_usage_of_an_object_is_found_wherever_the_bytes_are_split(
            cuts in prop::collection::vec(0_usize..400, 0..12),
        ) {
            let message = json!({"content": "a \"usage\": {1} \\", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]});
            let body = json!({"data": [{"usage": [1, 2]}], "x": "usage", "choices": [{"message": message}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 1}}});
            let (forwarded, usage, bytes) = read(UsageReader::of_json(Endpoint::ChatCompletions), &body.to_string(), &cuts);
            prop_assert_eq!(forwarded, body.to_string());
            prop_assert_eq!(usage.unwrap(), Usage {
                prompt_token_details: crate::api::usage::PromptTokenDetails { cached_tokens: 1 },
                ..Usage::counted(3, 4)
            });
            prop_assert_eq!(bytes, "a \"usage\": {1} \\".len() + "f{}".len());
        }
    }

    #[test]
    fn the_usage_of_embeddings_has_no_completion_tokens() {
        let body = json!({"object": "list", "usage": {"prompt_tokens": 5, "total_tokens": 5}}).to_string();

        let (_, usage, _) = read(UsageReader::of_json(Endpoint::Embeddings), &body, &[]);

        assert_eq!(usage, Some(Usage::counted(5, 0)));
    }

    #[test]
    fn a_long_text_is_estimated_from_its_start() {
        let mut written = Written::default();
        for _ in 0..4 {
            written.push(&"word ".repeat(SAMPLE_BYTES_MAX / 5));
        }

        let whole = tokens::estimate(&"word ".repeat(SAMPLE_BYTES_MAX / 5)) * 4;
        assert!(written.estimate().abs_diff(whole) < whole / 50, "{} {whole}", written.estimate());
        assert!(written.sample.len() <= SAMPLE_BYTES_MAX);
    }
}
