//! The servers under test: processes that are killed, stopped, frozen and restarted.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// The lease of a run, in seconds: the minimum that a server accepts.
pub const LEASE_S: u64 = 5;
/// The grace period of a graceful shutdown, in seconds.
pub const GRACE_S: u64 = 2;

/// The configuration of a server.
#[derive(Debug, Clone)]
pub struct Options {
    pub assistd: PathBuf,
    pub database_url: String,
    /// The folder of the files, which all servers share.
    pub files_url: String,
    pub upstream_url: String,
    /// Additional settings: names of environment variables without their prefix, and values.
    pub settings: Vec<(&'static str, String)>,
    /// A command that starts the server, such as `faketime`.
    pub wrapper: Vec<String>,
}

/// A server with a fixed port and folder, and changing processes.
#[derive(Debug)]
pub struct Replica {
    pub port: u16,
    pub log: PathBuf,
    options: Options,
    folder: PathBuf,
    process: Mutex<Option<Child>>,
}

impl Replica {
    pub fn new(name: &str, home: &Path, options: Options) -> Self {
        let folder = home.join(name);
        std::fs::create_dir_all(&folder).expect("the folder can be created");
        Self { port: free_port(), log: home.join(format!("{name}.log")), options, folder, process: Mutex::new(None) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Starts a process, and waits until it is ready.
    pub async fn start(&self) -> Result<(), String> {
        let log = File::options().create(true).append(true).open(&self.log).expect("the log can be opened");
        let mut line = self.options.wrapper.clone();
        line.push(self.options.assistd.display().to_string());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).kill_on_drop(true).stdin(Stdio::null());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ASSISTD_")) {
            command.env_remove(name);
        }
        let fixed = [
            ("LISTEN", format!("127.0.0.1:{}", self.port)),
            ("DATABASE_URL", self.options.database_url.clone()),
            ("DATA_DIR", self.folder.display().to_string()),
            ("FILES_URL", self.options.files_url.clone()),
            ("EMBEDDING_MODEL", "scripted-embedding".to_owned()),
            // All vector stores are large: their indexes are written to the database while servers are killed.
            ("SEARCH_MEMORY_CHUNKS_MAX", "1".to_owned()),
            ("UPSTREAM_URL", self.options.upstream_url.clone()),
            ("RUN_LEASE_S", LEASE_S.to_string()),
            ("SHUTDOWN_GRACE_S", GRACE_S.to_string()),
            ("KEEP_ALIVE_S", "2".to_owned()),
            ("LOG_FORMAT", "json".to_owned()),
        ];
        for (name, value) in fixed.iter().chain(&self.options.settings) {
            command.env(format!("ASSISTD_{name}"), value);
        }
        let errors = log.try_clone().expect("the log can be shared");
        let child = command.stdout(log).stderr(errors).spawn().map_err(|error| error.to_string())?;
        *self.process.lock().await = Some(child);
        self.wait_until_ready().await
    }

    /// Waits up to 60 seconds until the server is ready.
    pub async fn wait_until_ready(&self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_mins(1);
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().expect("a client");
        while Instant::now() < deadline {
            if let Ok(response) = client.get(self.url("/ready")).send().await
                && response.status() == 200
            {
                return Ok(());
            }
            if let Some(process) = self.process.lock().await.as_mut()
                && let Ok(Some(status)) = process.try_wait()
            {
                return Err(format!("the server exited with {status} before it was ready"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err("the server was not ready within 60 s".to_owned())
    }

    /// Sends SIGKILL to the process.
    pub async fn kill(&self) {
        if let Some(mut process) = self.process.lock().await.take() {
            let _ = process.kill().await;
        }
    }

    /// Sends SIGTERM to the process, and waits until it exits.
    ///
    /// # Errors
    /// If it fails or does not exit within ten seconds after the grace period, and is then killed.
    pub async fn terminate(&self) -> Result<(), String> {
        self.signal("TERM").await;
        let Some(mut process) = self.process.lock().await.take() else { return Ok(()) };
        let limit = Duration::from_secs(GRACE_S + 10);
        match tokio::time::timeout(limit, process.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(status) => Err(format!("a server exited with {status:?} after SIGTERM")),
            Err(_) => {
                let _ = process.kill().await;
                Err(format!("a server did not exit within {} s after SIGTERM", limit.as_secs()))
            }
        }
    }

    /// Sends a signal, such as `STOP`.
    pub async fn signal(&self, name: &str) {
        let id = self.process.lock().await.as_ref().and_then(Child::id);
        if let Some(id) = id {
            let _ = Command::new("sh").args(["-c", &format!("kill -{name} {id}")]).status().await;
        }
    }
}

/// Returns an unused port below the range of ephemeral ports.
fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(12_000..20_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
