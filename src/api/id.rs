//! Identifiers: one type per object, each with its prefix, and their generator.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::Error;

/// The common interface of all identifiers.
pub trait Id: Sized {
    /// The part before the random digits, separator included: `thread_`.
    const PREFIX: &'static str;
    /// The name of the path parameter: `thread_id`.
    const PARAM: &'static str;
    /// The name of the object in error texts: `thread`.
    const NOUN: &'static str;

    /// Parses an identifier from a request.
    ///
    /// # Errors
    /// 400 `Invalid 'thread_id': 'undefined'. Expected an ID that begins with 'thread'.`; 404 if the text has
    /// characters that no identifier has.
    fn parse(text: &str, param: &str) -> Result<Self, Error>;

    /// Returns the error for an unknown identifier.
    fn not_found(&self) -> Error;
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident($prefix:literal, $param:literal, $noun:literal);)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        #[schemars(inline, extend("pattern" = format!("^{}", $prefix)))]
        pub struct $name(String);

        impl $name {
            /// Creates an identifier from a stored text, without validation.
            pub fn from_stored(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// Returns the text of the identifier.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Id for $name {
            const PREFIX: &'static str = $prefix;
            const PARAM: &'static str = $param;
            const NOUN: &'static str = $noun;

            fn parse(text: &str, param: &str) -> Result<Self, Error> {
                if text.starts_with($prefix) {
                    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                    let id = Self(text.to_owned());
                    // No identifier has other characters, and databases do not support all of them.
                    return if text.chars().all(plain) { Ok(id) } else { Err(id.not_found()) };
                }
                let expected = $prefix.trim_end_matches(['_', '-']);
                Err(Error::invalid(format!(
                    "Invalid '{param}': '{text}'. Expected an ID that begins with '{expected}'."
                ))
                .at(param)
                .code("invalid_value"))
            }

            fn not_found(&self) -> Error {
                Error::not_found($noun, self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Generate for $name {
            fn generate(ids: &Ids) -> Self {
                Self(format!("{}{}", $prefix, ids.unique().simple()))
            }
        }
    )*};
}

ids! {
    /// Identifies an assistant.
    AssistantId("asst_", "assistant_id", "assistant");
    /// Identifies a thread.
    ThreadId("thread_", "thread_id", "thread");
    /// Identifies a message.
    MessageId("msg_", "message_id", "message");
    /// Identifies a run.
    RunId("run_", "run_id", "run");
    /// Identifies a run step.
    RunStepId("step_", "step_id", "run step");
    /// Identifies a tool call.
    ToolCallId("call_", "tool_call_id", "tool call");
    /// Identifies a file.
    FileId("file-", "file_id", "file");
    /// Identifies an upload.
    UploadId("upload_", "upload_id", "upload");
    /// Identifies a part of an upload.
    PartId("part_", "part_id", "part");
    /// Identifies a vector store.
    VectorStoreId("vs_", "vector_store_id", "vector store");
    /// Identifies a file in a vector store. It is internal: in the API, the file ID identifies it.
    StoreFileId("vsf_", "store_file_id", "vector store file");
    /// Identifies a batch of files of a vector store.
    FileBatchId("vsfb_", "batch_id", "file batch");
    /// Identifies a session of the code interpreter. It is internal.
    CodeSessionId("csess_", "session_id", "session");
    /// Identifies a project.
    ProjectId("proj_", "project_id", "project");
    /// Identifies an API key of a project or of the organization. It does not reveal the key.
    ApiKeyId("key_", "api_key_id", "API key");
    /// Identifies a service account.
    ServiceAccountId("svc_acct_", "service_account_id", "service account");
    /// Identifies a rate limit of a project.
    RateLimitId("rl_", "rate_limit_id", "rate limit");
    /// Identifies an entry of the audit log.
    AuditLogId("audit_log-", "audit_log_id", "audit log");
}

/// An identifier type that [`Ids`] can generate.
pub trait Generate {
    /// Returns a new, unique identifier.
    fn generate(ids: &Ids) -> Self;
}

/// Generates identifiers: a prefix and the 32 hex digits of a version 7 UUID, so that they sort by time.
#[derive(Debug, Default)]
pub struct Ids {
    sequence: Option<std::sync::atomic::AtomicU64>,
}

impl Ids {
    /// Creates a generator that is unique across processes and machines.
    #[must_use]
    pub fn unique_everywhere() -> Self {
        Self::default()
    }

    /// Creates a generator that counts from one: the same identifiers in each run, for tests.
    #[must_use]
    pub fn counting() -> Self {
        Self { sequence: Some(std::sync::atomic::AtomicU64::new(0)) }
    }

    /// Generates an identifier.
    pub fn generate<T: Generate>(&self) -> T {
        T::generate(self)
    }

    fn unique(&self) -> Uuid {
        match &self.sequence {
            None => Uuid::now_v7(),
            Some(last) => {
                let next = last.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
                Uuid::from_u128(u128::from(next))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_its_prefix_and_32_digits_and_sorts_by_time() {
        let ids = Ids::unique_everywhere();

        let first: ThreadId = ids.generate();
        let second: ThreadId = ids.generate();

        assert_eq!(first.as_str().len(), "thread_".len() + 32);
        assert!(first < second);
    }

    #[test]
    fn a_text_without_the_prefix_is_rejected_with_the_parameter_name() {
        let error = ThreadId::parse("undefined", "thread_id").unwrap_err();

        assert_eq!(error.message, "Invalid 'thread_id': 'undefined'. Expected an ID that begins with 'thread'.");
        assert_eq!(error.param.as_deref(), Some("thread_id"));
    }
}
