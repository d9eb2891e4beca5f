//! A model server that speaks OpenAI's chat completions over HTTP.

mod adapt;
mod chunk;
mod client;
mod models;
mod surrogates;

pub use client::{Settings, Upstream};

/// Maximum length of a server's error text that is passed on, in characters.
const ERROR_CHARS_MAX: usize = 500;
