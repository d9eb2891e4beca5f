//! Leases on background work of any kind.

use std::time::Duration;

use async_trait::async_trait;

use super::Error;

/// The kinds of background work, each with a table of its own that has the columns `id`, `due_at`, `claims`, `attempts`
/// and `last_failure`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Runs.
    Run,
}

impl JobKind {
    /// The table of the jobs.
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Run => "runs",
        }
    }
}

/// The right to drive a job: the job, and the number of the claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The job's id.
    pub id: String,
    /// Rises with each claim: the fence of the lease.
    pub number: i64,
}

/// Leases that are held. A lease is taken by a claim or a commit of the job itself.
#[async_trait]
pub trait Jobs: Send + Sync + std::fmt::Debug {
    /// Extends the leases that still stand to `duration` from now; returns the ids of those.
    async fn renew_leases(&self, kind: JobKind, leases: &[Lease], duration: Duration) -> Result<Vec<String>, Error>;
    /// Makes the job due at once; the attempt is not counted.
    ///
    /// # Errors
    /// [`Error::Stale`] when the lease does not stand any more.
    async fn release_lease(&self, kind: JobKind, lease: &Lease) -> Result<(), Error>;
    /// Records why an attempt failed; the job is due again after `retry_in`.
    ///
    /// # Errors
    /// [`Error::Stale`] when the lease does not stand any more.
    async fn record_failed_attempt(
        &self,
        kind: JobKind,
        lease: &Lease,
        cause: &str,
        retry_in: Duration,
    ) -> Result<(), Error>;
}
