//! The tables `vector_stores` and `vector_store_file_batches`, and what clients do with `vector_store_files`.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx::Row as _;

use super::page::{Condition, List, Parent, page_where, project, read};
use super::store_files::{self, FoundFiles, add_files, finish, raise_version, restart, status, unsigned};
use super::{Backend, Db, Row};
use crate::api::vector_store::{
    Attributes, FileCounts, IndexSummary, IndexedGroup, NewStoreFile, StoreFileStatus, VectorStoreSettings,
};
use crate::api::{
    FileBatch, FileBatchId, FileId, ModifyVectorStore, Page, PageQuery, Scope, StoreFile, Timestamp, VectorStore,
    VectorStoreId,
};
use crate::store::pool::Transaction;
use crate::store::{EXPIRED_KEPT_S, Error, NewFileBatch, TextPage, VectorStores, from_json, to_json};

const TABLE: &str = "vector_stores";
/// The last use of a vector store is written at most this often, in seconds.
const TOUCH_EVERY_S: i64 = 60;
/// Maximum number of chunks of a page of text.
const TEXT_CHUNKS_MAX: i64 = 256;

/// Reads a vector store without its counts.
fn from_row(row: &Row, now: Timestamp) -> Result<VectorStore, Error> {
    let id: &str = row.try_get("id")?;
    let expires_at = row.try_get::<Option<i64>, _>("expires_at")?.map(Timestamp);
    Ok(VectorStore {
        id: VectorStoreId::from_stored(id),
        created_at: Timestamp(row.try_get("created_at")?),
        settings: from_json(TABLE, id, row.try_get("body")?)?,
        last_active_at: Timestamp(row.try_get("last_active_at")?),
        expires_at,
        is_expired: expires_at.is_some_and(|at| at <= now),
        file_counts: FileCounts::default(),
        usage_bytes: 0,
    })
}

/// Returns when the files of a vector store are removed that expires at a time.
fn remove_at(expires_at: Option<Timestamp>) -> Option<i64> {
    expires_at.map(|at| at.0.saturating_add(EXPIRED_KEPT_S))
}

/// Inserts a vector store with files that were found. Returns the vector store as stored.
pub(super) async fn insert_vector_store(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    store: &VectorStore,
    files: (&[NewStoreFile], &FoundFiles),
) -> Result<VectorStore, Error> {
    sqlx::query::<Db>(
        "insert into vector_stores
             (id, project_id, created_at, status, version, purged_version, last_active_at, expires_at, remove_at, body)
         values ($1, $2, $3, 'live', 1, 0, $4, $5, $6, $7)",
    )
    .bind(store.id.as_str())
    .bind(scope.as_str())
    .bind(store.created_at.0)
    .bind(store.last_active_at.0)
    .bind(store.expires_at.map(|at| at.0))
    .bind(remove_at(store.expires_at))
    .bind(to_json(&store.settings))
    .execute(&mut *tx)
    .await?;
    let added = add_files(tx, fixed_time, scope, &store.id, store.created_at, files).await?;
    let mut stored = store.clone();
    stored.file_counts.add(StoreFileStatus::InProgress, added.len() as u64);
    Ok(stored)
}

/// Finds files for the file search. The check is left to the caller, which may have to check something else before.
async fn find(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    files: &[NewStoreFile],
) -> Result<(FoundFiles, Result<(), Error>), Error> {
    let ids: Vec<&FileId> = files.iter().map(|file| &file.file_id).collect();
    let found = FoundFiles::find(tx, fixed_time, scope, &ids).await?;
    let check = found.check_exist(&ids).and_then(|()| found.check_supported(files.iter()));
    Ok((found, check))
}

