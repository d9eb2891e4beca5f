//! COMPATIBILITY.md: every operation and every member of a request that the service had, and what assistd does with it.
//! The page is made here from the service's description and ours, so that it cannot lie: a difference fails the test, and
//! `ASSISTD_TEST_WRITE=1 cargo test --test it compatibility` writes the page anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::contract;

const INTRO: &str = "\
# Compatibility

Every operation of the Assistants API v2 and of what belongs to it, and every member of their requests, as the service had
them on its last day, and what assistd does. A test makes this page from the service's description and from assistd's own
(`GET /openapi.json`), and fails when it is not up to date.

Replies have every member of the service's schemas, in the recorded order; the tests check each against both descriptions.
Bounds are the service's where nothing else stands here.
";

/// Where the service's description and ours agree on a member, but there is more to say.
const NOTES: [(&str, &str); 20] = [
    (
        "tools",
        "at most 128, on a run too, where it was 20; functions are called; `code_interpreter` and `file_search` are kept and \
         shown, and not offered to the model",
    ),
    ("tool_resources", "kept and shown; without effect before files are served"),
    ("tool_resources.file_search.vector_stores", "refused: there are no vector stores yet"),
    ("attachments", "kept and shown; without effect before files are served"),
    ("content", "text and `image_url` reach the model; of an `image_file` it is told that it is there"),
    ("messages", "at most 1,000; 32 there"),
    ("additional_messages", "at most 1,000"),
    ("max_prompt_tokens", "1 and more, as the service took; 256 in its description"),
    ("max_completion_tokens", "1 and more, as the service took; 256 in its description"),
    ("model", "any name: it goes to a model server by the settings"),
    ("reasoning_effort", "handed on to the model server"),
    ("response_format", "handed on to the model server"),
    ("temperature", "handed on when it is set"),
    ("top_p", "handed on when it is set"),
    ("truncation_strategy", "`auto` cuts in the middle, where the model's window is known"),
    ("instructions", "256,000 characters"),
    ("tool_choice", "`required` and a named function hold for the first turn"),
    ("include[]", "taken; without effect before `file_search` is served"),
    ("stream", "server-sent events"),
    (
        "content[].image_url.url",
        "any `http`, `https` or `data:image/` URL; the service took `http` ones that end like a picture's file",
    ),
];

/// A schema with its references followed.
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(target) => resolve(document, document.pointer(target.strip_prefix('#').unwrap()).unwrap()),
        None => schema,
    }
}

/// The members of a request by path, as deep as they go; alternatives are joined.
fn members(document: &Value, schema: &Value, at: &str, depth: usize, found: &mut BTreeMap<String, usize>) {
    let schema = resolve(document, schema);
    for alternatives in ["anyOf", "oneOf", "allOf"] {
        for alternative in schema[alternatives].as_array().into_iter().flatten() {
            members(document, alternative, at, depth, found);
        }
    }
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        let place = found.len();
        found.entry(path.clone()).or_insert(place);
        // Messages have a table of their own.
        if depth > 0 && !name.ends_with("messages") {
            members(document, member, &path, depth - 1, found);
        }
    }
    if depth > 0 && !schema["items"].is_null() {
        members(document, &schema["items"], &format!("{at}[]"), depth - 1, found);
    }
}

/// The members of an operation's query and body, in the description's order.
fn parameters(document: &Value, operation: &Value) -> Vec<String> {
    let mut found = BTreeMap::new();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let parameter = resolve(document, parameter);
        if parameter["in"] == "query" {
            let place = found.len();
            found.insert(parameter["name"].as_str().unwrap().to_owned(), place);
        }
    }
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    if !body.is_null() {
        members(document, body, "", 6, &mut found);
    }
    let mut names: Vec<(usize, String)> = found.into_iter().map(|(name, place)| (place, name)).collect();
    names.sort_unstable();
    names.into_iter().map(|(_, name)| name).collect()
}

/// What is known of a member: a note on its own path, or on its last part.
fn note(path: &str) -> Option<&'static str> {
    NOTES.iter().find(|(name, _)| *name == path).map(|(_, note)| *note)
}

/// The page. Members of what is refused as a whole, and those of chat completions, which are their server's business, are
/// left out.
fn page(official: &Value, ours: &Value) -> String {
    let mut page = INTRO.to_owned();
    page.push_str("\n## Operations\n\n| operation | |\n| --- | --- |\n");
    let mut tables = String::new();
    let (mut served, mut all) = (0, 0);
    for (path, item) in official["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(_, value)| value.is_object()) {
            let name = format!("`{} {path}`", method.to_uppercase());
            let Some(own) = own_operation(ours, method, path) else {
                all += 1;
                writeln!(page, "| {name} | not yet |").unwrap();
                continue;
            };
            all += 1;
            served += 1;
            let handed_on = path.starts_with("/chat/");
            let what = match (handed_on, method.as_str(), path.as_str()) {
                (true, ..) => "handed on to the model server; aliases apply",
                (_, "delete", "/models/{model}") => "refused: models are their servers' own",
                _ => "served",
            };
            writeln!(page, "| {name} | {what} |").unwrap();
            let theirs = parameters(official, operation);
            if handed_on || theirs.is_empty() {
                continue;
            }
            let known = parameters(ours, own);
            write!(tables, "\n### {name}\n\n| member | |\n| --- | --- |\n").unwrap();
            for member in theirs.into_iter().filter(|member| !member.contains("vector_stores[]")) {
                // Queries may have members that nobody knows.
                let is_taken = known.contains(&member) || member == "include[]";
                let what = if is_taken { note(&member).unwrap_or("yes") } else { "no: refused as unknown" };
                writeln!(tables, "| `{member}` | {what} |").unwrap();
            }
        }
    }
    write!(page, "\n{served} of {all} are served. Beyond them: `GET /v1/threads` lists all threads.\n").unwrap();
    page.push_str("\n## Members of requests\n");
    page.push_str(&tables);
    page
}

/// Our operation at a path of the service's, whatever the parameters in it are called.
fn own_operation<'a>(ours: &'a Value, method: &str, path: &str) -> Option<&'a Value> {
    let plain = |path: &str| -> String {
        path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part }).collect::<Vec<_>>().join("/")
    };
    let (_, item) =
        ours["paths"].as_object()?.iter().find(|(known, _)| plain(known) == plain(&format!("/v1{path}")))?;
    item.get(method)
}

#[test]
fn the_page_says_what_is_served() {
    let Some(official) = contract::official() else { return };
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("COMPATIBILITY.md");

    let page = page(official, &assistd::http::description());

    for (name, note) in NOTES {
        assert!(page.contains(&format!("| `{name}` | {note} |")), "there is no member {name} to take note of");
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
