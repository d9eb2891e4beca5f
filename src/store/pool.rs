//! A pool of connections to one database.
//!
//! The pool of sqlx pings each connection when it is returned, which doubles the round trips of short statements. This one
//! uses deadpool and pings a connection only if it was idle. A connection is closed instead of returned if its statement
//! timed out, was cancelled, or failed for a reason other than the statement itself.
//!
//! The same timeout applies to each statement, including those of a transaction, and to the wait for a connection.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_stream::try_stream;
use deadpool::managed::{self, Metrics, PoolError, RecycleResult, Timeouts};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use sqlx::{Connection, Database, Describe, Either, Execute, Executor, SqlStr};

use super::outage::Outage;
use crate::metrics::PoolMetrics;

/// A connection that was idle for longer is pinged before use, so that connections broken by a restart of the database are
/// replaced.
const PING_AFTER_IDLE: Duration = Duration::from_secs(1);
type Options<DB> = <<DB as Database>::Connection as Connection>::Options;

/// A pool of connections to one database, opened on demand.
pub(super) struct Pool<DB: Database> {
    inner: managed::Pool<Opener<DB>>,
    /// The timeout of a statement. Without it, a connection that no longer responds, such as one through a proxy whose
    /// server was lost, would block its caller forever.
    statement_timeout: Duration,
    metrics: PoolMetrics,
    outage: Arc<Outage>,
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
        if metrics.last_used() > PING_AFTER_IDLE {
            connection.ping().await?;
        }
        Ok(())
    }
}

impl<DB: Database> Pool<DB> {
    /// Creates a pool of up to `connections_max` connections. Opens none yet. The log names the database `display_name`.
    pub fn new(
        options: Options<DB>,
        connections_max: u32,
        statement_timeout: Duration,
        display_name: impl Into<String>,
        metrics: PoolMetrics,
    ) -> Self {
        let wait = Some(statement_timeout);
        let timeouts = Timeouts { wait, create: wait, recycle: wait };
        let inner = managed::Pool::builder(Opener { options })
            .max_size(connections_max as usize)
            .timeouts(timeouts)
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .expect("timeouts have a runtime");
        Self { inner, statement_timeout, outage: Arc::new(Outage::new(display_name.into())), metrics }
    }

    async fn in_time<T, E: From<sqlx::Error>>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        in_time(self.statement_timeout, work).await
    }

    async fn acquire(&self) -> Result<Acquired<DB>, sqlx::Error> {
        let began = Instant::now();
        let acquired = self.inner.get().await;
        self.metrics.waited(began.elapsed());
        let error = match acquired {
            Ok(object) => return Ok(Acquired { object: Some(object) }),
            Err(PoolError::Backend(error)) => error,
            Err(PoolError::Closed) => sqlx::Error::PoolClosed,
            Err(PoolError::Timeout(_) | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_)) => {
                self.metrics.timed_out();
                sqlx::Error::PoolTimedOut
            }
        };
        let failed = Err(error);
        self.outage.observe(&failed);
        failed
    }

    /// Notes the outcome of a statement, and returns its connection to the pool, unless the connection may be the cause of
    /// an error.
    fn finish<T>(&self, connection: Acquired<DB>, outcome: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        self.outage.observe(&outcome);
        connection.finish(outcome)
    }

    /// Closes the idle connections and opens no more.
    pub async fn close(&self) {
        let idle = self.inner.retain(|_, _| false).removed;
        self.inner.close();
        for connection in idle {
            // The connection is unusable afterwards, even if closing fails.
            let _ = connection.close().await;
        }
    }
}

impl<DB: Database> Pool<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    /// Starts a transaction with this statement.
    pub async fn begin(&self, statement: &'static str) -> Result<Transaction<DB>, sqlx::Error> {
        let mut connection = self.acquire().await?;
        let begun = self.in_time(connection.execute(statement)).await;
        self.outage.observe(&begun);
        begun?;
        Ok(Transaction { connection, statement_timeout: self.statement_timeout, outage: self.outage.clone() })
    }
}

/// A connection in use. Closed when dropped, unless it was returned with [`Acquired::return_to_pool`].
struct Acquired<DB: Database> {
    object: Option<managed::Object<Opener<DB>>>,
}

