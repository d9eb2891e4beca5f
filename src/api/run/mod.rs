//! Runs: the processing of a thread by an assistant.

mod object;
mod requests;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::{ApiKeyId, AssistantId, RunId, ThreadId};
use super::metadata::Metadata;
use super::organization::Scope;
use super::response_format::ResponseFormat;
use super::time::Timestamp;
use super::tool::{FunctionCall, Tool, ToolChoice, ToolResources};
use super::usage::Usage;

pub use object::RunObject;
pub use requests::{CreateRun, CreateThreadAndRun, ModifyRun, RunOrigin, SubmitToolOutputs, ToolOutput};

/// A run of an assistant on a thread.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The specification, which never changes.
    pub spec: Arc<RunSpec>,
    /// The metadata set by the client.
    pub metadata: Metadata,
    /// The state of the run.
    pub state: RunState,
    /// The tokens of all model calls that have ended.
    pub usage: Usage,
    /// Calls of the current turn that were lost with their servers and are not yet recorded in the usage ledger.
    pub lost_calls: u32,
}

/// The specification of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// The run ID.
    pub id: RunId,
    /// When it was created.
    pub created_at: Timestamp,
    /// The deadline of the run.
    pub expires_at: Timestamp,
    /// The project of the run. Runs that were stored before there were projects belong to the default project.
    #[serde(default = "Scope::default_project", rename = "project_id")]
    pub scope: Scope,
    /// The API key of the request, if it had one that is stored.
    #[serde(default)]
    pub api_key_id: Option<ApiKeyId>,
    /// The thread.
    pub thread_id: ThreadId,
    /// The assistant.
    pub assistant_id: AssistantId,
    /// The requested model name.
    pub model: String,
    /// The instructions of the run or the assistant, followed by the additional ones; empty if there are none.
    pub instructions: String,
    /// The tools that the model can call.
    pub tools: Vec<Tool>,
    /// The tool resources of a `POST /threads/runs` request.
    pub tool_resources: ToolResources,
    /// 0 to 2; `None`: the default of the model.
    pub temperature: Option<f64>,
    /// 0 to 1; `None`: the default of the model.
    pub top_p: Option<f64>,
    /// The reasoning effort of the model.
    pub reasoning_effort: Option<String>,
    /// Maximum number of completion tokens of the whole run.
    pub max_completion_tokens: Option<u32>,
    /// Maximum number of prompt tokens of the whole run.
    pub max_prompt_tokens: Option<u32>,
    /// Selects the messages for the prompt.
    pub truncation_strategy: TruncationStrategy,
    /// The format of the answer.
    pub response_format: ResponseFormat,
    /// Whether the model must call a tool, and which one.
    pub tool_choice: ToolChoice,
    /// Whether the model may call several functions in one turn.
    pub parallel_tool_calls: bool,
}

/// The state of a run. Each final state has its time and reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Waiting for a worker.
    Queued {
        /// When processing last started, if ever.
        started_at: Option<Timestamp>,
    },
    /// Being processed.
    InProgress {
        /// When processing started.
        started_at: Timestamp,
    },
    /// Waiting for tool outputs of the client.
    RequiresAction {
        /// When processing last started.
        started_at: Timestamp,
        /// The calls that require an output, by index.
        calls: Vec<FunctionCall>,
    },
    /// Being cancelled.
    Cancelling {
        /// When processing last started, if ever.
        started_at: Option<Timestamp>,
    },
    /// Cancelled.
    Cancelled {
        /// When processing last started, if ever.
        started_at: Option<Timestamp>,
        /// When it ended.
        at: Timestamp,
    },
    /// Failed.
    Failed {
        /// When processing last started, if ever.
        started_at: Option<Timestamp>,
        /// When it ended.
        at: Timestamp,
        /// The error.
        error: LastError,
    },
    /// Completed.
    Completed {
        /// When processing last started.
        started_at: Timestamp,
        /// When it ended.
        at: Timestamp,
    },
    /// Ended at a limit.
    Incomplete {
        /// When processing last started.
        started_at: Timestamp,
        /// When it ended.
        at: Timestamp,
        /// The limit.
        reason: RunIncompleteReason,
    },
    /// Ended at its deadline.
    Expired {
        /// When processing last started, if ever.
        started_at: Option<Timestamp>,
    },
}

/// Why a run or a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastError {
    /// The error code.
    pub code: ErrorCode,
    /// The error message.
    pub message: String,
}

/// The error codes of a failed run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The model server or assistd failed.
    ServerError,
    /// The model server returned 429 after all retries.
    RateLimitExceeded,
}

