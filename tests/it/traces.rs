//! Traces, as a receiver of OTLP gets them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use serde_json::json;

use crate::both_stores;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

/// A receiver of traces. It ends with the test's runtime.
struct Receiver {
    url: String,
    bodies: Arc<Mutex<Vec<Bytes>>>,
}

impl Receiver {
    async fn start() -> Self {
        let bodies = Arc::<Mutex<Vec<Bytes>>>::default();
        let router = Router::new().route("/v1/traces", post(receive)).with_state(bodies.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, bodies }
    }

    /// Returns the spans in the order of their starts.
    fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for body in &*self.bodies.lock().unwrap() {
            for resource in ExportTraceServiceRequest::decode(body.clone()).unwrap().resource_spans {
                let attributes = attributes(&resource.resource.unwrap().attributes);
                assert_eq!(attributes["service.name"], "assistd");
                spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        spans.sort_by_key(|span| span.start_time_unix_nano);
        spans
    }

    fn contains(&self, text: &str) -> bool {
        let bodies = self.bodies.lock().unwrap();
        bodies.iter().any(|body| body.windows(text.len()).any(|window| window == text.as_bytes()))
    }
}

async fn receive(State(bodies): State<Arc<Mutex<Vec<Bytes>>>>, headers: HeaderMap, body: Bytes) {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    bodies.lock().unwrap().push(body);
}

fn attributes(given: &[opentelemetry_proto::tonic::common::v1::KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &AnyValue| match value {
        AnyValue::StringValue(text) => text.clone(),
        AnyValue::IntValue(number) => number.to_string(),
        AnyValue::DoubleValue(number) => number.to_string(),
        AnyValue::BoolValue(is_set) => is_set.to_string(),
        other => format!("{other:?}"),
    };
    given.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref().unwrap().value.as_ref().unwrap()))).collect()
}

both_stores!(a_run_is_a_trace_with_a_span_for_each_model_call, async |database: Database| {
    let receiver = Receiver::start().await;
    let upstream = Upstream::scripted([
        Answer::Calls(vec!["Let me see"], vec![("weather", "{\"place\":\"Bergen\"}")]),
        Answer::Tokens(vec!["It", " rains"]),
    ])
    .await;
    upstream.list_models(&["m"]);
    let server = Server::with(&database, &upstream, &[("OTLP_ENDPOINT", receiver.url.as_str())]).await;
    let client = &server.client;
    let tools = json!([{"type": "function", "function": {"name": "weather"}}]);
    let assistant = client.post("/v1/assistants", json!({"model": "m", "tools": tools})).await;
    let assistant = assistant["id"].as_str().unwrap().to_owned();
    let thread = client.create_thread("How is the weather?").await;
    let run = client.create_run(&assistant, &thread).await;
    let required = client.wait_for_status(&run, "requires_action").await;
    let call = &required["required_action"]["submit_tool_outputs"]["tool_calls"][0]["id"];
    let outputs = json!({"tool_outputs": [{"tool_call_id": call, "output": "drizzle"}]});
    client.post(&format!("{run}/submit_tool_outputs"), outputs).await;
    let completed = client.wait_for_status(&run, "completed").await;
    let run_id = completed["id"].as_str().unwrap();

    server.stop().await;

    let spans = receiver.spans();
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["invoke_agent", "chat m", "chat m"]);
    let [of_run, first, second] = &spans[..] else { unreachable!("three names") };
    for span in &spans {
        assert_eq!(format!("run_{}", hex::encode(&span.trace_id)), run_id);
        let attributes = attributes(&span.attributes);
        assert_eq!(attributes["assistd.run.id"], run_id);
        assert_eq!(attributes["gen_ai.conversation.id"], thread);
        assert_eq!(attributes["gen_ai.request.model"], "m");
        assert!(!attributes.contains_key("error.type"), "{attributes:?}");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
        assert!(span.end_time_unix_nano <= of_run.end_time_unix_nano);
    }
    assert!(of_run.parent_span_id.is_empty());
    let run_attributes = attributes(&of_run.attributes);
    assert_eq!(run_attributes["gen_ai.operation.name"], "invoke_agent");
    assert_eq!(run_attributes["gen_ai.agent.id"], assistant);
    assert_eq!(run_attributes["assistd.run.status"], "completed");
    assert_eq!(run_attributes["gen_ai.usage.input_tokens"], completed["usage"]["prompt_tokens"].to_string());
    assert_eq!(run_attributes["gen_ai.usage.output_tokens"], completed["usage"]["completion_tokens"].to_string());
    for call in [first, second] {
        assert_eq!((&call.parent_span_id, call.kind), (&of_run.span_id, SpanKind::Client as i32));
        let attributes = attributes(&call.attributes);
        assert_eq!(attributes["gen_ai.operation.name"], "chat");
        assert_eq!(attributes["assistd.upstream"], "upstream_url");
        assert!(attributes["gen_ai.response.time_to_first_chunk"].parse::<f64>().unwrap() > 0.0);
        assert!(attributes["gen_ai.response.finish_reasons"].contains("stop"), "{attributes:?}");
    }
    assert_ne!(first.span_id, second.span_id);
    assert_eq!(attributes(&second.attributes)["gen_ai.usage.input_tokens"], "7");
    assert_eq!(attributes(&second.attributes)["gen_ai.usage.output_tokens"], "2");
    for content in ["weather", "Bergen", "Let me see", "rains", "drizzle"] {
        assert!(!receiver.contains(content), "a trace contains \"{content}\"");
    }
});

both_stores!(a_failed_call_and_its_run_have_the_type_of_the_error_and_not_its_text, async |database: Database| {
    let receiver = Receiver::start().await;
    let rejected = json!({"error": {"message": "the secret is 42"}});
    let upstream = Upstream::scripted([Answer::Status(400, vec![], rejected)]).await;
    upstream.list_models(&["m"]);
    let server = Server::with(&database, &upstream, &[("OTLP_ENDPOINT", receiver.url.as_str())]).await;
    let client = &server.client;
    let run = client.create_run(&client.create_assistant().await, &client.create_thread("Hi").await).await;
    client.wait_for_status(&run, "failed").await;

    server.stop().await;

    let spans = receiver.spans();
    let errors: Vec<(String, i32, String)> = spans
        .iter()
        .map(|span| {
            let status = span.status.as_ref().unwrap();
            assert_eq!(status.message, "");
            (span.name.clone(), status.code, attributes(&span.attributes)["error.type"].clone())
        })
        .collect();
    let failed = |name: &str, kind: &str| (name.to_owned(), StatusCode::Error as i32, kind.to_owned());
    assert_eq!(errors, [failed("invoke_agent", "server_error"), failed("chat m", "rejected")]);
    assert!(!receiver.contains("secret"));
});

both_stores!(runs_do_not_need_the_receiver_of_traces, async |database: Database| {
    let settings = [("OTLP_ENDPOINT", "http://127.0.0.1:9")];
    let server = Server::with(&database, &Upstream::start().await, &settings).await;
    let client = &server.client;

    let run = client.create_run(&client.create_assistant().await, &client.create_thread("Hi").await).await;

    client.wait_for_status(&run, "completed").await;
    server.stop().await;
});
