//! The HTTP client: sends requests, retries them, enforces timeouts, and reads the answers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use percent_encoding::percent_decode_str;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};

use super::adapt::{Adaptations, RequestBody};
use super::answer::{AnswerReader, End, Failure};
use super::learned::Learned;
use super::mask::Mask;
use super::models;
use super::report::Report;
use super::visible::ThinkTags;
use crate::host::{is_local, is_loopback};
use crate::llm::{
    Cause, ChatDelta, ChatModel, ChatRequest, ChatStream, Endpoint, Error, ModelObject, Proxied, lenient,
};
use crate::metrics::{Metrics, UpstreamError};

/// Initial backoff before a retry; doubled for each further retry, and shortened by up to a half at random, so that
/// clients do not retry at the same time.
const BACK_OFF: Duration = Duration::from_millis(500);
/// Maximum backoff before a retry, even if the server requests more, because a run has a deadline.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// Maximum size of a body that is not a stream, in bytes: a list, an error.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Timeout of listing the models of a server.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of the usage and the end of the stream after the finish reason, since some servers keep the connection open.
const FINISHED_TIMEOUT: Duration = Duration::from_secs(1);
/// The same after a finish reason that came with content: more content may follow.
const DOUBTFUL_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum length of a server's error text in our errors, in characters.
const REPORT_CHARS_MAX: usize = 500;
/// Maximum length of other texts of a server in our errors, in characters.
const SHOWN_CHARS_MAX: usize = 200;

/// Maximum length of an error code in the log, in bytes.
const IDENTIFIER_BYTES_MAX: usize = 64;

/// The parameter that asks for the usage of a stream.
const STREAM_OPTIONS: &str = "stream_options";

/// Timeouts, retries and reading of requests to a model server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Connect timeout.
    pub connect_timeout: Duration,
    /// Timeout from the request to the first byte of the response body.
    pub first_byte_timeout: Duration,
    /// Timeout between two reads of the body.
    pub idle_timeout: Duration,
    /// Maximum number of retries after a 429, a 5xx or a connection error, before the first byte.
    pub retries: u32,
    /// Handling of thinking in the text.
    pub think_tags: ThinkTags,
}

/// One model server.
#[derive(Debug, Clone)]
pub struct Upstream {
    client: reqwest::Client,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    urls: Urls,
    api_key: Option<SecretString>,
    /// User name and password of the URL, which are sent if there is no key.
    basic: Option<(SecretString, SecretString)>,
    mask: Mask,
    is_openai: bool,
    is_local: bool,
    settings: Settings,
    metrics: Arc<Metrics>,
    learned: Learned,
}

/// The URLs of the endpoints. They may contain credentials.
#[derive(Debug)]
struct Urls {
    chat_completions: SecretString,
    embeddings: SecretString,
    models: SecretString,
}

impl Urls {
    fn new(base_url: &str) -> Self {
        let url = |path: &str| -> SecretString {
            let Ok(mut url) = Url::parse(base_url) else { return format!("{base_url}/{path}").into() };
            // They are sent in a header.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            if let Ok(mut segments) = url.path_segments_mut() {
                segments.pop_if_empty().extend(path.split('/'));
            }
            String::from(url).into()
        };
        Self { chat_completions: url("chat/completions"), embeddings: url("embeddings"), models: url("models") }
    }
}

