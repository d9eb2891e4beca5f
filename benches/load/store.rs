//! The databases of the measured servers, and their processor time.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::{Result, proc};

/// A temporary folder. Deleted when dropped.
pub struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    pub fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("assistd-load-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("load: failed to delete {}: {error}", self.0.display());
        }
    }
}

/// Creates empty databases.
pub struct Store {
    kind: Kind,
    /// Number of databases created so far.
    created: AtomicU32,
}

enum Kind {
    Sqlite { folder: PathBuf },
    Postgres { url: String, postmaster: Option<u32> },
}

impl Store {
    /// Creates `SQLite` files in this folder.
    pub fn sqlite(folder: PathBuf) -> Self {
        Self { kind: Kind::Sqlite { folder }, created: AtomicU32::new(0) }
    }

    /// Creates databases on the Postgres server at this URL.
    pub async fn postgres(url: String) -> Result<Self> {
        let mut connection = PgConnection::connect(&url).await?;
        let backend: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut connection).await?;
        let postmaster = proc::postmaster_of(backend.unsigned_abs());
        connection.close().await?;
        Ok(Self { kind: Kind::Postgres { url, postmaster }, created: AtomicU32::new(0) })
    }

    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Sqlite { .. } => "SQLite",
            Kind::Postgres { .. } => "Postgres",
        }
    }

    /// Returns the name and the version.
    pub async fn title(&self) -> Result<String> {
        let version: String = match &self.kind {
            Kind::Sqlite { .. } => {
                let mut connection = SqliteConnection::connect("sqlite::memory:").await?;
                sqlx::query_scalar("select sqlite_version()").fetch_one(&mut connection).await?
            }
            Kind::Postgres { url, .. } => {
                let mut connection = PgConnection::connect(url).await?;
                sqlx::query_scalar("show server_version").fetch_one(&mut connection).await?
            }
        };
        Ok(format!("{} {version}", self.name()))
    }

    /// Creates an empty database and returns its URL.
    pub async fn create_database(&self) -> Result<String> {
        let n = self.created.fetch_add(1, Ordering::Relaxed);
        match &self.kind {
            Kind::Sqlite { folder } => Ok(format!("sqlite://{}", folder.join(format!("{n}.db")).display())),
            Kind::Postgres { url, .. } => {
                let name = database_name(n);
                let mut connection = PgConnection::connect(url).await?;
                connection.execute(AssertSqlSafe(format!("create database {name}"))).await?;
                with_database(url, &name)
            }
        }
    }

    /// Returns the host and port of Postgres, and the URL with `address` as host and port. `None` for `SQLite`.
    pub fn relayed(&self, database_url: &str, address: std::net::SocketAddr) -> Option<(String, String)> {
        let Kind::Postgres { .. } = self.kind else { return None };
        let (scheme, rest) = database_url.split_once("://")?;
        let (authority, path) = rest.split_once('/')?;
        let (user, host) = authority.rsplit_once('@').unwrap_or(("postgres", authority));
        let host = if host.contains(':') { host.to_owned() } else { format!("{host}:5432") };
        Some((host, format!("{scheme}://{user}@{address}/{path}")))
    }

    /// Executes a statement on a database that was created here.
    pub async fn execute(&self, database_url: &str, sql: &str) -> Result<()> {
        let sql = AssertSqlSafe(sql.to_owned());
        match self.kind {
            Kind::Sqlite { .. } => SqliteConnection::connect(database_url).await?.execute(sql).await.map(|_| ())?,
            Kind::Postgres { .. } => PgConnection::connect(database_url).await?.execute(sql).await.map(|_| ())?,
        }
        Ok(())
    }

    /// Returns the lines of a query plan.
    pub async fn explain(&self, database_url: &str, sql: &str) -> Result<Vec<String>> {
        match self.kind {
            Kind::Sqlite { .. } => {
                let mut connection = SqliteConnection::connect(database_url).await?;
                let sql = AssertSqlSafe(format!("explain query plan {sql}"));
                let rows: Vec<(i64, i64, i64, String)> = sqlx::query_as(sql).fetch_all(&mut connection).await?;
                Ok(rows.into_iter().map(|(.., step)| step).collect())
            }
            Kind::Postgres { .. } => {
                let mut connection = PgConnection::connect(database_url).await?;
                let sql = AssertSqlSafe(format!("explain (analyze, costs off, timing off, summary off) {sql}"));
                Ok(sqlx::query_scalar(sql).fetch_all(&mut connection).await?)
            }
        }
    }

    /// Returns SQL for a table of the numbers 1 to `last` in the column `n`.
    pub fn numbers(&self, last: usize) -> String {
        match self.kind {
            Kind::Sqlite { .. } => format!(
                "(with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < {last})
                  select n from numbers) as numbers"
            ),
            Kind::Postgres { .. } => format!("generate_series(1, {last}) as numbers (n)"),
        }
    }

    /// Returns the processor time used by the processes of the database; `None` for `SQLite`.
    pub fn cpu(&self) -> Option<Duration> {
        match self.kind {
            Kind::Sqlite { .. } => None,
            Kind::Postgres { postmaster, .. } => proc::cpu_with_children(postmaster?),
        }
    }

    /// Drops the created databases. Files are deleted with their folder.
    pub async fn clean_up(&self) -> Result<()> {
        let Kind::Postgres { url, .. } = &self.kind else { return Ok(()) };
        let mut connection = PgConnection::connect(url).await?;
        for n in 0..self.created.load(Ordering::Relaxed) {
            let name = database_name(n);
            connection.execute(AssertSqlSafe(format!("drop database if exists {name} with (force)"))).await?;
        }
        Ok(())
    }
}

fn database_name(n: u32) -> String {
    format!("assistd_load_{}_{n}", std::process::id())
}

/// Returns the URL with another database name.
fn with_database(url: &str, name: &str) -> Result<String> {
    let (before_options, options) = url.split_once('?').map_or((url, None), |(url, options)| (url, Some(options)));
    let (scheme, rest) = before_options.split_once("://").ok_or("a Postgres URL starts with postgres://")?;
    let authority = rest.split('/').next().unwrap_or(rest);
    let options = options.map_or_else(String::new, |options| format!("?{options}"));
    Ok(format!("{scheme}://{authority}/{name}{options}"))
}
