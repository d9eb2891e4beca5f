//! Counts tokens. Pure.
//!
//! Models have different tokenizers; we use OpenAI's newest for all of them. For other model families, the count is a few
//! percent too high or too low, so a prompt must not fill the whole context window.
//!
//! Texts are counted in slices, so that counting can stop early: at a maximum, or when the caller is cancelled.
//! [`at_most`] is cheap; [`estimate`] and [`PromptSample`] take bounded time.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::{Map, Value};

use super::{ChatMessage, ChatRequest};

/// Tokens that a chat template adds to each message: its role and its delimiters.
const TEMPLATE_TOKENS: usize = 4;
/// Tokens of one image of any size: the count of OpenAI's models for a large one.
const IMAGE_TOKENS: usize = 1_100;
/// Length of the slices that are counted at a time, in bytes. Counting one takes a few milliseconds.
const SLICE_BYTES: usize = 16 * 1024;
/// Longest text that [`estimate`] counts as a whole, in bytes.
const ESTIMATE_BYTES_MAX: usize = 64 * 1024;
/// Maximum size of a [`PromptSample`], in bytes: one is in memory for each answer that streams.
const SAMPLE_BYTES_MAX: usize = 8 * 1024;
/// Number of pieces of a text that is sampled.
const SAMPLE_PIECES: usize = 16;

/// The result of a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// The number of tokens; at most the maximum.
    Tokens(usize),
    /// There are more tokens than this maximum.
    MoreThan(usize),
    /// The caller was cancelled.
    Cancelled,
}

/// Counts the tokens of a text up to `max`. Calls `is_cancelled` before each slice of 16 KB.
///
/// The first call in a process loads the tokenizer, which takes a fraction of a second. A slice ends between two words
/// if possible; otherwise its end may add a token to the count.
#[must_use]
pub fn count_up_to(text: &str, max: usize, is_cancelled: &dyn Fn() -> bool) -> Counted {
    count_texts_up_to(0, std::iter::once(Cow::Borrowed(text)), max, is_cancelled)
}

/// Counts the tokens of a message, including the chat template, like [`count_up_to`].
#[must_use]
pub fn count_message_up_to(message: &ChatMessage, max: usize, is_cancelled: &dyn Fn() -> bool) -> Counted {
    count_texts_up_to(overhead(message), texts(message), max, is_cancelled)
}

/// Counts the tokens of tool definitions, like [`count_up_to`].
#[must_use]
pub fn count_tools_up_to(tools: &[Value], max: usize, is_cancelled: &dyn Fn() -> bool) -> Counted {
    count_texts_up_to(0, tools.iter().map(|tool| Cow::Owned(tool.to_string())), max, is_cancelled)
}

fn count_texts_up_to<'a>(
    overhead: usize,
    texts: impl Iterator<Item = Cow<'a, str>>,
    max: usize,
    is_cancelled: &dyn Fn() -> bool,
) -> Counted {
    let mut total = overhead;
    for text in texts {
        let mut rest: &str = &text;
        while !rest.is_empty() && total <= max {
            if is_cancelled() {
                return Counted::Cancelled;
            }
            let (slice, after) = rest.split_at(slice_end(rest));
            total += count_slice(slice);
            rest = after;
        }
    }
    if total <= max { Counted::Tokens(total) } else { Counted::MoreThan(max) }
}

fn count_slice(text: &str) -> usize {
    tiktoken_rs::o200k_base_singleton().encode_ordinary(text).len()
}

/// Returns the end of the first slice of a text. Prefers a single space between two words: the tokenizer joins it with
/// the second word, so that the count does not change.
fn slice_end(text: &str) -> usize {
    if text.len() <= SLICE_BYTES {
        return text.len();
    }
    let end = text.floor_char_boundary(SLICE_BYTES);
    let bytes = text.as_bytes();
    let is_between_words = |index: &usize| {
        bytes[*index] == b' ' && !bytes[index - 1].is_ascii_whitespace() && !bytes[index + 1].is_ascii_whitespace()
    };
    (end / 2..end).rev().find(is_between_words).unwrap_or(end)
}

