//! Talking to model servers: anything that speaks chat completions.
//!
//! [`Models`] knows them all and finds the one for a model's name; a [`ChatModel`] is one of them.

mod discover;
mod echo;
mod openai;
pub mod sse;
pub mod tokens;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::api::run::{FinishReason, Usage};

pub use discover::{discover, find};
pub use echo::Echo;
pub use openai::{Settings, Upstream};

/// How long a server's list of models is taken for true.
const LIST_FRESH: Duration = Duration::from_secs(30);
/// The same when a server did not answer; until it does, its last list counts.
const LIST_AGAIN: Duration = Duration::from_secs(1);
/// How often servers are asked for their lists without need, so that runs never wait for one.
const LIST_EVERY: Duration = Duration::from_mins(5);

/// A question to a model, in the form of chat completions.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
#[expect(missing_docs, reason = "the members are those of chat completions")]
pub struct ChatRequest {
    pub model: String,
    pub messages: Vec<ChatMessage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_format: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
}

/// What one side said, in the form of chat completions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: &'static str,
    /// A string, a list of parts, or null beside tool calls.
    pub content: Value,
    /// Calls that the assistant made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Value>,
    /// The call that a `tool` message answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// What one side said, without calls.
    #[must_use]
    pub fn new(role: &'static str, content: Value) -> Self {
        Self { role, content, tool_calls: Vec::new(), tool_call_id: None }
    }
}

/// A piece of a model's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatDelta {
    /// More text; never empty.
    Text(String),
    /// More of the words for not answering; never empty.
    Refusal(String),
    /// A piece of a tool call.
    Call(CallPiece),
    /// Why the answer ends.
    Finish(FinishReason),
    /// What the answer cost.
    Usage(Usage),
}

/// A piece of a tool call, as far as the server named it. Servers differ in what they leave out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CallPiece {
    /// Which call of the turn.
    pub index: Option<u32>,
    /// The server's name for the call.
    pub id: Option<String>,
    /// The function's name.
    pub name: Option<String>,
    /// More of its arguments; empty when there are none in this piece.
    pub arguments: String,
}

/// A model's answer: each element holds what one read from the server brought, so that a burst is handled as one.
pub type ChatStream = BoxStream<'static, Result<Vec<ChatDelta>, Error>>;

/// Why a model server did not answer. The texts are for the people who run it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It asked us to slow down, more often than we may try.
    #[error("{0}")]
    RateLimited(String),
    /// It cannot be reached, is too slow, or broke off; tries are used up.
    #[error("{0}")]
    Unavailable(String),
    /// It refused the request; another try does not help.
    #[error("{0}")]
    Refused(String),
}

/// A reply that is handed on as it is.
#[expect(missing_debug_implementations, reason = "a stream cannot be shown")]
pub struct Proxied {
    /// The HTTP status.
    pub status: u16,
    /// The content type, if the server gave one.
    pub content_type: Option<String>,
    /// The body as it comes.
    pub body: BoxStream<'static, Result<Bytes, Error>>,
}

/// One model server.
#[async_trait]
pub trait ChatModel: Send + Sync + std::fmt::Debug {
    /// Asks for an answer. Nothing is sent before the stream is first read; dropping it closes the connection. The request
    /// is dropped when the answer begins.
    fn chat(&self, request: ChatRequest) -> ChatStream;
    /// Hands a chat-completions request on, whatever its members.
    async fn proxy(&self, request: Map<String, Value>) -> Result<Proxied, Error>;
    /// Lists what it serves.
    async fn list(&self) -> Result<Vec<ModelObject>, Error>;
    /// What to call it in a banner or in a text about its failure.
    fn place(&self) -> String;
}

/// A model in a list of models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelObject {
    /// Its name.
    pub id: String,
    /// Always `model`.
    #[serde(default = "model_word")]
    pub object: String,
    /// Since when it is there, in Unix seconds.
    #[serde(default)]
    pub created: i64,
    /// Who made it.
    #[serde(default = "owner_word")]
    pub owned_by: String,
    /// Most tokens of a prompt and its answer together, where the server tells.
    #[serde(skip)]
    pub window: Option<u32>,
}

fn model_word() -> String {
    "model".to_owned()
}

fn owner_word() -> String {
    "assistd".to_owned()
}

