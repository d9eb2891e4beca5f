//! Host names. Pure.

use std::net::IpAddr;

/// Returns whether a host is this machine: `localhost`, a name below it, or a loopback address. Case and a dot at the end do
/// not matter, as in DNS. IPv6 addresses may be in brackets, as in URLs.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let Ok(address) = bracketed.unwrap_or(host).parse::<IpAddr>() {
        return is_loopback_address(address);
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.parse().is_ok_and(is_loopback_address)
}

/// Returns whether only this machine can reach an address. IPv4 addresses may be written as IPv6 addresses.
#[must_use]
pub fn is_loopback_address(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

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
