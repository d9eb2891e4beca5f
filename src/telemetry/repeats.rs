//! Warnings and errors that repeat: each is logged once, and then summed up once per minute.

use std::collections::HashMap;
use std::fmt::{Debug, Write as _};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use crate::store;

/// The time for which repetitions are summed up.
pub(super) const WINDOW: Duration = Duration::from_mins(1);
/// Maximum number of different events that are remembered. Beyond it, all events of one place in the code are the same.
const EVENTS_MAX: usize = 1_000;
/// Maximum length of the facts of a sum, in characters.
const FACTS_CHARS_MAX: usize = 500;
/// The span of a request, which does not make an event different.
const REQUEST_SPAN: &str = "request";
/// Texts that differ between repetitions of an event. Numbers never make an event different, except these.
const IGNORED_TEXTS: [&str; 1] = ["elapsed"];
const COUNTED_NUMBERS: [&str; 1] = ["status"];

/// Counts repetitions of warnings and errors. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Repeats {
    events: Arc<Mutex<HashMap<u64, Repeated>>>,
}

/// An event that was logged, and how often it has repeated since.
#[derive(Debug)]
struct Repeated {
    since: Instant,
    times: u64,
    facts: Facts,
}

/// What an event says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub level: Level,
    pub message: String,
    pub others: String,
}

/// The repetitions of an event in the last minute.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sum {
    pub times: u64,
    pub facts: Facts,
}

/// Identifies an event: by what it says, and by its place in the code.
#[derive(Debug, Clone, Copy)]
struct Key {
    event: u64,
    place: u64,
}

impl Repeats {
    fn events(&self) -> MutexGuard<'_, HashMap<u64, Repeated>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an event. Returns whether it must be logged: it does not repeat one of the last minute.
    fn count(&self, key: Key, now: Instant, facts: Facts) -> bool {
        let mut events = self.events();
        if events.len() >= EVENTS_MAX && !events.contains_key(&key.event) {
            events.retain(|_, known| known.times > 0 || now.duration_since(known.since) < WINDOW);
        }
        let is_full = events.len() >= EVENTS_MAX && !events.contains_key(&key.event);
        let key = if is_full { key.place } else { key.event };
        match events.get_mut(&key) {
            Some(known) if known.times == 0 && now.duration_since(known.since) >= WINDOW => {
                known.since = now;
                true
            }
            Some(known) => {
                known.times += 1;
                false
            }
            None => {
                events.insert(key, Repeated { since: now, times: 0, facts });
                true
            }
        }
    }

    /// Returns the sums that are due, and forgets events that have not repeated for a minute. With `all`, returns all sums.
    pub fn sums(&self, now: Instant, all: bool) -> Vec<Sum> {
        let mut sums = Vec::new();
        self.events().retain(|_, known| {
            if !all && now.duration_since(known.since) < WINDOW {
                return true;
            }
            let times = std::mem::take(&mut known.times);
            known.since = now;
            if times > 0 {
                sums.push(Sum { times, facts: known.facts.clone() });
            }
            times > 0
        });
        sums
    }
}

impl Sum {
    /// Logs the sum.
    pub fn log(&self) {
        let Self { times, facts: Facts { level, message, others } } = self;
        let window_s = WINDOW.as_secs();
        if *level == Level::ERROR {
            tracing::error!(repeated = times, window_s, facts = others, "{message}");
        } else {
            tracing::warn!(repeated = times, window_s, facts = others, "{message}");
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Repeats {
    fn event_enabled(&self, event: &Event<'_>, context: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::WARN || metadata.target() == module_path!() {
            return true;
        }
        let mut reader = FactsReader::default();
        event.record(&mut reader);
        // The store logs the outage itself. At more detailed levels, its consequences are logged as well.
        if reader.is_outage && LevelFilter::current() <= LevelFilter::INFO {
            return false;
        }
        let mut place = DefaultHasher::new();
        metadata.callsite().hash(&mut place);
        let place = place.finish();
        place.hash(&mut reader.hasher);
        if let Some(span) = context.event_span(event).filter(|span| span.name() != REQUEST_SPAN) {
            span.id().into_u64().hash(&mut reader.hasher);
        }
        let key = Key { event: reader.hasher.finish(), place };
        let facts = Facts { level: *metadata.level(), message: reader.message, others: reader.others };
        self.count(key, Instant::now(), facts)
    }
}

/// Reads the facts of an event.
#[derive(Default)]
struct FactsReader {
    hasher: DefaultHasher,
    message: String,
    others: String,
    is_outage: bool,
}

impl FactsReader {
    fn text(&mut self, field: &Field, text: &str) {
        if !IGNORED_TEXTS.contains(&field.name()) {
            (field.name(), text).hash(&mut self.hasher);
        }
        if field.name() == "message" {
            text.clone_into(&mut self.message);
            return;
        }
        let left = FACTS_CHARS_MAX.saturating_sub(self.others.len());
        let separator = if self.others.is_empty() { "" } else { " " };
        let text: String = text.chars().take(left).collect();
        write!(self.others, "{separator}{}={text}", field.name()).expect("writing to a string does not fail");
    }

    fn number(&mut self, field: &Field, number: u64) {
        if COUNTED_NUMBERS.contains(&field.name()) {
            self.text(field, &number.to_string());
        }
    }
}

impl Visit for FactsReader {
    fn record_str(&mut self, field: &Field, text: &str) {
        self.text(field, text);
    }

    fn record_u64(&mut self, field: &Field, number: u64) {
        self.number(field, number);
    }

    fn record_i64(&mut self, field: &Field, number: i64) {
        self.number(field, number.unsigned_abs());
    }

    fn record_f64(&mut self, _: &Field, _: f64) {}

    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        self.is_outage |= store::is_outage(error);
        self.text(field, &super::with_causes(error));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(message: &str) -> Facts {
        Facts { level: Level::WARN, message: message.to_owned(), others: String::new() }
    }

    #[test]
    fn a_repeated_event_is_logged_once_and_then_summed_up_once_per_minute() {
        let repeats = Repeats::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let count = |event, seconds| repeats.count(Key { event, place: 0 }, at(seconds), facts("failed"));

        assert!(count(1, 0) && count(2, 0), "different events are logged");
        assert!(!count(1, 1) && !count(1, 59));
        assert_eq!(repeats.sums(at(59), false), []);
        assert_eq!(repeats.sums(at(60), false), [Sum { times: 2, facts: facts("failed") }]);
        assert!(count(2, 61), "it has not repeated for a minute");
        assert!(!count(1, 62), "it still repeats");
        assert_eq!(repeats.sums(at(63), true), [Sum { times: 1, facts: facts("failed") }]);
        assert_eq!(repeats.sums(at(200), false), []);
        assert!(count(1, 201));
    }

    #[test]
    fn the_number_of_remembered_events_is_limited() {
        let repeats = Repeats::default();
        let now = Instant::now();
        for event in 0..EVENTS_MAX as u64 {
            assert!(repeats.count(Key { event, place: u64::MAX }, now, facts("failed")));
        }

        let more: Vec<bool> = (0..5)
            .map(|more| {
                let key = Key { event: (EVENTS_MAX + more) as u64, place: u64::MAX };
                repeats.count(key, now, facts("failed"))
            })
            .collect();

        assert_eq!(more, [true, false, false, false, false], "they count as one event of one place");
    }
}
