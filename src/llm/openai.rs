//! One chat-completions server over HTTP.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::sse::Parser;
use super::{CallPiece, ChatDelta, ChatModel, ChatRequest, ChatStream, Error, ModelObject, Proxied};
use crate::api::run::{CompletionTokensDetails, FinishReason, PromptTokenDetails, Usage};

/// The first pause before another try; each later one is twice as long.
const BACK_OFF: Duration = Duration::from_millis(500);
/// The longest pause, also when the server asks for a longer one: a run has a deadline.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// Most bytes that are read of a body which is no stream: a whole answer, a list, an error.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How much of a server's error text is handed on.
const ERROR_CHARS_MAX: usize = 500;
/// Members of a request that a server can do without: the two names for one bound, of which one is enough; what only
/// asks for a count of tokens; and a wish that we see to ourselves.
const OPTIONAL: [&str; 4] = ["max_completion_tokens", "max_tokens", "stream_options", "parallel_tool_calls"];
/// How long a server may take to list its models.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// How patient we are with model servers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Until the connection stands.
    pub connect_timeout: Duration,
    /// From the request to the first byte of the answer's body.
    pub first_byte_timeout: Duration,
    /// Between two reads of the body.
    pub idle_timeout: Duration,
    /// Further tries after a 429, a 5xx or a connection that failed, before the first byte.
    pub retries: u32,
}

/// One server.
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
    /// Members that it has complained of, of those in [`OPTIONAL`].
    unwanted: Mutex<Vec<&'static str>>,
}

impl Upstream {
    /// A server whose base URL ends in `/v1`, as the SDKs write it.
    ///
    /// # Panics
    /// When the system's TLS roots cannot be loaded at all.
    #[must_use]
    pub fn new(base_url: &str, api_key: Option<String>, settings: Settings) -> Self {
        // Fails when it is installed already, which is what we want.
        let _ = rustls::crypto::ring::default_provider().install_default();
        #[expect(clippy::disallowed_methods, reason = "this is the one place that makes clients for model servers")]
        let client = reqwest::Client::builder()
            .connect_timeout(settings.connect_timeout)
            .pool_max_idle_per_host(usize::MAX)
            .build()
            .expect("the client's settings are constants that build");
        let base_url = base_url.trim_end_matches('/').to_owned();
        Self { client, inner: Arc::new(Inner { base_url, api_key, settings, unwanted: Mutex::default() }) }
    }

    fn post(&self, body: &impl serde::Serialize) -> RequestBuilder {
        self.with_key(self.client.post(format!("{}/chat/completions", self.inner.base_url)).json(body))
    }

    fn with_key(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.inner.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends until there is an answer that a further try would not change, and gives it with its first bytes.
    async fn send(&self, request: RequestBuilder) -> Result<Answer, Error> {
        let settings = &self.inner.settings;
        for attempt in 0.. {
            let request = request.try_clone().expect("a JSON body can be sent again");
            let failure = match tokio::time::timeout(settings.first_byte_timeout, first_bytes(request)).await {
                Err(_) => {
                    return Err(self.unavailable(&format!(
                        "sent nothing for {} s (upstream_first_byte_timeout_s)",
                        settings.first_byte_timeout.as_secs()
                    )));
                }
                Ok(Ok(answer)) if !is_passing(answer.response.status().as_u16()) => return Ok(answer),
                Ok(Ok(answer)) => Failure::Status(answer),
                Ok(Err(error)) => Failure::Connection(error),
            };
            if attempt >= settings.retries {
                return match failure {
                    Failure::Status(answer) => Ok(answer),
                    Failure::Connection(error) => Err(self.unreachable(&error)),
                };
            }
            let asked = match &failure {
                Failure::Status(answer) => retry_after(answer.response.headers()),
                Failure::Connection(_) => None,
            };
            let pause = asked.unwrap_or(BACK_OFF * 2u32.saturating_pow(attempt)).min(BACK_OFF_MAX);
            tracing::debug!(server = self.inner.base_url, attempt, ?pause, "a model server is tried again");
            tokio::time::sleep(pause).await;
        }
        unreachable!("the loop ends with its last attempt")
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        self.unavailable(&format!(
            "cannot be reached: {cause}. Check that it runs and that its URL in the settings is right"
        ))
    }

    fn unavailable(&self, what: &str) -> Error {
        Error::Unavailable(format!("The model server {} {what}.", self.place()))
    }

    fn is_openai(&self) -> bool {
        let url = reqwest::Url::parse(&self.inner.base_url).ok();
        let host = url.as_ref().and_then(|url| url.host_str()).unwrap_or_default();
        ["openai.com", "openai.azure.com"].iter().any(|known| host.ends_with(known))
    }

    /// Tells what a reply that is no success says.
    async fn refusal(&self, answer: Answer) -> Error {
        let status = answer.response.status();
        let text = answer.text(self.inner.settings.idle_timeout).await;
        let said = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|body| {
                let error = &body["error"];
                error["message"].as_str().or(error.as_str()).or(body["message"].as_str()).map(str::to_owned)
            })
            .unwrap_or(text);
        let said: String = said.trim().chars().take(ERROR_CHARS_MAX).collect();
        let message = format!("The model server {} answered {}: {said}", self.place(), status.as_u16());
        match status.as_u16() {
            429 => Error::RateLimited(message),
            500.. => Error::Unavailable(message),
            _ => Error::Refused(message),
        }
    }

