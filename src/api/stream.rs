//! The events of a run's stream.

use serde::Serialize;

use super::error::Error;
use super::id::{MessageId, RunStepId, ToolCallId};
use super::message::{Annotation, AnnotationObject, ImageFile, Message, MessageObject};
use super::run::{Run, RunObject};
use super::run_step::{RunStep, RunStepObject};
use super::thread::{Thread, ThreadObject};
use super::tool::{CodeOutput, ToolCall, ToolCallObject};

/// An event. Its payload is the current state of the object.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// The thread was created with the run.
    ThreadCreated(Thread),
    /// The run changed.
    Run(RunEvent, Run),
    /// A step changed.
    Step(StepEvent, RunStep),
    /// A message changed, other than by a delta.
    Message(MessageEvent, Message),
    /// Text was added to a message.
    MessageDelta(MessageDelta),
    /// Text was added to a refusal.
    RefusalDelta(RefusalDelta),
    /// An image was added to a message.
    ImageDelta(ImageDelta),
    /// A tool call started, or its arguments grew.
    StepDelta(StepDelta),
    /// The stream cannot continue.
    Error(Error),
}

/// The events of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the API reference")]
pub enum RunEvent {
    Created,
    Queued,
    InProgress,
    RequiresAction,
    Completed,
    Incomplete,
    Failed,
    Cancelling,
    Cancelled,
    Expired,
}

/// The events of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the API reference")]
pub enum StepEvent {
    Created,
    InProgress,
    Completed,
    Failed,
    Cancelled,
    Expired,
}

/// The events of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the API reference")]
pub enum MessageEvent {
    Created,
    InProgress,
    Completed,
    Incomplete,
}

/// Text that was added to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageDelta {
    /// The message ID.
    pub message_id: MessageId,
    /// The index of the content part.
    pub index: u32,
    /// The added text.
    pub value: String,
    /// Whether it is the first delta of the part.
    pub first: bool,
    /// The annotation of the added text and its index, if the text is a mark.
    pub annotation: Option<(u32, Annotation)>,
}

/// Text that was added to a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusalDelta {
    /// The message ID.
    pub message_id: MessageId,
    /// The index of the content part.
    pub index: u32,
    /// The added text.
    pub value: String,
}

/// An image that was added to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDelta {
    /// The message ID.
    pub message_id: MessageId,
    /// The index of the content part.
    pub index: u32,
    /// The image.
    pub image_file: ImageFile,
}

/// What was added to a `tool_calls` step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepDelta {
    /// The step ID.
    pub step_id: RunStepId,
    /// The index of the call.
    pub index: u32,
    /// The change of the call.
    pub growth: CallGrowth,
}

/// A change of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum CallGrowth {
    /// The call started.
    Started {
        /// Our ID of the call.
        id: ToolCallId,
        /// The function name.
        name: String,
    },
    /// Text was added to the arguments.
    Arguments(String),
    /// A built-in tool was called. It has no results yet.
    BuiltIn(ToolCall),
    /// Text was added to the code.
    Code(String),
    /// The code has produced this, the output with this number.
    Output(u32, CodeOutput),
}

