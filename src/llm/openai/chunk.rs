//! Reads completion chunks and whole completions. Pure.
//!
//! Servers differ in what they send. A member of an unexpected type is treated as absent, and never fails the answer.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::report::Report;
use crate::api::run::FinishReason;
use crate::api::usage::{CompletionTokensDetails, PromptTokenDetails, Usage};
use crate::llm::lenient::{integer, number};
use crate::llm::{CallPiece, ChatDelta};

/// Members of a message that are read, or that are not part of an answer. All others are sent back to the model.
const KNOWN_MEMBERS: [&str; 9] =
    ["role", "content", "refusal", "tool_calls", "function_call", "audio", "annotations", "index", "finish_reason"];
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
    /// The answer is complete, or reached a limit.
    Known(FinishReason),
    /// The server or the model failed.
    Failed(String),
    /// An unknown reason, which does not prove that the answer is complete.
    Unknown(String),
}

/// A chunk that has text and nothing else, as most chunks do. It is read without a [`Value`], which takes less time.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the members are allowed, and not needed")]
struct PlainChunk<'a> {
    #[serde(default)]
    id: IgnoredAny,
    #[serde(default)]
    object: IgnoredAny,
    #[serde(default)]
    created: IgnoredAny,
    #[serde(default)]
    model: IgnoredAny,
    #[serde(default)]
    system_fingerprint: IgnoredAny,
    #[serde(default)]
    service_tier: IgnoredAny,
    #[serde(borrow)]
    choices: (PlainChoice<'a>,),
    /// Absent or null.
    #[serde(default)]
    usage: (),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the members are allowed, and not needed")]
struct PlainChoice<'a> {
    index: u64,
    #[serde(borrow)]
    delta: PlainDelta<'a>,
    #[serde(default)]
    finish_reason: (),
    #[serde(default)]
    logprobs: (),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the members are allowed, and not needed")]
struct PlainDelta<'a> {
    #[serde(default)]
    role: IgnoredAny,
    #[serde(borrow)]
    content: Cow<'a, str>,
    #[serde(default)]
    refusal: (),
}

/// Facts about the earlier chunks of an answer that are needed to read the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Earlier {
    /// The index of the choice, which the first chunk sets: one choice is requested, and some servers do not call it 0.
    pub index: Option<i64>,
    /// Whether deltas had text, which a whole message after them repeats.
    pub has_text: bool,
    /// Whether deltas had calls.
    pub has_calls: bool,
}

/// Reads a chunk that has text of choice 0 and nothing else; `None` for any other, which [`read`] reads.
#[must_use]
pub fn read_plain(event: &str, earlier: &mut Earlier) -> Option<Chunk> {
    if earlier.index.is_some_and(|index| index != 0) {
        return None;
    }
    let chunk: PlainChunk<'_> = serde_json::from_str(event).ok()?;
    let (choice,) = chunk.choices;
    if choice.index != 0 || choice.delta.content.is_empty() {
        return None;
    }
    *earlier = Earlier { index: Some(0), has_text: true, ..*earlier };
    Some(Chunk { deltas: vec![ChatDelta::Text(choice.delta.content.into_owned())], finish: None })
}

/// Reads a chunk of a stream, or a whole completion.
///
/// # Errors
/// An error that the server reports.
pub fn read(value: Value, earlier: &mut Earlier) -> Result<Chunk, Report> {
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
    let mut usages = vec![members.remove("usage"), members.remove("x_groq").map(|mut x_groq| x_groq["usage"].take())];
    for choice in choices {
        let Value::Object(mut choice) = choice else { continue };
        let this = choice.get("index").and_then(integer).unwrap_or(0).max(0);
        if *earlier.index.get_or_insert(this) != this {
            continue;
        }
        usages.push(choice.remove("usage"));
        read_choice(choice, earlier, &mut chunk);
    }
    if chunk.finish.is_none() {
        chunk.finish = reason(&members);
    }
    let usage = usages.iter().flatten().find_map(usage);
    chunk.deltas.extend(usage.map(ChatDelta::Usage));
    Ok(chunk)
}

