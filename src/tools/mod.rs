//! Built-in tools that run in the server, apart from the search of files, which is in [`retrieval`](crate::retrieval).

pub mod code_interpreter;
