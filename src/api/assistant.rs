//! Assistants: a model with instructions and tools.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::{AssistantId, Ids};
use super::metadata::{Metadata, metadata};
use super::response_format::{ResponseFormat, response_format};
use super::rule::{Rule, array, decimal, one_of, string};
use super::time::Timestamp;
use super::tool::{NewResources, NewToolResources, Tool, ToolResources, new_tool_resources, tool, tool_resources};
use crate::request;

/// Maximum length of a model name, in characters. The service documents none; this limits the stored size.
const MODEL_CHARS_MAX: usize = 256;
/// Maximum length of instructions, in characters.
const INSTRUCTIONS_CHARS_MAX: usize = 256_000;
/// Maximum number of tools of an assistant.
const TOOLS_MAX: usize = 128;

/// The rule for `model`.
pub(super) fn model() -> impl Rule<Out = String> {
    string(1, MODEL_CHARS_MAX)
}

/// The rule for `instructions` and `additional_instructions`.
pub(super) fn instructions() -> impl Rule<Out = String> {
    string(0, INSTRUCTIONS_CHARS_MAX)
}

/// The rule for `temperature`.
pub(super) fn temperature() -> impl Rule<Out = f64> {
    decimal(0.0, 2.0)
}

/// The rule for `top_p`.
pub(super) fn top_p() -> impl Rule<Out = f64> {
    decimal(0.0, 1.0)
}

/// The rule for `reasoning_effort`.
pub(super) fn reasoning_effort() -> impl Rule<Out = &'static str> + Copy {
    one_of(&[
        ("none", "none"),
        ("minimal", "minimal"),
        ("low", "low"),
        ("medium", "medium"),
        ("high", "high"),
        ("xhigh", "xhigh"),
        ("max", "max"),
    ])
}

/// A model with instructions and tools. Parameters that are not set are `None`, so that no defaults are sent to the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assistant {
    /// The assistant ID.
    pub id: AssistantId,
    /// When it was created.
    pub created_at: Timestamp,
    /// At most 256 characters.
    pub name: Option<String>,
    /// At most 512 characters.
    pub description: Option<String>,
    /// The requested model name. Aliases and servers are resolved when a run starts.
    pub model: String,
    /// At most 256,000 characters.
    pub instructions: Option<String>,
    /// At most 128.
    pub tools: Vec<Tool>,
    /// 0 to 1.
    pub top_p: Option<f64>,
    /// 0 to 2.
    pub temperature: Option<f64>,
    /// The reasoning effort of the model.
    pub reasoning_effort: Option<String>,
    /// The resources of the tools.
    pub tool_resources: ToolResources,
    /// The metadata set by the client.
    pub metadata: Metadata,
    /// The format of the answers.
    pub response_format: ResponseFormat,
}

/// The wire form of an [`Assistant`], with its properties in the recorded order.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AssistantObject<'a> {
    id: &'a AssistantId,
    object: &'static str,
    created_at: Timestamp,
    name: Option<&'a str>,
    description: Option<&'a str>,
    model: &'a str,
    instructions: Option<&'a str>,
    tools: &'a [Tool],
    top_p: f64,
    temperature: f64,
    reasoning_effort: Option<&'a str>,
    tool_resources: ToolResources,
    metadata: &'a Metadata,
    response_format: &'a ResponseFormat,
}

impl<'a> From<&'a Assistant> for AssistantObject<'a> {
    fn from(assistant: &'a Assistant) -> Self {
        let with_interpreter = assistant.tools.contains(&Tool::CodeInterpreter);
        Self {
            id: &assistant.id,
            object: "assistant",
            created_at: assistant.created_at,
            name: assistant.name.as_deref(),
            description: assistant.description.as_deref(),
            model: &assistant.model,
            instructions: assistant.instructions.as_deref(),
            tools: &assistant.tools,
            top_p: assistant.top_p.unwrap_or(1.0),
            temperature: assistant.temperature.unwrap_or(1.0),
            reasoning_effort: assistant.reasoning_effort.as_deref(),
            tool_resources: if with_interpreter {
                assistant.tool_resources.with_code_interpreter()
            } else {
                assistant.tool_resources.clone()
            },
            metadata: &assistant.metadata,
            response_format: &assistant.response_format,
        }
    }
}

request! {
    /// Body of `POST /assistants`.
    pub struct CreateAssistant {
        required model: String = model();
        optional name: String = string(0, 256);
        optional description: String = string(0, 512);
        optional instructions: String = instructions();
        optional tools: Vec<Tool> = array(tool(), 0, TOOLS_MAX);
        optional tool_resources: NewToolResources = new_tool_resources();
        optional metadata: Metadata = metadata();
        optional temperature: f64 = temperature();
        optional top_p: f64 = top_p();
        optional reasoning_effort: &'static str = reasoning_effort();
        optional response_format: ResponseFormat = response_format();
    }
}

impl CreateAssistant {
    /// Returns the requested assistant, and what is created with it.
    #[must_use]
    pub fn into_assistant(self, ids: &Ids, now: Timestamp) -> (Assistant, NewResources) {
        let (tool_resources, new) = self.tool_resources.unwrap_or_default().into_resources(ids, now, None);
        let assistant = Assistant {
            id: ids.generate(),
            created_at: now,
            name: self.name,
            description: self.description,
            model: self.model,
            instructions: self.instructions,
            tools: self.tools.unwrap_or_default(),
            top_p: self.top_p,
            temperature: self.temperature,
            reasoning_effort: self.reasoning_effort.map(str::to_owned),
            tool_resources,
            metadata: self.metadata.unwrap_or_default(),
            response_format: self.response_format.unwrap_or_default(),
        };
        (assistant, new)
    }
}

request! {
    /// Body of `POST /assistants/{assistant_id}`.
    pub struct ModifyAssistant {
        optional model: String = model();
        patch name: String = string(0, 256);
        patch description: String = string(0, 512);
        patch instructions: String = instructions();
        optional tools: Vec<Tool> = array(tool(), 0, TOOLS_MAX);
        patch tool_resources: ToolResources = tool_resources();
        patch metadata: Metadata = metadata();
        optional temperature: f64 = temperature();
        optional top_p: f64 = top_p();
        optional reasoning_effort: &'static str = reasoning_effort();
        optional response_format: ResponseFormat = response_format();
    }
}

impl ModifyAssistant {
    /// Applies the request to an assistant.
    pub fn apply(self, assistant: &mut Assistant) {
        if let Some(model) = self.model {
            assistant.model = model;
        }
        self.name.apply_optional(&mut assistant.name);
        self.description.apply_optional(&mut assistant.description);
        self.instructions.apply_optional(&mut assistant.instructions);
        if let Some(tools) = self.tools {
            assistant.tools = tools;
        }
        assistant.tool_resources.modify(self.tool_resources);
        self.metadata.apply(&mut assistant.metadata);
        if let Some(response_format) = self.response_format {
            assistant.response_format = response_format;
        }
        assistant.temperature = self.temperature.or(assistant.temperature);
        assistant.top_p = self.top_p.or(assistant.top_p);
        assistant.reasoning_effort =
            self.reasoning_effort.map(str::to_owned).or_else(|| assistant.reasoning_effort.take());
    }
}
