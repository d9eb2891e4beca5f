//! The tables `vector_store_segments`, `vector_store_segment_parts` and `vector_store_index_claims`.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row as _;

use super::store_files::{finish, unsigned};
use super::{Backend, Db, Row, insert_segment_parts, seconds};
use crate::api::{StoreFileId, VectorStoreId};
use crate::store::pool::Transaction;
use crate::store::{ChunkKey, Error, FIRST_BLOCK, IndexClaim, IndexSegment, Segments, VectorsIn, to_json};

/// How long a segment is kept that is not published, in seconds: longer than writing the largest index takes.
const UNPUBLISHED_KEPT_S: i64 = 6 * 3_600;
/// Size of the parts that one transaction stores, in bytes. More would delay other transactions on SQLite.
const PARTS_BYTES_MAX: usize = 1024 * 1024;
/// Number of parts that one transaction removes.
const PARTS_REMOVED_MAX: i64 = 1_000;

/// Fails unless the claim is valid, and locks it.
async fn lock_claim(tx: &mut Transaction<Db>, fixed_time: Option<i64>, claim: &IndexClaim) -> Result<(), Error> {
    let found: Option<(String,)> = sqlx::query_as::<Db, _>(concat!(
        "select owner from vector_store_index_claims
         where vector_store_id = $2 and owner = $3 and due_at > ",
        now!("$1"),
        for_update!()
    ))
    .bind(fixed_time)
    .bind(claim.store.as_str())
    .bind(&claim.owner)
    .fetch_optional(&mut *tx)
    .await?;
    found.map(|_| ()).ok_or(Error::Stale)
}

fn segment_from_row(row: &Row) -> Result<IndexSegment, Error> {
    Ok(IndexSegment {
        id: row.try_get("id")?,
        embedding_model: row.try_get("embedding_model")?,
        vectors: match row.try_get::<&str, _>("vectors")? {
            "database" => VectorsIn::Database,
            _ => VectorsIn::Blocks,
        },
        chunks: unsigned(row.try_get("chunks")?),
        body: row.try_get("body")?,
    })
}

/// Returns how many of the parts one transaction stores.
fn portion(parts: &[(u32, Vec<u8>)]) -> usize {
    let mut bytes = 0;
    let fitting = parts.iter().take_while(|(_, data)| {
        bytes += data.len();
        bytes <= PARTS_BYTES_MAX
    });
    fitting.count().max(1).min(parts.len())
}

/// Removes a segment or some of its parts. Returns whether there may be more to remove.
async fn remove(tx: &mut Transaction<Db>, fixed_time: Option<i64>) -> Result<bool, Error> {
    let segment: Option<(String,)> = sqlx::query_as::<Db, _>(concat!(
        "select id from vector_store_segments where remove_at <= ",
        now!("$1"),
        " order by remove_at limit 1",
        skip_locked!()
    ))
    .bind(fixed_time)
    .fetch_optional(&mut *tx)
    .await?;
    let Some((id,)) = segment else { return Ok(false) };
    let removed = sqlx::query::<Db>(
        "delete from vector_store_segment_parts
         where segment_id = $1 and number in (
             select number from vector_store_segment_parts where segment_id = $1 order by number limit $2)",
    )
    .bind(&id)
    .bind(PARTS_REMOVED_MAX)
    .execute(&mut *tx)
    .await?;
    if i64::try_from(removed.rows_affected()).is_ok_and(|count| count < PARTS_REMOVED_MAX) {
        sqlx::query::<Db>("delete from vector_store_segments where id = $1").bind(&id).execute(&mut *tx).await?;
    }
    Ok(true)
}

/// Marks all segments of a vector store as not needed.
pub(super) async fn discard_segments(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    store: &str,
) -> Result<(), Error> {
    sqlx::query::<Db>(concat!(
        "update vector_store_segments set remove_at = ",
        now!("$1"),
        " where vector_store_id = $2"
    ))
    .bind(fixed_time)
    .bind(store)
    .execute(&mut *tx)
    .await?;
    sqlx::query::<Db>("delete from vector_store_index_claims where vector_store_id = $1")
        .bind(store)
        .execute(&mut *tx)
        .await?;
    Ok(())
}