impl StreamEvent {
    /// Returns the name in the `event:` line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ThreadCreated(_) => "thread.created",
            Self::Run(event, _) => match event {
                RunEvent::Created => "thread.run.created",
                RunEvent::Queued => "thread.run.queued",
                RunEvent::InProgress => "thread.run.in_progress",
                RunEvent::RequiresAction => "thread.run.requires_action",
                RunEvent::Completed => "thread.run.completed",
                RunEvent::Incomplete => "thread.run.incomplete",
                RunEvent::Failed => "thread.run.failed",
                RunEvent::Cancelling => "thread.run.cancelling",
                RunEvent::Cancelled => "thread.run.cancelled",
                RunEvent::Expired => "thread.run.expired",
            },
            Self::Step(event, _) => match event {
                StepEvent::Created => "thread.run.step.created",
                StepEvent::InProgress => "thread.run.step.in_progress",
                StepEvent::Completed => "thread.run.step.completed",
                StepEvent::Failed => "thread.run.step.failed",
                StepEvent::Cancelled => "thread.run.step.cancelled",
                StepEvent::Expired => "thread.run.step.expired",
            },
            Self::Message(event, _) => match event {
                MessageEvent::Created => "thread.message.created",
                MessageEvent::InProgress => "thread.message.in_progress",
                MessageEvent::Completed => "thread.message.completed",
                MessageEvent::Incomplete => "thread.message.incomplete",
            },
            Self::MessageDelta(_) | Self::RefusalDelta(_) | Self::ImageDelta(_) => "thread.message.delta",
            Self::StepDelta(_) => "thread.run.step.delta",
            Self::Error(_) => "error",
        }
    }

    /// Returns whether it is the last event before `done`.
    #[must_use]
    pub fn is_last(&self) -> bool {
        match self {
            Self::Run(event, run) => *event == RunEvent::RequiresAction || run.state.has_ended(),
            Self::Error(_) => true,
            Self::ThreadCreated(_)
            | Self::Step(..)
            | Self::Message(..)
            | Self::MessageDelta(_)
            | Self::RefusalDelta(_)
            | Self::ImageDelta(_)
            | Self::StepDelta(_) => false,
        }
    }

    /// Appends the payload as compact JSON to `out`. The text of search results is sent only if `with_content` is set.
    ///
    /// # Errors
    /// Never in practice: the payloads are always serializable.
    pub fn write_data(&self, out: &mut Vec<u8>, with_content: bool) -> serde_json::Result<()> {
        match self {
            Self::ThreadCreated(thread) => serde_json::to_writer(out, &ThreadObject::from(thread).retrieved()),
            Self::Run(_, run) => serde_json::to_writer(out, &RunObject::from(run).in_stream()),
            Self::Step(_, step) => {
                serde_json::to_writer(out, &RunStepObject::in_stream(step).with_content(with_content))
            }
            Self::Message(_, message) => serde_json::to_writer(out, &MessageObject::from(message)),
            Self::MessageDelta(delta) => serde_json::to_writer(out, &MessageDeltaObject::from(delta)),
            Self::RefusalDelta(delta) => serde_json::to_writer(out, &MessageDeltaObject::from(delta)),
            Self::ImageDelta(delta) => serde_json::to_writer(out, &MessageDeltaObject::from(delta)),
            Self::StepDelta(delta) => serde_json::to_writer(out, &StepDeltaObject::from(delta)),
            Self::Error(error) => serde_json::to_writer(out, &ErrorObject { error: error.body(), flat: error.body() }),
        }
    }
}

/// The wire form of a [`MessageDelta`].
#[derive(Debug, Serialize)]
struct MessageDeltaObject<'a> {
    id: &'a MessageId,
    object: &'static str,
    delta: ContentDelta<'a>,
}

#[derive(Debug, Serialize)]
struct ContentDelta<'a> {
    content: [PartDelta<'a>; 1],
}

#[derive(Debug, Serialize)]
struct PartDelta<'a> {
    index: u32,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<TextDelta<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_file: Option<&'a ImageFile>,
}

impl<'a> MessageDeltaObject<'a> {
    fn new(id: &'a MessageId, part: PartDelta<'a>) -> Self {
        Self { id, object: "thread.message.delta", delta: ContentDelta { content: [part] } }
    }
}

impl PartDelta<'_> {
    fn new(index: u32, r#type: &'static str) -> Self {
        Self { index, r#type, text: None, refusal: None, image_file: None }
    }
}

#[derive(Debug, Serialize)]
struct TextDelta<'a> {
    value: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<Vec<AnnotationObject<'a>>>,
}

impl<'a> From<&'a MessageDelta> for MessageDeltaObject<'a> {
    fn from(delta: &'a MessageDelta) -> Self {
        let annotation = delta.annotation.as_ref();
        let annotations = match annotation.map(|(index, annotation)| AnnotationObject::in_delta(*index, annotation)) {
            Some(annotation) => Some(vec![annotation]),
            None => delta.first.then(Vec::new),
        };
        let text = TextDelta { value: &delta.value, annotations };
        let part = PartDelta { text: Some(text), ..PartDelta::new(delta.index, "text") };
        Self::new(&delta.message_id, part)
    }
}

impl<'a> From<&'a RefusalDelta> for MessageDeltaObject<'a> {
    fn from(delta: &'a RefusalDelta) -> Self {
        let part = PartDelta { refusal: Some(&delta.value), ..PartDelta::new(delta.index, "refusal") };
        Self::new(&delta.message_id, part)
    }
}

impl<'a> From<&'a ImageDelta> for MessageDeltaObject<'a> {
    fn from(delta: &'a ImageDelta) -> Self {
        let part = PartDelta { image_file: Some(&delta.image_file), ..PartDelta::new(delta.index, "image_file") };
        Self::new(&delta.message_id, part)
    }
}

/// The wire form of a [`StepDelta`].
#[derive(Debug, Serialize)]
struct StepDeltaObject<'a> {
    id: &'a RunStepId,
    object: &'static str,
    delta: StepDetailsDelta<'a>,
}

#[derive(Debug, Serialize)]
struct StepDetailsDelta<'a> {
    step_details: ToolCallsDelta<'a>,
}

#[derive(Debug, Serialize)]
struct ToolCallsDelta<'a> {
    r#type: &'static str,
    tool_calls: [CallDelta<'a>; 1],
}

