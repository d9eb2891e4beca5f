//! The table `files`, and what `files` and `upload_parts` have in common.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row as _};

use super::page::{Condition, List, page_where, project, read};
use super::store_files::{finish, remove_from_stores};
use super::{Backend, Db, Row, Transaction, seconds};
use crate::api::file::Purpose;
use crate::api::{File, FileId, Page, PageQuery, ProjectId, Scope, Timestamp};
use crate::store::{BlobId, BlobKind, Blobs, Error, Files, from_json, to_json};

const TABLE: &str = "files";

fn from_row(row: &Row) -> Result<File, Error> {
    from_json(TABLE, row.try_get("id")?, row.try_get("body")?)
}

/// Makes a pending file visible. Returns false if it is no longer pending.
pub(super) async fn finish_file(tx: &mut Transaction<Db>, scope: &Scope, file: &File) -> Result<bool, Error> {
    let done = sqlx::query::<Db>(
        "update files set status = 'processed', created_at = $3, purpose = $4, remove_at = $5, body = $6
         where id = $1 and project_id = $2 and status = 'pending'",
    )
    .bind(file.id.as_str())
    .bind(scope.as_str())
    .bind(file.created_at.0)
    .bind(file.purpose.name())
    .bind(file.expires_at.map(|at| at.0))
    .bind(to_json(file))
    .execute(&mut *tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

#[async_trait]
impl Files for Backend {
    async fn create_pending_file(
        &self,
        scope: &Scope,
        id: &FileId,
        now: Timestamp,
        lease: Duration,
    ) -> Result<(), Error> {
        sqlx::query::<Db>(concat!(
            "insert into files (id, project_id, created_at, status, purpose, remove_at)
             values ($1, $2, $3, 'pending', '', ",
            lease_end!("$4", "$5"),
            ")"
        ))
        .bind(id.as_str())
        .bind(scope.as_str())
        .bind(now.0)
        .bind(self.fixed_time())
        .bind(seconds(lease))
        .execute(self.writer())
        .await?;
        Ok(())
    }

    async fn finish_file(&self, scope: &Scope, file: &File) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let is_finished = finish_file(&mut tx, scope, file).await?;
        tx.commit().await?;
        Ok(is_finished)
    }

    async fn file(&self, scope: &Scope, id: &FileId) -> Result<Option<File>, Error> {
        let row = sqlx::query::<Db>(concat!(
            "select id, body from files
             where id = $1 and project_id = $2 and status = 'processed' and (remove_at is null or remove_at > ",
            now!("$3"),
            ")"
        ))
        .bind(id.as_str())
        .bind(scope.as_str())
        .bind(self.fixed_time())
        .fetch_optional(self.reader())
        .await?;
        row.as_ref().map(from_row).transpose()
    }

    async fn list_files(
        &self,
        scope: &Scope,
        purpose: Option<Purpose>,
        query: &PageQuery,
    ) -> Result<Page<File>, Error> {
        let mut filter = vec![project(scope), ("status", "processed")];
        filter.extend(purpose.map(|purpose| ("purpose", purpose.name())));
        let unexpired = [Condition::NullOrAfter("remove_at", self.clock.now().0)];
        let list = List { table: TABLE, columns: "id, body", body: "body", filter: &filter, parent: None };
        let rows = page_where(self, &list, &unexpired, query).await?;
        read(self, &rows, from_row)
    }

    async fn delete_file(&self, scope: &Scope, id: &FileId) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let outcome = async {
            let done = sqlx::query::<Db>(concat!(
                "update files set status = 'deleted', remove_at = ",
                now!("$3"),
                " where id = $1 and project_id = $2 and status = 'processed' and (remove_at is null or remove_at > ",
                now!("$3"),
                ")"
            ))
            .bind(id.as_str())
            .bind(scope.as_str())
            .bind(self.fixed_time())
            .execute(&mut tx)
            .await?;
            let exists = done.rows_affected() == 1;
            if exists {
                remove_from_stores(&mut tx, self.fixed_time(), &[id.to_string()]).await?;
            }
            Ok(exists)
        }
        .await;
        finish(tx, outcome).await
    }
}

#[async_trait]
impl Blobs for Backend {
    async fn renew_pending(&self, blob: &BlobId, lease: Duration) -> Result<bool, Error> {
        let sql = format!(
            concat!("update {table} set remove_at = ", lease_end!("$1", "$2"), " where id = $3 and status = 'pending'"),
            table = blob.kind.table()
        );
        let done = sqlx::query::<Db>(AssertSqlSafe(sql))
            .bind(self.fixed_time())
            .bind(seconds(lease))
            .bind(&blob.id)
            .execute(self.writer())
            .await?;
        Ok(done.rows_affected() == 1)
    }

    async fn blobs_to_remove(&self, kind: BlobKind, limit: u32) -> Result<Vec<BlobId>, Error> {
        let sql = format!(
            concat!(
                "update {table} set status = 'deleted'
                 where id in (select id from {table} where remove_at <= ",
                now!("$1"),
                " order by remove_at limit $2) and remove_at <= ",
                now!("$1"),
                " returning id, project_id"
            ),
            table = kind.table()
        );
        let mut tx = self.begin().await?;
        let outcome = async {
            let rows: Vec<(String, String)> = sqlx::query_as::<Db, _>(AssertSqlSafe(sql))
                .bind(self.fixed_time())
                .bind(i64::from(limit))
                .fetch_all(&mut tx)
                .await?;
            if kind == BlobKind::File && !rows.is_empty() {
                let ids: Vec<String> = rows.iter().map(|(id, _)| id.clone()).collect();
                remove_from_stores(&mut tx, self.fixed_time(), &ids).await?;
            }
            Ok(rows)
        }
        .await;
        let rows = finish(tx, outcome).await?;
        let blob = |(id, project)| BlobId { kind, project: ProjectId::from_stored(project), id };
        Ok(rows.into_iter().map(blob).collect())
    }

    async fn discard_pending(&self, blob: &BlobId, after: Duration) -> Result<(), Error> {
        let sql = format!(
            concat!(
                "update {table} set status = 'deleted', remove_at = ",
                now!("$1"),
                " + $3 where id = $2 and status = 'pending'"
            ),
            table = blob.kind.table()
        );
        sqlx::query::<Db>(AssertSqlSafe(sql))
            .bind(self.fixed_time())
            .bind(&blob.id)
            .bind(seconds(after))
            .execute(self.writer())
            .await?;
        Ok(())
    }

    async fn delete_blob_row(&self, blob: &BlobId) -> Result<(), Error> {
        let sql = format!("delete from {} where id = $1 and status = 'deleted'", blob.kind.table());
        sqlx::query::<Db>(AssertSqlSafe(sql)).bind(&blob.id).execute(self.writer()).await?;
        Ok(())
    }

    async fn blobs_with_row(&self, kind: BlobKind, ids: &[String]) -> Result<Vec<String>, Error> {
        let sql =
            format!(concat!("select id from {table} where id in (", json_texts!("$1"), ")"), table = kind.table());
        let rows: Vec<(String,)> =
            sqlx::query_as::<Db, _>(AssertSqlSafe(sql)).bind(to_json(&ids)).fetch_all(self.reader()).await?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    async fn delete_uploads_before(&self, before: Timestamp, limit: u32) -> Result<u64, Error> {
        let done = sqlx::query::<Db>(
            "delete from uploads where id in (select id from uploads where expires_at < $1 order by expires_at limit $2)",
        )
        .bind(before.0)
        .bind(i64::from(limit))
        .execute(self.writer())
        .await?;
        Ok(done.rows_affected())
    }
}
