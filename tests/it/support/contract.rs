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

fn description() -> Option<&'static Value> {
    static DESCRIPTION: OnceLock<Option<Value>> = OnceLock::new();
    DESCRIPTION.get_or_init(|| Some(serde_json::from_str(&file("assistants.openapi.json")?).unwrap())).as_ref()
}

/// Checks a value against a schema of the description, given by its JSON pointer.
fn check(pointer: &str, value: &Value, what: &str) {
    static VALIDATORS: OnceLock<Mutex<HashMap<String, &'static Validator>>> = OnceLock::new();
    let Some(description) = description() else { return };
    let mut validators = VALIDATORS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let validator: &'static Validator = validators.entry(pointer.to_owned()).or_insert_with(|| {
        let mut schema = description.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}")).clone();
        schema["components"] = description["components"].clone();
        Box::leak(Box::new(jsonschema::draft202012::new(&schema).unwrap()))
    });
    drop(validators);
    let errors: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{what} breaks the contract: {errors:#?}\n{value:#}");
}

/// Checks a 200 reply. Operations beyond the description, such as the list of threads, are none of its business.
pub fn check_reply(method: &str, path: &str, body: &Value) {
    let Some(description) = description() else { return };
    let path = path.split('?').next().unwrap().strip_prefix("/v1").unwrap();
    let parts: Vec<&str> = path.split('/').collect();
    let fits = |template: &str| {
        let names: Vec<&str> = template.split('/').collect();
        names.len() == parts.len() && names.iter().zip(&parts).all(|(name, part)| name.starts_with('{') || name == part)
    };
    let paths = description["paths"].as_object().unwrap();
    // A literal path wins over one with parameters: /threads/runs is no thread.
    let template = paths.keys().filter(|template| fits(template)).min_by_key(|template| template.contains('{'));
    let Some(template) = template else { return };
    let escaped = template.replace('/', "~1");
    let method = method.to_lowercase();
    let pointer = format!("/paths/{escaped}/{method}/responses/200/content/application~1json/schema");
    if description.pointer(&pointer).is_some() {
        check(&pointer, body, &format!("{method} {template}"));
    }
}

/// Checks an error reply.
pub fn check_error(body: &Value) {
    check("/components/schemas/ErrorResponse", body, "an error");
    let members: Vec<&String> = body["error"].as_object().unwrap().keys().collect();
    assert_eq!(members, ["message", "type", "param", "code"]);
}

/// Checks the payload of an event.
pub fn check_event(name: &str, data: &Value) {
    if name == "error" {
        return;
    }
    assert!(data.get("error").is_none(), "{name} has a member that ends streams");
    check("/components/schemas/AssistantStreamEvent", &json!({"event": name, "data": data}), name);
}
