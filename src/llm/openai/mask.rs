//! Masks the key and the address of a server in the texts that it sends. Pure.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::Url;
use secrecy::{ExposeSecret as _, SecretString};

/// Replaces a secret in output.
pub const MASK: &str = "***";

/// Minimum length of a part of a URL's path that is masked like a secret, in bytes.
const TOKEN_CHARS_MIN: usize = 12;
/// Minimum length of a text that is masked, in bytes.
const SECRET_CHARS_MIN: usize = 4;
/// What is percent-encoded in a query.
const NON_ALPHANUMERIC_BUT_DASHES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What must not appear in texts that clients see.
#[derive(Debug)]
pub struct Mask {
    api_key: Option<SecretString>,
    /// All secrets, in each form in which a server may repeat them. The longest is first, because it may contain others.
    hidden: Vec<SecretString>,
}

impl Mask {
    /// Creates the mask of a server: its key, its address, and every part of its URL that may be secret.
    #[must_use]
    pub fn new(base_url: &str, url: Option<&Url>, api_key: Option<&SecretString>) -> Self {
        let mut texts = vec![base_url.trim_end_matches('/').to_owned()];
        texts.extend(api_key.map(|key| key.expose_secret().to_owned()));
        texts.extend(url.into_iter().flat_map(parts));
        let escaped = texts.iter().map(|text| text.replace('/', "\\/"));
        let encoded = texts.iter().map(|text| utf8_percent_encode(text, NON_ALPHANUMERIC_BUT_DASHES).to_string());
        let other_forms: Vec<String> = escaped.chain(encoded).collect();
        texts.extend(other_forms);
        // A short text may be a part of ordinary words.
        texts.retain(|text| text.len() >= SECRET_CHARS_MIN);
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        texts.dedup();
        Self { api_key: api_key.cloned(), hidden: texts.into_iter().map(SecretString::from).collect() }
    }

    /// Returns a text with all secrets and the addresses of local machines replaced.
    #[must_use]
    pub fn apply(&self, text: &str) -> String {
        let text = self.hidden.iter().fold(text.to_owned(), |text, secret| text.replace(secret.expose_secret(), MASK));
        without_addresses(&text)
    }

    /// Returns forwarded bytes with the key replaced, because some servers repeat it in errors.
    #[must_use]
    pub fn apply_to_bytes(&self, bytes: Bytes) -> Bytes {
        let Some(key) = &self.api_key else { return bytes };
        let key = key.expose_secret();
        match std::str::from_utf8(&bytes) {
            Ok(text) if key.len() >= SECRET_CHARS_MIN && text.contains(key) => text.replace(key, MASK).into(),
            Ok(_) | Err(_) => bytes,
        }
    }
}

/// Returns the parts of a URL that may be secret.
fn parts(url: &Url) -> Vec<String> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (user, password) = (decode(url.username()), url.password().map(decode).unwrap_or_default());
    let mut texts = vec![BASE64.encode(format!("{user}:{password}"))];
    texts.extend([url.username().to_owned(), user, url.password().unwrap_or_default().to_owned(), password]);
    texts.extend(url.query_pairs().map(|(_, value)| value.into_owned()));
    texts.extend(url.query().map(str::to_owned));
    texts.extend(url.fragment().map(str::to_owned));
    let segments = url.path_segments().into_iter().flatten();
    texts.extend(segments.filter(|segment| segment.len() >= TOKEN_CHARS_MIN).map(str::to_owned));
    texts.extend(url.port().and_then(|port| Some(format!("{}:{port}", url.host_str()?))));
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    // A name without a dot may be an ordinary word.
    if host.contains(['.', ':']) {
        texts.push(host.to_owned());
    }
    texts
}

/// Replaces the addresses of machines that are not public: IP addresses, and URLs and names of local machines. Servers name
/// other servers behind them, which is nothing for users.
fn without_addresses(text: &str) -> String {
    let is_part = |character: char| character.is_ascii_alphanumeric() || "._-:/[]@%".contains(character);
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_part) {
        let (before, from) = rest.split_at(start);
        let (word, after) = from.split_at(from.find(|character| !is_part(character)).unwrap_or(from.len()));
        masked.push_str(before);
        match address_in(word) {
            Some(range) => {
                masked.push_str(&word[..range.start]);
                masked.push_str(MASK);
                masked.push_str(&word[range.end..]);
            }
            None => masked.push_str(word),
        }
        rest = after;
    }
    masked.push_str(rest);
    masked
}

/// Finds the address of a machine that is not public in a word.
fn address_in(word: &str) -> Option<std::ops::Range<usize>> {
    const LOCAL_NAMES: [&str; 5] = [".local", ".internal", ".lan", ".localdomain", ".localhost"];
    let (start, is_url) = word.find("://").map_or((0, false), |at| (at + 3, true));
    let authority = word[start..].split('/').next().unwrap_or_default().trim_end_matches(['.', ':', '-']);
    let after_user = authority.rsplit('@').next().unwrap_or_default();
    let host = match after_user.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None if after_user.parse::<IpAddr>().is_ok() => after_user,
        None => after_user.split(':').next().unwrap_or_default(),
    };
    let host = host.to_ascii_lowercase();
    let is_local_name = LOCAL_NAMES.iter().any(|ending| host.ends_with(ending)) || host == "localhost";
    let is_url_of_name = is_url && !host.is_empty() && !host.contains('.');
    let is_private = host.parse::<IpAddr>().is_ok() || is_local_name || is_url_of_name;
    is_private.then(|| start..start + authority.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_server_is_masked_wherever_it_appears() {
        let masked = |url: &str, text: &str| Mask::new(url, Url::parse(url).ok().as_ref(), None).apply(text);

        let url = "https://gpu.corp.example/v1";
        assert_eq!(masked(url, "no certificate for gpu.corp.example"), "no certificate for ***");
        assert_eq!(masked(url, "see https://docs.example/errors"), "see https://docs.example/errors");
        assert_eq!(masked("http://ollama:11434/v1", "ollama at ollama:11434 is busy"), "ollama at *** is busy");
    }

    #[test]
    fn addresses_of_local_machines_are_masked() {
        for (text, expected) in [
            ("dial tcp 10.0.0.5:8000: connect: refused", "dial tcp ***: connect: refused"),
            ("Cannot connect to host 172.17.0.2:80 (down).", "Cannot connect to host *** (down)."),
            ("at http://llm-0:9000/v1/chat, retry", "at http://***/v1/chat, retry"),
            ("{\"error\":\"http://user@node.internal/x\"}", "{\"error\":\"http://***/x\"}"),
            ("host localhost:11434, [::1]:80 and fe80::1.", "host ***, *** and ***."),
        ] {
            assert_eq!(without_addresses(text), expected);
        }
        for public in [
            "see https://platform.example/docs for the model qwen3:8b v1.2.3",
            "std::io::Error: at 12:30",
            "größer als 2 … ",
            "http://***/v1",
        ] {
            assert_eq!(without_addresses(public), public);
        }
    }
}
