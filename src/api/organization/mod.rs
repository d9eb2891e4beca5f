//! The organization: projects, which isolate teams from each other, and what belongs to them.

pub mod project;

pub use project::Scope;
