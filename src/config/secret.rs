//! Secrets in the settings, which cannot be printed.

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, Serializer};

use crate::llm::MASK;

/// A key. Debug and serialized forms are masked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(SecretString);

impl Secret {
    /// Returns the key.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Returns the key, or `None` if it is empty.
    #[must_use]
    pub fn into_option(self) -> Option<SecretString> {
        (!self.expose().is_empty()).then_some(self.0)
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.expose().is_empty() { "" } else { MASK })
    }
}

/// A URL that may contain a password or a key. Debug and serialized forms mask the password and the query.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(SecretString);

impl SecretUrl {
    /// Returns the URL.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Returns the URL with its password and its query masked. A text that is not a URL is masked as a whole, except a
    /// SQLite path; and so is a URL with an @ behind the host, where a password with a / that is not encoded would end.
    #[must_use]
    pub fn masked(&self) -> String {
        let text = self.expose();
        if text.is_empty() || text.starts_with("sqlite:") {
            return text.to_owned();
        }
        let Ok(mut url) = reqwest::Url::parse(text) else { return MASK.to_owned() };
        let is_http = matches!(url.scheme(), "http" | "https");
        let behind_host = [Some(url.path()), url.query(), url.fragment()];
        if !url.has_host() || behind_host.into_iter().flatten().any(|part| part.contains('@')) {
            return MASK.to_owned();
        }
        let has_secret = url.password().is_some()
            || url.query().is_some_and(|query| !query.is_empty())
            || url.fragment().is_some()
            || is_http && !url.username().is_empty();
        if !has_secret {
            return text.to_owned();
        }
        url.set_fragment(None);
        if is_http {
            // Some servers take a key as the user name.
            if url.password().is_none() && !url.username().is_empty() && url.set_username(MASK).is_err() {
                return MASK.to_owned();
            }
        }
        if url.password().is_some() && url.set_password(Some(MASK)).is_err() {
            return MASK.to_owned();
        }
        let names: Vec<String> = url.query_pairs().map(|(name, _)| format!("{name}={MASK}")).collect();
        if !names.is_empty() {
            url.set_query(Some(&names.join("&")));
        }
        url.to_string()
    }
}

impl std::fmt::Debug for SecretUrl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.masked())
    }
}

impl PartialEq for SecretUrl {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.masked())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password_and_the_values_of_its_query() {
        let masked = |text: &str| SecretUrl(text.into()).masked();

        assert_eq!(masked("postgres://user:secret@host/name"), "postgres://user:***@host/name");
        assert_eq!(masked("https://host/v1?key=secret&x=1"), "https://host/v1?key=***&x=***");
        assert_eq!(masked("sqlite://data/a.db"), "sqlite://data/a.db");
        assert_eq!(masked("http://host:1/v1"), "http://host:1/v1");
        assert_eq!(masked("http://sk-key@host/v1#sk-fragment"), "http://***@host/v1");
        assert_eq!(masked("user:secret@host/name with space"), "***");
        assert_eq!(masked("postgres://user:12/3@host/name"), "***");
        assert_eq!(masked("postgres://user:12?3@host/name"), "***");
        assert_eq!(masked("postgres://user:12#3@host/name"), "***");
        assert_eq!(masked("http://user:12/3@host/v1"), "***");
        assert_eq!(masked("sqlite:///data/a?b@c.db"), "sqlite:///data/a?b@c.db");
        assert_eq!(masked(""), "");
    }

    #[test]
    fn a_key_is_never_shown() {
        let key = Secret("sk-secret".into());

        assert!(!format!("{key:?}").contains("sk-secret"));
        assert_eq!(toml::Value::try_from(&key).unwrap().as_str(), Some(MASK));
    }
}
