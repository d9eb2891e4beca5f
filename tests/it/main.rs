//! Integration tests: the store on both databases, and the HTTP API of a running server in front of a scripted model
//! server.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests read the environment, create clients, and fail by panicking"
)]

mod support;

mod access;
mod assistants;
mod async_openai;
mod auth;
mod azure;
mod backup;
mod behaviours;
mod bounds;
mod browsers;
mod busy_thread;
mod cancel;
mod check;
mod cli;
mod code_interpreter;
mod code_interpreter_install;
mod compatibility;
mod docs;
mod early_replies;
mod engine;
mod escapes;
mod expiry;
mod extraction;
mod file_search;
mod file_storage;
mod files;
mod ingestion;
mod isolation;
mod layers;
mod limits;
mod lists;
mod logs;
mod messages;
mod metrics;
mod migrations;
mod model_servers;
mod mutations;
mod openapi;
mod organization;
mod proxy;
mod real_model;
mod recordings;
mod recovery;
mod replay;
mod runs;
mod sandbox;
mod search;
mod slow_clients;
mod store;
mod streaming;
mod threads;
mod tool_calls;
mod tool_resources;
mod traces;
mod uploads;
mod upstreams;
mod usage;
mod vector_stores;
