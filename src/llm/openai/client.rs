//! The HTTP client: sends requests, retries them, enforces timeouts, and reads the answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{RequestBuilder, Response};
use serde_json::{Map, Value};

use super::ERROR_CHARS_MAX;
use super::adapt::RequestBody;
use super::chunk::{parse_chunk, parse_completion};
use super::models::ModelList;
use super::surrogates::SurrogateJoiner;
use crate::llm::sse::Parser;
use crate::llm::{ChatDelta, ChatModel, ChatRequest, ChatStream, Error, ModelObject, Proxied};

/// Initial backoff before a retry; doubled for each further retry.
const BACK_OFF: Duration = Duration::from_millis(500);
/// Maximum backoff before a retry, even if the server requests more, because a run has a deadline.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// Maximum size of a body that is not a stream, in bytes: a whole answer, a list, an error.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Timeout of listing the models of a server.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeouts and retries of requests to a model server.
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
}

/// One model server.
#[derive(Debug, Clone)]
pub struct Upstream {
    client: reqwest::Client,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    base_url: String,
    api_key: Option<String>,
    settings: Settings,
    /// Droppable parameters that the server has rejected.
    unsupported_parameters: Mutex<Vec<&'static str>>,
}

impl Upstream {
    /// Creates the client for a server. The base URL ends in `/v1`, as in the SDKs.
    ///
    /// # Panics
    /// If the system's TLS roots cannot be loaded.
    #[must_use]
    pub fn new(base_url: &str, api_key: Option<String>, settings: Settings) -> Self {
        // Fails if a provider is already installed, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        #[expect(clippy::disallowed_methods, reason = "the only place that creates clients for model servers")]
        let client = reqwest::Client::builder()
            .connect_timeout(settings.connect_timeout)
            .pool_max_idle_per_host(usize::MAX)
            .build()
            .expect("the client settings are valid");
        let base_url = base_url.trim_end_matches('/').to_owned();
        let inner = Inner { base_url, api_key, settings, unsupported_parameters: Mutex::default() };
        Self { client, inner: Arc::new(inner) }
    }

