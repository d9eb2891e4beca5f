//! Clients that never finish a request, and clients that send malformed requests.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

/// Sends these bytes, and returns the response until the server closes the connection.
async fn exchange(server: &Server, bytes: &[u8]) -> String {
    let address = server.client.base_url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut response = String::new();
    let _ = stream.read_to_string(&mut response).await;
    response
}

#[tokio::test]
async fn slow_headers_and_bodies_time_out() {
    let settings = [("HEADER_TIMEOUT_S", "1"), ("BODY_TIMEOUT_S", "1")];
    let database = Database::sqlite();
    let server = Server::with(&database, &Upstream::start().await, &settings).await;

    exchange(&server, b"POST /v1/assistants HTTP/1.1\r\nhost: localhost\r\n").await;
    let response = exchange(
        &server,
        b"POST /v1/assistants HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
    )
    .await;

    assert!(response.starts_with("HTTP/1.1 408"), "{response}");
    assert!(response.contains("did not arrive within 1 s"), "{response}");
    assert_eq!(server.client.send(Method::GET, "/v1/assistants", None).await.status, 200);
}

/// Formats a POST request with this body.
fn post_request(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn malformed_requests_and_bodies_are_rejected() {
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
        let response = exchange(&server, request.as_bytes()).await;
        let shown: String = request.chars().take(80).collect();
        let status = response.split(' ').nth(1).unwrap_or("closed");
        assert!(!status.starts_with('5'), "{shown}: {response}");
    }

    let deep = [b"[".repeat(100_000), b"{\"metadata\":".repeat(10_000)];
    let not_json: [&[u8]; 7] = [
        &deep[0],
        &deep[1],
        b"{\"metadata\": {\"k\": \"\xFF\xFE\"}}",
        b"{\"metadata\": {\"k\": \"\xED\xA0\x80 \\ud800\"}}",
        br#"{"metadata": {"k": 1e999}}"#,
        b"{\"metadata\": {\"k\": \"a\nb\"}}",
        b"{} {}",
    ];
    for body in not_json {
        let response = exchange(&server, &post_request("/v1/threads", body)).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]);
        assert!(response.starts_with("HTTP/1.1 400"), "{shown}: {response}");
        assert!(response.contains("We could not parse the JSON body of your request."), "{shown}: {response}");
    }

    let list = server.client.send(Method::GET, "/v1/threads", None).await;
    assert_eq!((list.status, &list.body["data"]), (200, &serde_json::json!([])), "nothing was stored");
}

#[tokio::test]
async fn a_surrogate_without_its_other_half_becomes_the_replacement_character() {
    let database = Database::sqlite();
    let upstream = Upstream::start().await;
    let server = Server::start(&database, &upstream).await;
    let send = async |path: &str, body: &str| {
        let response = exchange(&server, &post_request(path, body.as_bytes())).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{body}: {response}");
        response.split_once("\r\n\r\n").unwrap().1.to_owned()
    };

    let body = r#"{"metadata": {"k\udc00\ud83d": "a\ud83d", "pair": "\ud83d\ude00", "text": "\\ud83d"}}"#;
    let thread: Value = serde_json::from_str(&send("/v1/threads", body).await).unwrap();
    let expected = json!({"k\u{FFFD}\u{FFFD}": "a\u{FFFD}", "pair": "\u{1F600}", "text": "\\ud83d"});
    assert_eq!(thread["metadata"], expected);

    let long = "x".repeat(1_000_000);
    let body = format!(r#"{{"model": "m", "messages": [{{"role": "user", "content": "{long}\ud83d"}}]}}"#);
    send("/v1/chat/completions", &body).await;
    let sent = upstream.requests().pop().unwrap();
    assert_eq!(sent["messages"][0]["content"], format!("{long}\u{FFFD}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closes_its_side_after_a_request_gets_the_reply() {
    let database = Database::sqlite();
    let server = Server::start(&database, &Upstream::start().await).await;
    let address = server.client.base_url.strip_prefix("http://").unwrap().to_owned();
    let create = b"POST /v1/threads HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    let list = b"GET /v1/threads HTTP/1.1\r\nhost: localhost\r\n\r\n";

    for request in [&create[..], &list[..], &[&create[..], &create[..]].concat()] {
        for _ in 0..10 {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            stream.write_all(request).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut response = String::new();
            stream.read_to_string(&mut response).await.unwrap();

            let replies = response.matches("HTTP/1.1 200 OK").count();
            let requests = String::from_utf8_lossy(request).matches("HTTP/1.1").count();
            assert_eq!(replies, requests, "{response}");
        }
    }
}
