//! The usage ledger: the calls of models, the queries about their tokens and about the sizes of vector stores, and the time
//! buckets of the answers.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::Serialize;

use super::project::Scope;
use crate::api::error::Error;
use crate::api::id::{ApiKeyId, AssistantId, RunId, ThreadId};
use crate::api::rule::{At, missing, out_of_range, unsupported_value};
use crate::api::run::RunSpec;
use crate::api::time::Timestamp;
use crate::api::usage::Usage;

/// Maximum number of values of one filter, such as `models`.
const FILTER_VALUES_MAX: usize = 100;
/// The latest time that a query can name: the end of the year 9999.
const TIME_MAX: i64 = 253_402_300_799;
/// Seconds of a day. Rows of the ledger are rolled up by days of this length, in UTC.
pub const DAY_S: i64 = 86_400;

/// The kinds of model calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallKind {
    /// A chat completion: a turn of a run, or a forwarded request.
    Completions,
    /// A forwarded request for embeddings.
    Embeddings,
}

impl CallKind {
    /// Returns the name in the database and in paths.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
        }
    }
}

/// What a query is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageKind {
    /// Model calls of a kind.
    Calls(CallKind),
    /// The size of vector stores. Their only fields are the projects, and their buckets are days.
    VectorStores,
    /// The sessions of the code interpreter. Their only fields are the projects.
    CodeInterpreterSessions,
}

impl From<CallKind> for UsageKind {
    fn from(kind: CallKind) -> Self {
        Self::Calls(kind)
    }
}

/// One call of a model, as it is recorded in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCall {
    /// The kind of the call.
    pub kind: CallKind,
    /// The project of the caller.
    pub scope: Scope,
    /// The API key of the caller, if it is stored.
    pub api_key_id: Option<ApiKeyId>,
    /// The run that made the call, with its assistant and thread; `None` for a forwarded request.
    pub origin: Option<CallOrigin>,
    /// The requested model name.
    pub model: String,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Those of the prompt's tokens that the model server had cached.
    pub cached_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// Whether the caller has the whole answer. False for a call that failed, was cancelled, or was lost with its server.
    pub stood: bool,
}

/// The run that made a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallOrigin {
    /// The assistant.
    pub assistant_id: AssistantId,
    /// The thread.
    pub thread_id: ThreadId,
    /// The run.
    pub run_id: RunId,
}

impl CallOrigin {
    /// Returns the origin of the calls of a run.
    #[must_use]
    pub fn of(spec: &RunSpec) -> Self {
        let (assistant_id, thread_id) = (spec.assistant_id.clone(), spec.thread_id.clone());
        Self { assistant_id, thread_id, run_id: spec.id.clone() }
    }
}

impl ModelCall {
    /// Creates the call of a run's turn.
    #[must_use]
    pub fn of_run(spec: &RunSpec, usage: Usage, stood: bool) -> Self {
        Self {
            kind: CallKind::Completions,
            scope: spec.scope.clone(),
            api_key_id: spec.api_key_id.clone(),
            origin: Some(CallOrigin::of(spec)),
            model: spec.model.clone(),
            input_tokens: usage.prompt_tokens,
            cached_tokens: usage.prompt_token_details.cached_tokens,
            output_tokens: usage.completion_tokens,
            stood,
        }
    }
}

/// The width of a time bucket. Buckets are aligned to their width, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketWidth {
    /// `1m`
    Minute,
    /// `1h`
    Hour,
    /// `1d`, the default.
    Day,
}

impl BucketWidth {
    /// Returns the width in seconds.
    #[must_use]
    pub fn seconds(self) -> i64 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => DAY_S,
        }
    }

    /// Returns the default and the maximum number of buckets of a page.
    fn limits(self) -> (u32, u32) {
        match self {
            Self::Minute => (60, 1_440),
            Self::Hour => (24, 168),
            Self::Day => (7, 31),
        }
    }
}

