//! The Postgres driver. Several servers can share one database. The statements that both drivers share are in `sql/`.
//!
//! A change of several tables is one statement with common table expressions: one round trip, one transaction.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};

use super::pool::{Pool, Transaction};
use super::unreadable::Unreadable;
use super::{Commit, Error, FIRST_VERSION, Inspection, NewChunk, NewRun, SavedText, Settings, Start, Store, to_json};
use crate::api::organization::usage::DAY_S;
use crate::api::{ApiKeyId, Message, RunId, RunStep, RunStepId, Scope, Thread, Timestamp, VectorStoreId};
use crate::clock::Clock;
use crate::metrics::Metrics;

/// The current time in Unix seconds: the value of the parameter `$fixed`, or the database's time if it is null. The
/// expression is stable, so that an index can be used.
macro_rules! now {
    ($fixed:literal) => {
        concat!("coalesce(", $fixed, "::bigint, floor(extract(epoch from statement_timestamp()))::bigint)")
    };
}

/// The end of a lease that starts now, rounded up, so that it is not shorter than requested.
macro_rules! lease_end {
    ($fixed:literal, $seconds:literal) => {
        concat!(
            "(coalesce(",
            $fixed,
            "::bigint, floor(extract(epoch from clock_timestamp()))::bigint + 1) + ",
            $seconds,
            "::bigint)"
        )
    };
}

/// The strings of a JSON array, as rows.
macro_rules! json_texts {
    ($array:literal) => {
        concat!("select jsonb_array_elements_text(", $array, "::jsonb)")
    };
}

/// The pairs of a string and a number in a JSON array, as rows (id, number).
macro_rules! json_pairs {
    ($array:literal) => {
        concat!(
            "select pair->>0 as id, (pair->>1)::bigint as number from jsonb_array_elements(",
            $array,
            "::jsonb) as pair"
        )
    };
}

/// The byte strings of a JSON array of hex strings, as rows (hash).
macro_rules! json_blobs {
    ($array:literal) => {
        concat!("select decode(digits, 'hex') as hash from jsonb_array_elements_text(", $array, "::jsonb) as digits")
    };
}

/// Locks the selected rows against changes until the end of the transaction.
macro_rules! for_update {
    () => {
        " for update"
    };
}

/// Locks the selected rows against deletion until the end of the transaction.
macro_rules! for_share {
    () => {
        " for share"
    };
}

/// Locks the selected rows, and leaves out those that are locked.
macro_rules! skip_locked {
    () => {
        " for update skip locked"
    };
}

#[path = "sql/access.rs"]
mod access;
#[path = "sql/api_keys.rs"]
mod api_keys;
#[path = "sql/assistants.rs"]
mod assistants;
#[path = "sql/audit_log.rs"]
mod audit_log;
#[path = "sql/budgets.rs"]
mod budgets;
#[path = "sql/code.rs"]
mod code;
#[path = "sql/files.rs"]
mod files;
#[path = "sql/ingestion.rs"]
mod ingestion;
#[path = "sql/jobs.rs"]
mod jobs;
#[path = "sql/ledger.rs"]
mod ledger;
#[path = "sql/messages.rs"]
mod messages;
#[path = "sql/page.rs"]
mod page;
#[path = "pgvector.rs"]
mod pgvector;
#[path = "sql/projects.rs"]
mod projects;
#[path = "sql/resources.rs"]
mod resources;
#[path = "sql/runs.rs"]
mod runs;
#[path = "sql/schema.rs"]
mod schema;
#[path = "sql/search_data.rs"]
mod search_data;
#[path = "sql/segments.rs"]
mod segments;
#[path = "sql/service_accounts.rs"]
mod service_accounts;
#[path = "sql/store_files.rs"]
mod store_files;
#[path = "sql/threads.rs"]
mod threads;
#[path = "sql/uploads.rs"]
mod uploads;
#[path = "sql/vector_stores.rs"]
mod vector_stores;

use ingestion::ChunkOwner;
use pgvector::remove_vectors;
use runs::Written;
use store_files::NewRow;

/// Maximum number of reads of the database's clock, of which the fastest counts: a slow one says little.
const CLOCK_READS_MAX: usize = 3;
/// A read of the database's clock that is this fast needs no other.
const CLOCK_ROUND_TRIP_MAX: Duration = Duration::from_millis(50);

type Db = sqlx::Postgres;
type Row = sqlx::postgres::PgRow;

/// Returns the migrations. A migration of a newer release in the database is not an error: during an upgrade, servers of
/// both releases start.
fn migrations() -> sqlx::migrate::Migrator {
    let mut migrations = sqlx::migrate!("migrations/postgres");
    migrations.set_ignore_missing(true);
    migrations
}

