//! The code interpreter: runs Python code that a model has written, isolated from the server and its machine.

pub mod engine;
pub mod folder;
pub mod install;
pub mod sandbox;
pub mod sessions;
pub mod wasi;
pub mod wasm;
