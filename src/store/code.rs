//! Sessions of the code interpreter: their rows. The sessions themselves are in the memory of a server.

use std::time::Duration;

use async_trait::async_trait;

use super::Error;
use crate::api::tool::WrittenFile;
use crate::api::{CodeSessionId, Scope, ThreadId};

/// Sessions of the code interpreter.
#[async_trait]
pub trait CodeSessions {
    /// Records that a server has opened a session for a thread.
    async fn open_code_session(&self, scope: &Scope, thread: &ThreadId, id: &CodeSessionId) -> Result<(), Error>;
    /// Returns the newest session of a thread, on any server.
    async fn newest_code_session(&self, scope: &Scope, thread: &ThreadId) -> Result<Option<CodeSessionId>, Error>;
    /// Adds a call to a session.
    async fn record_code_call(&self, id: &CodeSessionId, duration: Duration) -> Result<(), Error>;
    /// Returns the files that the code of a thread has written, ordered by path.
    async fn code_files(&self, scope: &Scope, thread: &ThreadId) -> Result<Vec<WrittenFile>, Error>;
    /// Stores the files that code has written in a session. They replace those with the same paths. Nothing is stored if the
    /// thread does not exist, or has a newer session.
    async fn set_code_files(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        session: &CodeSessionId,
        files: &[WrittenFile],
    ) -> Result<(), Error>;
}
