//! Replays recorded requests of the live service one by one: our responses must equal the recorded ones.
//!
//! IDs, times and the momentary status of a run differ between recordings and are not compared. The scripted model answers
//! with the recorded text. Recordings that need the service's own tools are skipped until these are supported.

use std::collections::HashMap;

use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::contract;
use crate::support::database::Database;
use crate::support::form::Form;
use crate::support::ingest;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

/// Recorded scripts whose runs use a tool of the service, and the tool. They are replayed up to their run.
const RUNS_WITH_TOOLS: [(&str, &str); 2] =
    [("BasicRunStepFunctionalityWorks", "code_interpreter"), ("FileSearchWorks", "file_search")];

/// Replaces a value that differs between recordings.
const VARIABLE: &str = "variable";

fn recordings(name: &str) -> Option<Vec<Value>> {
    let text = contract::file(&format!("recordings/{name}"))?;
    Some(serde_json::from_str::<Vec<Value>>(&text).unwrap())
}

fn is_id(text: &str) -> bool {
    let prefixes = ["asst_", "thread_", "msg_", "run_", "step_", "call_", "file-", "upload_", "part_", "vs_", "vsfb_"];
    prefixes.iter().any(|prefix| text.starts_with(prefix)) && text.len() > 20
}

/// Maps the IDs of a recorded response to ours.
fn map_ids(ids: &mut HashMap<String, String>, recorded: &Value, ours: &Value) {
    match (recorded, ours) {
        (Value::Object(recorded), Value::Object(ours)) => {
            // The first and last IDs may belong to objects of other scripts.
            let members = recorded.iter().filter(|(name, _)| !["first_id", "last_id"].contains(&name.as_str()));
            members.for_each(|(name, value)| map_ids(ids, value, ours.get(name).unwrap_or(&Value::Null)));
        }
        (Value::Array(recorded), Value::Array(ours)) => {
            recorded.iter().zip(ours).for_each(|(recorded, ours)| map_ids(ids, recorded, ours));
        }
        (Value::String(recorded), Value::String(ours)) if is_id(recorded) => {
            ids.entry(recorded.clone()).or_insert_with(|| ours.clone());
        }
        _ => {}
    }
}

fn with_our_ids(value: &Value, ids: &HashMap<String, String>) -> Value {
    let mut text = value.to_string();
    for (recorded, ours) in ids {
        text = text.replace(recorded.as_str(), ours);
    }
    serde_json::from_str(&text).unwrap()
}

/// Converts a recorded response to the one that we must return: with our IDs, the properties that the service omitted, and
/// the one string that we send instead of null.
fn expected(recorded: &Value, ids: &HashMap<String, String>) -> Value {
    let mut value = with_our_ids(recorded, ids);
    normalize(&mut value);
    value
}

fn normalize(value: &mut Value) {
    match value {
        Value::Array(elements) => elements.iter_mut().for_each(normalize),
        Value::Object(members) => {
            members.values_mut().for_each(normalize);
            normalize_object(members);
        }
        _ => {}
    }
}

fn normalize_object(members: &mut Map<String, Value>) {
    match members.get("object").and_then(Value::as_str) {
        Some("thread.message") => {
            // Differs: the service omitted four properties, and once sent an old one instead of `attachments`.
            members.shift_remove("file_ids");
            for name in ["status", "incomplete_details", "incomplete_at", "completed_at"] {
                members.shift_remove(name);
            }
            members.entry("attachments").or_insert(json!([]));
            members.sort_keys();
        }
        Some("thread.run") => {
            // Differs: strict clients reject null here.
            if members["instructions"].is_null() {
                members["instructions"] = json!("");
            }
            if members["status"] == "in_progress" {
                members["status"] = json!("queued");
            }
            if members["status"] == "queued" {
                members["started_at"] = json!(VARIABLE);
            }
        }
        Some("vector_store.file") => {
            // The replay waits until files are processed if they were in the recording.
            members["status"] = json!(VARIABLE);
            members["usage_bytes"] = json!(VARIABLE);
        }
        _ => {}
    }
    for (name, value) in members.iter_mut() {
        if (name.ends_with("_at") || name.ends_with("_tokens")) && value.is_number() {
            *value = json!(VARIABLE);
        }
    }
}

