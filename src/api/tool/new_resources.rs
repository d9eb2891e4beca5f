//! What a request creates together with an assistant, a thread or a message: a vector store, and the files that messages
//! attach.

use std::collections::HashSet;

use schemars::SchemaGenerator;

use super::resources::{CodeInterpreterRequest, CodeInterpreterResources, FileSearchResources, ToolResources};
use crate::api::error::Error;
use crate::api::file::Purpose;
use crate::api::id::{FileId, Ids, VectorStoreId};
use crate::api::message::{AttachmentTool, Content, Message};
use crate::api::metadata::{Metadata, metadata};
use crate::api::rule::{At, Rule, array, custom, id, object};
use crate::api::time::Timestamp;
use crate::api::vector_store::{
    Attributes, ChunkingStrategy, NewStoreFile, VectorStore, VectorStoreSettings, chunking_strategy, each_once,
    mutually_exclusive,
};
use crate::request;

/// Maximum number of files of a vector store that is created together with an assistant or a thread, and of files that the
/// messages of a request attach.
///
/// Source: API reference v2, `tool_resources.file_search.vector_stores`, before November 2025.
const FILES_MAX: usize = 10_000;
/// After how many days without use the vector store of a thread expires.
///
/// Source: File Search guide, "Managing costs with expiration policies".
pub const THREAD_STORE_DAYS: u32 = 7;

request! {
    /// Tool resources in a request that creates an assistant or a thread.
    pub struct NewToolResourcesRequest {
        optional code_interpreter: CodeInterpreterRequest = object();
        optional file_search: NewFileSearchResourcesRequest = object();
    }
}

request! {
    /// Vector stores for the file search: either the ID of one, or one to create.
    pub struct NewFileSearchResourcesRequest {
        optional vector_store_ids: Vec<VectorStoreId> = array(id(), 0, 1);
        optional vector_stores: Vec<VectorStoreRequest> = array(object(), 0, 1);
    }
}

request! {
    /// A vector store to create.
    pub struct VectorStoreRequest {
        optional file_ids: Vec<FileId> = array(id(), 0, FILES_MAX);
        optional chunking_strategy: ChunkingStrategy = chunking_strategy();
        optional metadata: Metadata = metadata();
    }
}

/// Tool resources of a request that creates an assistant or a thread.
#[derive(Debug, Clone, Default)]
pub struct NewToolResources {
    resources: ToolResources,
    vector_store: Option<VectorStoreRequest>,
}

/// A vector store to create, with its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVectorStore {
    /// The vector store.
    pub store: VectorStore,
    /// Its files.
    pub files: Vec<NewStoreFile>,
}

/// What is created together with an assistant, a thread, a message or a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewResources {
    /// A vector store. The tool resources of the new object have its ID.
    pub vector_store: Option<NewVectorStore>,
    /// The files that new messages attach to their thread.
    pub attachments: Option<NewAttachments>,
    /// The image files of new messages.
    pub images: Vec<NewImage>,
}

/// An image file of a new message. It must exist, but nothing is created for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewImage {
    /// The file.
    pub file_id: FileId,
    /// The parameter of the request that has its ID.
    param: String,
}

/// The files that new messages attach to their thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAttachments {
    /// Files for the file search.
    pub search: Vec<NewStoreFile>,
    /// Files for the code interpreter.
    pub code: Vec<FileId>,
    /// The vector store that is created if the thread has none.
    pub vector_store: VectorStore,
}

/// The rule for `tool_resources` of a new assistant or thread.
#[must_use]
pub fn new_tool_resources() -> impl Rule<Out = NewToolResources> + Copy {
    let schema = |schemas: &mut SchemaGenerator| object::<NewToolResourcesRequest>().schema(schemas);
    let read = |value, at: &At<'_>| {
        let request = object::<NewToolResourcesRequest>().read(value, at)?;
        let mut new = NewToolResources::default();
        new.resources.code_interpreter = request.code_interpreter.map(CodeInterpreterResources::from);
        if let Some(search) = request.file_search {
            new.vector_store = search.vector_stores.and_then(|mut stores| stores.pop());
            let ids = search.vector_store_ids.unwrap_or_default();
            if new.vector_store.is_some() && !ids.is_empty() {
                return Err(mutually_exclusive("vector_store_ids", "vector_stores").at(at.to_string()));
            }
            new.resources.file_search = Some(FileSearchResources { vector_store_ids: ids });
        }
        Ok(new)
    };
    custom(read, schema)
}

impl NewToolResources {
    /// Returns the tool resources of the new object, and the vector store that is created with it. It expires after this
    /// number of days without use.
    #[must_use]
    pub fn into_resources(
        self,
        ids: &Ids,
        now: Timestamp,
        expires_after_days: Option<u32>,
    ) -> (ToolResources, NewResources) {
        let mut resources = self.resources;
        let vector_store = self.vector_store.map(|request| {
            let metadata = request.metadata.unwrap_or_default();
            let settings = VectorStoreSettings { expires_after_days, metadata, ..VectorStoreSettings::default() };
            let chunking = request.chunking_strategy.unwrap_or_default();
            let file_ids = request.file_ids.unwrap_or_default();
            let files = file_ids.into_iter().map(|file_id| new_file(ids, file_id, chunking)).collect();
            NewVectorStore { store: VectorStore::new(ids.generate(), settings, now), files: each_once(files) }
        });
        if let Some(NewVectorStore { store, .. }) = &vector_store {
            resources.set_vector_store(&store.id);
        }
        (resources, NewResources { vector_store, ..NewResources::default() })
    }
}

