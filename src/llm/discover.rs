//! Discovers a model server on this machine, if none is configured.

use std::sync::Arc;
use std::time::Duration;

use super::openai::{Settings, Upstream};
use super::{ChatModel, ModelObject};

/// The default endpoints of model servers, the most likely first.
const DEFAULT_ENDPOINTS: [(&str, &str); 4] = [
    ("Ollama", "http://127.0.0.1:11434/v1"),
    ("LM Studio", "http://127.0.0.1:1234/v1"),
    ("llama.cpp", "http://127.0.0.1:8080/v1"),
    ("vLLM", "http://127.0.0.1:8000/v1"),
];

/// Timeout of listing the models. A server on loopback responds immediately.
const DISCOVERY_TIMEOUT: Duration = Duration::from_millis(500);

/// Discovers a server on the default endpoints with [`find`].
pub async fn discover(settings: &Settings) -> Option<(&'static str, Arc<dyn ChatModel>, String)> {
    find(settings, &DEFAULT_ENDPOINTS).await
}

/// Queries all candidates concurrently. Returns the first candidate, in the given order, that lists a chat model: its name,
/// the server, and the model's name.
pub async fn find<'a>(
    settings: &Settings,
    candidates: &[(&'a str, &str)],
) -> Option<(&'a str, Arc<dyn ChatModel>, String)> {
    let answers = candidates.iter().map(|(name, url)| async move {
        let server = Upstream::new(*name, url, None, settings.clone());
        let models = tokio::time::timeout(DISCOVERY_TIMEOUT, server.list()).await.ok()?.ok()?;
        let model = first_chat_model(&models)?;
        Some((*name, Arc::new(server) as Arc<dyn ChatModel>, model))
    });
    futures_util::future::join_all(answers).await.into_iter().flatten().next()
}

/// Returns the first model whose name is not that of an embedding model.
fn first_chat_model(models: &[ModelObject]) -> Option<String> {
    let is_chat_model = |model: &&ModelObject| {
        !["embed", "bge-", "minilm", "rerank"].iter().any(|word| model.id.to_lowercase().contains(word))
    };
    models.iter().find(is_chat_model).map(|model| model.id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_embedding_model_is_not_chosen() {
        let models = ["nomic-embed-text", "all-MiniLM-L6", "qwen3:8b"].map(ModelObject::ours);

        assert_eq!(first_chat_model(&models), Some("qwen3:8b".to_owned()));
        assert_eq!(first_chat_model(&models[..2]), None);
    }
}
