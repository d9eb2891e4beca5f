//! Extractors of path parameters, queries and bodies. They reject invalid values with errors of the API.

use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, RawQuery, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use bytes::BytesMut;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::error::Error;
use super::state::{App, Settings};
use crate::api;
use crate::api::error::Kind;
use crate::api::id::Id;
use crate::api::page::Order;
use crate::api::surrogates::replace_lone_surrogates;
use crate::api::{PageQuery, RunId, rule};

/// The IDs in a path, as a tuple.
pub(super) struct Ids<T>(pub T);

/// The path parameters, by name.
pub(super) struct Params(RawPathParams);

impl Params {
    /// Returns the decoded value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, text)| text)
    }

    /// Parses the parameter of an ID type.
    fn id<T: Id>(&self) -> Result<T, api::Error> {
        T::parse(self.get(T::PARAM).unwrap_or_default(), T::PARAM)
    }

    /// Like [`Params::id`], but a text that is not an ID is an unknown one.
    fn any_id<T: Id>(&self) -> Result<T, api::Error> {
        let text = self.get(T::PARAM).unwrap_or_default();
        T::parse(text, T::PARAM).map_err(|_| api::Error::not_found(T::NOUN, &text))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let params = RawPathParams::from_request_parts(parts, state).await;
        params.map(Self).map_err(|_| api::Error::invalid("The path is not valid UTF-8.").into())
    }
}

impl<S: Send + Sync, A: Id> FromRequestParts<S> for Ids<(A,)> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let params = Params::from_request_parts(parts, state).await?;
        Ok(Self((params.id()?,)))
    }
}

impl<S: Send + Sync, A: Id, B: Id> FromRequestParts<S> for Ids<(A, B)> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let params = Params::from_request_parts(parts, state).await?;
        Ok(Self((params.id()?, params.id()?)))
    }
}

impl<S: Send + Sync, A: Id, B: Id, C: Id> FromRequestParts<S> for Ids<(A, B, C)> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let params = Params::from_request_parts(parts, state).await?;
        Ok(Self((params.id()?, params.id()?, params.id()?)))
    }
}

/// The IDs in a path of the administration, as a tuple. A text that is not an ID is rejected with 404, like an unknown ID.
pub(super) struct AnyIds<T>(pub T);

impl<S: Send + Sync, A: Id> FromRequestParts<S> for AnyIds<(A,)> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let params = Params::from_request_parts(parts, state).await?;
        Ok(Self((params.any_id()?,)))
    }
}

impl<S: Send + Sync, A: Id, B: Id> FromRequestParts<S> for AnyIds<(A, B)> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let params = Params::from_request_parts(parts, state).await?;
        Ok(Self((params.any_id()?, params.any_id()?)))
    }
}

/// The decoded query parameters.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Returns all parameters, in order.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// Returns the value of a parameter, unless it is empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, value)| known == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// Parses `true` or `false`; false if the parameter is not given.
    pub fn flag(&self, name: &str) -> Result<bool, api::Error> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => {
                Err(rule::unsupported_value(&rule::At::Member(&rule::At::Root, name), other, &["true", "false"]))
            }
        }
    }

    /// Parses the parameters of a page.
    pub fn page(&self) -> Result<PageQuery, api::Error> {
        PageQuery::default().parse(self.names_and_values())
    }

    /// Parses the parameters of a page, which is in ascending order by default.
    pub fn page_oldest_first(&self) -> Result<PageQuery, api::Error> {
        PageQuery { order: Order::Ascending, ..PageQuery::default() }.parse(self.names_and_values())
    }

    /// Returns the names and values of all parameters, in order.
    pub fn names_and_values(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Ok(RawQuery(query)) = RawQuery::from_request_parts(parts, state).await;
        Ok(Self(serde_urlencoded::from_str(query.as_deref().unwrap_or_default()).unwrap_or_default()))
    }
}

/// The value of `include[]` that adds the text of search results to run steps.
const RESULT_CONTENT: &str = "step_details.tool_calls[*].file_search.results[*].content";

/// Whether the response includes the text of search results (`include[]`).
pub(super) struct Include {
    pub result_content: bool,
}

impl Query {
    /// Parses the parameter `include[]`, which some clients write without brackets or with an index.
    pub fn include(&self) -> Result<Include, api::Error> {
        let is_include = |name: &str| {
            let rest = name.strip_prefix("include");
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('[') && rest.ends_with(']'))
        };
        let given = self.names_and_values().filter(|(name, value)| is_include(name) && !value.is_empty());
        let mut result_content = false;
        for value in given.flat_map(|(_, value)| value.split(',')) {
            if value.trim() != RESULT_CONTENT {
                let at = rule::At::Member(&rule::At::Root, "include");
                return Err(rule::unsupported_value(&at, value, &[RESULT_CONTENT]));
            }
            result_content = true;
        }
        Ok(Include { result_content })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Include {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        Ok(Query::from_request_parts(parts, state).await?.include()?)
    }
}

