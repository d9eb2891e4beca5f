//! Reads completion chunks and whole completions. Pure.
//!
//! Servers differ in what they send: a member of an unexpected type is an absent member, and never fails the answer.

use serde_json::{Map, Value};

use super::report::Report;
use crate::api::run::FinishReason;
use crate::api::usage::{CompletionTokensDetails, PromptTokenDetails, Usage};
use crate::llm::lenient::{integer, number};
use crate::llm::{CallPiece, ChatDelta};

/// Members of a message that are read, or that are not part of an answer. All others are sent back to the model.
const KNOWN_MEMBERS: [&str; 8] =
    ["role", "content", "refusal", "tool_calls", "function_call", "audio", "annotations", "index"];
/// Members of a tool call that are read.
const KNOWN_CALL_MEMBERS: [&str; 6] = ["index", "id", "type", "function", "name", "arguments"];

/// What one chunk adds to the answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chunk {
    /// The deltas, in order. A finish reason is not among them.
    pub deltas: Vec<ChatDelta>,
    /// Why the answer ended.
    pub finish: Option<Finish>,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The answer ended well, or at a limit.
    Known(FinishReason),
    /// The server or the model failed.
    Failed(String),
    /// A reason that we do not know, which proves nothing.
    Unknown(String),
}

/// Reads a chunk of a stream, or a whole completion.
///
/// # Errors
/// An error that the server reports.
pub fn read(value: Value) -> Result<Chunk, Report> {
    if let Some(report) = Report::in_answer(&value) {
        return Err(report);
    }
    let mut chunk = Chunk::default();
    let Value::Object(mut members) = value else { return Ok(chunk) };
    let choices = match members.remove("choices") {
        Some(Value::Array(choices)) => choices,
        Some(choice @ Value::Object(_)) => vec![choice],
        _ => Vec::new(),
    };
    for choice in choices {
        let Value::Object(mut choice) = choice else { continue };
        if choice.get("index").and_then(integer).is_some_and(|index| index > 0) {
            continue;
        }
        let message = ["delta", "message"].iter().find_map(|name| match choice.remove(*name) {
            Some(Value::Object(message)) => Some(message),
            _ => None,
        });
        if let Some(message) = message {
            read_message(message, &mut chunk.deltas);
        } else if let Some(text) = choice.get("text").and_then(Value::as_str).filter(|text| !text.is_empty()) {
            chunk.deltas.push(ChatDelta::Text(text.to_owned()));
        }
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str).filter(|reason| !reason.is_empty()) {
            chunk.finish = Some(finish(reason));
        }
    }
    chunk.deltas.extend(members.get("usage").and_then(usage).map(ChatDelta::Usage));
    Ok(chunk)
}

fn read_message(mut message: Map<String, Value>, deltas: &mut Vec<ChatDelta>) {
    let is_set = |text: &String| !text.is_empty();
    deltas.extend(message.remove("content").map(content_text).filter(is_set).map(ChatDelta::Text));
    if let Some(Value::String(refusal)) = message.remove("refusal").filter(|refusal| *refusal != "") {
        deltas.push(ChatDelta::Refusal(refusal));
    }
    let calls = match message.remove("tool_calls") {
        Some(Value::Array(calls)) => calls,
        Some(call @ Value::Object(_)) => vec![call],
        _ => Vec::new(),
    };
    deltas.extend(calls.into_iter().filter_map(read_call).map(ChatDelta::Call));
    if let Some(function @ Value::Object(_)) = message.remove("function_call") {
        // The older form, of which an answer has at most one.
        let piece = read_call(Value::Object(Map::from_iter([("function".to_owned(), function)])));
        deltas.extend(piece.map(|piece| ChatDelta::Call(CallPiece { index: Some(0), ..piece })));
    }
    message.retain(|name, value| !KNOWN_MEMBERS.contains(&name.as_str()) && !is_empty(value));
    deltas.extend(message.into_iter().map(|(name, value)| ChatDelta::Member(name, value)));
}

/// Reads a piece of a call. Some servers write the members of `function` beside it.
fn read_call(call: Value) -> Option<CallPiece> {
    let Value::Object(mut call) = call else { return None };
    let mut function = match call.remove("function") {
        Some(Value::Object(function)) => function,
        _ => Map::new(),
    };
    let mut take = |name: &str| function.remove(name).or_else(|| call.remove(name)).filter(|value| !value.is_null());
    let name = take("name").and_then(|name| name.as_str().map(str::to_owned)).filter(|name| !name.trim().is_empty());
    let arguments = match take("arguments") {
        None => String::new(),
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
    };
    let id = match call.get("id") {
        Some(Value::String(id)) if !id.is_empty() => Some(id.clone()),
        Some(id @ Value::Number(_)) => Some(id.to_string()),
        _ => None,
    };
    let index = call.get("index").and_then(integer).and_then(|index| u32::try_from(index).ok());
    let is_call = name.is_some() || id.is_some() || index.is_some() || !arguments.is_empty();
    call.retain(|name, value| !KNOWN_CALL_MEMBERS.contains(&name.as_str()) && !is_empty(value));
    function.retain(|_, value| !is_empty(value));
    if !function.is_empty() {
        call.insert("function".to_owned(), Value::Object(function));
    }
    (is_call || !call.is_empty()).then_some(CallPiece { index, id, name, arguments, members: call })
}

