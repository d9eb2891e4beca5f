//! Random mutations of valid requests: every response has the API's schema, a rejected request has no side effects, and an
//! accepted request matches the published API description.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, SqliteConnection};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::contract;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

/// Number of mutated requests for each store.
const CASES: usize = 600;

/// A change of one value in a body.
#[derive(Debug, Clone)]
enum Mutation {
    Replace(Value),
    Remove,
    Rename(String),
    Repeat(usize),
    Nest(usize),
    Add(String, Value),
}

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        Just(json!(true)),
        Just(json!([])),
        Just(json!({})),
        any::<i64>().prop_map(|number| json!(number)),
        any::<f64>()
            .prop_filter("JSON numbers are finite", |number| number.is_finite())
            .prop_map(|number| json!(number)),
        "\\PC{0,20}".prop_map(|text| json!(text)),
        "[\u{0}\u{1}\u{7f}\u{1F600}']{1,5}".prop_map(|text| json!(text)),
        (0_usize..600_000).prop_map(|length| json!("x".repeat(length))),
        Just(json!({"type": "function"})),
        Just(json!([{"type": "text", "text": "x"}])),
    ]
}

fn mutations() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        4 => values().prop_map(Mutation::Replace),
        1 => Just(Mutation::Remove),
        1 => "[a-z_\u{0}]{0,70}".prop_map(Mutation::Rename),
        1 => (2_usize..200).prop_map(Mutation::Repeat),
        1 => (1_usize..400).prop_map(Mutation::Nest),
        1 => ("[a-z_]{1,12}", values()).prop_map(|(name, value)| Mutation::Add(name, value)),
    ]
}

/// Collects the JSON pointers of all values in a body, the body itself first.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, value)| pointers(value, &format!("{at}/{name}"), found));
        }
        Value::Array(elements) => {
            elements.iter().enumerate().for_each(|(index, value)| pointers(value, &format!("{at}/{index}"), found));
        }
        _ => {}
    }
}

fn mutate(body: &mut Value, index: usize, mutation: &Mutation) {
    let mut found = Vec::new();
    pointers(body, "", &mut found);
    let pointer = &found[index % found.len()];
    let (parent, name) = pointer.rsplit_once('/').unwrap_or(("", ""));
    match mutation {
        Mutation::Remove | Mutation::Rename(_) => {
            if let Some(Value::Object(members)) = body.pointer_mut(parent)
                && let Some(value) = members.remove(name)
                && let Mutation::Rename(new) = mutation
            {
                members.insert(new.clone(), value);
            }
        }
        Mutation::Replace(value) => *body.pointer_mut(pointer).unwrap() = value.clone(),
        Mutation::Repeat(times) => {
            let value = body.pointer_mut(pointer).unwrap();
            *value = match value.take() {
                Value::Array(elements) => elements.iter().cycle().take(elements.len() * times).cloned().collect(),
                Value::String(text) => json!(text.repeat(*times)),
                other => Value::Array(vec![other; *times]),
            };
        }
        Mutation::Nest(depth) => {
            let value = body.pointer_mut(pointer).unwrap();
            *value = (0..*depth).fold(value.take(), |inner, _| json!([inner]));
        }
        Mutation::Add(name, value) => {
            if let Value::Object(members) = body.pointer_mut(pointer).unwrap() {
                members.insert(name.clone(), value.clone());
            }
        }
    }
}

