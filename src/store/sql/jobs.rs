//! Leases of background jobs, for the table of each kind.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::AssertSqlSafe;

use super::{Backend, Db, seconds};
use crate::store::{Error, JobKind, Jobs, Lease, QueueState, to_json};

/// Maximum number of leases that one statement renews.
const LEASES_MAX: usize = 500;
/// Maximum length of a stored cause, in characters.
const CAUSE_CHARS_MAX: usize = 500;

/// Counts the due jobs. The conditions are those of the partial indexes `runs_due_by_owner` and `vector_store_files_due`,
/// which have only the jobs that wait or are driven.
const QUEUE_STATES: &str = concat!(
    "select run.jobs, ",
    now!("$1"),
    " - run.oldest, file.jobs, ",
    now!("$1"),
    " - file.oldest
     from (select count(*) as jobs, min(due_at) as oldest from runs where due_at is not null and due_at <= ",
    now!("$1"),
    ") as run
     cross join (
         select count(*) as jobs, min(due_at) as oldest from vector_store_files
         where due_at is not null and due_at <= ",
    now!("$1"),
    "
     ) as file"
);

#[async_trait]
impl Jobs for Backend {
    async fn renew_leases(&self, kind: JobKind, leases: &[Lease], duration: Duration) -> Result<Vec<String>, Error> {
        let mut renewed = Vec::with_capacity(leases.len());
        for some in leases.chunks(LEASES_MAX) {
            // Sorted, so that all servers lock rows in the same order.
            let mut pairs: Vec<(&str, i64)> = some.iter().map(|lease| (lease.id.as_str(), lease.number)).collect();
            pairs.sort_unstable();
            let table = kind.table();
            let sql = format!(
                concat!(
                    "update {table} set due_at = ",
                    lease_end!("$1", "$2"),
                    " where due_at is not null and (id, claims) in (select id, number from ({pairs}) as held)
                      returning id"
                ),
                table = table,
                pairs = json_pairs!("$3"),
            );
            let rows: Vec<(String,)> = sqlx::query_as::<Db, _>(AssertSqlSafe(sql))
                .bind(self.fixed_time())
                .bind(seconds(duration))
                .bind(to_json(&pairs))
                .fetch_all(self.writer())
                .await?;
            renewed.extend(rows.into_iter().map(|(id,)| id));
        }
        Ok(renewed)
    }

    async fn release_lease(&self, kind: JobKind, lease: &Lease) -> Result<(), Error> {
        let table = kind.table();
        let sql = format!(
            concat!(
                "update {table} set due_at = ",
                now!("$1"),
                ", attempts = case when attempts > 0 then attempts - 1 else 0 end
                 where id = $2 and claims = $3 and due_at is not null"
            ),
            table = table,
        );
        let done = sqlx::query::<Db>(AssertSqlSafe(sql))
            .bind(self.fixed_time())
            .bind(&lease.id)
            .bind(lease.number)
            .execute(self.writer())
            .await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(Error::Stale) }
    }

    async fn record_failed_attempt(
        &self,
        kind: JobKind,
        lease: &Lease,
        cause: &str,
        retry_in: Duration,
    ) -> Result<(), Error> {
        let table = kind.table();
        let sql = format!(
            concat!(
                "update {table} set due_at = ",
                now!("$1"),
                " + $2, last_failure = $3 where id = $4 and claims = $5 and due_at is not null"
            ),
            table = table,
        );
        let cause: String = cause.chars().take(CAUSE_CHARS_MAX).collect();
        let done = sqlx::query::<Db>(AssertSqlSafe(sql))
            .bind(self.fixed_time())
            .bind(seconds(retry_in))
            .bind(cause)
            .bind(&lease.id)
            .bind(lease.number)
            .execute(self.writer())
            .await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(Error::Stale) }
    }

    async fn queue_states(&self) -> Result<Vec<QueueState>, Error> {
        let (runs, run_age, files, file_age): (i64, Option<i64>, i64, Option<i64>) =
            sqlx::query_as::<Db, _>(QUEUE_STATES).bind(self.fixed_time()).fetch_one(self.reader()).await?;
        let state = |kind, jobs, age: Option<i64>| QueueState { kind, jobs, oldest_age_s: age.unwrap_or_default() };
        Ok(vec![state(JobKind::Run, runs, run_age), state(JobKind::StoreFile, files, file_age)])
    }
}
