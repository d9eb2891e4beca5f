//! Warnings that would repeat for each file or search while another server is down.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a warning is logged at most.
const EVERY: Duration = Duration::from_mins(1);
/// Maximum number of subjects that are remembered. More are not counted.
const SUBJECTS_MAX: usize = 10_000;

/// A warning that is logged at most once per minute, with the number of its repetitions.
#[derive(Debug, Default)]
pub(super) struct RepeatedWarning(Mutex<Window>);

/// What has happened since the warning was logged last.
#[derive(Debug, Default)]
struct Window {
    /// When it was logged last.
    logged_at: Option<Instant>,
    times: u64,
    subjects: HashSet<String>,
}

/// How often the cause of a warning has occurred since it was logged last, or since the start.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Repetitions {
    /// All occurrences.
    pub times: u64,
    /// The number of different subjects that they concern.
    pub subjects: usize,
}

impl RepeatedWarning {
    /// Counts an occurrence that concerns a subject. If the warning is due, returns the count; the caller logs it.
    pub fn count(&self, subject: &str, now: Instant) -> Option<Repetitions> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        window.times += 1;
        if window.subjects.len() < SUBJECTS_MAX {
            window.subjects.insert(subject.to_owned());
        }
        if window.logged_at.is_some_and(|at| now.duration_since(at) < EVERY) {
            return None;
        }
        let Window { times, subjects, .. } =
            std::mem::replace(&mut *window, Window { logged_at: Some(now), ..Window::default() });
        Some(Repetitions { times, subjects: subjects.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_due_at_once_and_then_once_per_minute_with_what_was_counted() {
        let warning = RepeatedWarning::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);

        assert_eq!(warning.count("a", at(0)), Some(Repetitions { times: 1, subjects: 1 }));
        for second in 1..60 {
            assert_eq!(warning.count(if second % 2 == 0 { "a" } else { "b" }, at(second)), None);
        }
        assert_eq!(warning.count("c", at(60)), Some(Repetitions { times: 60, subjects: 3 }));
        assert_eq!(warning.count("a", at(119)), None);
        assert_eq!(warning.count("a", at(600)), Some(Repetitions { times: 2, subjects: 1 }));
    }

    #[test]
    fn the_number_of_remembered_subjects_is_limited() {
        let warning = RepeatedWarning::default();
        let start = Instant::now();
        warning.count("first", start);
        for subject in 0..SUBJECTS_MAX + 5 {
            warning.count(&subject.to_string(), start);
        }

        let counted = warning.count("last", start + EVERY).unwrap();

        assert_eq!(counted, Repetitions { times: SUBJECTS_MAX as u64 + 6, subjects: SUBJECTS_MAX });
    }
}
