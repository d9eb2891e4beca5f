//! Run steps: what a run did on the way to its end.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::{AssistantId, MessageId, RunId, RunStepId, ThreadId, ToolCallId};
use super::metadata::Metadata;
use super::run::{FunctionCall, LastError, Run, Usage};
use super::time::Timestamp;

/// One thing that a run did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStep {
    /// Its name in the API.
    pub id: RunStepId,
    /// When it was begun.
    pub created_at: Timestamp,
    /// When its run is given up.
    pub expires_at: Timestamp,
    /// Its run.
    pub run_id: RunId,
    /// Whose run it is.
    pub assistant_id: AssistantId,
    /// The conversation.
    pub thread_id: ThreadId,
    /// What it is about.
    pub details: StepDetails,
    /// Where it stands.
    pub state: StepState,
    /// Tokens of its model call, once that has ended; shown when the step has.
    pub usage: Option<Usage>,
    /// What the model must be told again of the turn that called tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<TurnRecord>,
}

/// What clients do not see of a turn that called tools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnRecord {
    /// How many bytes of the run's text were written before the calls.
    pub text_bytes: usize,
    /// How many bytes of the run's refusal were written before the calls.
    #[serde(default)]
    pub refusal_bytes: usize,
    /// The model's own names for the calls, by index.
    pub call_ids: Vec<String>,
}

/// What a step is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StepDetails {
    /// The run's message.
    MessageCreation {
        /// Which one.
        message_creation: MessageCreation,
    },
    /// Tools that the model called in one turn.
    ToolCalls {
        /// The calls, by index; none while the model is still writing them.
        tool_calls: Vec<ToolCall>,
    },
}

/// One call of a function; its members stand in the order of the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolCall {
    /// Our name for it.
    pub id: ToolCallId,
    /// What is called.
    pub r#type: ToolCallType,
    /// The call and its output.
    pub function: CalledFunction,
}

impl ToolCall {
    /// A call as the model made it.
    #[must_use]
    pub fn unanswered(call: &FunctionCall) -> Self {
        Self {
            id: call.id.clone(),
            r#type: ToolCallType::Function,
            function: CalledFunction { name: call.name.clone(), arguments: call.arguments.clone(), output: None },
        }
    }
}

/// What can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolCallType {
    /// A function of the client's.
    Function,
}

/// A function that was called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CalledFunction {
    /// Which one.
    pub name: String,
    /// Its arguments, JSON as the model wrote it.
    pub arguments: String,
    /// What the client answered, once it has.
    pub output: Option<String>,
}

/// The message that a step makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MessageCreation {
    /// Its name; reserved even when no message came of it.
    pub message_id: MessageId,
}

/// Where a step stands. Each end owns its time and its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Going on.
    InProgress,
    /// Done.
    Completed {
        /// Since when.
        at: Timestamp,
    },
    /// Cut by a cancel.
    Cancelled {
        /// Since when.
        at: Timestamp,
    },
    /// Cut by a failure.
    Failed {
        /// Since when.
        at: Timestamp,
        /// Why.
        error: LastError,
    },
    /// Cut by the run's deadline.
    Expired {
        /// Since when.
        at: Timestamp,
    },
}

impl RunStep {
    /// A step of `run` that has just begun.
    #[must_use]
    pub fn begin(id: RunStepId, run: &Run, details: StepDetails, now: Timestamp) -> Self {
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

    /// Whether it is the step that makes the run's message.
    #[must_use]
    pub fn makes_message(&self) -> bool {
        matches!(self.details, StepDetails::MessageCreation { .. })
    }

    /// Whether it goes on.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == StepState::InProgress
    }
}

/// The wire form of a [`RunStep`], members in the recorded order.
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
    step_details: &'a StepDetails,
    usage: Option<Usage>,
    metadata: Metadata,
}

impl<'a> RunStepObject<'a> {
    /// The form that a step has in a stream: its deadline stays to the end.
    #[must_use]
    pub fn in_stream(step: &'a RunStep) -> Self {
        let mut object = Self::from(step);
        object.expires_at = Some(step.expires_at);
        object
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
            step_details: &step.details,
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
