//! Finds the nearest vectors with the extension `vector` of Postgres (pgvector), if it is there.
//!
//! Its table is not part of the migrations, because Postgres can be without the extension. Each large vector store has an
//! HNSW index of its own, of 16-bit vectors, which is built when the vectors are there: that is ten times faster than adding
//! them to an index one by one, and a search does not read the vectors of other vector stores.

use std::fmt::Write as _;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};

use super::{Backend, Db, Transaction};
use crate::api::{StoreFileId, VectorStoreId};
use crate::store::{ChunkKey, Error, NearestChunks, to_json};

/// Maximum number of dimensions of an HNSW index of 16-bit vectors.
const DIMENSIONS_MAX: usize = 4_000;
/// First version that continues a search until enough vectors of the vector store are found.
const VERSION_MIN: (u32, u32) = (0, 8);
/// Maximum of `hnsw.ef_search`.
const EF_SEARCH_MAX: u32 = 1_000;
/// The advisory lock under which servers create the table and its indexes.
const LOCK: i64 = 0x6173_7369_7374_6476;
/// The advisory lock under which one server at a time builds or drops an index: two of them would wait for each other.
const BUILD_LOCK: i64 = LOCK + 1;
/// How often a server tries to get that lock. It does not wait in the database, because the statement that waits would have a
/// snapshot, for which the build waits.
const BUILD_LOCK_POLL: Duration = Duration::from_millis(500);
/// Settings of the connections that build and drop indexes: what an administrator has set for short statements does not apply,
/// and the database notices within minutes that a server was lost, whose lock would prevent all other builds.
const BUILD_SETTINGS: &str =
    "select set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false),
    set_config('tcp_keepalives_idle', '60', false), set_config('tcp_keepalives_interval', '10', false)";
/// Number of vectors that one statement stores.
const VECTORS_MAX: usize = 200;
/// Memory for building an index: room for about 200,000 vectors with 384 dimensions. Above it, building is much slower.
const BUILD_MEMORY: &str = "256MB";

/// Prepares the database, and returns the name and the version of the extension, if it can be used.
pub(super) async fn prepare(connection: &mut PgConnection) -> Option<String> {
    match create_table(connection).await {
        Ok(version) => version,
        Err(error) => {
            tracing::info!(
                error = &error as &dyn std::error::Error,
                "Postgres cannot find vectors; large vector stores are searched without the extension vector (pgvector)"
            );
            None
        }
    }
}