    fn authorize(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.inner.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a chat request until it succeeds or fails permanently. Removes the parameters that the server rejects.
    ///
    /// The prompt is in memory only as the JSON body, which is dropped on return.
    async fn request_answer(&self, request: ChatRequest) -> Result<Answer, Error> {
        let unsupported = self.unsupported_parameters().clone();
        let mut body = RequestBody::new(request, self.is_openai(), &unsupported);
        loop {
            let answer = self.send(body.json()).await?;
            if answer.response.status().is_success() {
                return Ok(answer);
            }
            let error = self.error_answer(answer).await;
            let Some(parameter) = body.rejected_parameter(&error) else { return Err(error) };
            tracing::info!(
                server = self.display_name(),
                parameter,
                "the model server rejected a parameter; later requests omit it"
            );
            let mut unsupported = self.unsupported_parameters();
            if !unsupported.contains(&parameter) {
                unsupported.push(parameter);
            }
            drop(unsupported);
            body.remove(parameter);
        }
    }

    /// Posts a JSON body, with retries; returns the last answer with its first bytes.
    async fn send(&self, body: Bytes) -> Result<Answer, Error> {
        let settings = &self.inner.settings;
        let url = format!("{}/chat/completions", self.inner.base_url);
        for attempt in 0.. {
            let request = self.client.post(&url).header(CONTENT_TYPE, "application/json").body(body.clone());
            let request = self.authorize(request);
            let failure = match tokio::time::timeout(settings.first_byte_timeout, first_bytes(request)).await {
                Err(_) => {
                    return Err(self.unavailable(&format!(
                        "sent nothing for {} s (upstream_first_byte_timeout_s)",
                        settings.first_byte_timeout.as_secs()
                    )));
                }
                Ok(Ok(answer)) if !is_retryable(answer.response.status().as_u16()) => return Ok(answer),
                Ok(Ok(answer)) => Failure::Status(answer),
                Ok(Err(error)) => Failure::Connection(error),
            };
            if attempt >= settings.retries {
                return match failure {
                    Failure::Status(answer) => Ok(answer),
                    Failure::Connection(error) => Err(self.unreachable(&error)),
                };
            }
            let requested = match &failure {
                Failure::Status(answer) => retry_after(answer.response.headers()),
                Failure::Connection(_) => None,
            };
            drop(failure);
            let pause = requested.unwrap_or(BACK_OFF * 2u32.saturating_pow(attempt)).min(BACK_OFF_MAX);
            tracing::debug!(server = self.display_name(), attempt, ?pause, "retrying a request to a model server");
            tokio::time::sleep(pause).await;
        }
        unreachable!("the loop ends with its last attempt")
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        self.unavailable(&format!(
            "cannot be reached: {cause}. Check that it runs and that its URL in the settings is correct"
        ))
    }

    /// Returns the error "The model server … `predicate`."
    fn unavailable(&self, predicate: &str) -> Error {
        Error::Unavailable(format!("The model server {} {predicate}.", self.display_name()))
    }

    fn is_openai(&self) -> bool {
        let url = reqwest::Url::parse(&self.inner.base_url).ok();
        let host = url.as_ref().and_then(|url| url.host_str()).unwrap_or_default();
        ["openai.com", "openai.azure.com"].iter().any(|known| host.ends_with(known))
    }

    /// Returns the error that an unsuccessful answer reports.
    async fn error_answer(&self, answer: Answer) -> Error {
        let status = answer.response.status();
        let text = answer.text(self.inner.settings.idle_timeout).await;
        let reported = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|body| {
                let error = &body["error"];
                error["message"].as_str().or(error.as_str()).or(body["message"].as_str()).map(str::to_owned)
            })
            .unwrap_or(text);
        let reported: String = reported.trim().chars().take(ERROR_CHARS_MAX).collect();
        let message = format!("The model server {} answered {}: {reported}", self.display_name(), status.as_u16());
        match status.as_u16() {
            429 => Error::RateLimited(message),
            500.. => Error::Unavailable(message),
            _ => Error::Refused(message),
        }
    }

