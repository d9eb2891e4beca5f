//! Routes with their documentation: the router and the API description are built from the same declarations.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{delete, get, post};
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value;

use super::state::App;
use crate::api::page::{LIMIT_DEFAULT, LIMIT_MAX, List};
use crate::api::rule::{self, Request, Rule};

/// The base path of the API; Azure's clients use others.
pub(super) const BASE_PATH: &str = "/v1";
/// Base paths of the API: OpenAI's, those of older and newer Azure OpenAI clients, and those of Azure AI Foundry for
/// classic agents and OpenAI's own clients.
pub(super) const BASE_PATHS: [&str; 6] = [
    BASE_PATH,
    "/openai",
    "/openai/v1",
    "/api/projects/{project}",
    "/api/projects/{project}/openai",
    "/api/projects/{project}/openai/v1",
];
/// The base path of Azure's deployments.
pub(super) const DEPLOYMENT_PATH: &str = "/openai/deployments/{deployment}";

/// Returns a route with OpenAI's base path instead of another one.
pub(super) fn unprefixed(route: &str) -> String {
    let rest = |base: &str| route.strip_prefix(base).filter(|rest| rest.starts_with('/'));
    let shortest = BASE_PATHS.into_iter().chain([DEPLOYMENT_PATH]).filter_map(rest).min_by_key(|rest| rest.len());
    shortest.map_or_else(|| route.to_owned(), |rest| format!("{BASE_PATH}{rest}"))
}

/// Builds a schema; named schemas are added to the generator.
pub(super) type MakeSchema = fn(&mut SchemaGenerator) -> Value;

/// One operation of the API.
#[derive(Debug, Clone)]
pub struct Operation {
    /// The method in lowercase: `post`.
    pub method: &'static str,
    /// The path with its parameters in braces: `/v1/threads/{thread_id}`.
    pub path: String,
    /// The operation ID, unique in the API.
    pub id: &'static str,
    /// The group, shown as a tag.
    pub group: &'static str,
    /// A one-sentence summary.
    pub summary: &'static str,
    pub(super) body: Option<MakeSchema>,
    /// Whether the body is a form, and not JSON.
    pub(super) is_form: bool,
    pub(super) reply: Reply,
    /// The default and the maximum of `limit`.
    pub(super) limits: (u32, u32),
    pub(super) filter: Option<&'static str>,
    /// Query parameters: the name, the schema, and whether it is required.
    pub(super) query: Vec<(&'static str, MakeSchema, bool)>,
    pub(super) oldest_first: bool,
    pub(super) streams: bool,
}

/// The response of an operation.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reply {
    /// An object.
    Object(MakeSchema),
    /// The list object of a page, selected by `limit`, `order`, `after` and `before`.
    Page(MakeSchema),
    /// A list of all objects, without pagination.
    All(MakeSchema),
    /// The response for a deleted object: its `object` value.
    Deleted(&'static str),
    /// Any JSON; the model server determines it.
    Any,
    /// The bytes of a file.
    Bytes,
}

/// The documentation of an operation, without its path.
#[derive(Debug, Clone)]
pub(super) struct Documentation {
    id: &'static str,
    summary: &'static str,
    body: Option<MakeSchema>,
    is_form: bool,
    reply: Reply,
    limits: (u32, u32),
    filter: Option<&'static str>,
    query: Vec<(&'static str, MakeSchema, bool)>,
    oldest_first: bool,
    streams: bool,
}

/// Creates the documentation of an operation.
pub(super) fn operation(id: &'static str, summary: &'static str) -> Documentation {
    Documentation {
        id,
        summary,
        body: None,
        is_form: false,
        reply: Reply::Any,
        limits: (LIMIT_DEFAULT, LIMIT_MAX),
        filter: None,
        query: Vec::new(),
        oldest_first: false,
        streams: false,
    }
}

fn schema<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
    schemas.subschema_for::<T>().to_value()
}

impl Documentation {
    /// The request body is a `T`.
    pub fn request<T: Request>(self) -> Self {
        Self { body: Some(|schemas| rule::object::<T>().schema(schemas)), ..self }
    }

    /// The request body has this schema; other properties are forwarded.
    pub fn request_schema(self, body: MakeSchema) -> Self {
        Self { body: Some(body), ..self }
    }

    /// The request body is a form with this schema.
    pub fn form(self, body: MakeSchema) -> Self {
        Self { body: Some(body), is_form: true, ..self }
    }

