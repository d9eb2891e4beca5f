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
/// A chat model that most machines can run.
pub(super) const SUGGESTED_MODEL: &str = "qwen3:8b";
/// The port of Ollama.
const OLLAMA_PORT: u16 = 11434;
/// The owner of models in Ollama's lists.
const OLLAMA_OWNER: &str = "library";
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
    /// Whether it lists its models at a URL that ends in `/v1`, and not at the one in the settings.
    lacks_v1: bool,
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
        let parsed = Url::parse(url).ok();
        let answered = tokio::time::timeout(TIMEOUT, configured.list()).await;
        let lacks_v1 = match (&answered, parsed.as_ref().and_then(with_v1)) {
            (Ok(Err(error)), Some(other)) if error.cause().status.is_none_or(|status| [404, 405].contains(&status)) => {
                matches!(tokio::time::timeout(TIMEOUT, server(other.as_str()).list()).await, Ok(Ok(_)))
            }
            _ => false,
        };
        let models = answered.unwrap_or_else(|_| {
            let (subject, seconds) = (configured.subject(), TIMEOUT.as_secs());
            let text = format!("{subject} does not respond within {seconds} s. Check that it runs.");
            Err(Error::Unavailable(text.into()))
        });
        let lists_library = |models: &Vec<ModelObject>| models.iter().any(|model| model.owned_by == OLLAMA_OWNER);
        let is_ollama =
            parsed.is_some_and(|url| url.port() == Some(OLLAMA_PORT)) || models.as_ref().is_ok_and(lists_library);
        Self { server: Arc::new(configured), models, purpose, lacks_v1, is_ollama }
    }

    /// Returns what an operator should know or change, as a sentence that names the server; always if it did not list its
    /// models. It has no secrets.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        let subject = self.server.subject();
        if self.lacks_v1 {
            return Some(format!(
                "{subject} lists its models at a URL that ends in /v1. Change its URL in the settings."
            ));
        }
        match &self.models {
            Err(error) if error.has_no_list() => {
                Some(format!("{subject} does not list its models. Check that its URL in the settings ends in /v1."))
            }
            Err(error) => {
                let hint = match error.cause().status {
                    // These texts have a hint.
                    None => return Some(error.for_log().to_owned()),
                    Some(401 | 403) => "Check its API key in the settings.",
                    Some(_) => "Check that its URL in the settings is correct.",
                };
                Some(format!("{}. {hint}", error.for_log().trim_end_matches('.')))
            }
            Ok(models) if self.purpose == Purpose::Embeddings || first_chat_model(models).is_some() => None,
            Ok(_) if self.is_ollama => {
                Some(format!("{subject} is Ollama, and has no chat model. Run `{}`.", pull(SUGGESTED_MODEL)))
            }
            Ok(_) => Some(format!(
                "{subject} lists no chat model. Load one in it, or set default_model to a name that it accepts."
            )),
        }
    }

    /// Returns whether the server works, although it does not list its models, as far as this shows.
    #[must_use]
    pub fn may_work(&self) -> bool {
        match &self.models {
            Ok(_) => true,
            Err(error) => error.has_no_list() && !self.lacks_v1,
        }
    }

    /// Returns the first embedding model that the server lists.
    #[must_use]
    pub fn embedding_model(&self) -> Option<String> {
        self.models.as_ref().ok().and_then(|models| first_embedding_model(models))
    }
}

/// Returns a warning if none of the servers lists a model of the settings. Returns `None` if a server does not list its models.
#[must_use]
pub fn unlisted(setting: &str, model: &str, inspections: &[&Inspection]) -> Option<String> {
    let lists: Option<Vec<&[ModelObject]>> = inspections.iter().map(|found| found.models.as_deref().ok()).collect();
    let lists = lists.filter(|lists| !lists.is_empty())?;
    if model.is_empty() || lists.iter().any(|models| is_listed(models, model)) {
        return None;
    }
    let mut text = format!("{setting} is \"{model}\", which no model server lists ({}).", names(&lists));
    if inspections.iter().any(|found| found.is_ollama) {
        let _ = write!(text, " Run `{}`, or change {setting}.", pull(model));
    }
    Some(text)
}

/// Returns the number of models in some lists, and the first names.
#[must_use]
pub fn names(lists: &[&[ModelObject]]) -> String {
    let names: Vec<&str> = lists.iter().copied().flatten().map(|model| model.id.as_str()).collect();
    match names.len() {
        0 => "no models".to_owned(),
        count if count > NAMES_MAX => format!("{count} models: {}, …", names[..NAMES_MAX].join(", ")),
        count => format!("{count} models: {}", names.join(", ")),
    }
}

/// Returns the command that adds a model to Ollama.
pub(super) fn pull(model: &str) -> String {
    format!("ollama pull {model}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_v1_is_corrected() {
        let corrected = |url: &str| with_v1(&Url::parse(url).unwrap()).map(String::from);

        for url in ["http://a:1", "http://a:1/", "http://a:1/v1/chat/completions", "http://a:1/v1/models/"] {
            assert_eq!(corrected(url).as_deref(), Some("http://a:1/v1"), "{url}");
        }
        assert_eq!(corrected("http://u:p@a:1/v1/models?k=1").as_deref(), Some("http://u:p@a:1/v1?k=1"));
        assert_eq!(corrected("https://a/openai").as_deref(), Some("https://a/openai/v1"));
        assert_eq!(corrected("http://a:1/v1/"), None);
    }
}
