//! Python package indexes: which one the user has, what it lists, and downloads from it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use html5gum::{Token, Tokenizer};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Client, Response, Url};
use serde::Deserialize;

use super::artifact::Artifact;
use crate::host::is_loopback;

/// The index if none is configured.
const DEFAULT: &str = "https://pypi.org/simple";
/// Forms of the list of a package's files, PEP 691 and PEP 503.
const FORMS: &str = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";
/// Maximum size of the list of a package's files.
const PAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Maximum size of a pip.conf.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time between two pieces of a response.
const READ_TIMEOUT: Duration = Duration::from_mins(1);
/// Waits before the attempts after a failed connection or a 5xx.
const RETRY_WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// Why a package cannot be downloaded. Messages contain no credentials.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The index has an invalid URL.
    #[error("{origin} is not the URL of a Python package index")]
    InvalidUrl {
        /// Where the URL is configured.
        origin: String,
    },
    /// A request failed.
    #[error("failed to read {url}")]
    Request {
        /// The URL.
        url: String,
        /// The cause, without the URL.
        #[source]
        source: reqwest::Error,
    },
    /// The index responds with an error.
    #[error("{url} responds with {status}")]
    Status {
        /// The URL.
        url: String,
        /// The status.
        status: reqwest::StatusCode,
    },
    /// The index does not have the file.
    #[error("{url} does not list {file_name}")]
    NotListed {
        /// The URL of the list.
        url: String,
        /// The name of the file.
        file_name: String,
    },
    /// The list of files cannot be read.
    #[error("{url} is not a list of a package's files: {reason}")]
    InvalidList {
        /// The URL of the list.
        url: String,
        /// Why.
        reason: String,
    },
}

/// A Python package index with a simple repository API.
#[derive(Debug)]
pub struct Index {
    client: Client,
    /// May contain credentials.
    url: Url,
}

impl Index {
    /// Finds the user's index: in the variables of pip and uv, in the files of pip, otherwise `PyPI`.
    ///
    /// # Errors
    /// [`Error::InvalidUrl`].
    pub fn of_user(environment: &BTreeMap<String, String>) -> Result<Self, Error> {
        let (origin, url) = configured(environment).unwrap_or_else(|| (String::new(), DEFAULT.to_owned()));
        Self::new(&url).ok_or(Error::InvalidUrl { origin })
    }

    /// Opens the index with a URL. Returns `None` if the URL is invalid.
    #[must_use]
    pub fn new(url: &str) -> Option<Self> {
        let url = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
        // Fails if a provider is already installed, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        #[expect(clippy::disallowed_methods, reason = "the only place that creates clients for package indexes")]
        let mut client = Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT);
        if url.host_str().is_some_and(is_loopback) {
            // A proxy cannot reach this machine's loopback.
            client = client.no_proxy();
        }
        Some(Self { client: client.build().ok()?, url })
    }

    /// Returns the URL without credentials.
    #[must_use]
    pub fn display_url(&self) -> String {
        masked(&self.url)
    }

    /// Requests a package's file. The body is not checked.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn download(&self, artifact: &Artifact) -> Result<Response, Error> {
        let mut page_url = self.url.clone();
        if let Ok(mut segments) = page_url.path_segments_mut() {
            segments.pop_if_empty().push(artifact.name).push("");
        }
        let url = self.find(page_url, artifact).await?;
        self.get(url, "*/*").await
    }

    /// Returns the URL of a file in the list of a package.
    async fn find(&self, page_url: Url, artifact: &Artifact) -> Result<Url, Error> {
        let mut response = self.get(page_url, FORMS).await?;
        // Links are relative to where redirects led.
        let url = response.url().clone();
        let invalid = |reason: String| Error::InvalidList { url: masked(&url), reason };
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let is_json = content_type.is_some_and(|value| value.contains("json"));
        let mut page = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| failed(&url, error))? {
            page.extend_from_slice(&piece);
            if page.len() > PAGE_BYTES_MAX {
                return Err(invalid(format!("it is larger than {PAGE_BYTES_MAX} bytes")));
            }
        }
        let link =
            if is_json { link_in_json(&page, artifact).map_err(invalid)? } else { link_in_html(&page, artifact) };
        let link =
            link.ok_or_else(|| Error::NotListed { url: masked(&url), file_name: artifact.file_name.to_owned() })?;
        let mut file_url =
            url.join(&link).map_err(|_| invalid(format!("it has an invalid link to {}", artifact.file_name)))?;
        if file_url.origin() == self.url.origin() && file_url.username().is_empty() {
            // As pip does. The client sends them in a header.
            let _ = file_url.set_username(self.url.username());
            let _ = file_url.set_password(self.url.password());
        }
        Ok(file_url)
    }

    async fn get(&self, url: Url, accept: &str) -> Result<Response, Error> {
        let mut waits = RETRY_WAITS.iter();
        loop {
            let result = self.client.get(url.clone()).header(ACCEPT, accept).send().await;
            let error = match result {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => Error::Status { url: masked(&url), status: response.status() },
                Err(error) => failed(&url, error),
            };
            let helps = match &error {
                Error::Status { status, .. } => status.is_server_error(),
                Error::Request { source, .. } => source.is_connect() || source.is_timeout(),
                Error::InvalidUrl { .. } | Error::NotListed { .. } | Error::InvalidList { .. } => false,
            };
            match waits.next() {
                Some(wait) if helps => tokio::time::sleep(*wait).await,
                _ => return Err(error),
            }
        }
    }
}

/// Returns the error of a request, without credentials.
pub(super) fn failed(url: &Url, error: reqwest::Error) -> Error {
    Error::Request { url: masked(url), source: error.without_url() }
}

