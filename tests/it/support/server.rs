//! A running server on its own port.

use std::net::SocketAddr;
use std::sync::Arc;

use assistd::api::Timestamp;
use assistd::clock::Clock;
use assistd::config::Settings;

use super::client::Client;
use super::database::Database;
use super::upstream::Upstream;

/// A running server. A test may stop it; otherwise it ends with the runtime.
pub struct Server {
    inner: assistd::server::Server,
    pub client: Client,
    pub clock: Arc<Clock>,
}

impl Server {
    pub async fn start(database: &Database, upstream: &Upstream) -> Self {
        Self::with(database, upstream, &[]).await
    }

    pub async fn with(database: &Database, upstream: &Upstream, settings: &[(&str, &str)]) -> Self {
        Self::launch(database, upstream, settings, Clock::system()).await
    }

    /// Starts a server whose clock is stopped; the test advances it.
    pub async fn with_manual_clock(database: &Database, upstream: &Upstream, settings: &[(&str, &str)]) -> Self {
        Self::launch(database, upstream, settings, Clock::manual(Timestamp(1_000_000))).await
    }

    async fn launch(database: &Database, upstream: &Upstream, settings: &[(&str, &str)], clock: Clock) -> Self {
        let files = format!("file://{}", database.files().display());
        let data = database.data().display().to_string();
        let fixed = [
            ("LISTEN", "127.0.0.1:0"),
            ("DATABASE_URL", database.url.as_str()),
            ("UPSTREAM_URL", upstream.url.as_str()),
            ("UPSTREAM_RETRIES", "1"),
            ("SQLITE_SYNCHRONOUS", "normal"),
            ("DATABASE_CONNECTIONS_MAX", "4"),
            ("FILES_URL", files.as_str()),
            ("DATA_DIR", data.as_str()),
        ];
        let pairs = fixed.iter().chain(settings);
        let pairs = pairs.map(|(name, value)| (format!("ASSISTD_{name}").into(), value.into()));
        let settings = Settings::load(None, pairs).unwrap();
        let clock = Arc::new(clock);
        // The running program is that of the tests.
        let program = env!("CARGO_BIN_EXE_assistd").into();
        let inner = assistd::server::Server::start_with_program(&settings, clock.clone(), program).await.unwrap();
        let client = Client::new(inner.address);
        Self { inner, client, clock }
    }

    /// Returns the address on which only the metrics are served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.inner.metrics_address
    }

    /// Stops the server as on SIGTERM.
    pub async fn stop(self) {
        self.inner.stop().await;
    }
}
