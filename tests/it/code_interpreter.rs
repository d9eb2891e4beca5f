//! The code interpreter in runs: the model writes code, reads its output, and gives files to the user.

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::code::installed;
use crate::support::database::Database;
use crate::support::form::Form;
use crate::support::server::Server;
use crate::support::sse::{Event, RUN_STARTED, names, text};
use crate::support::upstream::{Answer, Upstream};

const STEP_STARTED: [&str; 2] = ["run.step.created", "run.step.in_progress"];
const TEXT_STARTED: [&str; 4] = ["run.step.created", "run.step.in_progress", "message.created", "message.in_progress"];
const RUN_COMPLETED: [&str; 4] = ["message.completed", "run.step.completed", "run.completed", "done"];

/// Starts a server with the runtime; `None` if it is not installed.
async fn start(database: &Database, upstream: &Upstream, settings: &[(&str, &str)]) -> Option<Server> {
    let folder = installed()?;
    let settings: Vec<(&str, &str)> =
        settings.iter().copied().chain([("CODE_INTERPRETER_DIR", folder.as_str())]).collect();
    Some(Server::with(database, upstream, &settings).await)
}

async fn upload(client: &Client, name: &str, bytes: &[u8]) -> String {
    let form = Form::default().text("purpose", "assistants").file("file", name, bytes);
    let reply = form.send(client, "/v1/files").await;
    assert_eq!(reply.status, 200, "{:#}", reply.body);
    reply.body["id"].as_str().unwrap().to_owned()
}

/// Creates an assistant with the tool, these files and further tools.
async fn assistant(client: &Client, files: &[&str], tools: &[Value]) -> String {
    let mut all = vec![json!({"type": "code_interpreter"})];
    all.extend_from_slice(tools);
    let body = json!({"model": "m", "tools": all, "tool_resources": {"code_interpreter": {"file_ids": files}}});
    client.post("/v1/assistants", body).await["id"].as_str().unwrap().to_owned()
}

/// Streams a run on a thread; returns its path and its events.
async fn stream_run(client: &Client, assistant: &str, thread: &str) -> (String, Vec<Event>) {
    let path = format!("/v1/threads/{thread}/runs");
    let events = client.stream(&path, json!({"assistant_id": assistant, "stream": true})).await;
    (format!("{path}/{}", events[0].data["id"].as_str().unwrap()), events)
}

fn code(arguments: &'static str) -> Answer {
    Answer::Calls(vec![], vec![("python", arguments)])
}

/// Returns what the model has read of the last call in its last request.
fn last_output(upstream: &Upstream) -> String {
    let requests = upstream.requests();
    let messages = requests.last().unwrap()["messages"].as_array().unwrap().clone();
    messages.last().unwrap()["content"].as_str().unwrap().to_owned()
}

/// Returns the growth of the calls in a stream: the input of each call, and the outputs.
fn grown(events: &[Event]) -> (String, Vec<Value>) {
    let (mut input, mut outputs) = (String::new(), Vec::new());
    for event in events.iter().filter(|event| event.name == "thread.run.step.delta") {
        let code = &event.data["delta"]["step_details"]["tool_calls"][0]["code_interpreter"];
        input.push_str(code["input"].as_str().unwrap_or_default());
        outputs.extend(code["outputs"].as_array().cloned().unwrap_or_default());
    }
    (input, outputs)
}

async fn content(client: &Client, file: &str) -> (u16, Vec<u8>) {
    let response = client.request(Method::GET, &format!("/v1/files/{file}/content")).send().await.unwrap();
    (response.status().as_u16(), response.bytes().await.unwrap().to_vec())
}

