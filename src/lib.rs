//! assistd: the Assistants API, on your own machine.
//!
//! The way data travels:
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
//! | [`clock`] | the time of day, from one place; it follows the database's |
//! | [`liveness`] | which background loops are down |
//! | [`store`] | the contract of what is stored; `postgres` and `sqlite` behind it, with one `pool` and one SQL text in `store/sql` |
//! | [`llm`] | model servers: the client, their streams, which model name goes where, tokens, the echo model |
//! | [`work`] | durable background work: leases and their renewal, attempts, the supervisor of loops |
//! | [`runs`] | the heart: `service`, `machine`, `transition`, `drive`, `model_turn`, `prompt`, `stream`, `upkeep`, `sweeper` |
//! | [`http`] | axum: routes and their description (`openapi`), `layers` (keys, limits), extractors, error bodies, server-sent events |
//! | [`config`], [`telemetry`], [`health`] | settings, the log, the client of the health check |
//! | [`server`] | builds and joins the parts, starts and stops them |
//!
//! Who may use whom, left to right, never back (`tests/it/layers.rs` checks it):
//!
//! ```text
//! main ▸ server ▸ config ▸ { telemetry, health } ▸ http ▸ runs ▸ work ▸ { store, llm } ▸ clock ▸ { liveness, api }
//! ```

pub mod api;
pub mod clock;
pub mod config;
pub mod health;
pub mod http;
pub mod liveness;
pub mod llm;
pub mod runs;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod work;
