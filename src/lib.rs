//! assistd: the Assistants API, on your own machine.
//!
//! The way data travels:
//!
//! ```text
//! write   JSON ──▶ api::CreateRun ──▶ runs ──▶ api::Run ──▶ store (row)
//! work    store (lease) ──▶ runs::machine ──▶ store.commit ──▶ runs::events ──▶ SSE
//! read    store (row) ──▶ api::Run ──▶ JSON
//! ```
//!
//! | module | what it is |
//! | --- | --- |
//! | [`api`] | the public API as plain values: ids, objects, requests with their rules, events; no I/O |
//! | [`clock`] | the time of day, from one place |
//! | [`store`] | the contract of what is kept; `postgres` and `sqlite` behind it, with one `pool` and one SQL text in `store/sql` |
//! | [`llm`] | model servers: the client, their streams, which model name goes where, tokens, the echo model |
//! | [`runs`] | the heart: `machine`, `turn` and `prompt` (pure), `executor`, `events`, `sweeper` |
//! | [`http`] | axum: routes and what is told of them (`openapi`), keys, limits, extractors, error bodies, server-sent events |
//! | [`config`], [`telemetry`], [`health`] | settings, the log, the health check's other side |
//! | [`server`] | builds and joins the parts, starts and stops them |
//!
//! Who may use whom, left to right, never back (`tests/it/layers.rs` holds us to it):
//!
//! ```text
//! main ▸ server ▸ config ▸ { telemetry, health } ▸ http ▸ runs ▸ { store, llm } ▸ clock ▸ api
//! ```

pub mod api;
pub mod clock;
pub mod config;
pub mod health;
pub mod http;
pub mod llm;
pub mod runs;
pub mod server;
pub mod store;
pub mod telemetry;
