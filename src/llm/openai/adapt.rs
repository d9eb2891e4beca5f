//! The JSON body of a request, adapted to what a model of a server accepts. Pure.
//!
//! A server that rejects a request may say which part of it is not supported. The request is then sent again without that
//! part, and if it is accepted, later requests for the same model omit it as well. What is learned is narrow: the error
//! must name the part as unsupported, and words that also occur in the prompt teach nothing, since servers quote it.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::report::Report;
use crate::llm::{ChatMessage, ChatRequest, ChatRole};

/// Parameters that a request can omit. The two names of the limit on completion tokens are treated separately.
const OPTIONAL: [&str; 6] =
    ["stream_options", "parallel_tool_calls", "temperature", "top_p", "reasoning_effort", "strict"];
/// The two names of the limit on completion tokens. At most one of them is omitted.
const LIMITS: [&str; 2] = ["max_tokens", "max_completion_tokens"];
/// Words with which servers say that something is not supported.
const UNSUPPORTED: [&str; 31] = [
    "unsupported",
    "not supported",
    "not support",
    "n't support",
    "unrecognized",
    "unrecognised",
    "not recognized",
    "unknown",
    "unexpected",
    "extra input",
    "extra field",
    "extra_forbidden",
    "not permitted",
    "not allowed",
    "not accept",
    "not implemented",
    "not available",
    "not enabled",
    "cannot be used",
    "can't be used",
    "cannot find field",
    "no such",
    "invalid field",
    "invalid parameter",
    "invalid argument",
    "invalid role",
    "not one of",
    "incompatible",
    "additional propert",
    "deprecated",
    "at the same time",
];
/// Words that say that a value is out of range: the parameter itself is supported.
const OUT_OF_RANGE: [&str; 10] = [
    "too large",
    "too small",
    "between",
    "less than",
    "greater than",
    "at most",
    "at least",
    "maximum",
    "minimum",
    "exceed",
];

/// Parts of requests that a model does not accept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Adaptations(BTreeSet<Change>);

/// A change of a request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Omits a parameter, or a member of the assistant's earlier messages and calls.
    Omit(String),
    /// Joins neighboring messages of one role, and begins with a user message.
    AlternateRoles,
    /// Puts the instructions in front of the first user message.
    SystemAsUser,
    /// Ends with a user message.
    EndWithUser,
}

impl std::fmt::Display for Change {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Omit(name) => write!(formatter, "{name} is omitted"),
            Self::AlternateRoles => write!(formatter, "messages of one role are joined"),
            Self::SystemAsUser => write!(formatter, "instructions are sent in a user message"),
            Self::EndWithUser => write!(formatter, "the last message is a user message"),
        }
    }
}

/// The JSON body of a chat request.
#[derive(Debug)]
pub struct RequestBody {
    json: Bytes,
    /// The parameters and members in the body that it can omit.
    optional: BTreeSet<String>,
    adaptations: Adaptations,
    /// Changes that were tried for this request: each is tried once.
    tried: BTreeSet<Change>,
}

/// A request in the form of the wire.
#[derive(Debug, Serialize, Deserialize)]
struct Wire {
    #[serde(flatten)]
    request: ChatRequest,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<Value>,
}

impl RequestBody {
    /// Serializes a request for a streamed answer.
    #[must_use]
    pub fn new(mut request: ChatRequest, is_openai: bool, adaptations: Adaptations) -> Self {
        // Some servers support only the older name of the limit; OpenAI's newer models reject it.
        let max_tokens = if is_openai { None } else { request.max_completion_tokens };
        if request.parallel_tool_calls.is_none() && !request.tools.is_empty() && !is_openai {
            // OpenAI's default. llama.cpp requires the parameter; some of OpenAI's models reject it.
            request.parallel_tool_calls = Some(true);
        }
        let stream_options = Some(json!({"include_usage": true}));
        let wire = Wire { request, max_tokens, stream: true, stream_options };
        let mut body = Self { json: Bytes::new(), optional: BTreeSet::new(), adaptations, tried: BTreeSet::new() };
        body.write(wire);
        body
    }

    /// Returns the body; the bytes are shared, not copied.
    #[must_use]
    pub fn json(&self) -> Bytes {
        self.json.clone()
    }

    /// Returns the changes that the body has.
    #[must_use]
    pub fn adaptations(&self) -> &Adaptations {
        &self.adaptations
    }

    /// Changes the body after the server has rejected it, and returns the change; `None` if the error names nothing that
    /// could be changed.
    pub fn adapt(&mut self, report: &Report) -> Option<Change> {
        let change = self.change(report)?;
        let mut wire: Wire = serde_json::from_slice(&self.json).ok()?;
        if let Change::Omit(name) = &change
            && LIMITS.contains(&name.as_str())
        {
            // The other name was omitted, and this one is not supported either: the other one is sent again.
            let limit = wire.request.max_completion_tokens.or(wire.max_tokens);
            (wire.request.max_completion_tokens, wire.max_tokens) = (limit, limit);
            self.adaptations
                .0
                .retain(|known| !matches!(known, Change::Omit(other) if LIMITS.contains(&other.as_str())));
        }
        self.tried.insert(change.clone());
        self.adaptations.0.insert(change.clone());
        self.write(wire);
        Some(change)
    }

