//! The load benchmark compares `assistd` with a minimal server that does the least durable work (the floor) and with the
//! model server alone (direct), on one machine and in one run. `benches/README.md` explains each row.

#![allow(clippy::print_stdout, reason = "a benchmark prints its report to stdout")]
#![allow(clippy::disallowed_methods, reason = "a benchmark uses the real clock, plain tasks and the environment")]

#[path = "load/client.rs"]
mod client;
#[path = "load/closed_loop.rs"]
mod closed_loop;
#[path = "load/contestant.rs"]
mod contestant;
#[path = "load/engine.rs"]
mod engine;
#[path = "load/floor.rs"]
mod floor;
#[path = "load/floor_store.rs"]
mod floor_store;
#[path = "load/measurements.rs"]
mod measurements;
#[path = "load/proc.rs"]
mod proc;
#[path = "load/report.rs"]
mod report;
#[path = "load/store.rs"]
mod store;
#[path = "load/table.rs"]
mod table;
#[path = "load/upstream.rs"]
mod upstream;
#[path = "load/wire_count.rs"]
mod wire_count;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::contestant::Setup;
use crate::measurements::measure;
use crate::report::Report;
use crate::store::Store;
use crate::upstream::Upstream;

/// Any error; the benchmark only prints it.
type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T, E = Error> = std::result::Result<T, E>;

/// The URL of the Postgres to measure. If it is not set, only `SQLite` is measured.
const POSTGRES_URL: &str = "ASSISTD_TEST_POSTGRES_URL";

/// Measures assistd under load, compared with a minimal server and the model server alone.
#[derive(Parser)]
#[command(name = "load", args_conflicts_with_subcommands = true)]
struct Args {
    /// Numbers of concurrent clients [default: 1,16,64,256; quick: 16,64].
    #[arg(long, value_delimiter = ',')]
    clients: Vec<usize>,
    /// Seconds measured in each cell, after a short warm-up [default: 5; quick: 0.6].
    #[arg(long)]
    seconds: Option<f64>,
    /// Idle streams held open to measure memory [default: 1000; quick: 200].
    #[arg(long)]
    streams: Option<usize>,
    /// Messages in the long thread [default: 10000; quick: 1000].
    #[arg(long)]
    long_thread: Option<usize>,
    /// Messages in the large table [default: 1000000; quick: 100000].
    #[arg(long)]
    table: Option<usize>,
    /// Measure everything with low precision, in about a minute.
    #[arg(long)]
    quick: bool,
    /// Only these measurements.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Measurement>,
    /// Only this store.
    #[arg(long)]
    store: Option<StoreName>,
    /// The server binary to measure, instead of the one that Cargo built.
    #[arg(long)]
    server_bin: Option<PathBuf>,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the floor: the minimal server that assistd is compared with.
    #[command(hide = true)]
    Floor(floor::Args),
}

/// A group of rows that are measured together.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// Cold start, and the CPU time and memory of an idle server.
    Start,
    /// Streamed runs per second, and their CPU time.
    Streamed,
    /// Polled runs per second.
    Polled,
    /// Added latency to the first token and to the end of a run.
    Paced,
    /// Message create, get and list requests per second.
    Messages,
    /// Latency of listing the newest messages of a short and a long thread, and of a run that reads the last ten messages.
    List,
    /// Pages of a large table, and their query plans.
    Table,
    /// Memory per open idle stream.
    IdleStreams,
    /// Memory and processor time of streams that receive one token per second.
    SlowStreams,
    /// Processor time of streams whose runs wait for a slot.
    QueuedStreams,
    /// Memory and first token of runs on a thread of 30 MB.
    LargeThread,
    /// Round trips to Postgres per run.
    RoundTrips,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreName {
    Sqlite,
    Postgres,
}

