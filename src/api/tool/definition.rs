//! The definitions of tools.

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::NAME_CHARS_MAX;
use crate::api::error::Error;
use crate::api::rule::{
    At, Request as _, Rule, boolean, custom, decimal, free_object, identifier, integer, object, one_of, string, tagged,
    tagged_schema,
};
use crate::request;

/// Maximum length of a function description, in characters. The service documents none; this limits the stored size.
const DESCRIPTION_CHARS_MAX: usize = 256_000;

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
    fn an_unknown_tool_type_is_rejected_with_the_supported_types() {
        let error = tool().read(json!({"type": "retrieval"}), &At::Element(&At::Member(&At::Root, "tools"), 0));

        assert_eq!(
            error.unwrap_err().message,
            "Invalid value: 'retrieval'. Supported values are: 'code_interpreter', 'file_search', and 'function'."
        );
    }
}