fn read_choice(mut choice: Map<String, Value>, earlier: &mut Earlier, chunk: &mut Chunk) {
    if let Some(Value::Object(delta)) = choice.remove("delta") {
        chunk.finish = reason(&delta);
        read_message(delta, &mut chunk.deltas);
        let has = |is: fn(&ChatDelta) -> bool| chunk.deltas.iter().any(is);
        earlier.has_text |= has(|delta| matches!(delta, ChatDelta::Text(_) | ChatDelta::Refusal(_)));
        earlier.has_calls |= has(|delta| matches!(delta, ChatDelta::Call(_)));
    }
    if let Some(Value::Object(message)) = choice.remove("message") {
        chunk.finish = chunk.finish.take().or_else(|| reason(&message));
        let mut deltas = Vec::new();
        read_message(message, &mut deltas);
        deltas.retain(|delta| match delta {
            ChatDelta::Text(_) | ChatDelta::Refusal(_) => !earlier.has_text,
            ChatDelta::Call(_) => !earlier.has_calls,
            ChatDelta::Member(..) => !earlier.has_text && !earlier.has_calls,
            ChatDelta::Hidden(_) | ChatDelta::Finish(_) | ChatDelta::Usage(_) => true,
        });
        chunk.deltas.extend(deltas);
    }
    if let Some(text) = choice.get("text").and_then(Value::as_str).filter(|text| !text.is_empty()) {
        chunk.deltas.push(ChatDelta::Text(text.to_owned()));
    }
    chunk.finish = reason(&choice).or(chunk.finish.take());
    // Calls beside the message.
    let calls = choice.remove("tool_calls").map(|calls| Map::from_iter([("tool_calls".to_owned(), calls)]));
    if let Some(calls) = calls {
        read_message(calls, &mut chunk.deltas);
    }
}

/// Reads the finish reason of an object: a string, or an object with a type.
fn reason(object: &Map<String, Value>) -> Option<Finish> {
    let name = if object.contains_key("finish_reason") { "finish_reason" } else { "stop_reason" };
    let value = object.get(name)?;
    let text = value.as_str().or_else(|| value["type"].as_str()).or_else(|| value["reason"].as_str())?;
    (!text.trim().is_empty()).then(|| finish(text))
}

fn read_message(mut message: Map<String, Value>, deltas: &mut Vec<ChatDelta>) {
    let is_set = |text: &String| !text.is_empty();
    deltas.extend(message.remove("content").map(content_text).filter(is_set).map(ChatDelta::Text));
    if let Some(Value::String(refusal)) = message.remove("refusal").filter(|refusal| *refusal != "") {
        deltas.push(ChatDelta::Refusal(refusal));
    }
    let calls = message.remove("tool_calls").map(calls).unwrap_or_default();
    deltas.extend(calls.into_iter().filter_map(read_call).map(ChatDelta::Call));
    if let Some(function @ Value::Object(_)) = message.remove("function_call") {
        // The older form. An answer has at most one such call.
        let piece = read_call(Value::Object(Map::from_iter([("function".to_owned(), function)])));
        deltas.extend(piece.map(|piece| ChatDelta::Call(CallPiece { index: Some(0), ..piece })));
    }
    // Empty texts stay, because some models require the member in the next request.
    message.retain(|name, value| !KNOWN_MEMBERS.contains(&name.as_str()) && (value == "" || !is_empty(value)));
    deltas.extend(message.into_iter().map(|(name, value)| ChatDelta::Member(name, value)));
}

