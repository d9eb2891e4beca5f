//! Function tools: the model calls a function, the client submits its output.

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sse::{CALL_STARTED, Event, RUN_STARTED, names, text};
use crate::support::upstream::{Answer, Upstream};

const TEXT_STARTED: [&str; 4] = ["run.step.created", "run.step.in_progress", "message.created", "message.in_progress"];
const RESUMED: [&str; 3] = ["run.step.completed", "run.queued", "run.in_progress"];
const RUN_COMPLETED: [&str; 4] = ["message.completed", "run.step.completed", "run.completed", "done"];

/// An assistant with the functions `weather` and `time`.
async fn assistant(client: &Client) -> String {
    let function = |name: &str| json!({"type": "function", "function": {"name": name, "description": "d"}});
    let tools = json!([function("weather"), function("time")]);
    let created = client.post("/v1/assistants", json!({"model": "m", "tools": tools})).await;
    created["id"].as_str().unwrap().to_owned()
}

/// Creates a streamed run on a new thread; returns its path and its events.
async fn stream_new_run(client: &Client, more: Value) -> (String, Vec<Event>) {
    let thread = client.create_thread("Hi").await;
    let mut body = json!({"assistant_id": assistant(client).await, "stream": true});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let events = client.stream(&format!("/v1/threads/{thread}/runs"), body).await;
    (format!("/v1/threads/{thread}/runs/{}", events[0].data["id"].as_str().unwrap()), events)
}

/// Returns the calls that a run requires outputs for: IDs, names and arguments.
fn required_calls(run: &Value) -> Vec<(String, String, String)> {
    let calls = run["required_action"]["submit_tool_outputs"]["tool_calls"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    calls
        .iter()
        .map(|call| (text(&call["id"]), text(&call["function"]["name"]), text(&call["function"]["arguments"])))
        .collect()
}

fn outputs(answers: &[(&str, &str)], stream: bool) -> Value {
    let outputs: Vec<Value> =
        answers.iter().map(|(id, output)| json!({"tool_call_id": id, "output": output})).collect();
    json!({"tool_outputs": outputs, "stream": stream})
}

both_stores!(a_tool_call_is_streamed_and_the_run_resumes_after_its_output, async |database: Database| {
    let upstream = Upstream::scripted([
        Answer::Calls(vec![], vec![("weather", "{\"in\":\"Rome\"}")]),
        Answer::Tokens(vec!["Sun", "ny"]),
    ])
    .await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;

    let (run, call_events) = stream_new_run(client, json!({})).await;
    let deltas = ["run.step.delta"; 5];
    assert_eq!(
        names(&call_events),
        [&RUN_STARTED[..], &CALL_STARTED, &deltas, &["run.requires_action", "done"]].concat()
    );
    let stored = client.get(&run).await;
    let calls = required_calls(&stored);
    assert_eq!((calls[0].1.as_str(), calls[0].2.as_str()), ("weather", "{\"in\":\"Rome\"}"));
    assert!(calls[0].0.starts_with("call_"), "the call has our ID, not the model's");
    assert_eq!((&stored["status"], &stored["usage"]), (&json!("requires_action"), &Value::Null));
    let steps = client.get(&format!("{run}/steps")).await["data"].clone();
    assert_eq!((&steps[0]["status"], &steps[0]["usage"]), (&json!("in_progress"), &Value::Null));
    assert_eq!(steps[0]["step_details"]["tool_calls"][0]["function"]["output"], Value::Null);

    let answered = client.stream(&format!("{run}/submit_tool_outputs"), outputs(&[(&calls[0].0, "sunny")], true)).await;
    assert_eq!(names(&answered), [&RESUMED[..], &TEXT_STARTED, &["message.delta"; 2], &RUN_COMPLETED].concat());
    assert_eq!(answered[0].data["step_details"]["tool_calls"][0]["function"]["output"], "sunny");
    assert_eq!(answered[0].data["usage"]["total_tokens"], 30);
    let ended = client.get(&run).await;
    assert_eq!((&ended["status"], &ended["usage"]["total_tokens"]), (&json!("completed"), &json!(39)));
    let steps = client.get(&format!("{run}/steps?order=asc")).await;
    let kinds: Vec<&Value> = steps["data"].as_array().unwrap().iter().map(|step| &step["type"]).collect();
    assert_eq!(kinds, [&json!("tool_calls"), &json!("message_creation")]);

    assert_eq!(
        upstream.requests()[1]["messages"],
        json!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "up_0", "type": "function", "function": {"name": "weather", "arguments": "{\"in\":\"Rome\"}"}}]},
            {"role": "tool", "content": "sunny", "tool_call_id": "up_0"},
        ]),
        "the model receives its own call ID"
    );
    let offered: Vec<Value> = upstream.requests()[0]["tools"].as_array().unwrap().clone();
    assert_eq!(offered.len(), 2, "only functions are offered");
    assert_eq!(offered[0]["function"]["name"], "weather");
});

