//! The API description, where it is present: each reply and each event is checked against it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use jsonschema::Validator;
use serde_json::{Value, json};

use super::skip;

/// A file of the contract, or none and a word about it.
pub fn file(name: &str) -> Option<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/contract").join(name);
    let text = std::fs::read_to_string(&path).ok();
    if text.is_none() {
        skip(&format!("../shared/contract/{name}"));
    }
    text
}

/// The service's description, where it is present.
pub fn official() -> Option<&'static Value> {
    static DESCRIPTION: OnceLock<Option<Value>> = OnceLock::new();
    DESCRIPTION.get_or_init(|| Some(serde_json::from_str(&file("assistants.openapi.json")?).unwrap())).as_ref()
}

/// Our own description.
fn ours() -> &'static Value {
    static DESCRIPTION: OnceLock<Value> = OnceLock::new();
    DESCRIPTION.get_or_init(assistd::http::description)
}

/// What a value breaks of a schema in a description, given by its JSON pointer.
fn breaches(description: &'static Value, pointer: &str, value: &Value) -> Vec<String> {
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
    let errors = breaches(description, pointer, value);
    assert!(errors.is_empty(), "{what} breaks the contract: {errors:#?}\n{value:#}");
}

/// The pointer to an operation that a path stands for; none when the description does not have it.
fn operation(description: &Value, method: &str, path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('?').next().unwrap().split('/').collect();
    let fits = |template: &str| {
        let names: Vec<&str> = template.split('/').collect();
        names.len() == parts.len() && names.iter().zip(&parts).all(|(name, part)| name.starts_with('{') || name == part)
    };
    let paths = description["paths"].as_object().unwrap();
    // A literal path wins over one with parameters: /threads/runs is no thread.
    let template = paths.keys().filter(|template| fits(template)).min_by_key(|template| template.contains('{'))?;
    let pointer = format!("/paths/{}/{}", template.replace('/', "~1"), method.to_lowercase());
    description.pointer(&pointer).map(|_| pointer)
}

/// Checks a 200 reply against our description, and against the service's: operations beyond that one, such as the list
/// of threads, are none of its business.
pub fn check_reply(method: &str, path: &str, body: &Value) {
    let descriptions = [(Some(ours()), path), (official(), path.strip_prefix("/v1").unwrap_or(path))];
    for (description, path) in descriptions {
        let Some(description) = description else { continue };
        let Some(operation) = operation(description, method, path) else { continue };
        let pointer = format!("{operation}/responses/200/content/application~1json/schema");
        if description.pointer(&pointer).is_some() {
            check(description, &pointer, body, &format!("{method} {path}"));
        }
    }
}

/// What a request's body breaks of our own description.
pub fn request_breaches(path: &str, body: &Value) -> Vec<String> {
    let operation = operation(ours(), "POST", path).unwrap_or_else(|| panic!("no POST {path}"));
    breaches(ours(), &format!("{operation}/requestBody/content/application~1json/schema"), body)
}

/// Checks an error reply.
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
    assert!(data.get("error").is_none(), "{name} has a member that ends streams");
    if let Some(official) = official() {
        check(official, "/components/schemas/AssistantStreamEvent", &json!({"event": name, "data": data}), name);
    }
}
