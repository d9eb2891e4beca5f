//! Responses that are sent before the request body was read. The client receives them even while it is still sending,
//! and the next request succeeds. The clients send the whole body before they read, as many do.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::contract;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

const KEY: &str = "sk-test-0123456789";
const SIZES: [usize; 6] = [0, 10_000, 1_000_000, 5_000_000, 34_000_000, 60_000_000];
/// Up to this size, the connection must stay open.
const SMALL: usize = 10_000;

struct Connection {
    stream: BufStream<TcpStream>,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    closes: bool,
    body: String,
}

impl Connection {
    async fn open(server: &Server) -> Self {
        let address = server.client.base_url.strip_prefix("http://").unwrap();
        Self { stream: BufStream::new(TcpStream::connect(address).await.unwrap()) }
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the server continues to read");
        self.stream.flush().await.expect("the server continues to read");
    }

    async fn write_body(&mut self, size: usize) {
        static PIECE: [u8; 65_536] = [b'x'; 65_536];
        let mut left = size;
        while left > 0 {
            let length = left.min(PIECE.len());
            self.write(&PIECE[..length]).await;
            left -= length;
        }
    }

    async fn read(&mut self, method: &str) -> Reply {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.stream.read_line(&mut line).await.expect("the reply arrives");
            assert!(read > 0, "the connection was closed without a reply: {head:?}");
            if line == "\r\n" {
                break;
            }
            head.push(line.trim_end().to_ascii_lowercase());
        }
        let status = head[0].split(' ').nth(1).unwrap().parse().unwrap();
        let value = |name: &str| head.iter().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        let length = value("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; if method == "HEAD" || status == 100 { 0 } else { length }];
        self.stream.read_exact(&mut body).await.expect("the body of the reply arrives");
        Reply { status, closes: value("connection") == Some("close"), body: String::from_utf8(body).unwrap() }
    }

    /// Sends a small request that must succeed: on this connection, or on a new one if this one closes. A connection that
    /// closes ends without an error.
    async fn check_next_request(mut self, server: &Server, reply: &Reply) {
        if reply.closes {
            let mut rest = Vec::new();
            self.stream.read_to_end(&mut rest).await.expect("the connection is closed, not reset");
            assert_eq!(rest, b"");
            self = Self::open(server).await;
        }
        let request = format!("GET /v1/assistants HTTP/1.1\r\nhost: localhost\r\napi-key: {KEY}\r\n\r\n");
        self.write(request.as_bytes()).await;
        assert_eq!(self.read("GET").await.status, 200);
    }
}

/// A request that is rejected, without its body.
#[derive(Clone, Copy)]
struct Rejected {
    status: u16,
    line: &'static str,
    key: &'static str,
    content_type: &'static str,
}

impl Rejected {
    fn head(&self, framing: &str) -> String {
        let Self { line, key, content_type, .. } = self;
        let version = if line.ends_with("HTTP/1.0") { "" } else { " HTTP/1.1" };
        format!(
            "{line}{version}\r\nhost: localhost\r\napi-key: {key}\r\ncontent-type: {content_type}\r\n{framing}\r\n\r\n"
        )
    }

    fn method(&self) -> &'static str {
        self.line.split(' ').next().unwrap()
    }

    fn check(&self, reply: &Reply) {
        assert_eq!(reply.status, self.status, "{}: {reply:?}", self.line);
        if self.method() != "HEAD" {
            contract::check_error(&serde_json::from_str(&reply.body).unwrap());
        }
    }
}

const JSON: &str = "application/json";
const POST: Rejected = Rejected { status: 401, line: "POST /v1/assistants", key: "wrong", content_type: JSON };
const REJECTED: [Rejected; 7] = [
    POST,
    Rejected { status: 404, line: "POST /v1/nothing", key: KEY, ..POST },
    Rejected { status: 405, line: "PUT /v1/assistants", key: KEY, ..POST },
    Rejected { status: 400, line: "POST /v1/threads/undefined/messages", key: KEY, ..POST },
    Rejected { status: 415, key: KEY, content_type: "text/plain", ..POST },
    Rejected { status: 404, line: "HEAD /v1/nothing", key: KEY, ..POST },
    Rejected { line: "POST /v1/assistants HTTP/1.0", ..POST },
];
const TOO_LARGE: Rejected = Rejected { status: 413, key: KEY, ..POST };