/// Returns an upper bound on the tokens of a message, from its length: no text has more tokens than bytes.
#[must_use]
pub fn at_most(message: &ChatMessage) -> usize {
    let content = match &message.content {
        Value::String(text) => text.len(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).map(str::len).sum(),
        _ => 0,
    };
    let members = message.tool_calls.iter().chain(message.members.values());
    overhead(message) + content + members.map(json_bytes).sum::<usize>()
}

/// Returns an upper bound on the tokens of tool definitions, from their length.
#[must_use]
pub fn tools_at_most(tools: &[Value]) -> usize {
    tools.iter().map(json_bytes).sum()
}

/// Returns the tokens of a message in addition to its texts: the template and the images.
fn overhead(message: &ChatMessage) -> usize {
    let images = match &message.content {
        Value::Array(parts) => parts.iter().filter(|part| !part["text"].is_string()).count(),
        _ => 0,
    };
    TEMPLATE_TOKENS + images * IMAGE_TOKENS
}

/// Returns the texts of a message, including tool calls.
fn texts(message: &ChatMessage) -> impl Iterator<Item = Cow<'_, str>> {
    let parts = match &message.content {
        Value::Array(parts) => parts.as_slice(),
        _ => &[],
    };
    let parts = parts.iter().filter_map(|part| part["text"].as_str());
    let content = message.content.as_str().into_iter().chain(parts).map(Cow::Borrowed);
    let members = message.tool_calls.iter().chain(message.members.values());
    content.chain(members.map(|member| Cow::Owned(member.to_string())))
}

/// Returns the length of a value as JSON, in bytes.
#[must_use]
pub fn json_bytes(value: &Value) -> usize {
    struct Length(usize);
    impl std::io::Write for Length {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut length = Length(0);
    // Neither the value nor the writer can fail.
    let _ = serde_json::to_writer(&mut length, value);
    length.0
}

/// Estimates the tokens of a text, in bounded time: counts up to 64 KB as a whole, and evenly spread pieces of a longer
/// text, of that size in total.
#[must_use]
pub fn estimate(text: &str) -> usize {
    if text.len() <= ESTIMATE_BYTES_MAX {
        return count_whole(text);
    }
    let pieces = sample_ranges(text.len(), ESTIMATE_BYTES_MAX).map(|range| piece(text, range));
    let (tokens, bytes) =
        pieces.fold((0, 0), |(tokens, bytes), piece| (tokens + count_whole(piece), bytes + piece.len()));
    scale(tokens, bytes, text.len())
}

fn count_whole(text: &str) -> usize {
    match count_up_to(text, usize::MAX, &|| false) {
        Counted::Tokens(tokens) | Counted::MoreThan(tokens) => tokens,
        Counted::Cancelled => 0,
    }
}

/// A sample of a prompt that is small enough to stay in memory while the answer streams.
///
/// Servers report the tokens of a prompt at the end of the answer, or never. In the second case, we use
/// [`PromptSample::estimate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptSample {
    /// The texts of a short prompt, or evenly spread pieces of a longer one.
    pieces: Vec<String>,
    /// Length of all texts of the prompt, in bytes.
    text_bytes: usize,
    /// Tokens of the prompt in addition to its texts.
    overhead: usize,
}

impl PromptSample {
    /// Copies up to 8 KB of a prompt.
    #[must_use]
    pub fn new(request: &ChatRequest) -> Self {
        let overhead = request.messages.iter().map(overhead).sum();
        let at_most = request.messages.iter().map(at_most).sum::<usize>() + tools_at_most(&request.tools);
        let text_bytes = at_most - overhead;
        let tools = request.tools.iter().map(|tool| Cow::Owned(tool.to_string()));
        Self::of_texts(request.messages.iter().flat_map(texts).chain(tools), text_bytes, overhead)
    }

