//! The JSON body of a request, adapted to what a model of a server accepts. Pure.
//!
//! A server that rejects a request may say which part of it is not supported. The request is then sent again without
//! that part, and if it is accepted, later requests for the same model omit it as well. A request is changed only if
//! the error names the part as unsupported. Words that also occur in the prompt are ignored, because servers quote the
//! prompt.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::report::Report;
use crate::llm::{ChatMessage, ChatRequest, ChatRole};

/// Parameters that a request can omit, and the other names under which errors mention them.
const OPTIONAL: [(&str, &[&str]); 6] = [
    ("stream_options", &["streamOptions"]),
    ("parallel_tool_calls", &["parallelToolCalls", "parallel tool calls", "parallel function calls"]),
    ("temperature", &[]),
    ("top_p", &["topP"]),
    (
        "reasoning_effort",
        &["reasoningEffort", "reasoning effort", "reasoning value", "think value", "thinking", "reasoning"],
    ),
    ("strict", &[]),
];
/// The two names of the limit on completion tokens. At most one of them is omitted.
const LIMITS: [(&str, &[&str]); 2] =
    [("max_tokens", &["maxTokens"]), ("max_completion_tokens", &["maxCompletionTokens"])];
/// Parameters of which some models accept only one: the first is omitted.
const EXCLUSIVE: [(&str, &str); 2] = [("max_tokens", "max_completion_tokens"), ("top_p", "temperature")];
/// Words with which servers say that something is not supported.
const UNSUPPORTED: [&str; 45] = [
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
    "cannot both",
    "mutually exclusive",
    "only one of",
    "cannot specify both",
    "only 1 is",
    "may only be set",
    "be set to 1 ",
    "only the default",
    "use only one",
    "is allowed for this model",
    "please remove",
    "no endpoints found that support",
    "invalid message role",
    "参数非法",
];
/// Words that reject any value of `reasoning_effort`, whose values differ between models.
const INVALID_VALUE: [&str; 4] = ["must be one of", "input should be", "invalid reasoning", "invalid value"];
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
/// Words after which an error text lists what is supported, or repeats the request.
const LISTS: [&str; 7] = [
    "expected one of",
    "supported parameters",
    "valid parameters",
    "allowed parameters",
    "'input'",
    "\"input\"",
    "instead",
];

/// Parts of requests that a model does not accept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Adaptations(BTreeSet<Change>);

impl Adaptations {
    /// Returns whether a parameter is omitted.
    #[must_use]
    pub fn omits(&self, parameter: &str) -> bool {
        self.0.iter().any(|change| matches!(change, Change::Omit(name) if name == parameter))
    }

    /// Omits a parameter.
    #[must_use]
    pub fn omitting(mut self, parameter: &str) -> Self {
        self.0.insert(Change::Omit(parameter.to_owned()));
        self
    }
}

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
    /// Sends an empty text where the assistant's content is null.
    ContentAsText,
}

impl std::fmt::Display for Change {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Omit(name) => write!(formatter, "{name} is omitted"),
            Self::AlternateRoles => write!(formatter, "messages of one role are joined"),
            Self::SystemAsUser => write!(formatter, "instructions are sent in a user message"),
            Self::EndWithUser => write!(formatter, "the last message is a user message"),
            Self::ContentAsText => write!(formatter, "empty content is sent as a text"),
        }
    }
}

/// The JSON body of a chat request.
#[derive(Debug)]
pub struct RequestBody {
    json: Bytes,
    /// The body without the changes after rejections; the same bytes until there is one.
    original: Bytes,
    adaptations: Adaptations,
    /// Changes that were tried for this request: each is tried once.
    tried: BTreeSet<Change>,
    /// The last change, and the error that asked for it.
    last: Option<(Change, String)>,
}

