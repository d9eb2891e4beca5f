//! assistd: the Assistants API, on your own machine.
//!
//! The flow of data:
//!
//! ```text
//! write   JSON ──▶ api::CreateRun ──▶ runs::service ──▶ api::Run ──▶ store (row)
//! work    store (lease) ──▶ work ──▶ runs::drive ──▶ runs::machine ──▶ store.commit ──▶ runs::stream ──▶ SSE
//! read    store (row) ──▶ api::Run ──▶ JSON
//! ```
//!
//! | module | what it is |
//! | --- | --- |
//! | [`api`] | the public API as plain values: ids, objects, requests with their rules, events; no I/O |
//! | [`clock`] | the only source of the current time, synchronized with the database |
//! | [`traces`] | exports traces of runs and model calls over OTLP |
//! | [`host`] | host names |
//! | [`priority`] | the priority of background work |
//! | [`liveness`] | which background loops are down |
//! | [`metrics`] | what this server has done, for Prometheus |
//! | [`store`] | the storage interface, with drivers for Postgres and SQLite that share a `pool` and the statements in `store/sql` |
//! | [`llm`] | model servers: how they are found and inspected, the client, streams, routing by model name, token counts, the echo model |
//! | [`work`] | durable background jobs: leases and their renewal, attempts, supervised loops |
//! | [`runs`] | the core: `service`, `machine`, `transition`, `drive`, `model_turn`, `prompt`, `stream`, `upkeep`, `sweeper` |
//! | [`files`] | files and uploads: their bytes in a folder or an S3 bucket, the reaper |
//! | [`retrieval`] | file search: `extract` reads the texts of files in child processes |
//! | [`tools`] | the code interpreter: Python in a WebAssembly sandbox |
//! | [`access`] | who makes a request, and what they may do |
//! | [`http`] | axum: routes and their description (`openapi`), `layers` (keys, limits), extractors, error bodies, server-sent events |
//! | [`config`], [`telemetry`], [`health`] | settings, the log, the client of the health check |
//! | [`server`] | builds, starts and stops the server |
//! | [`commands`] | the commands for projects, API keys, searches, backups, checks and the code interpreter |
//!
//! A module may use only the modules to its right (checked by `tests/it/layers.rs`):
//!
//! ```text
//! main ▸ { server, commands } ▸ config ▸ { telemetry, health } ▸ http ▸ runs ▸ tools ▸ retrieval ▸ access ▸ files ▸ work ▸ { store, llm } ▸ { clock, traces } ▸ { host, priority, liveness, metrics, api }
//! ```

pub mod access;
pub mod api;
pub mod clock;
pub mod commands;
pub mod config;
pub mod files;
pub mod health;
pub mod host;
pub mod http;
pub mod liveness;
pub mod llm;
pub mod metrics;
pub mod priority;
pub mod retrieval;
pub mod runs;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod tools;
pub mod traces;
pub mod work;
