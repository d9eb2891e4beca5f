//! Identifiers: one type per object, each with its prefix, and the maker of new ones.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::Error;

/// What all identifiers have in common.
pub trait Id: Sized {
    /// The part before the random digits, separator included: `thread_`.
    const PREFIX: &'static str;
    /// The name of the path parameter that carries one: `thread_id`.
    const PARAM: &'static str;
    /// What the object is called in error texts: `thread`.
    const NOUN: &'static str;

    /// Takes a client's text for an identifier when it begins like one.
    ///
    /// # Errors
    /// 400 `Invalid 'thread_id': 'undefined'. Expected an ID that begins with 'thread'.`; 404 when no identifier has
    /// such characters.
    fn parse(text: &str, param: &str) -> Result<Self, Error>;

    /// The refusal for an identifier that names nothing.
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
            /// Takes a text that was an identifier of this kind before, such as a stored one.
            pub fn from_stored(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The identifier's text.
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
                    // Nothing has a name with other characters in it, and a database may choke on some.
                    return if text.chars().all(plain) { Ok(id) } else { Err(id.not_found()) };
                }
                let begins = $prefix.trim_end_matches(['_', '-']);
                Err(Error::invalid(format!(
                    "Invalid '{param}': '{text}'. Expected an ID that begins with '{begins}'."
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

        impl Make for $name {
            fn make(ids: &Ids) -> Self {
                Self(format!("{}{}", $prefix, ids.unique().simple()))
            }
        }
    )*};
}

ids! {
    /// Names an assistant.
    AssistantId("asst_", "assistant_id", "assistant");
    /// Names a thread.
    ThreadId("thread_", "thread_id", "thread");
    /// Names a message.
    MessageId("msg_", "message_id", "message");
    /// Names a run.
    RunId("run_", "run_id", "run");
    /// Names a run step.
    RunStepId("step_", "step_id", "run step");
    /// Names a tool call.
    ToolCallId("call_", "tool_call_id", "tool call");
    /// Names a file.
    FileId("file-", "file_id", "file");
    /// Names a vector store.
    VectorStoreId("vs_", "vector_store_id", "vector store");
}

/// An identifier type that [`Ids`] can make.
pub trait Make {
    /// A new one, never given before.
    fn make(ids: &Ids) -> Self;
}

/// Makes identifiers: a prefix and the 32 hex digits of a version 7 UUID, so that they sort by time.
#[derive(Debug, Default)]
pub struct Ids {
    sequence: Option<std::sync::atomic::AtomicU64>,
}

impl Ids {
    /// Unique across processes and machines.
    #[must_use]
    pub fn unique_everywhere() -> Self {
        Self::default()
    }

    /// Counts from one: the same identifiers on each run, for tests of pure code.
    #[must_use]
    pub fn counting() -> Self {
        Self { sequence: Some(std::sync::atomic::AtomicU64::new(0)) }
    }

    /// Makes one identifier of the type asked for.
    pub fn make<T: Make>(&self) -> T {
        T::make(self)
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

        let first: ThreadId = ids.make();
        let second: ThreadId = ids.make();

        assert_eq!(first.as_str().len(), "thread_".len() + 32);
        assert!(first < second);
    }

    #[test]
    fn a_text_without_the_prefix_is_refused_by_name() {
        let refused = ThreadId::parse("undefined", "thread_id").unwrap_err();

        assert_eq!(refused.message, "Invalid 'thread_id': 'undefined'. Expected an ID that begins with 'thread'.");
        assert_eq!(refused.param.as_deref(), Some("thread_id"));
    }
}
