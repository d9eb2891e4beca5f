//! Errors for invalid requests: status, message, `param` and `code`, in one table for each part of the API.
//!
//! The rows are from the contract's list of behaviours; each table names the section of the list that it covers.

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

/// A body, and the expected error: message, `param`, `code`.
type Row = (Value, &'static str, &'static str, &'static str);

/// Posts each body to a path; asserts that it is rejected with status 400 and the expected error.
async fn assert_rejected(client: &Client, path: &str, rows: Vec<Row>) {
    for (body, message, param, code) in rows {
        let shown: String = body.to_string().chars().take(200).collect();
        let (status, error) = client.send_rejected(Method::POST, path, Some(body)).await;
        assert_eq!(status, 400, "{shown}");
        let actual = (error["message"].as_str().unwrap(), error["param"].as_str(), error["code"].as_str());
        let optional = |text: &'static str| (!text.is_empty()).then_some(text);
        assert_eq!(actual, (message, optional(param), optional(code)), "{shown}");
        assert_eq!(error["type"], "invalid_request_error");
    }
}

fn long(length: usize) -> String {
    "x".repeat(length)
}

fn pairs(count: usize) -> Value {
    (0..count).map(|number| (format!("k{number}"), json!("v"))).collect::<serde_json::Map<_, _>>().into()
}

fn function(definition: &Value) -> Value {
    json!({"model": "m", "tools": [{"type": "function", "function": definition}]})
}

// Errors: bodies; limits: names, texts, tools, metadata.
both_stores!(invalid_assistants_are_rejected, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let with = |member: &str, value: Value| {
        let mut body = json!({"model": "m"});
        body[member] = value;
        body
    };
    let rows: Vec<Row> = vec![
        (json!({}), "Missing required parameter: 'model'.", "model", "missing_required_parameter"),
        (
            json!({"model": null}),
            "Invalid type for 'model': expected a string, but got null instead.",
            "model",
            "invalid_type",
        ),
        (
            json!({"foo": 1, "temperature": 9}),
            "Missing required parameter: 'model'.",
            "model",
            "missing_required_parameter",
        ),
        (json!({"model": 1, "temperature": 9, "foo": 1}), "Unknown parameter: 'foo'.", "foo", "unknown_parameter"),
        (
            json!({"model": ""}),
            "Invalid 'model': empty string. Expected a string with minimum length 1, but got an empty string instead.",
            "model",
            "empty_string",
        ),
        (
            with("name", json!(long(257))),
            "Invalid 'name': string too long. Expected a string with maximum length 256, but got a string with length \
             257 instead.",
            "name",
            "string_above_max_length",
        ),
        (
            with("description", json!(long(513))),
            "Invalid 'description': string too long. Expected a string with maximum length 512, but got a string with \
             length 513 instead.",
            "description",
            "string_above_max_length",
        ),
        (
            with("instructions", json!(long(256_001))),
            "Invalid 'instructions': string too long. Expected a string with maximum length 256000, but got a string \
             with length 256001 instead.",
            "instructions",
            "string_above_max_length",
        ),
        (
            with("tools", json!("x")),
            "Invalid type for 'tools': expected an array of objects, but got a string instead.",
            "tools",
            "invalid_type",
        ),
        (
            with("tools", json!([1])),
            "Invalid type for 'tools[0]': expected an object, but got an integer instead.",
            "tools[0]",
            "invalid_type",
        ),
        (
            with("tools", Value::Array(vec![json!({"type": "code_interpreter"}); 129])),
            "Invalid 'tools': array too long. Expected an array with maximum length 128, but got an array with length \
             129 instead.",
            "tools",
            "array_above_max_length",
        ),
        (
            with("tools", json!([{"type": "retrieval"}])),
            "Invalid value: 'retrieval'. Supported values are: 'code_interpreter', 'file_search', and 'function'.",
            "tools[0].type",
            "invalid_value",
        ),
        (
            with("tools", json!([{}])),
            "Missing required parameter: 'tools[0].type'.",
            "tools[0].type",
            "missing_required_parameter",
        ),
        (
            with("tools", json!([{"type": "code_interpreter", "x": 1}])),
            "Unknown parameter: 'tools[0].x'.",
            "tools[0].x",
            "unknown_parameter",
        ),
        (
            function(&json!({})),
            "Missing required parameter: 'tools[0].function.name'.",
            "tools[0].function.name",
            "missing_required_parameter",
        ),
        (
            function(&json!({"name": "a b"})),
            "Invalid 'tools[0].function.name': string does not match pattern. Expected a string that matches the \
             pattern '^[a-zA-Z0-9_-]+$'.",
            "tools[0].function.name",
            "invalid_value",
        ),
        (
            function(&json!({"name": "f".repeat(65)})),
            "Invalid 'tools[0].function.name': string too long. Expected a string with maximum length 64, but got a \
             string with length 65 instead.",
            "tools[0].function.name",
            "string_above_max_length",
        ),
        (
            with("temperature", json!(3)),
            "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead.",
            "temperature",
            "decimal_above_max_value",
        ),
        (
            with("temperature", json!(-0.5)),
            "Invalid 'temperature': decimal below minimum value. Expected a value >= 0, but got -0.5 instead.",
            "temperature",
            "decimal_below_min_value",
        ),
        (
            with("top_p", json!("high")),
            "Invalid type for 'top_p': expected a decimal number, but got a string instead.",
            "top_p",
            "invalid_type",
        ),
        (
            with("response_format", json!("json")),
            "Invalid value: 'json'. Supported values are: 'auto'.",
            "response_format",
            "invalid_value",
        ),
        (
            with("reasoning_effort", json!("huge")),
            "Invalid value: 'huge'. Supported values are: 'none', 'minimal', 'low', 'medium', 'high', 'xhigh', and \
             'max'.",
            "reasoning_effort",
            "invalid_value",
        ),
        (
            with("metadata", json!({"modified": true})),
            "Invalid type for 'metadata.modified': expected a string, but got a boolean instead.",
            "metadata.modified",
            "invalid_type",
        ),
        (
            with("metadata", json!([])),
            "Invalid type for 'metadata': expected an object, but got an array instead.",
            "metadata",
            "invalid_type",
        ),
        (
            with("metadata", pairs(17)),
            "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, but got an object \
             with 17 properties instead.",
            "metadata",
            "object_above_max_properties",
        ),
        (
            with("metadata", json!({"k": long(600)})),
            "Invalid 'metadata.k': string too long. Expected a string with maximum length 512, but got a string with \
             length 600 instead.",
            "metadata.k",
            "string_above_max_length",
        ),
        (
            with("tool_resources", json!({"code_interpreter": {"file_ids": vec!["file-1"; 21]}})),
            "Invalid 'tool_resources.code_interpreter.file_ids': array too long. Expected an array with maximum length \
             20, but got an array with length 21 instead.",
            "tool_resources.code_interpreter.file_ids",
            "array_above_max_length",
        ),
        (
            json!([]),
            "Invalid type for the request body: expected an object, but got an array instead.",
            "",
            "invalid_type",
        ),
        (
            with("tool_resources", json!({"file_search": {"vector_store_ids": ["x"]}})),
            "Invalid 'tool_resources.file_search.vector_store_ids[0]': 'x'. Expected an ID that begins with 'vs'.",
            "tool_resources.file_search.vector_store_ids[0]",
            "invalid_value",
        ),
    ];
    assert_rejected(&server.client, "/v1/assistants", rows).await;

    let key = long(70);
    let body = with("metadata", json!({&key: "v"}));
    let (_, error) = server.client.send_rejected(Method::POST, "/v1/assistants", Some(body)).await;
    let message = "Invalid property name in 'metadata': 'xxx...xxx' is too long. Expected a string with maximum length \
                   64, but got a string with length 70 instead.";
    assert_eq!(
        (&error["message"], &error["param"], &error["code"]),
        (&json!(message), &json!(format!("metadata.{key}")), &json!("property_name_above_max_length"))
    );
    assert_eq!(server.client.get("/v1/assistants").await["data"], json!([]), "nothing was stored");
    // Values at the limits are accepted.
    let body = json!({"model": "m", "name": "é".repeat(256), "metadata": pairs(16), "temperature": 2, "top_p": 0});
    server.client.post("/v1/assistants", body).await;
});