/// Valid bodies that use most parameters, with this file and vector store.
fn valid_requests(assistant: &str, file: &str, store: &str) -> Vec<(&'static str, Value)> {
    let metadata = json!({"a": "b"});
    let tools = json!([{"type": "code_interpreter"}, {"type": "file_search", "file_search": {"max_num_results": 3,
            "ranking_options": {"ranker": "auto", "score_threshold": 0.5}}},
        {"type": "function", "function": {"name": "f", "description": "d", "strict": true,
            "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}}]);
    let tool_resources = json!({"code_interpreter": {"file_ids": [file]},
        "file_search": {"vector_store_ids": [store]}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}});
    let message = json!({"role": "user", "content": [{"type": "text", "text": "Hi"},
            {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
            {"type": "image_file", "image_file": {"file_id": file}}],
        "attachments": [{"file_id": file, "tools": [{"type": "file_search"}]}], "metadata": metadata});
    let assistant_members = json!({"model": "m", "name": "n", "description": "d", "instructions": "i", "tools": tools,
        "tool_resources": tool_resources, "metadata": metadata, "temperature": 0.5, "top_p": 0.5,
        "response_format": format, "reasoning_effort": "low"});
    let mut run = json!({"assistant_id": assistant, "model": "m", "instructions": "i", "tools": tools,
        "metadata": metadata, "temperature": 0.5, "top_p": 0.5, "max_prompt_tokens": 300, "stream": false,
        "max_completion_tokens": 300, "truncation_strategy": {"type": "last_messages", "last_messages": 3},
        "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": true,
        "response_format": {"type": "text"}, "reasoning_effort": "high"});
    let mut thread_and_run = run.clone();
    thread_and_run["thread"] = json!({"messages": [message], "tool_resources": tool_resources, "metadata": metadata});
    thread_and_run["tool_resources"] = tool_resources.clone();
    run["additional_messages"] = json!([message]);
    run["additional_instructions"] = json!("more");
    vec![
        ("/v1/assistants", assistant_members.clone()),
        ("/v1/assistants/{assistant}", assistant_members),
        ("/v1/threads", json!({"messages": [message], "tool_resources": tool_resources, "metadata": metadata})),
        ("/v1/threads/{thread}", json!({"tool_resources": tool_resources, "metadata": metadata})),
        ("/v1/threads/{thread}/messages", message),
        ("/v1/threads/{thread}/messages/{message}", json!({"metadata": metadata})),
        ("/v1/threads/{thread}/runs", run),
        ("/v1/threads/runs", thread_and_run),
        ("/v1/threads/{thread}/runs/{run}", json!({"metadata": metadata})),
        (
            "/v1/threads/{thread}/runs/{run}/submit_tool_outputs",
            json!({"tool_outputs": [{"tool_call_id": "call_1", "output": "x"}], "stream": false}),
        ),
    ]
}

/// Returns everything that a client can change, as one text.
async fn contents(url: &str) -> String {
    let tables = [
        ("assistants", "body"),
        ("threads", "body || coalesce(active_run, '') || cast(message_seq as text)"),
        ("messages", "body || metadata"),
        ("runs", "state || metadata || cast(version as text)"),
        ("run_steps", "body"),
    ];
    let mut all = String::new();
    for (table, columns) in tables {
        let sql = || sqlx::AssertSqlSafe(format!("select id || {columns} from {table} order by id"));
        let rows: Vec<String> = if url.starts_with("sqlite") {
            sqlx::query_scalar(sql()).fetch_all(&mut SqliteConnection::connect(url).await.unwrap()).await.unwrap()
        } else {
            sqlx::query_scalar(sql()).fetch_all(&mut PgConnection::connect(url).await.unwrap()).await.unwrap()
        };
        all.push_str(&rows.concat());
    }
    all
}

/// Waits until a created run has ended.
async fn wait_for_end(client: &Client, reply: &Value) {
    if reply["object"] == "thread.run" {
        let path =
            format!("/v1/threads/{}/runs/{}", reply["thread_id"].as_str().unwrap(), reply["id"].as_str().unwrap());
        while ["queued", "in_progress", "cancelling"].contains(&client.get(&path).await["status"].as_str().unwrap()) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
}

both_stores!(mutated_requests_are_rejected_without_side_effects, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let assistant = client.create_assistant().await;
    let run = client.create_run(&assistant, &client.create_thread("Hi").await).await;
    client.wait_for_status(&run, "completed").await;
    let (of_thread, run_id) = run.rsplit_once("/runs/").unwrap();
    let message = client.get(&format!("{of_thread}/messages")).await["data"][0]["id"].as_str().unwrap().to_owned();
    let requests = valid_requests(&assistant, &client.upload().await, &client.create_vector_store().await);
    let mut runner = TestRunner::deterministic();
    let cases = (0..requests.len(), prop::collection::vec((any::<usize>(), mutations()), 1..3));
    let (mut accepted, mut rejected) = (0, 0);

    for _ in 0..CASES {
        let (which, changes) = cases.new_tree(&mut runner).unwrap().current();
        let (template, mut body) = requests[which].clone();
        for (index, mutation) in &changes {
            mutate(&mut body, *index, mutation);
        }
        let fresh = template.ends_with("/runs") || template.ends_with("/messages");
        let thread =
            if fresh { client.create_thread("Hi").await } else { of_thread.rsplit('/').next().unwrap().to_owned() };
        let path = template
            .replace("{assistant}", &assistant)
            .replace("{thread}", &thread)
            .replace("{message}", &message)
            .replace("{run}", run_id);
        let before = contents(&database.url).await;

        let reply = Client::read(client.request(Method::POST, &path).json(&body).send().await.unwrap()).await;

        let shown: String = body.to_string().chars().take(2_000).collect();
        assert!(reply.status < 500, "{path} {shown}: {:#}", reply.body);
        if reply.status == 200 {
            accepted += 1;
            let violations = contract::request_violations(&path, &body);
            assert!(
                violations.is_empty(),
                "{path} accepted a body that violates its description: {violations:?} in {shown}"
            );
            contract::check_reply("POST", &path, &reply.body);
            wait_for_end(client, &reply.body).await;
        } else {
            rejected += 1;
            contract::check_error(&reply.body);
            assert_eq!(before, contents(&database.url).await, "{path} {shown} was rejected and changed the database");
        }
    }

    assert!(accepted > CASES / 20 && rejected > CASES / 3, "{accepted} accepted, {rejected} rejected");
});
