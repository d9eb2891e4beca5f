//! Assembles one answer of the model from its deltas, in any dialect. Pure.
//!
//! Calls come in fragments, or whole; with an index, or without; some servers number all calls of a turn 0. A new name
//! with a new ID or index starts the next call. Names and arguments are repaired if they are unambiguous.

use serde_json::{Map, Value};

use super::code::{self, CodeReader};
use super::machine::{CompletedCall, Mark};
use crate::api::run::FinishReason;
use crate::api::run_step::ReplayedMembers;
use crate::api::stream::CallGrowth;
use crate::api::tool::{CalledTool, FunctionCall, ToolCall};
use crate::api::usage::Usage;
use crate::api::{Ids, ToolCallId};
use crate::llm::{CallPiece, ChatDelta, lenient, members};

/// Maximum number of calls in one turn; a model that makes more is stuck in a loop.
const CALLS_MAX: usize = 128;

/// A function that the model may call: one of the client, or a built-in tool.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownFunction {
    /// Its name.
    pub name: String,
    /// Whether it takes arguments.
    pub takes_arguments: bool,
    /// The built-in tool, without results; `None` for a function of the client.
    pub built_in: Option<CalledTool>,
}

impl KnownFunction {
    fn runs_code(&self) -> bool {
        matches!(self.built_in, Some(CalledTool::CodeInterpreter { .. }))
    }
}

/// The answer so far.
#[derive(Debug, Default)]
pub struct Turn {
    calls: Vec<Call>,
    /// Members of the message that are sent back to the model with its calls.
    members: Map<String, Value>,
    /// Text that clients do not see; it counts as tokens.
    hidden: String,
    /// Bytes of the members so far.
    member_bytes: usize,
    /// Tokens of the answer, once the server has reported them.
    pub usage: Option<Usage>,
    /// Why the answer ended, once the server has reported it.
    pub finish: Option<FinishReason>,
    /// The functions of the run.
    known: Vec<KnownFunction>,
    /// Whether only the first call counts.
    one_call: bool,
    /// Whether the calls were published as started. Used if there are built-in tools.
    are_started: bool,
}

#[derive(Debug)]
struct Call {
    id: ToolCallId,
    /// The server's index, and its ID of the call.
    index: Option<u32>,
    upstream_id: Option<String>,
    /// The name as the model wrote it.
    name: String,
    arguments: String,
    members: Map<String, Value>,
    /// Whether the call was published.
    is_published: bool,
    /// The part of the arguments that was published.
    published: std::ops::Range<usize>,
    /// Finds the end of the arguments. Later text is not published yet, because it may be a repetition.
    scanner: lenient::Scanner,
    /// Escapes raw control characters in the arguments, so that they are streamed as they are stored.
    escaper: lenient::Escaper,
    /// How far the arguments were scanned, in bytes.
    scanned: usize,
    is_whole: bool,
    /// Reads the code in the arguments, if it is a call of the code interpreter.
    code: CodeReader,
}

/// A part of the answer that is added to the run.
#[derive(Debug, Clone, PartialEq)]
pub enum TurnEvent {
    /// Further text.
    Text(String),
    /// Further text of a refusal.
    Refusal(String),
    /// A mark that refers to a file.
    Mark(Mark),
    /// The model has started to call tools. The calls follow when the turn has ended.
    CallsStarted,
    /// A new part of a call: the index of the call, and the part.
    Call(u32, CallGrowth),
}

/// The calls of a turn that has ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Calls {
    /// The calls, in order.
    pub made: Vec<CompletedCall>,
    /// Members that are sent back to the model with the calls.
    pub replay: Option<Box<ReplayedMembers>>,
}

impl Turn {
    /// Creates a turn without content. With `one_call`, calls after the first are ignored.
    #[must_use]
    pub fn new(known: Vec<KnownFunction>, one_call: bool) -> Self {
        Self { known, one_call, ..Self::default() }
    }

