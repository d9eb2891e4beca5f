//! Calls of tools.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::definition::RankingOptions;
use crate::api::id::{FileId, ToolCallId, VectorStoreId};
use crate::api::vector_store::Attributes;

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

/// A call of a tool, with its fields in wire order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Our ID of the call.
    pub id: ToolCallId,
    /// The tool, with its input and output.
    #[serde(flatten)]
    pub tool: CalledTool,
}

/// A tool that was called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CalledTool {
    /// A function of the client.
    Function {
        /// The function, its arguments and its output.
        function: CalledFunction,
    },
    /// The file search.
    FileSearch {
        /// The options and the results.
        file_search: CalledFileSearch,
    },
    /// The code interpreter.
    CodeInterpreter {
        /// The code and what it has produced.
        code_interpreter: CalledCodeInterpreter,
    },
}

impl ToolCall {
    /// Creates the call of a function, without output.
    #[must_use]
    pub fn unanswered(call: &FunctionCall) -> Self {
        let function = CalledFunction { name: call.name.clone(), arguments: call.arguments.clone(), output: None };
        Self { id: call.id.clone(), tool: CalledTool::Function { function } }
    }

    /// Returns the function that was called; `None` for a built-in tool.
    #[must_use]
    pub fn function(&self) -> Option<&CalledFunction> {
        match &self.tool {
            CalledTool::Function { function } => Some(function),
            CalledTool::FileSearch { .. } | CalledTool::CodeInterpreter { .. } => None,
        }
    }

    /// Returns the call of the code interpreter; `None` for another tool.
    #[must_use]
    pub fn code(&self) -> Option<&CalledCodeInterpreter> {
        match &self.tool {
            CalledTool::CodeInterpreter { code_interpreter } => Some(code_interpreter),
            CalledTool::Function { .. } | CalledTool::FileSearch { .. } => None,
        }
    }

    /// Returns the call of a function as it is required from the client; `None` for a built-in tool.
    #[must_use]
    pub fn required(&self) -> Option<FunctionCall> {
        let CalledFunction { name, arguments, .. } = self.function()?.clone();
        Some(FunctionCall { id: self.id.clone(), name, arguments })
    }

    /// Returns the call as it was when it started: without input that is streamed, and without results.
    #[must_use]
    pub fn at_start(&self) -> Self {
        let mut call = self.clone();
        match &mut call.tool {
            CalledTool::Function { function } => function.output = None,
            CalledTool::FileSearch { file_search } => file_search.results.clear(),
            CalledTool::CodeInterpreter { code_interpreter } => {
                *code_interpreter = CalledCodeInterpreter::default();
            }
        }
        call
    }

    /// Returns the wire form, which has the text of search results only if `with_content` is set.
    #[must_use]
    pub fn object(&self, with_content: bool) -> ToolCallObject<'_> {
        let mut object = ToolCallObject {
            id: &self.id,
            r#type: self.tool.kind(),
            function: None,
            file_search: None,
            code_interpreter: None,
        };
        match &self.tool {
            CalledTool::Function { function } => object.function = Some(function),
            CalledTool::FileSearch { file_search: CalledFileSearch { ranking_options, results } } => {
                let results = results.iter().map(|result| result.object(with_content)).collect();
                object.file_search = Some(CalledFileSearchObject { ranking_options, results });
            }
            CalledTool::CodeInterpreter { code_interpreter: CalledCodeInterpreter { input, outputs, .. } } => {
                object.code_interpreter = Some(CalledCodeInterpreterObject { input, outputs });
            }
        }
        object
    }
}

impl CalledTool {
    /// Returns the type on the wire.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Function { .. } => "function",
            Self::FileSearch { .. } => "file_search",
            Self::CodeInterpreter { .. } => "code_interpreter",
        }
    }
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

/// A file search, with its results after it has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalledFileSearch {
    /// The options of the search.
    pub ranking_options: CalledRankingOptions,
    /// The results, best first.
    pub results: Vec<FileSearchResult>,
}

/// The options with which files were searched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CalledRankingOptions {
    /// The ranker.
    pub ranker: String,
    /// Minimum score of a result, 0 to 1.
    pub score_threshold: f64,
}

impl From<&RankingOptions> for CalledRankingOptions {
    fn from(options: &RankingOptions) -> Self {
        Self { ranker: options.ranker.clone(), score_threshold: options.score_threshold }
    }
}