/// The wire form of a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
        let json = serialize(&changed(wire, &adaptations));
        Self { original: json.clone(), json, adaptations, tried: BTreeSet::new(), last: None }
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

    /// Changes the body after the server has rejected it, and returns the change. Returns `None` if the error names nothing
    /// that can be changed. Reverts a change after which the server reports the same error.
    pub fn adapt(&mut self, report: &Report) -> Option<Change> {
        let original: Wire = serde_json::from_slice(&self.original).ok()?;
        if let Some((change, error)) = self.last.take()
            && error == report.message
        {
            self.adaptations.0.remove(&change);
        }
        let prompt = prompt_text(&original.request);
        let wire = changed(original.clone(), &self.adaptations);
        let diagnosis = Diagnosis { optional: optional(&wire), prompt, tried: &self.tried };
        let Some(change) = diagnosis.change(report) else {
            self.json = serialize(&wire);
            return None;
        };
        if let Change::Omit(name) = &change
            && is_limit(name)
        {
            // One name of the limit is always sent.
            self.adaptations.0.retain(|known| !matches!(known, Change::Omit(other) if is_limit(other)));
        }
        self.tried.insert(change.clone());
        self.adaptations.0.insert(change.clone());
        self.json = serialize(&changed(original, &self.adaptations));
        self.last = Some((change.clone(), report.message.clone()));
        Some(change)
    }
}

/// Finds the change that an error requires.
struct Diagnosis<'a> {
    /// The parameters and members that the request can omit.
    optional: BTreeSet<String>,
    /// The prompt, in the form of [`prompt_text`].
    prompt: String,
    /// Changes that were tried before.
    tried: &'a BTreeSet<Change>,
}

