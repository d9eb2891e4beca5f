//! Routes model names to servers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::discover::first_chat_model;
use super::model_cache::{ModelCache, ModelLists, TokenRatios};
use super::{ChatModel, Error, ModelObject};

/// Interval of the background refresh of the model lists, so that no run waits for one.
const REFRESH_EVERY: Duration = Duration::from_mins(5);
/// The same while a server fails to list its models.
const RETRY_EVERY: Duration = Duration::from_secs(10);
/// Maximum number of models of a server whose first chat model answers for unknown names. A gateway with more has most names
/// that apps use.
const LISTED_MAX: usize = 50;
/// The same for a server on the internet: such services accept names that they do not list, and charge for each model
/// differently.
const PUBLIC_LISTED_MAX: usize = 1;

/// A model server, and the model names that the settings assign to it.
#[derive(Debug)]
pub struct Entry {
    /// The server.
    pub model: Arc<dyn ChatModel>,
    /// Names that are routed to it, even if it does not list them.
    pub names: Vec<String>,
}

/// All model servers, and which model name each one serves.
#[derive(Debug)]
pub struct Models {
    /// The first is the default.
    servers: Vec<Arc<dyn ChatModel>>,
    /// The configured names of each server, in the servers' order.
    names: Vec<Vec<String>>,
    aliases: BTreeMap<String, String>,
    /// Replaces a name that no server lists. Without it, the first chat model of the default server does, if it lists few.
    default_model: Option<String>,
    /// Configured context windows, by model name.
    windows: BTreeMap<String, u32>,
    cache: ModelCache,
    ratios: TokenRatios,
}

/// The server for a model name.
#[derive(Debug, Clone)]
pub struct Route {
    /// The server.
    pub server: Arc<dyn ChatModel>,
    /// The server's name for the model.
    pub model: String,
    /// The server's index in the settings.
    pub(super) index: usize,
}

impl Models {
    /// Creates the routing table. The first server is the default one; there must be at least one.
    #[must_use]
    pub fn new(
        entries: Vec<Entry>,
        aliases: BTreeMap<String, String>,
        default_model: Option<String>,
        windows: BTreeMap<String, u32>,
    ) -> Self {
        let (servers, names) = entries.into_iter().map(|entry| (entry.model, entry.names)).unzip();
        let (cache, ratios) = (ModelCache::default(), TokenRatios::default());
        Self { servers, names, aliases, default_model, windows, cache, ratios }
    }

    /// Returns the model names in the settings.
    pub fn configured_names(&self) -> impl Iterator<Item = &str> {
        let names = self.names.iter().flatten().chain(self.aliases.keys()).chain(self.windows.keys());
        names.chain(&self.default_model).map(String::as_str)
    }

    /// Returns the context window of a model: maximum tokens of a prompt and its answer together.
    ///
    /// Uses the settings, under the `requested` name or the routed one; otherwise the last model list of the route's
    /// server. Returns `None` if neither has it. Sends no request, so that a run does not wait.
    pub async fn window(&self, requested: &str, route: &Route) -> Option<u32> {
        let configured = self.windows.get(requested).or_else(|| self.windows.get(&route.model));
        match configured {
            Some(window) => Some(*window),
            None => self.cache.window(route.index, &route.model).await,
        }
    }

    /// Returns the ratio of a model's token count to ours, at least 1, from its last answer to a prompt that we counted.
    #[must_use]
    pub fn ratio(&self, route: &Route) -> f64 {
        self.ratios.get(route.index, &route.model)
    }

    /// Stores that a model `reported` this many tokens for a prompt that we had `counted`. Lower counts than ours are
    /// ignored: some servers do not count cached tokens.
    pub fn learn_ratio(&self, route: &Route, counted: usize, reported: u32) {
        self.ratios.learn(route.index, &route.model, counted, reported);
    }

