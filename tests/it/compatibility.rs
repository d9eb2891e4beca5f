//! COMPATIBILITY.md: every operation and every request parameter of the service, and how assistd handles it. This test
//! generates the page from the service's API description and ours, and fails if the file differs.
//! `ASSISTD_TEST_WRITE=1 cargo test --test it compatibility` updates the file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::contract;

const INTRO: &str = "\
# Compatibility

Every operation and request parameter of OpenAI's Assistants API v2 and of the APIs that it uses, as of August 2026, and how
assistd handles it. \"The service\" is OpenAI's. A test generates this page from the service's API description and from
assistd's own (`GET /openapi.json`), and fails if the page is out of date.

Responses have every property of the service's schemas. The tests check each response against both descriptions. Limits are
those of the service, unless noted.
";

/// Notes on parameters that both descriptions have.
const NOTES: [(&str, &str); 19] = [
    (
        "tools",
        "functions, `file_search` and `code_interpreter`, which an operator installs; at most 128, also on a run (service: 20)",
    ),
    ("tool_resources", "files and vector stores must exist"),
    ("attachments", "added to the tool resources of the thread"),
    ("content", "text, `image_url` and `image_file`; an image file reaches the model as a data URL"),
    ("messages", "at most 1,000 (service: 32)"),
    ("additional_messages", "at most 1,000"),
    ("max_prompt_tokens", "1 or more, as the service accepted; its description says 256"),
    ("max_completion_tokens", "1 or more, as the service accepted; its description says 256"),
    ("model", "any name; the settings select the model server"),
    ("reasoning_effort", "forwarded to the model server"),
    ("response_format", "forwarded to the model server"),
    ("temperature", "forwarded if set"),
    ("top_p", "forwarded if set"),
    (
        "truncation_strategy",
        "`auto` leaves out messages in the middle if the prompt exceeds the model's context window, if that is known",
    ),
    ("instructions", "at most 256,000 characters"),
    ("tool_choice", "`required` and a named function apply to the first turn"),
    ("include[]", "supported"),
    ("stream", "server-sent events"),
    (
        "content[].image_url.url",
        "any `http`, `https` or `data:image/` URL; the service accepted `http` URLs with an image file extension",
    ),
];

/// Resolves the references of a schema.
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(target) => resolve(document, document.pointer(target.strip_prefix('#').unwrap()).unwrap()),
        None => schema,
    }
}

/// Collects the parameters of a request by path, with nested ones; alternatives are merged.
fn members(document: &Value, schema: &Value, at: &str, depth: usize, found: &mut BTreeMap<String, usize>) {
    let schema = resolve(document, schema);
    for alternatives in ["anyOf", "oneOf", "allOf"] {
        for alternative in schema[alternatives].as_array().into_iter().flatten() {
            members(document, alternative, at, depth, found);
        }
    }
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        let index = found.len();
        found.entry(path.clone()).or_insert(index);
        // Messages have their own table.
        if depth > 0 && !name.ends_with("messages") {
            members(document, member, &path, depth - 1, found);
        }
    }
    if depth > 0 && !schema["items"].is_null() {
        members(document, &schema["items"], &format!("{at}[]"), depth - 1, found);
    }
}

/// Returns the parameters of an operation's query and body, in the description's order.
fn parameters(document: &Value, operation: &Value) -> Vec<String> {
    let mut found = BTreeMap::new();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let parameter = resolve(document, parameter);
        if parameter["in"] == "query" {
            let index = found.len();
            found.insert(parameter["name"].as_str().unwrap().to_owned(), index);
        }
    }
    let content = &operation["requestBody"]["content"];
    let body = content["application/json"].get("schema").unwrap_or(&content["multipart/form-data"]["schema"]);
    if !body.is_null() {
        members(document, body, "", 6, &mut found);
    }
    let mut names: Vec<(usize, String)> = found.into_iter().map(|(name, index)| (index, name)).collect();
    names.sort_unstable();
    names.into_iter().map(|(_, name)| name).collect()
}

/// Returns the note on a parameter that both descriptions have. A nested thread has the notes of a thread.
fn note(path: &str) -> &'static str {
    let path = path.strip_prefix("thread.").unwrap_or(path);
    match NOTES.iter().find(|(name, _)| *name == path) {
        Some((_, note)) => note,
        None => "supported",
    }
}

/// Renders the page. Omits the parameters of operations that are rejected as a whole, and of those that are
/// forwarded to model servers unchanged.
fn page(official: &Value, ours: &Value) -> String {
    let mut page = INTRO.to_owned();
    page.push_str("\n## Operations\n\n| operation | assistd |\n| --- | --- |\n");
    let mut tables = String::new();
    let (mut served, mut all) = (0, 0);
    for (path, item) in official["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(_, value)| value.is_object()) {
            let name = format!("`{} {path}`", method.to_uppercase());
            all += 1;
            let Some(own) = own_operation(ours, method, path) else {
                writeln!(page, "| {name} | not yet |").unwrap();
                continue;
            };
            let is_proxied = path.starts_with("/chat/") || path == "/embeddings";
            let what = match (is_proxied, method.as_str(), path.as_str()) {
                (true, ..) => "forwarded to the model server; aliases apply",
                (_, "delete", "/models/{model}") => "supported: answers that the caller does not own the model",
                _ => "supported",
            };
            served += 1;
            writeln!(page, "| {name} | {what} |").unwrap();
            let theirs = parameters(official, operation);
            if is_proxied || theirs.is_empty() {
                continue;
            }
            let known = parameters(ours, own);
            write!(tables, "\n### {name}\n\n| parameter | assistd |\n| --- | --- |\n").unwrap();
            for member in theirs {
                // Unknown query parameters are ignored.
                let is_known = known.contains(&member) || member == "include[]";
                let what = if is_known { note(&member) } else { "rejected as unknown" };
                writeln!(tables, "| `{member}` | {what} |").unwrap();
            }
        }
    }
    write!(page, "\n{served} of {all} are served. In addition, `GET /v1/threads` lists all threads.\n").unwrap();
    page.push_str("\n## Request parameters\n");
    page.push_str(&tables);
    page
}

/// Returns our operation for a path of the service, ignoring the names of path parameters.
fn own_operation<'a>(ours: &'a Value, method: &str, path: &str) -> Option<&'a Value> {
    let plain = |path: &str| -> String {
        path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part }).collect::<Vec<_>>().join("/")
    };
    let (_, item) =
        ours["paths"].as_object()?.iter().find(|(known, _)| plain(known) == plain(&format!("/v1{path}")))?;
    item.get(method)
}

#[test]
fn compatibility_md_is_up_to_date() {
    let Some(official) = contract::official() else { return };
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("COMPATIBILITY.md");

    let page = page(official, &assistd::http::description());

    for (name, note) in NOTES {
        assert!(page.contains(&format!("| `{name}` | {note} |")), "no parameter has the name {name} of this note");
    }
    if std::env::var("ASSISTD_TEST_WRITE").is_ok() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "COMPATIBILITY.md is out of date: ASSISTD_TEST_WRITE=1 cargo test --test it compatibility"
    );
}
