//! Run steps: the messages and tool calls of a run.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::id::{AssistantId, MessageId, RunId, RunStepId, ThreadId};
use super::metadata::Metadata;
use super::run::{LastError, Run};
use super::time::Timestamp;
use super::tool::{FunctionCall, ToolCall, ToolCallObject};
use super::usage::Usage;

/// A step of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStep {
    /// The step ID.
    pub id: RunStepId,
    /// When it was created.
    pub created_at: Timestamp,
    /// The deadline of the run.
    pub expires_at: Timestamp,
    /// The run.
    pub run_id: RunId,
    /// The assistant of the run.
    pub assistant_id: AssistantId,
    /// The thread of the run.
    pub thread_id: ThreadId,
    /// The message or the tool calls of the step.
    pub details: StepDetails,
    /// The state of the step.
    pub state: StepState,
    /// The tokens of its model call, after the call has ended. Returned to clients when the step has ended.
    pub usage: Option<Usage>,
    /// The record of a turn with tool calls, which is needed for the next prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<TurnRecord>,
}

/// The internal record of a turn with tool calls.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TurnRecord {
    /// Length of the run's text before the calls, in bytes.
    pub text_bytes: usize,
    /// Length of the run's refusal before the calls, in bytes.
    #[serde(default)]
    pub refusal_bytes: usize,
    /// The model's IDs of the calls, by index.
    pub call_ids: Vec<String>,
    /// Other members of the turn, which are sent back to the model, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Box<ReplayedMembers>>,
    /// The arguments of the calls of built-in tools as the model wrote them, by index. Empty for calls of functions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// The positions of the calls among all calls of the turn, by index. Empty if these are all its calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub positions: Vec<usize>,
    /// The calls of functions in the same turn. They have a step of their own after the built-in tools have ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<PendingFunction>,
    /// Whether the calls are of the same turn as those of the step before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues_turn: bool,
}

/// A call of a function whose step starts after the built-in tools of its turn have ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingFunction {
    /// The call.
    pub call: FunctionCall,
    /// The model's ID of the call.
    pub upstream_id: String,
    /// The position among all calls of the turn.
    pub position: usize,
    /// Members of the call that are sent back to the model.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub members: Map<String, Value>,
}

/// Members of a turn that are sent back to the model that wrote them. Clients never see them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReplayedMembers {
    /// The model's name on its server.
    pub model: String,
    /// Members of the message.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub message: Map<String, Value>,
    /// Members of the calls, by index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<Map<String, Value>>,
}

/// The details of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StepDetails {
    /// The run's message.
    MessageCreation {
        /// The message.
        message_creation: MessageCreation,
    },
    /// Tools that the model called in one turn.
    ToolCalls {
        /// The calls, by index. Empty until the model has completed them.
        tool_calls: Vec<ToolCall>,
    },
}

/// The message that a step creates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MessageCreation {
    /// The message ID, which is reserved even if no message is created.
    pub message_id: MessageId,
}

/// The state of a step. Each final state has its time and reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// In progress.
    InProgress,
    /// Completed.
    Completed {
        /// The time of the end.
        at: Timestamp,
    },
    /// Cancelled with its run.
    Cancelled {
        /// The time of the end.
        at: Timestamp,
    },
    /// Failed with its run.
    Failed {
        /// The time of the end.
        at: Timestamp,
        /// The error.
        error: LastError,
    },
    /// Expired with its run.
    Expired {
        /// The time of the end.
        at: Timestamp,
    },
}

impl RunStep {
    /// Creates a step of `run` in progress.
    #[must_use]
    pub fn start(id: RunStepId, run: &Run, details: StepDetails, now: Timestamp) -> Self {
        Self {
            id,
            created_at: now,
            expires_at: run.spec.expires_at,
            run_id: run.spec.id.clone(),
            assistant_id: run.spec.assistant_id.clone(),
            thread_id: run.spec.thread_id.clone(),
            details,
            state: StepState::InProgress,
            usage: None,
            turn: None,
        }
    }

    /// Returns whether the step creates the run's message.
    #[must_use]
    pub fn creates_message(&self) -> bool {
        matches!(self.details, StepDetails::MessageCreation { .. })
    }

    /// Returns the tool calls of the step; none if it creates a message.
    #[must_use]
    pub fn tool_calls(&self) -> &[ToolCall] {
        match &self.details {
            StepDetails::MessageCreation { .. } => &[],
            StepDetails::ToolCalls { tool_calls } => tool_calls,
        }
    }

