//! Tool resources of assistants and threads, and the files that messages attach.

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::form::Form;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

const DAY_S: i64 = 86_400;

async fn upload(client: &Client, name: &str) -> String {
    let form = Form::default().text("purpose", "assistants").file("file", name, b"text");
    let reply = form.send(client, "/v1/files").await;
    assert_eq!(reply.status, 200, "{:#}", reply.body);
    reply.body["id"].as_str().unwrap().to_owned()
}

async fn uploads<const N: usize>(client: &Client) -> [String; N] {
    let mut files = Vec::new();
    for number in 0..N {
        files.push(upload(client, &format!("{number}.txt")).await);
    }
    files.try_into().unwrap()
}

/// Starts a server that does not process files.
async fn start(database: &Database) -> Server {
    Server::with_manual_clock(database, &Upstream::start().await, &[("INGEST_CONCURRENCY", "0")]).await
}

/// Returns the ID of the only vector store of an assistant or a thread.
fn vector_store(object: &Value) -> &str {
    let ids = object["tool_resources"]["file_search"]["vector_store_ids"].as_array().unwrap();
    assert_eq!(ids.len(), 1, "{object:#}");
    ids[0].as_str().unwrap()
}

/// Returns the files of a vector store, oldest first.
async fn files_of(client: &Client, store: &str) -> Vec<String> {
    let files = client.get(&format!("/v1/vector_stores/{store}/files?order=asc")).await;
    files["data"].as_array().unwrap().iter().map(|file| file["id"].as_str().unwrap().to_owned()).collect()
}

fn attachments(file: &str, tools: &[&str]) -> Value {
    let tools: Vec<Value> = tools.iter().map(|tool| json!({"type": tool})).collect();
    json!([{"file_id": file, "tools": tools}])
}

async fn add_message(client: &Client, thread: &Value, attachments: &Value) -> Value {
    let body = json!({"role": "user", "content": "x", "attachments": attachments});
    client.post(&format!("/v1/threads/{}/messages", thread["id"].as_str().unwrap()), body).await
}

async fn thread_of(client: &Client, thread: &Value) -> Value {
    client.get(&format!("/v1/threads/{}", thread["id"].as_str().unwrap())).await
}