// Errors: messages; messages: roles, parts, lengths.
both_stores!(invalid_messages_are_rejected, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let messages = format!("/v1/threads/{}/messages", server.client.create_thread("Hi").await);
    let content = |content: Value| json!({"role": "user", "content": content});
    let rows: Vec<Row> = vec![
        (json!({"content": "x"}), "Missing required parameter: 'role'.", "role", "missing_required_parameter"),
        (json!({"role": "user"}), "Missing required parameter: 'content'.", "content", "missing_required_parameter"),
        (
            json!({"role": "system", "content": "x"}),
            "Invalid value: 'system'. Supported values are: 'user' and 'assistant'.",
            "role",
            "invalid_value",
        ),
        (
            content(json!(1)),
            "Invalid type for 'content': expected one of a string or array of objects, but got an integer instead.",
            "content",
            "invalid_type",
        ),
        (
            content(json!([])),
            "Invalid 'content': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            "content",
            "empty_array",
        ),
        (
            content(json!([{"type": "text", "text": null}])),
            "Invalid type for 'content[0].text': expected a string, but got null instead.",
            "content[0].text",
            "invalid_type",
        ),
        (
            content(json!(long(256_001))),
            "Invalid 'content': string too long. Expected a string with maximum length 256000, but got a string with \
             length 256001 instead.",
            "content",
            "string_above_max_length",
        ),
        (
            content(json!([{"type": "text", "text": long(200_000)}, {"type": "text", "text": long(56_001)}])),
            "Invalid 'content': string too long. Expected a string with maximum length 256000, but got a string with \
             length 256001 instead.",
            "content",
            "string_above_max_length",
        ),
        (
            content(json!([{"type": "text"}])),
            "Missing required parameter: 'content[0].text'.",
            "content[0].text",
            "missing_required_parameter",
        ),
        (
            content(json!([{"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "fine"}}])),
            "Invalid value: 'fine'. Supported values are: 'auto', 'low', and 'high'.",
            "content[0].image_url.detail",
            "invalid_value",
        ),
        (
            content(json!([{"type": "image_url", "image_url": {"url": "x"}}])),
            "Invalid 'content[0].image_url.url'. Expected a valid URL, but got a value with an invalid format.",
            "content[0].image_url.url",
            "invalid_value",
        ),
        (
            content(json!([{"type": "image_file", "image_file": {"file_id": "x"}}])),
            "Invalid 'content[0].image_file.file_id': 'x'. Expected an ID that begins with 'file'.",
            "content[0].image_file.file_id",
            "invalid_value",
        ),
        (
            json!({"role": "user", "content": "x", "attachments": [{"file_id": "file-1", "tools": [{"type": "function"}]}]}),
            "Invalid value: 'function'. Supported values are: 'code_interpreter' and 'file_search'.",
            "attachments[0].tools[0].type",
            "invalid_value",
        ),
        (
            json!({"role": "user", "content": "x", "file_ids": []}),
            "Unknown parameter: 'file_ids'.",
            "file_ids",
            "unknown_parameter",
        ),
    ];
    assert_rejected(&server.client, &messages, rows).await;
    let thread: Vec<Row> = vec![(
        json!({"messages": [{"role": "user", "content": "x"}, {"role": "user"}]}),
        "Missing required parameter: 'messages[1].content'.",
        "messages[1].content",
        "missing_required_parameter",
    )];
    assert_rejected(&server.client, "/v1/threads", thread).await;

    assert_eq!(server.client.get(&messages).await["data"].as_array().unwrap().len(), 1);
    for text in [" ".to_owned(), "é".repeat(256_000), "\u{0}".to_owned(), "\u{1F600}".to_owned()] {
        let message = server.client.post(&messages, content(json!(text))).await;
        assert_eq!(message["content"][0]["text"]["value"], json!(text));
    }
});

// Errors: the content of a message, also of one in a request that creates a thread or a run. An empty text is accepted
// beside an image.
both_stores!(a_message_without_content_is_rejected, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let nothing = json!({"type": "text", "text": ""});
    for content in [json!(""), json!([nothing]), json!([nothing, nothing])] {
        let message = json!({"role": "user", "content": content});
        let messages = json!([{"role": "assistant", "content": "x"}, message]);
        for (path, body, param) in [
            (format!("/v1/threads/{thread}/messages"), message.clone(), "content"),
            ("/v1/threads".to_owned(), json!({"messages": messages}), "messages[1].content"),
            (
                format!("/v1/threads/{thread}/runs"),
                json!({"assistant_id": assistant, "additional_messages": messages}),
                "additional_messages[1].content",
            ),
            (
                "/v1/threads/runs".to_owned(),
                json!({"assistant_id": assistant, "thread": {"messages": messages}}),
                "thread.messages[1].content",
            ),
        ] {
            let (status, error) = client.send_rejected(Method::POST, &path, Some(body)).await;
            let expected = json!({"message": "Message content must be non-empty.", "type": "invalid_request_error",
                "param": param, "code": null});
            assert_eq!((status, error), (400, expected), "{path}: {content}");
        }
    }

    let image = json!({"type": "image_url", "image_url": {"url": "https://x/y.png"}});
    let body = json!({"role": "user", "content": [nothing, image]});
    let message = client.post(&format!("/v1/threads/{thread}/messages"), body).await;
    assert_eq!(message["content"].as_array().unwrap().len(), 2);
});

// Errors: runs; runs: parameters and their bounds.
both_stores!(invalid_runs_are_rejected, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let with = |member: &str, value: Value| {
        let mut body = json!({"assistant_id": assistant});
        body[member] = value;
        body
    };
    let rows: Vec<Row> = vec![
        (json!({}), "Missing required parameter: 'assistant_id'.", "assistant_id", "missing_required_parameter"),
        (
            json!({"assistant_id": "x"}),
            "Invalid 'assistant_id': 'x'. Expected an ID that begins with 'asst'.",
            "assistant_id",
            "invalid_value",
        ),
        (
            with("max_prompt_tokens", json!(0)),
            "Invalid 'max_prompt_tokens': integer below minimum value. Expected a value >= 1, but got 0 instead.",
            "max_prompt_tokens",
            "integer_below_min_value",
        ),
        (
            with("max_completion_tokens", json!(1.5)),
            "Invalid type for 'max_completion_tokens': expected an integer, but got a decimal number instead.",
            "max_completion_tokens",
            "invalid_type",
        ),
        (
            with("truncation_strategy", json!({"type": "last_messages"})),
            "Missing required parameter: 'truncation_strategy.last_messages'.",
            "truncation_strategy.last_messages",
            "missing_required_parameter",
        ),
        (
            with("truncation_strategy", json!({"type": "last_messages", "last_messages": 0})),
            "Invalid 'truncation_strategy.last_messages': integer below minimum value. Expected a value >= 1, but got 0 \
             instead.",
            "truncation_strategy.last_messages",
            "integer_below_min_value",
        ),
        (
            with("truncation_strategy", json!({"type": "newest"})),
            "Invalid value: 'newest'. Supported values are: 'auto' and 'last_messages'.",
            "truncation_strategy.type",
            "invalid_value",
        ),
        (
            with("tool_choice", json!("maybe")),
            "Invalid value: 'maybe'. Supported values are: 'none', 'auto', and 'required'.",
            "tool_choice",
            "invalid_value",
        ),
        (
            with("tool_choice", json!(1)),
            "Invalid type for 'tool_choice': expected one of a string or object, but got an integer instead.",
            "tool_choice",
            "invalid_type",
        ),
        (
            with("parallel_tool_calls", json!("yes")),
            "Invalid type for 'parallel_tool_calls': expected a boolean, but got a string instead.",
            "parallel_tool_calls",
            "invalid_type",
        ),
        (
            with("stream", json!(1)),
            "Invalid type for 'stream': expected a boolean, but got an integer instead.",
            "stream",
            "invalid_type",
        ),
        (
            with("additional_messages", json!([{"role": "user", "content": 1}])),
            "Invalid type for 'additional_messages[0].content': expected one of a string or array of objects, but got \
             an integer instead.",
            "additional_messages[0].content",
            "invalid_type",
        ),
        (
            with("tool_resources", json!({})),
            "Unknown parameter: 'tool_resources'.",
            "tool_resources",
            "unknown_parameter",
        ),
    ];
    assert_rejected(client, &format!("/v1/threads/{thread}/runs"), rows).await;
    let nested: Vec<Row> = vec![(
        with("thread", json!({"messages": [{"role": "user", "content": "x", "y": 1}]})),
        "Unknown parameter: 'thread.messages[0].y'.",
        "thread.messages[0].y",
        "unknown_parameter",
    )];
    assert_rejected(client, "/v1/threads/runs", nested).await;
    assert_eq!(client.get(&format!("/v1/threads/{thread}/runs")).await["data"], json!([]));
});

// Errors: submit; an unknown run is reported before a wrong state.
both_stores!(invalid_tool_outputs_are_rejected, async |database: Database| {
    let server = Server::start(&database, &Upstream::scripted([Answer::Pause(vec!["Hm"])]).await).await;
    let client = &server.client;
    let run = client.create_run(&client.create_assistant().await, &client.create_thread("Hi").await).await;
    let rows: Vec<Row> = vec![
        (json!({}), "Missing required parameter: 'tool_outputs'.", "tool_outputs", "missing_required_parameter"),
        (
            json!({"tool_outputs": [{"tool_call_id": "call_1", "output": {"a": 1}}]}),
            "Invalid type for 'tool_outputs[0].output': expected a string, but got an object instead.",
            "tool_outputs[0].output",
            "invalid_type",
        ),
        (
            json!({"tool_outputs": "x"}),
            "Invalid type for 'tool_outputs': expected an array of objects, but got a string instead.",
            "tool_outputs",
            "invalid_type",
        ),
        (
            json!({"tool_outputs": [{"tool_call_id": "call_1", "output": "x"}]}),
            "Runs in status \"in_progress\" do not accept tool outputs.",
            "",
            "",
        ),
    ];
    assert_rejected(client, &format!("{run}/submit_tool_outputs"), rows).await;
    let rows: Vec<Row> =
        vec![(json!({"metadata": {"k": "v"}}), "Cannot update run with status 'in_progress'.", "", "")];
    assert_rejected(client, &run, rows).await;
});

// Errors: IDs in paths; of several unknown objects, the outermost is reported.
both_stores!(unknown_and_malformed_ids_in_paths_are_rejected, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let run = client.create_run(&assistant, &thread).await;
    client.wait_for_status(&run, "completed").await;
    let run = run.rsplit('/').next().unwrap();
    let not_found = |noun: &str, id: &str| (404, format!("No {noun} found with id '{id}'."));
    let malformed = |param: &str, begins: &str| {
        (400, format!("Invalid '{param}': 'undefined'. Expected an ID that begins with '{begins}'."))
    };
    let of = async |path: String| {
        let (status, error) = client.send_rejected(Method::GET, &path, None).await;
        let malformed = status == 400;
        assert_eq!(error["code"], if malformed { json!("invalid_value") } else { Value::Null }, "{path}");
        (status, error["message"].as_str().unwrap().to_owned())
    };

    let table = [
        ("/v1/assistants/asst_x".to_owned(), not_found("assistant", "asst_x")),
        ("/v1/assistants/undefined".to_owned(), malformed("assistant_id", "asst")),
        ("/v1/threads/thread_x".to_owned(), not_found("thread", "thread_x")),
        ("/v1/threads/undefined".to_owned(), malformed("thread_id", "thread")),
        ("/v1/threads/thread_x/messages".to_owned(), not_found("thread", "thread_x")),
        ("/v1/threads/thread_x/messages/msg_x".to_owned(), not_found("thread", "thread_x")),
        (format!("/v1/threads/{thread}/messages/msg_x"), not_found("message", "msg_x")),
        (format!("/v1/threads/{thread}/messages/undefined"), malformed("message_id", "msg")),
        ("/v1/threads/thread_x/runs".to_owned(), not_found("thread", "thread_x")),
        (format!("/v1/threads/{thread}/runs/run_x"), not_found("run", "run_x")),
        (format!("/v1/threads/{thread}/runs/undefined"), malformed("run_id", "run")),
        (format!("/v1/threads/{thread}/runs/run_x/steps"), not_found("run", "run_x")),
        (format!("/v1/threads/{thread}/runs/run_x/steps/step_x"), not_found("run", "run_x")),
        (format!("/v1/threads/{thread}/runs/{run}/steps/step_123"), not_found("run step", "step_123")),
        (format!("/v1/threads/{thread}/runs/{run}/steps/undefined"), malformed("step_id", "step")),
        (format!("/v1/threads/{thread}/messages?after=msg_x"), not_found("message", "msg_x")),
        (format!("/v1/threads/{thread}/runs?before=run_x"), not_found("run", "run_x")),
        (format!("/v1/threads/{thread}/messages?run_id=undefined"), malformed("run_id", "run")),
    ];
    for (path, expected) in table {
        assert_eq!(of(path.clone()).await, expected, "{path}");
    }

    let model = client.send_rejected(Method::GET, "/v1/models/fake_id", None).await;
    let expected = json!({"message": "The model 'fake_id' does not exist", "type": "invalid_request_error", "param": "model",
        "code": "model_not_found"});
    assert_eq!(model, (404, expected.clone()));
    assert_eq!(client.send_rejected(Method::DELETE, "/v1/models/fake_id", None).await, (404, expected));
    for odd in ["thread_%00", "thread_%F0%9F%98%80", "thread_%27", "thread_..%2F", "thread_%22%3B--", "thread_%C0%AF"] {
        let (status, _) = client.send_rejected(Method::GET, &format!("/v1/threads/{odd}"), None).await;
        assert!([400, 404].contains(&status), "{odd}: {status}");
    }
});

