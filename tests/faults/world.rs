//! The state that all parts of a fault test share: the servers, the model server, counters, and violations.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::relay::Relay;
use crate::servers::{Options, Replica};
use crate::skip::skip;
use crate::upstream::Upstream;

/// The name of the file that runs find.
pub const COMMON_FILE: &str = "common.txt";

/// The database of the servers.
#[derive(Debug, Clone, PartialEq)]
pub enum Store {
    Sqlite,
    /// The URL of a server on which databases can be created.
    Postgres(String),
}

/// A call of the model in the usage ledger.
#[derive(Debug, Clone, Copy)]
pub struct LedgerRow {
    /// Whether its answer is part of the run.
    pub stood: bool,
    pub input: u64,
    pub output: u64,
}

/// The configuration of a world.
pub struct Plan {
    pub assistd: PathBuf,
    pub store: Store,
    pub replicas: usize,
    pub settings: Vec<(&'static str, String)>,
    /// The commands that start the servers, by replica; the remaining replicas are started directly.
    pub wrappers: Vec<Vec<String>>,
    /// The folder of the SQLite file and the logs; `None` for a temporary folder.
    pub home: Option<PathBuf>,
}

pub struct World {
    pub replicas: Vec<Replica>,
    pub upstream: Upstream,
    pub relay: Option<Relay>,
    pub assistant: String,
    /// An assistant that searches files.
    pub searching_assistant: String,
    /// An assistant that runs code, if the runtime is installed.
    pub coding_assistant: Option<String>,
    pub database_url: String,
    /// Whether clients and faults must stop.
    pub is_stopping: AtomicBool,
    counts: Mutex<BTreeMap<String, usize>>,
    violations: Mutex<Vec<String>>,
    client: reqwest::Client,
    home: PathBuf,
    owns_home: bool,
}

impl World {
    /// Creates a database, and starts the model server and the servers.
    pub async fn start(plan: Plan) -> Arc<Self> {
        let owns_home = plan.home.is_none();
        let home = plan
            .home
            .unwrap_or_else(|| std::env::temp_dir().join(format!("assistd-faults-{}", uuid::Uuid::now_v7().simple())));
        std::fs::create_dir_all(&home).expect("the folder can be created");
        let upstream = Upstream::start().await;
        let (database_url, relay) = match &plan.store {
            Store::Sqlite => (format!("sqlite://{}", home.join("assistd.db").display()), None),
            Store::Postgres(url) => {
                let (database, relay) = create_database(url).await;
                (database, Some(relay))
            }
        };
        let runtime = runtime();
        let mut settings = plan.settings.clone();
        settings.extend(runtime.clone().map(|folder| ("CODE_INTERPRETER_DIR", folder)));
        let replicas = (0..plan.replicas).map(|index| {
            let options = Options {
                assistd: plan.assistd.clone(),
                database_url: database_url.clone(),
                files_url: format!("file://{}", home.join("files").display()),
                upstream_url: upstream.url.clone(),
                settings: settings.clone(),
                wrapper: plan.wrappers.get(index).cloned().unwrap_or_default(),
            };
            Replica::new(&format!("replica-{index}"), &home, options)
        });
        let mut world = Self {
            replicas: replicas.collect(),
            upstream,
            relay,
            assistant: String::new(),
            searching_assistant: String::new(),
            coding_assistant: None,
            database_url,
            is_stopping: AtomicBool::new(false),
            counts: Mutex::default(),
            violations: Mutex::default(),
            client: reqwest::Client::builder().no_proxy().build().expect("a client can be created"),
            home,
            owns_home,
        };
        for replica in &world.replicas {
            if let Err(error) = replica.start().await {
                let log = std::fs::read_to_string(&replica.log).unwrap_or_default();
                panic!("{error}:\n{log}");
            }
        }
        let tool = |index| json!({"type": "function", "function": {"name": format!("tool_{index}")}});
        let body = json!({"model": "scripted", "tools": [tool(0), tool(1), tool(2)]});
        let (_, assistant) = world.try_call(0, Method::POST, "/v1/assistants", Some(&body)).await.expect("it is up");
        assistant["id"].as_str().expect("an id").clone_into(&mut world.assistant);
        world.searching_assistant = world.create_searching_assistant().await;
        if runtime.is_some() {
            let body = json!({"model": "scripted", "tools": [{"type": "code_interpreter"}]});
            let (_, coding) = world.try_call(0, Method::POST, "/v1/assistants", Some(&body)).await.expect("it is up");
            world.coding_assistant = Some(coding["id"].as_str().expect("an id").to_owned());
        }
        Arc::new(world)
    }

