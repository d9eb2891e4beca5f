//! The metrics: what they count, who can read them, and where they are described.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use assistd::metrics::{Description, Metrics};
use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

/// A free port of loopback for the metrics.
const OWN_LISTENER: (&str, &str) = ("METRICS_LISTEN", "127.0.0.1:0");

/// Returns the metrics of a server that has a listener for them.
async fn scrape(server: &Server) -> String {
    let client = Client::new(server.metrics_address().unwrap());
    let response = client.request(Method::GET, "/metrics").send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    response.text().await.unwrap()
}

/// Scrapes until the metrics have all of these lines, because some are counted just after a client has its answer.
async fn scrape_until(server: &Server, expected: &[&str]) -> String {
    let mut missing = Vec::new();
    let mut text = String::new();
    for _ in 0..500 {
        text = scrape(server).await;
        let lines: BTreeSet<&str> = text.lines().collect();
        missing = expected.iter().filter(|line| !lines.contains(**line)).collect();
        if missing.is_empty() {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("missing: {missing:#?}\n{text}");
}

/// Returns the sum of the values of all lines that begin with `start`.
fn sum(text: &str, start: &str) -> f64 {
    text.lines()
        .filter(|line| line.starts_with(start))
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
        .sum()
}

both_stores!(the_metrics_say_what_was_done, async |database: Database| {
    let failure = || Answer::Status(500, vec![], json!({"error": {"message": "out of memory"}}));
    let upstream = Upstream::scripted([
        Answer::Tokens(vec!["Hello", "!"]),
        failure(),
        failure(),
        Answer::Pause(vec!["Hm"]),
        Answer::Tokens(vec!["Hi"]),
    ])
    .await;
    let server = Server::with(&database, &upstream, &[OWN_LISTENER]).await;
    let client = &server.client;
    let assistant = client.create_assistant().await;

    let streamed = client.create_thread("one").await;
    let path = format!("/v1/threads/{streamed}/runs");
    client.stream(&path, json!({"assistant_id": assistant, "stream": true})).await;
    let failed = client.create_run(&assistant, &client.create_thread("two").await).await;
    client.wait_for_status(&failed, "failed").await;
    let third = client.create_thread("three").await;
    let cancelled = client.create_run(&assistant, &third).await;
    while client.get(&format!("/v1/threads/{third}/messages")).await["data"][0]["role"] != "assistant" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.post(&format!("{cancelled}/cancel"), json!({})).await;
    client.wait_for_status(&cancelled, "cancelled").await;
    let forwarded = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
    let forwarded = client.request(Method::POST, "/openai/deployments/m/chat/completions").json(&forwarded);
    assert_eq!(forwarded.send().await.unwrap().status().as_u16(), 200);
    let unknown = client.request(Method::GET, "/v1/secret-words").send().await.unwrap();
    assert_eq!(unknown.status().as_u16(), 404);

    let request = |method: &str, route: &str, status: u16, count: u32| {
        format!(
            "http_server_request_duration_seconds_count{{http_request_method=\"{method}\",http_route=\"{route}\",\
             http_response_status_code=\"{status}\"}} {count}"
        )
    };
    let call = |error: &str| {
        format!(
            "gen_ai_client_operation_duration_seconds_count{{gen_ai_operation_name=\"chat\",gen_ai_request_model=\"m\",\
             upstream=\"upstream_url\",error_type=\"{error}\"}} 1"
        )
    };
    let expected = [
        request("POST", "/v1/assistants", 200, 1),
        request("POST", "/v1/threads", 200, 3),
        request("POST", "/v1/threads/{thread_id}/runs", 200, 3),
        request("POST", "/v1/threads/{thread_id}/runs/{run_id}/cancel", 200, 1),
        request("POST", "/v1/chat/completions", 200, 1),
        request("GET", "", 404, 1),
        call(""),
        call("unavailable"),
        call("interrupted"),
    ];
    let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    expected.extend([
        "assistd_runs_created_total 3",
        "assistd_runs_ended_total{status=\"completed\",reason=\"\"} 1",
        "assistd_runs_ended_total{status=\"failed\",reason=\"server_error\"} 1",
        "assistd_runs_ended_total{status=\"cancelled\",reason=\"\"} 1",
        "assistd_run_duration_seconds_count 3",
        "assistd_attempts_total{kind=\"run\",outcome=\"done\"} 3",
        "assistd_active_jobs{kind=\"run\"} 0",
        "assistd_queued_jobs{kind=\"run\"} 0",
        "assistd_queued_jobs{kind=\"file\"} 0",
        "assistd_open_streams{kind=\"run\"} 0",
        "assistd_streams_ended_total{kind=\"run\",end=\"complete\"} 1",
        "assistd_upstream_errors_total{upstream=\"upstream_url\",status=\"500\"} 2",
        "gen_ai_client_operation_time_to_first_chunk_seconds_count{gen_ai_operation_name=\"chat\",\
         gen_ai_request_model=\"m\",upstream=\"upstream_url\"} 2",
        // The tokens of a forwarded request are counted after its response.
        "gen_ai_client_token_usage_count{gen_ai_operation_name=\"chat\",gen_ai_request_model=\"m\",\
         gen_ai_token_type=\"input\"} 3",
    ]);
    let text = scrape_until(&server, &expected).await;

    let used = async || -> (f64, f64) {
        let usage = client.get(&format!("/v1/usage?start_time={}", server.clock.now().0 - 60)).await;
        let groups: Vec<&Value> =
            usage["data"].as_array().unwrap().iter().flat_map(|bucket| bucket["results"].as_array().unwrap()).collect();
        let total = |name: &str| groups.iter().map(|group| group[name].as_f64().unwrap()).sum();
        (total("input_tokens"), total("output_tokens"))
    };
    let counted = |kind: &str| {
        let labels =
            format!("{{gen_ai_operation_name=\"chat\",gen_ai_request_model=\"m\",gen_ai_token_type=\"{kind}\"}}");
        sum(&text, &format!("gen_ai_client_token_usage_sum{labels}"))
    };
    assert!(counted("input") >= 14.0, "{text}");
    let counted = (counted("input"), counted("output"));
    for _ in 0..3_000 {
        if used().await == counted {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(used().await, counted);
    assert!(sum(&text, "db_client_connection_wait_time_seconds_count") > 10.0, "{text}");
    for hidden in [assistant.as_str(), &streamed, &third, "secret-words", "out of memory", "Hello"] {
        assert!(!text.contains(hidden), "{hidden} is in the metrics:\n{text}");
    }
});

both_stores!(the_queue_is_that_of_the_database, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let settings = [OWN_LISTENER, ("MAX_CONCURRENT_RUNS", "1")];
    let server = Server::with_manual_clock(&database, &upstream, &settings).await;
    let client = &server.client;
    let assistant = client.create_assistant().await;
    client.create_run(&assistant, &client.create_thread("driven").await).await;
    upstream.wait_for_requests(1).await;
    for text in ["queued", "also queued"] {
        client.create_run(&assistant, &client.create_thread(text).await).await;
        server.clock.advance(3);
    }

    let text = scrape(&server).await;

    for line in [
        "assistd_active_jobs{kind=\"run\"} 1",
        "assistd_queued_jobs{kind=\"run\"} 2",
        "assistd_oldest_queued_job_age_seconds{kind=\"run\"} 6",
        "assistd_queued_jobs{kind=\"file\"} 0",
        "assistd_oldest_queued_job_age_seconds{kind=\"file\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
    }
});

both_stores!(a_stream_is_open_until_its_client_disconnects, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[OWN_LISTENER]).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let path = format!("/v1/threads/{thread}/runs");
    let stream = client.open_stream(&path, json!({"assistant_id": assistant, "stream": true})).await;
    scrape_until(&server, &["assistd_open_streams{kind=\"run\"} 1"]).await;

    drop(stream);

    let ended = "assistd_streams_ended_total{kind=\"run\",end=\"disconnected\"} 1";
    scrape_until(&server, &["assistd_open_streams{kind=\"run\"} 0", ended]).await;
});

#[tokio::test]
async fn only_administrators_read_the_metrics_if_there_are_keys() {
    let database = Database::sqlite();
    let settings = [("API_KEYS", "sk-test-member"), ("ADMIN_KEYS", "sk-test-admin")];
    let server = Server::with(&database, &Upstream::start().await, &settings).await;
    let status = async |client: &Client| {
        let response = client.request(Method::GET, "/metrics").send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };

    let (without_key, _) = status(&server.client).await;
    let (of_member, error) = status(&server.client.with_key("sk-test-member")).await;
    let (of_admin, text) = status(&server.client.with_key("sk-test-admin")).await;

    assert_eq!((without_key, of_member, of_admin), (401, 401, 200));
    assert!(error.contains("Missing scopes: api.management.read"), "{error}");
    assert!(text.contains("assistd_queued_jobs{kind=\"run\"} 0\n"), "{text}");
}

#[tokio::test]
async fn this_machine_reads_the_metrics_if_there_are_no_keys() {
    let database = Database::sqlite();
    let server = Server::start(&database, &Upstream::start().await).await;
    let request = |host: &'static str| server.client.request(Method::GET, "/metrics").header("host", host).send();

    assert_eq!(request("127.0.0.1").await.unwrap().status().as_u16(), 200);
    assert_eq!(request("rebound.example").await.unwrap().status().as_u16(), 403);
}

#[tokio::test]
async fn a_listener_of_its_own_serves_the_metrics_and_nothing_else() {
    let database = Database::sqlite();
    let settings = [OWN_LISTENER, ("API_KEYS", "sk-test-member"), ("ADMIN_KEYS", "sk-test-admin")];
    let server = Server::with(&database, &Upstream::start().await, &settings).await;
    let own = Client::new(server.metrics_address().unwrap());
    let status =
        async |client: &Client, path: &str| client.request(Method::GET, path).send().await.unwrap().status().as_u16();

    assert!(server.metrics_address().unwrap().ip().is_loopback());
    assert_eq!(status(&own, "/metrics").await, 200);
    assert_eq!(status(&own, "/v1/assistants").await, 404);
    assert_eq!(status(&server.client.with_key("sk-test-admin"), "/metrics").await, 404);
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_documentation_lists_all_metrics() {
    let row = |metric: &Description| {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{}` | {} | {} |", metric.name, metric.kind, labels.join(", "))
    };
    let expected: BTreeSet<String> = Metrics::new().descriptions().iter().map(row).collect();
    let page = read("docs/operating.md");
    let documented: BTreeSet<String> = page
        .lines()
        .skip_while(|line| !line.starts_with("| metric |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.split('|').take(4).collect::<Vec<_>>().join("|") + "|")
        .collect();

    assert_eq!(documented, expected);
}

/// Adds the queries of a dashboard, at any depth.
fn add_queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member.as_str() {
                    Some(query) if name == "expr" || name == "query" => found.push(query.to_owned()),
                    _ => add_queries(member, found),
                }
            }
        }
        Value::Array(elements) => elements.iter().for_each(|element| add_queries(element, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_shows_all_metrics_and_no_others() {
    let metrics = Metrics::new();
    let mut names = BTreeSet::new();
    for metric in metrics.descriptions() {
        if metric.kind == "histogram" {
            names.extend(["bucket", "sum", "count"].map(|suffix| format!("{}_{suffix}", metric.name)));
        } else {
            names.insert(metric.name.clone());
        }
    }
    let labels: BTreeSet<&str> = metrics.descriptions().iter().flat_map(|metric| metric.labels).copied().collect();
    let dashboard: Value = serde_json::from_str(&read("docker/grafana-dashboard.json")).unwrap();
    let mut queries = Vec::new();
    add_queries(&dashboard, &mut queries);
    let is_word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    // Functions and keywords of queries have no underscore, except these.
    let functions = ["histogram_quantile", "label_values"];
    let used: BTreeSet<&str> = queries
        .iter()
        .flat_map(|query| query.split(|character| !is_word(character)))
        .filter(|word| word.contains('_') && !word.starts_with("__") && !functions.contains(word))
        .collect();

    let unknown: Vec<&&str> = used.iter().filter(|word| !names.contains(**word) && !labels.contains(**word)).collect();
    assert!(unknown.is_empty(), "{unknown:?} are not metrics");
    for metric in metrics.descriptions() {
        let is_shown = used.iter().any(|word| names.contains(*word) && word.starts_with(&metric.name));
        assert!(is_shown, "{} is not in the dashboard", metric.name);
    }
}