impl Upstream {
    /// Creates the client for a server. The base URL ends in `/v1`, as in the SDKs. The name appears in errors and in the
    /// log in place of the URL; it is empty for the only server. Failed requests are counted in `metrics`.
    ///
    /// # Panics
    /// If the system's TLS roots cannot be loaded.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        base_url: &str,
        api_key: Option<SecretString>,
        settings: Settings,
        metrics: Arc<Metrics>,
    ) -> Self {
        // Fails if a provider is already installed, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = Url::parse(base_url).ok();
        let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
        #[expect(clippy::disallowed_methods, reason = "the only place that creates clients for model servers")]
        let mut client = reqwest::Client::builder()
            .connect_timeout(settings.connect_timeout)
            .pool_max_idle_per_host(usize::MAX)
            // A redirect would send the prompt to another host.
            .redirect(reqwest::redirect::Policy::none());
        if is_loopback(host) {
            // A proxy cannot reach this machine's loopback.
            client = client.no_proxy();
        }
        let client = client.build().expect("the client settings are valid");
        let basic = url.as_ref().filter(|url| !url.username().is_empty() || url.password().is_some()).map(|url| {
            let decode = |text: &str| SecretString::from(percent_decode_str(text).decode_utf8_lossy().into_owned());
            (decode(url.username()), decode(url.password().unwrap_or_default()))
        });
        let mask = Mask::new(base_url, url.as_ref(), api_key.as_ref());
        let is_openai = ["openai.com", "openai.azure.com"].iter().any(|known| host.ends_with(known));
        let inner = Inner {
            name: name.into(),
            urls: Urls::new(base_url),
            api_key,
            basic,
            mask,
            is_openai,
            is_local: is_local(host),
            settings,
            metrics,
            learned: Learned::default(),
        };
        Self { client, inner: Arc::new(inner) }
    }

    fn authorize(&self, request: RequestBuilder) -> RequestBuilder {
        match (&self.inner.api_key, &self.inner.basic) {
            (Some(key), _) => request.bearer_auth(key.expose_secret()),
            (None, Some((user, password))) => request.basic_auth(user.expose_secret(), Some(password.expose_secret())),
            (None, None) => request,
        }
    }

    /// Sends a chat request until an answer starts, or the request fails permanently. Omits what the server rejects.
    ///
    /// The prompt is in memory only as the JSON body, which is dropped on return.
    async fn open(&self, request: ChatRequest) -> Result<OpenAnswer, Error> {
        let model = request.model.clone();
        let known = self.inner.learned.get(&model);
        let mut body = RequestBody::new(request, self.inner.is_openai, known.clone());
        let mut backoff = Backoff::new(self.inner.settings.retries);
        loop {
            let answer = self.send(Endpoint::ChatCompletions, body.json(), &mut backoff).await?;
            let status = answer.response.status().as_u16();
            let is_started = answer.response.status().is_success();
            let mut requested_pause = None;
            let report = if is_started {
                match self.start(answer).await {
                    Ok(answer) => {
                        let learned = (*body.adaptations() != known).then(|| (model, body.adaptations().clone()));
                        return Ok(OpenAnswer { learned, ..answer });
                    }
                    Err(Failure::Reported(report)) => report,
                    Err(failure @ (Failure::Invalid(_) | Failure::NotAnAnswer(..))) => {
                        return Err(self.failed_answer(failure));
                    }
                }
            } else {
                requested_pause = retry_after(answer.response.headers());
                self.read_report(answer).await
            };
            if !report.is_rate_limit()
                && let Some(change) = body.adapt(&report)
            {
                tracing::info!(server = self.name(), model, %change, "the model server rejected a part of a request");
                continue;
            }
            if is_started {
                return Err(self.failed_answer(Failure::Reported(report)));
            }
            if is_retryable(status)
                && let Some(pause) = backoff.next(requested_pause)
            {
                self.wait(pause).await;
                continue;
            }
            return Err(self.rejected(&report));
        }
    }

    /// Reads an answer until its first event, or a whole JSON value: a server may reject the request in it.
    async fn start(&self, answer: Answer) -> Result<OpenAnswer, Failure> {
        let Answer { mut response, first } = answer;
        let mut reader = AnswerReader::new(self.inner.settings.think_tags);
        let mut deltas = Vec::new();
        let mut next = first;
        while let Some(bytes) = next {
            let pushed = reader.push(&bytes, &mut deltas);
            if pushed.is_err() {
                reader.release_text(&mut deltas);
            }
            if let Some(report) = reader.reported_error() {
                return Err(Failure::Reported(report));
            }
            match pushed {
                Err(failure) if deltas.is_empty() => return Err(failure),
                Err(failure) => {
                    return Ok(OpenAnswer { response, reader, deltas, failure: Some(failure), learned: None });
                }
                Ok(()) if reader.has_started() => break,
                Ok(()) => {}
            }
            let idle = self.inner.settings.idle_timeout;
            next = match tokio::time::timeout(idle, response.chunk()).await {
                Ok(Ok(next)) => next,
                Ok(Err(error)) => return Err(Failure::Invalid(self.broken(&error))),
                Err(_) => return Err(Failure::Invalid(self.stalled())),
            };
        }
        Ok(OpenAnswer { response, reader, deltas, failure: None, learned: None })
    }

    /// Serializes a request that is forwarded. If it is for a stream without usage, asks for the usage as well, unless the
    /// model is known to reject that.
    fn forwarded_body(&self, endpoint: Endpoint, mut request: Map<String, Value>) -> ForwardedBody {
        let is_stream = endpoint == Endpoint::ChatCompletions && request.get("stream") == Some(&Value::Bool(true));
        let options = request.get(STREAM_OPTIONS);
        let is_valid = options.is_none_or(|options| options.is_object() || options.is_null());
        let has_usage = options.is_some_and(|options| options["include_usage"] == true);
        let model = request.get("model").and_then(Value::as_str).unwrap_or_default();
        let adds_usage = is_stream && is_valid && !has_usage && !self.inner.learned.get(model).omits(STREAM_OPTIONS);
        let mut client_options = None;
        if adds_usage {
            let mut options = options.and_then(Value::as_object).cloned().unwrap_or_default();
            options.insert("include_usage".to_owned(), Value::Bool(true));
            client_options = request.insert(STREAM_OPTIONS.to_owned(), Value::Object(options));
        }
        let json = serde_json::to_vec(&request).expect("a JSON object serializes").into();
        ForwardedBody { json, adds_usage, client_options }
    }

    /// Forwards a request, and repeats it without what we have added if the server rejects that.
    async fn forward(&self, endpoint: Endpoint, body: ForwardedBody) -> Result<Proxied, Error> {
        let mut backoff = Backoff::new(self.inner.settings.retries);
        let answer = loop {
            let answer = self.send(endpoint, body.json.clone(), &mut backoff).await?;
            let pause = if is_retryable(answer.response.status().as_u16()) {
                backoff.next(retry_after(answer.response.headers()))
            } else {
                None
            };
            match pause {
                Some(pause) => {
                    drop(answer);
                    self.wait(pause).await;
                }
                None => break answer,
            }
        };
        let status = answer.response.status();
        if status.is_redirection() {
            let report = self.read_report(answer).await;
            return Err(self.rejected(&report));
        }
        let header = |name: &HeaderName| {
            answer.response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let (content_type, retry_after) = (header(&CONTENT_TYPE), header(&RETRY_AFTER));
        let idle = self.inner.settings.idle_timeout;
        if !status.is_success() {
            let text = answer.text(idle).await;
            if let Some(request) = body.without_added_usage().filter(|_| rejects_stream_options(status.as_u16(), &text))
            {
                let model = request.get("model").and_then(Value::as_str).unwrap_or_default().to_owned();
                tracing::info!(server = self.name(), model, "the model server rejected stream_options");
                self.inner.learned.store(&model, &self.inner.learned.get(&model).omitting(STREAM_OPTIONS));
                let json = serde_json::to_vec(&request).expect("a JSON object serializes").into();
                return Box::pin(
                    self.forward(endpoint, ForwardedBody { json, adds_usage: false, client_options: None }),
                )
                .await;
            }
            let body = futures_util::stream::iter([Ok(Bytes::from(self.inner.mask.apply(&text)))]).boxed();
            let status = status.as_u16();
            return Ok(Proxied { status, content_type, retry_after, is_stream: false, usage_was_added: false, body });
        }
        let usage_was_added = body.adds_usage;
        drop(body);
        let is_stream = is_event_stream(content_type.as_deref(), answer.first.as_deref().unwrap_or_default());
        let upstream = self.clone();
        let body = async_stream::stream! {
            let mut bytes = std::pin::pin!(answer.into_bytes());
            // The end of a stream is checked like the end of a run's answer. The content is forwarded unchanged.
            let mut reader = AnswerReader::new(ThinkTags::Keep);
            let mut is_readable = is_stream;
            loop {
                let timeout = if is_stream { end_timeout(&reader, idle) } else { Some(idle) };
                let Some(timeout) = timeout else { return };
                match tokio::time::timeout(timeout, bytes.next()).await {
                    Ok(Some(Ok(bytes))) => {
                        is_readable = is_readable && reader.push(&bytes, &mut Vec::new()).is_ok();
                        yield Ok(upstream.inner.mask.apply_to_bytes(bytes));
                    }
                    Ok(None) => break,
                    Err(_) | Ok(Some(Err(_))) if reader.has_finish() => return,
                    Ok(Some(Err(error))) => {
                        yield Err(upstream.interrupted(&upstream.broken(&error)));
                        return;
                    }
                    Err(_) => {
                        yield Err(upstream.interrupted(&upstream.stalled()));
                        return;
                    }
                }
            }
            if is_readable && let Err(failure) = reader.end(&mut Vec::new()) {
                yield Err(upstream.failed_answer(failure));
            }
        };
        Ok(Proxied {
            status: status.as_u16(),
            content_type,
            retry_after,
            is_stream,
            usage_was_added,
            body: body.boxed(),
        })
    }

    fn broken(&self, error: &reqwest::Error) -> String {
        format!("closed the connection during its answer: {}", self.cause(error))
    }

    fn stalled(&self) -> String {
        let seconds = self.inner.settings.idle_timeout.as_secs();
        format!("sent nothing more for {seconds} s (upstream_idle_timeout_s)")
    }

    /// Posts a JSON body, and returns the answer with its first bytes, whatever its status. Retries connection errors.
    async fn send(&self, endpoint: Endpoint, body: Bytes, backoff: &mut Backoff) -> Result<Answer, Error> {
        let settings = &self.inner.settings;
        let url = match endpoint {
            Endpoint::ChatCompletions => &self.inner.urls.chat_completions,
            Endpoint::Embeddings => &self.inner.urls.embeddings,
        };
        loop {
            let request = self.client.post(url.expose_secret()).header(CONTENT_TYPE, "application/json");
            let request = self.authorize(request).body(body.clone());
            match tokio::time::timeout(settings.first_byte_timeout, first_bytes(request)).await {
                Err(_) => {
                    self.count(UpstreamError::Timeout);
                    let seconds = settings.first_byte_timeout.as_secs();
                    return Err(
                        self.unavailable(&format!("sent nothing for {seconds} s (upstream_first_byte_timeout_s)"))
                    );
                }
                Ok(Ok(answer)) => {
                    let status = answer.response.status();
                    if !status.is_success() {
                        self.count(UpstreamError::Status(status.as_u16()));
                    }
                    return Ok(answer);
                }
                Ok(Err(error)) => {
                    self.count(UpstreamError::Connection);
                    match backoff.next(None) {
                        Some(pause) => self.wait(pause).await,
                        None => return Err(self.unreachable(&error)),
                    }
                }
            }
        }
    }

    fn count(&self, error: UpstreamError) {
        self.inner.metrics.upstream_failed(self.name(), error);
    }

    async fn wait(&self, pause: Duration) {
        tracing::debug!(server = self.name(), ?pause, "retrying a request to a model server");
        tokio::time::sleep(pause).await;
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        let cause = self.cause(error);
        self.unavailable(&format!(
            "cannot be reached: {cause}. Check that it runs and that its URL in the settings is correct"
        ))
    }

    /// Returns the innermost cause of an error, which does not contain the URL.
    fn cause(&self, error: &reqwest::Error) -> String {
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        self.inner.mask.apply(&cause.to_string())
    }

    /// Returns the error "The model server … `predicate`."
    fn unavailable(&self, predicate: &str) -> Error {
        Error::Unavailable(format!("{} {predicate}.", self.subject()).into())
    }

    /// Returns the error of an answer that has started and does not continue.
    fn interrupted(&self, predicate: &str) -> Error {
        self.count(UpstreamError::Answer);
        self.unavailable(predicate)
    }

    /// Returns "The model server", with its name.
    #[must_use]
    pub fn subject(&self) -> String {
        match self.inner.name.as_str() {
            "" => "The model server".to_owned(),
            name => format!("The model server \"{name}\""),
        }
    }

    /// Returns the error of an answer that has started.
    fn failed_answer(&self, failure: Failure) -> Error {
        self.count(UpstreamError::Answer);
        match failure {
            Failure::Invalid(predicate) => {
                let predicate = self.inner.mask.apply(&predicate);
                let text = format!("{} {predicate}.", self.subject());
                let for_log = format!("{} {}.", self.subject(), without_quotations(&predicate));
                Error::Unavailable(Cause { text, for_log, status: None })
            }
            Failure::NotAnAnswer(predicate, text) => {
                let shown: String = self.inner.mask.apply(&text).chars().take(SHOWN_CHARS_MAX).collect();
                let text = format!("{} {predicate}: {shown}.", self.subject());
                let for_log = format!("{} {predicate}.", self.subject());
                Error::Unavailable(Cause { text, for_log, status: None })
            }
            Failure::Reported(report) => {
                let text = format!("{} failed during its answer: {}", self.subject(), self.reported(&report));
                let for_log = format!("{} failed during its answer{}", self.subject(), codes(&report));
                let status = (report.status > 0).then_some(report.status);
                let cause = Cause { text, for_log, status };
                match report.status {
                    _ if report.is_rate_limit() => Error::RateLimited(cause),
                    400..500 => Error::Rejected(cause),
                    _ => Error::Unavailable(cause),
                }
            }
        }
    }

    /// Reads the error that a response with an error status reports.
    async fn read_report(&self, answer: Answer) -> Report {
        let status = answer.response.status();
        if status.is_redirection() {
            let message = "a redirect, which is not followed. Check that its URL in the settings is correct";
            return Report { status: status.as_u16(), ..Report::new(message) };
        }
        Report::of_response(status.as_u16(), &answer.text(self.inner.settings.idle_timeout).await)
    }

    /// Returns the error of a response with an error status.
    fn rejected(&self, report: &Report) -> Error {
        let text = format!("{} answered {}: {}", self.subject(), report.status, self.reported(report));
        let for_log = format!("{} answered {}{}", self.subject(), report.status, codes(report));
        let cause = Cause { text, for_log, status: Some(report.status) };
        match report.status {
            429 => Error::RateLimited(cause),
            500.. => Error::Unavailable(cause),
            _ => Error::Rejected(cause),
        }
    }

    /// Returns the text of a reported error: masked, then truncated, so that no part of a secret is left.
    fn reported(&self, report: &Report) -> String {
        let text = self.inner.mask.apply(report.message.trim());
        if text.is_empty() { "no message".to_owned() } else { text.chars().take(REPORT_CHARS_MAX).collect() }
    }
}

