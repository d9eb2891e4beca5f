//! Reads one answer of a model server, and decides whether it is complete. Pure.
//!
//! An answer must prove that it is complete: by a known finish reason, or by `[DONE]` or the end of a whole JSON body
//! after some content. Everything else is an error: an error that the server reports, in any form; a connection that
//! closes early; an answer without content.

use serde_json::Value;

use super::chunk::{self, Chunk, Earlier, Finish};
use super::report::Report;
use super::visible::{ThinkTags, VisibleText};
use crate::api::run::FinishReason;
use crate::api::surrogates::SurrogateJoiner;
use crate::llm::ChatDelta;
use crate::llm::lenient::{self, Scanner};
use crate::llm::sse::{Event, Parser};

/// Maximum size of an answer that is not an event stream, in bytes.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Maximum length of a text that is not an answer, in bytes. Errors show less of it, after secrets are masked.
const SHOWN_BYTES_MAX: usize = 4 * 1024;
/// Maximum length of a finish reason in errors, in characters.
const REASON_CHARS_MAX: usize = 100;
/// The byte order mark, which may start a text.
const BYTE_ORDER_MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// Why an answer failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The server reports an error.
    Reported(Report),
    /// The answer is not valid, or does not prove that it is complete. The text follows the server's name.
    Invalid(String),
    /// A text that is not an answer: what is wrong with it, and its start.
    NotAnAnswer(&'static str, String),
}

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        Self::Reported(report)
    }
}

/// Whether the bytes so far are the whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The model is still writing, or nothing is known.
    Open,
    /// The answer has a finish reason together with content, and more may follow: some servers send the reason with each
    /// piece.
    Doubtful,
    /// The answer has a finish reason; only its usage is missing.
    Finished,
    /// Nothing follows.
    Complete,
}

/// Reads the bytes of an answer.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about the answer so far")]
pub struct AnswerReader {
    form: Form,
    surrogates: SurrogateJoiner,
    text: VisibleText,
    earlier: Earlier,
    /// Whether the answer has a refusal or a call.
    has_refusal_or_call: bool,
    finish: Option<FinishReason>,
    /// Whether content came with the finish reason or after it.
    has_content_since_finish: bool,
    /// Whether content came after a finish reason, so that finish reasons do not mark the end.
    repeats_finish: bool,
    /// An event that is not a part of an answer, such as a status. It is the error if the answer does not continue.
    note: Option<Failure>,
    /// A finish reason that we do not know.
    unknown_finish: Option<String>,
    /// Whether the usage was sent with or after the finish reason. An earlier usage may be of a part of the answer.
    has_usage: bool,
    /// Whether the server has sent the end marker, such as `[DONE]`.
    is_done: bool,
    /// Whether an event was read.
    has_events: bool,
}

/// The form of the body. Its first byte decides, because some servers send the wrong content type.
#[derive(Debug)]
enum Form {
    /// The bytes so far are blanks and a part of a byte order mark.
    Unknown(Vec<u8>),
    Events {
        parser: Parser,
        /// The start of the body, until it has an event.
        beginning: Vec<u8>,
    },
    Json {
        body: Vec<u8>,
        scanner: Scanner,
        /// Whether the body ends with a whole value.
        is_whole: bool,
    },
}

impl AnswerReader {
    /// Creates the reader of an answer.
    #[must_use]
    pub fn new(think_tags: ThinkTags) -> Self {
        Self {
            form: Form::Unknown(Vec::new()),
            surrogates: SurrogateJoiner::default(),
            text: VisibleText::new(think_tags),
            earlier: Earlier::default(),
            has_refusal_or_call: false,
            finish: None,
            has_content_since_finish: false,
            repeats_finish: false,
            note: None,
            unknown_finish: None,
            has_usage: false,
            is_done: false,
            has_events: false,
        }
    }

