//! The tests through the public faces: the store's contract on both databases, and the HTTP surface of a real server
//! with a scripted model server behind it.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests read the environment, make clients, and fail where something is not as it should be"
)]

mod support;

mod assistants;
mod async_openai;
mod auth;
mod azure;
mod behaviours;
mod bounds;
mod browsers;
mod busy_thread;
mod cancel;
mod chat;
mod cli;
mod compatibility;
mod engine;
mod expiry;
mod layers;
mod lists;
mod messages;
mod migrations;
mod mutations;
mod openapi;
mod real_model;
mod recordings;
mod recovery;
mod replay;
mod runs;
mod slow_clients;
mod store;
mod streaming;
mod threads;
mod tool_calls;
mod upstreams;
