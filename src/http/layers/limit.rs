//! The rate limit: requests per minute for each API key.

use std::num::NonZeroU32;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::auth::Caller;
use crate::api::Error;
use crate::api::error::Kind;
use crate::http::error::error_response;
use crate::http::state::App;

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");

type Bucket = RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>;

/// One token bucket for each API key, or one for all clients if there are no keys. Each server has its own buckets.
#[derive(Debug)]
pub struct Limits {
    per_minute: NonZeroU32,
    buckets: Vec<Bucket>,
}

impl Limits {
    /// Creates a bucket of `per_minute` requests for each of `callers`. Returns `None` if `per_minute` is 0: no limit.
    #[must_use]
    pub fn new(per_minute: u32, callers: usize) -> Option<Self> {
        let per_minute = NonZeroU32::new(per_minute)?;
        let bucket = |_| RateLimiter::direct(Quota::per_minute(per_minute)).with_middleware();
        Some(Self { per_minute, buckets: (0..callers.max(1)).map(bucket).collect() })
    }
}

/// Rejects a request if the bucket of its caller is empty. Adds the rate limit headers to the response.
pub(in crate::http) async fn check_rate_limit(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(limits) = &*app.limits else { return next.run(request).await };
    let key_index = request.extensions().get().map_or(0, |caller: &Caller| caller.key_index);
    let Some(bucket) = limits.buckets.get(key_index) else { return next.run(request).await };
    let per_minute = limits.per_minute;
    let (mut response, remaining, reset) = match bucket.check() {
        Ok(state) => {
            let remaining = state.remaining_burst_capacity();
            let used = per_minute.get().saturating_sub(remaining);
            let reset = state.quota().replenish_interval() * used;
            (next.run(request).await, remaining, reset)
        }
        Err(limited) => {
            let wait = limited.wait_time_from(DefaultClock::default().now());
            (rate_limit_response(per_minute, wait), 0, wait)
        }
    };
    let headers = response.headers_mut();
    headers.insert(LIMIT, HeaderValue::from(per_minute.get()));
    headers.insert(REMAINING, HeaderValue::from(remaining));
    headers.insert(RESET, header_value(&format_duration(reset)));
    response
}

fn rate_limit_response(per_minute: NonZeroU32, wait: Duration) -> Response {
    let message = format!(
        "Rate limit reached for requests. Limit: {per_minute} / min. Please try again in {}.",
        format_duration(wait)
    );
    let error = Error::new(Kind::RateLimited, message).code("rate_limit_exceeded");
    let mut response = error_response(&error).into_response();
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
    headers.insert(RETRY_AFTER_MS, HeaderValue::from(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) + 1));
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
