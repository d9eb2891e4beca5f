//! Runs that are not streamed, and the requests to the model.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::database::Database;
use crate::support::form::Form;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

both_stores!(a_run_creates_one_message_and_one_step, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Tokens(vec!["Hello", "!", " Bye"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);

    let reply = client
        .send(Method::POST, &format!("/v1/threads/{thread}/runs"), Some(&json!({"assistant_id": assistant})))
        .await;

    assert_eq!((&reply.body["status"], &reply.body["usage"]), (&json!("queued"), &Value::Null));
    assert_eq!(reply.headers["openai-poll-after-ms"], "100");
    let members: Vec<&String> = reply.body.as_object().unwrap().keys().collect();
    assert_eq!(
        members,
        [
            "id",
            "object",
            "created_at",
            "assistant_id",
            "thread_id",
            "status",
            "started_at",
            "expires_at",
            "cancelled_at",
            "failed_at",
            "completed_at",
            "required_action",
            "last_error",
            "model",
            "instructions",
            "tools",
            "tool_resources",
            "metadata",
            "temperature",
            "top_p",
            "reasoning_effort",
            "max_completion_tokens",
            "max_prompt_tokens",
            "truncation_strategy",
            "incomplete_details",
            "usage",
            "response_format",
            "tool_choice",
            "parallel_tool_calls"
        ]
    );

    let path = format!("/v1/threads/{thread}/runs/{}", reply.body["id"].as_str().unwrap());
    let run = client.wait_for_status(&path, "completed").await;
    let usage = json!({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
        "prompt_token_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0}});
    assert_eq!((&run["usage"], &run["expires_at"]), (&usage, &Value::Null));

    let steps = client.get(&format!("{path}/steps")).await;
    let steps = steps["data"].as_array().unwrap();
    assert_eq!(steps.len(), 1);
    assert_eq!((&steps[0]["type"], &steps[0]["status"]), (&json!("message_creation"), &json!("completed")));
    assert_eq!((&steps[0]["usage"], &steps[0]["expires_at"]), (&usage, &Value::Null));
    let step = client.get(&format!("{path}/steps/{}", steps[0]["id"].as_str().unwrap())).await;
    assert_eq!(step, steps[0]);

    let messages = client.get(&format!("/v1/threads/{thread}/messages")).await;
    let newest = &messages["data"][0];
    assert_eq!(newest["id"], steps[0]["step_details"]["message_creation"]["message_id"]);
    assert_eq!(newest["content"], json!([{"type": "text", "text": {"value": "Hello! Bye", "annotations": []}}]));
    assert_eq!((&newest["run_id"], &newest["assistant_id"]), (&run["id"], &run["assistant_id"]));
    assert_eq!(client.get(&format!("/v1/threads/{thread}/runs")).await["data"], json!([run]));
});

both_stores!(the_model_request_contains_the_thread_and_the_run_parameters, async |database: Database| {
    let upstream = Upstream::start().await;
    upstream.list_models(&["m", "other"]);
    let server = Server::with(&database, &upstream, &[("UPSTREAM_API_KEY", "sk-up")]).await;
    let client = &server.client;
    let assistant = client
        .post("/v1/assistants", json!({"model": "m", "instructions": "be kind", "temperature": 0.2, "top_p": 0.9}))
        .await;
    let thread = client
        .post(
            "/v1/threads",
            json!({"messages": [
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "two"},
                {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}]},
            ]}),
        )
        .await;

    let run = client
        .post(
            &format!("/v1/threads/{}/runs", thread["id"].as_str().unwrap()),
            json!({"assistant_id": assistant["id"], "model": "other", "additional_instructions": "and short",
                "additional_messages": [{"role": "user", "content": "three"}], "temperature": 1.5,
                "max_completion_tokens": 300, "reasoning_effort": "low", "response_format": {"type": "json_object"}}),
        )
        .await;
    upstream.wait_for_requests(1).await;

    assert_eq!((&run["instructions"], &run["model"]), (&json!("be kind\nand short"), &json!("other")));
    assert_eq!(
        upstream.requests()[0],
        json!({"model": "other", "messages": [
                {"role": "system", "content": "be kind\nand short"},
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "two"},
                {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}]},
                {"role": "user", "content": "three"},
            ], "temperature": 1.5, "top_p": 0.9, "max_completion_tokens": 300, "max_tokens": 300,
            "response_format": {"type": "json_object"}, "reasoning_effort": "low",
            "stream": true, "stream_options": {"include_usage": true}})
    );
    assert_eq!(upstream.keys()[0].as_deref(), Some("Bearer sk-up"));
});

