//! The command that checks what a server needs: the settings, the database, files, disk space and model servers. It changes
//! nothing, and a server may be running.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use rustix::fs::{Access, access, statvfs};
use serde::Serialize;
use serde_json::json;
use tokio_util::task::TaskTracker;

use super::{Output, table};
use crate::config::{self, Settings};
use crate::files::blobs::Blobs;
use crate::health;
use crate::llm::discover;
use crate::llm::inspect::{self, Purpose};
use crate::store::{self, Inspection, RELEASE};
use crate::telemetry::with_causes;
use crate::tools::code_interpreter::install::{COMMAND, Installation};

/// Free space below which a server cannot be expected to work, in bytes.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Free space below which it is reported, in bytes.
const FREE_BYTES_LOW: u64 = 1024 * 1024 * 1024;
/// The oldest version of Postgres that is supported.
const POSTGRES_MIN: u32 = 14;

/// The arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How a finding affects a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// A server works, but an operator should know it.
    Warning,
    /// A server does not start, or cannot serve requests.
    Problem,
}

/// Something that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    area: String,
    level: Level,
    text: String,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// Returns whether a server can serve requests.
    #[must_use]
    pub fn can_serve(&self) -> bool {
        self.findings.iter().all(|finding| finding.level < Level::Problem)
    }

    /// Returns the report as a page, or as JSON.
    #[must_use]
    pub fn output(&self, arguments: &CheckArguments) -> Output {
        if arguments.json {
            let report = json!({"version": RELEASE, "can_serve": self.can_serve(), "findings": self.findings});
            return Output::json(&report);
        }
        let level = |finding: &Finding| match finding.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
        };
        let row = |finding: &Finding| {
            [level(finding).to_owned(), finding.area.clone(), finding.text.replace(|c: char| c.is_control(), " ")]
        };
        Output::of(table(["RESULT", "AREA", "FINDING"], self.findings.iter().map(row)))
    }

    fn add(&mut self, area: &str, level: Level, text: impl Into<String>) {
        self.findings.push(Finding { area: area.to_owned(), level, text: text.into() });
    }

    fn ok(&mut self, area: &str, text: impl Into<String>) {
        self.add(area, Level::Ok, text);
    }

    fn warning(&mut self, area: &str, text: impl Into<String>) {
        self.add(area, Level::Warning, text);
    }

    fn problem(&mut self, area: &str, text: impl Into<String>) {
        self.add(area, Level::Problem, text);
    }
}

/// Checks what a server with these settings needs. `file` is the settings file, if there is one.
pub async fn run(settings: Result<&Settings, &config::Error>, file: Option<&Path>) -> Report {
    let mut report = Report::default();
    report.ok("version", format!("assistd {RELEASE}"));
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => {
            report.problem("settings", error.to_string());
            return report;
        }
    };
    check_settings(&mut report, file);
    let inspected = store::inspect(&settings.store()).await;
    let inspection = check_database(&mut report, inspected);
    check_address(&mut report, settings, inspection.as_ref()).await;
    check_files(&mut report, settings).await;
    check_folders(&mut report, settings, inspection.as_ref());
    check_model_servers(&mut report, settings).await;
    check_code_interpreter(&mut report, settings);
    report
}

fn check_settings(report: &mut Report, file: Option<&Path>) {
    let source = file.map_or_else(|| "no file".to_owned(), |path| path.display().to_string());
    match file.filter(|path| config::file_has_secrets(path) && is_readable_by_others(path)) {
        Some(path) => report.warning(
            "settings",
            format!("valid ({source}), but other users of this machine can read it: chmod 600 {}", path.display()),
        ),
        None => report.ok("settings", format!("valid ({source})")),
    }
}

fn check_database(report: &mut Report, inspected: Result<Option<Inspection>, store::Error>) -> Option<Inspection> {
    let area = "database";
    let found = match inspected {
        Ok(Some(found)) => found,
        Ok(None) => {
            report.ok(area, "the file does not exist; the server creates it");
            return None;
        }
        Err(error) => {
            report.problem(area, with_causes(&error));
            return None;
        }
    };
    let Inspection { display_name, software, schema, known_version, .. } = &found;
    let version = schema.version;
    let mut text = format!("{display_name}, {software}, schema {version}");
    if let Some(extension) = &found.vector_search {
        text = format!("{text}, {extension}");
    }
    if found.is_in_use {
        text = format!("{text}, in use by a server");
    }
    let major = software.strip_prefix("Postgres ").map(|version| version.split(|c: char| !c.is_ascii_digit()));
    let major: Option<u32> = major.and_then(|mut parts| parts.next()?.parse().ok());
    if major.is_some_and(|major| major < POSTGRES_MIN) {
        report.problem(area, format!("{text}; Postgres {POSTGRES_MIN} or later is needed"));
    } else if version < *known_version {
        report.ok(area, format!("{text}; the server migrates it to schema {known_version} at its start"));
    } else if version > *known_version {
        let writer = &schema.written_by;
        report.warning(
            area,
            format!("{text}, of assistd {writer}; this release can use it, and knows schema {known_version}"),
        );
    } else {
        report.ok(area, text);
    }
    let path = found.path.as_deref();
    if let Some(path) = path.filter(|path| is_readable_by_others(path)) {
        let path = path.display();
        report.warning(area, format!("other users of this machine can read the file: chmod 600 {path}"));
    }
    Some(found)
}

