//! Settings: embedded defaults, overridden by a file, overridden by environment variables.

mod model_servers;
mod secret;
mod source;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::api::organization::Limits;
use crate::api::vector_store::HybridWeights;
use crate::files::blobs::BUCKET_FILE_BYTES_MAX;
use crate::llm::{EmbeddingSettings, ThinkTags};
use crate::retrieval::{ingest, search};
use crate::runs::BusyThread;
use crate::runs::citations::CitationStyle;
use crate::store::Synchronous;
use crate::telemetry::{self, LogFormat};
use crate::tools::code_interpreter::{sandbox, sessions};
use crate::{files, http, llm, runs, store, work};

use source::Invalid;

pub use model_servers::ModelServer;
pub use secret::{Secret, SecretUrl};
pub use source::file_has_secrets;

/// The example file with every setting at its default. It is also the source of the defaults.
pub const EXAMPLE: &str = include_str!("../config.example.toml");

/// Maximum of the default statement timeout, in seconds.
const STATEMENT_TIMEOUT_S_MAX: u64 = 5;

/// Maximum of a duration, in seconds: sums of larger ones overflow.
const SECONDS_MAX: i64 = 315_360_000;
/// Maximum number of texts in a request for embeddings, so that the answer is not too large.
const EMBEDDING_BATCH_MAX: usize = 256;
/// Maximum number of dimensions of embeddings. More than any known model has.
const EMBEDDING_DIMENSIONS_MAX: usize = 8_192;
/// Maximum number of files that are processed concurrently. Each uses a process, or memory for its text.
const INGEST_CONCURRENCY_MAX: usize = 256;
/// Minimum of `image_side_pixels_max`: models recognize nothing in smaller images.
const IMAGE_SIDE_PIXELS_MIN: u32 = 64;
/// Minimum of `head_bytes_max` that the HTTP library accepts, in bytes.
const HEAD_BYTES_MIN: usize = 8_192;

/// All settings. `config.example.toml` documents each one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config.example.toml documents each setting")]
pub struct Settings {
    pub listen: String,
    pub metrics_listen: String,
    pub api_keys: Vec<Secret>,
    pub admin_keys: Vec<Secret>,
    pub requests_per_minute: u32,
    pub active_runs_max: u64,
    pub tokens_per_minute: u64,
    pub tokens_per_day: u64,
    pub tokens_per_month: u64,
    pub cors_origins: Vec<String>,
    pub body_bytes_max: usize,
    pub bodies_bytes_max: usize,
    pub head_bytes_max: usize,
    pub connections_max: usize,
    pub write_timeout_s: u64,
    pub header_timeout_s: u64,
    pub body_timeout_s: u64,
    pub keep_alive_s: u64,
    pub shutdown_grace_s: u64,
    pub data_dir: PathBuf,
    pub files_url: String,
    pub files_s3_endpoint: SecretUrl,
    pub files_s3_region: String,
    pub files_s3_access_key: Secret,
    pub files_s3_secret_key: Secret,
    pub files_s3_path_style: bool,
    pub file_bytes_max: u64,
    pub upload_bytes_max: u64,
    pub upload_part_bytes_max: u64,
    pub received_files_max: usize,
    pub body_idle_timeout_s: u64,
    pub database_url: SecretUrl,
    pub database_connections_max: u32,
    pub database_statement_timeout_s: u64,
    pub database_start_timeout_s: u64,
    pub sqlite_synchronous: Synchronous,
    pub usage_days: u32,
    pub upstream_url: SecretUrl,
    pub upstream_api_key: Secret,
    pub default_model: String,
    pub upstream_connect_timeout_s: u64,
    pub upstream_first_byte_timeout_s: u64,
    pub upstream_idle_timeout_s: u64,
    pub upstream_retries: u32,
    pub think_tags: ThinkTags,
    pub embedding_model: String,
    pub embedding_url: SecretUrl,
    pub embedding_api_key: Secret,
    pub embedding_dimensions: usize,
    pub embedding_batch_max: usize,
    pub embedding_tokens_max: usize,
    pub embedding_query_prefix: String,
    pub embedding_document_prefix: String,
    pub ingest_concurrency: usize,
    pub ingest_max_attempts: u32,
    pub max_concurrent_runs: usize,
    pub run_expires_after_s: u64,
    pub run_lease_s: u64,
    pub max_attempts: u32,
    pub prompt_bytes_max: usize,
    pub prompt_memory_bytes_max: usize,
    pub max_tool_rounds: usize,
    pub image_side_pixels_max: u32,
    pub busy_thread: BusyThread,
    pub search_result_tokens_max: usize,
    pub citations: CitationStyle,
    pub citation_quotes: bool,
    pub search_cache_bytes_max: usize,
    pub search_memory_chunks_max: usize,
    pub search_embedding_weight: f64,
    pub search_rewrite_model: String,
    pub code_interpreter_dir: PathBuf,
    pub code_timeout_s: u64,
    pub code_idle_s: u64,
    pub code_output_bytes_max: usize,
    pub code_disk_bytes_max: u64,
    pub code_files_max: u64,
    pub code_memory_bytes_max: usize,
    pub code_total_memory_bytes_max: u64,
    pub code_sessions_max: usize,
    pub code_concurrency: usize,
    pub log: String,
    pub log_format: LogFormat,
    pub otlp_endpoint: SecretUrl,
    pub model_aliases: BTreeMap<String, String>,
    pub context_windows: BTreeMap<String, u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<UpstreamSettings>,
}