both_stores!(a_vector_store_is_created_with_an_assistant_or_a_thread, async |database: Database| {
    let server = start(&database).await;
    let client = &server.client;
    let [a, b] = uploads(client).await;
    let sizes = json!({"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 50}});
    let new = json!({"file_ids": [a, b, a], "chunking_strategy": sizes, "metadata": {"k": "v"}});
    let resources = json!({"file_search": {"vector_stores": [new]}, "code_interpreter": {"file_ids": [a]}});

    let assistant = client.post("/v1/assistants", json!({"model": "m", "tool_resources": resources})).await;
    let thread = client.post("/v1/threads", json!({"tool_resources": resources})).await;

    for (object, expiry) in [(&assistant, Value::Null), (&thread, json!(1_000_000 + 7 * DAY_S))] {
        let store = vector_store(object);
        assert_eq!(
            object["tool_resources"],
            json!({"code_interpreter": {"file_ids": [a]}, "file_search": {"vector_store_ids": [store]}})
        );
        let created = client.get(&format!("/v1/vector_stores/{store}")).await;
        assert_eq!((&created["expires_at"], &created["metadata"]), (&expiry, &json!({"k": "v"})));
        assert_eq!(created["file_counts"]["in_progress"], 2);
        assert_eq!(files_of(client, store).await, [a.as_str(), b.as_str()]);
        let file = client.get(&format!("/v1/vector_stores/{store}/files/{a}")).await;
        assert_eq!(file["chunking_strategy"], sizes);
    }
    assert_ne!(vector_store(&assistant), vector_store(&thread));
    let empty = json!({"model": "m", "tool_resources": {"file_search": {"vector_stores": [{}]}}});
    let empty = client.post("/v1/assistants", empty).await;
    assert!(files_of(client, vector_store(&empty)).await.is_empty());
});

both_stores!(tool_resources_must_exist, async |database: Database| {
    let server = start(&database).await;
    let client = &server.client;
    let [file, deleted] = uploads(client).await;
    let table = upload(client, "a.csv").await;
    client.delete(&format!("/v1/files/{deleted}")).await;
    let store = client.post("/v1/vector_stores", json!({})).await["id"].as_str().unwrap().to_owned();
    let assistant = client.post("/v1/assistants", json!({"model": "m"})).await["id"].as_str().unwrap().to_owned();
    let thread = client.post("/v1/threads", json!({})).await["id"].as_str().unwrap().to_owned();
    let (stores, threads) = ("/v1/vector_stores", "/v1/threads");
    let count = async |path: &str| client.get(path).await["data"].as_array().unwrap().len();

    let code = |files: Value| json!({"code_interpreter": {"file_ids": files}});
    let search = |member: &str, value: Value| json!({"file_search": {member: value}});
    let missing_file = format!("Files [{deleted}, file-x] were not found");
    for (resources, status, message) in [
        (code(json!([file, deleted, "file-x"])), 404, missing_file.as_str()),
        (search("vector_store_ids", json!(["vs_x"])), 404, "Vector stores [vs_x] were not found"),
        (
            search("vector_store_ids", json!([store, "vs_x"])),
            400,
            "Invalid 'tool_resources.file_search.vector_store_ids': array too long. Expected an array with maximum length \
             1, but got an array with length 2 instead.",
        ),
    ] {
        for (path, mut body) in [
            ("/v1/assistants".to_owned(), json!({"model": "m"})),
            (threads.to_owned(), json!({})),
            (format!("/v1/assistants/{assistant}"), json!({})),
            (format!("/v1/threads/{thread}"), json!({})),
            (
                "/v1/threads/runs".to_owned(),
                json!({"assistant_id": assistant, "thread": {"messages": [{"role": "user", "content": "Hi"}]}}),
            ),
        ] {
            body["tool_resources"] = resources.clone();
            let (got, error) = client.send_rejected(Method::POST, &path, Some(body)).await;
            assert_eq!((got, &error["message"]), (status, &json!(message)), "{path}");
        }
    }
    for (new, status, message) in [
        (json!([{"file_ids": [file, "file-x"]}]), 404, "Files [file-x] were not found"),
        (
            json!([{"file_ids": [file, table]}]),
            400,
            "Files with extensions [.csv] are not supported for retrieval. Supported extensions: c, cpp, cs, css, doc, \
             docx, go, html, java, js, json, md, pdf, php, pptx, py, rb, sh, tex, ts, txt.",
        ),
    ] {
        for (path, mut body) in [("/v1/assistants", json!({"model": "m"})), (threads, json!({}))] {
            body["tool_resources"] = search("vector_stores", new.clone());
            let (got, error) = client.send_rejected(Method::POST, path, Some(body)).await;
            assert_eq!((got, &error["message"]), (status, &json!(message)), "{path}");
        }
    }
    let new = search("vector_stores", json!([{}]));
    let path = format!("/v1/threads/{thread}");
    let rejected = client.send_rejected(Method::POST, &path, Some(json!({"tool_resources": new})));
    assert_eq!(rejected.await.1["code"], "unknown_parameter", "vector stores are created with a thread, not later");
    let missing = json!({"tool_resources": code(json!(["file-x"]))});
    let (_, error) = client.send_rejected(Method::POST, "/v1/threads/thread_x", Some(missing)).await;
    assert_eq!(error["message"], "No thread found with id 'thread_x'.");

    assert_eq!(
        (count(stores).await, count(threads).await, count("/v1/assistants").await),
        (1, 1, 1),
        "nothing was stored"
    );
    let valid = json!({"tool_resources": {"file_search": {"vector_store_ids": [store]}}});
    assert_eq!(vector_store(&client.post(&format!("/v1/threads/{thread}"), valid).await), store);
});

both_stores!(a_deleted_file_disappears_from_the_code_interpreter, async |database: Database| {
    let server = start(&database).await;
    let client = &server.client;
    let [a, b] = uploads(client).await;
    let resources = json!({"code_interpreter": {"file_ids": [a, b]}});
    let assistant = client.post("/v1/assistants", json!({"model": "m", "tool_resources": resources})).await;
    let thread = client.post("/v1/threads", json!({"tool_resources": resources})).await;

    client.delete(&format!("/v1/files/{a}")).await;

    let expected = json!({"code_interpreter": {"file_ids": [b]}});
    for (list, object) in [("/v1/assistants", &assistant), ("/v1/threads", &thread)] {
        let path = format!("{list}/{}", object["id"].as_str().unwrap());
        assert_eq!(client.get(&path).await["tool_resources"], expected);
        assert_eq!(client.get(list).await["data"][0]["tool_resources"], expected);
        assert_eq!(client.post(&path, json!({"metadata": {"k": "v"}})).await["tool_resources"], expected);
    }
});

both_stores!(attachments_are_added_to_the_resources_of_the_thread, async |database: Database| {
    let server = start(&database).await;
    let client = &server.client;
    let [a, b, c] = uploads(client).await;
    let thread = client.post("/v1/threads", json!({})).await;

    let both = attachments(&a, &["file_search", "code_interpreter"]);
    let message = add_message(client, &thread, &both).await;
    assert_eq!(message["attachments"], both, "they are returned unchanged");
    let first = thread_of(client, &thread).await;
    let store = vector_store(&first).to_owned();
    assert_eq!(first["tool_resources"]["code_interpreter"]["file_ids"], json!([a]));
    let created = client.get(&format!("/v1/vector_stores/{store}")).await;
    assert_eq!(created["expires_after"], json!({"anchor": "last_active_at", "days": 7}));

    server.clock.advance(DAY_S);
    add_message(client, &thread, &attachments(&b, &["file_search"])).await;
    add_message(client, &thread, &both).await;
    add_message(client, &thread, &attachments(&c, &["code_interpreter"])).await;
    add_message(client, &thread, &attachments(&c, &[])).await;
    let second = thread_of(client, &thread).await;
    assert_eq!(vector_store(&second), store);
    assert_eq!(second["tool_resources"]["code_interpreter"]["file_ids"], json!([a, c]));
    assert_eq!(files_of(client, &store).await, [a.as_str(), b.as_str()]);
    let renewed = client.get(&format!("/v1/vector_stores/{store}")).await;
    assert_eq!(renewed["expires_at"], json!(1_000_000 + 8 * DAY_S), "it was used");

    // A deleted vector store is replaced by a new one; an expired one is not, because its files would be missing.
    client.delete(&format!("/v1/vector_stores/{store}")).await;
    add_message(client, &thread, &attachments(&c, &["file_search"])).await;
    let replaced = vector_store(&thread_of(client, &thread).await).to_owned();
    assert_eq!(files_of(client, &replaced).await, [c.as_str()]);
    server.clock.advance(8 * DAY_S);
    let path = format!("/v1/threads/{}/messages", thread["id"].as_str().unwrap());
    let before = client.get(&path).await;
    let body = json!({"role": "user", "content": "x", "attachments": attachments(&a, &["file_search"])});
    let message = client.post_rejected(&path, body).await;
    assert!(message.starts_with(&format!("Vector store '{replaced}' has expired")), "{message}");
    assert_eq!(client.get(&path).await, before, "no message was stored");
});

both_stores!(attachments_of_a_new_thread_join_its_vector_store, async |database: Database| {
    let server = start(&database).await;
    let client = &server.client;
    let [a, b] = uploads(client).await;
    let given = client.post("/v1/vector_stores", json!({"file_ids": [a]})).await["id"].as_str().unwrap().to_owned();
    let message =
        |file: &str| json!({"role": "user", "content": "x", "attachments": attachments(file, &["file_search"])});
    let create = async |file_search: Value, messages: Value| {
        let resources = if file_search.is_null() { json!({}) } else { json!({"file_search": file_search}) };
        client.post("/v1/threads", json!({"messages": messages, "tool_resources": resources})).await
    };

    let both = json!([message(&b), message(&a)]);
    let without = create(Value::Null, both.clone()).await;
    assert_eq!(files_of(client, vector_store(&without)).await, [b.as_str(), a.as_str()]);
    let with_new = create(json!({"vector_stores": [{"file_ids": [a]}]}), both.clone()).await;
    assert_eq!(files_of(client, vector_store(&with_new)).await, [a.as_str(), b.as_str()]);
    let with_given = create(json!({"vector_store_ids": [given]}), both).await;
    assert_eq!(vector_store(&with_given), given);
    assert_eq!(files_of(client, &given).await, [a.as_str(), b.as_str()]);
    for thread in [&without, &with_new, &with_given] {
        assert_eq!(
            thread_of(client, thread).await["tool_resources"]["file_search"],
            thread["tool_resources"]["file_search"]
        );
    }
});

both_stores!(invalid_attachments_are_rejected_and_nothing_is_stored, async |database: Database| {
    let server = start(&database).await;
    let client = &server.client;
    let files: [String; 21] = uploads(client).await;
    let (image, table) = (upload(client, "a.png").await, upload(client, "a.csv").await);
    let code = json!({"code_interpreter": {"file_ids": files[..20]}});
    let thread = client.post("/v1/threads", json!({"tool_resources": code})).await;
    let path = format!("/v1/threads/{}/messages", thread["id"].as_str().unwrap());

    for (attachments, status, message) in [
        (attachments("file-x", &["file_search"]), 404, "Files [file-x] were not found".to_owned()),
        (attachments("file-x", &["code_interpreter"]), 404, "Files [file-x] were not found".to_owned()),
        (
            attachments(&image, &["file_search", "code_interpreter"]),
            400,
            "Files with extensions [.png] are not supported for retrieval. Supported extensions: c, cpp, cs, css, doc, \
             docx, go, html, java, js, json, md, pdf, php, pptx, py, rb, sh, tex, ts, txt."
                .to_owned(),
        ),
        (
            attachments(&files[20], &["code_interpreter"]),
            400,
            "Invalid 'tool_resources.code_interpreter.file_ids': array too long. Expected an array with maximum length 20, \
             but got an array with length 21 instead."
                .to_owned(),
        ),
    ] {
        let message_body = json!({"role": "user", "content": "x", "attachments": attachments});
        let (got, error) = client.send_rejected(Method::POST, &path, Some(message_body.clone())).await;
        assert_eq!((got, &error["message"]), (status, &json!(message)));
        let new = json!({"messages": [message_body], "tool_resources": code});
        let (got, error) = client.send_rejected(Method::POST, "/v1/threads", Some(new)).await;
        assert_eq!((got, &error["message"]), (status, &json!(message)));
    }
    let (status, error) = client
        .send_rejected(
            Method::POST,
            "/v1/threads/thread_x/messages",
            Some(json!({"role": "user", "content": "x", "attachments": attachments("file-x", &["file_search"])})),
        )
        .await;
    assert_eq!((status, &error["message"]), (404, &json!("No thread found with id 'thread_x'.")));

    assert_eq!(client.get(&path).await["data"], json!([]));
    assert_eq!(client.get("/v1/vector_stores").await["data"], json!([]));
    assert_eq!(client.get("/v1/threads").await["data"].as_array().unwrap().len(), 1);
    let accepted = add_message(client, &thread, &attachments(&files[0], &["code_interpreter"])).await;
    assert_eq!(accepted["attachments"][0]["file_id"], files[0].as_str(), "the thread has it already");
    let other = client.post("/v1/threads", json!({})).await;
    add_message(client, &other, &attachments(&table, &["code_interpreter"])).await;
    assert_eq!(thread_of(client, &other).await["tool_resources"]["code_interpreter"]["file_ids"], json!([table]));
});

both_stores!(image_files_of_messages_must_exist_and_can_be_images, async |database: Database| {
    let server = start(&database).await;
    let client = &server.client;
    let upload = async |purpose: &str, name: &str| {
        let form =
            Form::default().text("purpose", purpose).file("file", name, b"text").text("expires_after[seconds]", "3600");
        form.text("expires_after[anchor]", "created_at").send(client, "/v1/files").await.body["id"].clone()
    };
    let mut accepted = Vec::new();
    for purpose in ["vision", "assistants", "user_data"] {
        accepted.push(upload(purpose, "a.png").await);
    }
    let deleted = upload("vision", "a.png").await;
    client.delete(&format!("/v1/files/{}", deleted.as_str().unwrap())).await;
    let mut rejected = vec![
        (json!("file-x"), "Files [file-x] were not found".to_owned()),
        (deleted.clone(), format!("Files [{}] were not found", deleted.as_str().unwrap())),
    ];
    for (purpose, name) in [("batch", "a.jsonl"), ("fine-tune", "a.jsonl")] {
        let file = upload(purpose, name).await;
        let message = format!(
            "Invalid message content: the file '{}' has the purpose '{purpose}'. Expected an image with the purpose 'vision', \
             'assistants' or 'user_data'.",
            file.as_str().unwrap()
        );
        rejected.push((file, message));
    }
    let message = |file: &Value| {
        json!({"role": "user", "content": [{"type": "text", "text": "x"},
            {"type": "image_file", "image_file": {"file_id": file}}]})
    };
    let assistant = client.create_assistant().await;
    let thread = client.create_thread("Hi").await;
    let (messages, runs) = (format!("/v1/threads/{thread}/messages"), format!("/v1/threads/{thread}/runs"));
    let requests = |file: &Value| {
        let hello = json!({"role": "user", "content": "Hi"});
        let list = json!([hello, message(file)]);
        [
            (messages.clone(), message(file), ""),
            ("/v1/threads".to_owned(), json!({"messages": list}), "messages[1]."),
            (runs.clone(), json!({"assistant_id": assistant, "additional_messages": list}), "additional_messages[1]."),
            (
                "/v1/threads/runs".to_owned(),
                json!({"assistant_id": assistant, "thread": {"messages": list}}),
                "thread.messages[1].",
            ),
        ]
    };

    for (file, message) in &rejected {
        for (path, body, param) in requests(file) {
            let (status, error) = client.send_rejected(Method::POST, &path, Some(body)).await;
            let param = format!("{param}content[1].image_file.file_id");
            assert_eq!((status, &error["message"], &error["param"]), (400, &json!(message), &json!(param)), "{path}");
        }
    }
    let missing_thread = "/v1/threads/thread_x/messages";
    let (status, error) = client.send_rejected(Method::POST, missing_thread, Some(message(&rejected[0].0))).await;
    assert_eq!((status, &error["message"]), (404, &json!("No thread found with id 'thread_x'.")));
    assert_eq!(client.get(&messages).await["data"].as_array().unwrap().len(), 1, "nothing was stored");
    assert_eq!(client.get(&runs).await["data"], json!([]));
    assert_eq!(client.get("/v1/threads").await["data"].as_array().unwrap().len(), 1);

    for file in &accepted {
        for (path, body, _) in requests(file) {
            let created = client.post(&path, body).await;
            if path == runs {
                let run = format!("{runs}/{}", created["id"].as_str().unwrap());
                client.wait_for_status(&run, "completed").await;
            }
        }
    }
    let stored = client.get(&format!("/v1/threads/{thread}")).await;
    assert_eq!(
        stored["tool_resources"]["code_interpreter"]["file_ids"],
        json!([]),
        "images are not attached to the thread"
    );

    server.clock.advance(3_600);
    let (status, error) = client.send_rejected(Method::POST, &messages, Some(message(&accepted[0]))).await;
    let expired = format!("Files [{}] were not found", accepted[0].as_str().unwrap());
    assert_eq!((status, &error["message"]), (400, &json!(expired)), "the file has expired");
});

both_stores!(concurrent_attachments_share_one_vector_store, async |database: Database| {
    let server = start(&database).await;
    let client = &server.client;
    let files: [String; 12] = uploads(client).await;
    let thread = client.post("/v1/threads", json!({})).await;

    let parts: Vec<Value> = files.iter().map(|file| attachments(file, &["file_search", "code_interpreter"])).collect();
    futures_util::future::join_all(parts.iter().map(|part| add_message(client, &thread, part))).await;

    let found = thread_of(client, &thread).await;
    let mut searched = files_of(client, vector_store(&found)).await;
    let code = found["tool_resources"]["code_interpreter"]["file_ids"].as_array().unwrap();
    let mut run: Vec<String> = code.iter().map(|file| file.as_str().unwrap().to_owned()).collect();
    let mut expected = files.to_vec();
    searched.sort();
    run.sort();
    expected.sort();
    assert_eq!((&searched, &run), (&expected, &expected));
    assert_eq!(client.get("/v1/vector_stores").await["data"].as_array().unwrap().len(), 1);
});

both_stores!(runs_are_created_with_resources_and_attachments, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Tokens(vec!["Yes"]), Answer::Tokens(vec!["No"])]).await;
    let server = Server::with(&database, &upstream, &[("INGEST_CONCURRENCY", "0")]).await;
    let client = &server.client;
    let [a, b, c] = uploads(client).await;
    let assistant = client.create_assistant().await;
    let message =
        |file: &str| json!({"role": "user", "content": "x", "attachments": attachments(file, &["file_search"])});

    let thread =
        json!({"messages": [message(&b)], "tool_resources": {"file_search": {"vector_stores": [{"file_ids": [a]}]}}});
    let resources = json!({"code_interpreter": {"file_ids": [a]}});
    let body = json!({"assistant_id": assistant, "thread": thread, "tool_resources": resources, "stream": true});
    let events = client.stream("/v1/threads/runs", body).await;
    assert_eq!(events[0].name, "thread.created");
    let thread = &events[0].data;
    let store = vector_store(thread).to_owned();
    assert_eq!(files_of(client, &store).await, [a.as_str(), b.as_str()]);
    assert_eq!(events[1].data["tool_resources"]["code_interpreter"]["file_ids"], json!([a]), "that of the run");
    assert_eq!(thread_of(client, thread).await["tool_resources"]["code_interpreter"]["file_ids"], json!([]));

    let path = format!("/v1/threads/{}/runs", thread["id"].as_str().unwrap());
    let run = client.post(&path, json!({"assistant_id": assistant, "additional_messages": [message(&c)]})).await;
    client.wait_for_status(&format!("{path}/{}", run["id"].as_str().unwrap()), "completed").await;
    assert_eq!(files_of(client, &store).await, [a.as_str(), b.as_str(), c.as_str()]);
    let before = client.get(&path).await["data"].as_array().unwrap().len();
    let missing = json!({"assistant_id": assistant, "additional_messages": [message("file-x")]});
    let (status, error) = client.send_rejected(Method::POST, &path, Some(missing)).await;
    assert_eq!((status, &error["message"]), (404, &json!("Files [file-x] were not found")));
    assert_eq!(client.get(&path).await["data"].as_array().unwrap().len(), before, "no run was created");
});
