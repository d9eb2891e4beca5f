//! Reads one answer of a model server, and decides whether it ended well. Pure.
//!
//! An answer must prove its end: by a finish reason that we know, or by `[DONE]` or the end of a whole JSON body after
//! something was said. Everything else is an error: one that the server reports, in any form; a connection that closes
//! early; an answer without content.

use serde_json::Value;

use super::chunk::{self, Finish};
use super::report::Report;
use super::visible::{ThinkTags, VisibleText};
use crate::api::run::FinishReason;
use crate::api::surrogates::SurrogateJoiner;
use crate::llm::ChatDelta;
use crate::llm::lenient;
use crate::llm::sse::{Event, Parser};

/// Maximum size of an answer that is not an event stream, in bytes.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Maximum length of a text that is not an answer in our errors, in characters.
const SHOWN_CHARS_MAX: usize = 200;

/// Why an answer failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The server reports an error.
    Reported(Report),
    /// The answer is not valid, or does not prove its end. The text follows the server's name.
    Invalid(String),
}

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        Self::Reported(report)
    }
}

/// Reads the bytes of an answer.
#[derive(Debug)]
pub struct AnswerReader {
    form: Form,
    surrogates: SurrogateJoiner,
    text: VisibleText,
    /// Whether the answer has a refusal or a call.
    has_refusal_or_call: bool,
    finish: Option<FinishReason>,
    /// A finish reason that we do not know.
    unknown_finish: Option<String>,
    /// Whether the usage has come with the finish reason or after it. Before, it may be of a part of the answer.
    has_usage: bool,
    /// Whether the server has said that nothing follows.
    is_done: bool,
}

/// The form of the body, which its first byte tells: some servers send the wrong content type.
#[derive(Debug)]
enum Form {
    Unknown,
    Events { parser: Parser, has_events: bool, beginning: Vec<u8> },
    Json(Vec<u8>),
}

impl AnswerReader {
    /// Creates the reader of an answer.
    #[must_use]
    pub fn new(think_tags: ThinkTags) -> Self {
        Self {
            form: Form::Unknown,
            surrogates: SurrogateJoiner::default(),
            text: VisibleText::new(think_tags),
            has_refusal_or_call: false,
            finish: None,
            unknown_finish: None,
            has_usage: false,
            is_done: false,
        }
    }

