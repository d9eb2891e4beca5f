//! The limits of projects.

/// The limits that apply to a project. 0: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requests per minute.
    pub requests_per_minute: u64,
    /// Active and waiting runs.
    pub active_runs: u64,
    /// Input and output tokens of model calls per minute.
    pub tokens_per_minute: u64,
    /// Input and output tokens of model calls per day in UTC.
    pub tokens_per_day: u64,
    /// Input and output tokens of model calls per calendar month in UTC.
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
    /// Tokens per minute.
    pub tokens_per_minute: Option<u64>,
    /// Tokens per day in UTC.
    pub tokens_per_day: Option<u64>,
    /// Tokens per calendar month in UTC.
    pub tokens_per_month: Option<u64>,
}

impl ProjectLimits {
    /// Returns the limits that apply: those of the project, or the defaults where it has none.
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
