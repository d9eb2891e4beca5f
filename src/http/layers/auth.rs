//! Authentication by API key, and the two roles: members of a project, and administrators.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use super::cors;
use super::trace::RequestId;
use crate::access::{Principal, Rejection, TooManyWrongKeys};
use crate::api;
use crate::api::Timestamp;
use crate::api::error::Kind;
use crate::api::organization::{Actor, Change};
use crate::host::is_loopback;
use crate::http::error::{Error, error_response};
use crate::http::state::{App, ClientAddress};

/// The header in which clients of Azure send a key.
const API_KEY: &str = "api-key";
/// What a user without a valid key can do.
const ASK_FOR_KEY: &str =
    "Ask the operator of this server for a key; the operator can create one with \"assistd keys create\".";

/// The caller of a request, as authenticated by [`authenticate`].
#[derive(Debug, Clone)]
pub(in crate::http) struct Caller(Arc<Principal>);

impl Deref for Caller {
    type Target = Principal;

    fn deref(&self) -> &Principal {
        &self.0
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        let caller = parts.extensions.get().cloned();
        caller.ok_or_else(|| Error::Internal(Arc::from(Box::from("a route without authentication has a caller"))))
    }
}

/// Rejects a request without a valid key, unless there are no keys and the request is from this machine. A key that exists
/// is used even if this server has not yet noticed that there are keys.
pub(in crate::http) async fn authenticate(
    State(app): State<App>,
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    let address = request.extensions().get::<ClientAddress>().map(|ClientAddress(address)| *address);
    let presented = match presented_key(request.headers()) {
        Some(key) => match check_key(&app, address, key).await? {
            Ok(checked) => (key, checked),
            Err(exceeded) => return Ok(too_many_wrong_keys(exceeded)),
        },
        None => ("", Err(Rejection::MissingKey)),
    };
    let principal = match presented {
        (_, Ok(principal)) => principal,
        (key, Err(rejection @ (Rejection::MissingKey | Rejection::UnknownKey))) => {
            let keyless = app.authenticator.keyless().await?;
            let principal = keyless.ok_or_else(|| unauthorized(rejection, key))?;
            check_local(request.headers(), &app.settings.cors_origins)?;
            principal
        }
        (key, Err(rejection)) => return Err(unauthorized(rejection, key)),
    };
    check_beta(request.headers())?;
    let caller = Caller(principal);
    request.extensions_mut().insert(caller.clone());
    let mut response = next.run(request).await;
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        // For the log.
        response.extensions_mut().insert(caller);
    }
    Ok(response)
}

/// The outcome of the check of a key, unless its address has tried too many wrong ones.
type CheckedKey = Result<Result<Arc<Principal>, Rejection>, TooManyWrongKeys>;

/// Checks a key, unless its address has tried too many wrong ones. Without any keys, none is wrong.
async fn check_key(app: &App, address: Option<IpAddr>, key: &str) -> Result<CheckedKey, Error> {
    let Some(address) = address else { return Ok(Ok(app.authenticator.authenticate(key).await)) };
    if let Err(exceeded) = app.wrong_keys.wait(address, key).await {
        return Ok(Err(exceeded));
    }
    let checked = app.authenticator.authenticate(key).await;
    match &checked {
        Ok(_) => app.wrong_keys.accept(address, key),
        Err(Rejection::UnknownKey) if app.authenticator.keyless().await?.is_none() => {
            if let Err(exceeded) = app.wrong_keys.count(address, key) {
                return Ok(Err(exceeded));
            }
        }
        Err(_) => {}
    }
    Ok(Ok(checked))
}

/// Marks the response to a client that has tried too many wrong keys, for the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct RateOfKeysExceeded;