impl ModelObject {
    fn ours(id: &str) -> Self {
        Self { id: id.to_owned(), object: model_word(), created: 0, owned_by: owner_word(), window: None }
    }
}

/// A model server, and the model names that the settings give it.
#[derive(Debug)]
pub struct Entry {
    /// The server.
    pub model: Arc<dyn ChatModel>,
    /// Names that belong to it whatever it lists itself.
    pub names: Vec<String>,
}

/// All model servers, and which model name goes where.
#[derive(Debug)]
pub struct Models {
    /// The first is the default.
    entries: Vec<Entry>,
    aliases: BTreeMap<String, String>,
    /// What a name that nobody knows is replaced by.
    default_model: Option<String>,
    /// Most tokens of a prompt and its answer together, by model name, where the settings tell.
    windows: BTreeMap<String, u32>,
    /// What each server listed last, and until when it is taken for true.
    listed: Mutex<Option<(Instant, Lists)>>,
    /// By model, how many tokens it counts for each of ours; those of 1 are left out.
    ratios: std::sync::Mutex<BTreeMap<String, f64>>,
}

/// Most that a model's count is taken to differ from ours; a larger one counts something else.
const RATIO_MAX: f64 = 4.0;
/// Most models of which a ratio is known; names come from clients.
const RATIOS_MAX: usize = 1_000;

/// The models of each server, in the servers' order.
type Lists = Vec<Vec<ModelObject>>;

/// Where a request for a model goes.
#[derive(Debug, Clone)]
pub struct Route {
    /// The server.
    pub server: Arc<dyn ChatModel>,
    /// The name that it knows the model by.
    pub model: String,
}

impl Models {
    /// Joins servers, the default one first; there must be at least one.
    #[must_use]
    pub fn new(
        entries: Vec<Entry>,
        aliases: BTreeMap<String, String>,
        default_model: Option<String>,
        windows: BTreeMap<String, u32>,
    ) -> Self {
        Self { entries, aliases, default_model, windows, listed: Mutex::new(None), ratios: std::sync::Mutex::default() }
    }

    /// Most tokens of a prompt and its answer together, as the settings say for either name of a model, else as its
    /// server listed last; none when nobody says. Asks no server: a run does not wait for it.
    pub async fn window(&self, asked: &str, routed: &str) -> Option<u32> {
        let set = self.windows.get(asked).or_else(|| self.windows.get(routed));
        if let Some(window) = set {
            return Some(*window);
        }
        let listed = self.listed.lock().await;
        let (_, lists) = listed.as_ref()?;
        lists.iter().flatten().find(|model| model.id == routed)?.window
    }

    /// How many tokens a model counts for each of ours, at least 1, by its last answer to a prompt that we had counted.
    #[must_use]
    pub fn ratio(&self, model: &str) -> f64 {
        let ratios = self.ratios.lock().unwrap_or_else(PoisonError::into_inner);
        ratios.get(model).copied().unwrap_or(1.0)
    }

    /// Learns that a model counted `told` tokens where we had counted `ours`. Less is not believed: servers leave out
    /// what they had in a cache.
    #[expect(clippy::cast_precision_loss, reason = "prompts have far fewer tokens than a float has digits")]
    pub fn learn_ratio(&self, model: &str, ours: usize, told: u32) {
        let ratio = (f64::from(told) / ours.max(1) as f64).clamp(1.0, RATIO_MAX);
        let mut ratios = self.ratios.lock().unwrap_or_else(PoisonError::into_inner);
        if ratio > 1.0 && (ratios.len() < RATIOS_MAX || ratios.contains_key(model)) {
            tracing::debug!(model, ratio, "the model counts more tokens than we do");
            ratios.insert(model.to_owned(), ratio);
        } else {
            ratios.remove(model);
        }
    }

    /// Finds the server for a model's name, in this order: an alias is followed once; a server that the settings name
    /// for it; with a default model set, a server that lists it, else the default model; else the default server under
    /// the name as it is.
    pub async fn route(&self, name: &str) -> Route {
        let name = self.aliases.get(name).map_or(name, String::as_str);
        if let Some(route) = self.configured(name) {
            return route;
        }
        let Some(default_model) = &self.default_model else { return self.default_server(name) };
        if name == default_model {
            return self.default_server(name);
        }
        let known = self.known().await;
        match known.iter().position(|models| models.iter().any(|model| model.id == name)) {
            Some(index) => self.route_to(index, name),
            None => self.configured(default_model).unwrap_or_else(|| self.default_server(default_model)),
        }
    }

