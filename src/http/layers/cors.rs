//! CORS: origins that may use the API from a browser. A browser does not say why it blocks a web page, so the log does.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::api;
use crate::api::error::Kind;
use crate::http::error::error_response;

/// Matches every origin.
pub(in crate::http) const ANY: &str = "*";
/// Response headers that scripts may read, in addition to the safelisted ones.
const EXPOSED: [&str; 7] = [
    "x-request-id",
    "openai-poll-after-ms",
    "openai-processing-ms",
    "retry-after-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
];
/// How long browsers use the response to a preflight request. The maximum of Chromium.
const MAX_AGE: Duration = Duration::from_hours(2);
/// Maximum number of origins that are logged. Beyond it, further ones are not.
const LOGGED_ORIGINS_MAX: usize = 100;
/// Maximum length of an origin in the log and in errors, in characters.
const ORIGIN_CHARS_MAX: usize = 200;

/// Returns the CORS layer for these origins, or `None` if there are none.
pub(in crate::http) fn layer(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let origin = if origins.iter().any(|origin| origin == ANY) {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let exposed = EXPOSED.map(HeaderName::from_static);
    Some(
        CorsLayer::new()
            .allow_origin(origin)
            .allow_methods(AllowMethods::mirror_request())
            .allow_headers(AllowHeaders::mirror_request())
            .max_age(MAX_AGE)
            .expose_headers(exposed.into_iter().chain([RETRY_AFTER]).collect::<Vec<_>>()),
    )
}

/// Returns whether a text is an origin as browsers send it: `https://app.example`, without a path.
pub(in crate::http) fn is_origin(text: &str) -> bool {
    reqwest::Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text)
}

/// The allowed origins, and those that were logged because they are not.
#[derive(Debug)]
pub(in crate::http) struct Origins {
    allowed: Vec<String>,
    logged: Mutex<HashSet<String>>,
}

impl Origins {
    /// Creates the list of these allowed origins.
    pub fn new(allowed: &[String]) -> Arc<Self> {
        Arc::new(Self { allowed: allowed.to_vec(), logged: Mutex::default() })
    }

    fn allows(&self, origin: &str) -> bool {
        self.allowed.iter().any(|allowed| allowed == ANY || allowed == origin)
    }

    /// Logs once for each origin that the browser blocks its pages.
    fn log(&self, origin: &str) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() >= LOGGED_ORIGINS_MAX || !logged.insert(origin.to_owned()) {
            return;
        }
        // Pages without an origin, such as files, can only be allowed together with all others.
        let add = if is_origin(origin) { origin } else { ANY };
        tracing::warn!(
            origin,
            setting = "cors_origins",
            add,
            "the browser blocks a web page of this origin: to allow it, add it to cors_origins (ASSISTD_CORS_ORIGINS)"
        );
    }
}

/// Logs requests of web pages whose origin is not allowed, and rejects their preflight requests.
pub(in crate::http) async fn report_origin(
    State(origins): State<Arc<Origins>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(origin) = request.headers().get(ORIGIN).and_then(|origin| origin.to_str().ok()) else {
        return next.run(request).await;
    };
    if origins.allows(origin) {
        return next.run(request).await;
    }
    let origin: String = origin.chars().take(ORIGIN_CHARS_MAX).collect();
    let is_preflight =
        request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    if is_preflight || !is_same_origin(&origin, request.headers()) {
        origins.log(&origin);
    }
    if is_preflight {
        return error_response(&api::Error::new(
            Kind::Forbidden,
            format!("Web pages of the origin '{origin}' may not use this server: cors_origins does not list it."),
        ));
    }
    next.run(request).await
}

/// Returns whether a page comes from this server, perhaps through a reverse proxy that adds TLS. Browsers send no preflight
/// requests for it.
fn is_same_origin(origin: &str, headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    host.is_some() && host == origin.split_once("://").map(|(_, authority)| authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_a_scheme_a_host_and_no_path() {
        for origin in ["https://app.example", "http://localhost:3000", "http://[::1]:3000"] {
            assert!(is_origin(origin), "{origin}");
        }
        for other in ["null", "*", "app.example", "https://app.example/", "https://app.example:443", "file://"] {
            assert!(!is_origin(other), "{other}");
        }
    }

    #[test]
    fn a_page_of_this_server_is_not_foreign() {
        let from =
            |origin, host: &'static str| is_same_origin(origin, &HeaderMap::from_iter([(HOST, host.parse().unwrap())]));

        assert!(from("https://app.example", "app.example") && from("http://localhost:8484", "localhost:8484"));
        assert!(!from("https://app.example", "api.example") && !from("http://localhost:3000", "localhost:8484"));
        assert!(!is_same_origin("null", &HeaderMap::new()));
    }
}
