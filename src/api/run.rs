//! Runs: one answer of an assistant on a thread, from the queue to its end.

use std::sync::Arc;

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::assistant::{Assistant, instructions, model, temperature, top_p};
use super::error::Error;
use super::id::{AssistantId, Ids, RunId, ThreadId, ToolCallId};
use super::message::CreateMessage;
use super::metadata::{Metadata, metadata};
use super::rule::{At, Rule, array, boolean, by, id, integer, missing, object, one_of, string};
use super::thread::{CreateThread, MESSAGES_MAX};
use super::time::Timestamp;
use super::tool::{
    ResponseFormat, Tool, ToolChoice, ToolResources, reasoning_effort, response_format, tool, tool_choice,
    tool_resources,
};
use crate::request;

/// Most tools that a run request may name; as many as an assistant has.
const TOOLS_MAX: usize = 128;

/// Most outputs of one request; the service states none, so this only bounds what is read.
const OUTPUTS_MAX: usize = 1_000;
/// Most characters of an output; the service states none, so this only bounds what is stored.
const OUTPUT_CHARS_MAX: usize = 4_000_000;
/// Most characters of a call's id.
const CALL_ID_CHARS_MAX: usize = 256;

/// One answer of an assistant on a thread.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// What was asked for; it never changes.
    pub spec: Arc<RunSpec>,
    /// The client's own pairs.
    pub metadata: Metadata,
    /// Where the run stands.
    pub state: RunState,
    /// Tokens of the model calls that have ended.
    pub usage: Usage,
}

/// What a run was asked to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// Its name in the API.
    pub id: RunId,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it is given up.
    pub expires_at: Timestamp,
    /// The conversation.
    pub thread_id: ThreadId,
    /// Whose answer it is.
    pub assistant_id: AssistantId,
    /// The model's name as the client wrote it.
    pub model: String,
    /// The assistant's or the run's own, with the additional ones behind; empty when nobody set any.
    pub instructions: String,
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// What the tools work on, when `POST /threads/runs` said so.
    pub tool_resources: ToolResources,
    /// 0 to 2; `None` leaves it to the model.
    pub temperature: Option<f64>,
    /// 0 to 1; `None` leaves it to the model.
    pub top_p: Option<f64>,
    /// How hard a reasoning model shall think.
    pub reasoning_effort: Option<String>,
    /// Most tokens written over the whole run.
    pub max_completion_tokens: Option<u32>,
    /// Most tokens read over the whole run.
    pub max_prompt_tokens: Option<u32>,
    /// Which part of the thread the model sees.
    pub truncation_strategy: TruncationStrategy,
    /// The form of the answer.
    pub response_format: ResponseFormat,
    /// Whether, and what, the model must call.
    pub tool_choice: ToolChoice,
    /// Whether the model may call several functions at once.
    pub parallel_tool_calls: bool,
}

/// Where a run stands. Each end owns its time and its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Waiting for an executor.
    Queued {
        /// When it was last worked on, if ever.
        started_at: Option<Timestamp>,
    },
    /// Being worked on.
    InProgress {
        /// Since when.
        started_at: Timestamp,
    },
    /// Waiting for the client's tool outputs.
    RequiresAction {
        /// When it was last worked on.
        started_at: Timestamp,
        /// The calls that want an output, by index.
        calls: Vec<FunctionCall>,
    },
    /// A cancel was asked for and is being carried out.
    Cancelling {
        /// When it was last worked on, if ever.
        started_at: Option<Timestamp>,
    },
    /// Cancelled.
    Cancelled {
        /// When it was last worked on, if ever.
        started_at: Option<Timestamp>,
        /// When it ended.
        at: Timestamp,
    },
    /// Failed.
    Failed {
        /// When it was last worked on, if ever.
        started_at: Option<Timestamp>,
        /// When it ended.
        at: Timestamp,
        /// Why.
        error: LastError,
    },
    /// Completed.
    Completed {
        /// When it was last worked on.
        started_at: Timestamp,
        /// When it ended.
        at: Timestamp,
    },
    /// Stopped at a limit.
    Incomplete {
        /// When it was last worked on.
        started_at: Timestamp,
        /// When it ended.
        at: Timestamp,
        /// Which limit.
        reason: RunIncompleteReason,
    },
    /// Given up at its deadline.
    Expired {
        /// When it was last worked on, if ever.
        started_at: Option<Timestamp>,
    },
}

