//! Assembles one answer of the model from its deltas, in any dialect. Pure.
//!
//! Calls come in fragments, or whole; with an index, or without; some servers number all calls of a turn 0. A new name
//! under a new id or index begins the next call.

use super::machine::MadeCall;
use crate::api::run::FinishReason;
use crate::api::stream::CallGrowth;
use crate::api::tool::FunctionCall;
use crate::api::usage::Usage;
use crate::api::{Ids, ToolCallId};
use crate::llm::{CallPiece, ChatDelta};

/// Maximum number of calls in one turn; a model that makes more is stuck in a loop.
const CALLS_MAX: usize = 128;

/// What a model has sent so far.
#[derive(Debug, Default)]
pub struct Turn {
    calls: Vec<Call>,
    /// Tokens of the answer, once the server has reported them.
    pub usage: Option<Usage>,
    /// Why the answer ended, once the server has reported it.
    pub finish: Option<FinishReason>,
    /// Whether only the first call counts.
    one_call: bool,
}

#[derive(Debug)]
struct Call {
    id: ToolCallId,
    /// The server's index, and its id for the call.
    index: Option<u32>,
    upstream_id: Option<String>,
    name: String,
    arguments: String,
}

/// What a piece of the answer adds to the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnEvent {
    /// More text.
    Text(String),
    /// More of a refusal.
    Refusal(String),
    /// More of a call: its index, and what was added.
    Call(u32, CallGrowth),
}

impl Turn {
    /// A turn without any content; with `one_call`, calls after the first are ignored.
    #[must_use]
    pub fn new(one_call: bool) -> Self {
        Self { one_call, ..Self::default() }
    }

    /// Applies the next piece, and returns what it adds to the run.
    pub fn apply(&mut self, delta: ChatDelta, ids: &Ids) -> Vec<TurnEvent> {
        match delta {
            ChatDelta::Text(text) => vec![TurnEvent::Text(text)],
            ChatDelta::Refusal(text) => vec![TurnEvent::Refusal(text)],
            ChatDelta::Call(piece) => self.apply_call(piece, ids),
            ChatDelta::Finish(reason) => {
                self.finish = Some(reason);
                Vec::new()
            }
            ChatDelta::Usage(usage) => {
                self.usage = Some(usage);
                Vec::new()
            }
        }
    }

    fn apply_call(&mut self, piece: CallPiece, ids: &Ids) -> Vec<TurnEvent> {
        let mut events = Vec::new();
        let index = match self.call_index(&piece) {
            Some(index) => index,
            None if self.calls.len() >= CALLS_MAX => return events,
            None => {
                // Pieces without a name before the first call carry nothing.
                let Some(name) = piece.name.clone() else { return events };
                let id: ToolCallId = ids.make();
                self.calls.push(Call {
                    id: id.clone(),
                    index: piece.index,
                    upstream_id: piece.id.clone(),
                    name: name.clone(),
                    arguments: String::new(),
                });
                let index = self.calls.len() - 1;
                if self.counts(index) {
                    events.push(TurnEvent::Call(number(index), CallGrowth::Begun { id, name }));
                }
                index
            }
        };
        if !piece.arguments.is_empty() && self.counts(index) {
            self.calls[index].arguments.push_str(&piece.arguments);
            events.push(TurnEvent::Call(number(index), CallGrowth::Arguments(piece.arguments)));
        }
        events
    }

    fn counts(&self, index: usize) -> bool {
        index == 0 || !self.one_call
    }

    /// The index of the call that a piece belongs to; none when it begins a new one.
    fn call_index(&self, piece: &CallPiece) -> Option<usize> {
        let last = self.calls.len().checked_sub(1)?;
        let found = match piece.index {
            Some(index) => self.calls.iter().rposition(|call| call.index == Some(index))?,
            None => match &piece.id {
                Some(id) => self.calls.iter().rposition(|call| call.upstream_id.as_ref() == Some(id))?,
                None => last,
            },
        };
        let call = &self.calls[found];
        let has_other_id = piece.id.is_some() && call.upstream_id.is_some() && piece.id != call.upstream_id;
        let is_named_again = piece.name.is_some() && (has_other_id || piece.id.is_none() && piece.index.is_none());
        (!is_named_again).then_some(found)
    }

    /// The names and arguments of the calls so far: the part of the answer that is not text.
    pub fn call_texts(&self) -> impl Iterator<Item = &str> {
        self.calls.iter().flat_map(|call| [call.name.as_str(), call.arguments.as_str()])
    }

