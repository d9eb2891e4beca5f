//! The tool choice of a run.

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::NAME_CHARS_MAX;
use super::definition::{BareTool, Tool};
use crate::api::error::Error;
use crate::api::rule::{
    At, Request as _, Rule, custom, identifier, object, tagged, tagged_schema, unsupported_value, wrong_type,
};
use crate::request;

/// Whether the model must call a tool, and which one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ToolChoice {
    /// A mode: none, auto or required.
    Mode(ToolMode),
    /// A specific tool.
    Named(NamedTool),
}

impl Default for ToolChoice {
    fn default() -> Self {
        Self::Mode(ToolMode::Auto)
    }
}

/// The modes of a tool choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolMode {
    /// The model must not call tools.
    None,
    /// The model decides.
    Auto,
    /// The model must call a tool.
    Required,
}

/// A tool that the model must call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum NamedTool {
    /// A function.
    Function {
        /// The function name.
        function: FunctionName,
    },
    /// The code interpreter.
    CodeInterpreter,
    /// The file search.
    FileSearch,
}

/// The name of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FunctionName {
    /// The name in the function definition.
    pub name: String,
}

request! {
    /// The choice of a function.
    pub struct NamedFunctionRequest {
        required function: FunctionNameRequest = object();
    }
}

request! {
    /// The name of a function.
    pub struct FunctionNameRequest {
        required name: String = identifier(NAME_CHARS_MAX);
    }
}

/// The modes of a tool choice on the wire.
const MODES: [&str; 3] = ["none", "auto", "required"];

/// The rule for `tool_choice`.
#[must_use]
pub fn tool_choice() -> impl Rule<Out = ToolChoice> + Copy {
    let schema = |schemas: &mut SchemaGenerator| {
        let named = tagged_schema(vec![
            ("function", NamedFunctionRequest::schema(schemas)),
            ("code_interpreter", BareTool::schema(schemas)),
            ("file_search", BareTool::schema(schemas)),
        ]);
        json!({"anyOf": [{"type": "string", "enum": MODES}, named]})
    };
    let read = |value: Value, at: &At<'_>| {
        let word = match &value {
            Value::String(word) => word,
            Value::Object(_) => return named_tool(value, at).map(ToolChoice::Named),
            other => return Err(wrong_type(at, "one of a string or object", other)),
        };
        match word.as_str() {
            "none" => Ok(ToolChoice::Mode(ToolMode::None)),
            "auto" => Ok(ToolChoice::Mode(ToolMode::Auto)),
            "required" => Ok(ToolChoice::Mode(ToolMode::Required)),
            other => Err(unsupported_value(at, other, &MODES)),
        }
    };
    custom(read, schema)
}

impl ToolChoice {
    /// Checks that the chosen tool is in `tools`. The error is that of the service for chat completions; the one for runs
    /// is not recorded.
    ///
    /// # Errors
    /// 400 that names the tool.
    pub fn check(&self, tools: &[Tool]) -> Result<(), Error> {
        let Self::Named(named) = self else { return Ok(()) };
        let (is_known, tool) = match named {
            NamedTool::Function { function: FunctionName { name } } => (
                tools.iter().any(|tool| matches!(tool, Tool::Function { function } if function.name == *name)),
                format!("function named '{name}'"),
            ),
            NamedTool::CodeInterpreter => {
                (tools.contains(&Tool::CodeInterpreter), "tool of type 'code_interpreter'".to_owned())
            }
            NamedTool::FileSearch => (
                tools.iter().any(|tool| matches!(tool, Tool::FileSearch { .. })),
                "tool of type 'file_search'".to_owned(),
            ),
        };
        if is_known {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "Invalid value for 'tool_choice': no {tool} was specified in the 'tools' parameter."
        ))
        .at("tool_choice")
        .code("invalid_value"))
    }
}

fn named_tool(value: Value, at: &At<'_>) -> Result<NamedTool, Error> {
    let (kind, members) = tagged(value, at, &["function", "code_interpreter", "file_search"])?;
    match kind {
        "function" => {
            let request = object::<NamedFunctionRequest>().read(members.into(), at)?;
            Ok(NamedTool::Function { function: FunctionName { name: request.function.name } })
        }
        "code_interpreter" => object::<BareTool>().read(members.into(), at).map(|_| NamedTool::CodeInterpreter),
        _ => object::<BareTool>().read(members.into(), at).map(|_| NamedTool::FileSearch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_returned_unchanged() {
        let at = At::Member(&At::Root, "x");
        for choice in [json!("none"), json!("required"), json!({"type": "function", "function": {"name": "f"}})] {
            let read = tool_choice().read(choice.clone(), &at).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), choice);
        }
    }
}
