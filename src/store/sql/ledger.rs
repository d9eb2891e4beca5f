//! The tables `model_calls` and `vector_store_sizes`, and the usage of `code_sessions`.

use std::ops::Range;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row as _};

use super::{Backend, Db, Row};
use crate::api::organization::usage::{
    CallKind, CallOrigin, DAY_S, GroupField, ModelCall, UsageGroup, UsageKind, UsagePage, UsageQuery,
};
use crate::api::{ApiKeyId, AssistantId, RunId, ThreadId, Timestamp};
use crate::metrics::Metrics;
use crate::store::{Error, Ledger, USAGE_GROUPS_MAX, to_json};

/// Inserts a row for one call.
pub(super) const INSERT_CALL: &str = concat!(
    "insert into model_calls
         (kind, project_id, api_key_id, assistant_id, thread_id, run_id, model, created_at, input_tokens, cached_tokens,
          output_tokens, stood, requests)
     values ($1, $2, $3, $4, $5, $6, $7, ",
    now!("$12"),
    ", $8, $9, $10, $11, 1)"
);

/// The columns by which usage can be grouped. Users, batches and service tiers do not exist.
const GROUP_COLUMNS: [(GroupField, &str); 5] = [
    (GroupField::Project, "project_id"),
    (GroupField::ApiKey, "api_key_id"),
    (GroupField::Model, "model"),
    (GroupField::Assistant, "assistant_id"),
    (GroupField::Thread, "thread_id"),
];

/// The text columns of a call.
pub(super) struct CallTexts<'a> {
    pub kind: &'static str,
    pub project_id: &'a str,
    pub api_key_id: &'a str,
    pub assistant_id: &'a str,
    pub thread_id: &'a str,
    pub run_id: &'a str,
    pub model: String,
}

impl<'a> CallTexts<'a> {
    pub fn of(call: &'a ModelCall) -> Self {
        let origin = call.origin.as_ref();
        let text = |id: fn(&CallOrigin) -> &str| origin.map(id).unwrap_or_default();
        Self {
            kind: call.kind.name(),
            project_id: call.scope.as_str(),
            api_key_id: call.api_key_id.as_ref().map(ApiKeyId::as_str).unwrap_or_default(),
            assistant_id: text(|origin| AssistantId::as_str(&origin.assistant_id)),
            thread_id: text(|origin| ThreadId::as_str(&origin.thread_id)),
            run_id: text(|origin| RunId::as_str(&origin.run_id)),
            // Names come from clients, and Postgres does not support this character.
            model: call.model.replace('\0', "\u{fffd}"),
        }
    }
}

/// Returns the statement that inserts a row for a call at the current time, or at `fixed`, the time of a manual clock.
pub(super) fn insert_call(call: &ModelCall, fixed: Option<i64>) -> sqlx::query::Query<'_, Db, Arguments> {
    let texts = CallTexts::of(call);
    sqlx::query::<Db>(INSERT_CALL)
        .bind(texts.kind)
        .bind(texts.project_id)
        .bind(texts.api_key_id)
        .bind(texts.assistant_id)
        .bind(texts.thread_id)
        .bind(texts.run_id)
        .bind(texts.model)
        .bind(i64::from(call.input_tokens))
        .bind(i64::from(call.cached_tokens))
        .bind(i64::from(call.output_tokens))
        .bind(call.stood)
        .bind(fixed)
}

/// Counts the tokens of a call that was recorded.
pub(super) fn count_tokens(metrics: &Metrics, call: &ModelCall) {
    let operation = match call.kind {
        CallKind::Completions => "chat",
        CallKind::Embeddings => "embeddings",
    };
    metrics.tokens_used(operation, &call.model, call.input_tokens, call.output_tokens);
}

type Arguments = <Db as sqlx::Database>::Arguments;

#[async_trait]
impl Ledger for Backend {
    async fn record_call(&self, call: &ModelCall) -> Result<(), Error> {
        insert_call(call, self.fixed_time()).execute(self.writer()).await?;
        count_tokens(&self.metrics, call);
        Ok(())
    }