/// Returns a URL without user, password, query and fragment, which can be credentials.
fn masked(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

fn link_in_json(page: &[u8], artifact: &Artifact) -> Result<Option<String>, String> {
    #[derive(Deserialize)]
    struct List {
        files: Vec<File>,
    }
    #[derive(Deserialize)]
    struct File {
        filename: String,
        url: String,
    }
    let list: List = serde_json::from_slice(page).map_err(|error| error.to_string())?;
    Ok(list.files.into_iter().find(|file| file.filename == artifact.file_name).map(|file| file.url))
}

/// Finds the link whose path ends in the name of the file, with or without `<base>`.
fn link_in_html(page: &[u8], artifact: &Artifact) -> Option<String> {
    let mut base: Option<Url> = None;
    for token in Tokenizer::new(page) {
        let Ok(Token::StartTag(tag)) = token else { continue };
        let Some(link) = tag.attributes.get(b"href".as_slice()) else { continue };
        let link = String::from_utf8_lossy(link).into_owned();
        match tag.name.as_slice() {
            b"base" => base = Url::parse(&link).ok(),
            b"a" if link.split(['#', '?']).next()?.rsplit('/').next() == Some(artifact.file_name) => {
                return Some(base.and_then(|base| base.join(&link).ok()).map_or(link, String::from));
            }
            _ => {}
        }
    }
    None
}

/// Returns where the user's index is configured, and its URL.
fn configured(environment: &BTreeMap<String, String>) -> Option<(String, String)> {
    let variable = |name: &str| environment.get(name).filter(|value| !value.is_empty());
    for name in ["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"] {
        if let Some(url) = variable(name) {
            return Some((name.to_owned(), url.clone()));
        }
    }
    config_files(environment).into_iter().find_map(|path| {
        let url = index_url(&read_config(&path)?)?;
        Some((format!("index-url in {}", path.display()), url))
    })
}

/// Returns the files of pip that can exist, the most important first.
fn config_files(environment: &BTreeMap<String, String>) -> Vec<PathBuf> {
    let folder = |name: &str| environment.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = folder("PIP_CONFIG_FILE");
    if named.as_deref() == Some(Path::new("/dev/null")) {
        return Vec::new();
    }
    let home = folder("HOME");
    let user = folder("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
    [
        named,
        folder("VIRTUAL_ENV").map(|folder| folder.join("pip.conf")),
        user.map(|folder| folder.join("pip/pip.conf")),
        home.map(|home| home.join(".pip/pip.conf")),
        Some(PathBuf::from("/etc/xdg/pip/pip.conf")),
        Some(PathBuf::from("/etc/pip.conf")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn read_config(path: &Path) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > CONFIG_BYTES_MAX {
        return None;
    }
    std::fs::read_to_string(path).ok()
}

/// Returns the index in the text of a pip.conf.
fn index_url(config: &str) -> Option<String> {
    let mut section = String::new();
    let mut found = None;
    for line in config.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.trim().to_lowercase();
        } else if let Some((key, value)) = line.split_once(['=', ':'])
            && matches!(section.as_str(), "global" | "install")
            && matches!(key.trim().to_lowercase().replace('_', "-").as_str(), "index-url")
        {
            // The section of the command has precedence.
            if found.is_none() || section == "install" {
                found = Some(value.trim().to_owned());
            }
        }
    }
    found.filter(|url| !url.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::artifact::PYTHON;
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_index_is_read_from_the_environment_first() {
        let both = environment(&[("UV_INDEX_URL", "https://uv"), ("PIP_INDEX_URL", "https://pip")]);

        assert_eq!(configured(&both), Some(("PIP_INDEX_URL".to_owned(), "https://pip".to_owned())));
        let none = Index::of_user(&environment(&[("PIP_CONFIG_FILE", "/dev/null")])).unwrap();
        assert_eq!(none.display_url(), DEFAULT);
    }

    #[test]
    fn the_index_is_read_from_the_file_of_pip() {
        let config = "; a comment\n[global]\ntimeout = 60\nindex_url: https://a/simple\n[install]\nindex-url = https://b/simple\n[list]\nindex-url = https://c";

        assert_eq!(index_url(config).as_deref(), Some("https://b/simple"));
        assert_eq!(index_url("[global]\n#index-url = https://a\n"), None);
        assert_eq!(
            index_url("[global]\nindex-url = https://user:word@a/simple"),
            Some("https://user:word@a/simple".into())
        );
    }

    #[test]
    fn an_invalid_url_is_reported_by_where_it_is_configured() {
        let error = Index::of_user(&environment(&[("PIP_INDEX_URL", "user:secret@host")])).unwrap_err();

        assert_eq!(error.to_string(), "PIP_INDEX_URL is not the URL of a Python package index");
    }

    #[test]
    fn links_are_found_in_html_with_a_base_and_without() {
        let name = PYTHON.file_name;
        let link = |page: String| link_in_html(page.as_bytes(), &PYTHON);

        assert_eq!(link(format!("<a href='x/{name}#sha256=00'>{name}</a>")), Some(format!("x/{name}#sha256=00")));
        assert_eq!(
            link(format!("<base href='https://h/y/'><a href=other.whl></a><A HREF='{name}'>")),
            Some(format!("https://h/y/{name}"))
        );
        assert_eq!(link(format!("<p>{name}</p><a href='{name}.asc'>x</a>")), None);
    }

    #[test]
    fn urls_are_shown_without_credentials() {
        let url = Url::parse("https://user:secret@host:1/simple/?token=secret#secret").unwrap();

        assert_eq!(masked(&url), "https://host:1/simple/");
    }
}
