//! What a client hears of a run while it goes on.

use serde::Serialize;

use super::error::Error;
use super::id::MessageId;
use super::message::{Message, MessageObject};
use super::run::{Run, RunObject};
use super::run_step::{RunStep, RunStepObject};
use super::thread::{Thread, ThreadObject};

/// One event; its payload is the object's state at that moment.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// The run's thread was made on the way.
    ThreadCreated(Thread),
    /// Something happened to the run.
    Run(RunEvent, Run),
    /// Something happened to a step.
    Step(StepEvent, RunStep),
    /// Something happened to a message, other than growing.
    Message(MessageEvent, Message),
    /// A message's text grew.
    MessageDelta(MessageDelta),
    /// The server cannot go on.
    Error(Error),
}

/// What can happen to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words are those of the API reference")]
pub enum RunEvent {
    Created,
    Queued,
    InProgress,
    Completed,
    Incomplete,
    Failed,
    Cancelling,
    Cancelled,
    Expired,
}

/// What can happen to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words are those of the API reference")]
pub enum StepEvent {
    Created,
    InProgress,
    Completed,
    Failed,
    Cancelled,
    Expired,
}

/// What can happen to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words are those of the API reference")]
pub enum MessageEvent {
    Created,
    InProgress,
    Completed,
    Incomplete,
}

/// Text that was added to the first part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageDelta {
    /// Which message.
    pub message_id: MessageId,
    /// What was added.
    pub value: String,
    /// Whether it is the part's first piece.
    pub first: bool,
}

impl StreamEvent {
    /// The name in the `event:` line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ThreadCreated(_) => "thread.created",
            Self::Run(event, _) => match event {
                RunEvent::Created => "thread.run.created",
                RunEvent::Queued => "thread.run.queued",
                RunEvent::InProgress => "thread.run.in_progress",
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
            Self::MessageDelta(_) => "thread.message.delta",
            Self::Error(_) => "error",
        }
    }

    /// Whether nothing comes behind it but the end of the stream.
    #[must_use]
    pub fn is_last(&self) -> bool {
        match self {
            Self::Run(_, run) => run.state.is_over(),
            Self::Error(_) => true,
            Self::ThreadCreated(_) | Self::Step(..) | Self::Message(..) | Self::MessageDelta(_) => false,
        }
    }

    /// Writes the payload as compact JSON behind what `out` holds.
    ///
    /// # Errors
    /// None in practice: the payloads are plain values.
    pub fn write_data(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        match self {
            Self::ThreadCreated(thread) => serde_json::to_writer(out, &ThreadObject::from(thread).in_stream()),
            Self::Run(_, run) => serde_json::to_writer(out, &RunObject::from(run).in_stream()),
            Self::Step(_, step) => serde_json::to_writer(out, &RunStepObject::in_stream(step)),
            Self::Message(_, message) => serde_json::to_writer(out, &MessageObject::from(message)),
            Self::MessageDelta(delta) => serde_json::to_writer(out, &MessageDeltaObject::from(delta)),
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
    text: TextDelta<'a>,
}

#[derive(Debug, Serialize)]
struct TextDelta<'a> {
    value: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<[(); 0]>,
}

impl<'a> From<&'a MessageDelta> for MessageDeltaObject<'a> {
    fn from(delta: &'a MessageDelta) -> Self {
        let text = TextDelta { value: &delta.value, annotations: delta.first.then_some([]) };
        Self {
            id: &delta.message_id,
            object: "thread.message.delta",
            delta: ContentDelta { content: [PartDelta { index: 0, r#type: "text", text }] },
        }
    }
}

/// The error frame in both known forms at once: some clients read `error.message`, one reads `message`.
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
        event.write_data(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_first_delta_of_a_part_has_annotations_and_later_ones_have_none() {
        let message_id: MessageId = Ids::counting().make();
        let delta = |value: &str, first| {
            data(&StreamEvent::MessageDelta(MessageDelta {
                message_id: message_id.clone(),
                value: value.into(),
                first,
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
    fn the_error_frame_has_both_known_forms() {
        assert_eq!(
            data(&StreamEvent::Error(Error::new(Kind::Server, "m"))),
            r#"{"error":{"message":"m","type":"server_error","param":null,"code":null},"message":"m","type":"server_error","param":null,"code":null}"#
        );
    }
}