both_stores!(a_run_writes_code_and_reads_its_output_as_recorded, async |database: Database| {
    let upstream = Upstream::scripted([
        code("{\"code\":\"x = 20\\nprint('x is', x)\\nx + 1\"}"),
        Answer::Tokens(vec!["It is ", "21."]),
        code("{\"code\":\"x * 2\"}"),
        Answer::Tokens(vec!["40"]),
    ])
    .await;
    let Some(server) = start(&database, &upstream, &[]).await else { return };
    let client = &server.client;
    let (assistant, thread) = (assistant(client, &[], &[]).await, client.create_thread("What is x?").await);

    let (run, events) = stream_run(client, &assistant, &thread).await;

    let mut shown = names(&events);
    shown.dedup();
    assert_eq!(
        shown,
        [
            &RUN_STARTED[..],
            &STEP_STARTED,
            &["run.step.delta", "run.step.completed"],
            &TEXT_STARTED,
            &["message.delta"],
            &RUN_COMPLETED
        ]
        .concat()
    );
    let first = &events[5].data["delta"]["step_details"]["tool_calls"][0];
    assert_eq!(
        (&first["index"], &first["type"], &first["code_interpreter"]),
        (&json!(0), &json!("code_interpreter"), &json!({"input": "", "outputs": []}))
    );
    let (input, outputs) = grown(&events);
    let source = "x = 20\nprint('x is', x)\nx + 1";
    assert_eq!((input.as_str(), outputs), (source, vec![json!({"index": 0, "type": "logs", "logs": "x is 20\n21\n"})]));
    let second = &events[6].data["delta"]["step_details"]["tool_calls"][0];
    assert_eq!((second.get("id"), &second["type"]), (None, &json!("code_interpreter")));
    let steps = client.get(&format!("{run}/steps?order=asc")).await["data"].clone();
    assert_eq!(
        steps[0]["step_details"]["tool_calls"],
        json!([{"id": first["id"], "type": "code_interpreter", "code_interpreter": {
            "input": source, "outputs": [{"type": "logs", "logs": "x is 20\n21\n"}]}}])
    );
    let requests = upstream.requests();
    assert_eq!(requests[0]["tools"][0]["function"]["name"], "python");
    assert!(last_output(&upstream).contains("x is 20\n21"), "{}", last_output(&upstream));

    // The next run of the thread has the variables.
    client.post(&format!("/v1/threads/{thread}/messages"), json!({"role": "user", "content": "Twice?"})).await;
    let (_, events) = stream_run(client, &assistant, &thread).await;
    assert_eq!(grown(&events).1, [json!({"index": 0, "type": "logs", "logs": "40\n"})]);
    let started = events[0].data["created_at"].as_i64().unwrap() - 1_000;
    let usage = client.get(&format!("/v1/organization/usage/code_interpreter_sessions?start_time={started}")).await;
    let sessions: i64 = usage["data"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|bucket| {
            bucket["results"].as_array().unwrap().iter().map(|result| result["num_sessions"].as_i64().unwrap())
        })
        .sum();
    assert_eq!(sessions, 1, "{usage:#}");
});

both_stores!(input_files_count_for_the_limit_of_a_session, async |database: Database| {
    let upstream = Upstream::scripted([
        code("{\"code\":\"import os; sorted(n for n in os.listdir('/mnt/data') if n[0] != 'f')\"}"),
        code("{\"code\":\"open('/mnt/data/out', 'wb').write(bytes(9_000))\"}"),
        Answer::Tokens(vec!["Done."]),
    ])
    .await;
    let Some(server) = start(&database, &upstream, &[("CODE_DISK_BYTES_MAX", "50000")]).await else { return };
    let client = &server.client;
    let (large, small) =
        (upload(client, "large", &vec![b'x'; 50_001]).await, upload(client, "small", &vec![b'x'; 42_000]).await);
    let (assistant, thread) = (assistant(client, &[&large, &small], &[]).await, client.create_thread("Go").await);

    let (_, events) = stream_run(client, &assistant, &thread).await;

    let outputs = grown(&events).1;
    assert_eq!(outputs[0]["logs"], "['small']\n");
    assert!(outputs[1]["logs"].as_str().unwrap().contains("No space left on device"), "{outputs:#?}");
    let read = upstream.requests()[1]["messages"].to_string();
    let note = format!("The file {large} (large) has 50001 bytes; the session has room for 50000 bytes.");
    assert!(read.contains(&note), "{read}");
});