    /// Copies up to 8 KB of the prompt of a forwarded request: its messages and tools, or the input of embeddings.
    #[must_use]
    pub fn of_forwarded(request: &Map<String, Value>) -> Self {
        let list = |name: &str| request.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut overhead = 0;
        let mut prompt: Vec<Cow<'_, str>> = Vec::new();
        for message in list("messages") {
            overhead += TEMPLATE_TOKENS;
            prompt.extend(message["content"].as_str().map(Cow::Borrowed));
            for part in message["content"].as_array().into_iter().flatten() {
                match part["text"].as_str() {
                    Some(text) => prompt.push(Cow::Borrowed(text)),
                    None => overhead += IMAGE_TOKENS,
                }
            }
            prompt.extend(message.get("tool_calls").map(|calls| Cow::Owned(calls.to_string())));
        }
        prompt.extend(list("tools").iter().map(|tool| Cow::Owned(tool.to_string())));
        prompt.extend(request.get("input").and_then(Value::as_str).map(Cow::Borrowed));
        for input in list("input") {
            match input {
                Value::String(text) => prompt.push(Cow::Borrowed(text)),
                Value::Array(tokens) => overhead += tokens.len(),
                // A token.
                _ => overhead += 1,
            }
        }
        let text_bytes = prompt.iter().map(|text| text.len()).sum();
        Self::of_texts(prompt.into_iter(), text_bytes, overhead)
    }

    fn of_texts<'a>(texts: impl Iterator<Item = Cow<'a, str>>, text_bytes: usize, overhead: usize) -> Self {
        let mut sample = Self { pieces: Vec::new(), text_bytes, overhead };
        let mut start = 0;
        for text in texts {
            sample.add(&text, start);
            start += text.len();
        }
        sample
    }

    /// Adds the sampled pieces of a text that starts at byte `start` of the prompt.
    fn add(&mut self, text: &str, start: usize) {
        if self.text_bytes <= SAMPLE_BYTES_MAX {
            self.pieces.push(text.to_owned());
            return;
        }
        for range in sample_ranges(self.text_bytes, SAMPLE_BYTES_MAX) {
            let overlap = range.start.saturating_sub(start)..range.end.saturating_sub(start).min(text.len());
            if overlap.start < overlap.end {
                self.pieces.push(piece(text, overlap).to_owned());
            }
        }
    }

    /// Estimates the prompt's tokens: exactly if the prompt has at most 8 KB.
    #[must_use]
    pub fn estimate(&self) -> usize {
        let tokens = self.pieces.iter().map(|piece| count_whole(piece)).sum();
        let bytes = self.pieces.iter().map(String::len).sum();
        self.overhead + scale(tokens, bytes, self.text_bytes)
    }
}

/// Returns evenly spread ranges of `total` bytes, with `sample` bytes in total; `sample` must be less than `total`.
fn sample_ranges(total: usize, sample: usize) -> impl Iterator<Item = Range<usize>> {
    let length = sample / SAMPLE_PIECES;
    let last_start = total - length;
    (0..SAMPLE_PIECES).map(move |index| {
        let start = last_start / (SAMPLE_PIECES - 1) * index;
        start..start + length
    })
}

/// Returns the characters of a text that are completely in a range of bytes.
fn piece(text: &str, range: Range<usize>) -> &str {
    let start = text.ceil_char_boundary(range.start);
    &text[start..text.floor_char_boundary(range.end).max(start)]
}

