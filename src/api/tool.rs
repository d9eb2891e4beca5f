//! Tools, tool choice, tool resources, and response formats.

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::Error;
use super::id::{FileId, VectorStoreId};
use super::rule::{
    At, Request as _, Rule, array, boolean, custom, decimal, free_object, id, identifier, integer, object, one_of,
    string, tagged, tagged_schema, unsupported_value, wrong_type,
};
use crate::request;

/// Maximum length of a function description, in characters. The service documents none; this limits the stored size.
const DESCRIPTION_CHARS_MAX: usize = 256_000;
/// Maximum length of the name of a function or a response format, in characters.
const NAME_CHARS_MAX: usize = 64;
/// Maximum number of files of the code interpreter, on an assistant or a thread.
const CODE_INTERPRETER_FILES_MAX: usize = 20;

/// A tool that the model can call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Tool {
    /// Runs Python that the model writes.
    CodeInterpreter,
    /// Searches the attached vector stores.
    FileSearch {
        /// The search options.
        #[serde(default)]
        file_search: FileSearch,
    },
    /// A function of the client.
    Function {
        /// The function definition.
        function: Function,
    },
}

/// The options of `file_search`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default, JsonSchema)]
pub struct FileSearch {
    /// Maximum number of results, 1 to 50. Omitted in responses if not set.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_num_results: Option<u32>,
    /// The ranking options.
    pub ranking_options: RankingOptions,
}

/// The ranking options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RankingOptions {
    /// `auto` or the name of a ranker.
    pub ranker: String,
    /// Minimum score of a result, 0 to 1.
    pub score_threshold: f64,
    /// Weights of the two searches, stored unchanged.
    pub hybrid_search: Option<Map<String, Value>>,
}

/// The default ranker.
const RANKER: &str = "default_2024_08_21";

impl Default for RankingOptions {
    fn default() -> Self {
        Self { ranker: RANKER.to_owned(), score_threshold: 0.0, hybrid_search: None }
    }
}

/// A function definition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Function {
    /// The name: 1 to 64 letters, digits, underscores and dashes.
    pub name: String,
    /// The description for the model.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub description: Option<String>,
    /// The JSON schema of the arguments.
    pub parameters: Map<String, Value>,
    /// Whether the arguments must match the schema.
    pub strict: bool,
}

request! {
    /// A function definition in a request.
    pub struct FunctionRequest {
        required name: String = identifier(NAME_CHARS_MAX);
        optional description: String = string(0, DESCRIPTION_CHARS_MAX);
        optional parameters: Map<String, Value> = free_object();
        optional strict: bool = boolean();
    }
}

request! {
    /// A function tool.
    pub struct FunctionToolRequest {
        required function: FunctionRequest = object();
    }
}

request! {
    /// A file search tool.
    pub struct FileSearchToolRequest {
        optional file_search: FileSearchRequest = object();
    }
}

request! {
    /// The options of `file_search`.
    pub struct FileSearchRequest {
        optional max_num_results: u32 = integer(1, 50);
        optional ranking_options: RankingOptionsRequest = object();
    }
}

request! {
    /// The ranking options.
    pub struct RankingOptionsRequest {
        optional ranker: &'static str = one_of(&[("auto", "auto"), (RANKER, RANKER)]);
        optional score_threshold: f64 = decimal(0.0, 1.0);
        optional hybrid_search: Map<String, Value> = free_object();
    }
}

request! {
    /// A tool without parameters.
    pub struct BareTool {}
}

/// The rule for one tool.
#[must_use]
pub fn tool() -> impl Rule<Out = Tool> + Copy {
    let schema = |schemas: &mut SchemaGenerator| {
        tagged_schema(vec![
            ("code_interpreter", BareTool::schema(schemas)),
            ("file_search", FileSearchToolRequest::schema(schemas)),
            ("function", FunctionToolRequest::schema(schemas)),
        ])
    };
    let read = |value, at: &At<'_>| {
        let (kind, members) = tagged(value, at, &["code_interpreter", "file_search", "function"])?;
        match kind {
            "code_interpreter" => object::<BareTool>().read(members.into(), at).map(|_| Tool::CodeInterpreter),
            "file_search" => object::<FileSearchToolRequest>().read(members.into(), at).map(file_search),
            _ => {
                let request = object::<FunctionToolRequest>().read(members.into(), at)?;
                check_schema(&request.function, at)?;
                Ok(function(request))
            }
        }
    };
    custom(read, schema)
}

