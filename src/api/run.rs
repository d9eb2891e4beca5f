//! Runs: the processing of a thread by an assistant.

use std::sync::Arc;

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::assistant::{Assistant, instructions, model, temperature, top_p};
use super::error::Error;
use super::id::{AssistantId, Ids, RunId, ThreadId, ToolCallId};
use super::message::CreateMessage;
use super::metadata::{Metadata, metadata};
use super::rule::{At, Rule, array, boolean, custom, id, integer, missing, object, one_of, string};
use super::thread::{CreateThread, MESSAGES_MAX};
use super::time::Timestamp;
use super::tool::{
    ResponseFormat, Tool, ToolChoice, ToolResources, reasoning_effort, response_format, tool, tool_choice,
    tool_resources,
};
use crate::request;

/// Maximum number of tools of a run, the same as of an assistant.
const TOOLS_MAX: usize = 128;

/// Maximum number of tool outputs of a request. The service documents none; this limits the request size.
const OUTPUTS_MAX: usize = 1_000;
/// Maximum length of an output, in characters. The service documents none; this limits the stored size.
const OUTPUT_CHARS_MAX: usize = 4_000_000;
/// Maximum length of a call ID, in characters.
const CALL_ID_CHARS_MAX: usize = 256;

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
    /// Waiting for an executor.
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

/// A function call that requires an output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// Our ID of the call.
    pub id: ToolCallId,
    /// The function name.
    pub name: String,
    /// The arguments: JSON as the model wrote it.
    pub arguments: String,
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

/// The limits that make a run incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunIncompleteReason {
    /// The limit of completion tokens. Also used if a content filter stopped the answer, which has no reason of its own.
    MaxCompletionTokens,
    /// The limit of prompt tokens.
    MaxPromptTokens,
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

/// The token usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields are those of the API reference")]
pub struct Usage {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub total_tokens: u32,
    #[serde(default)]
    pub prompt_token_details: PromptTokenDetails,
    #[serde(default)]
    pub completion_tokens_details: CompletionTokensDetails,
}

/// Details of prompt tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields are those of the API reference")]
pub struct PromptTokenDetails {
    pub cached_tokens: u32,
}

/// Details of completion tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields are those of the API reference")]
pub struct CompletionTokensDetails {
    pub reasoning_tokens: u32,
}