/// Returns the calls of a `tool_calls` member: a list, one call, an object by index, or one of these as a string.
fn calls(value: Value) -> Vec<Value> {
    match value {
        Value::Array(calls) => {
            calls.into_iter().flat_map(|call| if call.is_array() { self::calls(call) } else { vec![call] }).collect()
        }
        Value::Object(members)
            if ["function", "name", "id", "index"].iter().any(|name| members.contains_key(*name)) =>
        {
            vec![Value::Object(members)]
        }
        Value::Object(members) => members.into_iter().map(|(_, call)| call).collect(),
        Value::String(text) => match serde_json::from_str(&text) {
            Ok(value @ (Value::Array(_) | Value::Object(_))) => calls(value),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// Reads a piece of a call. Some servers write the members of `function` beside it.
fn read_call(call: Value) -> Option<CallPiece> {
    let Value::Object(mut call) = call else { return None };
    let mut function = match call.remove("function") {
        Some(Value::Object(function)) => function,
        Some(name @ Value::String(_)) => Map::from_iter([("name".to_owned(), name)]),
        _ => Map::new(),
    };
    let mut take = |name: &str| function.remove(name).or_else(|| call.remove(name)).filter(|value| !value.is_null());
    let name = take("name").and_then(|name| name.as_str().map(str::to_owned)).filter(|name| !name.trim().is_empty());
    let arguments = match take("arguments").or_else(|| take("parameters")).or_else(|| take("input")) {
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

/// Reads a finish reason of OpenAI, Anthropic, Gemini, Mistral, Cohere and others. An unlisted reason is classified by the
/// words in it.
fn finish(reason: &str) -> Finish {
    const FILTERED: [&str; 12] = [
        "content_filter",
        "safety",
        "refus",
        "sensitive",
        "recitation",
        "blocklist",
        "blocked",
        "prohibit",
        "spii",
        "toxic",
        "guardrail",
        "moderation",
    ];
    const FAILED: [&str; 14] = [
        "error",
        "abort",
        "cancel",
        "fail",
        "timeout",
        "timed_out",
        "insufficient",
        "malformed",
        "unexpected",
        "invalid",
        "function_call_filter",
        "interrupt",
        "language",
        "overload",
    ];
    const LIMITED: [&str; 6] = ["length", "max_", "limit", "exceed", "context_window", "truncat"];
    let lower = reason.trim().to_lowercase().replace(['-', ' '], "_");
    let lower = lower.strip_prefix("finish_reason_").unwrap_or(&lower);
    let lower = lower.strip_suffix(":_stop").unwrap_or(lower);
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    match lower {
        "stop" | "stopped" | "tool_calls" | "tool_call" | "function_call" | "tool_use" | "end_turn"
        | "stop_sequence" | "eos" | "eos_token" | "end" | "complete" | "completed" | "finish" | "finished" | "done" => {
            Finish::Known(FinishReason::Stop)
        }
        "error_limit" => Finish::Known(FinishReason::Length),
        _ if lower.starts_with("function_call_filter") => Finish::Failed(reason.to_owned()),
        _ if has(&FILTERED) => Finish::Known(FinishReason::ContentFilter),
        _ if has(&FAILED) => Finish::Failed(reason.to_owned()),
        _ if has(&LIMITED) => Finish::Known(FinishReason::Length),
        _ => Finish::Unknown(reason.to_owned()),
    }
}

/// Reads the token counts. A usage must have both counts, and a prompt at least one token; anything else is ignored.
#[must_use]
pub fn usage(usage: &Value) -> Option<Usage> {
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

/// Reads the token count of embeddings, which have no completion tokens.
#[must_use]
pub fn embeddings_usage(usage: &Value) -> Option<Usage> {
    let count = |names: [&str; 3]| names.iter().find_map(|name| tokens(&usage[*name]));
    Some(Usage::counted(count(["prompt_tokens", "input_tokens", "total_tokens"])? as usize, 0))
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
        read(chunk, &mut Earlier::default()).unwrap().deltas
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
        let chunk = read(
            json!({"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}}),
            &mut Earlier::default(),
        );

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
            assert_eq!(read(nothing.clone(), &mut Earlier::default()), Ok(Chunk::default()), "{nothing}");
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
    fn unknown_members_of_a_message_and_of_a_call_are_returned() {
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
        for good in ["STOP", "tool_calls", "end_turn", "FINISH_REASON_STOP"] {
            assert_eq!(finish(good), Finish::Known(FinishReason::Stop), "{good}");
        }
        for limit in [
            "length",
            "model_length",
            "MAX_TOKENS",
            "FINISH_REASON_MAX_TOKENS",
            "context_window_exceeded",
            "time_limit",
            "ERROR_LIMIT",
        ] {
            assert_eq!(finish(limit), Finish::Known(FinishReason::Length), "{limit}");
        }
        for filter in
            ["content_filter", "SAFETY", "content_filter: PROHIBITED_CONTENT", "content_filter: OTHER", "ERROR_TOXIC"]
        {
            assert_eq!(finish(filter), Finish::Known(FinishReason::ContentFilter), "{filter}");
        }
        for failure in [
            "error",
            "abort",
            "insufficient_system_resource",
            "function_call_filter: MALFORMED_FUNCTION_CALL",
            "UNEXPECTED_TOOL_CALL",
            "MALFORMED_RESPONSE",
            "USER_CANCEL",
            "network_error",
        ] {
            assert_eq!(finish(failure), Finish::Failed(failure.to_owned()), "{failure}");
        }
        assert_eq!(finish("galaxy"), Finish::Unknown("galaxy".to_owned()));
        let object = json!({"choices": [{"delta": {}, "finish_reason": {"type": "length"}}]});
        assert_eq!(read(object, &mut Earlier::default()).unwrap().finish, Some(Finish::Known(FinishReason::Length)));
    }

    #[test]
    fn usages_and_calls_in_other_places_are_read() {
        let usage = json!({"prompt_tokens": 5, "completion_tokens": 2});
        for chunk in [json!({"choices": [{"delta": {}, "usage": usage}]}), json!({"x_groq": {"usage": usage}})] {
            assert!(matches!(deltas(chunk.clone())[..], [ChatDelta::Usage(_)]), "{chunk}");
        }
        let call = json!({"id": "a", "function": {"name": "f", "parameters": {"a": 1}}});
        for chunk in [
            json!({"choices": [{"delta": {"tool_calls": {"0": call}}}]}),
            json!({"choices": [{"delta": {"tool_calls": [[call]]}}]}),
            json!({"choices": [{"delta": {"tool_calls": json!([call]).to_string()}}]}),
            json!({"choices": [{"delta": {}, "tool_calls": [call]}]}),
            json!({"choices": [{"delta": {}, "message": {"tool_calls": [call]}}]}),
            json!({"choices": [{"index": 1, "delta": {"tool_calls": [{"id": "a", "function": "f", "arguments": {"a": 1}}]}}]}),
        ] {
            let deltas = deltas(chunk.clone());
            assert!(
                matches!(&deltas[..], [ChatDelta::Call(piece)] if piece.arguments == "{\"a\":1}"),
                "{chunk}: {deltas:?}"
            );
        }
    }

    #[test]
    fn a_whole_message_after_deltas_repeats_them() {
        let mut earlier = Earlier::default();
        read(json!({"choices": [{"delta": {"content": "Hello"}}]}), &mut earlier).unwrap();
        let call = json!({"function": {"name": "f", "arguments": "{}"}});
        let whole = json!({"choices": [{"delta": null, "message": {"content": "Hello", "tool_calls": [call]}, "finish_reason": "stop"}]});

        let chunk = read(whole, &mut earlier).unwrap();

        assert!(matches!(&chunk.deltas[..], [ChatDelta::Call(_)]), "only the call is new: {chunk:?}");
    }

    #[test]
    fn a_plain_chunk_is_read_as_any_other() {
        let plain = [
            json!({"choices": [{"index": 0, "delta": {"content": "a\"\u{1F600}"}}]}),
            json!({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": null,
                "service_tier": "default", "usage": null,
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a", "refusal": null},
                    "finish_reason": null, "logprobs": null}]}),
        ];
        for chunk in plain {
            let read_plain = read_plain(&chunk.to_string(), &mut Earlier::default());
            assert_eq!(read_plain, Some(read(chunk.clone(), &mut Earlier::default()).unwrap()), "{chunk}");
        }
        let others = [
            json!({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}),
            json!({"choices": [{"index": 0, "delta": {"content": "a", "reasoning_content": "b"}}]}),
            json!({"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": {}}),
            json!({"choices": [{"index": 0, "delta": {"content": "a"}}], "error": "b"}),
            json!({"choices": [{"index": 0, "delta": {"content": ["a"]}}]}),
            json!({"choices": [{"index": 1, "delta": {"content": "a"}}]}),
            json!({"choices": [{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "b"}}]}),
            json!({"choices": []}),
        ];
        for chunk in others {
            assert_eq!(read_plain(&chunk.to_string(), &mut Earlier::default()), None, "{chunk}");
        }
    }

    #[test]
    fn other_choices_and_empty_texts_are_ignored() {
        let chunk = json!({"choices": [{"delta": {"role": "assistant", "content": ""}}, {"index": 1, "delta": {"content": "no"}}]});

        assert_eq!(deltas(chunk), []);
    }
}