    /// Creates an assistant with a vector store that has one file.
    async fn create_searching_assistant(&self) -> String {
        let id = |object: Option<(u16, Value)>| {
            let (status, object) = object.expect("it is up");
            assert_eq!(status, 200, "{object}");
            object["id"].as_str().expect("an id").to_owned()
        };
        let file = self.upload(0, COMMON_FILE, "A common text that is found by the word common.").await;
        let file = id(file.map(|file| (200, file)));
        let store = self.try_call(0, Method::POST, "/v1/vector_stores", Some(&json!({"file_ids": [file]}))).await;
        let store = id(store);
        while self.try_call(0, Method::GET, &format!("/v1/vector_stores/{store}"), None).await.expect("it is up").1["status"]
            != "completed"
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let body = json!({"model": "scripted", "tools": [{"type": "file_search"}],
            "tool_resources": {"file_search": {"vector_store_ids": [store]}}});
        id(self.try_call(0, Method::POST, "/v1/assistants", Some(&body)).await)
    }

    /// Uploads a text file. Returns the file, or `None` if there was no response with status 200.
    pub async fn upload(&self, replica: usize, name: &str, text: &str) -> Option<Value> {
        let boundary = "----boundary";
        let part = |parameters: &str, content: &str| {
            format!("--{boundary}\r\ncontent-disposition: form-data; {parameters}\r\n\r\n{content}\r\n")
        };
        let file = part(&format!("name=\"file\"; filename=\"{name}\""), text);
        let body = format!("{}{file}--{boundary}--\r\n", part("name=\"purpose\"", "assistants"));
        let url = self.replicas[replica % self.replicas.len()].url("/v1/files");
        let request = self.client.post(url).timeout(Duration::from_secs(15)).body(body);
        let content_type = format!("multipart/form-data; boundary={boundary}");
        let response = request.header("content-type", content_type).send().await.ok()?;
        if response.status() != 200 {
            self.count(format!("uploads rejected with {}", response.status().as_u16()));
            return None;
        }
        response.json().await.ok()
    }

    pub fn count(&self, what: impl Into<String>) {
        *self.counts.lock().expect("not poisoned").entry(what.into()).or_default() += 1;
    }

    pub fn violation(&self, what: impl Into<String>) {
        let what = what.into();
        self.violations.lock().expect("not poisoned").push(what);
    }

    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().expect("not poisoned").clone()
    }

