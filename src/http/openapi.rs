//! `GET /openapi.json`
//!
//! The API description, generated from the routes, the rules of requests and the types of responses.

use std::sync::OnceLock;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue};
use axum::routing::get;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::routes::{Operation, Reply};
use super::state::App;
use crate::api::error::Body;
use crate::api::id::{
    ApiKeyId, AssistantId, FileBatchId, Id, MessageId, ProjectId, RateLimitId, RunId, RunStepId, ServiceAccountId,
    ThreadId, UploadId, VectorStoreId,
};

pub(super) fn routes() -> Router<App> {
    Router::new().route("/openapi.json", get(get_description))
}

async fn get_description() -> ([(HeaderName, HeaderValue); 1], &'static str) {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| description().to_string());
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], text)
}

/// Returns the `OpenAPI` 3.1 document of `GET /openapi.json`.
#[must_use]
pub fn description() -> Value {
    describe(&super::operations())
}

/// The body of an error response.
#[derive(JsonSchema)]
#[schemars(rename = "ErrorResponse")]
#[expect(dead_code, reason = "only its schema is used")]
struct ErrorReply<'a> {
    error: Body<'a>,
}

/// Returns the `OpenAPI` 3.1 document of these operations.
fn describe(operations: &[Operation]) -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    let error = schemas.subschema_for::<ErrorReply<'_>>().to_value();
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations {
        let path = paths.entry(operation.path.clone()).or_insert_with(|| json!({}));
        path[operation.method] = describe_operation(operation, &error, &mut schemas);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "assistd",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The Assistants API, on your own machine. The same paths are also served under /openai and \
                            /openai/v1, as by Azure OpenAI, and under /api/projects/{project}, optionally followed by \
                            /openai or /openai/v1, as by Azure AI Foundry. Chat completions are also served under \
                            /openai/deployments/{deployment}.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"key": []}, {}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "api-key"},
            },
            "schemas": schemas.take_definitions(true),
        },
    })
}

fn describe_operation(operation: &Operation, error: &Value, schemas: &mut SchemaGenerator) -> Value {
    let reply_type = match operation.reply {
        Reply::Bytes => "application/octet-stream",
        Reply::Object(_) | Reply::Page(_) | Reply::All(_) | Reply::Deleted(_) | Reply::Any => "application/json",
    };
    let mut content = json!({reply_type: {"schema": reply_schema(operation.reply, schemas)}});
    if operation.streams {
        content["text/event-stream"] = json!({
            "schema": {"type": "string", "description": "Server-sent events, the last of them `done`."}
        });
    }
    let mut description = json!({
        "operationId": operation.id,
        "tags": [operation.group],
        "summary": operation.summary,
        "parameters": parameters(operation, schemas),
        "responses": {
            "200": {"description": "Success.", "content": content},
            "default": {
                "description": "An error. `error` has the reason.",
                "content": {"application/json": {"schema": error}},
            },
        },
    });
    if let Some(body) = operation.body {
        let schema = body(schemas);
        let name = schema["$ref"].as_str().and_then(|target| target.rsplit('/').next());
        let definition = name.and_then(|name| schemas.definitions().get(name)).unwrap_or(&schema);
        let required = definition.get("required").is_some();
        let body_type = if operation.is_form { "multipart/form-data" } else { "application/json" };
        description["requestBody"] = json!({"required": required, "content": {body_type: {"schema": schema}}});
    }
    description
}

fn reply_schema(reply: Reply, schemas: &mut SchemaGenerator) -> Value {
    match reply {
        Reply::Object(schema) | Reply::Page(schema) => schema(schemas),
        Reply::All(schema) => members(&[
            ("object", json!({"type": "string", "const": "list"})),
            ("data", json!({"type": "array", "items": schema(schemas)})),
        ]),
        Reply::Deleted(object) => members(&[
            ("id", json!({"type": "string"})),
            ("object", json!({"type": "string", "const": object})),
            ("deleted", json!({"type": "boolean", "const": true})),
        ]),
        Reply::Any => json!({}),
        Reply::Bytes => json!({"type": "string", "format": "binary"}),
    }
}

fn members(members: &[(&str, Value)]) -> Value {
    let required: Vec<&str> = members.iter().map(|(name, _)| *name).collect();
    let properties: Map<String, Value> =
        members.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({"type": "object", "properties": properties, "required": required})
}

fn parameters(operation: &Operation, schemas: &mut SchemaGenerator) -> Vec<Value> {
    let in_path = operation.path.split(['{', '}']).skip(1).step_by(2);
    let mut parameters: Vec<Value> =
        in_path.map(|name| json!({"name": name, "in": "path", "required": true, "schema": id_schema(name)})).collect();
    let mut in_query =
        |name: &str, schema: Value| parameters.push(json!({"name": name, "in": "query", "schema": schema}));
    if let Reply::Page(_) = operation.reply {
        let (default, max) = operation.limits;
        in_query("limit", json!({"type": "integer", "minimum": 1, "maximum": max, "default": default}));
        let order = if operation.oldest_first { "asc" } else { "desc" };
        in_query("order", json!({"type": "string", "enum": ["asc", "desc"], "default": order}));
        in_query("after", json!({"type": "string"}));
        in_query("before", json!({"type": "string"}));
    }
    if let Some(name) = operation.filter {
        in_query(name, id_schema(name));
    }
    for (name, schema, is_required) in &operation.query {
        let mut parameter = json!({"name": name, "in": "query", "schema": schema(schemas)});
        if *is_required {
            parameter["required"] = json!(true);
        }
        parameters.push(parameter);
    }
    parameters
}

/// Returns the schema of a parameter by its name: an ID or a string.
fn id_schema(name: &str) -> Value {
    fn known<T: Id>() -> (&'static str, &'static str) {
        (T::PARAM, T::PREFIX)
    }
    let ids = [
        known::<AssistantId>(),
        known::<ThreadId>(),
        known::<MessageId>(),
        known::<RunId>(),
        known::<RunStepId>(),
        known::<UploadId>(),
        known::<VectorStoreId>(),
        known::<FileBatchId>(),
        known::<ProjectId>(),
        known::<ServiceAccountId>(),
        known::<ApiKeyId>(),
        known::<RateLimitId>(),
    ];
    match ids.iter().find(|(param, _)| *param == name) {
        Some((_, prefix)) => json!({"type": "string", "pattern": format!("^{prefix}")}),
        None => json!({"type": "string"}),
    }
}