/// Adds files to a vector store, which is a use of it. Returns the IDs of the rows; `None` if the vector store does not exist.
async fn add_files_to_store(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    store: &VectorStoreId,
    now: Timestamp,
    files: &[NewStoreFile],
) -> Result<Option<Vec<String>>, Error> {
    // Before the vector store, which is the order of locks.
    let (found, check) = find(tx, fixed_time, scope, files).await?;
    let added = add_found_files(tx, fixed_time, scope, store, now, (files, &found)).await?;
    // The vector store comes first in the order of checks. The caller rolls the addition back.
    if added.is_some() { check.map(|()| added) } else { Ok(None) }
}

/// Adds files that were found to a vector store, like [`add_files_to_store`].
pub(super) async fn add_found_files(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    store: &VectorStoreId,
    now: Timestamp,
    files: (&[NewStoreFile], &FoundFiles),
) -> Result<Option<Vec<String>>, Error> {
    let Some(row) = lock_store(tx, fixed_time, scope, store).await? else { return Ok(None) };
    if row.is_expired {
        return Err(Error::VectorStoreExpired(store.clone()));
    }
    let last_active_at = row.last_active_at.max(row.now);
    let expires_at = row.settings.expires_at(Timestamp(last_active_at));
    write_store(tx, store, last_active_at, expires_at, &row.settings).await?;
    add_files(tx, fixed_time, scope, store, now, files).await.map(Some)
}

/// The locked row of a vector store.
struct LockedStore {
    settings: VectorStoreSettings,
    last_active_at: i64,
    is_expired: bool,
    /// The database's time.
    now: i64,
}

async fn lock_store(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    store: &VectorStoreId,
) -> Result<Option<LockedStore>, Error> {
    let row = sqlx::query::<Db>(concat!(
        "select body, last_active_at, expires_at, ",
        now!("$3"),
        " as now_s from vector_stores where id = $1 and project_id = $2 and status = 'live'",
        for_update!()
    ))
    .bind(store.as_str())
    .bind(scope.as_str())
    .bind(fixed_time)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let now: i64 = row.try_get("now_s")?;
    Ok(Some(LockedStore {
        settings: from_json(TABLE, store.as_str(), row.try_get("body")?)?,
        last_active_at: row.try_get("last_active_at")?,
        is_expired: row.try_get::<Option<i64>, _>("expires_at")?.is_some_and(|at| at <= now),
        now,
    }))
}

async fn write_store(
    tx: &mut Transaction<Db>,
    store: &VectorStoreId,
    last_active_at: i64,
    expires_at: Option<Timestamp>,
    settings: &VectorStoreSettings,
) -> Result<(), Error> {
    sqlx::query::<Db>(
        "update vector_stores set last_active_at = $2, expires_at = $3, remove_at = $4, body = $5 where id = $1",
    )
    .bind(store.as_str())
    .bind(last_active_at)
    .bind(expires_at.map(|at| at.0))
    .bind(remove_at(expires_at))
    .bind(to_json(settings))
    .execute(&mut *tx)
    .await?;
    Ok(())
}

/// Modifies a vector store. Returns whether it exists.
async fn modify(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    id: &VectorStoreId,
    change: &ModifyVectorStore,
) -> Result<bool, Error> {
    let Some(mut row) = lock_store(tx, fixed_time, scope, id).await? else { return Ok(false) };
    if row.is_expired && change.changes_expiry() {
        return Err(Error::VectorStoreExpired(id.clone()));
    }
    change.clone().apply(&mut row.settings);
    if row.is_expired {
        // Does not revive it.
        sqlx::query::<Db>("update vector_stores set body = $2 where id = $1")
            .bind(id.as_str())
            .bind(to_json(&row.settings))
            .execute(&mut *tx)
            .await?;
        return Ok(true);
    }
    let last_active_at = row.last_active_at.max(row.now);
    let expires_at = row.settings.expires_at(Timestamp(last_active_at));
    write_store(tx, id, last_active_at, expires_at, &row.settings).await?;
    Ok(true)
}