impl<DB: Database> Acquired<DB> {
    fn return_to_pool(mut self) {
        self.object.take();
    }

    /// Returns the connection to the pool, unless the error may be caused by the connection.
    fn finish<T>(self, outcome: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        if matches!(outcome, Ok(_) | Err(sqlx::Error::RowNotFound)) || is_statement_error(&outcome) {
            self.return_to_pool();
        }
        outcome
    }
}

/// Returns whether the database rejected a statement and the connection is still usable.
fn is_statement_error<T>(outcome: &Result<T, sqlx::Error>) -> bool {
    // 57 is operator intervention, such as a shutdown.
    matches!(outcome, Err(sqlx::Error::Database(error)) if !error.code().is_some_and(|code| code.starts_with("57")))
}

impl<DB: Database> Drop for Acquired<DB> {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(managed::Object::take(object));
        }
    }
}

impl<DB: Database> Deref for Acquired<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        self.object.as_ref().expect("present until it is returned")
    }
}

impl<DB: Database> DerefMut for Acquired<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        self.object.as_mut().expect("present until it is returned")
    }
}

impl<DB: Database> fmt::Debug for Transaction<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}

/// A transaction. If it is dropped without commit or rollback, its connection is closed.
pub(super) struct Transaction<DB: Database> {
    connection: Acquired<DB>,
    statement_timeout: Duration,
    outage: Arc<Outage>,
}

impl<DB: Database> Transaction<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    /// Commits the transaction.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.end("commit").await
    }

    /// Rolls the transaction back.
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.end("rollback").await
    }

    async fn end(mut self, statement: &'static str) -> Result<(), sqlx::Error> {
        let ended = in_time(self.statement_timeout, self.connection.execute(statement)).await;
        self.outage.observe(&ended);
        ended?;
        self.connection.return_to_pool();
        Ok(())
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
            let mut connection = self.acquire().await?;
            let mut failed = None;
            {
                let mut rows = connection.fetch_many(query);
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
            self.finish(connection, failed.map_or(Ok(()), Err))?;
        }
        .boxed()
    }

    /// Reads all rows, because SQLite reports the failure of an automatic commit after the last row.
    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<DB::Row>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        first_row(self.fetch_many(query))
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
            let mut connection = self.acquire().await?;
            let outcome = self.in_time(connection.prepare_with(sql, parameters)).await;
            self.finish(connection, outcome)
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<DB>, sqlx::Error>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut connection = self.acquire().await?;
            let outcome = self.in_time(connection.describe(sql)).await;
            self.finish(connection, outcome)
        })
    }
}

/// Reads all rows and returns the first one.
fn first_row<'e, Q: Send + 'e, R: Send + 'e>(
    mut rows: BoxStream<'e, Result<Either<Q, R>, sqlx::Error>>,
) -> BoxFuture<'e, Result<Option<R>, sqlx::Error>> {
    Box::pin(async move {
        let mut first = None;
        while let Some(row) = rows.try_next().await? {
            if let Either::Right(row) = row {
                first.get_or_insert(row);
            }
        }
        Ok(first)
    })
}

impl<'t, DB: Database> Executor<'t> for &'t mut Transaction<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    type Database = DB;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<DB::QueryResult, DB::Row>, sqlx::Error>>
    where
        't: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let timeout = self.statement_timeout;
        try_stream! {
            let mut rows = self.connection.fetch_many(query);
            loop {
                let row = in_time(timeout, rows.try_next()).await;
                if row.is_err() {
                    self.outage.observe(&row);
                }
                match row? {
                    Some(row) => yield row,
                    None => break,
                }
            }
        }
        .boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<DB::Row>, sqlx::Error>>
    where
        't: 'e,
        E: 'q + Execute<'q, DB>,
    {
        first_row(self.fetch_many(query))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, sqlx::Error>>
    where
        't: 'e,
    {
        Box::pin(in_time(self.statement_timeout, self.connection.prepare_with(sql, parameters)))
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<DB>, sqlx::Error>>
    where
        't: 'e,
    {
        Box::pin(in_time(self.statement_timeout, self.connection.describe(sql)))
    }
}
