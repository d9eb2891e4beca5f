//! Files: upload, list, retrieve, download, delete.

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::{Client, Reply};
use crate::support::contract;
use crate::support::database::Database;
use crate::support::form::{Form, files_in};
use crate::support::server::Server;
use crate::support::upstream::Upstream;

async fn upload(client: &Client, purpose: &str, name: &str, bytes: &[u8]) -> Value {
    let reply = Form::default().text("purpose", purpose).file("file", name, bytes).send(client, "/v1/files").await;
    assert_eq!(reply.status, 200, "{:#}", reply.body);
    reply.body
}

fn path(file: &Value) -> String {
    format!("/v1/files/{}", file["id"].as_str().unwrap())
}

/// Waits until the rows of files and parts, and the bytes, are gone.
pub async fn wait_until_nothing_is_left(database: &Database) {
    let count = "select cast((select count(*) from files) + (select count(*) from upload_parts) as text)";
    let mut left = String::new();
    for _ in 0..1_500 {
        let rows = database.text(count).await;
        let bytes = files_in(database.files());
        if rows == "0" && bytes.is_empty() {
            return;
        }
        left = format!("{rows} rows, {bytes:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("left over: {left}");
}

both_stores!(a_file_is_uploaded_retrieved_downloaded_and_deleted, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;

    let file = upload(client, "vision", "dog and cat.png", b"0123456789").await;

    let members: Vec<&String> = file.as_object().unwrap().keys().collect();
    let expected =
        ["object", "id", "purpose", "filename", "bytes", "created_at", "expires_at", "status", "status_details"];
    assert_eq!(members, expected);
    assert_eq!((&file["bytes"], &file["status"], &file["expires_at"]), (&json!(10), &json!("processed"), &Value::Null));
    assert_eq!(client.get(&path(&file)).await, file);
    let content = format!("{}/content", path(&file));
    let response = client.request(Method::GET, &content).send().await.unwrap();
    let headers = response.headers().clone();
    assert_eq!(headers["content-type"], "application/octet-stream");
    assert_eq!(headers["content-disposition"], "attachment; filename=\"dog and cat.png\"");
    assert_eq!(
        (&headers["content-length"], &headers["accept-ranges"]),
        (&"10".parse().unwrap(), &"bytes".parse().unwrap())
    );
    assert_eq!(response.bytes().await.unwrap(), "0123456789");

    let range = async |value: &str| {
        let request = client.request(Method::GET, &content).header("range", value);
        let response = request.send().await.unwrap();
        let range = response.headers().get("content-range").map(|value| value.to_str().unwrap().to_owned());
        (response.status().as_u16(), range, response.text().await.unwrap())
    };
    assert_eq!(range("bytes=2-4").await, (206, Some("bytes 2-4/10".to_owned()), "234".to_owned()));
    assert_eq!(range("bytes=-1").await, (206, Some("bytes 9-9/10".to_owned()), "9".to_owned()));
    assert_eq!(range("bytes=10-").await.0, 416);

    assert_eq!(client.delete(&path(&file)).await, json!({"object": "file", "deleted": true, "id": file["id"]}));
    assert_eq!(files_in(database.files()), Vec::<std::path::PathBuf>::new());
    for method in [Method::GET, Method::DELETE] {
        let (status, error) = client.send_rejected(method, &path(&file), None).await;
        let message = format!("No such File object: {}", file["id"].as_str().unwrap());
        assert_eq!((status, &error["message"], &error["param"]), (404, &json!(message), &json!("id")));
    }
});

both_stores!(files_are_listed_newest_first_and_by_purpose, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let mut ids = Vec::new();
    for purpose in ["assistants", "vision", "assistants"] {
        ids.push(upload(client, purpose, "a", b"x").await["id"].clone());
    }

    let list = async |query: &str| {
        let list = client.get(&format!("/v1/files{query}")).await;
        let ids: Vec<Value> = list["data"].as_array().unwrap().iter().map(|file| file["id"].clone()).collect();
        (ids, list["has_more"] == true)
    };

    assert_eq!(list("").await, (vec![ids[2].clone(), ids[1].clone(), ids[0].clone()], false));
    assert_eq!(list("?order=asc&limit=2").await, (vec![ids[0].clone(), ids[1].clone()], true));
    let after = format!("?order=asc&limit=10000&after={}", ids[0].as_str().unwrap());
    assert_eq!(list(&after).await, (vec![ids[1].clone(), ids[2].clone()], false));
    assert_eq!(list("?purpose=vision").await, (vec![ids[1].clone()], false));
    for (query, expected) in [
        ("limit=10001", "Expected a value <= 10000, but got 10001 instead."),
        ("purpose=x", "'x' is not one of ['fine-tune', "),
        ("after=file-x", "No such File object: file-x"),
    ] {
        let (_, error) = client.send_rejected(Method::GET, &format!("/v1/files?{query}"), None).await;
        assert!(error["message"].as_str().unwrap().contains(expected), "{error:#}");
    }
});

