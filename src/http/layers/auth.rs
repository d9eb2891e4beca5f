//! Authentication by API key.

use std::ops::Deref;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::cors;
use crate::access::Principal;
use crate::api;
use crate::api::Scope;
use crate::api::error::Kind;
use crate::host::is_loopback;
use crate::http::error::Error;
use crate::http::state::App;

/// The accepted API keys. Only their digests are stored.
#[derive(Debug, Default)]
pub struct Keys {
    digests: Vec<[u8; 32]>,
}

impl Keys {
    /// Creates a set of keys. If it is empty, no key is required.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        Self { digests: keys.into_iter().map(digest).collect() }
    }

    /// Returns the number of keys.
    #[must_use]
    pub fn count(&self) -> usize {
        self.digests.len()
    }

    /// Returns the caller with the key at this index, or without a key if there are no keys. The owner identifies the key,
    /// but does not reveal it.
    fn caller(&self, key_index: usize) -> Caller {
        let digest = self.digests.get(key_index).and_then(|digest| digest.first_chunk());
        let owner = digest.map(|first| format!("{:016x}", u64::from_be_bytes(*first))).unwrap_or_default();
        let principal = Principal { scope: Scope::default_project(), api_key_id: None, owner };
        Caller { principal: Arc::new(principal), key_index }
    }

    /// Returns the index of a key. Compares with every key in constant time.
    fn find(&self, key: &str) -> Option<usize> {
        let given = digest(key);
        let mut found = Choice::from(0);
        let mut index = 0;
        for (candidate, known) in (0_u64..).zip(&self.digests) {
            let is_equal = known.ct_eq(&given);
            index.conditional_assign(&candidate, is_equal);
            found |= is_equal;
        }
        bool::from(found).then(|| usize::try_from(index).expect("keys are counted in memory"))
    }
}

/// The caller of a request, as authenticated by [`require_key`].
#[derive(Debug, Clone)]
pub(in crate::http) struct Caller {
    principal: Arc<Principal>,
    /// The index of its API key, or 0 if there are no keys.
    pub key_index: usize,
}

impl Deref for Caller {
    type Target = Principal;

    fn deref(&self) -> &Principal {
        &self.principal
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        let caller = parts.extensions.get().cloned();
        caller.ok_or_else(|| Error::Internal(Arc::from(Box::from("a route without authentication has a caller"))))
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Rejects a request without a valid key, if there are keys.
pub(in crate::http) async fn require_key(
    State(app): State<App>,
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    let key_index = if app.keys.digests.is_empty() {
        check_local(request.headers(), &app.settings.cors_origins)?;
        0
    } else {
        check(&app.keys, request.headers())?
    };
    request.extensions_mut().insert(app.keys.caller(key_index));
    check_beta(request.headers())?;
    Ok(next.run(request).await)
}

fn check(keys: &Keys, headers: &HeaderMap) -> Result<usize, api::Error> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let key = bearer.or_else(|| headers.get("api-key").and_then(|value| value.to_str().ok()));
    let Some(key) = key.filter(|key| !key.is_empty()) else {
        return Err(api::Error::new(
            Kind::Authentication,
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer \
             auth (i.e. Authorization: Bearer YOUR_KEY), or as the password field (with blank username) if you're \
             accessing the API from your browser and are prompted for a username and password. You can obtain an API \
             key from https://platform.openai.com/account/api-keys.",
        ));
    };
    keys.find(key).ok_or_else(|| {
        api::Error::new(
            Kind::Authentication,
            format!(
                "Incorrect API key provided: {}. You can find your API key at \
                 https://platform.openai.com/account/api-keys.",
                masked(key)
            ),
        )
        .code("invalid_api_key")
    })
}

/// Without API keys, rejects requests from web pages of other machines: `Origin` names the page, and `Host` reveals DNS
/// rebinding. Origins in the settings are allowed.
fn check_local(headers: &HeaderMap, origins: &[String]) -> Result<(), api::Error> {
    for name in [HOST, ORIGIN] {
        let Some(value) = headers.get(&name) else { continue };
        let text = value.to_str().unwrap_or_default();
        if name == ORIGIN && origins.iter().any(|origin| origin == text || origin == cors::ANY) {
            continue;
        }
        let authority = text.split_once("://").map_or(text, |(_, authority)| authority);
        let host = authority.parse::<Authority>().map(|authority| authority.host().to_owned()).unwrap_or_default();
        if !is_loopback(&host) {
            return Err(api::Error::new(
                Kind::Forbidden,
                format!(
                    "Without api_keys, this server only accepts requests from this machine, but {name} is '{text}'."
                ),
            ));
        }
    }
    Ok(())
}

/// Rejects clients of the first version of the API, which is not supported.
fn check_beta(headers: &HeaderMap) -> Result<(), api::Error> {
    let requests_v1 = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.contains("assistants=v1"));
    if headers.get_all("openai-beta").iter().any(requests_v1) {
        return Err(api::Error::invalid(
            "You must provide the 'OpenAI-Beta' header to access the Assistants API. Please try again by setting the \
             header 'OpenAI-Beta: assistants=v2'.",
        )
        .code("invalid_beta"));
    }
    Ok(())
}

