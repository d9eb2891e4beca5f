//! Messages of users and assistants.

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::Error;
use super::id::{AssistantId, FileId, Ids, MessageId, RunId, ThreadId};
use super::metadata::{Metadata, metadata};
use super::rule::{
    At, Request as _, Rule, array, custom, id, object, one_of, string, tagged, tagged_schema, too_long, wrong_type,
};
use super::time::Timestamp;
use super::tool::BareTool;
use crate::request;

/// Maximum length of the text of a message, in characters.
const TEXT_CHARS_MAX: usize = 256_000;
/// Maximum length of an image URL, in characters: enough for a data URL of several megabytes.
const URL_CHARS_MAX: usize = 16_000_000;
/// Maximum number of content parts of a message. The service documents none; this limits the stored size.
const PARTS_MAX: usize = 1_000;
/// Maximum number of attachments of a message. The service documents none; this limits the stored size.
const ATTACHMENTS_MAX: usize = 1_000;

/// A message of a user or an assistant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The message ID.
    pub id: MessageId,
    /// When it was created.
    pub created_at: Timestamp,
    /// The thread of the message.
    pub thread_id: ThreadId,
    /// The run that wrote the message, if any.
    pub author: Option<Author>,
    /// The role of the author.
    pub role: Role,
    /// The content parts.
    pub content: Vec<Content>,
    /// The attached files.
    pub attachments: Vec<Attachment>,
    /// The metadata set by the client.
    pub metadata: Metadata,
    /// The state of the message.
    pub state: MessageState,
}

/// The run that wrote a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// The assistant of the run.
    pub assistant_id: AssistantId,
    /// The run.
    pub run_id: RunId,
}

/// The roles in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The user.
    User,
    /// The model, or a client on its behalf.
    Assistant,
}

/// The state of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    /// A run is writing it.
    InProgress,
    /// It is complete.
    Completed {
        /// When it was completed.
        at: Timestamp,
    },
    /// It was cut off.
    Incomplete {
        /// When it was cut off.
        at: Timestamp,
        /// The reason.
        reason: IncompleteReason,
    },
}

/// Why a message is incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of the API reference")]
pub enum IncompleteReason {
    ContentFilter,
    MaxTokens,
    RunCancelled,
    RunExpired,
    RunFailed,
}

/// A content part of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Content {
    /// Text.
    Text {
        /// The text and its annotations.
        text: Text,
    },
    /// An image at a URL, which may be a data URL.
    ImageUrl {
        /// The URL.
        image_url: ImageUrl,
    },
    /// An image in a file.
    ImageFile {
        /// The file.
        image_file: ImageFile,
    },
    /// A refusal by the model.
    Refusal {
        /// The text of the refusal.
        refusal: String,
    },
}

impl Content {
    /// Returns the text of a text part.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text { text } => Some(&text.value),
            Self::ImageUrl { .. } | Self::ImageFile { .. } | Self::Refusal { .. } => None,
        }
    }

    /// Returns the text of a refusal part.
    #[must_use]
    pub fn as_refusal(&self) -> Option<&str> {
        match self {
            Self::Refusal { refusal } => Some(refusal),
            Self::Text { .. } | Self::ImageUrl { .. } | Self::ImageFile { .. } => None,
        }
    }

    /// Creates a text part without annotations.
    pub fn text(value: impl Into<String>) -> Self {
        Self::Text { text: Text { value: value.into(), annotations: Vec::new() } }
    }
}

/// A text and its annotations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// The text.
    pub value: String,
    /// References to files in the text, in order.
    pub annotations: Vec<Annotation>,
}

impl Text {
    /// Returns a range of the text, in bytes, without the citations in it and the spaces before them.
    #[must_use]
    pub fn without_marks(&self, range: std::ops::Range<usize>) -> String {
        let mut plain = String::new();
        let mut at = range.start;
        let is_citation = |mark: &&Annotation| mark.kind == AnnotationKind::FileCitation;
        let marks = self.annotations.iter().filter(is_citation);
        for mark in marks.filter(|mark| range.contains(&mark.start_byte)) {
            plain.push_str(self.value.get(at..mark.start_byte).unwrap_or_default());
            plain.truncate(plain.trim_end_matches(' ').len());
            at = mark.end_byte();
        }
        plain.push_str(self.value.get(at..range.end).unwrap_or_default());
        plain
    }
}

