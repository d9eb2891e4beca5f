//! A pool of connections to one database.
//!
//! sqlx's own pool asks each connection for a sign of life when it is given back, which doubles the round trips of short
//! statements; this one (deadpool's) asks only a connection that has rested. A connection whose statement failed for
//! another reason than the statement, took too long, or was given up in the middle, is closed instead of given back.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use async_stream::try_stream;
use deadpool::managed::{self, Metrics, PoolError, RecycleResult, Timeouts};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use sqlx::{Connection, Database, Describe, Either, Execute, Executor, SqlStr};

/// A connection that has rested for longer is asked for a sign of life before use: after a restart of the database a
/// broken one is found and replaced.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// How long a call waits for a free connection, or for a new one.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(10);
type Options<DB> = <<DB as Database>::Connection as Connection>::Options;

/// Connections to one database, opened as they are needed.
pub(super) struct Pool<DB: Database> {
    inner: managed::Pool<Opener<DB>>,
    /// How long a statement may take: a connection that has gone silent, as behind a proxy whose server was lost, would
    /// else hold its caller for good.
    statement_max: Duration,
}

async fn in_time<T, E: From<sqlx::Error>>(max: Duration, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    match tokio::time::timeout(max, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(sqlx::Error::Io(std::io::Error::from(std::io::ErrorKind::TimedOut)).into()),
    }
}

impl<DB: Database> fmt::Debug for Pool<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("status", &self.inner.status()).finish_non_exhaustive()
    }
}

struct Opener<DB: Database> {
    options: Options<DB>,
}

impl<DB: Database> managed::Manager for Opener<DB> {
    type Type = DB::Connection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<DB::Connection, sqlx::Error> {
        DB::Connection::connect_with(&self.options).await
    }

    async fn recycle(&self, connection: &mut DB::Connection, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        if metrics.last_used() > TRUSTED_IDLE {
            connection.ping().await?;
        }
        Ok(())
    }
}

impl<DB: Database> Pool<DB> {
    /// Room for `connections_max` connections; none is opened yet.
    pub fn new(options: Options<DB>, connections_max: u32, statement_max: Duration) -> Self {
        let timeouts = Timeouts { wait: Some(WAIT_MAX), create: Some(WAIT_MAX), recycle: Some(WAIT_MAX) };
        let inner = managed::Pool::builder(Opener { options })
            .max_size(connections_max as usize)
            .timeouts(timeouts)
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .expect("timeouts have a runtime");
        Self { inner, statement_max }
    }

    /// Gives work up that takes longer than a statement may; what it holds of connections is closed.
    pub async fn in_time<T, E: From<sqlx::Error>>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        in_time(self.statement_max, work).await
    }

    async fn acquire(&self) -> Result<Held<DB>, sqlx::Error> {
        match self.inner.get().await {
            Ok(object) => Ok(Held { object: Some(object) }),
            Err(PoolError::Backend(error)) => Err(error),
            Err(PoolError::Closed) => Err(sqlx::Error::PoolClosed),
            Err(PoolError::Timeout(_) | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_)) => {
                Err(sqlx::Error::PoolTimedOut)
            }
        }
    }

    /// Closes the connections that rest, and lets no new one be opened.
    pub async fn close(&self) {
        let resting = self.inner.retain(|_, _| false).removed;
        self.inner.close();
        for connection in resting {
            // It is gone either way.
            let _ = connection.close().await;
        }
    }
}

impl<DB: Database> Pool<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    /// Begins a transaction with this statement.
    pub async fn begin(&self, statement: &'static str) -> Result<Transaction<DB>, sqlx::Error> {
        let mut held = self.acquire().await?;
        self.in_time(held.execute(statement)).await?;
        Ok(Transaction { held, statement_max: self.statement_max })
    }
}

/// A connection in use: given back by [`Held::give_back`], closed otherwise.
struct Held<DB: Database> {
    object: Option<managed::Object<Opener<DB>>>,
}

impl<DB: Database> Held<DB> {
    fn give_back(mut self) {
        self.object.take();
    }

    /// Gives the connection back unless the error may be its own.
    fn after<T>(self, outcome: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        if matches!(outcome, Ok(_) | Err(sqlx::Error::RowNotFound)) || is_of_the_statement(&outcome) {
            self.give_back();
        }
        outcome
    }
}

/// Whether the database has refused a statement, and the connection is none the worse.
fn is_of_the_statement<T>(outcome: &Result<T, sqlx::Error>) -> bool {
    // 57 is an intervention of the operator, such as a shutdown.
    matches!(outcome, Err(sqlx::Error::Database(error)) if !error.code().is_some_and(|code| code.starts_with("57")))
}

impl<DB: Database> Drop for Held<DB> {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(managed::Object::take(object));
        }
    }
}

impl<DB: Database> Deref for Held<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        self.object.as_ref().expect("held until it is given back")
    }
}

impl<DB: Database> DerefMut for Held<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        self.object.as_mut().expect("held until it is given back")
    }
}

/// A transaction; one that is neither committed nor rolled back ends with its connection.
pub(super) struct Transaction<DB: Database> {
    held: Held<DB>,
    statement_max: Duration,
}

impl<DB: Database> Transaction<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    /// Makes it last.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.end("commit").await
    }

    /// Takes it back.
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.end("rollback").await
    }

    async fn end(mut self, statement: &'static str) -> Result<(), sqlx::Error> {
        in_time(self.statement_max, self.held.execute(statement)).await?;
        self.held.give_back();
        Ok(())
    }
}

impl<DB: Database> Deref for Transaction<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        &self.held
    }
}

impl<DB: Database> DerefMut for Transaction<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        &mut self.held
    }
}

impl<'p, DB: Database> Executor<'p> for &'p Pool<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    type Database = DB;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<DB::QueryResult, DB::Row>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        try_stream! {
            let mut held = self.acquire().await?;
            let mut failed = None;
            {
                let mut rows = held.fetch_many(query);
                loop {
                    match self.in_time(rows.try_next()).await {
                        Ok(Some(row)) => yield row,
                        Ok(None) => break,
                        Err(error) => {
                            failed = Some(error);
                            break;
                        }
                    }
                }
            }
            held.after(failed.map_or(Ok(()), Err))?;
        }
        .boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<DB::Row>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(async move {
            let mut held = self.acquire().await?;
            let outcome = self.in_time(held.fetch_optional(query)).await;
            held.after(outcome)
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, sqlx::Error>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut held = self.acquire().await?;
            let outcome = self.in_time(held.prepare_with(sql, parameters)).await;
            held.after(outcome)
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<DB>, sqlx::Error>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut held = self.acquire().await?;
            let outcome = self.in_time(held.describe(sql)).await;
            held.after(outcome)
        })
    }
}
