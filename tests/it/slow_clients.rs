//! Clients that never finish what they begin.

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