/// Returns the schema of the values of `include[]`.
pub(super) fn include_schema(_: &mut SchemaGenerator) -> Value {
    json!({"type": "array", "items": {"type": "string", "enum": [RESULT_CONTENT]}})
}

/// The query of a list request.
pub(super) struct ListQuery {
    pub page: PageQuery,
    /// Returns only messages of this run.
    pub run: Option<RunId>,
}

impl<S: Send + Sync> FromRequestParts<S> for ListQuery {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let query = Query::from_request_parts(parts, state).await?;
        let page = query.page()?;
        let run = query.get("run_id").map(|value| RunId::parse(value, "run_id")).transpose()?;
        Ok(Self { page, run })
    }
}

/// A body with any JSON object.
pub(super) struct Object(pub Map<String, Value>);

impl FromRequest<App> for Object {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        check_content_type(&request)?;
        let (mut bytes, mut memory) = read(request.into_body(), &app.settings).await?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(Map::new()));
        }
        reserve_to_parse(&bytes, &mut memory, &app.settings).await?;
        match parse(&mut bytes) {
            Ok(Value::Object(members)) => Ok(Self(members)),
            Ok(other) => Err(rule::wrong_type(&rule::At::Root, "an object", &other).into()),
            Err(_) => Err(api::Error::invalid(
                "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your \
                 HTTP library correctly. The API expects a JSON payload, but what was sent was not valid JSON.)",
            )
            .into()),
        }
    }
}

/// Parses a JSON text. A lone surrogate escape becomes U+FFFD: some clients truncate text in the middle of a UTF-16
/// surrogate pair, and their JSON encoders escape the remaining half.
fn parse(bytes: &mut [u8]) -> serde_json::Result<Value> {
    serde_json::from_slice(bytes)
        .or_else(|error| if replace_lone_surrogates(bytes) { serde_json::from_slice(bytes) } else { Err(error) })
}

/// A request body, parsed by its rules. A missing body is equivalent to an empty object.
pub(super) struct Json<T>(pub T);

impl<T: rule::Request> FromRequest<App> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        let Object(members) = Object::from_request(request, app).await?;
        Ok(Self(T::parse(Value::Object(members))?))
    }
}

fn check_content_type(request: &Request) -> Result<(), api::Error> {
    let Some(value) = request.headers().get(CONTENT_TYPE) else { return Ok(()) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let kind = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json")) {
        return Ok(());
    }
    Err(api::Error::new(
        Kind::UnsupportedMedia,
        format!(
            "Unsupported content type: '{text}'. This API method only accepts 'application/json' requests, but you \
             specified the header 'Content-Type: {text}'. Please try again with a supported content type."
        ),
    )
    .code("unsupported_content_type"))
}

/// Bodies up to this size do not reserve memory, in bytes.
const SMALL_BODY_BYTES: usize = 64 * 1024;
/// Memory of a parsed element or property in addition to its text, in bytes.
const VALUE_BYTES: usize = 80;

/// The memory reserved for a body.
struct Memory {
    permit: Option<OwnedSemaphorePermit>,
    /// How long the body may still wait for memory.
    wait_left: Duration,
}

impl Memory {
    fn new(settings: &Settings) -> Self {
        Self { permit: None, wait_left: settings.body_timeout }
    }

    fn bytes(&self) -> usize {
        self.permit.as_ref().map_or(0, |permit| permit.num_permits() * 1024)
    }

    /// Reserves more memory. Waits until other bodies have released enough. The body timeout limits the total wait of
    /// one body.
    async fn reserve(&mut self, settings: &Settings, bytes: usize) -> Result<(), api::Error> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let began = Instant::now();
        let permit = settings.bodies.clone().acquire_many_owned(kib);
        let permit = tokio::time::timeout(self.wait_left, permit).await;
        self.wait_left = self.wait_left.saturating_sub(began.elapsed());
        let Ok(Ok(permit)) = permit else {
            tracing::warn!(
                bodies_bytes_max = settings.bodies_bytes_max,
                "request rejected: other requests use all the memory for request bodies (bodies_bytes_max)"
            );
            return Err(api::Error::new(
                Kind::Unavailable,
                "The server is reading too many large requests (bodies_bytes_max). Please retry.",
            ));
        };
        match &mut self.permit {
            None => self.permit = Some(permit),
            Some(reserved) => reserved.merge(permit),
        }
        Ok(())
    }
}