async fn check_address(report: &mut Report, settings: &Settings, database: Option<&Inspection>) {
    let area = "address";
    // The settings are valid.
    let Ok(address) = settings.address() else { return };
    if !settings.has_keys() && !database.is_some_and(|found| found.has_keys) && !address.ip().is_loopback() {
        let listen = &settings.listen;
        report.problem(
            area,
            format!("listen is {listen}, which other machines can reach, and no API keys are configured"),
        );
        return;
    }
    if health::check(address).await.is_ok() {
        report.ok(area, format!("a server responds at {address}"));
        return;
    }
    match bind(address) {
        Ok(()) => report.ok(area, format!("{address} is free; no server is running there")),
        Err(error) => report.problem(area, format!("cannot listen on {address}: {error}")),
    }
}

/// Checks that an address can be bound.
fn bind(address: SocketAddr) -> std::io::Result<()> {
    TcpListener::bind(address).map(drop)
}

async fn check_files(report: &mut Report, settings: &Settings) {
    let area = "files";
    let blobs = match Blobs::open(&settings.blobs(), TaskTracker::new()) {
        Ok(blobs) => blobs,
        Err(error) => return report.problem(area, with_causes(&error)),
    };
    match blobs.check().await {
        Ok(()) => report.ok(area, blobs.display_name()),
        Err(error) => report.problem(area, format!("{}: {}", blobs.display_name(), with_causes(&error))),
    }
}

/// Checks that the folders of the database and of files can be written, and have free space.
fn check_folders(report: &mut Report, settings: &Settings, database: Option<&Inspection>) {
    let store = settings.store();
    let database = database.and_then(|found| found.path.clone()).or_else(|| store::file_of(&store));
    let database = database.as_deref().and_then(Path::parent).map(Path::to_owned);
    let blobs = Blobs::open(&settings.blobs(), TaskTracker::new()).ok();
    let files = blobs.as_ref().and_then(Blobs::folder).map(Path::to_owned);
    let mut checked: Vec<PathBuf> = Vec::new();
    for folder in [database, files, Some(settings.data_dir.clone())].into_iter().flatten() {
        let Some(existing) = nearest_existing(&folder) else { continue };
        if !checked.contains(&existing) {
            check_folder(report, &existing);
            checked.push(existing);
        }
    }
}

fn check_folder(report: &mut Report, folder: &Path) {
    let area = "disk";
    let name = folder.display();
    if access(folder, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        report.problem(area, format!("{name} cannot be written by this user"));
        return;
    }
    let free = match statvfs(folder) {
        Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize),
        Err(error) => return report.problem(area, format!("{name}: {}", std::io::Error::from(error))),
    };
    let text = format!("{name}: {} MB free", free / 1_000_000);
    match free {
        ..FREE_BYTES_MIN => report.problem(area, text),
        FREE_BYTES_MIN..FREE_BYTES_LOW => report.warning(area, text),
        FREE_BYTES_LOW.. => report.ok(area, text),
    }
}

/// Returns the folder, or the nearest folder above it that exists.
fn nearest_existing(folder: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(folder).ok()?;
    folder.ancestors().find(|folder| folder.is_dir()).map(Path::to_owned)
}

async fn check_model_servers(report: &mut Report, settings: &Settings) {
    let inspected = settings.inspect_model_servers(&Arc::default()).await;
    if inspected.iter().all(|(server, _)| server.purpose() != Purpose::Chat) {
        match discover(&settings.llm(), &Arc::default()).await {
            Ok(found) => report.ok("model server", format!("{}, found on this machine: {}", found.name, found.model)),
            Err(reason) => report.warning("model server", format!("{reason}: the built-in echo model answers")),
        }
    }
    for (server, inspection) in &inspected {
        let area = format!("model server {}", server.name);
        let models = inspection.models.as_deref().ok().map(|models| inspect::names(&[models]));
        let level = match inspection.advice() {
            None => Level::Ok,
            Some(_) if inspection.may_work() => Level::Warning,
            Some(_) => Level::Problem,
        };
        let found: Vec<String> = models.into_iter().chain(inspection.advice()).collect();
        report.add(&area, level, format!("{}: {}", server.url.masked(), found.join(". ")));
    }
    for (setting, warning) in settings.unlisted_models(&inspected) {
        report.warning(setting, warning);
    }
}

fn check_code_interpreter(report: &mut Report, settings: &Settings) {
    let area = "code interpreter";
    match Installation::find(&settings.code_interpreter_dir()) {
        Ok(Some(installed)) => report.ok(area, format!("installed in {}", installed.folder().display())),
        Ok(None) => report.ok(area, format!("not installed; `{COMMAND}` installs it")),
        Err(error) => report.warning(area, with_causes(&error)),
    }
}

/// Returns whether the permissions of a path let others than its owner read it.
fn is_readable_by_others(path: &Path) -> bool {
    // A folder that others cannot enter protects what is in it.
    let is_open = |path: &Path, bits: u32| std::fs::metadata(path).is_ok_and(|found| found.mode() & bits != 0);
    let Ok(path) = std::path::absolute(path) else { return false };
    is_open(&path, 0o044) && path.ancestors().skip(1).all(|folder| is_open(folder, 0o011))
}
