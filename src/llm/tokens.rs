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

/// Tokens of a text. The first call in a process loads the tokenizer, which takes a fraction of a second.
#[must_use]
pub fn count(text: &str) -> usize {
    tiktoken_rs::o200k_base_singleton().encode_ordinary(text).len()
}

/// Tokens of a message, with what the template adds.
#[must_use]
pub fn count_message(message: &ChatMessage) -> usize {
    let content: usize = match &message.content {
        Value::String(text) => count(text),
        Value::Array(parts) => parts.iter().map(|part| part["text"].as_str().map_or(PICTURE_TOKENS, count)).sum(),
        _ => 0,
    };
    TEMPLATE_TOKENS + content + message.tool_calls.iter().map(|call| count(&call.to_string())).sum::<usize>()
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

/// A bound that costs nothing: no text has more tokens than bytes.
#[must_use]
pub fn at_most(request: &ChatRequest) -> usize {
    let message = |message: &ChatMessage| {
        let content = match &message.content {
            Value::String(text) => text.len(),
            Value::Array(parts) => {
                parts.iter().map(|part| part["text"].as_str().map_or(PICTURE_TOKENS, str::len)).sum()
            }
            _ => 0,
        };
        TEMPLATE_TOKENS + content + message.tool_calls.iter().map(|call| call.to_string().len()).sum::<usize>()
    };
    request.messages.iter().map(message).sum::<usize>()
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
    fn the_bound_that_costs_nothing_is_never_below_the_count() {
        for text in ["a", "Grüße aus Köln", "\u{1F600}\u{1F600}", "{\"a\": [1, 2, 3]}", "     "] {
            let message = ChatMessage::new("user", Value::String(text.to_owned()));
            let request = ChatRequest { messages: vec![message.clone()], ..ChatRequest::default() };

            assert!(count_message(&message) <= at_most(&request), "{text}");
        }
    }
}