/// Marks a vector store as deleted, and ends the processing of its files.
async fn delete(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    id: &VectorStoreId,
) -> Result<bool, Error> {
    let done = sqlx::query::<Db>(concat!(
        "update vector_stores set status = 'deleted', last_active_at = ",
        now!("$3"),
        ", remove_at = ",
        now!("$3"),
        " where id = $1 and project_id = $2 and status = 'live'"
    ))
    .bind(id.as_str())
    .bind(scope.as_str())
    .bind(fixed_time)
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query::<Db>(concat!(
        "select id from vector_store_files where vector_store_id = $1 and due_at is not null order by id",
        for_update!()
    ))
    .bind(id.as_str())
    .fetch_all(&mut *tx)
    .await?;
    sqlx::query::<Db>(
        "update vector_store_files set due_at = null, claims = claims + 1
         where vector_store_id = $1 and due_at is not null",
    )
    .bind(id.as_str())
    .execute(&mut *tx)
    .await?;
    Ok(true)
}

/// Cancels the files of a batch that are in progress.
async fn cancel(tx: &mut Transaction<Db>, id: &FileBatchId) -> Result<(), Error> {
    let files: Vec<(String, String)> = sqlx::query_as::<Db, _>(concat!(
        "select id, status from vector_store_files where status <> 'deleted' and id in (",
        json_texts!("(select store_file_ids from vector_store_file_batches where id = $1)"),
        ") order by id",
        for_update!()
    ))
    .bind(id.as_str())
    .fetch_all(&mut *tx)
    .await?;
    let in_progress: Vec<&str> =
        files.iter().filter(|(_, status)| status == "in_progress").map(|(id, _)| id.as_str()).collect();
    if in_progress.is_empty() {
        return Ok(());
    }
    sqlx::query::<Db>(concat!(
        "update vector_store_files set status = 'cancelled', due_at = null, claims = claims + 1 where id in (",
        json_texts!("$1"),
        ")"
    ))
    .bind(to_json(&in_progress))
    .execute(&mut *tx)
    .await?;
    sqlx::query::<Db>("update vector_store_file_batches set is_cancelled = true where id = $1")
        .bind(id.as_str())
        .execute(&mut *tx)
        .await?;
    Ok(())
}

/// Replaces the attributes of a file, or removes the file. Returns whether it exists.
async fn change_file(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    (id, store): (&str, &VectorStoreId),
    attributes: Option<&Attributes>,
) -> Result<bool, Error> {
    let Some(version) = raise_version(tx, store.as_str()).await? else { return Ok(false) };
    let query = match attributes {
        Some(attributes) => sqlx::query::<Db>(
            "update vector_store_files
             set attributes = $3, changed_version = case when status = 'completed' then $2 else changed_version end
             where id = $1 and status <> 'deleted'",
        )
        .bind(id)
        .bind(version)
        .bind(to_json(attributes)),
        None => sqlx::query::<Db>(concat!(
            "update vector_store_files
             set status = 'deleted', changed_version = $2, due_at = null, claims = claims + 1, deleted_at = ",
            now!("$3"),
            ", remove_at = ",
            now!("$3"),
            " where id = $1 and status <> 'deleted'"
        ))
        .bind(id)
        .bind(version)
        .bind(fixed_time),
    };
    Ok(query.execute(&mut *tx).await?.rows_affected() == 1)
}

/// Counts the files of a batch in each state.
async fn count_batch<'e>(db: impl sqlx::Executor<'e, Database = Db>, id: &FileBatchId) -> Result<FileCounts, Error> {
    let rows: Vec<(String, i64)> = sqlx::query_as::<Db, _>(concat!(
        "select status, count(*) from vector_store_files where status <> 'deleted' and id in (",
        json_texts!("(select store_file_ids from vector_store_file_batches where id = $1)"),
        ") group by status"
    ))
    .bind(id.as_str())
    .fetch_all(db)
    .await?;
    let mut counts = FileCounts::default();
    for (name, count) in rows {
        counts.add(status(id.as_str(), &name)?, unsigned(count));
    }
    Ok(counts)
}