both_stores!(unset_parameters_are_not_sent_to_the_model, async |database: Database| {
    let upstream = Upstream::start().await;
    upstream.list_models(&["m", "other"]);
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;

    client.create_run(&client.create_assistant().await, &client.create_thread("Hi").await).await;
    upstream.wait_for_requests(1).await;

    assert_eq!(
        upstream.requests()[0],
        json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": true,
            "stream_options": {"include_usage": true}})
    );
});

both_stores!(truncation_to_the_last_messages_limits_the_prompt, async |database: Database| {
    let upstream = Upstream::start().await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let thread = client.create_thread("one").await;
    for text in ["two", "three"] {
        client.post(&format!("/v1/threads/{thread}/messages"), json!({"role": "user", "content": text})).await;
    }

    let body = json!({"assistant_id": client.create_assistant().await,
        "truncation_strategy": {"type": "last_messages", "last_messages": 2}});
    client.post(&format!("/v1/threads/{thread}/runs"), body).await;
    upstream.wait_for_requests(1).await;

    let sent = &upstream.requests()[0]["messages"];
    assert_eq!(sent, &json!([{"role": "user", "content": "two"}, {"role": "user", "content": "three"}]));
});

both_stores!(a_thread_longer_than_the_context_window_is_truncated_in_the_middle, async |database: Database| {
    let upstream = Upstream::start().await;
    let server = Server::with(&database, &upstream, &[("CONTEXT_WINDOWS", "m=400")]).await;
    let client = &server.client;
    let thread = client.create_thread("the first").await;
    for number in 0..20 {
        let text = format!("message {number}: {}", "many words ".repeat(20));
        client.post(&format!("/v1/threads/{thread}/messages"), json!({"role": "user", "content": text})).await;
    }

    let run = client.create_run(&client.create_assistant().await, &thread).await;
    client.wait_for_status(&run, "completed").await;

    let sent: Vec<String> = upstream.requests()[0]["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["content"].as_str().unwrap().split(':').next().unwrap().to_owned())
        .collect();
    assert!(sent.len() > 2 && sent.len() < 12, "{sent:?}");
    assert_eq!((sent[0].as_str(), sent[sent.len() - 1].as_str()), ("the first", "message 19"));
    assert_eq!(sent[1], format!("message {}", 20 - (sent.len() - 1)), "the oldest messages are removed first");
});

both_stores!(a_run_is_incomplete_when_it_reaches_a_token_limit, async |database: Database| {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let call = || Answer::Calls(vec![], vec![("f", "{}")]);
    let upstream = Upstream::scripted([call(), call()]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let assistant = client.post("/v1/assistants", json!({"model": "m", "tools": tools})).await["id"].clone();

    // The only message of the thread exceeds the limit.
    let thread = client.create_thread(&"many words ".repeat(300)).await;
    let events = client
        .stream(
            &format!("/v1/threads/{thread}/runs"),
            json!({"assistant_id": assistant, "max_prompt_tokens": 256, "stream": true}),
        )
        .await;
    let names = crate::support::sse::names(&events);
    assert_eq!(names, ["run.created", "run.queued", "run.in_progress", "run.incomplete", "done"]);
    assert_eq!(events[3].data["incomplete_details"], json!({"reason": "max_prompt_tokens"}));
    assert_eq!(upstream.requests().len(), 0);

    // The first turn uses 20 prompt and 10 completion tokens; a second turn would exceed the limit.
    let limits =
        [("max_completion_tokens", 10, "max_completion_tokens"), ("max_prompt_tokens", 64, "max_prompt_tokens")];
    for (member, tokens, reason) in limits {
        let thread = client.create_thread("Hi").await;
        let runs = format!("/v1/threads/{thread}/runs");
        let mut body = json!({"assistant_id": assistant});
        body[member] = json!(tokens);
        // The API description requires 256 or more; the service accepted 16.
        let created: Value =
            client.request(Method::POST, &runs).json(&body).send().await.unwrap().json().await.unwrap();
        let path = format!("{runs}/{}", created["id"].as_str().unwrap());
        let get = async || -> Value { client.request(Method::GET, &path).send().await.unwrap().json().await.unwrap() };
        let run = loop {
            let run = get().await;
            if run["status"] == "requires_action" {
                break run;
            }
            assert!(["queued", "in_progress"].contains(&run["status"].as_str().unwrap()), "{run:#}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        };
        let id = &run["required_action"]["submit_tool_outputs"]["tool_calls"][0]["id"];
        let outputs = json!({"tool_outputs": [{"tool_call_id": id, "output": "x ".repeat(300)}]});
        client.request(Method::POST, &format!("{path}/submit_tool_outputs")).json(&outputs).send().await.unwrap();
        let ended = loop {
            let run = get().await;
            if !["queued", "in_progress"].contains(&run["status"].as_str().unwrap()) {
                break run;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        };
        assert_eq!((&ended["status"], &ended["incomplete_details"]["reason"]), (&json!("incomplete"), &json!(reason)));
        assert_eq!(ended["usage"]["total_tokens"], 30);
    }
});

both_stores!(a_refusal_is_stored_as_a_refusal_content_part, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Raw(concat!(
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"refusal\":\"I can\"}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"refusal\":\"not.\"},\"finish_reason\":\"stop\"}]}\n\n",
        "data: [DONE]\n\n"
    ))])
    .await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);

    let body = json!({"assistant_id": assistant, "stream": true});
    let events = client.stream(&format!("/v1/threads/{thread}/runs"), body).await;

    let deltas: Vec<&Value> = events
        .iter()
        .filter(|event| event.name == "thread.message.delta")
        .map(|event| &event.data["delta"]["content"][0])
        .collect();
    assert_eq!(
        deltas,
        [
            &json!({"index": 0, "type": "refusal", "refusal": "I can"}),
            &json!({"index": 0, "type": "refusal", "refusal": "not."})
        ]
    );
    let messages = client.get(&format!("/v1/threads/{thread}/messages")).await;
    assert_eq!(messages["data"][0]["content"], json!([{"type": "refusal", "refusal": "I cannot."}]));
});

both_stores!(a_thread_and_its_run_are_created_in_one_request, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let (assistant, file) = (client.create_assistant().await, client.upload().await);

    let run = client
        .post(
            "/v1/threads/runs",
            json!({"assistant_id": assistant, "thread": {"messages": [{"role": "user", "content": "Hi"}], "metadata": {"k": "v"}},
                "tool_resources": {"code_interpreter": {"file_ids": [file]}}}),
        )
        .await;

    let thread = run["thread_id"].as_str().unwrap();
    assert_eq!(client.get(&format!("/v1/threads/{thread}")).await["metadata"], json!({"k": "v"}));
    assert_eq!(run["tool_resources"], json!({"code_interpreter": {"file_ids": [file]}}));
    client.wait_for_status(&format!("/v1/threads/{thread}/runs/{}", run["id"].as_str().unwrap()), "completed").await;
});