impl ErrorCode {
    /// Returns the name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ServerError => "server_error",
            Self::RateLimitExceeded => "rate_limit_exceeded",
        }
    }
}

/// The limits that make a run incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunIncompleteReason {
    /// The limit of completion tokens. Also used if a content filter stopped the answer, because the API has no separate
    /// reason for that.
    MaxCompletionTokens,
    /// The limit of prompt tokens.
    MaxPromptTokens,
}

impl RunIncompleteReason {
    /// Returns the name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MaxCompletionTokens => "max_completion_tokens",
            Self::MaxPromptTokens => "max_prompt_tokens",
        }
    }
}

/// Why a model's answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// It is complete.
    Stop,
    /// It reached its maximum length.
    Length,
    /// A content filter stopped it.
    ContentFilter,
}

/// Selects the messages for the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TruncationStrategy {
    /// The strategy.
    pub r#type: Truncation,
    /// The number of newest messages.
    pub last_messages: Option<u32>,
}

/// The truncation strategies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// As many messages as fit.
    Auto,
    /// The newest messages.
    LastMessages,
}

impl Default for TruncationStrategy {
    fn default() -> Self {
        Self { r#type: Truncation::Auto, last_messages: None }
    }
}

impl RunState {
    /// Returns why the run failed or is incomplete, as on the wire; empty for all other states.
    #[must_use]
    pub fn end_reason(&self) -> &'static str {
        match self {
            Self::Failed { error, .. } => error.code.name(),
            Self::Incomplete { reason, .. } => reason.name(),
            Self::Queued { .. }
            | Self::InProgress { .. }
            | Self::RequiresAction { .. }
            | Self::Cancelling { .. }
            | Self::Cancelled { .. }
            | Self::Completed { .. }
            | Self::Expired { .. } => "",
        }
    }

    /// Returns the status on the wire.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::Queued { .. } => "queued",
            Self::InProgress { .. } => "in_progress",
            Self::RequiresAction { .. } => "requires_action",
            Self::Cancelling { .. } => "cancelling",
            Self::Cancelled { .. } => "cancelled",
            Self::Failed { .. } => "failed",
            Self::Completed { .. } => "completed",
            Self::Incomplete { .. } => "incomplete",
            Self::Expired { .. } => "expired",
        }
    }

    /// Returns whether the run has ended. Until then it locks its thread.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        match self {
            Self::Queued { .. } | Self::InProgress { .. } | Self::RequiresAction { .. } | Self::Cancelling { .. } => {
                false
            }
            Self::Cancelled { .. }
            | Self::Failed { .. }
            | Self::Completed { .. }
            | Self::Incomplete { .. }
            | Self::Expired { .. } => true,
        }
    }

    /// Returns whether a worker must drive the run.
    #[must_use]
    pub fn needs_driver(&self) -> bool {
        matches!(self, Self::Queued { .. } | Self::InProgress { .. } | Self::Cancelling { .. })
    }

    /// Returns when processing last started.
    #[must_use]
    pub fn started_at(&self) -> Option<Timestamp> {
        match self {
            Self::InProgress { started_at }
            | Self::RequiresAction { started_at, .. }
            | Self::Completed { started_at, .. }
            | Self::Incomplete { started_at, .. } => Some(*started_at),
            Self::Queued { started_at }
            | Self::Cancelling { started_at }
            | Self::Cancelled { started_at, .. }
            | Self::Failed { started_at, .. }
            | Self::Expired { started_at } => *started_at,
        }
    }
}

impl Run {
    /// Returns the token limit that the run has exceeded, if any.
    #[must_use]
    pub fn limit_exceeded(&self) -> Option<RunIncompleteReason> {
        self.limit(|used, max| used > max)
    }

    /// Returns the token limit that the run has reached, if any. The run then has no further turn.
    #[must_use]
    pub fn limit_reached(&self) -> Option<RunIncompleteReason> {
        self.limit(|used, max| used >= max)
    }

    fn limit(&self, is_above: fn(u32, u32) -> bool) -> Option<RunIncompleteReason> {
        let (spec, used) = (&self.spec, &self.usage);
        if spec.max_completion_tokens.is_some_and(|max| is_above(used.completion_tokens, max)) {
            return Some(RunIncompleteReason::MaxCompletionTokens);
        }
        let is_prompt_above = spec.max_prompt_tokens.is_some_and(|max| is_above(used.prompt_tokens, max));
        is_prompt_above.then_some(RunIncompleteReason::MaxPromptTokens)
    }

    /// Returns whether the run is past its deadline and has not ended.
    #[must_use]
    pub fn is_overdue(&self, now: Timestamp) -> bool {
        !self.state.has_ended() && now >= self.spec.expires_at
    }
}