/// The number of tables with a name: 0 or 1.
const TABLE_EXISTS: &str = "select count(*) from pg_class where oid = to_regclass($1::text)";

/// The parameters of a URL that are read.
const URL_PARAMETERS: [&str; 19] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "options[",
];

/// The channel on which servers notify each other of changed runs.
const RUN_CHANGES: &str = "assistd_run_changes";
/// Pause before reconnecting to the channel. In the meantime, servers detect changes by comparing runs with the store.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

/// Pause before retrying to connect to a database that is unavailable at startup.
const START_PAUSE: Duration = Duration::from_millis(500);
/// How often the wait for the database at startup is logged.
const START_LOG_EVERY: Duration = Duration::from_secs(5);

/// Claims the oldest due run of the next owner, or of the first owner if none is after the last one. With `for update skip
/// locked`, servers that claim concurrently get different runs without waiting.
const CLAIM_RUN: &str = concat!(
    "with later as (
        select id, due_at from runs
        where owner > $3 and due_at <= ",
    now!("$1"),
    "     and attempts <= $5 and id not in (",
    json_texts!("$4"),
    ")
        order by owner, due_at, seq limit 1 for update skip locked
    ), earlier as (
        select id, due_at from runs
        where not exists (select 1 from later) and owner <= $3 and due_at <= ",
    now!("$1"),
    "     and attempts <= $5 and id not in (",
    json_texts!("$4"),
    ")
        order by owner, due_at, seq limit 1 for update skip locked
    ), next as (
        select id, due_at from later union all select id, due_at from earlier
    )
    update runs
    set due_at = ",
    lease_end!("$1", "$2"),
    ", version = version + 1, claims = claims + 1, attempts = attempts + 1
    from next
    where runs.id = next.id
    returning runs.id, version, runs.due_at, revision, claims, attempts, last_failure, owner, spec, state, metadata,
              next.due_at as due_before"
);

/// Claims the file that has been due longest of the next vector store, like [`CLAIM_RUN`].
const CLAIM_STORE_FILE: &str = concat!(
    "with later as (
        select id, due_at from vector_store_files
        where vector_store_id > $3 and due_at <= ",
    now!("$1"),
    "     and attempts <= $5 and id not in (",
    json_texts!("$4"),
    ")
        order by vector_store_id, due_at, seq limit 1 for update skip locked
    ), earlier as (
        select id, due_at from vector_store_files
        where not exists (select 1 from later) and vector_store_id <= $3 and due_at <= ",
    now!("$1"),
    "     and attempts <= $5 and id not in (",
    json_texts!("$4"),
    ")
        order by vector_store_id, due_at, seq limit 1 for update skip locked
    ), next as (
        select id, due_at from later union all select id, due_at from earlier
    )
    update vector_store_files as file
    set due_at = ",
    lease_end!("$1", "$2"),
    ", claims = claims + 1, attempts = attempts + 1
    from next
    where file.id = next.id
    returning file.id, project_id, vector_store_id, file_id, filename, chunking, chunks, language, embedding_model,
              claims, attempts, last_failure, next.due_at as due_before"
);

/// The common table expression of a commit that inserts the calls of the run.
macro_rules! recorded_calls {
    () => {
        concat!(
            ", recorded_call as (
                insert into model_calls
                    (kind, project_id, api_key_id, assistant_id, thread_id, run_id, model, created_at, input_tokens,
                     cached_tokens, output_tokens, stood, requests)
                select 'completions', run.project_id, $18, $19, run.thread_id, $1, $20, ",
            now!("$16"),
            "       , call.input, call.cached, call.output, call.stood, 1
                from run, unnest($21::bigint[], $22::bigint[], $23::bigint[], $24::boolean[])
                    as call (input, cached, output, stood)
            )"
        )
    };
}

