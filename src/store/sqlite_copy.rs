//! A copy of a SQLite database, for backups. A server may be using the database.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};

use super::sqlite_file::{self, not_whole};
use super::{BlobId, BlobKind, Error, Settings, sqlite};
use crate::api::ProjectId;

/// How long the copy waits for a lock, which only other programs than servers hold for long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// A copy of a database that is being made.
#[derive(Debug)]
pub struct DatabaseCopy {
    source: SqliteConnection,
    copy: SqliteConnection,
    path: PathBuf,
}

impl DatabaseCopy {
    /// Copies the database to the file `path`, which does not exist: its state at one moment, with all commits until then.
    /// The database is neither migrated nor locked.
    ///
    /// # Errors
    /// [`Error::NotOneFile`] for another database than SQLite, [`Error::NotWhole`] if the database is damaged, and
    /// [`Error::NewerRelease`].
    pub async fn create(settings: &Settings, path: &Path) -> Result<Self, Error> {
        if !settings.url.starts_with("sqlite:") {
            return Err(Error::NotOneFile);
        }
        let source_path = sqlite_file::path_of(&settings.url)?;
        sqlite_file::check_header(&source_path)?;
        let mut source = connect(&source_path).await?;
        sqlite::check_schema(&mut source, &source_path).await?;
        // A path that begins with "file:" would be read as a URL.
        let path = std::path::absolute(path).map_err(sqlx::Error::Io)?;
        sqlx::query("vacuum into $1").bind(path.to_string_lossy().as_ref()).execute(&mut source).await?;
        let mut copy = connect(&path).await?;
        sqlite::quick_check(&mut copy, &source_path).await?;
        Ok(Self { source, copy, path })
    }

    /// Returns the files and parts of uploads in the copy.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn blobs(&mut self) -> Result<Vec<BlobId>, Error> {
        let mut blobs = Vec::new();
        for kind in BlobKind::ALL {
            let sql = format!("{} order by seq", visible(kind));
            let rows: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut self.copy).await?;
            let blob = |(id, project)| BlobId { kind, project: ProjectId::from_stored(project), id };
            blobs.extend(rows.into_iter().map(blob));
        }
        Ok(blobs)
    }

    /// Returns whether the database still has a file or part that is in the copy.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn still_exists(&mut self, blob: &BlobId) -> Result<bool, Error> {
        let sql = format!("{} and id = $1", visible(blob.kind));
        let row = sqlx::query(AssertSqlSafe(sql)).bind(&blob.id).fetch_optional(&mut self.source).await?;
        Ok(row.is_some())
    }

    /// Lets a file or part expire in the copy. A server that uses the copy removes it.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn expire(&mut self, blob: &BlobId) -> Result<(), Error> {
        let sql = format!("update {} set remove_at = 0 where id = $1", blob.kind.table());
        sqlx::query(AssertSqlSafe(sql)).bind(&blob.id).execute(&mut self.copy).await?;
        Ok(())
    }

    /// Ends the copy and writes it to disk. Returns its size in bytes.
    ///
    /// # Errors
    /// Those of the file.
    pub async fn finish(self) -> Result<u64, Error> {
        self.copy.close().await?;
        self.source.close().await?;
        let synchronized = async {
            let file = tokio::fs::File::open(&self.path).await?;
            file.sync_all().await?;
            Ok(file.metadata().await?.len())
        };
        Ok(synchronized.await.map_err(sqlx::Error::Io)?)
    }
}

/// Returns the statement for the rows of a kind that clients see.
fn visible(kind: BlobKind) -> String {
    format!(
        "select id, project_id from {}
         where status in ('processed', 'stored') and (remove_at is null or remove_at > unixepoch())",
        kind.table()
    )
}

async fn connect(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(false).busy_timeout(BUSY_TIMEOUT);
    SqliteConnection::connect_with(&options).await
}

/// Returns the error for a damaged database.
pub(super) fn damaged(path: &Path, error: sqlx::Error) -> Error {
    // 11: malformed, 26: not a database.
    let is_damaged = |code: &str| code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 11 | 26));
    match &error {
        sqlx::Error::Database(database) if database.code().is_some_and(|code| is_damaged(&code)) => {
            not_whole(path, database.message())
        }
        _ => error.into(),
    }
}