/// Reads a file by the ID of its row, which exists.
async fn read_store_file(tx: &mut Transaction<Db>, id: &str) -> Result<StoreFile, Error> {
    let row = sqlx::query::<Db>(
        "select id, vector_store_id, file_id, created_at, status, usage_bytes, attributes, chunking, last_error
         from vector_store_files where id = $1",
    )
    .bind(id)
    .fetch_one(&mut *tx)
    .await?;
    store_files::from_row(&row)
}

impl Backend {
    /// Adds the counts and sizes of their files to vector stores.
    async fn count_files(&self, stores: &mut [VectorStore]) -> Result<(), Error> {
        // With an equality, Postgres reads the index of one vector store, also of a table that was never analysed.
        let rows: Vec<(String, String, i64, i64)> = match &*stores {
            [] => return Ok(()),
            [store] => {
                let sql = "select vector_store_id, status, count(*), cast(sum(usage_bytes) as bigint)
                           from vector_store_files
                           where status <> 'deleted' and vector_store_id = $1
                           group by vector_store_id, status";
                sqlx::query_as::<Db, _>(sql).bind(store.id.as_str()).fetch_all(self.reader()).await?
            }
            stores => {
                let ids: Vec<&str> = stores.iter().map(|store| store.id.as_str()).collect();
                let sql = concat!(
                    "select vector_store_id, status, count(*), cast(sum(usage_bytes) as bigint)
                     from vector_store_files
                     where status <> 'deleted' and vector_store_id in (",
                    json_texts!("$1"),
                    ") group by vector_store_id, status"
                );
                sqlx::query_as::<Db, _>(sql).bind(to_json(&ids)).fetch_all(self.reader()).await?
            }
        };
        let positions: HashMap<String, usize> =
            stores.iter().enumerate().map(|(index, store)| (store.id.to_string(), index)).collect();
        for (id, name, count, bytes) in rows {
            let Some(index) = positions.get(&id) else { continue };
            stores[*index].file_counts.add(status(&id, &name)?, unsigned(count));
            stores[*index].usage_bytes += unsigned(bytes);
        }
        Ok(())
    }

    async fn batch_row(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        id: &FileBatchId,
    ) -> Result<Option<FileBatch>, Error> {
        let row: Option<(i64, bool)> = sqlx::query_as::<Db, _>(
            "select created_at, is_cancelled from vector_store_file_batches
             where id = $1 and vector_store_id = (
                 select id from vector_stores where id = $2 and project_id = $3 and status = 'live')",
        )
        .bind(id.as_str())
        .bind(store.as_str())
        .bind(scope.as_str())
        .fetch_optional(self.reader())
        .await?;
        Ok(row.map(|(created_at, is_cancelled)| FileBatch {
            id: id.clone(),
            created_at: Timestamp(created_at),
            vector_store_id: store.clone(),
            is_cancelled,
            file_counts: FileCounts::default(),
        }))
    }

    /// Changes a file in a transaction, and returns it.
    async fn change_store_file(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        file: &FileId,
        attributes: Option<&Attributes>,
    ) -> Result<Option<StoreFile>, Error> {
        let Some((id, found)) = self.find_store_file(scope, store, file).await? else { return Ok(None) };
        let mut tx = self.begin().await?;
        let outcome = change_file(&mut tx, self.fixed_time(), (&id, store), attributes).await;
        if !finish(tx, outcome).await? {
            return Ok(None);
        }
        match attributes {
            Some(_) => Ok(self.find_store_file(scope, store, file).await?.map(|(_, file)| file)),
            None => Ok(Some(found)),
        }
    }
}

#[async_trait]
impl VectorStores for Backend {
    async fn create_vector_store(
        &self,
        scope: &Scope,
        store: &VectorStore,
        files: &[NewStoreFile],
    ) -> Result<VectorStore, Error> {
        let mut tx = self.begin().await?;
        let outcome = async {
            let (found, check) = find(&mut tx, self.fixed_time(), scope, files).await?;
            check?;
            insert_vector_store(&mut tx, self.fixed_time(), scope, store, (files, &found)).await
        }
        .await;
        finish(tx, outcome).await
    }

