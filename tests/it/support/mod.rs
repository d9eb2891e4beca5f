//! Helpers of the tests.

pub mod client;
pub mod contract;
pub mod database;
pub mod server;
pub mod sse;
pub mod transition;
pub mod upstream;

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

/// Reports that a test is skipped because something is missing; fails in CI.
pub fn skip(what: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have {what}");
    eprintln!("skipped: no {what}");
}