both_stores!(a_run_without_messages_and_instructions_is_rejected, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let assistant = client.create_assistant().await;
    let thread = client.post("/v1/threads", json!({})).await["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/threads/{thread}/runs");

    let (status, error) = client.send_rejected(Method::POST, &path, Some(json!({"assistant_id": assistant}))).await;
    assert_eq!((status, &error["code"]), (400, &json!("invalid_thread")));
    assert_eq!(
        error["message"],
        "Run creation requires a Thread with a user message or an assistant with instructions."
    );
    let streamed = client
        .send_rejected(Method::POST, "/v1/threads/runs", Some(json!({"assistant_id": assistant, "stream": true})))
        .await;
    assert_eq!(streamed.0, 400, "an error is returned before the stream starts");
    assert_eq!(client.get("/v1/threads").await["data"].as_array().unwrap().len(), 1, "no thread is created");

    let run = client.post(&path, json!({"assistant_id": assistant, "instructions": "say something"})).await;
    client.wait_for_status(&format!("{path}/{}", run["id"].as_str().unwrap()), "completed").await;
});

both_stores!(a_run_that_references_unknown_objects_is_rejected, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let rejected = async |path: &str, body: Value| {
        let (status, error) = client.send_rejected(Method::POST, path, Some(body)).await;
        (status, error["message"].as_str().unwrap().to_owned())
    };
    let not_found = |noun: &str, id: &str| (404, format!("No {noun} found with id '{id}'."));

    let runs = format!("/v1/threads/{thread}/runs");
    assert_eq!(rejected(&runs, json!({"assistant_id": "asst_x"})).await, not_found("assistant", "asst_x"));
    assert_eq!(
        rejected("/v1/threads/thread_x/runs", json!({"assistant_id": assistant})).await,
        not_found("thread", "thread_x")
    );
    assert_eq!(rejected(&format!("{runs}/run_x/cancel"), json!({})).await, not_found("run", "run_x"));
    assert_eq!(rejected(&format!("{runs}/run_x"), json!({"metadata": {}})).await, not_found("run", "run_x"));
    assert_eq!(
        rejected(&runs, json!({"assistant_id": "x"})).await,
        (400, "Invalid 'assistant_id': 'x'. Expected an ID that begins with 'asst'.".to_owned())
    );
    assert_eq!(rejected(&runs, json!({})).await, (400, "Missing required parameter: 'assistant_id'.".to_owned()));
    let run = client.create_run(&assistant, &thread).await;
    client.wait_for_status(&run, "completed").await;
    let (status, error) = client.send_rejected(Method::GET, &format!("{run}/steps/step_123"), None).await;
    assert_eq!((status, error["message"].as_str().unwrap()), (404, "No run step found with id 'step_123'."));
});

