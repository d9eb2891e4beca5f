//! A strict reader of a run's stream: what no stream may do, whatever happened to the server behind it.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// Run events after which nothing but `done` may follow.
const LAST: [&str; 6] = [
    "thread.run.completed",
    "thread.run.failed",
    "thread.run.cancelled",
    "thread.run.expired",
    "thread.run.incomplete",
    "thread.run.requires_action",
];

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// With `done` after a run event.
    Done,
    /// With an `error` event: the server lost the run.
    ErrorEvent,
    /// The connection broke.
    Broken,
    /// The client hung up.
    HungUp,
}

/// Reads frames and collects what is wrong with them.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: String,
    rest: Vec<u8>,
    /// Names of events that may come once for an object, with its id.
    seen: HashSet<(String, String)>,
    /// The text so far of each message that is under way.
    text: HashMap<String, String>,
    arguments: HashMap<(String, u64), String>,
    is_over: bool,
    is_done: bool,
    is_error: bool,
    /// The run's id, once known.
    pub run: Option<String>,
    pub problems: Vec<String>,
}

impl Reader {
    /// Takes bytes as they arrive.
    pub fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let valid = match std::str::from_utf8(&self.rest) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        self.buffer.push_str(std::str::from_utf8(&self.rest[..valid]).expect("it was checked"));
        self.rest.drain(..valid);
        while let Some(end) = self.buffer.find("\n\n") {
            let block: String = self.buffer.drain(..end + 2).collect();
            self.block(&block);
        }
    }

    /// The end of the body, as the server meant it.
    pub fn finish(&mut self) -> End {
        if !self.is_done {
            self.problem("the body ended without `done`");
        }
        if self.is_error { End::ErrorEvent } else { End::Done }
    }

    fn problem(&mut self, what: impl Into<String>) {
        self.problems.push(what.into());
    }

    fn block(&mut self, block: &str) {
        let mut lines = block.lines().filter(|line| !line.starts_with(':') && !line.is_empty());
        let (Some(event), Some(data)) = (lines.next(), lines.next()) else {
            return self.problem(format!("a block that is not an event: {block:?}"));
        };
        let (Some(name), Some(data)) = (event.strip_prefix("event: "), data.strip_prefix("data: ")) else {
            return self.problem(format!("a block that is not an event: {block:?}"));
        };
        if self.is_done {
            self.problem(format!("{name} after `done`"));
        }
        if name == "done" {
            if !self.is_over && !self.is_error {
                self.problem("`done` before the run's last event");
            }
            self.is_done = true;
            return;
        }
        if self.is_over {
            self.problem(format!("{name} after the run's last event"));
        }
        match serde_json::from_str(data) {
            Ok(data) => self.event(name, &data),
            Err(error) => self.problem(format!("{name}: {error}")),
        }
    }

    fn event(&mut self, name: &str, data: &Value) {
        let id = data["id"].as_str().unwrap_or_default().to_owned();
        if name == "error" {
            self.is_error = true;
            return;
        }
        let is_repeatable = name.split('.').next_back() == Some("delta")
            || ["thread.run.queued", "thread.run.in_progress"].contains(&name);
        if !is_repeatable && !self.seen.insert((name.to_owned(), id.clone())) {
            self.problem(format!("{name} twice for {id}"));
        }
        if name.starts_with("thread.run.") && !name.contains(".step.") {
            self.run = Some(id.clone());
        }
        match name {
            // A stream of a resumed run begins with the message as it is.
            "thread.message.created" => {
                self.text.insert(id, message_text(data).to_owned());
            }
            "thread.message.delta" => match self.text.get_mut(&id) {
                Some(text) => {
                    for part in data["delta"]["content"].as_array().into_iter().flatten() {
                        text.push_str(part["text"]["value"].as_str().unwrap_or_default());
                    }
                }
                None => self.problem(format!("a delta of {id}, which is not under way")),
            },
            "thread.message.completed" | "thread.message.incomplete" => {
                let whole = message_text(data);
                let deltas = self.text.remove(&id);
                if deltas.as_deref() != Some(whole) {
                    self.problem(format!("{name}: deltas {deltas:?} and text {whole:?}"));
                }
            }
            "thread.run.step.delta" => {
                for call in data["delta"]["step_details"]["tool_calls"].as_array().into_iter().flatten() {
                    let key = (id.clone(), call["index"].as_u64().unwrap_or_default());
                    let arguments = call["function"]["arguments"].as_str().unwrap_or_default();
                    self.arguments.entry(key).or_default().push_str(arguments);
                }
            }
            "thread.run.requires_action" => self.check_arguments(data),
            _ => {}
        }
        self.is_over = LAST.contains(&name);
    }

    /// Compares the last step's deltas with the calls that are awaited. While the run's message is under way, clients accept
    /// no other step: then the calls are in the run's event alone.
    fn check_arguments(&mut self, run: &Value) {
        if !self.text.is_empty() {
            return;
        }
        let calls = run["required_action"]["submit_tool_outputs"]["tool_calls"].as_array().cloned().unwrap_or_default();
        let wanted: Vec<String> =
            calls.iter().map(|call| call["function"]["arguments"].as_str().unwrap_or_default().to_owned()).collect();
        let steps: HashSet<&String> = self.arguments.keys().map(|(step, _)| step).collect();
        let is_said = steps.iter().any(|step| {
            (0..wanted.len()).all(|index| {
                self.arguments.get(&((*step).clone(), index as u64)).is_some_and(|said| *said == wanted[index])
            })
        });
        if !is_said {
            self.problem(format!("the calls' deltas {:?} are not {wanted:?}", self.arguments));
        }
    }
}

fn message_text(message: &Value) -> &str {
    message["content"][0]["text"]["value"].as_str().unwrap_or_default()
}
