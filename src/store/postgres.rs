//! The store on Postgres: many servers may share one. Here is what only Postgres says; the rest is in `sql/`.
//!
//! Decisions that touch several tables are one statement each, with the parts as common table expressions: one round
//! trip, one transaction.

use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};

use super::pool::{Pool, Transaction, WAIT_MAX};
use super::{Commit, Error, NewRun, Settings, Store, to_json};
use crate::api::{Message, RunId, RunStep, Thread, Timestamp};

#[path = "sql/assistants.rs"]
mod assistants;
#[path = "sql/messages.rs"]
mod messages;
#[path = "sql/page.rs"]
mod page;
#[path = "sql/runs.rs"]
mod runs;
#[path = "sql/threads.rs"]
mod threads;

use runs::Written;

type Db = sqlx::Postgres;
type Row = sqlx::postgres::PgRow;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/postgres");

/// The channel on which servers ring for each other's runs.
const RINGS: &str = "assistd_rings";
/// Pause before a lost connection to that channel is tried again; until then the look of every second must do.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

/// `for update skip locked`: two servers that claim at once get two runs, and neither waits.
const CLAIM_RUN: &str = "
    update runs set due_at = $2, version = version + 1
    where id = (
        select id from runs where due_at <= $1 order by due_at, seq limit 1 for update skip locked
    )
    returning id, version, due_at, spec, state, metadata";

/// A pool of connections to one server.
#[derive(Debug)]
pub struct Backend {
    pool: Pool<Db>,
    options: PgConnectOptions,
    place: String,
}

impl Backend {
    pub(super) async fn open(settings: &Settings) -> Result<Self, Error> {
        let options = PgConnectOptions::from_str(&settings.url)
            .map_err(|error| Error::Place(format!("database_url is no Postgres URL: {error}")))?
            .application_name("assistd");
        let place = format!(
            "postgres://{}:{}/{}",
            options.get_host(),
            options.get_port(),
            options.get_database().unwrap_or_default()
        );
        // A first connection says at once what is wrong; a pool would go on trying and only tell that it timed out.
        let first = sqlx::PgConnection::connect_with(&options);
        let unreachable = |what: &dyn std::fmt::Display| Error::Place(format!("{place} cannot be used: {what}"));
        let mut first = match tokio::time::timeout(WAIT_MAX, first).await {
            Err(_) => return Err(unreachable(&"it does not answer")),
            Ok(Err(error)) => return Err(unreachable(&error)),
            Ok(Ok(connection)) => connection,
        };
        // Takes an advisory lock, so that several servers may start at once.
        MIGRATIONS.run(&mut first).await.map_err(Error::Migration)?;
        first.close().await?;
        let pool = Pool::new(options.clone(), settings.connections_max, settings.statement_max);
        Ok(Self { pool, options, place })
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

    async fn insert_thread(&self, thread: &Thread, messages: &[Message]) -> Result<(), Error> {
        let rows = MessageRows::new(messages);
        sqlx::query::<Db>(
            "with thread as (
                insert into threads (id, created_at, version, message_seq, message_at, body)
                values ($1, $2, 1, $4, $2, $3)
            )
            insert into messages (id, thread_id, seq, created_at, metadata, body)
            select m.id, $1, m.seq, $2, m.metadata, m.body
            from unnest($5::text[], $6::text[], $7::text[]) with ordinality as m (id, metadata, body, seq)",
        )
        .bind(thread.id.as_str())
        .bind(thread.created_at.0)
        .bind(to_json(thread))
        .bind(rows.count())
        .bind(rows.ids)
        .bind(rows.metadata)
        .bind(rows.bodies)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Gives the message's time, or nothing when the thread is locked or not there.
    async fn insert_message(&self, message: &Message, while_busy: bool) -> Result<Option<Timestamp>, Error> {
        let time: Option<(i64,)> = sqlx::query_as::<Db, _>(
            "with thread as (
                update threads set message_seq = message_seq + 1, message_at = greatest(message_at, $2)
                where id = $1
                  and ($6 or active_run is null
                       and not exists (select 1 from runs where thread_id = $1 and waits))
                returning message_seq, message_at
            )
            insert into messages (id, thread_id, seq, created_at, metadata, body)
            select $3, $1, message_seq, message_at, $4, $5 from thread
            returning created_at",
        )
        .bind(message.thread_id.as_str())
        .bind(message.created_at.0)
        .bind(message.id.as_str())
        .bind(to_json(&message.metadata))
        .bind(to_json(message))
        .bind(while_busy)
        .fetch_optional(&self.pool)
        .await?;
        Ok(time.map(|(seconds,)| Timestamp(seconds)))
    }

