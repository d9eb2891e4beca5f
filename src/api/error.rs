//! Errors that are returned to clients.

use schemars::JsonSchema;
use serde::Serialize;

/// An error of the API: its kind, message, and the invalid parameter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Determines the HTTP status and the `type` property.
    pub kind: Kind,
    /// The error message.
    pub message: String,
    /// The path of the invalid parameter, such as `tools[0].function.name`.
    pub param: Option<String>,
    /// The error code, such as `unknown_parameter`.
    pub code: Option<&'static str>,
    /// When a retry can succeed, in seconds from now.
    pub retry_after_s: Option<u64>,
}

/// The kinds of errors, one per HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 400: the request is invalid.
    InvalidRequest,
    /// 401: the API key is missing or invalid.
    Authentication,
    /// 403: the caller is not allowed.
    Forbidden,
    /// 404: the object does not exist.
    NotFound,
    /// 405: the path does not support the method.
    MethodNotAllowed,
    /// 408: the body did not arrive in time.
    Timeout,
    /// 413: the body is too large.
    TooLarge,
    /// 415: the body has another content type.
    UnsupportedMedia,
    /// 416: the requested range is outside of the file.
    RangeNotSatisfiable,
    /// 429: the caller exceeded its limit of requests.
    RateLimited,
    /// 429: the caller exceeded its limit of tokens per minute.
    TokensLimited,
    /// 429: the caller exceeded its quota.
    QuotaExceeded,
    /// 500: an internal error.
    Server,
    /// 502: the model server is unreachable or sent an invalid response.
    BadGateway,
    /// 503: the server is stopping, or its store is unavailable.
    Unavailable,
}

impl Kind {
    /// Returns the HTTP status code.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Authentication => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Timeout => 408,
            Self::TooLarge => 413,
            Self::UnsupportedMedia => 415,
            Self::RangeNotSatisfiable => 416,
            Self::RateLimited | Self::TokensLimited | Self::QuotaExceeded => 429,
            Self::Server => 500,
            Self::BadGateway => 502,
            Self::Unavailable => 503,
        }
    }

    /// Returns the `type` property.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RateLimited => "requests",
            Self::TokensLimited => "tokens",
            Self::QuotaExceeded => "insufficient_quota",
            Self::Server | Self::BadGateway | Self::Unavailable => "server_error",
            Self::InvalidRequest
            | Self::Authentication
            | Self::Forbidden
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::Timeout
            | Self::TooLarge
            | Self::UnsupportedMedia
            | Self::RangeNotSatisfiable => "invalid_request_error",
        }
    }
}

/// The properties of `error` in a response. All four are always present.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub struct Body<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

/// Maximum length of a message or a path in a response, in characters: both may quote the request.
const QUOTED_CHARS_MAX: usize = 2_000;

fn bounded(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(QUOTED_CHARS_MAX) {
        text.truncate(end);
        text.push_str("...");
        text.shrink_to_fit();
    }
    text
}

impl Error {
    /// Creates an error without `param` and `code`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: bounded(message.into()), param: None, code: None, retry_after_s: None }
    }

    /// Creates a 400 without `param` and `code`.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidRequest, message)
    }

    /// Creates a 404 with the message that clients match on: `No thread found with id 'thread_x'.`
    pub fn not_found(noun: &str, id: &dyn std::fmt::Display) -> Self {
        Self::new(Kind::NotFound, format!("No {noun} found with id '{id}'."))
    }

    /// Creates the error of every 500; the cause is in the log.
    ///
    /// Differs: after the first sentences, the service names its help center.
    #[must_use]
    pub fn server(request_id: &str) -> Self {
        Self::new(
            Kind::Server,
            format!(
                "The server had an error processing your request. Sorry about that! You can retry your request. The log \
                 of this assistd server has the cause, with the request ID {request_id}."
            ),
        )
    }

    /// Sets `param`.
    #[must_use]
    pub fn at(mut self, param: impl Into<String>) -> Self {
        self.param = Some(bounded(param.into()));
        self
    }

    /// Sets `code`.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// Sets when a retry can succeed, in seconds from now.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Returns the wire form, without the enclosing `error` property.
    #[must_use]
    pub fn body(&self) -> Body<'_> {
        Body { message: &self.message, kind: self.kind.name(), param: self.param.as_deref(), code: self.code }
    }
}
