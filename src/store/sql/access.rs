//! What the authentication reads from the tables of the organization.

use async_trait::async_trait;
use sqlx::Row as _;

use super::{Backend, Db, Row};
use crate::api::organization::ProjectLimits;
use crate::api::{ApiKeyId, ProjectId, Timestamp};
use crate::store::{AccessData, Error, StoredKey, to_json};

/// Minimum interval between two recorded uses of a key, in seconds.
const RECORD_USE_EVERY_S: i64 = 60;

fn limit(row: &Row, column: &str) -> Result<Option<u64>, Error> {
    Ok(row.try_get::<Option<i64>, _>(column)?.and_then(|limit| u64::try_from(limit).ok()))
}

/// Reads the columns of `project_limits`.
pub(super) fn limits_of(row: &Row) -> Result<ProjectLimits, Error> {
    Ok(ProjectLimits {
        requests_per_minute: limit(row, "requests_per_minute")?,
        active_runs: limit(row, "active_runs")?,
        tokens_per_minute: limit(row, "tokens_per_minute")?,
        tokens_per_day: limit(row, "tokens_per_day")?,
        tokens_per_month: limit(row, "tokens_per_month")?,
    })
}

#[async_trait]
impl AccessData for Backend {
    async fn key_by_digest(&self, digest: &str) -> Result<Option<StoredKey>, Error> {
        let row: Option<(String, String, Option<String>, Option<String>, Option<i64>)> = sqlx::query_as::<Db, _>(
            "select api_keys.id, api_keys.project_id, projects.status, service_accounts.role, expires_at
             from api_keys
             left join projects on projects.id = api_keys.project_id
             left join service_accounts on service_accounts.id = service_account_id
             where digest = $1",
        )
        .bind(digest)
        .fetch_optional(self.reader())
        .await?;
        Ok(row.map(|(id, project, status, role, expires_at)| StoredKey {
            owner_has_role: role.as_deref() != Some("none"),
            id: ApiKeyId::from_stored(id),
            project_is_active: project.is_empty() || status.as_deref() == Some("active"),
            project_id: (!project.is_empty()).then(|| ProjectId::from_stored(project)),
            expires_at: expires_at.map(Timestamp),
        }))
    }

    async fn has_keys(&self) -> Result<bool, Error> {
        let (exists,): (bool,) =
            sqlx::query_as::<Db, _>("select exists (select 1 from api_keys)").fetch_one(self.reader()).await?;
        Ok(exists)
    }

    async fn access_revision(&self) -> Result<i64, Error> {
        let (revision,): (i64,) =
            sqlx::query_as::<Db, _>("select revision from access_revision").fetch_one(self.reader()).await?;
        Ok(revision)
    }

    async fn record_key_use(&self, ids: &[ApiKeyId], at: Timestamp) -> Result<(), Error> {
        let ids: Vec<&str> = ids.iter().map(ApiKeyId::as_str).collect();
        sqlx::query::<Db>(concat!(
            "update api_keys set last_used_at = $1
             where (last_used_at is null or last_used_at <= $1 - $2) and id in (",
            json_texts!("$3"),
            ")"
        ))
        .bind(at.0)
        .bind(RECORD_USE_EVERY_S)
        .bind(to_json(&ids))
        .execute(self.writer())
        .await?;
        Ok(())
    }

    async fn project_limits(&self, project: &ProjectId) -> Result<ProjectLimits, Error> {
        let row = sqlx::query::<Db>(
            "select requests_per_minute, active_runs, tokens_per_minute, tokens_per_day, tokens_per_month
             from project_limits where project_id = $1",
        )
        .bind(project.as_str())
        .fetch_optional(self.reader())
        .await?;
        row.as_ref().map_or(Ok(ProjectLimits::default()), limits_of)
    }
}