async fn start(settings: &[(&str, &str)]) -> (Database, Server) {
    let database = Database::sqlite();
    let settings = [&[("API_KEYS", KEY)], settings].concat();
    let server = Server::with(&database, &Upstream::start().await, &settings).await;
    (database, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_arrives_whatever_the_size_of_the_body() {
    let (_database, server) = start(&[]).await;

    for size in SIZES {
        let too_large = (size > 33_554_432).then_some(TOO_LARGE);
        for rejected in REJECTED.into_iter().chain(too_large) {
            let mut connection = Connection::open(&server).await;
            connection.write(rejected.head(&format!("content-length: {size}")).as_bytes()).await;
            connection.write_body(size).await;
            let reply = connection.read(rejected.method()).await;

            rejected.check(&reply);
            let is_old = rejected.line.ends_with("HTTP/1.0");
            assert!(!reply.closes || size > SMALL || is_old, "{} closes after {size} bytes", rejected.line);
            let reply = Reply { closes: reply.closes || is_old, ..reply };
            connection.check_next_request(&server, &reply).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_arrives_although_the_body_has_no_known_size() {
    let (_database, server) = start(&[]).await;

    for size in [0, 10_000, 5_000_000, 60_000_000] {
        let too_large = (size > 33_554_432).then_some(TOO_LARGE);
        for rejected in REJECTED.into_iter().take(5).chain(too_large) {
            let mut connection = Connection::open(&server).await;
            connection.write(rejected.head("transfer-encoding: chunked").as_bytes()).await;
            for _ in 0..size / 10_000 {
                connection.write(b"2710\r\n").await;
                connection.write_body(10_000).await;
                connection.write(b"\r\n").await;
            }
            connection.write(b"0\r\n\r\n").await;
            let reply = connection.read(rejected.method()).await;

            rejected.check(&reply);
            assert!(!reply.closes || size > SMALL, "{} closes after {size} bytes", rejected.line);
            connection.check_next_request(&server, &reply).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_100_is_rejected_without_it() {
    let (_database, server) = start(&[]).await;

    for (rejected, size) in REJECTED[..5].iter().map(|rejected| (rejected, 10)).chain([(&TOO_LARGE, 60_000_000)]) {
        for sends_body in [false, true] {
            let framing = format!("expect: 100-continue\r\ncontent-length: {size}");
            let mut connection = Connection::open(&server).await;
            connection.write(rejected.head(&framing).as_bytes()).await;
            if sends_body {
                connection.write_body(size).await;
            }
            let reply = connection.read(rejected.method()).await;

            rejected.check(&reply);
            assert!(reply.closes, "the client cannot know whether the server expects the body");
            connection.check_next_request(&server, &reply).await;
        }
    }

    let mut connection = Connection::open(&server).await;
    let accepted = Rejected { key: KEY, ..POST }.head("expect: 100-continue\r\ncontent-length: 13");
    connection.write(accepted.as_bytes()).await;
    assert_eq!(connection.read("POST").await.status, 100);
    connection.write(b"{\"model\":\"m\"}").await;
    let reply = connection.read("POST").await;
    assert_eq!((reply.status, reply.closes), (200, false));
    connection.check_next_request(&server, &reply).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_does_not_wait_for_a_slow_body() {
    let (_database, server) = start(&[]).await;

    for rejected in &REJECTED[..5] {
        let mut connection = Connection::open(&server).await;
        connection.write(rejected.head("content-length: 10000").as_bytes()).await;
        connection.write_body(1).await;
        let reply = connection.read(rejected.method()).await;

        rejected.check(&reply);
        assert!(reply.closes);
        connection.write_body(9_999).await;
        connection.check_next_request(&server, &reply).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_in_the_middle_of_a_body_arrives() {
    let settings = [("BODY_BYTES_MAX", "100000"), ("BODY_TIMEOUT_S", "1")];
    let (_database, server) = start(&settings).await;
    let chunked = TOO_LARGE.head("transfer-encoding: chunked");
    let late = Rejected { status: 408, ..TOO_LARGE };

    let mut connection = Connection::open(&server).await;
    connection.write(chunked.as_bytes()).await;
    connection.write(b"989680\r\n").await;
    connection.write_body(10_000_000).await;
    let reply = connection.read("POST").await;
    TOO_LARGE.check(&reply);
    assert!(reply.closes);
    connection.check_next_request(&server, &reply).await;

    let mut connection = Connection::open(&server).await;
    connection.write(late.head("content-length: 90000").as_bytes()).await;
    connection.write_body(10_000).await;
    let reply = connection.read("POST").await;
    late.check(&reply);
    assert!(reply.closes);
    connection.write_body(80_000).await;
    connection.check_next_request(&server, &reply).await;

    let broken = Rejected { status: 400, ..TOO_LARGE };
    let mut connection = Connection::open(&server).await;
    connection.write(broken.head("transfer-encoding: chunked").as_bytes()).await;
    connection.write(b"1\r\n{\r\nnot a size\r\n").await;
    connection.write_body(1_000_000).await;
    let reply = connection.read("POST").await;
    broken.check(&reply);
    assert!(reply.closes && reply.body.contains("The request body is incomplete."), "{reply:?}");
    connection.check_next_request(&server, &reply).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_by_the_rate_limit_arrives() {
    let limited = Rejected { status: 429, key: KEY, ..POST };

    for (size, closes) in [(0, false), (10_000, false), (5_000_000, true)] {
        let (_database, server) = start(&[("REQUESTS_PER_MINUTE", "2")]).await;
        for line in ["GET /v1/assistants", "GET /v1/assistants"] {
            let mut connection = Connection::open(&server).await;
            connection.write(Rejected { line, ..limited }.head("content-length: 0").as_bytes()).await;
            assert_eq!(connection.read("GET").await.status, 200);
        }
        let mut connection = Connection::open(&server).await;
        connection.write(limited.head(&format!("content-length: {size}")).as_bytes()).await;
        connection.write_body(size).await;
        let reply = connection.read("POST").await;

        limited.check(&reply);
        assert_eq!(reply.closes, closes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_by_the_connection_limit_arrives() {
    let database = Database::sqlite();
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[("CONNECTIONS_MAX", "1")]).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let body = json!({"assistant_id": assistant, "stream": true});
    let stream = client.open_stream(&format!("/v1/threads/{thread}/runs"), body).await;
    upstream.wait_for_requests(1).await;
    let full = Rejected { status: 503, ..POST };

    for size in [0, 10_000, 5_000_000, 60_000_000] {
        let mut connection = Connection::open(&server).await;
        connection.write(full.head(&format!("content-length: {size}")).as_bytes()).await;
        connection.write_body(size).await;
        let reply = connection.read("POST").await;

        full.check(&reply);
        assert!(reply.closes && reply.body.contains("too many connections"), "{reply:?}");
    }
    upstream.resume();
    assert!(stream.text().await.unwrap().ends_with("data: [DONE]\n\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_head_that_is_too_large_is_rejected_without_a_reset() {
    let (_database, server) = start(&[]).await;
    let mut connection = Connection::open(&server).await;

    connection
        .write(format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(5_000_000)).as_bytes())
        .await;
    let mut response = String::new();
    connection.stream.read_to_string(&mut response).await.expect("the connection is closed, not reset");

    assert!(response.starts_with("HTTP/1.1 431"), "{response}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_reply_arrives_although_the_client_first_sends_a_large_body() {
    let database = Database::sqlite();
    let server = Server::start(&database, &Upstream::start().await).await;
    let thread = server.client.create_thread("Hi").await;
    let path = format!("/v1/threads/{thread}/messages");
    // More than the buffers of both sockets hold.
    let text = "\u{1F600}".repeat(250_000);
    for _ in 0..16 {
        server.client.post(&path, json!({"role": "user", "content": text})).await;
    }
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let address = server.client.base_url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut connection = Connection { stream: BufStream::new(socket.connect(address).await.unwrap()) };

    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 20000000\r\n\r\n");
    connection.write(request.as_bytes()).await;
    connection.write_body(20_000_000).await;
    let reply = connection.read("GET").await;

    assert_eq!((reply.status, reply.closes), (200, true));
    let page: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(page["data"].as_array().unwrap().len(), 17);
    connection.check_next_request(&server, &reply).await;
}
