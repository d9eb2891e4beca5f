//! A fresh database for one test.

use std::path::PathBuf;
use std::sync::Arc;

use assistd::store::{self, Store, Synchronous};
use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

use super::skip;

/// A database of its own, gone with the value (SQLite) or with the throwaway server (Postgres).
#[derive(Debug, Clone)]
pub struct Database {
    pub url: String,
    _folder: Option<Arc<Folder>>,
}

/// A folder that is deleted with the value.
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
    pub fn sqlite() -> Self {
        let folder = Folder::new();
        Self { url: format!("sqlite://{}", folder.0.join("test.db").display()), _folder: Some(Arc::new(folder)) }
    }

    /// None, and a word about it, when no Postgres is named.
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
        Some(Self { url: format!("{server}/{name}"), _folder: None })
    }

    /// A database that someone else keeps, by another way to it.
    pub fn at(url: String) -> Self {
        Self { url, _folder: None }
    }

    /// Opens the store itself, for tests of its contract.
    pub async fn open(&self) -> Arc<dyn Store> {
        store::open(&store::Settings {
            url: self.url.clone(),
            connections_max: 8,
            statement_max: std::time::Duration::from_secs(20),
            synchronous: Synchronous::Normal,
        })
        .await
        .unwrap()
    }
}
