//! The leases of this server, and their renewal in the background.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lock;
use crate::store::{self, JobKind, Jobs, Lease};

/// Pause before a failed renewal is retried.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Maximum number of driven jobs for which a claim excludes all of them by ID. More would make each claim slow.
const EXCLUDED_MAX: usize = 500;

/// All leases of this server, by job ID.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: Mutex<HashMap<String, LeasedJob>>,
}

#[derive(Debug)]
struct LeasedJob {
    number: i64,
    /// Before this time, no other server can have claimed the job.
    until: Instant,
    /// When the lease was acquired. Renewals sent before are ignored.
    since: Instant,
    lost: CancellationToken,
    critical: Arc<AtomicUsize>,
}

/// An attempt at a job. Its lease is renewed until this is dropped.
#[derive(Debug)]
pub struct Attempt {
    lease: Lease,
    lost: CancellationToken,
    stopping: CancellationToken,
    critical: Arc<AtomicUsize>,
    leases: Arc<Leases>,
}

/// A guard that prevents the loss of the lease from cancelling the attempt, so that a commit is completed.
#[derive(Debug)]
pub struct Critical {
    count: Arc<AtomicUsize>,
}

impl Attempt {
    /// Returns the lease.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Resolves when the lease is lost.
    pub(super) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Returns the token that is cancelled when the server releases its unfinished jobs.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Starts a section of the work that must be completed even if the lease is lost.
    #[must_use]
    pub fn critical(&self) -> Critical {
        self.critical.fetch_add(1, Ordering::AcqRel);
        Critical { count: self.critical.clone() }
    }
}

impl Drop for Critical {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut held = lock(&self.leases.held);
        if held.get(&self.lease.id).is_some_and(|held| held.number == self.lease.number) {
            held.remove(&self.lease.id);
        }
    }
}

impl Leases {
    /// Starts to renew a lease that was just acquired.
    pub(super) fn hold(leases: &Arc<Self>, lease: Lease, duration: Duration, stopping: CancellationToken) -> Attempt {
        let now = Instant::now();
        let (lost, critical) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let held = LeasedJob {
            number: lease.number,
            until: now + duration,
            since: now,
            lost: lost.clone(),
            critical: critical.clone(),
        };
        // An older lease of the same job is no longer valid.
        if let Some(before) = lock(&leases.held).insert(lease.id.clone(), held) {
            before.lost.cancel();
        }
        Attempt { lease, lost, stopping, critical, leases: leases.clone() }
    }

    /// Returns the jobs that this server must not claim because it drives them: their leases can expire while the
    /// database is unavailable, or when the database's clock is changed. If there are more than [`EXCLUDED_MAX`],
    /// returns only those whose lease has expired by this server's clock.
    pub(super) fn not_to_claim(&self) -> Vec<String> {
        let now = Instant::now();
        let held = lock(&self.held);
        let is_few = held.len() <= EXCLUDED_MAX;
        held.iter().filter(|(_, held)| is_few || held.until <= now).map(|(id, _)| id.clone()).collect()
    }

    /// Renews all leases at a third of their duration, without end.
    pub(super) async fn renew(&self, jobs: &dyn Jobs, kind: JobKind, duration: Duration) {
        let mut pause = duration / 3;
        loop {
            tokio::time::sleep(pause).await;
            let sent_at = Instant::now();
            let leases: Vec<Lease> =
                lock(&self.held).iter().map(|(id, held)| Lease { id: id.clone(), number: held.number }).collect();
            pause = duration / 3;
            if leases.is_empty() {
                continue;
            }
            match jobs.renew_leases(kind, &leases, duration).await {
                Ok(renewed) => self.apply(&leases, renewed, sent_at, duration),
                Err(error) => {
                    pause = RETRY_AFTER;
                    report(&error, leases.len());
                }
            }
        }
    }

    fn apply(&self, requested: &[Lease], renewed: Vec<String>, sent_at: Instant, duration: Duration) {
        let renewed: std::collections::HashSet<String> = renewed.into_iter().collect();
        let mut held = lock(&self.held);
        for lease in requested {
            let Some(entry) = held.get_mut(&lease.id).filter(|held| held.number == lease.number) else { continue };
            if renewed.contains(&lease.id) {
                entry.until = sent_at + duration;
            } else if entry.since < sent_at && entry.critical.load(Ordering::Acquire) == 0 {
                // A job in its last commit no longer has a lease and is about to end.
                entry.lost.cancel();
            }
        }
    }
}

fn report(error: &store::Error, leases: usize) {
    tracing::warn!(error = error as &dyn std::error::Error, leases, "failed to renew leases; retrying");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: &str, number: i64) -> Lease {
        Lease { id: id.to_owned(), number }
    }

    fn hold(leases: &Arc<Leases>, id: &str, number: i64, duration: Duration) -> Attempt {
        Leases::hold(leases, lease(id, number), duration, CancellationToken::new())
    }

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn a_lease_that_another_server_has_claimed_is_lost_and_the_others_remain() {
        let leases = Arc::new(Leases::default());
        let (kept, claimed) = (hold(&leases, "a", 1, LONG), hold(&leases, "b", 1, LONG));

        let requested = [lease("a", 1), lease("b", 1)];
        leases.apply(&requested, vec!["a".to_owned()], Instant::now(), LONG);

        assert!(!kept.lost.is_cancelled());
        assert!(claimed.lost.is_cancelled());
    }

    #[test]
    fn a_renewal_sent_before_the_lease_was_acquired_does_not_end_it() {
        let leases = Arc::new(Leases::default());
        let sent_at = Instant::now();
        let later = hold(&leases, "a", 2, LONG);

        leases.apply(&[lease("a", 1), lease("a", 2)], Vec::new(), sent_at, LONG);

        assert!(!later.lost.is_cancelled());
    }

    #[test]
    fn a_commit_completes_although_the_lease_is_lost() {
        let leases = Arc::new(Leases::default());
        let attempt = hold(&leases, "a", 1, LONG);
        let critical = attempt.critical();

        leases.apply(&[lease("a", 1)], Vec::new(), Instant::now(), LONG);
        assert!(!attempt.lost.is_cancelled());

        drop(critical);
        leases.apply(&[lease("a", 1)], Vec::new(), Instant::now(), LONG);
        assert!(attempt.lost.is_cancelled());
    }

    #[test]
    fn a_job_that_is_driven_is_not_claimed_until_its_attempt_ends() {
        let leases = Arc::new(Leases::default());
        let attempt = hold(&leases, "a", 1, LONG);

        assert_eq!(leases.not_to_claim(), ["a"]);
        drop(attempt);
        assert!(leases.not_to_claim().is_empty());
    }

    #[test]
    fn with_many_jobs_only_those_with_an_expired_lease_are_excluded() {
        let leases = Arc::new(Leases::default());
        let _held: Vec<Attempt> =
            (0..=EXCLUDED_MAX).map(|number| hold(&leases, &number.to_string(), 1, LONG)).collect();
        let _expired = hold(&leases, "expired", 1, Duration::ZERO);

        assert_eq!(leases.not_to_claim(), ["expired"]);
    }

    #[test]
    fn a_second_lease_on_a_job_ends_the_first() {
        let leases = Arc::new(Leases::default());
        let first = hold(&leases, "a", 1, LONG);
        let second = hold(&leases, "a", 2, LONG);

        drop(first);
        assert!(!second.lost.is_cancelled(), "the end of the first attempt does not affect the second one");
        assert_eq!(lock(&leases.held)["a"].number, 2);
    }
}
