//! The command line: parses arguments and settings, and runs the command.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use std::time::Duration;

use clap::{Parser, Subcommand};
use rustix::fs::Mode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use assistd::clock::Clock;
use assistd::commands::backup::{self, BackupArguments};
use assistd::commands::check::{self, CheckArguments};
use assistd::commands::code_interpreter::CodeInterpreterCommand;
use assistd::commands::{self, Commands, KeysCommand, Output, ProjectsCommand, SearchArguments};
use assistd::config::{self, Settings};
use assistd::retrieval::extract::child;
use assistd::server::{self, Server};
use assistd::telemetry::{self, with_causes};
use assistd::{health, store};

/// The exit status if a setting is invalid, as for an invalid argument.
const INVALID_SETTING: u8 = 2;
/// Maximum wait for blocking tasks on exit.
const BLOCKING_STOP_MAX: Duration = Duration::from_secs(2);

/// OpenAI's Assistants API v2 on your own machine, with any model behind it.
///
/// Settings come from a file and from environment variables with the prefix `ASSISTD_`. `assistd config` prints all of them.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Settings file in TOML. Environment variables override it.
    #[arg(long, value_name = "FILE", env = "ASSISTD_CONFIG", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (default).
    Serve,
    /// Print the settings in effect, with secrets masked.
    Config,
    /// Migrate the database schema and exit; the server does this at start as well.
    Migrate,
    /// Check settings, database, files, disk space and model servers, change nothing, and exit with 1 if a server cannot serve.
    Check(CheckArguments),
    /// Copy the SQLite database, and the bytes of files, while the server may be running.
    Backup(BackupArguments),
    /// Create, list and archive projects, in the database.
    #[command(subcommand)]
    Projects(ProjectsCommand),
    /// Create, list and revoke API keys, in the database.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Search a vector store, in the database, and print the best chunks with the parts of their scores.
    Search(SearchArguments),
    /// Install or remove the runtime of the code interpreter.
    #[command(subcommand)]
    CodeInterpreter(CodeInterpreterCommand),
    /// Exit with 0 if the server on this machine responds, otherwise with 1.
    Health,
    /// Parse a file on standard input. The server runs this for each file that it parses.
    #[command(hide = true)]
    ParseFile(child::Arguments),
}

fn main() -> ExitCode {
    // Only the user of the server can read what it writes.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let arguments = Arguments::parse();
    if let Some(Command::ParseFile(arguments)) = &arguments.command {
        return child::run(arguments);
    }
    if let Some(Command::CodeInterpreter(command)) = &arguments.command
        && let Some(code) = command.run_without_settings()
    {
        return code;
    }
    match run(&arguments) {
        Ok(code) => code,
        Err(Failure { error, is_logged }) => {
            if !is_logged {
                // Standard error may be closed.
                let _ = writeln!(std::io::stderr(), "assistd: {}", with_causes(&*error));
            }
            if is_setting(&*error) { ExitCode::from(INVALID_SETTING) } else { ExitCode::FAILURE }
        }
    }
}

/// Why a command has failed.
struct Failure {
    error: Box<dyn std::error::Error>,
    /// Whether the log has the error, so that it is not printed as well.
    is_logged: bool,
}

impl<E: Into<Box<dyn std::error::Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), is_logged: false }
    }
}

