//! Discovers a model server on this machine, if none is configured.

use std::sync::Arc;
use std::time::Duration;

use super::inspect::{SUGGESTED_MODEL, pull};
use super::openai::{Settings, Upstream};
use super::{ChatModel, ModelObject};
use crate::metrics::Metrics;

/// The name of Ollama.
const OLLAMA: &str = "Ollama";
/// The default endpoints of model servers, the most likely first.
const DEFAULT_ENDPOINTS: [(&str, &str); 4] = [
    (OLLAMA, "http://127.0.0.1:11434/v1"),
    ("LM Studio", "http://127.0.0.1:1234/v1"),
    ("llama.cpp", "http://127.0.0.1:8080/v1"),
    ("vLLM", "http://127.0.0.1:8000/v1"),
];

/// Timeout of listing the models. A server on loopback responds immediately.
const DISCOVERY_TIMEOUT: Duration = Duration::from_millis(500);

/// Other models than chat models, as most servers name them.
const NOT_CHAT: [&str; 8] =
    ["rerank", "whisper", "tts-", "-tts", "dall-e", "moderation", "transcribe", "stable-diffusion"];

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
///
/// # Errors
/// Those of [`find`].
pub async fn discover(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Found<'static>, NotFound<'static>> {
    find(settings, metrics, &DEFAULT_ENDPOINTS).await
}

/// No server was found that lists a chat model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotFound<'a> {
    /// No server responds.
    #[error("no model server is set or found (set ASSISTD_UPSTREAM_URL)")]
    Server,
    /// This server responds, and lists no chat model.
    #[error("{0}, found on this machine, has no chat model{hint}", hint = hint(.0))]
    ChatModel(&'a str),
}

/// Returns what to do about a server without a chat model.
fn hint(name: &str) -> String {
    if name == OLLAMA { format!(" (run `{}` and start again)", pull(SUGGESTED_MODEL)) } else { String::new() }
}

/// Queries all candidates concurrently. Returns the first candidate, in the given order, that lists a chat model.
///
/// # Errors
/// If none does.
pub async fn find<'a>(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    candidates: &[(&'a str, &str)],
) -> Result<Found<'a>, NotFound<'a>> {
    let answers = candidates.iter().map(|(name, url)| async move {
        let server = Upstream::new(*name, url, None, settings.clone(), metrics.clone());
        let models = tokio::time::timeout(DISCOVERY_TIMEOUT, server.list()).await.ok()?.ok()?;
        let Some(model) = first_chat_model(&models) else { return Some(Err(*name)) };
        let embedding_model = first_embedding_model(&models);
        Some(Ok(Found { name, server: Arc::new(server), model: model.to_owned(), embedding_model }))
    });
    let answers: Vec<Result<Found<'a>, &'a str>> =
        futures_util::future::join_all(answers).await.into_iter().flatten().collect();
    let without = answers.iter().find_map(|answer| answer.as_ref().err().copied());
    let found = answers.into_iter().find_map(Result::ok);
    found.ok_or_else(|| without.map_or(NotFound::Server, NotFound::ChatModel))
}

/// Returns the first model whose name is not that of another kind of model.
pub(super) fn first_chat_model(models: &[ModelObject]) -> Option<&str> {
    let model = models.iter().find(|model| !is_embedding_model(&model.id) && !is_other_model(&model.id));
    model.map(|model| model.id.as_str())
}

pub(super) fn first_embedding_model(models: &[ModelObject]) -> Option<String> {
    let model = models.iter().find(|model| is_embedding_model(&model.id) && !is_other_model(&model.id));
    model.map(|model| model.id.clone())
}

/// Returns whether a name is that of an embedding model, as most servers name them.
fn is_embedding_model(name: &str) -> bool {
    let name = name.to_lowercase();
    ["embed", "bge-", "minilm", "gte-", "e5-"].iter().any(|word| name.contains(word))
}

fn is_other_model(name: &str) -> bool {
    let name = name.to_lowercase();
    NOT_CHAT.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_embedding_model_is_not_chosen() {
        let models = ["nomic-embed-text", "all-MiniLM-L6", "qwen3:8b"].map(ModelObject::ours);

        assert_eq!(first_chat_model(&models), Some("qwen3:8b"));
        assert_eq!(first_chat_model(&models[..2]), None);
        assert_eq!(first_embedding_model(&models), Some("nomic-embed-text".to_owned()));
        assert_eq!(first_embedding_model(&models[2..]), None);
        assert_eq!(first_embedding_model(&["bge-reranker-v2"].map(ModelObject::ours)), None);
    }
}
