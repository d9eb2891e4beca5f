//! Messages: what users and assistants said.

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::Error;
use super::id::{AssistantId, FileId, Ids, MessageId, RunId, ThreadId};
use super::metadata::{Metadata, metadata};
use super::rule::{
    At, Request as _, Rule, array, by, id, object, one_of, string, tagged, tagged_schema, too_long, wrong_type,
};
use super::time::Timestamp;
use super::tool::BareTool;
use crate::request;

/// Most characters of a message's text.
const TEXT_CHARS_MAX: usize = 256_000;
/// Most characters of an image's address: enough for a data URL of some megabytes.
const URL_CHARS_MAX: usize = 16_000_000;
/// Most content parts of a message; the service states none, so this only bounds what is stored.
const PARTS_MAX: usize = 1_000;
/// Most attachments of a message; the service states none, so this only bounds what is stored.
const ATTACHMENTS_MAX: usize = 1_000;

/// What one side said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its name in the API.
    pub id: MessageId,
    /// When it was begun.
    pub created_at: Timestamp,
    /// The conversation it belongs to.
    pub thread_id: ThreadId,
    /// Who wrote it, when a run did.
    pub author: Option<Author>,
    /// Which side said it.
    pub role: Role,
    /// Text and images.
    pub content: Vec<Content>,
    /// Files that came with it.
    pub attachments: Vec<Attachment>,
    /// The client's own pairs.
    pub metadata: Metadata,
    /// Whether it is whole.
    pub state: MessageState,
}

/// The run that wrote a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// Whose run it was.
    pub assistant_id: AssistantId,
    /// The run.
    pub run_id: RunId,
}

/// The sides of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The client's user.
    User,
    /// The model, or a client speaking for it.
    Assistant,
}

/// Whether a message is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    /// A run is writing it.
    InProgress,
    /// It is whole since then.
    Completed {
        /// When it was finished.
        at: Timestamp,
    },
    /// It will stay a part.
    Incomplete {
        /// When it was cut.
        at: Timestamp,
        /// Why.
        reason: IncompleteReason,
    },
}

/// Why a message was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words are those of the API reference")]
pub enum IncompleteReason {
    ContentFilter,
    MaxTokens,
    RunCancelled,
    RunExpired,
    RunFailed,
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Content {
    /// Words.
    Text {
        /// The words and their notes.
        text: Text,
    },
    /// A picture on the web, or in a data URL.
    ImageUrl {
        /// Where it is.
        image_url: ImageUrl,
    },
    /// A picture among the files.
    ImageFile {
        /// Which one.
        image_file: ImageFile,
    },
    /// The model's words for not answering.
    Refusal {
        /// The words.
        refusal: String,
    },
}

impl Content {
    /// The words of a text.
    #[must_use]
    pub fn words(&self) -> Option<&str> {
        match self {
            Self::Text { text } => Some(&text.value),
            Self::ImageUrl { .. } | Self::ImageFile { .. } | Self::Refusal { .. } => None,
        }
    }

    /// The words of a refusal.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refusal { refusal } => Some(refusal),
            Self::Text { .. } | Self::ImageUrl { .. } | Self::ImageFile { .. } => None,
        }
    }

    /// Plain words without notes.
    pub fn text(value: impl Into<String>) -> Self {
        Self::Text { text: Text { value: value.into(), annotations: Vec::new() } }
    }
}

/// Words and their notes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Text {
    /// The words.
    pub value: String,
    /// Citations and file paths within them.
    pub annotations: Vec<Value>,
}

/// A picture on the web.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageUrl {
    /// http(s) or data URL.
    pub url: String,
    /// How closely the model looks.
    pub detail: Detail,
}

/// A picture among the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageFile {
    /// Its file.
    pub file_id: FileId,
    /// How closely the model looks.
    pub detail: Detail,
}

/// How closely a model looks at a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words are those of the API reference")]
pub enum Detail {
    #[default]
    Auto,
    Low,
    High,
}

/// A file that came with a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attachment {
    /// Which file.
    pub file_id: FileId,
    /// The tools that shall see it.
    pub tools: Vec<AttachmentTool>,
}

