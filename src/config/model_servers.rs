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
        };
        let mut servers = vec![of(UPSTREAM_URL, &self.upstream_url, &self.upstream_api_key)];
        for (index, more) in self.upstreams.iter().enumerate() {
            let mut server = of(&format!("upstreams[{index}]"), &more.url, &more.api_key);
            if !more.name.is_empty() {
                server.name.clone_from(&more.name);
            }
            servers.push(server);
        }
        servers.push(of(EMBEDDING_URL, &self.embedding_url, &self.embedding_api_key));
        servers.retain(|server| !server.url.expose().is_empty() || server.setting.starts_with("upstreams"));
        servers
    }

    /// Asks the model servers for their models, in the order of [`Settings::model_servers`].
    pub async fn inspect_model_servers(&self, metrics: &Arc<Metrics>) -> Vec<Inspection> {
        let inspections = self.model_servers().into_iter().map(|server| async move {
            // The only server has no name in errors.
            let name = if server.setting == UPSTREAM_URL { "" } else { &server.name };
            let key = server.api_key.clone().into_option();
            Inspection::of(name, server.url.expose(), key, server.purpose(), &self.llm(), metrics).await
        });
        futures_util::future::join_all(inspections).await
    }

    /// Returns the settings with a model that no server lists, with a warning for each.
    #[must_use]
    pub fn unlisted_models(&self, inspections: &[Inspection]) -> Vec<(&'static str, String)> {
        let of = |purpose| -> Vec<Inspection> {
            inspections.iter().filter(|inspection| inspection.purpose == purpose).cloned().collect()
        };
        let (chat, embeddings) = (of(Purpose::Chat), of(Purpose::Embeddings));
        let asked_for_embeddings = if embeddings.is_empty() { &chat } else { &embeddings };
        let settings = [
            ("default_model", &self.default_model, &chat),
            ("embedding_model", &self.embedding_model, asked_for_embeddings),
        ];
        let has_server = |name: &String| self.upstreams.iter().any(|upstream| upstream.models.contains(name));
        let unlisted =
            settings.into_iter().filter(|(_, model, _)| !has_server(model)).map(|(setting, model, asked)| {
                let model = self.model_aliases.get(model).filter(|_| setting == "embedding_model").unwrap_or(model);
                unlisted(setting, model, asked).map(|warning| (setting, warning))
            });
        unlisted.flatten().collect()
    }
}
