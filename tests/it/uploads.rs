//! Uploads: files that are sent in parts.

use md5::{Digest as _, Md5};
use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::files::wait_until_nothing_is_left;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::form::Form;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

/// Creates an upload for a file of this size; returns its path.
async fn create(client: &Client, bytes: usize) -> String {
    let body = json!({"purpose": "vision", "filename": "a.png", "bytes": bytes, "mime_type": "image/png"});
    let upload = client.post("/v1/uploads", body).await;
    format!("/v1/uploads/{}", upload["id"].as_str().unwrap())
}

async fn add(client: &Client, upload: &str, bytes: &[u8]) -> Value {
    let reply = Form::default().file("data", "blob", bytes).send(client, &format!("{upload}/parts")).await;
    assert_eq!(reply.status, 200, "{:#}", reply.body);
    reply.body["id"].clone()
}

async fn rejected(client: &Client, path: &str, body: Value) -> (u16, String) {
    let (status, error) = client.send_rejected(Method::POST, path, Some(body)).await;
    (status, error["message"].as_str().unwrap().to_owned())
}

both_stores!(parts_are_joined_in_the_requested_order, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let client = &server.client;
    let upload = create(client, 3_000_006).await;
    let large = vec![b'x'; 3_000_000];
    let (last, first) = (add(client, &upload, b"world!").await, add(client, &upload, &large).await);
    let unused = add(client, &upload, b"unused").await;
    assert_ne!(unused, first);
    let whole = [&large[..], b"world!"].concat();
    let md5 = Md5::digest(&whole).iter().fold(String::new(), |text, byte| format!("{text}{byte:02X}"));

    let completed = client.post(&format!("{upload}/complete"), json!({"part_ids": [first, last], "md5": md5})).await;

    let file = &completed["file"];
    assert_eq!(
        (&completed["status"], &file["bytes"], &file["purpose"]),
        (&json!("completed"), &json!(3_000_006), &json!("vision"))
    );
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(&client.get(&path).await, file);
    let content = client.request(Method::GET, &format!("{path}/content")).send().await.unwrap();
    assert!(content.bytes().await.unwrap() == whole);
    for action in ["complete", "cancel"] {
        let message = format!("Cannot {action} upload with status 'completed'.");
        assert_eq!(rejected(client, &format!("{upload}/{action}"), json!({"part_ids": [first]})).await, (400, message));
    }
    client.delete(&path).await;
    wait_until_nothing_is_left(&database).await;
});

