//! The fault tests. Servers are killed, stopped, frozen and disconnected from their database while clients use them. At the
//! end, all runs, messages, steps and usage are compared with the acknowledged requests and with the answers of the model.
//!
//! ```text
//! cargo build && tests/with-postgres cargo test --test faults -- --assistd target/debug/assistd [--short]
//!     [--store sqlite|postgres] [--seed N] [--seconds N] [--clients N] [--replicas N] [--scenario NAME]...
//! ```
//!
//! By default, runs ten minutes of random faults on each store, and all scenarios. `tests/run` uses `--short`. The seed
//! determines the actions of the clients and the faults, but not their timing. The exit status is 1 if anything was lost,
//! duplicated, stuck or incorrect.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test reads the environment, uses the real clock, and reports"
)]

mod chaos;
mod check;
mod client;
#[path = "../it/support/disk.rs"]
mod disk;
mod library;
mod reader;
mod relay;
mod scenarios;
mod servers;
#[path = "../it/support/skip.rs"]
mod skip;
mod upstream;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use crate::world::{Plan, Store, World};

/// Tests assistd under faults.
#[derive(Parser)]
#[command(name = "faults")]
struct Args {
    /// The server binary.
    #[arg(long)]
    assistd: PathBuf,
    /// Only this store.
    #[arg(long)]
    store: Option<StoreName>,
    /// Seed of the random faults and of the actions of the clients.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Duration of the random faults on each store, in seconds [default: 600; short: 40].
    #[arg(long)]
    seconds: Option<u64>,
    /// Number of clients.
    #[arg(long, default_value_t = 24)]
    clients: usize,
    /// Number of clients that add files to vector stores and search them.
    #[arg(long, default_value_t = 4)]
    librarians: usize,
    /// Number of servers on Postgres.
    #[arg(long, default_value_t = 3)]
    replicas: usize,
    /// Only these scenarios; random faults only with --seconds.
    #[arg(long, value_enum)]
    scenario: Vec<scenarios::Name>,
    /// Shorter random faults.
    #[arg(long)]
    short: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreName {
    Sqlite,
    Postgres,
}

fn main() -> ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime can be created");
    let is_passed = runtime.block_on(run(&Args::parse()));
    // Servers that are still running are killed with the runtime.
    runtime.shutdown_timeout(Duration::from_secs(5));
    if is_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(args: &Args) -> bool {
    let mut stores = Vec::new();
    if args.store != Some(StoreName::Postgres) {
        stores.push(Store::Sqlite);
    }
    if args.store != Some(StoreName::Sqlite) {
        match std::env::var("ASSISTD_TEST_POSTGRES_URL") {
            Ok(url) => stores.push(Store::Postgres(url)),
            Err(_) => skip::skip("ASSISTD_TEST_POSTGRES_URL: only SQLite is tested"),
        }
    }
    let mut is_passed = true;
    for store in &stores {
        for name in scenarios::Name::value_variants() {
            let is_wanted = args.scenario.is_empty() || args.scenario.contains(name);
            if is_wanted && name.runs_on(store) {
                let began = Instant::now();
                // A scenario that cannot run here reports that it is skipped.
                let Some(violations) = scenarios::run(*name, &args.assistd, store).await else { continue };
                report(&format!("scenario {name:?}"), store, began, violations.as_slice());
                is_passed &= violations.is_empty();
            }
        }
        if args.scenario.is_empty() || args.seconds.is_some() {
            is_passed &= random_faults(args, store).await;
        }
    }
    is_passed
}

fn report(what: &str, store: &Store, began: Instant, violations: &[String]) {
    let store = if *store == Store::Sqlite { "SQLite" } else { "Postgres" };
    let result = if violations.is_empty() { "passed" } else { "FAILED" };
    for violation in violations {
        println!("faults: violation: {violation}");
    }
    println!("faults: {what} on {store}: {result} after {:.1} s", began.elapsed().as_secs_f64());
}

async fn random_faults(args: &Args, store: &Store) -> bool {
    let began = Instant::now();
    let replicas = if *store == Store::Sqlite { 1 } else { args.replicas };
    let plan = Plan {
        assistd: args.assistd.clone(),
        store: store.clone(),
        replicas,
        settings: Vec::new(),
        wrappers: Vec::new(),
        home: None,
    };
    let world = World::start(plan).await;
    let chaos = tokio::spawn(chaos::inject_faults(world.clone(), args.seed));
    let clients: Vec<_> = (0..args.clients)
        .map(|number| tokio::spawn(client::run_conversations(world.clone(), number, args.seed ^ (number as u64 + 1))))
        .collect();
    let librarians: Vec<_> = (0..args.librarians)
        .map(|number| tokio::spawn(library::run_librarian(world.clone(), number, args.seed ^ (number as u64 + 1_001))))
        .collect();
    let seconds = args.seconds.unwrap_or(if args.short { 40 } else { 600 });
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    world.is_stopping.store(true, Ordering::Relaxed);
    chaos.await.expect("the faults do not panic");
    let mut conversations = Vec::new();
    for client in clients {
        conversations.extend(client.await.expect("a client does not panic"));
    }
    let mut shelves = Vec::new();
    for librarian in librarians {
        shelves.extend(librarian.await.expect("a client does not panic"));
    }
    check::check_all(&world, &conversations).await;
    library::check_all(&world, &shelves).await;
    let embedded = world.upstream.embedded_again();
    world.stop().await;
    let runs = conversations.iter().map(|conversation| conversation.runs.len()).sum::<usize>();
    let repeated = world.upstream.repeated();
    println!(
        "faults: {runs} runs, {repeated} model calls repeated, {} vector stores, {embedded} embeddings repeated, {:?}",
        shelves.len(),
        world.counts()
    );
    report(&format!("random faults (seed {})", args.seed), store, began, &world.violations());
    world.violations().is_empty()
}
