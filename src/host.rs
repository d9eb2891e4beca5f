//! Host names. Pure.

use std::net::IpAddr;

/// Returns whether a host is this machine: `localhost`, a name below it, or a loopback address. IPv6 addresses may be in
/// brackets, as in URLs.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    host == "localhost" || host.ends_with(".localhost") || address.is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names_and_addresses_are_this_machine() {
        for host in ["localhost", "app.localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "localhost.example", "notlocalhost", "10.0.0.1", "0.0.0.0", "[::]", "127.0.0.1.example"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
