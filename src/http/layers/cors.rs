//! CORS: origins that may use the API from a browser.

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderName, HeaderValue};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

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
            .expose_headers(exposed.into_iter().chain([RETRY_AFTER]).collect::<Vec<_>>()),
    )
}