/// The statement of a commit. `$more` are optional common table expressions.
macro_rules! commit_sql {
    ($($more:expr),*) => {
        concat!(
            "with run as (
                update runs
                set active = active and $3,
                    waits = waits and $3,
                    version = version + 1,
                    revision = revision + 1,
                    due_at = case
                        when waits then null
                        when $4 = 0 then due_at
                        when $4 = 1 then ",
            lease_end!("$16", "$15"),
            "            when $4 = 2 then ",
            now!("$16"),
            "        end,
                    claims = claims + case when $4 = 1 then 1 else 0 end,
                    attempts = case when $17 then 0 else attempts end + case when $4 = 1 then 1 else 0 end,
                    last_failure = case when $17 then null else last_failure end,
                    state = $5
                where id = $1 and version = $2
                returning project_id, thread_id, sees_to, claims
            ), thread as (
                update threads
                set active_run = case when $3 then active_run else nullif(active_run, $1) end,
                    message_seq = message_seq + case when $6::text is null then 0 else 1 end,
                    message_at = greatest(message_at, $7)
                from run
                where threads.id = run.thread_id and ($6 is not null or not $3)
                returning message_seq, message_at
            ), new_message as (
                insert into messages (id, project_id, thread_id, seq, place, created_at, run_id, metadata, body)
                select $6, run.project_id, run.thread_id, thread.message_seq, run.sees_to, thread.message_at, $1, $8, $9
                from run, thread
                where $6 is not null
            ), changed_message as (
                update messages set body = $11 from run where messages.id = $10 returning metadata
            ), step as (
                insert into run_steps (id, project_id, run_id, thread_id, created_at, body)
                select s.id, run.project_id, $1, run.thread_id, s.created_at, s.body
                from run, unnest($12::text[], $13::bigint[], $14::text[]) as s (id, created_at, body)
                on conflict (id) do update set body = excluded.body
            )",
            $($more,)*
            "
            select (select claims from run), (select metadata from changed_message)"
        )
    };
}

/// The statement of a commit.
const COMMIT: &str = commit_sql!();
/// The statement of a commit that also records calls.
const COMMIT_AND_RECORD_CALLS: &str = commit_sql!(recorded_calls!());
/// The statement of a commit that records calls and deletes steps, which is rare.
const COMMIT_AND_REMOVE_STEPS: &str = commit_sql!(
    recorded_calls!(),
    ", removed_step as (
        delete from run_steps using run where run_steps.run_id = $1 and run_steps.id = any($25::text[])
    )"
);

/// Returns the duration in whole seconds.
fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// The Postgres driver.
#[derive(Debug)]
pub struct Backend {
    pool: Pool<Db>,
    options: PgConnectOptions,
    display_name: String,
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
    unreadable: Unreadable,
    /// What finds vectors in the database, if anything does.
    vector_search: Option<String>,
    /// Locked while this server builds an index of vectors or waits for another server that does, on one connection.
    building: tokio::sync::Mutex<()>,
}

impl Backend {
    pub(super) async fn open(settings: &Settings, clock: Arc<Clock>, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let options = options(&settings.url)?;
        let display_name = display_name(&options);
        let mut first = connect(&options, settings, &display_name).await?;
        schema::read_schema(&mut first).await?.check_usable(schema::known_version())?;
        // Uses an advisory lock, so that several servers can start concurrently.
        migrations().run(&mut first).await.map_err(Error::Migration)?;
        schema::record_release(&mut first).await?;
        let vector_search = pgvector::prepare(&mut first).await;
        first.close().await?;
        let (size, timeout) = (settings.connections_max, settings.statement_timeout);
        let pool = Pool::new(options.clone(), size, timeout, display_name.as_str(), metrics.pool("postgres"));
        let backend = Self {
            pool,
            options,
            display_name,
            clock,
            metrics,
            unreadable: Unreadable::default(),
            vector_search,
            building: tokio::sync::Mutex::default(),
        };
        backend.synchronize_clock().await?;
        Ok(backend)
    }

    /// Returns the time of a manual clock.
    fn fixed_time(&self) -> Option<i64> {
        self.clock.fixed().map(|now| now.0)
    }

    fn reader(&self) -> &Pool<Db> {
        &self.pool
    }

    fn writer(&self) -> &Pool<Db> {
        &self.pool
    }

    async fn begin(&self) -> Result<Transaction<Db>, Error> {
        Ok(self.pool.begin("begin").await?)
    }

    async fn insert_thread(&self, scope: &Scope, thread: &Thread, messages: &[Message]) -> Result<(), Error> {
        insert_thread(&self.pool, scope, thread, messages).await
    }

    async fn insert_message(
        &self,
        scope: &Scope,
        message: &Message,
        while_busy: bool,
    ) -> Result<Option<Timestamp>, Error> {
        insert_message(&self.pool, scope, message, while_busy).await
    }

    async fn insert_run(&self, new: &NewRun<'_>) -> Result<bool, Error> {
        insert_run(&self.pool, self.fixed_time(), new).await
    }

