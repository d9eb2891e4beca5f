//! What model servers send: each test replays the bytes of servers whose dialect differs from the specification.

use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sse::{CALL_STARTED, Event, RUN_STARTED, names, text};
use crate::support::upstream::{Answer, Upstream};

fn chunk(delta: &Value) -> String {
    format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": delta}]}))
}

fn finish(reason: &str) -> String {
    format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}))
}

fn events(frames: &[String]) -> Answer {
    Answer::Body("text/event-stream", frames.concat())
}

/// An answer of these deltas, with a finish reason and `[DONE]`.
fn answer(deltas: &[Value], reason: &str) -> Answer {
    let mut frames: Vec<String> = deltas.iter().map(chunk).collect();
    frames.extend([finish(reason), done()]);
    events(&frames)
}

fn done() -> String {
    "data: [DONE]\n\n".to_owned()
}

/// A delta with a whole call.
fn call(name: &str, arguments: &str) -> Value {
    json!({"tool_calls": [{"index": 0, "id": "up_0", "type": "function", "function": {"name": name, "arguments": arguments}}]})
}

fn rejected(status: u16, message: &str) -> Answer {
    Answer::Status(status, vec![], json!({"error": {"message": message}}))
}

/// A server and its database, which is deleted with it.
struct Served {
    server: Server,
    _database: Database,
}

