//! What the live service sent, against what we send for the same input.

use serde_json::{Value, json};

use crate::both_stores;
use crate::support::contract;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

/// The frames of a recording: names and payloads.
fn frames(text: &str) -> Vec<(String, Value)> {
    text.split("\n\n")
        .filter_map(|frame| {
            let (event, data) = frame.trim().split_once('\n')?;
            let data = data.strip_prefix("data: ").unwrap();
            Some((event.strip_prefix("event: ").unwrap().to_owned(), serde_json::from_str(data).unwrap_or(Value::Null)))
        })
        .collect()
}

/// The shape of a payload: its members in order, and for each whether it is null, a word, a number, a list, …
/// Ids, times, texts and counts are of the day.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            Value::Array(members.iter().map(|(name, value)| json!([name, shape(value)])).collect())
        }
        Value::Array(elements) => json!({"list": elements.iter().map(shape).collect::<Vec<_>>()}),
        Value::String(_) => json!("a string"),
        Value::Number(number) if number.is_f64() => json!("a decimal"),
        Value::Number(_) => json!("an integer"),
        other => other.clone(),
    }
}

/// What we send more than was recorded, so that strict clients find every member of the schema; and a text where the
/// service sent null, which they refuse.
fn beyond_the_recording(name: &str, mut data: Value) -> Value {
    let Some(members) = data.as_object_mut() else { return data };
    if name.starts_with("thread.run.step.") {
        assert_eq!(members.shift_remove("expired_at"), Some(Value::Null));
        assert_eq!(members.shift_remove("metadata"), Some(json!({})));
    } else if name.starts_with("thread.run.") {
        assert_eq!(members.insert("instructions".into(), Value::Null), Some(json!("")));
    }
    data
}

both_stores!(a_plain_run_is_told_as_it_was_recorded, async |database: Database| {
    let Some(recording) = contract::file("recordings/text.sse") else { return };
    let recorded = frames(&recording);
    let words: Vec<&'static str> = recorded
        .iter()
        .filter(|(name, _)| name == "thread.message.delta")
        .map(|(_, data)| {
            data["delta"]["content"][0]["text"]["value"].as_str().unwrap().to_owned().leak() as &'static str
        })
        .collect();
    let upstream = Upstream::saying([Answer::Words(words)]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let assistant = client.post("/v1/assistants", json!({"model": "gpt-4o"})).await;
    let thread = client.thread("Hello, assistant!").await;

    let body = json!({"assistant_id": assistant["id"], "additional_messages": [], "stream": true});
    let path = format!(
        "/v1/threads/{thread}/runs?include[]=step_details.tool_calls%5B%2A%5D.file_search.results%5B%2A%5D.content"
    );
    let ours = client.stream(&path, body).await;

    assert_eq!(ours.len(), recorded.len());
    for (ours, (name, data)) in ours.into_iter().zip(recorded) {
        assert_eq!(ours.name, name);
        assert_eq!(shape(&beyond_the_recording(&name, ours.data)), shape(&data), "{name}");
    }
});
