//! Caches the model lists of the servers, and the ratios of their token counts to ours.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{ChatModel, Error, ModelObject};

/// Time for which a model list is fresh.
const LIST_FRESH: Duration = Duration::from_secs(30);
/// The same if a server did not respond; its previous list is used until then.
const LIST_RETRY: Duration = Duration::from_secs(1);
/// Maximum ratio. A server that reports more does not count the same tokens.
const RATIO_MAX: f64 = 4.0;
/// Maximum number of models whose ratio is stored; names come from clients.
const RATIOS_MAX: usize = 1_000;

/// The models of each server, in the servers' order.
pub type ModelLists = Vec<Vec<ModelObject>>;

/// The last lists of models that the servers returned.
#[derive(Debug, Default)]
pub struct ModelCache {
    cached: tokio::sync::Mutex<Option<Cached>>,
}

#[derive(Debug)]
struct Cached {
    fresh_until: Instant,
    lists: ModelLists,
    /// Whether each server has failed to list its models.
    failing: Vec<bool>,
}

impl ModelCache {
    /// Returns the cached lists, of any age; queries the servers only if nothing is cached.
    pub async fn any(&self, servers: &[Arc<dyn ChatModel>]) -> ModelLists {
        let cached = self.cached.lock().await.as_ref().map(|cached| cached.lists.clone());
        match cached {
            Some(lists) => lists,
            None => self.refresh(servers).await,
        }
    }

    /// Returns the cached lists if they are fresh; otherwise queries the servers.
    pub async fn fresh(&self, servers: &[Arc<dyn ChatModel>]) -> ModelLists {
        let cached = self.cached.lock().await;
        let fresh = cached.as_ref().filter(|cached| Instant::now() < cached.fresh_until);
        let fresh = fresh.map(|cached| cached.lists.clone());
        drop(cached);
        match fresh {
            Some(lists) => lists,
            None => self.refresh(servers).await,
        }
    }

    /// Returns whether each server listed its models, or has no list, when they were queried last. `None`: they were not.
    pub async fn is_complete(&self) -> Option<bool> {
        self.cached.lock().await.as_ref().map(|cached| !cached.failing.contains(&true))
    }

    /// Queries all servers for their models, and returns their lists.
    pub async fn refresh(&self, servers: &[Arc<dyn ChatModel>]) -> ModelLists {
        let answers = futures_util::future::join_all(servers.iter().map(|server| server.list())).await;
        self.store(servers, answers).await
    }

    /// Stores what the servers have answered. If a server did not list its models, its previous list is used. Logs which
    /// servers have begun to fail, and which list their models again.
    pub async fn store(
        &self,
        servers: &[Arc<dyn ChatModel>],
        answers: Vec<Result<Vec<ModelObject>, Error>>,
    ) -> ModelLists {
        let mut cached = self.cached.lock().await;
        let (mut lists, mut failing) = (ModelLists::new(), Vec::new());
        for (index, (answer, server)) in answers.into_iter().zip(servers).enumerate() {
            let before = cached.as_ref();
            let was_failing = before.is_some_and(|before| before.failing[index]);
            match answer {
                Ok(models) => {
                    if was_failing {
                        tracing::info!(server = server.name(), "a model server lists its models again");
                    }
                    lists.push(models);
                    failing.push(false);
                }
                Err(error) => {
                    // A server without a list does not have one later either.
                    let is_failing = !error.has_no_list();
                    if is_failing && !was_failing && before.is_some() {
                        let error = error.for_log();
                        tracing::warn!(server = server.name(), error, "failed to list the models of a server");
                    }
                    lists.push(before.map(|before| before.lists[index].clone()).unwrap_or_default());
                    failing.push(is_failing);
                }
            }
        }
        let fresh = if failing.contains(&true) { LIST_RETRY } else { LIST_FRESH };
        *cached = Some(Cached { fresh_until: Instant::now() + fresh, lists: lists.clone(), failing });
        lists
    }

    /// Returns the context window of a model from the cached list of a server. Sends no request.
    pub async fn window(&self, server: usize, model: &str) -> Option<u32> {
        let cached = self.cached.lock().await;
        let lists = &cached.as_ref()?.lists;
        lists.get(server)?.iter().find(|listed| listed.answers_to(model))?.window
    }
}

/// Ratios of the token counts of each server's models to ours. Ratios of 1 are not stored.
#[derive(Debug, Default)]
pub struct TokenRatios {
    by_model: Mutex<BTreeMap<(usize, String), f64>>,
}

impl TokenRatios {
    /// Returns a model's ratio, at least 1.
    pub fn get(&self, server: usize, model: &str) -> f64 {
        let ratios = self.by_model.lock().unwrap_or_else(PoisonError::into_inner);
        ratios.get(&(server, model.to_owned())).copied().unwrap_or(1.0)
    }

    /// Stores the ratio of a model that `reported` this many tokens for a prompt that we had `counted`.
    ///
    /// Ratios below 1 are ignored: some servers do not count cached tokens.
    #[expect(clippy::cast_precision_loss, reason = "prompts have far fewer tokens than a float has digits")]
    pub fn learn(&self, server: usize, model: &str, counted: usize, reported: u32) {
        let ratio = (f64::from(reported) / counted.max(1) as f64).clamp(1.0, RATIO_MAX);
        let mut ratios = self.by_model.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (server, model.to_owned());
        if ratio > 1.0 && (ratios.len() < RATIOS_MAX || ratios.contains_key(&key)) {
            tracing::debug!(model, ratio, "the model counts more tokens than our tokenizer");
            ratios.insert(key, ratio);
        } else {
            ratios.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_stored_if_the_model_counts_more_tokens_than_we_do() {
        let ratios = TokenRatios::default();
        let after = |reported: u32| {
            ratios.learn(0, "m", 100, reported);
            (ratios.get(0, "m"), ratios.get(1, "m"))
        };

        assert_eq!(after(150), (1.5, 1.0));
        assert_eq!(after(100_000), (RATIO_MAX, 1.0));
        assert_eq!(after(20), (1.0, 1.0), "lower counts are ignored");
    }
}