/// Fields by which usage can be grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupField {
    /// `project_id`
    Project,
    /// `api_key_id`
    ApiKey,
    /// `model`
    Model,
    /// `assistant_id`, which the service does not have.
    Assistant,
    /// `thread_id`, which the service does not have.
    Thread,
    /// `user_id`: always null, because there are no users.
    User,
    /// `batch`: always false, because there are no batches.
    Batch,
    /// `service_tier`: always null.
    ServiceTier,
}

/// The names of the fields. Batches and service tiers exist for completions only, and only projects for vector stores.
const GROUP_FIELDS: [(&str, GroupField); 8] = [
    ("project_id", GroupField::Project),
    ("user_id", GroupField::User),
    ("api_key_id", GroupField::ApiKey),
    ("model", GroupField::Model),
    ("assistant_id", GroupField::Assistant),
    ("thread_id", GroupField::Thread),
    ("batch", GroupField::Batch),
    ("service_tier", GroupField::ServiceTier),
];
/// Number of the fields that exist for embeddings as well.
const EMBEDDINGS_FIELDS: usize = 6;
/// Number of the fields that exist for vector stores and sessions of the code interpreter as well.
const PROJECT_FIELDS: usize = 1;

/// A query about usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageQuery {
    /// What the query is about.
    pub kind: UsageKind,
    /// The first second of the range.
    pub start: Timestamp,
    /// The first second after the range.
    pub end: Timestamp,
    /// The width of the buckets.
    pub width: BucketWidth,
    /// Maximum number of buckets of a page.
    pub limit: u32,
    /// Only calls of these projects; empty: of all.
    pub projects: Vec<String>,
    /// Only calls with these API keys; empty: with all.
    pub api_keys: Vec<String>,
    /// Only calls of these models; empty: of all.
    pub models: Vec<String>,
    /// Whether the filters select nothing: users and batches do not exist.
    pub selects_nothing: bool,
    /// The fields to group by.
    pub group_by: Vec<GroupField>,
    /// Where the page starts.
    pub cursor: UsageCursor,
}

/// The start of a page: a bucket, and the number of its groups on earlier pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageCursor {
    /// The start of the bucket.
    pub bucket: i64,
    /// The number of groups to skip.
    pub skip: u32,
}

impl fmt::Display for UsageCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page_{}_{}", self.bucket, self.skip)
    }
}

impl FromStr for UsageCursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (bucket, skip) = text.strip_prefix("page_").and_then(|rest| rest.split_once('_')).ok_or(())?;
        Ok(Self { bucket: bucket.parse().map_err(|_| ())?, skip: skip.parse().map_err(|_| ())? })
    }
}

/// The parameters of a query, before they are checked together.
#[derive(Debug, Default)]
struct Parameters<'a> {
    start: Option<&'a str>,
    end: Option<&'a str>,
    width: Option<&'a str>,
    limit: Option<&'a str>,
    page: Option<&'a str>,
    batch: Option<&'a str>,
    projects: Vec<String>,
    users: Vec<String>,
    api_keys: Vec<String>,
    models: Vec<String>,
    group_by: Vec<String>,
}

