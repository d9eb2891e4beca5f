//! Finds a model server on this machine, for a first start without settings.

use std::sync::Arc;
use std::time::Duration;

use super::openai::{Settings, Upstream};
use super::{ChatModel, ModelObject};

/// The usual ports of model servers, the likeliest first.
const USUAL: [(&str, &str); 4] = [
    ("Ollama", "http://127.0.0.1:11434/v1"),
    ("LM Studio", "http://127.0.0.1:1234/v1"),
    ("llama.cpp", "http://127.0.0.1:8080/v1"),
    ("vLLM", "http://127.0.0.1:8000/v1"),
];

/// A server on loopback answers at once or is not there.
const PATIENCE: Duration = Duration::from_millis(500);

/// Finds a server on the usual ports, as [`find`] does.
pub async fn discover(settings: &Settings) -> Option<(&'static str, Arc<dyn ChatModel>, String)> {
    find(settings, &USUAL).await
}

/// Asks all places at once, and gives the first in their order whose server lists a chat model: the place's name, the
/// server, and the model's name.
pub async fn find<'a>(
    settings: &Settings,
    places: &[(&'a str, &str)],
) -> Option<(&'a str, Arc<dyn ChatModel>, String)> {
    let asked = places.iter().map(|(name, url)| async move {
        let server = Upstream::new(url, None, settings.clone());
        let models = tokio::time::timeout(PATIENCE, server.list()).await.ok()?.ok()?;
        let model = pick(&models)?;
        Some((*name, Arc::new(server) as Arc<dyn ChatModel>, model))
    });
    futures_util::future::join_all(asked).await.into_iter().flatten().next()
}

/// The first model that is not one for embeddings, to tell by its name.
fn pick(models: &[ModelObject]) -> Option<String> {
    let chats = |model: &&ModelObject| {
        !["embed", "bge-", "minilm", "rerank"].iter().any(|word| model.id.to_lowercase().contains(word))
    };
    models.iter().find(chats).map(|model| model.id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_for_embeddings_is_not_picked() {
        let models = ["nomic-embed-text", "all-MiniLM-L6", "qwen3:8b"].map(ModelObject::ours);

        assert_eq!(pick(&models), Some("qwen3:8b".to_owned()));
        assert_eq!(pick(&models[..2]), None);
    }
}
