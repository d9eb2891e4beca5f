//! Inspects the model servers of the settings: which models they list, and what an operator should change.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use secrecy::SecretString;

use super::discover::{first_chat_model, first_embedding_model};
use super::openai::{Settings, Upstream};
use super::routing::is_listed;
use super::{ChatModel as _, Error, ModelObject};
use crate::metrics::Metrics;

/// Timeout of listing the models. A server waits for it when it starts.
const TIMEOUT: Duration = Duration::from_secs(2);
/// A chat model that most machines can run, for examples of commands.
pub(super) const EXAMPLE_MODEL: &str = "qwen3:8b";
/// The port of Ollama.
const OLLAMA_PORT: u16 = 11434;
/// The owner of models in Ollama's lists.
const OLLAMA_OWNER: &str = "library";
/// What the text of an error says if the URL of the server may be wrong, or if it does not run.
const URL_HINT: &str = "Check that it runs";
/// Number of names that one text lists.
const NAMES_MAX: usize = 5;

/// What a model server is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Runs, and requests that are forwarded.
    Chat,
    /// Embeddings alone.
    Embeddings,
}

/// A model server, and the models that it lists.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// The server.
    pub server: Arc<Upstream>,
    /// Its models, or why it did not list them.
    pub models: Result<Vec<ModelObject>, Error>,
    /// What it is used for.
    pub purpose: Purpose,
    /// The URL at which it lists its models, if it does not at the one in the settings; without secrets.
    correct_url: Option<String>,
    is_ollama: bool,
}

impl Inspection {
    /// Requests the list of models of the server at `url`. `name` is its name in errors; see [`Upstream::new`].
    pub async fn of(
        name: &str,
        url: &str,
        key: Option<SecretString>,
        purpose: Purpose,
        settings: &Settings,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let server = |url: &str| Upstream::new(name, url, key.clone(), settings.clone(), metrics.clone());
        let configured = server(url);
        let models = list(&configured).await;
        let parsed = Url::parse(url).ok();
        let mut correct_url = None;
        if models.as_ref().is_err_and(|error| error.cause().status.is_none_or(|status| matches!(status, 404 | 405)))
            && let Some(other) = parsed.as_ref().and_then(with_v1)
            && list(&server(other.as_str())).await.is_ok()
        {
            correct_url = Some(without_secrets(other));
        }
        let lists_library = |models: &Vec<ModelObject>| models.iter().any(|model| model.owned_by == OLLAMA_OWNER);
        let is_ollama =
            parsed.is_some_and(|url| url.port() == Some(OLLAMA_PORT)) || models.as_ref().is_ok_and(lists_library);
        Self { server: Arc::new(configured), models, purpose, correct_url, is_ollama }
    }

    /// Returns what an operator should know or change, as a sentence that names the server. It has no secrets.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        let subject = self.server.subject();
        if let Some(url) = &self.correct_url {
            return Some(format!("{subject} lists its models at {url}. Use this URL in the settings."));
        }
        let advice = match &self.models {
            Err(error) if error.has_no_list() => {
                format!("{subject} does not list its models. Check that its URL in the settings ends in /v1.")
            }
            Err(error) => {
                let text = error.for_log().trim_end_matches('.');
                let hint = match error.cause().status {
                    Some(401 | 403) => "Check its API key in the settings.",
                    // The text has the same hint.
                    None if text.contains(URL_HINT) => "",
                    _ => "Check that its URL in the settings is correct.",
                };
                format!("{text}. {hint}").trim_end().to_owned()
            }
            Ok(models) if self.purpose == Purpose::Embeddings || first_chat_model(models).is_some() => return None,
            Ok(_) if self.is_ollama => {
                format!("{subject} is Ollama, and has no chat model. Run `{}`.", pull(EXAMPLE_MODEL))
            }
            Ok(_) => format!(
                "{subject} lists no chat model. Load one in it, or set default_model to a name that it accepts."
            ),
        };
        Some(advice)
    }

    /// Returns whether the server lists its models at another URL than the one in the settings.
    #[must_use]
    pub fn has_wrong_url(&self) -> bool {
        self.correct_url.is_some()
    }

    /// Returns the first embedding model that the server lists.
    #[must_use]
    pub fn embedding_model(&self) -> Option<String> {
        self.models.as_ref().ok().and_then(|models| first_embedding_model(models))
    }
}

/// Returns a warning if none of the servers lists a model of the settings. Returns `None` if a server does not list its models.
#[must_use]
pub fn unlisted(setting: &str, model: &str, inspections: &[Inspection]) -> Option<String> {
    let lists: Option<Vec<&Vec<ModelObject>>> = inspections.iter().map(|found| found.models.as_ref().ok()).collect();
    let lists = lists.filter(|lists| !lists.is_empty())?;
    if model.is_empty() || lists.iter().any(|models| is_listed(models, model)) {
        return None;
    }
    let all: Vec<ModelObject> = lists.into_iter().flatten().cloned().collect();
    let mut text = format!("{setting} is \"{model}\", which no model server lists ({}).", names(&all));
    if inspections.iter().any(|found| found.is_ollama) {
        let _ = write!(text, " Run `{}`, or change {setting}.", pull(model));
    }
    Some(text)
}

/// Returns the number of models, and their first names.
#[must_use]
pub fn names(models: &[ModelObject]) -> String {
    if models.is_empty() {
        return "no models".to_owned();
    }
    let first: Vec<&str> = models.iter().take(NAMES_MAX).map(|model| model.id.as_str()).collect();
    let more = if models.len() > NAMES_MAX { ", …" } else { "" };
    format!("{} models: {}{more}", models.len(), first.join(", "))
}

/// Returns the command that adds a model to Ollama.
pub(super) fn pull(model: &str) -> String {
    format!("ollama pull {model}")
}

async fn list(server: &Upstream) -> Result<Vec<ModelObject>, Error> {
    let late = |_| {
        let text = format!("{} does not respond within {} s. Check that it runs", server.subject(), TIMEOUT.as_secs());
        Err(Error::Unavailable(text.into()))
    };
    tokio::time::timeout(TIMEOUT, server.list()).await.unwrap_or_else(late)
}

/// Returns the URL that ends in `/v1`, if another one was given: without it, or with the path of an endpoint behind it.
fn with_v1(url: &Url) -> Option<Url> {
    let segments: Vec<&str> = url.path_segments()?.filter(|segment| !segment.is_empty()).collect();
    let version = segments.iter().position(|segment| *segment == "v1");
    let kept = match version {
        Some(index) if index + 1 == segments.len() => return None,
        Some(index) => &segments[..index],
        None => &segments[..],
    };
    let mut other = url.clone();
    other.set_path(&[kept, &["v1"]].concat().join("/"));
    Some(other)
}

fn without_secrets(mut url: Url) -> String {
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_v1_is_corrected() {
        let corrected = |url: &str| with_v1(&Url::parse(url).unwrap()).map(without_secrets);

        for url in ["http://a:1", "http://a:1/", "http://u:p@a:1/v1/chat/completions?k=1", "http://a:1/v1/models/"] {
            assert_eq!(corrected(url).as_deref(), Some("http://a:1/v1"), "{url}");
        }
        assert_eq!(corrected("https://a/openai").as_deref(), Some("https://a/openai/v1"));
        assert_eq!(corrected("http://a:1/v1/"), None);
    }
}
