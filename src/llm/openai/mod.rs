//! A model server with OpenAI's chat-completions API over HTTP.
//!
//! What servers send differs from the specification. The syntax is read leniently, but an answer must prove that it is
//! complete: see [`answer`]. What servers accept differs as well, so requests are adapted: see [`adapt`].

mod adapt;
mod answer;
mod chunk;
mod client;
mod learned;
mod mask;
mod models;
mod report;
mod visible;

pub(super) use chunk::{embeddings_usage, usage};
pub use client::{Settings, Upstream};
pub use mask::MASK;
pub(super) use report::Report;
pub use visible::ThinkTags;