    async fn answer(&self, request: ChatRequest) -> Result<Answer, Error> {
        let mut body = serde_json::to_value(&request).expect("plain values make JSON");
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        if let Some(tokens) = request.max_completion_tokens.filter(|_| !self.is_openai()) {
            // The older name: some servers know only that one, and OpenAI's newer models refuse it.
            body["max_tokens"] = json!(tokens);
        }
        if !request.tools.is_empty() && request.parallel_tool_calls.is_none() && !self.is_openai() {
            // What OpenAI does by default, llama.cpp does when it is told; some of OpenAI's models refuse to be told.
            body["parallel_tool_calls"] = json!(true);
        }
        // A large prompt is held once.
        drop(request);
        loop {
            for member in self.unwanted().iter() {
                body.as_object_mut().expect("a request is an object").shift_remove(*member);
            }
            let answer = self.send(self.post(&body)).await?;
            if answer.response.status().is_success() {
                return Ok(answer);
            }
            let refusal = self.refusal(answer).await;
            let Some(member) = blamed(&refusal, &body) else { return Err(refusal) };
            tracing::info!(server = self.place(), member, "a model server does not want a member; it is left out now");
            self.unwanted().push(member);
        }
    }

    fn unwanted(&self) -> MutexGuard<'_, Vec<&'static str>> {
        self.inner.unwanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The member of a request that a server complains of, when it can be left out.
fn blamed(refusal: &Error, body: &Value) -> Option<&'static str> {
    let Error::Refused(message) = refusal else { return None };
    let bounds = ["max_tokens", "max_completion_tokens"];
    let is_blamed = |member: &str| message.contains(member) && body.get(member).is_some();
    if bounds.into_iter().all(is_blamed) {
        return Some("max_tokens");
    }
    let has_both = bounds.into_iter().all(|member| body.get(member).is_some());
    OPTIONAL.into_iter().find(|member| is_blamed(member) && (has_both || !bounds.contains(member)))
}

/// A reply, and the first bytes of its body, which prove that it has begun.
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
    fn is_json(&self) -> bool {
        let kind = self.response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        kind.is_some_and(|kind| kind.starts_with("application/json"))
    }

    fn into_bytes(self) -> impl Stream<Item = Result<Bytes, reqwest::Error>> {
        futures_util::stream::iter(self.first.map(Ok)).chain(self.response.bytes_stream())
    }

    /// The whole body, as far as it can be read: up to `BODY_BYTES_MAX`, with no pause longer than `idle`.
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

/// Whether another try may end differently.
fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..)
}

/// What a server asks for: milliseconds, seconds, or a date.
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
        #[expect(clippy::disallowed_methods, reason = "the header names a time of day, and we need how far off it is")]
        let now = SystemTime::now();
        Some(date.duration_since(now).unwrap_or_default())
    }
}