    async fn vector_store(&self, scope: &Scope, id: &VectorStoreId) -> Result<Option<VectorStore>, Error> {
        let row = sqlx::query::<Db>(
            "select id, created_at, last_active_at, expires_at, body from vector_stores
             where id = $1 and project_id = $2 and status = 'live'",
        )
        .bind(id.as_str())
        .bind(scope.as_str())
        .fetch_optional(self.reader())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let mut stores = [from_row(&row, self.clock.now())?];
        self.count_files(&mut stores).await?;
        let [store] = stores;
        Ok(Some(store))
    }

    async fn list_vector_stores(&self, scope: &Scope, query: &PageQuery) -> Result<Page<VectorStore>, Error> {
        let columns = "id, created_at, last_active_at, expires_at, body";
        let filter = [project(scope)];
        let list = List { table: TABLE, columns, body: "body", filter: &filter, parent: None };
        let rows = page_where(self, &list, &[Condition::Fixed("status = 'live'")], query).await?;
        let now = self.clock.now();
        let mut page = read(self, &rows, |row| from_row(row, now))?;
        self.count_files(&mut page.data).await?;
        Ok(page)
    }

    async fn modify_vector_store(
        &self,
        scope: &Scope,
        id: &VectorStoreId,
        change: &ModifyVectorStore,
    ) -> Result<Option<VectorStore>, Error> {
        let mut tx = self.begin().await?;
        let outcome = modify(&mut tx, self.fixed_time(), scope, id, change).await;
        if finish(tx, outcome).await? { self.vector_store(scope, id).await } else { Ok(None) }
    }

    async fn delete_vector_store(&self, scope: &Scope, id: &VectorStoreId) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let outcome = delete(&mut tx, self.fixed_time(), scope, id).await;
        finish(tx, outcome).await
    }

    async fn touch_vector_stores(&self, scope: &Scope, ids: &[VectorStoreId]) -> Result<(), Error> {
        let ids: Vec<&str> = ids.iter().map(VectorStoreId::as_str).collect();
        // Reads first: a search should not wait for the writer.
        let due: Vec<(String,)> = sqlx::query_as::<Db, _>(concat!(
            "select id from vector_stores
             where project_id = $2 and status = 'live' and last_active_at <= ",
            now!("$3"),
            " - $4 and (expires_at is null or expires_at > ",
            now!("$3"),
            ") and id in (",
            json_texts!("$1"),
            ") order by id"
        ))
        .bind(to_json(&ids))
        .bind(scope.as_str())
        .bind(self.fixed_time())
        .bind(TOUCH_EVERY_S)
        .fetch_all(self.reader())
        .await?;
        for (id,) in due {
            sqlx::query::<Db>(concat!(
                "update vector_stores
                 set last_active_at = ",
                now!("$2"),
                ", expires_at = expires_at + ",
                now!("$2"),
                " - last_active_at, remove_at = remove_at + ",
                now!("$2"),
                " - last_active_at
                 where id = $1 and status = 'live' and last_active_at < ",
                now!("$2"),
                " and (expires_at is null or expires_at > ",
                now!("$2"),
                ")"
            ))
            .bind(&id)
            .bind(self.fixed_time())
            .execute(self.writer())
            .await?;
        }
        Ok(())
    }

    async fn add_store_file(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        file: &NewStoreFile,
        now: Timestamp,
    ) -> Result<Option<StoreFile>, Error> {
        let mut tx = self.begin().await?;
        let outcome = async {
            let files = std::slice::from_ref(file);
            let added = add_files_to_store(&mut tx, self.fixed_time(), scope, store, now, files).await?;
            // As it was added: a worker may process it immediately.
            match added.as_deref() {
                Some([id]) => read_store_file(&mut tx, id).await.map(Some),
                Some(_) | None => Ok(None),
            }
        }
        .await;
        finish(tx, outcome).await
    }