// Null or absent: null means absent in a create request, and clears the value in a modify request.
both_stores!(null_means_absent_on_create_and_clears_on_modify, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let plain = |mut object: Value| {
        for name in ["id", "created_at", "thread_id", "expires_at"] {
            object[name] = Value::Null;
        }
        object
    };

    let bare = client.post("/v1/assistants", json!({"model": "m"})).await;
    let nulls = json!({"model": "m", "name": null, "description": null, "instructions": null, "tools": null,
        "tool_resources": null, "metadata": null, "temperature": null, "top_p": null, "reasoning_effort": null,
        "response_format": null});
    let with_nulls = client.post("/v1/assistants", nulls).await;
    assert_eq!(plain(with_nulls), plain(bare.clone()));
    let nulls = json!({"messages": null, "tool_resources": null, "metadata": null});
    let thread = client.post("/v1/threads", nulls).await["id"].as_str().unwrap().to_owned();
    let nulls = json!({"role": "user", "content": "x", "attachments": null, "metadata": null});
    client.post(&format!("/v1/threads/{thread}/messages"), nulls).await;
    let nulls = json!({"assistant_id": bare["id"], "model": null, "instructions": null, "additional_instructions": null,
        "additional_messages": null, "tools": null, "metadata": null, "temperature": null, "top_p": null,
        "stream": null, "max_prompt_tokens": null, "max_completion_tokens": null, "truncation_strategy": null,
        "tool_choice": null, "parallel_tool_calls": null, "response_format": null, "reasoning_effort": null});
    let run = client.post(&format!("/v1/threads/{thread}/runs"), nulls).await;
    let other = client.create_thread("x").await;
    let bare_run = client.post(&format!("/v1/threads/{other}/runs"), json!({"assistant_id": bare["id"]})).await;
    assert_eq!(plain(run), plain(bare_run));

    let set = json!({"model": "m", "name": "n", "description": "d", "instructions": "i", "metadata": {"k": "v"},
        "tool_resources": {"code_interpreter": {"file_ids": [client.upload().await]}}});
    let assistant = client.post("/v1/assistants", set.clone()).await;
    let path = format!("/v1/assistants/{}", assistant["id"].as_str().unwrap());
    assert_eq!(client.post(&path, json!({})).await, assistant, "absent parameters are unchanged");
    let cleared = json!({"name": null, "description": null, "instructions": null, "metadata": null,
        "tool_resources": null});
    assert_eq!(plain(client.post(&path, cleared).await), plain(bare));
});