/// Retains the elements of a list that belong to this script: the recorded account had others too.
fn retain_own(list: &mut Value, ids: &HashMap<String, String>) {
    let Some(data) = list.get_mut("data").and_then(Value::as_array_mut) else { return };
    data.retain(|element| element["id"].as_str().is_some_and(|id| ids.values().any(|ours| ours == id)));
    if list["has_more"] == true {
        // The next page belongs to other scripts.
        list["has_more"] = json!(false);
        list["last_id"] = list["data"].as_array().unwrap().last().map_or(Value::Null, |last| last["id"].clone());
    }
}

/// Returns the recorded answers of the model in order, each held until the script continues.
fn answers(script: &[&Value]) -> Vec<Answer> {
    let leak = |text: &str| -> &'static str { text.to_owned().leak() };
    let mut answers = Vec::new();
    for entry in script {
        let reply = &entry["response"];
        for call in reply["required_action"]["submit_tool_outputs"]["tool_calls"].as_array().into_iter().flatten() {
            let function = &call["function"];
            let call = (leak(function["name"].as_str().unwrap()), leak(function["arguments"].as_str().unwrap()));
            answers.push(Answer::Held(Box::new(Answer::Calls(vec![], vec![call]))));
        }
        for message in reply["data"].as_array().into_iter().flatten() {
            if let (true, Some(text)) = (message["run_id"].is_string(), message["content"][0]["text"]["value"].as_str())
            {
                answers.push(Answer::Held(Box::new(Answer::Tokens(vec![leak(text)]))));
            }
        }
    }
    answers
}

/// The size of a part of an upload: the two parts of the recorded file have eight bytes.
const PART_BYTES: usize = 4;

/// Returns the form of a recorded request, as .NET sends it. The recordings have only its response.
fn rebuilt_form(entry: &Value) -> Option<Form> {
    let (path, response) = (entry["path"].as_str().unwrap(), &entry["response"]);
    if entry["method"] != "POST" {
        return None;
    }
    if path.ends_with("/parts") {
        return Some(Form::default().part("name=data; filename=blob; filename*=utf-8''blob", &[b'x'; PART_BYTES]));
    }
    let rejected = || response["error"]["message"].as_str().unwrap().split('\'').nth(1).unwrap();
    let purpose = || response["purpose"].as_str().unwrap_or_else(rejected);
    (path == "/files").then(|| {
        let name = response["filename"].as_str().unwrap_or("test.txt");
        let encoded = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
        let bytes = usize::try_from(response["bytes"].as_u64().unwrap_or(1)).unwrap();
        let file = format!("name=file; filename=\"=?utf-8?B?eA==?=\"; filename*=utf-8''{encoded}");
        Form::default().part("name=purpose", purpose().as_bytes()).part(&file, &vec![b'x'; bytes])
    })
}

/// Returns the JSON body of a recorded request on uploads whose body is missing in the recordings, or null.
fn rebuilt_request(script: &[&Value], entry: &Value) -> Value {
    let (path, response) = (entry["path"].as_str().unwrap(), &entry["response"]);
    if path == "/uploads" {
        let member = |name: &str| response[name].clone();
        return json!({"purpose": member("purpose"), "filename": member("filename"), "bytes": member("bytes"),
            "mime_type": "text/jsonl"});
    }
    if path.starts_with("/uploads/") && path.ends_with("/complete") {
        let parts = script.iter().filter(|entry| entry["path"].as_str().unwrap().ends_with("/parts"));
        return json!({"part_ids": parts.map(|entry| entry["response"]["id"].clone()).collect::<Vec<_>>()});
    }
    Value::Null
}