both_stores!(forms_of_all_clients_are_read, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let name = |reply: Reply| (reply.status, reply.body["filename"].clone(), reply.body["purpose"].clone());

    // The file first.
    let form = Form::default().file("file", "你好.txt", b"x").text("purpose", "user_data");
    assert_eq!(name(form.send(client, "/v1/files").await), (200, json!("你好.txt"), json!("user_data")));
    // .NET: no quotes, and the right name only in `filename*`.
    let form = Form::default()
        .part("name=file; filename=\"=?utf-8?B?5L2g5aW9LnR4dA==?=\"; filename*=utf-8''%E4%BD%A0%E5%A5%BD.txt", b"x")
        .part("name=purpose", b"assistants");
    assert_eq!(name(form.send(client, "/v1/files").await), (200, json!("你好.txt"), json!("assistants")));
    // A name with a slash is kept.
    let form = Form::default().file("file", "text/csv", b"x").text("purpose", "assistants");
    assert_eq!(name(form.send(client, "/v1/files").await), (200, json!("text/csv"), json!("assistants")));
    // Without a content-length.
    let body = Form::default().text("purpose", "vision").file("file", "a", &vec![7; 300_000]).body();
    let chunks = futures_util::stream::iter(body.chunks(70_000).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())));
    let chunks: Vec<_> = futures_util::StreamExt::collect(chunks).await;
    let request = client.request(Method::POST, "/v1/files").header("content-type", Form::content_type());
    let request = request.body(reqwest::Body::wrap_stream(futures_util::stream::iter(chunks)));
    let reply = Client::read(request.send().await.unwrap()).await;
    assert_eq!((reply.status, &reply.body["bytes"]), (200, &json!(300_000)));
});

both_stores!(invalid_uploads_are_rejected_and_leave_nothing, async |database: Database| {
    let server = Server::with(&database, &Upstream::start().await, &[("FILE_BYTES_MAX", "2000000")]).await;
    let client = &server.client;
    let large = vec![0; 1_500_000];
    let too_large = vec![0; 2_000_001];
    let purpose = |purpose: &str| Form::default().text("purpose", purpose);
    let file = |name: &str| Form::default().file("file", name, &large);
    let wrong = "'world_domination' is not one of ['fine-tune', 'assistants', 'batch', 'user_data', 'vision', 'evals'] - \
                 'purpose'";
    let cases = [
        (purpose("world_domination").file("file", "a", b"x"), 400, wrong, json!("purpose")),
        (file("a").text("purpose", "world_domination"), 400, wrong, json!("purpose")),
        (purpose("vision").file("file", "a", b""), 400, "File is empty.", json!("file")),
        (purpose("vision"), 400, "'file' is a required property", Value::Null),
        (purpose("vision").text("file", "x"), 400, "'file' is a required property", Value::Null),
        (file("a"), 400, "'purpose' is a required property", Value::Null),
        (
            file("a.txt").text("purpose", "fine-tune"),
            400,
            "Invalid file format for Fine-Tuning API. Must be .jsonl",
            Value::Null,
        ),
        (
            purpose("batch").file("file", "a.txt", b"x"),
            400,
            "Invalid file format for Batch API. Must be .jsonl",
            Value::Null,
        ),
        (file("a").text("foo", "x"), 400, "Additional properties are not allowed ('foo' was unexpected)", Value::Null),
        (file("a").text("expires_after[seconds]", "60"), 400, "'purpose' is a required property", Value::Null),
        (
            purpose("vision").file("file", "a", &too_large),
            413,
            "The file is larger than 2000000 bytes, the maximum of this server (file_bytes_max).",
            Value::Null,
        ),
    ];
    for (form, status, message, param) in cases {
        let reply = form.send(client, "/v1/files").await;
        let error = &reply.body["error"];
        assert_eq!((reply.status, &error["message"], &error["param"]), (status, &json!(message), &param));
        assert_eq!(reply.body["detail"], json!({"message": message, "code": null}));
    }
    let (status, error) = client.send_rejected(Method::POST, "/v1/files", Some(json!({}))).await;
    assert_eq!((status, &error["code"]), (415, &json!("unsupported_content_type")));
    let request = client.request(Method::POST, "/v1/files").header("content-type", Form::content_type());
    let mut cut = file("a").body();
    cut.truncate(1_400_000);
    let reply = Client::read(request.body(cut).send().await.unwrap()).await;
    contract::check_error(&reply.body);
    assert_eq!(reply.status, 400);

    wait_until_nothing_is_left(&database).await;
    assert_eq!(client.get("/v1/files").await["data"], json!([]));
});

both_stores!(files_for_assistants_cannot_be_downloaded, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    for purpose in ["assistants", "user_data"] {
        let file = upload(&server.client, purpose, "a.txt", b"x").await;

        let path = format!("{}/content", path(&file));
        let (status, error) = server.client.send_rejected(Method::GET, &path, None).await;

        let message = format!("Not allowed to download files of purpose: {purpose}");
        assert_eq!((status, &error["message"]), (400, &json!(message)));
    }
});

both_stores!(an_expired_file_is_removed_with_its_bytes, async |database: Database| {
    let server = Server::with_manual_clock(&database, &Upstream::start().await, &[]).await;
    let client = &server.client;
    let form = Form::default()
        .text("expires_after[anchor]", "created_at")
        .text("expires_after[seconds]", "3600")
        .text("purpose", "assistants")
        .file("file", "a.txt", b"x");
    let file = form.send(client, "/v1/files").await.body;
    let batch = upload(client, "batch", "b.jsonl", b"{}").await;
    let expiry = |file: &Value| file["expires_at"].as_i64().unwrap() - file["created_at"].as_i64().unwrap();
    assert_eq!((expiry(&file), expiry(&batch)), (3_600, 2_592_000));

    server.clock.advance(3_600);

    assert_eq!(client.send_rejected(Method::GET, &path(&file), None).await.0, 404);
    assert_eq!(client.get("/v1/files").await["data"], json!([batch]));
    server.clock.advance(2_592_000);
    wait_until_nothing_is_left(&database).await;
});