#[async_trait]
impl ChatModel for Upstream {
    fn chat(&self, request: ChatRequest) -> ChatStream {
        let upstream = self.clone();
        async_stream::stream! {
            let answer = match upstream.answer(request).await {
                Ok(answer) => answer,
                Err(error) => {
                    yield Err(error);
                    return;
                }
            };
            let idle = upstream.inner.settings.idle_timeout;
            if answer.is_json() {
                yield whole(&answer.text(idle).await).map_err(|what| upstream.unavailable(&what));
                return;
            }
            let mut parser = Parser::default();
            let mut halves = Halves::default();
            let mut ended = false;
            let mut bytes = std::pin::pin!(answer.into_bytes());
            loop {
                let events = match tokio::time::timeout(idle, bytes.next()).await {
                    Err(_) => {
                        let seconds = idle.as_secs();
                        yield Err(upstream.unavailable(&format!("fell silent for {seconds} s (upstream_idle_timeout_s)")));
                        return;
                    }
                    Ok(None) => match parser.end() {
                        Some(event) => vec![event],
                        None if ended => return,
                        None => {
                            yield Err(upstream.unavailable("broke off in the middle of its answer"));
                            return;
                        }
                    },
                    Ok(Some(Err(error))) => {
                        yield Err(upstream.unavailable(&format!("broke off in the middle of its answer: {error}")));
                        return;
                    }
                    Ok(Some(Ok(bytes))) => match parser.push(&bytes) {
                        Ok(events) => events,
                        Err(error) => {
                            yield Err(upstream.unavailable(&format!("sent what is no answer: {error}")));
                            return;
                        }
                    },
                };
                let mut deltas = Vec::new();
                let mut done = false;
                for event in events {
                    if event.trim() == "[DONE]" {
                        done = true;
                        break;
                    }
                    match deltas_of(&event, &mut halves) {
                        Ok(more) => deltas.extend(more),
                        Err(what) => {
                            yield Err(upstream.unavailable(&what));
                            return;
                        }
                    }
                }
                ended |= deltas.iter().any(|delta| matches!(delta, ChatDelta::Finish(_)));
                if !deltas.is_empty() {
                    yield Ok(deltas);
                }
                if done {
                    return;
                }
            }
        }
        .boxed()
    }

    async fn proxy(&self, request: Map<String, Value>) -> Result<Proxied, Error> {
        let answer = self.send(self.post(&request)).await?;
        let header = answer.response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let upstream = self.clone();
        Ok(Proxied {
            status: answer.response.status().as_u16(),
            content_type: header.map(str::to_owned),
            body: answer
                .into_bytes()
                .map(move |bytes| bytes.map_err(|error| upstream.unavailable(&format!("broke off: {error}"))))
                .boxed(),
        })
    }

    async fn list(&self) -> Result<Vec<ModelObject>, Error> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Listed>,
        }
        /// A model, and its window under the names that servers give it: vLLM, LM Studio and OpenRouter, Groq,
        /// llama.cpp.
        #[derive(Deserialize)]
        struct Listed {
            #[serde(flatten)]
            model: ModelObject,
            max_model_len: Option<u32>,
            context_length: Option<u32>,
            context_window: Option<u32>,
            meta: Option<Meta>,
        }
        #[derive(Deserialize)]
        struct Meta {
            n_ctx: Option<u32>,
            n_ctx_train: Option<u32>,
        }
        let request = self.with_key(self.client.get(format!("{}/models", self.inner.base_url))).timeout(LIST_TIMEOUT);
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            return Err(self.refusal(Answer { response, first: None }).await);
        }
        let list: List = response
            .json()
            .await
            .map_err(|_| self.unavailable("answered with something else than a list of models"))?;
        let models = list.data.into_iter().map(|listed| {
            let meta = listed.meta.and_then(|meta| meta.n_ctx.or(meta.n_ctx_train));
            let window = listed.max_model_len.or(listed.context_length).or(listed.context_window).or(meta);
            ModelObject { window, ..listed.model }
        });
        Ok(models.collect())
    }

    fn place(&self) -> String {
        match reqwest::Url::parse(&self.inner.base_url) {
            Ok(mut url) => {
                // Neither a user name nor a password in the address belongs into a log.
                let _ = url.set_username("");
                let _ = url.set_password(None);
                url.to_string()
            }
            Err(_) => self.inner.base_url.clone(),
        }
    }
}

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<ChunkUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    index: Option<u32>,
    /// In a stream.
    delta: Option<Said>,
    /// In a whole answer.
    message: Option<Said>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Said {
    /// A string; some servers send a list of parts.
    content: Option<Value>,
    refusal: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    index: Option<u32>,
    id: Option<String>,
    function: Option<FunctionDelta>,
}

#[derive(Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    /// A string; some servers send the object itself.
    arguments: Option<Value>,
}