/// Returns the codes of an error in parentheses, for the log: those that are identifiers, because others may be texts.
fn codes(report: &Report) -> String {
    let codes: Vec<&str> = report.codes.iter().map(String::as_str).filter(|code| is_identifier(code)).take(3).collect();
    if codes.is_empty() { String::new() } else { format!(" ({})", codes.join(", ")) }
}

/// Returns a text without the words in quotation marks that are not identifiers, because a server wrote them.
fn without_quotations(text: &str) -> String {
    let parts = text.split('"').enumerate();
    let parts: Vec<&str> =
        parts.map(|(index, part)| if index % 2 == 0 || is_identifier(part) { part } else { "…" }).collect();
    parts.join("\"")
}

fn is_identifier(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (1..=IDENTIFIER_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_part)
}

/// The body of a request that is forwarded.
struct ForwardedBody {
    json: Bytes,
    /// Whether we ask for the usage, and the client does not.
    adds_usage: bool,
    /// The `stream_options` of the client.
    client_options: Option<Value>,
}

impl ForwardedBody {
    /// Returns the request of the client, if we have asked for the usage.
    fn without_added_usage(&self) -> Option<Map<String, Value>> {
        if !self.adds_usage {
            return None;
        }
        let mut request: Map<String, Value> = serde_json::from_slice(&self.json).ok()?;
        match &self.client_options {
            Some(options) => request.insert(STREAM_OPTIONS.to_owned(), options.clone()),
            None => request.remove(STREAM_OPTIONS),
        };
        Some(request)
    }
}

