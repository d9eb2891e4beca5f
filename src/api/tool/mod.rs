//! Tools: their definitions, calls, choice and resources.

mod call;
mod choice;
mod definition;
mod new_resources;
mod resources;

pub use call::{
    CalledCodeInterpreter, CalledFileSearch, CalledFunction, CalledRankingOptions, CalledTool, CodeOutput,
    FileSearchResult, FunctionCall, OutputImage, ToolCall, ToolCallObject, WrittenFile,
};
pub use choice::{FunctionName, NamedTool, ToolChoice, ToolMode, tool_choice};
pub use definition::{BareTool, FileSearch, Function, RankingOptions, Tool, tool};
pub use new_resources::{
    NewAttachments, NewFileSearchResourcesRequest, NewImage, NewResources, NewToolResources, NewToolResourcesRequest,
    NewVectorStore, THREAD_STORE_DAYS, VectorStoreRequest, new_tool_resources,
};
pub use resources::{
    CodeInterpreterRequest, CodeInterpreterResources, FileSearchResources, FileSearchResourcesRequest, ToolResources,
    ToolResourcesRequest, tool_resources,
};

/// Maximum length of the name of a function, in characters.
const NAME_CHARS_MAX: usize = 64;