both_stores!(the_metadata_of_a_run_cannot_be_modified_while_it_is_in_progress, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let run = client.create_run(&client.create_assistant().await, &client.create_thread("Hi").await).await;
    upstream.wait_for_requests(1).await;

    let early = client.post_rejected(&run, json!({"metadata": {"k": "v"}})).await;
    assert_eq!(early, "Cannot update run with status 'in_progress'.");
    upstream.resume();
    client.wait_for_status(&run, "completed").await;

    assert_eq!(client.post(&run, json!({"metadata": {"k": "v"}})).await["metadata"], json!({"k": "v"}));
    assert_eq!(client.get(&run).await["metadata"], json!({"k": "v"}));
});

both_stores!(runs_above_the_concurrency_limit_are_queued_in_order, async |database: Database| {
    let pause = || Answer::Pause(vec!["Hm"]);
    let upstream = Upstream::scripted([pause(), pause(), pause()]).await;
    let server = Server::with(&database, &upstream, &[("MAX_CONCURRENT_RUNS", "1")]).await;
    let client = &server.client;
    let assistant = client.create_assistant().await;
    let mut runs = Vec::new();
    for text in ["first", "second", "third"] {
        runs.push(client.create_run(&assistant, &client.create_thread(text).await).await);
    }
    upstream.wait_for_requests(1).await;

    assert_eq!(client.get(&runs[1]).await["status"], "queued");
    for (turn, run) in runs.iter().enumerate() {
        upstream.wait_for_requests(turn + 1).await;
        upstream.resume();
        client.wait_for_status(run, "completed").await;
    }

    let requested: Vec<Value> =
        upstream.requests().into_iter().map(|request| request["messages"][0]["content"].clone()).collect();
    assert_eq!(requested, [json!("first"), json!("second"), json!("third")]);
});

both_stores!(a_thread_deleted_during_its_run_stays_deleted, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let body = json!({"assistant_id": assistant, "stream": true});
    let stream = client.open_stream(&format!("/v1/threads/{thread}/runs"), body).await;
    upstream.wait_for_requests(1).await;

    client.delete(&format!("/v1/threads/{thread}")).await;
    upstream.resume();
    let events = crate::support::sse::parse(&stream.text().await.unwrap());

    assert_eq!(events[events.len() - 2].name, "error", "the stream ends with an error event");
    assert_eq!(client.send_rejected(Method::GET, &format!("/v1/threads/{thread}/messages"), None).await.0, 404);
});

both_stores!(usage_is_estimated_when_the_model_server_reports_none, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Raw(concat!(
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello, world!\"},\"finish_reason\":\"stop\"}]}\n\n",
        "data: [DONE]\n\n"
    ))])
    .await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let run = client.create_run(&client.create_assistant().await, &client.create_thread("Hi").await).await;

    let usage = client.wait_for_status(&run, "completed").await["usage"].clone();

    // "Hi" is one token; the chat template adds four.
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(5), &json!(4)));
    assert_eq!(usage["total_tokens"], 9);
});