/// Checks that the schema describes an object, because the arguments are an object.
fn check_schema(function: &FunctionRequest, at: &At<'_>) -> Result<(), Error> {
    let kind = function.parameters.as_ref().and_then(|parameters| parameters.get("type"));
    let kind = match kind {
        None => return Ok(()),
        Some(Value::String(kind)) if kind == "object" => return Ok(()),
        Some(Value::String(kind)) => kind.clone(),
        Some(other) => other.to_string(),
    };
    Err(Error::invalid(format!(
        "Invalid schema for function '{}': schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{kind}\"'.",
        function.name
    ))
    .at(format!("{at}.function.parameters"))
    .code("invalid_function_parameters"))
}

fn file_search(request: FileSearchToolRequest) -> Tool {
    let Some(given) = request.file_search else {
        return Tool::FileSearch { file_search: FileSearch::default() };
    };
    let ranking_options = given.ranking_options.map_or_else(RankingOptions::default, |options| RankingOptions {
        ranker: options.ranker.unwrap_or(RANKER).to_owned(),
        score_threshold: options.score_threshold.unwrap_or(0.0),
        hybrid_search: options.hybrid_search,
    });
    Tool::FileSearch { file_search: FileSearch { max_num_results: given.max_num_results, ranking_options } }
}

fn function(request: FunctionToolRequest) -> Tool {
    let FunctionRequest { name, description, parameters, strict } = request.function;
    let parameters = parameters.unwrap_or_else(|| {
        let Value::Object(empty) = json!({"type": "object", "properties": {}}) else {
            unreachable!("the literal above is an object")
        };
        empty
    });
    Tool::Function { function: Function { name, description, parameters, strict: strict.unwrap_or(false) } }
}

/// The resources of the tools of an assistant or a thread.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ToolResources {
    /// Files for the code interpreter.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code_interpreter: Option<CodeInterpreterResources>,
    /// Vector stores for the file search.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file_search: Option<FileSearchResources>,
}

impl ToolResources {
    /// Returns the form with `code_interpreter` always present, as the service did in some responses.
    #[must_use]
    pub fn with_code_interpreter(&self) -> Self {
        let mut resources = self.clone();
        resources.code_interpreter.get_or_insert_default();
        resources
    }
}

/// Files for the code interpreter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CodeInterpreterResources {
    /// At most 20.
    #[serde(default)]
    pub file_ids: Vec<FileId>,
}

/// Vector stores for the file search.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FileSearchResources {
    /// At most one.
    #[serde(default)]
    pub vector_store_ids: Vec<VectorStoreId>,
}

request! {
    /// Tool resources in a request.
    pub struct ToolResourcesRequest {
        optional code_interpreter: CodeInterpreterRequest = object();
        optional file_search: FileSearchResourcesRequest = object();
    }
}

request! {
    /// Files for the code interpreter.
    pub struct CodeInterpreterRequest {
        optional file_ids: Vec<FileId> = array(id(), 0, CODE_INTERPRETER_FILES_MAX);
    }
}

request! {
    /// Vector stores for the file search.
    pub struct FileSearchResourcesRequest {
        optional vector_store_ids: Vec<VectorStoreId> = array(id(), 0, 1);
        optional vector_stores: Vec<()> = array(custom(reject_unsupported, |_: &mut SchemaGenerator| json!(false)), 0, 1);
    }
}

/// Rejects `vector_stores`, because vector stores are not supported yet, and ignoring them would lose the client's files.
fn reject_unsupported(_: Value, at: &At<'_>) -> Result<(), Error> {
    Err(Error::invalid(format!("Invalid '{at}': vector stores are not supported yet."))
        .at(at.to_string())
        .code("unsupported_parameter"))
}

/// The rule for `tool_resources`.
#[must_use]
pub fn tool_resources() -> impl Rule<Out = ToolResources> + Copy {
    let schema = |schemas: &mut SchemaGenerator| object::<ToolResourcesRequest>().schema(schemas);
    let read = |value, at: &At<'_>| {
        let request = object::<ToolResourcesRequest>().read(value, at)?;
        Ok(ToolResources {
            code_interpreter: request
                .code_interpreter
                .map(|given| CodeInterpreterResources { file_ids: given.file_ids.unwrap_or_default() }),
            file_search: request
                .file_search
                .map(|given| FileSearchResources { vector_store_ids: given.vector_store_ids.unwrap_or_default() }),
        })
    };
    custom(read, schema)
}

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

