//! The types of the public API: their wire form and validation rules. No I/O, no async.

pub mod assistant;
pub mod error;
pub mod file;
pub mod id;
pub mod message;
pub mod metadata;
pub mod organization;
pub mod page;
pub mod response_format;
pub mod rule;
pub mod run;
pub mod run_step;
pub mod stream;
pub mod surrogates;
pub mod thread;
pub mod time;
pub mod tool;
pub mod upload;
pub mod usage;
pub mod vector_store;

pub use assistant::{Assistant, CreateAssistant, ModifyAssistant};
pub use error::Error;
pub use file::File;
pub use id::{
    ApiKeyId, AssistantId, AuditLogId, CodeSessionId, FileBatchId, FileId, Ids, MessageId, PartId, ProjectId,
    RateLimitId, RunId, RunStepId, ServiceAccountId, StoreFileId, ThreadId, ToolCallId, UploadId, VectorStoreId,
};
pub use message::{CreateMessage, Message, ModifyMessage};
pub use metadata::Metadata;
pub use organization::Scope;
pub use page::{Page, PageQuery};
pub use run::{CreateRun, CreateThreadAndRun, ModifyRun, Run, SubmitToolOutputs};
pub use run_step::RunStep;
pub use stream::StreamEvent;
pub use thread::{CreateThread, ModifyThread, Thread};
pub use time::Timestamp;
pub use upload::{Upload, UploadPart};
pub use vector_store::{FileBatch, ModifyVectorStore, StoreFile, VectorStore};
