//! Vector stores: their files, batches, texts, and expiry.

use assistd::api::vector_store::{StoreFileError, StoreFileErrorCode};
use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::form::Form;
use crate::support::ingest;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

const DAY_S: i64 = 86_400;

async fn upload(client: &Client, name: &str) -> String {
    let form = Form::default().text("purpose", "assistants").file("file", name, b"text");
    let reply = form.send(client, "/v1/files").await;
    assert_eq!(reply.status, 200, "{:#}", reply.body);
    reply.body["id"].as_str().unwrap().to_owned()
}

async fn uploads(client: &Client, count: usize) -> Vec<String> {
    let mut files = Vec::new();
    for number in 0..count {
        files.push(upload(client, &format!("{number}.txt")).await);
    }
    files
}

/// Creates a vector store; returns its path.
async fn create(client: &Client, body: Value) -> String {
    let store = client.post("/v1/vector_stores", body).await;
    format!("/v1/vector_stores/{}", store["id"].as_str().unwrap())
}

fn counts(in_progress: u64, completed: u64, failed: u64, cancelled: u64) -> Value {
    let total = in_progress + completed + failed + cancelled;
    json!({"in_progress": in_progress, "completed": completed, "failed": failed, "cancelled": cancelled, "total": total})
}

fn ids(list: &Value) -> Vec<&str> {
    list["data"].as_array().unwrap().iter().map(|object| object["id"].as_str().unwrap()).collect()
}

both_stores!(a_vector_store_is_created_retrieved_modified_listed_and_deleted, async |database: Database| {
    let server = Server::with_manual_clock(&database, &Upstream::start().await, &[("INGEST_CONCURRENCY", "0")]).await;
    let client = &server.client;
    let files = uploads(client, 2).await;

    let expires_after = json!({"anchor": "last_active_at", "days": 3});
    let created = client
        .post(
            "/v1/vector_stores",
            json!({"file_ids": [files[0], files[1], files[0]], "name": "n", "description": "d",
                "expires_after": expires_after, "metadata": {"k": "v"}}),
        )
        .await;

    let path = format!("/v1/vector_stores/{}", created["id"].as_str().unwrap());
    assert_eq!(
        created,
        json!({"id": created["id"], "object": "vector_store", "created_at": 1_000_000, "name": "n", "description": "d",
            "usage_bytes": 0, "file_counts": counts(2, 0, 0, 0), "status": "in_progress",
            "expires_after": expires_after, "expires_at": 1_000_000 + 3 * DAY_S, "last_active_at": 1_000_000,
            "metadata": {"k": "v"}})
    );
    ingest::process_all(&database, &server.clock).await;
    let found = client.get(&path).await;
    assert_eq!((&found["status"], &found["file_counts"]), (&json!("completed"), &counts(0, 2, 0, 0)));
    assert_eq!(found["usage_bytes"], 8);

    let modified = client.post(&path, json!({"name": null, "expires_after": null, "metadata": {}})).await;
    assert_eq!((&modified["name"], &modified["expires_at"]), (&Value::Null, &Value::Null));
    assert_eq!((&modified["description"], &modified["metadata"]), (&json!("d"), &json!({})));
    assert_eq!(client.get("/v1/vector_stores").await["data"], json!([modified]));
    let deleted = json!({"id": created["id"], "object": "vector_store.deleted", "deleted": true});
    assert_eq!(client.delete(&path).await, deleted);
    for method in [Method::GET, Method::DELETE] {
        let (status, error) = client.send_rejected(method, &path, None).await;
        let message = format!("No vector store found with id '{}'.", created["id"].as_str().unwrap());
        assert_eq!((status, &error["message"]), (404, &json!(message)));
    }
    assert_eq!(client.get("/v1/vector_stores").await["data"], json!([]));
    assert_eq!(client.get(&format!("/v1/files/{}", files[0])).await["id"], files[0].as_str(), "the files remain");
});

