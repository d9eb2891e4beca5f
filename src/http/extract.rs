//! Extractors of path parameters, queries and bodies. They reject invalid values with errors of the API.

use axum::extract::{FromRequest, FromRequestParts, RawPathParams, RawQuery, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;

use super::error::Error;
use super::state::App;
use crate::api;
use crate::api::error::Kind;
use crate::api::id::Id;
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

/// The query of a list request.
pub(super) struct ListQuery {
    pub page: PageQuery,
    /// Returns only messages of this run.
    pub run: Option<RunId>,
}

impl<S: Send + Sync> FromRequestParts<S> for ListQuery {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Ok(RawQuery(query)) = RawQuery::from_request_parts(parts, state).await;
        let pairs: Vec<(String, String)> =
            serde_urlencoded::from_str(query.as_deref().unwrap_or_default()).unwrap_or_default();
        let page = PageQuery::parse(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
        let run = pairs.iter().find(|(name, value)| name == "run_id" && !value.is_empty());
        let run = run.map(|(_, value)| RunId::parse(value, "run_id")).transpose()?;
        Ok(Self { page, run })
    }
}

/// A body with any JSON object.
pub(super) struct Object(pub Map<String, Value>);

impl FromRequest<App> for Object {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        check_content_type(&request)?;
        let (bytes, memory) = read(request, app).await?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(Map::new()));
        }
        let _memory = reserve_to_parse(&bytes, memory, app).await?;
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(members)) => Ok(Self(members)),
            Ok(other) => Err(rule::wrong_type(&rule::At::Root, "an object", &other).into()),
            Err(_) => Err(api::Error::invalid(
                "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your \
                 HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON. If \
                 you have trouble figuring out how to fix this, please contact us through our help center at \
                 help.openai.com.)",
            )
            .into()),
        }
    }
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

/// The memory reserved for a body.
type Memory = Vec<OwnedSemaphorePermit>;

/// Bodies up to this size do not reserve memory, in bytes.
const SMALL_BODY_BYTES: usize = 64 * 1024;
/// Memory of a parsed element or property in addition to its text, in bytes.
const VALUE_BYTES: usize = 80;

/// Reads a body. Reserves memory for a large body.
async fn read(request: Request, app: &App) -> Result<(Bytes, Memory), api::Error> {
    let settings = &app.settings;
    let max = settings.body_bytes_max;
    let mut body = Limited::new(request.into_body(), max);
    let read = async {
        let (mut bytes, mut memory) = (BytesMut::new(), Memory::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    let text = format!(
                        "The request body is larger than {max} bytes, the maximum of this server (body_bytes_max)."
                    );
                    return api::Error::new(Kind::TooLarge, text);
                }
                api::Error::invalid("The request body is incomplete.")
            })?;
            let Ok(data) = frame.into_data() else { continue };
            bytes.extend_from_slice(&data);
            let reserved: usize = memory.iter().map(OwnedSemaphorePermit::num_permits).sum();
            if bytes.len() > SMALL_BODY_BYTES && bytes.len() > reserved * 1024 {
                memory.push(reserve(app, SMALL_BODY_BYTES.max(data.len())).await?);
            }
        }
        Ok((bytes.freeze(), memory))
    };
    let timeout_error = || {
        let seconds = settings.body_timeout.as_secs();
        api::Error::new(Kind::Timeout, format!("The request body did not arrive within {seconds} s (body_timeout_s)."))
    };
    tokio::time::timeout(settings.body_timeout, read).await.map_err(|_| timeout_error())?
}

/// Reserves the memory that a body needs when it is parsed.
async fn reserve_to_parse(bytes: &[u8], mut memory: Memory, app: &App) -> Result<Memory, api::Error> {
    if bytes.len() <= SMALL_BODY_BYTES {
        return Ok(memory);
    }
    let cost = parsed_bytes(bytes);
    let max = app.settings.bodies_bytes_max;
    if cost + bytes.len() > max {
        return Err(api::Error::new(
            Kind::TooLarge,
            format!(
                "The request body has too many values: it needs about {cost} bytes of memory when parsed, but this server \
                 allows {max} for all bodies together (bodies_bytes_max)."
            ),
        ));
    }
    memory.push(reserve(app, cost).await?);
    Ok(memory)
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

/// Reserves memory for bodies. Waits for at most the body timeout.
async fn reserve(app: &App, bytes: usize) -> Result<OwnedSemaphorePermit, api::Error> {
    let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    let permits = app.settings.bodies.clone().acquire_many_owned(kib);
    match tokio::time::timeout(app.settings.body_timeout, permits).await {
        Ok(Ok(permits)) => Ok(permits),
        Ok(Err(_)) | Err(_) => Err(api::Error::new(
            Kind::Unavailable,
            "The server is reading too many large requests (bodies_bytes_max). Please retry.",
        )),
    }
}