    /// The response is a `T`.
    pub fn response<T: JsonSchema>(self) -> Self {
        Self { reply: Reply::Object(schema::<T>), ..self }
    }

    /// The response is a page of `T`.
    pub fn paginated<T: JsonSchema>(self) -> Self {
        Self { reply: Reply::Page(schema::<List<T>>), ..self }
    }

    /// A page has up to `max` elements, also by default.
    pub fn limit(self, max: u32) -> Self {
        Self { limits: (max, max), ..self }
    }

    /// The response is the bytes of a file.
    pub fn bytes(self) -> Self {
        Self { reply: Reply::Bytes, ..self }
    }

    /// The response is a list of all `T`, without pagination.
    pub fn list<T: JsonSchema>(self) -> Self {
        Self { reply: Reply::All(schema::<T>), ..self }
    }

    /// The response is a deleted object with this `object` value.
    pub fn deletes(self, object: &'static str) -> Self {
        Self { reply: Reply::Deleted(object), ..self }
    }

    /// The page can be filtered by a query parameter that is an ID.
    pub fn filter(self, parameter: &'static str) -> Self {
        Self { filter: Some(parameter), ..self }
    }

    /// The query can have this parameter, with this schema.
    pub fn query(mut self, parameter: &'static str, schema: MakeSchema) -> Self {
        self.query.push((parameter, schema, false));
        self
    }

    /// The operation needs this query parameter.
    pub fn required_query(mut self, parameter: &'static str, schema: MakeSchema) -> Self {
        self.query.push((parameter, schema, true));
        self
    }

    /// The page is in ascending order by default.
    pub fn oldest_first(self) -> Self {
        Self { oldest_first: true, ..self }
    }

    /// With `"stream": true`, the response is a stream of events.
    pub fn streaming(self) -> Self {
        Self { streams: true, ..self }
    }
}

/// The routes of one group of operations.
pub(super) struct Routes {
    group: &'static str,
    router: Router<App>,
    operations: Vec<Operation>,
}

impl Routes {
    /// Creates an empty group.
    pub fn of(group: &'static str) -> Self {
        Self { group, router: Router::new(), operations: Vec::new() }
    }

    /// Adds a GET.
    pub fn get<H: Handler<T, App>, T: 'static>(self, path: &str, documentation: Documentation, handler: H) -> Self {
        self.add("get", path, documentation, get(handler))
    }

    /// Adds a POST.
    pub fn post<H: Handler<T, App>, T: 'static>(self, path: &str, documentation: Documentation, handler: H) -> Self {
        self.add("post", path, documentation, post(handler))
    }

    /// Adds a DELETE.
    pub fn delete<H: Handler<T, App>, T: 'static>(self, path: &str, documentation: Documentation, handler: H) -> Self {
        self.add("delete", path, documentation, delete(handler))
    }

    fn add(
        mut self,
        method: &'static str,
        path: &str,
        documentation: Documentation,
        handler: axum::routing::MethodRouter<App>,
    ) -> Self {
        let Documentation { id, summary, body, is_form, reply, limits, filter, query, oldest_first, streams } =
            documentation;
        let group = self.group;
        // The description shows a wildcard parameter like any other parameter.
        let described_path = path.replace("{*", "{");
        let path = path.strip_prefix(BASE_PATH).expect("every route starts with /v1");
        self.operations.push(Operation {
            method,
            path: described_path,
            id,
            group,
            summary,
            body,
            is_form,
            reply,
            limits,
            filter,
            query,
            oldest_first,
            streams,
        });
        Self { router: self.router.route(path, handler), ..self }
    }

    /// Returns the router and its documented operations.
    pub fn into_parts(self) -> (Router<App>, Vec<Operation>) {
        (self.router, self.operations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_all_clients_have_the_base_path_of_openai() {
        for (route, expected) in [
            ("/v1/threads/{thread_id}", "/v1/threads/{thread_id}"),
            ("/openai/threads", "/v1/threads"),
            ("/openai/v1/threads", "/v1/threads"),
            ("/api/projects/{project}/openai/v1/threads", "/v1/threads"),
            ("/openai/deployments/{deployment}/chat/completions", "/v1/chat/completions"),
            ("/health", "/health"),
            ("", ""),
        ] {
            assert_eq!(unprefixed(route), expected);
        }
    }
}
