//! The limits of tokens of each project, for all servers together.
//!
//! What calls have used is in the ledger of model calls. What they will use is estimated and reserved before they start, so
//! that concurrent calls on several servers exceed a limit by at most the tokens of one call. Projects without limits of
//! tokens reserve nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::EffectiveLimits;
use crate::api::error::{Error, Kind};
use crate::api::organization::Limits;
use crate::api::{Scope, Timestamp};
use crate::clock::Clock;
use crate::store::{self, Reserved, Settled, SettledTokens, Store, TokenLimit, TokenReservation};

/// Calls that were recorded longer ago no longer change: the transactions that recorded them have ended.
const SETTLED_AFTER_S: i64 = 120;
/// Sums are read again if they are older than this in addition.
const SETTLED_FOR_S: i64 = 60;
/// Pause before a reservation is tried again while calls that may reach the limit have not ended.
const RETRY_EVERY: Duration = Duration::from_millis(200);
/// How long tokens are reserved without a renewal, in seconds: how long they are blocked if their server is lost.
const RESERVED_FOR_S: u64 = 30;
/// Interval of renewals.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// Maximum number of projects whose sums are in memory. When it is reached, they are dropped.
const PROJECTS_MAX: usize = 10_000;

/// A limit of tokens that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    limit: TokenLimit,
    value: u64,
    used: u64,
    /// The time until the limit is counted anew, in seconds; for a minute, at most this.
    reset_s: u64,
}

impl Reached {
    fn new(limit: TokenLimit, value: u64, used: u64, now: Timestamp) -> Self {
        let reset = match limit {
            TokenLimit::Minute => now.plus(60),
            TokenLimit::Day => now.day_start().plus(86_400),
            TokenLimit::Month => now.next_month_start(),
        };
        Self { limit, value, used, reset_s: u64::try_from(reset.0 - now.0).unwrap_or(1).max(1) }
    }

    /// Returns the text for the error of a run: which limit, its value, and what was used.
    #[must_use]
    pub fn message(&self) -> String {
        let Self { value, used, .. } = self;
        let (name, short) = match self.limit {
            TokenLimit::Minute => ("min", "TPM"),
            TokenLimit::Day => ("day", "TPD"),
            TokenLimit::Month => ("month", "TPMonth"),
        };
        format!("Rate limit reached for tokens per {name} ({short}) of the project: Limit {value}, Used {used}.")
    }

    /// Returns the error for a request. The texts and codes are those of OpenAI's service: a rate limit for a minute, the
    /// quota for a day or a month.
    #[must_use]
    pub fn error(&self) -> Error {
        let error = match self.limit {
            TokenLimit::Minute => {
                let message = format!("{} Please try again in {}s.", self.message(), self.reset_s);
                Error::new(Kind::TokensLimited, message).code("rate_limit_exceeded")
            }
            TokenLimit::Day | TokenLimit::Month => {
                let message = format!(
                    "You exceeded your current quota, please check your plan and billing details. {}",
                    self.message()
                );
                Error::new(Kind::QuotaExceeded, message).code("insufficient_quota")
            }
        };
        error.retry_after(self.reset_s)
    }
}

/// A model call for which tokens are reserved.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Identifies the reservation: the run, or a forwarded request.
    pub id: &'a str,
    /// The project.
    pub scope: &'a Scope,
    /// Estimated tokens of the prompt.
    pub prompt: u64,
    /// Maximum number of output tokens, if the call sets one.
    pub output_max: Option<u64>,
}

/// Reserved tokens. They are renewed until this is dropped, which must be after the call was recorded, and then released.
#[derive(Debug)]
pub struct Reservation {
    id: String,
    database: Arc<dyn Store>,
    tasks: TaskTracker,
    _renewal: DropGuard,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let (id, database) = (std::mem::take(&mut self.id), self.database.clone());
        self.tasks.spawn(async move {
            // If this fails, the reservation expires.
            if let Err(error) = database.release_tokens(&id).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "failed to release reserved tokens");
            }
        });
    }
}

/// Reserves tokens of projects.
#[derive(Debug)]
pub struct Tokens {
    database: Arc<dyn Store>,
    clock: Arc<Clock>,
    limits: Arc<EffectiveLimits>,
    settled: Mutex<HashMap<Scope, SettledTokens>>,
    /// Held by the call of a project that is being reserved. The others wait in line, so that only one of them uses the
    /// database.
    lines: Mutex<HashMap<Scope, Arc<tokio::sync::Mutex<()>>>>,
    tasks: TaskTracker,
}

impl Tokens {
    /// Creates the reservations. All servers with the same database share the budgets.
    #[must_use]
    pub fn new(database: Arc<dyn Store>, clock: Arc<Clock>, limits: Arc<EffectiveLimits>) -> Self {
        let (settled, lines, tasks) = (Mutex::default(), Mutex::default(), TaskTracker::new());
        Self { database, clock, limits, settled, lines, tasks }
    }

