//! Projects do not see each other: an ID of another project is answered exactly like one that never existed.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::{Client, Reply};
use crate::support::database::Database;
use crate::support::form::Form;
use crate::support::ingest;
use crate::support::projects::{ADMIN_KEY, create_project};
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

/// Sends a request with the key of a project, without checks of the response. A part of an upload is a form.
async fn send(client: &Client, key: &str, method: &Method, path: &str, body: Option<&Value>) -> Reply {
    if path.ends_with("/parts") {
        return send_form(client, key, path, Form::default().file("data", "blob", b"x")).await;
    }
    let mut request = client.request(method.clone(), path).bearer_auth(key);
    if let Some(body) = body {
        request = request.json(body);
    }
    Client::read(request.send().await.unwrap()).await
}

async fn send_form(client: &Client, key: &str, path: &str, form: Form) -> Reply {
    let request = client.request(Method::POST, path).bearer_auth(key).header("content-type", Form::content_type());
    Client::read(request.body(form.body()).send().await.unwrap()).await
}

/// The objects of a project, by the names of path parameters.
type Objects = BTreeMap<&'static str, String>;

/// Creates one object of each kind. The run requires an action, so that every operation on it would have an effect.
async fn create_objects(server: &Server, database: &Database, key: &str) -> Objects {
    let client = &server.client;
    let create = async |path: &str, body: Value| send(client, key, &Method::POST, path, Some(&body)).await.body;
    let id = |object: &Value| object["id"].as_str().unwrap().to_owned();
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let file = Form::default().text("purpose", "vision").file("file", "a.txt", b"x");
    let file = id(&send_form(client, key, "/v1/files", file).await.body);
    let upload = json!({"purpose": "vision", "filename": "a.png", "bytes": 1, "mime_type": "image/png"});
    let upload = id(&create("/v1/uploads", upload).await);
    let store = id(&create("/v1/vector_stores", json!({})).await);
    let batches = format!("/v1/vector_stores/{store}/file_batches");
    let batch = id(&create(&batches, json!({"file_ids": [file]})).await);
    ingest::process_all(database, &server.clock).await;
    let assistant = id(&create("/v1/assistants", json!({"model": "m", "tools": [tool]})).await);
    let thread = id(&create("/v1/threads", json!({})).await);
    let message =
        id(&create(&format!("/v1/threads/{thread}/messages"), json!({"role": "user", "content": "Hi"})).await);
    let run = id(&create(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant})).await);
    let path = format!("/v1/threads/{thread}/runs/{run}");
    for _ in 0..3_000 {
        if send(client, key, &Method::GET, &path, None).await.body["status"] == "requires_action" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let steps = send(client, key, &Method::GET, &format!("{path}/steps"), None).await.body;
    let step = id(&steps["data"][0]);
    BTreeMap::from([
        ("assistant_id", assistant),
        ("thread_id", thread),
        ("message_id", message),
        ("run_id", run),
        ("step_id", step),
        ("file_id", file),
        ("upload_id", upload),
        ("vector_store_id", store),
        ("batch_id", batch),
    ])
}

/// IDs in the form of real ones that never existed.
fn unknown_objects() -> Objects {
    let ids = [
        ("assistant_id", "asst_"),
        ("thread_id", "thread_"),
        ("message_id", "msg_"),
        ("run_id", "run_"),
        ("step_id", "step_"),
        ("file_id", "file-"),
        ("upload_id", "upload_"),
        ("vector_store_id", "vs_"),
        ("batch_id", "vsfb_"),
    ];
    ids.map(|(name, prefix)| (name, format!("{prefix}0123456789abcdef0123456789abcdef"))).into()
}

