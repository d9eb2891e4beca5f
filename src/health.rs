//! The client of `GET /health`, for the command `assistd health`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// The timeout of the request.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Returns the address at which this machine reaches a server that listens on `listen`: loopback for a server that listens
/// on all addresses.
#[must_use]
pub fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Checks the server that listens on `listen`.
///
/// # Errors
/// If it does not respond with 200.
pub async fn check(listen: SocketAddr) -> Result<(), reqwest::Error> {
    let url = format!("http://{}/health", reachable(listen));
    // Fails if a provider is already installed, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    #[expect(clippy::disallowed_methods, reason = "this client connects to our own server, not to a model server")]
    let client = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build()?;
    client.get(url).send().await?.error_for_status()?;
    Ok(())
}