/// What to measure and for how long: the arguments with defaults applied.
struct Plan {
    clients: Vec<usize>,
    measured: Duration,
    streams: usize,
    messages_long: usize,
    messages_table: usize,
    starts: usize,
    /// Number of turns per cell. In each turn, the contestants are measured one after the other, in alternating order.
    turns: u32,
    /// Wait before memory is read; an idle server is measured for three times as long.
    settling: Duration,
    only: Vec<Measurement>,
}

impl Plan {
    fn new(args: &Args) -> Result<Self> {
        let default_clients = if args.quick { vec![16, 64] } else { vec![1, 16, 64, 256] };
        let clients = if args.clients.is_empty() { default_clients } else { args.clients.clone() };
        let seconds = args.seconds.unwrap_or(if args.quick { 0.6 } else { 5.0 });
        Ok(Self {
            clients,
            measured: Duration::try_from_secs_f64(seconds)?,
            streams: proc::streams_allowed(args.streams.unwrap_or(if args.quick { 200 } else { 1000 })),
            messages_long: args.long_thread.unwrap_or(if args.quick { 1000 } else { 10_000 }),
            messages_table: args.table.unwrap_or(if args.quick { 100_000 } else { 1_000_000 }),
            starts: if args.quick { 3 } else { 7 },
            turns: if args.quick { 1 } else { 4 },
            settling: Duration::from_millis(if args.quick { 300 } else { 1000 }),
            only: args.only.clone(),
        })
    }

    fn includes(&self, measurement: Measurement) -> bool {
        self.only.is_empty() || self.only.contains(&measurement)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.command {
        Some(Command::Floor(floor_args)) => floor::serve(floor_args).await,
        // `cargo test --benches` also runs this, without arguments.
        None if !args.bench && args.server_bin.is_none() => {
            eprintln!("load: nothing measured; run it with: tests/with-postgres cargo bench --bench load");
            Ok(())
        }
        // Dropping the benchmark stops the servers that it started.
        None => tokio::select! {
            outcome = run(&args) => outcome,
            () = stop_signal() => Err("stopped".into()),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures each store and prints one table per store.
async fn run(args: &Args) -> Result<()> {
    let plan = Plan::new(args)?;
    let upstream = Upstream::start().await?;
    let folder = store::TemporaryFolder::create()?;
    let server_binary = match &args.server_bin {
        Some(path) => path.clone(),
        None => PathBuf::from(env!("CARGO_BIN_EXE_assistd")),
    };
    let mut stores = Vec::new();
    if args.store != Some(StoreName::Postgres) {
        stores.push(Store::sqlite(folder.path().to_owned()));
    }
    if args.store != Some(StoreName::Sqlite) {
        match std::env::var(POSTGRES_URL) {
            Ok(url) => stores.push(Store::postgres(url).await?),
            Err(_) => eprintln!("load: {POSTGRES_URL} is not set: measuring SQLite only"),
        }
    }

    let mut reports = Vec::new();
    let mut failed = false;
    for store in stores {
        let setup = Setup {
            server_binary: server_binary.clone(),
            folder: folder.path().to_owned(),
            upstream: upstream.address(),
            concurrent_runs_max: 2048.max(plan.streams + 64),
            store: std::sync::Arc::new(store),
        };
        let mut report = Report::new(setup.store.title().await?);
        let outcome = measure(&plan, &setup, &upstream, &mut report).await;
        setup.store.clean_up().await?;
        failed |= outcome.is_err() || report.has_errors();
        if let Err(error) = outcome {
            eprintln!("load: {} stopped early: {error}", setup.store.name());
        }
        reports.push(report);
    }
    println!("{}", proc::machine());
    for report in &reports {
        println!("\n{report}");
    }
    if failed { Err("something failed; see above".into()) } else { Ok(()) }
}

/// Waits for SIGINT or SIGTERM.
async fn stop_signal() {
    let mut terminate = signal(SignalKind::terminate()).expect("a handler for a catchable signal can be set");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
