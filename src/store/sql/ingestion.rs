//! The processing of the files of vector stores: their jobs in `vector_store_files`, and `vector_store_chunks`.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row as _;

use super::segments::discard_segments;
use super::store_files::{TABLE, finish, raise_version};
use super::{Backend, CLAIM_STORE_FILE, Db, Row, insert_chunks, remove_vectors, seconds, update_embeddings};
use crate::api::vector_store::StoreFileError;
use crate::api::{FileId, ProjectId, StoreFileId, VectorStoreId};
use crate::store::pool::Transaction;
use crate::store::{
    ChunkToEmbed, ClaimedStoreFile, CompletedFile, Error, Ingestion, Lease, NewChunk, Segments as _, TOMBSTONE_KEPT_S,
    from_json, to_json,
};

/// Size of the chunks that one transaction stores, in bytes. More would delay other transactions on SQLite.
const CHUNKS_BYTES_MAX: usize = 1024 * 1024;
/// Maximum number of chunks that one transaction stores or deletes.
const CHUNKS_MAX: usize = 200;
/// Maximum number of deleted files and of vector stores that one transaction removes.
const FILES_REMOVED_MAX: i64 = 100;
/// Maximum number of vector stores that one transaction removes.
const STORES_REMOVED_MAX: i64 = 10;

fn claimed_from_row(row: &Row) -> Result<ClaimedStoreFile, Error> {
    let id: &str = row.try_get("id")?;
    let attempts: i64 = row.try_get("attempts")?;
    let chunks: Option<i64> = row.try_get("chunks")?;
    Ok(ClaimedStoreFile {
        lease: Lease { id: id.to_owned(), number: row.try_get("claims")? },
        attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        last_failure: row.try_get("last_failure")?,
        project: ProjectId::from_stored(row.try_get::<&str, _>("project_id")?),
        vector_store: VectorStoreId::from_stored(row.try_get::<&str, _>("vector_store_id")?),
        file_id: FileId::from_stored(row.try_get::<&str, _>("file_id")?),
        filename: row.try_get("filename")?,
        chunking: from_json(TABLE, id, row.try_get("chunking")?)?,
        chunks: chunks.map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
        language: row.try_get("language")?,
        embedding_model: row.try_get("embedding_model")?,
    })
}

/// What chunks belong to.
pub(super) struct ChunkOwner {
    pub store_file: String,
    pub store: String,
    pub project: String,
}

/// Locks a file that is in progress, under a lease. Fails if the lease is no longer valid.
async fn lock_leased(tx: &mut Transaction<Db>, lease: &Lease) -> Result<ChunkOwner, Error> {
    let row: Option<(String, String)> = sqlx::query_as::<Db, _>(concat!(
        "select vector_store_id, project_id from vector_store_files
         where id = $1 and claims = $2 and status = 'in_progress' and due_at is not null",
        for_update!()
    ))
    .bind(&lease.id)
    .bind(lease.number)
    .fetch_optional(&mut *tx)
    .await?;
    let (store, project) = row.ok_or(Error::Stale)?;
    Ok(ChunkOwner { store_file: lease.id.clone(), store, project })
}

/// Returns the part of the chunks that one transaction stores.
fn portion(chunks: &[NewChunk]) -> usize {
    let mut bytes = 0;
    let fitting = chunks.iter().take(CHUNKS_MAX).take_while(|chunk| {
        bytes += chunk.text.len() + chunk.terms.len() + chunk.embedding.as_ref().map_or(0, Vec::len);
        bytes <= CHUNKS_BYTES_MAX
    });
    fitting.count().max(1).min(chunks.len())
}

/// Stores the number of chunks, which makes them valid.
async fn write_text(tx: &mut Transaction<Db>, id: &str, language: Option<&str>, chunks: usize) -> Result<(), Error> {
    sqlx::query::<Db>("update vector_store_files set language = $2, chunks = $3, attempts = 0 where id = $1")
        .bind(id)
        .bind(language)
        .bind(i64::try_from(chunks).unwrap_or(i64::MAX))
        .execute(&mut *tx)
        .await?;
    Ok(())
}