/// A valid body of an operation; `None` if it has none.
fn body_of(operation: &str, objects: &Objects) -> Option<Value> {
    let (assistant, file) = (&objects["assistant_id"], &objects["file_id"]);
    let resources = json!({"code_interpreter": {"file_ids": [file]},
        "file_search": {"vector_store_ids": [objects["vector_store_id"]]}});
    let attachment = json!({"file_id": file, "tools": [{"type": "file_search"}, {"type": "code_interpreter"}]});
    let message = json!({"role": "user", "content": "x", "attachments": [attachment]});
    match operation {
        "createAssistant" => Some(json!({"model": "m", "tool_resources": resources})),
        "createThread" => Some(json!({"messages": [message], "tool_resources": resources})),
        "modifyAssistant" | "modifyThread" => Some(json!({"tool_resources": resources})),
        "createMessage" => Some(message),
        "createRun" => Some(json!({"assistant_id": assistant, "additional_messages": [message]})),
        "createThreadAndRun" => Some(json!({"assistant_id": assistant, "tool_resources": resources,
            "thread": {"messages": [message]}})),
        "createVectorStore" | "createVectorStoreFileBatch" => Some(json!({"file_ids": [objects["file_id"]]})),
        "createVectorStoreFile" => Some(json!({"file_id": objects["file_id"]})),
        "updateVectorStoreFileAttributes" => Some(json!({"attributes": {"changed": "yes"}})),
        "searchVectorStore" => Some(json!({"query": "x"})),
        "completeUpload" => Some(json!({"part_ids": ["part_x"]})),
        "submitToolOutputsToRun" => Some(json!({"tool_outputs": []})),
        name if name.starts_with("modify") => Some(json!({"metadata": {"changed": "yes"}})),
        _ => None,
    }
}

/// Replaces the path parameters. Returns `None` if one has no object.
fn path_of(template: &str, objects: &Objects) -> Option<String> {
    let mut path = template.to_owned();
    for (name, id) in objects {
        path = path.replace(&format!("{{{name}}}"), id);
    }
    (!path.contains('{')).then_some(path)
}

