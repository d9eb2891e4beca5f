//! Measures the code interpreter: opening sessions, calls, memory, and how fast Python is.
//!
//! ```text
//! cargo bench --bench code -- --installation FOLDER
//! ```
//!
//! `FOLDER` is the one in which `assistd code-interpreter install` has installed the runtime. `benches/README.md` explains each
//! figure.

#![allow(clippy::print_stdout, reason = "a benchmark prints its report to stdout")]
#![allow(clippy::disallowed_methods, reason = "a benchmark uses the real clock, plain tasks and the environment")]

#[path = "load/client.rs"]
#[expect(dead_code, reason = "shared with the load benchmark, which also reads streams in parts")]
mod client;
#[path = "code/live_runs.rs"]
mod live_runs;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use assistd::tools::code_interpreter::engine;
use assistd::tools::code_interpreter::install::Installation;
use assistd::tools::code_interpreter::sandbox::{End, Folder, Limits, Sandbox, Session};
use assistd::tools::code_interpreter::wasm::Wasm;
use clap::Parser;
use tokio_util::sync::CancellationToken;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

/// Maximum memory of a session, in bytes.
const MEMORY_MAX: usize = 1024 * 1024 * 1024;
/// Sessions whose memory is measured together.
const MEASURED_SESSIONS: usize = 20;
/// Programs that run here and in the Python of the host, with their names.
const PROGRAMS: [(&str, &str); 4] = [
    ("fib(27), pure Python", "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\nfib(27)"),
    ("sort of 300,000 floats", "import random\nrandom.seed(1)\nsorted(random.random() for _ in range(300_000))"),
    ("JSON of 100,000 numbers", "import json\njson.loads(json.dumps(list(range(100_000))))"),
    ("numpy: product of 400 × 400", "import numpy as np\na = np.random.default_rng(1).random((400, 400))\na @ a"),
];

#[derive(Debug, Parser)]
struct Arguments {
    /// The folder of the installation.
    #[arg(long)]
    installation: PathBuf,
    /// The Python of the host, for comparison.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// How many threads run code beside other runs.
    #[arg(long, default_value_t = 50)]
    sessions: usize,
    /// How long runs are measured, alone and beside code, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Set by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Opens sessions in folders of their own.
struct Bench {
    wasm: Arc<Wasm>,
    folder: PathBuf,
    opened: usize,
}

impl Bench {
    fn open(&mut self) -> Result<Box<dyn Session>> {
        self.opened += 1;
        let path = self.folder.join(self.opened.to_string());
        Ok(self.wasm.open(&Folder { path })?)
    }
}

fn limits() -> Limits {
    Limits { time: Duration::from_mins(2), output_bytes: 100_000, disk_bytes: 100_000_000, files: 1_000 }
}

/// Runs code, and returns how long that took.
fn run(session: &mut dyn Session, code: &str) -> Result<Duration> {
    let started = Instant::now();
    let ran = session.run(code, &limits(), &CancellationToken::new());
    let duration = started.elapsed();
    if ran.end == End::Completed { Ok(duration) } else { Err(format!("{:?}: {}", ran.end, ran.output).into()) }
}

fn median(mut durations: Vec<Duration>) -> f64 {
    durations.sort_unstable();
    durations.get(durations.len() / 2).map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e3)
}

/// Returns the memory of this process that no file or other process shares, in MiB.
fn private_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let kib: f64 = status
        .lines()
        .filter(|line| line.starts_with("Private_Dirty:") || line.starts_with("Swap:"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok())
        .sum();
    Ok(kib / 1024.0)
}

/// Returns the memory of an idle session after this code, in MiB.
fn memory_of_a_session(bench: &mut Bench, code: &str) -> Result<f64> {
    let before = private_mib()?;
    let mut sessions = Vec::new();
    for _ in 0..MEASURED_SESSIONS {
        let mut session = bench.open()?;
        run(&mut *session, code)?;
        sessions.push(session);
    }
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let memory = (private_mib()? - before) / MEASURED_SESSIONS as f64;
    Ok(memory)
}

fn measure(arguments: &Arguments) -> Result<()> {
    let installed = Installation::find(&arguments.installation)?.ok_or("the runtime is not installed")?;
    let started = Instant::now();
    let wasm = Arc::new(Wasm::load(engine::engine()?, installed, MEMORY_MAX)?);
    println!("Runtime loaded in {:.0} ms.\n", started.elapsed().as_secs_f64() * 1e3);
    let folder = std::env::temp_dir().join(format!("assistd-bench-code-{}", std::process::id()));
    let mut bench = Bench { wasm, folder: folder.clone(), opened: 0 };

    println!("| figure | measured | target |\n| --- | --- | --- |");
    let mut first = Vec::new();
    for _ in 0..30 {
        let started = Instant::now();
        let mut session = bench.open()?;
        run(&mut *session, "print(1)")?;
        first.push(started.elapsed());
    }
    println!("| new session to first output, ms | {:.1} | ≤ 20 |", median(first));
    let mut imported = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        let mut session = bench.open()?;
        run(&mut *session, "import pandas, matplotlib.pyplot\nprint(1)")?;
        imported.push(started.elapsed());
    }
    println!("| the same with pandas and matplotlib, ms | {:.0} | ≤ 1,500 |", median(imported));
    let mut session = bench.open()?;
    run(&mut *session, "x = 1")?;
    let calls = (0..200).map(|_| run(&mut *session, "x += 1")).collect::<Result<Vec<_>>>()?;
    println!("| further call, ms | {:.2} | ≤ 3 |", median(calls));
    println!("| memory of an idle session, MiB | {:.1} | ≤ 4 |", memory_of_a_session(&mut bench, "print(1)")?);
    let loaded = memory_of_a_session(&mut bench, "import pandas, matplotlib.pyplot")?;
    println!("| the same with pandas and matplotlib, MiB | {loaded:.0} | ≤ 90 |");

    println!("\n| program | here, ms | CPython of the host, ms | ratio |\n| --- | --- | --- | --- |");
    for (name, program) in PROGRAMS {
        let mut session = bench.open()?;
        // Imports are not measured.
        run(&mut *session, program.lines().next().unwrap_or_default())?;
        let here = median((0..3).map(|_| run(&mut *session, program)).collect::<Result<Vec<_>>>()?);
        match on_host(arguments, program) {
            Some(there) => println!("| {name} | {here:.0} | {there:.0} | {:.1} |", here / there),
            None => println!("| {name} | {here:.0} | not there | |"),
        }
    }
    println!();
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

/// Returns the median time of a program in the Python of the host, in milliseconds; `None` if it cannot run there.
fn on_host(arguments: &Arguments, program: &str) -> Option<f64> {
    let timed = format!(
        "import time\np = {program:?}\nexec(p.split('\\n')[0])\nt = []\nfor _ in range(3):\n    s = time.perf_counter()\n    \
         exec(p, {{}})\n    t.append(time.perf_counter() - s)\nprint(sorted(t)[1] * 1e3)"
    );
    let output = Command::new(&arguments.python).args(["-c", &timed]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runs = live_runs::Setup {
        installation: arguments.installation.clone(),
        sessions: arguments.sessions,
        duration: Duration::from_secs(arguments.seconds),
    };
    match measure(&arguments).and_then(|()| live_runs::measure(&runs)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("code: {error}");
            ExitCode::FAILURE
        }
    }
}
