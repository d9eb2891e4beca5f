//! Masks the key and the address of a server in the texts that it sends. Pure.

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

    /// Returns a text with all secrets replaced.
    #[must_use]
    pub fn apply(&self, text: &str) -> String {
        self.hidden.iter().fold(text.to_owned(), |text, secret| text.replace(secret.expose_secret(), MASK))
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
    texts
}