/// Returns whether a setting has caused an error, so that another start fails as well.
fn is_setting(error: &(dyn std::error::Error + 'static)) -> bool {
    let of_server = error.downcast_ref::<server::Error>();
    error.is::<config::Error>() || of_server.is_some_and(server::Error::is_setting)
}

fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let settings = Settings::load(arguments.config.as_deref(), std::env::vars_os());
    if let Some(Command::Check(options)) = &arguments.command {
        let report = runtime()?.block_on(check::run(settings.as_ref(), arguments.config.as_deref()));
        print(report.output(options))?;
        return Ok(if report.can_serve() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    run_with_settings(arguments, &settings?)?;
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Runtime::new()
}

fn run_with_settings(arguments: &Arguments, settings: &Settings) -> Result<(), Failure> {
    let runtime = runtime()?;
    match &arguments.command {
        None | Some(Command::Serve) => {
            let served = runtime.block_on(serve(settings));
            // Blocking tasks do not delay the exit.
            runtime.shutdown_timeout(BLOCKING_STOP_MAX);
            served
        }
        Some(Command::Config) => Ok(std::io::stdout().write_all(settings.masked()?.as_bytes())?),
        Some(Command::Migrate) => runtime.block_on(async {
            let store = store::open(&settings.store(), Arc::new(Clock::system()), Arc::default()).await?;
            writeln!(std::io::stdout(), "{} is up to date", store.display_name())?;
            store.close().await;
            Ok(())
        }),
        Some(Command::Backup(arguments)) => Ok(print(runtime.block_on(back_up(settings, arguments))?)?),
        Some(Command::Projects(command)) => {
            Ok(runtime.block_on(run_on_database(settings, async |commands| commands.projects(command).await))?)
        }
        Some(Command::Keys(command)) => {
            Ok(runtime.block_on(run_on_database(settings, async |commands| commands.keys(command).await))?)
        }
        Some(Command::Search(arguments)) => Ok(runtime.block_on(search(settings, arguments))?),
        Some(Command::CodeInterpreter(command)) => {
            // The package index is that of the user's Python tools.
            let environment = std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
            let folder = settings.code_interpreter_dir();
            Ok(print(runtime.block_on(command.run(&folder, &environment.collect()))?)?)
        }
        Some(Command::Health) => Ok(runtime.block_on(health::check(settings.address()?))?),
        Some(Command::Check(_) | Command::ParseFile(_)) => unreachable!("they run without valid settings"),
    }
}

/// Makes a backup. A signal stops it, and nothing remains.
async fn back_up(settings: &Settings, arguments: &BackupArguments) -> Result<Output, Box<dyn std::error::Error>> {
    let mut signals = StopSignals::new()?;
    let stopping = CancellationToken::new();
    let mut backup = std::pin::pin!(backup::run(settings, arguments, &stopping));
    tokio::select! {
        output = &mut backup => return Ok(output?),
        () = signals.next() => {}
    }
    stopping.cancel();
    Ok(backup.await?)
}

/// Runs a command on the database, which a server may be using, and prints its output.
async fn run_on_database(
    settings: &Settings,
    run: impl AsyncFnOnce(&Commands) -> Result<Output, commands::Error>,
) -> Result<(), Box<dyn std::error::Error>> {
    let clock = Arc::new(Clock::system());
    let store = store::open_beside_server(&settings.store(), clock.clone()).await?;
    let output = run(&Commands::new(store.clone(), clock)).await;
    store.close().await;
    print(output?)
}

/// Searches a vector store, which a server may be using.
async fn search(settings: &Settings, arguments: &SearchArguments) -> Result<(), Box<dyn std::error::Error>> {
    let clock = Arc::new(Clock::system());
    let store = store::open_beside_server(&settings.store(), clock.clone()).await?;
    let retrieval = server::retrieval_of_command(settings, &store, &clock).await;
    let output = Commands::new(store.clone(), clock).search(&retrieval, arguments).await;
    store.close().await;
    print(output?)
}

fn print(output: Output) -> Result<(), Box<dyn std::error::Error>> {
    let Output { result, note } = output;
    std::io::stdout().write_all(result.as_bytes())?;
    if let Some(note) = note {
        // Standard error may be closed.
        let _ = writeln!(std::io::stderr(), "{note}");
    }
    Ok(())
}

async fn serve(settings: &Settings) -> Result<(), Failure> {
    let log = telemetry::start(&settings.log, settings.log_format)?;
    let served = tokio::select! {
        served = serve_until_stopped(settings) => served,
        () = log.sum_up_repeats() => unreachable!("it never returns"),
    };
    log.finish();
    served.map_err(|error| {
        let is_logged = settings.log_format.is_json();
        if is_logged {
            tracing::error!(error = with_causes(&*error), "the server does not start");
        }
        Failure { error, is_logged }
    })
}

async fn serve_until_stopped(settings: &Settings) -> Result<(), Box<dyn std::error::Error>> {
    let mut signals = StopSignals::new()?;
    // It may wait for the database.
    let server = tokio::select! {
        server = Server::start(settings, Arc::new(Clock::system())) => server?,
        () = signals.next() => {
            tracing::info!("stopped before the server had started");
            return Ok(());
        }
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        address = %server.address,
        store = server.store,
        files = server.files,
        model = server.model,
        "listening"
    );
    if let Some(address) = server.metrics_address {
        tracing::info!(%address, "serving metrics");
    }
    if settings.log_format.shows_banner()
        && let Err(error) = banner(&server)
    {
        tracing::warn!(error = &error as &dyn std::error::Error, "failed to write to standard output");
    }
    signals.next().await;
    tokio::select! {
        () = server.stop() => {}
        // A second signal exits immediately. The next server resumes unfinished runs.
        () = signals.next() => {}
    }
    Ok(())
}

/// The signals that stop a program: SIGTERM, and SIGINT, which Ctrl-C sends.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn banner(server: &Server) -> std::io::Result<()> {
    let Server { address, store, files, model, model_name, embeddings, has_keys, .. } = server;
    let address = health::reachable(*address);
    let key = if *has_keys { "YOUR_KEY" } else { "any" };
    writeln!(
        std::io::stdout(),
        "assistd {version} listens on http://{address}
  base_url    http://{address}/v1
  api_key     {key_text}
  store       {store}
  files       {files}
  model       {model}
  embeddings  {embeddings}

Try it:
  curl -sN http://{address}/v1/threads/runs -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\
    -d \"{{\\\"assistant_id\\\": \\\"$(curl -s http://{address}/v1/assistants -H 'Authorization: Bearer {key}' \\
      -H 'Content-Type: application/json' -d '{{\"model\": \"{model_name}\"}}' | grep -o 'asst_[0-9a-f]*')\\\", \\
      \\\"thread\\\": {{\\\"messages\\\": [{{\\\"role\\\": \\\"user\\\", \\\"content\\\": \\\"Hello\\\"}}]}}, \\\"stream\\\": true}}\"
",
        version = env!("CARGO_PKG_VERSION"),
        key_text = if *has_keys { "one of yours" } else { "any (there are no keys: only this machine can connect)" },
    )
}
