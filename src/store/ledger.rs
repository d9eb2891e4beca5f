//! The usage ledger: one row for each call of a model, and the sizes of vector stores by day.

use async_trait::async_trait;

use super::Error;
use crate::api::Timestamp;
use crate::api::organization::usage::{ModelCall, UsagePage, UsageQuery};

/// Maximum number of groups of a page of usage, in all its buckets. Further groups are on the next page.
pub const USAGE_GROUPS_MAX: usize = 10_000;

/// The usage ledger. The calls of runs are recorded by [`super::RunEngine::commit`].
#[async_trait]
pub trait Ledger {
    /// Records the call of a request that was forwarded.
    async fn record_call(&self, call: &ModelCall) -> Result<(), Error>;
    /// Returns the usage in the buckets of a page, from at most [`USAGE_GROUPS_MAX`] groups.
    async fn usage(&self, query: &UsageQuery) -> Result<UsagePage, Error>;
    /// Replaces up to `limit` rows from before `before` by their sums for each day and group. Threads and runs are dropped.
    /// Returns the number of rows that were replaced. The sums are exact, also if several servers do this concurrently.
    async fn roll_up_calls(&self, before: Timestamp, limit: u32) -> Result<u64, Error>;
    /// Stores the present sizes of the vector stores of each project as those of the day of `now`. Replaces what was measured
    /// earlier on this day.
    async fn measure_vector_stores(&self, now: Timestamp) -> Result<(), Error>;
}