    /// Writes a commit. Returns `None` if the run is no longer at the commit's version.
    async fn write_commit(&self, commit: &Commit<'_>) -> Result<Option<Written>, Error> {
        let new = commit.new_message;
        let changed = commit.changed_message;
        let (next_lease, lease) = runs::next_lease_columns(commit.next_lease);
        let removes = !commit.removed_steps.is_empty();
        let sql = match commit.calls {
            _ if removes => COMMIT_AND_REMOVE_STEPS,
            [] => COMMIT,
            _ => COMMIT_AND_RECORD_CALLS,
        };
        let mut query = sqlx::query_as::<Db, _>(sql)
            .bind(commit.run.spec.id.as_str())
            .bind(commit.version)
            .bind(!commit.run.state.has_ended())
            .bind(next_lease)
            .bind(runs::state_column(commit.run))
            .bind(new.map(|message| message.id.as_str()))
            .bind(new.map_or(0, |message| message.created_at.0))
            .bind(new.map(|message| to_json(&message.metadata)))
            .bind(new.map(to_json))
            .bind(changed.map(|message| message.id.as_str()))
            .bind(changed.map(to_json))
            .bind(commit.steps.iter().map(|step| step.id.as_str()).collect::<Vec<_>>())
            .bind(commit.steps.iter().map(|step| step.created_at.0).collect::<Vec<_>>())
            .bind(commit.steps.iter().map(to_json::<RunStep>).collect::<Vec<_>>())
            .bind(lease)
            .bind(self.fixed_time())
            .bind(commit.made_progress);
        if removes || !commit.calls.is_empty() {
            let spec = &commit.run.spec;
            query = query
                .bind(spec.api_key_id.as_ref().map(ApiKeyId::as_str).unwrap_or_default())
                .bind(spec.assistant_id.as_str())
                .bind(spec.model.replace('\0', "\u{fffd}"))
                .bind(commit.calls.iter().map(|call| i64::from(call.input_tokens)).collect::<Vec<_>>())
                .bind(commit.calls.iter().map(|call| i64::from(call.cached_tokens)).collect::<Vec<_>>())
                .bind(commit.calls.iter().map(|call| i64::from(call.output_tokens)).collect::<Vec<_>>())
                .bind(commit.calls.iter().map(|call| call.stood).collect::<Vec<_>>());
        }
        if removes {
            query = query.bind(commit.removed_steps.iter().map(RunStepId::as_str).collect::<Vec<_>>());
        }
        let (claims, metadata): (Option<i64>, Option<String>) = query.fetch_one(&self.pool).await?;
        Ok(claims.map(|lease| Written { lease, metadata }))
    }

    /// Deletes old rows of the ledger and inserts their sums, in one statement. A row is deleted by only one of the servers
    /// that do this concurrently.
    async fn replace_calls_by_sums(&self, before: Timestamp, limit: u32) -> Result<u64, Error> {
        let (count,): (i64,) = sqlx::query_as::<Db, _>(
            "with old as (
                delete from model_calls
                where seq in (
                    select seq from model_calls
                    where created_at < $1 and (run_id <> '' or created_at % $3 <> 0)
                    order by created_at
                    limit $2
                    for update skip locked
                )
                returning *
            ), day as (
                insert into model_calls
                    (kind, project_id, api_key_id, assistant_id, thread_id, run_id, model, created_at, input_tokens,
                     cached_tokens, output_tokens, stood, requests)
                select kind, project_id, api_key_id, assistant_id, '', '', model, created_at - created_at % $3,
                       sum(input_tokens)::bigint, sum(cached_tokens)::bigint, sum(output_tokens)::bigint, stood,
                       sum(requests)::bigint
                from old
                group by kind, project_id, api_key_id, assistant_id, model, created_at - created_at % $3, stood
            )
            select count(*) from old",
        )
        .bind(before.0)
        .bind(i64::from(limit))
        .bind(DAY_S)
        .fetch_one(&self.pool)
        .await?;
        Ok(count.unsigned_abs())
    }

    /// Locks the runs before the messages, so that an older text never overwrites that of a commit.
    async fn write_messages(&self, texts: &[SavedText<'_>]) -> Result<Vec<RunId>, Error> {
        let rows: Vec<(String,)> = sqlx::query_as::<Db, _>(
            "with text as (
                select * from unnest($1::text[], $2::bigint[], $3::text[], $4::text[])
                    as t (run_id, version, message_id, body)
            ), run as (
                update runs set revision = revision + 1 from text
                where runs.id = text.run_id and runs.version = text.version
                returning runs.id
            ), message as (
                update messages set body = text.body from text, run
                where run.id = text.run_id and messages.id = text.message_id
            )
            select id from run",
        )
        .bind(texts.iter().map(|text| text.run.as_str()).collect::<Vec<_>>())
        .bind(texts.iter().map(|text| text.version).collect::<Vec<_>>())
        .bind(texts.iter().map(|text| text.message.id.as_str()).collect::<Vec<_>>())
        .bind(texts.iter().map(|text| to_json(text.message)).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|(id,)| RunId::from_stored(id)).collect())
    }
}

