//! Traces of runs, exported over OTLP: one span for each run, and below it one for each model call.
//!
//! Several servers can work on a run, one after the other, and a run may wait for its client. So the IDs of its trace and of
//! its span follow from the ID of the run: each server exports the model calls that it makes, and the one that ends the run
//! exports the span of the run. Attributes are those of OpenTelemetry's conventions for generative AI. Spans never contain
//! messages, tool calls or error texts.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanProcessor as _};
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::api::run::RunSpec;
use crate::api::usage::Usage;
use crate::api::{Run, RunId};
use crate::host::is_loopback;

/// Timeout of a request to the receiver of traces.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of the export of the last spans when the server stops.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
#[error("cannot export traces to otlp_endpoint")]
pub struct Error(#[source] Box<dyn std::error::Error + Send + Sync>);

/// Exports spans in the background. Cheap to clone. The default exports nothing.
#[derive(Debug, Clone, Default)]
pub struct Traces {
    exporter: Option<Arc<Exporter>>,
}

#[derive(Debug)]
struct Exporter {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
}

impl Traces {
    /// Exports to the OTLP receiver with this base URL, such as `http://127.0.0.1:4318`, over HTTP with protobuf.
    ///
    /// The thread that exports waits for requests that are sent on the current runtime. If the receiver is slow, spans are
    /// dropped; runs do not wait for it.
    ///
    /// # Errors
    /// If the URL is invalid.
    pub fn to(endpoint: &str) -> Result<Self, Error> {
        let client = Client::new(endpoint).map_err(Error)?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_timeout(EXPORT_TIMEOUT)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .build()
            .map_err(|error| Error(error.into()))?;
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        // OTEL_RESOURCE_ATTRIBUTES is read by the library.
        let resource = Resource::builder().with_service_name("assistd").with_attribute(version).build();
        processor.set_resource(&resource);
        let scope = InstrumentationScope::builder("assistd").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Self { exporter: Some(Arc::new(Exporter { processor, scope })) })
    }

    /// Exports the span of a run that has ended.
    pub fn run_ended(&self, run: &Run) {
        let (Some(exporter), Some(ids)) = (&self.exporter, RunIds::of(&run.spec.id)) else { return };
        let Run { spec, state, usage, .. } = run;
        let mut attributes = attributes_of("invoke_agent", spec);
        attributes.push(KeyValue::new("gen_ai.agent.id", spec.assistant_id.as_str().to_owned()));
        attributes.push(KeyValue::new("assistd.run.status", state.status()));
        attributes.extend(usage_attributes(*usage));
        let error = match state.status() {
            "failed" => Some(state.end_reason()),
            "expired" => Some("expired"),
            _ => None,
        };
        exporter.export(Span {
            context: ids.run_context(),
            parent: SpanId::INVALID,
            name: "invoke_agent".into(),
            kind: SpanKind::Internal,
            began: ids.created,
            attributes,
            error,
        });
    }

    /// A run calls a model of the server `upstream`. The span is exported when the result ends or is dropped.
    #[must_use]
    pub fn call_started(&self, spec: &RunSpec, model: &str, upstream: &str) -> CallSpan {
        let open = self.exporter.as_ref().and_then(|exporter| {
            let ids = RunIds::of(&spec.id)?;
            let mut attributes = attributes_of("chat", spec);
            attributes.push(KeyValue::new("assistd.upstream", upstream.to_owned()));
            attributes.push(KeyValue::new("gen_ai.request.stream", true));
            let name = format!("chat {model}").into();
            let span = Span {
                context: ids.new_context(),
                parent: ids.span,
                name,
                kind: SpanKind::Client,
                began: now(),
                attributes,
                error: None,
            };
            Some((exporter.clone(), span))
        });
        CallSpan { open, has_chunk: false }
    }

    /// Exports the last spans. Waits for a short time only.
    pub async fn stop(&self) {
        if let Some(exporter) = self.exporter.clone() {
            let stopping = move || exporter.processor.shutdown_with_timeout(LAST_EXPORT_TIMEOUT);
            let stopped = tokio::task::spawn_blocking(stopping).await;
            if !matches!(stopped, Ok(Ok(()))) {
                tracing::warn!("failed to export the last traces");
            }
        }
    }
}

