//! Remembers which changes of a request each model of a server needs.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::adapt::Adaptations;

/// How long the changes are applied before an unchanged request is tried again, because servers are upgraded.
const REMEMBERED_FOR: Duration = Duration::from_hours(1);
/// Maximum number of models that are remembered; names come from clients.
const MODELS_MAX: usize = 1_000;

/// The changes by model name.
#[derive(Debug, Default)]
pub struct Learned {
    models: Mutex<HashMap<String, (Instant, Adaptations)>>,
}

impl Learned {
    /// Returns the changes for a model.
    #[must_use]
    pub fn get(&self, model: &str) -> Adaptations {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let known = models.get(model).filter(|(since, _)| since.elapsed() < REMEMBERED_FOR);
        known.map(|(_, adaptations)| adaptations.clone()).unwrap_or_default()
    }

    /// Stores the changes with which a model has accepted a request.
    pub fn store(&self, model: &str, adaptations: &Adaptations) {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.retain(|_, (since, _)| since.elapsed() < REMEMBERED_FOR);
        if models.len() < MODELS_MAX || models.contains_key(model) {
            models.insert(model.to_owned(), (Instant::now(), adaptations.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::adapt::RequestBody;
    use super::super::report::Report;
    use super::*;
    use crate::llm::{ChatMessage, ChatRequest, ChatRole};

    /// The changes after a rejection of `stream_options`.
    fn adaptations() -> Adaptations {
        let messages = vec![ChatMessage::new(ChatRole::User, json!("Hi"))];
        let mut body =
            RequestBody::new(ChatRequest { messages, ..ChatRequest::default() }, false, Adaptations::default());
        body.adapt(&Report::of_response(400, "stream_options is not supported")).unwrap();
        body.adaptations().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_remembered_for_one_model_and_for_a_time() {
        let learned = Learned::default();
        learned.store("one", &adaptations());

        assert_eq!((learned.get("one"), learned.get("two")), (adaptations(), Adaptations::default()));
        tokio::time::advance(REMEMBERED_FOR).await;
        assert_eq!(learned.get("one"), Adaptations::default(), "the whole request is tried again");
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_remembered_models_is_limited() {
        let learned = Learned::default();
        for number in 0..=MODELS_MAX {
            learned.store(&number.to_string(), &adaptations());
        }

        assert_eq!(learned.get("0"), adaptations());
        assert_eq!(learned.get(&MODELS_MAX.to_string()), Adaptations::default());
    }
}