impl UsageQuery {
    /// Parses a query. A list is a repeated parameter, with or without `[]` after its name. Ignores other parameters, and
    /// those with an empty value. The range ends after `now` by default.
    ///
    /// # Errors
    /// 400 if a parameter is missing or invalid.
    pub fn parse<'a>(
        kind: impl Into<UsageKind>,
        parameters: impl Iterator<Item = (&'a str, &'a str)>,
        now: Timestamp,
    ) -> Result<Self, Error> {
        let kind = kind.into();
        let mut given = collect(parameters)?;
        if !matches!(kind, UsageKind::Calls(_)) {
            // The service has these parameters for model calls only.
            (given.users, given.api_keys, given.models) = Default::default();
        }
        let start = time("start_time", given.start.ok_or_else(|| missing(&At::Member(&At::Root, "start_time")))?)?;
        let end = given.end.map(|text| time("end_time", text)).transpose()?;
        if let Some(end) = end.filter(|end| *end <= start) {
            let text = format!("Invalid 'end_time': {end}. It must be after 'start_time', which is {start}.");
            return Err(Error::invalid(text).at("end_time").code("invalid_value"));
        }
        // What was recorded in the current second counts.
        let end = end.unwrap_or_else(|| (now.0 + 1).max(start + 1));
        let width = width(kind, given.width)?;
        let limit = limit(given.limit, width)?;
        let first = start - start % width.seconds();
        let cursor = given.page.map_or(Ok(UsageCursor { bucket: first, skip: 0 }), |text| {
            let is_valid =
                |cursor: &UsageCursor| (first..end).contains(&cursor.bucket) && cursor.bucket % width.seconds() == 0;
            text.parse().ok().filter(is_valid).ok_or_else(|| invalid_page(text))
        })?;
        let batch = given.batch.map(flag).transpose()?.filter(|_| kind == UsageKind::Calls(CallKind::Completions));
        Ok(Self {
            kind,
            start: Timestamp(start),
            end: Timestamp(end),
            width,
            limit,
            projects: given.projects,
            api_keys: given.api_keys,
            models: given.models,
            selects_nothing: !given.users.is_empty() || batch == Some(true),
            group_by: group_by(kind, &given.group_by)?,
            cursor,
        })
    }

    /// Limits the query to a project. A filter that does not contain it then selects nothing.
    #[must_use]
    pub fn limited_to(mut self, scope: &Scope) -> Self {
        let selects_it = self.projects.is_empty() || self.projects.iter().any(|project| project == scope.as_str());
        self.selects_nothing |= !selects_it;
        self.projects = vec![scope.to_string()];
        self
    }

    /// Returns the range of the page: that of its buckets, within the range of the query.
    #[must_use]
    pub fn page_range(&self) -> std::ops::Range<i64> {
        self.cursor.bucket.max(self.start.0)..self.buckets_end().min(self.end.0)
    }

    /// Returns the end of the last bucket of the page.
    fn buckets_end(&self) -> i64 {
        self.cursor.bucket + i64::from(self.limit) * self.width.seconds()
    }

    /// Arranges groups, which are ordered by bucket, in the buckets of the page. A bucket without usage is empty. If there
    /// are more groups than a page has, the page ends before the bucket of the last group, or, if that is the first
    /// bucket, within it. `has_more_groups` says that the statement found more than `groups`.
    #[must_use]
    pub fn page(&self, mut groups: Vec<UsageGroup>, has_more_groups: bool) -> UsagePage {
        let width = self.width.seconds();
        let mut next = self.buckets_end();
        let mut skip = 0;
        if let Some(last) = groups.last().map(|group| group.bucket).filter(|_| has_more_groups) {
            next = last;
            if last > self.cursor.bucket {
                groups.retain(|group| group.bucket < last);
            } else {
                skip = self.cursor.skip.saturating_add(u32::try_from(groups.len()).unwrap_or(u32::MAX));
            }
        }
        let shown_end = if skip > 0 { next + width } else { next };
        let mut groups = groups.into_iter().peekable();
        let mut data = Vec::new();
        let mut start = self.cursor.bucket;
        while start < shown_end.min(self.end.0) {
            let results = std::iter::from_fn(|| groups.next_if(|group| group.bucket == start));
            let results = results.map(|group| group.result(self)).collect();
            data.push(UsageBucket { object: "bucket", start_time: start, end_time: start + width, results });
            start += width;
        }
        let has_more = next < self.end.0;
        let next_page = has_more.then(|| UsageCursor { bucket: next, skip }.to_string());
        UsagePage { object: "page", data, has_more, next_page }
    }

    fn groups_by(&self, field: GroupField) -> bool {
        self.group_by.contains(&field)
    }
}

