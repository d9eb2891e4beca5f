//! Where settings come from: the defaults, a file, and environment variables. Errors name the line or the variable.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::num::IntErrorKind;
use std::path::Path;

use serde::Deserialize as _;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::{EXAMPLE, Error, Settings};

/// The prefix of our environment variables.
const PREFIX: &str = "ASSISTD_";
/// The suffix of a variable that names a file with the value.
const FILE_SUFFIX: &str = "_FILE";
/// Maximum size of a file with the value of one setting, in bytes.
const VALUE_BYTES_MAX: u64 = 64 * 1024;
/// Environment variables with our prefix that are not settings.
const NOT_SETTINGS: [&str; 1] = ["ASSISTD_CONFIG"];
/// Prefixes of variables that Kubernetes and Docker links set for a service named assistd, and that our tests use.
const INJECTED: [&str; 3] = ["ASSISTD_SERVICE_", "ASSISTD_PORT", "ASSISTD_TEST_"];
/// Settings whose values no error shows, because they are or contain secrets.
const SECRETS: [&str; 12] = [
    "api_keys",
    "admin_keys",
    "database_url",
    "upstream_url",
    "upstream_api_key",
    "embedding_url",
    "embedding_api_key",
    "files_s3_endpoint",
    "files_s3_access_key",
    "files_s3_secret_key",
    "otlp_endpoint",
    "upstreams",
];
/// Characters of a value that an error shows.
const SHOWN_CHARS: usize = 60;
/// Maximum number of characters of an error.
const ERROR_CHARS_MAX: usize = 1_000;

/// Where the value of a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    /// A line of the settings file.
    Line { file: String, line: usize },
    /// An environment variable.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(formatter, "{file}:{line}"),
            Self::Variable(name) => formatter.write_str(name),
        }
    }
}

/// Where the values of settings come from. Those at their defaults are absent.
#[derive(Debug, Default)]
struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// Returns the error for a value, or for several that do not fit together.
    fn error(&self, settings: &[String], text: &str) -> Error {
        let mut found: Vec<String> = Vec::new();
        for name in settings {
            let origin = self.0.get(name).or_else(|| self.0.get(name.split('[').next().unwrap_or(name)));
            if let Some(origin) = origin.map(ToString::to_string).filter(|origin| !found.contains(origin)) {
                found.push(origin);
            }
        }
        if found.is_empty() { Error(text.to_owned()) } else { Error(format!("{}: {text}", found.join(", "))) }
    }
}

/// An invalid value of a setting, or values of several that do not fit together.
#[derive(Debug)]
pub(super) struct Invalid {
    /// The names of the settings.
    settings: Vec<String>,
    /// The value, and what was expected.
    text: String,
}

impl Invalid {
    pub(super) fn new(setting: &str, text: impl Into<String>) -> Self {
        Self { settings: vec![setting.to_owned()], text: text.into() }
    }

    pub(super) fn several(settings: &[&str], text: impl Into<String>) -> Self {
        Self { settings: settings.iter().map(|name| (*name).to_owned()).collect(), text: text.into() }
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self(invalid.text)
    }
}

