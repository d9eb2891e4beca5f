//! Converts a run and its thread into the request for the model. Pure.
//!
//! [`fit`] decides which messages of the thread the request contains.

pub mod fit;

use std::borrow::Cow;

use serde_json::{Value, json};

use super::code;
use super::file_search::{self, Passages};
use super::machine::Progress;
use super::turn::KnownFunction;
use crate::api::message::{Content, Role};
use crate::api::run::{RunSpec, Truncation};
use crate::api::run_step::TurnRecord;
use crate::api::tool::{CalledTool, NamedTool, Tool, ToolChoice, ToolMode};
use crate::api::{Message, RunStep};
use crate::llm::{ChatMessage, ChatRequest, ChatRole};

/// Returns the request for a run's next turn, without messages.
fn empty_request(progress: &Progress) -> ChatRequest {
    let spec = &progress.run.spec;
    let tools: Vec<Value> = spec.tools.iter().map(|tool| offered(spec, tool)).collect();
    ChatRequest {
        model: spec.model.clone(),
        messages: Vec::new(),
        // Some models reject the parameters even at their defaults.
        temperature: spec.temperature.filter(is_not_default),
        top_p: spec.top_p.filter(is_not_default),
        max_completion_tokens: spec
            .max_completion_tokens
            .map(|max| max.saturating_sub(progress.run.usage.completion_tokens)),
        response_format: spec.response_format.for_model().cloned(),
        reasoning_effort: spec.reasoning_effort.clone(),
        tool_choice: if tools.is_empty() { None } else { tool_choice(spec, progress.rounds()) },
        parallel_tool_calls: (!tools.is_empty() && !spec.parallel_tool_calls).then_some(false),
        tools,
    }
}

/// Whether `temperature` or `top_p` differs from its default, which clients see and may write back.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is that of a filter")]
fn is_not_default(value: &f64) -> bool {
    (value - 1.0).abs() > f64::EPSILON
}

/// Returns the message with the run's instructions, if it has any.
fn system_message(spec: &RunSpec) -> Option<ChatMessage> {
    (!spec.instructions.is_empty())
        .then(|| ChatMessage::new(ChatRole::System, Value::String(spec.instructions.clone())))
}

/// Returns how many of the newest messages the run uses; `None` means all of them.
#[must_use]
pub fn last_messages(spec: &RunSpec) -> Option<usize> {
    let strategy = spec.truncation_strategy;
    match strategy.r#type {
        Truncation::LastMessages => strategy.last_messages.map(|count| count as usize),
        Truncation::Auto => None,
    }
}

/// Returns the functions that the model may call.
#[must_use]
pub fn functions(spec: &RunSpec) -> Vec<KnownFunction> {
    spec.tools
        .iter()
        .map(|tool| match tool {
            Tool::Function { function } => {
                let properties = function.parameters.get("properties").and_then(Value::as_object);
                let takes_arguments = properties.is_some_and(|properties| !properties.is_empty());
                KnownFunction { name: function.name.clone(), takes_arguments, built_in: None }
            }
            Tool::FileSearch { file_search: options } => KnownFunction {
                name: file_search::name(spec),
                takes_arguments: true,
                built_in: Some(file_search::unanswered(options)),
            },
            Tool::CodeInterpreter => {
                KnownFunction { name: code::name(spec), takes_arguments: true, built_in: Some(code::unanswered()) }
            }
        })
        .collect()
}

/// Returns a tool in the form of chat completions.
fn offered(spec: &RunSpec, tool: &Tool) -> Value {
    match tool {
        Tool::Function { .. } => {
            let mut tool = json!(tool);
            if let Some(function) = tool["function"].as_object_mut() {
                // Some servers reject the parameter, which is false by default.
                function.retain(|name, value| name != "strict" || *value == Value::Bool(true));
            }
            tool
        }
        Tool::FileSearch { .. } => file_search::definition(&file_search::name(spec)),
        Tool::CodeInterpreter => code::definition(&code::name(spec)),
    }
}