    fn unsupported_parameters(&self) -> MutexGuard<'_, Vec<&'static str>> {
        self.inner.unsupported_parameters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A response and the first bytes of its body, after which the answer has started.
struct Answer {
    response: Response,
    first: Option<Bytes>,
}

enum Failure {
    Status(Answer),
    Connection(reqwest::Error),
}

async fn first_bytes(request: RequestBuilder) -> Result<Answer, reqwest::Error> {
    let mut response = request.send().await?;
    let first = response.chunk().await?;
    Ok(Answer { response, first })
}

impl Answer {
    fn content_type(&self) -> Option<&str> {
        self.response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok())
    }

    fn is_json(&self) -> bool {
        self.content_type().is_some_and(|content_type| content_type.starts_with("application/json"))
    }

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

/// Whether a retry may succeed.
fn is_retryable(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..)
}

/// Returns the delay that a server requests: in milliseconds, in seconds, or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(milliseconds) = text("retry-after-ms").and_then(|text| text.parse().ok()) {
        return Some(Duration::from_millis(milliseconds));
    }
    let after = text(RETRY_AFTER.as_str())?;
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
            let answer = match upstream.request_answer(request).await {
                Ok(answer) => answer,
                Err(error) => {
                    yield Err(error);
                    return;
                }
            };
            let idle = upstream.inner.settings.idle_timeout;
            if answer.is_json() {
                let deltas = parse_completion(&answer.text(idle).await);
                yield deltas.map_err(|predicate| upstream.unavailable(&predicate));
                return;
            }
            let mut parser = Parser::default();
            let mut surrogates = SurrogateJoiner::default();
            let mut is_finished = false;
            let mut bytes = std::pin::pin!(answer.into_bytes());
            loop {
                let events = match tokio::time::timeout(idle, bytes.next()).await {
                    Err(_) => {
                        let seconds = idle.as_secs();
                        let predicate = format!("sent nothing more for {seconds} s (upstream_idle_timeout_s)");
                        yield Err(upstream.unavailable(&predicate));
                        return;
                    }
                    Ok(None) => match parser.end() {
                        Some(event) => vec![event],
                        None if is_finished => return,
                        None => {
                            yield Err(upstream.unavailable("closed the connection during its answer"));
                            return;
                        }
                    },
                    Ok(Some(Err(error))) => {
                        let predicate = format!("closed the connection during its answer: {error}");
                        yield Err(upstream.unavailable(&predicate));
                        return;
                    }
                    Ok(Some(Ok(bytes))) => match parser.push(&bytes) {
                        Ok(events) => events,
                        Err(error) => {
                            yield Err(upstream.unavailable(&format!("sent an invalid event stream: {error}")));
                            return;
                        }
                    },
                };
                let mut deltas = Vec::new();
                let mut is_done = false;
                for event in events {
                    if event.trim() == "[DONE]" {
                        is_done = true;
                        break;
                    }
                    match parse_chunk(&event, &mut surrogates) {
                        Ok(more) => deltas.extend(more),
                        Err(predicate) => {
                            yield Err(upstream.unavailable(&predicate));
                            return;
                        }
                    }
                }
                is_finished |= deltas.iter().any(|delta| matches!(delta, ChatDelta::Finish(_)));
                if !deltas.is_empty() {
                    yield Ok(deltas);
                }
                if is_done {
                    return;
                }
            }
        }
        .boxed()
    }

    async fn proxy(&self, request: Map<String, Value>) -> Result<Proxied, Error> {
        let body = serde_json::to_vec(&request).expect("a JSON object serializes");
        drop(request);
        let answer = self.send(body.into()).await?;
        let upstream = self.clone();
        Ok(Proxied {
            status: answer.response.status().as_u16(),
            content_type: answer.content_type().map(str::to_owned),
            body: answer
                .into_bytes()
                .map(move |bytes| {
                    bytes.map_err(|error| upstream.unavailable(&format!("closed the connection: {error}")))
                })
                .boxed(),
        })
    }

    async fn list(&self) -> Result<Vec<ModelObject>, Error> {
        let request = self.authorize(self.client.get(format!("{}/models", self.inner.base_url))).timeout(LIST_TIMEOUT);
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            return Err(self.error_answer(Answer { response, first: None }).await);
        }
        let list: ModelList = response
            .json()
            .await
            .map_err(|_| self.unavailable("answered with something other than a list of models"))?;
        Ok(list.into())
    }

    fn display_name(&self) -> String {
        match reqwest::Url::parse(&self.inner.base_url) {
            Ok(mut url) => {
                // User name and password must not appear in logs.
                let _ = url.set_username("");
                let _ = url.set_password(None);
                url.to_string()
            }
            Err(_) => self.inner.base_url.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn retry_after_is_parsed_as_milliseconds_seconds_or_a_date() {
        let headers = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
        };

        assert_eq!(retry_after(&headers("retry-after-ms", "250")), Some(Duration::from_millis(250)));
        assert_eq!(retry_after(&headers("retry-after", "1.5")), Some(Duration::from_millis(1500)));
        assert_eq!(retry_after(&headers("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")), Some(Duration::ZERO));
        assert_eq!(retry_after(&headers("retry-after", "soon")), None);
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
        let second = Duration::from_secs(5);
        let settings =
            Settings { connect_timeout: second, first_byte_timeout: second, idle_timeout: second, retries: 0 };
        let upstream = Upstream::new(&url, None, settings);
        let prompt = format!("{{\"{}\":\"end\"}}", "x".repeat(1024 * 1024)).into_bytes();
        let owner = Arc::new(prompt);
        let released: Weak<Vec<u8>> = Arc::downgrade(&owner);

        let (answer, _socket) = tokio::join!(upstream.send(Bytes::from_owner(Tracked(owner))), server);

        let answer = answer.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(answer.first.as_deref(), Some(b"data".as_slice()));
        assert_eq!(released.strong_count(), 0, "the request body is still in memory after the answer started");
    }
}