both_stores!(a_cancelled_or_expired_upload_accepts_nothing_and_is_removed, async |database: Database| {
    let server = Server::with_manual_clock(&database, &Upstream::start().await, &[]).await;
    let client = &server.client;
    let (cancelled, expired) = (create(client, 1).await, create(client, 1).await);
    let part = add(client, &cancelled, b"x").await;
    add(client, &expired, b"x").await;

    let reply = client.request(Method::POST, &format!("{cancelled}/cancel")).send().await.unwrap();
    let reply = Client::read(reply).await.body;
    server.clock.advance(3_600);

    assert_eq!((&reply["status"], reply.get("file")), (&json!("cancelled"), None));
    assert_eq!(reply["expires_at"].as_i64().unwrap() - reply["created_at"].as_i64().unwrap(), 3_600);
    for (upload, status) in [(&cancelled, "cancelled"), (&expired, "expired")] {
        let message = |action: &str| (400, format!("Cannot {action} upload with status '{status}'."));
        let body = json!({"part_ids": [part]});
        assert_eq!(rejected(client, &format!("{upload}/complete"), body).await, message("complete"));
        assert_eq!(rejected(client, &format!("{upload}/cancel"), json!({})).await, message("cancel"));
        let late = Form::default().file("data", "blob", b"x").send(client, &format!("{upload}/parts")).await;
        assert_eq!((late.status, late.body["error"]["message"].as_str().unwrap().to_owned()), message("add parts to"));
    }
    wait_until_nothing_is_left(&database).await;
    // The rows of uploads are kept for a day.
    server.clock.advance(86_401);
    for _ in 0..500 {
        if database.text("select cast(count(*) as text) from uploads").await == "0" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the rows of uploads are still there");
});

both_stores!(invalid_uploads_and_parts_are_rejected, async |database: Database| {
    let limits = [("UPLOAD_BYTES_MAX", "100"), ("UPLOAD_PART_BYTES_MAX", "60")];
    let server = Server::with(&database, &Upstream::start().await, &limits).await;
    let client = &server.client;
    let upload = create(client, 10).await;
    let part = add(client, &upload, b"12345").await;
    let complete = format!("{upload}/complete");
    let id = upload.rsplit('/').next().unwrap();
    let part_id = part.as_str().unwrap();

    for (path, body, status, message) in [
        (
            complete.as_str(),
            json!({"part_ids": [part]}),
            400,
            "The parts have 5 bytes in total, but the upload was created for a file of 10 bytes.".to_owned(),
        ),
        (
            &complete,
            json!({"part_ids": [part, part]}),
            400,
            format!("Invalid 'part_ids[1]': the part '{part_id}' is listed twice."),
        ),
        (&complete, json!({"part_ids": ["part_x"]}), 404, format!("No part found with id 'part_x' in upload '{id}'.")),
        (
            "/v1/uploads/upload_x/complete",
            json!({"part_ids": [part]}),
            404,
            "No upload found with id 'upload_x'.".to_owned(),
        ),
        ("/v1/uploads/upload_x/cancel", json!({}), 404, "No upload found with id 'upload_x'.".to_owned()),
        (
            "/v1/uploads",
            json!({"purpose": "assistants", "filename": "a", "bytes": 101, "mime_type": "text/plain"}),
            400,
            "Invalid 'bytes': integer above maximum value. Expected a value <= 100, but got 101 instead.".to_owned(),
        ),
        (
            "/v1/uploads",
            json!({"purpose": "fine-tune", "filename": "a.txt", "bytes": 1, "mime_type": "text/jsonl"}),
            400,
            "Invalid file format for Fine-Tuning API. Must be .jsonl".to_owned(),
        ),
        (
            "/v1/uploads",
            json!({"purpose": "vision", "filename": "a.png", "bytes": 1, "mime_type": "text/plain"}),
            400,
            "Invalid 'mime_type': 'text/plain' is not supported for the purpose 'vision'.".to_owned(),
        ),
    ] {
        assert_eq!(rejected(client, path, body).await, (status, message), "{path}");
    }
    let second = add(client, &upload, b"67890").await;
    let body = json!({"part_ids": [part, second], "md5": "0"});
    assert_eq!(
        rejected(client, &complete, body).await,
        (400, "The MD5 checksum of the file is 'e807f1fcf82d132f9bb018ca6738a19f', but '0' was expected.".to_owned())
    );
    let parts = format!("{upload}/parts");
    let data = |bytes: usize| Form::default().file("data", "blob", &vec![0; bytes]);
    add(client, &upload, &[0; 50]).await;
    for (form, status, start) in [
        (data(61), 413, "The file is larger than 60 bytes"),
        (data(50), 400, "The upload has too many parts."),
        (data(0), 400, "File is empty."),
        (data(1).text("x", "y"), 400, "Additional properties are not allowed ('x' was unexpected)"),
        (Form::default().file("file", "a", b"x"), 400, "Additional properties are not allowed ('file' was unexpected)"),
        (Form::default(), 400, "'data' is a required property"),
    ] {
        let reply = form.send(client, &parts).await;
        let message = reply.body["error"]["message"].as_str().unwrap();
        assert!(reply.status == status && message.starts_with(start), "{}: {message}", reply.status);
    }
    let unknown = Form::default().file("data", "blob", b"x").send(client, "/v1/uploads/upload_x/parts").await;
    assert_eq!(
        (unknown.status, &unknown.body["error"]["message"]),
        (404, &json!("No upload found with id 'upload_x'."))
    );

    // After all of these, the upload can be completed.
    let completed = client.post(&complete, json!({"part_ids": [second, part]})).await;
    assert_eq!(completed["status"], "completed");
});
