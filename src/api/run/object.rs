//! The wire form of a run.

use schemars::JsonSchema;
use serde::Serialize;

use super::{LastError, Run, RunIncompleteReason, RunState, TruncationStrategy};
use crate::api::id::{AssistantId, RunId, ThreadId, ToolCallId};
use crate::api::metadata::Metadata;
use crate::api::response_format::ResponseFormat;
use crate::api::time::Timestamp;
use crate::api::tool::{FunctionCall, Tool, ToolChoice, ToolResources};
use crate::api::usage::Usage;

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
        let over = run.state.has_ended();
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
