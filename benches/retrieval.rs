//! The retrieval benchmark: how good and how fast searches of vector stores are. `benches/README.md` explains each figure.

#![allow(clippy::print_stdout, reason = "a benchmark prints its report to stdout")]
#![allow(clippy::disallowed_methods, reason = "a benchmark uses the real clock, plain tasks and the environment")]

#[path = "load/client.rs"]
#[expect(dead_code, reason = "shared with the load benchmark, which also reads streams in parts")]
mod client;
#[path = "retrieval/collection.rs"]
mod collection;
#[path = "retrieval/embeddings.rs"]
mod embeddings;
#[path = "retrieval/ingest.rs"]
mod ingest;
#[path = "retrieval/model.rs"]
mod model;
#[path = "load/proc.rs"]
#[expect(dead_code, reason = "shared with the load benchmark, which measures more")]
mod proc;
#[path = "retrieval/quality.rs"]
mod quality;
#[path = "retrieval/rounds.rs"]
mod rounds;
#[path = "retrieval/server.rs"]
mod server;
#[path = "retrieval/speed.rs"]
mod speed;
#[path = "load/store.rs"]
#[expect(dead_code, reason = "shared with the load benchmark, which measures more")]
mod store;
#[path = "retrieval/transfer.rs"]
mod transfer;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::collection::Collection;
use crate::embeddings::EmbeddingServer;
use crate::server::Setup;
use crate::store::Store;

/// Any error; the benchmark only prints it.
type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T, E = Error> = std::result::Result<T, E>;

/// The URL of the Postgres to measure. If it is not set, only `SQLite` is measured.
const POSTGRES_URL: &str = "ASSISTD_TEST_POSTGRES_URL";
/// The collection, relative to the crate.
const COLLECTION: &str = "../shared/data/scifact";

/// Measures how good and how fast searches are.
#[derive(Parser)]
#[command(name = "retrieval")]
struct Args {
    /// Numbers of chunks of the vector stores whose searches are timed.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000])]
    chunks: Vec<usize>,
    /// Above this number of chunks, the index of a vector store is in the database; by default, as the servers decide.
    #[arg(long)]
    memory_chunks: Option<usize>,
    /// Number of concurrent clients.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Seconds measured in each cell.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Only these measurements.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Measurement>,
    /// Only this store.
    #[arg(long)]
    store: Option<StoreName>,
    /// Folder of the collection, in the form of `BEIR`.
    #[arg(long)]
    collection: Option<PathBuf>,
    /// The server binary to measure, instead of the one that Cargo built.
    #[arg(long)]
    server_bin: Option<PathBuf>,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// nDCG@10 and recall@10 through the API.
    Quality,
    /// Latency of searches.
    Speed,
    /// Processing of files, beside runs.
    Ingest,
    /// Runs that search.
    Rounds,
    /// Upload and download of a large file.
    Transfer,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreName {
    Sqlite,
    Postgres,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    // `cargo test --benches` also runs this, without arguments.
    if !args.bench && args.server_bin.is_none() {
        eprintln!("retrieval: nothing measured; run it with: tests/with-postgres cargo bench --bench retrieval");
        return ExitCode::SUCCESS;
    }
    // Dropping the benchmark stops the servers that it started.
    let outcome = tokio::select! {
        outcome = run(&args) => outcome,
        () = stop_signal() => Err("stopped".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("retrieval: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<()> {
    let includes = |measurement| args.only.is_empty() || args.only.contains(&measurement);
    let folder = store::TemporaryFolder::create()?;
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(COLLECTION);
    let path = args.collection.clone().unwrap_or(default);
    let collection = if !includes(Measurement::Quality) {
        None
    } else if path.join("corpus.jsonl.gz").exists() {
        Some(Collection::load(&path)?)
    } else {
        println!("SKIPPED: quality: no collection found at {}", path.display());
        None
    };
    let embeddings = EmbeddingServer::start(collection.as_ref()).await?;
    let server_binary = args.server_bin.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_assistd")));
    let mut stores = Vec::new();
    if args.store != Some(StoreName::Postgres) {
        stores.push(Store::sqlite(folder.path().to_owned()));
    }
    if args.store != Some(StoreName::Sqlite) {
        match std::env::var(POSTGRES_URL) {
            Ok(url) => stores.push(Store::postgres(url).await?),
            Err(_) => println!("SKIPPED: Postgres, because {POSTGRES_URL} is not set"),
        }
    }
    println!("{}", proc::machine());
    for store in stores {
        println!("\n## {}\n", store.title().await?);
        let setup = Setup {
            server_binary: server_binary.clone(),
            folder: folder.path().to_owned(),
            embeddings: embeddings.address(),
            memory_chunks: args.memory_chunks,
        };
        let measured = async {
            if let Some(collection) = &collection {
                quality::measure(&setup, &store.create_database().await?, collection).await?;
            }
            if includes(Measurement::Speed) {
                let measured = Duration::try_from_secs_f64(args.seconds)?;
                speed::measure(&setup, &store, &args.chunks, args.clients, measured).await?;
            }
            if includes(Measurement::Ingest) {
                ingest::measure(&setup, &store.create_database().await?).await?;
            }
            if includes(Measurement::Rounds) {
                rounds::measure(&setup, &store.create_database().await?).await?;
            }
            if includes(Measurement::Transfer) {
                transfer::measure(&setup, &store.create_database().await?).await?;
            }
            Ok::<_, Error>(())
        };
        let outcome = measured.await;
        store.clean_up().await?;
        outcome?;
    }
    Ok(())
}

/// Waits for SIGINT or SIGTERM.
async fn stop_signal() {
    let mut terminate = signal(SignalKind::terminate()).expect("a handler for a catchable signal can be set");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
