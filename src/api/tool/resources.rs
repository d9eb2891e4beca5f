//! The resources of tools: files and vector stores.

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};

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

impl ToolResources {
    /// Returns the vector store for the file search.
    #[must_use]
    pub fn vector_store(&self) -> Option<&VectorStoreId> {
        self.file_search.as_ref().and_then(|search| search.vector_store_ids.first())
    }

    /// Replaces the vector store for the file search.
    pub fn set_vector_store(&mut self, id: &VectorStoreId) {
        self.file_search.get_or_insert_default().vector_store_ids = vec![id.clone()];
    }

    /// Returns the files for the code interpreter.
    #[must_use]
    pub fn code_files(&self) -> &[FileId] {
        self.code_interpreter.as_ref().map_or(&[], |code| &code.file_ids)
    }

    /// Removes files for the code interpreter.
    pub fn retain_code_files(&mut self, keep: impl Fn(&FileId) -> bool) {
        if let Some(code) = &mut self.code_interpreter {
            code.file_ids.retain(keep);
        }
    }

    /// Adds files for the code interpreter that it does not have yet.
    ///
    /// # Errors
    /// 400 if it would have too many.
    pub fn add_code_files<'a>(&mut self, files: impl Iterator<Item = &'a FileId>) -> Result<(), Error> {
        let new: Vec<FileId> = files.filter(|file| !self.code_files().contains(file)).cloned().collect();
        if new.is_empty() {
            return Ok(());
        }
        let files = &mut self.code_interpreter.get_or_insert_default().file_ids;
        files.extend(new);
        if files.len() > CODE_INTERPRETER_FILES_MAX {
            let param = "tool_resources.code_interpreter.file_ids";
            return Err(Error::invalid(format!(
                "Invalid '{param}': array too long. Expected an array with maximum length {CODE_INTERPRETER_FILES_MAX}, but \
                 got an array with length {} instead.",
                files.len()
            ))
            .at(param)
            .code("array_above_max_length"));
        }
        Ok(())
    }

    /// Returns whether it names nothing that must exist.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.code_files().is_empty() && self.vector_store().is_none()
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

impl From<CodeInterpreterRequest> for CodeInterpreterResources {
    fn from(request: CodeInterpreterRequest) -> Self {
        Self { file_ids: request.file_ids.unwrap_or_default() }
    }
}

request! {
    /// Vector stores for the file search.
    pub struct FileSearchResourcesRequest {
        optional vector_store_ids: Vec<VectorStoreId> = array(id(), 0, 1);
    }
}

/// The rule for `tool_resources`.
#[must_use]
pub fn tool_resources() -> impl Rule<Out = ToolResources> + Copy {
    let schema = |schemas: &mut SchemaGenerator| object::<ToolResourcesRequest>().schema(schemas);
    let read = |value, at: &At<'_>| {
        let request = object::<ToolResourcesRequest>().read(value, at)?;
        Ok(ToolResources {
            code_interpreter: request.code_interpreter.map(CodeInterpreterResources::from),
            file_search: request
                .file_search
                .map(|given| FileSearchResources { vector_store_ids: given.vector_store_ids.unwrap_or_default() }),
        })
    };
    custom(read, schema)
}
