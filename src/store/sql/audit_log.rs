//! The table `audit_log`, and the transactions of changes that are recorded in it.

use async_trait::async_trait;
use sqlx::Row as _;

use super::page::{Condition, List, page_where, read};
use super::{Backend, Db, Row};
use crate::api::organization::audit_log::{AuditLogFilter, Bound};
use crate::api::organization::{Actor, AuditLog, Change, Event};
use crate::api::{AuditLogId, Ids, Page, PageQuery, ProjectId, Timestamp};
use crate::store::AuditLogs;
use crate::store::pool::Transaction;
use crate::store::{Error, from_json, to_json};

/// The entries with the names of their projects.
const TABLE: &str = "(
    select l.seq, l.id, l.created_at, l.type, l.project_id, l.resource_id, l.actor, l.actor_key_id, l.request_id,
           l.details, p.name as project_name
    from audit_log l
    left join projects p on p.id = l.project_id
) as entries";
const COLUMNS: &str = "id, created_at, type, project_id, actor, actor_key_id, request_id, details, project_name";

/// Starts a transaction that changes keys, projects or limits. The row lock of the revision serializes these
/// transactions.
pub(super) async fn begin_change(db: &Backend) -> Result<Transaction<Db>, Error> {
    let mut tx = db.begin().await?;
    sqlx::query::<Db>("update access_revision set revision = revision + 1").execute(&mut tx).await?;
    Ok(tx)
}

/// Adds an entry to the audit log.
pub(super) async fn record(tx: &mut Transaction<Db>, event: &Event, change: &Change) -> Result<(), Error> {
    let id: AuditLogId = Ids::unique_everywhere().generate();
    let (actor, actor_key_id) = change.actor.as_stored();
    sqlx::query::<Db>(
        "insert into audit_log
             (id, created_at, type, project_id, resource_id, actor, actor_key_id, request_id, details)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(id.as_str())
    .bind(change.at.0)
    .bind(event.kind)
    .bind(event.project.as_ref().map_or("", ProjectId::as_str))
    .bind(&event.resource_id)
    .bind(actor)
    .bind(actor_key_id)
    .bind(&change.request_id)
    .bind(to_json(&event.details))
    .execute(&mut *tx)
    .await?;
    Ok(())
}

fn from_row(row: &Row) -> Result<AuditLog, Error> {
    let id: &str = row.try_get("id")?;
    let project_id: &str = row.try_get("project_id")?;
    let project = (!project_id.is_empty()).then(|| ProjectId::from_stored(project_id));
    let project_name: Option<String> = row.try_get("project_name")?;
    Ok(AuditLog {
        id: AuditLogId::from_stored(id),
        effective_at: Timestamp(row.try_get("created_at")?),
        kind: row.try_get("type")?,
        project: project.map(|project| (project, project_name.unwrap_or_default())),
        actor: Actor::from_stored(row.try_get("actor")?, row.try_get("actor_key_id")?),
        request_id: row.try_get("request_id")?,
        details: from_json("audit_log", id, row.try_get("details")?)?,
    })
}

#[async_trait]
impl AuditLogs for Backend {
    async fn list_audit_logs(&self, filter: &AuditLogFilter, query: &PageQuery) -> Result<Page<AuditLog>, Error> {
        let lists = [
            ("project_id", &filter.project_ids),
            ("type", &filter.event_types),
            ("actor_key_id", &filter.actor_ids),
            ("resource_id", &filter.resource_ids),
        ];
        let lists = lists.into_iter().filter(|(_, values)| !values.is_empty());
        let bounds = filter.effective_at.iter().map(|(bound, seconds)| {
            let operator = match bound {
                Bound::After => " > ",
                Bound::From => " >= ",
                Bound::Before => " < ",
                Bound::Until => " <= ",
            };
            Condition::Compare("created_at", operator, *seconds)
        });
        let conditions: Vec<_> = lists.map(|(column, values)| Condition::OneOf(column, values)).chain(bounds).collect();
        let list = List { table: TABLE, columns: COLUMNS, body: "details", filter: &[], parent: None };
        let rows = page_where(self, &list, &conditions, query).await?;
        read(self, &rows, from_row)
    }
}
