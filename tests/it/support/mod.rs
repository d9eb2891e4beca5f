//! Helpers of the tests.

pub mod client;
pub mod code;
pub mod contract;
pub mod database;
pub mod disk;
pub mod documents;
pub mod embeddings;
pub mod form;
pub mod ingest;
pub mod process;
pub mod projects;
pub mod run;
pub mod server;
mod skip;
pub mod sse;
pub mod transition;
pub mod upstream;

pub use skip::skip;

/// Runs a test on SQLite and on Postgres: `both_stores!(name, async |database: Database| { … });`
#[macro_export]
macro_rules! both_stores {
    ($(#[$doc:meta])* $name:ident, $body:expr) => {
        $(#[$doc])*
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                let body = $body;
                let database = $crate::support::database::Database::sqlite();
                body(database).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                let body = $body;
                let Some(database) = $crate::support::database::Database::postgres().await else { return };
                body(database).await;
            }
        }
    };
}