    /// Returns whether the bytes so far are the whole answer.
    #[must_use]
    pub fn state(&self) -> End {
        match (&self.form, self.finish) {
            _ if self.is_done => End::Complete,
            (Form::Json { is_whole: true, .. }, _) => End::Finished,
            (_, None) => End::Open,
            _ if self.repeats_finish => End::Open,
            _ if self.has_content_since_finish => End::Doubtful,
            // Members of a call may follow, without which the next request fails.
            (_, Some(_)) if self.has_usage && !self.earlier.has_calls => End::Complete,
            (_, Some(_)) => End::Finished,
        }
    }

    /// Returns whether the answer would be complete if the connection were closed now.
    #[must_use]
    pub fn has_finish(&self) -> bool {
        self.is_done || self.finish.is_some() || matches!(self.form, Form::Json { is_whole: true, .. })
    }

    /// Returns whether the server has started to answer: an event was read, or a whole JSON value.
    #[must_use]
    pub fn has_started(&self) -> bool {
        self.has_events || matches!(self.form, Form::Json { is_whole: true, .. })
    }

    /// Returns the finish reason that we do not know, for the log.
    #[must_use]
    pub fn unknown_finish(&self) -> Option<&str> {
        self.unknown_finish.as_deref()
    }

    /// Returns the error that a JSON body reports, if the body is whole.
    #[must_use]
    pub fn reported_error(&self) -> Option<Report> {
        match &self.form {
            Form::Json { body, is_whole: true, .. } => Report::in_answer(&serde_json::from_slice(body).ok()?),
            Form::Json { .. } | Form::Unknown(_) | Form::Events { .. } => None,
        }
    }

    /// Reads the next bytes of the body, and appends to `deltas` what they add to the answer, also in case of an error.
    ///
    /// # Errors
    /// An error that the server reports, or a body that is not an answer.
    pub fn push(&mut self, bytes: &[u8], deltas: &mut Vec<ChatDelta>) -> Result<(), Failure> {
        let beginning;
        let mut bytes = bytes;
        if let Form::Unknown(before) = &mut self.form {
            before.extend_from_slice(bytes);
            let is_part_of_mark = before.len() < BYTE_ORDER_MARK.len() && BYTE_ORDER_MARK.starts_with(before);
            let text = before.strip_prefix(&BYTE_ORDER_MARK).unwrap_or(before).trim_ascii_start();
            if is_part_of_mark || text.is_empty() {
                return Ok(());
            }
            beginning = text.to_vec();
            bytes = &beginning;
            self.form = if matches!(bytes[0], b'{' | b'[') {
                Form::Json { body: Vec::new(), scanner: Scanner::default(), is_whole: false }
            } else {
                Form::Events { parser: Parser::default(), beginning: Vec::new() }
            };
        }
        match &mut self.form {
            Form::Unknown(_) => Ok(()),
            Form::Json { body, scanner, is_whole } => {
                for byte in bytes {
                    let is_end = scanner.push(*byte);
                    *is_whole = is_end || *is_whole && byte.is_ascii_whitespace();
                }
                body.extend_from_slice(bytes);
                if body.len() > BODY_BYTES_MAX {
                    return Err(Failure::Invalid(format!("sent an answer of more than {BODY_BYTES_MAX} bytes")));
                }
                Ok(())
            }
            Form::Events { parser, beginning } => {
                if !self.has_events && beginning.len() < SHOWN_BYTES_MAX {
                    beginning.extend_from_slice(&bytes[..bytes.len().min(SHOWN_BYTES_MAX)]);
                }
                let events = parser
                    .push(bytes)
                    .map_err(|error| Failure::Invalid(format!("sent an invalid event stream: {error}")))?;
                self.read_events(events, deltas)
            }
        }
    }