impl Settings {
    /// Loads the defaults, the file, if any, and the environment variables.
    ///
    /// # Errors
    /// If the file cannot be read, a setting is unknown, or a value has the wrong type or is out of range. The text is one
    /// line, which names the line of the file or the variable.
    pub fn load(file: Option<&Path>, environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Self, Error> {
        Self::read(file, environment).map_err(|error| Error(printable(&error.0)))
    }

    fn read(file: Option<&Path>, environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Self, Error> {
        let mut origins = Origins::default();
        let text = match file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| Error(format!("failed to read the settings file {}: {error}", path.display())))?,
            None => String::new(),
        };
        let name = file.map(|path| path.display().to_string()).unwrap_or_default();
        let of_file = from_file(&name, &text, &mut origins)?;
        let variables = variables(environment, &of_file, &mut origins)?;
        let mut table = of_file.clone();
        table.extend(variables.clone());
        let settings: Self = Value::Table(table).try_into().map_err(|error: toml::de::Error| {
            // The values of the file are valid, so that one of the variables is not.
            let with = |key: &str, value: &Value| {
                let mut table = of_file.clone();
                table.insert(key.to_owned(), value.clone());
                Value::Table(table).try_into::<Self>().err()
            };
            let found = variables.iter().find_map(|(key, value)| Some((key, value, with(key, value)?)));
            match found {
                Some((key, value, error)) => {
                    let text = value.as_str().map_or_else(|| value.to_string(), |text| format!("{text:?}"));
                    origins.error(std::slice::from_ref(key), &wrong_type(key, &text, error.message()))
                }
                None => Error(error.message().to_owned()),
            }
        })?;
        settings.check().map_err(|invalid| origins.error(&invalid.settings, &invalid.text))?;
        Ok(settings)
    }
}

/// Returns the defaults, with the values of the file.
fn from_file(name: &str, text: &str, origins: &mut Origins) -> Result<Table, Error> {
    let at = |offset: usize, what: &str| Error(format!("{name}:{}: {what}", line_of(text, offset)));
    let defaults = DeTable::parse(EXAMPLE).map_err(|error| Error(format!("the defaults: {}", error.message())))?;
    let given = DeTable::parse(text)
        .map_err(|error| at(error.span().map_or(0, |span| span.start), &one_line(error.message())))?;
    let mut merged = defaults.into_inner();
    let mut starts: Vec<(usize, String)> = Vec::new();
    for (key, value) in given.into_inner() {
        let setting = key.get_ref().to_string();
        if !merged.contains_key(key.get_ref().as_ref()) && setting != "upstreams" {
            return Err(at(key.span().start, &unknown(&setting)));
        }
        let mut add = |element: String, offset: usize| {
            starts.push((offset, setting.clone()));
            origins.0.insert(element, Origin::Line { file: name.to_owned(), line: line_of(text, offset) });
        };
        add(setting.clone(), key.span().start);
        if let DeValue::Array(items) = value.get_ref() {
            for (index, item) in items.iter().enumerate() {
                add(format!("{setting}[{index}]"), item.span().start);
            }
        }
        merged.insert(key, value);
    }
    let merged = Spanned::new(0..text.len(), merged);
    let read: Result<Settings, _> = Settings::deserialize(toml::Deserializer::from(merged.clone()));
    if let Err(error) = read {
        let offset = error.span().map_or(0, |span| span.start);
        // A table with a header reaches to the next one.
        let before = starts.iter().filter(|(start, _)| *start <= offset).max();
        let setting = before.map_or("upstreams", |(_, setting)| setting.as_str());
        let value = error.span().and_then(|span| text.get(span)).unwrap_or_default();
        return Err(at(offset, &wrong_type(setting, value, error.message())));
    }
    Table::deserialize(toml::Deserializer::from(merged)).map_err(|error| Error(error.message().to_owned()))
}