/// The span of a model call. If it is dropped before its end, the call was interrupted.
#[derive(Debug)]
pub struct CallSpan {
    /// What is exported at the end; `None` if it was, or if nothing is exported.
    open: Option<(Arc<Exporter>, Span)>,
    has_chunk: bool,
}

impl CallSpan {
    /// A part of the answer has arrived. Cheap after the first one.
    pub fn chunk_received(&mut self) {
        if !self.has_chunk
            && let Some((_, span)) = &mut self.open
        {
            let waited = now().duration_since(span.began).unwrap_or_default();
            span.attributes.push(KeyValue::new("gen_ai.response.time_to_first_chunk", waited.as_secs_f64()));
        }
        self.has_chunk = true;
    }

    /// The answer is complete. `finish` is the reason that the model has given.
    pub fn completed(mut self, usage: Option<Usage>, finish: Option<&'static str>) {
        if let Some((exporter, mut span)) = self.open.take() {
            span.attributes.extend(usage.into_iter().flat_map(usage_attributes));
            if let Some(finish) = finish {
                let reasons = Value::Array(vec![StringValue::from(finish)].into());
                span.attributes.push(KeyValue::new("gen_ai.response.finish_reasons", reasons));
            }
            exporter.export(span);
        }
    }

    /// The call has failed. `usage` is what the model has reported before.
    pub fn failed(mut self, usage: Option<Usage>, error: &'static str) {
        if let Some((exporter, mut span)) = self.open.take() {
            span.attributes.extend(usage.into_iter().flat_map(usage_attributes));
            exporter.export(Span { error: Some(error), ..span });
        }
    }
}

impl Drop for CallSpan {
    fn drop(&mut self) {
        if let Some((exporter, span)) = self.open.take() {
            exporter.export(Span { error: Some("interrupted"), ..span });
        }
    }
}

/// A span until it is exported.
#[derive(Debug)]
struct Span {
    context: SpanContext,
    parent: SpanId,
    name: Cow<'static, str>,
    kind: SpanKind,
    began: SystemTime,
    attributes: Vec<KeyValue>,
    /// Why it failed.
    error: Option<&'static str>,
}

impl Exporter {
    /// Ends a span, and queues it for the export.
    fn export(&self, span: Span) {
        let Span { context, parent, name, kind, began, mut attributes, error } = span;
        attributes.extend(error.map(|error| KeyValue::new("error.type", error)));
        self.processor.on_end(SpanData {
            span_context: context,
            parent_span_id: parent,
            parent_span_is_remote: false,
            span_kind: kind,
            name,
            start_time: began,
            end_time: now().max(began),
            attributes,
            dropped_attributes_count: 0,
            events: opentelemetry_sdk::trace::SpanEvents::default(),
            links: opentelemetry_sdk::trace::SpanLinks::default(),
            // The description would be a text of the model server.
            status: if error.is_some() { Status::error("") } else { Status::Unset },
            instrumentation_scope: self.scope.clone(),
        });
    }
}

/// The IDs of the trace and the span of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RunIds {
    trace: TraceId,
    span: SpanId,
    /// When the run was created.
    created: SystemTime,
}

impl RunIds {
    /// Returns the IDs that follow from the ID of a run: the trace has the same digits. `None` if it has no time.
    fn of(run: &RunId) -> Option<Self> {
        let uuid = Uuid::try_parse(run.as_str().strip_prefix("run_")?).ok()?;
        let (seconds, nanoseconds) = uuid.get_timestamp()?.to_unix();
        let bytes = *uuid.as_bytes();
        let (_, last) = bytes.split_at(8);
        Some(Self {
            trace: TraceId::from_bytes(bytes),
            span: SpanId::from_bytes(last.try_into().ok()?),
            created: UNIX_EPOCH + Duration::new(seconds, nanoseconds),
        })
    }

    fn run_context(self) -> SpanContext {
        self.context(self.span)
    }

    /// Returns the context of a new span in the trace.
    fn new_context(self) -> SpanContext {
        self.context(SpanId::from_bytes(fastrand::u64(1..).to_be_bytes()))
    }