/// A result of a file search: a chunk of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileSearchResult {
    /// The file.
    pub file_id: FileId,
    /// Its name.
    pub file_name: String,
    /// The vector store in which it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vector_store_id: Option<VectorStoreId>,
    /// The score, 0 to 1.
    pub score: f64,
    /// The attributes of the file in the vector store.
    pub attributes: Attributes,
    /// The number of the chunk in its file, from 0.
    pub chunk: u32,
    /// The number of bytes at the start of the text that are the end of the chunk before.
    #[serde(default)]
    pub overlap_bytes: u32,
    /// The text of the chunk.
    pub text: String,
}

impl FileSearchResult {
    fn object(&self, with_content: bool) -> FileSearchResultObject<'_> {
        let content = with_content.then(|| [ResultContent { r#type: "text", text: &self.text }]);
        FileSearchResultObject {
            file_id: &self.file_id,
            file_name: &self.file_name,
            score: self.score,
            attributes: &self.attributes,
            content,
        }
    }
}

/// A call of the code interpreter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CalledCodeInterpreter {
    /// The code.
    pub input: String,
    /// What the code has produced, in order.
    pub outputs: Vec<CodeOutput>,
    /// What the model reads of the results; `None` until the code has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// The files that the code has written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<WrittenFile>,
}

impl CalledCodeInterpreter {
    /// Returns the images that users see.
    pub fn images(&self) -> impl Iterator<Item = &FileId> {
        self.outputs.iter().filter_map(|output| match output {
            CodeOutput::Image { image } => Some(&image.file_id),
            CodeOutput::Logs { .. } => None,
        })
    }
}

/// Something that code has produced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CodeOutput {
    /// Text.
    Logs {
        /// The text.
        logs: String,
    },
    /// An image.
    Image {
        /// The image.
        image: OutputImage,
    },
}

/// An image that code has produced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputImage {
    /// Its file.
    pub file_id: FileId,
}

/// A file that code has written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenFile {
    /// Its path below `/mnt/data`.
    pub path: String,
    /// The file.
    pub file_id: FileId,
}

/// The wire form of a [`ToolCall`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct ToolCallObject<'a> {
    id: &'a ToolCallId,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<&'a CalledFunction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_search: Option<CalledFileSearchObject<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code_interpreter: Option<CalledCodeInterpreterObject<'a>>,
}

/// The wire form of a [`CalledCodeInterpreter`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct CalledCodeInterpreterObject<'a> {
    input: &'a str,
    outputs: &'a [CodeOutput],
}

/// The wire form of a [`CalledFileSearch`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct CalledFileSearchObject<'a> {
    ranking_options: &'a CalledRankingOptions,
    results: Vec<FileSearchResultObject<'a>>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct FileSearchResultObject<'a> {
    file_id: &'a FileId,
    file_name: &'a str,
    score: f64,
    attributes: &'a Attributes,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<[ResultContent<'a>; 1]>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ResultContent<'a> {
    r#type: &'static str,
    text: &'a str,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::id::Ids;

    fn call() -> ToolCall {
        let ids = Ids::counting();
        let result = FileSearchResult {
            file_id: ids.generate(),
            file_name: "a.txt".to_owned(),
            vector_store_id: Some(ids.generate()),
            score: 0.5,
            attributes: Attributes::default(),
            chunk: 3,
            overlap_bytes: 0,
            text: "tacos".to_owned(),
        };
        let ranking_options = CalledRankingOptions::from(&RankingOptions::default());
        let file_search = CalledFileSearch { ranking_options, results: vec![result] };
        ToolCall { id: ids.generate(), tool: CalledTool::FileSearch { file_search } }
    }

    #[test]
    fn the_text_of_a_result_is_sent_only_if_it_was_asked_for() {
        let call = call();
        let result = |with_content| {
            let object = serde_json::to_value(call.object(with_content)).unwrap();
            object["file_search"]["results"][0].clone()
        };

        assert_eq!(result(false).get("content"), None);
        assert_eq!(result(true)["content"], json!([{"type": "text", "text": "tacos"}]));
        assert_eq!(result(true).get("chunk"), None);
    }

    #[test]
    fn a_stored_call_is_read_again() {
        let stored = serde_json::to_string(&call()).unwrap();
        assert_eq!(serde_json::from_str::<ToolCall>(&stored).unwrap(), call());

        // As earlier releases have stored it.
        let function = r#"{"id":"call_1","type":"function","function":{"name":"f","arguments":"{}","output":null}}"#;
        let read: ToolCall = serde_json::from_str(function).unwrap();
        assert_eq!(read.function().map(|function| function.name.as_str()), Some("f"));
        assert_eq!(serde_json::to_string(&read).unwrap(), function);
    }
}