    /// Applies a delta, and returns what it adds to the run.
    pub fn apply(&mut self, delta: ChatDelta, ids: &Ids) -> Vec<TurnEvent> {
        match delta {
            ChatDelta::Text(text) => vec![TurnEvent::Text(text)],
            ChatDelta::Refusal(text) => vec![TurnEvent::Refusal(text)],
            ChatDelta::Call(piece) => self.apply_call(piece, ids),
            ChatDelta::Member(name, piece) => {
                self.member_bytes += crate::llm::tokens::json_bytes(&piece);
                members::merge(&mut self.members, &name, piece);
                Vec::new()
            }
            ChatDelta::Hidden(text) => {
                self.hidden.push_str(&text);
                Vec::new()
            }
            ChatDelta::Finish(reason) => {
                self.finish = Some(reason);
                // Publishes the buffered names and arguments.
                (0..self.calls.len()).flat_map(|index| self.publish(index, true)).collect()
            }
            ChatDelta::Usage(usage) => {
                self.usage = Some(usage);
                Vec::new()
            }
        }
    }

    fn apply_call(&mut self, piece: CallPiece, ids: &Ids) -> Vec<TurnEvent> {
        let index = match self.call_index(&piece) {
            Some(index) => index,
            None if self.calls.len() >= CALLS_MAX => return Vec::new(),
            None => {
                self.calls.push(Call {
                    id: ids.generate(),
                    index: piece.index,
                    upstream_id: piece.id.clone(),
                    name: String::new(),
                    arguments: String::new(),
                    members: Map::new(),
                    is_published: false,
                    published: 0..0,
                    scanner: lenient::Scanner::default(),
                    escaper: lenient::Escaper::default(),
                    scanned: 0,
                    is_whole: false,
                    code: CodeReader::default(),
                });
                self.calls.len() - 1
            }
        };
        if let Some(name) = &piece.name {
            self.extend_name(index, name);
        }
        let runs_code = self.function(&self.calls[index].name).is_some_and(KnownFunction::runs_code);
        let call = &mut self.calls[index];
        // Code that is not in an object has the line feeds that it needs.
        let first = || call.arguments.chars().chain(piece.arguments.chars()).find(|first| !first.is_whitespace());
        if runs_code && first() != Some('{') {
            call.arguments.push_str(&piece.arguments);
        } else {
            let arguments = call.escaper.push(&piece.arguments);
            call.arguments.push_str(&arguments);
        }
        if call.upstream_id.is_none() {
            call.upstream_id = piece.id;
        }
        for (name, value) in piece.members {
            self.member_bytes += crate::llm::tokens::json_bytes(&value);
            members::merge(&mut call.members, &name, value);
        }
        self.publish(index, false)
    }

    /// Appends to a name that the server sends in pieces. A name that is complete or repeated stays.
    fn extend_name(&mut self, index: usize, piece: &str) {
        let call = &self.calls[index];
        let is_incomplete = call.name != piece && self.function(&call.name).is_none();
        if is_incomplete || self.is_rest_of_name(call, piece) {
            self.calls[index].name.push_str(piece);
        }
    }

    /// Returns whether a name continues the name of a call: the joined name is the start of a function's name.
    fn is_rest_of_name(&self, call: &Call, piece: &str) -> bool {
        let joined = format!("{}{piece}", call.name);
        let starts_name = self.known.iter().any(|function| function.name.starts_with(&joined));
        call.arguments.is_empty() && !call.is_published && starts_name
    }

    /// Publishes new parts of a call after its name is known. Until the turn `has_ended`, holds back text that may repeat
    /// the arguments, and an empty object, which the real arguments may follow.
    fn publish(&mut self, index: usize, has_ended: bool) -> Vec<TurnEvent> {
        if index > 0 && self.one_call {
            return Vec::new();
        }
        if self.has_built_in_tools() {
            return self.publish_built_in(index);
        }
        let mut events = Vec::new();
        // Calls are published in order.
        for before in 0..index {
            events.extend(self.publish_name(before, true));
        }
        let is_begun = has_ended || !self.calls[index].arguments.is_empty();
        events.extend(self.publish_name(index, is_begun));
        if !self.calls[index].is_published {
            return events;
        }
        let takes_arguments = self.takes_arguments(index);
        let more = self.calls[index].new_arguments(has_ended, takes_arguments);
        if !more.is_empty() {
            events.push(TurnEvent::Call(number(index), CallGrowth::Arguments(more)));
        }
        events
    }

