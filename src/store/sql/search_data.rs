//! What searches read of vector stores.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx::Row as _;

use super::store_files::TABLE;
use super::{Backend, Db, Row};
use crate::api::{FileId, Scope, StoreFileId, Timestamp, VectorStoreId};
use crate::store::{ChunkKey, ChunkText, Error, IndexedChunk, IndexedFile, SearchData, StoreState, from_json, to_json};

/// Maximum number of chunks of a page.
const CHUNKS_MAX: i64 = 4_096;

fn file_from_row(row: &Row) -> Result<IndexedFile, Error> {
    let id: &str = row.try_get("id")?;
    Ok(IndexedFile {
        id: StoreFileId::from_stored(id),
        file_id: FileId::from_stored(row.try_get::<&str, _>("file_id")?),
        filename: row.try_get("filename")?,
        attributes: from_json(TABLE, id, row.try_get("attributes")?)?,
        language: row.try_get("language")?,
        embedding_model: row.try_get("embedding_model")?,
        changed_version: row.try_get("changed_version")?,
        seq: row.try_get("seq")?,
        is_deleted: row.try_get::<&str, _>("status")? == "deleted",
    })
}

fn key_from_row(row: &Row) -> Result<ChunkKey, Error> {
    let number: i64 = row.try_get("number")?;
    let id = StoreFileId::from_stored(row.try_get::<&str, _>("store_file_id")?);
    Ok((id, u32::try_from(number).unwrap_or(u32::MAX)))
}

#[async_trait]
impl SearchData for Backend {
    async fn store_state(&self, scope: &Scope, id: &VectorStoreId) -> Result<Option<StoreState>, Error> {
        let row = sqlx::query::<Db>(
            "select version, purged_version, expires_at,
                    exists (
                        select 1 from vector_store_files
                        where vector_store_id = $1 and status = 'in_progress' and status <> 'deleted'
                    ) as is_in_progress
             from vector_stores
             where id = $1 and project_id = $2 and status = 'live'",
        )
        .bind(id.as_str())
        .bind(scope.as_str())
        .fetch_optional(self.reader())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let expires_at = row.try_get::<Option<i64>, _>("expires_at")?.map(Timestamp);
        let now = self.clock.now();
        Ok(Some(StoreState {
            version: row.try_get("version")?,
            purged_version: row.try_get("purged_version")?,
            expires_at,
            is_expired: expires_at.is_some_and(|at| at <= now),
            is_in_progress: row.try_get("is_in_progress")?,
        }))
    }

    async fn changed_files(&self, store: &VectorStoreId, since: i64, limit: u32) -> Result<Vec<IndexedFile>, Error> {
        let rows = sqlx::query::<Db>(
            "select id, file_id, filename, attributes, language, embedding_model, changed_version, seq, status
             from vector_store_files
             where vector_store_id = $1 and changed_version > 0 and changed_version > $2
               and changed_version <= coalesce((
                   select changed_version from vector_store_files
                   where vector_store_id = $1 and changed_version > 0 and changed_version > $2
                   order by changed_version, seq
                   limit 1 offset $3
               ), $4)
             order by changed_version, seq",
        )
        .bind(store.as_str())
        .bind(since)
        .bind(i64::from(limit.max(1)) - 1)
        .bind(i64::MAX)
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(file_from_row).collect()
    }

    async fn index_chunks(
        &self,
        files: &[StoreFileId],
        after: Option<&ChunkKey>,
        bytes_max: usize,
    ) -> Result<Vec<IndexedChunk>, Error> {
        let ids: Vec<&str> = files.iter().map(StoreFileId::as_str).collect();
        let (after_id, after_number) = after.map_or(("", -1), |(id, number)| (id.as_str(), i64::from(*number)));
        // The inner query selects the rows by index; the outer one omits those above the size limit.
        let rows = sqlx::query::<Db>(concat!(
            "select store_file_id, number, tokens, terms, embedding from (
                 select store_file_id, number, tokens, terms, embedding,
                        sum(bytes) over (
                            order by store_file_id, number rows between unbounded preceding and current row
                        ) - bytes as bytes_before
                 from (
                     select store_file_id, number, tokens, terms, embedding,
                            octet_length(terms) + coalesce(octet_length(embedding), 0) as bytes
                     from vector_store_chunks
                     where store_file_id in (",
            json_texts!("$1"),
            ") and (store_file_id, number) > ($2, $3)
                     order by store_file_id, number
                     limit $4
                 ) as page
             ) as page
             where bytes_before < $5
             order by store_file_id, number"
        ))
        .bind(to_json(&ids))
        .bind(after_id)
        .bind(after_number)
        .bind(CHUNKS_MAX)
        .bind(i64::try_from(bytes_max.max(1)).unwrap_or(i64::MAX))
        .fetch_all(self.reader())
        .await?;
        let chunk = |row: &Row| {
            let (store_file, number) = key_from_row(row)?;
            let tokens: i64 = row.try_get("tokens")?;
            Ok(IndexedChunk {
                store_file,
                number,
                tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
                terms: row.try_get("terms")?,
                embedding: row.try_get("embedding")?,
            })
        };
        rows.iter().map(chunk).collect()
    }

    async fn chunk_texts(&self, keys: &[ChunkKey]) -> Result<HashMap<ChunkKey, ChunkText>, Error> {
        let pairs: Vec<(&str, u32)> = keys.iter().map(|(id, number)| (id.as_str(), *number)).collect();
        let rows = sqlx::query::<Db>(concat!(
            "select store_file_id, number, text, overlap_bytes from vector_store_chunks
             where (store_file_id, number) in (select id, number from (",
            json_pairs!("$1"),
            ") as wanted)"
        ))
        .bind(to_json(&pairs))
        .fetch_all(self.reader())
        .await?;
        let text = |row: &Row| {
            let overlap_bytes: i64 = row.try_get("overlap_bytes")?;
            Ok((
                key_from_row(row)?,
                ChunkText { text: row.try_get("text")?, overlap_bytes: u32::try_from(overlap_bytes).unwrap_or(0) },
            ))
        };
        rows.iter().map(text).collect()
    }
}