/// A function call that wants an output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// Our name for it.
    pub id: ToolCallId,
    /// Which function.
    pub name: String,
    /// Its arguments, JSON as the model wrote it.
    pub arguments: String,
}

/// Why a run or a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what to do about it.
    pub message: String,
}

/// The words for why a run failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The model server, or we, failed.
    ServerError,
    /// The model server asked us to wait for longer than we may.
    RateLimitExceeded,
}

/// The limits at which a run stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunIncompleteReason {
    /// It has written as much as it may; also what a content filter's cut is told as, for want of a word.
    MaxCompletionTokens,
    /// It has read as much as it may.
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

/// Which part of the thread the model sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TruncationStrategy {
    /// How it is chosen.
    pub r#type: Truncation,
    /// How many of the newest messages.
    pub last_messages: Option<u32>,
}

/// The ways to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// As much as fits.
    Auto,
    /// The newest ones.
    LastMessages,
}

impl Default for TruncationStrategy {
    fn default() -> Self {
        Self { r#type: Truncation::Auto, last_messages: None }
    }
}

/// Tokens read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the members are those of the API reference")]
pub struct Usage {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub total_tokens: u32,
    #[serde(default)]
    pub prompt_token_details: PromptTokenDetails,
    #[serde(default)]
    pub completion_tokens_details: CompletionTokensDetails,
}

/// What was read a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the members are those of the API reference")]
pub struct PromptTokenDetails {
    pub cached_tokens: u32,
}

/// What was only thought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the members are those of the API reference")]
pub struct CompletionTokensDetails {
    pub reasoning_tokens: u32,
}

impl Usage {
    /// What a model call costs that reads and writes so many tokens.
    #[must_use]
    pub fn counted(read: usize, written: usize) -> Self {
        let number = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        let (prompt_tokens, completion_tokens) = (number(read), number(written));
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
    /// The word for it on the wire.
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

    /// Whether the run is over for good; until then it locks its thread.
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

    /// Whether an executor has something to do for it.
    #[must_use]
    pub fn needs_executor(&self) -> bool {
        matches!(self, Self::Queued { .. } | Self::InProgress { .. } | Self::Cancelling { .. })
    }

    /// When the run was last taken up.
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
    /// The bound on its tokens that it has passed, if any.
    #[must_use]
    pub fn limit_passed(&self) -> Option<RunIncompleteReason> {
        self.limit(|used, max| used > max)
    }

    /// The bound on its tokens that leaves no room for another turn, if any.
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

    /// Whether its deadline has come while it was still going.
    #[must_use]
    pub fn is_overdue(&self, now: Timestamp) -> bool {
        !self.state.is_over() && now >= self.spec.expires_at
    }
}

/// The wire form of a [`Run`], members in the recorded order.
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
    /// The form that a run has in a stream.
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
    /// Which part of the thread the model shall see.
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
    /// What a client answers to one call. An absent output is an empty one.
    ///
    /// Differs: newer clients of Azure's say what it is; the service knew no such member.
    pub struct ToolOutput {
        optional r#type: &'static str = one_of(&[("function_call_output", "function_call_output")]);
        optional tool_call_id: String = string(0, CALL_ID_CHARS_MAX);
        optional output: String = string(0, OUTPUT_CHARS_MAX);
    }
}

/// Documented as at least 256, but the service took 16.
fn max_tokens() -> impl Rule<Out = u32> {
    integer(1, u32::MAX)
}

fn truncation_strategy() -> impl Rule<Out = TruncationStrategy> {
    by(read_truncation, |schemas: &mut SchemaGenerator| object::<TruncationRequest>().schema(schemas))
}

fn read_truncation(value: serde_json::Value, at: &At<'_>) -> Result<TruncationStrategy, Error> {
    let TruncationRequest { r#type, last_messages } = object().read(value, at)?;
    if r#type == Truncation::LastMessages && last_messages.is_none() {
        return Err(missing(&At::Member(at, "last_messages")));
    }
    Ok(TruncationStrategy { r#type, last_messages })
}

impl CreateThreadAndRun {
    /// The two halves of the request: the thread, and the run on it with its own tool resources.
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
    /// The run that the request asks for, and the messages to add to the thread before it.
    ///
    /// What the request leaves open comes from the assistant. The run expires `expires_after` seconds from `now`.
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
