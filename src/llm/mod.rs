//! Model servers: any server with a chat-completions API.
//!
//! [`Models`] finds the server for a model name; a [`ChatModel`] is one server.

mod discover;
mod echo;
mod embeddings;
pub mod forwarded;
pub mod inspect;
pub mod lenient;
pub mod members;
mod model_cache;
mod openai;
mod routing;
pub mod sse;
pub mod tokens;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::api::run::FinishReason;
use crate::api::usage::Usage;

pub use discover::{Found, NotFound, discover, find};
pub use echo::Echo;
pub use embeddings::{Embedded, Embedder, EmbeddingInput, EmbeddingServer, EmbeddingSettings, Embeddings};
pub use openai::{MASK, Settings, ThinkTags, Upstream};
pub use routing::{Entry, Models, Route, only_or_first_chat_model};

/// What Google puts in front of names in its list.
const LISTED_PREFIX: &str = "models/";
/// The tag that Ollama adds to a name without one.
const DEFAULT_TAG: &str = ":latest";

/// A request for an answer, in the form of chat completions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[expect(missing_docs, reason = "the fields are those of chat completions")]
pub struct ChatRequest {
    pub model: String,
    pub messages: Vec<ChatMessage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_format: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
}

/// A message, in the form of chat completions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// The author.
    pub role: ChatRole,
    /// A string, a list of parts, or null in a message with tool calls.
    pub content: Value,
    /// The assistant's tool calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Value>,
    /// The call that a `tool` message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Further members that the model wrote, which are sent back to it.
    #[serde(flatten)]
    pub members: Map<String, Value>,
}

/// The author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatRole {
    /// The instructions.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// A tool, which answers a call.
    Tool,
}

impl ChatMessage {
    /// Creates a message without tool calls.
    #[must_use]
    pub fn new(role: ChatRole, content: Value) -> Self {
        Self { role, content, tool_calls: Vec::new(), tool_call_id: None, members: Map::new() }
    }
}

/// A part of a model's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatDelta {
    /// More text; never empty.
    Text(String),
    /// More text of a refusal; never empty.
    Refusal(String),
    /// A part of a tool call.
    Call(CallPiece),
    /// A part of another member of the message, which is sent back to the model with its calls; see [`members`].
    Member(String, Value),
    /// Text that clients do not see, such as thinking between tags.
    Hidden(String),
    /// The reason for the end of the answer.
    Finish(FinishReason),
    /// Tokens that the answer used.
    Usage(Usage),
}

/// A part of a tool call. Servers differ in the fields that they omit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CallPiece {
    /// The call's index in the turn.
    pub index: Option<u32>,
    /// The server's ID of the call.
    pub id: Option<String>,
    /// The function's name.
    pub name: Option<String>,
    /// More of the arguments; may be empty.
    pub arguments: String,
    /// Further members of the call, which are sent back to the model.
    pub members: Map<String, Value>,
}

/// A model's answer: each item holds the deltas of one read from the server, so that a burst is handled at once.
pub type ChatStream = BoxStream<'static, Result<Vec<ChatDelta>, Error>>;

/// An error of a model server. The texts name the server, but not its address, because clients see them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The server still returns 429 after all retries.
    #[error("{0}")]
    RateLimited(Cause),
    /// The server cannot be reached, is too slow, or closed the connection; retries are used up.
    #[error("{0}")]
    Unavailable(Cause),
    /// The server rejected the request; a retry does not help.
    #[error("{0}")]
    Rejected(Cause),
}

impl Error {
    /// Returns the cause.
    #[must_use]
    pub fn cause(&self) -> &Cause {
        match self {
            Self::RateLimited(cause) | Self::Unavailable(cause) | Self::Rejected(cause) => cause,
        }
    }

    /// Returns whether the server has no list of models.
    #[must_use]
    pub fn has_no_list(&self) -> bool {
        matches!(self, Self::Rejected(cause) if matches!(cause.status, Some(404 | 405)))
    }

