//! Caches the model lists of the servers, and the ratios of their token counts to ours.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{ChatModel, ModelObject};

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
    /// The lists, and until when they are fresh.
    lists: tokio::sync::Mutex<Option<(Instant, ModelLists)>>,
}

impl ModelCache {
    /// Returns the cached lists, of any age; queries the servers only if nothing is cached.
    pub async fn any(&self, servers: &[Arc<dyn ChatModel>]) -> ModelLists {
        let cached = self.lists.lock().await.as_ref().map(|(_, lists)| lists.clone());
        match cached {
            Some(lists) => lists,
            None => self.refresh(servers).await,
        }
    }

    /// Returns the cached lists if they are fresh; otherwise queries the servers.
    pub async fn fresh(&self, servers: &[Arc<dyn ChatModel>]) -> ModelLists {
        let fresh = self.lists.lock().await.as_ref().filter(|(until, _)| Instant::now() < *until).cloned();
        match fresh {
            Some((_, lists)) => lists,
            None => self.refresh(servers).await,
        }
    }

    /// Queries all servers for their models. If a server does not respond, its previous list is used.
    pub async fn refresh(&self, servers: &[Arc<dyn ChatModel>]) -> ModelLists {
        let answers = futures_util::future::join_all(servers.iter().map(|server| server.list())).await;
        let mut cached = self.lists.lock().await;
        let mut fresh = LIST_FRESH;
        let mut lists = ModelLists::new();
        for (index, (answer, server)) in answers.into_iter().zip(servers).enumerate() {
            lists.push(answer.unwrap_or_else(|error| {
                tracing::warn!(server = server.name(), %error, "failed to list the models of a server");
                fresh = LIST_RETRY;
                cached.as_ref().map(|(_, before)| before[index].clone()).unwrap_or_default()
            }));
        }
        *cached = Some((Instant::now() + fresh, lists.clone()));
        lists
    }

    /// Returns the context window of a model from the cached list of a server. Sends no request.
    pub async fn window(&self, server: usize, model: &str) -> Option<u32> {
        let cached = self.lists.lock().await;
        let (_, lists) = cached.as_ref()?;
        lists.get(server)?.iter().find(|listed| listed.id == model)?.window
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