    /// Whether the answer is complete, so that the connection can be closed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_done || self.finish.is_some() && self.has_usage
    }

    /// Whether the model has finished; only its usage may follow.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.is_done || self.finish.is_some()
    }

    /// Reads the next bytes of the body.
    ///
    /// # Errors
    /// An error that the server reports, or a body that is not an answer.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<ChatDelta>, Failure> {
        let mut bytes = bytes;
        if matches!(self.form, Form::Unknown) {
            bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes).trim_ascii_start();
            match bytes.first() {
                None => return Ok(Vec::new()),
                Some(b'{' | b'[') => self.form = Form::Json(Vec::new()),
                Some(_) => {
                    self.form = Form::Events { parser: Parser::default(), has_events: false, beginning: Vec::new() };
                }
            }
        }
        match &mut self.form {
            Form::Unknown => Ok(Vec::new()),
            Form::Json(body) => {
                body.extend_from_slice(bytes);
                if body.len() > BODY_BYTES_MAX {
                    return Err(Failure::Invalid(format!("sent an answer of more than {BODY_BYTES_MAX} bytes")));
                }
                Ok(Vec::new())
            }
            Form::Events { parser, has_events, beginning } => {
                if !*has_events && beginning.len() < 4 * SHOWN_CHARS_MAX {
                    beginning.extend_from_slice(&bytes[..bytes.len().min(4 * SHOWN_CHARS_MAX)]);
                }
                let events = parser
                    .push(bytes)
                    .map_err(|error| Failure::Invalid(format!("sent an invalid event stream: {error}")))?;
                *has_events |= !events.is_empty();
                self.read_events(events)
            }
        }
    }

    /// Returns the error that the first bytes of a JSON body report, if they are the whole body.
    #[must_use]
    pub fn reported_error(&self) -> Option<Report> {
        match &self.form {
            Form::Json(body) => Report::in_answer(&serde_json::from_slice(body).ok()?),
            Form::Unknown | Form::Events { .. } => None,
        }
    }

    /// Reads the end of the body, or of what is wanted of it. Called once.
    ///
    /// # Errors
    /// An answer that does not prove that it ended well.
    pub fn end(mut self) -> Result<Vec<ChatDelta>, Failure> {
        let mut deltas = match std::mem::replace(&mut self.form, Form::Unknown) {
            Form::Unknown => Vec::new(),
            Form::Json(body) => self.read_json(&body)?,
            Form::Events { mut parser, has_events, beginning } => {
                let last = parser.end();
                if !has_events && last.is_none() && !beginning.is_empty() {
                    let text = String::from_utf8_lossy(&beginning);
                    let shown: String = text.trim().chars().take(SHOWN_CHARS_MAX).collect();
                    return Err(Failure::Invalid(format!("sent something other than an answer: {shown}")));
                }
                self.read_events(last.into_iter().collect())?
            }
        };
        let said = self.text.has_begun() || self.has_refusal_or_call;
        if !said && self.finish != Some(FinishReason::Length) {
            let rest = self.text.end();
            if !rest.is_empty() {
                deltas.push(ChatDelta::Text(rest));
            }
        }
        let said = self.text.has_begun() || self.has_refusal_or_call;
        match (self.finish, self.unknown_finish) {
            (Some(reason), _) => {
                deltas.push(ChatDelta::Finish(reason));
                Ok(deltas)
            }
            (None, _) if self.is_done && said => {
                deltas.push(ChatDelta::Finish(FinishReason::Stop));
                Ok(deltas)
            }
            (None, _) if !said => Err(Failure::Invalid("sent no answer".to_owned())),
            (None, Some(reason)) => {
                Err(Failure::Invalid(format!("ended its answer with the unknown finish reason \"{reason}\"")))
            }
            (None, None) => Err(Failure::Invalid("closed the connection during its answer".to_owned())),
        }
    }

    fn read_events(&mut self, events: Vec<Event>) -> Result<Vec<ChatDelta>, Failure> {
        let mut deltas = Vec::new();
        for event in events {
            if self.is_done {
                break;
            }
            if event.is_error {
                return Err(Report::of_event(&event.data).into());
            }
            if event.data.trim().trim_matches('"') == "[DONE]" {
                self.is_done = true;
                break;
            }
            let value = self.parse(&event.data).ok_or_else(|| {
                let shown: String = event.data.chars().take(SHOWN_CHARS_MAX).collect();
                Failure::Invalid(format!("sent an event that is not a completion chunk: {shown}"))
            })?;
            self.read_value(value, &mut deltas)?;
        }
        Ok(deltas)
    }

    /// Reads a whole completion, or chunks that follow one another without the form of events.
    fn read_json(&mut self, body: &[u8]) -> Result<Vec<ChatDelta>, Failure> {
        let text = String::from_utf8_lossy(body);
        let mut deltas = Vec::new();
        let values = match self.parse(&text) {
            Some(Value::Array(values)) => values,
            Some(value) => vec![value],
            None => {
                let values: Option<Vec<Value>> =
                    text.lines().filter(|line| !line.trim().is_empty()).map(|line| self.parse(line)).collect();
                values
                    .ok_or_else(|| Failure::Invalid("sent an answer that is not JSON, or that is cut off".to_owned()))?
            }
        };
        for value in values {
            self.read_value(value, &mut deltas)?;
        }
        self.is_done = true;
        Ok(deltas)
    }

    fn parse(&mut self, text: &str) -> Option<Value> {
        serde_json::from_str(text).ok().or_else(|| lenient::parse(&self.surrogates.push(text)))
    }

    fn read_value(&mut self, value: Value, deltas: &mut Vec<ChatDelta>) -> Result<(), Failure> {
        let chunk = chunk::read(value)?;
        let is_last = self.finish.is_some() || chunk.finish.is_some();
        for delta in chunk.deltas {
            match delta {
                ChatDelta::Text(text) => {
                    let parts = self.text.push(text);
                    if !parts.hidden.is_empty() {
                        deltas.push(ChatDelta::Hidden(parts.hidden));
                    }
                    if !parts.visible.is_empty() {
                        deltas.push(ChatDelta::Text(parts.visible));
                    }
                }
                ChatDelta::Refusal(_) | ChatDelta::Call(_) => {
                    self.has_refusal_or_call = true;
                    deltas.push(delta);
                }
                ChatDelta::Usage(_) => {
                    self.has_usage |= is_last;
                    deltas.push(delta);
                }
                ChatDelta::Member(..) | ChatDelta::Hidden(_) | ChatDelta::Finish(_) => deltas.push(delta),
            }
        }
        match chunk.finish {
            None => {}
            Some(Finish::Known(reason)) => self.finish = Some(reason),
            Some(Finish::Failed(reason)) => {
                return Err(Failure::Invalid(format!("ended its answer with the finish reason \"{reason}\"")));
            }
            Some(Finish::Unknown(reason)) => self.unknown_finish = Some(reason),
        }
        Ok(())
    }

    /// The finish reason that we do not know, for the log.
    #[must_use]
    pub fn unknown_finish(&self) -> Option<&str> {
        self.unknown_finish.as_deref()
    }
}

#[cfg(test)]
mod tests;
