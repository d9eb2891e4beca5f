//! The usage ledger: what runs and forwarded requests record, and the queries about it.

use std::time::Duration;

use assistd::api::organization::usage::DAY_S;
use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::contract;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

/// The time of the manual clock.
const NOW: i64 = 1_000_000;
const COMPLETIONS: &str = "/v1/chat/completions";
/// An answer that fails after the server has reported its usage.
const FAILED: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hm\"}}]}\n\n\
    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":50,\"completion_tokens\":3}}\n\n\
    data: {\"error\":{\"message\":\"out of memory\",\"code\":500}}\n\n";

/// Returns the sums of a group: requests, input and output tokens.
fn sums(result: &Value) -> (i64, i64, i64) {
    let number = |name: &str| result[name].as_i64().unwrap();
    (number("num_model_requests"), number("input_tokens"), number("output_tokens"))
}

/// Returns the only result of the only bucket with usage.
fn only(page: &Value) -> Value {
    let mut results: Vec<&Value> =
        page["data"].as_array().unwrap().iter().flat_map(|bucket| bucket["results"].as_array().unwrap()).collect();
    assert_eq!(results.len(), 1, "{page:#}");
    results.remove(0).clone()
}

async fn total(client: &Client) -> (i64, i64, i64) {
    sums(&only(&client.get(&format!("/v1/usage?start_time={}", NOW - 10)).await))
}