/// Inserts a thread and its first messages.
async fn insert_thread<'e>(
    db: impl sqlx::Executor<'e, Database = Db>,
    scope: &Scope,
    thread: &Thread,
    messages: &[Message],
) -> Result<(), Error> {
    let rows = MessageRows::new(messages);
    sqlx::query::<Db>(
        "with thread as (
            insert into threads (id, project_id, created_at, version, message_seq, message_at, body)
            values ($1, $8, $2, 1, $4, $2, $3)
        )
        insert into messages (id, project_id, thread_id, seq, created_at, metadata, body)
        select m.id, $8, $1, m.seq, $2, m.metadata, m.body
        from unnest($5::text[], $6::text[], $7::text[]) with ordinality as m (id, metadata, body, seq)",
    )
    .bind(thread.id.as_str())
    .bind(thread.created_at.0)
    .bind(to_json(thread))
    .bind(rows.count())
    .bind(rows.ids)
    .bind(rows.metadata)
    .bind(rows.bodies)
    .bind(scope.as_str())
    .execute(db)
    .await?;
    Ok(())
}

/// Inserts a message. Returns the message's time, or `None` if the thread is locked or does not exist.
async fn insert_message<'e>(
    db: impl sqlx::Executor<'e, Database = Db>,
    scope: &Scope,
    message: &Message,
    while_busy: bool,
) -> Result<Option<Timestamp>, Error> {
    let time: Option<(i64,)> = sqlx::query_as::<Db, _>(
        "with thread as (
            update threads set message_seq = message_seq + 1, message_at = greatest(message_at, $2)
            where id = $1
              and project_id = $7
              and ($6 or active_run is null
                   and not exists (select 1 from runs where thread_id = $1 and waits))
            returning message_seq, message_at
        )
        insert into messages (id, project_id, thread_id, seq, created_at, metadata, body)
        select $3, $7, $1, message_seq, message_at, $4, $5 from thread
        returning created_at",
    )
    .bind(message.thread_id.as_str())
    .bind(message.created_at.0)
    .bind(message.id.as_str())
    .bind(to_json(&message.metadata))
    .bind(to_json(message))
    .bind(while_busy)
    .bind(scope.as_str())
    .fetch_optional(db)
    .await?;
    Ok(time.map(|(seconds,)| Timestamp(seconds)))
}