both_stores!(files_go_in_and_come_out, async |database: Database| {
    let upstream = Upstream::scripted([
        code(
            "{\"code\":\"import pandas as pd\\nd = pd.read_csv('/mnt/data/sales.csv')\\nd['total'] = d.a + d.b\\n\
             d.to_csv('/mnt/data/out put.csv', index=False)\\nimport matplotlib.pyplot as plt\\nplt.plot(d.total)\\nplt.show()\"}",
        ),
        Answer::Tokens(vec!["é [Get](sand", "box:/mnt/da", "ta/out%20put", ".csv", ") now."]),
    ])
    .await;
    let Some(server) = start(&database, &upstream, &[]).await else { return };
    let client = &server.client;
    let file = upload(client, "sales.csv", b"a,b\n1,2\n3,4\n").await;
    let (assistant, thread) = (assistant(client, &[&file], &[]).await, client.create_thread("Sum it").await);

    let (run, events) = stream_run(client, &assistant, &thread).await;

    assert_eq!(events.last().unwrap().name, "done");
    let (_, outputs) = grown(&events);
    assert_eq!(outputs.len(), 1, "{outputs:?}");
    let image = outputs[0]["image"]["file_id"].as_str().unwrap();
    assert_eq!(outputs[0], json!({"index": 0, "type": "image", "image": {"file_id": image}}));
    let (status, bytes) = content(client, image).await;
    assert!(status == 200 && bytes.starts_with(b"\x89PNG"), "{status}");
    assert_eq!(client.get(&format!("/v1/files/{image}")).await["purpose"], "assistants_output");

    let message = client.get(&format!("/v1/threads/{thread}/messages")).await["data"][0].clone();
    assert_eq!(message["content"][0]["image_file"]["file_id"], *image);
    let stored = &message["content"][1]["text"];
    assert_eq!(stored["value"], "é [Get](sandbox:/mnt/data/out%20put.csv) now.");
    let written = stored["annotations"][0]["file_path"]["file_id"].as_str().unwrap();
    assert_eq!(
        stored["annotations"],
        json!([{"type": "file_path", "text": "sandbox:/mnt/data/out%20put.csv", "start_index": 8, "end_index": 39,
            "file_path": {"file_id": written}}])
    );
    assert_eq!(content(client, written).await, (200, b"a,b,total\n1,2,3\n3,4,7\n".to_vec()));
    assert_eq!(text(&events), stored["value"].as_str().unwrap());
    let image_delta = events.iter().find(|event| event.name == "thread.message.delta").unwrap();
    assert_eq!(image_delta.data["delta"]["content"][0]["type"], "image_file");
    let listed = client.get("/v1/files?purpose=assistants_output").await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
    assert!(run.contains(&thread));

    // Another server has the files, and not the variables. A link to the file of an earlier run is recognized.
    upstream.then([
        code("{\"code\":\"import os\\nprint(sorted(os.listdir()))\\nd\"}"),
        Answer::Tokens(vec!["sandbox:/mnt/data/out put.csv"]),
    ]);
    client.post(&format!("/v1/threads/{thread}/messages"), json!({"role": "user", "content": "More"})).await;
    server.stop().await;
    let Some(other) = start(&database, &upstream, &[]).await else { return };
    let run = other.client.post(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant})).await;
    other.client.wait_until_ended(&format!("/v1/threads/{thread}/runs/{}", run["id"].as_str().unwrap())).await;
    let output = last_output(&upstream);
    assert!(output.contains("new Python session"), "{output}");
    assert!(output.contains("'out put.csv', 'sales.csv'") && output.contains("NameError"), "{output}");
    let message = other.client.get(&format!("/v1/threads/{thread}/messages")).await["data"][0].clone();
    assert_eq!(message["content"][0]["text"]["annotations"][0]["file_path"]["file_id"], *written);
});