    /// Returns whether the model has called built-in tools, which the server runs. The calls of functions of the same turn
    /// have a step of their own.
    #[must_use]
    pub fn calls_built_in_tools(&self) -> bool {
        self.tool_calls().first().is_some_and(|call| call.function().is_none())
    }

    /// Returns whether the model has called functions, whose outputs the client submits.
    #[must_use]
    pub fn calls_functions(&self) -> bool {
        self.tool_calls().first().is_some_and(|call| call.function().is_some())
    }

    /// Returns whether the step is in progress.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == StepState::InProgress
    }
}

/// The wire form of a [`RunStep`], with its properties in the recorded order.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RunStepObject<'a> {
    id: &'a RunStepId,
    object: &'static str,
    created_at: Timestamp,
    run_id: &'a RunId,
    assistant_id: &'a AssistantId,
    thread_id: &'a ThreadId,
    r#type: &'static str,
    status: &'static str,
    cancelled_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    expired_at: Option<Timestamp>,
    failed_at: Option<Timestamp>,
    last_error: Option<&'a LastError>,
    step_details: StepDetailsObject<'a>,
    usage: Option<Usage>,
    metadata: Metadata,
}

impl<'a> RunStepObject<'a> {
    /// Returns the form of a step in a stream, which has `expires_at` even after the step has ended.
    #[must_use]
    pub fn in_stream(step: &'a RunStep) -> Self {
        let mut object = Self::from(step);
        object.expires_at = Some(step.expires_at);
        object
    }

    /// Sets whether the text of search results is sent, which clients have to ask for.
    #[must_use]
    pub fn with_content(mut self, with_content: bool) -> Self {
        self.step_details.with_content = with_content;
        self
    }
}

/// The wire form of [`StepDetails`].
#[derive(Debug)]
struct StepDetailsObject<'a> {
    details: &'a StepDetails,
    with_content: bool,
}

/// The members of a [`StepDetailsObject`].
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum StepDetailsMembers<'a> {
    MessageCreation { message_creation: &'a MessageCreation },
    ToolCalls { tool_calls: Vec<ToolCallObject<'a>> },
}

impl Serialize for StepDetailsObject<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.details {
            StepDetails::MessageCreation { message_creation } => {
                StepDetailsMembers::MessageCreation { message_creation }
            }
            StepDetails::ToolCalls { tool_calls } => StepDetailsMembers::ToolCalls {
                tool_calls: tool_calls.iter().map(|call| call.object(self.with_content)).collect(),
            },
        }
        .serialize(serializer)
    }
}

impl JsonSchema for StepDetailsObject<'_> {
    fn inline_schema() -> bool {
        StepDetailsMembers::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        "StepDetails".into()
    }

    fn json_schema(schemas: &mut SchemaGenerator) -> Schema {
        StepDetailsMembers::json_schema(schemas)
    }
}

impl<'a> From<&'a RunStep> for RunStepObject<'a> {
    fn from(step: &'a RunStep) -> Self {
        let mut object = Self {
            id: &step.id,
            object: "thread.run.step",
            created_at: step.created_at,
            run_id: &step.run_id,
            assistant_id: &step.assistant_id,
            thread_id: &step.thread_id,
            r#type: match step.details {
                StepDetails::MessageCreation { .. } => "message_creation",
                StepDetails::ToolCalls { .. } => "tool_calls",
            },
            status: "in_progress",
            cancelled_at: None,
            completed_at: None,
            expires_at: None,
            expired_at: None,
            failed_at: None,
            last_error: None,
            step_details: StepDetailsObject { details: &step.details, with_content: false },
            usage: if step.is_open() { None } else { step.usage },
            metadata: Metadata::default(),
        };
        match &step.state {
            StepState::InProgress => object.expires_at = Some(step.expires_at),
            StepState::Completed { at } => {
                object.status = "completed";
                object.completed_at = Some(*at);
            }
            StepState::Cancelled { at } => {
                object.status = "cancelled";
                object.cancelled_at = Some(*at);
            }
            StepState::Failed { at, error } => {
                object.status = "failed";
                object.failed_at = Some(*at);
                object.last_error = Some(error);
            }
            StepState::Expired { at } => {
                object.status = "expired";
                object.expired_at = Some(*at);
            }
        }
        object
    }
}
