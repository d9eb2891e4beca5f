//! From a thread to what the model is asked. Pure.

use serde_json::{Value, json};

use crate::api::message::{Content, Role};
use crate::api::run::Truncation;
use crate::api::{Message, Run};
use crate::llm::{ChatMessage, ChatRequest};

/// The request for a run's answer: its instructions, then the thread, oldest message first.
///
/// Messages that `run` wrote itself are left out: they are what it is about to write again.
#[must_use]
pub fn build(run: &Run, thread: &[Message]) -> ChatRequest {
    let spec = &run.spec;
    let wrote_it = |message: &&Message| message.author.as_ref().is_none_or(|author| author.run_id != spec.id);
    let said: Vec<ChatMessage> = thread.iter().filter(wrote_it).filter_map(chat_message).collect();
    let strategy = spec.truncation_strategy;
    let kept = match (strategy.r#type, strategy.last_messages) {
        (Truncation::LastMessages, Some(count)) => said.len().min(count as usize),
        (Truncation::LastMessages, None) | (Truncation::Auto, _) => said.len(),
    };
    let system = (!spec.instructions.is_empty())
        .then(|| ChatMessage { role: "system", content: Value::String(spec.instructions.clone()) });
    ChatRequest {
        model: spec.model.clone(),
        messages: system.into_iter().chain(said.into_iter().rev().take(kept).rev()).collect(),
        temperature: spec.temperature,
        top_p: spec.top_p,
        max_completion_tokens: spec.max_completion_tokens,
        response_format: spec.response_format.for_model().cloned(),
        reasoning_effort: spec.reasoning_effort.clone(),
    }
}

/// A message as chat completions have it: a string where it is only words, else parts. None when nothing of it can be
/// told, such as a message that was cut before its first word.
fn chat_message(message: &Message) -> Option<ChatMessage> {
    let role = match message.role {
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let words: Vec<&str> = message.content.iter().filter_map(words).collect();
    // Only users may show pictures to a model.
    let has_pictures = message.content.iter().any(|part| picture(part).is_some());
    let content = if has_pictures && message.role == Role::User {
        Value::Array(message.content.iter().filter_map(part).collect())
    } else {
        Value::String(words.join("\n"))
    };
    (content != Value::String(String::new())).then_some(ChatMessage { role, content })
}

fn words(part: &Content) -> Option<&str> {
    match part {
        Content::Text { text } => Some(&text.value),
        Content::Refusal { refusal } => Some(refusal),
        Content::ImageUrl { .. } | Content::ImageFile { .. } => None,
    }
}

/// An image among the files cannot be shown before this server keeps files.
fn picture(part: &Content) -> Option<Value> {
    match part {
        Content::ImageUrl { image_url } => Some(json!({"type": "image_url", "image_url": image_url})),
        Content::ImageFile { .. } | Content::Text { .. } | Content::Refusal { .. } => None,
    }
}

fn part(part: &Content) -> Option<Value> {
    words(part).map(|text| json!({"type": "text", "text": text})).or_else(|| picture(part))
}