/// A mark in a text that refers to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annotation {
    /// The mark.
    pub text: String,
    /// Where the mark starts, in characters.
    pub start_index: usize,
    /// Where it ends, in characters.
    pub end_index: usize,
    /// Where the mark starts, in bytes.
    pub start_byte: usize,
    /// The file.
    pub file_id: FileId,
    /// The cited passage; `None` if it is not sent.
    pub quote: Option<String>,
    /// What the mark is.
    #[serde(default, skip_serializing_if = "AnnotationKind::is_default")]
    pub kind: AnnotationKind,
}

/// What a mark in a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnnotationKind {
    /// A citation of a passage of a file.
    #[default]
    FileCitation,
    /// The path of a file that code has written.
    FilePath,
}

impl AnnotationKind {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is that of serde")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Annotation {
    /// Returns where the mark ends, in bytes.
    #[must_use]
    pub fn end_byte(&self) -> usize {
        self.start_byte + self.text.len()
    }
}

/// The wire form of an [`Annotation`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct AnnotationObject<'a> {
    /// The index among the annotations of the text. Present in deltas only.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
    r#type: &'static str,
    text: &'a str,
    start_index: usize,
    end_index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_citation: Option<FileCitation<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_path: Option<FilePath<'a>>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct FilePath<'a> {
    file_id: &'a FileId,
}

#[derive(Debug, Serialize, JsonSchema)]
struct FileCitation<'a> {
    file_id: &'a FileId,
    #[serde(skip_serializing_if = "Option::is_none")]
    quote: Option<&'a str>,
}

impl<'a> AnnotationObject<'a> {
    /// Returns the form in a delta, in which a citation always has a `quote`.
    #[must_use]
    pub fn in_delta(index: u32, annotation: &'a Annotation) -> Self {
        let mut object = Self::from(annotation);
        object.index = Some(index);
        if let Some(citation) = &mut object.file_citation {
            citation.quote.get_or_insert_default();
        }
        object
    }
}

impl<'a> From<&'a Annotation> for AnnotationObject<'a> {
    fn from(annotation: &'a Annotation) -> Self {
        let file_id = &annotation.file_id;
        let mut object = Self {
            index: None,
            r#type: "file_citation",
            text: &annotation.text,
            start_index: annotation.start_index,
            end_index: annotation.end_index,
            file_citation: None,
            file_path: None,
        };
        match annotation.kind {
            AnnotationKind::FileCitation => {
                object.file_citation = Some(FileCitation { file_id, quote: annotation.quote.as_deref() });
            }
            AnnotationKind::FilePath => {
                object.r#type = "file_path";
                object.file_path = Some(FilePath { file_id });
            }
        }
        object
    }
}

/// The wire form of a [`Content`].
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ContentObject<'a> {
    /// Text.
    Text {
        /// The text and its annotations.
        text: TextObject<'a>,
    },
    /// An image at a URL.
    ImageUrl {
        /// The URL.
        image_url: &'a ImageUrl,
    },
    /// An image in a file.
    ImageFile {
        /// The file.
        image_file: &'a ImageFile,
    },
    /// A refusal by the model.
    Refusal {
        /// The text of the refusal.
        refusal: &'a str,
    },
}

/// The wire form of a [`Text`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct TextObject<'a> {
    value: &'a str,
    annotations: Vec<AnnotationObject<'a>>,
}

impl<'a> From<&'a Content> for ContentObject<'a> {
    fn from(content: &'a Content) -> Self {
        match content {
            Content::Text { text: Text { value, annotations } } => {
                let annotations = annotations.iter().map(AnnotationObject::from).collect();
                Self::Text { text: TextObject { value, annotations } }
            }
            Content::ImageUrl { image_url } => Self::ImageUrl { image_url },
            Content::ImageFile { image_file } => Self::ImageFile { image_file },
            Content::Refusal { refusal } => Self::Refusal { refusal },
        }
    }
}

/// An image at a URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageUrl {
    /// An `http`, `https` or `data` URL.
    pub url: String,
    /// The detail level.
    pub detail: Detail,
}

/// An image in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageFile {
    /// The file ID.
    pub file_id: FileId,
    /// The detail level.
    pub detail: Detail,
}

/// The detail level of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of the API reference")]
pub enum Detail {
    #[default]
    Auto,
    Low,
    High,
}

/// A file attached to a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attachment {
    /// The file ID.
    pub file_id: FileId,
    /// The tools that can use it.
    pub tools: Vec<AttachmentTool>,
}

/// A tool that can use an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of the API reference")]
pub enum AttachmentTool {
    CodeInterpreter,
    FileSearch,
}

