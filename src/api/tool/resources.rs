//! The resources of tools: files and vector stores.

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::error::Error;
use crate::api::id::{FileId, VectorStoreId};
use crate::api::rule::{At, Patch, Rule, array, custom, id, object};
use crate::request;

/// Maximum number of files of the code interpreter, on an assistant or a thread.
const CODE_INTERPRETER_FILES_MAX: usize = 20;

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

    /// Applies the `tool_resources` of a modify request. Those of a tool that is absent or null are unchanged; an empty list
    /// clears them, and null for all tools clears all.
    ///
    /// Source: API reference v2, "Overrides the list of file IDs made available to the `code_interpreter` tool". Whether the
    /// service also cleared those of the other tool is not recorded; leaving them unchanged loses no data.
    pub fn modify(&mut self, patch: Patch<Self>) {
        match patch {
            Patch::Keep => {}
            Patch::Clear => *self = Self::default(),
            Patch::Set(Self { code_interpreter, file_search }) => {
                self.code_interpreter = code_interpreter.or_else(|| self.code_interpreter.take());
                self.file_search = file_search.or_else(|| self.file_search.take());
            }
        }
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