fn collect<'a>(parameters: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Parameters<'a>, Error> {
    let mut given = Parameters::default();
    for (name, value) in parameters.filter(|(_, value)| !value.is_empty()) {
        let name = name.strip_suffix("[]").unwrap_or(name);
        let list = match name {
            "project_ids" => &mut given.projects,
            "user_ids" => &mut given.users,
            "api_key_ids" => &mut given.api_keys,
            "models" => &mut given.models,
            "group_by" => &mut given.group_by,
            _ => {
                match name {
                    "start_time" => given.start = Some(value),
                    "end_time" => given.end = Some(value),
                    "bucket_width" => given.width = Some(value),
                    "limit" => given.limit = Some(value),
                    "page" => given.page = Some(value),
                    "batch" => given.batch = Some(value),
                    _ => {}
                }
                continue;
            }
        };
        if list.len() == FILTER_VALUES_MAX {
            let text = format!("Invalid '{name}': too many values. Expected at most {FILTER_VALUES_MAX}.");
            return Err(Error::invalid(text).at(name).code("array_above_max_length"));
        }
        // No stored text has this character, and Postgres does not support it.
        list.push(value.replace('\0', "\u{fffd}"));
    }
    Ok(given)
}

fn integer(name: &str, text: &str) -> Result<i64, Error> {
    text.parse().map_err(|_| {
        let text = format!("Invalid type for '{name}': expected an integer, but got a string instead: '{text}'.");
        Error::invalid(text).at(name).code("invalid_type")
    })
}

fn time(name: &str, text: &str) -> Result<i64, Error> {
    let seconds = integer(name, text)?;
    if (0..=TIME_MAX).contains(&seconds) {
        return Ok(seconds);
    }
    Err(out_of_range(&At::Member(&At::Root, name), "integer", &seconds, seconds > 0, 0, TIME_MAX))
}

/// Differs: the service has sizes of vector stores for minutes and hours as well. Here they are measured for days.
fn width(kind: UsageKind, text: Option<&str>) -> Result<BucketWidth, Error> {
    match (kind, text) {
        (_, Some("1d") | None) => Ok(BucketWidth::Day),
        (UsageKind::Calls(_) | UsageKind::CodeInterpreterSessions, Some("1m")) => Ok(BucketWidth::Minute),
        (UsageKind::Calls(_) | UsageKind::CodeInterpreterSessions, Some("1h")) => Ok(BucketWidth::Hour),
        (kind, Some(other)) => {
            let known = if kind == UsageKind::VectorStores { &["1d"][..] } else { &["1m", "1h", "1d"] };
            Err(unsupported_value(&At::Member(&At::Root, "bucket_width"), other, known))
        }
    }
}

fn limit(text: Option<&str>, width: BucketWidth) -> Result<u32, Error> {
    let (default, max) = width.limits();
    let Some(text) = text else { return Ok(default) };
    let number = integer("limit", text)?;
    match u32::try_from(number) {
        Ok(limit) if (1..=max).contains(&limit) => Ok(limit),
        _ => Err(out_of_range(&At::Member(&At::Root, "limit"), "integer", &number, number > 0, 1, max)),
    }
}

fn invalid_page(text: &str) -> Error {
    let text = format!("Invalid 'page': '{text}'. Expected 'next_page' of the response to the same query.");
    Error::invalid(text).at("page").code("invalid_value")
}

fn flag(text: &str) -> Result<bool, Error> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(unsupported_value(&At::Member(&At::Root, "batch"), other, &["true", "false"])),
    }
}