/// A tool that shall see an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words are those of the API reference")]
pub enum AttachmentTool {
    CodeInterpreter,
    FileSearch,
}

/// The wire form of a [`Message`], members in the recorded order.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MessageObject<'a> {
    id: &'a MessageId,
    object: &'static str,
    created_at: Timestamp,
    assistant_id: Option<&'a AssistantId>,
    thread_id: &'a ThreadId,
    run_id: Option<&'a RunId>,
    status: &'static str,
    incomplete_details: Option<IncompleteDetails>,
    incomplete_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
    role: Role,
    content: &'a [Content],
    attachments: &'a [Attachment],
    metadata: &'a Metadata,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "MessageIncompleteDetails")]
struct IncompleteDetails {
    reason: IncompleteReason,
}

impl<'a> From<&'a Message> for MessageObject<'a> {
    fn from(message: &'a Message) -> Self {
        let (status, completed_at, incomplete) = match message.state {
            MessageState::InProgress => ("in_progress", None, None),
            MessageState::Completed { at } => ("completed", Some(at), None),
            MessageState::Incomplete { at, reason } => ("incomplete", None, Some((at, reason))),
        };
        Self {
            id: &message.id,
            object: "thread.message",
            created_at: message.created_at,
            assistant_id: message.author.as_ref().map(|author| &author.assistant_id),
            thread_id: &message.thread_id,
            run_id: message.author.as_ref().map(|author| &author.run_id),
            status,
            incomplete_details: incomplete.map(|(_, reason)| IncompleteDetails { reason }),
            incomplete_at: incomplete.map(|(at, _)| at),
            completed_at,
            role: message.role,
            content: &message.content,
            attachments: &message.attachments,
            metadata: &message.metadata,
        }
    }
}

request! {
    /// Body of `POST /threads/{thread_id}/messages`, and each message that comes with a thread or a run.
    pub struct CreateMessage {
        required role: Role = one_of(&[("user", Role::User), ("assistant", Role::Assistant)]);
        required content: Vec<Content> = by(content, content_schema);
        optional attachments: Vec<Attachment> = array(by(attachment, attachment_schema), 0, ATTACHMENTS_MAX);
        optional metadata: Metadata = metadata();
    }
}

impl CreateMessage {
    /// The message that the request asks for.
    #[must_use]
    pub fn into_message(self, ids: &Ids, thread_id: &ThreadId, now: Timestamp) -> Message {
        Message {
            id: ids.make(),
            created_at: now,
            thread_id: thread_id.clone(),
            author: None,
            role: self.role,
            content: self.content,
            attachments: self.attachments.unwrap_or_default(),
            metadata: self.metadata.unwrap_or_default(),
            state: MessageState::Completed { at: now },
        }
    }
}

fn content(value: Value, at: &At<'_>) -> Result<Vec<Content>, Error> {
    match value {
        Value::String(_) => Ok(vec![Content::text(string(0, TEXT_CHARS_MAX).read(value, at)?)]),
        Value::Array(_) => {
            let parts = parts().read(value, at)?;
            let characters = parts.iter().filter_map(Content::words).map(|words| words.chars().count()).sum();
            if characters > TEXT_CHARS_MAX {
                return Err(too_long(at, TEXT_CHARS_MAX, characters));
            }
            Ok(parts)
        }
        other => Err(wrong_type(at, "one of a string or array of objects", &other)),
    }
}

fn parts() -> impl Rule<Out = Vec<Content>> {
    array(by(part, part_schema), 1, PARTS_MAX)
}

fn content_schema(schemas: &mut SchemaGenerator) -> Value {
    json!({"anyOf": [string(0, TEXT_CHARS_MAX).schema(schemas), parts().schema(schemas)]})
}

fn part_schema(schemas: &mut SchemaGenerator) -> Value {
    tagged_schema(vec![
        ("text", TextPart::schema(schemas)),
        ("image_url", ImageUrlPart::schema(schemas)),
        ("image_file", ImageFilePart::schema(schemas)),
    ])
}

