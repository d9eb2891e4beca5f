//! The contestants: the model server alone, the floor and assistd. The latter two are separate processes.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;
use serde_json::json;

use crate::client::{Client, Marks};
use crate::store::Store;
use crate::upstream::Mode;
use crate::wire_count::{self, WireCount};
use crate::{Result, proc};

/// How long a server can take to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The marks in the events of the model server, which the floor forwards.
const COMPLETION_MARKS: Marks = Marks { first_token: r#""delta":{"content":"#, completed: r#""finish_reason":"stop""# };
/// The marks in the events of a run.
const RUN_MARKS: Marks = Marks { first_token: "event: thread.message.delta", completed: "event: thread.run.completed" };

/// The configuration of the servers.
#[derive(Clone)]
pub struct Setup {
    pub server_binary: PathBuf,
    pub folder: PathBuf,
    pub upstream: SocketAddr,
    pub concurrent_runs_max: usize,
    pub store: std::sync::Arc<Store>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Direct,
    Floor,
    Assistd,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Floor => "floor",
            Self::Assistd => "assistd",
        }
    }
}

/// The address and the request bodies of a simulated client.
#[derive(Clone)]
pub struct Target {
    pub kind: Kind,
    pub address: SocketAddr,
    /// The bodies of streamed runs, in the order of [`Mode::ALL`].
    streamed: Vec<Bytes>,
    polled: Bytes,
    /// The assistant with the fast model; empty if there are no assistants.
    pub assistant_id: String,
}

impl Target {
    /// Creates the target for streamed completions of the model server.
    pub fn direct(upstream: SocketAddr) -> Self {
        let body = |mode: &Mode| {
            json_bytes(&json!({
                "model": mode.model(), "stream": true, "stream_options": {"include_usage": true},
                "messages": [{"role": "user", "content": "hi"}]
            }))
        };
        Self {
            kind: Kind::Direct,
            address: upstream,
            streamed: Mode::ALL.iter().map(body).collect(),
            polled: Bytes::new(),
            assistant_id: String::new(),
        }
    }

    /// Creates the target for a server with the Assistants API, and an assistant for each mode.
    async fn assistants(kind: Kind, address: SocketAddr) -> Result<Self> {
        let mut client = Client::new(address);
        let mut runs = Vec::new();
        for mode in Mode::ALL {
            let assistant = json_bytes(&json!({"model": mode.model()}));
            let assistant: Created = client.fetch_json(Method::POST, "/v1/assistants", assistant).await?;
            runs.push(json!({
                "assistant_id": assistant.id,
                "thread": {"messages": [{"role": "user", "content": "hi"}]}
            }));
        }
        let polled = json_bytes(&runs[0]);
        let assistant_id = runs[0]["assistant_id"].as_str().unwrap_or_default().to_owned();
        let streamed = runs
            .into_iter()
            .map(|mut run| {
                run["stream"] = json!(true);
                json_bytes(&run)
            })
            .collect();
        Ok(Self { kind, address, streamed, polled, assistant_id })
    }

    pub fn stream_path(&self) -> &'static str {
        match self.kind {
            Kind::Direct => "/v1/chat/completions",
            Kind::Floor | Kind::Assistd => "/v1/threads/runs",
        }
    }

    pub fn streamed_run(&self, mode: Mode) -> Bytes {
        let position = Mode::ALL.iter().position(|each| *each == mode).expect("all modes are in the list");
        self.streamed[position].clone()
    }

    /// Returns the body of a run with the fast model that is not streamed.
    pub fn polled_run(&self) -> Bytes {
        self.polled.clone()
    }

    pub fn marks(&self) -> Marks {
        match self.kind {
            Kind::Direct | Kind::Floor => COMPLETION_MARKS,
            Kind::Assistd => RUN_MARKS,
        }
    }
}

/// The ID of a created object.
#[derive(Deserialize)]
pub struct Created {
    pub id: String,
}

pub fn json_bytes(value: &serde_json::Value) -> Bytes {
    Bytes::from(value.to_string())
}

/// A running floor or assistd. Its process is killed when this is dropped.
pub struct Contestant {
    pub target: Target,
    process: Process,
    wire_count: Option<WireCount>,
}

impl Contestant {
    /// Starts the server on an empty database.
    pub async fn start(setup: &Setup, kind: Kind) -> Result<Self> {
        let database_url = setup.store.create_database().await?;
        Self::start_on(setup, kind, &database_url, None).await
    }

    /// Starts the server on an empty Postgres database behind a relay that counts round trips. Returns `None` for `SQLite`.
    pub async fn start_counted(setup: &Setup, kind: Kind) -> Result<Option<Self>> {
        let database_url = setup.store.create_database().await?;
        let (listener, address) = wire_count::bind().await?;
        let Some((postgres, relayed_url)) = setup.store.relayed(&database_url, address) else { return Ok(None) };
        let wire_count = WireCount::start(listener, postgres);
        Ok(Some(Self::start_on(setup, kind, &relayed_url, Some(wire_count)).await?))
    }

