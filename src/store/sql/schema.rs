//! The tables `_sqlx_migrations` and `schema_support`: which migrations were applied, and which releases can use the database.

use super::{Db, TABLE_EXISTS, migrations};
use crate::store::schema::{RELEASE, Schema};

type Connection = <Db as sqlx::Database>::Connection;

/// Returns the number of the last migration of this release.
pub(super) fn known_version() -> i64 {
    migrations().iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Reads the version of the schema. Changes nothing.
pub(super) async fn read_schema(connection: &mut Connection) -> Result<Schema, sqlx::Error> {
    let mut schema = Schema::default();
    if table_exists(connection, "_sqlx_migrations").await? {
        (schema.version,) =
            sqlx::query_as::<Db, _>("select coalesce(max(version), 0) from _sqlx_migrations where success")
                .fetch_one(&mut *connection)
                .await?;
    }
    if table_exists(connection, "schema_support").await? {
        (schema.oldest_migration, schema.written_by) =
            sqlx::query_as::<Db, _>("select oldest_migration, written_by from schema_support")
                .fetch_one(&mut *connection)
                .await?;
    }
    Ok(schema)
}

/// Returns whether there are API keys in a database with this schema.
pub(super) async fn has_keys(connection: &mut Connection) -> Result<bool, sqlx::Error> {
    if !table_exists(connection, "api_keys").await? {
        return Ok(false);
    }
    let (exists,): (bool,) =
        sqlx::query_as::<Db, _>("select exists (select 1 from api_keys)").fetch_one(connection).await?;
    Ok(exists)
}

/// Records the version of this release, unless a newer one has migrated the database.
pub(super) async fn record_release(connection: &mut Connection) -> Result<(), sqlx::Error> {
    sqlx::query::<Db>(
        "update schema_support set written_by = $1
         where written_by <> $1 and $2 >= (select max(version) from _sqlx_migrations)",
    )
    .bind(RELEASE)
    .bind(known_version())
    .execute(connection)
    .await?;
    Ok(())
}

async fn table_exists(connection: &mut Connection, name: &str) -> Result<bool, sqlx::Error> {
    let (count,): (i64,) = sqlx::query_as::<Db, _>(TABLE_EXISTS).bind(name).fetch_one(connection).await?;
    Ok(count > 0)
}