both_stores!(prompts_are_shortened_for_a_model_that_counts_more_tokens, async |database: Database| {
    let counts_more = Answer::Raw(concat!(
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":600,\"completion_tokens\":1,\"total_tokens\":601}}\n\n",
        "data: [DONE]\n\n"
    ));
    let upstream = Upstream::scripted([counts_more]).await;
    let server = Server::with(&database, &upstream, &[("CONTEXT_WINDOWS", "m=400")]).await;
    let client = &server.client;
    let assistant = client.create_assistant().await;
    for _ in 0..2 {
        let messages: Vec<Value> =
            (0..20).map(|_| json!({"role": "user", "content": "many words ".repeat(20)})).collect();
        let thread = client.post("/v1/threads", json!({"messages": messages})).await["id"].clone();
        let run = client.create_run(&assistant, thread.as_str().unwrap()).await;
        client.wait_for_status(&run, "completed").await;
    }

    let lengths: Vec<usize> =
        upstream.requests().iter().map(|request| request["messages"].as_array().unwrap().len()).collect();
    assert!(lengths[1] < lengths[0] && lengths[1] > 0, "{lengths:?}");
});

both_stores!(image_files_reach_the_model_as_data_urls, async |database: Database| {
    let upstream = Upstream::start().await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let upload = async |bytes: &[u8]| {
        let form = Form::default().text("purpose", "vision").file("file", "a.png", bytes);
        form.send(client, "/v1/files").await.body["id"].as_str().unwrap().to_owned()
    };
    let (image, text) = (upload(b"\x89PNG\r\n\x1a\n\0").await, upload(b"words").await);
    let part = |id: &str| json!({"type": "image_file", "image_file": {"file_id": id, "detail": "high"}});
    let deleted = upload(b"\x89PNG\r\n\x1a\n\0").await;
    let content = json!([{"type": "text", "text": "What is this?"}, part(&image), part(&text), part(&deleted)]);
    let thread = client.post("/v1/threads", json!({"messages": [{"role": "user", "content": content}]})).await;
    let thread = thread["id"].as_str().unwrap();
    client.delete(&format!("/v1/files/{deleted}")).await;

    let run = client.create_run(&client.create_assistant().await, thread).await;
    client.wait_for_status(&run, "completed").await;

    let stored = client.get(&format!("/v1/threads/{thread}/messages?order=asc")).await;
    assert_eq!(stored["data"][0]["content"][1], content[1]);
    let note = |text: String| json!({"type": "text", "text": text});
    let sent = json!([
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgoA", "detail": "high"}},
        note(format!("[The image {text} is not a PNG, JPEG, GIF or WebP image.]")),
        note(format!("[The image {deleted} does not exist.]")),
    ]);
    assert_eq!(upstream.requests()[0]["messages"], json!([{"role": "user", "content": sent}]));
});

both_stores!(large_image_files_are_scaled_down_if_a_setting_says_so, async |database: Database| {
    let image_as = |format, width, height| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::RgbaImage::new(width, height).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    };
    let image = |width, height| image_as(image::ImageFormat::Png, width, height);
    // A small file whose header says 60,000 x 60,000 pixels.
    let mut bomb = image_as(image::ImageFormat::Gif, 9, 9);
    bomb[6..10].copy_from_slice(&[0x60, 0xea, 0x60, 0xea]);
    let upstream = Upstream::start().await;
    let server = Server::with(&database, &upstream, &[("IMAGE_SIDE_PIXELS_MAX", "800")]).await;
    let client = &server.client;
    let part = async |bytes: &[u8], detail: &str| {
        let form = Form::default().text("purpose", "vision").file("file", "a.png", bytes);
        let file = form.send(client, "/v1/files").await.body["id"].clone();
        json!({"type": "image_file", "image_file": {"file_id": file, "detail": detail}})
    };
    let content = json!([
        part(&image(1600, 400), "auto").await,
        part(&image(1600, 400), "low").await,
        part(&image(80, 40), "high").await,
        part(&bomb, "auto").await,
        part(b"\x89PNG damaged", "auto").await,
    ]);
    let thread = client.post("/v1/threads", json!({"messages": [{"role": "user", "content": content}]})).await;

    let run = client.create_run(&client.create_assistant().await, thread["id"].as_str().unwrap()).await;
    client.wait_for_status(&run, "completed").await;

    let sent = upstream.requests()[0]["messages"][0]["content"].clone();
    let size = |index: usize| {
        let url = sent[index]["image_url"]["url"].as_str().unwrap();
        let bytes = STANDARD.decode(url.strip_prefix("data:image/png;base64,").unwrap()).unwrap();
        let image = image::load_from_memory(&bytes).unwrap();
        (image.width(), image.height())
    };
    assert_eq!((size(0), size(1), size(2)), ((800, 200), (512, 128), (80, 40)));
    let large = content[3]["image_file"]["file_id"].as_str().unwrap();
    assert_eq!(sent[3]["text"], format!("[The image {large} has too many pixels to be scaled down.]"));
    let unchanged = format!("data:image/png;base64,{}", STANDARD.encode(b"\x89PNG damaged"));
    assert_eq!(sent[4]["image_url"]["url"], unchanged);
});