/// Inserts a run. Returns false if the thread does not exist, or is locked and the run does not wait.
async fn insert_run<'e>(
    db: impl sqlx::Executor<'e, Database = Db>,
    fixed_time: Option<i64>,
    new: &NewRun<'_>,
) -> Result<bool, Error> {
    let rows = MessageRows::new(new.messages);
    let sql = match new.thread {
        Some(_) => concat!(
            "with thread as (
                insert into threads
                    (id, project_id, created_at, version, message_seq, message_at, active_run, body)
                values ($1, $18, $4, 1, $10, $4, case when $6::bigint = 2 then null else $2 end, $14)
                returning 0::bigint as seq, message_at
            ), message as (
                insert into messages (id, project_id, thread_id, seq, created_at, metadata, body)
                select m.id, $18, $1, thread.seq + m.seq, thread.message_at, m.metadata, m.body
                from thread, unnest($11::text[], $12::text[], $13::text[]) with ordinality
                    as m (id, metadata, body, seq)
            )
            insert into runs
                (id, project_id, thread_id, active, waits, version, created_at, expires_at, due_at, claims, attempts,
                 owner, sees_to, spec, state, metadata)
            select $2, $18, $1, $6 <> 2, $6 = 2, $3, $4, $5,
                   case $6 when 0 then ",
            lease_end!("$16", "$15"),
            "           when 1 then ",
            now!("$16"),
            "      end,
                   case $6 when 0 then 1 else 0 end, case $6 when 0 then 1 else 0 end, $17, thread.seq + $10,
                   $7, $8, $9
            from thread"
        ),
        None => concat!(
            "with thread as (
                update threads
                set active_run = case when $6::bigint = 2 then active_run else $2 end,
                    message_seq = message_seq + $10,
                    message_at = greatest(message_at, $4)
                where id = $1 and project_id = $18 and $14::text is null
                  and ($6 = 2 or active_run is null
                       and not exists (select 1 from runs where thread_id = $1 and waits))
                returning message_seq - $10 as seq, message_at
            ), message as (
                insert into messages (id, project_id, thread_id, seq, created_at, metadata, body)
                select m.id, $18, $1, thread.seq + m.seq, thread.message_at, m.metadata, m.body
                from thread, unnest($11::text[], $12::text[], $13::text[]) with ordinality
                    as m (id, metadata, body, seq)
            )
            insert into runs
                (id, project_id, thread_id, active, waits, version, created_at, expires_at, due_at, claims, attempts,
                 owner, sees_to, spec, state, metadata)
            select $2, $18, $1, $6 <> 2, $6 = 2, $3, $4, $5,
                   case $6 when 0 then ",
            lease_end!("$16", "$15"),
            "           when 1 then ",
            now!("$16"),
            "      end,
                   case $6 when 0 then 1 else 0 end, case $6 when 0 then 1 else 0 end, $17, thread.seq + $10,
                   $7, $8, $9
            from thread"
        ),
    };
    let spec = &new.run.spec;
    // 0: leased, 1: due, 2: waiting.
    let (start, lease) = match new.start {
        Start::Leased(lease) => (0_i64, seconds(lease)),
        Start::Due => (1, 0),
        Start::Waiting => (2, 0),
    };
    let query = sqlx::query::<Db>(sql)
        .bind(spec.thread_id.as_str())
        .bind(spec.id.as_str())
        .bind(FIRST_VERSION)
        .bind(spec.created_at.0)
        .bind(spec.expires_at.0)
        .bind(start)
        .bind(to_json(&**spec))
        .bind(runs::state_column(new.run))
        .bind(to_json(&new.run.metadata))
        .bind(rows.count())
        .bind(rows.ids)
        .bind(rows.metadata)
        .bind(rows.bodies)
        .bind(new.thread.map(to_json))
        .bind(lease)
        .bind(fixed_time)
        .bind(new.owner)
        .bind(spec.scope.as_str());
    let done = query.execute(db).await?;
    Ok(done.rows_affected() == 1)
}