    fn write(&mut self, mut wire: Wire) {
        for change in &self.adaptations.0 {
            apply(change, &mut wire);
        }
        self.optional = optional(&wire);
        self.json = serde_json::to_vec(&wire).expect("a request of strings, numbers and JSON values serializes").into();
    }

    /// Returns the change that an error asks for.
    fn change(&self, report: &Report) -> Option<Change> {
        let named =
            report.param.as_deref().and_then(|param| param.rsplit(['.', ']', '[']).find(|part| !part.is_empty()));
        let says_unsupported = [Some(&report.message), report.code.as_ref()]
            .into_iter()
            .flatten()
            .any(|text| contains_any(&text.to_lowercase().replace('_', " "), &UNSUPPORTED));
        let is_out_of_range = contains_any(&report.message.to_lowercase(), &OUT_OF_RANGE);
        if let Some(name) = named.filter(|name| says_unsupported && !is_out_of_range && self.optional.contains(*name)) {
            let change = Change::Omit(name.to_owned());
            if !self.tried.contains(&change) {
                return Some(change);
            }
        }
        clauses(&report.message).find_map(|clause| self.change_in(clause))
    }

    /// Returns the change that one clause of an error text asks for.
    fn change_in(&self, clause: &str) -> Option<Change> {
        let lower = clause.to_ascii_lowercase();
        let find_any =
            |words: &[&str]| words.iter().filter_map(|word| range(&lower, word)).min_by_key(|range| range.start);
        // The words between the name of the part and what is wrong with it.
        let is_said = |one: Option<std::ops::Range<usize>>, other: Option<std::ops::Range<usize>>| match (one, other) {
            (Some(one), Some(other)) => !self.quotes(&clause[one.start.min(other.start)..one.end.max(other.end)]),
            _ => false,
        };
        let candidate = |change: Change, is_said: bool| (is_said && !self.tried.contains(&change)).then_some(change);

        let people = find_any(&["role", "user", "message", "conversation"]);
        let order = find_any(&["alternat", "consecutive", "same role", "roles must", "first message must"]);
        if let Some(change) = candidate(Change::AlternateRoles, is_said(order, people.clone())) {
            return Some(change);
        }
        let last = find_any(&["last role", "last message", "must end with a user", "end with a user message"]);
        if let Some(change) = candidate(Change::EndWithUser, is_said(last, people)) {
            return Some(change);
        }
        let only = find_any(&["only user"]);
        if let Some(change) = candidate(Change::SystemAsUser, is_said(only, find_any(&["role"]))) {
            return Some(change);
        }
        let unsupported = find_any(&UNSUPPORTED)?;
        let system = find_any(&[
            "system role",
            "system message",
            "system prompt",
            "system instruction",
            "developer instruction",
        ])
        .or_else(|| find_any(&["role"]).and(word_range(&lower, "system")));
        if let Some(change) = candidate(Change::SystemAsUser, is_said(system, Some(unsupported.clone()))) {
            return Some(change);
        }
        if contains_any(&lower, &OUT_OF_RANGE) {
            return None;
        }
        let names = self.optional.iter().filter_map(|name| Some((word_range(clause, name)?, name)));
        let mut named: Vec<(std::ops::Range<usize>, &String)> = names.collect();
        named.sort_by_key(|(range, _)| range.start);
        named.into_iter().find_map(|(name_range, name)| {
            candidate(Change::Omit(name.clone()), is_said(Some(name_range), Some(unsupported.clone())))
        })
    }

    /// Whether the prompt has these words, so that the server may only quote it.
    fn quotes(&self, words: &str) -> bool {
        let quoted = Value::from(words).to_string();
        let escaped = &quoted[1..quoted.len() - 1];
        std::str::from_utf8(&self.json).is_ok_and(|json| json.contains(escaped))
    }
}

/// Returns the parameters and members that a request can omit.
fn optional(wire: &Wire) -> BTreeSet<String> {
    let request = &wire.request;
    let is_strict = |tool: &Value| tool["function"].get("strict").is_some();
    let present = [
        wire.stream_options.is_some(),
        request.parallel_tool_calls.is_some(),
        request.temperature.is_some(),
        request.top_p.is_some(),
        request.reasoning_effort.is_some(),
        request.tools.iter().any(is_strict),
    ];
    let mut names: BTreeSet<String> =
        OPTIONAL.into_iter().zip(present).filter(|(_, present)| *present).map(|(name, _)| name.to_owned()).collect();
    if wire.max_tokens.is_some() || request.max_completion_tokens.is_some() {
        let sent = [wire.max_tokens.is_some(), request.max_completion_tokens.is_some()];
        names.extend(LIMITS.into_iter().zip(sent).filter(|(_, sent)| *sent).map(|(name, _)| name.to_owned()));
    }
    for message in &request.messages {
        names.extend(message.members.keys().cloned());
        names.extend(message.tool_calls.iter().flat_map(call_members).map(str::to_owned));
    }
    names
}