    async fn add_file_batch(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        batch: &NewFileBatch,
        files: &[NewStoreFile],
    ) -> Result<Option<FileBatch>, Error> {
        let mut tx = self.begin().await?;
        let outcome = async {
            let now = batch.created_at;
            let added = add_files_to_store(&mut tx, self.fixed_time(), scope, store, now, files).await?;
            let Some(ids) = added else { return Ok(None) };
            sqlx::query::<Db>(
                "insert into vector_store_file_batches
                     (id, project_id, vector_store_id, created_at, is_cancelled, store_file_ids)
                 values ($1, $2, $3, $4, false, $5)",
            )
            .bind(batch.id.as_str())
            .bind(scope.as_str())
            .bind(store.as_str())
            .bind(batch.created_at.0)
            .bind(to_json(&ids))
            .execute(&mut tx)
            .await?;
            Ok(Some(FileBatch {
                id: batch.id.clone(),
                created_at: batch.created_at,
                vector_store_id: store.clone(),
                is_cancelled: false,
                // As the files were added: a worker may process them immediately.
                file_counts: count_batch(&mut tx, &batch.id).await?,
            }))
        }
        .await;
        finish(tx, outcome).await
    }

    async fn store_file(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        file: &FileId,
    ) -> Result<Option<StoreFile>, Error> {
        Ok(self.find_store_file(scope, store, file).await?.map(|(_, file)| file))
    }

    async fn list_store_files(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        batch: Option<&FileBatchId>,
        status: Option<StoreFileStatus>,
        query: &PageQuery,
    ) -> Result<Page<StoreFile>, Error> {
        let columns = "id, vector_store_id, file_id, created_at, status, usage_bytes, attributes, chunking, last_error";
        let parent = match batch {
            Some(batch) => Parent::Batch(scope, store, batch),
            None => Parent::VectorStore(scope, store),
        };
        let parent = Some(parent);
        let list = List { table: store_files::TABLE, columns, body: "attributes", filter: &[], parent };
        let mut conditions = vec![Condition::Fixed("status <> 'deleted'")];
        conditions.extend(status.map(|status| {
            Condition::Fixed(match status {
                StoreFileStatus::InProgress => "status = 'in_progress'",
                StoreFileStatus::Completed => "status = 'completed'",
                StoreFileStatus::Failed => "status = 'failed'",
                StoreFileStatus::Cancelled => "status = 'cancelled'",
            })
        }));
        let query = PageQuery {
            after: self.store_file_cursor(scope, store, query.after.as_deref()).await?,
            before: self.store_file_cursor(scope, store, query.before.as_deref()).await?,
            ..query.clone()
        };
        let rows = page_where(self, &list, &conditions, &query).await?;
        read(self, &rows, store_files::from_row)
    }

    async fn modify_store_file(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        file: &FileId,
        attributes: &Attributes,
    ) -> Result<Option<StoreFile>, Error> {
        self.change_store_file(scope, store, file, Some(attributes)).await
    }

    async fn retry_store_file(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        file: &FileId,
    ) -> Result<Option<StoreFile>, Error> {
        let Some((id, _)) = self.find_store_file(scope, store, file).await? else { return Ok(None) };
        let mut tx = self.begin().await?;
        let outcome = async {
            let failed = sqlx::query::<Db>(concat!(
                "select id from vector_store_files where id = $1 and status in ('failed', 'cancelled')",
                for_update!()
            ))
            .bind(&id)
            .fetch_optional(&mut tx)
            .await?;
            if failed.is_some() {
                restart(&mut tx, self.fixed_time(), &id, None).await?;
            }
            Ok(())
        }
        .await;
        finish(tx, outcome).await?;
        self.store_file(scope, store, file).await
    }

    async fn delete_store_file(&self, scope: &Scope, store: &VectorStoreId, file: &FileId) -> Result<bool, Error> {
        Ok(self.change_store_file(scope, store, file, None).await?.is_some())
    }

    async fn file_batch(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        id: &FileBatchId,
    ) -> Result<Option<FileBatch>, Error> {
        let Some(mut batch) = self.batch_row(scope, store, id).await? else { return Ok(None) };
        batch.file_counts = count_batch(self.reader(), id).await?;
        Ok(Some(batch))
    }

