//! What a client may be told when its request cannot be served.

use schemars::JsonSchema;
use serde::Serialize;

/// A refusal in the API's own words: what kind, why, and which member is to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Decides the HTTP status and the `type` member.
    pub kind: Kind,
    /// A sentence for a person.
    pub message: String,
    /// The path of the faulty member, such as `tools[0].function.name`.
    pub param: Option<String>,
    /// A word for a program, such as `unknown_parameter`.
    pub code: Option<&'static str>,
}

/// The kinds of refusal, one per HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 400: the request is wrong and will stay wrong.
    InvalidRequest,
    /// 401: the key is missing or wrong.
    Authentication,
    /// 403: this caller may not.
    Forbidden,
    /// 404: the thing named is not here.
    NotFound,
    /// 405: the path exists, the method does not.
    MethodNotAllowed,
    /// 408: the body did not arrive in time.
    Timeout,
    /// 413: the body is larger than the server takes.
    TooLarge,
    /// 415: the body is not JSON.
    UnsupportedMedia,
    /// 429: this caller asks too often.
    RateLimited,
    /// 500: our fault.
    Server,
    /// 502: the model server could not be reached or answered nonsense.
    BadGateway,
    /// 503: the server is stopping, or its store is away.
    Unavailable,
}

impl Kind {
    /// The HTTP status code.
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
            Self::RateLimited => 429,
            Self::Server => 500,
            Self::BadGateway => 502,
            Self::Unavailable => 503,
        }
    }

    /// The `type` member.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.status() {
            429 => "requests",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }
}

/// The members of `error` in a reply, all four always present.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub struct Body<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

/// Maximum length of a message or a path in a reply, in characters: both may quote what a client sent.
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
    /// A refusal without `param` and `code`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: bounded(message.into()), param: None, code: None }
    }

    /// 400 without `param` and `code`.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidRequest, message)
    }

    /// 404 in the wording that scripts match on: `No thread found with id 'thread_x'.`
    pub fn not_found(noun: &str, id: &dyn std::fmt::Display) -> Self {
        Self::new(Kind::NotFound, format!("No {noun} found with id '{id}'."))
    }

    /// The text of every 500; the log has the cause.
    ///
    /// Source: recorded 500 answers of the service.
    #[must_use]
    pub fn server(request_id: &str) -> Self {
        Self::new(
            Kind::Server,
            format!(
                "The server had an error processing your request. Sorry about that! You can retry your request, or \
                 contact us through our help center at help.openai.com if you keep seeing this error. (Please include \
                 the request ID {request_id} in your email.)"
            ),
        )
    }

    /// Names the faulty member.
    #[must_use]
    pub fn at(mut self, param: impl Into<String>) -> Self {
        self.param = Some(bounded(param.into()));
        self
    }

    /// Adds the word for programs.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The wire form of the refusal, without the enclosing `error` member.
    #[must_use]
    pub fn body(&self) -> Body<'_> {
        Body { message: &self.message, kind: self.kind.name(), param: self.param.as_deref(), code: self.code }
    }
}