/// Returns whether an error says that the server does not support `stream_options`.
fn rejects_stream_options(status: u16, text: &str) -> bool {
    let names = [STREAM_OPTIONS, "streamOptions", "include_usage"];
    matches!(status, 400..500) && status != 429 && names.iter().any(|name| text.contains(name))
}

/// An answer that has started.
struct OpenAnswer {
    response: Response,
    reader: AnswerReader,
    /// The deltas so far.
    deltas: Vec<ChatDelta>,
    /// The error after the deltas.
    failure: Option<Failure>,
    /// The model and the changes of its request, which are stored when the answer has content.
    learned: Option<(String, Adaptations)>,
}

/// The pauses before the retries of one request.
struct Backoff {
    retries: u32,
    attempt: u32,
}

impl Backoff {
    fn new(retries: u32) -> Self {
        Self { retries, attempt: 0 }
    }

    /// Returns the pause before the next retry: at least what the server requested, and at most [`BACK_OFF_MAX`].
    /// Returns `None` if no retries are left.
    fn next(&mut self, requested: Option<Duration>) -> Option<Duration> {
        if self.attempt >= self.retries {
            return None;
        }
        let pause = match requested {
            Some(requested) => requested.mul_f64(1.0 + fastrand::f64() / 10.0),
            None => (BACK_OFF * 2_u32.saturating_pow(self.attempt)).mul_f64(0.5 + fastrand::f64() / 2.0),
        };
        self.attempt += 1;
        Some(pause.min(BACK_OFF_MAX))
    }
}

