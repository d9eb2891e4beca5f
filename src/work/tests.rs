//! Tests a worker with jobs that end in each possible way, and a store that records what is written.

use std::collections::VecDeque;

use super::*;

const ATTEMPTS_MAX: u32 = 5;

/// What the worker has written.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    Released(String),
    Failed(String, String),
    GivenUp(String, u32, String),
}

/// A store of jobs whose names determine how they end.
#[derive(Debug, Default)]
struct Fake {
    due: Mutex<VecDeque<(&'static str, u32)>>,
    written: Mutex<Vec<Written>>,
    driven: Mutex<Vec<&'static str>>,
}

impl Fake {
    fn with(due: &[(&'static str, u32)]) -> Arc<Self> {
        Arc::new(Self { due: Mutex::new(due.iter().copied().collect()), ..Self::default() })
    }

    fn worker(self: &Arc<Self>) -> Arc<Worker<Fake>> {
        let settings = Settings { concurrency_max: 8, lease: Duration::from_secs(15), attempts_max: ATTEMPTS_MAX };
        Worker::new(self.clone(), self.clone(), Arc::default(), settings, Arc::default())
    }

    fn write(&self, written: Written) {
        lock(&self.written).push(written);
    }
}

#[async_trait]
impl Jobs for Fake {
    async fn renew_leases(
        &self,
        _kind: JobKind,
        leases: &[Lease],
        _duration: Duration,
    ) -> Result<Vec<String>, store::Error> {
        Ok(leases.iter().map(|lease| lease.id.clone()).collect())
    }

    async fn release_lease(&self, _kind: JobKind, lease: &Lease) -> Result<(), store::Error> {
        self.write(Written::Released(lease.id.clone()));
        Ok(())
    }

    async fn record_failed_attempt(
        &self,
        _kind: JobKind,
        lease: &Lease,
        cause: &str,
        _retry_in: Duration,
    ) -> Result<(), store::Error> {
        self.write(Written::Failed(lease.id.clone(), cause.to_owned()));
        Ok(())
    }

    async fn queue_states(&self) -> Result<Vec<store::QueueState>, store::Error> {
        let jobs = i64::try_from(lock(&self.due).len()).expect("there are few");
        Ok(vec![store::QueueState { kind: JobKind::Run, jobs, oldest_age_s: 0 }])
    }
}

#[async_trait]
impl Job for Fake {
    type Work = &'static str;

    const KIND: JobKind = JobKind::Run;

    fn span(&self, work: &&'static str) -> tracing::Span {
        tracing::info_span!("job", work)
    }

    async fn claim(&self, _except: &[String], attempts_max: u32) -> Result<Option<Claim<&'static str>>, store::Error> {
        let mut due = lock(&self.due);
        let Some(index) = due.iter().position(|(_, attempts)| *attempts <= attempts_max) else { return Ok(None) };
        let (work, attempts) = due.remove(index).expect("it was found");
        let lease = Lease { id: work.to_owned(), number: 1 };
        Ok(Some(Claim { lease, attempts: attempts + 1, last_failure: None, work }))
    }

    async fn drive(&self, work: &mut &'static str, attempt: &Attempt) -> Outcome {
        lock(&self.driven).push(work);
        match *work {
            "panics" => panic!("out of range"),
            "fails" => Outcome::Failed("no space".to_owned()),
            "cannot connect" => Outcome::Waiting("connection refused".to_owned()),
            "waits" | "waits too" => {
                attempt.stopping().cancelled().await;
                Outcome::Stopped
            }
            _ => Outcome::Done,
        }
    }

    async fn give_up(&self, work: &'static str, attempts: u32, cause: &str) -> Result<(), store::Error> {
        self.write(Written::GivenUp(work.to_owned(), attempts, cause.to_owned()));
        Ok(())
    }
}

/// Lets a worker claim and drive the due jobs, and stops it.
async fn drive(fake: &Arc<Fake>) {
    let worker = fake.worker();
    let claiming = TaskTracker::new().spawn(worker.clone().claim_due_jobs());
    tokio::time::sleep(Duration::from_millis(500)).await;
    worker.start_drain();
    worker.stop_now();
    worker.drained().await;
    claiming.abort();
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_the_attempt_with_its_message() {
    let fake = Fake::with(&[("panics", 0)]);

    drive(&fake).await;

    let failed = Written::Failed("panics".to_owned(), "panicked: out of range".to_owned());
    assert_eq!(*lock(&fake.written), [failed]);
}

#[tokio::test(start_paused = true)]
async fn a_job_is_given_up_when_its_last_attempt_fails() {
    let fake = Fake::with(&[("fails", ATTEMPTS_MAX - 1)]);

    drive(&fake).await;

    assert_eq!(*lock(&fake.written), [Written::GivenUp("fails".to_owned(), ATTEMPTS_MAX, "no space".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_waits_for_another_server_is_retried_and_given_up_like_one_that_fails() {
    let fake = Fake::with(&[("cannot connect", 0), ("cannot connect", ATTEMPTS_MAX - 1)]);

    drive(&fake).await;

    let (job, cause) = ("cannot connect".to_owned(), "connection refused".to_owned());
    let expected = [Written::Failed(job.clone(), cause.clone()), Written::GivenUp(job, ATTEMPTS_MAX, cause)];
    assert_eq!(*lock(&fake.written), expected);
}

#[tokio::test(start_paused = true)]
async fn a_job_without_remaining_attempts_is_given_up_without_another_attempt() {
    let fake = Fake::with(&[("succeeds", ATTEMPTS_MAX)]);

    drive(&fake).await;

    let cause = "the server that processed it was lost".to_owned();
    assert_eq!(*lock(&fake.written), [Written::GivenUp("succeeds".to_owned(), ATTEMPTS_MAX, cause)]);
    assert!(lock(&fake.driven).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_unfinished_job_is_released_when_the_server_stops() {
    let fake = Fake::with(&[("waits", 0)]);

    drive(&fake).await;

    assert_eq!(*lock(&fake.written), [Written::Released("waits".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn jobs_whose_server_was_lost_repeatedly_are_driven_one_at_a_time() {
    let fake = Fake::with(&[("waits", 2), ("waits too", 2), ("succeeds", 1)]);
    let worker = fake.worker();
    let claiming = TaskTracker::new().spawn(worker.clone().claim_due_jobs());

    tokio::time::sleep(trials::DURATION / 2).await;
    assert_eq!(*lock(&fake.driven), ["waits", "succeeds"]);
    tokio::time::sleep(trials::DURATION).await;
    assert_eq!(*lock(&fake.driven), ["waits", "succeeds", "waits too"]);

    claiming.abort();
    worker.start_drain();
    worker.stop_now();
    worker.drained().await;
}
