//! A model server on loopback: the known embeddings of a collection, hashed bags of words for other texts, and a scripted chat
//! model.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use serde_json::{Value, json};

use crate::Result;
use crate::collection::{Collection, DIMENSIONS};

/// The name of the model.
pub const MODEL: &str = "minilm";
/// Characters of a normalized text that identify it: a chunk is known if a document begins with it.
const KEY_CHARS: usize = 160;

/// A running embeddings server. It ends with the runtime.
pub struct EmbeddingServer {
    address: SocketAddr,
}

impl EmbeddingServer {
    pub async fn start(collection: Option<&Collection>) -> Result<Self> {
        let mut known: HashMap<String, Vec<f32>> = HashMap::new();
        for (text, bytes) in collection.into_iter().flat_map(Collection::embedded) {
            known.entry(key(&text)).or_insert_with(|| assistd::retrieval::index::from_f16_bytes(bytes));
        }
        let router = Router::new()
            .route("/v1/embeddings", post(embed))
            .route("/v1/chat/completions", post(crate::model::complete))
            .route("/v1/models", get(async || axum::Json(json!({"object": "list", "data": []}))))
            .with_state(Arc::new(known));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        // Without this, small chunks of a stream are delayed.
        let listener = listener.tap_io(|connection| {
            let _ = connection.set_nodelay(true);
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn embed(State(known): State<Arc<HashMap<String, Vec<f32>>>>, body: axum::Json<Value>) -> axum::Json<Value> {
    let inputs = match &body["input"] {
        Value::Array(inputs) => inputs.iter().filter_map(Value::as_str).collect(),
        other => other.as_str().into_iter().collect::<Vec<_>>(),
    };
    let item = |(index, text): (usize, &&str)| {
        let embedding = known.get(&key(text)).cloned().unwrap_or_else(|| bag_of_words(text));
        json!({"object": "embedding", "index": index, "embedding": embedding})
    };
    let data: Vec<Value> = inputs.iter().enumerate().map(item).collect();
    let tokens: usize = inputs.iter().map(|text| text.len() / 4 + 1).sum();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    axum::Json(json!({"object": "list", "model": MODEL, "data": data, "usage": usage}))
}

fn key(text: &str) -> String {
    let normalized = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    normalized.chars().take(KEY_CHARS).collect()
}

/// Embeds a text by its words: texts that share words are similar.
pub fn bag_of_words(text: &str) -> Vec<f32> {
    let mut values = vec![0.0; DIMENSIONS];
    for word in text.split_whitespace() {
        let hash = word
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        // A few dimensions for each word, so that vectors are dense.
        let mut random = fastrand::Rng::with_seed(hash);
        for _ in 0..16 {
            values[random.usize(..DIMENSIONS)] += random.f32() - 0.5;
        }
    }
    values
}
