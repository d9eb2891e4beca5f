//! Asks a running server whether it is alive: the other side of `GET /health`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Where this machine reaches a server that listens on `listen`: one that listens everywhere, over loopback.
#[must_use]
pub fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Asks the server that listens on `listen`.
///
/// # Errors
/// When it does not answer, or not with 200.
pub async fn check(listen: SocketAddr) -> Result<(), reqwest::Error> {
    let url = format!("http://{}/health", reachable(listen));
    // Fails when it is installed already, which is what we want.
    let _ = rustls::crypto::ring::default_provider().install_default();
    #[expect(clippy::disallowed_methods, reason = "this client talks to ourselves, not to a model server")]
    let client = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build()?;
    client.get(url).send().await?.error_for_status()?;
    Ok(())
}
