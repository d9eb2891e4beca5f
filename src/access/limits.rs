//! The limits of projects, which are cached.

use std::sync::Arc;

use super::cache::Cache;
use crate::api::Scope;
use crate::api::organization::Limits;
use crate::store::{self, Store};

/// The limits of all projects.
#[derive(Debug)]
pub struct EffectiveLimits {
    database: Arc<dyn Store>,
    cache: Arc<Cache>,
    defaults: Limits,
}

impl EffectiveLimits {
    /// Creates the limits. `defaults` apply where a project has none of its own.
    #[must_use]
    pub fn new(database: Arc<dyn Store>, cache: Arc<Cache>, defaults: Limits) -> Self {
        Self { database, cache, defaults }
    }

    /// Returns the limits of projects that have none of their own.
    #[must_use]
    pub fn defaults(&self) -> &Limits {
        &self.defaults
    }

    /// Returns the limits of a project.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn of(&self, scope: &Scope) -> Result<Limits, store::Error> {
        match self.cache.get(|values| values.limits.get(scope).copied()) {
            Ok(limits) => Ok(limits),
            Err(generation) => {
                let limits = self.database.project_limits(scope.project()).await?.or(&self.defaults);
                self.cache.add(generation, |values| {
                    values.limits.insert(scope.clone(), limits);
                });
                Ok(limits)
            }
        }
    }
}
