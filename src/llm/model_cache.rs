//! What is known of the servers' models: their lists, and how many tokens they count compared with our tokenizer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{ChatModel, ModelObject};

/// How long a server's list of models is fresh.
const LIST_FRESH: Duration = Duration::from_secs(30);
/// The same if a server did not answer; its previous list is used meanwhile.
const LIST_RETRY: Duration = Duration::from_secs(1);
/// Highest ratio that is believed; a server that reports more counts something else.
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
    /// Returns the cached lists, of any age; asks the servers only if nothing is cached.
    pub async fn any(&self, servers: &[Arc<dyn ChatModel>]) -> ModelLists {
        let cached = self.lists.lock().await.as_ref().map(|(_, lists)| lists.clone());
        match cached {
            Some(lists) => lists,
            None => self.refresh(servers).await,
        }
    }

    /// Returns the cached lists if they are fresh; asks the servers otherwise.
    pub async fn fresh(&self, servers: &[Arc<dyn ChatModel>]) -> ModelLists {
        let fresh = self.lists.lock().await.as_ref().filter(|(until, _)| Instant::now() < *until).cloned();
        match fresh {
            Some((_, lists)) => lists,
            None => self.refresh(servers).await,
        }
    }

    /// Asks all servers for their models. A server that does not answer keeps its previous list.
    pub async fn refresh(&self, servers: &[Arc<dyn ChatModel>]) -> ModelLists {
        let answers = futures_util::future::join_all(servers.iter().map(|server| server.list())).await;
        let mut cached = self.lists.lock().await;
        let mut fresh = LIST_FRESH;
        let mut lists = ModelLists::new();
        for (index, (answer, server)) in answers.into_iter().zip(servers).enumerate() {
            lists.push(answer.unwrap_or_else(|error| {
                tracing::warn!(server = server.display_name(), %error, "listing a server's models failed");
                fresh = LIST_RETRY;
                cached.as_ref().map(|(_, before)| before[index].clone()).unwrap_or_default()
            }));
        }
        *cached = Some((Instant::now() + fresh, lists.clone()));
        lists
    }

    /// Returns the context window of a model as its server last listed it. Asks no server.
    pub async fn window(&self, model: &str) -> Option<u32> {
        let cached = self.lists.lock().await;
        let (_, lists) = cached.as_ref()?;
        lists.iter().flatten().find(|listed| listed.id == model)?.window
    }
}

/// How many tokens each model counts for one of ours. Ratios of 1 are not stored.
#[derive(Debug, Default)]
pub struct TokenRatios {
    by_model: Mutex<BTreeMap<String, f64>>,
}

impl TokenRatios {
    /// Returns a model's ratio, at least 1.
    pub fn get(&self, model: &str) -> f64 {
        let ratios = self.by_model.lock().unwrap_or_else(PoisonError::into_inner);
        ratios.get(model).copied().unwrap_or(1.0)
    }

    /// Stores the ratio of a model that `reported` tokens where we had counted `counted`.
    ///
    /// Ratios below 1 are ignored: servers leave out tokens that they had cached.
    #[expect(clippy::cast_precision_loss, reason = "prompts have far fewer tokens than a float has digits")]
    pub fn learn(&self, model: &str, counted: usize, reported: u32) {
        let ratio = (f64::from(reported) / counted.max(1) as f64).clamp(1.0, RATIO_MAX);
        let mut ratios = self.by_model.lock().unwrap_or_else(PoisonError::into_inner);
        if ratio > 1.0 && (ratios.len() < RATIOS_MAX || ratios.contains_key(model)) {
            tracing::debug!(model, ratio, "the model counts more tokens than our tokenizer");
            ratios.insert(model.to_owned(), ratio);
        } else {
            ratios.remove(model);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_count_is_believed_if_it_is_higher_than_ours() {
        let ratios = TokenRatios::default();
        let after = |reported: u32| {
            ratios.learn("m", 100, reported);
            (ratios.get("m"), ratios.get("other"))
        };

        assert_eq!(after(150), (1.5, 1.0));
        assert_eq!(after(100_000), (RATIO_MAX, 1.0));
        assert_eq!(after(20), (1.0, 1.0), "the rest was in a cache");
    }
}