impl Diagnosis<'_> {
    /// Returns the change that an error requires.
    fn change(&self, report: &Report) -> Option<Change> {
        let named =
            report.param.as_deref().and_then(|param| param.rsplit(['.', ']', '[']).find(|part| !part.is_empty()));
        let says_unsupported = std::iter::once(&report.message)
            .chain(&report.codes)
            .any(|text| contains_any(&text.to_lowercase().replace('_', " "), &UNSUPPORTED));
        let is_out_of_range = contains_any(&report.message.to_lowercase(), &OUT_OF_RANGE);
        if let Some(name) = named.filter(|name| says_unsupported && !is_out_of_range && self.optional.contains(*name)) {
            let change = Change::Omit(name.to_owned());
            if !self.tried.contains(&change) {
                return Some(change);
            }
        }
        let effort = "reasoning_effort";
        let change = Change::Omit(effort.to_owned());
        if named == Some(effort)
            && self.optional.contains(effort)
            && contains_any(&report.message.to_lowercase(), &INVALID_VALUE)
            && !self.tried.contains(&change)
        {
            return Some(change);
        }
        // An indented line continues the one before.
        let message = report.message.replace("\n ", " ");
        clauses(&message).find_map(|clause| self.change_in(clause))
    }

    /// Returns the change that one clause of an error text requires.
    fn change_in(&self, clause: &str) -> Option<Change> {
        let lower = clause.to_ascii_lowercase();
        let got_null = ["got null", "received null"].iter().find_map(|words| range(&lower, words));
        let end = LISTS.iter().filter_map(|words| start_of_words(&lower, words)).min().unwrap_or(lower.len());
        let lower = &lower[..end];
        let find_any =
            |words: &[&str]| words.iter().filter_map(|word| range(lower, word)).min_by_key(|range| range.start);
        let candidate = |change: Change, one: Option<Range<usize>>, other: Option<Range<usize>>| {
            let words = between(clause, &one?, &other?);
            (!self.tried.contains(&change) && !self.quotes(words)).then_some(change)
        };

        let people = find_any(&["role", "user", "message", "conversation"]);
        let order = find_any(&[
            "alternat",
            "consecutive",
            "same role",
            "roles must",
            "first message must",
            "must start with",
            "2 or more assistant",
            "after role",
        ]);
        let last = find_any(&[
            "last role",
            "last message",
            "must end with",
            "end with a user",
            "ends with a user",
            "prefill",
            "no user query",
        ]);
        let system = find_any(&[
            "system role",
            "system message",
            "system prompt",
            "system instruction",
            "developer instruction",
            "only user",
        ])
        .or_else(|| find_any(&["role", "value"]).and(word_range(lower, "system")));
        let unsupported = find_any(&UNSUPPORTED);
        let wrong = || unsupported.clone().or_else(|| find_any(&["only user", "invalid value"]));
        let content = word_range(lower, "content");
        let null = got_null.or_else(|| find_any(&["valid string", "must be a string", "null"]));
        candidate(Change::AlternateRoles, order, people.clone())
            .or_else(|| candidate(Change::EndWithUser, last.clone(), people.or(last)))
            .or_else(|| candidate(Change::SystemAsUser, system, wrong()))
            .or_else(|| candidate(Change::ContentAsText, content, null))
            .or_else(|| self.omission(&clause[..end], lower, unsupported.as_ref()))
    }

    /// Returns the parameter or member that a clause says is not supported: the one nearest to these words.
    fn omission(&self, clause: &str, lower: &str, unsupported: Option<&Range<usize>>) -> Option<Change> {
        let wrong_effort = INVALID_VALUE.iter().filter_map(|words| range(lower, words)).min_by_key(|range| range.start);
        if contains_any(lower, &OUT_OF_RANGE) {
            return None;
        }
        let mut found: Vec<(usize, Range<usize>, &String)> = Vec::new();
        for name in &self.optional {
            let other_names =
                OPTIONAL.iter().chain(&LIMITS).find(|(known, _)| known == name).map_or(&[][..], |(_, names)| *names);
            let other = other_names.iter().filter_map(|name| word_range(lower, &name.to_ascii_lowercase()));
            let ranges = word_range(clause, name).into_iter().chain(other);
            let Some(name_range) = ranges.min_by_key(|range| range.start) else { continue };
            let wrong = if name == "reasoning_effort" { unsupported.or(wrong_effort.as_ref()) } else { unsupported };
            let Some(wrong) = wrong else { continue };
            let distance = name_range.start.saturating_sub(wrong.end).max(wrong.start.saturating_sub(name_range.end));
            let change = Change::Omit(name.clone());
            if !self.tried.contains(&change) && !self.quotes(between(clause, &name_range, wrong)) {
                found.push((distance, name_range, name));
            }
        }
        let is_found = |name: &str| found.iter().any(|(_, _, found)| *found == name);
        for (omitted, kept) in EXCLUSIVE {
            let is_exclusive = contains_any(lower, &["both", "only one", "same time", "exclusive"]);
            if is_exclusive && is_found(omitted) && is_found(kept) {
                return Some(Change::Omit(omitted.to_owned()));
            }
        }
        let nearest = found.into_iter().min_by_key(|(distance, range, _)| (*distance, range.start));
        nearest.map(|(_, _, name)| Change::Omit(name.clone()))
    }

    /// Returns whether the prompt has these words, so that the server may only quote it. Servers quote in different ways:
    /// only letters and digits are compared, and escaped characters in the words are omitted.
    fn quotes(&self, words: &str) -> bool {
        [plain(words), plain(&without_escapes(words))].iter().any(|words| self.prompt.contains(words))
    }
}

/// Returns the words from the name of a part to what is wrong with it, in either order.
fn between<'a>(clause: &'a str, one: &Range<usize>, other: &Range<usize>) -> &'a str {
    &clause[one.start.min(other.start)..one.end.max(other.end)]
}

/// Returns the request with the changes.
fn changed(mut wire: Wire, adaptations: &Adaptations) -> Wire {
    for change in &adaptations.0 {
        apply(change, &mut wire);
    }
    wire
}

/// Returns the letters and digits of all texts of a prompt, including its tools.
fn prompt_text(request: &ChatRequest) -> String {
    let mut texts = String::new();
    for message in &request.messages {
        let members = message.tool_calls.iter().chain(message.members.values());
        std::iter::once(&message.content).chain(members).for_each(|value| collect_texts(value, &mut texts));
    }
    request.tools.iter().for_each(|tool| collect_texts(tool, &mut texts));
    texts
}