    /// Returns the server for the name of a chat model. Resolves an alias once, and then returns the first match:
    /// - the server that the settings assign to the name;
    /// - a server that lists the name;
    /// - the server of the default model, if it is set;
    /// - the default server, with the chat model of [`only_or_first_chat_model`], unless the name is that of an alias;
    /// - the default server, with the name unchanged.
    pub async fn route(&self, name: &str) -> Route {
        let alias = self.aliases.get(name);
        let name = alias.map_or(name, String::as_str);
        if let Some(route) = self.configured(name) {
            return route;
        }
        if self.default_model.as_deref() == Some(name) {
            return self.default_server(name);
        }
        let lists = self.cache.any(&self.servers).await;
        if let Some(route) = self.listed(&lists, name) {
            return route;
        }
        if let Some(model) = &self.default_model {
            return self.configured(model).unwrap_or_else(|| self.default_server(model));
        }
        let list = lists.first().filter(|_| alias.is_none());
        let first = list.and_then(|models| only_or_first_chat_model(models, self.servers[0].is_local()));
        self.default_server(first.unwrap_or(name))
    }

    /// Returns the server for the name of an embedding model: as [`Models::route`], except that no other model replaces it.
    pub async fn route_embeddings(&self, name: &str) -> Route {
        let name = self.aliases.get(name).map_or(name, String::as_str);
        if let Some(route) = self.configured(name) {
            return route;
        }
        let lists = self.cache.any(&self.servers).await;
        self.listed(&lists, name).unwrap_or_else(|| self.default_server(name))
    }

    /// Stores the first lists of models of all servers.
    pub async fn store_lists(&self, answers: Vec<Result<Vec<ModelObject>, Error>>) {
        self.cache.store(&self.servers, answers).await;
    }

    fn listed(&self, lists: &ModelLists, name: &str) -> Option<Route> {
        lists.iter().position(|models| is_listed(models, name)).map(|index| self.route_to(index, name))
    }

    fn configured(&self, name: &str) -> Option<Route> {
        let index = self.names.iter().position(|names| names.iter().any(|known| known == name))?;
        Some(self.route_to(index, name))
    }

    fn default_server(&self, name: &str) -> Route {
        self.route_to(0, name)
    }

    fn route_to(&self, index: usize, name: &str) -> Route {
        Route { server: self.servers[index].clone(), model: name.to_owned(), index }
    }

    /// Lists the models of all servers and the configured names, each once. Omits a server that does not answer.
    pub async fn list(&self) -> Vec<ModelObject> {
        let mut all: Vec<ModelObject> = self.cache.fresh(&self.servers).await.into_iter().flatten().collect();
        let names = self.names.iter().flatten();
        all.extend(names.chain(self.aliases.keys()).chain(&self.default_model).map(|name| ModelObject::ours(name)));
        let mut seen = std::collections::HashSet::new();
        all.retain(|model| seen.insert(model.id.clone()));
        all
    }

    /// Refreshes the model lists of the servers. Never returns.
    pub async fn refresh_lists(&self) {
        loop {
            match self.cache.is_complete().await {
                None => {}
                Some(true) => tokio::time::sleep(REFRESH_EVERY).await,
                Some(false) => tokio::time::sleep(RETRY_EVERY).await,
            }
            self.cache.refresh(&self.servers).await;
        }
    }
}

/// Returns whether a list of models has a name.
pub(super) fn is_listed(models: &[ModelObject], name: &str) -> bool {
    models.iter().any(|model| model.answers_to(name))
}