/// Deletes some of the chunks of a file. Returns whether there may be more.
async fn delete_some_chunks(tx: &mut Transaction<Db>, id: &str) -> Result<bool, Error> {
    let done = sqlx::query::<Db>(
        "delete from vector_store_chunks
         where store_file_id = $1 and number in (
             select number from vector_store_chunks where store_file_id = $1 order by number limit $2)",
    )
    .bind(id)
    .bind(i64::try_from(CHUNKS_MAX).unwrap_or(i64::MAX))
    .execute(&mut *tx)
    .await?;
    Ok(done.rows_affected() >= CHUNKS_MAX as u64)
}

/// Makes a file searchable. Locks the vector store before the file.
async fn complete(tx: &mut Transaction<Db>, lease: &Lease, completed: &CompletedFile<'_>) -> Result<(), Error> {
    let store: Option<(String,)> =
        sqlx::query_as::<Db, _>("select vector_store_id from vector_store_files where id = $1 and claims = $2")
            .bind(&lease.id)
            .bind(lease.number)
            .fetch_optional(&mut *tx)
            .await?;
    let (store,) = store.ok_or(Error::Stale)?;
    let version = raise_version(tx, &store).await?.ok_or(Error::Stale)?;
    let owner = lock_leased(tx, lease).await?;
    if let Some((language, chunks)) = completed.text {
        while delete_some_chunks(tx, &lease.id).await? {}
        insert_chunks(tx, &owner, 0, chunks).await?;
        write_text(tx, &lease.id, language, chunks.len()).await?;
    }
    sqlx::query::<Db>(
        "update vector_store_files
         set status = 'completed', usage_bytes = $2, embedding_model = $3, changed_version = $4, due_at = null,
             attempts = 0, last_failure = null
         where id = $1",
    )
    .bind(&lease.id)
    .bind(i64::try_from(completed.usage_bytes).unwrap_or(i64::MAX))
    .bind(completed.embedding_model)
    .bind(version)
    .execute(&mut *tx)
    .await?;
    Ok(())
}

/// Removes the chunks of deleted files, and the rows of those that were deleted some time ago. Returns whether there may be
/// more.
async fn remove_deleted_files(tx: &mut Transaction<Db>, fixed_time: Option<i64>, limit: u32) -> Result<bool, Error> {
    let files: Vec<(String, i64, i64)> = sqlx::query_as::<Db, _>(concat!(
        "select id, deleted_at, ",
        now!("$1"),
        " from vector_store_files where remove_at <= ",
        now!("$1"),
        " order by remove_at limit $2",
        skip_locked!()
    ))
    .bind(fixed_time)
    .bind(FILES_REMOVED_MAX)
    .fetch_all(&mut *tx)
    .await?;
    let Some((_, _, now)) = files.first() else { return Ok(false) };
    let now = *now;
    let mut left = i64::from(limit.max(1));
    let (mut emptied, mut old) = (Vec::new(), Vec::new());
    for (id, deleted_at, _) in &files {
        let done = sqlx::query::<Db>(
            "delete from vector_store_chunks
             where store_file_id = $1 and number in (
                 select number from vector_store_chunks where store_file_id = $1 order by number limit $2)",
        )
        .bind(id)
        .bind(left)
        .execute(&mut *tx)
        .await?;
        left -= i64::try_from(done.rows_affected()).unwrap_or(left);
        if left <= 0 {
            // This file may have more chunks.
            break;
        }
        let is_old = *deleted_at == 0 || deleted_at.saturating_add(TOMBSTONE_KEPT_S) <= now;
        let list = if is_old { &mut old } else { &mut emptied };
        list.push(id.as_str());
    }
    sqlx::query::<Db>(concat!(
        "update vector_store_files set chunks = null, remove_at = deleted_at + $2 where id in (",
        json_texts!("$1"),
        ")"
    ))
    .bind(to_json(&emptied))
    .bind(TOMBSTONE_KEPT_S)
    .execute(&mut *tx)
    .await?;
    remove_vectors(tx, &emptied).await?;
    remove_vectors(tx, &old).await?;
    remove_rows(tx, &old).await?;
    Ok(left <= 0 || i64::try_from(files.len()).is_ok_and(|count| count == FILES_REMOVED_MAX))
}