/// Scales the tokens of a sample of `bytes` to `total` bytes.
fn scale(tokens: usize, bytes: usize, total: usize) -> usize {
    if bytes == total { tokens } else { tokens.saturating_mul(total) / bytes.max(1) }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde_json::json;

    use super::*;
    use crate::llm::ChatRole;

    fn message(text: &str) -> ChatMessage {
        ChatMessage::new(ChatRole::User, Value::String(text.to_owned()))
    }

    fn exact(text: &str) -> usize {
        count_slice(text)
    }

    #[test]
    fn a_text_is_counted_by_the_tokenizer() {
        assert_eq!(count_up_to("Hello, world!", 4, &|| false), Counted::Tokens(4));
        assert_eq!(count_up_to("", 0, &|| false), Counted::Tokens(0));
    }

    #[test]
    fn slices_do_not_change_the_count_of_prose() {
        let text = "The quick brown fox, at 12.50 Euro; Grüße aus Köln! ".repeat(2_000);
        assert!(text.len() > 4 * SLICE_BYTES);

        assert_eq!(count_up_to(&text, usize::MAX, &|| false), Counted::Tokens(exact(&text)));
    }

    #[test]
    fn a_text_without_spaces_is_counted_in_slices() {
        let text = "語".repeat(SLICE_BYTES);
        let Counted::Tokens(tokens) = count_up_to(&text, usize::MAX, &|| false) else { panic!("not counted") };

        assert!(tokens.abs_diff(exact(&text)) <= 2 * text.len() / SLICE_BYTES, "{tokens}");
    }

    #[test]
    fn a_count_stops_after_the_slice_that_passes_the_maximum() {
        let slices = Cell::new(0);
        let count = |max: usize| {
            slices.set(0);
            let is_cancelled = || {
                slices.set(slices.get() + 1);
                false
            };
            count_up_to(&"word ".repeat(100_000), max, &is_cancelled)
        };

        assert_eq!(count(10), Counted::MoreThan(10));
        assert_eq!(slices.get(), 1);
        assert!(matches!(count(usize::MAX), Counted::Tokens(100_000..)));
        assert!(slices.get() >= 500_000 / SLICE_BYTES);
    }

    #[test]
    fn a_cancelled_count_stops_before_the_next_slice() {
        let slices = Cell::new(0);
        let is_cancelled = || {
            slices.set(slices.get() + 1);
            slices.get() == 3
        };

        assert_eq!(count_up_to(&"word ".repeat(100_000), usize::MAX, &is_cancelled), Counted::Cancelled);
        assert_eq!(slices.get(), 3);
    }

    #[test]
    fn the_upper_bound_is_never_below_the_count() {
        for text in ["a", "Grüße aus Köln", "\u{1F600}\u{1F600}", "{\"a\": [1, 2, 3]}", "     "] {
            let mut message = message(text);
            message.tool_calls.push(json!({"function": {"name": text}}));
            let bound = at_most(&message);

            assert!(matches!(count_message_up_to(&message, bound, &|| false), Counted::Tokens(_)), "{text}");
        }
    }

    #[test]
    fn an_estimate_is_exact_for_short_texts_and_close_for_long_ones() {
        let short = "one two three ".repeat(100);
        let long = (0..60_000).map(|number| format!("{number} bottles")).collect::<Vec<_>>().join("\n");
        assert!(long.len() > 10 * ESTIMATE_BYTES_MAX);

        assert_eq!(estimate(&short), exact(&short));
        let (estimated, counted) = (estimate(&long), exact(&long));
        assert!(estimated.abs_diff(counted) < counted / 20, "{estimated} is not about {counted}");
    }

    #[test]
    fn an_estimate_of_a_very_long_text_counts_a_part_of_it() {
        let text = "\u{1F600}".repeat(10_000_000);

        let before = std::time::Instant::now();
        let estimated = estimate(&text);

        assert!(before.elapsed() < std::time::Duration::from_secs(5));
        assert!(estimated > 5_000_000, "{estimated}");
    }

    #[test]
    fn a_sample_of_a_prompt_is_exact_for_short_prompts_and_small_and_close_for_long_ones() {
        let request = |texts: &[&str]| ChatRequest {
            messages: texts.iter().map(|text| message(text)).collect(),
            tools: vec![json!({"type": "function", "function": {"name": "f"}})],
            ..ChatRequest::default()
        };
        let counted = |request: &ChatRequest| {
            let messages: usize =
                request.messages.iter().map(|message| 4 + exact(message.content.as_str().unwrap())).sum();
            messages + exact(&request.tools[0].to_string())
        };
        let short = request(&["Hello", "How are you?"]);
        let prose = "The quick brown fox jumps over the lazy dog. ".repeat(1_000);
        let long = request(&[&prose, "short", &prose, &prose]);

        assert_eq!(PromptSample::new(&short).estimate(), counted(&short));
        let sample = PromptSample::new(&long);
        assert!(sample.pieces.iter().map(String::len).sum::<usize>() <= SAMPLE_BYTES_MAX);
        assert!(sample.estimate().abs_diff(counted(&long)) < counted(&long) / 10, "{}", sample.estimate());
    }
}
