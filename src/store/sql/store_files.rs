//! The table `vector_store_files`: its rows, and the changes that several operations share.

use std::collections::HashMap;

use serde::de::Error as _;
use sqlx::Row as _;

use super::{Backend, Db, Row, insert_store_files};
use crate::api::file::Purpose;
use crate::api::tool::NewImage;
use crate::api::vector_store::{NewStoreFile, StoreFileState, StoreFileStatus, check_supported};
use crate::api::{File, FileId, Scope, StoreFile, Timestamp, VectorStoreId};
use crate::store::pool::Transaction;
use crate::store::{Error, from_json, to_json};

pub(super) const TABLE: &str = "vector_store_files";

/// Reads a file. The row must have the columns of the API.
pub(super) fn from_row(row: &Row) -> Result<StoreFile, Error> {
    let id: &str = row.try_get("id")?;
    Ok(StoreFile {
        file_id: FileId::from_stored(row.try_get::<&str, _>("file_id")?),
        vector_store_id: VectorStoreId::from_stored(row.try_get::<&str, _>("vector_store_id")?),
        created_at: Timestamp(row.try_get("created_at")?),
        state: match status(id, row.try_get("status")?)? {
            StoreFileStatus::InProgress => StoreFileState::InProgress,
            StoreFileStatus::Completed => StoreFileState::Completed,
            StoreFileStatus::Cancelled => StoreFileState::Cancelled,
            StoreFileStatus::Failed => {
                let error: Option<&str> = row.try_get("last_error")?;
                StoreFileState::Failed(from_json(TABLE, id, error.unwrap_or("null"))?)
            }
        },
        usage_bytes: unsigned(row.try_get("usage_bytes")?),
        chunking: from_json(TABLE, id, row.try_get("chunking")?)?,
        attributes: from_json(TABLE, id, row.try_get("attributes")?)?,
    })
}

pub(super) fn status(id: &str, name: &str) -> Result<StoreFileStatus, Error> {
    StoreFileStatus::of_name(name).ok_or_else(|| Error::Inconsistent {
        table: TABLE,
        id: id.to_owned(),
        source: serde_json::Error::custom(format!("unknown status {name}")),
    })
}

/// Returns a stored number that is not negative.
pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Commits the transaction if it succeeded. If the outcome is not the fault of the database, the connection can be used
/// again after a rollback.
pub(super) async fn finish<T>(tx: Transaction<Db>, outcome: Result<T, Error>) -> Result<T, Error> {
    match outcome {
        Ok(value) => {
            tx.commit().await?;
            Ok(value)
        }
        Err(error @ (Error::Unavailable(_) | Error::Rejected(_))) => Err(error),
        Err(error) => {
            tx.rollback().await?;
            Err(error)
        }
    }
}

/// The names and purposes of requested files, locked until the end of the transaction so that they cannot be deleted
/// meanwhile.
pub(super) struct FoundFiles(HashMap<String, (String, Purpose)>);

impl FoundFiles {
    /// Finds the files that exist.
    pub async fn find(
        tx: &mut Transaction<Db>,
        fixed_time: Option<i64>,
        scope: &Scope,
        ids: &[&FileId],
    ) -> Result<Self, Error> {
        if ids.is_empty() {
            return Ok(Self(HashMap::new()));
        }
        let ids: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
        // Only the ID restricts the rows in SQL: with more conditions, Postgres may expect so few rows that it reads the list
        // again for each of them.
        let rows = sqlx::query::<Db>(concat!(
            "select id, project_id, status, remove_at, body, ",
            now!("$1"),
            " as now_s from files where id in (",
            json_texts!("$2"),
            ")",
            for_share!()
        ))
        .bind(fixed_time)
        .bind(to_json(&ids))
        .fetch_all(&mut *tx)
        .await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in rows {
            let is_of_project = row.try_get::<&str, _>("project_id")? == scope.as_str();
            let is_processed = row.try_get::<&str, _>("status")? == "processed";
            let (remove_at, now): (Option<i64>, i64) = (row.try_get("remove_at")?, row.try_get("now_s")?);
            if is_of_project && is_processed && remove_at.is_none_or(|at| at > now) {
                let id: String = row.try_get("id")?;
                let file: File = from_json("files", &id, row.try_get("body")?)?;
                found.insert(id, (file.filename, file.purpose));
            }
        }
        Ok(Self(found))
    }

