//! A real server on a port of its own.

use std::sync::Arc;

use assistd::api::Timestamp;
use assistd::clock::Clock;
use assistd::config::Settings;

use super::client::Client;
use super::database::Database;
use super::upstream::Upstream;

/// A server that is up; tests that care stop it, the rest let it go with the runtime.
pub struct Server {
    inner: assistd::server::Server,
    pub client: Client,
    pub clock: Arc<Clock>,
}

/// What a test wants of its server.
pub struct Wish<'a> {
    pub database: &'a Database,
    pub upstream: &'a Upstream,
    /// Further settings, as environment variables without their prefix.
    pub settings: &'a [(&'a str, &'a str)],
    /// Time stands still until it is moved.
    pub by_hand: bool,
}

impl Server {
    pub async fn start(database: &Database, upstream: &Upstream) -> Self {
        Self::with(database, upstream, &[]).await
    }

    pub async fn with(database: &Database, upstream: &Upstream, settings: &[(&str, &str)]) -> Self {
        Self::wish(Wish { database, upstream, settings, by_hand: false }).await
    }

    pub async fn wish(wish: Wish<'_>) -> Self {
        let fixed = [
            ("LISTEN", "127.0.0.1:0"),
            ("DATABASE_URL", wish.database.url.as_str()),
            ("UPSTREAM_URL", wish.upstream.url.as_str()),
            ("UPSTREAM_RETRIES", "1"),
            ("SQLITE_SYNCHRONOUS", "normal"),
            ("DATABASE_CONNECTIONS_MAX", "4"),
        ];
        let pairs = fixed.iter().chain(wish.settings);
        let pairs = pairs.map(|(name, value)| (format!("ASSISTD_{name}"), (*value).to_owned()));
        let settings = Settings::load(None, pairs).unwrap();
        let clock = Arc::new(if wish.by_hand { Clock::by_hand(Timestamp(1_000_000)) } else { Clock::system() });
        let inner = assistd::server::Server::start(&settings, clock.clone()).await.unwrap();
        let client = Client::new(inner.address);
        Self { inner, client, clock }
    }

    /// Stops as on SIGTERM.
    pub async fn stop(self) {
        self.inner.stop().await;
    }
}