/// Removes the rows of files without chunks.
async fn remove_rows(tx: &mut Transaction<Db>, ids: &[&str]) -> Result<(), Error> {
    let stores: Vec<(String, i64)> = sqlx::query_as::<Db, _>(concat!(
        "select vector_store_id, max(changed_version) from vector_store_files where id in (",
        json_texts!("$1"),
        ") group by vector_store_id order by vector_store_id"
    ))
    .bind(to_json(&ids))
    .fetch_all(&mut *tx)
    .await?;
    for (store, version) in stores {
        sqlx::query::<Db>(
            "update vector_stores set purged_version = $2 where id = $1 and purged_version < $2 and status = 'live'",
        )
        .bind(store)
        .bind(version)
        .execute(&mut *tx)
        .await?;
    }
    sqlx::query::<Db>(concat!("delete from vector_store_files where id in (", json_texts!("$1"), ")"))
        .bind(to_json(&ids))
        .execute(&mut *tx)
        .await?;
    Ok(())
}

/// Marks files of deleted and expired vector stores as deleted, and removes the rows of vector stores that were deleted some
/// time ago, among those that are `removable`. Returns whether there may be more.
async fn remove_stores(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    removable: &[&str],
    limit: u32,
) -> Result<bool, Error> {
    let stores: Vec<(String, String, i64, i64)> = sqlx::query_as::<Db, _>(concat!(
        "select id, status, last_active_at, ",
        now!("$1"),
        " from vector_stores where remove_at <= ",
        now!("$1"),
        " and id in (",
        json_texts!("$2"),
        ") order by remove_at",
        skip_locked!()
    ))
    .bind(fixed_time)
    .bind(to_json(&removable))
    .fetch_all(&mut *tx)
    .await?;
    let mut left = i64::from(limit.max(1));
    for (id, status, deleted_at, now) in &stores {
        // No index needs these rows: they are removed as soon as their chunks.
        let done = sqlx::query::<Db>(
            "update vector_store_files
             set status = 'deleted', due_at = null, claims = claims + 1, deleted_at = 0, remove_at = $3
             where id in (
                 select id from vector_store_files
                 where vector_store_id = $1 and status <> 'deleted'
                 order by id
                 limit $2
             )",
        )
        .bind(id)
        .bind(left)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        left -= i64::try_from(done.rows_affected()).unwrap_or(left);
        if left <= 0 {
            return Ok(true);
        }
        discard_segments(tx, fixed_time, id).await?;
        remove_empty_store(tx, id, status == "deleted" && deleted_at.saturating_add(TOMBSTONE_KEPT_S) <= *now).await?;
    }
    Ok(i64::try_from(stores.len()).is_ok_and(|count| count == STORES_REMOVED_MAX))
}

/// Removes the row of a vector store without files and its batches. Otherwise, keeps the row: that of an expired one so that
/// clients learn why it has no files, that of a deleted one as a cursor of a list.
async fn remove_empty_store(tx: &mut Transaction<Db>, id: &str, remove: bool) -> Result<(), Error> {
    if !remove {
        sqlx::query::<Db>(
            "update vector_stores
             set remove_at = case when status = 'deleted' then last_active_at + $2 end
             where id = $1",
        )
        .bind(id)
        .bind(TOMBSTONE_KEPT_S)
        .execute(&mut *tx)
        .await?;
        return Ok(());
    }
    for sql in [
        "delete from vector_store_file_batches where vector_store_id = $1",
        "delete from vector_stores where id = $1 and status = 'deleted'",
    ] {
        sqlx::query::<Db>(sql).bind(id).execute(&mut *tx).await?;
    }
    Ok(())
}

fn hash_from(bytes: &[u8]) -> [u8; 32] {
    bytes.try_into().unwrap_or_default()
}