both_stores!(a_file_is_added_retrieved_modified_listed_and_removed, async |database: Database| {
    let server = Server::with_manual_clock(&database, &Upstream::start().await, &[("INGEST_CONCURRENCY", "0")]).await;
    let client = &server.client;
    let files = uploads(client, 3).await;
    let path = create(client, json!({})).await;
    let collection = format!("{path}/files");
    let item = format!("{collection}/{}", files[0]);

    let sizes = json!({"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 50}});
    let body = json!({"file_id": files[0], "attributes": {"k": 1, "b": true}, "chunking_strategy": sizes});
    let reply = client.send(Method::POST, &collection, Some(&body)).await;
    assert_eq!(
        reply.body,
        json!({"id": files[0], "object": "vector_store.file", "usage_bytes": 0, "created_at": 1_000_000,
            "vector_store_id": path.rsplit_once('/').unwrap().1, "status": "in_progress", "last_error": null,
            "chunking_strategy": sizes, "attributes": {"k": 1, "b": true}})
    );
    assert_eq!(reply.headers["openai-poll-after-ms"], "200");
    for file in &files[1..] {
        client.post(&collection, json!({"file_id": file})).await;
    }
    ingest::process_all(&database, &server.clock).await;
    let reply = client.send(Method::GET, &item, None).await;
    assert_eq!((&reply.body["status"], &reply.body["usage_bytes"]), (&json!("completed"), &json!(4)));
    assert!(!reply.headers.contains_key("openai-poll-after-ms"), "there is nothing to wait for");
    assert_eq!(client.post(&collection, body).await, reply.body, "it is there already");

    let modified = client.post(&item, json!({"attributes": {"k": "v"}})).await;
    assert_eq!(modified["attributes"], json!({"k": "v"}));
    assert_eq!(client.post(&item, json!({"attributes": null})).await["attributes"], json!({}));
    let list = client.get(&collection).await;
    assert_eq!(ids(&list), [&files[2], &files[1], &files[0]]);
    let page = client.get(&format!("{collection}?order=asc&limit=1&after={}", files[0])).await;
    assert_eq!((ids(&page), &page["has_more"]), (vec![files[1].as_str()], &json!(true)));
    let before = client.get(&format!("{collection}?order=asc&before={}", files[2])).await;
    assert_eq!(ids(&before), [&files[0], &files[1]]);
    assert_eq!(ids(&client.get(&format!("{collection}?filter=failed")).await), [""; 0]);
    assert_eq!(ids(&client.get(&format!("{collection}?filter=completed")).await).len(), 3);

    let deleted = json!({"id": files[0], "object": "vector_store.file.deleted", "deleted": true});
    assert_eq!(client.delete(&item).await, deleted);
    client.delete(&format!("/v1/files/{}", files[1])).await;
    assert_eq!(ids(&client.get(&collection).await), [&files[2]]);
    let message =
        format!("No file found with id '{}' in vector store '{}'.", files[0], path.rsplit_once('/').unwrap().1);
    for (method, path) in [
        (Method::GET, item.clone()),
        (Method::DELETE, item.clone()),
        (Method::GET, format!("{item}/content")),
        (Method::POST, format!("{item}/retry")),
    ] {
        let (status, error) = client.send_rejected(method, &path, None).await;
        assert_eq!((status, &error["message"]), (404, &json!(message)), "{path}");
    }
});

both_stores!(invalid_requests_get_the_errors_of_the_service, async |database: Database| {
    let server = Server::with(&database, &Upstream::start().await, &[("INGEST_CONCURRENCY", "0")]).await;
    let client = &server.client;
    let file = upload(client, "a.txt").await;
    let (table, nameless) = (upload(client, "a.csv").await, upload(client, "README").await);
    let path = create(client, json!({})).await;
    let rejected = async |path: &str, body: Value| {
        let (status, error) = client.send_rejected(Method::POST, path, Some(body)).await;
        (status, error["message"].as_str().unwrap().to_owned(), error["param"].clone(), error["code"].clone())
    };

    let unsupported = (
        400,
        "Files with extensions [.csv, none] are not supported for retrieval. Supported extensions: c, cpp, cs, css, doc, \
         docx, go, html, java, js, json, md, pdf, php, pptx, py, rb, sh, tex, ts, txt."
            .to_owned(),
        json!("file_ids"),
        json!("unsupported_file"),
    );
    let some = json!({"file_ids": [file, table, nameless]});
    assert_eq!(rejected("/v1/vector_stores", some.clone()).await, unsupported);
    assert_eq!(rejected(&format!("{path}/file_batches"), some).await, unsupported);
    assert_eq!(rejected(&format!("{path}/files"), json!({"file_id": table})).await.3, "unsupported_file");

    let unknown = json!({"file_ids": [file, "file-a", "file-b"]});
    let missing = (404, "Files [file-a, file-b] were not found".to_owned(), Value::Null, Value::Null);
    assert_eq!(rejected("/v1/vector_stores", unknown.clone()).await, missing);
    assert_eq!(rejected(&format!("{path}/file_batches"), unknown.clone()).await, missing);
    let no_store = "/v1/vector_stores/vs_x/file_batches";
    assert_eq!(rejected(no_store, unknown).await.1, "No vector store found with id 'vs_x'.");
    assert_eq!(client.get(&path).await["file_counts"], counts(0, 0, 0, 0), "nothing was added");

    let both = json!({"file_ids": [file], "files": [{"file_id": file}]});
    assert_eq!(rejected(&format!("{path}/file_batches"), both).await.3, "mutually_exclusive_parameters");
    let wrong = rejected("/v1/vector_stores/undefined/files", json!({"file_id": file})).await;
    assert_eq!(wrong.1, "Invalid 'vector_store_id': 'undefined'. Expected an ID that begins with 'vs'.");
    for (query, message) in [
        (
            "filter=done",
            "Invalid value: 'done'. Supported values are: 'in_progress', 'completed', 'failed', and 'cancelled'.",
        ),
        ("limit=101", "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead."),
        ("after=file-x", "No file found with id 'file-x' in vector store 'VS'."),
    ] {
        let (_, error) = client.send_rejected(Method::GET, &format!("{path}/files?{query}"), None).await;
        assert_eq!(error["message"], message.replace("VS", path.rsplit_once('/').unwrap().1), "{query}");
    }
    let (status, error) = client.send_rejected(Method::GET, &format!("{path}/file_batches/vsfb_x"), None).await;
    let message =
        format!("No file batch found with id 'vsfb_x' in vector store '{}'.", path.rsplit_once('/').unwrap().1);
    assert_eq!((status, &error["message"]), (404, &json!(message)));
});

both_stores!(a_batch_counts_its_files_and_can_be_cancelled, async |database: Database| {
    let server = Server::with_manual_clock(&database, &Upstream::start().await, &[("INGEST_CONCURRENCY", "0")]).await;
    let client = &server.client;
    let files = uploads(client, 4).await;
    let path = create(client, json!({"file_ids": [files[0]]})).await;
    ingest::process_all(&database, &server.clock).await;
    let collection = format!("{path}/file_batches");
    let store = ingest::open(&database, &server.clock).await;

    let body = json!({"attributes": {"k": 1}, "file_ids": files});
    let reply = client.send(Method::POST, &collection, Some(&body)).await;
    let batch = reply.body;
    assert_eq!(
        batch,
        json!({"id": batch["id"], "object": "vector_store.file_batch", "created_at": 1_000_000, "status": "in_progress",
            "vector_store_id": path.rsplit_once('/').unwrap().1, "file_counts": counts(3, 1, 0, 0)})
    );
    assert_eq!(reply.headers["openai-poll-after-ms"], "202");
    let item = format!("{collection}/{}", batch["id"].as_str().unwrap());
    let error = StoreFileError { code: StoreFileErrorCode::InvalidFile, message: "The file is damaged.".to_owned() };
    // Another server may have claimed some of the files.
    let claimed = ingest::claim(&store).await.unwrap();
    store.fail_store_file(&claimed.lease, &error).await.unwrap();
    let cancelled = client.post(&format!("{item}/cancel"), json!({})).await;
    assert_eq!((&cancelled["status"], &cancelled["file_counts"]), (&json!("cancelled"), &counts(0, 1, 1, 2)));
    assert_eq!(client.get(&item).await, cancelled);
    assert_eq!(client.post(&format!("{item}/cancel"), json!({})).await, cancelled);

    let failed = client.get(&format!("{item}/files?filter=failed")).await;
    assert_eq!(ids(&failed), [claimed.file_id.as_str()]);
    let last_error = json!({"code": "invalid_file", "message": "The file is damaged."});
    assert_eq!(failed["data"][0]["last_error"], last_error);
    assert_eq!(ids(&client.get(&format!("{item}/files?order=asc&limit=100")).await), files);
    let page = client.get(&format!("{item}/files?order=asc&limit=2&after={}", files[1])).await;
    assert_eq!((ids(&page), &page["has_more"]), (vec![files[2].as_str(), files[3].as_str()], &json!(false)));
    assert_eq!(ids(&client.get(&format!("{item}/files?limit=1")).await), [&files[3]], "newest first");

    let retried = client.post(&format!("{path}/files/{}/retry", claimed.file_id), json!({})).await;
    assert_eq!((&retried["status"], &retried["last_error"]), (&json!("in_progress"), &Value::Null));
    ingest::process_all(&database, &server.clock).await;
    let again = client.post(&format!("{path}/files/{}/retry", claimed.file_id), json!({})).await;
    assert_eq!(again["status"], "completed", "a completed file is unchanged");
    let finished = client.post(&collection, json!({"file_ids": [claimed.file_id, files[0]]})).await;
    assert_eq!((&finished["status"], &finished["file_counts"]), (&json!("completed"), &counts(0, 2, 0, 0)));
    let unchanged = client.post(&format!("{collection}/{}/cancel", finished["id"].as_str().unwrap()), json!({})).await;
    assert_eq!(unchanged, finished, "a finished batch is unchanged");
});

both_stores!(the_text_of_a_file_is_returned_in_parts, async |database: Database| {
    let server = Server::with_manual_clock(&database, &Upstream::start().await, &[("INGEST_CONCURRENCY", "0")]).await;
    let client = &server.client;
    let files = uploads(client, 2).await;
    let path = create(client, json!({"file_ids": files})).await;
    let store = ingest::open(&database, &server.clock).await;
    let long = "\"é\n\u{1}".repeat(30_000);
    let texts = vec![long.as_str(); 12];

    let claimed = ingest::claim(&store).await.unwrap();
    ingest::complete(&store, &claimed, &texts).await;

    let content = client.get(&format!("{path}/files/{}/content", claimed.file_id)).await;
    let members: Vec<&String> = content.as_object().unwrap().keys().collect();
    assert_eq!(members, ["object", "data", "has_more", "next_page"]);
    let data: Vec<&str> =
        content["data"].as_array().unwrap().iter().map(|part| part["text"].as_str().unwrap()).collect();
    assert_eq!(data, texts);
    let other = files.iter().find(|file| **file != claimed.file_id.as_str()).unwrap();
    let empty = client.get(&format!("{path}/files/{other}/content")).await;
    assert_eq!(empty["data"], json!([]), "it is in progress");

    let index = client.get(&format!("{path}/index")).await;
    assert_eq!((&index["files"], &index["chunks"]), (&json!(1), &json!(12)));
    assert_eq!(index["embeddings"], json!([{"model": null, "dimensions": null, "files": 1, "chunks": 12}]));
    assert_eq!(index["languages"], json!({"en": 1}));
    let (status, _) = client.send_rejected(Method::GET, "/v1/vector_stores/vs_x/index", None).await;
    assert_eq!(status, 404);
});

both_stores!(an_expired_vector_store_cannot_be_used, async |database: Database| {
    let server = Server::with_manual_clock(&database, &Upstream::start().await, &[("INGEST_CONCURRENCY", "0")]).await;
    let client = &server.client;
    let files = uploads(client, 2).await;
    let expires_after = json!({"anchor": "last_active_at", "days": 1});
    let path = create(client, json!({"file_ids": [files[0]], "expires_after": expires_after})).await;
    ingest::process_all(&database, &server.clock).await;

    server.clock.advance(DAY_S - 1);
    let renewed = client.post(&format!("{path}/files"), json!({"file_id": files[0]})).await;
    assert_eq!(renewed["status"], "completed");
    let store = client.get(&path).await;
    assert_eq!(store["expires_at"].as_i64().unwrap(), 1_000_000 + 2 * DAY_S - 1, "its use postpones the expiry");
    server.clock.advance(DAY_S);

    assert_eq!(client.get(&path).await["status"], "expired");
    let start = format!("Vector store '{}' has expired", path.rsplit_once('/').unwrap().1);
    for (path, body) in [
        (format!("{path}/files"), json!({"file_id": files[1]})),
        (format!("{path}/file_batches"), json!({"file_ids": files})),
        (format!("{path}/files/{}/retry", files[0]), json!({})),
        (path.clone(), json!({"expires_after": null})),
    ] {
        let message = client.post_rejected(&path, body).await;
        assert!(message.starts_with(&start), "{message}");
    }
    assert_eq!(client.post(&path, json!({"name": "old"})).await["name"], "old");
    assert_eq!(ids(&client.get(&format!("{path}/files")).await), [&files[0]]);
    client.delete(&path).await;
});

both_stores!(the_data_of_deleted_vector_stores_is_removed, async |database: Database| {
    let server = Server::with(&database, &Upstream::start().await, &[("INGEST_CONCURRENCY", "0")]).await;
    let client = &server.client;
    let files = uploads(client, 3).await;
    let path = create(client, json!({"file_ids": files})).await;
    ingest::process_all(&database, &server.clock).await;

    client.delete(&path).await;

    let count =
        "select cast((select count(*) from vector_store_files) + (select count(*) from vector_store_chunks) as text)";
    for _ in 0..1_500 {
        if database.text(count).await == "0" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{} rows are left", database.text(count).await);
});