/// A response and the first bytes of its body, after which the answer has started.
struct Answer {
    response: Response,
    first: Option<Bytes>,
}

async fn first_bytes(request: RequestBuilder) -> Result<Answer, reqwest::Error> {
    let mut response = request.send().await?;
    let first = response.chunk().await?;
    Ok(Answer { response, first })
}

impl Answer {
    fn into_bytes(self) -> impl Stream<Item = Result<Bytes, reqwest::Error>> {
        futures_util::stream::iter(self.first.map(Ok)).chain(self.response.bytes_stream())
    }

    /// Reads the body up to `BODY_BYTES_MAX`, or until nothing arrives for `idle`.
    async fn text(self, idle: Duration) -> String {
        let mut bytes = Vec::new();
        let mut stream = std::pin::pin!(self.into_bytes());
        while let Ok(Some(Ok(more))) = tokio::time::timeout(idle, stream.next()).await {
            bytes.extend_from_slice(&more);
            if bytes.len() > BODY_BYTES_MAX {
                break;
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Returns how long the next bytes of an answer may take; `None` if nothing follows.
fn end_timeout(reader: &AnswerReader, idle: Duration) -> Option<Duration> {
    match reader.state() {
        End::Complete => None,
        End::Finished => Some(idle.min(FINISHED_TIMEOUT)),
        End::Doubtful => Some(idle.min(DOUBTFUL_TIMEOUT)),
        End::Open => Some(idle),
    }
}

/// Returns whether a body is an event stream: by its first bytes, or by its content type.
fn is_event_stream(content_type: Option<&str>, first: &[u8]) -> bool {
    let start = first.trim_ascii_start();
    let is_type = content_type.is_some_and(|kind| kind.starts_with("text/event-stream"));
    [&b"data:"[..], b"event:", b"id:", b"retry:", b":"].iter().any(|field| start.starts_with(field))
        || is_type && !start.starts_with(b"{") && !start.starts_with(b"[")
}

/// Whether a retry may succeed.
fn is_retryable(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..)
}

/// Returns the delay that a server requests: in milliseconds, in seconds, or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(milliseconds) = text("retry-after-ms").and_then(|text| text.trim().parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(milliseconds / 1000.0).ok();
    }
    let after = text(RETRY_AFTER.as_str())?.trim();
    if let Ok(seconds) = after.parse::<f64>() {
        Duration::try_from_secs_f64(seconds).ok()
    } else {
        let date = httpdate::parse_http_date(after).ok()?;
        #[expect(clippy::disallowed_methods, reason = "the header has a wall-clock time; only the difference is used")]
        let now = SystemTime::now();
        Some(date.duration_since(now).unwrap_or_default())
    }
}

#[async_trait]
impl ChatModel for Upstream {
    fn chat(&self, request: ChatRequest) -> ChatStream {
        let upstream = self.clone();
        async_stream::stream! {
            let OpenAnswer { response, mut reader, mut deltas, failure, mut learned } = match upstream.open(request).await {
                Ok(answer) => answer,
                Err(error) => {
                    yield Err(error);
                    return;
                }
            };
            let idle = upstream.inner.settings.idle_timeout;
            let mut bytes = std::pin::pin!(response.bytes_stream());
            let mut failure = failure.map(|failure| upstream.failed_answer(failure));
            loop {
                if failure.is_some() {
                    reader.release_text(&mut deltas);
                }
                if let Some((model, adaptations)) = learned.take_if(|_| failure.is_none() && !deltas.is_empty()) {
                    upstream.inner.learned.store(&model, &adaptations);
                }
                if !deltas.is_empty() {
                    yield Ok(std::mem::take(&mut deltas));
                }
                if let Some(error) = failure {
                    yield Err(error);
                    return;
                }
                let Some(timeout) = end_timeout(&reader, idle) else { break };
                match tokio::time::timeout(timeout, bytes.next()).await {
                    Ok(None) => break,
                    Ok(Some(Ok(bytes))) => {
                        failure = reader.push(&bytes, &mut deltas).err().map(|failure| upstream.failed_answer(failure));
                    }
                    // The answer is complete, although the body is not.
                    Err(_) | Ok(Some(Err(_))) if reader.has_finish() => break,
                    Err(_) => failure = Some(upstream.interrupted(&upstream.stalled())),
                    Ok(Some(Err(error))) => failure = Some(upstream.interrupted(&upstream.broken(&error))),
                }
            }
            if let Some(reason) = reader.unknown_finish() {
                let reason = if is_identifier(reason) { upstream.inner.mask.apply(reason) } else { "…".to_owned() };
                tracing::warn!(server = upstream.name(), reason, "an answer has an unknown finish reason");
            }
            let ended = reader.end(&mut deltas);
            if let Some((model, adaptations)) = learned.filter(|_| ended.is_ok()) {
                upstream.inner.learned.store(&model, &adaptations);
            }
            if !deltas.is_empty() {
                yield Ok(deltas);
            }
            if let Err(failure) = ended {
                yield Err(upstream.failed_answer(failure));
            }
        }
        .boxed()
    }