fn new_file(ids: &Ids, file_id: FileId, chunking: ChunkingStrategy) -> NewStoreFile {
    NewStoreFile { id: ids.generate(), file_id, attributes: Attributes::default(), chunking }
}

impl NewResources {
    /// Adds the files that messages attach, and their images. `param` is the parameter of the request that has the messages;
    /// empty if the request is a message.
    ///
    /// # Errors
    /// 400 if too many files are attached.
    pub fn attach(&mut self, messages: &[Message], param: &str, ids: &Ids, now: Timestamp) -> Result<(), Error> {
        self.attachments = NewAttachments::of(messages, ids, now)?;
        self.images =
            messages.iter().enumerate().flat_map(|(index, message)| NewImage::of(message, param, index)).collect();
        Ok(())
    }

    /// Returns whether nothing is created, and no file must exist.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vector_store.is_none() && self.attachments.is_none() && self.images.is_empty()
    }

    /// Returns the files for the file search.
    pub fn search_files(&self) -> impl Iterator<Item = &NewStoreFile> {
        let created = self.vector_store.iter().flat_map(|new| &new.files);
        created.chain(self.attachments.iter().flat_map(|attachments| &attachments.search))
    }

    /// Returns the files that messages attach for the code interpreter.
    pub fn code_files(&self) -> impl Iterator<Item = &FileId> {
        self.attachments.iter().flat_map(|attachments| &attachments.code)
    }
}

impl NewImage {
    /// Returns the image files of a message.
    fn of(message: &Message, param: &str, index: usize) -> impl Iterator<Item = Self> {
        let message_param = if param.is_empty() { String::new() } else { format!("{param}[{index}].") };
        message.content.iter().enumerate().filter_map(move |(part, content)| {
            let Content::ImageFile { image_file } = content else { return None };
            let param = format!("{message_param}content[{part}].image_file.file_id");
            Some(Self { file_id: image_file.file_id.clone(), param })
        })
    }

    /// Checks that a model can see the file, which has this purpose, or does not exist.
    ///
    /// # Errors
    /// 400 that names the parameter. The service's text for a missing image is not recorded; this is that for other files. It
    /// recommended the purpose `vision`, and did not require it; files for fine-tuning, batches and evaluations are not
    /// images.
    pub fn check(&self, purpose: Option<Purpose>) -> Result<(), Error> {
        let id = &self.file_id;
        let message = match purpose {
            Some(Purpose::Vision | Purpose::Assistants | Purpose::UserData | Purpose::AssistantsOutput) => {
                return Ok(());
            }
            None => format!("Files [{id}] were not found"),
            Some(purpose @ (Purpose::FineTune | Purpose::Batch | Purpose::Evals)) => {
                let purpose = purpose.name();
                format!(
                    "Invalid message content: the file '{id}' has the purpose '{purpose}'. Expected an image with the \
                     purpose 'vision', 'assistants' or 'user_data'."
                )
            }
        };
        Err(Error::invalid(message).at(self.param.clone()))
    }
}