// Null or absent: where null does not clear, it means absent.
both_stores!(null_does_not_clear_what_cannot_be_absent, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let (file, store) = (client.upload().await, client.create_vector_store().await);
    let tools = json!([{"type": "code_interpreter"}, {"type": "file_search"}]);
    let body = json!({"model": "m", "tools": tools, "temperature": 0.5, "top_p": 0.5, "reasoning_effort": "low",
        "response_format": {"type": "json_object"},
        "tool_resources": {"code_interpreter": {"file_ids": [file]}, "file_search": {"vector_store_ids": [store]}}});
    let assistant = client.post("/v1/assistants", body).await;
    let path = format!("/v1/assistants/{}", assistant["id"].as_str().unwrap());

    let nulls = json!({"model": null, "tools": null, "temperature": null, "top_p": null, "reasoning_effort": null,
        "response_format": null, "tool_resources": {"code_interpreter": null, "file_search": null}});
    assert_eq!(client.post(&path, nulls).await, assistant);
    let one = json!({"tool_resources": {"code_interpreter": {"file_ids": []}}, "tools": []});
    let modified = client.post(&path, one).await;
    assert_eq!(modified["tools"], json!([]), "an empty list clears");
    let expected = json!({"code_interpreter": {"file_ids": []}, "file_search": {"vector_store_ids": [store]}});
    assert_eq!(modified["tool_resources"], expected);

    client.post(&path, json!({"tools": tools})).await;
    let thread = client
        .post(
            "/v1/threads",
            json!({"messages": [{"role": "user", "content": "x"}],
        "tool_resources": {"file_search": {"vector_store_ids": [store]}}, "metadata": {"k": "v"}}),
        )
        .await;
    let path = format!("/v1/threads/{}", thread["id"].as_str().unwrap());
    assert_eq!(client.post(&path, json!({"tool_resources": {"file_search": null}})).await, thread);
    let run = client.post(&format!("{path}/runs"), json!({"assistant_id": assistant["id"], "tools": null})).await;
    assert_eq!(run["tools"], assistant["tools"]);
});