both_stores!(a_vector_image_is_stored_and_shown, async |database: Database| {
    let upstream = Upstream::scripted([
        code(
            "{\"code\":\"import matplotlib.pyplot as plt\\nplt.plot([1, 3])\\nplt.title('Growth')\\nplt.savefig('p.svg')\\n\
             open('text.svg', 'w').write('<svg xmlns=\\\"http://www.w3.org/2000/svg\\\"><text>a</text></svg>')\"}",
        ),
        Answer::Tokens(vec!["sandbox:/mnt/data/p.svg"]),
    ])
    .await;
    let Some(server) = start(&database, &upstream, &[]).await else { return };
    let client = &server.client;
    let (assistant, thread) = (assistant(client, &[], &[]).await, client.create_thread("Plot it").await);

    let (_, events) = stream_run(client, &assistant, &thread).await;

    let images: Vec<Value> = grown(&events).1.into_iter().filter(|output| output["type"] == "image").collect();
    assert_eq!(images.len(), 1, "{images:?}");
    let (_, png) = content(client, images[0]["image"]["file_id"].as_str().unwrap()).await;
    assert!(png.starts_with(b"\x89PNG"));
    let listed = client.get("/v1/files?purpose=assistants_output&order=asc").await;
    let mut names: Vec<&str> =
        listed["data"].as_array().unwrap().iter().map(|file| file["filename"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["p.svg", "p.svg.png", "text.svg"]);
    let message = client.get(&format!("/v1/threads/{thread}/messages")).await["data"][0].clone();
    let path = &message["content"][1]["text"]["annotations"][0]["file_path"]["file_id"];
    let (_, svg) = content(client, path.as_str().unwrap()).await;
    assert!(String::from_utf8(svg).unwrap().contains("<svg"));
});

both_stores!(without_the_runtime_a_run_that_needs_it_fails_with_the_command, async |database: Database| {
    let upstream = Upstream::scripted([code("{\"code\":\"1\"}")]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let (assistant, thread) = (assistant(client, &[], &[]).await, client.create_thread("Hi").await);

    let (run, events) = stream_run(client, &assistant, &thread).await;

    assert_eq!(names(&events).last_chunk::<2>().unwrap(), &["run.failed", "done"]);
    let error = client.get(&run).await["last_error"]["message"].as_str().unwrap().to_owned();
    assert!(error.contains("assistd code-interpreter install"), "{error}");
});

both_stores!(code_that_was_interrupted_is_not_run_again, async |database: Database| {
    let upstream = Upstream::scripted([
        code("{\"code\":\"open('/mnt/data/a.txt', 'w').write('1')\"}"),
        code("{\"code\":\"import time\\ntime.sleep(30)\"}"),
        Answer::Tokens(vec!["It", " was interrupted."]),
    ])
    .await;
    let Some(server) = start(&database, &upstream, &[("RUN_LEASE_S", "5"), ("SHUTDOWN_GRACE_S", "0")]).await else {
        return;
    };
    let client = &server.client;
    let (assistant, thread) = (assistant(client, &[], &[]).await, client.create_thread("Hi").await);
    let run = client.post(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant})).await;
    upstream.wait_for_requests(2).await;
    let path = format!("/v1/threads/{thread}/runs/{}", run["id"].as_str().unwrap());
    // The second code runs.
    loop {
        let steps = client.get(&format!("{path}/steps?order=asc")).await["data"].clone();
        if steps[1]["step_details"]["tool_calls"][0]["code_interpreter"]["input"].is_string() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    server.stop().await;

    let Some(server) = start(&database, &upstream, &[]).await else { return };
    let ended = server.client.wait_until_ended(&path).await;

    assert_eq!(ended["status"], "completed", "{ended:#}");
    assert!(last_output(&upstream).contains("was restarted while this code ran"), "{}", last_output(&upstream));
});

both_stores!(a_run_that_is_cancelled_stops_its_code, async |database: Database| {
    let upstream = Upstream::scripted([code("{\"code\":\"while True: pass\"}")]).await;
    let Some(server) = start(&database, &upstream, &[("CODE_CONCURRENCY", "1")]).await else { return };
    let client = &server.client;
    let (assistant, thread) = (assistant(client, &[], &[]).await, client.create_thread("Hi").await);
    let run = client.post(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant})).await;
    upstream.wait_for_requests(1).await;
    let path = format!("/v1/threads/{thread}/runs/{}", run["id"].as_str().unwrap());

    client.post(&format!("{path}/cancel"), json!({})).await;

    assert_eq!(client.wait_until_ended(&path).await["status"], "cancelled");
    // The only permit is free again.
    upstream.then([code("{\"code\":\"print('free')\"}"), Answer::Tokens(vec!["ok"])]);
    let (_, events) = stream_run(client, &assistant, &client.create_thread("Hi").await).await;
    assert_eq!(grown(&events).1[0]["logs"], "free\n");
});

both_stores!(models_that_write_code_alone_are_understood, async |database: Database| {
    let upstream = Upstream::scripted([
        code("print('bare')\nprint(\"it's\")"),
        code("```python\nprint('fenced')\n```"),
        Answer::Calls(vec![], vec![("code_interpreter", "{\"input\": \"print('named')\"}"), ("f", "{\"a\":1}")]),
        Answer::Tokens(vec!["Done."]),
    ])
    .await;
    let Some(server) = start(&database, &upstream, &[]).await else { return };
    let client = &server.client;
    let function = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}});
    let (assistant, thread) = (assistant(client, &[], &[function]).await, client.create_thread("Hi").await);

    let (run, events) = stream_run(client, &assistant, &thread).await;

    assert_eq!(names(&events).last_chunk::<2>().unwrap(), &["run.requires_action", "done"]);
    let logs: Vec<Value> = grown(&events).1.into_iter().map(|output| output["logs"].clone()).collect();
    assert_eq!(logs, ["bare\nit's\n", "fenced\n", "named\n"]);
    let calls = client.get(&run).await["required_action"]["submit_tool_outputs"]["tool_calls"].clone();
    let outputs = json!({"tool_outputs": [{"tool_call_id": calls[0]["id"], "output": "1"}], "stream": true});
    let events = client.stream(&format!("{run}/submit_tool_outputs"), outputs).await;
    assert_eq!(text(&events), "Done.");
    // The arguments that the model reads again are JSON.
    for message in upstream.requests().last().unwrap()["messages"].as_array().unwrap() {
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            let arguments = call["function"]["arguments"].as_str().unwrap();
            assert!(serde_json::from_str::<Value>(arguments).unwrap().is_object(), "{arguments}");
        }
    }
});