    async fn proxy(&self, endpoint: Endpoint, request: Map<String, Value>) -> Result<Proxied, Error> {
        self.forward(endpoint, self.forwarded_body(endpoint, request)).await
    }

    async fn list(&self) -> Result<Vec<ModelObject>, Error> {
        let request = self.authorize(self.client.get(self.inner.urls.models.expose_secret())).timeout(LIST_TIMEOUT);
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let answer = Answer { response, first: None };
        if !answer.response.status().is_success() {
            let report = self.read_report(answer).await;
            return Err(self.rejected(&report));
        }
        let body = answer.text(LIST_TIMEOUT).await;
        let models = lenient::parse(&body).as_ref().and_then(models::read);
        models.ok_or_else(|| {
            self.unavailable(
                "answered with something other than a list of models. Check that its URL in the settings is correct",
            )
        })
    }

    fn name(&self) -> &str {
        match self.inner.name.as_str() {
            "" => "upstream_url",
            name => name,
        }
    }

    fn is_local(&self) -> bool {
        self.inner.is_local
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn settings() -> Settings {
        let second = Duration::from_secs(5);
        Settings {
            connect_timeout: second,
            first_byte_timeout: second,
            idle_timeout: second,
            retries: 0,
            think_tags: ThinkTags::Strip,
        }
    }

    #[test]
    fn retry_after_is_parsed_as_milliseconds_seconds_or_a_date() {
        let headers = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
        };

        assert_eq!(retry_after(&headers("retry-after-ms", "250")), Some(Duration::from_millis(250)));
        assert_eq!(retry_after(&headers("retry-after", "1.5")), Some(Duration::from_millis(1500)));
        assert_eq!(retry_after(&headers("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")), Some(Duration::ZERO));
        for invalid in ["soon", "-1", "NaN", ""] {
            assert_eq!(retry_after(&headers("retry-after", invalid)), None, "{invalid}");
        }
    }

