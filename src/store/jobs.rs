//! Leases of background jobs of any kind.

use std::time::Duration;

use async_trait::async_trait;

use super::Error;

/// The kinds of background jobs. Each has a table with the columns `id`, `due_at`, `claims`, `attempts` and
/// `last_failure`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Runs.
    Run,
    /// Files of vector stores.
    StoreFile,
}

impl JobKind {
    /// Returns the table of the jobs.
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Run => "runs",
            Self::StoreFile => "vector_store_files",
        }
    }

    /// Returns the label of the kind in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::StoreFile => "file",
        }
    }
}

/// The jobs of a kind that wait for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// The kind.
    pub kind: JobKind,
    /// Number of jobs that can be claimed.
    pub jobs: i64,
    /// Seconds since the oldest of them can be claimed; 0 if there is none.
    pub oldest_age_s: i64,
}

/// The lease of a job: the right to drive it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The job ID.
    pub id: String,
    /// The number of the claim, which increases with each claim: the fence of the lease.
    pub number: i64,
}

/// Operations on leases. A lease is acquired by a claim or a commit of the job.
#[async_trait]
pub trait Jobs: Send + Sync + std::fmt::Debug {
    /// Renews the leases that are still valid, for `duration` from now. Returns the IDs of their jobs.
    async fn renew_leases(&self, kind: JobKind, leases: &[Lease], duration: Duration) -> Result<Vec<String>, Error>;
    /// Releases a lease, so that the job is due immediately. The attempt is not counted.
    ///
    /// # Errors
    /// [`Error::Stale`] if the lease is no longer valid.
    async fn release_lease(&self, kind: JobKind, lease: &Lease) -> Result<(), Error>;
    /// Records why an attempt failed. The job is due again after `retry_in`.
    ///
    /// # Errors
    /// [`Error::Stale`] if the lease is no longer valid.
    async fn record_failed_attempt(
        &self,
        kind: JobKind,
        lease: &Lease,
        cause: &str,
        retry_in: Duration,
    ) -> Result<(), Error>;
    /// Returns the state of the queue of each kind.
    async fn queue_states(&self) -> Result<Vec<QueueState>, Error>;
}
