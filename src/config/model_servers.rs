//! The model servers of the settings.

use std::sync::Arc;

use super::{Secret, SecretUrl, Settings};
use crate::llm::inspect::{Inspection, Purpose, unlisted};
use crate::metrics::Metrics;

/// The setting of the first server.
const UPSTREAM_URL: &str = "upstream_url";
/// The setting of the server for embeddings alone.
const EMBEDDING_URL: &str = "embedding_url";

/// A model server of the settings.
#[derive(Debug)]
pub struct ModelServer<'s> {
    /// The setting with its URL.
    pub setting: String,
    /// Its name, or the setting.
    pub name: String,
    /// Base URL.
    pub url: &'s SecretUrl,
    /// API key.
    pub api_key: &'s Secret,
    /// Model names that are routed to it.
    pub models: &'s [String],
}

impl ModelServer<'_> {
    /// Returns what it is used for.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        if self.setting == EMBEDDING_URL { Purpose::Embeddings } else { Purpose::Chat }
    }
}

impl Settings {
    /// Returns the model servers of the settings, the one of embeddings included.
    #[must_use]
    pub fn model_servers(&self) -> Vec<ModelServer<'_>> {
        let of = |setting: &str, url, api_key| ModelServer {
            setting: setting.to_owned(),
            name: setting.to_owned(),
            url,
            api_key,
            models: &[],
        };
        let mut servers = vec![of(UPSTREAM_URL, &self.upstream_url, &self.upstream_api_key)];
        for (index, more) in self.upstreams.iter().enumerate() {
            let server = of(&format!("upstreams[{index}]"), &more.url, &more.api_key);
            let mut server = ModelServer { models: &more.models, ..server };
            if !more.name.is_empty() {
                server.name.clone_from(&more.name);
            }
            servers.push(server);
        }
        servers.push(of(EMBEDDING_URL, &self.embedding_url, &self.embedding_api_key));
        servers.retain(|server| !server.url.expose().is_empty() || server.setting.starts_with("upstreams"));
        servers
    }

    /// Asks the model servers for their models.
    pub async fn inspect_model_servers(&self, metrics: &Arc<Metrics>) -> Vec<(ModelServer<'_>, Inspection)> {
        let inspections = self.model_servers().into_iter().map(|server| async move {
            // The only server has no name in errors.
            let name = if server.setting == UPSTREAM_URL { "" } else { &server.name };
            let key = server.api_key.clone().into_option();
            let url = server.url.expose();
            let inspection = Inspection::of(name, url, key, server.purpose(), &self.llm(), metrics).await;
            (server, inspection)
        });
        futures_util::future::join_all(inspections).await
    }

    /// Returns the settings with a model that no server lists, with a warning for each.
    #[must_use]
    pub fn unlisted_models(&self, inspected: &[(ModelServer<'_>, Inspection)]) -> Vec<(&'static str, String)> {
        let of = |purpose| -> Vec<&Inspection> {
            let inspections = inspected.iter().map(|(_, inspection)| inspection);
            inspections.filter(|inspection| inspection.purpose == purpose).collect()
        };
        let (chat, embeddings) = (of(Purpose::Chat), of(Purpose::Embeddings));
        let asked_for_embeddings = if embeddings.is_empty() { &chat } else { &embeddings };
        let settings = [
            ("default_model", &self.default_model, &chat),
            ("embedding_model", &self.embedding_model, asked_for_embeddings),
        ];
        let has_server = |name: &String| inspected.iter().any(|(server, _)| server.models.contains(name));
        let unlisted =
            settings.into_iter().filter(|(_, model, _)| !has_server(model)).map(|(setting, model, asked)| {
                let model = self.model_aliases.get(model).filter(|_| setting == "embedding_model").unwrap_or(model);
                unlisted(setting, model, asked).map(|warning| (setting, warning))
            });
        unlisted.flatten().collect()
    }
}