    #[test]
    fn pauses_grow_differ_and_are_bounded() {
        let mut backoff = Backoff::new(12);
        let pauses: Vec<Duration> = std::iter::from_fn(|| backoff.next(None)).collect();

        assert_eq!(pauses.len(), 12);
        for (pause, attempt) in pauses.iter().zip(0_u32..) {
            let longest = (BACK_OFF * 2_u32.pow(attempt)).min(BACK_OFF_MAX);
            assert!(*pause <= longest && *pause >= longest.mul_f64(0.5).min(BACK_OFF_MAX), "{attempt}: {pause:?}");
        }
        let mut backoff = Backoff::new(2);
        assert!(backoff.next(Some(Duration::from_secs(2))).unwrap() >= Duration::from_secs(2));
        assert_eq!(backoff.next(Some(Duration::from_hours(1))), Some(BACK_OFF_MAX));
    }

    #[test]
    fn a_server_does_not_show_its_key_or_its_address() {
        let url = "http://user:secret@10.1.2.3:8000/v1?token=secret";
        let upstream = Upstream::new("gpu", url, Some("sk-secret".into()), settings(), Arc::default());

        let shown = format!("{upstream:?}");
        assert!(!shown.contains("secret") && !shown.contains("10.1.2.3"), "{shown}");
        let masked =
            upstream.inner.mask.apply("the key sk-secret is not known at http://10.1.2.3:8000/v1?token=secret");
        assert_eq!(masked, "the key *** is not known at http://***/v1?***");
    }