    /// Says whether the thread was there and free, or need not be.
    async fn insert_run(&self, new: &NewRun<'_>) -> Result<bool, Error> {
        let rows = MessageRows::new(new.messages);
        let sql = match new.thread {
            Some(_) => {
                "with thread as (
                    insert into threads (id, created_at, version, message_seq, message_at, active_run, body)
                    values ($1, $4, 1, $10, $4, case when $6::bigint is null then null else $2 end, $14)
                    returning 0::bigint as seq, message_at
                ), message as (
                    insert into messages (id, thread_id, seq, created_at, metadata, body)
                    select m.id, $1, thread.seq + m.seq, thread.message_at, m.metadata, m.body
                    from thread, unnest($11::text[], $12::text[], $13::text[]) with ordinality
                        as m (id, metadata, body, seq)
                )
                insert into runs
                    (id, thread_id, active, waits, version, created_at, expires_at, due_at, sees_to, spec, state, metadata)
                select $2, $1, $6 is not null, $6 is null, $3, $4, $5, $6, thread.seq + $10, $7, $8, $9 from thread"
            }
            None => {
                "with thread as (
                    update threads
                    set active_run = case when $6::bigint is null then active_run else $2 end,
                        message_seq = message_seq + $10,
                        message_at = greatest(message_at, $4)
                    where id = $1 and $14::text is null
                      and ($6 is null or active_run is null
                           and not exists (select 1 from runs where thread_id = $1 and waits))
                    returning message_seq - $10 as seq, message_at
                ), message as (
                    insert into messages (id, thread_id, seq, created_at, metadata, body)
                    select m.id, $1, thread.seq + m.seq, thread.message_at, m.metadata, m.body
                    from thread, unnest($11::text[], $12::text[], $13::text[]) with ordinality
                        as m (id, metadata, body, seq)
                )
                insert into runs
                    (id, thread_id, active, waits, version, created_at, expires_at, due_at, sees_to, spec, state, metadata)
                select $2, $1, $6 is not null, $6 is null, $3, $4, $5, $6, thread.seq + $10, $7, $8, $9 from thread"
            }
        };
        let spec = &new.run.spec;
        let done = sqlx::query::<Db>(sql)
            .bind(spec.thread_id.as_str())
            .bind(spec.id.as_str())
            .bind(super::FIRST_VERSION)
            .bind(spec.created_at.0)
            .bind(spec.expires_at.0)
            .bind(new.due_at.map(|due_at| due_at.0))
            .bind(to_json(&**spec))
            .bind(runs::state_column(new.run))
            .bind(to_json(&new.run.metadata))
            .bind(rows.count())
            .bind(rows.ids)
            .bind(rows.metadata)
            .bind(rows.bodies)
            .bind(new.thread.map(to_json))
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Writes nothing when the run is not at the commit's version any more.
    async fn write_commit(&self, commit: &Commit<'_>) -> Result<Option<Written>, Error> {
        let new = commit.new_message;
        let changed = commit.changed_message;
        let (written, metadata): (i64, Option<String>) = sqlx::query_as::<Db, _>(
            "with run as (
                update runs
                set active = active and $3,
                    waits = waits and $3,
                    version = version + 1,
                    due_at = case when waits then null else $4 end,
                    state = $5
                where id = $1 and version = $2
                returning thread_id, sees_to
            ), thread as (
                update threads
                set active_run = case when $3 then active_run else nullif(active_run, $1) end,
                    message_seq = message_seq + case when $6::text is null then 0 else 1 end,
                    message_at = greatest(message_at, $7)
                from run
                where threads.id = run.thread_id and ($6 is not null or not $3)
                returning message_seq, message_at
            ), new_message as (
                insert into messages (id, thread_id, seq, place, created_at, run_id, metadata, body)
                select $6, run.thread_id, thread.message_seq, run.sees_to, thread.message_at, $1, $8, $9
                from run, thread
                where $6 is not null
            ), changed_message as (
                update messages set body = $11 from run where messages.id = $10 returning metadata
            ), step as (
                insert into run_steps (id, run_id, thread_id, created_at, body)
                select s.id, $1, run.thread_id, s.created_at, s.body
                from run, unnest($12::text[], $13::bigint[], $14::text[]) as s (id, created_at, body)
                on conflict (id) do update set body = excluded.body
            )
            select (select count(*) from run), (select metadata from changed_message)",
        )
        .bind(commit.run.spec.id.as_str())
        .bind(commit.version)
        .bind(!commit.run.state.is_over())
        .bind(commit.due_at.map(|due_at| due_at.0))
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
        .fetch_one(&self.pool)
        .await?;
        Ok((written == 1).then_some(Written(metadata)))
    }

    /// Says whether the run was still at `version`.
    async fn write_lease(
        &self,
        run: &RunId,
        version: i64,
        until: Timestamp,
        message: Option<&Message>,
    ) -> Result<bool, Error> {
        let (written,): (i64,) = sqlx::query_as::<Db, _>(
            "with run as (
                update runs set due_at = $3 where id = $1 and version = $2 returning id
            ), message as (
                update messages set body = $5 from run where messages.id = $4
            )
            select count(*) from run",
        )
        .bind(run.as_str())
        .bind(version)
        .bind(until.0)
        .bind(message.map(|message| message.id.as_str()))
        .bind(message.map(to_json))
        .fetch_one(&self.pool)
        .await?;
        Ok(written == 1)
    }
}

async fn listen(pool: &PgPool) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(RINGS).await?;
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
    async fn ping(&self) -> Result<(), Error> {
        sqlx::query::<Db>("select 1").execute(&self.pool).await?;
        Ok(())
    }

    async fn close(&self) {
        self.pool.close().await;
    }

    fn place(&self) -> String {
        self.place.clone()
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn ring(&self, run: &RunId) -> Result<(), Error> {
        sqlx::query::<Db>("select pg_notify($1, $2)").bind(RINGS).bind(run.as_str()).execute(&self.pool).await?;
        Ok(())
    }

    fn rings(&self) -> BoxStream<'static, RunId> {
        // A connection of its own: one that listens is of no other use, and a pool of one would have none left.
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(self.options.clone());
        async_stream::stream! {
            loop {
                match listen(&pool).await {
                    Ok(mut listener) => while let Ok(ring) = listener.recv().await {
                        yield RunId::from_stored(ring.payload());
                    },
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "nobody can ring for now");
                    }
                }
                tokio::time::sleep(LISTEN_PAUSE).await;
            }
        }
        .boxed()
    }
}
