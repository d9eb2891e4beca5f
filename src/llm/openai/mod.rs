//! A model server with OpenAI's chat-completions API over HTTP.
//!
//! What servers send differs from the specification, so it is read leniently and judged strictly: see [`answer`]. What
//! they accept differs too, so requests are adapted: see [`adapt`].

mod adapt;
mod answer;
mod chunk;
mod client;
mod learned;
mod models;
mod report;
mod visible;

pub use client::{Settings, Upstream};
pub use visible::ThinkTags;
