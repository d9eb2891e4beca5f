//! The tables `projects` and `project_limits`.

use async_trait::async_trait;
use sqlx::Row as _;

use super::access::limits_of;
use super::audit_log::{begin_change, record};
use super::page::{Condition, List, page_where, read};
use super::{Backend, Db, Row};
use crate::api::organization::project::ModifyProject;
use crate::api::organization::rate_limit::ModifyRateLimit;
use crate::api::organization::{Change, Event, Project, ProjectLimits};
use crate::api::{Page, PageQuery, ProjectId, Timestamp};
use crate::store::Error;
use crate::store::Projects;
use crate::store::pool::Transaction;

const COLUMNS: &str = "id, created_at, archived_at, name, external_key_id, residency";
const SELECT: &str = "select id, created_at, archived_at, name, external_key_id, residency from projects where id = $1";

fn from_row(row: &Row) -> Result<Project, Error> {
    Ok(Project {
        id: ProjectId::from_stored(row.try_get::<&str, _>("id")?),
        created_at: Timestamp(row.try_get("created_at")?),
        archived_at: row.try_get::<Option<i64>, _>("archived_at")?.map(Timestamp),
        name: row.try_get("name")?,
        external_key_id: row.try_get("external_key_id")?,
        residency: row.try_get("residency")?,
    })
}

/// Starts a transaction that changes a project or what belongs to it. Returns the project, which is active.
pub(super) async fn begin_project_change(db: &Backend, id: &ProjectId) -> Result<(Transaction<Db>, Project), Error> {
    let (tx, project) = begin_with_project(db, id).await?;
    if project.archived_at.is_some() {
        tx.rollback().await?;
        return Err(Error::ProjectArchived(project.name));
    }
    Ok((tx, project))
}

async fn begin_with_project(db: &Backend, id: &ProjectId) -> Result<(Transaction<Db>, Project), Error> {
    let mut tx = begin_change(db).await?;
    let Some(row) = sqlx::query::<Db>(SELECT).bind(id.as_str()).fetch_optional(&mut tx).await? else {
        tx.rollback().await?;
        return Err(Error::NoProject(id.clone()));
    };
    Ok((tx, from_row(&row)?))
}

#[async_trait]
impl Projects for Backend {
    async fn create_project(&self, project: &Project, change: &Change) -> Result<(), Error> {
        let mut tx = begin_change(self).await?;
        sqlx::query::<Db>(
            "insert into projects (id, created_at, status, name, external_key_id, residency)
             values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(project.id.as_str())
        .bind(project.created_at.0)
        .bind(project.status())
        .bind(&project.name)
        .bind(&project.external_key_id)
        .bind(&project.residency)
        .execute(&mut tx)
        .await?;
        record(&mut tx, &Event::project_created(project), change).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn project(&self, id: &ProjectId) -> Result<Option<Project>, Error> {
        let row = sqlx::query::<Db>(SELECT).bind(id.as_str()).fetch_optional(self.reader()).await?;
        row.as_ref().map(from_row).transpose()
    }

    async fn list_projects(&self, include_archived: bool, query: &PageQuery) -> Result<Page<Project>, Error> {
        let list = List { table: "projects", columns: COLUMNS, body: "name", filter: &[], parent: None };
        // A condition and not the filter, because a cursor may have been archived meanwhile.
        let active = ["active".to_owned()];
        let conditions: &[_] = if include_archived { &[] } else { &[Condition::OneOf("status", &active)] };
        read(self, &page_where(self, &list, conditions, query).await?, from_row)
    }

    async fn modify_project(&self, id: &ProjectId, request: &ModifyProject, change: &Change) -> Result<Project, Error> {
        let (mut tx, mut project) = begin_project_change(self, id).await?;
        request.clone().apply(&mut project);
        sqlx::query::<Db>("update projects set name = $2, external_key_id = $3 where id = $1")
            .bind(id.as_str())
            .bind(&project.name)
            .bind(&project.external_key_id)
            .execute(&mut tx)
            .await?;
        record(&mut tx, &Event::project_updated(id, request), change).await?;
        tx.commit().await?;
        Ok(project)
    }

    async fn archive_project(&self, id: &ProjectId, change: &Change) -> Result<Project, Error> {
        let (mut tx, mut project) = begin_with_project(self, id).await?;
        if project.archived_at.is_none() {
            project.archived_at = Some(change.at);
            sqlx::query::<Db>("update projects set status = $2, archived_at = $3 where id = $1")
                .bind(id.as_str())
                .bind(project.status())
                .bind(change.at.0)
                .execute(&mut tx)
                .await?;
            record(&mut tx, &Event::project_archived(id), change).await?;
            tx.commit().await?;
        } else {
            tx.rollback().await?;
        }
        Ok(project)
    }

    async fn modify_limits(
        &self,
        project: &ProjectId,
        request: &ModifyRateLimit,
        change: &Change,
    ) -> Result<ProjectLimits, Error> {
        let (mut tx, _) = begin_project_change(self, project).await?;
        let row = sqlx::query::<Db>(
            "select requests_per_minute, active_runs, tokens_per_minute, tokens_per_day, tokens_per_month
             from project_limits
             where project_id = $1",
        )
        .bind(project.as_str())
        .fetch_optional(&mut tx)
        .await?;
        let mut limits = row.as_ref().map_or(Ok(ProjectLimits::default()), limits_of)?;
        request.clone().apply(&mut limits);
        let column = |limit: Option<u64>| limit.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX));
        sqlx::query::<Db>(
            "insert into project_limits
                 (project_id, requests_per_minute, active_runs, tokens_per_minute, tokens_per_day, tokens_per_month)
             values ($1, $2, $3, $4, $5, $6)
             on conflict (project_id) do update set
                 requests_per_minute = excluded.requests_per_minute,
                 active_runs = excluded.active_runs,
                 tokens_per_minute = excluded.tokens_per_minute,
                 tokens_per_day = excluded.tokens_per_day,
                 tokens_per_month = excluded.tokens_per_month",
        )
        .bind(project.as_str())
        .bind(column(limits.requests_per_minute))
        .bind(column(limits.active_runs))
        .bind(column(limits.tokens_per_minute))
        .bind(column(limits.tokens_per_day))
        .bind(column(limits.tokens_per_month))
        .execute(&mut tx)
        .await?;
        record(&mut tx, &Event::rate_limit_updated(project, request), change).await?;
        tx.commit().await?;
        Ok(limits)
    }
}
