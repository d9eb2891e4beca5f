//! Parses a run's stream into a list of events.

use serde_json::Value;

use super::contract;

/// The events of a new run, before its first step.
pub const RUN_STARTED: [&str; 3] = ["run.created", "run.queued", "run.in_progress"];
/// The events of a `tool_calls` step, before its deltas.
pub const CALL_STARTED: [&str; 2] = ["run.step.created", "run.step.in_progress"];

/// One event: its name and its payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub name: String,
    pub data: Value,
}

/// Parses a whole stream strictly: `event:` and `data:` lines with one space, an empty line after each pair, comment lines
/// between events, `done` last. Checks each payload against the API description.
pub fn parse(text: &str) -> Vec<Event> {
    let mut events = Vec::new();
    let mut lines = text.split('\n');
    while let Some(line) = lines.next() {
        if line.starts_with(": ") {
            continue;
        }
        if line.is_empty() {
            assert_eq!(lines.next(), None, "an empty line instead of an event");
            break;
        }
        let name = line.strip_prefix("event: ").unwrap_or_else(|| panic!("no event line: {line}"));
        let data = lines.next().unwrap();
        let data = data.strip_prefix("data: ").unwrap_or_else(|| panic!("no data line: {data}"));
        assert_eq!(lines.next(), Some(""), "an event ends with an empty line");
        let data = if name == "done" {
            assert_eq!(data, "[DONE]");
            Value::Null
        } else {
            serde_json::from_str(data).unwrap()
        };
        if name != "done" {
            contract::check_event(name, &data);
        }
        events.push(Event { name: name.to_owned(), data });
    }
    assert_eq!(events.last().map(|event| event.name.as_str()), Some("done"), "done comes last");
    events
}

/// Returns the event names without the prefix `thread.`.
pub fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.name.strip_prefix("thread.").unwrap_or(&event.name)).collect()
}

/// Returns the concatenated text of the message deltas.
pub fn text(events: &[Event]) -> String {
    let deltas = events.iter().filter(|event| event.name == "thread.message.delta");
    deltas.map(|event| event.data["delta"]["content"][0]["text"]["value"].as_str().unwrap_or_default()).collect()
}