    /// Returns the limit that a project has reached, if any.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn reached(&self, scope: &Scope) -> Result<Option<Reached>, store::Error> {
        let limits = self.limits.of(scope).await?;
        if !limits.limits_tokens() {
            return Ok(None);
        }
        let used = self.database.used_tokens(scope, self.settled(scope).await?).await?;
        let now = self.clock.now();
        Ok(used.reached(&limits, 0).map(|(limit, value, used)| Reached::new(limit, value, used, now)))
    }

    /// Returns whether a project has a limit of tokens. Without one, calls need no reservation and no estimate.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn are_limited(&self, scope: &Scope) -> Result<bool, store::Error> {
        Ok(self.limits.of(scope).await?.limits_tokens())
    }

    /// Reserves tokens for a model call. Waits while other calls of the project may reach a limit. Returns `None` if the
    /// project has no limit of tokens, or else the reservation, or the limit that is reached.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn reserve(&self, call: &Call<'_>) -> Result<Result<Option<Reservation>, Reached>, store::Error> {
        if !self.are_limited(call.scope).await? {
            return Ok(Ok(None));
        }
        let line = self.line(call.scope);
        let _first = line.lock().await;
        // Exists before the tokens are reserved, so that they are released if this future is dropped.
        let reservation = self.reservation(call.id);
        loop {
            let limits = self.limits.of(call.scope).await?;
            match self.try_reserve(call, &limits).await? {
                Reserved::Granted => return Ok(Ok(Some(reservation))),
                Reserved::Pending => tokio::time::sleep(RETRY_EVERY).await,
                Reserved::Reached(limit, value, used) => {
                    return Ok(Err(Reached::new(limit, value, used, self.clock.now())));
                }
            }
        }
    }

    /// Waits until all reservations that were dropped are released.
    pub async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn line(&self, scope: &Scope) -> Arc<tokio::sync::Mutex<()>> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= PROJECTS_MAX && !lines.contains_key(scope) {
            lines.retain(|_, line| Arc::strong_count(line) > 1);
        }
        lines.entry(scope.clone()).or_default().clone()
    }

    fn reservation(&self, id: &str) -> Reservation {
        let ended = CancellationToken::new();
        let (database, clock, renewed) = (self.database.clone(), self.clock.clone(), id.to_owned());
        let until = ended.clone();
        self.tasks.spawn(async move {
            while until.run_until_cancelled(tokio::time::sleep(RENEW_EVERY)).await.is_some() {
                if let Err(error) = database.renew_tokens(&renewed, clock.now().plus(RESERVED_FOR_S)).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "failed to renew reserved tokens");
                }
            }
        });
        let (database, tasks) = (self.database.clone(), self.tasks.clone());
        Reservation { id: id.to_owned(), database, tasks, _renewal: ended.drop_guard() }
    }

    async fn try_reserve(&self, call: &Call<'_>, limits: &Limits) -> Result<Reserved, store::Error> {
        let Call { id, scope, prompt, output_max } = *call;
        let expires_at = self.clock.now().plus(RESERVED_FOR_S);
        let settled = self.settled(scope).await?;
        let reservation = TokenReservation { id, scope, limits, settled, prompt, output_max, expires_at };
        self.database.reserve_tokens(&reservation).await
    }

    /// Returns the sums of a project until a time at which they no longer change. Reads only what is new since the last
    /// call.
    async fn settled(&self, scope: &Scope) -> Result<SettledTokens, store::Error> {
        let now = self.clock.now();
        let known = self.settled.lock().unwrap_or_else(PoisonError::into_inner).get(scope).copied();
        let settled = SettledTokens {
            day: self.settle(scope, known.map(|known| known.day), now.day_start(), now).await?,
            month: self.settle(scope, known.map(|known| known.month), now.month_start(), now).await?,
        };
        let mut sums = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if sums.len() >= PROJECTS_MAX {
            sums.clear();
        }
        sums.insert(scope.clone(), settled);
        Ok(settled)
    }

    async fn settle(
        &self,
        scope: &Scope,
        known: Option<Settled>,
        start: Timestamp,
        now: Timestamp,
    ) -> Result<Settled, store::Error> {
        let known = known.filter(|known| known.until >= start).unwrap_or(Settled { until: start, tokens: 0 });
        let until = Timestamp(now.0 - SETTLED_AFTER_S);
        if until.0 <= known.until.0 + SETTLED_FOR_S {
            return Ok(known);
        }
        let new = self.database.tokens_between(scope, known.until, until).await?;
        Ok(Settled { until, tokens: known.tokens + new })
    }
}