both_stores!(a_run_completes_after_its_assistant_is_deleted, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let run = client.create_run(&assistant, &thread).await;
    upstream.wait_for_requests(1).await;

    client.delete(&format!("/v1/assistants/{assistant}")).await;
    upstream.resume();

    let done = client.wait_for_status(&run, "completed").await;
    assert_eq!(done["assistant_id"], json!(assistant), "the run still has the ID of its assistant");
    let again = json!({"assistant_id": assistant});
    assert_eq!(client.send_rejected(Method::POST, &format!("/v1/threads/{thread}/runs"), Some(again)).await.0, 404);
});

both_stores!(message_metadata_modified_during_the_run_is_in_the_completed_event, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let body = json!({"assistant_id": assistant, "stream": true});
    let stream = client.open_stream(&format!("/v1/threads/{thread}/runs"), body).await;
    let messages = format!("/v1/threads/{thread}/messages");
    let message = loop {
        let newest = client.get(&messages).await["data"][0].clone();
        if newest["role"] == "assistant" {
            break newest["id"].as_str().unwrap().to_owned();
        }
    };

    client.post(&format!("{messages}/{message}"), json!({"metadata": {"k": "v"}})).await;
    upstream.resume();

    let events = crate::support::sse::parse(&stream.text().await.unwrap());
    let completed = events.iter().find(|event| event.name == "thread.message.completed").unwrap();
    assert_eq!(completed.data["metadata"], json!({"k": "v"}));
    assert_eq!(client.get(&format!("{messages}/{message}")).await["metadata"], json!({"k": "v"}));
});

both_stores!(estimated_usage_counts_the_truncated_prompt, async |database: Database| {
    let without_usage = Answer::Raw(concat!(
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"},\"finish_reason\":\"stop\"}]}\n\n",
        "data: [DONE]\n\n"
    ));
    let upstream = Upstream::scripted([without_usage]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let messages: Vec<Value> = ["first", &"many words ".repeat(3_000), "last"]
        .iter()
        .map(|text| json!({"role": "user", "content": text}))
        .collect();
    let thread = client.post("/v1/threads", json!({"messages": messages})).await["id"].clone();
    let runs = format!("/v1/threads/{}/runs", thread.as_str().unwrap());

    let body = json!({"assistant_id": client.create_assistant().await, "max_prompt_tokens": 500});
    let run = client.post(&runs, body).await;
    let done = client.wait_for_status(&format!("{runs}/{}", run["id"].as_str().unwrap()), "completed").await;

    assert_eq!(upstream.requests()[0]["messages"].as_array().unwrap().len(), 2);
    assert_eq!(done["usage"]["prompt_tokens"], 10, "two short messages and their template tokens");
});

both_stores!(a_run_is_incomplete_when_the_model_exceeds_max_completion_tokens, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Tokens(vec!["word "; 30])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let thread = client.create_thread("Hi").await;

    let body = json!({"assistant_id": client.create_assistant().await, "max_completion_tokens": 16, "stream": true});
    let reply = client.request(Method::POST, &format!("/v1/threads/{thread}/runs")).json(&body).send().await.unwrap();
    // The API description requires 256 or more; the service accepted 16.
    let text = reply.text().await.unwrap();

    assert!(text.contains("event: thread.run.incomplete\n"), "{text}");
    let messages = client.get(&format!("/v1/threads/{thread}/messages")).await;
    assert_eq!(messages["data"][0]["incomplete_details"], json!({"reason": "max_tokens"}));
});