/// Returns the names of the members of a call that every server has.
fn call_members(call: &Value) -> impl Iterator<Item = &str> {
    let names = call.as_object().into_iter().flat_map(Map::keys).map(String::as_str);
    names.filter(|name| !["id", "type", "function"].contains(name))
}

fn apply(change: &Change, wire: &mut Wire) {
    let request = &mut wire.request;
    match change {
        Change::Omit(name) => match name.as_str() {
            "stream_options" => wire.stream_options = None,
            "max_tokens" if request.max_completion_tokens.is_some() => wire.max_tokens = None,
            "max_completion_tokens" if wire.max_tokens.is_some() => request.max_completion_tokens = None,
            "max_tokens" | "max_completion_tokens" => {}
            "parallel_tool_calls" => request.parallel_tool_calls = None,
            "temperature" => request.temperature = None,
            "top_p" => request.top_p = None,
            "reasoning_effort" => request.reasoning_effort = None,
            "strict" => {
                for function in request.tools.iter_mut().filter_map(|tool| tool["function"].as_object_mut()) {
                    function.shift_remove("strict");
                }
            }
            member => {
                for message in &mut request.messages {
                    message.members.shift_remove(member);
                    for call in message.tool_calls.iter_mut().filter_map(Value::as_object_mut) {
                        call.shift_remove(member);
                    }
                }
            }
        },
        Change::SystemAsUser => {
            if request.messages.first().is_some_and(|first| first.role == ChatRole::System) {
                let system = request.messages.remove(0);
                match request.messages.iter_mut().find(|message| message.role == ChatRole::User) {
                    Some(user) => user.content = joined(system.content, std::mem::take(&mut user.content)),
                    None => request.messages.insert(0, ChatMessage::new(ChatRole::User, system.content)),
                }
            }
        }
        Change::AlternateRoles => request.messages = alternating(std::mem::take(&mut request.messages)),
        Change::EndWithUser => {
            let last = request.messages.last();
            if last.is_some_and(|last| last.role == ChatRole::Assistant && last.tool_calls.is_empty()) {
                request.messages.push(ChatMessage::new(ChatRole::User, "Please continue.".into()));
            }
        }
    }
}

/// Joins neighboring messages of one role. An assistant message at the beginning gets a user message before it.
fn alternating(messages: Vec<ChatMessage>) -> Vec<ChatMessage> {
    let mut alternating: Vec<ChatMessage> = Vec::with_capacity(messages.len());
    for message in messages {
        let is_first = alternating.last().is_none_or(|last| last.role == ChatRole::System);
        match alternating.last_mut() {
            Some(last) if last.role == message.role && message.role != ChatRole::Tool && last.tool_calls.is_empty() => {
                last.content = joined(std::mem::take(&mut last.content), message.content);
                last.tool_calls = message.tool_calls;
                last.members.extend(message.members);
            }
            _ => {
                if is_first && message.role == ChatRole::Assistant {
                    let opening = "(The assistant begins the conversation.)";
                    alternating.push(ChatMessage::new(ChatRole::User, opening.into()));
                }
                alternating.push(message);
            }
        }
    }
    alternating
}

/// Joins two contents: texts with an empty line between them, otherwise lists of parts.
fn joined(one: Value, other: Value) -> Value {
    let parts = |content: Value| match content {
        Value::Array(parts) => parts,
        Value::String(text) => vec![json!({"type": "text", "text": text})],
        _ => Vec::new(),
    };
    match (one, other) {
        (Value::Null, content) | (content, Value::Null) => content,
        (Value::String(one), Value::String(other)) => Value::String(format!("{one}\n\n{other}")),
        (one, other) => Value::Array(parts(one).into_iter().chain(parts(other)).collect()),
    }
}

/// Splits an error text into clauses: a name and what is wrong with it are in the same one.
fn clauses(text: &str) -> impl Iterator<Item = &str> {
    text.split(". ").flat_map(|part| part.split(['\n', ';', '!'])).filter(|clause| !clause.trim().is_empty())
}

fn contains_any(text: &str, words: &[&str]) -> bool {
    words.iter().any(|word| text.contains(word))
}

fn range(text: &str, words: &str) -> Option<std::ops::Range<usize>> {
    text.find(words).map(|start| start..start + words.len())
}

/// Returns the range of a whole word.
fn word_range(text: &str, word: &str) -> Option<std::ops::Range<usize>> {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices(word)
        .map(|(start, _)| start..start + word.len())
        .find(|range| !text[..range.start].ends_with(is_part) && !text[range.end..].starts_with(is_part))
}

#[cfg(test)]
mod tests;