both_stores!(parallel_calls_form_one_step_and_accept_outputs_in_any_order, async |database: Database| {
    let calls = Answer::Calls(vec![], vec![("weather", "{}"), ("time", "{}")]);
    let upstream = Upstream::scripted([calls, Answer::Tokens(vec!["ok"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;

    let (run, call_events) = stream_new_run(client, json!({})).await;
    let deltas: Vec<&Value> = call_events
        .iter()
        .filter(|event| event.name == "thread.run.step.delta")
        .map(|event| &event.data["delta"]["step_details"]["tool_calls"][0]["index"])
        .collect();
    assert_eq!(deltas, [0, 0, 1, 1], "deltas are ordered by call");
    assert_eq!(client.get(&format!("{run}/steps")).await["data"].as_array().unwrap().len(), 1);
    let calls = required_calls(&client.get(&run).await);
    let (weather, time) = (calls[0].0.as_str(), calls[1].0.as_str());

    let path = format!("{run}/submit_tool_outputs");
    let expected = |got: &str| format!("Expected tool outputs for call_ids ['{weather}', '{time}'], got [{got}]");
    assert_eq!(client.post_rejected(&path, outputs(&[(weather, "x")], false)).await, expected(&format!("'{weather}'")));
    assert_eq!(client.post_rejected(&path, outputs(&[], false)).await, expected(""));
    let twice = outputs(&[(weather, "x"), (weather, "y")], false);
    assert_eq!(client.post_rejected(&path, twice).await, expected(&format!("'{weather}', '{weather}'")));
    let unknown = outputs(&[(weather, "x"), ("call_x", "y")], false);
    assert_eq!(client.post_rejected(&path, unknown).await, expected(&format!("'{weather}', 'call_x'")));
    let wrong = json!({"tool_outputs": [{"tool_call_id": weather, "output": 5}]});
    assert_eq!(
        client.post_rejected(&path, wrong).await,
        "Invalid type for 'tool_outputs[0].output': expected a string, but got an integer instead."
    );

    let resumed = client.post(&path, outputs(&[(time, ""), (weather, "sunny")], false)).await;
    assert_eq!((&resumed["status"], &resumed["required_action"]), (&json!("queued"), &Value::Null));
    client.wait_for_status(&run, "completed").await;
    let sent = &upstream.requests()[1]["messages"];
    assert_eq!((&sent[2]["content"], &sent[3]["content"]), (&json!("sunny"), &json!("")));
    let late = client.post_rejected(&path, outputs(&[(weather, "x"), (time, "y")], false)).await;
    assert_eq!(late, "Runs in status \"completed\" do not accept tool outputs.");
});

both_stores!(several_tool_rounds_create_one_message, async |database: Database| {
    let call = || Answer::Calls(vec![], vec![("weather", "{}")]);
    let upstream = Upstream::scripted([call(), call(), call(), Answer::Tokens(vec!["done"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;

    let (run, _) = stream_new_run(client, json!({})).await;
    for round in 0..3 {
        let calls = required_calls(&client.wait_for_status(&run, "requires_action").await);
        client.post(&format!("{run}/submit_tool_outputs"), outputs(&[(&calls[0].0, "x")], false)).await;
        upstream.wait_for_requests(round + 2).await;
    }

    let ended = client.wait_for_status(&run, "completed").await;
    assert_eq!(ended["usage"]["total_tokens"], 3 * 30 + 8);
    let steps = client.get(&format!("{run}/steps?order=asc")).await;
    let kinds: Vec<&str> =
        steps["data"].as_array().unwrap().iter().map(|step| step["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["tool_calls", "tool_calls", "tool_calls", "message_creation"]);
});

both_stores!(text_after_a_tool_call_continues_the_same_message, async |database: Database| {
    let upstream = Upstream::scripted([
        Answer::Calls(vec!["Let me ", "see."], vec![("weather", "{}")]),
        Answer::Calls(vec!["And now."], vec![("time", "{}")]),
        Answer::Tokens(vec!["Sun", "ny."]),
    ])
    .await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;

    let (run, call_events) = stream_new_run(client, json!({})).await;
    let rest = ["message.delta", "message.delta", "run.requires_action", "done"];
    assert_eq!(names(&call_events), [&RUN_STARTED[..], &TEXT_STARTED, &rest].concat());
    let thread = run.split("/runs").next().unwrap().to_owned();
    let newest = client.get(&format!("{thread}/messages?limit=1")).await["data"][0].clone();
    assert_eq!(
        (&newest["status"], &newest["content"][0]["text"]["value"]),
        (&json!("in_progress"), &json!("Let me see."))
    );

    let submit = format!("{run}/submit_tool_outputs");
    let calls = required_calls(&client.get(&run).await);
    let second = client.stream(&submit, outputs(&[(&calls[0].0, "x")], true)).await;
    let rest = ["message.delta", "run.requires_action", "done"];
    assert_eq!(
        names(&second),
        [&RESUMED[..], &TEXT_STARTED, &rest].concat(),
        "the second stream starts with the message again"
    );
    assert_eq!(second[5].data["content"][0]["text"]["value"], "Let me see.");
    assert_eq!(text(&second), "\n\nAnd now.");

    let calls = required_calls(&client.get(&run).await);
    let third = client.stream(&submit, outputs(&[(&calls[0].0, "x")], true)).await;
    assert_eq!(names(&third), [&RESUMED[..], &TEXT_STARTED, &["message.delta"; 2], &RUN_COMPLETED].concat());
    let whole = "Let me see.\n\nAnd now.\n\nSunny.";
    let newest = client.get(&format!("{thread}/messages?limit=1")).await["data"][0].clone();
    assert_eq!((&newest["status"], &newest["content"][0]["text"]["value"]), (&json!("completed"), &json!(whole)));
    let steps = client.get(&format!("{run}/steps?order=asc")).await;
    let kinds: Vec<&str> =
        steps["data"].as_array().unwrap().iter().map(|step| step["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["message_creation", "tool_calls", "tool_calls"]);
    let sent = &upstream.requests()[2]["messages"];
    assert_eq!((&sent[1]["content"], &sent[3]["content"]), (&json!("Let me see."), &json!("And now.")));
});

both_stores!(calls_without_text_are_streamed_after_a_turn_with_text, async |database: Database| {
    let upstream = Upstream::scripted([
        Answer::Calls(vec!["Let me see."], vec![("weather", "{}")]),
        Answer::Calls(vec![], vec![("time", "{}")]),
        Answer::Tokens(vec![]),
    ])
    .await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (run, _) = stream_new_run(client, json!({})).await;
    let submit = format!("{run}/submit_tool_outputs");

    let calls = required_calls(&client.get(&run).await);
    let second = client.stream(&submit, outputs(&[(&calls[0].0, "x")], true)).await;
    let rest = ["run.step.delta", "run.step.delta", "run.requires_action", "done"];
    assert_eq!(names(&second), [&RESUMED[..], &CALL_STARTED, &rest].concat());

    // If the last turn has no text, the text of the first turn is the whole answer.
    let calls = required_calls(&client.get(&run).await);
    let third = client.stream(&submit, outputs(&[(&calls[0].0, "x")], true)).await;
    assert_eq!(names(&third), [&RESUMED[..], &TEXT_STARTED, &RUN_COMPLETED].concat());
    assert_eq!(third[third.len() - 4].data["content"][0]["text"]["value"], "Let me see.");
});

both_stores!(text_after_calls_is_sent_by_the_next_stream, async |database: Database| {
    let first = concat!(
        "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"up_0\",\"function\":",
        "{\"name\":\"weather\",\"arguments\":\"{}\"}}]}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"One moment.\"},\"finish_reason\":\"tool_calls\"}]}\n\n",
        "data: [DONE]\n\n"
    );
    let upstream = Upstream::scripted([Answer::Raw(first), Answer::Tokens(vec!["Sunny."])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;

    let (run, call_events) = stream_new_run(client, json!({})).await;
    let rest = ["run.step.delta", "run.step.delta", "run.requires_action", "done"];
    assert_eq!(
        names(&call_events),
        [&RUN_STARTED[..], &CALL_STARTED, &rest].concat(),
        "only one step is open at a time"
    );
    let calls = required_calls(&client.get(&run).await);
    let answered = client.stream(&format!("{run}/submit_tool_outputs"), outputs(&[(&calls[0].0, "x")], true)).await;
    assert_eq!(names(&answered), [&RESUMED[..], &TEXT_STARTED, &["message.delta"], &RUN_COMPLETED].concat());
    assert_eq!(answered[5].data["content"][0]["text"]["value"], "One moment.");
    assert_eq!(text(&answered), "\n\nSunny.");
});

both_stores!(only_one_of_several_concurrent_submissions_is_accepted, async |database: Database| {
    let upstream =
        Upstream::scripted([Answer::Calls(vec![], vec![("weather", "{}")]), Answer::Pause(vec!["Hm"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (run, _) = stream_new_run(client, json!({})).await;
    let calls = required_calls(&client.get(&run).await);
    let (path, body) = (format!("{run}/submit_tool_outputs"), outputs(&[(&calls[0].0, "x")], false));

    let replies = futures_util::future::join_all((0..8).map(|_| client.send(Method::POST, &path, Some(&body)))).await;

    let (accepted, rejected): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| reply.status == 200);
    assert_eq!((accepted.len(), rejected.len()), (1, 7));
    for reply in rejected {
        let message = reply.body["error"]["message"].as_str().unwrap();
        assert_eq!((reply.status, message), (400, "Runs in status \"in_progress\" do not accept tool outputs."));
    }
    upstream.resume();
    client.wait_for_status(&run, "completed").await;
    assert_eq!(upstream.requests().len(), 2);
});

both_stores!(tool_choice_and_parallel_tool_calls_are_sent_to_the_model, async |database: Database| {
    let call = || Answer::Calls(vec![], vec![("weather", "{}"), ("time", "{}")]);
    let named = json!({"type": "function", "function": {"name": "weather"}});
    let upstream = Upstream::scripted([
        call(),
        Answer::Tokens(vec!["a"]),
        call(),
        Answer::Tokens(vec!["b"]),
        Answer::Tokens(vec!["c"]),
    ])
    .await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;

    for choice in [json!("required"), named.clone()] {
        let (run, _) = stream_new_run(client, json!({"tool_choice": choice, "parallel_tool_calls": false})).await;
        let stored = client.get(&run).await;
        assert_eq!((&stored["tool_choice"], &stored["parallel_tool_calls"]), (&choice, &json!(false)));
        let calls = required_calls(&stored);
        assert_eq!(calls.len(), 1, "one call for each turn, even if the model makes two");
        client.post(&format!("{run}/submit_tool_outputs"), outputs(&[(&calls[0].0, "x")], false)).await;
        client.wait_for_status(&run, "completed").await;
    }
    stream_new_run(client, json!({"tool_choice": "none"})).await;

    let requests = upstream.requests();
    assert_eq!((&requests[0]["tool_choice"], &requests[0]["parallel_tool_calls"]), (&json!("required"), &json!(false)));
    assert_eq!(
        requests[1].get("tool_choice"),
        None,
        "only the first turn is forced to call; otherwise the run could not end"
    );
    assert_eq!((&requests[2]["tool_choice"], requests[3].get("tool_choice")), (&named, None));
    assert_eq!(requests[4]["tool_choice"], "none");
});

both_stores!(unknown_functions_and_too_many_tool_rounds_fail_the_run, async |database: Database| {
    let call = || Answer::Calls(vec![], vec![("weather", "{}")]);
    let upstream = Upstream::scripted([Answer::Calls(vec![], vec![("say_hello", "{}")]), call(), call(), call()]).await;
    let server = Server::with(&database, &upstream, &[("MAX_TOOL_ROUNDS", "2")]).await;
    let client = &server.client;

    let (run, events) = stream_new_run(client, json!({})).await;
    assert_eq!(names(&events).last_chunk::<3>().unwrap(), &["run.step.failed", "run.failed", "done"]);
    let message = client.get(&run).await["last_error"]["message"].clone();
    assert!(message.as_str().unwrap().contains("'say_hello', which this run does not have"), "{message}");

    let (run, _) = stream_new_run(client, json!({})).await;
    for _ in 0..3 {
        let now = client.get(&run).await;
        if now["status"] != "requires_action" {
            break;
        }
        client.stream(&format!("{run}/submit_tool_outputs"), outputs(&[(&required_calls(&now)[0].0, "x")], true)).await;
    }
    let message = client.get(&run).await["last_error"]["message"].clone();
    assert!(message.as_str().unwrap().contains("max_tool_rounds"), "{message}");
});

both_stores!(a_call_with_unbounded_arguments_fails_its_run, async |database: Database| {
    let call = json!({"index": 0, "id": "up_0", "function": {"name": "weather", "arguments": "{".repeat(9_000_000)}});
    let chunk = json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]});
    let upstream = Upstream::scripted([Answer::Raw(format!("data: {chunk}\n\n").leak())]).await;
    let server = Server::start(&database, &upstream).await;

    let (run, events) = stream_new_run(&server.client, json!({})).await;

    assert_eq!(names(&events).last_chunk::<3>().unwrap(), &["run.step.failed", "run.failed", "done"]);
    let error = server.client.get(&run).await["last_error"]["message"].clone();
    assert_eq!(error, "The model called a function with arguments that exceed the maximum size of an answer.");
});

both_stores!(a_run_that_requires_action_can_be_cancelled, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Calls(vec!["Hm"], vec![("weather", "{}")])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (run, _) = stream_new_run(client, json!({})).await;
    let calls = required_calls(&client.get(&run).await);

    assert_eq!(client.post(&format!("{run}/cancel"), json!({})).await["status"], "cancelling");

    let ended = client.get(&run).await;
    assert_eq!((&ended["status"], &ended["required_action"]), (&json!("cancelled"), &Value::Null));
    let steps = client.get(&format!("{run}/steps")).await;
    assert!(steps["data"].as_array().unwrap().iter().all(|step| step["status"] == "cancelled"), "{steps:#}");
    let late = client.post_rejected(&format!("{run}/submit_tool_outputs"), outputs(&[(&calls[0].0, "x")], false)).await;
    assert_eq!(late, "Runs in status \"cancelled\" do not accept tool outputs.");
});

both_stores!(late_outputs_are_rejected_with_the_recorded_message, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Calls(vec![], vec![("weather", "{}")])]).await;
    let server = Server::with_manual_clock(&database, &upstream, &[]).await;
    let client = &server.client;
    let (run, _) = stream_new_run(client, json!({})).await;
    let calls = required_calls(&client.get(&run).await);

    server.clock.advance(600);

    let late = client.post_rejected(&format!("{run}/submit_tool_outputs"), outputs(&[(&calls[0].0, "x")], false)).await;
    assert_eq!(late, "Runs in status \"expired\" do not accept tool outputs.");
    let steps = client.get(&format!("{run}/steps")).await;
    assert_eq!(steps["data"][0]["status"], "expired");
    assert!(steps["data"][0]["expired_at"].is_i64());
});

both_stores!(a_run_that_requires_action_survives_a_restart, async |database: Database| {
    let upstream = Upstream::scripted([
        Answer::Calls(vec!["Let me see."], vec![("weather", "{}")]),
        Answer::Tokens(vec!["Sunny."]),
    ])
    .await;
    let first = Server::start(&database, &upstream).await;
    let (run, _) = stream_new_run(&first.client, json!({})).await;
    first.stop().await;

    let second = Server::start(&database, &upstream).await;
    let client = &second.client;
    let calls = required_calls(&client.get(&run).await);
    let events = client.stream(&format!("{run}/submit_tool_outputs"), outputs(&[(&calls[0].0, "x")], true)).await;

    assert_eq!(names(&events).last_chunk::<4>().unwrap(), &RUN_COMPLETED);
    assert_eq!(events.iter().rev().nth(3).unwrap().data["content"][0]["text"]["value"], "Let me see.\n\nSunny.");
    assert_eq!(upstream.requests()[1]["messages"][2], json!({"role": "tool", "content": "x", "tool_call_id": "up_0"}));
});

both_stores!(a_run_can_override_the_tools_of_its_assistant, async |database: Database| {
    let upstream = Upstream::start().await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    let body = json!({"model": "m", "tools": [tool("of_the_assistant")]});
    let assistant = client.post("/v1/assistants", body).await["id"].clone();
    let asked_with = async |tools: Value| {
        let thread = client.create_thread("Hi").await;
        let body = json!({"assistant_id": assistant, "tools": tools, "stream": true});
        let run = client.stream(&format!("/v1/threads/{thread}/runs"), body).await[0].data.clone();
        let request = upstream.requests().pop().unwrap();
        (run["tools"].as_array().unwrap().len(), request["tools"][0]["function"]["name"].clone())
    };

    assert_eq!(asked_with(json!([tool("of_the_run")])).await, (1, json!("of_the_run")));
    assert_eq!(asked_with(json!([])).await, (0, Value::Null), "an empty list overrides the assistant's tools");
    assert_eq!(asked_with(Value::Null).await, (1, json!("of_the_assistant")));
});

both_stores!(a_tool_choice_that_names_an_unknown_tool_is_rejected, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let body = json!({"model": "m", "tools": [{"type": "function", "function": {"name": "f"}}]});
    let assistant = client.post("/v1/assistants", body).await["id"].clone();
    let runs = format!("/v1/threads/{}/runs", client.create_thread("Hi").await);
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});

    let choices = [
        (named("g"), "function named 'g'"),
        (json!({"type": "file_search"}), "tool of type 'file_search'"),
        (json!({"type": "code_interpreter"}), "tool of type 'code_interpreter'"),
    ];
    for (choice, what) in choices {
        let body = json!({"assistant_id": assistant, "tool_choice": choice});
        let (status, error) = client.send_rejected(Method::POST, &runs, Some(body)).await;
        let message = format!("Invalid value for 'tool_choice': no {what} was specified in the 'tools' parameter.");
        assert_eq!((status, &error["message"], &error["param"]), (400, &json!(message), &json!("tool_choice")));
    }
    client.post(&runs, json!({"assistant_id": assistant, "tool_choice": named("f")})).await;
});

both_stores!(function_parameters_must_be_an_object_schema, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}});

    let body = json!({"model": "m", "tools": [tool]});
    let (status, error) = server.client.send_rejected(Method::POST, "/v1/assistants", Some(body)).await;

    assert_eq!((status, &error["code"]), (400, &json!("invalid_function_parameters")));
    assert_eq!(error["param"], "tools[0].function.parameters");
});
