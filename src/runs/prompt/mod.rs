//! From a thread to what the model is asked. Pure.
//!
//! `fit` decides how much of the thread a prompt holds; this file turns what is held into chat messages.

mod fit;

use std::borrow::Cow;

use serde_json::{Value, json};

use super::machine::Progress;
use crate::api::message::{Content, Role};
use crate::api::run::{RunSpec, Truncation};
use crate::api::run_step::StepDetails;
use crate::api::tool::{NamedTool, Tool, ToolChoice, ToolMode};
use crate::api::{Message, RunStep};
use crate::llm::{ChatMessage, ChatRequest};

pub use fit::{Budget, Next, Prompt, PromptBuilder, TooLong, budget};

/// The request for a run's next turn without the thread: its instructions, then what the run has written and called
/// itself, with the outputs.
fn frame(progress: &Progress) -> ChatRequest {
    let spec = &progress.run.spec;
    let system =
        (!spec.instructions.is_empty()).then(|| ChatMessage::new("system", Value::String(spec.instructions.clone())));
    let tools: Vec<Value> = spec.tools.iter().filter_map(function).collect();
    ChatRequest {
        model: spec.model.clone(),
        messages: system.into_iter().chain(rounds(progress)).collect(),
        temperature: spec.temperature,
        top_p: spec.top_p,
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

/// The size of a message's content, in bytes.
#[must_use]
pub fn message_bytes(message: &Message) -> usize {
    let part = |part: &Content| match part {
        Content::Text { text } => text.value.len(),
        Content::ImageUrl { image_url } => image_url.url.len(),
        Content::ImageFile { image_file } => image_file.file_id.as_str().len(),
        Content::Refusal { refusal } => refusal.len(),
    };
    message.content.iter().map(part).sum()
}

/// How many of the newest messages the prompt holds, when not all of them.
fn last_messages(spec: &RunSpec) -> Option<usize> {
    let strategy = spec.truncation_strategy;
    match strategy.r#type {
        Truncation::LastMessages => strategy.last_messages.map(|count| count as usize),
        Truncation::Auto => None,
    }
}

/// The functions that the model may call, by name.
#[must_use]
pub fn functions(spec: &RunSpec) -> Vec<&str> {
    spec.tools
        .iter()
        .filter_map(|tool| match tool {
            Tool::Function { function } => Some(function.name.as_str()),
            Tool::CodeInterpreter | Tool::FileSearch { .. } => None,
        })
        .collect()
}

/// A tool in the form of chat completions. Built-in tools are not offered before they are served.
fn function(tool: &Tool) -> Option<Value> {
    match tool {
        Tool::Function { .. } => Some(json!(tool)),
        Tool::CodeInterpreter | Tool::FileSearch { .. } => None,
    }
}

/// `required` and a named function hold for the first turn only: otherwise the run could not end.
fn tool_choice(spec: &RunSpec, rounds: usize) -> Option<Value> {
    match &spec.tool_choice {
        ToolChoice::Mode(ToolMode::None) => Some(json!("none")),
        ToolChoice::Mode(ToolMode::Required) if rounds == 0 => Some(json!("required")),
        ToolChoice::Named(named @ NamedTool::Function { .. }) if rounds == 0 => Some(json!(named)),
        ToolChoice::Mode(ToolMode::Auto | ToolMode::Required) | ToolChoice::Named(_) => None,
    }
}

/// What the run has written and called so far: for each turn with calls, the assistant's text and calls, then the
/// outputs.
fn rounds(progress: &Progress) -> Vec<ChatMessage> {
    let text = progress.text();
    let mut from = 0;
    let mut messages = Vec::new();
    for step in progress.steps.iter().filter(|step| !step.is_open()) {
        let (StepDetails::ToolCalls { tool_calls }, Some(turn)) = (&step.details, &step.turn) else { continue };
        let words = text.get(from..turn.text_bytes).unwrap_or_default().trim();
        from = turn.text_bytes;
        let content = if words.is_empty() { Value::Null } else { Value::String(words.to_owned()) };
        let calls = tool_calls.iter().zip(&turn.call_ids).map(|(call, id)| {
            let function = json!({"name": call.function.name, "arguments": call.function.arguments});
            json!({"id": id, "type": "function", "function": function})
        });
        let mut assistant = ChatMessage::new("assistant", content);
        assistant.tool_calls = calls.collect();
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
            let mut message = ChatMessage::new("tool", Value::String(output));
            message.tool_call_id = Some(id.clone());
            message
        })
        .collect()
}

/// A message in the form of chat completions: a string where it is only text, else parts. None when it has nothing that
/// a model can read, such as a message that was cut before its first word.
fn chat_message(message: &Message) -> Option<ChatMessage> {
    let role = match message.role {
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let words: Vec<Cow<'_, str>> = message.content.iter().filter_map(words).collect();
    // Only users may show pictures to a model.
    let has_pictures = message.content.iter().any(|part| picture(part).is_some());
    let content = if has_pictures && message.role == Role::User {
        Value::Array(message.content.iter().filter_map(part).collect())
    } else {
        Value::String(words.join("\n"))
    };
    (content != Value::String(String::new())).then(|| ChatMessage::new(role, content))
}

/// Images among the files cannot be shown before files are served; the model reads that there is one.
fn words(part: &Content) -> Option<Cow<'_, str>> {
    match part {
        Content::Text { text } => Some(Cow::Borrowed(&text.value)),
        Content::Refusal { refusal } => Some(Cow::Borrowed(refusal)),
        Content::ImageFile { image_file } => {
            Some(Cow::Owned(format!("[The image {} is here and cannot be shown.]", image_file.file_id)))
        }
        Content::ImageUrl { .. } => None,
    }
}

fn picture(part: &Content) -> Option<Value> {
    match part {
        Content::ImageUrl { image_url } => Some(json!({"type": "image_url", "image_url": image_url})),
        Content::ImageFile { .. } | Content::Text { .. } | Content::Refusal { .. } => None,
    }
}

fn part(part: &Content) -> Option<Value> {
    words(part).map(|text| json!({"type": "text", "text": text})).or_else(|| picture(part))
}
