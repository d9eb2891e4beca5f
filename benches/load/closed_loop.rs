//! Closed loops: simulated clients that send the next request when the last one is answered.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;

use crate::Result;
use crate::client::{Client, Timing};
use crate::contestant::{Counters, Created, Target, json_bytes};
use crate::upstream::Mode;

/// The interval at which a run is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The timeout of a request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
/// Pause after a failed request, so that a server that is down is not flooded.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(50);

/// The operation that each client repeats.
#[derive(Clone)]
pub enum Operation {
    /// Creates a thread and a run and reads its stream.
    Streamed(Mode),
    /// Creates a thread and a run and polls it until it has ended.
    Polled,
    /// Creates a message, retrieves it, and lists the newest, in turn. Each client uses a separate thread.
    Messages,
    /// Lists the newest messages of this thread.
    ListNewest { thread_id: String },
    /// Sends a GET request to this path.
    Get { path: String },
    /// Creates a run on this thread with the last ten messages, and reads its stream.
    RunOnLastMessages { thread_id: String },
    /// Adds a message to this thread.
    CreateMessage { thread_id: String },
}

/// The number of clients, and the duration.
#[derive(Clone, Copy)]
pub struct Load {
    pub clients: usize,
    pub warm_up: Duration,
    pub measured: Duration,
    /// The clients start evenly distributed over this time, so that they are not synchronized.
    pub spread: Duration,
}

/// The results of the measured time of a closed loop.
#[derive(Default)]
pub struct Outcome {
    pub timings: Vec<Timing>,
    pub measured: Duration,
    pub counters: Option<Counters>,
    pub errors: Errors,
}

impl Outcome {
    /// Adds the results of another loop of the same kind.
    pub fn add(&mut self, other: Self) {
        self.timings.extend(other.timings);
        self.measured += other.measured;
        self.counters = match (self.counters, other.counters) {
            (Some(one), Some(other)) => Some(one.plus(other)),
            (one, other) => one.or(other),
        };
        self.errors.add(other.errors);
    }

    #[allow(clippy::cast_precision_loss, reason = "far below 2^52 requests")]
    pub fn count(&self) -> f64 {
        self.timings.len() as f64
    }

    pub fn per_second(&self) -> f64 {
        self.count() / self.measured.as_secs_f64()
    }
}

/// The number of failed requests, and the first error.
#[derive(Default)]
pub struct Errors {
    pub count: usize,
    pub first: Option<String>,
}

impl Errors {
    pub fn record(&mut self, error: String) {
        self.count += 1;
        self.first.get_or_insert(error);
    }

    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.first = self.first.take().or(other.first);
    }
}

/// Runs the clients. Returns the requests that ended within the measured time and the increase of the counters in it.
/// Errors are counted at any time.
pub async fn run(
    load: Load,
    target: &Target,
    operation: &Operation,
    counters: impl Fn() -> Option<Counters>,
) -> Outcome {
    let started = Instant::now();
    let from = started + load.warm_up;
    let to = from + load.measured;
    let mut clients = JoinSet::new();
    for n in 0..load.clients {
        let caller = Caller::new(target.clone());
        let operation = operation.clone();
        let divisor = u32::try_from(load.clients).unwrap_or(u32::MAX);
        let wait = load.spread / divisor * u32::try_from(n).unwrap_or(u32::MAX);
        clients.spawn(async move {
            tokio::time::sleep(wait).await;
            caller.work(&operation, from, to).await
        });
    }
    tokio::time::sleep_until(from.into()).await;
    let before = counters();
    tokio::time::sleep_until(to.into()).await;
    let gained = counters().zip(before).map(|(now, then)| now.since(then));
    let mut outcome = Outcome { measured: load.measured, counters: gained, ..Outcome::default() };
    while let Some(finished) = clients.join_next().await {
        match finished {
            Ok((timings, errors)) => {
                outcome.timings.extend(timings);
                outcome.errors.add(errors);
            }
            Err(error) => outcome.errors.record(error.to_string()),
        }
    }
    outcome
}

/// Performs an operation `times` times, distributed over the clients.
pub async fn repeat(target: &Target, operation: &Operation, times: usize, clients: usize) -> Result<()> {
    let mut workers = JoinSet::new();
    for n in 0..clients {
        let mut caller = Caller::new(target.clone());
        let operation = operation.clone();
        let share = times / clients + usize::from(n < times % clients);
        workers.spawn(async move {
            for _ in 0..share {
                caller.perform(&operation).await?;
            }
            Ok::<(), crate::Error>(())
        });
    }
    while let Some(finished) = workers.join_next().await {
        finished??;
    }
    Ok(())
}

