//! The code interpreter: runs Python code that a model has written, isolated from the server and its machine.

pub mod sandbox;
