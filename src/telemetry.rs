//! The log.

mod json;
mod repeats;

use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::work::panic_message;
use json::WithCauses;
use repeats::Repeats;

/// What the setting `log` may be, for error messages.
const EXPECTED: &str = "expected off, error, warn, info, debug or trace, or levels by module, such as \
                        \"info,assistd::http=debug\"";
/// The names of the levels.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// How often sums of repeated warnings are logged, if there are any.
const SUM_UP_EVERY: Duration = Duration::from_secs(5);

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

impl LogFormat {
    /// Returns whether the log is JSON.
    #[must_use]
    pub fn is_json(self) -> bool {
        match self {
            Self::Auto => !std::io::stderr().is_terminal(),
            Self::Text => false,
            Self::Json => true,
        }
    }

    /// Returns whether a person reads standard output, and not a program.
    #[must_use]
    pub fn shows_banner(self) -> bool {
        match self {
            Self::Auto => std::io::stdout().is_terminal(),
            Self::Text => true,
            Self::Json => false,
        }
    }
}

/// Returns the texts of an error and of its causes, separated by colons.
#[must_use]
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        // Some errors repeat their cause.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

/// The log of this process.
#[derive(Debug)]
pub struct Log {
    repeats: Repeats,
}

impl Log {
    /// Logs how often warnings have repeated, once per minute. Never returns.
    pub async fn sum_up_repeats(&self) {
        loop {
            tokio::time::sleep(SUM_UP_EVERY).await;
            self.repeats.sums(Instant::now(), false).iter().for_each(repeats::Sum::log);
        }
    }

    /// Logs how often warnings have repeated since the last sums.
    pub fn finish(&self) {
        self.repeats.sums(Instant::now(), true).iter().for_each(repeats::Sum::log);
    }
}

/// Checks the setting `log`.
///
/// # Errors
/// What was expected.
pub fn check_filter(filter: &str) -> Result<(), String> {
    parse(filter).map(drop)
}

/// Starts logging to standard error, panics included. If there is already a log in this process, it is used.
///
/// # Errors
/// If the filter is invalid.
pub fn start(filter: &str, format: LogFormat) -> Result<Log, String> {
    let filter = parse(filter)?;
    let repeats = Repeats::default();
    // Errors of the log itself, such as a full disk, are not reported, because standard error is the log.
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let lines = if format.is_json() {
        let format = tracing_subscriber::fmt::format().json().flatten_event(true).with_span_list(false);
        lines.json().event_format(WithCauses::new(format)).boxed()
    } else {
        lines.with_target(false).with_ansi(has_colors()).boxed()
    };
    if tracing_subscriber::registry().with(lines).with(repeats.clone()).with(filter).try_init().is_ok() {
        std::panic::set_hook(Box::new(log_panic));
    }
    Ok(Log { repeats })
}

/// Returns whether standard error shows colors: it is a terminal that knows them, and the user wants them.
fn has_colors() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal()
        && !is_set("NO_COLOR")
        && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// Parses the setting `log`. Unlike [`EnvFilter`], rejects a word that is not a level: it would be the name of a module, and
/// nothing else would be logged.
fn parse(filter: &str) -> Result<EnvFilter, String> {
    let is_level = |text: &str| LEVELS.iter().any(|level| text.eq_ignore_ascii_case(level));
    let is_module =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte));
    let mut default = "";
    for directive in directives(filter).map(str::trim) {
        let is_valid = if let Some((target, level)) = directive.rsplit_once('=') {
            is_level(level.trim()) && (target.contains('[') || is_module(target.trim()))
        } else {
            default = directive;
            is_level(directive)
        };
        if !is_valid {
            return Err(EXPECTED.to_owned());
        }
    }
    // Dependencies are limited to warnings: some log too much at level "info", and HTTP clients log the addresses of model
    // servers.
    let level = if ["off", "error"].contains(&default.to_lowercase().as_str()) { default } else { "warn" };
    let limits = ["sqlx", "hyper", "hyper_util", "reqwest", "h2", "rustls"];
    let limits: Vec<String> = limits.iter().map(|target| format!("{target}={level}")).collect();
    let given: Vec<&str> = directives(filter).map(str::trim).collect();
    let filter = format!("{},{}", given.join(","), limits.join(","));
    EnvFilter::builder().parse(filter).map_err(|error| format!("{error}; {EXPECTED}"))
}

/// Splits a filter at the commas that are not in brackets, which have the fields of a span.
fn directives(filter: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    filter.split(move |character| {
        match character {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    })
}

/// Logs a panic, instead of the text that Rust prints.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string);
    let thread = std::thread::current();
    let thread = thread.name();
    let cause = panic_message(panic.payload());
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = (backtrace.status() == std::backtrace::BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(location, thread, cause, backtrace, "a thread panicked");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_has_levels_and_modules_with_levels() {
        for valid in [
            "info",
            "OFF",
            "warn,assistd::http=debug",
            "assistd=trace, sqlx=error",
            "info,[run]=debug",
            "assistd::http[request]=trace",
        ] {
            assert_eq!(check_filter(valid), Ok(()), "{valid}");
        }
        for invalid in [
            "",
            " ",
            "verbose",
            "warning",
            "=,=",
            "info,",
            "assistd::http",
            "assistd=verbose",
            "3",
            "info debug",
            "a b=info",
        ] {
            assert!(check_filter(invalid).unwrap_err().contains("expected off, error, warn"), "{invalid}");
        }
    }
}