/// An additional model server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamSettings {
    /// Name in errors and in the log; `upstreams[0]`, `upstreams[1]` and so on if it is omitted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Base URL, ending in `/v1`.
    pub url: SecretUrl,
    /// API key, if the server requires one.
    #[serde(default)]
    pub api_key: Secret,
    /// Model names that are routed to this server.
    #[serde(default)]
    pub models: Vec<String>,
}

/// An invalid setting. The text is one line that names where the value comes from, the setting, and what was expected. It has no
/// part of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl Settings {
    fn check(&self) -> Result<(), Invalid> {
        let at_least_one: [(&str, u64); 25] = [
            ("code_timeout_s", self.code_timeout_s),
            ("code_idle_s", self.code_idle_s),
            ("code_files_max", self.code_files_max),
            ("code_sessions_max", self.code_sessions_max as u64),
            ("embedding_batch_max", self.embedding_batch_max as u64),
            ("ingest_max_attempts", self.ingest_max_attempts.into()),
            ("write_timeout_s", self.write_timeout_s),
            ("max_attempts", self.max_attempts.into()),
            ("prompt_bytes_max", self.prompt_bytes_max as u64),
            ("prompt_memory_bytes_max", self.prompt_memory_bytes_max as u64),
            ("header_timeout_s", self.header_timeout_s),
            ("body_timeout_s", self.body_timeout_s),
            ("keep_alive_s", self.keep_alive_s),
            ("body_idle_timeout_s", self.body_idle_timeout_s),
            ("file_bytes_max", self.file_bytes_max),
            ("upload_bytes_max", self.upload_bytes_max),
            ("upload_part_bytes_max", self.upload_part_bytes_max),
            ("received_files_max", self.received_files_max as u64),
            ("database_connections_max", self.database_connections_max.into()),
            ("upstream_connect_timeout_s", self.upstream_connect_timeout_s),
            ("upstream_first_byte_timeout_s", self.upstream_first_byte_timeout_s),
            ("upstream_idle_timeout_s", self.upstream_idle_timeout_s),
            ("max_concurrent_runs", self.max_concurrent_runs as u64),
            ("run_expires_after_s", self.run_expires_after_s),
            ("body_bytes_max", self.body_bytes_max as u64),
        ];
        for (key, value) in at_least_one {
            if value == 0 {
                return Err(Invalid::new(key, format!("{key} is 0; it must be at least 1")));
            }
        }
        let table = toml::Table::try_from(self).map_err(|error| Invalid::several(&[], error.to_string()))?;
        for (key, value) in table {
            if key.ends_with("_s") && value.as_integer().is_some_and(|seconds| seconds > SECONDS_MAX) {
                return Err(Invalid::new(
                    &key,
                    format!("{key} is {value}; it must be at most {SECONDS_MAX} (ten years)"),
                ));
            }
        }
        if self.head_bytes_max < HEAD_BYTES_MIN {
            let given = self.head_bytes_max;
            let text = format!("head_bytes_max is {given}; it must be at least {HEAD_BYTES_MIN}");
            return Err(Invalid::new("head_bytes_max", text));
        }
        if self.bodies_bytes_max < self.body_bytes_max {
            let text = format!(
                "bodies_bytes_max is {} and body_bytes_max is {}; the first must be at least the second",
                self.bodies_bytes_max, self.body_bytes_max
            );
            return Err(Invalid::several(&["bodies_bytes_max", "body_bytes_max"], text));
        }
        let file_max = self.file_bytes_max.max(self.upload_bytes_max);
        if self.files_url.starts_with("s3:") && file_max > BUCKET_FILE_BYTES_MAX {
            let text = format!(
                "file_bytes_max is {} and upload_bytes_max is {}; with an S3 bucket, they must be at most \
                 {BUCKET_FILE_BYTES_MAX}",
                self.file_bytes_max, self.upload_bytes_max
            );
            return Err(Invalid::several(&["file_bytes_max", "upload_bytes_max", "files_url"], text));
        }
        if self.run_lease_s < 5 {
            let text = format!("run_lease_s is {}; it must be at least 5", self.run_lease_s);
            return Err(Invalid::new("run_lease_s", text));
        }
        if self.database_statement_timeout_s * 2 > self.run_lease_s {
            let text = format!(
                "database_statement_timeout_s is {} and run_lease_s is {}; a statement may take at most half of a lease, \
                 so that leases are renewed in time",
                self.database_statement_timeout_s, self.run_lease_s
            );
            return Err(Invalid::several(&["database_statement_timeout_s", "run_lease_s"], text));
        }
        self.check_search()?;
        self.check_runs()?;
        self.check_urls()?;
        self.check_access()?;
        self.address().map_err(|error| Invalid::new("listen", error.0))?;
        self.metrics_address().map_err(|error| Invalid::new("metrics_listen", error.0))?;
        telemetry::check_filter(&self.log)
            .map_err(|expected| Invalid::new("log", format!("log is \"{}\"; {expected}", self.log)))?;
        Ok(())
    }

    fn check_access(&self) -> Result<(), Invalid> {
        if let Some(origin) = self.cors_origins.iter().find(|origin| *origin != "*" && !http::is_origin(origin)) {
            let text = format!(
                "cors_origins contains \"{origin}\"; expected an origin like https://app.example, without a path, or *"
            );
            return Err(Invalid::new("cors_origins", text));
        }
        for (name, keys) in [("api_keys", &self.api_keys), ("admin_keys", &self.admin_keys)] {
            if keys.iter().any(|key| key.expose().trim().is_empty()) {
                return Err(Invalid::new(
                    name,
                    format!("{name} contains an empty key; expected keys of at least one character"),
                ));
            }
            if !keys.iter().all(|key| key.expose().bytes().all(|byte| byte.is_ascii_graphic())) {
                let text = format!(
                    "{name} contains a key with a space or a character that is not ASCII; clients could not send it"
                );
                return Err(Invalid::new(name, text));
            }
        }
        Ok(())
    }

    fn check_urls(&self) -> Result<(), Invalid> {
        let is_known = |url: &SecretUrl| {
            let url = reqwest::Url::parse(url.expose());
            url.is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
        };
        if !self.otlp_endpoint.expose().is_empty() && !is_known(&self.otlp_endpoint) {
            let masked = self.otlp_endpoint.masked();
            let text = format!("otlp_endpoint is \"{masked}\"; expected a URL like http://127.0.0.1:4318");
            return Err(Invalid::new("otlp_endpoint", text));
        }
        let endpoint = reqwest::Url::parse(self.files_s3_endpoint.expose());
        let has_user = endpoint.is_ok_and(|url| !url.username().is_empty() || url.password().is_some());
        if !self.files_s3_endpoint.expose().is_empty() && (has_user || !is_known(&self.files_s3_endpoint)) {
            let masked = self.files_s3_endpoint.masked();
            let text = format!(
                "files_s3_endpoint is \"{masked}\"; expected a URL like http://127.0.0.1:9000, without a user name or a key"
            );
            return Err(Invalid::new("files_s3_endpoint", text));
        }
        for server in self.model_servers() {
            let ModelServer { setting, url, .. } = &server;
            if !is_known(url) {
                let text = format!(
                    "\"{}\" is not the URL of a model server; expected a URL like http://host:port/v1",
                    url.masked()
                );
                return Err(Invalid::new(setting, text));
            }
        }
        let mut keys = vec![
            ("upstream_api_key".to_owned(), &self.upstream_api_key),
            ("embedding_api_key".to_owned(), &self.embedding_api_key),
        ];
        let more = self.upstreams.iter().enumerate();
        keys.extend(more.map(|(index, more)| (format!("upstreams[{index}]"), &more.api_key)));
        for (setting, key) in keys {
            if reqwest::header::HeaderValue::from_str(key.expose()).is_err() {
                let text = format!("the API key in {setting} contains a character that a header cannot have");
                return Err(Invalid::new(&setting, text));
            }
        }
        if !self.database_url.expose().is_empty() {
            store::check_url(self.database_url.expose())
                .map_err(|error| Invalid::new("database_url", error.to_string()))?;
        }
        files::blobs::Blobs::open(&self.blobs(), TaskTracker::new()).map_err(|error| {
            let setting = if self.files_url.is_empty() { "data_dir" } else { "files_url" };
            Invalid::new(setting, error.to_string())
        })?;
        Ok(())
    }

    fn check_search(&self) -> Result<(), Invalid> {
        if !(0.0..=1.0).contains(&self.search_embedding_weight) {
            let text =
                format!("search_embedding_weight is {}; it must be between 0 and 1", self.search_embedding_weight);
            return Err(Invalid::new("search_embedding_weight", text));
        }
        for (key, value, max) in [
            ("embedding_batch_max", self.embedding_batch_max, EMBEDDING_BATCH_MAX),
            ("embedding_dimensions", self.embedding_dimensions, EMBEDDING_DIMENSIONS_MAX),
            ("ingest_concurrency", self.ingest_concurrency, INGEST_CONCURRENCY_MAX),
        ] {
            if value > max {
                return Err(Invalid::new(key, format!("{key} is {value}; it must be at most {max}")));
            }
        }
        if self.embedding_model.is_empty() && !self.embedding_url.expose().is_empty() {
            return Err(Invalid::new("embedding_url", "embedding_url is set, and embedding_model is not; set both"));
        }
        Ok(())
    }

    fn check_runs(&self) -> Result<(), Invalid> {
        if self.max_concurrent_runs > 1_000_000 {
            let text = format!("max_concurrent_runs is {}; it must be at most 1000000", self.max_concurrent_runs);
            return Err(Invalid::new("max_concurrent_runs", text));
        }
        if (1..IMAGE_SIDE_PIXELS_MIN).contains(&self.image_side_pixels_max) {
            let text = format!(
                "image_side_pixels_max is {}; it must be 0 or at least {IMAGE_SIDE_PIXELS_MIN}",
                self.image_side_pixels_max
            );
            return Err(Invalid::new("image_side_pixels_max", text));
        }
        Ok(())
    }

    /// Returns whether the settings have an API key.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        !self.api_keys.is_empty() || !self.admin_keys.is_empty()
    }

    /// Returns the address to listen on.
    ///
    /// # Errors
    /// If `listen` does not have the form host:port, or the host cannot be resolved.
    pub fn address(&self) -> Result<SocketAddr, Error> {
        let address = self.listen.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
        address.ok_or_else(|| {
            let listen = &self.listen;
            Error(format!("listen is \"{listen}\"; it must be an address and a port, such as 127.0.0.1:8484"))
        })
    }

    /// Returns the address of the listener of metrics, if they have one of their own. A port alone is one of loopback.
    ///
    /// # Errors
    /// If `metrics_listen` is neither a port nor has the form host:port, or the host cannot be resolved.
    pub fn metrics_address(&self) -> Result<Option<SocketAddr>, Error> {
        let listen = &self.metrics_listen;
        if listen.is_empty() {
            return Ok(None);
        }
        if let Ok(port) = listen.parse::<u16>() {
            return Ok(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        }
        let address = listen.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
        address.map(Some).ok_or_else(|| {
            Error(format!(
                "metrics_listen is \"{listen}\"; it must be a port, or an address and a port, such as 127.0.0.1:9464"
            ))
        })
    }

    /// Returns the settings as TOML, with secrets masked.
    ///
    /// # Errors
    /// Never in practice, because the settings were parsed from TOML.
    pub fn masked(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Returns the statement timeout; its default depends on the lease.
    fn statement_timeout(&self) -> Duration {
        let seconds = match self.database_statement_timeout_s {
            0 => (self.run_lease_s / 2).min(STATEMENT_TIMEOUT_S_MAX),
            seconds => seconds,
        };
        Duration::from_secs(seconds)
    }

    /// Returns the settings of the store. The default database is a file in `data_dir`.
    #[must_use]
    pub fn store(&self) -> store::Settings {
        let url = match self.database_url.expose() {
            "" => format!("sqlite://{}", self.data_dir.join("assistd.db").display()),
            url => url.to_owned(),
        };
        store::Settings {
            url,
            connections_max: self.database_connections_max,
            statement_timeout: self.statement_timeout(),
            start_timeout: Duration::from_secs(self.database_start_timeout_s),
            synchronous: self.sqlite_synchronous,
        }
    }

    /// Returns where the bytes of files are stored. The default is a folder in `data_dir`.
    #[must_use]
    pub fn blobs(&self) -> files::blobs::Settings {
        files::blobs::Settings {
            url: self.files_url.clone(),
            folder: self.data_dir.join("files"),
            s3_endpoint: self.files_s3_endpoint.expose().to_owned(),
            s3_region: self.files_s3_region.clone(),
            s3_access_key: self.files_s3_access_key.clone().into_option(),
            s3_secret_key: self.files_s3_secret_key.clone().into_option(),
            s3_path_style: self.files_s3_path_style,
        }
    }

    /// Returns the folder of the code interpreter's runtime. The default is a folder in `data_dir`.
    #[must_use]
    pub fn code_interpreter_dir(&self) -> PathBuf {
        if self.code_interpreter_dir.as_os_str().is_empty() {
            return self.data_dir.join("code-interpreter");
        }
        self.code_interpreter_dir.clone()
    }

    /// Returns the limits of files.
    #[must_use]
    pub fn files(&self) -> files::service::Settings {
        files::service::Settings {
            upload_bytes_max: self.upload_bytes_max,
            concurrency_max: self.received_files_max,
            wait_max: Duration::from_secs(self.body_idle_timeout_s),
        }
    }

    /// Returns the limits of projects that have none of their own.
    #[must_use]
    pub fn default_limits(&self) -> Limits {
        Limits {
            requests_per_minute: self.requests_per_minute.into(),
            active_runs: self.active_runs_max,
            tokens_per_minute: self.tokens_per_minute,
            tokens_per_day: self.tokens_per_day,
            tokens_per_month: self.tokens_per_month,
        }
    }

    /// Returns the timeouts and retries of requests to model servers.
    #[must_use]
    pub fn llm(&self) -> llm::Settings {
        llm::Settings {
            connect_timeout: Duration::from_secs(self.upstream_connect_timeout_s),
            first_byte_timeout: Duration::from_secs(self.upstream_first_byte_timeout_s),
            idle_timeout: Duration::from_secs(self.upstream_idle_timeout_s),
            retries: self.upstream_retries,
            think_tags: self.think_tags,
        }
    }

    /// Returns the settings of searches.
    #[must_use]
    pub fn search(&self) -> search::Settings {
        let embedding = self.search_embedding_weight;
        search::Settings {
            cache_bytes_max: self.search_cache_bytes_max,
            memory_chunks_max: (self.search_memory_chunks_max > 0).then_some(self.search_memory_chunks_max),
            weights: HybridWeights { embedding, text: 1.0 - embedding },
            rewrite_model: (!self.search_rewrite_model.is_empty()).then(|| self.search_rewrite_model.clone()),
        }
    }

    /// Returns the settings of the sessions of the code interpreter.
    #[must_use]
    pub fn code_sessions(&self) -> sessions::Settings {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        sessions::Settings {
            folder: self.data_dir.join("code-sessions"),
            idle: Duration::from_secs(self.code_idle_s),
            limits: sandbox::Limits {
                time: Duration::from_secs(self.code_timeout_s),
                output_bytes: self.code_output_bytes_max,
                disk_bytes: self.code_disk_bytes_max,
                files: self.code_files_max,
            },
            sessions_max: self.code_sessions_max,
            memory_max: self.code_total_memory_bytes_max,
            calls_max: if self.code_concurrency == 0 { processors } else { self.code_concurrency },
        }
    }

    /// Returns how texts are sent to the embedding model, if there is one.
    #[must_use]
    pub fn embeddings(&self) -> Option<EmbeddingSettings> {
        if self.embedding_model.is_empty() {
            return None;
        }
        Some(EmbeddingSettings {
            model: self.embedding_model.clone(),
            dimensions: (self.embedding_dimensions > 0).then_some(self.embedding_dimensions),
            batch_max: self.embedding_batch_max,
            tokens_max: (self.embedding_tokens_max > 0).then_some(self.embedding_tokens_max),
            query_prefix: self.embedding_query_prefix.clone(),
            document_prefix: self.embedding_document_prefix.clone(),
        })
    }

    /// Returns the settings of the processing of files.
    #[must_use]
    pub fn ingest(&self) -> ingest::Settings {
        ingest::Settings {
            concurrency_max: self.ingest_concurrency,
            lease: Duration::from_secs(self.run_lease_s),
            attempts_max: self.ingest_max_attempts,
            batch_max: self.embedding_batch_max,
        }
    }

    /// Returns the settings of runs.
    #[must_use]
    pub fn runs(&self) -> runs::Settings {
        runs::Settings {
            expires_after_s: self.run_expires_after_s,
            tool_rounds_max: self.max_tool_rounds,
            busy_thread: self.busy_thread,
            prompt_bytes_max: self.prompt_bytes_max,
            prompt_memory_max: self.prompt_memory_bytes_max,
            image_side_max: (self.image_side_pixels_max > 0).then_some(self.image_side_pixels_max),
            search_tokens_max: self.search_result_tokens_max,
            citations: self.citations,
            quotes_passages: self.citation_quotes,
        }
    }

    /// Returns the settings of the worker that drives runs.
    #[must_use]
    pub fn run_work(&self) -> work::Settings {
        work::Settings {
            concurrency_max: self.max_concurrent_runs,
            lease: Duration::from_secs(self.run_lease_s),
            attempts_max: self.max_attempts,
        }
    }

    /// Returns the limits of requests and responses.
    #[must_use]
    pub fn http(&self) -> http::Settings {
        http::Settings {
            body_bytes_max: self.body_bytes_max,
            bodies_bytes_max: self.bodies_bytes_max,
            bodies: Arc::new(Semaphore::new(self.bodies_bytes_max.div_ceil(1024).min(Semaphore::MAX_PERMITS))),
            body_timeout: Duration::from_secs(self.body_timeout_s),
            body_idle_timeout: Duration::from_secs(self.body_idle_timeout_s),
            file_bytes_max: self.file_bytes_max,
            upload_bytes_max: self.upload_bytes_max,
            upload_part_bytes_max: self.upload_part_bytes_max,
            keep_alive: Duration::from_secs(self.keep_alive_s),
            serves_metrics: self.metrics_listen.is_empty(),
            cors_origins: self.cors_origins.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use toml::Table;

    use super::*;

    fn load(environment: &[(&str, &str)]) -> Result<Settings, String> {
        let pairs = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        Settings::load(None, pairs).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_file_contains_every_setting_at_its_default() {
        let settings = load(&[]).unwrap();
        let written: Table = toml::to_string(&settings).unwrap().parse().unwrap();
        let example: Table = EXAMPLE.parse().unwrap();

        assert_eq!(written, example);
    }

    #[test]
    fn environment_variables_are_parsed_by_the_type_of_the_setting() {
        let settings = load(&[
            ("ASSISTD_LISTEN", "127.0.0.1:1"),
            ("ASSISTD_API_KEYS", "a, b"),
            ("ASSISTD_MAX_CONCURRENT_RUNS", "7"),
            ("ASSISTD_MODEL_ALIASES", "gpt-4o=qwen3:8b, o1=x"),
            ("ASSISTD_CONTEXT_WINDOWS", "qwen3:8b=32768"),
            ("ASSISTD_FILES_S3_PATH_STYLE", "false"),
            ("PATH", "/bin"),
        ])
        .unwrap();

        assert_eq!(settings.address().unwrap().port(), 1);
        assert_eq!(settings.api_keys.iter().map(Secret::expose).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((settings.max_concurrent_runs, settings.files_s3_path_style), (7, false));
        assert_eq!(settings.model_aliases["gpt-4o"], "qwen3:8b");
        assert_eq!(settings.context_windows["qwen3:8b"], 32_768);
    }

    #[test]
    fn variables_that_others_set_are_ignored() {
        assert!(load(&[("ASSISTD_SERVICE_HOST", "x"), ("ASSISTD_PORT", "tcp://x"), ("ASSISTD_CONFIG", "x")]).is_ok());
    }

    #[test]
    fn secrets_are_masked() {
        let settings = load(&[
            ("ASSISTD_API_KEYS", "sk-hidden"),
            ("ASSISTD_UPSTREAM_API_KEY", "sk-hidden"),
            ("ASSISTD_FILES_S3_ACCESS_KEY", "hidden-id"),
            ("ASSISTD_FILES_S3_SECRET_KEY", "hidden-key"),
            ("ASSISTD_DATABASE_URL", "postgres://user:hidden@host/name"),
        ])
        .unwrap();

        let shown = settings.masked().unwrap();
        assert!(!shown.contains("hidden"), "{shown}");
        assert!(!format!("{settings:?}").contains("hidden"), "{settings:?}");
        assert!(shown.contains("postgres://user:***@host/name"), "{shown}");
    }

    #[test]
    fn the_statement_timeout_is_at_most_half_of_a_lease() {
        let timeout = |environment| load(environment).map(|settings| settings.store().statement_timeout.as_secs());

        assert_eq!(timeout(&[]), Ok(5));
        assert_eq!(timeout(&[("ASSISTD_RUN_LEASE_S", "5")]), Ok(2));
        let error = timeout(&[("ASSISTD_RUN_LEASE_S", "15"), ("ASSISTD_DATABASE_STATEMENT_TIMEOUT_S", "8")]);
        assert!(error.unwrap_err().contains("database_statement_timeout_s is 8 and run_lease_s is 15"));
    }

    #[test]
    fn values_out_of_range_are_rejected_by_name() {
        assert!(load(&[("ASSISTD_MAX_CONCURRENT_RUNS", "0")]).unwrap_err().contains("max_concurrent_runs"));
        assert!(load(&[("ASSISTD_MAX_CONCURRENT_RUNS", "many")]).unwrap_err().contains("expected an integer"));
        assert!(
            load(&[("ASSISTD_HEADER_TIMEOUT_S", "9223372036854775807")]).unwrap_err().contains("at most 315360000")
        );
        assert!(load(&[("ASSISTD_UPSTREAM_API_KEY", "a\nb")]).unwrap_err().contains("API key"));
        assert!(load(&[("ASSISTD_LISTEN", "8484")]).unwrap_err().contains("such as 127.0.0.1:8484"));
        assert!(load(&[("ASSISTD_LISTEN", "localhost:8484")]).is_ok());
        assert!(load(&[("ASSISTD_METRICS_LISTEN", "metrics")]).unwrap_err().contains("such as 127.0.0.1:9464"));
        assert!(load(&[("ASSISTD_METRICS_LISTEN", "0.0.0.0:9464")]).is_ok());
        assert!(load(&[("ASSISTD_OTLP_ENDPOINT", "127.0.0.1:4318")]).unwrap_err().contains("http://127.0.0.1:4318"));
        assert!(load(&[("ASSISTD_FILES_S3_PATH_STYLE", "yes")]).unwrap_err().contains("expected true or false"));
        let large = [("ASSISTD_UPLOAD_BYTES_MAX", "100000000000"), ("ASSISTD_FILES_URL", "s3://bucket")];
        assert!(load(&large).unwrap_err().contains("with an S3 bucket, they must be at most"));
        assert!(load(&large[..1]).is_ok());
        assert!(load(&[("ASSISTD_IMAGE_SIDE_PIXELS_MAX", "63")]).unwrap_err().contains("must be 0 or at least 64"));
        assert!(load(&[("ASSISTD_IMAGE_SIDE_PIXELS_MAX", "64")]).is_ok());
        assert!(load(&[("ASSISTD_UPSTREAM_URL", "localhost:11434")]).unwrap_err().contains("is not the URL"));
    }
}
