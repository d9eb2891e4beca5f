//! Calls of tools.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::id::ToolCallId;

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

/// A call of a function, with its fields in wire order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolCall {
    /// Our ID of the call.
    pub id: ToolCallId,
    /// The type of the call.
    pub r#type: ToolCallType,
    /// The function, its arguments and its output.
    pub function: CalledFunction,
}

impl ToolCall {
    /// Creates a call without output.
    #[must_use]
    pub fn unanswered(call: &FunctionCall) -> Self {
        Self {
            id: call.id.clone(),
            r#type: ToolCallType::Function,
            function: CalledFunction { name: call.name.clone(), arguments: call.arguments.clone(), output: None },
        }
    }
}

/// The types of tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolCallType {
    /// A function of the client.
    Function,
}

/// A function that was called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CalledFunction {
    /// The function name.
    pub name: String,
    /// The arguments: JSON as the model wrote it.
    pub arguments: String,
    /// The output, after the client has submitted it.
    pub output: Option<String>,
}