/// Returns the values of the environment variables.
fn variables(
    environment: impl Iterator<Item = (OsString, OsString)>,
    settings: &Table,
    origins: &mut Origins,
) -> Result<Table, Error> {
    let environment: Vec<(OsString, OsString)> = environment.collect();
    let has_file = |name: &str| {
        let name = format!("{name}{FILE_SUFFIX}");
        environment.iter().any(|(other, path)| **other == *name && !path.is_empty())
    };
    let mut found = Table::new();
    for (name, text) in &environment {
        let Some(name) = name.to_str() else { continue };
        let Some(written) = name.strip_prefix(PREFIX).map(str::to_lowercase) else { continue };
        if NOT_SETTINGS.contains(&name) || INJECTED.iter().any(|injected| name.starts_with(injected)) {
            continue;
        }
        let of_file = written.strip_suffix("_file").filter(|_| !settings.contains_key(&written));
        let (key, is_file) = of_file.map_or((written.as_str(), false), |key| (key, true));
        if key == "upstreams" {
            return Err(Error(format!("{name} cannot be set; [[upstreams]] can only be in a settings file")));
        }
        let Some(default) = settings.get(key) else {
            return Err(Error(format!("{name}: {}", unknown(&written))));
        };
        let Some(mut text) = text.to_str().map(str::to_owned) else {
            return Err(Error(format!("{name}: {key} is not valid UTF-8")));
        };
        // An empty variable is the same as none, if the other one is set.
        if text.is_empty() && (is_file || has_file(name)) {
            continue;
        }
        if is_file {
            text = value_in(Path::new(&text)).map_err(|what| Error(format!("{name}: {} {what}", one_line(&text))))?;
        }
        let value = from_text(key, default, &text).map_err(|what| Error(format!("{name}: {key} {what}")))?;
        if let Some(Origin::Variable(other)) = origins.0.get(key)
            && other != name
        {
            let both = [other.as_str(), name];
            return Err(Error(format!("{}: {key} is set twice; expected one of them", both.join(", "))));
        }
        origins.0.insert(key.to_owned(), Origin::Variable(name.to_owned()));
        found.insert(key.to_owned(), value);
    }
    Ok(found)
}