fn too_many_wrong_keys(TooManyWrongKeys { retry_after }: TooManyWrongKeys) -> Response {
    let seconds = retry_after.as_secs();
    let message = format!("Too many requests with wrong API keys from this address. Please try again in {seconds}s.");
    let error = api::Error::new(Kind::RateLimited, message).code("rate_limit_exceeded").retry_after(seconds);
    let mut response = error_response(&error);
    response.extensions_mut().insert(RateOfKeysExceeded);
    response
}

/// Rejects a caller that has no project, such as an administrator. A layer of the routes for members.
pub(in crate::http) async fn require_member(caller: Caller, request: Request, next: Next) -> Result<Response, Error> {
    if caller.role.is_member() { Ok(next.run(request).await) } else { Err(missing_scope(&request)) }
}

/// Rejects a caller that is not an administrator. A layer of the routes of the administration. After a request that may
/// have changed keys or limits, this server reads them again.
pub(in crate::http) async fn require_admin(
    State(app): State<App>,
    caller: Caller,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    if !caller.role.is_admin() {
        return Err(missing_scope(&request));
    }
    let is_read = request.method() == Method::GET;
    let response = next.run(request).await;
    if !is_read {
        app.authenticator.forget();
    }
    Ok(response)
}

/// An administrator who makes a change.
#[derive(Debug)]
pub(in crate::http) struct Admin {
    actor: Actor,
    request_id: String,
}

impl Admin {
    /// Returns the change that the request makes, for the audit log.
    pub fn change(&self, now: Timestamp) -> Change {
        Change { actor: self.actor.clone(), request_id: self.request_id.clone(), at: now }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Admin {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let actor = match &caller.api_key_id {
            Some(id) => Actor::StoredKey(id.clone()),
            None if caller.is_keyless() => Actor::Local,
            None => Actor::ConfiguredKey,
        };
        let request_id = parts.extensions.get().map_or_else(String::new, |RequestId(id)| id.clone());
        Ok(Self { actor, request_id })
    }
}

/// The headers of a request that can have a key, for the log.
#[derive(Debug)]
pub(super) struct PresentedKey(HeaderMap);

impl PresentedKey {
    /// Copies the headers.
    pub fn of(headers: &HeaderMap) -> Self {
        let names = [AUTHORIZATION, HeaderName::from_static(API_KEY)];
        Self(names.into_iter().filter_map(|name| Some((name.clone(), headers.get(&name)?.clone()))).collect())
    }

    /// Returns the masked key, if there is one.
    pub fn masked(&self) -> Option<String> {
        presented_key(&self.0).map(masked)
    }
}

/// Returns the key of a request, from either header.
fn presented_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let key = bearer.or_else(|| headers.get(API_KEY).and_then(|value| value.to_str().ok()));
    key.filter(|key| !key.is_empty())
}

/// Returns the error for a key that is not accepted. The first sentences and the codes are those of OpenAI's service, on which
/// clients match. Differs: the service names its page of keys.
fn unauthorized(rejection: Rejection, key: &str) -> Error {
    let (message, code) = match rejection {
        Rejection::Store(error) => return error.into(),
        Rejection::MissingKey => (
            format!(
                "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer \
                 auth (i.e. Authorization: Bearer YOUR_KEY), or in the header api-key. {ASK_FOR_KEY}"
            ),
            None,
        ),
        Rejection::UnknownKey => (
            format!(
                "Incorrect API key provided: {}. It is not a key of this assistd server. {ASK_FOR_KEY}",
                masked(key)
            ),
            Some("invalid_api_key"),
        ),
        Rejection::ExpiredKey => (
            format!("Incorrect API key provided: {}. The key has expired. {ASK_FOR_KEY}", masked(key)),
            Some("invalid_api_key"),
        ),
        Rejection::ArchivedProject => (
            "The project you are requesting has been archived and is no longer accessible".to_owned(),
            Some("not_authorized_invalid_project"),
        ),
    };
    let error = api::Error::new(Kind::Authentication, message);
    match code {
        Some(code) => error.code(code).into(),
        None => error.into(),
    }
}

