//! The tables `request_windows`, `project_locks` and `token_reservations`.

use async_trait::async_trait;
use sqlx::Row as _;

use super::{Backend, Db, Row};
use crate::api::{Scope, Timestamp};
use crate::store::{Budgets, Error, Reserved, SettledTokens, TakenRequests, TokenReservation, UsedTokens};

/// Length of a window of requests, and of the minute of tokens, in seconds. One more than a minute, because times are whole
/// seconds, so that a window is never shorter.
const WINDOW_S: i64 = 61;
/// Tokens that are reserved for an answer without a limit, or with a higher one: few models write longer answers.
const OUTPUT_TOKENS: u64 = 16_384;

/// The tokens that were used in the last minute and since the settled times, and the largest recent call. Parameters: the
/// fixed time, the project, the settled times of the day and the month, the earliest of these times, and the length of a
/// minute.
const USED_TOKENS: &str = concat!(
    "select cast(coalesce(sum(case when created_at > ",
    now!("$1"),
    " - $6 then input_tokens + output_tokens end), 0) as bigint) as minute,
            cast(coalesce(sum(case when created_at >= $3 then input_tokens + output_tokens end), 0) as bigint) as day,
            cast(coalesce(sum(case when created_at >= $4 then input_tokens + output_tokens end), 0) as bigint) as month,
            max((input_tokens + output_tokens) / requests) as largest
     from model_calls
     where project_id = $2 and created_at >= case when $5 < ",
    now!("$1"),
    " - $6 then $5 else ",
    now!("$1"),
    " - $6 end"
);

/// Returns [`USED_TOKENS`] with its parameters.
macro_rules! used_tokens {
    ($db:expr, $scope:expr, $settled:expr) => {
        sqlx::query::<Db>(USED_TOKENS)
            .bind($db.fixed_time())
            .bind($scope.as_str())
            .bind($settled.day.until.0)
            .bind($settled.month.until.0)
            .bind($settled.day.until.min($settled.month.until).0)
            .bind(WINDOW_S)
    };
}

fn used_from_row(row: &Row, settled: SettledTokens) -> Result<UsedTokens, Error> {
    let number = |name| Ok::<_, Error>(u64::try_from(row.try_get::<i64, _>(name)?).unwrap_or(0));
    let largest: Option<i64> = row.try_get("largest")?;
    Ok(UsedTokens {
        minute: number("minute")?,
        day: settled.day.tokens + number("day")?,
        month: settled.month.tokens + number("month")?,
        largest: largest.and_then(|tokens| u64::try_from(tokens).ok()),
    })
}

