//! Host names. Pure.

use std::net::IpAddr;

/// Returns whether a host is this machine: `localhost`, a name below it, or a loopback address. Case and a dot at the end do
/// not matter, as in DNS. IPv6 addresses may be in brackets, as in URLs.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    match parse(host) {
        Ok(address) => is_loopback_address(address),
        Err(name) => name == "localhost" || name.ends_with(".localhost"),
    }
}

/// Returns the address that a host is, or its name in lower case without a dot at the end.
fn parse(host: &str) -> Result<IpAddr, String> {
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let name = host.strip_suffix('.').unwrap_or(host);
    bracketed.unwrap_or(name).parse().map_err(|_| name.to_ascii_lowercase())
}

/// Returns whether only this machine can reach an address. IPv4 addresses may be written as IPv6 addresses.
#[must_use]
pub fn is_loopback_address(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Endings of names that public DNS does not have.
const LOCAL_ENDINGS: [&str; 7] = [".localhost", ".local", ".internal", ".lan", ".home.arpa", ".svc", ".test"];

/// Returns whether a host is this machine or one in the same network: it has a private address, a name without a dot, or a name
/// that public DNS does not have.
#[must_use]
pub fn is_local(host: &str) -> bool {
    match parse(host).map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_private() || address.is_link_local(),
        Ok(IpAddr::V6(address)) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
        Err(name) => {
            !name.is_empty() && (!name.contains('.') || LOCAL_ENDINGS.iter().any(|ending| name.ends_with(ending)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_in_the_same_network_are_local() {
        for host in
            ["localhost", "gpu-box", "ollama.", "gpu.local", "host.docker.internal", "llm.default.svc", "10.1.2.3"]
        {
            assert!(is_local(host), "{host}");
        }
        for host in ["127.0.0.1", "192.168.1.2", "[::1]", "[fd00::1]", "[::ffff:172.16.0.1]", "169.254.1.1"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["", ".", "api.openai.com", "llm.example.org.", "8.8.8.8", "[2001:db8::1]", "local.example"] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn loopback_names_and_addresses_are_this_machine() {
        for host in [
            "localhost",
            "localhost.",
            "LOCALHOST",
            "app.localhost",
            "App.Localhost.",
            "127.0.0.1",
            "127.0.0.1.",
            "127.8.8.8",
            "::1",
            "[::1]",
            "::ffff:127.0.0.1",
            "[::ffff:127.0.0.1]",
            "[::FFFF:7F00:1]",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            ".",
            "localhost..",
            "localhost.example",
            "notlocalhost",
            "10.0.0.1",
            "0.0.0.0",
            "[::]",
            "[::ffff:10.0.0.1]",
            "[localhost]",
            "127.0.0.1.example",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