    /// Checks that all files exist.
    pub fn check_exist(&self, ids: &[&FileId]) -> Result<(), Error> {
        let mut missing: Vec<FileId> = Vec::new();
        for id in ids.iter().filter(|id| !self.0.contains_key(id.as_str())) {
            if !missing.contains(id) {
                missing.push((*id).clone());
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(Error::NoFiles(missing)) }
    }

    /// Checks that files, which exist, can be searched.
    pub fn check_supported<'a>(&self, files: impl Iterator<Item = &'a NewStoreFile>) -> Result<(), Error> {
        check_supported(files.map(|file| self.filename(&file.file_id))).map_err(Error::Invalid)
    }

    /// Checks that models can see the images.
    pub fn check_images(&self, images: &[NewImage]) -> Result<(), Error> {
        let purpose = |image: &NewImage| self.0.get(image.file_id.as_str()).map(|(_, purpose)| *purpose);
        images.iter().try_for_each(|image| image.check(purpose(image))).map_err(Error::Invalid)
    }

    fn filename(&self, id: &FileId) -> &str {
        self.0.get(id.as_str()).map(|(name, _)| name.as_str()).unwrap_or_default()
    }
}

/// A row to insert.
pub(super) struct NewRow<'a> {
    pub file: &'a NewStoreFile,
    /// Without NUL characters, which Postgres cannot store.
    pub filename: String,
    pub attributes: String,
    pub chunking: String,
}

/// Adds files that exist to a vector store, whose row must be locked. Returns the IDs of the rows, in order.
pub(super) async fn add_files(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    store: &VectorStoreId,
    now: Timestamp,
    (files, found): (&[NewStoreFile], &FoundFiles),
) -> Result<Vec<String>, Error> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let existing = existing_files(tx, store, files).await?;
    let (mut ids, mut new) = (Vec::with_capacity(files.len()), Vec::new());
    for file in files {
        let (attributes, chunking) = (to_json(&file.attributes), to_json(&file.chunking));
        if let Some((id, status)) = existing.get(file.file_id.as_str()) {
            if status == "failed" || status == "cancelled" {
                restart(tx, fixed_time, id, Some((&attributes, &chunking))).await?;
            }
            ids.push(id.clone());
        } else {
            ids.push(file.id.to_string());
            let filename = found.filename(&file.file_id).replace('\0', "\u{fffd}");
            new.push(NewRow { file, filename, attributes, chunking });
        }
    }
    if !new.is_empty() {
        insert_store_files(tx, fixed_time, scope, store, now, &new).await?;
    }
    Ok(ids)
}

