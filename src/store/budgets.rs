//! Budgets of projects that all servers share.

use async_trait::async_trait;

use super::Error;
use crate::api::organization::Limits;
use crate::api::{Scope, Timestamp};

/// What a server took from the requests of a project's current window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenRequests {
    /// Number of requests that this call took.
    pub granted: u32,
    /// Number of requests that no server has taken.
    pub untaken: u32,
    /// The end of the window.
    pub ends_at: Timestamp,
}

/// The tokens that model calls of a project used from the start of a day or a month until some time. They no longer
/// change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// The time. Calls from then on are not included.
    pub until: Timestamp,
    /// The tokens.
    pub tokens: u64,
}

/// The settled tokens of a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettledTokens {
    /// Since the start of the day in UTC.
    pub day: Settled,
    /// Since the start of the month in UTC.
    pub month: Settled,
}

/// The tokens that model calls of a project have used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UsedTokens {
    /// Tokens in the last minute.
    pub minute: u64,
    /// Tokens since the start of the day in UTC.
    pub day: u64,
    /// Tokens since the start of the month in UTC.
    pub month: u64,
    /// The largest recent call, in tokens.
    pub largest: Option<u64>,
}

/// A limit of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenLimit {
    /// Tokens per minute.
    Minute,
    /// Tokens per day in UTC.
    Day,
    /// Tokens per month in UTC.
    Month,
}

impl UsedTokens {
    /// Returns the limit that is reached if `more` tokens are used as well, with its value and the tokens that count
    /// towards it.
    #[must_use]
    pub fn reached(&self, limits: &Limits, more: u64) -> Option<(TokenLimit, u64, u64)> {
        let of = [
            (TokenLimit::Month, limits.tokens_per_month, self.month),
            (TokenLimit::Day, limits.tokens_per_day, self.day),
            (TokenLimit::Minute, limits.tokens_per_minute, self.minute),
        ];
        of.into_iter().find(|(_, limit, used)| *limit > 0 && used.saturating_add(more) >= *limit)
    }
}

/// A request to reserve tokens for a model call.
#[derive(Debug, Clone, Copy)]
pub struct TokenReservation<'a> {
    /// Identifies the reservation: the run, or a forwarded request.
    pub id: &'a str,
    /// The project.
    pub scope: &'a Scope,
    /// The limits of the project.
    pub limits: &'a Limits,
    /// What calls used until some time.
    pub settled: SettledTokens,
    /// Estimated tokens of the prompt.
    pub prompt: u64,
    /// Maximum number of output tokens, if the call sets one.
    pub output_max: Option<u64>,
    /// When the reservation ends if it is neither renewed nor released.
    pub expires_at: Timestamp,
}

/// The result of a request to reserve tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// The tokens are reserved.
    Granted,
    /// The limit may be reached by calls that have not ended.
    Pending,
    /// The limit is reached: which one, its value, and the tokens that were used.
    Reached(TokenLimit, u64, u64),
}

/// Budgets of projects that all servers share.
#[async_trait]
pub trait Budgets {
    /// Takes up to `wanted` requests from the current window of a project, of which all servers together take at most
    /// `limit`. A window starts with the first call after the end of the previous one, and lasts a minute.
    async fn take_requests(&self, scope: &Scope, limit: u32, wanted: u32) -> Result<TakenRequests, Error>;
    /// Returns the tokens of the project's model calls from `since` until before `until`.
    async fn tokens_between(&self, scope: &Scope, since: Timestamp, until: Timestamp) -> Result<u64, Error>;
    /// Returns the tokens that the project has used.
    async fn used_tokens(&self, scope: &Scope, settled: SettledTokens) -> Result<UsedTokens, Error>;
    /// Reserves tokens for a model call, if the used and the reserved tokens of the project are below its limits. The
    /// reservations of a project are serialized, so that together with what calls use, they exceed a limit by at most
    /// one call.
    async fn reserve_tokens(&self, reservation: &TokenReservation<'_>) -> Result<Reserved, Error>;
    /// Extends a reservation that exists.
    async fn renew_tokens(&self, id: &str, expires_at: Timestamp) -> Result<(), Error>;
    /// Releases a reservation, after the call was recorded.
    async fn release_tokens(&self, id: &str) -> Result<(), Error>;
}