/// The format of the answers, stored and returned unchanged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct ResponseFormat(Value);

impl Default for ResponseFormat {
    fn default() -> Self {
        Self(Value::String("auto".to_owned()))
    }
}

impl ResponseFormat {
    /// Returns the format for chat completions; `None` for `auto`, the default.
    #[must_use]
    pub fn for_model(&self) -> Option<&Value> {
        self.0.is_object().then_some(&self.0)
    }
}

request! {
    /// A JSON schema format.
    pub struct JsonSchemaFormatRequest {
        required json_schema: JsonSchemaRequest = object();
    }
}

request! {
    /// A JSON schema with its name.
    pub struct JsonSchemaRequest {
        required name: String = identifier(NAME_CHARS_MAX);
        optional description: String = string(0, DESCRIPTION_CHARS_MAX);
        optional schema: Map<String, Value> = free_object();
        optional strict: bool = boolean();
    }
}

/// The rule for `response_format`.
#[must_use]
pub fn response_format() -> impl Rule<Out = ResponseFormat> + Copy {
    let schema = |schemas: &mut SchemaGenerator| {
        let object = tagged_schema(vec![
            ("text", BareTool::schema(schemas)),
            ("json_object", BareTool::schema(schemas)),
            ("json_schema", JsonSchemaFormatRequest::schema(schemas)),
        ]);
        json!({"anyOf": [{"type": "string", "const": "auto"}, object]})
    };
    let read = |value: Value, at: &At<'_>| match &value {
        Value::String(word) if word == "auto" => Ok(ResponseFormat(value)),
        Value::String(word) => Err(unsupported_value(at, word, &["auto"])),
        Value::Object(_) => {
            let (kind, members) = tagged(value.clone(), at, &["text", "json_object", "json_schema"])?;
            if kind == "json_schema" {
                object::<JsonSchemaFormatRequest>().read(members.into(), at)?;
            } else {
                object::<BareTool>().read(members.into(), at)?;
            }
            // Null means absent, and strict clients reject null in the response.
            let mut value = value.clone();
            if let Some(Value::Object(schema)) = value.get_mut("json_schema") {
                schema.retain(|_, value| !value.is_null());
            }
            Ok(ResponseFormat(value))
        }
        other => Err(wrong_type(at, "one of a string or object", other)),
    };
    custom(read, schema)
}

/// The rule for `reasoning_effort`.
#[must_use]
pub fn reasoning_effort() -> impl Rule<Out = &'static str> + Copy {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(value: Value) -> Value {
        serde_json::to_value(tool().read(value, &At::Member(&At::Root, "tool")).unwrap()).unwrap()
    }

    #[test]
    fn tools_are_returned_with_their_defaults() {
        assert_eq!(echo(json!({"type": "code_interpreter"})), json!({"type": "code_interpreter"}));
        assert_eq!(
            echo(json!({"type": "file_search"})),
            json!({"type": "file_search", "file_search": {"ranking_options":
                {"ranker": "default_2024_08_21", "score_threshold": 0.0, "hybrid_search": null}}})
        );
        assert_eq!(
            echo(json!({"type": "function", "function": {"name": "f"}})),
            json!({"type": "function", "function":
                {"name": "f", "parameters": {"type": "object", "properties": {}}, "strict": false}})
        );
    }

    #[test]
    fn choices_and_formats_are_returned_unchanged() {
        let at = At::Member(&At::Root, "x");
        for choice in [json!("none"), json!("required"), json!({"type": "function", "function": {"name": "f"}})] {
            let read = tool_choice().read(choice.clone(), &at).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), choice);
        }
        for format in [
            json!("auto"),
            json!({"type": "json_object"}),
            json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}),
        ] {
            let read = response_format().read(format.clone(), &at).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), format);
        }
    }

    #[test]
    fn an_unknown_tool_type_is_rejected_with_the_supported_types() {
        let error = tool().read(json!({"type": "retrieval"}), &At::Element(&At::Member(&At::Root, "tools"), 0));

        assert_eq!(
            error.unwrap_err().message,
            "Invalid value: 'retrieval'. Supported values are: 'code_interpreter', 'file_search', and 'function'."
        );
    }
}