/// Returns the tool choice. `required` and a named function apply to the first turn only: otherwise the run could not end.
fn tool_choice(spec: &RunSpec, rounds: usize) -> Option<Value> {
    match &spec.tool_choice {
        ToolChoice::Mode(ToolMode::None) => Some(json!("none")),
        ToolChoice::Mode(ToolMode::Required) if rounds == 0 => Some(json!("required")),
        ToolChoice::Named(named @ NamedTool::Function { .. }) if rounds == 0 => Some(json!(named)),
        ToolChoice::Named(NamedTool::FileSearch) if rounds == 0 => {
            Some(json!({"type": "function", "function": {"name": file_search::name(spec)}}))
        }
        ToolChoice::Named(NamedTool::CodeInterpreter) if rounds == 0 => {
            Some(json!({"type": "function", "function": {"name": code::name(spec)}}))
        }
        ToolChoice::Mode(ToolMode::Auto | ToolMode::Required) | ToolChoice::Named(_) => None,
    }
}

/// Returns the messages of the run's earlier turns: for each turn with calls, the assistant's text and calls, then the
/// outputs. Members that `model` wrote are included.
///
/// A client may have deleted the run's message, and a later turn may have created it again. Then the stored lengths of
/// earlier turns do not refer to the present text, and those turns have no text.
fn rounds(progress: &Progress, model: &str) -> Vec<ChatMessage> {
    let mut turns: Vec<Vec<(&RunStep, &TurnRecord)>> = Vec::new();
    for step in progress.steps.iter().filter(|step| !step.is_open() && !step.creates_message()) {
        let Some(turn) = &step.turn else { continue };
        match turns.last_mut().filter(|_| turn.continues_turn) {
            Some(steps) => steps.push((step, turn)),
            None => turns.push(vec![(step, turn)]),
        }
    }
    let passages = Passages::of(&progress.steps);
    let text = progress.text();
    let ends: Vec<usize> = turns.iter().map(|steps| steps[0].1.text_bytes).collect();
    let mut start = 0;
    let mut messages = Vec::new();
    for (steps, (index, end)) in turns.iter().zip(ends.iter().copied().enumerate()) {
        let is_of_this_text = end <= text.len() && ends[index..].iter().all(|later| end <= *later);
        let turn_text =
            if is_of_this_text { progress.text_without_marks(start..end.max(start)) } else { String::new() };
        if is_of_this_text {
            start = end;
        }
        messages.extend(turn_messages(&progress.run.spec, steps, turn_text.trim(), model, &passages));
    }
    messages
}

/// Returns the messages of one turn: its text and its calls, then the outputs.
fn turn_messages(
    spec: &RunSpec,
    steps: &[(&RunStep, &TurnRecord)],
    text: &str,
    model: &str,
    passages: &Passages,
) -> Vec<ChatMessage> {
    let content = if text.is_empty() { Value::Null } else { Value::String(text.to_owned()) };
    let mut assistant = ChatMessage::new(ChatRole::Assistant, content);
    let mut calls = Vec::new();
    for (step, turn) in steps {
        let replay = turn.replay.as_deref().filter(|replay| replay.model == model);
        assistant.members.extend(replay.map(|replay| replay.message.clone()).unwrap_or_default());
        for (index, (call, id)) in step.tool_calls().iter().zip(&turn.call_ids).enumerate() {
            let position = turn.positions.get(index).copied().unwrap_or(index);
            let (name, arguments, output) = match &call.tool {
                CalledTool::Function { function } => {
                    (function.name.clone(), &function.arguments, function.output.clone().unwrap_or_default())
                }
                CalledTool::FileSearch { .. } => {
                    let Some(arguments) = turn.arguments.get(index) else { continue };
                    (file_search::name(spec), arguments, passages.output(&call.id))
                }
                CalledTool::CodeInterpreter { code_interpreter } => {
                    let Some(arguments) = turn.arguments.get(index) else { continue };
                    (code::name(spec), arguments, code_interpreter.result.clone().unwrap_or_default())
                }
            };
            let mut made = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
            for (name, value) in replay.and_then(|replay| replay.calls.get(index)).into_iter().flatten() {
                match (made.get_mut(name).and_then(Value::as_object_mut), value.as_object()) {
                    (Some(known), Some(more)) => known.extend(more.clone()),
                    (Some(_), None) => {}
                    (None, _) => made[name] = value.clone(),
                }
            }
            let mut answered = ChatMessage::new(ChatRole::Tool, Value::String(output));
            answered.tool_call_id = Some(id.clone());
            calls.push((position, made, answered));
        }
    }
    calls.sort_by_key(|(position, _, _)| *position);
    let (calls, outputs): (Vec<Value>, Vec<ChatMessage>) =
        calls.into_iter().map(|(_, call, output)| (call, output)).unzip();
    assistant.tool_calls = calls;
    std::iter::once(assistant).chain(outputs).collect()
}