fn group_by(kind: UsageKind, names: &[String]) -> Result<Vec<GroupField>, Error> {
    let known = match kind {
        UsageKind::Calls(CallKind::Completions) => &GROUP_FIELDS[..],
        UsageKind::Calls(CallKind::Embeddings) => &GROUP_FIELDS[..EMBEDDINGS_FIELDS],
        UsageKind::VectorStores | UsageKind::CodeInterpreterSessions => &GROUP_FIELDS[..PROJECT_FIELDS],
    };
    let mut fields = Vec::new();
    for name in names {
        let Some((_, field)) = known.iter().find(|(known, _)| known == name) else {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            return Err(unsupported_value(&At::Member(&At::Root, "group_by"), name, &names));
        };
        if !fields.contains(field) {
            fields.push(*field);
        }
    }
    Ok(fields)
}

/// The calls, the vector stores, or the sessions, of one group in one bucket. A field by which the query does not group is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UsageGroup {
    /// The start of the bucket.
    pub bucket: i64,
    /// The project.
    pub project_id: String,
    /// The API key; empty for calls without a stored key.
    pub api_key_id: String,
    /// The model.
    pub model: String,
    /// The assistant; empty for forwarded requests.
    pub assistant_id: String,
    /// The thread; empty for forwarded requests and rows that were rolled up.
    pub thread_id: String,
    /// Sum of the prompt tokens.
    pub input_tokens: i64,
    /// Sum of the cached prompt tokens.
    pub cached_tokens: i64,
    /// Sum of the tokens of the answers.
    pub output_tokens: i64,
    /// Number of calls.
    pub requests: i64,
    /// Size of the vector stores.
    pub usage_bytes: i64,
    /// Number of sessions of the code interpreter.
    pub sessions: i64,
    /// How long their code ran, in milliseconds.
    pub run_ms: i64,
}

impl UsageGroup {
    fn result(self, query: &UsageQuery) -> UsageResult {
        let field = |field, value: String| Some(value).filter(|value| query.groups_by(field) && !value.is_empty());
        let kind = match query.kind {
            UsageKind::Calls(kind) => kind,
            UsageKind::VectorStores => {
                return UsageResult::VectorStores(VectorStoresResult {
                    object: "organization.usage.vector_stores.result",
                    usage_bytes: self.usage_bytes,
                    project_id: field(GroupField::Project, self.project_id),
                });
            }
            UsageKind::CodeInterpreterSessions => {
                #[expect(clippy::cast_precision_loss, reason = "a duration of less than centuries")]
                let seconds = self.run_ms as f64 / 1e3;
                return UsageResult::CodeInterpreterSessions(CodeInterpreterSessionsResult {
                    object: "organization.usage.code_interpreter_sessions.result",
                    num_sessions: self.sessions,
                    project_id: field(GroupField::Project, self.project_id),
                    seconds,
                });
            }
        };
        let fields = UsageFields {
            num_model_requests: self.requests,
            project_id: field(GroupField::Project, self.project_id),
            user_id: None,
            api_key_id: field(GroupField::ApiKey, self.api_key_id),
            model: field(GroupField::Model, self.model),
            assistant_id: field(GroupField::Assistant, self.assistant_id),
            thread_id: field(GroupField::Thread, self.thread_id),
        };
        let uncached = (self.input_tokens - self.cached_tokens).max(0);
        match kind {
            CallKind::Completions => UsageResult::Completions(Box::new(CompletionsResult {
                object: "organization.usage.completions.result",
                input_tokens: self.input_tokens,
                input_cached_tokens: self.cached_tokens,
                input_cache_write_tokens: 0,
                input_uncached_tokens: uncached,
                output_tokens: self.output_tokens,
                input_text_tokens: uncached,
                output_text_tokens: self.output_tokens,
                input_cached_text_tokens: self.cached_tokens,
                input_audio_tokens: 0,
                input_cached_audio_tokens: 0,
                output_audio_tokens: 0,
                input_image_tokens: 0,
                input_cached_image_tokens: 0,
                output_image_tokens: 0,
                fields,
                batch: query.groups_by(GroupField::Batch).then_some(false),
                service_tier: None,
            })),
            CallKind::Embeddings => UsageResult::Embeddings(Box::new(EmbeddingsResult {
                object: "organization.usage.embeddings.result",
                input_tokens: self.input_tokens,
                fields,
            })),
        }
    }
}

