//! The limit of requests per minute of each project, for all servers together.
//!
//! The database has one window of a minute for each project, and the number of requests that servers have taken from it. A
//! server takes several at once, so that most requests do not access the database, and fewer as the budget runs out. The
//! limit is never exceeded; what a server has taken and does not use is lost at the end of the window.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::api::{Scope, Timestamp};
use crate::clock::Clock;
use crate::store::{self, Store};

/// The part of the remaining budget that a server takes at once.
const SHARE: u32 = 16;
/// Maximum number of projects whose shares are in memory. When it is reached, the shares are dropped.
const PROJECTS_MAX: usize = 10_000;

/// What remains of a project's budget after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Requests per minute.
    pub limit: u32,
    /// Requests that remain in the window, as far as this server knows.
    pub remaining: u32,
    /// The time until the window ends.
    pub reset: Duration,
    /// Whether the request exceeds the limit.
    pub is_exceeded: bool,
}

/// What this server has taken from the budget of one project.
#[derive(Debug)]
struct Share {
    /// The limit for which it was taken.
    limit: u32,
    /// Requests that this server may still accept.
    left: u32,
    /// Requests that no server has taken.
    untaken: u32,
    /// The end of the window.
    ends_at: Timestamp,
}

impl Share {
    /// Applies another limit to the rest of the window.
    fn change_limit(&mut self, limit: u32) {
        let taken = self.limit - self.untaken;
        self.left = self.left.saturating_sub(taken.saturating_sub(limit));
        self.untaken = limit.saturating_sub(taken);
        self.limit = limit;
    }
}

/// Counts the requests of projects.
#[derive(Debug)]
pub struct Requests {
    database: Arc<dyn Store>,
    clock: Arc<Clock>,
    shares: Mutex<HashMap<Scope, Arc<tokio::sync::Mutex<Share>>>>,
}

impl Requests {
    /// Creates a counter. All servers with the same database share the budgets.
    #[must_use]
    pub fn new(database: Arc<dyn Store>, clock: Arc<Clock>) -> Self {
        Self { database, clock, shares: Mutex::default() }
    }

    /// Counts a request of a project with this limit, in requests per minute, at least 1.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn count(&self, scope: &Scope, limit: u32) -> Result<Budget, store::Error> {
        let share = self.share(scope);
        let mut share = share.lock().await;
        let now = self.clock.now();
        let is_over = now >= share.ends_at;
        if !is_over && share.limit != limit {
            share.change_limit(limit);
        }
        if is_over || share.left == 0 && share.untaken > 0 {
            let untaken = if is_over { limit } else { share.untaken };
            let taken = self.database.take_requests(scope, limit, untaken.div_ceil(SHARE)).await?;
            *share = Share { limit, left: taken.granted, untaken: taken.untaken, ends_at: taken.ends_at };
        }
        let is_exceeded = share.left == 0;
        share.left = share.left.saturating_sub(1);
        let seconds = u64::try_from(share.ends_at.0 - now.0).unwrap_or(0);
        let remaining = share.left.saturating_add(share.untaken);
        Ok(Budget { limit, remaining, reset: Duration::from_secs(seconds), is_exceeded })
    }

    fn share(&self, scope: &Scope) -> Arc<tokio::sync::Mutex<Share>> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if shares.len() >= PROJECTS_MAX && !shares.contains_key(scope) {
            shares.clear();
        }
        let new = Share { limit: 0, left: 0, untaken: 0, ends_at: Timestamp(0) };
        shares.entry(scope.clone()).or_insert_with(|| Arc::new(tokio::sync::Mutex::new(new))).clone()
    }
}
