//! Which web pages' scripts may read replies.

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderName, HeaderValue};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

/// Stands for every origin.
pub(super) const ANY: &str = "*";
/// What scripts may see of a reply's headers, beside those that they always may.
const EXPOSED: [&str; 7] = [
    "x-request-id",
    "openai-poll-after-ms",
    "openai-processing-ms",
    "retry-after-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
];

/// Answers browsers' questions for pages of these origins; none when there are no origins.
pub(super) fn layer(origins: &[String]) -> Option<CorsLayer> {
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