/// The wire form of a [`Message`], with its properties in the recorded order.
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
    content: Vec<ContentObject<'a>>,
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
            content: message.content.iter().map(ContentObject::from).collect(),
            attachments: &message.attachments,
            metadata: &message.metadata,
        }
    }
}

request! {
    /// Body of `POST /threads/{thread_id}/messages`, and each message of a request that creates a thread or a run.
    pub struct CreateMessage {
        required role: Role = one_of(&[("user", Role::User), ("assistant", Role::Assistant)]);
        required content: Vec<Content> = custom(content, content_schema);
        optional attachments: Vec<Attachment> = array(custom(attachment, attachment_schema), 0, ATTACHMENTS_MAX);
        optional metadata: Metadata = metadata();
    }
}

impl CreateMessage {
    /// Returns the requested message.
    #[must_use]
    pub fn into_message(self, ids: &Ids, thread_id: &ThreadId, now: Timestamp) -> Message {
        Message {
            id: ids.generate(),
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
        Value::String(text) if text.is_empty() => Err(empty_content(at)),
        Value::String(_) => Ok(vec![Content::text(string(1, TEXT_CHARS_MAX).read(value, at)?)]),
        Value::Array(_) => {
            let parts = parts().read(value, at)?;
            if parts.iter().all(|part| part.as_text().is_some_and(str::is_empty)) {
                return Err(empty_content(at));
            }
            let characters = parts.iter().filter_map(Content::as_text).map(|words| words.chars().count()).sum();
            if characters > TEXT_CHARS_MAX {
                return Err(too_long(at, TEXT_CHARS_MAX, characters));
            }
            Ok(parts)
        }
        other => Err(wrong_type(at, "one of a string or array of objects", &other)),
    }
}

/// Returns 400 `Message content must be non-empty.`
///
/// The service returned this error for an empty string; its response to parts without any text or image is not
/// recorded. Empty text together with an image is accepted, because front ends send it.
fn empty_content(at: &At<'_>) -> Error {
    Error::invalid("Message content must be non-empty.").at(at.to_string())
}

fn parts() -> impl Rule<Out = Vec<Content>> {
    array(custom(part, part_schema), 1, PARTS_MAX)
}

fn content_schema(schemas: &mut SchemaGenerator) -> Value {
    let mut parts = parts().schema(schemas);
    parts["contains"] = json!({"not": {"required": ["text"], "properties": {"text": {"const": ""}}}});
    json!({"anyOf": [string(1, TEXT_CHARS_MAX).schema(schemas), parts]})
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
    /// A text part.
    pub struct TextPart {
        required text: String = string(0, TEXT_CHARS_MAX);
    }
}

request! {
    /// An image URL part.
    pub struct ImageUrlPart {
        required image_url: ImageUrlRequest = object();
    }
}

request! {
    /// An image at a URL.
    pub struct ImageUrlRequest {
        required url: String = custom(image_url, image_url_schema);
        optional detail: Detail = detail();
    }
}

/// Accepted prefixes of image URLs.
const URL_PREFIXES: [&str; 3] = ["http://", "https://", "data:image/"];

fn image_url_schema(_: &mut SchemaGenerator) -> Value {
    let pattern = format!("^({})", URL_PREFIXES.join("|"));
    json!({"type": "string", "maxLength": URL_CHARS_MAX, "pattern": pattern})
}

/// Differs: the service accepted only URLs with an image file extension. Here the model server validates the URL, and data
/// URLs are accepted as well.
fn image_url(value: Value, at: &At<'_>) -> Result<String, Error> {
    let url = string(1, URL_CHARS_MAX).read(value, at)?;
    if URL_PREFIXES.iter().any(|prefix| url.starts_with(prefix)) {
        return Ok(url);
    }
    Err(Error::invalid(format!("Invalid '{at}'. Expected a valid URL, but got a value with an invalid format."))
        .at(at.to_string())
        .code("invalid_value"))
}

request! {
    /// An image file part.
    pub struct ImageFilePart {
        required image_file: ImageFileRequest = object();
    }
}

request! {
    /// An image in a file.
    pub struct ImageFileRequest {
        required file_id: FileId = id();
        optional detail: Detail = detail();
    }
}

request! {
    /// A file attached to a message.
    pub struct AttachmentRequest {
        required file_id: FileId = id();
        required tools: Vec<AttachmentTool> = array(custom(attachment_tool, attachment_tool_schema), 0, 2);
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