    async fn usage(&self, query: &UsageQuery) -> Result<UsagePage, Error> {
        if query.selects_nothing {
            return Ok(query.page(Vec::new(), false));
        }
        let mut groups = match query.kind {
            UsageKind::Calls(kind) => self.call_groups(query, kind).await?,
            UsageKind::VectorStores => self.size_groups(query).await?,
            UsageKind::CodeInterpreterSessions => self.session_groups(query).await?,
        };
        let has_more_groups = groups.len() > USAGE_GROUPS_MAX;
        groups.truncate(USAGE_GROUPS_MAX);
        Ok(query.page(groups, has_more_groups))
    }

    async fn roll_up_calls(&self, before: Timestamp, limit: u32) -> Result<u64, Error> {
        self.replace_calls_by_sums(before, limit).await
    }

    async fn measure_vector_stores(&self, now: Timestamp) -> Result<(), Error> {
        let day = now.day_start().0;
        // Read first, so that the database is not locked meanwhile. A project that had vector stores earlier on this day has
        // 0 bytes if they are deleted.
        let sizes: Vec<(String, i64)> = sqlx::query_as::<Db, _>(
            "select project_id, cast(sum(usage_bytes) as bigint)
             from (
                 select file.project_id, file.usage_bytes
                 from vector_store_files as file
                 join vector_stores as store on store.id = file.vector_store_id
                 where store.status = 'live' and file.status <> 'deleted'
                 union all
                 select project_id, 0 from vector_store_sizes where day = $1
             ) as sizes
             group by project_id
             order by project_id",
        )
        .bind(day)
        .fetch_all(self.reader())
        .await?;
        sqlx::query::<Db>(concat!(
            "insert into vector_store_sizes (project_id, day, usage_bytes)
             select id, cast($1 as bigint), number from (",
            json_pairs!("$2"),
            ") as sizes
             where true
             on conflict (day, project_id) do update set usage_bytes = excluded.usage_bytes"
        ))
        .bind(day)
        .bind(to_json(&sizes))
        .execute(self.writer())
        .await?;
        Ok(())
    }
}

impl Backend {
    /// Returns the groups of model calls in the buckets of a page, at most one more than a page has.
    async fn call_groups(&self, query: &UsageQuery, kind: CallKind) -> Result<Vec<UsageGroup>, Error> {
        let filters = [("project_id", &query.projects), ("api_key_id", &query.api_keys), ("model", &query.models)];
        let filters = || filters.iter().filter(|(_, values)| !values.is_empty());
        let range = query.page_range();
        let sql = statement(query, filters().map(|(column, values)| (*column, values.len() == 1)));
        let mut statement = sqlx::query::<Db>(AssertSqlSafe(sql))
            .bind(kind.name())
            .bind(range.start)
            .bind(range.end)
            .bind(query.width.seconds())
            .bind(i64::try_from(USAGE_GROUPS_MAX + 1).unwrap_or(i64::MAX))
            .bind(i64::from(query.cursor.skip));
        for (_, values) in filters() {
            // A single value is compared directly, so that the index by project is used.
            statement = statement.bind(if let [value] = values.as_slice() { value.clone() } else { to_json(values) });
        }
        let rows = statement.fetch_all(self.reader()).await?;
        rows.iter().map(|row| group_from_row(row, query)).collect()
    }

    /// Returns the groups of the sizes of vector stores, like [`Self::call_groups`].
    async fn size_groups(&self, query: &UsageQuery) -> Result<Vec<UsageGroup>, Error> {
        let range = query.page_range();
        // The size of a day counts if the range begins within the day.
        let range = range.start - range.start % DAY_S..range.end;
        let sums = "cast(sum(usage_bytes) as bigint) as usage_bytes";
        let rows = self.project_sums(query, range, "vector_store_sizes", "day", sums).await?;
        let group = |row: &Row| Ok(UsageGroup { usage_bytes: row.try_get("usage_bytes")?, ..project_group(row)? });
        rows.iter().map(group).collect()
    }

    /// Returns the groups of the sessions of the code interpreter, like [`Self::call_groups`].
    async fn session_groups(&self, query: &UsageQuery) -> Result<Vec<UsageGroup>, Error> {
        let sums = "count(*) as sessions, cast(sum(run_ms) as bigint) as run_ms";
        let rows = self.project_sums(query, query.page_range(), "code_sessions", "opened_at", sums).await?;
        let group = |row: &Row| {
            let (sessions, run_ms) = (row.try_get("sessions")?, row.try_get("run_ms")?);
            Ok(UsageGroup { sessions, run_ms, ..project_group(row)? })
        };
        rows.iter().map(group).collect()
    }