#[async_trait]
impl Ingestion for Backend {
    async fn claim_store_file(
        &self,
        lease: Duration,
        after_store: &str,
        except: &[String],
        attempts_max: u32,
    ) -> Result<Option<ClaimedStoreFile>, Error> {
        loop {
            let mut excluded: Vec<String> = except.to_vec();
            excluded.extend(self.unreadable.ids());
            let row = sqlx::query::<Db>(CLAIM_STORE_FILE)
                .bind(self.fixed_time())
                .bind(seconds(lease))
                .bind(after_store)
                .bind(to_json(&excluded))
                .bind(i64::from(attempts_max))
                .fetch_optional(self.writer())
                .await?;
            let Some(row) = row else { return Ok(None) };
            let claimed = self.unreadable.skip(claimed_from_row(&row))?;
            if claimed.is_some() {
                return Ok(claimed);
            }
            self.undo_file_claim(&row).await?;
        }
    }

    async fn save_chunks(&self, lease: &Lease, language: Option<&str>, chunks: &[NewChunk]) -> Result<(), Error> {
        let mut has_earlier = true;
        while has_earlier {
            let mut tx = self.begin().await?;
            let outcome = async {
                lock_leased(&mut tx, lease).await?;
                sqlx::query::<Db>("update vector_store_files set chunks = null where id = $1 and chunks is not null")
                    .bind(&lease.id)
                    .execute(&mut tx)
                    .await?;
                delete_some_chunks(&mut tx, &lease.id).await
            }
            .await;
            has_earlier = finish(tx, outcome).await?;
        }
        let mut stored = 0;
        loop {
            let part = &chunks[stored..stored + portion(&chunks[stored..])];
            let is_last = stored + part.len() == chunks.len();
            let mut tx = self.begin().await?;
            let outcome = async {
                let owner = lock_leased(&mut tx, lease).await?;
                insert_chunks(&mut tx, &owner, stored, part).await?;
                if is_last {
                    write_text(&mut tx, &lease.id, language, chunks.len()).await?;
                }
                Ok(())
            }
            .await;
            finish(tx, outcome).await?;
            stored += part.len();
            if is_last {
                return Ok(());
            }
        }
    }

    async fn chunks_to_embed(
        &self,
        id: &StoreFileId,
        model: &str,
        after: Option<u32>,
        limit: u32,
    ) -> Result<Vec<ChunkToEmbed>, Error> {
        let rows = sqlx::query::<Db>(
            "select number, text, content_hash from vector_store_chunks
             where store_file_id = $1 and number > $2
               and (embedding is null
                    or exists (select 1 from vector_store_files where id = $1 and embedding_model is distinct from $3))
             order by number
             limit $4",
        )
        .bind(id.as_str())
        .bind(after.map_or(-1, i64::from))
        .bind(model)
        .bind(i64::from(limit))
        .fetch_all(self.reader())
        .await?;
        let chunk = |row: &Row| {
            Ok(ChunkToEmbed {
                number: u32::try_from(row.try_get::<i64, _>("number")?).unwrap_or(u32::MAX),
                text: row.try_get("text")?,
                content_hash: hash_from(row.try_get("content_hash")?),
            })
        };
        rows.iter().map(chunk).collect()
    }

    async fn known_embeddings(
        &self,
        project: &ProjectId,
        model: &str,
        hashes: &[[u8; 32]],
    ) -> Result<HashMap<[u8; 32], Vec<u8>>, Error> {
        let hashes: Vec<String> = hashes.iter().map(hex::encode).collect();
        let rows: Vec<(Vec<u8>, Option<Vec<u8>>)> = sqlx::query_as::<Db, _>(concat!(
            "select wanted.hash, (
                 select embedding from vector_store_chunks as chunk
                 join vector_store_files as file on file.id = chunk.store_file_id
                 where chunk.project_id = $1 and chunk.content_hash = wanted.hash and chunk.embedding is not null
                   and file.embedding_model = $2
                 limit 1
             )
             from (",
            json_blobs!("$3"),
            ") as wanted"
        ))
        .bind(project.as_str())
        .bind(model)
        .bind(to_json(&hashes))
        .fetch_all(self.reader())
        .await?;
        Ok(rows.into_iter().filter_map(|(hash, embedding)| Some((hash_from(&hash), embedding?))).collect())
    }

