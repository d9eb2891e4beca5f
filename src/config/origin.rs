//! Where each setting comes from, for error messages.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::DeTable;
use toml::{Table, Value};

use super::{Error, Settings};

/// How the names of settings end whose values are secret.
const SECRET_ENDINGS: [&str; 3] = ["_key", "_keys", "_url"];
/// A table with keys of model servers.
const UPSTREAMS: &str = "upstreams";

/// The settings that are not at their defaults: the file and line, or the variable, of each.
#[derive(Debug, Default)]
pub(super) struct Origins(BTreeMap<String, String>);

impl Origins {
    /// Parses a settings file, and notes where its settings are.
    pub fn read(&mut self, path: &Path, text: &str) -> Result<Table, Error> {
        let line_of = |at: usize| text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
        // The whole message of the parser shows the line, which may have a secret.
        let invalid = |error: &toml::de::Error| {
            let line = error.span().map_or(1, |span| line_of(span.start));
            Error(format!("{}:{line}: not valid TOML: {}", path.display(), one_line(error.message())))
        };
        let located = DeTable::parse(text).map_err(|error| invalid(&error))?;
        for key in located.get_ref().keys() {
            self.0.insert(key.get_ref().to_string(), format!("{}:{}", path.display(), line_of(key.span().start)));
        }
        text.parse().map_err(|error| invalid(&error))
    }

    /// Notes that a variable has a setting.
    pub fn set_variable(&mut self, key: &str, variable: &str) {
        self.0.insert(key.to_owned(), variable.to_owned());
    }

    /// Returns an error about a setting, with the place of the setting.
    pub fn error_at(&self, key: &str, what: &str) -> Error {
        match self.0.get(key) {
            Some(origin) => Error(format!("{origin}: {what}")),
            None => Error(what.to_owned()),
        }
    }

    /// Adds the places of the settings that an error names.
    pub fn locate(&self, Error(text): Error) -> Error {
        let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let mut places: Vec<&str> = Vec::new();
        for word in text.split(|character| !is_part(character)) {
            if let Some(place) = self.0.get(word).filter(|place| !places.contains(&place.as_str())) {
                places.push(place);
            }
        }
        if places.is_empty() { Error(text) } else { Error(format!("{}: {text}", places.join(", "))) }
    }

    /// Returns the error of settings of which one has the wrong type.
    pub fn type_error(&self, defaults: &Table, given: &Table, error: &toml::de::Error) -> Error {
        for (key, value) in given.iter().filter(|(key, _)| self.0.contains_key(*key)) {
            let mut table = defaults.clone();
            table.insert(key.clone(), value.clone());
            let Err(error) = Value::Table(table).try_into::<Settings>() else { continue };
            if key == UPSTREAMS || SECRET_ENDINGS.iter().any(|ending| key.ends_with(ending)) {
                let expected = defaults.get(key).map_or("a list of tables", kind);
                return self.error_at(key, &format!("{key} has a value of the wrong type; expected {expected}"));
            }
            return self.error_at(key, &format!("{key}: {}", one_line(error.message())));
        }
        Error(format!("settings: {}", one_line(error.message())))
    }
}

/// Returns the type of a value, for error messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a time",
        Value::Array(_) => "a list of texts",
        Value::Table(_) => "a table",
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