    /// The size of all arguments so far, in bytes.
    #[must_use]
    pub fn argument_bytes(&self) -> usize {
        self.calls.iter().map(|call| call.arguments.len()).sum()
    }

    /// The calls that the turn made, once it has ended. Absent arguments are `{}`.
    ///
    /// # Errors
    /// A sentence for the run's `last_error`, for a call of a function that is not among `known`, or with arguments
    /// that are not a JSON object.
    pub fn into_calls(self, known: &[&str]) -> Result<Vec<MadeCall>, String> {
        let counted = if self.one_call { 1 } else { CALLS_MAX };
        self.calls.into_iter().take(counted).map(|call| call.check(known)).collect()
    }
}

impl Call {
    fn check(self, known: &[&str]) -> Result<MadeCall, String> {
        let name = self.name;
        if !known.contains(&name.as_str()) {
            return Err(format!("The model called the function '{name}', which this run does not have."));
        }
        let arguments = if matches!(self.arguments.trim(), "" | "null") { "{}".to_owned() } else { self.arguments };
        if serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&arguments).is_err() {
            return Err(format!("The model called the function '{name}' with arguments that are not a JSON object."));
        }
        let upstream_id = self.upstream_id.unwrap_or_else(|| self.id.to_string());
        Ok(MadeCall { call: FunctionCall { id: self.id, name, arguments }, upstream_id })
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("a turn has few calls")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(index: Option<u32>, id: &str, name: &str, arguments: &str) -> ChatDelta {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        ChatDelta::Call(CallPiece { index, id: some(id), name: some(name), arguments: arguments.to_owned() })
    }

    /// The names and arguments of the calls that the pieces make.
    fn calls(pieces: Vec<ChatDelta>, one_call: bool) -> Result<Vec<(String, String)>, String> {
        let ids = Ids::counting();
        let mut turn = Turn::new(one_call);
        for piece in pieces {
            turn.apply(piece, &ids);
        }
        let made = turn.into_calls(&["f", "g"])?;
        Ok(made.into_iter().map(|made| (made.call.name, made.call.arguments)).collect())
    }

    fn two() -> Vec<(String, String)> {
        vec![("f".into(), "{\"a\":1}".into()), ("g".into(), "{}".into())]
    }

    #[test]
    fn each_servers_dialect_makes_the_same_two_calls() {
        let dialects = [
            // In fragments, by index: OpenAI, Azure, vLLM, llama.cpp.
            vec![
                piece(Some(0), "a", "f", ""),
                piece(Some(0), "", "", "{\"a\""),
                piece(Some(0), "", "", ":1}"),
                piece(Some(1), "b", "g", ""),
                piece(Some(1), "", "", "{}"),
            ],
            // Each call whole in one chunk: Ollama, Mistral.
            vec![piece(Some(0), "a", "f", "{\"a\":1}"), piece(Some(1), "b", "g", "{}")],
            // All of them numbered 0.
            vec![piece(Some(0), "a", "f", "{\"a\":1}"), piece(Some(0), "b", "g", "{}")],
            // Without an index.
            vec![piece(None, "a", "f", "{\"a\":1}"), piece(None, "b", "g", "{}")],
            // Without an id.
            vec![piece(Some(0), "", "f", "{\"a\":1}"), piece(Some(1), "", "g", "")],
            // With neither.
            vec![piece(None, "", "f", "{\"a\":"), piece(None, "", "", "1}"), piece(None, "", "g", "null")],
            // Id and name repeated in each fragment.
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
        let mut turn = Turn::new(true);

        let events: Vec<TurnEvent> = pieces.clone().into_iter().flat_map(|piece| turn.apply(piece, &ids)).collect();

        assert_eq!(events.len(), 2, "the start of one call and its arguments");
        assert_eq!(calls(pieces, true), Ok(vec![("f".into(), "{\"a\":1}".into())]));
    }

    #[test]
    fn unknown_functions_and_broken_arguments_are_errors() {
        let unknown = calls(vec![piece(Some(0), "a", "say_hello", "{}")], false).unwrap_err();
        let broken = calls(vec![piece(Some(0), "a", "f", "{\"a\":")], false).unwrap_err();

        assert_eq!(unknown, "The model called the function 'say_hello', which this run does not have.");
        assert_eq!(broken, "The model called the function 'f' with arguments that are not a JSON object.");
    }
}