    /// Publishes that calls have started, and the code of the code interpreter while the model writes it, after the calls of
    /// built-in tools before it. All other calls are published when they are complete, because those of built-in tools are
    /// in a step before those of functions.
    fn publish_built_in(&mut self, index: usize) -> Vec<TurnEvent> {
        let is_first = !std::mem::replace(&mut self.are_started, true);
        let mut events: Vec<TurnEvent> = is_first.then_some(TurnEvent::CallsStarted).into_iter().collect();
        let runs_code = self.function(&self.calls[index].name).is_some_and(KnownFunction::runs_code);
        if !runs_code || self.calls[index].arguments.is_empty() {
            return events;
        }
        let mut count = 0;
        for position in 0..=index {
            let Some(known) = self.function(&self.calls[position].name) else { break };
            let Some(tool) = known.built_in.clone() else { continue };
            let runs_code = known.runs_code();
            let call = &mut self.calls[position];
            if !std::mem::replace(&mut call.is_published, true) {
                let started = ToolCall { id: call.id.clone(), tool };
                events.push(TurnEvent::Call(count, CallGrowth::BuiltIn(started)));
            }
            if runs_code {
                let more = call.code.push(&call.arguments[call.published.end..]);
                call.published.end = call.arguments.len();
                if !more.is_empty() {
                    events.push(TurnEvent::Call(count, CallGrowth::Code(more)));
                }
            }
            count += 1;
        }
        events
    }

    /// Publishes a call that is not published yet, if its name is known or `must_start`.
    fn publish_name(&mut self, index: usize, must_start: bool) -> Option<TurnEvent> {
        let known = self.function(&self.calls[index].name).map(|function| function.name.clone());
        let call = &mut self.calls[index];
        // More of the name may follow.
        let is_ambiguous =
            self.known.iter().any(|function| function.name != call.name && function.name.starts_with(&call.name));
        if call.is_published || call.name.is_empty() || is_ambiguous && !must_start {
            return None;
        }
        let name = known.or_else(|| must_start.then(|| call.name.clone()))?;
        call.is_published = true;
        Some(TurnEvent::Call(number(index), CallGrowth::Started { id: call.id.clone(), name }))
    }

    /// Whether the run has built-in tools.
    fn has_built_in_tools(&self) -> bool {
        self.known.iter().any(|function| function.built_in.is_some())
    }

    fn takes_arguments(&self, index: usize) -> bool {
        self.function(&self.calls[index].name).is_none_or(|function| function.takes_arguments)
    }

    /// Returns the index of the call that a piece continues; `None` if it starts a new call.
    fn call_index(&self, piece: &CallPiece) -> Option<usize> {
        let last = self.calls.len().checked_sub(1)?;
        let by_id = |id: &String| self.calls.iter().rposition(|call| call.upstream_id.as_ref() == Some(id));
        let found = match (piece.index, &piece.id) {
            (Some(index), _) => self.calls.iter().rposition(|call| call.index == Some(index))?,
            (None, Some(id)) => match by_id(id) {
                Some(found) => found,
                None if piece.name.is_some() => return None,
                // Some servers generate a new ID for each piece.
                None => last,
            },
            (None, None) => last,
        };
        (!self.starts_call(piece, &self.calls[found])).then_some(found)
    }

    /// Returns whether a piece starts a new call although its index or ID is that of `call`: some servers use the same for
    /// all calls.
    fn starts_call(&self, piece: &CallPiece, call: &Call) -> bool {
        let Some(name) = &piece.name else { return false };
        if call.name.is_empty() || self.is_rest_of_name(call, name) {
            return false;
        }
        if piece.id.is_some() && call.upstream_id.is_some() && piece.id != call.upstream_id {
            return true;
        }
        match (self.function(&call.name), self.function(name)) {
            (Some(current), Some(named)) if current != named => true,
            (Some(_), Some(_)) => {
                let has_neither = piece.id.is_none() && piece.index.is_none();
                // The same object again is a repetition; another one is another call.
                let value = |text: &str| {
                    serde_json::from_str::<Map<String, Value>>(text).ok().filter(|object| !object.is_empty())
                };
                let (current, added) = (value(&call.arguments), value(&piece.arguments));
                let is_other = current.is_some() && added.is_some() && current != added;
                has_neither || is_other
            }
            // The rest of a name that comes in pieces.
            (_, None) | (None, _) => !call.arguments.is_empty(),
        }
    }