    async fn cancel_file_batch(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        id: &FileBatchId,
    ) -> Result<Option<FileBatch>, Error> {
        if self.batch_row(scope, store, id).await?.is_none() {
            return Ok(None);
        }
        let mut tx = self.begin().await?;
        let outcome = cancel(&mut tx, id).await;
        finish(tx, outcome).await?;
        self.file_batch(scope, store, id).await
    }

    async fn store_file_text(
        &self,
        scope: &Scope,
        store: &VectorStoreId,
        file: &FileId,
        after: Option<u32>,
        bytes_max: usize,
    ) -> Result<Option<TextPage>, Error> {
        let Some((id, _)) = self.find_store_file(scope, store, file).await? else { return Ok(None) };
        // The inner query selects the rows by index; the outer one omits the texts above the size limit.
        let rows = sqlx::query::<Db>(
            "select number, overlap_bytes, text, count from (
                 select number, overlap_bytes, text, count(*) over () as count,
                        sum(octet_length(text)) over (
                            order by number rows between unbounded preceding and current row
                        ) - octet_length(text) as bytes_before
                 from (
                     select number, overlap_bytes, text from vector_store_chunks
                     where store_file_id = (
                             select id from vector_store_files where id = $1 and chunks is not null)
                       and number > $2
                     order by number
                     limit $3
                 ) as page
             ) as page
             where bytes_before < $4
             order by number",
        )
        .bind(&id)
        .bind(after.map_or(-1, i64::from))
        .bind(TEXT_CHUNKS_MAX)
        .bind(i64::try_from(bytes_max.max(1)).unwrap_or(i64::MAX))
        .fetch_all(self.reader())
        .await?;
        let mut page = TextPage { texts: Vec::with_capacity(rows.len()), next: None };
        for row in &rows {
            let overlap = usize::try_from(row.try_get::<i64, _>("overlap_bytes")?).unwrap_or(0);
            let text: &str = row.try_get("text")?;
            page.texts.push(text.get(overlap..).unwrap_or(text).to_owned());
        }
        if let Some(last) = rows.last() {
            let count: i64 = last.try_get("count")?;
            if count > i64::try_from(rows.len()).unwrap_or(i64::MAX) || count == TEXT_CHUNKS_MAX {
                page.next = u32::try_from(last.try_get::<i64, _>("number")?).ok();
            }
        }
        Ok(Some(page))
    }

    async fn index_summary(&self, scope: &Scope, id: &VectorStoreId) -> Result<Option<IndexSummary>, Error> {
        let version: Option<(i64,)> = sqlx::query_as::<Db, _>(
            "select version from vector_stores where id = $1 and project_id = $2 and status = 'live'",
        )
        .bind(id.as_str())
        .bind(scope.as_str())
        .fetch_optional(self.reader())
        .await?;
        let Some((version,)) = version else { return Ok(None) };
        let rows = sqlx::query::<Db>(
            "select embedding_model, language, count(*) as files, cast(sum(coalesce(chunks, 0)) as bigint) as chunks,
                    cast(sum(usage_bytes) as bigint) as usage_bytes
             from vector_store_files
             where vector_store_id = $1 and status = 'completed' and status <> 'deleted'
             group by embedding_model, language
             order by embedding_model, language",
        )
        .bind(id.as_str())
        .fetch_all(self.reader())
        .await?;
        let group = |row: &Row| {
            Ok(IndexedGroup {
                embedding_model: row.try_get("embedding_model")?,
                language: row.try_get("language")?,
                files: unsigned(row.try_get("files")?),
                chunks: unsigned(row.try_get("chunks")?),
                usage_bytes: unsigned(row.try_get("usage_bytes")?),
            })
        };
        let groups = rows.iter().map(group).collect::<Result<_, Error>>()?;
        Ok(Some(IndexSummary { version, groups }))
    }
}