/// Returns those of the files that the vector store has: the IDs of the rows and their statuses, by file ID.
async fn existing_files(
    tx: &mut Transaction<Db>,
    store: &VectorStoreId,
    files: &[NewStoreFile],
) -> Result<HashMap<String, (String, String)>, Error> {
    let ids: Vec<(&str, u8)> = files.iter().map(|file| (file.file_id.as_str(), 0)).collect();
    let rows: Vec<(String, String, String)> = sqlx::query_as::<Db, _>(concat!(
        "select file_id, id, status from vector_store_files
         where status <> 'deleted' and (vector_store_id, file_id) in (select $1, id from (",
        json_pairs!("$2"),
        ") as wanted)"
    ))
    .bind(store.as_str())
    .bind(to_json(&ids))
    .fetch_all(&mut *tx)
    .await?;
    Ok(rows.into_iter().map(|(file_id, id, status)| (file_id, (id, status))).collect())
}

/// Processes a file again. Its chunks remain, unless the chunking strategy has changed.
pub(super) async fn restart(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    id: &str,
    attributes_and_chunking: Option<(&str, &str)>,
) -> Result<(), Error> {
    sqlx::query::<Db>(concat!(
        "update vector_store_files
         set status = 'in_progress', attributes = coalesce($3, attributes), chunking = coalesce($4, chunking),
             chunks = case when $4 is null or chunking = $4 then chunks end, last_error = null, last_failure = null,
             attempts = 0, due_at = ",
        now!("$2"),
        " where id = $1"
    ))
    .bind(id)
    .bind(fixed_time)
    .bind(attributes_and_chunking.map(|(attributes, _)| attributes))
    .bind(attributes_and_chunking.map(|(_, chunking)| chunking))
    .execute(&mut *tx)
    .await?;
    Ok(())
}

/// Raises the version of a vector store, and locks its row. Returns the new version; `None` if it does not exist.
pub(super) async fn raise_version(tx: &mut Transaction<Db>, store: &str) -> Result<Option<i64>, Error> {
    let version: Option<(i64,)> = sqlx::query_as::<Db, _>(
        "update vector_stores set version = version + 1 where id = $1 and status = 'live' returning version",
    )
    .bind(store)
    .fetch_optional(&mut *tx)
    .await?;
    Ok(version.map(|(version,)| version))
}

/// Takes deleted files out of all vector stores. The rows of the files must be locked.
pub(super) async fn remove_from_stores(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    files: &[String],
) -> Result<(), Error> {
    let files = to_json(&files);
    // Locks the vector stores, and then their files, each in the order of their IDs, so that two transactions never wait for
    // each other.
    let stores: Vec<(String,)> = sqlx::query_as::<Db, _>(concat!(
        "select id from vector_stores
         where id in (
             select vector_store_id from vector_store_files where status <> 'deleted' and file_id in (",
        json_texts!("$1"),
        "))
         order by id",
        for_update!()
    ))
    .bind(&files)
    .fetch_all(&mut *tx)
    .await?;
    if stores.is_empty() {
        return Ok(());
    }
    let stores: Vec<&str> = stores.iter().map(|(id,)| id.as_str()).collect();
    sqlx::query::<Db>(concat!("update vector_stores set version = version + 1 where id in (", json_texts!("$1"), ")"))
        .bind(to_json(&stores))
        .execute(&mut *tx)
        .await?;
    sqlx::query::<Db>(concat!(
        "select id from vector_store_files where status <> 'deleted' and file_id in (",
        json_texts!("$1"),
        ") order by id",
        for_update!()
    ))
    .bind(&files)
    .fetch_all(&mut *tx)
    .await?;
    sqlx::query::<Db>(concat!(
        "update vector_store_files
         set status = 'deleted', due_at = null, claims = claims + 1,
             changed_version = (select version from vector_stores where vector_stores.id = vector_store_id),
             deleted_at = ",
        now!("$2"),
        ", remove_at = ",
        now!("$2"),
        " where status <> 'deleted' and file_id in (",
        json_texts!("$1"),
        ")"
    ))
    .bind(&files)
    .bind(fixed_time)
    .execute(&mut *tx)
    .await?;
    Ok(())
}

impl Backend {
    /// Returns a file of a vector store, and the ID of its row.
    pub(super) async fn find_store_file(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        file: &FileId,
    ) -> Result<Option<(String, StoreFile)>, Error> {
        let row = sqlx::query::<Db>(
            "select id, vector_store_id, file_id, created_at, status, usage_bytes, attributes, chunking, last_error
             from vector_store_files
             where vector_store_id = (
                     select id from vector_stores where id = $1 and project_id = $3 and status = 'live')
               and file_id = $2 and status <> 'deleted'",
        )
        .bind(store.as_str())
        .bind(file.as_str())
        .bind(scope.as_str())
        .fetch_optional(self.reader())
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some((row.try_get("id")?, from_row(&row)?)))
    }

    /// Converts a cursor, which is a file ID, to the ID of the row. The file may have been deleted recently: clients delete
    /// the files of a page before they request the next one.
    pub(super) async fn store_file_cursor(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        file: Option<&str>,
    ) -> Result<Option<String>, Error> {
        let Some(file) = file else { return Ok(None) };
        if file.contains('\0') {
            return Err(Error::NoCursor(file.to_owned()));
        }
        let row: Option<(String,)> = sqlx::query_as::<Db, _>(
            "select id from vector_store_files
             where file_id = $1
               and vector_store_id = (
                     select id from vector_stores where id = $2 and project_id = $3 and status = 'live')
             order by case when status = 'deleted' then 1 else 0 end, seq desc
             limit 1",
        )
        .bind(file)
        .bind(store.as_str())
        .bind(scope.as_str())
        .fetch_optional(self.reader())
        .await?;
        row.map_or_else(|| Err(Error::NoCursor(file.to_owned())), |(id,)| Ok(Some(id)))
    }
}
