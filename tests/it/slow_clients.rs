//! Clients that never finish what they begin, or begin with what is no request.

use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

/// What the server says to these bytes before it closes the connection.
async fn answer(server: &Server, bytes: &[u8]) -> String {
    let address = server.client.base_url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut said = String::new();
    let _ = stream.read_to_string(&mut said).await;
    said
}

#[tokio::test]
async fn headers_and_bodies_that_do_not_arrive_are_given_up() {
    let settings = [("HEADER_TIMEOUT_S", "1"), ("BODY_TIMEOUT_S", "1")];
    let database = Database::sqlite();
    let server = Server::with(&database, &Upstream::start().await, &settings).await;

    answer(&server, b"POST /v1/assistants HTTP/1.1\r\nhost: localhost\r\n").await;
    let said = answer(
        &server,
        b"POST /v1/assistants HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
    )
    .await;

    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    assert!(said.contains("did not arrive within 1 s"), "{said}");
    assert_eq!(server.client.send(Method::GET, "/v1/assistants", None).await.status, 200);
}

/// A request with this body, by hand.
fn posted(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn what_is_no_request_and_what_is_no_json_harms_nobody() {
    let settings = [("HEADER_TIMEOUT_S", "1"), ("BODY_TIMEOUT_S", "1")];
    let database = Database::sqlite();
    let server = Server::with(&database, &Upstream::start().await, &settings).await;
    let head = "POST /v1/threads HTTP/1.1\r\nhost: localhost\r\n";
    let malformed = [
        "GARBAGE\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        "GET /v1/threads/\u{1F600} HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(),
        format!("{head}x: {}\r\n\r\n", "y".repeat(1_000_000)),
        format!("{head}{}\r\n", "x: y\r\n".repeat(1_000)),
        format!("{head}content-length: -1\r\n\r\n"),
        format!("{head}content-length: 1\r\ncontent-length: 2\r\n\r\n{{}}"),
        format!("{head}transfer-encoding: chunked\r\n\r\nnot a size\r\n"),
        "GET /v1/threads HTTP/1.1\r\nno-host: x\r\nconnection: close\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ];
    for request in malformed {
        let said = answer(&server, request.as_bytes()).await;
        let shown: String = request.chars().take(80).collect();
        let status = said.split(' ').nth(1).unwrap_or("closed");
        assert!(!status.starts_with('5'), "{shown}: {said}");
    }

    let deep = [b"[".repeat(100_000), b"{\"metadata\":".repeat(10_000)];
    let no_json: [&[u8]; 8] = [
        &deep[0],
        &deep[1],
        b"{\"metadata\": {\"k\": \"\xFF\xFE\"}}",
        br#"{"metadata": {"k": "\ud800"}}"#,
        br#"{"metadata": {"k": "\udc00\ud800"}}"#,
        br#"{"metadata": {"k": 1e999}}"#,
        b"{\"metadata\": {\"k\": \"a\nb\"}}",
        b"{} {}",
    ];
    for body in no_json {
        let said = answer(&server, &posted("/v1/threads", body)).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]);
        assert!(said.starts_with("HTTP/1.1 400"), "{shown}: {said}");
        assert!(said.contains("We could not parse the JSON body of your request."), "{shown}: {said}");
    }

    let list = server.client.send(Method::GET, "/v1/threads", None).await;
    assert_eq!((list.status, &list.body["data"]), (200, &serde_json::json!([])), "nothing of it was kept");
}