/// Returns the error for a key that must not be used for this request. It names the missing scope, as the service does.
fn missing_scope(request: &Request) -> Error {
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let scope = scope_of(path, request.method());
    api::Error::new(
        Kind::Authentication,
        format!(
            "You have insufficient permissions for this operation. Missing scopes: {scope}. Check that you have the \
             correct role in your organization, and if you're using a restricted API key, that it has the necessary \
             scopes."
        ),
    )
    .into()
}

/// Returns the name of the scope that an operation needs.
fn scope_of(path: &str, method: &Method) -> &'static str {
    let is_read = method == Method::GET;
    let has = |segment: &str| path.split('/').any(|part| part == segment);
    match () {
        () if has("organization") && has("usage") => "api.usage.read",
        () if has("organization") && has("audit_logs") => "api.audit_logs.read",
        () if has("organization") && is_read => "api.management.read",
        () if has("organization") => "api.management.write",
        () if has("usage") => "api.usage.read",
        () if has("metrics") => "api.management.read",
        () if has("models") => "api.model.read",
        () if has("chat") || has("embeddings") => "model.request",
        () if (has("files") || has("uploads")) && is_read => "api.files.read",
        () if has("files") || has("uploads") => "api.files.write",
        () if has("assistants") && is_read => "api.assistants.read",
        () if has("assistants") => "api.assistants.write",
        () if is_read => "api.threads.read",
        () => "api.threads.write",
    }
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

    fn key_in(headers: &[(&'static str, &'static str)]) -> Option<String> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        presented_key(&headers).map(str::to_owned)
    }

    #[test]
    fn a_key_is_accepted_in_either_header() {
        assert_eq!(key_in(&[("authorization", "Bearer sk-1")]).as_deref(), Some("sk-1"));
        assert_eq!(key_in(&[("api-key", "sk-1")]).as_deref(), Some("sk-1"));
        for headers in [&[][..], &[("authorization", "Bearer ")], &[("authorization", "Basic x")]] {
            assert_eq!(key_in(headers), None, "{headers:?}");
        }
    }

    #[test]
    fn without_api_keys_only_local_requests_are_accepted() {
        let accepts = |name: &'static str, value: &'static str| {
            let headers = std::iter::once((name.parse().unwrap(), value.parse().unwrap())).collect();
            check_local(&headers, &["https://app.example".to_owned()]).is_ok()
        };

        for host in [
            "127.0.0.1:8484",
            "localhost:8484",
            "localhost.:8484",
            "LOCALHOST",
            "[::1]:8484",
            "[::ffff:127.0.0.1]:8484",
            "app.localhost",
        ] {
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
    fn a_rejected_key_is_masked() {
        for rejection in [Rejection::UnknownKey, Rejection::ExpiredKey] {
            let Error::Public(error) = unauthorized(rejection, "sk-wrong-0123456789") else { panic!("not public") };
            assert!(error.message.starts_with("Incorrect API key provided: sk-wr***89."), "{error}");
        }
    }

    #[test]
    fn a_missing_scope_is_named() {
        for (method, path, scope) in [
            (Method::GET, "/v1/organization/projects", "api.management.read"),
            (Method::DELETE, "/v1/organization/admin_api_keys/{key_id}", "api.management.write"),
            (Method::GET, "/v1/organization/usage/completions", "api.usage.read"),
            (Method::GET, "/v1/organization/audit_logs", "api.audit_logs.read"),
            (Method::POST, "/v1/threads/{thread_id}/runs", "api.threads.write"),
            (Method::GET, "/openai/assistants", "api.assistants.read"),
            (Method::POST, "/v1/files", "api.files.write"),
            (Method::GET, "/v1/files/{file_id}/content", "api.files.read"),
            (Method::POST, "/v1/chat/completions", "model.request"),
        ] {
            assert_eq!(scope_of(path, &method), scope, "{method} {path}");
        }
    }
}
