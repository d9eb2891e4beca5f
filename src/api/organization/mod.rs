//! The organization: projects, which isolate teams from each other, and what belongs to them.

pub mod project;
pub mod rate_limit;

pub use project::Scope;
pub use rate_limit::{Limits, ProjectLimits};
