//! Threads: conversations.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::{Ids, ThreadId};
use super::message::CreateMessage;
use super::metadata::{Metadata, metadata};
use super::rule::{array, object};
use super::time::Timestamp;
use super::tool::{
    NewResources, NewToolResources, THREAD_STORE_DAYS, ToolResources, new_tool_resources, tool_resources,
};
use crate::request;

/// Maximum number of messages in a request that creates a thread or a run.
///
/// Differs: the service accepted 32 in `POST /threads`; users requested more, to import conversations.
pub(super) const MESSAGES_MAX: usize = 1_000;

/// A conversation. Its messages are stored separately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// The thread ID.
    pub id: ThreadId,
    /// When it was created.
    pub created_at: Timestamp,
    /// The metadata set by the client.
    pub metadata: Metadata,
    /// The resources of the tools.
    pub tool_resources: ToolResources,
}

/// The wire form of a [`Thread`], with its properties in the recorded order.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ThreadObject<'a> {
    id: &'a ThreadId,
    object: &'static str,
    created_at: Timestamp,
    metadata: &'a Metadata,
    tool_resources: ToolResources,
}

impl<'a> From<&'a Thread> for ThreadObject<'a> {
    fn from(thread: &'a Thread) -> Self {
        Self {
            id: &thread.id,
            object: "thread",
            created_at: thread.created_at,
            metadata: &thread.metadata,
            tool_resources: thread.tool_resources.clone(),
        }
    }
}

impl ThreadObject<'_> {
    /// Returns the form of a retrieved thread, which is also used in streams.
    #[must_use]
    pub fn retrieved(mut self) -> Self {
        self.tool_resources = self.tool_resources.with_code_interpreter();
        self
    }
}

request! {
    /// Body of `POST /threads`, and the `thread` of `POST /threads/runs`.
    pub struct CreateThread {
        optional messages: Vec<CreateMessage> = array(object(), 0, MESSAGES_MAX);
        optional tool_resources: NewToolResources = new_tool_resources();
        optional metadata: Metadata = metadata();
    }
}

impl CreateThread {
    /// Returns the requested thread, its messages, and what is created with it. A vector store that is created with a thread
    /// expires.
    #[must_use]
    pub fn into_thread(self, ids: &Ids, now: Timestamp) -> (Thread, Vec<CreateMessage>, NewResources) {
        let given = self.tool_resources.unwrap_or_default();
        let (tool_resources, new) = given.into_resources(ids, now, Some(THREAD_STORE_DAYS));
        let thread =
            Thread { id: ids.generate(), created_at: now, metadata: self.metadata.unwrap_or_default(), tool_resources };
        (thread, self.messages.unwrap_or_default(), new)
    }
}

request! {
    /// Body of `POST /threads/{thread_id}`.
    pub struct ModifyThread {
        patch tool_resources: ToolResources = tool_resources();
        patch metadata: Metadata = metadata();
    }
}

impl ModifyThread {
    /// Applies the request to a thread.
    pub fn apply(self, thread: &mut Thread) {
        thread.tool_resources.modify(self.tool_resources);
        self.metadata.apply(&mut thread.metadata);
    }
}