fn serialize(wire: &Wire) -> Bytes {
    serde_json::to_vec(wire).expect("a request of strings, numbers and JSON values serializes").into()
}

fn is_limit(name: &str) -> bool {
    LIMITS.iter().any(|(limit, _)| *limit == name)
}

/// Appends the letters and digits of all strings in a value, once as they are and once without the escapes that they
/// contain.
fn collect_texts(value: &Value, texts: &mut String) {
    match value {
        Value::String(text) => {
            texts.push_str(&plain(text));
            texts.push(' ');
            if text.contains('\\') {
                texts.push_str(&plain(&without_escapes(text)));
                texts.push(' ');
            }
        }
        Value::Array(elements) => elements.iter().for_each(|element| collect_texts(element, texts)),
        Value::Object(members) => members.values().for_each(|member| collect_texts(member, texts)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Returns the ASCII letters and digits of a text, in lower case.
fn plain(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).map(|character| character.to_ascii_lowercase()).collect()
}

/// Returns a text without its escapes, such as `\n`, `\u00e9` and `\xe9`.
fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('\\') {
        plain.push_str(&rest[..start]);
        rest = rest[start..].trim_start_matches('\\');
        let length = match rest.as_bytes().first() {
            Some(b'u') => 5,
            Some(b'x') => 3,
            Some(b'n' | b'r' | b't') => 1,
            _ => 0,
        };
        rest = rest.get(length..).unwrap_or_default();
        plain.push(' ');
    }
    plain.push_str(rest);
    plain
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
        OPTIONAL.iter().zip(present).filter(|(_, present)| *present).map(|((name, _), _)| (*name).to_owned()).collect();
    if wire.max_tokens.is_some() || request.max_completion_tokens.is_some() {
        let sent = [wire.max_tokens.is_some(), request.max_completion_tokens.is_some()];
        names.extend(LIMITS.iter().zip(sent).filter(|(_, sent)| *sent).map(|((name, _), _)| (*name).to_owned()));
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
            // The limit is always sent under one of its names.
            "max_tokens" => request.max_completion_tokens = request.max_completion_tokens.or(wire.max_tokens.take()),
            "max_completion_tokens" => wire.max_tokens = wire.max_tokens.or(request.max_completion_tokens.take()),
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
        Change::ContentAsText => {
            for message in request.messages.iter_mut().filter(|message| message.content.is_null()) {
                message.content = Value::String(String::new());
            }
        }
        Change::EndWithUser => {
            let last = request.messages.last();
            let is_user = |role: ChatRole| matches!(role, ChatRole::User | ChatRole::Tool);
            if last.is_none_or(|last| !is_user(last.role) && last.tool_calls.is_empty()) {
                request.messages.push(ChatMessage::new(ChatRole::User, "Please continue.".into()));
            }
        }
    }
}

/// Joins neighboring messages of one role. Inserts a user message before an assistant message at the beginning.
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

/// Splits an error text into clauses. The name of a part and the phrase that rejects it are in the same clause.
fn clauses(text: &str) -> impl Iterator<Item = &str> {
    text.split(". ").flat_map(|part| part.split(['\n', ';', '!'])).filter(|clause| !clause.trim().is_empty())
}

fn contains_any(text: &str, words: &[&str]) -> bool {
    words.iter().any(|word| text.contains(word))
}

fn range(text: &str, words: &str) -> Option<Range<usize>> {
    text.find(words).map(|start| start..start + words.len())
}

/// Returns the start of words that are not preceded by a letter.
fn start_of_words(text: &str, words: &str) -> Option<usize> {
    text.match_indices(words).map(|(start, _)| start).find(|start| !text[..*start].ends_with(char::is_alphanumeric))
}

/// Returns the range of a whole word.
fn word_range(text: &str, word: &str) -> Option<Range<usize>> {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices(word)
        .map(|(start, _)| start..start + word.len())
        .find(|range| !text[..range.start].ends_with(is_part) && !text[range.end..].starts_with(is_part))
}

#[cfg(test)]
mod tests;
