//! The tables `uploads` and `upload_parts`.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row as _;

use super::files::finish_file;
use super::{Backend, Db, Row, seconds};
use crate::api::upload::UploadState;
use crate::api::{PartId, Scope, Upload, UploadId, UploadPart};
use crate::store::{Error, Uploads, from_json, to_json};

const TABLE: &str = "uploads";

fn from_row(row: &Row) -> Result<Upload, Error> {
    from_json(TABLE, row.try_get("id")?, row.try_get("body")?)
}

/// Returns the column `status` of an upload.
fn status_column(upload: &Upload) -> &'static str {
    match upload.state {
        UploadState::Pending => "pending",
        UploadState::Completed(_) => "completed",
        UploadState::Cancelled => "cancelled",
    }
}

#[async_trait]
impl Uploads for Backend {
    async fn create_upload(&self, scope: &Scope, upload: &Upload) -> Result<(), Error> {
        sqlx::query::<Db>(
            "insert into uploads (id, project_id, created_at, status, expires_at, body) values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(upload.id.as_str())
        .bind(scope.as_str())
        .bind(upload.created_at.0)
        .bind(status_column(upload))
        .bind(upload.expires_at().0)
        .bind(to_json(upload))
        .execute(self.writer())
        .await?;
        Ok(())
    }

    async fn upload(&self, scope: &Scope, id: &UploadId) -> Result<Option<Upload>, Error> {
        let row = sqlx::query::<Db>("select id, body from uploads where id = $1 and project_id = $2")
            .bind(id.as_str())
            .bind(scope.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(from_row).transpose()
    }

    async fn create_pending_part(&self, scope: &Scope, part: &UploadPart, lease: Duration) -> Result<(), Error> {
        sqlx::query::<Db>(concat!(
            "insert into upload_parts (id, project_id, upload_id, created_at, status, bytes, remove_at)
             values ($1, $2, $3, $4, 'pending', 0, ",
            lease_end!("$5", "$6"),
            ")"
        ))
        .bind(part.id.as_str())
        .bind(scope.as_str())
        .bind(part.upload_id.as_str())
        .bind(part.created_at.0)
        .bind(self.fixed_time())
        .bind(seconds(lease))
        .execute(self.writer())
        .await?;
        Ok(())
    }

    async fn finish_part(&self, scope: &Scope, part: &UploadPart, bytes: u64) -> Result<bool, Error> {
        let done = sqlx::query::<Db>(concat!(
            "update upload_parts
             set status = 'stored', bytes = $4, remove_at = (select expires_at from uploads where id = $3)
             where id = $1 and project_id = $2 and status = 'pending' and exists (
                 select 1 from uploads
                 where id = $3 and project_id = $2 and status = 'pending' and expires_at > ",
            now!("$5"),
            ")"
        ))
        .bind(part.id.as_str())
        .bind(scope.as_str())
        .bind(part.upload_id.as_str())
        .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
        .bind(self.fixed_time())
        .execute(self.writer())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    async fn parts(&self, scope: &Scope, upload: &UploadId) -> Result<Vec<(PartId, u64)>, Error> {
        let rows: Vec<(String, i64)> = sqlx::query_as::<Db, _>(
            "select id, bytes from upload_parts
             where upload_id = $1 and project_id = $2 and status = 'stored'
             order by seq",
        )
        .bind(upload.as_str())
        .bind(scope.as_str())
        .fetch_all(self.reader())
        .await?;
        Ok(rows.into_iter().map(|(id, bytes)| (PartId::from_stored(id), u64::try_from(bytes).unwrap_or(0))).collect())
    }

    async fn end_upload(&self, scope: &Scope, upload: &Upload) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let done = sqlx::query::<Db>(
            "update uploads set status = $3, body = $4 where id = $1 and project_id = $2 and status = 'pending'",
        )
        .bind(upload.id.as_str())
        .bind(scope.as_str())
        .bind(status_column(upload))
        .bind(to_json(upload))
        .execute(&mut tx)
        .await?;
        let mut has_ended = done.rows_affected() == 1;
        if let (true, UploadState::Completed(file)) = (has_ended, &upload.state) {
            has_ended = finish_file(&mut tx, scope, file).await?;
        }
        if !has_ended {
            tx.rollback().await?;
            return Ok(false);
        }
        sqlx::query::<Db>(concat!(
            "update upload_parts set status = 'deleted', remove_at = ",
            now!("$3"),
            " where upload_id = $1 and project_id = $2 and status = 'stored'"
        ))
        .bind(upload.id.as_str())
        .bind(scope.as_str())
        .bind(self.fixed_time())
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }
}