/// Returns the chat model that answers for names that its server does not list: its only one, or the first of a local server.
/// `None` if the server lists too many, or patterns of names.
#[must_use]
pub fn only_or_first_chat_model(models: &[ModelObject], is_local: bool) -> Option<&str> {
    let max = if is_local { LISTED_MAX } else { PUBLIC_LISTED_MAX };
    let is_short = models.len() <= max && !models.iter().any(|model| model.id.contains('*'));
    is_short.then(|| first_chat_model(models)).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::llm::{ChatRequest, ChatStream, Echo, Endpoint, Error, Proxied};

    fn models(default_model: Option<&str>) -> Models {
        let entry = |names: &[&str]| Entry {
            model: Arc::new(Echo),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        Models::new(
            vec![entry(&["small"]), entry(&["large"])],
            BTreeMap::from([("gpt-4o".to_owned(), "large".to_owned())]),
            default_model.map(str::to_owned),
            BTreeMap::new(),
        )
    }

    #[tokio::test]
    async fn an_alias_is_resolved_and_the_first_chat_model_answers_for_other_names() {
        let models = models(None);

        assert_eq!(models.route("gpt-4o").await.model, "large");
        assert_eq!(models.route("unknown").await.model, Echo::NAME);
        assert_eq!(models.route_embeddings("unknown").await.model, "unknown");
    }

    #[test]
    fn the_first_chat_model_answers_only_if_the_server_lists_few_models() {
        let list = |names: &[&str]| names.iter().map(|name| ModelObject::ours(name)).collect::<Vec<_>>();
        let many = vec![ModelObject::ours("m"); LISTED_MAX + 1];

        assert_eq!(only_or_first_chat_model(&list(&["whisper-1", "nomic-embed-text", "a", "b"]), true), Some("a"));
        assert_eq!(only_or_first_chat_model(&list(&["a", "openai/*"]), true), None);
        assert_eq!(only_or_first_chat_model(&many, true), None);
        assert_eq!(only_or_first_chat_model(&[], true), None);
        assert_eq!(only_or_first_chat_model(&list(&["a"]), false), Some("a"));
        assert_eq!(only_or_first_chat_model(&list(&["a", "b"]), false), None);
        assert!(is_listed(&list(&["models/gemini-2.5-pro"]), "gemini-2.5-pro"));
        assert!(is_listed(&list(&["qwen3:latest"]), "qwen3") && is_listed(&list(&["qwen3:8b"]), "qwen3:8b"));
        assert!(!is_listed(&list(&["qwen3:8b"]), "qwen3"));
    }

    #[tokio::test]
    async fn a_default_model_replaces_unknown_names_only() {
        let models = models(Some("small"));

        assert_eq!(models.route("unknown").await.model, "small");
        assert_eq!(models.route("large").await.model, "large");
        assert_eq!(models.route(Echo::NAME).await.model, Echo::NAME);
    }

    #[tokio::test]
    async fn the_context_window_is_that_of_the_routes_server() {
        let server = |window: u32| Arc::new(Listing(window)) as Arc<dyn ChatModel>;
        let entries = vec![
            Entry { model: server(1_000), names: Vec::new() },
            Entry { model: server(2_000), names: vec!["m".to_owned()] },
        ];
        let models = Models::new(entries, BTreeMap::new(), None, BTreeMap::from([("set".to_owned(), 3)]));
        models.list().await;

        let route = models.route("m").await;
        assert_eq!(models.window("m", &route).await, Some(2_000), "the first server lists the same name");
        assert_eq!(models.window("set", &route).await, Some(3));
    }

    /// A server that lists the model `m` with this context window.
    #[derive(Debug)]
    struct Listing(u32);

    #[async_trait::async_trait]
    impl ChatModel for Listing {
        fn chat(&self, request: ChatRequest) -> ChatStream {
            Echo.chat(request)
        }

        async fn proxy(&self, endpoint: Endpoint, request: Map<String, Value>) -> Result<Proxied, Error> {
            Echo.proxy(endpoint, request).await
        }

        async fn list(&self) -> Result<Vec<ModelObject>, Error> {
            Ok(vec![ModelObject { window: Some(self.0), ..ModelObject::ours("m") }])
        }

        fn name(&self) -> &'static str {
            "listing"
        }
    }

    #[tokio::test]
    async fn the_list_contains_each_name_once() {
        let names: Vec<String> = models(Some("small")).list().await.into_iter().map(|model| model.id).collect();

        assert_eq!(names, [Echo::NAME, "small", "large", "gpt-4o"]);
    }
}