/// Returns the text of a message's content: a string, a list of parts, or one part.
fn content_text(content: Value) -> String {
    let text = |part: &Value| part.as_str().or_else(|| part["text"].as_str()).map(str::to_owned);
    match content {
        Value::String(text) => text,
        Value::Array(parts) => parts.iter().filter_map(text).collect(),
        part => text(&part).unwrap_or_default(),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Reads a finish reason, in the words of OpenAI, Anthropic, Gemini, Mistral and others.
fn finish(reason: &str) -> Finish {
    match reason.trim().to_lowercase().replace('-', "_").as_str() {
        "stop" | "tool_calls" | "tool_call" | "function_call" | "tool_use" | "end_turn" | "stop_sequence" | "eos"
        | "eos_token" | "end" | "complete" | "completed" | "finish" | "finished" | "done" => {
            Finish::Known(FinishReason::Stop)
        }
        "length"
        | "max_tokens"
        | "max_length"
        | "model_length"
        | "max_output_tokens"
        | "max_completion_tokens"
        | "token_limit"
        | "context_length"
        | "context_length_exceeded"
        | "model_context_window_exceeded" => Finish::Known(FinishReason::Length),
        "content_filter"
        | "content_filtered"
        | "safety"
        | "refusal"
        | "sensitive"
        | "recitation"
        | "blocklist"
        | "prohibited_content"
        | "spii"
        | "image_safety"
        | "guardrail_intervened" => Finish::Known(FinishReason::ContentFilter),
        "error"
        | "abort"
        | "aborted"
        | "cancel"
        | "cancelled"
        | "canceled"
        | "failed"
        | "failure"
        | "timeout"
        | "network_error"
        | "server_error"
        | "insufficient_system_resource"
        | "malformed_function_call" => Finish::Failed(reason.to_owned()),
        _ => Finish::Unknown(reason.to_owned()),
    }
}

/// Reads the token counts. A usage has both counts, and a prompt has at least one token; all else is not a usage.
fn usage(usage: &Value) -> Option<Usage> {
    let count = |names: [&str; 2]| names.iter().find_map(|name| tokens(&usage[*name]));
    let prompt_tokens = count(["prompt_tokens", "input_tokens"]).filter(|tokens| *tokens > 0)?;
    let completion_tokens = count(["completion_tokens", "output_tokens"])?;
    let total_tokens = tokens(&usage["total_tokens"]).unwrap_or(0).max(prompt_tokens.saturating_add(completion_tokens));
    let cached_tokens = tokens(&usage["prompt_tokens_details"]["cached_tokens"]).unwrap_or(0);
    let reasoning_tokens = tokens(&usage["completion_tokens_details"]["reasoning_tokens"]).unwrap_or(0);
    Some(Usage {
        prompt_tokens,
        completion_tokens,
        total_tokens,
        prompt_token_details: PromptTokenDetails { cached_tokens },
        completion_tokens_details: CompletionTokensDetails { reasoning_tokens },
    })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast from float saturates")]
fn tokens(count: &Value) -> Option<u32> {
    number(count).filter(|count| *count >= 0.0).map(|count| count as u32)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deltas(chunk: Value) -> Vec<ChatDelta> {
        read(chunk).unwrap().deltas
    }

    /// The deltas of a chunk with this delta.
    #[expect(clippy::needless_pass_by_value, reason = "called with json!")]
    fn of(delta: Value) -> Vec<ChatDelta> {
        deltas(json!({"choices": [{"index": 0, "delta": delta}]}))
    }

    fn text(text: &str) -> ChatDelta {
        ChatDelta::Text(text.to_owned())
    }

    #[test]
    fn a_chunk_yields_its_text_its_finish_reason_and_its_usage() {
        let chunk = read(json!({"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}}));

        let usage = Usage {
            prompt_tokens: 3,
            completion_tokens: 4,
            total_tokens: 7,
            prompt_token_details: PromptTokenDetails { cached_tokens: 2 },
            ..Usage::default()
        };
        let deltas = vec![text("hi"), ChatDelta::Usage(usage)];
        assert_eq!(chunk, Ok(Chunk { deltas, finish: Some(Finish::Known(FinishReason::Length)) }));
    }

    #[test]
    fn members_of_unexpected_types_are_absent() {
        for odd in [
            json!({"choices": [{"index": null, "delta": {"content": [{"type": "text", "text": "hi"}]}}], "usage": null}),
            json!({"choices": [{"index": "0", "delta": {"content": "hi", "refusal": false, "tool_calls": 7}}], "usage": "none"}),
            json!({"choices": [{"index": -1, "delta": {"content": "hi", "tool_calls": [1, null]}, "finish_reason": 4}]}),
            json!({"choices": {"message": {"content": {"text": "hi"}, "role": 3}}, "created": "x", "id": []}),
        ] {
            assert_eq!(deltas(odd.clone()), [text("hi")], "{odd}");
        }
        for nothing in
            [json!(1), json!("x"), json!([]), json!({"choices": 3}), json!({"choices": [null, {"delta": []}]})]
        {
            assert_eq!(read(nothing.clone()), Ok(Chunk::default()), "{nothing}");
        }
    }

    #[test]
    fn a_usage_without_both_counts_is_not_a_usage() {
        let none = [
            json!({}),
            json!({"total_tokens": 0, "total_characters": 0}),
            json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}),
            json!({"prompt_tokens": null, "completion_tokens": null, "total_tokens": 5}),
            json!({"prompt_tokens": 5.0, "completion_tokens": null}),
            json!({"prompt_tokens": -1, "completion_tokens": 4}),
            json!([5, 6]),
        ];
        for usage in none {
            assert_eq!(deltas(json!({"usage": usage})), [], "{usage}");
        }
        let usage = Usage { prompt_tokens: 5, completion_tokens: 2, total_tokens: 7, ..Usage::default() };
        for written in
            [json!({"prompt_tokens": 5.0, "completion_tokens": "2"}), json!({"input_tokens": 5, "output_tokens": 2})]
        {
            assert_eq!(deltas(json!({"usage": written})), [ChatDelta::Usage(usage)], "{written}");
        }
    }

    #[test]
    fn a_call_is_read_in_each_form() {
        let call = |index: Option<u32>, id: Option<&str>| {
            ChatDelta::Call(CallPiece {
                index,
                id: id.map(str::to_owned),
                name: Some("f".to_owned()),
                arguments: "{}".to_owned(),
                members: Map::new(),
            })
        };
        let function = json!({"name": "f", "arguments": "{}"});
        for (written, expected) in [
            (json!([{"index": -1, "id": "a", "function": function}]), call(None, Some("a"))),
            (json!([{"index": "0", "id": 7, "function": function}]), call(Some(0), Some("7"))),
            (json!([{"index": 0.0, "function": function, "type": 3}]), call(Some(0), None)),
            (json!({"index": 1, "function": {"name": "f", "arguments": {}}}), call(Some(1), None)),
            (json!([{"index": 0, "name": "f", "arguments": "{}"}]), call(Some(0), None)),
        ] {
            assert_eq!(of(json!({"tool_calls": written})), [expected], "{written}");
        }
        assert_eq!(of(json!({"function_call": function})), [call(Some(0), None)]);
    }

    #[test]
    fn unknown_members_of_a_message_and_of_a_call_are_kept() {
        let signature = json!({"google": {"thought_signature": "s"}});
        let deltas =
            of(json!({"role": "assistant", "content": null, "reasoning_content": "Hm", "audio": null, "extra": [],
            "tool_calls": [{"index": 0, "extra_content": signature, "function": {"hint": 1}}]}));

        let members =
            Map::from_iter([("extra_content".to_owned(), signature), ("function".to_owned(), json!({"hint": 1}))]);
        let piece = CallPiece { index: Some(0), members, ..CallPiece::default() };
        let reasoning = ChatDelta::Member("reasoning_content".to_owned(), json!("Hm"));
        assert_eq!(deltas, [ChatDelta::Call(piece), reasoning]);
    }

    #[test]
    fn finish_reasons_are_good_a_limit_a_failure_or_unknown() {
        assert_eq!(finish("STOP"), Finish::Known(FinishReason::Stop));
        assert_eq!(finish("model_length"), Finish::Known(FinishReason::Length));
        assert_eq!(finish("SAFETY"), Finish::Known(FinishReason::ContentFilter));
        assert_eq!(finish("insufficient_system_resource"), Finish::Failed("insufficient_system_resource".to_owned()));
        assert_eq!(finish("other"), Finish::Unknown("other".to_owned()));
    }

    #[test]
    fn other_choices_and_empty_texts_are_ignored() {
        let chunk = json!({"choices": [{"index": 1, "delta": {"content": "no"}}, {"delta": {"role": "assistant", "content": ""}}]});

        assert_eq!(deltas(chunk), []);
    }
}