    fn configured(&self, name: &str) -> Option<Route> {
        let index = self.entries.iter().position(|entry| entry.names.iter().any(|known| known == name))?;
        Some(self.route_to(index, name))
    }

    fn default_server(&self, name: &str) -> Route {
        self.route_to(0, name)
    }

    fn route_to(&self, index: usize, name: &str) -> Route {
        Route { server: self.entries[index].model.clone(), model: name.to_owned() }
    }

    /// Lists the models of all servers and the configured names, each once. A server that does not answer is left out.
    pub async fn list(&self) -> Vec<ModelObject> {
        let mut all: Vec<ModelObject> = self.listed().await.into_iter().flatten().collect();
        let names = self.entries.iter().flat_map(|entry| &entry.names);
        all.extend(names.chain(self.aliases.keys()).chain(&self.default_model).map(|name| ModelObject::ours(name)));
        let mut seen = std::collections::HashSet::new();
        all.retain(|model| seen.insert(model.id.clone()));
        all
    }

    /// What the servers listed last, however long ago; asks them only when nothing is known yet.
    async fn known(&self) -> Lists {
        let known = self.listed.lock().await.as_ref().map(|(_, lists)| lists.clone());
        match known {
            Some(lists) => lists,
            None => self.ask().await,
        }
    }

    /// What the servers list, asked anew when the last answer is old.
    async fn listed(&self) -> Lists {
        let fresh = self.listed.lock().await.as_ref().filter(|(until, _)| Instant::now() < *until).cloned();
        match fresh {
            Some((_, lists)) => lists,
            None => self.ask().await,
        }
    }

    async fn ask(&self) -> Lists {
        let answers = futures_util::future::join_all(self.entries.iter().map(|entry| entry.model.list())).await;
        let mut listed = self.listed.lock().await;
        let mut fresh = LIST_FRESH;
        let mut lists = Lists::new();
        for (index, (answer, entry)) in answers.into_iter().zip(&self.entries).enumerate() {
            lists.push(answer.unwrap_or_else(|error| {
                tracing::warn!(server = entry.model.place(), %error, "a model server lists no models");
                fresh = LIST_AGAIN;
                listed.as_ref().map(|(_, before)| before[index].clone()).unwrap_or_default()
            }));
        }
        *listed = Some((Instant::now() + fresh, lists.clone()));
        lists
    }

    /// Keeps what is known of the servers' models up to date, for as long as it is polled.
    pub async fn keep_known(&self) {
        loop {
            self.ask().await;
            tokio::time::sleep(LIST_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    async fn a_name_is_followed_to_its_alias_and_an_unknown_one_goes_to_the_default_server_as_it_is() {
        let models = models(None);

        assert_eq!(models.route("gpt-4o").await.model, "large");
        assert_eq!(models.route("unheard-of").await.model, "unheard-of");
    }

    #[tokio::test]
    async fn with_a_default_model_an_unknown_name_becomes_it_and_a_listed_one_stays() {
        let models = models(Some("small"));

        assert_eq!(models.route("unheard-of").await.model, "small");
        assert_eq!(models.route("large").await.model, "large");
        assert_eq!(models.route(Echo::NAME).await.model, Echo::NAME);
    }

    #[test]
    fn a_models_count_is_believed_when_it_is_higher_than_ours() {
        let models = models(None);
        let after = |told: u32| {
            models.learn_ratio("m", 100, told);
            (models.ratio("m"), models.ratio("other"))
        };

        assert_eq!(after(150), (1.5, 1.0));
        assert_eq!(after(100_000), (RATIO_MAX, 1.0));
        assert_eq!(after(20), (1.0, 1.0), "the rest was in a cache");
    }

    #[tokio::test]
    async fn the_list_has_each_name_once() {
        let names: Vec<String> = models(Some("small")).list().await.into_iter().map(|model| model.id).collect();

        assert_eq!(names, [Echo::NAME, "small", "large", "gpt-4o"]);
    }
}