/// A simulated client and its state.
struct Caller {
    client: Client,
    target: Target,
    thread_id: Option<String>,
    message_id: Option<String>,
    turn: usize,
}

#[derive(Deserialize)]
struct Run {
    id: String,
    thread_id: String,
    status: String,
}

impl Caller {
    fn new(target: Target) -> Self {
        Self { client: Client::new(target.address), target, thread_id: None, message_id: None, turn: 0 }
    }

    /// Repeats the operation until `to`. Returns the timings of those that ended after `from`.
    async fn work(mut self, operation: &Operation, from: Instant, to: Instant) -> (Vec<Timing>, Errors) {
        let mut timings = Vec::new();
        let mut errors = Errors::default();
        while Instant::now() < to {
            match tokio::time::timeout(REQUEST_TIMEOUT, self.perform(operation)).await {
                Ok(Ok(timing)) => {
                    let now = Instant::now();
                    if now >= from && now <= to {
                        timings.push(timing);
                    }
                }
                Ok(Err(error)) => {
                    errors.record(error.to_string());
                    self.client = Client::new(self.target.address);
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                }
                Err(_) => {
                    errors.record(format!("timed out after {REQUEST_TIMEOUT:?}"));
                    self.client = Client::new(self.target.address);
                }
            }
        }
        (timings, errors)
    }

    async fn perform(&mut self, operation: &Operation) -> Result<Timing> {
        let requested = Instant::now();
        match operation {
            Operation::Streamed(mode) => {
                let body = self.target.streamed_run(*mode);
                return self.client.stream(self.target.stream_path(), body, self.target.marks()).await;
            }
            Operation::Polled => self.poll_run().await?,
            Operation::Messages => self.use_messages().await?,
            Operation::ListNewest { thread_id } => {
                let path = format!("/v1/threads/{thread_id}/messages?limit=20&order=desc");
                self.client.fetch(Method::GET, &path, Bytes::new()).await?;
            }
            Operation::Get { path } => {
                self.client.fetch(Method::GET, path, Bytes::new()).await?;
            }
            Operation::RunOnLastMessages { thread_id } => {
                let body = json_bytes(&json!({
                    "assistant_id": self.target.assistant_id, "stream": true,
                    "truncation_strategy": {"type": "last_messages", "last_messages": 10}
                }));
                let path = format!("/v1/threads/{thread_id}/runs");
                return self.client.stream(&path, body, self.target.marks()).await;
            }
            Operation::CreateMessage { thread_id } => {
                self.client.fetch(Method::POST, &format!("/v1/threads/{thread_id}/messages"), new_message()).await?;
            }
        }
        let end = requested.elapsed();
        Ok(Timing { first_token: end, end })
    }

    async fn poll_run(&mut self) -> Result<()> {
        let created: Run = self.client.fetch_json(Method::POST, "/v1/threads/runs", self.target.polled_run()).await?;
        let path = format!("/v1/threads/{}/runs/{}", created.thread_id, created.id);
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let run: Run = self.client.fetch_json(Method::GET, &path, Bytes::new()).await?;
            match run.status.as_str() {
                "queued" | "in_progress" => {}
                "completed" => return Ok(()),
                status => return Err(format!("a polled run ended as {status}").into()),
            }
        }
    }

    async fn use_messages(&mut self) -> Result<()> {
        let thread_id = match &self.thread_id {
            Some(id) => id,
            None => self.thread_id.insert(create_thread(&mut self.client).await?),
        };
        let messages = format!("/v1/threads/{thread_id}/messages");
        match (self.turn % 3, &self.message_id) {
            (1, Some(id)) => {
                self.client.fetch(Method::GET, &format!("{messages}/{id}"), Bytes::new()).await?;
            }
            (2, _) => {
                self.client.fetch(Method::GET, &format!("{messages}?limit=20&order=desc"), Bytes::new()).await?;
            }
            _ => {
                let message: Created = self.client.fetch_json(Method::POST, &messages, new_message()).await?;
                self.message_id = Some(message.id);
            }
        }
        self.turn += 1;
        Ok(())
    }
}

pub async fn create_thread(client: &mut Client) -> Result<String> {
    let thread: Created = client.fetch_json(Method::POST, "/v1/threads", json_bytes(&json!({}))).await?;
    Ok(thread.id)
}

fn new_message() -> Bytes {
    json_bytes(
        &json!({"role": "user", "content": "How long is the longest river of the world, and where does it end?"}),
    )
}