/// Reads a body, and reserves memory for a large one. The body timeout does not include the wait for memory.
async fn read(body: Body, settings: &Settings) -> Result<(BytesMut, Memory), api::Error> {
    let max = settings.body_bytes_max;
    let too_large = || {
        let text = format!("The request body is larger than {max} bytes, the maximum of this server (body_bytes_max).");
        api::Error::new(Kind::TooLarge, text)
    };
    // Before the first read, which sends 100: a client that waits for 100 does not send a body that is too large.
    if usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) > max {
        return Err(too_large());
    }
    let mut body = Limited::new(body, max);
    let mut deadline = Instant::now() + settings.body_timeout;
    let (mut bytes, mut memory) = (BytesMut::new(), Memory::new(settings));
    loop {
        let Ok(frame) = tokio::time::timeout_at(deadline, body.frame()).await else {
            let seconds = settings.body_timeout.as_secs();
            let text = format!("The request body did not arrive within {seconds} s (body_timeout_s).");
            return Err(api::Error::new(Kind::Timeout, text));
        };
        let Some(frame) = frame else { return Ok((bytes, memory)) };
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return too_large();
            }
            api::Error::invalid("The request body is incomplete.")
        })?;
        let Ok(data) = frame.into_data() else { continue };
        bytes.extend_from_slice(&data);
        if bytes.len() > SMALL_BODY_BYTES && bytes.len() > memory.bytes() {
            let began = Instant::now();
            memory.reserve(settings, SMALL_BODY_BYTES.max(data.len())).await?;
            deadline += began.elapsed();
        }
    }
}

/// Reserves the memory that a body needs when it is parsed.
async fn reserve_to_parse(bytes: &[u8], memory: &mut Memory, settings: &Settings) -> Result<(), api::Error> {
    if bytes.len() <= SMALL_BODY_BYTES {
        return Ok(());
    }
    let cost = parsed_bytes(bytes);
    let max = settings.bodies_bytes_max;
    if cost + bytes.len() > max {
        return Err(api::Error::new(
            Kind::TooLarge,
            format!(
                "The request body has too many values: it needs about {cost} bytes of memory when parsed, but this server \
                 allows {max} for all bodies together (bodies_bytes_max)."
            ),
        ));
    }
    memory.reserve(settings, cost).await
}

/// Estimates the memory of a JSON text when it is parsed, in bytes.
fn parsed_bytes(bytes: &[u8]) -> usize {
    let (mut values, mut is_text, mut is_escaped) = (1_usize, false, false);
    for byte in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b',' | b':' | b'[' | b'{' if !is_text => values += 1,
            _ => {}
        }
    }
    bytes.len() + values * VALUE_BYTES
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use futures_util::StreamExt as _;
    use tokio::sync::Semaphore;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings() -> Settings {
        Settings {
            body_bytes_max: 1024 * 1024,
            bodies_bytes_max: 1024 * 1024,
            bodies: Arc::new(Semaphore::new(1024)),
            body_timeout: 60 * SECOND,
            body_idle_timeout: 60 * SECOND,
            file_bytes_max: 0,
            upload_bytes_max: 0,
            upload_part_bytes_max: 0,
            keep_alive: SECOND,
            serves_metrics: true,
            cors_origins: Vec::new(),
        }
    }

    /// A body of two chunks of 100 kB with a pause between them.
    fn body(pause: Duration) -> Body {
        let pieces = futures_util::stream::iter([Duration::ZERO, pause]).then(async |pause| {
            tokio::time::sleep(pause).await;
            Ok::<_, Infallible>(vec![b' '; 100_000])
        });
        Body::from_stream(pieces)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_arrives_too_slowly_times_out() {
        let settings = settings();

        assert_eq!(read(body(59 * SECOND), &settings).await.unwrap().0.len(), 200_000);
        assert_eq!(read(body(61 * SECOND), &settings).await.err().unwrap().kind, Kind::Timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn the_body_timeout_does_not_include_the_wait_for_memory() {
        let settings = settings();
        let other = settings.bodies.clone().acquire_many_owned(1024).await.unwrap();

        let release = async {
            tokio::time::sleep(50 * SECOND).await;
            drop(other);
        };
        let (read, ()) = tokio::join!(read(body(50 * SECOND), &settings), release);

        let (bytes, memory) = read.unwrap();
        assert_eq!((bytes.len(), memory.bytes() >= 200_000), (200_000, true));
        drop(memory);
        assert_eq!(settings.bodies.available_permits(), 1024, "the memory was released");
    }

    #[tokio::test(start_paused = true)]
    async fn the_total_wait_of_a_body_for_memory_is_limited() {
        let settings = settings();
        let other = settings.bodies.clone().acquire_many_owned(1024).await.unwrap();

        let error = read(body(Duration::ZERO), &settings).await.err().unwrap();
        assert_eq!(error.kind, Kind::Unavailable);
        assert!(error.message.contains("bodies_bytes_max"), "{error}");

        // It waits for 50 s, reserves a part of the memory, and waits for 10 more seconds.
        let began = Instant::now();
        let release_a_part = async {
            tokio::time::sleep(50 * SECOND).await;
            let mut other = other;
            drop(other.split(100));
            other
        };
        let (read, _other) = tokio::join!(read(body(Duration::ZERO), &settings), release_a_part);
        assert_eq!((read.err().unwrap().kind, began.elapsed().as_secs()), (Kind::Unavailable, 60));
    }
}