// Null or absent: values are returned in the service's form.
both_stores!(values_are_returned_in_the_services_form, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let body = json!({"model": "m", "temperature": 1, "tools": [{"type": "function", "function": {"name": "f",
        "description": "d"}}, {"type": "file_search", "file_search": {"max_num_results": 2}}]});
    let reply = client.request(Method::POST, "/v1/assistants").json(&body).send().await.unwrap();

    let text = reply.text().await.unwrap();

    assert!(text.contains("\"temperature\":1.0,"), "decimals have a fraction: {text}");
    let function = r#"{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{}},"strict":false}}"#;
    assert!(text.contains(function), "{text}");
    let search = r#"{"type":"file_search","file_search":{"max_num_results":2,"ranking_options":{"ranker":"default_2024_08_21","score_threshold":0.0,"hybrid_search":null}}}"#;
    assert!(text.contains(search), "{text}");
    let thread = client.create_thread("x").await;
    let content = json!([{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]);
    let path = format!("/v1/threads/{thread}/messages");
    let message = client.post(&path, json!({"role": "assistant", "content": content})).await;
    assert_eq!(message["content"][0]["image_url"]["detail"], "auto");
    assert_eq!((&message["assistant_id"], &message["run_id"]), (&Value::Null, &Value::Null));
});

// Headers: request headers of clients are accepted, and the response headers that they read are sent.
both_stores!(request_headers_of_all_clients_are_accepted, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let headers = [
        ("openai-beta", "assistants=v2"),
        ("openai-organization", "org-1"),
        ("openai-project", "proj_1"),
        ("idempotency-key", "k"),
        ("x-stainless-lang", "python"),
        ("x-stainless-poll-helper", "true"),
        ("accept", "text/event-stream"),
        ("api-key", "any"),
        ("authorization", "Bearer any"),
    ];

    let mut request = server.client.request(Method::POST, "/v1/threads?api-version=2024-05-01-preview&x=y");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let reply = Client::read(request.header("content-length", "0").send().await.unwrap()).await;

    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["openai-organization"], "org-1");
    assert_eq!(reply.headers["openai-project"], "proj_1");
    assert_eq!(reply.headers["content-type"], "application/json");
    assert!(reply.headers.contains_key("content-length"));
});
