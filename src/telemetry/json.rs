//! Lines of the log in JSON.

use std::fmt;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Writes events as another format does, which must be JSON. The texts of errors have their causes, which `tracing-subscriber`
/// writes only in its text format.
#[derive(Debug)]
pub(super) struct WithCauses<F>(F);

impl<F> WithCauses<F> {
    pub(super) fn new(format: F) -> Self {
        Self(format)
    }
}

impl<S, N, F> FormatEvent<S, N> for WithCauses<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut errors = Errors::default();
        event.record(&mut errors);
        if errors.0.is_empty() {
            return self.0.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        let mut fields: Map<String, Value> = serde_json::from_str(&line).map_err(|_| fmt::Error)?;
        for (name, text) in errors.0 {
            fields.insert(name.to_owned(), text.into());
        }
        writeln!(writer, "{}", Value::Object(fields))
    }
}

/// The errors of an event that have causes: names of fields, and texts with the causes.
#[derive(Debug, Default)]
struct Errors(Vec<(&'static str, String)>);

impl Visit for Errors {
    fn record_debug(&mut self, _field: &Field, _value: &dyn fmt::Debug) {}

    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        if error.source().is_some() {
            self.0.push((field.name(), super::with_causes(error)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::sync::{Arc, Mutex};

    use serde_json::json;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to open the database")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("no \"permission\"")]
    struct Inner;

    #[test]
    fn the_text_of_an_error_has_its_causes() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let format = tracing_subscriber::fmt::format().json().flatten_event(true);
        let lines = tracing_subscriber::fmt::layer().json().event_format(WithCauses::new(format));
        let lines = lines.with_writer({
            let written = written.clone();
            move || Written(written.clone())
        });

        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            let _span = tracing::info_span!("run", run.id = "run_1").entered();
            tracing::warn!(error = &Outer(Inner) as &dyn Error, attempt = 2, "failed");
            tracing::warn!(error = &Inner as &dyn Error, "failed again");
        });

        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let lines: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["error"], "failed to open the database: no \"permission\"");
        assert_eq!((&lines[0]["attempt"], &lines[0]["message"]), (&json!(2), &json!("failed")));
        assert_eq!(lines[0]["span"]["run.id"], "run_1");
        assert_eq!((&lines[1]["error"], lines.len()), (&json!("no \"permission\""), 2));
    }

    /// Writes to a shared buffer.
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
