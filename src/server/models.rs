//! The model servers: those of the settings, or one that was found on this machine.

use std::sync::Arc;

use crate::config::{ModelServer, Settings};
use crate::llm::inspect::{Inspection, Purpose};
use crate::llm::{
    ChatModel, Echo, Embedder, EmbeddingServer, Embeddings, Entry, Found, Models, Upstream, discover,
    only_or_first_chat_model,
};
use crate::metrics::Metrics;

/// The model name of the example request, if no other is known.
const EXAMPLE_MODEL: &str = "gpt-4o";

/// The model servers, and how the banner shows them.
pub(super) struct ServedModels {
    pub(super) models: Arc<Models>,
    /// The default model and its server, for the banner.
    pub(super) shown: String,
    /// The model name of the example request.
    pub(super) example: String,
    /// The client of the embedding model, if there is one.
    pub(super) embedder: Option<Arc<dyn Embedder>>,
    /// The embedding model and its server, for the banner.
    pub(super) embeddings: String,
}

impl ServedModels {
    /// Returns the model servers, after they were asked for their models. Logs what an operator should change. A server that does
    /// not respond may do so later.
    pub(super) async fn of(settings: &Settings, metrics: &Arc<Metrics>) -> Self {
        let inspected = settings.inspect_model_servers(metrics).await;
        for (server, inspection) in &inspected {
            if let Some(advice) = inspection.advice() {
                tracing::warn!(server = server.name, "{advice}");
            }
        }
        for (setting, warning) in settings.unlisted_models(&inspected) {
            tracing::warn!(setting, "{warning}");
        }
        let (chat, embeddings): (Vec<_>, Vec<_>) =
            inspected.into_iter().partition(|(server, _)| server.purpose() == Purpose::Chat);
        let chat = if chat.is_empty() { found(settings, metrics).await } else { configured(settings, chat).await };
        let ChatModels { models, shown, example, embedding_model } = chat;
        let models = Arc::new(models);
        let server = embeddings.into_iter().next().map(|(_, inspection)| inspection.server);
        let (embedder, embeddings) = embedder(settings, server, &models, embedding_model.as_deref());
        Self { models, shown, example, embedder, embeddings }
    }
}

/// The servers of chat models.
struct ChatModels {
    models: Models,
    shown: String,
    example: String,
    /// An embedding model that one of them lists.
    embedding_model: Option<String>,
}

/// Returns the server that is found on this machine, or the built-in model.
async fn found(settings: &Settings, metrics: &Arc<Metrics>) -> ChatModels {
    let (model, server, name, embedding_model): (Arc<dyn ChatModel>, _, _, _) =
        match discover(&settings.llm(), metrics).await {
            Ok(Found { name: kind, server, model, embedding_model }) => {
                (server, format!("{kind}, found on this machine"), model, embedding_model)
            }
            Err(reason) => (Arc::new(Echo), format!("built in, because {reason}"), Echo::NAME.to_owned(), None),
        };
    let name = if settings.default_model.is_empty() { name } else { settings.default_model.clone() };
    let entries = vec![Entry { model, names: Vec::new() }];
    ChatModels {
        models: routing(settings, entries, Some(name.clone())),
        shown: format!("{name} ({server})"),
        example: name,
        embedding_model,
    }
}

/// Returns the servers of the settings, of which there is at least one.
async fn configured(settings: &Settings, inspected: Vec<(ModelServer<'_>, Inspection)>) -> ChatModels {
    let default_model = Some(settings.default_model.clone()).filter(|name| !name.is_empty());
    let Inspection { server, models, .. } = &inspected[0].1;
    let name = server.name();
    let listed = models.as_deref().ok().and_then(|models| only_or_first_chat_model(models, server.is_local()));
    let named = default_model.as_ref().or(inspected.iter().find_map(|(server, _)| server.models.first()));
    let (shown, example) = match (named, listed) {
        (None, Some(model)) => (format!("{model} for names that no server lists ({name})"), model.to_owned()),
        (Some(model), _) => (format!("{model} ({name})"), model.clone()),
        (None, None) => (format!("the model of each request ({name})"), EXAMPLE_MODEL.to_owned()),
    };
    let embedding_model = inspected.iter().find_map(|(_, inspection)| inspection.embedding_model());
    let (entries, lists) = inspected
        .into_iter()
        .map(|(server, Inspection { server: model, models, .. })| {
            (Entry { model: model as Arc<dyn ChatModel>, names: server.models.to_vec() }, models)
        })
        .unzip();
    let models = routing(settings, entries, default_model);
    models.store_lists(lists).await;
    ChatModels { models, shown, example, embedding_model }
}

/// Returns the client of the embedding model, if there is one, and its description for the banner. `found` is an embedding
/// model that a server of chat models lists. It is named, but not used: its embeddings would be lost with another model.
fn embedder(
    settings: &Settings,
    server: Option<Arc<Upstream>>,
    models: &Arc<Models>,
    found: Option<&str>,
) -> (Option<Arc<dyn Embedder>>, String) {
    let Some(of_model) = settings.embeddings() else {
        let shown = match found {
            Some(name) => format!("none: files are found by words (to use {name}, set ASSISTD_EMBEDDING_MODEL={name})"),
            None => "none: files are found by words (set ASSISTD_EMBEDDING_MODEL)".to_owned(),
        };
        return (None, shown);
    };
    let model = of_model.model.clone();
    let (server, route) = match server {
        Some(server) => (EmbeddingServer::Fixed(server), "embedding_url"),
        None => (EmbeddingServer::Routed(models.clone()), "routed like chat"),
    };
    (Some(Arc::new(Embeddings::new(server, of_model))), format!("{model} ({route})"))
}

fn routing(settings: &Settings, entries: Vec<Entry>, default_model: Option<String>) -> Models {
    Models::new(entries, settings.model_aliases.clone(), default_model, settings.context_windows.clone())
}
