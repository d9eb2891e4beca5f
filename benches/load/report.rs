//! The report: one Markdown table for a store, and the errors below it.

use std::fmt;
use std::time::Duration;

use crate::closed_loop::Errors;

/// What was measured on one store.
pub struct Report {
    title: String,
    rows: Vec<Row>,
    errors: Vec<String>,
    notes: Vec<String>,
}

/// One line of the table. No figures: not measured, or not to be measured there.
pub struct Row {
    pub what: String,
    pub unit: &'static str,
    pub direct: Vec<f64>,
    pub floor: Vec<f64>,
    pub assistd: Vec<f64>,
    /// Whether assistd's figure is told as a part of the others' too.
    pub ratios: bool,
}

impl Report {
    pub fn new(title: String) -> Self {
        Self { title, rows: Vec::new(), errors: Vec::new(), notes: Vec::new() }
    }

    /// Adds a line and shows it at once.
    pub fn add(&mut self, row: Row) {
        eprintln!("{row}");
        self.rows.push(row);
    }

    /// Notes the errors of a cell, if there are any.
    pub fn note_errors(&mut self, cell: &str, errors: &Errors) {
        if let Some(first) = &errors.first {
            let line = format!("{cell}: {} errors, the first: {first}", errors.count);
            eprintln!("{line}");
            self.errors.push(line);
        }
    }

    /// Shows a text below the table, as it is.
    pub fn note(&mut self, note: String) {
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

/// The first figure of one as a part of the first of the other.
fn ratio(figures: &[f64], of: &[f64]) -> String {
    match (figures.first(), of.first()) {
        (Some(figure), Some(of)) if *of > 0.0 => format!("{:.2}", figure / of),
        _ => String::new(),
    }
}

fn shown(figures: &[f64]) -> String {
    let figures: Vec<String> = figures.iter().map(|figure| rounded(*figure)).collect();
    figures.join(" / ")
}

/// About three digits.
fn rounded(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// In milliseconds, at the middle and below which 95 of 100 are; nothing when there are none.
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