    fn context(self, span: SpanId) -> SpanContext {
        SpanContext::new(self.trace, span, TraceFlags::SAMPLED, false, TraceState::NONE)
    }
}

fn attributes_of(operation: &'static str, spec: &RunSpec) -> Vec<KeyValue> {
    vec![
        KeyValue::new("gen_ai.operation.name", operation),
        // The API that model servers have.
        KeyValue::new("gen_ai.provider.name", "openai"),
        KeyValue::new("gen_ai.request.model", spec.model.clone()),
        KeyValue::new("gen_ai.conversation.id", spec.thread_id.as_str().to_owned()),
        KeyValue::new("assistd.run.id", spec.id.as_str().to_owned()),
    ]
}

fn usage_attributes(usage: Usage) -> [KeyValue; 3] {
    let count = |name: &'static str, tokens: u32| KeyValue::new(name, i64::from(tokens));
    [
        count("gen_ai.usage.input_tokens", usage.prompt_tokens),
        count("gen_ai.usage.cache_read.input_tokens", usage.prompt_token_details.cached_tokens),
        count("gen_ai.usage.output_tokens", usage.completion_tokens),
    ]
}

fn now() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "receivers of traces compare the times of several programs")]
    SystemTime::now()
}

/// Sends spans to the receiver.
#[derive(Debug)]
struct Client {
    inner: reqwest::Client,
    /// The export runs on a thread without a runtime.
    runtime: Handle,
    /// Whether the last request has failed. Only the first failure of a series is logged.
    is_failing: AtomicBool,
}

impl Client {
    fn new(endpoint: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        // Fails if a provider is already installed, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = reqwest::Url::parse(endpoint)?;
        #[expect(clippy::disallowed_methods, reason = "this client is for the receiver of traces")]
        let mut client = reqwest::Client::builder().timeout(EXPORT_TIMEOUT);
        if is_loopback(url.host_str().unwrap_or_default()) {
            // A proxy cannot reach this machine's loopback.
            client = client.no_proxy();
        }
        Ok(Self { inner: client.build()?, runtime: Handle::try_current()?, is_failing: AtomicBool::new(false) })
    }

    fn report(&self, error: Option<String>) {
        let was_failing = self.is_failing.swap(error.is_some(), Ordering::Relaxed);
        match error {
            Some(error) if !was_failing => tracing::warn!(error, "failed to export traces (otlp_endpoint)"),
            None if was_failing => tracing::info!("traces are exported again"),
            Some(_) | None => {}
        }
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let request = self.inner.request(parts.method, parts.uri.to_string()).headers(parts.headers).body(body);
        let received = self.runtime.spawn(async move {
            // The URL may contain credentials.
            let response = request.send().await.map_err(reqwest::Error::without_url)?;
            let status = response.status();
            Ok::<_, reqwest::Error>((status, response.bytes().await.map_err(reqwest::Error::without_url)?))
        });
        let received = match received.await {
            Ok(received) => received.map_err(HttpError::from),
            Err(error) => Err(error.into()),
        };
        match received {
            Ok((status, bytes)) => {
                self.report((!status.is_success()).then(|| format!("the receiver answered {status}")));
                Ok(Response::builder().status(status).body(bytes)?)
            }
            Err(error) => {
                self.report(Some(error.to_string()));
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_of_a_run_has_the_digits_of_its_id() {
        let ids = RunIds::of(&RunId::from_stored("run_0195d1f2a0b07c3d8e4f5a6b7c8d9e0f")).unwrap();

        assert_eq!(ids.trace.to_string(), "0195d1f2a0b07c3d8e4f5a6b7c8d9e0f");
        assert_eq!(ids.run_context().span_id().to_string(), "8e4f5a6b7c8d9e0f");
        assert_eq!(ids.created.duration_since(UNIX_EPOCH).unwrap().as_millis(), 0x0195_d1f2_a0b0);
        assert_ne!(ids.new_context().span_id(), ids.span);
    }

    #[test]
    fn a_run_with_another_id_has_no_trace() {
        assert_eq!(RunIds::of(&RunId::from_stored("run_imported")), None);
    }

    #[test]
    fn nothing_is_exported_by_default() {
        assert!(Traces::default().exporter.is_none());
    }
}
