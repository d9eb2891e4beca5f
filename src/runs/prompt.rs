//! From a thread to what the model is asked. Pure.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::machine::Progress;
use crate::api::message::{Content, Role};
use crate::api::run::{RunSpec, Truncation};
use crate::api::run_step::StepDetails;
use crate::api::tool::{NamedTool, Tool, ToolChoice, ToolMode};
use crate::api::{Message, RunStep};
use crate::llm::{ChatMessage, ChatRequest, tokens};

/// The request for a run's next turn: its instructions, then the thread, oldest message first, then what the run has
/// said and called itself, with the outputs.
///
/// Messages that the run wrote are left out of the thread: the text before each of its calls stands with them, and
/// what came after the last is about to be written again.
#[must_use]
pub fn build(progress: &Progress, thread: &[Message]) -> ChatRequest {
    let spec = &progress.run.spec;
    let wrote_it = |message: &&Message| message.author.as_ref().is_none_or(|author| author.run_id != spec.id);
    let said: Vec<ChatMessage> = thread.iter().filter(wrote_it).filter_map(chat_message).collect();
    let kept = last_messages(spec).map_or(said.len(), |count| said.len().min(count));
    let system =
        (!spec.instructions.is_empty()).then(|| ChatMessage::new("system", Value::String(spec.instructions.clone())));
    let thread = said.into_iter().rev().take(kept).rev();
    let tools: Vec<Value> = spec.tools.iter().filter_map(function).collect();
    ChatRequest {
        model: spec.model.clone(),
        messages: system.into_iter().chain(thread).chain(rounds(progress)).collect(),
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

/// How many tokens a run's next prompt may have, as far as anything bounds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// What is left of `max_prompt_tokens`.
    pub of_run: Option<usize>,
    /// What the model's window leaves beside an answer.
    pub of_model: Option<usize>,
}

/// Tokens of the window that are kept for an answer when the run does not say how long it may be: a quarter, at most
/// this many.
const ANSWER_TOKENS: usize = 4_096;

/// What bounds a run's next prompt, with a model of this window.
#[must_use]
pub fn budget(progress: &Progress, window: Option<u32>) -> Budget {
    let (spec, used) = (&progress.run.spec, &progress.run.usage);
    let of_model = window.map(|window| {
        let window = window as usize;
        let answer = spec.max_completion_tokens.map_or(ANSWER_TOKENS, |tokens| tokens as usize).min(window / 4);
        window - answer
    });
    Budget { of_run: spec.max_prompt_tokens.map(|max| max.saturating_sub(used.prompt_tokens) as usize), of_model }
}

impl Budget {
    /// The budget by our own count, for a model that counts `ratio` times as many tokens.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "an estimate of a count of tokens"
    )]
    pub fn counted(self, ratio: f64) -> Self {
        let scaled = |tokens: Option<usize>| tokens.map(|tokens| (tokens as f64 / ratio) as usize);
        Self { of_run: scaled(self.of_run), of_model: scaled(self.of_model) }
    }
}

/// A prompt that fits its budget.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// What to ask.
    pub request: ChatRequest,
    /// Its tokens by our count, when it was counted: a short one need not be.
    pub counted: Option<usize>,
}

/// Drops messages of the thread from the middle until the prompt fits: the first one and the newest stay longest, then
/// the newest alone. The system message and what the run itself has called always stay.
///
/// Gives nothing when the run's own budget is too small even so. A model's window that is too small is left to the
/// model to complain of: our count may be wrong.
#[must_use]
pub fn fit(mut request: ChatRequest, budget: Budget) -> Option<Fitted> {
    let Some(bound) = budget.of_run.into_iter().chain(budget.of_model).min() else {
        return Some(Fitted { request, counted: None });
    };
    if tokens::at_most(&request) <= bound {
        return Some(Fitted { request, counted: None });
    }
    let sizes: Vec<usize> = request.messages.iter().map(tokens::count_message).collect();
    let mut total = sizes.iter().sum::<usize>() + tokens::count_tools(&request);
    let first = usize::from(request.messages.first().is_some_and(|message| message.role == "system"));
    let is_of_thread = |message: &ChatMessage| message.role != "tool" && message.tool_calls.is_empty();
    let end = request.messages.iter().skip(first).take_while(|message| is_of_thread(message)).count() + first;
    let droppable = (first + 1..end.saturating_sub(1)).chain((end > first + 1).then_some(first));
    let mut dropped = std::collections::BTreeSet::new();
    for index in droppable {
        if total <= bound {
            break;
        }
        total -= sizes[index];
        dropped.insert(index);
    }
    let mut index = 0;
    request.messages.retain(|_| {
        index += 1;
        !dropped.contains(&(index - 1))
    });
    (budget.of_run.is_none_or(|bound| total <= bound)).then_some(Fitted { request, counted: Some(total) })
}

