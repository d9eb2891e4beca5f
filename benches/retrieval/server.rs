//! The measured server, in a process of its own.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;

use crate::client::Client;
use crate::embeddings::MODEL;
use crate::{Result, proc};

/// How long a server can take to become ready.
const READY_TIMEOUT: Duration = Duration::from_mins(1);

/// The configuration of the servers.
pub struct Setup {
    pub server_binary: PathBuf,
    pub folder: PathBuf,
    pub embeddings: SocketAddr,
    /// The setting `search_memory_chunks_max`; `None`: its default.
    pub memory_chunks: Option<usize>,
}

/// A running server. Its process is killed when this is dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// Starts a server with default settings on a database, with the embedding model.
    pub async fn start(setup: &Setup, database_url: &str) -> Result<Self> {
        Self::start_with(setup, database_url, true).await
    }

    /// Starts a server with or without the embedding model.
    pub async fn start_with(setup: &Setup, database_url: &str, has_embeddings: bool) -> Result<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = setup.folder.join(format!("server-{number}.log"));
        let output = File::create(&log)?;
        let mut command = Command::new(&setup.server_binary);
        // Removes the settings of the caller's environment.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ASSISTD_") {
                command.env_remove(name);
            }
        }
        let url = format!("http://{}/v1", setup.embeddings);
        let child = command
            .env("ASSISTD_LISTEN", address.to_string())
            .env("ASSISTD_DATABASE_URL", database_url)
            .env("ASSISTD_UPSTREAM_URL", &url)
            .env("ASSISTD_EMBEDDING_MODEL", if has_embeddings { MODEL } else { "" })
            .env("ASSISTD_SEARCH_MEMORY_CHUNKS_MAX", setup.memory_chunks.unwrap_or(0).to_string())
            .env("ASSISTD_DATA_DIR", setup.folder.join(format!("data-{number}")))
            .env("ASSISTD_LOG", "warn")
            .current_dir(&setup.folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let mut server = Self { child, address, log };
        server.wait_until_ready().await?;
        Ok(server)
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let mut client = Client::new(self.address);
        let deadline = Instant::now() + READY_TIMEOUT;
        while let Err(error) = client.fetch(Method::GET, "/ready", Bytes::new()).await {
            let exited = self.child.try_wait()?;
            if exited.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                return Err(format!("the server is not ready ({error}): {log}").into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Returns the peak of the resident memory since the last call, in MiB; `None` where that is unknown.
    pub fn take_peak_mib(&self) -> Option<f64> {
        proc::take_peak_kib(self.child.id()).map(|kib| kib / 1024.0)
    }

    /// Returns the resident memory of the server, in MiB; `None` where that is unknown.
    pub fn memory_mib(&self) -> Option<f64> {
        proc::resident_kib(self.child.id()).map(|kib| kib / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if the process has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
