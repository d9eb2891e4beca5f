//! Migrations: the same files for both databases, applied by several servers concurrently.

use std::path::PathBuf;
use std::sync::Arc;

use crate::both_stores;
use crate::support::database::Database;

#[test]
fn both_databases_have_the_same_migrations() {
    let names = |folder: &str| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("migrations").join(folder);
        let mut names: Vec<_> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };

    assert_eq!(names("sqlite"), names("postgres"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_servers_can_start_concurrently_on_an_empty_database() {
    let Some(database) = Database::postgres().await else { return };

    let stores = futures_util::future::join_all((0..6).map(|_| database.open())).await;

    for store in stores {
        store.check().await.unwrap();
    }
}

both_stores!(a_server_starts_on_a_database_with_a_migration_of_a_newer_release, async |database: Database| {
    database.open().await.close().await;
    database
        .execute(
            "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
             select 9999, 'newer', success, checksum, execution_time from _sqlx_migrations where version = 1",
        )
        .await;

    let store = database.open().await;

    store.check().await.unwrap();
    store.close().await;
});

#[tokio::test]
async fn a_sqlite_file_can_be_opened_by_one_server_at_a_time() {
    let database = Database::sqlite();
    let first = database.open().await;

    let clock = std::sync::Arc::new(assistd::clock::Clock::system());
    let second = assistd::store::open(&database.settings(), clock, Arc::default()).await.unwrap_err().to_string();

    assert!(second.contains("another server is using it"), "{second}");
    first.close().await;
}