/// How many of the newest messages are wanted, when not all of them.
#[must_use]
pub fn last_messages(spec: &RunSpec) -> Option<usize> {
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

/// A tool as chat completions have it. The service's own tools are not offered before they are served.
fn function(tool: &Tool) -> Option<Value> {
    match tool {
        Tool::Function { .. } => Some(json!(tool)),
        Tool::CodeInterpreter | Tool::FileSearch { .. } => None,
    }
}

/// `required` and a named function hold for the first turn alone: else the run could not end.
fn tool_choice(spec: &RunSpec, rounds: usize) -> Option<Value> {
    match &spec.tool_choice {
        ToolChoice::Mode(ToolMode::None) => Some(json!("none")),
        ToolChoice::Mode(ToolMode::Required) if rounds == 0 => Some(json!("required")),
        ToolChoice::Named(named @ NamedTool::Function { .. }) if rounds == 0 => Some(json!(named)),
        ToolChoice::Mode(ToolMode::Auto | ToolMode::Required) | ToolChoice::Named(_) => None,
    }
}

/// What the run has said and called so far: for each turn with calls, the assistant's words and calls, then the
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

/// A message as chat completions have it: a string where it is only words, else parts. None when nothing of it can be
/// told, such as a message that was cut before its first word.
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

/// A picture among the files cannot be shown before this server keeps files; the model is told that there is one.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn said(texts: &[&str]) -> ChatRequest {
        let system = ChatMessage::new("system", json!("be kind"));
        let thread = texts.iter().map(|text| ChatMessage::new("user", json!(text)));
        ChatRequest { messages: std::iter::once(system).chain(thread).collect(), ..ChatRequest::default() }
    }

    fn kept(fitted: Option<Fitted>) -> Option<Vec<String>> {
        let text = |message: ChatMessage| message.content.as_str().unwrap().to_owned();
        fitted.map(|fitted| fitted.request.messages.into_iter().skip(1).map(text).collect())
    }

    fn of_run(tokens: usize) -> Budget {
        Budget { of_run: Some(tokens), of_model: None }
    }

    #[test]
    fn what_is_too_long_is_cut_in_the_middle_oldest_first() {
        let words = ["one two three", "four five six", "seven eight nine", "ten eleven twelve"];
        // Four and its words for each message, and "be kind".
        let whole = tokens::count_message(&said(&words).messages[0])
            + said(&words).messages[1..].iter().map(tokens::count_message).sum::<usize>();
        let last = tokens::count_message(&said(&words).messages[4]);

        assert_eq!(kept(fit(said(&words), of_run(whole))).unwrap().len(), 4);
        assert_eq!(kept(fit(said(&words), of_run(whole - 1))).unwrap(), [words[0], words[2], words[3]]);
        assert_eq!(kept(fit(said(&words), of_run(whole / 2))).unwrap().last().unwrap(), words[3]);
        assert_eq!(kept(fit(said(&words), of_run(last))), None, "the newest does not fit beside the instructions");
    }

    #[test]
    fn a_window_that_is_too_small_is_left_to_the_model_to_complain_of() {
        let budget = Budget { of_run: None, of_model: Some(1) };

        assert_eq!(kept(fit(said(&["one", "two", "three"]), budget)).unwrap(), ["three"]);
    }

    #[test]
    fn without_a_bound_nothing_is_cut() {
        let request = said(&["one", "two"]);

        let fitted = fit(request.clone(), Budget { of_run: None, of_model: None });
        assert_eq!(fitted, Some(Fitted { request, counted: None }));
    }

    #[test]
    fn a_model_that_counts_more_than_we_do_gets_less() {
        let budget = Budget { of_run: Some(100), of_model: None };

        assert_eq!(budget.counted(2.0), Budget { of_run: Some(50), of_model: None });
    }
}