/// Returns a message in the form of chat completions: a string if it has only text, a list of parts otherwise. Returns
/// `None` if nothing of it can be sent, such as a message that was truncated to nothing.
fn chat_message(message: &Message) -> Option<ChatMessage> {
    if !has_content(message) {
        return None;
    }
    let role = match message.role {
        Role::User => ChatRole::User,
        Role::Assistant => ChatRole::Assistant,
    };
    let content = if has_images(message) {
        Value::Array(message.content.iter().filter_map(chat_part).collect())
    } else {
        let texts: Vec<Cow<'_, str>> = message.content.iter().filter_map(part_text).collect();
        Value::String(texts.join("\n"))
    };
    Some(ChatMessage::new(role, content))
}

/// Returns whether any part of a message can be sent.
fn has_content(message: &Message) -> bool {
    let mut texts = message.content.iter().filter_map(part_text);
    has_images(message)
        || match (texts.next(), texts.next()) {
            (Some(only), None) => !only.is_empty(),
            (Some(_), Some(_)) => true,
            (None, _) => false,
        }
}

/// Returns whether a message has images that are sent: only user messages may contain images.
fn has_images(message: &Message) -> bool {
    message.role == Role::User && message.content.iter().any(|part| matches!(part, Content::ImageUrl { .. }))
}

/// Returns the size of the parts of a message that are sent, in bytes.
#[must_use]
pub fn content_bytes(message: &Message) -> usize {
    let has_images = has_images(message);
    let part = |part: &Content| match part {
        Content::ImageUrl { image_url } if has_images => image_url.url.len(),
        other => part_text(other).map_or(0, |text| text.len()),
    };
    message.content.iter().map(part).sum()
}

/// Returns the text of a part. An image file of an assistant cannot be sent; the text says that there is one. Those of
/// users were replaced before (`runs::images`).
fn part_text(part: &Content) -> Option<Cow<'_, str>> {
    match part {
        Content::Text { text } if text.annotations.is_empty() => Some(Cow::Borrowed(&text.value)),
        // The numbers in the marks refer to searches that the model cannot see.
        Content::Text { text } => Some(Cow::Owned(text.without_marks(0..text.value.len()))),
        Content::Refusal { refusal } => Some(Cow::Borrowed(refusal)),
        Content::ImageFile { image_file } => {
            Some(Cow::Owned(format!("[The image {} is here and cannot be shown.]", image_file.file_id)))
        }
        Content::ImageUrl { .. } => None,
    }
}

fn chat_part(part: &Content) -> Option<Value> {
    match part {
        Content::ImageUrl { image_url } => Some(json!({"type": "image_url", "image_url": image_url})),
        Content::ImageFile { .. } | Content::Text { .. } | Content::Refusal { .. } => {
            part_text(part).map(|text| json!({"type": "text", "text": text}))
        }
    }
}

#[cfg(test)]
mod tests;