#[derive(Debug, Serialize)]
struct CallDelta<'a> {
    index: u32,
    #[serde(flatten)]
    call: CallDeltaKind<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum CallDeltaKind<'a> {
    Function {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a ToolCallId>,
        r#type: &'static str,
        function: FunctionDelta<'a>,
    },
    BuiltIn(ToolCallObject<'a>),
    Code {
        r#type: &'static str,
        code_interpreter: CodeDelta<'a>,
    },
}

/// What was added to a call of the code interpreter.
#[derive(Debug, Serialize)]
struct CodeDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outputs: Option<[OutputDelta<'a>; 1]>,
}

#[derive(Debug, Serialize)]
struct OutputDelta<'a> {
    index: u32,
    #[serde(flatten)]
    output: &'a CodeOutput,
}

#[derive(Debug, Serialize)]
struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
    /// Present and null in the first delta of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<()>,
}

impl<'a> From<&'a StepDelta> for StepDeltaObject<'a> {
    fn from(delta: &'a StepDelta) -> Self {
        let function = |id, function| CallDeltaKind::Function { id, r#type: "function", function };
        let code = |code_interpreter| CallDeltaKind::Code { r#type: "code_interpreter", code_interpreter };
        let call = match &delta.growth {
            CallGrowth::Started { id, name } => {
                function(Some(id), FunctionDelta { name: Some(name), arguments: "", output: Some(()) })
            }
            CallGrowth::Arguments(arguments) => function(None, FunctionDelta { name: None, arguments, output: None }),
            CallGrowth::BuiltIn(call) => CallDeltaKind::BuiltIn(call.object(false)),
            CallGrowth::Code(input) => code(CodeDelta { input: Some(input), outputs: None }),
            CallGrowth::Output(index, output) => {
                code(CodeDelta { input: None, outputs: Some([OutputDelta { index: *index, output }]) })
            }
        };
        let call = CallDelta { index: delta.index, call };
        Self {
            id: &delta.step_id,
            object: "thread.run.step.delta",
            delta: StepDetailsDelta { step_details: ToolCallsDelta { r#type: "tool_calls", tool_calls: [call] } },
        }
    }
}

/// The error payload in both forms: some clients read `error.message`, one reads `message`.
#[derive(Debug, Serialize)]
struct ErrorObject<'a> {
    error: super::error::Body<'a>,
    #[serde(flatten)]
    flat: super::error::Body<'a>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::error::Kind;
    use crate::api::id::Ids;

    fn data(event: &StreamEvent) -> String {
        let mut out = Vec::new();
        event.write_data(&mut out, false).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_the_first_delta_of_a_part_has_annotations() {
        let message_id: MessageId = Ids::counting().generate();
        let delta = |value: &str, first| {
            data(&StreamEvent::MessageDelta(MessageDelta {
                message_id: message_id.clone(),
                index: 0,
                value: value.into(),
                first,
                annotation: None,
            }))
        };

        assert_eq!(
            delta("Hello", true),
            r#"{"id":"msg_00000000000000000000000000000001","object":"thread.message.delta","delta":{"content":[{"index":0,"type":"text","text":{"value":"Hello","annotations":[]}}]}}"#
        );
        assert_eq!(
            delta("!", false),
            r#"{"id":"msg_00000000000000000000000000000001","object":"thread.message.delta","delta":{"content":[{"index":0,"type":"text","text":{"value":"!"}}]}}"#
        );
    }

    #[test]
    fn only_the_first_delta_of_a_call_has_its_id_and_name() {
        let ids = Ids::counting();
        let (step_id, id): (RunStepId, ToolCallId) = (ids.generate(), ids.generate());
        let delta = |growth| data(&StreamEvent::StepDelta(StepDelta { step_id: step_id.clone(), index: 0, growth }));

        assert_eq!(
            delta(CallGrowth::Started { id, name: "f".into() }),
            r#"{"id":"step_00000000000000000000000000000001","object":"thread.run.step.delta","delta":{"step_details":{"type":"tool_calls","tool_calls":[{"index":0,"id":"call_00000000000000000000000000000002","type":"function","function":{"name":"f","arguments":"","output":null}}]}}}"#
        );
        assert_eq!(
            delta(CallGrowth::Arguments("{}".into())),
            r#"{"id":"step_00000000000000000000000000000001","object":"thread.run.step.delta","delta":{"step_details":{"type":"tool_calls","tool_calls":[{"index":0,"type":"function","function":{"arguments":"{}"}}]}}}"#
        );
    }

    #[test]
    fn an_error_event_has_both_forms() {
        assert_eq!(
            data(&StreamEvent::Error(Error::new(Kind::Server, "m"))),
            r#"{"error":{"message":"m","type":"server_error","param":null,"code":null},"message":"m","type":"server_error","param":null,"code":null}"#
        );
    }
}
