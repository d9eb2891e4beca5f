//! Tests the names and the labels of all metrics.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Lets everything happen once.
fn used() -> Arc<Metrics> {
    let metrics = Arc::new(Metrics::new());
    metrics.request_answered("GET", "/v1/models".to_owned(), 200, Duration::from_millis(3));
    metrics.stream_opened(StreamKind::Run).complete();
    metrics.run_created();
    metrics.run_ended("failed", "server_error", 2);
    metrics.queue_measured("run", 3, 4);
    let _active = metrics.job_started("run");
    metrics.attempt_ended("run", "done");
    metrics.job_given_up("run");
    let mut call = metrics.call_started("m", "main");
    call.chunk_received();
    call.completed();
    metrics.tokens_used("chat", "m", 7, 1);
    metrics.upstream_failed("main", UpstreamError::Status(500));
    let pool = metrics.pool("readers");
    pool.waited(Duration::from_millis(1));
    pool.timed_out();
    metrics
}

/// Returns the names of the labels of each metric in a text, without `le`.
fn labels_of(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines() {
        if let Some(described) = line.strip_prefix("# TYPE ") {
            name = described.split(' ').next().unwrap().to_owned();
            found.entry(name.clone()).or_default();
        } else if !line.starts_with('#') {
            let labels = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
            let names = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
            found.get_mut(&name).unwrap().extend(names.filter(|name| name != "le"));
        }
    }
    found
}

#[test]
fn each_metric_is_described_with_its_labels() {
    let metrics = used();
    let text = metrics.render();

    let described: BTreeMap<String, BTreeSet<String>> = metrics
        .descriptions()
        .iter()
        .map(|metric| (metric.name.clone(), metric.labels.iter().map(|label| (*label).to_owned()).collect()))
        .collect();
    assert_eq!(labels_of(&text), described, "{text}");
    for metric in metrics.descriptions() {
        assert!(text.contains(&format!("# TYPE {} {}\n", metric.name, metric.kind)), "{text}");
    }
}

#[test]
fn what_clients_and_model_servers_choose_does_not_become_a_label() {
    let metrics = Arc::new(Metrics::new());

    metrics.request_answered("INVENTED", String::new(), 404, Duration::ZERO);
    metrics.upstream_failed("main", UpstreamError::Status(999));
    metrics.call_started("invented", "main").failed("rejected");

    let text = metrics.render();
    assert!(text.contains("http_request_method=\"_OTHER\""), "{text}");
    assert!(text.contains("assistd_upstream_errors_total{upstream=\"main\",status=\"other\"} 1\n"), "{text}");
    assert!(text.contains("gen_ai_request_model=\"other\""), "{text}");
    assert!(!text.to_lowercase().contains("invented"), "{text}");
}

#[test]
fn a_stream_and_a_job_are_open_until_they_are_dropped() {
    let metrics = Metrics::new();
    let has = |line: &str| metrics.render().contains(line);

    let stream = metrics.stream_opened(StreamKind::Run);
    let job = metrics.job_started("run");
    assert!(has("assistd_open_streams{kind=\"run\"} 1\n") && has("assistd_active_jobs{kind=\"run\"} 1\n"));

    drop((stream, job));
    assert!(has("assistd_open_streams{kind=\"run\"} 0\n") && has("assistd_active_jobs{kind=\"run\"} 0\n"));
    assert!(has("assistd_streams_ended_total{kind=\"run\",end=\"disconnected\"} 1\n"));
}

#[test]
fn a_call_that_is_dropped_was_interrupted() {
    let metrics = Arc::new(Metrics::new());

    drop(metrics.call_started("m", "main"));

    assert!(metrics.render().contains("error_type=\"interrupted\""));
}

#[test]
fn a_queue_that_cannot_be_measured_has_no_value() {
    let metrics = Metrics::new();
    metrics.queue_measured("run", 3, 4);
    assert!(metrics.render().contains("assistd_queued_jobs{kind=\"run\"} 3\n"));

    metrics.queue_not_measured();

    assert!(!metrics.render().contains("assistd_queued_jobs"));
}
