//! The rate limit: requests per minute of each project.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use super::auth::Caller;
use crate::access::Budget;
use crate::api;
use crate::api::error::Kind;
use crate::http::error::{Error, error_response};
use crate::http::state::App;

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");

/// Rejects a request if its project has exceeded its limit. Adds the rate limit headers to the response. A layer of the
/// routes for members: administrators can always raise a limit.
pub(in crate::http) async fn check_rate_limit(
    State(app): State<App>,
    caller: Caller,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    let limit = app.limits.of(&caller.scope).await?.requests_per_minute;
    // A larger limit is never reached in a minute.
    let Ok(limit @ 1..) = u32::try_from(limit) else { return Ok(next.run(request).await) };
    let budget = app.requests.count(&caller.scope, limit).await?;
    let mut response = if budget.is_exceeded { rate_limit_response(budget) } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(LIMIT, HeaderValue::from(budget.limit));
    headers.insert(REMAINING, HeaderValue::from(budget.remaining));
    headers.insert(RESET, header_value(&format_duration(budget.reset)));
    Ok(response)
}

fn rate_limit_response(Budget { limit, reset, .. }: Budget) -> Response {
    let message = format!(
        "Rate limit reached for requests per min (RPM): Limit {limit}. Please try again in {}.",
        format_duration(reset)
    );
    let error = api::Error::new(Kind::RateLimited, message).code("rate_limit_exceeded");
    let mut response = error_response(&error.retry_after(reset.as_secs().max(1)));
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER_MS, HeaderValue::from(u64::try_from(reset.as_millis()).unwrap_or(u64::MAX)));
    response
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("digits and units are ASCII")
}

/// Formats a duration like the service: `2ms`, `1.5s`, `1m0s`.
fn format_duration(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{}ms", time.as_millis()),
        1..60 => format!("{:.1}s", time.as_secs_f64()),
        seconds => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_formatted_like_the_service() {
        let of = |milliseconds| format_duration(Duration::from_millis(milliseconds));

        assert_eq!([of(2), of(1_500), of(60_000), of(90_000)], ["2ms", "1.5s", "1m0s", "1m30s"]);
    }
}