/// Inserts files of a vector store, in this order.
async fn insert_store_files(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    store: &VectorStoreId,
    now: Timestamp,
    rows: &[NewRow<'_>],
) -> Result<(), Error> {
    sqlx::query::<Db>(concat!(
        "insert into vector_store_files
             (id, project_id, vector_store_id, file_id, filename, created_at, status, usage_bytes, attributes, chunking,
              changed_version, due_at, claims, attempts)
         select new.id, $1, $2, new.file_id, new.filename, $3, 'in_progress', 0, new.attributes, new.chunking, 0, ",
        now!("$4"),
        ", 0, 0
         from unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::text[]) with ordinality
             as new (id, file_id, filename, attributes, chunking, number)
         order by number"
    ))
    .bind(scope.as_str())
    .bind(store.as_str())
    .bind(now.0)
    .bind(fixed_time)
    .bind(rows.iter().map(|row| row.file.id.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.file.file_id.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.filename.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.attributes.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.chunking.as_str()).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await?;
    Ok(())
}

/// Inserts chunks of a file, of which the first has the number `first`.
async fn insert_chunks(
    tx: &mut Transaction<Db>,
    owner: &ChunkOwner,
    first: usize,
    chunks: &[NewChunk],
) -> Result<(), Error> {
    if chunks.is_empty() {
        return Ok(());
    }
    sqlx::query::<Db>(
        "insert into vector_store_chunks
             (store_file_id, number, project_id, vector_store_id, text, overlap_bytes, tokens, terms, content_hash,
              embedding)
         select $1, $4 + new.number - 1, $3, $2, new.text, new.overlap_bytes, new.tokens, new.terms, new.content_hash,
                new.embedding
         from unnest($5::text[], $6::bigint[], $7::bigint[], $8::bytea[], $9::bytea[], $10::bytea[]) with ordinality
             as new (text, overlap_bytes, tokens, terms, content_hash, embedding, number)",
    )
    .bind(&owner.store_file)
    .bind(&owner.store)
    .bind(&owner.project)
    .bind(i64::try_from(first).unwrap_or(i64::MAX))
    // Postgres cannot store NUL characters.
    .bind(chunks.iter().map(|chunk| chunk.text.replace('\0', "\u{fffd}")).collect::<Vec<_>>())
    .bind(chunks.iter().map(|chunk| i64::from(chunk.overlap_bytes)).collect::<Vec<_>>())
    .bind(chunks.iter().map(|chunk| i64::from(chunk.tokens)).collect::<Vec<_>>())
    .bind(chunks.iter().map(|chunk| chunk.terms.as_slice()).collect::<Vec<_>>())
    .bind(chunks.iter().map(|chunk| chunk.content_hash.as_slice()).collect::<Vec<_>>())
    .bind(chunks.iter().map(|chunk| chunk.embedding.as_deref()).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await?;
    Ok(())
}

/// Stores parts of a segment.
async fn insert_segment_parts(tx: &mut Transaction<Db>, segment: &str, parts: &[(u32, Vec<u8>)]) -> Result<(), Error> {
    sqlx::query::<Db>(
        "insert into vector_store_segment_parts (segment_id, number, data)
         select $1, number, data from unnest($2::bigint[], $3::bytea[]) as new (number, data)",
    )
    .bind(segment)
    .bind(parts.iter().map(|(number, _)| i64::from(*number)).collect::<Vec<_>>())
    .bind(parts.iter().map(|(_, data)| data.as_slice()).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await?;
    Ok(())
}

/// Stores the embeddings of chunks of a file.
async fn update_embeddings(
    tx: &mut Transaction<Db>,
    store_file: &str,
    embeddings: &[(u32, Vec<u8>)],
) -> Result<(), Error> {
    sqlx::query::<Db>(
        "update vector_store_chunks as chunk set embedding = new.embedding
         from unnest($2::bigint[], $3::bytea[]) as new (number, embedding)
         where chunk.store_file_id = $1 and chunk.number = new.number",
    )
    .bind(store_file)
    .bind(embeddings.iter().map(|(number, _)| i64::from(*number)).collect::<Vec<_>>())
    .bind(embeddings.iter().map(|(_, embedding)| embedding.as_slice()).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await?;
    Ok(())
}

/// Opens the first connection, to report errors at startup. Waits for a database that is unavailable.
/// Parses a database URL. The text of an error has no part of the password.
///
/// # Errors
/// [`Error::InvalidUrl`].
pub(super) fn options(url: &str) -> Result<PgConnectOptions, Error> {
    let invalid = |what: &str| Error::InvalidUrl(format!("database_url {what}"));
    let unencoded = "contains a /, ?, # or @ that is not percent-encoded in the user name, password or database name; write \
                     %2F, %3F, %23 or %40 instead";
    let Ok(parsed) = reqwest::Url::parse(url) else {
        let rest = url.split_once("://").map_or("", |(_, rest)| rest);
        let is_unencoded = rest.find(['/', '?', '#']).is_some_and(|end| rest[end..].contains('@'));
        let expected = "is not a Postgres URL; expected postgres://user:password@host:5432/name";
        return Err(invalid(if is_unencoded { unencoded } else { expected }));
    };
    let has_at = parsed.path().contains('@') || parsed.query_pairs().any(|(name, _)| name.contains('@'));
    if has_at || parsed.fragment().is_some() {
        return Err(invalid(unencoded));
    }
    let is_known = |name: &str| {
        URL_PARAMETERS.iter().any(|known| name == *known || known.ends_with('[') && name.starts_with(known))
    };
    if parsed.query_pairs().any(|(name, _)| !is_known(&name)) {
        return Err(invalid(
            "has a parameter that is not known; expected some of sslmode, sslrootcert, sslcert, sslkey, \
                            host, port, dbname, user, password, application_name and options",
        ));
    }
    let options = PgConnectOptions::from_str(url).map_err(|_| {
        invalid("has a parameter with an invalid value, or a user name, password or database name that is not UTF-8")
    })?;
    Ok(options.application_name("assistd"))
}

/// Returns the URL of a database without the credentials.
fn display_name(options: &PgConnectOptions) -> String {
    let (host, port) = (options.get_host(), options.get_port());
    format!("postgres://{host}:{port}/{}", options.get_database().unwrap_or_default())
}

/// Inspects the database.
pub(super) async fn inspect(settings: &Settings) -> Result<Inspection, Error> {
    let options = options(&settings.url)?;
    let display_name = display_name(&options);
    let at_once = Settings { start_timeout: Duration::ZERO, ..settings.clone() };
    let mut connection = connect(&options, &at_once, &display_name).await?;
    sqlx::query("begin transaction read only").execute(&mut connection).await?;
    let schema = schema::read_schema(&mut connection).await?;
    schema.check_usable(schema::known_version())?;
    let has_keys = schema::has_keys(&mut connection).await?;
    let (version,): (String,) = sqlx::query_as("show server_version").fetch_one(&mut connection).await?;
    let (vector_search,): (Option<String>,) =
        sqlx::query_as("select (select 'pgvector ' || extversion from pg_extension where extname = 'vector')")
            .fetch_one(&mut connection)
            .await?;
    connection.close().await?;
    Ok(Inspection {
        display_name,
        software: format!("Postgres {version}"),
        schema,
        known_version: schema::known_version(),
        has_keys,
        path: None,
        is_in_use: false,
        vector_search,
    })
}

async fn connect(
    options: &PgConnectOptions,
    settings: &Settings,
    display_name: &str,
) -> Result<sqlx::PgConnection, Error> {
    let began = Instant::now();
    let mut logged_at: Option<Instant> = None;
    loop {
        let connection = sqlx::PgConnection::connect_with(options);
        let error = match tokio::time::timeout(settings.statement_timeout, connection).await {
            Ok(Ok(connection)) => {
                if logged_at.is_some() {
                    let unavailable_s = began.elapsed().as_secs();
                    tracing::info!(database = display_name, unavailable_s, "the database is back");
                }
                return Ok(connection);
            }
            Ok(Err(error)) => Error::from(error),
            Err(_) => Error::Unavailable(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
        };
        if !matches!(error, Error::Unavailable(_)) || began.elapsed() >= settings.start_timeout {
            return Err(Error::InvalidUrl(format!("failed to connect to {display_name}: {error}")));
        }
        if logged_at.is_none_or(|then| then.elapsed() >= START_LOG_EVERY) {
            logged_at = Some(Instant::now());
            let wait_s = settings.start_timeout.as_secs();
            tracing::warn!(%error, database = display_name, wait_s, "waiting for the database");
        }
        tokio::time::sleep(START_PAUSE).await;
    }
}

async fn listen(pool: &PgPool) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(RUN_CHANGES).await?;
    Ok(listener)
}

/// Messages as columns, for `unnest`.
struct MessageRows {
    ids: Vec<String>,
    metadata: Vec<String>,
    bodies: Vec<String>,
}

impl MessageRows {
    fn new(messages: &[Message]) -> Self {
        Self {
            ids: messages.iter().map(|message| message.id.to_string()).collect(),
            metadata: messages.iter().map(|message| to_json(&message.metadata)).collect(),
            bodies: messages.iter().map(to_json).collect(),
        }
    }

    fn count(&self) -> i64 {
        i64::try_from(self.ids.len()).expect("a request's messages fit in memory")
    }
}

#[async_trait]
impl Store for Backend {
    async fn check(&self) -> Result<(), Error> {
        let (read_only,): (String,) =
            sqlx::query_as::<Db, _>("show transaction_read_only").fetch_one(&self.pool).await?;
        if read_only == "on" {
            let error = std::io::Error::new(std::io::ErrorKind::ReadOnlyFilesystem, "the database is read-only");
            return Err(Error::Unavailable(sqlx::Error::Io(error)));
        }
        Ok(())
    }

    async fn synchronize_clock(&self) -> Result<(), Error> {
        let mut best: Option<(Duration, Instant, i64)> = None;
        for _ in 0..CLOCK_READS_MAX {
            let sent = Instant::now();
            let (unix_ms,): (i64,) =
                sqlx::query_as::<Db, _>("select floor(extract(epoch from clock_timestamp()) * 1000)::bigint")
                    .fetch_one(&self.pool)
                    .await?;
            let round_trip = sent.elapsed();
            if best.is_none_or(|(shortest, ..)| round_trip < shortest) {
                best = Some((round_trip, sent, unix_ms));
            }
            if round_trip <= CLOCK_ROUND_TRIP_MAX {
                break;
            }
        }
        // The database read its clock about halfway between the request and the response.
        if let Some((round_trip, sent, unix_ms)) = best {
            self.clock.synchronize(unix_ms, sent + round_trip / 2);
        }
        Ok(())
    }

    async fn close(&self) {
        self.pool.close().await;
    }

    fn display_name(&self) -> String {
        self.display_name.clone()
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn notify_run_changed(&self, run: &RunId) -> Result<(), Error> {
        sqlx::query::<Db>("select pg_notify($1, $2)").bind(RUN_CHANGES).bind(run.as_str()).execute(&self.pool).await?;
        Ok(())
    }

    fn run_changes(&self) -> BoxStream<'static, RunId> {
        // A separate connection, because the main pool may have only one.
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(self.options.clone());
        async_stream::stream! {
            loop {
                match listen(&pool).await {
                    Ok(mut listener) => while let Ok(change) = listener.recv().await {
                        yield RunId::from_stored(change.payload());
                    },
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "LISTEN failed; retrying");
                    }
                }
                tokio::time::sleep(LISTEN_PAUSE).await;
            }
        }
        .boxed()
    }
}