    async fn save_embeddings(&self, lease: &Lease, model: &str, embeddings: &[(u32, Vec<u8>)]) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let outcome = async {
            lock_leased(&mut tx, lease).await?;
            let changed = sqlx::query::<Db>(
                "update vector_store_files set embedding_model = $2
                 where id = $1 and embedding_model is distinct from $2",
            )
            .bind(&lease.id)
            .bind(model)
            .execute(&mut tx)
            .await?;
            if changed.rows_affected() > 0 {
                let sql = "update vector_store_chunks set embedding = null
                           where store_file_id = $1 and embedding is not null";
                sqlx::query::<Db>(sql).bind(&lease.id).execute(&mut tx).await?;
            }
            update_embeddings(&mut tx, &lease.id, embeddings).await?;
            sqlx::query::<Db>("update vector_store_files set attempts = 0, last_failure = null where id = $1")
                .bind(&lease.id)
                .execute(&mut tx)
                .await?;
            Ok(())
        }
        .await;
        finish(tx, outcome).await
    }

    async fn complete_store_file(&self, lease: &Lease, completed: &CompletedFile<'_>) -> Result<(), Error> {
        let mut completed = *completed;
        if let Some((language, chunks)) = completed.text
            && portion(chunks) < chunks.len()
        {
            self.save_chunks(lease, language, chunks).await?;
            completed.text = None;
        }
        let mut tx = self.begin().await?;
        let outcome = complete(&mut tx, lease, &completed).await;
        finish(tx, outcome).await
    }

    async fn fail_store_file(&self, lease: &Lease, error: &StoreFileError) -> Result<(), Error> {
        let done = sqlx::query::<Db>(
            "update vector_store_files
             set status = 'failed', last_error = $3, due_at = null, attempts = 0
             where id = $1 and claims = $2 and status = 'in_progress' and due_at is not null",
        )
        .bind(&lease.id)
        .bind(lease.number)
        .bind(to_json(error))
        .execute(self.writer())
        .await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(Error::Stale) }
    }

    async fn remove_store_data(&self, limit: u32) -> Result<bool, Error> {
        let stores: Vec<(String,)> = sqlx::query_as::<Db, _>(concat!(
            "select id from vector_stores where remove_at <= ",
            now!("$1"),
            " order by remove_at limit $2"
        ))
        .bind(self.fixed_time())
        .bind(STORES_REMOVED_MAX)
        .fetch_all(self.reader())
        .await?;
        let mut removable = Vec::new();
        for (id,) in &stores {
            if self.drop_vector_indexes(id).await? {
                removable.push(id.as_str());
            }
        }
        let mut tx = self.begin().await?;
        let outcome = remove_stores(&mut tx, self.fixed_time(), &removable, limit).await;
        let more_stores = finish(tx, outcome).await?;
        let mut tx = self.begin().await?;
        let outcome = remove_deleted_files(&mut tx, self.fixed_time(), limit).await;
        let more_files = finish(tx, outcome).await?;
        let more_segments = self.remove_segment().await?;
        Ok(more_stores || more_files || more_segments)
    }
}

impl Backend {
    /// Undoes the claim of an unreadable file, so that a server with a newer release can claim it.
    async fn undo_file_claim(&self, row: &Row) -> Result<(), Error> {
        sqlx::query::<Db>(
            "update vector_store_files set claims = claims - 1, attempts = attempts - 1, due_at = $3
             where id = $1 and claims = $2",
        )
        .bind(row.try_get::<&str, _>("id")?)
        .bind(row.try_get::<i64, _>("claims")?)
        .bind(row.try_get::<i64, _>("due_before")?)
        .execute(self.writer())
        .await?;
        Ok(())
    }
}