/// Creates the extension and the table unless they exist. Returns `None` if the extension is not available.
async fn create_table(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let available: Option<(Option<String>, String)> = sqlx::query_as::<Db, _>(
        "select installed_version, default_version from pg_available_extensions where name = 'vector'",
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some((installed, default)) = available else { return Ok(None) };
    let version = installed.clone().unwrap_or(default);
    if parsed_version(&version).is_none_or(|version| version < VERSION_MIN) {
        tracing::warn!(version, "the extension vector (pgvector) is not used: version 0.8 or later is needed");
        return Ok(None);
    }
    let mut tx = connection.begin().await?;
    sqlx::query::<Db>("select pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *tx).await?;
    if installed.is_none() {
        sqlx::query::<Db>("create extension if not exists vector").execute(&mut *tx).await?;
    }
    let exists: (bool,) =
        sqlx::query_as::<Db, _>("select to_regclass('vector_store_vectors') is not null").fetch_one(&mut *tx).await?;
    if !exists.0 {
        sqlx::query::<Db>(
            "create table vector_store_vectors (
                 store_file_id text not null,
                 number bigint not null,
                 vector_store_id text not null,
                 dimensions bigint not null,
                 embedding halfvec not null,
                 primary key (store_file_id, number)
             )",
        )
        .execute(&mut *tx)
        .await?;
        sqlx::query::<Db>(
            "comment on table vector_store_vectors is
                 'The embeddings of large vector stores, to find the nearest. A copy: it can be dropped while no server runs.'",
        )
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await?;
    Ok(Some(format!("pgvector {version}")))
}

fn parsed_version(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Removes the vectors of files.
pub(super) async fn remove_vectors(tx: &mut Transaction<Db>, store_files: &[&str]) -> Result<(), Error> {
    let (exists,): (bool,) =
        sqlx::query_as::<Db, _>("select to_regclass('vector_store_vectors') is not null").fetch_one(&mut *tx).await?;
    if exists && !store_files.is_empty() {
        let sql = concat!("delete from vector_store_vectors where store_file_id in (", json_texts!("$1"), ")");
        sqlx::query::<Db>(sql).bind(to_json(&store_files)).execute(&mut *tx).await?;
    }
    Ok(())
}

async fn try_lock(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let (is_locked,): (bool,) =
        sqlx::query_as::<Db, _>("select pg_try_advisory_lock($1)").bind(BUILD_LOCK).fetch_one(connection).await?;
    Ok(is_locked)
}

/// Closes a connection. Releases its locks before, because the database may notice the end of the connection later.
async fn unlock_and_close(mut connection: PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query::<Db>("select pg_advisory_unlock_all()").execute(&mut connection).await?;
    connection.close().await
}

/// Returns the name of the index of a vector store, and whether it is valid if it exists. It is not while it is being built, or
/// if that failed.
async fn find_index(
    executor: impl sqlx::Executor<'_, Database = Db>,
    store: &VectorStoreId,
    dimensions: usize,
) -> Result<(String, Option<bool>), sqlx::Error> {
    // The ID could be longer than a name may be.
    sqlx::query_as::<Db, _>(
        "select name, (select indisvalid from pg_index where indexrelid = to_regclass(name))
         from (select 'vector_store_vectors_' || md5($1) || '_' || $2 as name) as named",
    )
    .bind(store.as_str())
    .bind(dimensions.to_string())
    .fetch_one(executor)
    .await
}

/// Builds the index of a vector store, unless it exists.
async fn build_index(
    connection: &mut PgConnection,
    store: &VectorStoreId,
    dimensions: usize,
) -> Result<(), sqlx::Error> {
    let (name, is_valid) = find_index(&mut *connection, store, dimensions).await?;
    match is_valid {
        Some(true) => return Ok(()),
        // Building has failed, or its server was lost.
        Some(false) => {
            let sql = format!("drop index concurrently if exists {name}");
            sqlx::query::<Db>(AssertSqlSafe(sql)).execute(&mut *connection).await?;
        }
        None => {}
    }
    sqlx::query::<Db>(
        "select set_config('maintenance_work_mem', $1, false)
         where pg_size_bytes(current_setting('maintenance_work_mem')) < pg_size_bytes($1)",
    )
    .bind(BUILD_MEMORY)
    .execute(&mut *connection)
    .await?;
    let id = store.as_str().replace('\'', "''");
    let sql = format!(
        "create index concurrently if not exists {name} on vector_store_vectors
         using hnsw ((embedding::halfvec({dimensions})) halfvec_cosine_ops)
         where vector_store_id = '{id}' and dimensions = {dimensions}"
    );
    sqlx::query::<Db>(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    Ok(())
}

impl Backend {
    /// Removes the indexes of the vectors of a vector store. Returns `false` if they cannot be removed now, because a server
    /// is building an index.
    pub(super) async fn drop_vector_indexes(&self, store: &str) -> Result<bool, Error> {
        let names: Vec<(String,)> = sqlx::query_as::<Db, _>(
            "select indexrelid::regclass::text from pg_index
             where indrelid = to_regclass('vector_store_vectors')
               and indexrelid::regclass::text like 'vector_store_vectors_' || md5($1) || '%'",
        )
        .bind(store)
        .fetch_all(&self.pool)
        .await?;
        if names.is_empty() {
            return Ok(true);
        }
        let mut connection = self.connect_to_build().await?;
        let is_locked = try_lock(&mut connection).await?;
        for (name,) in names.into_iter().filter(|_| is_locked) {
            let sql = format!("drop index concurrently if exists {name}");
            sqlx::query::<Db>(AssertSqlSafe(sql)).execute(&mut connection).await?;
        }
        unlock_and_close(connection).await?;
        Ok(is_locked)
    }

    /// Returns a connection that builds or drops indexes. It is not one of the pool, whose statements have a timeout. A lock
    /// is released with it.
    async fn connect_to_build(&self) -> Result<PgConnection, sqlx::Error> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        sqlx::query::<Db>(BUILD_SETTINGS).execute(&mut connection).await?;
        Ok(connection)
    }
}

/// Writes a vector as the extension reads it.
fn vector_text(vector: &[f32]) -> String {
    let mut text = String::with_capacity(2 + 12 * vector.len());
    for value in vector {
        text.push(if text.is_empty() { '[' } else { ',' });
        write!(text, "{value}").expect("writing to a string does not fail");
    }
    text.push(']');
    text
}

#[async_trait]
impl NearestChunks for Backend {
    fn vector_search(&self) -> Option<&str> {
        self.vector_search.as_deref()
    }

    async fn add_vectors(
        &self,
        store: &VectorStoreId,
        dimensions: usize,
        vectors: &[(ChunkKey, Vec<f32>)],
    ) -> Result<bool, Error> {
        if self.vector_search.is_none() || dimensions == 0 || dimensions > DIMENSIONS_MAX {
            return Ok(false);
        }
        for some in vectors.chunks(VECTORS_MAX) {
            let ids: Vec<&str> = some.iter().map(|((id, _), _)| id.as_str()).collect();
            let numbers: Vec<i64> = some.iter().map(|((_, number), _)| i64::from(*number)).collect();
            let texts: Vec<String> = some.iter().map(|(_, vector)| vector_text(vector)).collect();
            sqlx::query::<Db>(
                "insert into vector_store_vectors (store_file_id, number, vector_store_id, dimensions, embedding)
                 select id, number, $1, $2, embedding::halfvec
                 from unnest($3::text[], $4::bigint[], $5::text[]) as new (id, number, embedding)
                 on conflict (store_file_id, number) do nothing",
            )
            .bind(store.as_str())
            .bind(i64::try_from(dimensions).unwrap_or(i64::MAX))
            .bind(ids)
            .bind(numbers)
            .bind(texts)
            .execute(&self.pool)
            .await?;
        }
        Ok(true)
    }

    async fn index_vectors(&self, store: &VectorStoreId, dimensions: usize) -> Result<(), Error> {
        if self.vector_search.is_none() || find_index(&self.pool, store, dimensions).await?.1 == Some(true) {
            return Ok(());
        }
        let _turn = self.building.lock().await;
        let mut connection = self.connect_to_build().await?;
        while !try_lock(&mut connection).await? {
            tokio::time::sleep(BUILD_LOCK_POLL).await;
        }
        build_index(&mut connection, store, dimensions).await?;
        unlock_and_close(connection).await?;
        Ok(())
    }

    async fn nearest_chunks(
        &self,
        store: &VectorStoreId,
        embedding: &[f32],
        limit: u32,
    ) -> Result<Option<Vec<ChunkKey>>, Error> {
        let dimensions = embedding.len();
        if self.vector_search.is_none() || dimensions == 0 || dimensions > DIMENSIONS_MAX {
            return Ok(None);
        }
        let mut tx = self.begin().await?;
        sqlx::query::<Db>(
            "select set_config('hnsw.ef_search', $1, true), set_config('hnsw.iterative_scan', 'relaxed_order', true)",
        )
        .bind(limit.clamp(40, EF_SEARCH_MAX).to_string())
        .execute(&mut tx)
        .await?;
        // Not as a parameter: so Postgres uses the index of the vector store in any plan.
        let id = store.as_str().replace('\'', "''");
        let rows: Vec<(String, i64)> = sqlx::query_as::<Db, _>(AssertSqlSafe(format!(
            "select store_file_id, number from vector_store_vectors
             where vector_store_id = '{id}' and dimensions = {dimensions}
             order by embedding::halfvec({dimensions}) <=> $1::halfvec({dimensions})
             limit $2"
        )))
        .bind(vector_text(embedding))
        .bind(i64::from(limit))
        .fetch_all(&mut tx)
        .await?;
        tx.commit().await?;
        let key =
            |(id, number): (String, i64)| (StoreFileId::from_stored(&id), u32::try_from(number).unwrap_or(u32::MAX));
        Ok(Some(rows.into_iter().map(key).collect()))
    }
}
