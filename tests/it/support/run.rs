//! Runs that are stored without a request.

use assistd::api::run::RunOrigin;
use assistd::api::tool::{NewResources, ToolResources};
use assistd::api::{Assistant, Scope, ThreadId, Timestamp};

/// Returns the origin of a run in the default project that expires after 600 s.
pub fn origin<'a>(thread_id: &'a ThreadId, assistant: &'a Assistant, now: Timestamp) -> RunOrigin<'a> {
    let (scope, tool_resources) = (Scope::default_project(), ToolResources::default());
    RunOrigin { scope, api_key_id: None, thread_id, assistant, tool_resources, now, expires_after_s: 600 }
}

/// What is created with an object that has no resources.
pub static NOTHING: NewResources = NewResources { vector_store: None, attachments: None, images: Vec::new() };