/// Reads the value of a setting from a file of its own. The line feed at the end, which most programs write, is not part of it.
fn value_in(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(VALUE_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if text.len() as u64 > VALUE_BYTES_MAX {
        return Err(format!("is too large; expected a file with one value, of at most {VALUE_BYTES_MAX} bytes"));
    }
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

/// Returns whether a settings file has secrets. A file that cannot be read has none.
#[must_use]
pub fn file_has_secrets(path: &Path) -> bool {
    let table: Option<Table> = std::fs::read_to_string(path).ok().and_then(|text| text.parse().ok());
    table.is_some_and(|table| SECRETS.iter().any(|key| table.contains_key(*key)))
}

fn unknown(setting: &str) -> String {
    format!("unknown setting \"{}\"; `assistd config` prints the known ones", one_line(setting))
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Returns the text for a value that the type of its setting cannot have. `message` is that of the parser.
fn wrong_type(setting: &str, value: &str, message: &str) -> String {
    let Some((_, expected)) = message.rsplit_once("expected ") else {
        // Such as a missing field, whose value is not in the message.
        return format!("{setting}: {}", one_line(message));
    };
    let is_too_large = message.starts_with("invalid value") && !value.trim().starts_with('-');
    let expected = match expected {
        "u16" if is_too_large => "an integer of at most 65535",
        "u32" if is_too_large => "an integer of at most 4294967295",
        "u16" | "u32" | "u64" | "usize" => "an integer of at least 0",
        "f64" => "a number",
        "a string" | "string" | "path string" => "a text in quotes",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        other => other,
    };
    if message.starts_with("unknown field") {
        format!("{setting}: {}", one_line(message))
    } else if SECRETS.contains(&setting) {
        format!("{setting} has a value of the wrong type; expected {}", one_line(expected))
    } else {
        format!("{setting} is {}; expected {}", one_line(value), one_line(expected))
    }
}

/// Returns the start of a text in one line.
fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN_CHARS * 4) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Returns a text in one line, without control characters, and bounded.
fn printable(text: &str) -> String {
    let mut line = String::new();
    for character in text.chars().take(ERROR_CHARS_MAX) {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    if text.chars().nth(ERROR_CHARS_MAX).is_some() {
        line.push('…');
    }
    line
}

/// Parses an environment variable as the type of its default.
fn from_text(key: &str, default: &Value, text: &str) -> Result<Value, String> {
    let expected = |what: &str, text: &str| format!("is \"{}\"; expected {what}", one_line(text));
    match default {
        Value::Integer(_) => text.trim().parse().map(Value::Integer).map_err(|error: std::num::ParseIntError| {
            let is_too_large = *error.kind() == IntErrorKind::PosOverflow;
            expected(if is_too_large { "an integer below 2^63" } else { "an integer" }, text)
        }),
        Value::Boolean(_) => match text.trim() {
            "true" => Ok(Value::Boolean(true)),
            "false" => Ok(Value::Boolean(false)),
            _ => Err(expected("true or false", text)),
        },
        Value::Array(_) => Ok(Value::Array(items(text).map(|item| Value::String(item.to_owned())).collect())),
        Value::Table(_) => items(text)
            .map(|item| match item.split_once('=') {
                Some((name, value)) if key == "context_windows" => match value.trim().parse() {
                    Ok(tokens) => Ok((name.trim().to_owned(), Value::Integer(tokens))),
                    Err(_) => Err(expected("an integer after the =", item)),
                },
                Some((name, value)) => Ok((name.trim().to_owned(), Value::String(value.trim().to_owned()))),
                None => Err(expected("name=value,name=value", item)),
            })
            .collect::<Result<Table, String>>()
            .map(Value::Table),
        Value::Float(_) => text.trim().parse().map(Value::Float).map_err(|_| expected("a number", text)),
        _ => Ok(Value::String(text.to_owned())),
    }
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', '\n']).map(str::trim).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is deleted on drop.
    struct Temporary(std::path::PathBuf);

    impl Temporary {
        fn new(text: &str) -> Self {
            let number = fastrand::u64(..);
            let path = std::env::temp_dir().join(format!("assistd-settings-{}-{number}.toml", std::process::id()));
            std::fs::write(&path, text).unwrap();
            Self(path)
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// Loads a file and variables; returns the error, with `FILE` for the path of the file.
    fn error(text: &str, variables: &[(&str, &str)]) -> String {
        let file = Temporary::new(text);
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let error = Settings::load(Some(&file.0), variables).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error.replace(&file.0.display().to_string(), "FILE")
    }

    #[test]
    fn an_error_in_a_file_names_its_line_the_value_and_what_was_expected() {
        let cases = [
            ("# one\nlistn = 'x'", "FILE:2: unknown setting \"listn\"; `assistd config` prints the known ones"),
            ("\nmax_attempts = 'five'", "FILE:2: max_attempts is 'five'; expected an integer of at least 0"),
            ("max_attempts = -1", "FILE:1: max_attempts is -1; expected an integer of at least 0"),
            ("\n\nmax_attempts = 0", "FILE:3: max_attempts is 0; it must be at least 1"),
            ("busy_thread = 'wait'", "FILE:1: busy_thread is 'wait'; expected `reject` or `queue`"),
            ("files_s3_path_style = 1", "FILE:1: files_s3_path_style is 1; expected true or false"),
            ("search_embedding_weight = 'x'", "FILE:1: search_embedding_weight is 'x'; expected a number"),
            ("[context_windows]\n\nm = 'x'", "FILE:3: context_windows is 'x'; expected an integer of at least 0"),
            ("run_lease_s = 3", "FILE:1: run_lease_s is 3; it must be at least 5"),
            ("listen = '8484'", "FILE:1: listen is \"8484\"; it must be an address and a port, such as 127.0.0.1:8484"),
            ("\nlog = '=,='", "FILE:2: log is \"=,=\""),
            (
                "files_url = 'ftp://x'",
                "FILE:1: files_url is \"ftp://x\"; it must be empty, file:///path or s3://bucket",
            ),
            ("database_url = 'mysql://x'", "FILE:1: database_url begins with \"mysql:\"; it must begin with"),
            ("[[upstreams]]\nurl = 'http://a/v1'\n[[upstreams]]\nurl = 'b'", "FILE:3: \"***\" is not the URL of a"),
            ("[[upstreams]]\nurl = 'http://a/v1'\n[[upstreams]]\n\nur = 'b'", "FILE:5: upstreams: unknown field `ur`"),
            ("log = \"x\nmax_attempts = 1", "FILE:1: "),
            ("log = 'info'\nlog = 'warn'", "FILE:2: duplicate key"),
        ];
        for (text, expected) in cases {
            let error = error(text, &[]);
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn an_error_in_a_variable_names_the_variable() {
        let cases = [
            (("ASSISTD_MAX_ATTEMPTS", "many"), "ASSISTD_MAX_ATTEMPTS: max_attempts is \"many\"; expected an integer"),
            (("ASSISTD_MAX_ATTEMPTS", "0"), "ASSISTD_MAX_ATTEMPTS: max_attempts is 0; it must be at least 1"),
            (
                ("ASSISTD_MAX_ATTEMPTS", "-2"),
                "ASSISTD_MAX_ATTEMPTS: max_attempts is -2; expected an integer of at least 0",
            ),
            (
                ("ASSISTD_BUSY_THREAD", "a\nb"),
                "ASSISTD_BUSY_THREAD: busy_thread is \"a\\nb\"; expected `reject` or `queue`",
            ),
            (
                ("ASSISTD_CONTEXT_WINDOWS", "m=x"),
                "ASSISTD_CONTEXT_WINDOWS: context_windows is \"m=x\"; expected an integer",
            ),
            (
                ("ASSISTD_MAX_ATTEMPTS", "4294967296"),
                "ASSISTD_MAX_ATTEMPTS: max_attempts is 4294967296; expected an integer of at most 4294967295",
            ),
            (
                ("ASSISTD_RUN_LEASE_S", "9223372036854775808"),
                "ASSISTD_RUN_LEASE_S: run_lease_s is \"9223372036854775808\"; expected an integer below 2^63",
            ),
            (("ASSISTD_LISTN", "x"), "ASSISTD_LISTN: unknown setting \"listn\""),
            (("ASSISTD_LOG", "in\nfo\u{1b}"), "ASSISTD_LOG: log is \"in\\nfo\\u{1b}\"; expected off"),
            (
                ("ASSISTD_FILES_S3_ENDPOINT", "u:x@127.0.0.1:9"),
                "ASSISTD_FILES_S3_ENDPOINT: files_s3_endpoint is \"***\"; expected a URL like",
            ),
            (("ASSISTD_DATA_DIR", "a\nb"), "ASSISTD_DATA_DIR: the folder of files is \"a\\nb/files\"; its path must"),
            (("ASSISTD_UPSTREAMS", "x"), "ASSISTD_UPSTREAMS cannot be set"),
        ];
        for (variable, expected) in cases {
            let error = error("", &[variable]);
            assert!(error.starts_with(expected), "{variable:?}: {error}");
        }
    }

    #[test]
    fn an_error_about_several_settings_names_where_each_comes_from() {
        let error = error("\nrun_lease_s = 15", &[("ASSISTD_DATABASE_STATEMENT_TIMEOUT_S", "8")]);

        let expected =
            "ASSISTD_DATABASE_STATEMENT_TIMEOUT_S, FILE:2: database_statement_timeout_s is 8 and run_lease_s is 15";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn no_error_shows_a_part_of_a_secret() {
        let texts = [
            "upstream_api_key = 7331",
            "api_keys = [7331]",
            "api_keys = 'k7331'",
            "admin_keys = ['k 7331']",
            "upstream_api_key = \"k7331",
            "database_url = 'postgres://user:12/7331@host/name'",
            "database_url = 'postgres://user:7331#x@host/name'",
            "database_url = 'postgres://user:12#7331@host/name'",
            "database_url = 'postgres://user:12?7331@host/name'",
            "database_url = 'postgres://user:7331@host:x/name'",
            "database_url = 'postgres://user:12@7331/x@host/name'",
            "database_url = 'user:7331@host/name'",
            "database_url = 'postgres://host/name?passwd=7331'",
            "database_url = 'postgres://host/name?port=7331x'",
            "database_url = '7331://host/name'",
            "upstream_url = 'http://user:12/7331@host/v1'\nmax_attempts = 0",
            "upstream_url = 'sk-7331'",
            "files_s3_endpoint = 'http://u:7331@127.0.0.1:9'",
            "files_url = 's3://u:7331@bucket/p'",
            "files_url = 'https://u:7331@bucket/p'",
            "[[upstreams]]\nurl = 'http://host/v1'\napi_key = 7331",
            "[[upstreams]]\nurl = 'http://host/v1'\napi_key = \"k\\u00007331\"",
        ];
        for text in texts {
            let error = error(text, &[]);
            assert!(error.starts_with("FILE:") && !error.contains("7331"), "{text}: {error}");
        }
    }

    #[test]
    fn a_variable_can_name_a_file_with_the_value() {
        let load = |variables: &[(&str, &str)]| {
            let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
            Settings::load(None, variables)
        };
        let (keys, url, many) =
            (Temporary::new("one\r\ntwo,three\n"), Temporary::new("http://a:1/v1\n"), Temporary::new("5\n"));
        let path = |file: &Temporary| file.0.display().to_string();

        let settings = load(&[
            ("ASSISTD_API_KEYS_FILE", &path(&keys)),
            ("ASSISTD_UPSTREAM_URL_FILE", &path(&url)),
            ("ASSISTD_MAX_ATTEMPTS_FILE", &path(&many)),
            ("ASSISTD_ADMIN_KEYS_FILE", ""),
            ("ASSISTD_UPSTREAM_URL", ""),
        ]);

        let settings = settings.unwrap();
        let keys_of =
            |keys: &[crate::config::Secret]| keys.iter().map(|key| key.expose().to_owned()).collect::<Vec<_>>();
        assert_eq!(keys_of(&settings.api_keys), ["one", "two", "three"]);
        assert_eq!(settings.upstream_url.expose(), "http://a:1/v1");
        assert_eq!(settings.max_attempts, 5);
        assert!(settings.admin_keys.is_empty());
        let large = Temporary::new(&"7331".repeat(20_000));
        for (variable, path, expected) in [
            ("ASSISTD_API_KEYS_FILE", "/none/7331", "/none/7331 cannot be read: No such file or directory"),
            ("ASSISTD_API_KEYS_FILE", "/", "/ cannot be read: Is a directory"),
            ("ASSISTD_MAX_ATTEMPTS_FILE", &path(&url), "max_attempts is \"http://a:1/v1\"; expected an integer"),
            ("ASSISTD_API_KEYS_FILE", &path(&large), &format!("{} is too large; expected a file with", path(&large))),
            ("ASSISTD_LISTN_FILE", &path(&url), "unknown setting \"listn_file\""),
            ("ASSISTD_UPSTREAMS_FILE", &path(&url), "ASSISTD_UPSTREAMS_FILE cannot be set"),
        ] {
            let error = load(&[(variable, path)]).unwrap_err().to_string();
            let error = error.strip_prefix(&format!("{variable}: ")).unwrap_or(&error);
            assert!(error.starts_with(expected), "{error}");
        }
        let both = [("ASSISTD_API_KEYS", "7331"), ("ASSISTD_API_KEYS_FILE", &path(&keys))];
        let twice = load(&both).unwrap_err().to_string();
        assert_eq!(twice, "ASSISTD_API_KEYS, ASSISTD_API_KEYS_FILE: api_keys is set twice; expected one of them");
    }

    #[test]
    fn variables_of_other_programs_need_not_be_text() {
        use std::os::unix::ffi::OsStringExt as _;

        let bytes = OsString::from_vec(vec![0xff]);
        let other = [(OsString::from("OTHER"), bytes.clone()), (bytes.clone(), bytes.clone())];
        assert!(Settings::load(None, other.into_iter()).is_ok());
        let ours = [(OsString::from("ASSISTD_LOG"), bytes)];
        let error = Settings::load(None, ours.into_iter()).unwrap_err().to_string();
        assert_eq!(error, "ASSISTD_LOG: log is not valid UTF-8");
    }
}