    /// Returns the function that a name refers to. Some models write `functions.f`, ` f` or `f<|channel|>commentary`.
    fn function(&self, name: &str) -> Option<&KnownFunction> {
        let exact = |name: &str| self.known.iter().find(|function| function.name == name);
        let before_token = name.split("<|").next().unwrap_or_default().trim();
        let after_prefix = before_token.rsplit(['.', '/', ':']).next().unwrap_or_default();
        let inside = || {
            let is_in_name = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
            only(name.split(|character| !is_in_name(character)).filter_map(exact))
        };
        let plain = |name: &str| name.replace(['_', '-'], "").to_ascii_lowercase();
        let in_other_case = || only(self.known.iter().filter(|function| plain(&function.name) == plain(after_prefix)));
        exact(name)
            .or_else(|| exact(before_token))
            .or_else(|| exact(after_prefix))
            .or_else(inside)
            .or_else(in_other_case)
            .or_else(|| self.known.iter().find(|function| function.runs_code() && code::is_alias(after_prefix)))
    }

    /// Returns the parts of the answer that are not text of the message: calls, thinking, and other members.
    #[must_use]
    pub fn other_texts(&self) -> Vec<String> {
        let calls = self.calls.iter().flat_map(|call| [call.name.clone(), call.arguments.clone()]);
        let members = self.members.values().map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        calls.chain(members).chain([self.hidden.clone()]).filter(|text| !text.is_empty()).collect()
    }

    /// Returns the size of the parts that are not text of the message, in bytes.
    #[must_use]
    pub fn other_bytes(&self) -> usize {
        self.calls.iter().map(|call| call.arguments.len()).sum::<usize>() + self.member_bytes + self.hidden.len()
    }

    /// Whether a call has arguments that are not complete, such as those of an answer that was cut off.
    #[must_use]
    pub fn has_incomplete_call(&self) -> bool {
        self.calls.iter().any(|call| !call.is_whole && lenient::parse(&call.arguments).is_none())
    }

    /// Returns the calls of a turn of `model` that has ended. Arguments that are not a JSON object and cannot be repaired
    /// are returned unchanged: the client decides.
    ///
    /// # Errors
    /// A text for the run's `last_error` if the model called a function that the run does not have.
    pub fn into_calls(mut self, model: &str) -> Result<Calls, String> {
        let counted = if self.one_call { 1 } else { CALLS_MAX };
        self.calls.retain(|call| !call.name.is_empty());
        let functions: Vec<Option<KnownFunction>> =
            self.calls.iter().map(|call| self.function(&call.name).cloned()).collect();
        let (mut made, mut call_members) = (Vec::new(), Vec::new());
        for (call, function) in self.calls.into_iter().zip(functions).take(counted) {
            let Some(function) = function else {
                return Err(format!("The model called the function '{}', which this run does not have.", call.name));
            };
            let (arguments, built_in) = match function.built_in {
                Some(CalledTool::CodeInterpreter { .. }) => {
                    let (arguments, called) = code::call(&call.arguments);
                    (arguments, Some(called))
                }
                built_in => (lenient::arguments(&call.arguments, function.takes_arguments), built_in),
            };
            // The ID of another call cannot identify this one.
            let is_unique = |id: &String| !made.iter().any(|other: &CompletedCall| other.upstream_id == *id);
            let upstream_id = call.upstream_id.filter(is_unique).unwrap_or_else(|| call.id.to_string());
            let call_made = FunctionCall { id: call.id, name: function.name, arguments };
            made.push(CompletedCall { call: call_made, built_in, upstream_id });
            call_members.push(call.members);
        }
        if call_members.iter().all(Map::is_empty) {
            call_members.clear();
        }
        let has_members = !self.members.is_empty() || !call_members.is_empty();
        let replay = has_members
            .then(|| Box::new(ReplayedMembers { model: model.to_owned(), message: self.members, calls: call_members }));
        Ok(Calls { made, replay })
    }
}