/// Splits recordings into scripts, by their source.
fn scripts(recordings: &[Value]) -> Vec<(&str, Vec<&Value>)> {
    let mut scripts: Vec<(&str, Vec<&Value>)> = Vec::new();
    for entry in recordings {
        let source = entry["source"].as_str().unwrap();
        match scripts.last_mut() {
            Some((name, script)) if *name == source => script.push(entry),
            _ => scripts.push((source, vec![entry])),
        }
    }
    scripts
}

/// Uploads the files that a script uses but does not upload. Returns their IDs by the recorded ones.
async fn upload_missing_files(client: &Client, script: &[&Value]) -> HashMap<String, String> {
    let uploaded: Vec<&Value> = script.iter().map(|entry| &entry["response"]["id"]).collect();
    let attachments = script.iter().flat_map(|entry| entry["request"]["attachments"].as_array().into_iter().flatten());
    let mut ids = HashMap::new();
    for file in attachments.map(|attachment| &attachment["file_id"]) {
        let recorded = file.as_str().unwrap().to_owned();
        if !uploaded.contains(&file) && !ids.contains_key(&recorded) {
            let form = Form::default().text("purpose", "assistants").file("file", "a.txt", b"x");
            let reply = form.send(client, "/v1/files").await;
            ids.insert(recorded, reply.body["id"].as_str().unwrap().to_owned());
        }
    }
    ids
}

async fn replay(client: &Client, upstream: &Upstream, script: &[&Value]) {
    let mut ids = upload_missing_files(client, script).await;
    for entry in script {
        let (method, path) = (entry["method"].as_str().unwrap(), entry["path"].as_str().unwrap());
        let what = format!("{} {method} {path}", entry["source"].as_str().unwrap());
        let path = with_our_ids(&json!(format!("/v1{path}")), &ids).as_str().unwrap().to_owned();
        let recorded = &entry["response"];
        if method == "GET"
            && ["completed", "requires_action"].contains(&recorded["status"].as_str().unwrap_or_default())
        {
            upstream.resume();
            client.wait_for_status(&path, recorded["status"].as_str().unwrap()).await;
        }
        let request =
            if entry["request"].is_null() { rebuilt_request(script, entry) } else { entry["request"].clone() };
        let body = (!request.is_null()).then(|| with_our_ids(&request, &ids));
        let reply = match rebuilt_form(entry) {
            Some(form) => form.send(client, &path).await,
            None => client.send(method.parse::<Method>().unwrap(), &path, body.as_ref()).await,
        };

        assert_eq!(Some(u64::from(reply.status)), entry["status"].as_u64(), "{what}: {:#}", reply.body);
        map_ids(&mut ids, recorded, &reply.body);
        let mut expected = expected(recorded, &ids);
        let mut ours = reply.body;
        normalize(&mut ours);
        retain_own(&mut expected, &ids);
        retain_own(&mut ours, &ids);
        assert_eq!(ours.to_string(), expected.to_string(), "{what}");
    }
}

both_stores!(assistants_responses_match_the_recordings, async |database: Database| {
    let Some(recordings) = recordings("assistants.json") else { return };
    let (mut replayed, mut skipped) = (0, 0);
    for (name, mut script) in scripts(&recordings) {
        if RUNS_WITH_TOOLS.iter().any(|(script, _)| name.contains(script)) {
            let end = script.iter().position(|entry| path_of(entry).contains("/runs")).unwrap();
            skipped += script.len() - end;
            script.truncate(end);
        }
        let upstream = Upstream::scripted(answers(&script)).await;
        let server = Server::start(&database, &upstream).await;
        replay(&server.client, &upstream, &script).await;
        server.stop().await;
        replayed += script.len();
    }
    assert_eq!((replayed, skipped), (63, 9), "number of replayed and skipped requests");
});