impl NewAttachments {
    fn of(messages: &[Message], ids: &Ids, now: Timestamp) -> Result<Option<Self>, Error> {
        let (mut search, mut code) = (Vec::new(), Vec::new());
        let (mut searched, mut run) = (HashSet::new(), HashSet::new());
        for attachment in messages.iter().flat_map(|message| &message.attachments) {
            for tool in &attachment.tools {
                match tool {
                    AttachmentTool::FileSearch if searched.insert(&attachment.file_id) => {
                        search.push(new_file(ids, attachment.file_id.clone(), ChunkingStrategy::default()));
                    }
                    AttachmentTool::CodeInterpreter if run.insert(&attachment.file_id) => {
                        code.push(attachment.file_id.clone());
                    }
                    AttachmentTool::FileSearch | AttachmentTool::CodeInterpreter => {}
                }
            }
        }
        if search.is_empty() && code.is_empty() {
            return Ok(None);
        }
        if search.len() > FILES_MAX {
            return Err(Error::invalid(format!(
                "The messages attach {} files. A request can attach at most {FILES_MAX} files.",
                search.len()
            )));
        }
        let settings =
            VectorStoreSettings { expires_after_days: Some(THREAD_STORE_DAYS), ..VectorStoreSettings::default() };
        Ok(Some(Self { search, code, vector_store: VectorStore::new(ids.generate(), settings, now) }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::rule::Request as _;
    use crate::api::{CreateMessage, ThreadId};

    const NOW: Timestamp = Timestamp(1_000);

    fn read(value: Value) -> Result<NewToolResources, Error> {
        new_tool_resources().read(value, &At::Member(&At::Root, "tool_resources"))
    }

    #[test]
    fn a_vector_store_is_created_and_its_id_is_in_the_resources() {
        let sizes = json!({"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 0}});
        let store =
            json!({"file_ids": ["file-a", "file-a", "file-b"], "chunking_strategy": sizes, "metadata": {"k": "v"}});
        let new = read(json!({"file_search": {"vector_stores": [store]}})).unwrap();

        let (resources, new) = new.into_resources(&Ids::counting(), NOW, Some(7));

        let created = new.vector_store.unwrap();
        assert_eq!(resources.file_search.unwrap().vector_store_ids, std::slice::from_ref(&created.store.id));
        assert_eq!(created.store.expires_at, Some(Timestamp(1_000 + 7 * 86_400)));
        assert_eq!(serde_json::to_value(&created.store.settings.metadata).unwrap(), json!({"k": "v"}));
        let files: Vec<&str> = created.files.iter().map(|file| file.file_id.as_str()).collect();
        assert_eq!(files, ["file-a", "file-b"]);
        assert_eq!(created.files[0].chunking.sizes().max_chunk_size_tokens, 200);
    }

    #[test]
    fn resources_without_a_vector_store_to_create_are_returned_unchanged() {
        for resources in [
            json!({}),
            json!({"code_interpreter": {"file_ids": ["file-a"]}}),
            json!({"file_search": {"vector_store_ids": ["vs_a"]}}),
            json!({"file_search": {"vector_store_ids": []}, "code_interpreter": {"file_ids": []}}),
        ] {
            let (echoed, new) = read(resources.clone()).unwrap().into_resources(&Ids::counting(), NOW, None);
            let expected: ToolResources = serde_json::from_value(resources).unwrap();
            assert_eq!((echoed, new.is_empty()), (expected, true));
        }
    }

    #[test]
    fn a_vector_store_is_either_named_or_created() {
        let both = read(json!({"file_search": {"vector_store_ids": ["vs_a"], "vector_stores": [{}]}})).unwrap_err();
        assert_eq!(both.code, Some("mutually_exclusive_parameters"));
        let two = read(json!({"file_search": {"vector_stores": [{}, {}]}})).unwrap_err();
        assert_eq!(two.param.as_deref(), Some("tool_resources.file_search.vector_stores"));
        let unknown = read(json!({"file_search": {"vector_stores": [{"name": "n"}]}})).unwrap_err();
        assert_eq!(unknown.param.as_deref(), Some("tool_resources.file_search.vector_stores[0].name"));
    }

    #[test]
    fn each_file_is_attached_once_to_each_tool() {
        let ids = Ids::counting();
        let message = |attachments: Value| {
            let request = CreateMessage::parse(json!({"role": "user", "content": "x", "attachments": attachments}));
            request.unwrap().into_message(&ids, &ThreadId::from_stored("thread_1"), NOW)
        };
        let (search, code) = (json!({"type": "file_search"}), json!({"type": "code_interpreter"}));
        let messages = [
            message(json!([{"file_id": "file-a", "tools": [search]}, {"file_id": "file-a", "tools": [code]}])),
            message(json!([{"file_id": "file-b", "tools": [code, search]}, {"file_id": "file-a", "tools": [search]}])),
            message(json!([{"file_id": "file-c", "tools": []}])),
        ];

        let mut new = NewResources::default();
        new.attach(&messages, "messages", &ids, NOW).unwrap();

        let searched: Vec<&str> = new.search_files().map(|file| file.file_id.as_str()).collect();
        let run: Vec<&str> = new.code_files().map(FileId::as_str).collect();
        assert_eq!((searched, run), (vec!["file-a", "file-b"], vec!["file-a", "file-b"]));
        let mut none = NewResources::default();
        none.attach(&messages[2..], "messages", &ids, NOW).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn images_know_the_parameter_of_their_file() {
        let ids = Ids::counting();
        let message = |content: Value| {
            let request = CreateMessage::parse(json!({"role": "user", "content": content}));
            request.unwrap().into_message(&ids, &ThreadId::from_stored("thread_1"), NOW)
        };
        let image = |id: &str| json!({"type": "image_file", "image_file": {"file_id": id}});
        let text = json!({"type": "text", "text": "x"});
        let messages = [message(json!("x")), message(json!([text, image("file-a"), image("file-b")]))];
        let params = |messages: &[Message], param: &str| {
            let mut new = NewResources::default();
            new.attach(messages, param, &ids, NOW).unwrap();
            assert_eq!(new.is_empty(), new.images.is_empty());
            let param = |image: &NewImage| image.check(None).unwrap_err().param.unwrap();
            new.images.iter().map(param).collect::<Vec<_>>()
        };

        let expected = ["m[1].content[1].image_file.file_id", "m[1].content[2].image_file.file_id"];
        assert_eq!(params(&messages, "m"), expected);
        let expected = ["content[1].image_file.file_id", "content[2].image_file.file_id"];
        assert_eq!(params(&messages[1..], ""), expected);
        assert_eq!(params(&messages[..1], "m"), [""; 0]);
    }
}