    /// Starts the server on this database.
    pub async fn start_on(
        setup: &Setup,
        kind: Kind,
        database_url: &str,
        wire_count: Option<WireCount>,
    ) -> Result<Self> {
        let mut process = Process::start(setup, kind, database_url)?;
        process.wait_until_ready().await?;
        Ok(Self { target: Target::assistants(kind, process.address).await?, process, wire_count })
    }

    /// Returns the current counters.
    pub fn counters(&self, store: &Store) -> Counters {
        Counters {
            server_cpu: proc::cpu(self.process.child.id()),
            database_cpu: store.cpu(),
            round_trips: self.wire_count.as_ref().map(WireCount::round_trips),
            pings: self.wire_count.as_ref().map(WireCount::pings),
            statements: self.wire_count.as_ref().map(WireCount::statements),
        }
    }

    pub fn resident_kib(&self) -> Option<f64> {
        proc::resident_kib(self.process.child.id())
    }

    /// Returns the peak of resident memory since the last call, in KiB.
    pub fn take_peak_kib(&self) -> Option<f64> {
        proc::take_peak_kib(self.process.child.id())
    }
}

/// Monotonic counters.
#[derive(Clone, Copy, Default)]
pub struct Counters {
    pub server_cpu: Option<Duration>,
    pub database_cpu: Option<Duration>,
    pub round_trips: Option<u64>,
    pub pings: Option<u64>,
    pub statements: Option<u64>,
}

impl Counters {
    /// Returns the increase since `then`.
    pub fn since(self, then: Self) -> Self {
        Self {
            server_cpu: self.server_cpu.zip(then.server_cpu).map(|(now, then)| now.saturating_sub(then)),
            database_cpu: self.database_cpu.zip(then.database_cpu).map(|(now, then)| now.saturating_sub(then)),
            round_trips: self.round_trips.zip(then.round_trips).map(|(now, then)| now - then),
            pings: self.pings.zip(then.pings).map(|(now, then)| now - then),
            statements: self.statements.zip(then.statements).map(|(now, then)| now - then),
        }
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            server_cpu: self.server_cpu.zip(other.server_cpu).map(|(one, other)| one + other),
            database_cpu: self.database_cpu.zip(other.database_cpu).map(|(one, other)| one + other),
            round_trips: self.round_trips.zip(other.round_trips).map(|(one, other)| one + other),
            pings: self.pings.zip(other.pings).map(|(one, other)| one + other),
            statements: self.statements.zip(other.statements).map(|(one, other)| one + other),
        }
    }
}

/// Starts a server, and returns the time until it has answered its first request.
pub async fn time_to_first_answer(setup: &Setup, kind: Kind, database_url: &str) -> Result<Duration> {
    let started = Instant::now();
    let mut process = Process::start(setup, kind, database_url)?;
    let mut client = process.wait_until_ready().await?;
    client.fetch(Method::GET, "/v1/assistants?limit=1", Bytes::new()).await?;
    Ok(started.elapsed())
}

/// A server process. Killed when dropped.
struct Process {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Process {
    fn start(setup: &Setup, kind: Kind, database_url: &str) -> Result<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let n = STARTED.fetch_add(1, Ordering::Relaxed);
        let address = free_address()?;
        let log = setup.folder.join(format!("{}-{n}.log", kind.name()));
        let mut command = match kind {
            Kind::Direct => unreachable!("the model server runs in this process"),
            Kind::Floor => {
                let mut command = Command::new(std::env::current_exe()?);
                command
                    .arg("floor")
                    .args(["--listen", &address.to_string()])
                    .args(["--database-url", database_url])
                    .args(["--upstream", &setup.upstream.to_string()]);
                command
            }
            Kind::Assistd => {
                let mut command = Command::new(&setup.server_binary);
                // Removes the settings of the caller's environment.
                for (name, _) in std::env::vars_os() {
                    if name.to_string_lossy().starts_with("ASSISTD_") {
                        command.env_remove(name);
                    }
                }
                command
                    .env("ASSISTD_LISTEN", address.to_string())
                    .env("ASSISTD_DATABASE_URL", database_url)
                    .env("ASSISTD_UPSTREAM_URL", format!("http://{}/v1", setup.upstream))
                    .env("ASSISTD_DATA_DIR", setup.folder.join(format!("files-{n}")))
                    .env("ASSISTD_MAX_CONCURRENT_RUNS", setup.concurrent_runs_max.to_string())
                    .env("ASSISTD_LOG", "warn")
                    .current_dir(&setup.folder);
                command
            }
        };
        let output = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .map_err(|error| format!("failed to start {}: {error}", command.get_program().display()))?;
        Ok(Self { child, address, log })
    }

    /// Polls until the server is ready. Returns the client that polled.
    async fn wait_until_ready(&mut self) -> Result<Client> {
        let mut client = Client::new(self.address);
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let answer = client.fetch(Method::GET, "/ready", Bytes::new()).await;
            let Err(error) = answer else { return Ok(client) };
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the server exited with {status}: {}", self.last_log_lines()).into());
            }
            if Instant::now() > deadline {
                return Err(format!("the server did not become ready ({error}): {}", self.last_log_lines()).into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn last_log_lines(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(10).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns an unused address.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