    /// Removes and returns the violations.
    pub fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut self.violations.lock().expect("not poisoned"))
    }

    pub fn counts(&self) -> BTreeMap<String, usize> {
        self.counts.lock().expect("not poisoned").clone()
    }

    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Sends a request to a server. Returns the status and the body, or `None` if there was no response.
    pub async fn try_call(
        &self,
        replica: usize,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Option<(u16, Value)> {
        self.try_call_with_retries(replica, method, path, body, 0).await
    }

    /// Like `try_call`, with the retry count that the official SDKs send.
    pub async fn try_call_with_retries(
        &self,
        replica: usize,
        method: Method,
        path: &str,
        body: Option<&Value>,
        retries: usize,
    ) -> Option<(u16, Value)> {
        let url = self.replicas[replica % self.replicas.len()].url(path);
        let mut request = self.client.request(method, url).timeout(Duration::from_secs(15));
        request = request.header("x-stainless-retry-count", retries.to_string());
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        let body = response.json().await.ok()?;
        Some((status, body))
    }

    /// Sends an idempotent request until a server responds with a status below 500, for at most two minutes.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        for attempt in 0..400 {
            let replica = fastrand::usize(..self.replicas.len());
            match self.try_call_with_retries(replica, method.clone(), path, body, attempt).await {
                Some((status, body)) if status < 500 => return Some((status, body)),
                Some((status, _)) => self.count(format!("responses {status}")),
                None => self.count("requests without a response"),
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        self.violation(format!("{method} {path}: no response within two minutes"));
        None
    }

    /// Returns how often a run was claimed, and its rows in the usage ledger: whether the call stood, and its input and output
    /// tokens.
    pub async fn ledger(&self, run: &str) -> (i64, Vec<LedgerRow>) {
        use sqlx::Connection as _;
        const ROWS: &str =
            "select stood, input_tokens, output_tokens from model_calls where run_id = $1 and kind = 'completions'";
        const CLAIMS: &str = "select claims from runs where id = $1";
        let (claims, rows): ((i64,), Vec<(bool, i64, i64)>) = if self.database_url.starts_with("sqlite:") {
            let mut connection = sqlx::SqliteConnection::connect(&self.database_url).await.expect("the file exists");
            let rows = sqlx::query_as(ROWS).bind(run).fetch_all(&mut connection).await.expect("the ledger is readable");
            let claims = sqlx::query_as(CLAIMS).bind(run).fetch_one(&mut connection).await.expect("the run exists");
            (claims, rows)
        } else {
            let mut connection = sqlx::PgConnection::connect(&self.database_url).await.expect("Postgres is up");
            let rows = sqlx::query_as(ROWS).bind(run).fetch_all(&mut connection).await.expect("the ledger is readable");
            let claims = sqlx::query_as(CLAIMS).bind(run).fetch_one(&mut connection).await.expect("the run exists");
            (claims, rows)
        };
        let row = |(stood, input, output): (bool, i64, i64)| LedgerRow {
            stood,
            input: input.unsigned_abs(),
            output: output.unsigned_abs(),
        };
        (claims.0, rows.into_iter().map(row).collect())
    }

    /// Opens a stream.
    pub async fn open(&self, replica: usize, path: &str, body: &Value) -> Option<reqwest::Response> {
        let url = self.replicas[replica % self.replicas.len()].url(path);
        let sent = tokio::time::timeout(Duration::from_secs(20), self.client.post(url).json(body).send());
        sent.await.ok()?.ok()
    }

    /// Stops the servers, and checks their logs for panics.
    pub async fn stop(&self) {
        for replica in &self.replicas {
            if let Err(error) = replica.terminate().await {
                self.violation(error);
            }
            let log = std::fs::read_to_string(&replica.log).unwrap_or_default();
            if let Some(line) = log.lines().find(|line| line.contains("panicked")) {
                self.violation(format!("a panic: {line}"));
            }
        }
        if self.owns_home && self.violations().is_empty() {
            let _ = std::fs::remove_dir_all(&self.home);
        } else if self.owns_home {
            eprintln!("logs and data are in {}", self.home.display());
        }
    }
}

/// Returns the folder of the code interpreter's runtime, if it is installed.
fn runtime() -> Option<String> {
    let folder = std::env::var("ASSISTD_TEST_CODE_INTERPRETER").ok().filter(|folder| !folder.is_empty());
    if folder.is_none() {
        skip("runtime of the code interpreter (ASSISTD_TEST_CODE_INTERPRETER): no code runs");
    }
    Some(format!("{}/code-interpreter", folder?))
}

/// Creates a database on the server at `url`. Returns its URL through a relay, and the relay.
async fn create_database(url: &str) -> (String, Relay) {
    use sqlx::{Connection as _, Executor as _};
    let name = format!("faults_{}", uuid::Uuid::now_v7().simple());
    let mut connection = sqlx::PgConnection::connect(url).await.expect("Postgres is up");
    connection.execute(sqlx::AssertSqlSafe(format!("create database {name}"))).await.expect("it can be created");
    connection.close().await.expect("it can be closed");
    let (user, address) =
        url.strip_prefix("postgres://").and_then(|url| url.split_once('@')).expect("a URL with a user");
    let address = address.split('/').next().expect("an address");
    let relay = Relay::start(address.to_owned()).await;
    (format!("postgres://{user}@127.0.0.1:{}/{name}", relay.port), relay)
}
