//! Discovers a model server on this machine, if none is configured.

use std::sync::Arc;
use std::time::Duration;

use super::openai::{Settings, Upstream};
use super::{ChatModel, ModelObject};
use crate::metrics::Metrics;

/// The default endpoints of model servers, the most likely first.
const DEFAULT_ENDPOINTS: [(&str, &str); 4] = [
    ("Ollama", "http://127.0.0.1:11434/v1"),
    ("LM Studio", "http://127.0.0.1:1234/v1"),
    ("llama.cpp", "http://127.0.0.1:8080/v1"),
    ("vLLM", "http://127.0.0.1:8000/v1"),
];

/// Timeout of listing the models. A server on loopback responds immediately.
const DISCOVERY_TIMEOUT: Duration = Duration::from_millis(500);

/// A server that was found.
#[derive(Debug, Clone)]
pub struct Found<'a> {
    /// The name of its kind.
    pub name: &'a str,
    /// The server.
    pub server: Arc<dyn ChatModel>,
    /// The first chat model that it lists.
    pub model: String,
    /// The first embedding model that it lists.
    pub embedding_model: Option<String>,
}

/// Discovers a server on the default endpoints with [`find`].
pub async fn discover(settings: &Settings, metrics: &Arc<Metrics>) -> Option<Found<'static>> {
    find(settings, metrics, &DEFAULT_ENDPOINTS).await
}

/// Queries all candidates concurrently. Returns the first candidate, in the given order, that lists a chat model.
pub async fn find<'a>(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    candidates: &[(&'a str, &str)],
) -> Option<Found<'a>> {
    let answers = candidates.iter().map(|(name, url)| async move {
        let server = Upstream::new(*name, url, None, settings.clone(), metrics.clone());
        let models = tokio::time::timeout(DISCOVERY_TIMEOUT, server.list()).await.ok()?.ok()?;
        let model = first_chat_model(&models)?;
        let embedding_model = first_embedding_model(&models);
        Some(Found { name, server: Arc::new(server), model, embedding_model })
    });
    futures_util::future::join_all(answers).await.into_iter().flatten().next()
}

/// Returns the first model whose name is not that of an embedding model.
fn first_chat_model(models: &[ModelObject]) -> Option<String> {
    let model = models.iter().find(|model| !is_embedding_model(&model.id) && !is_reranker(&model.id));
    model.map(|model| model.id.clone())
}

fn first_embedding_model(models: &[ModelObject]) -> Option<String> {
    let model = models.iter().find(|model| is_embedding_model(&model.id) && !is_reranker(&model.id));
    model.map(|model| model.id.clone())
}

/// Returns whether a name is that of an embedding model, as most servers name them.
fn is_embedding_model(name: &str) -> bool {
    let name = name.to_lowercase();
    ["embed", "bge-", "minilm", "gte-", "e5-"].iter().any(|word| name.contains(word))
}

fn is_reranker(name: &str) -> bool {
    name.to_lowercase().contains("rerank")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_embedding_model_is_not_chosen() {
        let models = ["nomic-embed-text", "all-MiniLM-L6", "qwen3:8b"].map(ModelObject::ours);

        assert_eq!(first_chat_model(&models), Some("qwen3:8b".to_owned()));
        assert_eq!(first_chat_model(&models[..2]), None);
        assert_eq!(first_embedding_model(&models), Some("nomic-embed-text".to_owned()));
        assert_eq!(first_embedding_model(&models[2..]), None);
        assert_eq!(first_embedding_model(&["bge-reranker-v2"].map(ModelObject::ours)), None);
    }
}