    /// Returns the text for the log, which has no text that the server wrote.
    #[must_use]
    pub fn for_log(&self) -> &str {
        &self.cause().for_log
    }
}

/// Why a model server did not answer a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// For the client, with the text that the server wrote.
    pub text: String,
    /// For the log: the same without the server's text, because servers repeat prompts in their errors.
    pub for_log: String,
    /// The HTTP status of the server's response, or the one in its error.
    pub status: Option<u16>,
}

impl From<String> for Cause {
    /// Creates a cause that has no text of a server.
    fn from(text: String) -> Self {
        Self { for_log: text.clone(), text, status: None }
    }
}

impl From<&str> for Cause {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl Error {
    /// Returns the label of the error in metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::RateLimited(_) => "rate_limited",
            Self::Unavailable(_) => "unavailable",
            Self::Rejected(_) => "rejected",
        }
    }
}

/// A response that is forwarded unchanged.
#[expect(missing_debug_implementations, reason = "a stream has no Debug form")]
pub struct Proxied {
    /// The HTTP status.
    pub status: u16,
    /// The content type, if the server sent one.
    pub content_type: Option<String>,
    /// The `retry-after` header, if the server sent one.
    pub retry_after: Option<String>,
    /// Whether the body is an event stream, whatever its content type.
    pub is_stream: bool,
    /// Whether the server was asked for a chunk with the usage that the client did not ask for.
    pub usage_was_added: bool,
    /// The body as it arrives.
    pub body: BoxStream<'static, Result<Bytes, Error>>,
}

/// One model server.
#[async_trait]
pub trait ChatModel: Send + Sync + std::fmt::Debug {
    /// Requests an answer. Nothing is sent before the stream is first polled; dropping it closes the connection.
    ///
    /// The request is dropped when the answer starts, so that no prompt is in memory while tokens stream.
    fn chat(&self, request: ChatRequest) -> ChatStream;
    /// Forwards a request unchanged, except that a stream of chat completions is requested with its usage.
    async fn proxy(&self, endpoint: Endpoint, request: Map<String, Value>) -> Result<Proxied, Error>;
    /// Lists the server's models.
    async fn list(&self) -> Result<Vec<ModelObject>, Error>;
    /// Returns the server's name, for the log: the one in the settings, or the setting that has its URL.
    fn name(&self) -> &str;
    /// Returns whether the server is on this machine or in the same network.
    fn is_local(&self) -> bool {
        true
    }
}

/// An endpoint to which requests are forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/chat/completions`
    ChatCompletions,
    /// `/embeddings`
    Embeddings,
}

/// A model in a list of models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelObject {
    /// Its name.
    pub id: String,
    /// Always `model`.
    #[serde(default = "object_default")]
    pub object: String,
    /// When it was created, in Unix seconds.
    #[serde(default)]
    pub created: i64,
    /// Its owner.
    #[serde(default = "owner_default")]
    pub owned_by: String,
    /// The context window: maximum tokens of a prompt and its answer together, if the server reports it.
    #[serde(skip)]
    pub window: Option<u32>,
}

fn object_default() -> String {
    "model".to_owned()
}

fn owner_default() -> String {
    "assistd".to_owned()
}

impl ModelObject {
    /// Returns whether a name is the model's. Ollama lists `qwen3:latest`, and answers to `qwen3` as well; Google lists
    /// `models/gemini-2.5-pro`, and answers to `gemini-2.5-pro`.
    #[must_use]
    pub fn answers_to(&self, name: &str) -> bool {
        let is_name = |id: &str| id.strip_prefix(name).is_some_and(|tag| tag.is_empty() || tag == DEFAULT_TAG);
        is_name(&self.id) || self.id.strip_prefix(LISTED_PREFIX).is_some_and(is_name)
    }

    fn ours(id: &str) -> Self {
        Self { id: id.to_owned(), object: object_default(), created: 0, owned_by: owner_default(), window: None }
    }
}