    /// Reads the end of the body, or of the part of it that is needed.
    ///
    /// # Errors
    /// An answer that does not prove that it is complete.
    pub fn end(mut self, deltas: &mut Vec<ChatDelta>) -> Result<(), Failure> {
        let read = self.read_rest(deltas);
        self.release_text(deltas);
        read?;
        if !self.text.has_text() && !self.has_refusal_or_call {
            let is_cut = matches!(self.finish, Some(FinishReason::Length | FinishReason::ContentFilter));
            let thinking = self.text.end(is_cut);
            if !thinking.is_empty() {
                deltas.push(ChatDelta::Text(thinking));
            }
        }
        let has_content = self.text.has_text() || self.has_refusal_or_call;
        if let Some(note) = self.note.filter(|_| self.finish.is_none()) {
            return Err(note);
        }
        match (self.finish, self.unknown_finish) {
            (Some(reason), _) => deltas.push(ChatDelta::Finish(reason)),
            (None, _) if self.is_done && has_content => deltas.push(ChatDelta::Finish(FinishReason::Stop)),
            (None, _) if !has_content => return Err(Failure::Invalid("sent no answer".to_owned())),
            (None, Some(reason)) => {
                return Err(finish_failure("unknown finish reason", &reason));
            }
            (None, None) => return Err(Failure::Invalid("closed the connection during its answer".to_owned())),
        }
        Ok(())
    }

    /// Reads what the last bytes of the body have completed.
    fn read_rest(&mut self, deltas: &mut Vec<ChatDelta>) -> Result<(), Failure> {
        match std::mem::replace(&mut self.form, Form::Unknown(Vec::new())) {
            Form::Unknown(_) => Ok(()),
            Form::Json { body, .. } => self.read_json(&body, deltas),
            Form::Events { mut parser, beginning } => {
                let last = parser.end();
                if !self.has_events && last.is_none() && is_text(&beginning) {
                    let text = String::from_utf8_lossy(&beginning).trim().to_owned();
                    return Err(Failure::NotAnAnswer("sent something other than an answer", text));
                }
                self.read_events(last.into_iter().collect(), deltas)
            }
        }
    }

    /// Appends the text that was held back because it could have become a tag. No further text may follow it: the answer has
    /// failed, ended, or continues with something else.
    pub fn release_text(&mut self, deltas: &mut Vec<ChatDelta>) {
        let text = self.text.release();
        if !text.is_empty() {
            deltas.push(ChatDelta::Text(text));
        }
    }

    fn read_events(&mut self, events: Vec<Event>, deltas: &mut Vec<ChatDelta>) -> Result<(), Failure> {
        for event in events {
            if self.is_done {
                break;
            }
            if event.is_error {
                return Err(Report::of_event(&event.data).into());
            }
            let mut data = event.data.trim();
            while let Some(rest) = data.strip_prefix("data:") {
                data = rest.trim_start();
            }
            if event.is_keep_alive || is_keep_alive(data) {
                continue;
            }
            self.has_events = true;
            if data.trim_matches('"').eq_ignore_ascii_case("[DONE]") {
                self.is_done = true;
                break;
            }
            if let Some(chunk) = chunk::read_plain(data, &mut self.earlier) {
                self.read_chunk(chunk, deltas)?;
                continue;
            }
            match self.parse(data) {
                Some(values) => {
                    for value in values {
                        self.read_value(value, deltas)?;
                    }
                }
                None if data.starts_with(['{', '[']) => return Err(not_a_chunk(data)),
                None => self.note = Some(not_a_chunk(data)),
            }
        }
        Ok(())
    }

    /// Reads a whole completion, or chunks that follow one another without the form of events.
    fn read_json(&mut self, body: &[u8], deltas: &mut Vec<ChatDelta>) -> Result<(), Failure> {
        let text = String::from_utf8_lossy(body);
        let values = self
            .parse(&text)
            .ok_or_else(|| Failure::Invalid("sent an answer that is not JSON, or that is cut off".to_owned()))?;
        for value in values {
            match value {
                Value::Array(elements) => {
                    for element in elements {
                        self.read_value(element, deltas)?;
                    }
                }
                value => self.read_value(value, deltas)?,
            }
        }
        self.is_done = true;
        Ok(())
    }

