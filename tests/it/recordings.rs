//! Compares recorded streams of the live service with our streams for the same input.

use serde_json::{Value, json};

use crate::both_stores;
use crate::support::code::installed;
use crate::support::contract;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

/// Parses the events of a recording: names and payloads.
fn frames(text: &str) -> Vec<(String, Value)> {
    text.split("\n\n")
        .filter_map(|frame| {
            let (event, data) = frame.trim().split_once('\n')?;
            let data = data.strip_prefix("data: ").unwrap();
            Some((event.strip_prefix("event: ").unwrap().to_owned(), serde_json::from_str(data).unwrap_or(Value::Null)))
        })
        .collect()
}

/// Returns the shape of a payload: its properties in order, and the type of each. Ids, times, texts and counts differ
/// between recordings.
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

/// Removes the properties that we send in addition to the recorded ones, so that strict clients find every property of
/// the schema, and restores a null that we replace with a string, because strict clients reject it.
fn without_our_additions(name: &str, mut data: Value) -> Value {
    let Some(members) = data.as_object_mut() else { return data };
    if name.starts_with("thread.run.step.") && name != "thread.run.step.delta" {
        assert_eq!(members.shift_remove("expired_at"), Some(Value::Null));
        assert_eq!(members.shift_remove("metadata"), Some(json!({})));
    } else if name.starts_with("thread.run.") && !name.starts_with("thread.run.step.") {
        assert_eq!(members.insert("instructions".into(), Value::Null), Some(json!("")));
    }
    data
}

/// Returns the tokens of the messages in a recording.
fn tokens(recorded: &[(String, Value)]) -> Vec<&'static str> {
    let deltas = recorded.iter().filter(|(name, _)| name == "thread.message.delta");
    let text = |data: &Value| data["delta"]["content"][0]["text"]["value"].as_str().unwrap().to_owned();
    deltas.map(|(_, data)| &*text(data).leak()).collect()
}

both_stores!(the_stream_of_a_text_answer_matches_the_recording, async |database: Database| {
    let Some(recording) = contract::file("recordings/text.sse") else { return };
    let recorded = frames(&recording);
    let upstream = Upstream::scripted([Answer::Tokens(tokens(&recorded))]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let assistant = client.post("/v1/assistants", json!({"model": "gpt-4o"})).await;
    let thread = client.create_thread("Hello, assistant!").await;

    let body = json!({"assistant_id": assistant["id"], "additional_messages": [], "stream": true});
    let path = format!(
        "/v1/threads/{thread}/runs?include[]=step_details.tool_calls%5B%2A%5D.file_search.results%5B%2A%5D.content"
    );
    let ours = client.stream(&path, body).await;

    assert_eq!(ours.len(), recorded.len());
    for (ours, (name, data)) in ours.into_iter().zip(recorded) {
        assert_eq!(ours.name, name);
        assert_eq!(shape(&without_our_additions(&name, ours.data)), shape(&data), "{name}");
    }
});

both_stores!(the_streams_of_a_function_call_match_the_recordings, async |database: Database| {
    let (Some(first), Some(second)) = (
        contract::file("recordings/function_call_1_create.sse"),
        contract::file("recordings/function_call_2_submit.sse"),
    ) else {
        return;
    };
    let (first, second) = (frames(&first), frames(&second));
    let upstream = Upstream::scripted([
        Answer::Calls(vec![], vec![("get_current_weather", "{}")]),
        Answer::Tokens(tokens(&second)),
    ])
    .await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let function = json!({"name": "get_current_weather", "description": "Gets the user's current weather"});
    let tools = json!([{"type": "function", "function": function}]);
    let assistant = client.post("/v1/assistants", json!({"model": "gpt-4o", "tools": tools})).await;

    let body = json!({"assistant_id": assistant["id"], "stream": true,
        "thread": {"messages": [{"role": "user", "content": "What should I wear outside right now?"}]}});
    let call_events = client.stream("/v1/threads/runs", body).await;
    let run = &call_events[call_events.len() - 2].data;
    let call = &run["required_action"]["submit_tool_outputs"]["tool_calls"][0]["id"];
    let path = format!(
        "/v1/threads/{}/runs/{}/submit_tool_outputs",
        run["thread_id"].as_str().unwrap(),
        run["id"].as_str().unwrap()
    );
    let outputs = json!({"tool_outputs": [{"tool_call_id": call, "output": "warm and sunny"}], "stream": true});
    let answer_events = client.stream(&path, outputs).await;

    for (ours, recorded) in [(call_events, first), (answer_events, second)] {
        let names: Vec<&str> = ours.iter().map(|event| event.name.as_str()).collect();
        assert_eq!(names, recorded.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
        for (ours, (name, data)) in ours.into_iter().zip(recorded) {
            assert_eq!(shape(&without_our_additions(&name, ours.data)), shape(&data), "{name}");
        }
    }
});

both_stores!(the_stream_of_code_matches_the_recording, async |database: Database| {
    let (Some(recording), Some(runtime)) = (contract::file("recordings/code_interpreter.sse"), installed()) else {
        return;
    };
    let recorded = frames(&recording);
    let ended = recorded.iter().find(|(name, _)| name == "thread.run.step.completed").unwrap();
    let call = &ended.1["step_details"]["tool_calls"][0]["code_interpreter"];
    let arguments: &'static str = json!({"code": call["input"]}).to_string().leak();
    let upstream =
        Upstream::scripted([Answer::Calls(vec![], vec![("python", arguments)]), Answer::Tokens(tokens(&recorded))])
            .await;
    let server = Server::with(&database, &upstream, &[("CODE_INTERPRETER_DIR", &runtime)]).await;
    let client = &server.client;
    let tools = json!([{"type": "code_interpreter"}]);
    let assistant = client.post("/v1/assistants", json!({"model": "gpt-4o-mini", "tools": tools})).await;
    let thread = client.create_thread("I need to solve the equation `3x + 11 = 14`. Can you help me?").await;
    let body = json!({"assistant_id": assistant["id"], "stream": true});
    let ours = client.stream(&format!("/v1/threads/{thread}/runs"), body).await;

    // The code is in pieces of other lengths, and we show the value of its last expression.
    let one_of_each = |names: Vec<String>| {
        let mut names = names;
        names.dedup();
        names
    };
    assert_eq!(
        one_of_each(ours.iter().map(|event| event.name.clone()).collect()),
        one_of_each(recorded.iter().map(|(name, _)| name.clone()).collect())
    );
    let of_step = |name: &str| name.starts_with("thread.run.step.");
    let (our_steps, recorded_steps): (Vec<_>, Vec<_>) = (
        ours.iter().filter(|event| of_step(&event.name)).take(4).collect(),
        recorded.iter().filter(|(name, _)| of_step(name)).take(4).collect(),
    );
    for (ours, (name, data)) in our_steps.into_iter().zip(recorded_steps) {
        assert_eq!(shape(&without_our_additions(name, ours.data.clone())), shape(data), "{name}");
    }
    let input: String = ours
        .iter()
        .filter(|event| event.name == "thread.run.step.delta")
        .map(|event| {
            let call = &event.data["delta"]["step_details"]["tool_calls"][0]["code_interpreter"];
            call["input"].as_str().unwrap_or_default().to_owned()
        })
        .collect();
    assert_eq!(input, call["input"].as_str().unwrap());
});
