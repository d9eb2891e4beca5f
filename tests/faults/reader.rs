//! A strict reader of a run's stream, which checks the rules that hold even if servers fail.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// Run events after which only `done` may follow.
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
    /// With an `error` event, because the server lost the run.
    ErrorEvent,
    /// With a broken connection.
    Broken,
    /// By the client, which disconnected.
    Disconnected,
}

/// Reads frames and collects violations.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: String,
    rest: Vec<u8>,
    /// Events that may occur only once per object: the name and the object ID.
    seen: HashSet<(String, String)>,
    /// The text so far of each message in progress.
    text: HashMap<String, String>,
    arguments: HashMap<(String, u64), String>,
    has_ended: bool,
    is_done: bool,
    is_error: bool,
    /// The run ID, if known.
    pub run: Option<String>,
    pub problems: Vec<String>,
}

impl Reader {
    /// Reads the next bytes.
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
            self.read_block(&block);
        }
    }

    /// Checks the regular end of the body.
    pub fn finish(&mut self) -> End {
        if !self.is_done {
            self.problem("the body ended without `done`");
        }
        if self.is_error { End::ErrorEvent } else { End::Done }
    }

    fn problem(&mut self, what: impl Into<String>) {
        self.problems.push(what.into());
    }

    fn read_block(&mut self, block: &str) {
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
            if !self.has_ended && !self.is_error {
                self.problem("`done` before the run's last event");
            }
            self.is_done = true;
            return;
        }
        if self.has_ended {
            self.problem(format!("{name} after the run's last event"));
        }
        match serde_json::from_str(data) {
            Ok(data) => self.read_event(name, &data),
            Err(error) => self.problem(format!("{name}: {error}")),
        }
    }

    fn read_event(&mut self, name: &str, data: &Value) {
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
            // On the stream of a resumed run, the message is created with its text so far.
            "thread.message.created" => {
                self.text.insert(id, message_text(data).to_owned());
            }
            "thread.message.delta" => match self.text.get_mut(&id) {
                Some(text) => {
                    for part in data["delta"]["content"].as_array().into_iter().flatten() {
                        text.push_str(part["text"]["value"].as_str().unwrap_or_default());
                    }
                }
                None => self.problem(format!("a delta of {id}, which is not in progress")),
            },
            "thread.message.completed" | "thread.message.incomplete" => {
                let text = message_text(data);
                let deltas = self.text.remove(&id);
                if deltas.as_deref() != Some(text) {
                    self.problem(format!("{name}: deltas {deltas:?}, but text {text:?}"));
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
        self.has_ended = LAST.contains(&name);
    }

    /// Compares the deltas of the calls with the required calls. While the message is in progress, clients accept no other
    /// step, and the calls are only in the event of the run.
    fn check_arguments(&mut self, run: &Value) {
        if !self.text.is_empty() {
            return;
        }
        let calls = run["required_action"]["submit_tool_outputs"]["tool_calls"].as_array().cloned().unwrap_or_default();
        let expected: Vec<String> =
            calls.iter().map(|call| call["function"]["arguments"].as_str().unwrap_or_default().to_owned()).collect();
        let steps: HashSet<&String> = self.arguments.keys().map(|(step, _)| step).collect();
        let is_sent = steps.iter().any(|step| {
            (0..expected.len()).all(|index| {
                self.arguments.get(&((*step).clone(), index as u64)).is_some_and(|sent| *sent == expected[index])
            })
        });
        if !is_sent {
            self.problem(format!("expected the calls {expected:?}, but got the deltas {:?}", self.arguments));
        }
    }
}

fn message_text(message: &Value) -> &str {
    message["content"][0]["text"]["value"].as_str().unwrap_or_default()
}