    /// Parses a JSON value, or one on each line.
    fn parse(&mut self, text: &str) -> Option<Vec<Value>> {
        let mut parse =
            |text: &str| serde_json::from_str(text).ok().or_else(|| lenient::parse(&self.surrogates.push(text)));
        if let Some(value) = parse(text) {
            return Some(vec![value]);
        }
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.eq_ignore_ascii_case("[DONE]"));
        let values: Option<Vec<Value>> = lines.map(parse).collect();
        values.filter(|values| values.len() > 1)
    }

    fn read_value(&mut self, value: Value, deltas: &mut Vec<ChatDelta>) -> Result<(), Failure> {
        if let Some(report) = Report::of_note(&value)
            && Report::in_answer(&value).is_none()
        {
            self.note = Some(report.into());
            return Ok(());
        }
        let chunk = chunk::read(value, &mut self.earlier)?;
        self.read_chunk(chunk, deltas)
    }

    fn read_chunk(&mut self, chunk: Chunk, deltas: &mut Vec<ChatDelta>) -> Result<(), Failure> {
        let is_last = self.finish.is_some() || chunk.finish.is_some();
        let mut has_content = false;
        for delta in chunk.deltas {
            match delta {
                ChatDelta::Text(text) => {
                    has_content = true;
                    let parts = self.text.push(text);
                    if !parts.hidden.is_empty() {
                        deltas.push(ChatDelta::Hidden(parts.hidden));
                    }
                    if !parts.visible.is_empty() {
                        deltas.push(ChatDelta::Text(parts.visible));
                    }
                }
                ChatDelta::Refusal(text) if !self.has_refusal_or_call && text.trim().is_empty() => {}
                ChatDelta::Refusal(_) | ChatDelta::Call(_) => {
                    has_content = true;
                    self.has_refusal_or_call = true;
                    self.release_text(deltas);
                    deltas.push(delta);
                }
                ChatDelta::Usage(_) => {
                    self.has_usage |= is_last;
                    deltas.push(delta);
                }
                ChatDelta::Member(_, ref value) => {
                    has_content |= value != "";
                    deltas.push(delta);
                }
                ChatDelta::Hidden(_) | ChatDelta::Finish(_) => deltas.push(delta),
            }
        }
        if has_content || chunk.finish.is_some() {
            self.note = None;
        }
        self.has_content_since_finish |= has_content && is_last;
        self.repeats_finish |= has_content && self.finish.is_some();
        match chunk.finish {
            None => {}
            Some(Finish::Known(reason)) => self.finish = Some(reason),
            Some(Finish::Failed(reason)) => {
                return Err(finish_failure("finish reason", &reason));
            }
            Some(Finish::Unknown(reason)) => self.unknown_finish = Some(reason),
        }
        Ok(())
    }
}

/// Returns whether the text of an event without JSON is a keep-alive: a word for it, a comment, or a time.
fn is_keep_alive(data: &str) -> bool {
    let lower = data.to_ascii_lowercase();
    let is_time = data.starts_with(|first: char| first.is_ascii_digit()) && data.contains(':') && data.len() < 40;
    data.is_empty()
        || data.starts_with(':')
        || is_time
        || ["ping", "pong", "keep-alive", "keepalive", "keep alive", "heartbeat"].contains(&lower.as_str())
}

/// Returns whether the start of a body has more than comments and blank lines.
fn is_text(beginning: &[u8]) -> bool {
    beginning.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).any(|line| !line.is_empty() && line[0] != b':')
}

fn finish_failure(kind: &str, reason: &str) -> Failure {
    let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
    Failure::Invalid(format!("ended its answer with the {kind} \"{reason}\""))
}

fn not_a_chunk(data: &str) -> Failure {
    let end = data.floor_char_boundary(SHOWN_BYTES_MAX);
    Failure::NotAnAnswer("sent an event that is not a completion chunk", data[..end].to_owned())
}

#[cfg(test)]
mod tests;
