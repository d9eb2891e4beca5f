//! Parses completion chunks and whole completions. Pure, and lenient, because servers differ in the fields that they send.

use serde::Deserialize;
use serde_json::Value;

use super::ERROR_CHARS_MAX;
use super::surrogates::SurrogateJoiner;
use crate::api::run::FinishReason;
use crate::api::usage::{CompletionTokensDetails, PromptTokenDetails, Usage};
use crate::llm::{CallPiece, ChatDelta};

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<ChunkUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    index: Option<u32>,
    /// Present in a stream.
    delta: Option<ChunkMessage>,
    /// Present in a whole completion.
    message: Option<ChunkMessage>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct ChunkMessage {
    /// A string; some servers send a list of parts.
    content: Option<Value>,
    refusal: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    index: Option<u32>,
    id: Option<String>,
    function: Option<FunctionDelta>,
}

#[derive(Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    /// A string; some servers send the object itself.
    arguments: Option<Value>,
}

impl From<CallDelta> for CallPiece {
    fn from(delta: CallDelta) -> Self {
        let (name, arguments) = delta.function.map_or((None, None), |function| (function.name, function.arguments));
        let is_set = |text: &String| !text.is_empty();
        Self {
            index: delta.index,
            id: delta.id.filter(is_set),
            name: name.filter(is_set),
            arguments: match arguments {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => text,
                Some(other) => other.to_string(),
            },
        }
    }
}

/// Token counts as servers send them: integers, floats, null, or absent. An invalid count must not fail the answer.
#[derive(Deserialize)]
struct ChunkUsage {
    #[serde(default)]
    prompt_tokens: Value,
    #[serde(default)]
    completion_tokens: Value,
    #[serde(default)]
    total_tokens: Value,
    #[serde(default)]
    prompt_tokens_details: Value,
    #[serde(default)]
    completion_tokens_details: Value,
}

