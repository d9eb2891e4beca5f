//! Checks each response and each event against the API descriptions: ours, and the service's if present.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use jsonschema::Validator;
use serde_json::{Value, json};

use super::skip;

/// Reads a file of the contract; reports a skipped test if it is missing.
pub fn file(name: &str) -> Option<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/contract").join(name);
    let text = std::fs::read_to_string(&path).ok();
    if text.is_none() {
        skip(&format!("../shared/contract/{name}"));
    }
    text
}

/// The service's API description, if present.
pub fn official() -> Option<&'static Value> {
    static DESCRIPTION: OnceLock<Option<Value>> = OnceLock::new();
    DESCRIPTION.get_or_init(|| Some(serde_json::from_str(&file("assistants.openapi.json")?).unwrap())).as_ref()
}

/// The service's description of the administration, if present.
pub fn administration() -> Option<&'static Value> {
    static DESCRIPTION: OnceLock<Option<Value>> = OnceLock::new();
    DESCRIPTION.get_or_init(|| Some(serde_json::from_str(&file("admin.openapi.json")?).unwrap())).as_ref()
}

/// Our own API description.
fn ours() -> &'static Value {
    static DESCRIPTION: OnceLock<Value> = OnceLock::new();
    DESCRIPTION.get_or_init(assistd::http::description)
}

/// Returns the violations of a schema, given by its JSON pointer in a description.
fn violations(description: &'static Value, pointer: &str, value: &Value) -> Vec<String> {
    static VALIDATORS: OnceLock<Mutex<HashMap<(usize, String), &'static Validator>>> = OnceLock::new();
    let mut validators = VALIDATORS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let key = (std::ptr::from_ref(description).addr(), pointer.to_owned());
    let validator: &'static Validator = validators.entry(key).or_insert_with(|| {
        let mut schema = description.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}")).clone();
        schema["components"] = description["components"].clone();
        Box::leak(Box::new(jsonschema::draft202012::new(&schema).unwrap()))
    });
    drop(validators);
    validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

fn check(description: &'static Value, pointer: &str, value: &Value, what: &str) {
    let errors = violations(description, pointer, value);
    assert!(errors.is_empty(), "{what} violates the contract: {errors:#?}\n{value:#}");
}

/// Returns the pointer to the operation of a path, if the description has it.
fn operation(description: &Value, method: &str, path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('?').next().unwrap().split('/').collect();
    let matches = |template: &str| {
        let names: Vec<&str> = template.split('/').collect();
        names.len() == parts.len() && names.iter().zip(&parts).all(|(name, part)| name.starts_with('{') || name == part)
    };
    let paths = description["paths"].as_object().unwrap();
    // A literal path takes precedence over one with parameters: `/threads/runs` is not a thread.
    let template = paths.keys().filter(|template| matches(template)).min_by_key(|template| template.contains('{'))?;
    let pointer = format!("/paths/{}/{}", template.replace('/', "~1"), method.to_lowercase());
    description.pointer(&pointer).map(|_| pointer)
}

/// Checks a 200 response against our description, and against the service's, which does not have all operations: the list
/// of threads is ours.
pub fn check_reply(method: &str, path: &str, body: &Value) {
    let service_path = path.strip_prefix("/v1").unwrap_or(path);
    let is_administration = service_path.starts_with("/organization/");
    let service = if is_administration { administration() } else { official() };
    for (description, path) in [(Some(ours()), path), (service, service_path)] {
        let Some(description) = description else { continue };
        let Some(operation) = operation(description, method, path) else { continue };
        let pointer = format!("{operation}/responses/200/content/application~1json/schema");
        if description.pointer(&pointer).is_some() {
            check(description, &pointer, body, &format!("{method} {path}"));
        }
    }
}

/// Returns the violations of our description by a request body.
pub fn request_violations(path: &str, body: &Value) -> Vec<String> {
    let operation = operation(ours(), "POST", path).unwrap_or_else(|| panic!("no POST {path}"));
    violations(ours(), &format!("{operation}/requestBody/content/application~1json/schema"), body)
}

/// Checks an error response.
pub fn check_error(body: &Value) {
    for description in [Some(ours()), official()].into_iter().flatten() {
        check(description, "/components/schemas/ErrorResponse", body, "an error");
    }
    let members: Vec<&String> = body["error"].as_object().unwrap().keys().collect();
    assert_eq!(members, ["message", "type", "param", "code"]);
}

/// Checks the payload of an event.
pub fn check_event(name: &str, data: &Value) {
    if name == "error" {
        return;
    }
    assert!(data.get("error").is_none(), "{name} has an `error` property, which ends streams in clients");
    if let Some(official) = official() {
        check(official, "/components/schemas/AssistantStreamEvent", &json!({"event": name, "data": data}), name);
    }
}