/// Returns the only function of an iterator that has one or several times the same.
fn only<'a>(mut found: impl Iterator<Item = &'a KnownFunction>) -> Option<&'a KnownFunction> {
    let first = found.next()?;
    found.all(|other| other == first).then_some(first)
}

impl Call {
    /// Returns further arguments that can be published now.
    fn new_arguments(&mut self, has_ended: bool, takes_arguments: bool) -> String {
        if self.published.is_empty() {
            // Blanks before the arguments are not published.
            let rest = &self.arguments[self.published.end..];
            let blanks = rest.len() - rest.trim_start().len();
            self.published = self.published.end + blanks..self.published.end + blanks;
            self.scanned = self.scanned.max(self.published.end);
        }
        let mut start = self.published.end;
        let mut end = self.scanned;
        while end < self.arguments.len() && !self.is_whole {
            self.is_whole = self.scanner.push(self.arguments.as_bytes()[end]);
            end += 1;
            if self.is_whole && self.published.is_empty() && is_start_of_empty_object(&self.arguments[start..end]) {
                // Skipped if anything follows it.
                if self.arguments[end..].trim().is_empty() {
                    self.is_whole = false;
                    self.scanner = lenient::Scanner::default();
                    end = start;
                    break;
                }
                self.published = end..end;
                start = end;
                self.is_whole = false;
            }
        }
        self.scanned = end;
        if has_ended {
            // The rest is published if the published part is a prefix of the repaired arguments.
            let whole = lenient::arguments(&self.arguments, takes_arguments);
            let shown = &self.arguments[self.published.clone()];
            let more = whole.strip_prefix(shown).unwrap_or_default().to_owned();
            self.published.end = self.arguments.len();
            return more;
        }
        let written = &self.arguments[start..end];
        // Arguments that do not start as an object are repaired at the end of the turn, if possible.
        let is_held = self.published.is_empty() && (!written.starts_with('{') || is_start_of_empty_object(written));
        if written.is_empty() || is_held {
            return String::new();
        }
        self.published.end = end;
        self.arguments[start..end].to_owned()
    }
}