impl From<CallDelta> for CallPiece {
    fn from(given: CallDelta) -> Self {
        let (name, arguments) = given.function.map_or((None, None), |function| (function.name, function.arguments));
        let named = |text: &String| !text.is_empty();
        Self {
            index: given.index,
            id: given.id.filter(named),
            name: name.filter(named),
            arguments: match arguments {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => text,
                Some(other) => other.to_string(),
            },
        }
    }
}

/// Numbers as servers send them: whole, with a fraction of zero, null, or not at all. What they cost must not spoil an
/// answer.
#[derive(Deserialize)]
struct ChunkUsage {
    #[serde(default)]
    prompt_tokens: Value,
    #[serde(default)]
    completion_tokens: Value,
    #[serde(default)]
    total_tokens: Value,
    #[serde(default)]
    prompt_tokens_details: Value,
    #[serde(default)]
    completion_tokens_details: Value,
}

impl From<ChunkUsage> for Usage {
    fn from(given: ChunkUsage) -> Self {
        let (read, written) = (tokens(&given.prompt_tokens), tokens(&given.completion_tokens));
        let total =
            if given.total_tokens.is_number() { tokens(&given.total_tokens) } else { read.saturating_add(written) };
        Self {
            prompt_tokens: read,
            completion_tokens: written,
            total_tokens: total,
            prompt_token_details: PromptTokenDetails {
                cached_tokens: tokens(&given.prompt_tokens_details["cached_tokens"]),
            },
            completion_tokens_details: CompletionTokensDetails {
                reasoning_tokens: tokens(&given.completion_tokens_details["reasoning_tokens"]),
            },
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast from float saturates")]
fn tokens(number: &Value) -> u32 {
    number.as_f64().unwrap_or(0.0) as u32
}

/// The words of a content, in either of its forms.
fn words(content: Value) -> String {
    match content {
        Value::String(text) => text,
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

/// Joins characters that a server has cut in two, such as an emoji whose halves come as escapes in two events.
#[derive(Debug, Default)]
struct Halves {
    first: Option<String>,
}

impl Halves {
    /// The event with whole characters only: a first half is held back, for the second one to join it; a half that
    /// stays alone becomes U+FFFD.
    fn mend(&mut self, event: &str) -> String {
        let mut mended = String::with_capacity(event.len());
        let mut rest = event;
        while let Some(at) = rest.find('\\') {
            let (before, escape) = rest.split_at(at);
            mended.push_str(before);
            let Some(unit) = code_unit(escape) else {
                // Any other escape has one character behind its backslash.
                let end = 1 + escape[1..].chars().next().map_or(0, char::len_utf8);
                mended.push_str(&escape[..end]);
                rest = &escape[end..];
                continue;
            };
            let (this, behind) = escape.split_at(ESCAPE_BYTES);
            rest = behind;
            match unit {
                0xD800..=0xDBFF => match code_unit(behind) {
                    Some(0xDC00..=0xDFFF) => {
                        mended.push_str(this);
                        mended.push_str(&behind[..ESCAPE_BYTES]);
                        rest = &behind[ESCAPE_BYTES..];
                    }
                    _ => self.first = Some(this.to_owned()),
                },
                0xDC00..=0xDFFF => match self.first.take() {
                    Some(first) => {
                        mended.push_str(&first);
                        mended.push_str(this);
                    }
                    None => mended.push_str("\\ufffd"),
                },
                _ => mended.push_str(this),
            }
        }
        mended.push_str(rest);
        mended
    }
}

/// Bytes of `\u0000`.
const ESCAPE_BYTES: usize = 6;

/// The UTF-16 code unit that a text begins with as an escape.
fn code_unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    u16::from_str_radix(digits, 16).ok()
}

/// What one event of the stream says, or in a few words why it says nothing.
fn deltas_of(event: &str, halves: &mut Halves) -> Result<Vec<ChatDelta>, String> {
    let chunk: Chunk = serde_json::from_str(event)
        .or_else(|_| serde_json::from_str(&halves.mend(event)))
        .map_err(|error| format!("sent an event that is no completion chunk: {error}"))?;
    if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
        let said = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
        let said: String = said.chars().take(ERROR_CHARS_MAX).collect();
        return Err(format!("failed in the middle of its answer: {said}"));
    }
    let mut deltas = Vec::new();
    for choice in chunk.choices.into_iter().flatten().filter(|choice| choice.index.unwrap_or(0) == 0) {
        if let Some(said) = choice.delta.or(choice.message) {
            deltas.extend(said.content.map(words).filter(|text| !text.is_empty()).map(ChatDelta::Text));
            deltas.extend(said.refusal.filter(|text| !text.is_empty()).map(ChatDelta::Refusal));
            deltas.extend(said.tool_calls.into_iter().flatten().map(|call| ChatDelta::Call(call.into())));
        }
        deltas.extend(choice.finish_reason.map(|reason| {
            ChatDelta::Finish(match reason.as_str() {
                "length" => FinishReason::Length,
                "content_filter" => FinishReason::ContentFilter,
                _ => FinishReason::Stop,
            })
        }));
    }
    deltas.extend(chunk.usage.map(|usage| ChatDelta::Usage(usage.into())));
    Ok(deltas)
}

/// Reads a whole completion: what a server sends that does not stream.
fn whole(text: &str) -> Result<Vec<ChatDelta>, String> {
    let deltas = deltas_of(text, &mut Halves::default())?;
    if deltas.is_empty() { Err("answered with something else than a completion".to_owned()) } else { Ok(deltas) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(event: &str) -> Result<Vec<ChatDelta>, String> {
        deltas_of(event, &mut Halves::default())
    }

    #[test]
    fn a_chunk_gives_its_text_its_end_and_its_usage() {
        let chunk = r#"{"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"length"}],
            "usage":{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}}"#;

        let usage = Usage {
            prompt_tokens: 3,
            completion_tokens: 4,
            total_tokens: 7,
            prompt_token_details: PromptTokenDetails { cached_tokens: 2 },
            ..Usage::default()
        };
        assert_eq!(
            said(chunk),
            Ok(vec![ChatDelta::Text("hi".into()), ChatDelta::Finish(FinishReason::Length), ChatDelta::Usage(usage)])
        );
    }

    #[test]
    fn a_character_that_was_cut_in_two_is_joined_and_a_lone_half_is_marked() {
        let mut halves = Halves::default();
        let event = |text: &str| format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}"#);
        let mut texts = |text: &str| deltas_of(&event(text), &mut halves).unwrap();

        assert_eq!(texts(r#"a\"\ud83d"#), [ChatDelta::Text("a\"".into())]);
        assert_eq!(texts(r"\ude00 \ud83d\ude00"), [ChatDelta::Text("\u{1F600} \u{1F600}".into())]);
        assert_eq!(texts(r"\ude00\\ud83d"), [ChatDelta::Text("\u{FFFD}\\ud83d".into())]);
    }

    #[test]
    fn small_oddities_spoil_no_answer() {
        let odd = [
            r#"{"choices":[{"index":null,"delta":{"content":[{"type":"text","text":"hi"}]}}],"usage":null}"#,
            r#"{"choices":[{"delta":{"content":"hi"}}],"usage":{"completion_tokens":null,"prompt_tokens":5.0}}"#,
        ];
        for chunk in odd {
            assert_eq!(said(chunk).unwrap()[0], ChatDelta::Text("hi".into()), "{chunk}");
        }
        let usage = said(r#"{"choices":null,"usage":{"completion_tokens":null,"prompt_tokens":5.0}}"#).unwrap();
        let expected = Usage { prompt_tokens: 5, total_tokens: 5, ..Usage::default() };
        assert_eq!(usage, [ChatDelta::Usage(expected)]);
    }

    #[test]
    fn an_error_in_the_stream_is_told_with_its_words() {
        let error = said(r#"{"error":{"message":"out of memory"}}"#).unwrap_err();

        assert_eq!(error, "failed in the middle of its answer: out of memory");
    }

    #[test]
    fn other_choices_and_empty_texts_are_dropped() {
        let chunk = r#"{"choices":[{"index":1,"delta":{"content":"no"}},{"delta":{"role":"assistant","content":""}}]}"#;

        assert_eq!(said(chunk), Ok(Vec::new()));
    }

    #[test]
    fn a_server_may_ask_for_a_pause_in_milliseconds_seconds_or_by_date() {
        let headers = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
        };

        assert_eq!(retry_after(&headers("retry-after-ms", "250")), Some(Duration::from_millis(250)));
        assert_eq!(retry_after(&headers("retry-after", "1.5")), Some(Duration::from_millis(1500)));
        assert_eq!(retry_after(&headers("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")), Some(Duration::ZERO));
        assert_eq!(retry_after(&headers("retry-after", "soon")), None);
    }
}
