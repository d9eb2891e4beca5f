//! A model server with OpenAI's chat-completions API over HTTP.

mod adapt;
mod chunk;
mod client;
mod models;
mod surrogates;

pub use client::{Settings, Upstream};

/// Maximum length of a server's error text in our errors, in characters.
const ERROR_CHARS_MAX: usize = 500;