/// Masks a key, with enough characters left to recognize it.
fn masked(key: &str) -> String {
    let characters: Vec<char> = key.chars().collect();
    if characters.len() < 12 {
        return "***".to_owned();
    }
    let first: String = characters[..5].iter().collect();
    let last: String = characters[characters.len() - 2..].iter().collect();
    format!("{first}***{last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_headers(headers: &[(&'static str, &'static str)]) -> Result<usize, String> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        check(&Keys::new(["sk-other-0123456789", "sk-right-0123456789"]), &headers).map_err(|error| error.message)
    }

    #[test]
    fn a_valid_key_is_accepted_in_either_header() {
        assert_eq!(check_headers(&[("authorization", "Bearer sk-right-0123456789")]), Ok(1));
        assert_eq!(check_headers(&[("api-key", "sk-right-0123456789")]), Ok(1));
    }

    #[test]
    fn without_api_keys_only_local_requests_are_accepted() {
        let accepts = |name: &'static str, value: &'static str| {
            let headers = std::iter::once((name.parse().unwrap(), value.parse().unwrap())).collect();
            check_local(&headers, &["https://app.example".to_owned()]).is_ok()
        };

        for host in ["127.0.0.1:8484", "localhost:8484", "[::1]:8484", "app.localhost"] {
            assert!(accepts("host", host), "{host}");
        }
        assert!(accepts("origin", "http://localhost:3000"));
        assert!(accepts("origin", "https://app.example"), "allowed by the settings");
        for (name, value) in [("host", "evil.example:8484"), ("origin", "https://evil.example"), ("origin", "null")] {
            assert!(!accepts(name, value), "{name}: {value}");
        }
    }

    #[test]
    fn the_first_version_of_the_api_is_rejected() {
        let accepts = |value: &'static str| {
            check_beta(&std::iter::once(("openai-beta".parse().unwrap(), value.parse().unwrap())).collect()).is_ok()
        };

        assert!(accepts("assistants=v2") && !accepts("assistants=v1"));
    }

    #[test]
    fn an_invalid_key_is_masked() {
        let message = check_headers(&[("authorization", "Bearer sk-wrong-0123456789")]).unwrap_err();

        assert!(message.starts_with("Incorrect API key provided: sk-wr***89."), "{message}");
    }

    #[test]
    fn a_missing_key_and_an_empty_key_are_equivalent() {
        for headers in [&[][..], &[("authorization", "Bearer ")], &[("authorization", "Basic x")]] {
            assert!(check_headers(headers).unwrap_err().starts_with("You didn't provide an API key."));
        }
    }
}