    #[test]
    fn every_form_of_a_secret_is_masked_before_a_text_is_truncated() {
        let url = "http://USER:pa%2Fss%40W0RD77@127.0.0.1:1/SECRETPATHTOKEN/v1?key=QUERYKEY#FRAGMENT";
        let upstream = Upstream::new("", url, Some("sk-TOP/SECRET".into()), settings(), Arc::default());

        for text in [
            "USER",
            "pa%2Fss%40W0RD77",
            "pa/ss@W0RD77",
            "VVNFUjpwYS9zc0BXMFJENzc=",
            "SECRETPATHTOKEN",
            "QUERYKEY",
            "FRAGMENT",
            "sk-TOP%2FSECRET",
            "sk-TOP\\/SECRET",
        ] {
            assert_eq!(upstream.inner.mask.apply(&format!("({text})")), "(***)", "{text}");
        }
        let long = Report::new(format!("{}sk-TOP/SECRET", "x".repeat(REPORT_CHARS_MAX - 4)));
        assert!(!upstream.reported(&long).contains("sk"));
    }

    #[test]
    fn the_path_of_an_endpoint_is_added_before_the_query() {
        let urls = |base: &str| Urls::new(base).chat_completions.expose_secret().to_owned();

        assert_eq!(urls("http://h:1/v1/"), "http://h:1/v1/chat/completions");
        assert_eq!(urls("http://h/v1?api-version=2"), "http://h/v1/chat/completions?api-version=2");
    }

    /// Bytes whose release can be observed.
    struct Tracked(Arc<Vec<u8>>);

    impl AsRef<[u8]> for Tracked {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    #[tokio::test]
    async fn the_body_of_a_request_is_released_when_the_answer_starts() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let server = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\"end\"}") {
                assert_ne!(socket.read_buf(&mut request).await.unwrap(), 0, "the connection closed during the request");
            }
            let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\ndata\r\n";
            socket.write_all(head).await.unwrap();
            socket
        };
        let upstream = Upstream::new("", &url, None, settings(), Arc::default());
        let prompt = format!("{{\"{}\":\"end\"}}", "x".repeat(1024 * 1024)).into_bytes();
        let owner = Arc::new(prompt);
        let released: Weak<Vec<u8>> = Arc::downgrade(&owner);

        let body = Bytes::from_owner(Tracked(owner));
        let mut backoff = Backoff::new(0);
        let (answer, _socket) = tokio::join!(upstream.send(Endpoint::ChatCompletions, body, &mut backoff), server);

        let answer = answer.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(answer.first.as_deref(), Some(b"data".as_slice()));
        assert_eq!(released.strong_count(), 0, "the request body is still in memory after the answer started");
    }
}
