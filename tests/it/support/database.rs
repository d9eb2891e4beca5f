//! A fresh database for one test.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use assistd::clock::Clock;
use assistd::store::{self, Store, Synchronous};
use sqlx::{Connection, Executor, PgConnection, SqliteConnection};
use uuid::Uuid;

use super::disk::Disk;
use super::skip;

/// A database for one test, deleted on drop (SQLite) or with the temporary server (Postgres).
#[derive(Debug, Clone)]
pub struct Database {
    pub url: String,
    _folder: Option<Arc<Folder>>,
    files: Arc<Folder>,
    data: Arc<Folder>,
}

/// A folder that is deleted on drop.
#[derive(Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("assistd-test-{}", Uuid::now_v7().simple()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Database {
    fn new(url: String, folder: Option<Folder>) -> Self {
        Self { url, _folder: folder.map(Arc::new), files: Arc::new(Folder::new()), data: Arc::new(Folder::new()) }
    }

    pub fn sqlite() -> Self {
        let folder = Folder::new();
        Self::new(format!("sqlite://{}", folder.0.join("test.db").display()), Some(folder))
    }

    /// The folder for the bytes of files.
    /// The data folder of its servers.
    pub fn data(&self) -> &Path {
        &self.data.0
    }

    pub fn files(&self) -> &Path {
        &self.files.0
    }

    /// Returns `None` and reports a skipped test if no Postgres is configured.
    pub async fn postgres() -> Option<Self> {
        let Ok(url) = std::env::var("ASSISTD_TEST_POSTGRES_URL") else {
            skip("ASSISTD_TEST_POSTGRES_URL; run tests/run");
            return None;
        };
        let name = format!("test_{}", Uuid::now_v7().simple());
        let mut connection = PgConnection::connect(&url).await.unwrap();
        connection.execute(sqlx::AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        connection.close().await.unwrap();
        let (server, _) = url.rsplit_once('/').unwrap();
        Some(Self::new(format!("{server}/{name}"), None))
    }

    /// An existing database at another URL.
    pub fn at(url: String) -> Self {
        Self::new(url, None)
    }

    /// Opens the store without a server.
    pub async fn open(&self) -> Arc<dyn Store> {
        self.open_at(Arc::new(Clock::system())).await
    }

    /// Opens the store with a clock that the test moves.
    pub async fn open_at(&self, clock: Arc<Clock>) -> Arc<dyn Store> {
        store::open(&self.settings(), clock, Arc::default()).await.unwrap()
    }

    /// A SQLite file on a small disk that can be filled. Returns `None` and reports a skipped test if mounting fails.
    pub fn on_small_disk() -> Option<(Self, Disk)> {
        let disk = Disk::mount("4m");
        if disk.is_none() {
            skip("permission to mount a small disk");
        }
        let disk = disk?;
        let url = format!("sqlite://{}", disk.0.join("test.db").display());
        Some((Self::new(url, None), disk))
    }

    /// Executes SQL directly, while the store may be open.
    pub async fn execute(&self, sql: &str) {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        if self.url.starts_with("sqlite:") {
            let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
            connection.execute(sql).await.unwrap();
            connection.close().await.unwrap();
        } else {
            let mut connection = PgConnection::connect(&self.url).await.unwrap();
            connection.execute(sql).await.unwrap();
            connection.close().await.unwrap();
        }
    }

    /// Reads one text value with SQL.
    pub async fn text(&self, sql: &str) -> String {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        if self.url.starts_with("sqlite:") {
            let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
            let (text,): (String,) = sqlx::query_as(sql).fetch_one(&mut connection).await.unwrap();
            text
        } else {
            let mut connection = PgConnection::connect(&self.url).await.unwrap();
            let (text,): (String,) = sqlx::query_as(sql).fetch_one(&mut connection).await.unwrap();
            text
        }
    }

    pub fn settings(&self) -> store::Settings {
        store::Settings {
            url: self.url.clone(),
            connections_max: 8,
            statement_timeout: Duration::from_secs(5),
            start_timeout: Duration::from_secs(5),
            synchronous: Synchronous::Normal,
        }
    }
}