impl From<ChunkUsage> for Usage {
    fn from(usage: ChunkUsage) -> Self {
        let (prompt, completion) = (token_count(&usage.prompt_tokens), token_count(&usage.completion_tokens));
        let total = if usage.total_tokens.is_number() {
            token_count(&usage.total_tokens)
        } else {
            prompt.saturating_add(completion)
        };
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: total,
            prompt_token_details: PromptTokenDetails {
                cached_tokens: token_count(&usage.prompt_tokens_details["cached_tokens"]),
            },
            completion_tokens_details: CompletionTokensDetails {
                reasoning_tokens: token_count(&usage.completion_tokens_details["reasoning_tokens"]),
            },
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast from float saturates")]
fn token_count(number: &Value) -> u32 {
    number.as_f64().unwrap_or(0.0) as u32
}

/// Returns the text of a message's content, in either of its forms.
fn content_text(content: Value) -> String {
    match content {
        Value::String(text) => text,
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

/// Returns the deltas of one event of a stream.
///
/// # Errors
/// For an event that is not a chunk, and for an error that the server reports. The text follows the server's name.
pub fn parse_chunk(event: &str, surrogates: &mut SurrogateJoiner) -> Result<Vec<ChatDelta>, String> {
    let chunk: Chunk = serde_json::from_str(event)
        .or_else(|_| serde_json::from_str(&surrogates.push(event)))
        .map_err(|error| format!("sent an event that is not a completion chunk: {error}"))?;
    if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
        let text = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
        let text: String = text.chars().take(ERROR_CHARS_MAX).collect();
        return Err(format!("failed during its answer: {text}"));
    }
    let mut deltas = Vec::new();
    for choice in chunk.choices.into_iter().flatten().filter(|choice| choice.index.unwrap_or(0) == 0) {
        if let Some(message) = choice.delta.or(choice.message) {
            deltas.extend(message.content.map(content_text).filter(|text| !text.is_empty()).map(ChatDelta::Text));
            deltas.extend(message.refusal.filter(|text| !text.is_empty()).map(ChatDelta::Refusal));
            deltas.extend(message.tool_calls.into_iter().flatten().map(|call| ChatDelta::Call(call.into())));
        }
        deltas.extend(choice.finish_reason.map(|reason| {
            ChatDelta::Finish(match reason.as_str() {
                "length" => FinishReason::Length,
                "content_filter" => FinishReason::ContentFilter,
                _ => FinishReason::Stop,
            })
        }));
    }
    deltas.extend(chunk.usage.map(|usage| ChatDelta::Usage(usage.into())));
    Ok(deltas)
}

/// Returns the deltas of a whole completion, from a server that does not stream.
///
/// # Errors
/// As [`parse_chunk`], and for JSON that is not a completion.
pub fn parse_completion(text: &str) -> Result<Vec<ChatDelta>, String> {
    let deltas = parse_chunk(text, &mut SurrogateJoiner::default())?;
    if deltas.is_empty() { Err("answered with something other than a completion".to_owned()) } else { Ok(deltas) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(event: &str) -> Result<Vec<ChatDelta>, String> {
        parse_chunk(event, &mut SurrogateJoiner::default())
    }

    #[test]
    fn a_chunk_yields_its_text_its_finish_reason_and_its_usage() {
        let chunk = r#"{"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"length"}],
            "usage":{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}}"#;

        let usage = Usage {
            prompt_tokens: 3,
            completion_tokens: 4,
            total_tokens: 7,
            prompt_token_details: PromptTokenDetails { cached_tokens: 2 },
            ..Usage::default()
        };
        assert_eq!(
            parse(chunk),
            Ok(vec![ChatDelta::Text("hi".into()), ChatDelta::Finish(FinishReason::Length), ChatDelta::Usage(usage)])
        );
    }

    #[test]
    fn a_character_split_across_two_chunks_is_joined() {
        let mut surrogates = SurrogateJoiner::default();
        let event = |text: &str| format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}"#);
        let mut texts = |text: &str| parse_chunk(&event(text), &mut surrogates).unwrap();

        assert_eq!(texts(r#"a\"\ud83d"#), [ChatDelta::Text("a\"".into())]);
        assert_eq!(texts(r"\ude00 \ud83d\ude00"), [ChatDelta::Text("\u{1F600} \u{1F600}".into())]);
        assert_eq!(texts(r"\ude00\\ud83d"), [ChatDelta::Text("\u{FFFD}\\ud83d".into())]);
    }

    #[test]
    fn unusual_types_do_not_fail_the_answer() {
        let odd = [
            r#"{"choices":[{"index":null,"delta":{"content":[{"type":"text","text":"hi"}]}}],"usage":null}"#,
            r#"{"choices":[{"delta":{"content":"hi"}}],"usage":{"completion_tokens":null,"prompt_tokens":5.0}}"#,
        ];
        for chunk in odd {
            assert_eq!(parse(chunk).unwrap()[0], ChatDelta::Text("hi".into()), "{chunk}");
        }
        let usage = parse(r#"{"choices":null,"usage":{"completion_tokens":null,"prompt_tokens":5.0}}"#).unwrap();
        let expected = Usage { prompt_tokens: 5, total_tokens: 5, ..Usage::default() };
        assert_eq!(usage, [ChatDelta::Usage(expected)]);
    }

    #[test]
    fn an_error_in_the_stream_is_returned_with_its_text() {
        let error = parse(r#"{"error":{"message":"out of memory"}}"#).unwrap_err();

        assert_eq!(error, "failed during its answer: out of memory");
    }

    #[test]
    fn other_choices_and_empty_texts_are_ignored() {
        let chunk = r#"{"choices":[{"index":1,"delta":{"content":"no"}},{"delta":{"role":"assistant","content":""}}]}"#;

        assert_eq!(parse(chunk), Ok(Vec::new()));
    }

    #[test]
    fn json_that_is_not_a_completion_is_an_error() {
        assert!(parse_completion("{}").is_err());
    }
}