/// Returns whether this may be an empty object that the real arguments follow.
fn is_start_of_empty_object(arguments: &str) -> bool {
    let mut rest = arguments.trim_start().chars();
    matches!((rest.next(), rest.as_str().trim()), (None, _) | (Some('{'), "" | "}"))
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("a turn has few calls")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn piece(index: Option<u32>, id: &str, name: &str, arguments: &str) -> ChatDelta {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let arguments = arguments.to_owned();
        ChatDelta::Call(CallPiece { index, id: some(id), name: some(name), arguments, members: Map::new() })
    }

    fn turn(one_call: bool) -> Turn {
        let function =
            |name: &str, takes_arguments| KnownFunction { name: name.to_owned(), takes_arguments, built_in: None };
        Turn::new(vec![function("f", true), function("g", false), function("get_time", true)], one_call)
    }

    /// Returns the names and arguments of the calls in these pieces.
    fn calls(pieces: Vec<ChatDelta>, one_call: bool) -> Result<Vec<(String, String)>, String> {
        let ids = Ids::counting();
        let mut turn = turn(one_call);
        let mut events = Vec::new();
        for piece in pieces.into_iter().chain([ChatDelta::Finish(FinishReason::Stop)]) {
            events.extend(turn.apply(piece, &ids));
        }
        let calls = turn.into_calls("m")?.made;
        let calls: Vec<(String, String)> =
            calls.into_iter().map(|made| (made.call.name, made.call.arguments)).collect();
        // The published arguments equal those of the call, except for repairs inside of the arguments.
        let published = published(&events);
        assert_eq!(published.len(), calls.len());
        for ((name, arguments), (shown_name, shown)) in calls.iter().zip(&published) {
            assert_eq!(name, shown_name);
            assert!(arguments == shown || !arguments.starts_with(shown.as_str()), "{shown} is not {arguments}");
        }
        Ok(calls)
    }

    /// Returns the names and arguments of the published calls.
    fn published(events: &[TurnEvent]) -> Vec<(String, String)> {
        let mut calls: Vec<(String, String)> = Vec::new();
        for event in events {
            match event {
                TurnEvent::Call(index, CallGrowth::Started { name, .. }) => {
                    assert_eq!(*index as usize, calls.len(), "calls begin in order");
                    calls.push((name.clone(), String::new()));
                }
                TurnEvent::Call(index, CallGrowth::Arguments(more)) => calls[*index as usize].1.push_str(more),
                TurnEvent::Call(_, CallGrowth::BuiltIn(_) | CallGrowth::Code(_) | CallGrowth::Output(..))
                | TurnEvent::Text(_)
                | TurnEvent::Refusal(_)
                | TurnEvent::Mark(_)
                | TurnEvent::CallsStarted => {}
            }
        }
        calls
    }

    fn two() -> Vec<(String, String)> {
        vec![("f".into(), "{\"a\":1}".into()), ("g".into(), "{}".into())]
    }

    #[test]
    fn each_servers_dialect_makes_the_same_two_calls() {
        let dialects = [
            // In fragments, with an index: OpenAI, Azure, vLLM, llama.cpp.
            vec![
                piece(Some(0), "a", "f", ""),
                piece(Some(0), "", "", "{\"a\""),
                piece(Some(0), "", "", ":1}"),
                piece(Some(1), "b", "g", ""),
                piece(Some(1), "", "", "{}"),
            ],
            // Each call complete in one chunk: Ollama, Mistral.
            vec![piece(Some(0), "a", "f", "{\"a\":1}"), piece(Some(1), "b", "g", "{}")],
            // All with index 0.
            vec![piece(Some(0), "a", "f", "{\"a\":1}"), piece(Some(0), "b", "g", "{}")],
            // Without an index.
            vec![piece(None, "a", "f", "{\"a\":1}"), piece(None, "b", "g", "{}")],
            // Without an ID.
            vec![piece(Some(0), "", "f", "{\"a\":1}"), piece(Some(1), "", "g", "")],
            // With neither.
            vec![piece(None, "", "f", "{\"a\":"), piece(None, "", "", "1}"), piece(None, "", "g", "null")],
            // ID and name repeated in each fragment.
            vec![
                piece(Some(0), "a", "f", "{\"a\":"),
                piece(Some(0), "a", "f", "1}"),
                piece(Some(1), "b", "g", "{"),
                piece(Some(1), "b", "g", "}"),
            ],
        ];

        for pieces in dialects {
            assert_eq!(calls(pieces.clone(), false), Ok(two()), "{pieces:?}");
        }
    }

    #[test]
    fn with_one_call_a_turn_the_others_are_ignored() {
        let pieces = vec![piece(Some(0), "a", "f", "{\"a\":1}"), piece(Some(1), "b", "g", "{}")];
        let ids = Ids::counting();
        let mut turn = turn(true);

        let events: Vec<TurnEvent> = pieces.clone().into_iter().flat_map(|piece| turn.apply(piece, &ids)).collect();

        assert_eq!(events.len(), 2, "the start of one call and its arguments");
        assert_eq!(calls(pieces, true), Ok(vec![("f".into(), "{\"a\":1}".into())]));
    }

    #[test]
    fn a_known_name_inside_of_a_name_is_used() {
        for name in ["functions.f", " f", "f<|channel|>commentary", "functions.f:0", "tool/f", "f "] {
            assert_eq!(
                calls(vec![piece(Some(0), "a", name, "{}")], false),
                Ok(vec![("f".into(), "{}".into())]),
                "{name}"
            );
        }
        for (pieces, expected) in [
            (vec!["delete", "_draft"], "delete_draft"),
            (vec!["sen", "d_", "draft"], "send_draft"),
            (vec!["send"], "send"),
            (vec!["search", "_web"], "search_web"),
            (vec!["get", "_time"], "get_time"),
        ] {
            let names = ["delete", "delete_draft", "send", "send_draft", "search", "web", "search_web", "get_time"];
            let known =
                names.map(|name| KnownFunction { name: name.to_owned(), takes_arguments: true, built_in: None });
            let mut turn = Turn::new(known.to_vec(), false);
            let names = pieces.iter().map(|name| piece(Some(0), "a", name, ""));
            let deltas = names.chain([piece(Some(0), "", "", "{\"a\":1}")]);
            let events: Vec<TurnEvent> = deltas.flat_map(|delta| turn.apply(delta, &Ids::counting())).collect();
            assert_eq!(published(&events), [(expected.to_owned(), "{\"a\":1}".to_owned())], "{pieces:?}");
            assert_eq!(turn.into_calls("m").unwrap().made[0].call.name, expected);
        }
        let in_pieces =
            vec![piece(Some(0), "a", "get_", ""), piece(Some(0), "", "time", ""), piece(Some(0), "", "", "{}")];
        assert_eq!(calls(in_pieces, false), Ok(vec![("get_time".into(), "{}".into())]));
    }

    #[test]
    fn repeated_and_empty_arguments_are_used_once() {
        for arguments in [
            vec!["{}", "{\"a\"", ":1}"],
            vec!["{\"a\":1}", "{\"a\":1}"],
            vec!["{\"a\":1}{", "\"a\":1}"],
            vec!["{", "}", " {\"a\":1}"],
            vec!["{\"a\":1}", "{}"],
        ] {
            let pieces = arguments.iter().map(|more| piece(Some(0), "a", "f", more)).collect();

            assert_eq!(calls(pieces, false), Ok(vec![("f".into(), "{\"a\":1}".into())]), "{arguments:?}");
        }
    }

    #[test]
    fn arguments_that_cannot_be_repaired_are_unchanged() {
        for arguments in ["{\"a\":", "[1]", "{\"a\":1}{\"b\":2}", "{}x", "no json", "{\"a\":\"\\ud83d\"}"] {
            let made = calls(vec![piece(Some(0), "a", "f", arguments)], false);

            assert_eq!(made, Ok(vec![("f".into(), arguments.to_owned())]));
        }
        assert_eq!(calls(vec![piece(Some(0), "a", "g", "[]")], false), Ok(vec![("g".into(), "{}".into())]));
    }

    #[test]
    fn an_unknown_function_is_an_error() {
        let unknown = turn_error(piece(Some(0), "a", "say_hello", "{}"));

        assert_eq!(unknown, "The model called the function 'say_hello', which this run does not have.");
    }

    fn turn_error(delta: ChatDelta) -> String {
        let mut turn = turn(false);
        turn.apply(delta, &Ids::counting());
        turn.into_calls("m").unwrap_err()
    }

    #[test]
    fn members_are_collected_for_the_message_and_for_each_call() {
        let signature = |part: &str| Map::from_iter([("extra_content".to_owned(), json!({part: part}))]);
        let deltas = [
            ChatDelta::Member("reasoning_content".to_owned(), json!("Let")),
            ChatDelta::Member("reasoning_content".to_owned(), json!(" me")),
            piece(Some(0), "a", "f", "{}"),
            ChatDelta::Call(CallPiece { index: Some(0), members: signature("x"), ..CallPiece::default() }),
            ChatDelta::Call(CallPiece { members: signature("y"), ..CallPiece::default() }),
        ];
        let mut turn = turn(false);
        for delta in deltas {
            turn.apply(delta, &Ids::counting());
        }

        assert!(turn.other_texts().contains(&"Let me".to_owned()));
        let replay = turn.into_calls("m").unwrap().replay.unwrap();
        assert_eq!((replay.model, json!(replay.message)), ("m".to_owned(), json!({"reasoning_content": "Let me"})));
        assert_eq!(json!(replay.calls), json!([{"extra_content": {"x": "x", "y": "y"}}]));
    }
}
