//! Limits of connections, requests and responses, and shutdown with open responses.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;

use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sse::{names, parse};
use crate::support::upstream::{Answer, Upstream};

fn address(client: &Client) -> String {
    client.base_url.trim_start_matches("http://").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_do_not_block_health_checks_or_streams() {
    let database = Database::sqlite();
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[("CONNECTIONS_MAX", "4")]).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let body = json!({"assistant_id": assistant, "stream": true});
    let stream = client.open_stream(&format!("/v1/threads/{thread}/runs"), body).await;
    upstream.wait_for_requests(1).await;

    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(TcpStream::connect(address(client)).await.unwrap());
    }

    let fresh = Client::new(address(client).parse().unwrap());
    assert_eq!(fresh.request(Method::GET, "/health").send().await.unwrap().status().as_u16(), 200);
    upstream.resume();
    let events = parse(&stream.text().await.unwrap());
    assert_eq!(names(&events).last_chunk::<2>().unwrap(), &["run.completed", "done"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_connection_limit_only_health_checks_are_served() {
    let database = Database::sqlite();
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"]), Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[("CONNECTIONS_MAX", "2")]).await;
    let client = &server.client;
    let assistant = client.create_assistant().await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let thread = client.create_thread("Hi").await;
        let body = json!({"assistant_id": assistant, "stream": true});
        streams.push(client.open_stream(&format!("/v1/threads/{thread}/runs"), body).await);
    }
    upstream.wait_for_requests(2).await;

    let send = async |path: &str| {
        let fresh = Client::new(address(client).parse().unwrap());
        fresh.request(Method::GET, path).send().await.unwrap()
    };
    // An idle connection of the client may still be open, and then it is closed in favor of the new one.
    let mut status = 200;
    for _ in 0..100 {
        let rejected = send("/v1/assistants").await;
        status = rejected.status().as_u16();
        if status == 503 {
            assert_eq!(rejected.headers()["retry-after"], "1");
            break;
        }
    }
    let health = send("/health").await.status().as_u16();

    assert_eq!((status, health), (503, 200));
    upstream.resume();
    upstream.resume();
    for stream in streams {
        assert!(stream.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    }
}

#[tokio::test]
async fn a_request_head_has_a_maximum_size() {
    let database = Database::sqlite();
    let server = Server::with(&database, &Upstream::start().await, &[("HEAD_BYTES_MAX", "8192")]).await;
    let mut socket = TcpStream::connect(address(&server.client)).await.unwrap();
    let request = format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(20_000));

    socket.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    let _ = socket.read_to_string(&mut response).await;

    assert!(response.starts_with("HTTP/1.1 431"), "{response}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_needs_too_much_memory_when_parsed_is_rejected() {
    let database = Database::sqlite();
    let server = Server::start(&database, &Upstream::start().await).await;
    let body = format!("{{\"model\":\"m\",\"tools\":[0{}]}}", ",0".repeat(8_000_000));

    let request = server.client.request(Method::POST, "/v1/assistants").header("content-type", "application/json");
    let reply = Client::read(request.body(body).send().await.unwrap()).await;

    assert_eq!(reply.status, 413);
    assert!(reply.body["error"]["message"].as_str().unwrap().contains("bodies_bytes_max"), "{}", reply.body);
    // A body with one large string is accepted.
    let image = format!("data:image/png;base64,{}", "A".repeat(12_000_000));
    let content = json!([{"type": "image_url", "image_url": {"url": image}}]);
    let thread = server.client.create_thread("Hi").await;
    server.client.post(&format!("/v1/threads/{thread}/messages"), json!({"role": "user", "content": content})).await;
}

#[tokio::test]
async fn an_error_quotes_a_bounded_part_of_the_request() {
    let database = Database::sqlite();
    let server = Server::start(&database, &Upstream::start().await).await;
    let name = "n".repeat(1_000_000);

    let mut members = serde_json::Map::from_iter([("model".to_owned(), json!("m"))]);
    members.insert(name, json!(1));
    let (status, error) = server.client.send_rejected(Method::POST, "/v1/assistants", Some(members.into())).await;

    assert_eq!((status, &error["code"]), (400, &json!("unknown_parameter")));
    assert!(error.to_string().len() < 10_000);
    assert!(error["message"].as_str().unwrap().starts_with("Unknown parameter: 'nnn"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unread_stream_is_closed_and_its_run_completes() {
    let database = Database::sqlite();
    let piece =
        format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "x".repeat(60_000));
    let end = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    let answer: &'static str = Box::leak(format!("{}{end}", piece.repeat(120)).into_boxed_str());
    let upstream = Upstream::scripted([Answer::Raw(answer)]).await;
    let server = Server::with(&database, &upstream, &[("WRITE_TIMEOUT_S", "1")]).await;
    let client = &server.client;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let body = json!({"assistant_id": assistant, "stream": true}).to_string();
    let mut socket = TcpStream::connect(address(client)).await.unwrap();
    let request = format!(
        "POST /v1/threads/{thread}/runs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );

    socket.write_all(request.as_bytes()).await.unwrap();
    let run = loop {
        let runs = client.get(&format!("/v1/threads/{thread}/runs")).await;
        if let Some(id) = runs["data"][0]["id"].as_str() {
            break format!("/v1/threads/{thread}/runs/{id}");
        }
    };
    client.wait_for_status(&run, "completed").await;
    tokio::time::timeout(Duration::from_secs(30), socket.ready(Interest::ERROR)).await.unwrap().unwrap();
    let mut received = Vec::new();
    let _ = socket.read_to_end(&mut received).await;

    let received = String::from_utf8_lossy(&received);
    assert!(
        received.starts_with("HTTP/1.1 200") && !received.contains("[DONE]"),
        "the stream was closed before its end"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_completion_may_finish_within_the_shutdown_grace_period() {
    let database = Database::sqlite();
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[("SHUTDOWN_GRACE_S", "30")]).await;
    let client = server.client.clone();
    let body = json!({"model": "m", "messages": [], "stream": true});
    let stream = client.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap();

    let later = async {
        while client.request(Method::GET, "/ready").send().await.unwrap().status().as_u16() != 503 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let rejected = client.send(Method::POST, "/v1/chat/completions", Some(&body)).await;
        assert_eq!((rejected.status, &rejected.headers["retry-after"]), (503, &"1".parse().unwrap()));
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        upstream.resume();
    };
    let (text, (), ()) = tokio::join!(stream.text(), server.stop(), later);

    let text = text.unwrap();
    assert!(text.contains("\"!\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_completion_ends_with_an_error_after_the_shutdown_grace_period() {
    let database = Database::sqlite();
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[("SHUTDOWN_GRACE_S", "0")]).await;
    let body = json!({"model": "m", "messages": [], "stream": true});
    let stream = server.client.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap();

    let (text, ()) = tokio::join!(stream.text(), server.stop());

    let text = text.unwrap();
    let last = text.trim_end().rsplit("\n\n").nth(1).unwrap();
    assert!(last.contains("The server is stopping"), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn a_connection_with_a_part_of_a_request_is_closed_in_favor_of_a_new_one() {
    let database = Database::sqlite();
    let settings = [("CONNECTIONS_MAX", "1"), ("HEADER_TIMEOUT_S", "3600")];
    let server = Server::with(&database, &Upstream::start().await, &settings).await;
    let mut unfinished = TcpStream::connect(address(&server.client)).await.unwrap();
    unfinished.write_all(b"GET /v1/assistants HTTP/1.1\r\nhost: ").await.unwrap();

    assert_eq!(server.client.send(Method::GET, "/v1/assistants", None).await.status, 200);
    let mut end = Vec::new();
    let _ = tokio::time::timeout(Duration::from_mins(1), unfinished.read_to_end(&mut end)).await.expect("it is closed");
    assert!(end.is_empty(), "{}", String::from_utf8_lossy(&end));
}