/// Waits until this many calls are recorded, and returns their sums.
async fn wait_for_calls(client: &Client, calls: i64) -> (i64, i64, i64) {
    let path = format!("/v1/usage?start_time={}", NOW - 10);
    for _ in 0..1_000 {
        let page = client.get(&path).await;
        if page["data"][0]["results"][0]["num_model_requests"].as_i64().is_some_and(|found| found >= calls) {
            return sums(&only(&page));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("fewer than {calls} calls were recorded");
}

async fn stream(client: &Client, body: Value) -> String {
    client.request(Method::POST, COMPLETIONS).json(&body).send().await.unwrap().text().await.unwrap()
}

both_stores!(the_calls_of_runs_are_recorded_with_their_outcome, async |database: Database| {
    let upstream = Upstream::scripted([
        Answer::Calls(vec!["Let me see"], vec![("f", "{}")]),
        Answer::Tokens(vec!["It", " rains"]),
        Answer::Raw(FAILED),
        Answer::Pause(vec!["One", " two"]),
    ])
    .await;
    let server = Server::with_manual_clock(&database, &upstream, &[]).await;
    let client = &server.client;
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let assistant = client.post("/v1/assistants", json!({"model": "m", "tools": tools})).await;
    let assistant = assistant["id"].as_str().unwrap();

    let two_turns = client.create_thread("Hi").await;
    let run = client.create_run(assistant, &two_turns).await;
    let call = client.wait_for_status(&run, "requires_action").await;
    assert_eq!(total(client).await, (1, 20, 10), "a turn is recorded when it ends");
    let call = &call["required_action"]["submit_tool_outputs"]["tool_calls"][0]["id"];
    let outputs = json!({"tool_outputs": [{"tool_call_id": call, "output": "rain"}]});
    client.post(&format!("{run}/submit_tool_outputs"), outputs).await;
    client.wait_for_status(&run, "completed").await;
    let failed = client.create_run(assistant, &client.create_thread("Hi").await).await;
    let failed = client.wait_for_status(&failed, "failed").await;
    let run = client.create_run(assistant, &client.create_thread("Hi").await).await;
    upstream.wait_for_requests(4).await;
    while client.get(&format!("/v1/threads/{}/messages", run.split('/').nth(3).unwrap())).await["data"][0]["role"]
        != "assistant"
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.post(&format!("{run}/cancel"), json!({})).await;
    let cancelled = client.wait_for_status(&run, "cancelled").await;

    let spent = |run: &Value| {
        (run["usage"]["prompt_tokens"].as_i64().unwrap(), run["usage"]["completion_tokens"].as_i64().unwrap())
    };
    assert_eq!(spent(&failed), (50, 3));
    let (input, output) = spent(&cancelled);
    assert!(input > 0 && output > 0, "{cancelled:#}");
    assert_eq!(total(client).await, (4, 20 + 7 + 50 + input, 10 + 2 + 3 + output));
    let query = format!("start_time={NOW}&bucket_width=1m&limit=1");
    let by_thread = client.get(&format!("/v1/usage?{query}&group_by=thread_id&group_by[]=assistant_id")).await;
    let threads = by_thread["data"][0]["results"].as_array().unwrap();
    assert_eq!(threads.len(), 3);
    let of_two_turns = threads.iter().find(|group| group["thread_id"] == two_turns.as_str()).unwrap();
    assert_eq!((sums(of_two_turns), &of_two_turns["assistant_id"]), ((2, 27, 12), &json!(assistant)));
    let stood = database.text("select cast(sum(case when stood then 1 else 0 end) as text) from model_calls").await;
    assert_eq!(stood, "2");
});

both_stores!(forwarded_requests_are_recorded_before_their_response_ends, async |database: Database| {
    let embedding = json!({"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "model": "e", "usage": {"prompt_tokens": 2, "total_tokens": 2}});
    let rejected = json!({"error": {"message": "Unrecognized request argument: stream_options"}});
    let upstream = Upstream::scripted([
        Answer::Tokens(vec!["Hello"]),
        Answer::Tokens(vec!["Hel", "lo"]),
        Answer::Tokens(vec!["a", "b", "c"]),
        Answer::Status(400, vec![], json!({"error": {"message": "bad"}})),
        Answer::Status(200, vec![], embedding),
        Answer::Status(400, vec![], rejected),
        Answer::Raw("data: {\"choices\":[{\"delta\":{\"content\":\"one two\"}}]}\n\ndata: [DONE]\n\n"),
        Answer::Tokens(vec!["x"]),
    ])
    .await;
    let server = Server::with_manual_clock(&database, &upstream, &[("MODEL_ALIASES", "alias=small")]).await;
    let client = &server.client;
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let body = |stream: bool| json!({"model": "alias", "messages": messages, "stream": stream});

    client.post(COMPLETIONS, body(false)).await;
    assert_eq!(total(client).await, (1, 7, 1));
    let text = stream(client, body(true)).await;
    assert!(!text.contains("usage") && text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(total(client).await, (2, 14, 3));
    let mut with_usage = body(true);
    with_usage["stream_options"] = json!({"include_usage": true});
    let text = stream(client, with_usage).await;
    assert!(text.contains("\"completion_tokens\":3"), "{text}");
    assert_eq!(total(client).await, (3, 21, 6));
    let reply = client.request(Method::POST, COMPLETIONS).json(&body(true)).send().await.unwrap();
    assert_eq!((reply.status().as_u16(), total(client).await), (400, (3, 21, 6)), "an error is not recorded");
    client.post("/v1/embeddings", json!({"model": "e", "input": ["a", "b"]})).await;
    let embeddings = client.get(&format!("/v1/usage/embeddings?start_time={NOW}&group_by=model")).await;
    assert_eq!((&only(&embeddings)["model"], &only(&embeddings)["input_tokens"]), (&json!("e"), &json!(2)));

    let text = stream(client, body(true)).await;
    assert_eq!(text, "data: {\"choices\":[{\"delta\":{\"content\":\"one two\"}}]}\n\ndata: [DONE]\n\n");
    let (calls, input, output) = total(client).await;
    assert_eq!((calls, output), (4, 8), "counted, because the server does not report the usage");
    assert!(input > 21, "{input}");
    stream(client, body(true)).await;
    let requests = upstream.requests();
    let options: Vec<&Value> = requests.iter().map(|request| &request["stream_options"]).collect();
    let (asked, none) = (&json!({"include_usage": true}), &Value::Null);
    assert_eq!(options, [none, asked, asked, asked, none, asked, none, none], "a rejection is remembered");
    let by_model = client.get(&format!("/v1/usage?start_time={NOW}&group_by=model&group_by=thread_id")).await;
    assert_eq!((&only(&by_model)["model"], &only(&by_model)["thread_id"]), (&json!("alias"), &Value::Null));
});

both_stores!(a_forwarded_stream_is_counted_until_its_client_disconnects, async |database: Database| {
    let upstream =
        Upstream::scripted([Answer::Pause(vec!["one two three"]), Answer::Disconnect(vec!["one two"])]).await;
    let server = Server::with_manual_clock(&database, &upstream, &[]).await;
    let client = &server.client;
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": true});

    let mut response = client.request(Method::POST, COMPLETIONS).json(&body).send().await.unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("three") {
        seen.extend(response.chunk().await.unwrap().unwrap());
    }
    drop(response);
    upstream.wait_for_disconnect().await;
    let (calls, input, output) = wait_for_calls(client, 1).await;
    let text = stream(client, body).await;

    assert_eq!((calls, output), (1, 3));
    assert!(input > 0 && text.contains("closed the connection during its answer"), "{text}");
    assert_eq!(total(client).await.0, 2, "the broken stream is recorded as well");
    assert_eq!(database.text("select cast(count(*) as text) from model_calls where not stood").await, "2");
});

both_stores!(the_organization_reads_all_projects_and_a_key_reads_its_own, async |database: Database| {
    let upstream = Upstream::start().await;
    let settings = [("API_KEYS", "sk-member-0123456789"), ("ADMIN_KEYS", "sk-admin-0123456789")];
    let server = Server::with_manual_clock(&database, &upstream, &settings).await;
    let client = &server.client;
    let row = |project: &str, tokens: i64| {
        format!(
            "insert into model_calls (kind, project_id, api_key_id, assistant_id, thread_id, run_id, model, created_at,
                 input_tokens, cached_tokens, output_tokens, stood, requests)
             values ('completions', '{project}', '', '', '', '', 'm', {NOW}, {tokens}, 1, 1, true, 1)"
        )
    };
    database.execute(&row("proj_default", 10)).await;
    database.execute(&row("proj_other", 20)).await;
    let get = async |key: &str, path: &str| {
        let path = format!("{path}?start_time={}&bucket_width=1h&limit=2&group_by=project_id", NOW - 3_600);
        let reply = Client::read(client.request(Method::GET, &path).bearer_auth(key).send().await.unwrap()).await;
        if reply.status == 200 {
            contract::check_reply("GET", &path, &reply.body);
        }
        (reply.status, reply.body)
    };
    let projects = |page: &Value| {
        let results = page["data"].as_array().unwrap().iter().flat_map(|bucket| bucket["results"].as_array().unwrap());
        results.map(|result| (result["project_id"].as_str().unwrap().to_owned(), sums(result).1)).collect::<Vec<_>>()
    };

    let (status, all) = get("sk-admin-0123456789", "/v1/organization/usage/completions").await;
    let (_, own) = get("sk-member-0123456789", "/v1/usage/completions").await;

    assert_eq!((status, projects(&all)), (200, vec![("proj_default".into(), 10), ("proj_other".into(), 20)]));
    assert_eq!(projects(&own), [("proj_default".into(), 10)]);
    assert_eq!(all["data"].as_array().unwrap().len(), 2, "a bucket without usage is there");
    assert_eq!(get("sk-member-0123456789", "/v1/organization/usage/completions").await.0, 401);
    assert_eq!(get("sk-admin-0123456789", "/v1/usage").await.0, 401);
    let (status, embeddings) = get("sk-admin-0123456789", "/v1/organization/usage/embeddings").await;
    assert_eq!((status, projects(&embeddings)), (200, vec![]));
    let path = format!("/v1/usage?start_time={NOW}&project_ids=proj_other");
    let other = client.request(Method::GET, &path).bearer_auth("sk-member-0123456789").send().await.unwrap();
    assert_eq!(projects(&Client::read(other).await.body), []);
});

both_stores!(old_calls_are_summed_by_day_in_the_background, async |database: Database| {
    let upstream = Upstream::start().await;
    let first = Server::with_manual_clock(&database, &upstream, &[]).await;
    let body = json!({"model": "m", "messages": []});
    for _ in 0..2 {
        first.client.post(COMPLETIONS, body.clone()).await;
        first.clock.advance(60);
    }
    let query = format!("/v1/usage?start_time={}&limit=31&group_by=model", NOW - NOW % DAY_S);
    let before = first.client.get(&query).await;
    first.stop().await;
    // The next server starts later than the days that are kept.
    database.execute(&format!("update model_calls set created_at = created_at - {}", 3 * DAY_S)).await;

    let second = Server::with_manual_clock(&database, &upstream, &[("USAGE_DAYS", "2")]).await;

    let rows = async || database.text("select cast(count(*) as text) from model_calls").await;
    for _ in 0..1_000 {
        if rows().await == "1" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(rows().await, "1");
    let query = format!("/v1/usage?start_time={}&limit=31&group_by=model", NOW - NOW % DAY_S - 3 * DAY_S);
    assert_eq!(only(&second.client.get(&query).await), only(&before));
});

#[tokio::test]
async fn invalid_queries_are_rejected_with_the_name_of_the_parameter() {
    let (database, upstream) = (Database::sqlite(), Upstream::start().await);
    let server = Server::start(&database, &upstream).await;

    for (query, param, code, part) in [
        ("", "start_time", "missing_required_parameter", "Missing required parameter: 'start_time'."),
        ("start_time=x", "start_time", "invalid_type", "expected an integer"),
        ("start_time=-1", "start_time", "integer_below_min_value", "Expected a value >= 0"),
        ("start_time=5&end_time=5", "end_time", "invalid_value", "must be after 'start_time', which is 5"),
        ("start_time=5&bucket_width=2d", "bucket_width", "invalid_value", "'1m', '1h', and '1d'"),
        ("start_time=5&limit=32", "limit", "integer_above_max_value", "Expected a value <= 31"),
        ("start_time=5&bucket_width=1h&limit=169", "limit", "integer_above_max_value", "Expected a value <= 168"),
        ("start_time=5&bucket_width=1m&limit=0", "limit", "integer_below_min_value", "Expected a value >= 1"),
        ("start_time=5&group_by=color", "group_by", "invalid_value", "'color'"),
        ("start_time=5&page=page_7_0", "page", "invalid_value", "next_page"),
        ("start_time=5&batch=1", "batch", "invalid_value", "'true' and 'false'"),
    ] {
        let path = format!("/v1/organization/usage/completions?{query}");
        let (status, error) = server.client.send_rejected(Method::GET, &path, None).await;

        assert_eq!((status, &error["param"], &error["code"]), (400, &json!(param), &json!(code)), "{query}");
        assert!(error["message"].as_str().unwrap().contains(part), "{query}: {error}");
    }
    let path = "/v1/usage/embeddings?start_time=5&group_by=batch";
    let (status, error) = server.client.send_rejected(Method::GET, path, None).await;
    assert_eq!((status, &error["param"]), (400, &json!("group_by")), "embeddings have no batches");
}