both_stores!(files_and_uploads_responses_match_the_recordings, async |database: Database| {
    let Some(recordings) = recordings("files_uploads_models.json") else { return };
    let upstream = Upstream::start().await;
    let server = Server::start(&database, &upstream).await;

    let mut replayed = 0;
    for (_, script) in scripts(&recordings).into_iter().filter(|(name, _)| !name.starts_with("ModelsTests")) {
        replay(&server.client, &upstream, &script).await;
        replayed += script.len();
    }

    assert_eq!(replayed, 30, "number of replayed requests");
});

/// Returns whether a request lists the files of a batch.
///
/// Differs: the service ignored the requested order of such a list, and listed the files by their ID. Ours has the order of
/// the request that created the batch.
fn lists_batch(path: &str) -> bool {
    path.contains("/file_batches/") && path.contains("/files")
}

fn path_of(entry: &Value) -> &str {
    entry["path"].as_str().unwrap()
}

both_stores!(vector_stores_responses_match_the_recordings, async |database: Database| {
    let Some(recordings) = recordings("vector_stores.json") else { return };
    let server = Server::with(&database, &Upstream::start().await, &[("INGEST_CONCURRENCY", "0")]).await;
    let client = &server.client;

    let (mut replayed, mut reordered) = (0, 0);
    for (_, script) in scripts(&recordings) {
        let mut ids: HashMap<String, String> = HashMap::new();
        let is_by_id = script.iter().any(|entry| lists_batch(path_of(entry)));
        for entry in script {
            let (method, path) = (entry["method"].as_str().unwrap(), path_of(entry));
            let mut request = entry["request"].clone();
            if let (true, Some(files)) = (is_by_id, request.get_mut("file_ids").and_then(Value::as_array_mut)) {
                files.sort_by_key(ToString::to_string);
            }
            let recorded = &entry["response"];
            if recorded["data"].as_array().is_some_and(|files| files.iter().any(|file| file["status"] == "completed")) {
                ingest::process_all(&database, &server.clock).await;
            }
            let our_path = with_our_ids(&json!(format!("/v1{path}")), &ids).as_str().unwrap().to_owned();
            let body = (!request.is_null()).then(|| with_our_ids(&request, &ids));
            let reply = match rebuilt_form(entry) {
                Some(form) => form.send(client, &our_path).await,
                None => client.send(method.parse::<Method>().unwrap(), &our_path, body.as_ref()).await,
            };

            assert_eq!(Some(u64::from(reply.status)), entry["status"].as_u64(), "{method} {path}: {:#}", reply.body);
            replayed += 1;
            if lists_batch(path) && !path.contains("order=asc") {
                reordered += 1;
                continue;
            }
            map_ids(&mut ids, recorded, &reply.body);
            let mut ours = reply.body;
            normalize(&mut ours);
            assert_eq!(ours.to_string(), expected(recorded, &ids).to_string(), "{method} {path}");
        }
    }
    assert_eq!((replayed, reordered), (46, 3), "number of replayed and of reordered requests");
});

both_stores!(models_responses_match_the_recordings, async |database: Database| {
    let Some(recordings) = recordings("files_uploads_models.json") else { return };
    let server = Server::start(&database, &Upstream::start().await).await;

    let models: Vec<&Value> =
        recordings.iter().filter(|entry| entry["path"].as_str().unwrap().starts_with("/models")).collect();

    assert_eq!(models.len(), 2);
    for entry in models {
        // The scripted server does not have the recorded model; its own model is used instead.
        let path = entry["path"].as_str().unwrap().replace("gpt-4o-mini", "small");
        let reply = server.client.send(Method::GET, &format!("/v1{path}"), None).await;
        let mut recorded = entry["response"].clone();
        if reply.status == 200 {
            recorded["id"] = json!("small");
            recorded["created"] = json!(1);
            recorded["owned_by"] = json!("us");
        }
        assert_eq!(
            (Some(u64::from(reply.status)), reply.body.to_string()),
            (entry["status"].as_u64(), recorded.to_string())
        );
    }
});