/// Every choice of foreign and own objects with at least one foreign one, of those that a path or its body names.
fn mixtures(foreign: &Objects, own: &Objects, names: &[&'static str]) -> Vec<Objects> {
    (1..1_usize << names.len())
        .map(|bits| {
            let is_foreign =
                |name| names.iter().position(|known| known == name).is_some_and(|bit| bits & (1 << bit) != 0);
            own.iter()
                .map(|(name, id)| (*name, if is_foreign(name) { foreign[name].clone() } else { id.clone() }))
                .collect()
        })
        .collect()
}

/// Replaces the IDs, which differ between two requests, by the names of their parameters.
fn without_ids(reply: &Reply, ids: &[&Objects]) -> (u16, String) {
    let mut body = reply.body.to_string();
    for objects in ids {
        for (name, id) in *objects {
            body = body.replace(id.as_str(), &format!("<{name}>"));
        }
    }
    (reply.status, body)
}

both_stores!(every_operation_answers_a_foreign_id_like_an_unknown_one, async |database: Database| {
    let calls = || Answer::Calls(vec![], vec![("f", "{}")]);
    let upstream = Upstream::scripted([calls(), calls()]).await;
    let server = Server::with(&database, &upstream, &[("ADMIN_KEYS", ADMIN_KEY), ("INGEST_CONCURRENCY", "0")]).await;
    let client = &server.client;
    let (_, theirs_key) = create_project(client, "theirs").await;
    let (_, ours_key) = create_project(client, "ours").await;
    let theirs = create_objects(&server, &database, &theirs_key).await;
    let ours = create_objects(&server, &database, &ours_key).await;
    let unknown = unknown_objects();
    let before = snapshot(client, &theirs_key, &theirs).await;

    let mut compared = 0;
    for operation in assistd::http::operations() {
        let method = Method::from_bytes(operation.method.to_uppercase().as_bytes()).unwrap();
        let mut names: Vec<&'static str> =
            theirs.keys().copied().filter(|name| operation.path.contains(&format!("{{{name}}}"))).collect();
        if operation.id == "createRun" || operation.id == "createThreadAndRun" {
            names.push("assistant_id");
        }
        let has_file =
            ["createAssistant", "createThread", "createMessage", "createRun", "modifyAssistant", "modifyThread"];
        if operation.id.starts_with("createVectorStore") || has_file.iter().any(|start| operation.id.starts_with(start))
        {
            names.push("file_id");
        }
        let has_store = ["createAssistant", "createThread", "createThreadAndRun", "modifyAssistant", "modifyThread"];
        if has_store.contains(&operation.id) {
            names.push("vector_store_id");
        }
        for (foreign, never) in mixtures(&theirs, &ours, &names).iter().zip(mixtures(&unknown, &ours, &names)) {
            let Some(path) = path_of(&operation.path, foreign) else { continue };
            let unknown_path = path_of(&operation.path, &never).unwrap();
            let body = body_of(operation.id, foreign);
            let real = send(client, &ours_key, &method, &path, body.as_ref()).await;
            let unknown_body = body_of(operation.id, &never);
            let fake = send(client, &ours_key, &method, &unknown_path, unknown_body.as_ref()).await;
            let ids = [&theirs, &unknown, &ours];
            assert_eq!(without_ids(&real, &ids), without_ids(&fake, &ids), "{} {path}", operation.id);
            assert!((400..500).contains(&real.status), "{} {path}: {}", operation.id, real.body);
            compared += 1;
        }
        if operation.id.starts_with("list")
            && operation.path.starts_with("/v1/")
            && !operation.path.contains("organization")
        {
            compared += compare_cursors(client, &ours_key, &operation, [&theirs, &unknown, &ours]).await;
        }
    }

    assert!(compared >= 60, "only {compared} requests were compared");
    assert_eq!(snapshot(client, &theirs_key, &theirs).await, before, "a request of another project changed an object");
});

/// Compares cursors and filters of a list of our own objects.
async fn compare_cursors(
    client: &Client,
    key: &str,
    operation: &assistd::http::Operation,
    [theirs, unknown, ours]: [&Objects; 3],
) -> usize {
    let Some(path) = path_of(&operation.path, ours) else { return 0 };
    let mut compared = 0;
    for name in theirs.keys() {
        for parameter in ["after", "before", "run_id"] {
            let of = |objects: &Objects| format!("{path}?{parameter}={}", objects[name]);
            if parameter == "run_id" && *name != "run_id" {
                continue;
            }
            let real = send(client, key, &Method::GET, &of(theirs), None).await;
            let fake = send(client, key, &Method::GET, &of(unknown), None).await;
            let ids = [theirs, unknown];
            assert_eq!(without_ids(&real, &ids), without_ids(&fake, &ids), "{}", of(theirs));
            compared += 1;
        }
    }
    compared
}

/// Reads all objects of a project, with the lists that contain them.
async fn snapshot(client: &Client, key: &str, objects: &Objects) -> Vec<Value> {
    let mut found = Vec::new();
    for path in [
        "/v1/assistants/{assistant_id}",
        "/v1/threads/{thread_id}",
        "/v1/threads/{thread_id}/messages/{message_id}",
        "/v1/threads/{thread_id}/runs/{run_id}",
        "/v1/threads/{thread_id}/runs/{run_id}/steps/{step_id}",
        "/v1/files/{file_id}",
        "/v1/vector_stores/{vector_store_id}",
        "/v1/vector_stores/{vector_store_id}/index",
        "/v1/vector_stores/{vector_store_id}/files",
        "/v1/vector_stores/{vector_store_id}/files/{file_id}",
        "/v1/vector_stores/{vector_store_id}/files/{file_id}/content",
        "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}",
        "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/files",
        "/v1/vector_stores",
        "/v1/assistants",
        "/v1/threads",
        "/v1/files",
        "/v1/threads/{thread_id}/messages",
        "/v1/threads/{thread_id}/runs",
        "/v1/threads/{thread_id}/runs/{run_id}/steps",
    ] {
        let reply = send(client, key, &Method::GET, &path_of(path, objects).unwrap(), None).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        found.push(reply.body);
    }
    found
}

/// What a test knows of an object.
#[derive(Debug, Clone)]
struct Known {
    owner: usize,
    /// The path of its list.
    list: String,
    path: String,
    is_deleted: bool,
    changes: usize,
}

/// Random operations of two projects on the objects of both.
async fn run_sequence(client: &Client, keys: &[String; 2], seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut known: Vec<Known> = Vec::new();
    for number in 0..50 {
        let actor = random.usize(..2);
        let key = &keys[actor];
        let target = (!known.is_empty()).then(|| random.usize(..known.len()));
        let context = |known: &Known| format!("seed {seed}, operation {number} of {actor} on {known:?}");
        match (random.u8(..10), target) {
            (0..=1, _) | (_, None) => {
                let list = if random.bool() { "/v1/assistants" } else { "/v1/threads" }.to_owned();
                let body =
                    if list.ends_with('s') && list.contains("assistants") { json!({"model": "m"}) } else { json!({}) };
                known.push(create(client, key, actor, list, &body).await);
            }
            (2, Some(target)) if known[target].list == "/v1/threads" => {
                let list = format!("{}/messages", known[target].path);
                let body = json!({"role": "user", "content": "x"});
                let is_visible = known[target].owner == actor && !known[target].is_deleted;
                let reply = send(client, key, &Method::POST, &list, Some(&body)).await;
                assert_eq!(reply.status, if is_visible { 200 } else { 404 }, "{}", context(&known[target]));
                if is_visible {
                    let path = format!("{list}/{}", reply.body["id"].as_str().unwrap());
                    known.push(Known { owner: actor, list, path, is_deleted: false, changes: 0 });
                }
            }
            (2..=4, Some(target)) => {
                let reply = send(client, key, &Method::GET, &known[target].path, None).await;
                let is_visible = known[target].owner == actor && !known[target].is_deleted;
                assert_eq!(reply.status, if is_visible { 200 } else { 404 }, "{}", context(&known[target]));
                if is_visible {
                    let changes = reply.body["metadata"]["changes"].as_str().map_or(0, |text| text.parse().unwrap());
                    assert_eq!(changes, known[target].changes, "{}", context(&known[target]));
                }
            }
            (5..=6, Some(target)) => {
                let changes = known[target].changes + 1;
                let body = json!({"metadata": {"changes": changes.to_string()}});
                let reply = send(client, key, &Method::POST, &known[target].path, Some(&body)).await;
                let is_visible = known[target].owner == actor && !known[target].is_deleted;
                assert_eq!(reply.status, if is_visible { 200 } else { 404 }, "{}", context(&known[target]));
                if is_visible {
                    known[target].changes = changes;
                }
            }
            (7, Some(target)) => {
                let reply = send(client, key, &Method::DELETE, &known[target].path, None).await;
                let is_visible = known[target].owner == actor && !known[target].is_deleted;
                assert_eq!(reply.status, if is_visible { 200 } else { 404 }, "{}", context(&known[target]));
                if is_visible {
                    let below = format!("{}/", known[target].path);
                    for other in &mut known {
                        other.is_deleted |= other.path.starts_with(&below);
                    }
                    known[target].is_deleted = true;
                }
            }
            (_, Some(target)) => check_list(client, key, actor, &known, &known[target].list).await,
        }
    }
}

async fn create(client: &Client, key: &str, owner: usize, list: String, body: &Value) -> Known {
    let reply = send(client, key, &Method::POST, &list, Some(body)).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let path = format!("{list}/{}", reply.body["id"].as_str().unwrap());
    Known { owner, list, path, is_deleted: false, changes: 0 }
}

/// A list has exactly the caller's own objects that are not deleted.
async fn check_list(client: &Client, key: &str, actor: usize, known: &[Known], list: &str) {
    let reply = send(client, key, &Method::GET, &format!("{list}?limit=100&order=asc"), None).await;
    let thread = list.strip_suffix("/messages");
    let is_visible = |known: &&Known| known.owner == actor && !known.is_deleted;
    if thread.is_some_and(|thread| !known.iter().filter(is_visible).any(|known| known.path == thread)) {
        assert_eq!(reply.status, 404, "{list}");
        return;
    }
    let listed: Vec<String> = reply.body["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| format!("{list}/{}", object["id"].as_str().unwrap()))
        .collect();
    let own: Vec<String> =
        known.iter().filter(is_visible).filter(|known| known.list == list).map(|known| known.path.clone()).collect();
    assert_eq!(listed, own, "{list}");
}

both_stores!(random_operations_of_two_projects_do_not_interfere, async |database: Database| {
    let server =
        Server::with(&database, &Upstream::start().await, &[("ADMIN_KEYS", ADMIN_KEY), ("INGEST_CONCURRENCY", "0")])
            .await;
    for seed in 0..12 {
        let (_, one) = create_project(&server.client, "one").await;
        let (_, other) = create_project(&server.client, "other").await;
        run_sequence(&server.client, &[one, other], seed).await;
    }
});
