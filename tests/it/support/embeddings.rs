//! An embedding server on loopback: it answers with the counts of hashed words, and records the texts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Json, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};

/// Number of dimensions of the embeddings.
pub const DIMENSIONS: usize = 8;

#[derive(Debug)]
struct Inner {
    texts: Mutex<Vec<String>>,
    /// Number of requests that were received.
    requests: watch::Sender<usize>,
    /// Requests that are answered. Each takes one permit.
    answers: Semaphore,
    failure: Mutex<Option<(u16, &'static str)>>,
}

/// The server; it ends with the test's runtime.
#[derive(Debug, Clone)]
pub struct Embeddings {
    pub url: String,
    inner: Arc<Inner>,
}

impl Embeddings {
    /// A server that answers all requests.
    pub async fn start() -> Self {
        Self::answering(Semaphore::MAX_PERMITS / 2).await
    }

    /// A server that answers this many requests, and then holds them until [`Embeddings::answer`].
    pub async fn answering(requests: usize) -> Self {
        let inner = Arc::new(Inner {
            texts: Mutex::default(),
            requests: watch::channel(0).0,
            answers: Semaphore::new(requests),
            failure: Mutex::default(),
        });
        let router = Router::new().route("/v1/embeddings", post(embed)).with_state(inner.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, inner }
    }

    /// The settings of a server that uses it.
    pub fn settings(&self) -> [(&str, &str); 3] {
        [("EMBEDDING_MODEL", "words"), ("EMBEDDING_URL", &self.url), ("EMBEDDING_BATCH_MAX", "4")]
    }

    /// Answers this many more requests.
    pub fn answer(&self, requests: usize) {
        self.inner.answers.add_permits(requests);
    }

    /// Answers requests with an error, or again as usual.
    pub fn fail(&self, failure: Option<(u16, &'static str)>) {
        *self.inner.failure.lock().unwrap() = failure;
    }

    /// Waits until this many requests were received.
    pub async fn wait_for_requests(&self, count: usize) {
        self.inner.requests.subscribe().wait_for(|received| *received >= count).await.unwrap();
    }

    /// All texts that were received, in order.
    pub fn texts(&self) -> Vec<String> {
        self.inner.texts.lock().unwrap().clone()
    }

    /// How often each text was received.
    pub fn counts(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for text in self.texts() {
            *counts.entry(text).or_default() += 1;
        }
        counts
    }
}

async fn embed(State(inner): State<Arc<Inner>>, Json(request): Json<Value>) -> Response {
    let texts: Vec<String> = serde_json::from_value(request["input"].clone()).unwrap();
    inner.texts.lock().unwrap().extend(texts.iter().cloned());
    inner.requests.send_modify(|count| *count += 1);
    let failure = *inner.failure.lock().unwrap();
    if let Some((status, text)) = failure {
        return (StatusCode::from_u16(status).unwrap(), Json(json!({"error": {"message": text}}))).into_response();
    }
    inner.answers.acquire().await.unwrap().forget();
    let tokens: usize = texts.iter().map(|text| text.split_whitespace().count()).sum();
    let data: Vec<Value> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| json!({"object": "embedding", "index": index, "embedding": vector(text)}))
        .collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Json(json!({"object": "list", "model": request["model"], "data": data, "usage": usage})).into_response()
}

/// The number of words with each hash.
pub fn vector(text: &str) -> [f32; DIMENSIONS] {
    let mut vector = [0.0; DIMENSIONS];
    for word in text.split_whitespace() {
        let hash = word.bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        vector[hash % DIMENSIONS] += 1.0;
    }
    vector
}