fn part(value: Value, at: &At<'_>) -> Result<Content, Error> {
    let (kind, members) = tagged(value, at, &["text", "image_url", "image_file"])?;
    match kind {
        "text" => object::<TextPart>().read(members.into(), at).map(|part| Content::text(part.text)),
        "image_url" => object::<ImageUrlPart>().read(members.into(), at).map(|part| Content::ImageUrl {
            image_url: ImageUrl { url: part.image_url.url, detail: part.image_url.detail.unwrap_or_default() },
        }),
        _ => object::<ImageFilePart>().read(members.into(), at).map(|part| Content::ImageFile {
            image_file: ImageFile {
                file_id: part.image_file.file_id,
                detail: part.image_file.detail.unwrap_or_default(),
            },
        }),
    }
}

fn detail() -> impl Rule<Out = Detail> {
    one_of(&[("auto", Detail::Auto), ("low", Detail::Low), ("high", Detail::High)])
}

request! {
    /// A part made of words.
    pub struct TextPart {
        required text: String = string(0, TEXT_CHARS_MAX);
    }
}

request! {
    /// A part that is a picture on the web.
    pub struct ImageUrlPart {
        required image_url: ImageUrlRequest = object();
    }
}

request! {
    /// A picture on the web.
    pub struct ImageUrlRequest {
        required url: String = by(image_url, image_url_schema);
        optional detail: Detail = detail();
    }
}

/// What the address of a picture begins with.
const URL_BEGINNINGS: [&str; 3] = ["http://", "https://", "data:image/"];

fn image_url_schema(_: &mut SchemaGenerator) -> Value {
    let pattern = format!("^({})", URL_BEGINNINGS.join("|"));
    json!({"type": "string", "maxLength": URL_CHARS_MAX, "pattern": pattern})
}

/// Differs: the service took only addresses that end like a picture's file; here a model server may see to that, and
/// data URLs are taken as well.
fn image_url(value: Value, at: &At<'_>) -> Result<String, Error> {
    let url = string(1, URL_CHARS_MAX).read(value, at)?;
    if URL_BEGINNINGS.iter().any(|beginning| url.starts_with(beginning)) {
        return Ok(url);
    }
    Err(Error::invalid(format!("Invalid '{at}'. Expected a valid URL, but got a value with an invalid format."))
        .at(at.to_string())
        .code("invalid_value"))
}

request! {
    /// A part that is a picture among the files.
    pub struct ImageFilePart {
        required image_file: ImageFileRequest = object();
    }
}

request! {
    /// A picture among the files.
    pub struct ImageFileRequest {
        required file_id: FileId = id();
        optional detail: Detail = detail();
    }
}

request! {
    /// A file that comes with a message.
    pub struct AttachmentRequest {
        required file_id: FileId = id();
        required tools: Vec<AttachmentTool> = array(by(attachment_tool, attachment_tool_schema), 0, 2);
    }
}

fn attachment(value: Value, at: &At<'_>) -> Result<Attachment, Error> {
    let AttachmentRequest { file_id, tools } = object().read(value, at)?;
    Ok(Attachment { file_id, tools })
}

fn attachment_schema(schemas: &mut SchemaGenerator) -> Value {
    object::<AttachmentRequest>().schema(schemas)
}

fn attachment_tool_schema(schemas: &mut SchemaGenerator) -> Value {
    tagged_schema(vec![("code_interpreter", BareTool::schema(schemas)), ("file_search", BareTool::schema(schemas))])
}

fn attachment_tool(value: Value, at: &At<'_>) -> Result<AttachmentTool, Error> {
    let (kind, members) = tagged(value, at, &["code_interpreter", "file_search"])?;
    object::<BareTool>().read(members.into(), at)?;
    Ok(if kind == "code_interpreter" { AttachmentTool::CodeInterpreter } else { AttachmentTool::FileSearch })
}

request! {
    /// Body of `POST /threads/{thread_id}/messages/{message_id}`.
    pub struct ModifyMessage {
        patch metadata: Metadata = metadata();
    }
}
