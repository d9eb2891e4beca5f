//! Where the bytes of files are: interrupted uploads, lost servers, full disks, large files, S3.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::both_stores;
use crate::files::wait_until_nothing_is_left;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::disk::Disk;
use crate::support::form::{Form, files_in};
use crate::support::process::serve;
use crate::support::server::Server;
use crate::support::skip;
use crate::support::upstream::Upstream;

/// Starts to upload a file of 10 MB, and sends 3 MB of it.
async fn start_upload(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let form = Form::default().text("purpose", "assistants").file("file", "a.txt", &vec![b'x'; 10_000_000]).body();
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: {}\r\ncontent-length: {}\r\n\r\n",
        Form::content_type(),
        form.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&form[..3_000_000]).await.unwrap();
    stream
}

async fn wait_for_bytes(database: &Database) {
    for _ in 0..1_000 {
        if !files_in(database.files()).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nothing was written");
}

both_stores!(an_upload_whose_client_disconnects_leaves_nothing, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let address = server.client.base_url.trim_start_matches("http://").to_owned();
    let stream = start_upload(&address).await;
    wait_for_bytes(&database).await;

    drop(stream);

    wait_until_nothing_is_left(&database).await;
});

both_stores!(an_upload_whose_client_stops_sending_times_out_and_leaves_nothing, async |database: Database| {
    let server = Server::with(&database, &Upstream::start().await, &[("BODY_IDLE_TIMEOUT_S", "1")]).await;
    let address = server.client.base_url.trim_start_matches("http://").to_owned();
    let mut stream = start_upload(&address).await;

    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();

    assert!(reply.starts_with("HTTP/1.1 408") && reply.contains("body_idle_timeout_s"), "{reply}");
    wait_until_nothing_is_left(&database).await;
});

both_stores!(a_server_removes_what_a_lost_server_was_receiving, async |database: Database| {
    let upstream = Upstream::start().await;
    let files = format!("file://{}", database.files().display());
    let settings = [
        ("LISTEN", "127.0.0.1:0"),
        ("DATABASE_URL", database.url.as_str()),
        ("FILES_URL", files.as_str()),
        ("UPSTREAM_URL", upstream.url.as_str()),
    ];
    let (mut child, address, _out) = serve(&settings).await;
    let _stream = start_upload(&address).await;
    wait_for_bytes(&database).await;

    child.kill().await.unwrap();

    assert_eq!(database.text("select status from files").await, "pending");
    let temporary = files_in(database.files());
    assert!(temporary.len() == 1 && temporary[0].to_str().unwrap().ends_with("#1"), "{temporary:?}");
    // The lease ends.
    database.execute("update files set remove_at = 1").await;
    let server = Server::start(&database, &upstream).await;
    wait_until_nothing_is_left(&database).await;
    assert_eq!(server.client.get("/v1/files").await["data"], json!([]));
});

both_stores!(bytes_that_no_row_names_are_deleted_when_they_are_old, async |database: Database| {
    let upstream = Upstream::start().await;
    let server = Server::start(&database, &upstream).await;
    server.client.upload().await;
    server.stop().await;
    let mut kept = files_in(database.files());
    let folder = database.files().join("files/proj_default");
    kept.push(folder.join("file-new"));
    for name in ["file-old", "file-new"] {
        std::fs::write(folder.join(name), "x").unwrap();
    }
    let old = std::fs::File::options().write(true).open(folder.join("file-old")).unwrap();
    old.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000)).unwrap();

    let _server = Server::start(&database, &upstream).await;

    for _ in 0..1_000 {
        if files_in(database.files()).len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut left = files_in(database.files());
    left.sort();
    kept.sort();
    assert_eq!(left, kept);
});

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_returns_503_and_leaves_nothing() {
    let Some(disk) = Disk::mount("8m") else { return skip("permission to mount a small disk") };
    let database = Database::sqlite();
    let url = format!("file://{}", disk.0.join("files").display());
    let server = Server::with(&database, &Upstream::start().await, &[("FILES_URL", url.as_str())]).await;
    let form = |bytes: usize| Form::default().text("purpose", "assistants").file("file", "a.txt", &vec![b'x'; bytes]);
    disk.fill();

    for bytes in [100_000, 3_000_000] {
        let reply = form(bytes).send(&server.client, "/v1/files").await;
        assert_eq!((reply.status, &reply.headers["retry-after"]), (503, &"1".parse().unwrap()), "{:#}", reply.body);
    }
    assert_eq!(database.text("select cast(count(*) as text) from files").await, "0");
    assert!(files_in(&disk.0.join("files")).is_empty());
    disk.free();
    assert_eq!(form(3_000_000).send(&server.client, "/v1/files").await.status, 200);
}