impl Usage {
    /// Returns the usage of a model call with this many prompt and completion tokens.
    #[must_use]
    pub fn counted(prompt: usize, completion: usize) -> Self {
        let number = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        let (prompt_tokens, completion_tokens) = (number(prompt), number(completion));
        let total_tokens = prompt_tokens.saturating_add(completion_tokens);
        Self { prompt_tokens, completion_tokens, total_tokens, ..Self::default() }
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, more: Self) {
        self.prompt_tokens = self.prompt_tokens.saturating_add(more.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(more.completion_tokens);
        self.total_tokens = self.total_tokens.saturating_add(more.total_tokens);
        let (cached, reasoning) = (more.prompt_token_details, more.completion_tokens_details);
        self.prompt_token_details.cached_tokens += cached.cached_tokens;
        self.completion_tokens_details.reasoning_tokens += reasoning.reasoning_tokens;
    }
}

impl RunState {
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
    pub fn is_over(&self) -> bool {
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

    /// Returns whether the run needs an executor.
    #[must_use]
    pub fn needs_executor(&self) -> bool {
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
    pub fn limit_passed(&self) -> Option<RunIncompleteReason> {
        self.limit(|used, max| used > max)
    }

    /// Returns the token limit that the run has reached, if any. It then has no further turn.
    #[must_use]
    pub fn limit_reached(&self) -> Option<RunIncompleteReason> {
        self.limit(|used, max| used >= max)
    }

    fn limit(&self, is_over: fn(u32, u32) -> bool) -> Option<RunIncompleteReason> {
        let (spec, used) = (&self.spec, &self.usage);
        if spec.max_completion_tokens.is_some_and(|max| is_over(used.completion_tokens, max)) {
            return Some(RunIncompleteReason::MaxCompletionTokens);
        }
        let is_prompt_over = spec.max_prompt_tokens.is_some_and(|max| is_over(used.prompt_tokens, max));
        is_prompt_over.then_some(RunIncompleteReason::MaxPromptTokens)
    }

    /// Returns whether the run is past its deadline and has not ended.
    #[must_use]
    pub fn is_overdue(&self, now: Timestamp) -> bool {
        !self.state.is_over() && now >= self.spec.expires_at
    }
}

/// The wire form of a [`Run`], with its properties in the recorded order.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RunObject<'a> {
    id: &'a RunId,
    object: &'static str,
    created_at: Timestamp,
    assistant_id: &'a AssistantId,
    thread_id: &'a ThreadId,
    status: &'static str,
    started_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    cancelled_at: Option<Timestamp>,
    failed_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
    required_action: Option<RequiredAction<'a>>,
    last_error: Option<&'a LastError>,
    model: &'a str,
    instructions: &'a str,
    tools: &'a [Tool],
    tool_resources: ToolResources,
    metadata: &'a Metadata,
    temperature: f64,
    top_p: f64,
    reasoning_effort: Option<&'a str>,
    max_completion_tokens: Option<u32>,
    max_prompt_tokens: Option<u32>,
    truncation_strategy: TruncationStrategy,
    incomplete_details: Option<IncompleteDetails>,
    usage: Option<Usage>,
    response_format: &'a ResponseFormat,
    tool_choice: &'a ToolChoice,
    parallel_tool_calls: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
struct RequiredAction<'a> {
    r#type: &'static str,
    submit_tool_outputs: RequiredOutputs<'a>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct RequiredOutputs<'a> {
    tool_calls: Vec<RequiredCall<'a>>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct RequiredCall<'a> {
    id: &'a ToolCallId,
    r#type: &'static str,
    function: RequiredFunction<'a>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct RequiredFunction<'a> {
    name: &'a str,
    arguments: &'a str,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RunIncompleteDetails")]
struct IncompleteDetails {
    reason: RunIncompleteReason,
}

impl<'a> From<&'a Run> for RunObject<'a> {
    fn from(run: &'a Run) -> Self {
        let spec = &*run.spec;
        let over = run.state.is_over();
        let mut object = Self {
            id: &spec.id,
            object: "thread.run",
            created_at: spec.created_at,
            assistant_id: &spec.assistant_id,
            thread_id: &spec.thread_id,
            status: run.state.status(),
            started_at: run.state.started_at(),
            expires_at: (!over).then_some(spec.expires_at),
            cancelled_at: None,
            failed_at: None,
            completed_at: None,
            required_action: None,
            last_error: None,
            model: &spec.model,
            instructions: &spec.instructions,
            tools: &spec.tools,
            tool_resources: spec.tool_resources.clone(),
            metadata: &run.metadata,
            temperature: spec.temperature.unwrap_or(1.0),
            top_p: spec.top_p.unwrap_or(1.0),
            reasoning_effort: spec.reasoning_effort.as_deref(),
            max_completion_tokens: spec.max_completion_tokens,
            max_prompt_tokens: spec.max_prompt_tokens,
            truncation_strategy: spec.truncation_strategy,
            incomplete_details: None,
            usage: over.then_some(run.usage),
            response_format: &spec.response_format,
            tool_choice: &spec.tool_choice,
            parallel_tool_calls: spec.parallel_tool_calls,
        };
        match &run.state {
            RunState::Queued { .. }
            | RunState::InProgress { .. }
            | RunState::Cancelling { .. }
            | RunState::Expired { .. } => {}
            RunState::RequiresAction { calls, .. } => object.required_action = Some(required_action(calls)),
            RunState::Cancelled { at, .. } => object.cancelled_at = Some(*at),
            RunState::Failed { at, error, .. } => {
                object.failed_at = Some(*at);
                object.last_error = Some(error);
            }
            RunState::Completed { at, .. } => object.completed_at = Some(*at),
            RunState::Incomplete { at, reason, .. } => {
                object.completed_at = Some(*at);
                object.incomplete_details = Some(IncompleteDetails { reason: *reason });
            }
        }
        object
    }
}

impl RunObject<'_> {
    /// Returns the form of a run in a stream.
    #[must_use]
    pub fn in_stream(mut self) -> Self {
        self.tool_resources = self.tool_resources.with_code_interpreter();
        self
    }
}

fn required_action(calls: &[FunctionCall]) -> RequiredAction<'_> {
    let tool_calls = calls
        .iter()
        .map(|call| RequiredCall {
            id: &call.id,
            r#type: "function",
            function: RequiredFunction { name: &call.name, arguments: &call.arguments },
        })
        .collect();
    RequiredAction { r#type: "submit_tool_outputs", submit_tool_outputs: RequiredOutputs { tool_calls } }
}

request! {
    /// Body of `POST /threads/{thread_id}/runs`.
    pub struct CreateRun {
        required assistant_id: AssistantId = id();
        optional model: String = model();
        optional instructions: String = instructions();
        optional additional_instructions: String = instructions();
        optional additional_messages: Vec<CreateMessage> = array(object(), 0, MESSAGES_MAX);
        optional tools: Vec<Tool> = array(tool(), 0, TOOLS_MAX);
        optional metadata: Metadata = metadata();
        optional temperature: f64 = temperature();
        optional top_p: f64 = top_p();
        optional stream: bool = boolean();
        optional max_prompt_tokens: u32 = max_tokens();
        optional max_completion_tokens: u32 = max_tokens();
        optional truncation_strategy: TruncationStrategy = truncation_strategy();
        optional tool_choice: ToolChoice = tool_choice();
        optional parallel_tool_calls: bool = boolean();
        optional response_format: ResponseFormat = response_format();
        optional reasoning_effort: &'static str = reasoning_effort();
    }
}

request! {
    /// Body of `POST /threads/runs`.
    pub struct CreateThreadAndRun {
        required assistant_id: AssistantId = id();
        optional thread: CreateThread = object();
        optional model: String = model();
        optional instructions: String = instructions();
        optional tools: Vec<Tool> = array(tool(), 0, TOOLS_MAX);
        optional tool_resources: ToolResources = tool_resources();
        optional metadata: Metadata = metadata();
        optional temperature: f64 = temperature();
        optional top_p: f64 = top_p();
        optional stream: bool = boolean();
        optional max_prompt_tokens: u32 = max_tokens();
        optional max_completion_tokens: u32 = max_tokens();
        optional truncation_strategy: TruncationStrategy = truncation_strategy();
        optional tool_choice: ToolChoice = tool_choice();
        optional parallel_tool_calls: bool = boolean();
        optional response_format: ResponseFormat = response_format();
        optional reasoning_effort: &'static str = reasoning_effort();
    }
}

request! {
    /// Body of `POST /threads/{thread_id}/runs/{run_id}`.
    pub struct ModifyRun {
        patch metadata: Metadata = metadata();
    }
}

request! {
    /// Selects the messages for the prompt.
    pub struct TruncationRequest {
        required r#type: Truncation =
            one_of(&[("auto", Truncation::Auto), ("last_messages", Truncation::LastMessages)]);
        optional last_messages: u32 = integer(1, u32::MAX);
    }
}

request! {
    /// Body of `POST /threads/{thread_id}/runs/{run_id}/submit_tool_outputs`.
    pub struct SubmitToolOutputs {
        required tool_outputs: Vec<ToolOutput> = array(object(), 0, OUTPUTS_MAX);
        optional stream: bool = boolean();
    }
}

request! {
    /// The output of one call. A missing output is empty.
    ///
    /// Differs: accepts `type`, which newer Azure clients send; the service had no such parameter.
    pub struct ToolOutput {
        optional r#type: &'static str = one_of(&[("function_call_output", "function_call_output")]);
        optional tool_call_id: String = string(0, CALL_ID_CHARS_MAX);
        optional output: String = string(0, OUTPUT_CHARS_MAX);
    }
}

/// The API description requires at least 256, but the service accepted 16.
fn max_tokens() -> impl Rule<Out = u32> {
    integer(1, u32::MAX)
}

fn truncation_strategy() -> impl Rule<Out = TruncationStrategy> {
    custom(read_truncation, |schemas: &mut SchemaGenerator| object::<TruncationRequest>().schema(schemas))
}

fn read_truncation(value: serde_json::Value, at: &At<'_>) -> Result<TruncationStrategy, Error> {
    let TruncationRequest { r#type, last_messages } = object().read(value, at)?;
    if r#type == Truncation::LastMessages && last_messages.is_none() {
        return Err(missing(&At::Member(at, "last_messages")));
    }
    Ok(TruncationStrategy { r#type, last_messages })
}

impl CreateThreadAndRun {
    /// Splits the request into the thread, the run, and its tool resources.
    #[must_use]
    pub fn split(self) -> (Option<CreateThread>, CreateRun, ToolResources) {
        let run = CreateRun {
            assistant_id: self.assistant_id,
            model: self.model,
            instructions: self.instructions,
            additional_instructions: None,
            additional_messages: None,
            tools: self.tools,
            metadata: self.metadata,
            temperature: self.temperature,
            top_p: self.top_p,
            stream: self.stream,
            max_prompt_tokens: self.max_prompt_tokens,
            max_completion_tokens: self.max_completion_tokens,
            truncation_strategy: self.truncation_strategy,
            tool_choice: self.tool_choice,
            parallel_tool_calls: self.parallel_tool_calls,
            response_format: self.response_format,
            reasoning_effort: self.reasoning_effort,
        };
        (self.thread, run, self.tool_resources.unwrap_or_default())
    }
}

impl CreateRun {
    /// Returns the requested run, and the messages to add to the thread before it.
    ///
    /// Parameters that are not set come from the assistant. The run expires `expires_after` seconds after `now`.
    #[must_use]
    pub fn into_run(
        self,
        ids: &Ids,
        thread_id: &ThreadId,
        assistant: &Assistant,
        tool_resources: ToolResources,
        now: Timestamp,
        expires_after: u64,
    ) -> (Run, Vec<CreateMessage>) {
        let mut instructions = self.instructions.or_else(|| assistant.instructions.clone()).unwrap_or_default();
        if let Some(more) = self.additional_instructions.filter(|more| !more.is_empty()) {
            if !instructions.is_empty() {
                instructions.push('\n');
            }
            instructions.push_str(&more);
        }
        let spec = RunSpec {
            id: ids.make(),
            created_at: now,
            expires_at: now.plus(expires_after),
            thread_id: thread_id.clone(),
            assistant_id: assistant.id.clone(),
            model: self.model.unwrap_or_else(|| assistant.model.clone()),
            instructions,
            tools: self.tools.unwrap_or_else(|| assistant.tools.clone()),
            tool_resources,
            temperature: self.temperature.or(assistant.temperature),
            top_p: self.top_p.or(assistant.top_p),
            reasoning_effort: self.reasoning_effort.map(str::to_owned).or_else(|| assistant.reasoning_effort.clone()),
            max_completion_tokens: self.max_completion_tokens,
            max_prompt_tokens: self.max_prompt_tokens,
            truncation_strategy: self.truncation_strategy.unwrap_or_default(),
            response_format: self.response_format.unwrap_or_else(|| assistant.response_format.clone()),
            tool_choice: self.tool_choice.unwrap_or_default(),
            parallel_tool_calls: self.parallel_tool_calls.unwrap_or(true),
        };
        let run = Run {
            spec: Arc::new(spec),
            metadata: self.metadata.unwrap_or_default(),
            state: RunState::Queued { started_at: None },
            usage: Usage::default(),
        };
        (run, self.additional_messages.unwrap_or_default())
    }
}
