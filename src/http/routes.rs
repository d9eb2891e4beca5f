//! Routes with what is told of them: the router and the API description are made from the same statements.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{delete, get, post};
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value;

use super::state::App;
use crate::api::page::List;
use crate::api::rule::{Request, Rule, object};

/// Where the API is at home; Azure's clients look for it elsewhere.
pub(super) const HOME: &str = "/v1";

/// Makes a schema; those with a name go to the generator.
pub(super) type MakeSchema = fn(&mut SchemaGenerator) -> Value;

/// One operation of the API.
#[derive(Debug, Clone)]
pub struct Operation {
    /// In lowercase: `post`.
    pub method: &'static str,
    /// With its parameters in braces: `/v1/threads/{thread_id}`.
    pub path: String,
    /// Its name, unique in the API.
    pub id: &'static str,
    /// The group that it belongs to.
    pub group: &'static str,
    /// What it does, in a sentence.
    pub summary: &'static str,
    pub(super) body: Option<MakeSchema>,
    pub(super) reply: Reply,
    pub(super) filter: Option<&'static str>,
    pub(super) streams: bool,
}

/// What an operation gives.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reply {
    /// An object.
    Object(MakeSchema),
    /// A page of objects, by `limit`, `order`, `after` and `before`: the whole of it.
    Page(MakeSchema),
    /// All objects at once.
    All(MakeSchema),
    /// What stands in for a deleted object: its `object` word.
    Deleted(&'static str),
    /// Something that only its model server knows.
    Any,
}

/// What is told of an operation beside its path.
#[derive(Debug, Clone, Copy)]
pub(super) struct About {
    id: &'static str,
    summary: &'static str,
    body: Option<MakeSchema>,
    reply: Reply,
    filter: Option<&'static str>,
    streams: bool,
}

/// Begins to tell of an operation.
pub(super) fn about(id: &'static str, summary: &'static str) -> About {
    About { id, summary, body: None, reply: Reply::Any, filter: None, streams: false }
}

fn schema<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
    schemas.subschema_for::<T>().to_value()
}

impl About {
    /// It takes a `T`.
    pub fn takes<T: Request>(self) -> Self {
        Self { body: Some(|schemas| object::<T>().schema(schemas)), ..self }
    }

    /// It takes what `body` says, and looks at no more of it.
    pub fn takes_what(self, body: MakeSchema) -> Self {
        Self { body: Some(body), ..self }
    }

    /// It gives a `T`.
    pub fn gives<T: JsonSchema>(self) -> Self {
        Self { reply: Reply::Object(schema::<T>), ..self }
    }

    /// It gives pages of `T`s.
    pub fn pages<T: JsonSchema>(self) -> Self {
        Self { reply: Reply::Page(schema::<List<T>>), ..self }
    }

    /// It gives all `T`s at once.
    pub fn lists<T: JsonSchema>(self) -> Self {
        Self { reply: Reply::All(schema::<T>), ..self }
    }

    /// It deletes, and gives an object with this word.
    pub fn deletes(self, word: &'static str) -> Self {
        Self { reply: Reply::Deleted(word), ..self }
    }

    /// Its page can be narrowed by a query parameter that is an id.
    pub fn filtered_by(self, parameter: &'static str) -> Self {
        Self { filter: Some(parameter), ..self }
    }

    /// With `"stream": true` it gives events instead.
    pub fn streams(self) -> Self {
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
    /// No routes yet.
    pub fn of(group: &'static str) -> Self {
        Self { group, router: Router::new(), operations: Vec::new() }
    }

    /// Adds a GET.
    pub fn get<H: Handler<T, App>, T: 'static>(self, path: &str, about: About, handler: H) -> Self {
        self.add("get", path, about, get(handler))
    }

    /// Adds a POST.
    pub fn post<H: Handler<T, App>, T: 'static>(self, path: &str, about: About, handler: H) -> Self {
        self.add("post", path, about, post(handler))
    }

    /// Adds a DELETE.
    pub fn delete<H: Handler<T, App>, T: 'static>(self, path: &str, about: About, handler: H) -> Self {
        self.add("delete", path, about, delete(handler))
    }

    fn add(
        mut self,
        method: &'static str,
        path: &str,
        about: About,
        handler: axum::routing::MethodRouter<App>,
    ) -> Self {
        let About { id, summary, body, reply, filter, streams } = about;
        let group = self.group;
        // A parameter that takes the rest of a path is one like any other to those who read about it.
        let told = path.replace("{*", "{");
        let path = path.strip_prefix(HOME).expect("every route stands under /v1");
        self.operations.push(Operation { method, path: told, id, group, summary, body, reply, filter, streams });
        Self { router: self.router.route(path, handler), ..self }
    }

    /// The router, and what is told of it.
    pub fn into_parts(self) -> (Router<App>, Vec<Operation>) {
        (self.router, self.operations)
    }
}
