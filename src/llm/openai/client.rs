//! The HTTP client: sends requests, retries them, enforces timeouts, and reads the answers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};

use super::adapt::RequestBody;
use super::answer::{AnswerReader, Failure};
use super::learned::Learned;
use super::models;
use super::report::Report;
use super::visible::ThinkTags;
use crate::llm::{ChatDelta, ChatModel, ChatRequest, ChatStream, Endpoint, Error, ModelObject, Proxied, lenient};

/// Initial backoff before a retry; doubled for each further retry, and shortened by up to a half at random, so that
/// clients do not retry at the same time.
const BACK_OFF: Duration = Duration::from_millis(500);
/// Maximum backoff before a retry, even if the server requests more, because a run has a deadline.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// Maximum size of a body that is not a stream, in bytes: a list, an error.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Timeout of listing the models of a server.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the usage and the end of the stream may take after the finish reason; some servers keep the connection open.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// Replaces secrets and addresses in the texts of servers.
const MASK: &str = "***";

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
    /// What happens to thinking in the text.
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
    /// What must not appear in texts that clients see: the key, the address, the password in the URL.
    hidden: Vec<SecretString>,
    is_openai: bool,
    settings: Settings,
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
    /// log in place of the URL; it is empty for the only server.
    ///
    /// # Panics
    /// If the system's TLS roots cannot be loaded.
    #[must_use]
    pub fn new(name: impl Into<String>, base_url: &str, api_key: Option<SecretString>, settings: Settings) -> Self {
        // Fails if a provider is already installed, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = Url::parse(base_url).ok();
        let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
        #[expect(clippy::disallowed_methods, reason = "the only place that creates clients for model servers")]
        let mut client = reqwest::Client::builder()
            .connect_timeout(settings.connect_timeout)
            .pool_max_idle_per_host(usize::MAX)
            // A redirect would carry the prompt to another host.
            .redirect(reqwest::redirect::Policy::none());
        if is_loopback(host) {
            // A proxy cannot reach this machine's loopback.
            client = client.no_proxy();
        }
        let client = client.build().expect("the client settings are valid");
        let mut hidden: Vec<SecretString> = vec![base_url.trim_end_matches('/').into()];
        hidden.extend(url.as_ref().and_then(Url::password).map(SecretString::from));
        let port = url.as_ref().and_then(Url::port).map(|port| format!(":{port}"));
        hidden.extend(port.map(|port| format!("{host}{port}").into()));
        hidden.extend(api_key.clone());
        // One may contain another.
        hidden.sort_by_key(|secret| std::cmp::Reverse(secret.expose_secret().len()));
        let is_openai = ["openai.com", "openai.azure.com"].iter().any(|known| host.ends_with(known));
        let inner = Inner {
            name: name.into(),
            urls: Urls::new(base_url),
            api_key,
            hidden,
            is_openai,
            settings,
            learned: Learned::default(),
        };
        Self { client, inner: Arc::new(inner) }
    }

    fn authorize(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.inner.api_key {
            Some(key) => request.bearer_auth(key.expose_secret()),
            None => request,
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
                let mut reader = AnswerReader::new(self.inner.settings.think_tags);
                let first = reader.push(answer.first.as_deref().unwrap_or_default());
                match (first, reader.reported_error()) {
                    (Ok(_), Some(report)) | (Err(Failure::Reported(report)), _) => report,
                    (Ok(deltas), None) => {
                        if *body.adaptations() != known {
                            self.inner.learned.store(&model, body.adaptations());
                        }
                        return Ok(OpenAnswer { response: answer.response, reader, deltas });
                    }
                    (Err(failure @ Failure::Invalid(_)), _) => return Err(self.failed_answer(failure)),
                }
            } else {
                requested_pause = retry_after(answer.response.headers());
                self.read_report(answer).await
            };
            if !report.is_rate_limit()
                && let Some(change) = body.adapt(&report)
            {
                tracing::info!(server = self.inner.name, model, %change, "the model server rejected a part of a request");
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
                    let seconds = settings.first_byte_timeout.as_secs();
                    return Err(
                        self.unavailable(&format!("sent nothing for {seconds} s (upstream_first_byte_timeout_s)"))
                    );
                }
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => match backoff.next(None) {
                    Some(pause) => self.wait(pause).await,
                    None => return Err(self.unreachable(&error)),
                },
            }
        }
    }

    async fn wait(&self, pause: Duration) {
        tracing::debug!(server = self.inner.name, ?pause, "retrying a request to a model server");
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
        self.masked(&cause.to_string())
    }

    /// Returns the error "The model server … `predicate`."
    fn unavailable(&self, predicate: &str) -> Error {
        Error::Unavailable(format!("{} {predicate}.", self.subject()))
    }

    /// Returns "The model server", with its name.
    fn subject(&self) -> String {
        match self.inner.name.as_str() {
            "" => "The model server".to_owned(),
            name => format!("The model server \"{name}\""),
        }
    }

    /// Returns the error of an answer that has started.
    fn failed_answer(&self, failure: Failure) -> Error {
        match failure {
            Failure::Invalid(predicate) => self.unavailable(&self.masked(&predicate)),
            Failure::Reported(report) => {
                let text = format!("{} failed during its answer: {}", self.subject(), self.masked(&report.text()));
                match report.status {
                    _ if report.is_rate_limit() => Error::RateLimited(text),
                    400..500 => Error::Rejected(text),
                    _ => Error::Unavailable(text),
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
        let text = format!("{} answered {}: {}", self.subject(), report.status, self.masked(&report.text()));
        match report.status {
            429 => Error::RateLimited(text),
            500.. => Error::Unavailable(text),
            _ => Error::Rejected(text),
        }
    }

    /// Replaces the key and the address of the server in a text.
    fn masked(&self, text: &str) -> String {
        let hidden = self.inner.hidden.iter().map(SecretString::expose_secret).filter(|secret| !secret.is_empty());
        hidden.fold(text.to_owned(), |text, secret| text.replace(secret, MASK))
    }
}

/// An answer that has started.
struct OpenAnswer {
    response: Response,
    reader: AnswerReader,
    /// The deltas of its first bytes.
    deltas: Vec<ChatDelta>,
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

    /// Returns the pause before the next retry, at least what the server requested; `None` if there is none left.
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

fn is_loopback(host: &str) -> bool {
    let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    host == "localhost" || host.ends_with(".localhost") || address.is_some_and(|address| address.is_loopback())
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
            let OpenAnswer { response, mut reader, deltas } = match upstream.open(request).await {
                Ok(answer) => answer,
                Err(error) => {
                    yield Err(error);
                    return;
                }
            };
            if !deltas.is_empty() {
                yield Ok(deltas);
            }
            let idle = upstream.inner.settings.idle_timeout;
            let mut bytes = std::pin::pin!(response.bytes_stream());
            while !reader.is_complete() {
                let timeout = if reader.is_finished() { idle.min(END_TIMEOUT) } else { idle };
                match tokio::time::timeout(timeout, bytes.next()).await {
                    Ok(None) => break,
                    Ok(Some(Ok(bytes))) => match reader.push(&bytes) {
                        Ok(deltas) if deltas.is_empty() => {}
                        Ok(deltas) => yield Ok(deltas),
                        Err(failure) => {
                            yield Err(upstream.failed_answer(failure));
                            return;
                        }
                    },
                    // The answer is whole without its end.
                    Err(_) | Ok(Some(Err(_))) if reader.is_finished() => break,
                    Err(_) => {
                        let seconds = idle.as_secs();
                        let predicate = format!("sent nothing more for {seconds} s (upstream_idle_timeout_s)");
                        yield Err(upstream.unavailable(&predicate));
                        return;
                    }
                    Ok(Some(Err(error))) => {
                        let predicate = format!("closed the connection during its answer: {}", upstream.cause(&error));
                        yield Err(upstream.unavailable(&predicate));
                        return;
                    }
                }
            }
            if let Some(reason) = reader.unknown_finish() {
                let server = &upstream.inner.name;
                tracing::warn!(server, reason, "an answer has an unknown finish reason");
            }
            match reader.end() {
                Ok(deltas) if deltas.is_empty() => {}
                Ok(deltas) => yield Ok(deltas),
                Err(failure) => yield Err(upstream.failed_answer(failure)),
            }
        }
        .boxed()
    }

    async fn proxy(&self, endpoint: Endpoint, request: Map<String, Value>) -> Result<Proxied, Error> {
        let body: Bytes = serde_json::to_vec(&request).expect("a JSON object serializes").into();
        drop(request);
        let mut backoff = Backoff::new(self.inner.settings.retries);
        let answer = loop {
            let answer = self.send(endpoint, body.clone(), &mut backoff).await?;
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
        drop(body);
        let status = answer.response.status();
        if status.is_redirection() {
            let report = self.read_report(answer).await;
            return Err(self.rejected(&report));
        }
        let content_type = answer.response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.map(str::to_owned);
        let idle = self.inner.settings.idle_timeout;
        if !status.is_success() {
            let text = self.masked(&answer.text(idle).await);
            let body = futures_util::stream::iter([Ok(Bytes::from(text))]).boxed();
            return Ok(Proxied { status: status.as_u16(), content_type, body });
        }
        let upstream = self.clone();
        let body = async_stream::stream! {
            let mut bytes = std::pin::pin!(answer.into_bytes());
            loop {
                match tokio::time::timeout(idle, bytes.next()).await {
                    Ok(Some(Ok(bytes))) => yield Ok(bytes),
                    Ok(None) => return,
                    Ok(Some(Err(error))) => {
                        let cause = upstream.cause(&error);
                        yield Err(upstream.unavailable(&format!("closed the connection during its answer: {cause}")));
                        return;
                    }
                    Err(_) => {
                        let seconds = idle.as_secs();
                        let predicate = format!("sent nothing more for {seconds} s (upstream_idle_timeout_s)");
                        yield Err(upstream.unavailable(&predicate));
                        return;
                    }
                }
            }
        };
        Ok(Proxied { status: status.as_u16(), content_type, body: body.boxed() })
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
        models.ok_or_else(|| self.unavailable("answered with something other than a list of models"))
    }

    fn name(&self) -> &str {
        &self.inner.name
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
        let upstream = Upstream::new("gpu", url, Some("sk-secret".into()), settings());

        let shown = format!("{upstream:?}");
        assert!(!shown.contains("secret") && !shown.contains("10.1.2.3"), "{shown}");
        let masked = upstream.masked("the key sk-secret is not known at http://10.1.2.3:8000/v1");
        assert_eq!(masked, "the key *** is not known at http://***/v1");
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
        let upstream = Upstream::new("", &url, None, settings());
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