#[async_trait]
impl Budgets for Backend {
    async fn take_requests(&self, scope: &Scope, limit: u32, wanted: u32) -> Result<TakenRequests, Error> {
        let wanted = wanted.min(limit);
        // A window that starts in the future was written before the clock was set back.
        let (started_at, taken, granted): (i64, i64, i64) = sqlx::query_as::<Db, _>(concat!(
            "insert into request_windows (project_id, started_at, taken, granted)
             values ($2, ",
            now!("$1"),
            ", $4, $4)
             on conflict (project_id) do update set
                 granted = case
                     when request_windows.started_at not between excluded.started_at - $5 + 1 and excluded.started_at
                         then excluded.granted
                     when request_windows.taken + $4 <= $3 then $4
                     when request_windows.taken < $3 then $3 - request_windows.taken
                     else 0
                 end,
                 taken = case
                     when request_windows.started_at not between excluded.started_at - $5 + 1 and excluded.started_at
                         then excluded.taken
                     when request_windows.taken + $4 <= $3 then request_windows.taken + $4
                     when request_windows.taken < $3 then $3
                     else request_windows.taken
                 end,
                 started_at = case
                     when request_windows.started_at not between excluded.started_at - $5 + 1 and excluded.started_at
                         then excluded.started_at
                     else request_windows.started_at
                 end
             returning started_at, taken, granted"
        ))
        .bind(self.fixed_time())
        .bind(scope.as_str())
        .bind(i64::from(limit))
        .bind(i64::from(wanted))
        .bind(WINDOW_S)
        .fetch_one(self.writer())
        .await?;
        let number = |count: i64| u32::try_from(count).unwrap_or(0);
        Ok(TakenRequests {
            granted: number(granted),
            untaken: number(i64::from(limit) - taken),
            ends_at: Timestamp(started_at + WINDOW_S),
        })
    }

    async fn tokens_between(&self, scope: &Scope, since: Timestamp, until: Timestamp) -> Result<u64, Error> {
        let (tokens,): (i64,) = sqlx::query_as::<Db, _>(
            "select cast(coalesce(sum(input_tokens + output_tokens), 0) as bigint) from model_calls
             where project_id = $1 and created_at >= $2 and created_at < $3",
        )
        .bind(scope.as_str())
        .bind(since.0)
        .bind(until.0)
        .fetch_one(self.reader())
        .await?;
        Ok(u64::try_from(tokens).unwrap_or(0))
    }

    async fn used_tokens(&self, scope: &Scope, settled: SettledTokens) -> Result<UsedTokens, Error> {
        let row = used_tokens!(self, scope, settled).fetch_one(self.reader()).await?;
        used_from_row(&row, settled)
    }

    async fn reserve_tokens(&self, reservation: &TokenReservation<'_>) -> Result<Reserved, Error> {
        let TokenReservation { id, scope, limits, settled, prompt, output_max, expires_at } = *reservation;
        let mut tx = self.begin().await?;
        // Locks the row of the project until the end of the transaction.
        sqlx::query::<Db>(
            "insert into project_locks (project_id, uses) values ($1, 1)
             on conflict (project_id) do update set uses = project_locks.uses + 1",
        )
        .bind(scope.as_str())
        .execute(&mut tx)
        .await?;
        let row = used_tokens!(self, scope, settled).fetch_one(&mut tx).await?;
        let used = used_from_row(&row, settled)?;
        if let Some((limit, value, used)) = used.reached(limits, 0) {
            tx.rollback().await?;
            return Ok(Reserved::Reached(limit, value, used));
        }
        let (reserved,): (i64,) = sqlx::query_as::<Db, _>(concat!(
            "select cast(coalesce(sum(tokens), 0) as bigint) from token_reservations
             where project_id = $2 and id <> $3 and expires_at > ",
            now!("$1")
        ))
        .bind(self.fixed_time())
        .bind(scope.as_str())
        .bind(id)
        .fetch_one(&mut tx)
        .await?;
        if used.reached(limits, u64::try_from(reserved).unwrap_or(0)).is_some() {
            tx.rollback().await?;
            return Ok(Reserved::Pending);
        }
        // Our count of a prompt may be lower than the model server's, so a quarter is added, and no call is expected to be
        // smaller than the largest recent one.
        let output = output_max.map_or(OUTPUT_TOKENS, |max| max.min(OUTPUT_TOKENS));
        let tokens = prompt.saturating_add(prompt / 4).saturating_add(output).max(used.largest.unwrap_or(0));
        sqlx::query::<Db>(
            "insert into token_reservations (id, project_id, tokens, expires_at) values ($1, $2, $3, $4)
             on conflict (id) do update set tokens = excluded.tokens, expires_at = excluded.expires_at",
        )
        .bind(id)
        .bind(scope.as_str())
        .bind(i64::try_from(tokens).unwrap_or(i64::MAX))
        .bind(expires_at.0)
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(Reserved::Granted)
    }

    async fn renew_tokens(&self, id: &str, expires_at: Timestamp) -> Result<(), Error> {
        sqlx::query::<Db>("update token_reservations set expires_at = $2 where id = $1")
            .bind(id)
            .bind(expires_at.0)
            .execute(self.writer())
            .await?;
        Ok(())
    }

    async fn release_tokens(&self, id: &str) -> Result<(), Error> {
        sqlx::query::<Db>(concat!("delete from token_reservations where id = $2 or expires_at <= ", now!("$1")))
            .bind(self.fixed_time())
            .bind(id)
            .execute(self.writer())
            .await?;
        Ok(())
    }
}
