//! A plain HTTP client that checks each response against the API description.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::contract;
use super::form::Form;
use super::sse::{self, Event};

/// A response of the server.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

#[derive(Debug, Clone)]
pub struct Client {
    pub base_url: String,
    inner: reqwest::Client,
    key: Option<String>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let inner = reqwest::Client::builder().timeout(Duration::from_mins(1)).no_proxy().build().unwrap();
        Self { base_url: format!("http://{address}"), inner, key: None }
    }

    /// Returns a client of the same server that sends an API key.
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.inner.request(method, format!("{}{path}", self.base_url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a request; the response must be JSON.
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Reply {
        let mut request = self.request(method.clone(), path);
        if let Some(body) = body {
            request = request.json(body);
        }
        let reply = Self::read(request.send().await.unwrap()).await;
        if reply.status == 200 {
            contract::check_reply(method.as_str(), path, &reply.body);
        } else {
            contract::check_error(&reply.body);
        }
        reply
    }

    pub async fn read(response: Response) -> Reply {
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status}: {error}: {text}"));
        Reply { status, headers, body }
    }

    /// Sends a request that must succeed.
    async fn ok(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        let reply = self.send(method.clone(), path, body).await;
        assert_eq!(reply.status, 200, "{method} {path}: {:#}", reply.body);
        reply.body
    }

    pub async fn get(&self, path: &str) -> Value {
        self.ok(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.ok(Method::POST, path, Some(&body)).await
    }

    pub async fn delete(&self, path: &str) -> Value {
        self.ok(Method::DELETE, path, None).await
    }

    /// Sends a request that must be rejected; returns the status and the `error` object.
    pub async fn send_rejected(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let reply = self.send(method.clone(), path, body.as_ref()).await;
        assert_ne!(reply.status, 200, "{method} {path} succeeded: {:#}", reply.body);
        (reply.status, reply.body["error"].clone())
    }

    /// Sends a POST that must be rejected with 400; returns the error message.
    pub async fn post_rejected(&self, path: &str, body: Value) -> String {
        let (status, error) = self.send_rejected(Method::POST, path, Some(body)).await;
        assert_eq!(status, 400, "{error:#}");
        error["message"].as_str().unwrap().to_owned()
    }

    /// Opens a stream.
    pub async fn open_stream(&self, path: &str, body: Value) -> Response {
        let response = self.request(Method::POST, path).json(&body).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        response
    }

    /// Reads a whole stream.
    pub async fn stream(&self, path: &str, body: Value) -> Vec<Event> {
        sse::parse(&self.open_stream(path, body).await.text().await.unwrap())
    }

    /// Uploads a small text file; returns its ID.
    pub async fn upload(&self) -> String {
        let form = Form::default().text("purpose", "assistants").file("file", "a.txt", b"words");
        form.send(self, "/v1/files").await.body["id"].as_str().unwrap().to_owned()
    }

    /// Creates an empty vector store; returns its ID.
    pub async fn create_vector_store(&self) -> String {
        self.post("/v1/vector_stores", json!({})).await["id"].as_str().unwrap().to_owned()
    }

    pub async fn create_assistant(&self) -> String {
        let assistant = self.post("/v1/assistants", json!({"model": "m"})).await;
        assistant["id"].as_str().unwrap().to_owned()
    }

    /// Creates a thread with one user message.
    pub async fn create_thread(&self, text: &str) -> String {
        let body = json!({"messages": [{"role": "user", "content": text}]});
        let thread = self.post("/v1/threads", body).await;
        thread["id"].as_str().unwrap().to_owned()
    }

    /// Creates a run that is not streamed; returns its path.
    pub async fn create_run(&self, assistant: &str, thread: &str) -> String {
        let run = self.post(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant})).await;
        format!("/v1/threads/{thread}/runs/{}", run["id"].as_str().unwrap())
    }

    /// Polls a run until it has ended; fails after 60 seconds.
    pub async fn wait_until_ended(&self, run: &str) -> Value {
        for _ in 0..6_000 {
            let now = self.get(run).await;
            let ended = ["completed", "failed", "cancelled", "expired", "incomplete"];
            if ended.contains(&now["status"].as_str().unwrap()) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{run} did not end");
    }

    /// Polls a run until it has a status; fails after 30 seconds or when the run ends with another status.
    pub async fn wait_for_status(&self, run: &str, status: &str) -> Value {
        for _ in 0..3_000 {
            let now = self.get(run).await;
            if now["status"] == status {
                return now;
            }
            let terminal = ["completed", "failed", "cancelled", "expired", "incomplete"];
            assert!(!terminal.contains(&now["status"].as_str().unwrap()), "the run did not become {status}: {now:#}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{run} did not become {status}");
    }
}