    /// Returns sums of the rows of a table whose times are in a range: one row for each bucket, and for each project if the
    /// query asks for that.
    async fn project_sums(
        &self,
        query: &UsageQuery,
        range: Range<i64>,
        table: &str,
        time: &str,
        sums: &str,
    ) -> Result<Vec<Row>, Error> {
        let by_project = query.group_by.contains(&GroupField::Project);
        let project = if by_project { "project_id" } else { "cast('' as text)" };
        let rows = sqlx::query::<Db>(AssertSqlSafe(format!(
            concat!(
                "select {time} - {time} % $6 as bucket, {project} as project_id, {sums}
                 from {table}
                 where {time} >= $1 and {time} < $2 and ($3 = '[]' or project_id in (",
                json_texts!("$3"),
                "))
                 group by 1, 2
                 order by 1, 2
                 limit $4 offset $5"
            ),
            time = time,
            project = project,
            sums = sums,
            table = table
        )))
        .bind(range.start)
        .bind(range.end)
        .bind(to_json(&query.projects))
        .bind(i64::try_from(USAGE_GROUPS_MAX + 1).unwrap_or(i64::MAX))
        .bind(i64::from(query.cursor.skip))
        .bind(query.width.seconds())
        .fetch_all(self.reader())
        .await?;
        Ok(rows)
    }
}

/// Returns the group of a row of [`Backend::project_sums`], without sums.
fn project_group(row: &Row) -> Result<UsageGroup, Error> {
    let (bucket, project_id) = (row.try_get("bucket")?, row.try_get("project_id")?);
    Ok(UsageGroup { bucket, project_id, ..UsageGroup::default() })
}

/// Returns the statement of a query. Each filter is a column and whether it is compared with a single value; the values are
/// bound in this order, from `$7` on.
fn statement(query: &UsageQuery, filters: impl Iterator<Item = (&'static str, bool)>) -> String {
    let columns: Vec<&str> = std::iter::once("1").chain(group_columns(query)).collect();
    let by = columns.join(", ");
    let columns: Vec<&str> =
        std::iter::once("created_at - created_at % $4 as bucket").chain(group_columns(query)).collect();
    let columns = columns.join(", ");
    let filters = filters.enumerate().map(|(index, (column, is_single))| {
        let parameter = index + 7;
        if is_single {
            format!("and {column} = ${parameter}")
        } else {
            format!(concat!("and {} in (", json_texts!("${}"), ")"), column, parameter)
        }
    });
    let filters = filters.collect::<Vec<_>>().join(" ");
    format!(
        "select {columns},
                cast(sum(input_tokens) as bigint) as input_tokens,
                cast(sum(cached_tokens) as bigint) as cached_tokens,
                cast(sum(output_tokens) as bigint) as output_tokens,
                cast(sum(requests) as bigint) as requests
         from model_calls
         where kind = $1 and created_at >= $2 and created_at < $3 {filters}
         group by {by}
         order by {by}
         limit $5 offset $6"
    )
}

fn group_columns(query: &UsageQuery) -> impl Iterator<Item = &'static str> {
    GROUP_COLUMNS.iter().filter(|(field, _)| query.group_by.contains(field)).map(|(_, column)| *column)
}

fn group_from_row(row: &Row, query: &UsageQuery) -> Result<UsageGroup, Error> {
    let mut group = UsageGroup {
        bucket: row.try_get("bucket")?,
        input_tokens: row.try_get("input_tokens")?,
        cached_tokens: row.try_get("cached_tokens")?,
        output_tokens: row.try_get("output_tokens")?,
        requests: row.try_get("requests")?,
        ..UsageGroup::default()
    };
    for column in group_columns(query) {
        let value = match column {
            "project_id" => &mut group.project_id,
            "api_key_id" => &mut group.api_key_id,
            "model" => &mut group.model,
            "assistant_id" => &mut group.assistant_id,
            _ => &mut group.thread_id,
        };
        *value = row.try_get(column)?;
    }
    Ok(group)
}