/// Returns the peak of a process's resident memory, in KiB.
fn peak_kib(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Uploads and downloads a file of 100 MB, without having it in memory here. Returns the path of the file.
async fn stream_large_file(client: &Client) -> String {
    const PIECES: usize = 1_000;
    const PIECE_BYTES: usize = 100_000;
    let form = Form::default().text("purpose", "vision").file("file", "large", b"").0;
    let start = form[..form.len() - 2].to_vec();
    let end = Form(b"\r\n".to_vec()).body();
    let piece = Bytes::from(vec![b'x'; PIECE_BYTES]);
    let pieces = std::iter::once(Bytes::from(start))
        .chain(std::iter::repeat_n(piece, PIECES))
        .chain(std::iter::once(Bytes::from(end)));
    let body = Body::wrap_stream(futures_util::stream::iter(pieces.map(Ok::<_, std::io::Error>)));
    let request = client.request(Method::POST, "/v1/files").header("content-type", Form::content_type());
    let reply = Client::read(request.body(body).send().await.unwrap()).await;
    assert_eq!((reply.status, &reply.body["bytes"]), (200, &json!(PIECES * PIECE_BYTES)), "{:#}", reply.body);
    let path = format!("/v1/files/{}", reply.body["id"].as_str().unwrap());
    let mut response = client.request(Method::GET, &format!("{path}/content")).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let mut bytes = 0;
    while let Some(chunk) = response.chunk().await.unwrap() {
        assert!(chunk.iter().all(|byte| *byte == b'x'));
        bytes += chunk.len();
    }
    assert_eq!(bytes, PIECES * PIECE_BYTES);
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_is_streamed_in_constant_memory() {
    const PEAK_KIB_MAX: u64 = 30 * 1024;
    let (database, upstream) = (Database::sqlite(), Upstream::start().await);
    let files = format!("file://{}", database.files().display());
    let settings = [
        ("LISTEN", "127.0.0.1:0"),
        ("DATABASE_URL", database.url.as_str()),
        ("FILES_URL", files.as_str()),
        ("UPSTREAM_URL", upstream.url.as_str()),
    ];
    let (child, address, _out) = serve(&settings).await;
    let client = Client::new(address.parse().unwrap());
    client.get("/v1/files").await;
    let before = peak_kib(&child);

    stream_large_file(&client).await;

    let used = peak_kib(&child) - before;
    assert!(used < PEAK_KIB_MAX, "{used} KiB more memory for a file of 100 MB");
}

/// An S3 server: moto, from `PyPI`.
struct S3 {
    _server: Child,
    endpoint: String,
}

impl S3 {
    /// Starts the server. Returns `None` and reports a skipped test if it is not installed.
    async fn start() -> Option<Self> {
        let Ok(program) = std::env::var("ASSISTD_TEST_S3_SERVER") else {
            skip("ASSISTD_TEST_S3_SERVER; run tests/run");
            return None;
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Command::new(program)
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let endpoint = format!("http://127.0.0.1:{port}");
        for _ in 0..600 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(Self { _server: server, endpoint });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the S3 server did not start");
    }

    async fn create_bucket(&self) {
        let client = Client::new(self.endpoint.trim_start_matches("http://").parse().unwrap());
        assert!(client.request(Method::PUT, "/bucket").send().await.unwrap().status().is_success());
    }

    /// Returns the keys in the bucket, as XML.
    async fn keys(&self) -> Vec<String> {
        let client = Client::new(self.endpoint.trim_start_matches("http://").parse().unwrap());
        let text = client.request(Method::GET, "/bucket?list-type=2").send().await.unwrap().text().await.unwrap();
        text.split("<Key>").skip(1).map(|rest| rest.split("</Key>").next().unwrap().to_owned()).collect()
    }

    fn settings(&self) -> Vec<(&str, &str)> {
        vec![
            ("FILES_URL", "s3://bucket/some/prefix"),
            ("FILES_S3_ENDPOINT", &self.endpoint),
            ("FILES_S3_ACCESS_KEY", "key"),
            ("FILES_S3_SECRET_KEY", "secret"),
        ]
    }
}

both_stores!(files_are_stored_in_an_s3_bucket, async |database: Database| {
    let Some(s3) = S3::start().await else { return };
    let server = Server::with(&database, &Upstream::start().await, &s3.settings()).await;
    let client = &server.client;
    let small = || Form::default().text("purpose", "vision").file("file", "a.png", b"0123456789");

    let absent = small().send(client, "/v1/files").await;
    assert_eq!((absent.status, &absent.headers["retry-after"]), (503, &"1".parse().unwrap()), "{:#}", absent.body);
    wait_until_nothing_is_left(&database).await;
    s3.create_bucket().await;

    let file = small().send(client, "/v1/files").await.body;
    let id = file["id"].as_str().unwrap();
    assert_eq!(s3.keys().await, [format!("some/prefix/files/proj_default/{id}")]);
    let content = format!("/v1/files/{id}/content");
    let range = client.request(Method::GET, &content).header("range", "bytes=3-5").send().await.unwrap();
    assert_eq!((range.status().as_u16(), range.text().await.unwrap()), (206, "345".to_owned()));
    client.delete(&format!("/v1/files/{id}")).await;

    let large = stream_large_file(client).await;
    client.delete(&large).await;

    let upload = json!({"purpose": "vision", "filename": "a.png", "bytes": 6_000_006, "mime_type": "image/png"});
    let upload = client.post("/v1/uploads", upload).await;
    let path = format!("/v1/uploads/{}", upload["id"].as_str().unwrap());
    let mut parts: Vec<Value> = Vec::new();
    for bytes in [vec![b'x'; 6_000_000], b"world!".to_vec()] {
        let part = Form::default().file("data", "blob", &bytes).send(client, &format!("{path}/parts")).await;
        parts.push(part.body["id"].clone());
    }
    assert_eq!(s3.keys().await.len(), 2);
    let completed = client.post(&format!("{path}/complete"), json!({"part_ids": parts})).await;
    let file = format!("/v1/files/{}", completed["file"]["id"].as_str().unwrap());
    let bytes = client.request(Method::GET, &format!("{file}/content")).send().await.unwrap().bytes().await.unwrap();
    assert!(bytes.len() == 6_000_006 && bytes.ends_with(b"xworld!"));
    client.delete(&file).await;

    wait_until_nothing_is_left(&database).await;
    assert_eq!(s3.keys().await, Vec::<String>::new());
});
