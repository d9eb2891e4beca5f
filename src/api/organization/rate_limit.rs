//! Rate limits of projects. A project has one object with all its limits, because they are for all models together.

use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::error::Error;
use crate::api::id::RateLimitId;
use crate::api::rule::{At, Patch, Rule, custom, large_integer};
use crate::request;

/// The ID of the only rate limit of a project.
pub const RATE_LIMIT_ID: &str = "rl_all";
/// Maximum of the limits of requests and runs.
pub const REQUESTS_MAX: u64 = 2_147_483_647;
/// Maximum of the limits of tokens.
pub const TOKENS_MAX: u64 = 1_000_000_000_000_000;

/// Limits. 0: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requests per minute.
    pub requests_per_minute: u64,
    /// Active and waiting runs.
    pub active_runs: u64,
    /// Input and output tokens of model calls, per minute.
    pub tokens_per_minute: u64,
    /// Tokens per day in UTC.
    pub tokens_per_day: u64,
    /// Tokens per calendar month in UTC.
    pub tokens_per_month: u64,
}

impl Limits {
    /// Returns whether there is a limit of tokens.
    #[must_use]
    pub fn limits_tokens(&self) -> bool {
        self.tokens_per_minute > 0 || self.tokens_per_day > 0 || self.tokens_per_month > 0
    }
}

/// The limits that a project has of its own. `None`: the default of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProjectLimits {
    /// Requests per minute.
    pub requests_per_minute: Option<u64>,
    /// Active and waiting runs.
    pub active_runs: Option<u64>,
    /// Input and output tokens of model calls, per minute.
    pub tokens_per_minute: Option<u64>,
    /// Tokens per day in UTC.
    pub tokens_per_day: Option<u64>,
    /// Tokens per calendar month in UTC.
    pub tokens_per_month: Option<u64>,
}

impl ProjectLimits {
    /// Returns the limits in effect.
    #[must_use]
    pub fn or(&self, defaults: &Limits) -> Limits {
        Limits {
            requests_per_minute: self.requests_per_minute.unwrap_or(defaults.requests_per_minute),
            active_runs: self.active_runs.unwrap_or(defaults.active_runs),
            tokens_per_minute: self.tokens_per_minute.unwrap_or(defaults.tokens_per_minute),
            tokens_per_day: self.tokens_per_day.unwrap_or(defaults.tokens_per_day),
            tokens_per_month: self.tokens_per_month.unwrap_or(defaults.tokens_per_month),
        }
    }
}

/// The wire form of a project's [`Limits`].
///
/// Differs: the service has one object for each model. The last three properties are ours.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RateLimitObject {
    object: &'static str,
    id: &'static str,
    model: &'static str,
    max_requests_per_1_minute: u64,
    max_tokens_per_1_minute: u64,
    max_tokens_per_1_day: u64,
    max_tokens_per_1_month: u64,
    max_active_runs: u64,
}

impl From<&Limits> for RateLimitObject {
    fn from(limits: &Limits) -> Self {
        Self {
            object: "project.rate_limit",
            id: RATE_LIMIT_ID,
            model: "*",
            max_requests_per_1_minute: limits.requests_per_minute,
            max_tokens_per_1_minute: limits.tokens_per_minute,
            max_tokens_per_1_day: limits.tokens_per_day,
            max_tokens_per_1_month: limits.tokens_per_month,
            max_active_runs: limits.active_runs,
        }
    }
}

/// Returns the rate limit with this ID.
///
/// # Errors
/// 404 if the ID is not [`RATE_LIMIT_ID`].
pub fn check_id(id: &RateLimitId) -> Result<(), Error> {
    use crate::api::id::Id as _;
    if id.as_str() == RATE_LIMIT_ID { Ok(()) } else { Err(id.not_found()) }
}

/// The rule for limits that the service has for some models, and we do not have.
fn reject_unsupported() -> impl Rule<Out = ()> {
    let read = |_: Value, at: &At<'_>| {
        Err(Error::invalid(format!("Invalid '{at}': this limit is not supported."))
            .at(at.to_string())
            .code("unsupported_parameter"))
    };
    custom(read, |_: &mut SchemaGenerator| json!(false))
}

request! {
    /// Body of `POST /organization/projects/{project_id}/rate_limits/{rate_limit_id}`. Null: the default of the settings.
    pub struct ModifyRateLimit {
        patch max_requests_per_1_minute: u64 = large_integer(0, REQUESTS_MAX);
        patch max_tokens_per_1_minute: u64 = large_integer(0, TOKENS_MAX);
        patch max_tokens_per_1_day: u64 = large_integer(0, TOKENS_MAX);
        patch max_tokens_per_1_month: u64 = large_integer(0, TOKENS_MAX);
        patch max_active_runs: u64 = large_integer(0, REQUESTS_MAX);
        optional max_images_per_1_minute: () = reject_unsupported();
        optional max_audio_megabytes_per_1_minute: () = reject_unsupported();
        optional max_requests_per_1_day: () = reject_unsupported();
        optional batch_1_day_max_input_tokens: () = reject_unsupported();
    }
}

impl ModifyRateLimit {
    /// Applies the request to the limits of a project.
    pub fn apply(self, limits: &mut ProjectLimits) {
        self.max_requests_per_1_minute.apply_optional(&mut limits.requests_per_minute);
        self.max_tokens_per_1_minute.apply_optional(&mut limits.tokens_per_minute);
        self.max_tokens_per_1_day.apply_optional(&mut limits.tokens_per_day);
        self.max_tokens_per_1_month.apply_optional(&mut limits.tokens_per_month);
        self.max_active_runs.apply_optional(&mut limits.active_runs);
    }

    /// Returns the requested changes, for the audit log.
    #[must_use]
    pub fn changes(&self) -> Value {
        let changes = [
            ("max_requests_per_1_minute", &self.max_requests_per_1_minute),
            ("max_tokens_per_1_minute", &self.max_tokens_per_1_minute),
            ("max_tokens_per_1_day", &self.max_tokens_per_1_day),
            ("max_tokens_per_1_month", &self.max_tokens_per_1_month),
            ("max_active_runs", &self.max_active_runs),
        ];
        let changes = changes.into_iter().filter_map(|(name, change)| match change {
            Patch::Keep => None,
            Patch::Clear => Some((name.to_owned(), Value::Null)),
            Patch::Set(value) => Some((name.to_owned(), json!(value))),
        });
        Value::Object(changes.collect())
    }
}
