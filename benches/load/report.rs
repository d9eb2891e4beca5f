//! The report: one Markdown table per store, followed by notes and errors.

use std::fmt;
use std::time::Duration;

use crate::closed_loop::Errors;

/// The results of one store.
pub struct Report {
    title: String,
    rows: Vec<Row>,
    errors: Vec<String>,
    notes: Vec<String>,
}

/// One row of the table. A cell without values was not measured.
pub struct Row {
    pub what: String,
    pub unit: &'static str,
    pub direct: Vec<f64>,
    pub floor: Vec<f64>,
    pub assistd: Vec<f64>,
    /// Whether to show the ratios of assistd to the floor and to direct.
    pub ratios: bool,
}

impl Report {
    pub fn new(title: String) -> Self {
        Self { title, rows: Vec::new(), errors: Vec::new(), notes: Vec::new() }
    }

    /// Adds a row, and prints it immediately.
    pub fn add(&mut self, row: Row) {
        eprintln!("{row}");
        self.rows.push(row);
    }

    /// Adds the errors of a cell, if there are any.
    pub fn add_errors(&mut self, cell: &str, errors: &Errors) {
        if let Some(first) = &errors.first {
            let line = format!("{cell}: {} errors; first error: {first}", errors.count);
            eprintln!("{line}");
            self.errors.push(line);
        }
    }

    /// Adds a text below the table.
    pub fn add_note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "## {}\n", self.title)?;
        writeln!(out, "| what | unit | direct | floor | assistd | of floor | of direct |")?;
        writeln!(out, "| --- | --- | ---: | ---: | ---: | ---: | ---: |")?;
        for row in &self.rows {
            writeln!(out, "{row}")?;
        }
        for note in &self.notes {
            writeln!(out, "\n{note}")?;
        }
        for error in &self.errors {
            writeln!(out, "\n**Errors.** {error}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (of_floor, of_direct) = if self.ratios {
            (ratio(&self.assistd, &self.floor), ratio(&self.assistd, &self.direct))
        } else {
            (String::new(), String::new())
        };
        write!(
            out,
            "| {} | {} | {} | {} | {} | {of_floor} | {of_direct} |",
            self.what,
            self.unit,
            shown(&self.direct),
            shown(&self.floor),
            shown(&self.assistd)
        )
    }
}

/// Returns the ratio of the first values.
fn ratio(values: &[f64], of: &[f64]) -> String {
    match (values.first(), of.first()) {
        (Some(value), Some(of)) if *of > 0.0 => format!("{:.2}", value / of),
        _ => String::new(),
    }
}

fn shown(values: &[f64]) -> String {
    let values: Vec<String> = values.iter().map(|value| rounded(*value)).collect();
    values.join(" / ")
}

/// Returns the value with about three significant digits.
fn rounded(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Returns the 50th and 95th percentile in milliseconds, or nothing if there are no durations.
pub fn p50_and_p95(mut durations: Vec<Duration>) -> Vec<f64> {
    durations.sort_unstable();
    if durations.is_empty() {
        return Vec::new();
    }
    [50, 95].map(|percent| milliseconds(durations[(durations.len() - 1) * percent / 100])).to_vec()
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
