//! The log.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Starts logging to standard error. Further calls have no effect.
///
/// # Errors
/// If the filter is invalid.
pub fn start(filter: &str, format: LogFormat) -> Result<(), tracing_subscriber::filter::ParseError> {
    // Dependencies are limited to warnings: some log too much at level "info", and HTTP clients log the addresses of model
    // servers.
    let limits = "sqlx=warn,hyper=warn,hyper_util=warn,reqwest=warn,h2=warn,rustls=warn";
    let filter = EnvFilter::builder().parse(format!("{filter},{limits}"))?;
    // Errors of the log itself, such as a full disk, are not reported, because standard error is the log.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let json = match format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let started = if json {
        builder.json().flatten_event(true).with_span_list(false).try_init()
    } else {
        builder.with_target(false).try_init()
    };
    // Fails if another log was already started in this process, which is then used.
    drop(started);
    Ok(())
}