impl std::ops::Deref for Served {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

async fn start(answers: impl IntoIterator<Item = Answer>) -> (Served, Upstream) {
    let upstream = Upstream::scripted(answers).await;
    let database = Database::sqlite();
    (Served { server: Server::start(&database, &upstream).await, _database: database }, upstream)
}

/// An assistant with the functions `weather`, which takes arguments, and `time`, which takes none.
async fn assistant(client: &Client, more: Value) -> String {
    let weather = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let tools = json!([
        {"type": "function", "function": {"name": "weather", "parameters": weather}},
        {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
    ]);
    let mut body = json!({"model": "m", "tools": tools});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.post("/v1/assistants", body).await["id"].as_str().unwrap().to_owned()
}

/// Runs an assistant as a stream; returns the run's path and the events.
async fn stream_run(server: &Server, more: Value) -> (String, Vec<Event>) {
    let client = &server.client;
    let thread = client.create_thread("Hi").await;
    let body = json!({"assistant_id": assistant(client, more).await, "stream": true});
    let events = client.stream(&format!("/v1/threads/{thread}/runs"), body).await;
    assert!(events.iter().all(|event| event.name != "error"), "{events:?}");
    (format!("/v1/threads/{thread}/runs/{}", events[0].data["id"].as_str().unwrap()), events)
}

/// Runs an assistant; returns the run after its first stop, and its path.
async fn run_with(server: &Server, more: Value) -> (Value, String) {
    let (path, _) = stream_run(server, more).await;
    (server.client.get(&path).await, path)
}

async fn run(server: &Server) -> Value {
    run_with(server, json!({})).await.0
}

async fn newest_text(server: &Server, run: &Value) -> String {
    let messages = format!("/v1/threads/{}/messages?limit=1", run["thread_id"].as_str().unwrap());
    let message = server.client.get(&messages).await["data"][0].clone();
    message["content"][0]["text"]["value"].as_str().unwrap().to_owned()
}

/// The names and arguments of the calls that a run waits for.
fn calls(run: &Value) -> Vec<(&str, &str)> {
    let calls = run["required_action"]["submit_tool_outputs"]["tool_calls"].as_array();
    let calls = calls.unwrap_or_else(|| panic!("{run:#}"));
    calls
        .iter()
        .map(|call| (call["function"]["name"].as_str().unwrap(), call["function"]["arguments"].as_str().unwrap()))
        .collect()
}

/// Submits an output for each call of a run, and returns the run when it has stopped again.
async fn submit(client: &Client, path: &str) -> Value {
    let run = client.get(path).await;
    let calls = run["required_action"]["submit_tool_outputs"]["tool_calls"].as_array().unwrap();
    let outputs: Vec<Value> = calls.iter().map(|call| json!({"tool_call_id": call["id"], "output": "x"})).collect();
    client.stream(&format!("{path}/submit_tool_outputs"), json!({"tool_outputs": outputs, "stream": true})).await;
    client.get(path).await
}

fn error(run: &Value) -> (&str, &str) {
    assert_eq!(run["status"], "failed", "{run:#}");
    (run["last_error"]["code"].as_str().unwrap(), run["last_error"]["message"].as_str().unwrap())
}

both_stores!(reasoning_and_signatures_are_sent_back_with_the_calls_and_never_shown, async |database: Database| {
    let signature = json!({"google": {"thought_signature": "sig=="}});
    let detail = |text: &str| json!([{"type": "reasoning.text", "text": text, "index": 0}]);
    let first = answer(
        &[
            json!({"reasoning_content": "Let "}),
            json!({"reasoning_content": "me think", "reasoning_details": detail("a")}),
            json!({"reasoning_details": detail("b")}),
            call("weather", "{}"),
            json!({"tool_calls": [{"index": 0, "extra_content": signature}]}),
        ],
        "tool_calls",
    );
    let second = answer(&[json!({"reasoning_content": "Again"}), call("weather", "{}")], "tool_calls");
    let upstream = Upstream::scripted([first, second, Answer::Tokens(vec!["Sunny."])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;

    let (_, path) = run_with(&server, json!({})).await;
    submit(client, &path).await;
    let ended = submit(client, &path).await;

    assert_eq!(ended["status"], "completed");
    let sent = upstream.requests()[2]["messages"].clone();
    let turn = &sent[1];
    assert_eq!(turn["reasoning_content"], "Let me think");
    assert_eq!(turn["reasoning_details"], detail("ab"));
    assert_eq!(turn["tool_calls"][0]["extra_content"], signature);
    assert_eq!(sent[3]["reasoning_content"], "Again");
    let shown = client.get(&format!("{path}/steps")).await.to_string() + &ended.to_string();
    assert!(!shown.contains("think") && !shown.contains("sig=="), "{shown}");
});

#[tokio::test]
async fn members_are_sent_back_only_to_the_model_that_wrote_them() {
    let first = answer(&[json!({"reasoning_content": "Hm"}), call("weather", "{}")], "tool_calls");
    let upstream = Upstream::scripted([first]).await;
    let database = Database::sqlite();
    let server = Server::with(&database, &upstream, &[("MODEL_ALIASES", "m=one")]).await;
    let (_, path) = run_with(&server, json!({})).await;
    server.stop().await;

    let server = Server::with(&database, &upstream, &[("MODEL_ALIASES", "m=two")]).await;
    assert_eq!(submit(&server.client, &path).await["status"], "completed");

    let request = &upstream.requests()[1];
    assert_eq!((&request["model"], request["messages"][1].get("reasoning_content")), (&json!("two"), None));
}

#[tokio::test]
async fn a_member_that_a_server_rejects_is_omitted() {
    let first = || answer(&[json!({"reasoning_content": "Hm"}), call("weather", "{}")], "tool_calls");
    let refusal = rejected(400, "'messages.1' : for 'role:assistant' property 'reasoning_content' is unsupported");
    let hello = || Answer::Tokens(vec!["Hello"]);
    let (server, upstream) = start([first(), refusal, hello(), first(), hello()]).await;

    for _ in 0..2 {
        let (_, path) = run_with(&server, json!({})).await;
        assert_eq!(submit(&server.client, &path).await["status"], "completed");
    }

    let has_reasoning =
        |request: &Value| request["messages"][1].get("reasoning_content").map(|text| text == &json!("Hm"));
    let requests = upstream.requests();
    assert_eq!(requests.len(), 5, "the second run is adapted from the start");
    assert_eq!((has_reasoning(&requests[1]), has_reasoning(&requests[2])), (Some(true), None));
}

#[tokio::test]
async fn blanks_around_calls_are_not_text() {
    let first = answer(
        &[json!({"content": "\n\n"}), call("weather", "{\"city\":\"Rome\"}"), json!({"content": "\n"})],
        "tool_calls",
    );
    let (server, upstream) =
        start([first, answer(&[json!({"content": "\n"}), json!({"content": " Sunny"})], "stop")]).await;

    let (path, events) = stream_run(&server, json!({})).await;

    let rest = ["run.step.delta", "run.step.delta", "run.requires_action", "done"];
    assert_eq!(names(&events), [&RUN_STARTED[..], &CALL_STARTED, &rest].concat());
    let ended = submit(&server.client, &path).await;
    assert_eq!(newest_text(&server, &ended).await, "\n Sunny");
    assert_eq!(upstream.requests()[1]["messages"][1]["content"], Value::Null);
}

#[tokio::test]
async fn an_error_in_any_form_fails_the_run_with_its_text() {
    let hello = chunk(&json!({"content": "Hello"}));
    let in_choice =
        json!({"choices": [{"error": {"message": "boom", "code": 502}, "finish_reason": "error", "delta": {}}]});
    let bodies = [
        ("text/event-stream", format!("error: {{\"code\":500,\"message\":\"boom\"}}\n\n{}", done())),
        ("text/event-stream", format!("data: {in_choice}\n\n{}", done())),
        ("text/event-stream", format!("{hello}data: {in_choice}\n\n{}", done())),
        ("text/event-stream", format!("{hello}event: error\ndata: {{\"message\":\"boom\"}}\n\n")),
        ("text/event-stream", format!("{hello}data: {{\"error\":\"boom\"}}\n\n{}", done())),
        ("application/json", "{\"error\":{\"message\":\"boom\"}}".to_owned()),
        ("application/json", "[{\"error\":{\"message\":\"boom\"}}]".to_owned()),
        ("application/json", "{\"object\":\"error\",\"message\":\"boom\",\"code\":400}".to_owned()),
        ("text/event-stream", "{\"detail\":\"boom\"}".to_owned()),
    ];
    let (server, upstream) = start(bodies.clone().map(|(kind, body)| Answer::Body(kind, body))).await;

    for (index, (_, body)) in bodies.iter().enumerate() {
        let run = run(&server).await;
        let (code, message) = error(&run);
        assert_eq!(
            (code, message.ends_with("failed during its answer: boom")),
            ("server_error", true),
            "{body}: {message}"
        );
        assert_eq!(upstream.requests().len(), index + 1, "an answer that has started is not requested again: {body}");
    }
}

#[tokio::test]
async fn a_rate_limit_inside_of_an_answer_is_a_rate_limit() {
    let reported = [
        json!({"code": 429}),
        json!({"code": "429"}),
        json!({"type": "rate_limit_error"}),
        json!({"status": "RESOURCE_EXHAUSTED"}),
    ];
    let answers = reported.iter().flat_map(|error| {
        let body = json!({"error": error}).to_string();
        [Answer::Body("application/json", body.clone()), Answer::Body("text/event-stream", format!("data: {body}\n\n"))]
    });
    let (server, _upstream) = start(answers.collect::<Vec<_>>()).await;

    for _ in 0..2 * reported.len() {
        assert_eq!(error(&run(&server).await).0, "rate_limit_exceeded");
    }
}

#[tokio::test]
async fn an_answer_without_content_or_without_its_end_fails() {
    let role = chunk(&json!({"role": "assistant", "content": ""}));
    let hello = chunk(&json!({"content": "Hello"}));
    let bodies = [
        (done(), "sent no answer"),
        (format!("{role}{}", done()), "sent no answer"),
        (format!("{}{}", chunk(&json!({"content": "\n\n"})), done()), "sent no answer"),
        (format!("{}{}", chunk(&json!({"reasoning_content": "Hm"})), done()), "sent no answer"),
        (format!("{role}{}{}", finish("stop"), done()), "sent no answer"),
        (String::new(), "sent no answer"),
        (hello.clone(), "closed the connection during its answer"),
        (format!("{hello}{}", finish("galaxy")), "unknown finish reason \"galaxy\""),
        ("<html>Bad gateway</html>".to_owned(), "something other than an answer: <html>Bad gateway</html>"),
        (format!("{hello}data: {{\"choices\": ["), "not a completion chunk"),
    ];
    let (server, _upstream) = start(bodies.clone().map(|(body, _)| Answer::Body("text/event-stream", body))).await;

    for (body, expected) in &bodies {
        let run = run(&server).await;
        let (code, message) = error(&run);
        assert_eq!((code, message.contains(expected)), ("server_error", true), "{body}: {message}");
    }
}

#[tokio::test]
async fn an_empty_answer_after_tool_calls_completes_the_run() {
    let (server, _upstream) = start([answer(&[call("weather", "{}")], "tool_calls"), answer(&[], "stop")]).await;
    let (_, path) = run_with(&server, json!({})).await;

    assert_eq!(submit(&server.client, &path).await["status"], "completed");
}

#[tokio::test]
async fn finish_reasons_decide_the_end_of_the_run() {
    let reasons = [
        ("stop", "completed"),
        ("STOP", "completed"),
        ("eos", "completed"),
        ("end_turn", "completed"),
        ("galaxy", "completed"),
        ("length", "incomplete"),
        ("model_length", "incomplete"),
        ("MAX_TOKENS", "incomplete"),
        ("content_filter", "incomplete"),
        ("insufficient_system_resource", "failed"),
        ("abort", "failed"),
        ("error", "failed"),
    ];
    let (server, _upstream) = start(reasons.map(|(reason, _)| answer(&[json!({"content": "Hello"})], reason))).await;

    for (reason, status) in reasons {
        let run = run(&server).await;
        assert_eq!(run["status"], status, "{reason}");
        if status == "failed" {
            assert!(error(&run).1.contains(&format!("\"{reason}\"")), "{run:#}");
        }
    }
}

#[tokio::test]
async fn a_call_that_the_token_limit_cuts_off_ends_the_run_incomplete() {
    let (server, _upstream) = start([answer(&[call("weather", "{\"city\": \"Ro")], "length")]).await;

    let run = run(&server).await;

    assert_eq!(
        (&run["status"], &run["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_completion_tokens"))
    );
}

#[tokio::test]
async fn a_stream_shows_the_end_of_a_call_that_was_cut_off() {
    for (arguments, reason) in
        [("{\"city\": \"Ro", "length"), ("", "length"), ("{\"city\":", "content_filter"), ("{}", "content_filter")]
    {
        let (server, _upstream) = start([answer(&[call("weather", arguments)], reason)]).await;

        let (path, events) = stream_run(&server, json!({})).await;

        let message = [
            "run.step.created",
            "run.step.in_progress",
            "message.created",
            "message.in_progress",
            "message.incomplete",
            "run.step.completed",
        ];
        let names: Vec<&str> = names(&events).into_iter().filter(|name| *name != "run.step.delta").collect();
        let expected = [&RUN_STARTED[..], &CALL_STARTED, &["run.step.completed"], &message].concat();
        assert!(names.starts_with(&expected), "{arguments} {reason}: {names:?}");
        assert_eq!(names.len(), expected.len() + 2, "{names:?}");
        let steps = server.client.get(&format!("{path}/steps?order=asc")).await;
        assert_eq!(steps["data"].as_array().unwrap().len(), 2);
    }
}

#[tokio::test]
async fn each_piece_may_have_a_finish_reason() {
    let piece = |delta: Value| {
        format!(
            "data: {}\n\n",
            json!({"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1}})
        )
    };
    let pieces = [json!({"reasoning_content": "Hm"}), json!({"content": "Hel"}), json!({"content": "lo"})].map(piece);
    let (server, _upstream) = start([events(&[pieces.concat(), done()])]).await;

    let run = run(&server).await;

    assert_eq!((&run["status"], newest_text(&server, &run).await.as_str()), (&json!("completed"), "Hello"));
}

#[tokio::test]
async fn parallel_calls_without_ids_of_their_own_are_separate_calls() {
    let function = |name: &str, arguments: &str| json!({"name": name, "arguments": arguments});
    let (rome, oslo) = ("{\"city\":\"Rome\"}", "{\"city\":\"Oslo\"}");
    let written = [
        vec![
            json!([{"index": 0, "function": function("weather", rome)}]),
            json!([{"index": 0, "function": function("time", "{}")}]),
        ],
        vec![
            json!([{"index": 0, "id": "", "function": function("weather", rome)}, {"index": 0, "id": "", "function": function("weather", oslo)}]),
        ],
        vec![
            json!([{"id": "call_0", "function": function("weather", rome)}, {"id": "call_0", "function": function("time", "{}")}]),
        ],
        vec![
            json!([{"index": 0, "id": "a", "function": function("weather", rome)}]),
            json!([{"index": 0, "id": "a", "function": function("weather", oslo)}]),
        ],
    ];
    let deltas = |lists: &[Value]| lists.iter().map(|calls| json!({"tool_calls": calls})).collect::<Vec<_>>();
    let hello = || Answer::Tokens(vec!["Hello"]);
    let answers = written.iter().flat_map(|lists| [answer(&deltas(lists), "tool_calls"), hello()]);
    let (server, upstream) = start(answers.collect::<Vec<_>>()).await;

    for (lists, turn) in written.iter().zip(0..) {
        let (run, path) = run_with(&server, json!({})).await;
        let made = calls(&run);
        assert_eq!((made.len(), made[0]), (2, ("weather", rome)), "{lists:?}");
        assert!([("time", "{}"), ("weather", oslo)].contains(&made[1]), "{made:?}");
        assert_eq!(submit(&server.client, &path).await["status"], "completed");
        let replayed = upstream.requests()[2 * turn + 1]["messages"][1]["tool_calls"].clone();
        assert_ne!(replayed[0]["id"], replayed[1]["id"], "IDs are unique for the model");
    }
    let fragments = [
        json!([{"id": "c1", "function": {"name": "weather"}}]),
        json!([{"id": "c2", "function": {"arguments": "{\"city\":"}}]),
        json!([{"id": "c3", "function": {"arguments": "\"Rome\"}"}}]),
    ];
    let (server, _upstream) = start([answer(&deltas(&fragments), "tool_calls")]).await;
    assert_eq!(calls(&run(&server).await), [("weather", rome)], "a new ID in each piece");
}

#[tokio::test]
async fn text_before_an_error_stays_in_the_message() {
    let body =
        format!("{}data: {}\n\n", chunk(&json!({"content": "Hello there"})), json!({"error": {"message": "boom"}}));
    let (server, _upstream) = start([Answer::Body("text/event-stream", body)]).await;

    let run = run(&server).await;

    assert_eq!(error(&run).0, "server_error");
    assert_eq!(newest_text(&server, &run).await, "Hello there");
    assert!(run["usage"]["completion_tokens"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn the_beginning_of_a_tag_is_text_however_the_answer_ends() {
    let pieces = |text: &str| -> Vec<String> {
        text.chars().map(|character| chunk(&json!({"content": character.to_string()}))).collect()
    };
    let reported = format!("data: {}\n\n", json!({"error": {"message": "boom"}}));
    let ends = [
        ([finish("stop"), done()].concat(), "completed"),
        (done(), "completed"),
        ([finish("galaxy"), done()].concat(), "completed"),
        ([finish("length"), done()].concat(), "incomplete"),
        ([finish("content_filter"), done()].concat(), "incomplete"),
        (finish("abort"), "failed"),
        (finish("galaxy"), "failed"),
        (reported, "failed"),
        ("data: {\"choices\": [".to_owned(), "failed"),
        (String::new(), "failed"),
    ];
    let texts = ["[", "[T", "<thi", "\n<", "◁"];
    let cases = || texts.iter().flat_map(|text| ends.iter().map(move |(end, status)| (*text, end, *status)));
    let answers = cases().map(|(text, end, _)| events(&[pieces(text).concat(), end.clone()]));
    let (server, upstream) = start(answers.collect::<Vec<_>>()).await;

    for (text, end, status) in cases() {
        let run = run(&server).await;
        let shown = (run["status"].as_str().unwrap(), newest_text(&server, &run).await);
        assert_eq!(shown, (status, text.to_owned()), "{text} {end}");
    }
    assert_eq!(upstream.requests().len(), cases().count(), "no answer is requested again");
    let (server, _upstream) =
        start([Answer::Disconnect(vec!["["]), events(&[pieces("<think>Hm").concat(), finish("length"), done()])]).await;
    let broken = run(&server).await;
    assert_eq!((&broken["status"], newest_text(&server, &broken).await.as_str()), (&json!("failed"), "["));
    let thinking = run(&server).await;
    assert_eq!((&thinking["status"], newest_text(&server, &thinking).await.as_str()), (&json!("incomplete"), ""));
}

#[tokio::test]
async fn the_beginning_of_a_tag_before_a_call_is_text() {
    let deltas = [json!({"content": "<think>Hm</think>\n"}), json!({"content": "["}), call("time", "{}")];
    let (server, _upstream) = start([answer(&deltas, "tool_calls"), Answer::Tokens(vec!["Noon."])]).await;

    let (run, path) = run_with(&server, json!({})).await;

    assert_eq!((calls(&run), newest_text(&server, &run).await.as_str()), (vec![("time", "{}")], "["));
    let ended = submit(&server.client, &path).await;
    assert_eq!(newest_text(&server, &ended).await, "[\n\nNoon.");
}

#[tokio::test]
async fn a_json_body_on_an_open_connection_is_complete_when_its_value_is() {
    let (server, upstream) =
        start([Answer::Hang("{\"choices\":[{\"message\":{\"content\":\"Hello\"},\"finish_reason\":\"stop\"}]}")]).await;

    let run = run(&server).await;

    assert_eq!((&run["status"], newest_text(&server, &run).await.as_str()), (&json!("completed"), "Hello"));
    upstream.wait_for_disconnect().await;
}

#[tokio::test]
async fn the_form_of_the_body_is_decided_by_its_first_byte() {
    let stream = format!("{}{}{}", chunk(&json!({"content": "Hello"})), finish("stop"), done());
    let whole = json!({"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]}).to_string();
    let bodies = [
        ("application/json", stream.clone()),
        ("text/plain", stream.clone()),
        ("text/event-stream", whole.clone()),
        ("text/event-stream", format!("data:\n\n: ping\n\ndata: \n\n{stream}")),
        ("text/event-stream", format!("\u{FEFF}{stream}")),
        ("application/json", format!("[{whole}]")),
    ];
    let (server, _upstream) = start(bodies.clone().map(|(kind, body)| Answer::Body(kind, body))).await;

    for (_, body) in &bodies {
        let run = run(&server).await;
        assert_eq!(
            (&run["status"], newest_text(&server, &run).await.as_str()),
            (&json!("completed"), "Hello"),
            "{body}"
        );
    }
}

#[tokio::test]
async fn an_adaptation_to_one_model_is_not_applied_to_another() {
    let rejects =
        |name: &str| rejected(400, &format!("Unsupported parameter: '{name}' is not supported with this model."));
    let hello = || Answer::Tokens(vec!["Hello"]);
    let upstream = Upstream::scripted([
        rejects("max_tokens"),
        hello(),
        rejects("max_completion_tokens"),
        hello(),
        hello(),
        hello(),
    ])
    .await;
    upstream.list_models(&["one", "two"]);
    let database = Database::sqlite();
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;

    for model in ["one", "two", "one", "two"] {
        let body = json!({"model": model, "tools": []});
        let assistant = client.post("/v1/assistants", body).await["id"].as_str().unwrap().to_owned();
        let thread = client.create_thread("Hi").await;
        let body = json!({"assistant_id": assistant, "max_completion_tokens": 500, "stream": true});
        let events = client.stream(&format!("/v1/threads/{thread}/runs"), body).await;
        assert_eq!(text(&events), "Hello", "{model}");
    }

    let limits = |request: &Value| ["max_tokens", "max_completion_tokens"].map(|name| request.get(name).is_some());
    let sent: Vec<[bool; 2]> = upstream.requests().iter().map(limits).collect();
    assert_eq!(sent, [[true, true], [false, true], [true, true], [true, false], [false, true], [true, false]]);
}

#[tokio::test]
async fn a_parameter_is_omitted_later_only_if_the_request_without_it_was_accepted() {
    let rejection = rejected(400, "Unsupported parameter: 'temperature'");
    let (server, upstream) = start([rejection, rejected(400, "No such model"), Answer::Tokens(vec!["Hello"])]).await;

    let failed = run_with(&server, json!({"temperature": 0.5})).await.0;
    assert!(error(&failed).1.contains("No such model"));
    let completed = run_with(&server, json!({"temperature": 0.5})).await.0;

    assert_eq!(completed["status"], "completed");
    let sent: Vec<Option<f64>> = upstream.requests().iter().map(|request| request["temperature"].as_f64()).collect();
    assert_eq!(sent, [Some(0.5), None, Some(0.5)]);
}

#[tokio::test]
async fn an_error_that_quotes_the_user_does_not_change_the_request() {
    let prompt = "Why do I get \"Unsupported parameter: 'temperature'\" and \"System role not supported\"?";
    let quoting = rejected(400, &format!("The prompt was flagged: {prompt}"));
    let (server, upstream) = start([quoting, Answer::Tokens(vec!["Hello"])]).await;
    let client = &server.client;
    let assistant = assistant(client, json!({"temperature": 0.5, "instructions": "Be kind."})).await;
    let thread = client.create_thread(prompt).await;
    let run = client.create_run(&assistant, &thread).await;

    client.wait_for_status(&run, "failed").await;

    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn default_values_and_a_false_strict_are_not_sent_and_a_rejected_strict_is_omitted() {
    let strict = json!([{"type": "function", "function": {"name": "f", "strict": true,
        "parameters": {"type": "object", "properties": {}, "additionalProperties": false}}}]);
    let rejection = rejected(400, "tools[0].function.strict: Extra inputs are not permitted");
    let hello = || Answer::Tokens(vec!["Hello"]);
    let (server, upstream) = start([hello(), rejection, hello()]).await;

    run_with(&server, json!({"temperature": 1.0, "top_p": 1})).await;
    let strict = run_with(&server, json!({"tools": strict})).await.0;

    assert_eq!(strict["status"], "completed");
    let requests = upstream.requests();
    assert_eq!((requests[0].get("temperature"), requests[0].get("top_p")), (None, None));
    let strict_of = |request: &Value| request["tools"][0]["function"].get("strict").cloned();
    assert_eq!([0, 1, 2].map(|index| strict_of(&requests[index])), [None, Some(json!(true)), None]);
}

#[tokio::test]
async fn unambiguous_arguments_are_repaired_and_others_are_unchanged() {
    let written = [
        ("weather", "{}{\"city\":\"Rome\"}", "{\"city\":\"Rome\"}"),
        ("weather", "{\"city\":\"Rome\"}{\"city\":\"Rome\"}", "{\"city\":\"Rome\"}"),
        ("weather", "\"{\\\"city\\\":\\\"Rome\\\"}\"", "{\"city\":\"Rome\"}"),
        ("weather", "{\"city\":\"Ro\nme\"}", "{\"city\":\"Ro\\nme\"}"),
        ("time", "", "{}"),
        ("time", "[]", "{}"),
        ("time", "\"\"", "{}"),
        ("time", "null", "{}"),
        ("weather", "[]", "[]"),
        ("weather", "{\"city\":\"\\ud83d\"}", "{\"city\":\"\\ud83d\"}"),
        ("weather", "{\"city\":1e400}", "{\"city\":1e400}"),
        ("weather", "{\"city\": Rome", "{\"city\": Rome"),
        ("weather", "{\"a\":1}{\"b\":2}", "{\"a\":1}{\"b\":2}"),
    ];
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
    let mut answers: Vec<Answer> =
        written.iter().map(|(name, arguments, _)| answer(&[call(name, arguments)], "tool_calls")).collect();
    answers.push(answer(&[call("weather", &deep)], "tool_calls"));
    let (server, _upstream) = start(answers).await;

    for (name, arguments, expected) in written {
        let run = run(&server).await;
        assert_eq!(calls(&run), [(name, expected)], "{arguments}");
    }
    assert_eq!(calls(&run(&server).await), [("weather", deep.as_str())]);
}

#[tokio::test]
async fn calls_are_read_in_every_form() {
    let function = json!({"name": "weather", "arguments": "{\"a\":1}"});
    let deltas = [
        vec![json!({"tool_calls": [{"index": -1, "id": 7, "function": function}]})],
        vec![json!({"tool_calls": [{"index": "0", "function": function}], "refusal": false})],
        vec![json!({"tool_calls": {"index": 0.0, "id": "a", "function": function}})],
        vec![
            json!({"function_call": {"name": "weather", "arguments": ""}}),
            json!({"function_call": {"arguments": "{\"a\":1}"}}),
        ],
        vec![json!({"tool_calls": [{"index": 0, "id": "a", "name": "weather", "arguments": {"a": 1}}]})],
        vec![call("functions.weather", "{\"a\":1}")],
        vec![call(" weather", "{\"a\":1}")],
        vec![call("weather<|channel|>commentary", "{\"a\":1}")],
    ];
    let (server, _upstream) = start(
        deltas
            .iter()
            .map(|deltas| {
                let frames: Vec<String> = deltas.iter().map(chunk).collect();
                let usage = "data: {\"choices\":[],\"usage\":\"none\"}\n\n".to_owned();
                events(&[frames, vec![finish("function_call"), usage, done()]].concat())
            })
            .collect::<Vec<_>>(),
    )
    .await;

    for deltas in &deltas {
        assert_eq!(calls(&run(&server).await), [("weather", "{\"a\":1}")], "{deltas:?}");
    }
}

#[tokio::test]
async fn tokens_are_counted_if_the_usage_has_no_counts() {
    let usages = [
        json!({}),
        json!({"total_tokens": 0, "total_characters": 0}),
        json!({"prompt_tokens": null, "completion_tokens": null}),
        json!("none"),
    ];
    let (server, _upstream) = start(usages.clone().map(|usage| {
        let usage = format!("data: {}\n\n", json!({"choices": [], "usage": usage}));
        events(&[chunk(&json!({"content": "Hello there"})), finish("stop"), usage, done()])
    }))
    .await;

    for usage in usages {
        let run = run(&server).await;
        let counted = ["prompt_tokens", "completion_tokens"].map(|name| run["usage"][name].as_u64().unwrap());
        assert!(counted.iter().all(|tokens| *tokens > 0), "{usage}: {run:#}");
    }
}

#[tokio::test]
async fn messages_are_joined_for_a_server_that_requires_alternating_roles() {
    let refusal = "Conversation roles must alternate user/assistant/user/assistant/...";
    let hello = || Answer::Tokens(vec!["Hello"]);
    // llama.cpp responds with 500 if a chat template fails.
    let (server, upstream) = start([rejected(500, refusal), hello(), hello()]).await;
    let client = &server.client;
    let assistant = assistant(client, json!({})).await;
    for _ in 0..2 {
        let messages = json!([{"role": "assistant", "content": "Welcome"}, {"role": "user", "content": "a"}, {"role": "user", "content": "b"}]);
        let thread = client.post("/v1/threads", json!({"messages": messages})).await["id"].as_str().unwrap().to_owned();
        client.wait_for_status(&client.create_run(&assistant, &thread).await, "completed").await;
    }

    let requests = upstream.requests();
    assert_eq!(requests.len(), 3, "the second run is adapted from the start");
    let roles = |request: &Value| {
        request["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| message["role"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(roles(&requests[1]), ["user", "assistant", "user"]);
    assert_eq!((&requests[2], &requests[1]["messages"][2]["content"]), (&requests[1], &json!("a\n\nb")));
}

#[tokio::test]
async fn instructions_go_into_the_first_user_message_for_a_server_without_a_system_role() {
    let (server, upstream) = start([rejected(400, "System role not supported"), Answer::Tokens(vec!["Hello"])]).await;

    let run = run_with(&server, json!({"instructions": "Be kind."})).await.0;

    assert_eq!(run["status"], "completed");
    assert_eq!(upstream.requests()[1]["messages"], json!([{"role": "user", "content": "Be kind.\n\nHi"}]));
}

#[tokio::test]
async fn a_request_is_adapted_after_a_rejection_inside_of_an_answer() {
    let body =
        "event: error\ndata: {\"error\":{\"message\":\"Error rendering prompt: System role not supported\"}}\n\n";
    let (server, upstream) = start([Answer::Raw(body), Answer::Tokens(vec!["Hello"])]).await;

    let run = run_with(&server, json!({"instructions": "Be kind."})).await.0;

    assert_eq!((&run["status"], upstream.requests().len()), (&json!("completed"), 2));
}

#[tokio::test]
async fn thinking_between_tags_is_removed_unless_the_settings_keep_it() {
    let thinking = || vec![json!({"content": "<think>Hm"}), json!({"content": "</thi"}), json!({"content": "nk>\n\n"})];
    let calling = answer(&[thinking(), vec![call("weather", "{}")]].concat(), "tool_calls");
    let sunny = || answer(&[thinking(), vec![json!({"content": "Sunny"})]].concat(), "stop");
    let (server, _upstream) = start([calling, sunny()]).await;

    let (path, events) = stream_run(&server, json!({})).await;
    let rest = ["run.step.delta", "run.step.delta", "run.requires_action", "done"];
    assert_eq!(names(&events), [&RUN_STARTED[..], &CALL_STARTED, &rest].concat());
    let ended = submit(&server.client, &path).await;
    assert_eq!(newest_text(&server, &ended).await, "Sunny");

    let upstream = Upstream::scripted([sunny()]).await;
    let database = Database::sqlite();
    let server = Server::with(&database, &upstream, &[("THINK_TAGS", "keep")]).await;
    let ended = run(&server).await;
    assert_eq!(newest_text(&server, &ended).await, "<think>Hm</think>\n\nSunny");
}

#[tokio::test]
async fn a_complete_answer_ends_the_run_though_the_connection_stays_open() {
    let body = concat!(
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    );
    let (server, upstream) = start([Answer::Hang(body)]).await;

    assert_eq!(run(&server).await["status"], "completed");
    upstream.wait_for_disconnect().await;
}

#[tokio::test]
async fn text_after_a_refusal_and_a_long_refusal_are_one_part_each() {
    let words: Vec<Value> = (0..50).map(|index| json!({"refusal": format!("no{index} ")})).collect();
    let deltas = [words, vec![json!({"content": "But "}), json!({"content": "maybe."})]].concat();
    let (server, _upstream) = start([answer(&deltas, "stop")]).await;

    let (path, events) = stream_run(&server, json!({})).await;

    let indexes: std::collections::BTreeSet<(i64, String)> = events
        .iter()
        .filter(|event| event.name.ends_with("message.delta"))
        .map(|event| &event.data["delta"]["content"][0])
        .map(|part| (part["index"].as_i64().unwrap(), part["type"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(indexes, [(0, "refusal".to_owned()), (1, "text".to_owned())].into());
    let run = server.client.get(&path).await;
    let messages = format!("/v1/threads/{}/messages?limit=1", run["thread_id"].as_str().unwrap());
    let content = server.client.get(&messages).await["data"][0]["content"].clone();
    assert_eq!(content.as_array().unwrap().len(), 2);
    assert!(content[0]["refusal"].as_str().unwrap().ends_with("no49 "), "{content:#}");
    assert_eq!(content[1]["text"]["value"], "But maybe.");
}

#[tokio::test]
async fn an_endless_refusal_is_stopped() {
    let chunk = chunk(&json!({"refusal": "no ".repeat(100_000)}));
    let body = Answer::Body("text/event-stream", chunk.repeat(40));
    let (server, _upstream) = start([body]).await;

    let run = run(&server).await;

    assert_eq!(
        (&run["status"], &run["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_completion_tokens"))
    );
}