/// A page of time buckets.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "UsageResponse")]
#[expect(missing_docs, reason = "the fields are those of the API reference")]
pub struct UsagePage {
    #[schemars(extend("const" = "page"))]
    pub object: &'static str,
    pub data: Vec<UsageBucket>,
    pub has_more: bool,
    pub next_page: Option<String>,
}

/// The usage of one time bucket.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "UsageTimeBucket")]
#[expect(missing_docs, reason = "the fields are those of the API reference")]
pub struct UsageBucket {
    #[schemars(extend("const" = "bucket"))]
    pub object: &'static str,
    pub start_time: i64,
    pub end_time: i64,
    pub results: Vec<UsageResult>,
}

/// The usage of one group in a bucket.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum UsageResult {
    /// Of chat completions.
    Completions(Box<CompletionsResult>),
    /// Of embeddings.
    Embeddings(Box<EmbeddingsResult>),
    /// Of vector stores.
    VectorStores(VectorStoresResult),
    /// Of sessions of the code interpreter.
    CodeInterpreterSessions(CodeInterpreterSessionsResult),
}

/// What all kinds of usage have. A field by which the query does not group is null.
#[derive(Debug, Serialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields are those of the API reference")]
pub struct UsageFields {
    pub num_model_requests: i64,
    pub project_id: Option<String>,
    pub user_id: Option<String>,
    pub api_key_id: Option<String>,
    pub model: Option<String>,
    /// The assistant. The service does not have this field.
    pub assistant_id: Option<String>,
    /// The thread. The service does not have this field.
    pub thread_id: Option<String>,
}

/// The usage of chat completions. Model servers do not report the tokens of images and audio separately.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "UsageCompletionsResult")]
#[expect(missing_docs, reason = "the fields are those of the API reference")]
pub struct CompletionsResult {
    #[schemars(extend("const" = "organization.usage.completions.result"))]
    pub object: &'static str,
    pub input_tokens: i64,
    pub input_cached_tokens: i64,
    pub input_cache_write_tokens: i64,
    pub input_uncached_tokens: i64,
    pub output_tokens: i64,
    pub input_text_tokens: i64,
    pub output_text_tokens: i64,
    pub input_cached_text_tokens: i64,
    pub input_audio_tokens: i64,
    pub input_cached_audio_tokens: i64,
    pub output_audio_tokens: i64,
    pub input_image_tokens: i64,
    pub input_cached_image_tokens: i64,
    pub output_image_tokens: i64,
    #[serde(flatten)]
    pub fields: UsageFields,
    pub batch: Option<bool>,
    pub service_tier: Option<String>,
}

/// The usage of embeddings.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "UsageEmbeddingsResult")]
#[expect(missing_docs, reason = "the fields are those of the API reference")]
pub struct EmbeddingsResult {
    #[schemars(extend("const" = "organization.usage.embeddings.result"))]
    pub object: &'static str,
    pub input_tokens: i64,
    #[serde(flatten)]
    pub fields: UsageFields,
}

/// The size of vector stores.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "UsageVectorStoresResult")]
#[expect(missing_docs, reason = "the fields are those of the API reference")]
pub struct VectorStoresResult {
    #[schemars(extend("const" = "organization.usage.vector_stores.result"))]
    pub object: &'static str,
    pub usage_bytes: i64,
    pub project_id: Option<String>,
}

/// The sessions of the code interpreter.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "UsageCodeInterpreterSessionsResult")]
#[expect(missing_docs, reason = "the fields are those of the API reference")]
pub struct CodeInterpreterSessionsResult {
    #[schemars(extend("const" = "organization.usage.code_interpreter_sessions.result"))]
    pub object: &'static str,
    pub num_sessions: i64,
    pub project_id: Option<String>,
    /// How long the code of these sessions ran, in seconds. The service does not have this field.
    pub seconds: f64,
}
