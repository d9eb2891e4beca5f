//! The commands for projects, API keys, searches and backups, which work on the database directly, whether a server uses it or
//! not; and those that install the code interpreter.

pub mod backup;
pub mod check;
pub mod code_interpreter;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::access;
use crate::api::Scope;
use crate::api::Timestamp;
use crate::api::error::Error as ApiError;
use crate::api::id::{ApiKeyId, Id as _, Ids, ProjectId, VectorStoreId};
use crate::api::organization::api_key::{AdminApiKeyObject, CreateAdminApiKey, KeyHolder, ProjectApiKeyObject};
use crate::api::organization::audit_log::Actor;
use crate::api::organization::project::{CreateProject, DEFAULT_PROJECT, Project, ProjectObject};
use crate::api::organization::{ApiKey, Change, NewKey, ProjectApiKey};
use crate::api::page::{Order, Page, PageQuery};
use crate::api::rule::Request as _;
use crate::clock::Clock;
use crate::retrieval::search::{self, Query, Retrieval};
use crate::store::{self, NewApiKey, Store};

/// Elements that are read at once.
const PAGE: u32 = 100;
/// Characters of a text that a table shows.
const SHOWN_CHARS: usize = 100;

/// The commands for projects.
#[derive(Debug, Subcommand)]
pub enum ProjectsCommand {
    /// Create a project and print its ID.
    Create {
        /// The name of the project.
        name: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the active projects.
    List {
        /// List archived projects as well.
        #[arg(long)]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Archive a project. Its keys are rejected from then on. This cannot be undone.
    Archive {
        /// The ID or the name of the project.
        project: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// The commands for API keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Create a key and print it. It is not stored, so it cannot be shown again.
    Create(CreateKey),
    /// List the keys, without the keys themselves.
    List {
        /// List only the keys of this project: its ID or its name.
        #[arg(long, value_name = "PROJECT", conflicts_with = "admin")]
        project: Option<String>,
        /// List only the keys of administrators.
        #[arg(long)]
        admin: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key. Servers reject it within five seconds.
    Revoke {
        /// The ID of the key: key_...
        key: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// The arguments of `search`.
#[derive(Debug, Args)]
pub struct SearchArguments {
    /// The ID of the vector store: vs_...
    store: String,
    /// The question.
    question: String,
    /// The project: its ID or its name. The default is the default project.
    #[arg(long, value_name = "PROJECT")]
    project: Option<String>,
    /// Maximum number of chunks.
    #[arg(long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    limit: u16,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The arguments of `keys create`.
#[derive(Debug, Args)]
pub struct CreateKey {
    /// The project: its ID or its name. The default is the default project.
    #[arg(long, value_name = "PROJECT", conflicts_with = "admin")]
    project: Option<String>,
    /// Create a key for the administration (/v1/organization) instead of a project.
    #[arg(long)]
    admin: bool,
    /// The name of the key, shown in lists.
    #[arg(long, default_value = "command line")]
    name: String,
    /// When the key expires: a number of seconds, or a number with m, h or d, such as 30d. The default is never.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    expires_in: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A value is invalid.
    #[error(transparent)]
    Invalid(#[from] ApiError),
    /// The operating system provides no random bytes.
    #[error("failed to generate a key: {0}")]
    Random(#[from] getrandom::Error),
    /// Several projects have the name.
    #[error("{count} projects are named \"{name}\"; use the ID of one of them: {ids}")]
    AmbiguousName {
        /// The name.
        name: String,
        /// How many projects have it.
        count: usize,
        /// Their IDs.
        ids: String,
    },
    /// The search failed.
    #[error(transparent)]
    Search(#[from] search::Error),
    /// The project does not exist.
    #[error("there is no project with the ID or name \"{0}\"; `assistd projects list` lists the projects")]
    NoProject(String),
    /// The key does not exist.
    #[error("there is no key with the ID \"{0}\"; `assistd keys list` lists the keys")]
    NoKey(String),
}

/// What a command prints.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    /// The result, for standard output.
    pub result: String,
    /// A note for people, for standard error.
    pub note: Option<String>,
}

impl Output {
    fn of(result: String) -> Self {
        Self { result, note: None }
    }

    fn json(value: &Value) -> Self {
        Self::of(format!("{value:#}\n"))
    }
}

/// Runs commands on a database.
#[derive(Debug)]
pub struct Commands {
    store: Arc<dyn Store>,
    clock: Arc<Clock>,
    ids: Ids,
}

impl Commands {
    /// Creates the commands for a database.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Arc<Clock>) -> Self {
        Self { store, clock, ids: Ids::unique_everywhere() }
    }

    /// Runs a command for projects.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn projects(&self, command: &ProjectsCommand) -> Result<Output, Error> {
        match command {
            ProjectsCommand::Create { name, json } => {
                let request = CreateProject::parse(json!({"name": name}))?;
                let project = request.into_project(self.ids.generate(), self.clock.now());
                self.store.create_project(&project, &self.change()).await?;
                Ok(project_output(&project, *json))
            }
            ProjectsCommand::List { all, json } => {
                let projects = self.all_projects(*all).await?;
                if *json {
                    return Ok(json_list(projects.iter().map(ProjectObject::from)));
                }
                let rows = projects.iter().map(|project| {
                    [project.id.as_str(), &project.name, project.status(), &date(Some(project.created_at), "")]
                        .map(str::to_owned)
                });
                Ok(Output::of(table(["ID", "NAME", "STATUS", "CREATED"], rows)))
            }
            ProjectsCommand::Archive { project, json } => {
                let project = self.find_project(project).await?;
                if project.id.as_str() == DEFAULT_PROJECT {
                    return Err(Project::default_project_error().into());
                }
                let project = self.store.archive_project(&project.id, &self.change()).await?;
                Ok(project_output(&project, *json))
            }
        }
    }

    /// Runs a command for API keys.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn keys(&self, command: &KeysCommand) -> Result<Output, Error> {
        match command {
            KeysCommand::Create(arguments) => self.create_key(arguments).await,
            KeysCommand::List { project, admin, json } => self.list_keys(project.as_deref(), *admin, *json).await,
            KeysCommand::Revoke { key, json } => {
                self.revoke_key(key).await?;
                if *json {
                    Ok(Output::json(&json!({"id": key, "deleted": true})))
                } else {
                    Ok(Output::of(String::new()))
                }
            }
        }
    }

    /// Searches a vector store, and prints the chunks with the parts of their scores.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn search(&self, retrieval: &Retrieval, arguments: &SearchArguments) -> Result<Output, Error> {
        let SearchArguments { store, question, project, limit, json } = arguments;
        let scope = Scope::of(self.find_project(project.as_deref().unwrap_or(DEFAULT_PROJECT)).await?.id);
        let id = VectorStoreId::parse(store, "store")?;
        let query = Query::new(vec![question.clone()], usize::from(*limit));
        let found = retrieval.search(&scope, &[id], &query).await?;
        let note = found.lexical_only.as_ref().map(|reason| format!("Only words were compared: {reason}."));
        if *json {
            let hits = found.hits.iter().map(|hit| {
                json!({
                    "score": hit.score, "lexical": hit.lexical, "vector": hit.vector, "file_id": hit.file_id,
                    "filename": hit.filename, "chunk": hit.number, "attributes": hit.attributes, "text": hit.text,
                })
            });
            return Ok(Output { note, ..json_list(hits) });
        }
        let rows = found.hits.iter().enumerate().map(|(index, hit)| {
            [
                (index + 1).to_string(),
                format!("{:.3}", hit.score),
                format!("{:.3}", hit.lexical),
                hit.vector.map_or_else(|| "-".to_owned(), |vector| format!("{vector:.3}")),
                one_line(&hit.filename),
                hit.number.to_string(),
                one_line(&hit.text),
            ]
        });
        let head = ["RANK", "SCORE", "LEXICAL", "VECTOR", "FILE", "CHUNK", "TEXT"];
        Ok(Output { result: table(head, rows), note })
    }

    async fn create_key(&self, arguments: &CreateKey) -> Result<Output, Error> {
        let CreateKey { project, admin, name, expires_in, json } = arguments;
        // The rules of names and times are those of the API.
        let request = CreateAdminApiKey::parse(json!({"name": name, "expires_in_seconds": expires_in}))?;
        let holder = if *admin {
            KeyHolder::Organization
        } else {
            KeyHolder::Project(self.find_project(project.as_deref().unwrap_or(DEFAULT_PROJECT)).await?.id)
        };
        let secret = NewKey::generate(holder.kind(), &access::keys::random_bytes()?);
        let now = self.clock.now();
        let key = ApiKey::new(self.ids.generate(), &secret, request.name, request.expires_in_seconds, now);
        let new = NewApiKey { secret: &secret, key: &key, holder: &holder };
        self.store.create_key(&new, &self.change()).await?;
        let place = holder.project().map_or_else(|| "the administration".to_owned(), |id| format!("project {id}"));
        if *json {
            let project = holder.project();
            return Ok(Output::json(&json!({
                "id": key.id, "value": secret.expose(), "name": key.name, "project_id": project,
                "created_at": key.created_at, "expires_at": key.expires_at,
            })));
        }
        let expires = date(key.expires_at, "never");
        let note = format!("Key {} of {place}, expires: {expires}. It is not stored, so save it now.", key.id);
        Ok(Output { result: format!("{}\n", secret.expose()), note: Some(note) })
    }

    async fn list_keys(&self, project: Option<&str>, admin: bool, json: bool) -> Result<Output, Error> {
        let projects = match project {
            Some(project) => vec![self.find_project(project).await?],
            None if admin => Vec::new(),
            None => self.all_projects(true).await?,
        };
        let admin_keys = if project.is_none() { self.all_admin_keys().await? } else { Vec::new() };
        let mut keys: Vec<(&str, ProjectApiKey)> = Vec::new();
        for project in &projects {
            keys.extend(self.all_keys(&project.id).await?.into_iter().map(|key| (project.id.as_str(), key)));
        }
        if json {
            let of_admin = admin_keys.iter().map(|key| json!(AdminApiKeyObject::from(key)));
            let of_projects = keys.iter().map(|(project, key)| {
                let mut object = json!(ProjectApiKeyObject::from(key));
                object["project_id"] = json!(project);
                object
            });
            return Ok(json_list(of_admin.chain(of_projects)));
        }
        let admin_rows = admin_keys.iter().map(|key| key_row("(administration)", key));
        let rows = admin_rows.chain(keys.iter().map(|(project, key)| key_row(project, &key.key)));
        Ok(Output::of(table(["ID", "PROJECT", "NAME", "KEY", "LAST USED", "EXPIRES"], rows)))
    }

    /// Deletes a key of any kind.
    async fn revoke_key(&self, key: &str) -> Result<(), Error> {
        let id = ApiKeyId::parse(key, "key")?;
        if self.store.revoke_key(&id, &self.change()).await? { Ok(()) } else { Err(Error::NoKey(key.to_owned())) }
    }

    /// Returns a project by its ID or its name. An archived project is found only by its ID.
    async fn find_project(&self, text: &str) -> Result<Project, Error> {
        if let Ok(id) = ProjectId::parse(text, "project")
            && let Some(project) = self.store.project(&id).await?
        {
            return Ok(project);
        }
        let mut named: Vec<Project> =
            self.all_projects(false).await?.into_iter().filter(|project| project.name == text).collect();
        match named.len() {
            0 => Err(Error::NoProject(text.to_owned())),
            1 => Ok(named.remove(0)),
            count => {
                let ids = named.iter().map(|project| project.id.as_str()).collect::<Vec<_>>().join(", ");
                Err(Error::AmbiguousName { name: text.to_owned(), count, ids })
            }
        }
    }

    async fn all_projects(&self, include_archived: bool) -> Result<Vec<Project>, store::Error> {
        all(async |query| self.store.list_projects(include_archived, &query).await, |project| project.id.as_str()).await
    }

    async fn all_admin_keys(&self) -> Result<Vec<ApiKey>, store::Error> {
        all(async |query| self.store.list_admin_keys(&query).await, |key| key.id.as_str()).await
    }

    async fn all_keys(&self, project: &ProjectId) -> Result<Vec<ProjectApiKey>, store::Error> {
        all(async |query| self.store.list_project_keys(project, None, &query).await, |key| key.key.id.as_str()).await
    }

    fn change(&self) -> Change {
        Change { actor: Actor::CommandLine, request_id: String::new(), at: self.clock.now() }
    }
}

/// Reads all pages of a list, oldest first.
async fn all<T>(
    list: impl AsyncFn(PageQuery) -> Result<Page<T>, store::Error>,
    id: impl Fn(&T) -> &str,
) -> Result<Vec<T>, store::Error> {
    let mut found: Vec<T> = Vec::new();
    loop {
        let after = found.last().map(|last| id(last).to_owned());
        let query = PageQuery { limit: PAGE, order: Order::Ascending, after, before: None };
        let page = list(query).await?;
        found.extend(page.data);
        if !page.has_more {
            return Ok(found);
        }
    }
}

fn project_output(project: &Project, json: bool) -> Output {
    if json { Output::json(&json!(ProjectObject::from(project))) } else { Output::of(format!("{}\n", project.id)) }
}

fn json_list(objects: impl Iterator<Item = impl serde::Serialize>) -> Output {
    Output::json(&Value::Array(objects.map(|object| json!(object)).collect()))
}

fn key_row(project: &str, key: &ApiKey) -> [String; 6] {
    [
        key.id.to_string(),
        project.to_owned(),
        key.name.clone(),
        key.redacted_value.clone(),
        date(key.last_used_at, "never"),
        date(key.expires_at, "never"),
    ]
}

/// Returns the start of a text in one line, without control characters.
fn one_line(text: &str) -> String {
    let visible = |character: char| if character.is_control() { ' ' } else { character };
    // Enough for the columns of a wide terminal.
    let start: String = text.chars().take(4 * SHOWN_CHARS).map(visible).collect();
    let words = start.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", words[..end].trim_end()),
        None => words,
    }
}

/// Formats a time as a date in HTTP's form.
fn date(time: Option<Timestamp>, none: &str) -> String {
    let seconds = time.map(|time| u64::try_from(time.0).unwrap_or(0));
    seconds
        .map_or_else(|| none.to_owned(), |seconds| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds)))
}

/// Formats rows as a table whose columns are as wide as their longest value.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(text, "{}", line.trim_end()).expect("writing to a string does not fail");
    }
    text
}

/// Parses a duration: a number of seconds, or a number with m, h or d.
fn seconds(text: &str) -> Result<u32, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        unit => return Err(format!("\"{unit}\" is not a unit of time; use s, m, h or d")),
    };
    let number: u32 =
        digits.parse().map_err(|_| format!("\"{text}\" is not a number with s, m, h or d, such as 30d"))?;
    number.checked_mul(factor).ok_or_else(|| format!("\"{text}\" is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let of = |text| seconds(text).ok();

        assert_eq!(["90", "90s", "2m", "1h", "30d"].map(of), [90, 90, 120, 3_600, 2_592_000].map(Some));
        assert_eq!(["", "d", "1w", "x", "-1", "99999d"].map(of), [None; 6]);
    }

    #[test]
    fn a_table_is_as_wide_as_its_values() {
        let rows = [["a".to_owned(), "long name".to_owned()], ["long id".to_owned(), "b".to_owned()]];

        assert_eq!(table(["ID", "NAME"], rows.into_iter()), "ID       NAME\na        long name\nlong id  b\n");
    }
}