#[async_trait]
impl Segments for Backend {
    async fn claim_index(&self, claim: &IndexClaim, duration: Duration) -> Result<bool, Error> {
        let done = sqlx::query::<Db>(concat!(
            "insert into vector_store_index_claims (vector_store_id, owner, due_at) values ($3, $4, ",
            lease_end!("$1", "$2"),
            ") on conflict (vector_store_id) do update set owner = excluded.owner, due_at = excluded.due_at
               where vector_store_index_claims.owner = excluded.owner or vector_store_index_claims.due_at <= ",
            now!("$1")
        ))
        .bind(self.fixed_time())
        .bind(seconds(duration))
        .bind(claim.store.as_str())
        .bind(&claim.owner)
        .execute(self.writer())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    async fn release_index(&self, claim: &IndexClaim) -> Result<(), Error> {
        sqlx::query::<Db>("delete from vector_store_index_claims where vector_store_id = $1 and owner = $2")
            .bind(claim.store.as_str())
            .bind(&claim.owner)
            .execute(self.writer())
            .await?;
        Ok(())
    }

    async fn segments(&self, store: &VectorStoreId) -> Result<Vec<IndexSegment>, Error> {
        let rows = sqlx::query::<Db>(
            "select id, embedding_model, vectors, chunks, body from vector_store_segments
             where vector_store_id = $1 and remove_at is null
             order by seq",
        )
        .bind(store.as_str())
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(segment_from_row).collect()
    }

    async fn add_segment(
        &self,
        claim: &IndexClaim,
        segment: &IndexSegment,
        parts: &[(u32, Vec<u8>)],
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let outcome = async {
            lock_claim(&mut tx, self.fixed_time(), claim).await?;
            sqlx::query::<Db>(concat!(
                "insert into vector_store_segments
                     (id, vector_store_id, created_at, remove_at, embedding_model, vectors, chunks, body)
                 values ($3, $4, ",
                now!("$1"),
                ", ",
                now!("$1"),
                " + $2, $5, $6, $7, $8)"
            ))
            .bind(self.fixed_time())
            .bind(UNPUBLISHED_KEPT_S)
            .bind(&segment.id)
            .bind(claim.store.as_str())
            .bind(segment.embedding_model.as_deref())
            .bind(match segment.vectors {
                VectorsIn::Blocks => "blocks",
                VectorsIn::Database => "database",
            })
            .bind(i64::try_from(segment.chunks).unwrap_or(i64::MAX))
            .bind(segment.body.as_slice())
            .execute(&mut tx)
            .await?;
            Ok(())
        }
        .await;
        finish(tx, outcome).await?;
        let mut left = parts;
        while !left.is_empty() {
            let (portion, rest) = left.split_at(portion(left));
            let mut tx = self.begin().await?;
            let outcome = insert_segment_parts(&mut tx, &segment.id, portion).await;
            finish(tx, outcome).await?;
            left = rest;
        }
        Ok(())
    }

    async fn publish_segments(&self, claim: &IndexClaim, added: &[String], removed: &[String]) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let outcome = async {
            let live: Option<(i64,)> = sqlx::query_as::<Db, _>(concat!(
                "select version from vector_stores where id = $1 and status = 'live'",
                for_share!()
            ))
            .bind(claim.store.as_str())
            .fetch_optional(&mut tx)
            .await?;
            live.ok_or(Error::Stale)?;
            lock_claim(&mut tx, self.fixed_time(), claim).await?;
            let sql =
                concat!("update vector_store_segments set remove_at = null where id in (", json_texts!("$1"), ")");
            sqlx::query::<Db>(sql).bind(to_json(added)).execute(&mut tx).await?;
            sqlx::query::<Db>(concat!(
                "update vector_store_segments set remove_at = ",
                now!("$1"),
                " where id in (",
                json_texts!("$2"),
                ")"
            ))
            .bind(self.fixed_time())
            .bind(to_json(removed))
            .execute(&mut tx)
            .await?;
            Ok(())
        }
        .await;
        finish(tx, outcome).await
    }

    async fn segment_parts(
        &self,
        segments: &[String],
        parts: &[u32],
    ) -> Result<Option<HashMap<(String, u32), Vec<u8>>>, Error> {
        let pairs: Vec<(&str, u32)> =
            segments.iter().flat_map(|id| parts.iter().map(|part| (id.as_str(), *part))).collect();
        let rows: Vec<(String, i64, Vec<u8>)> = sqlx::query_as::<Db, _>(concat!(
            "select segment_id, number, data from vector_store_segment_parts
             where (segment_id, number) in (select id, number from (",
            json_pairs!("$1"),
            ") as wanted)"
        ))
        .bind(to_json(&pairs))
        .fetch_all(self.reader())
        .await?;
        // A segment that exists after its parts were read had all of them.
        let (existing,): (i64,) = sqlx::query_as::<Db, _>(concat!(
            "select count(*) from vector_store_segments where remove_at is null and id in (",
            json_texts!("$1"),
            ")"
        ))
        .bind(to_json(segments))
        .fetch_one(self.reader())
        .await?;
        let number = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
        let parts = || rows.into_iter().map(|(id, part, data)| ((id, number(part)), data)).collect();
        Ok(usize::try_from(existing).is_ok_and(|count| count == segments.len()).then(parts))
    }

    async fn vector_blocks(&self, segment: &str, after: Option<u32>, limit: u32) -> Result<Vec<(u32, Vec<u8>)>, Error> {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as::<Db, _>(
            "select number, data from vector_store_segment_parts
             where segment_id = $1 and number > $2
             order by number
             limit $3",
        )
        .bind(segment)
        .bind(i64::from(after.unwrap_or(FIRST_BLOCK - 1)))
        .bind(i64::from(limit))
        .fetch_all(self.reader())
        .await?;
        Ok(rows.into_iter().map(|(number, data)| (u32::try_from(number).unwrap_or(u32::MAX), data)).collect())
    }

    async fn chunk_embeddings(&self, model: &str, keys: &[ChunkKey]) -> Result<HashMap<ChunkKey, Vec<u8>>, Error> {
        let pairs: Vec<(&str, u32)> = keys.iter().map(|(id, number)| (id.as_str(), *number)).collect();
        let rows: Vec<(String, i64, Vec<u8>)> = sqlx::query_as::<Db, _>(concat!(
            "select chunk.store_file_id, chunk.number, chunk.embedding
             from vector_store_chunks as chunk
             join vector_store_files as file on file.id = chunk.store_file_id and file.embedding_model = $2
             where chunk.embedding is not null and (chunk.store_file_id, chunk.number) in (select id, number from (",
            json_pairs!("$1"),
            ") as wanted)"
        ))
        .bind(to_json(&pairs))
        .bind(model)
        .fetch_all(self.reader())
        .await?;
        let entry = |(id, number, embedding): (String, i64, Vec<u8>)| {
            ((StoreFileId::from_stored(&id), u32::try_from(number).unwrap_or(u32::MAX)), embedding)
        };
        Ok(rows.into_iter().map(entry).collect())
    }

    async fn remove_segment(&self) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let outcome = remove(&mut tx, self.fixed_time()).await;
        finish(tx, outcome).await
    }
}
