//! The requests that create, modify and resume runs.

use std::sync::Arc;

use schemars::SchemaGenerator;
use serde_json::Value;

use super::{Run, RunSpec, RunState, Truncation, TruncationStrategy};
use crate::api::assistant::{Assistant, instructions, model, reasoning_effort, temperature, top_p};
use crate::api::error::Error;
use crate::api::id::{ApiKeyId, AssistantId, Ids, ThreadId};
use crate::api::message::CreateMessage;
use crate::api::metadata::{Metadata, metadata};
use crate::api::organization::Scope;
use crate::api::response_format::{ResponseFormat, response_format};
use crate::api::rule::{At, Rule, array, boolean, custom, id, integer, missing, object, one_of, string};
use crate::api::thread::{CreateThread, MESSAGES_MAX};
use crate::api::time::Timestamp;
use crate::api::tool::{Tool, ToolChoice, ToolResources, tool, tool_choice, tool_resources};
use crate::api::usage::Usage;
use crate::request;

/// Maximum number of tools of a run, the same as of an assistant.
const TOOLS_MAX: usize = 128;

/// Maximum number of tool outputs of a request. The service documents none; this limits the request size.
const OUTPUTS_MAX: usize = 1_000;
/// Maximum length of an output, in characters. The service documents none; this limits the stored size.
const OUTPUT_CHARS_MAX: usize = 4_000_000;
/// Maximum length of a call ID, in characters.
const CALL_ID_CHARS_MAX: usize = 256;

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

fn read_truncation(value: Value, at: &At<'_>) -> Result<TruncationStrategy, Error> {
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

/// For whom a run is created, and on which objects.
#[derive(Debug, Clone)]
pub struct RunOrigin<'a> {
    /// The project.
    pub scope: Scope,
    /// The API key of the request, if it had one that is stored.
    pub api_key_id: Option<ApiKeyId>,
    /// The thread.
    pub thread_id: &'a ThreadId,
    /// The assistant.
    pub assistant: &'a Assistant,
    /// The tool resources of a `POST /threads/runs` request.
    pub tool_resources: ToolResources,
    /// The time of the request.
    pub now: Timestamp,
    /// The time from the request to the deadline of the run, in seconds.
    pub expires_after_s: u64,
}

#[cfg(test)]
impl<'a> RunOrigin<'a> {
    /// Creates the origin of a run in the default project that expires after 600 s.
    #[must_use]
    pub fn of(thread_id: &'a ThreadId, assistant: &'a Assistant, now: Timestamp) -> Self {
        let (scope, tool_resources) = (Scope::default_project(), ToolResources::default());
        Self { scope, api_key_id: None, thread_id, assistant, tool_resources, now, expires_after_s: 600 }
    }
}

impl CreateRun {
    /// Returns the requested run, and the messages to add to the thread before it. Parameters that are not set come from
    /// the assistant.
    #[must_use]
    pub fn into_run(self, ids: &Ids, origin: RunOrigin<'_>) -> (Run, Vec<CreateMessage>) {
        let RunOrigin { scope, api_key_id, thread_id, assistant, tool_resources, now, expires_after_s } = origin;
        let mut instructions = self.instructions.or_else(|| assistant.instructions.clone()).unwrap_or_default();
        if let Some(more) = self.additional_instructions.filter(|more| !more.is_empty()) {
            if !instructions.is_empty() {
                instructions.push('\n');
            }
            instructions.push_str(&more);
        }
        let spec = RunSpec {
            id: ids.generate(),
            created_at: now,
            expires_at: now.plus(expires_after_s),
            scope,
            api_key_id,
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
            lost_calls: 0,
        };
        (run, self.additional_messages.unwrap_or_default())
    }
}
