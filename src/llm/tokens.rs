//! How many tokens a prompt has, before a model counts them.
//!
//! Models differ in their tokenizers; OpenAI's newest stands for all of them. For other families it is some percent off
//! in either direction, which is why a prompt is given less than a whole window.

use serde_json::Value;

use super::{ChatMessage, ChatRequest};

/// What a chat template adds to each message: its role and its ends.
const TEMPLATE_TOKENS: usize = 4;
/// What one picture costs, whatever its size: what OpenAI's models take for a large one.
const PICTURE_TOKENS: usize = 1_100;

/// Size of the slices in which long texts are counted, in bytes: between two, the work can be cancelled.
const SLICE_BYTES: usize = 16 * 1024;
/// Texts up to this size are counted exactly by [`estimate`], in bytes.
const EXACT_BYTES: usize = 64 * 1024;

/// What came of counting up to a maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// So many tokens.
    Tokens(usize),
    /// More than the maximum; the rest was not counted.
    MoreThanMax,
    /// The work was cancelled.
    Cancelled,
}

/// Tokens of a text. The first call in a process loads the tokenizer, which takes a fraction of a second.
#[must_use]
pub fn count(text: &str) -> usize {
    tiktoken_rs::o200k_base_singleton().encode_ordinary(text).len()
}

/// Tokens of a text, counted in slices: it ends early when there are more than `max`, or when it is cancelled.
///
/// A slice ends at white space near its place, so that the sum is the count of the whole but for a few tokens.
#[must_use]
pub fn count_up_to(text: &str, max: usize, is_cancelled: &dyn Fn() -> bool) -> Counted {
    let mut total = 0;
    let mut rest = text;
    while !rest.is_empty() {
        if rest.len() < text.len() && is_cancelled() || rest.len() > SLICE_BYTES && is_cancelled() {
            return Counted::Cancelled;
        }
        let (slice, behind) = rest.split_at(slice_end(rest));
        total += count(slice);
        if total > max {
            return Counted::MoreThanMax;
        }
        rest = behind;
    }
    Counted::Tokens(total)
}

/// Where the first slice of a text ends: before white space where there is some, and between characters.
fn slice_end(text: &str) -> usize {
    if text.len() <= SLICE_BYTES {
        return text.len();
    }
    let end = text.floor_char_boundary(SLICE_BYTES);
    let from = text.floor_char_boundary(SLICE_BYTES / 2);
    text[from..end].rfind(char::is_whitespace).map_or(end, |at| from + at)
}

/// Tokens of a text, exact up to 64 KiB; of a longer one, slices of that size in all are counted and scaled, so that the
/// time is bounded.
#[must_use]
pub fn estimate(text: &str) -> usize {
    if text.len() <= EXACT_BYTES {
        return count(text);
    }
    let slices = EXACT_BYTES / SLICE_BYTES;
    let (mut counted, mut bytes) = (0, 0);
    for slice in 0..slices {
        let from = text.floor_char_boundary(text.len() / slices * slice);
        let to = text.floor_char_boundary((from + SLICE_BYTES).min(text.len()));
        counted += count(&text[from..to]);
        bytes += to - from;
    }
    // Far below the largest number: a prompt is bounded in bytes.
    counted.saturating_mul(text.len()) / bytes.max(1)
}

/// The texts of a message, and how many tokens its pictures and the template add.
fn texts(message: &ChatMessage) -> (Vec<std::borrow::Cow<'_, str>>, usize) {
    let mut texts: Vec<std::borrow::Cow<'_, str>> = Vec::new();
    let mut added = TEMPLATE_TOKENS;
    match &message.content {
        Value::String(text) => texts.push(text.into()),
        Value::Array(parts) => {
            for part in parts {
                match part["text"].as_str() {
                    Some(text) => texts.push(text.into()),
                    None => added += PICTURE_TOKENS,
                }
            }
        }
        _ => {}
    }
    texts.extend(message.tool_calls.iter().map(|call| call.to_string().into()));
    (texts, added)
}

/// Tokens of a message, with what the template adds.
#[must_use]
pub fn count_message(message: &ChatMessage) -> usize {
    let (texts, added) = texts(message);
    added + texts.iter().map(|text| count(text)).sum::<usize>()
}

/// As [`count_message`], but it ends early when there are more than `max`, or when it is cancelled.
#[must_use]
pub fn count_message_up_to(message: &ChatMessage, max: usize, is_cancelled: &dyn Fn() -> bool) -> Counted {
    let (texts, added) = texts(message);
    let mut total = added;
    for text in &texts {
        match count_up_to(text, max.saturating_sub(total), is_cancelled) {
            Counted::Tokens(tokens) => total += tokens,
            other => return other,
        }
    }
    if total > max { Counted::MoreThanMax } else { Counted::Tokens(total) }
}

/// As [`count_message`], in bounded time; see [`estimate`].
#[must_use]
pub fn estimate_message(message: &ChatMessage) -> usize {
    let (texts, added) = texts(message);
    added + texts.iter().map(|text| estimate(text)).sum::<usize>()
}

/// Tokens of what stands in every prompt beside its messages: the tools.
#[must_use]
pub fn count_tools(request: &ChatRequest) -> usize {
    request.tools.iter().map(|tool| count(&tool.to_string())).sum()
}

/// Tokens of a whole prompt.
#[must_use]
pub fn count_request(request: &ChatRequest) -> usize {
    request.messages.iter().map(count_message).sum::<usize>() + count_tools(request)
}

/// An upper bound of a message's tokens that needs no tokenizer: no text has more tokens than bytes.
#[must_use]
pub fn message_at_most(message: &ChatMessage) -> usize {
    let (texts, added) = texts(message);
    added + texts.iter().map(|text| text.len()).sum::<usize>()
}

/// An upper bound of a prompt's tokens that needs no tokenizer.
#[must_use]
pub fn at_most(request: &ChatRequest) -> usize {
    request.messages.iter().map(message_at_most).sum::<usize>()
        + request.tools.iter().map(|tool| tool.to_string().len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_counted_as_its_tokenizer_does() {
        assert_eq!(count("Hello, world!"), 4);
        assert_eq!(count(""), 0);
    }

    #[test]
    fn slices_add_up_to_nearly_the_whole() {
        let text = "The quick brown fox jumps over the lazy dog. ".repeat(2_000);
        let whole = count(&text);

        let Counted::Tokens(sliced) = count_up_to(&text, usize::MAX, &|| false) else { panic!("nothing cancels it") };
        assert!(sliced.abs_diff(whole) <= text.len() / SLICE_BYTES + 1, "{sliced} of {whole}");
        assert!(estimate(&text).abs_diff(whole) < whole / 50, "{} of {whole}", estimate(&text));
    }

    #[test]
    fn counting_stops_at_its_maximum_and_when_it_is_cancelled() {
        let text = "word ".repeat(100_000);

        assert_eq!(count_up_to(&text, 10, &|| false), Counted::MoreThanMax);
        assert_eq!(count_up_to(&text, usize::MAX, &|| true), Counted::Cancelled);
    }

    #[test]
    fn the_upper_bound_is_never_below_the_count() {
        for text in ["a", "Grüße aus Köln", "\u{1F600}\u{1F600}", "{\"a\": [1, 2, 3]}", "     "] {
            let message = ChatMessage::new("user", Value::String(text.to_owned()));
            let request = ChatRequest { messages: vec![message.clone()], ..ChatRequest::default() };

            assert!(count_message(&message) <= at_most(&request), "{text}");
        }
    }
}
