//! Converts a run and its thread into the request for the model. Pure.
//!
//! [`fit`] decides which messages of the thread the request contains.

pub mod fit;

use std::borrow::Cow;

use serde_json::{Value, json};

use super::machine::Progress;
use super::turn::KnownFunction;
use crate::api::message::{Content, Role};
use crate::api::run::{RunSpec, Truncation};
use crate::api::run_step::StepDetails;
use crate::api::tool::{NamedTool, Tool, ToolChoice, ToolMode};
use crate::api::{Message, RunStep};
use crate::llm::{ChatMessage, ChatRequest, ChatRole};

/// Returns the request for a run's next turn, without messages.
fn empty_request(progress: &Progress) -> ChatRequest {
    let spec = &progress.run.spec;
    let tools: Vec<Value> = spec.tools.iter().filter_map(function).collect();
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
        .filter_map(|tool| match tool {
            Tool::Function { function } => {
                let properties = function.parameters.get("properties").and_then(Value::as_object);
                let takes_arguments = properties.is_some_and(|properties| !properties.is_empty());
                Some(KnownFunction { name: function.name.clone(), takes_arguments })
            }
            Tool::CodeInterpreter | Tool::FileSearch { .. } => None,
        })
        .collect()
}

/// Returns a tool in the form of chat completions. The built-in tools are not offered, since they are not supported yet.
fn function(tool: &Tool) -> Option<Value> {
    match tool {
        Tool::Function { .. } => {
            let mut tool = json!(tool);
            if let Some(function) = tool["function"].as_object_mut() {
                // Some servers reject the parameter, which is false by default.
                function.retain(|name, value| name != "strict" || *value == Value::Bool(true));
            }
            Some(tool)
        }
        Tool::CodeInterpreter | Tool::FileSearch { .. } => None,
    }
}

/// Returns the tool choice. `required` and a named function apply to the first turn only: otherwise the run could not end.
fn tool_choice(spec: &RunSpec, rounds: usize) -> Option<Value> {
    match &spec.tool_choice {
        ToolChoice::Mode(ToolMode::None) => Some(json!("none")),
        ToolChoice::Mode(ToolMode::Required) if rounds == 0 => Some(json!("required")),
        ToolChoice::Named(named @ NamedTool::Function { .. }) if rounds == 0 => Some(json!(named)),
        ToolChoice::Mode(ToolMode::Auto | ToolMode::Required) | ToolChoice::Named(_) => None,
    }
}

/// Returns the messages of the run's earlier turns: for each turn with calls, the assistant's text and calls, then the
/// outputs. Members that `model` wrote are included.
///
/// A client may have deleted the run's message, and a later turn may have created it again. Then the stored lengths of
/// earlier turns do not refer to the present text, and those turns have no text.
fn rounds(progress: &Progress, model: &str) -> Vec<ChatMessage> {
    let text = progress.text();
    let turns: Vec<_> = progress
        .steps
        .iter()
        .filter(|step| !step.is_open())
        .filter_map(|step| match (&step.details, &step.turn) {
            (StepDetails::ToolCalls { tool_calls }, Some(turn)) => Some((step, tool_calls, turn)),
            _ => None,
        })
        .collect();
    let mut start = 0;
    let mut messages = Vec::new();
    for (index, (step, tool_calls, turn)) in turns.iter().enumerate() {
        let end = turn.text_bytes;
        let is_of_this_text = end <= text.len() && turns[index..].iter().all(|(_, _, later)| end <= later.text_bytes);
        let turn_text = if is_of_this_text { text.get(start..end).unwrap_or_default().trim() } else { "" };
        if is_of_this_text {
            start = end;
        }
        let content = if turn_text.is_empty() { Value::Null } else { Value::String(turn_text.to_owned()) };
        let replay = turn.replay.as_deref().filter(|replay| replay.model == model);
        let calls = tool_calls.iter().zip(&turn.call_ids).enumerate().map(|(index, (call, id))| {
            let function = json!({"name": call.function.name, "arguments": call.function.arguments});
            let mut made = json!({"id": id, "type": "function", "function": function});
            for (name, value) in replay.and_then(|replay| replay.calls.get(index)).into_iter().flatten() {
                match (made.get_mut(name).and_then(Value::as_object_mut), value.as_object()) {
                    (Some(known), Some(more)) => known.extend(more.clone()),
                    (Some(_), None) => {}
                    (None, _) => made[name] = value.clone(),
                }
            }
            made
        });
        let mut assistant = ChatMessage::new(ChatRole::Assistant, content);
        assistant.tool_calls = calls.collect();
        assistant.members = replay.map(|replay| replay.message.clone()).unwrap_or_default();
        messages.push(assistant);
        messages.extend(outputs(step));
    }
    messages
}

fn outputs(step: &RunStep) -> Vec<ChatMessage> {
    let (StepDetails::ToolCalls { tool_calls }, Some(turn)) = (&step.details, &step.turn) else { return Vec::new() };
    tool_calls
        .iter()
        .zip(&turn.call_ids)
        .map(|(call, id)| {
            let output = call.function.output.clone().unwrap_or_default();
            let mut message = ChatMessage::new(ChatRole::Tool, Value::String(output));
            message.tool_call_id = Some(id.clone());
            message
        })
        .collect()
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

/// Returns the text of a part. An image file cannot be sent, because files are not supported yet; the text says that there
/// is one.
fn part_text(part: &Content) -> Option<Cow<'_, str>> {
    match part {
        Content::Text { text } => Some(Cow::Borrowed(&text.value)),
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
