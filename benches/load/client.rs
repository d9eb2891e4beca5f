//! A simulated client: one keep-alive HTTP/1 connection and minimal parsing, to leave the processor to the servers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::Result;

/// The last bytes of every stream.
const DONE: &[u8] = b"data: [DONE]\n\n";
/// Maximum distance between the mark of completion and the end of a stream, in bytes: more than the last run object.
const ENDING_BYTES_MAX: usize = 16 * 1024;

/// How to read a server's streams.
#[derive(Clone, Copy)]
pub struct Marks {
    /// A text that first occurs in the event of the first token.
    pub first_token: &'static str,
    /// A text near the end of a successful stream.
    pub completed: &'static str,
}

/// The latencies of a request.
#[derive(Clone, Copy)]
pub struct Timing {
    pub first_token: Duration,
    pub end: Duration,
}

/// One simulated client.
pub struct Client {
    address: SocketAddr,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    /// Sends a request and returns the response, with an unread body. Connects if necessary.
    ///
    /// # Errors
    /// If the request fails or the status is not 200. The error then contains the start of the body.
    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "127.0.0.1")
            .header(AUTHORIZATION, "Bearer load")
            .header("openai-beta", "assistants=v2")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let response = self.connection().await?.send_request(request).await?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            let start: String = String::from_utf8_lossy(&body).chars().take(300).collect();
            return Err(format!("{path} returned {status}: {start}").into());
        }
        Ok(response)
    }

    async fn connection(&mut self) -> Result<&mut SendRequest<Full<Bytes>>> {
        let usable = match &mut self.connection {
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            // Ends when the sender is dropped. The sender reports failures.
            tokio::spawn(async move {
                let _ = connection.await;
            });
            self.connection = Some(sender);
        }
        Ok(self.connection.as_mut().expect("connected just above"))
    }

    /// Sends a request and reads the whole response.
    pub async fn fetch(&mut self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let response = self.send(method, path, body).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    }

    /// Sends a request and parses the response as JSON.
    pub async fn fetch_json<T: DeserializeOwned>(&mut self, method: Method, path: &str, body: Bytes) -> Result<T> {
        Ok(serde_json::from_slice(&self.fetch(method, path, body).await?)?)
    }

    /// Sends a request and reads the whole stream.
    ///
    /// # Errors
    /// If the request fails or the stream does not complete.
    pub async fn stream(&mut self, path: &str, body: Bytes, marks: Marks) -> Result<Timing> {
        let mut stream = self.open_stream(path, body, marks).await?;
        stream.read_to_end().await
    }

    /// Sends a request and returns the unread stream.
    pub async fn open_stream(&mut self, path: &str, body: Bytes, marks: Marks) -> Result<Stream> {
        let requested = Instant::now();
        let response = self.send(Method::POST, path, body).await?;
        Ok(Stream {
            body: response.into_body(),
            marks,
            requested,
            seen: Vec::with_capacity(4096),
            first_token: None,
            end: None,
        })
    }
}

/// A stream of server-sent events.
pub struct Stream {
    body: Incoming,
    marks: Marks,
    requested: Instant,
    seen: Vec<u8>,
    first_token: Option<Instant>,
    end: Option<Instant>,
}

impl Stream {
    /// Reads until the first token has arrived.
    pub async fn read_first_token(&mut self) -> Result<()> {
        while self.first_token.is_none() {
            if !self.read_more().await? {
                return Err(self.unexpected("ended before the first token"));
            }
        }
        Ok(())
    }

    /// Reads to the end and checks that the stream completed.
    pub async fn read_to_end(&mut self) -> Result<Timing> {
        while self.read_more().await? {}
        let Some(first_token) = self.first_token else { return Err(self.unexpected("had no token")) };
        let Some(end) = self.end else { return Err(self.unexpected("ended without [DONE]")) };
        let ending = &self.seen[self.seen.len().saturating_sub(ENDING_BYTES_MAX)..];
        let mark = self.marks.completed.as_bytes();
        if !ending.windows(mark.len()).rev().any(|window| window == mark) {
            return Err(self.unexpected("did not complete"));
        }
        Ok(Timing { first_token: first_token - self.requested, end: end - self.requested })
    }

    /// Reads one frame. Returns whether there was one.
    async fn read_more(&mut self) -> Result<bool> {
        let Some(frame) = self.body.frame().await else { return Ok(false) };
        let Ok(bytes) = frame?.into_data() else { return Ok(true) };
        let mark = self.marks.first_token.as_bytes();
        let unsearched = self.seen.len().saturating_sub(mark.len());
        self.seen.extend_from_slice(&bytes);
        if self.first_token.is_none() && self.seen[unsearched..].windows(mark.len()).any(|window| window == mark) {
            self.first_token = Some(Instant::now());
        }
        if self.seen.ends_with(DONE) {
            self.end = Some(Instant::now());
        }
        Ok(true)
    }

    fn unexpected(&self, what: &str) -> crate::Error {
        let start = self.seen.len().saturating_sub(400);
        format!("a stream {what}; its last bytes: {}", String::from_utf8_lossy(&self.seen[start..]).escape_debug())
            .into()
    }
}
