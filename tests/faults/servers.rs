//! The servers under test: processes that are killed, stopped, frozen and started again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Lease of a run, in seconds: the shortest that a server accepts.
pub const LEASE_S: u64 = 5;
/// Time that runs and streams get when a server is asked to stop, in seconds.
pub const GRACE_S: u64 = 2;

/// How a server is started.
#[derive(Debug, Clone)]
pub struct Options {
    pub assistd: PathBuf,
    pub database_url: String,
    pub upstream_url: String,
    /// Further settings, as environment variables without their prefix.
    pub settings: Vec<(&'static str, String)>,
    /// A command in front of the server's, such as `faketime`.
    pub wrapper: Vec<String>,
}

/// One server, which keeps its port and its folder over all its processes.
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
        std::fs::create_dir_all(&folder).expect("the folder can be made");
        Self { port: free_port(), log: home.join(format!("{name}.log")), options, folder, process: Mutex::new(None) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Starts a process, and waits until it is ready.
    pub async fn start(&self) -> Result<(), String> {
        let log = File::options().create(true).append(true).open(&self.log).expect("the log can be opened");
        let mut words = self.options.wrapper.clone();
        words.push(self.options.assistd.display().to_string());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).kill_on_drop(true).stdin(Stdio::null());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ASSISTD_")) {
            command.env_remove(name);
        }
        let fixed = [
            ("LISTEN", format!("127.0.0.1:{}", self.port)),
            ("DATABASE_URL", self.options.database_url.clone()),
            ("DATA_DIR", self.folder.display().to_string()),
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

    /// Waits until the server answers that it is ready: at most 60 seconds.
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
                return Err(format!("the server exited with {status} while it was awaited"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err("the server was not ready within 60 s".to_owned())
    }

    /// Ends the process without warning.
    pub async fn kill(&self) {
        if let Some(mut process) = self.process.lock().await.take() {
            let _ = process.kill().await;
        }
    }

    /// Asks the process to stop.
    ///
    /// # Errors
    /// When it has not exited some time after the grace time; it is killed then.
    pub async fn terminate(&self) -> Result<(), String> {
        self.signal("TERM").await;
        let Some(mut process) = self.process.lock().await.take() else { return Ok(()) };
        let limit = Duration::from_secs(GRACE_S + 10);
        match tokio::time::timeout(limit, process.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(status) => Err(format!("a server that was asked to stop ended with {status:?}")),
            Err(_) => {
                let _ = process.kill().await;
                Err(format!("a server that was asked to stop did not exit within {} s", limit.as_secs()))
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

/// A port below the range from which the system chooses ports for outgoing connections.
fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(12_000..20_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
