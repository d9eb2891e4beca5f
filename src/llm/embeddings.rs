//! Embeddings of texts: a client of `/v1/embeddings`.
//!
//! Texts are sent in batches. A text that is longer than the model accepts is split into windows, and the embeddings of its
//! windows are averaged. A batch that the server rejects because it is too large is sent in halves.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use super::openai::{Report, embeddings_usage};
use super::tokens::{self, Counted};
use super::{Cause, ChatModel, Endpoint, Error, Models, Proxied};

/// Maximum size of an answer, in bytes: a batch of 256 embeddings with 8,192 dimensions as JSON.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Maximum number of dimensions.
const DIMENSIONS_MAX: usize = 65_536;
/// Number of times that a text is split because the server rejects it.
const SPLITS_MAX: u32 = 8;
/// Maximum number of windows of a text in one split.
const WINDOWS_MAX: usize = 64;
/// A text with fewer tokens is not split further.
const SPLIT_TOKENS_MIN: usize = 16;
/// Maximum length of a server's error text in our errors, in characters.
const REPORT_CHARS_MAX: usize = 500;
/// The text whose embedding determines the number of dimensions.
const PROBE: &str = "dimensions";

/// What a text is used for. Some models expect a different prefix for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EmbeddingInput {
    /// A question.
    Query,
    /// A part of a document.
    Document,
}

/// The embeddings of some texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// One vector for each text, of length 1 (or 0, if the server returned zeros only). All have the same dimensions.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens that the server counted, or our estimate.
    pub tokens: u32,
    /// The model and the dimensions, such as `nomic-embed-text@768`. Vectors of different keys cannot be compared.
    pub model: String,
}

/// Computes embeddings.
#[async_trait]
pub trait Embedder: Send + Sync + std::fmt::Debug {
    /// Returns the embeddings of texts, in their order.
    ///
    /// # Errors
    /// [`Error::Rejected`] if a retry does not help, for example because the model does not exist.
    async fn embed(&self, input: EmbeddingInput, texts: &[String]) -> Result<Embedded, Error>;
    /// Returns the configured name of the model.
    fn model(&self) -> &str;
    /// Returns the model and the dimensions, as in [`Embedded::model`]. Asks the server if it has not answered yet.
    ///
    /// # Errors
    /// As [`Embedder::embed`].
    async fn key(&self) -> Result<String, Error>;
}

/// How texts are sent to an embedding model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingSettings {
    /// The name of the model.
    pub model: String,
    /// Requested number of dimensions. `None`: those of the model.
    pub dimensions: Option<usize>,
    /// Maximum number of texts in a request; at least 1.
    pub batch_max: usize,
    /// Maximum tokens of a text, as we count them. `None`: what the server accepts.
    pub tokens_max: Option<usize>,
    /// Written before a query.
    pub query_prefix: String,
    /// Written before a part of a document.
    pub document_prefix: String,
}

/// An embedding model of a model server.
#[derive(Debug)]
pub struct Embeddings {
    server: EmbeddingServer,
    settings: EmbeddingSettings,
    /// Texts with this many tokens or more are split before they are sent.
    split_from: AtomicUsize,
    /// The dimensions of the first answer.
    dimensions: OnceLock<usize>,
}

/// Where an embedding model is served.
#[derive(Debug, Clone)]
pub enum EmbeddingServer {
    /// By the server to which the model's name is routed.
    Routed(Arc<Models>),
    /// By this server.
    Fixed(Arc<dyn ChatModel>),
}

impl Embeddings {
    /// Creates the client of a model.
    #[must_use]
    pub fn new(server: EmbeddingServer, settings: EmbeddingSettings) -> Self {
        let split_from = settings.tokens_max.map_or(usize::MAX, |max| max.max(SPLIT_TOKENS_MIN) + 1);
        Self { server, settings, split_from: AtomicUsize::new(split_from), dimensions: OnceLock::new() }
    }

    /// Sends one request with these texts.
    async fn request(&self, texts: Vec<String>) -> Result<Answered, Error> {
        let (server, model) = match &self.server {
            EmbeddingServer::Fixed(server) => (server.clone(), self.settings.model.clone()),
            EmbeddingServer::Routed(models) => {
                let route = models.route_embeddings(&self.settings.model).await;
                (route.server, route.model)
            }
        };
        let count = texts.len();
        let mut request = Map::from_iter([("model".to_owned(), json!(model)), ("input".to_owned(), json!(texts))]);
        if let Some(dimensions) = self.settings.dimensions {
            request.insert("dimensions".to_owned(), json!(dimensions));
        }
        let Proxied { status, mut body, .. } = server.proxy(Endpoint::Embeddings, request).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk?);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(invalid(&format!("more than {ANSWER_BYTES_MAX} bytes")));
            }
        }
        if !(200..300).contains(&status) {
            return failed(&Report::of_response(status, &String::from_utf8_lossy(&bytes)));
        }
        let answer: Answer = match serde_json::from_slice(&bytes) {
            Ok(answer) => answer,
            Err(error) => {
                let reported = serde_json::from_slice::<Value>(&bytes).ok().and_then(|value| Report::in_answer(&value));
                return match reported {
                    Some(report) => failed(&report),
                    None => Err(invalid(&format!("something other than embeddings ({error})"))),
                };
            }
        };
        let vectors = self.check(answer.data, count)?;
        Ok(Answered::Vectors(vectors, embeddings_usage(&answer.usage).map(|usage| usage.prompt_tokens)))
    }

    /// Orders the embeddings of an answer, and checks their number, dimensions and values.
    fn check(&self, items: Vec<Item>, count: usize) -> Result<Vec<Vec<f32>>, Error> {
        if items.len() != count {
            return Err(invalid(&format!("{} embeddings for {count} texts", items.len())));
        }
        let mut vectors: Vec<Vec<f32>> = vec![Vec::new(); count];
        for (position, item) in items.into_iter().enumerate() {
            let index = item.index.unwrap_or(position);
            match vectors.get_mut(index) {
                Some(vector) if vector.is_empty() => *vector = item.embedding.0,
                _ => return Err(invalid(&format!("the index {index} twice, or for no text"))),
            }
        }
        let found = vectors.first().map(Vec::len).unwrap_or_default();
        let expected = self.settings.dimensions.unwrap_or_else(|| self.dimensions.get().copied().unwrap_or(found));
        if expected == 0 || expected > DIMENSIONS_MAX {
            return Err(invalid(&format!("embeddings with {expected} dimensions")));
        }
        if let Some(vector) = vectors.iter().find(|vector| vector.len() != expected) {
            return Err(invalid(&format!("embeddings with {} dimensions instead of {expected}", vector.len())));
        }
        if !vectors.iter().flatten().all(|value| value.is_finite()) {
            return Err(invalid("embeddings that are not finite numbers"));
        }
        let _ = self.dimensions.set(expected);
        Ok(vectors)
    }

    /// Cuts a text that is longer than the server accepts, as far as this is known.
    fn pieces(&self, index: usize, text: String) -> Vec<Piece> {
        let split_from = self.split_from.load(Ordering::Relaxed);
        // A text has at most as many tokens as bytes.
        if text.len() < split_from {
            return vec![Piece { index, splits: 0, text }];
        }
        let tokens = count(&text);
        if tokens < split_from {
            return vec![Piece { index, splits: 0, text }];
        }
        let windows = tokens / (split_from - 1) + 1;
        split(&text, windows).map(|text| Piece { index, splits: 1, text: text.to_owned() }).collect()
    }

    /// Cuts a text that the server has rejected, and remembers its length.
    fn cut(&self, piece: &Piece) -> Option<Vec<Piece>> {
        let tokens = count(&piece.text);
        if piece.splits >= SPLITS_MAX || tokens < SPLIT_TOKENS_MIN {
            return None;
        }
        self.split_from.fetch_min(tokens, Ordering::Relaxed);
        let Piece { index, splits, text } = piece;
        Some(split(text, 2).map(|text| Piece { index: *index, splits: splits + 1, text: text.to_owned() }).collect())
    }
}

#[async_trait]
impl Embedder for Embeddings {
    async fn embed(&self, input: EmbeddingInput, texts: &[String]) -> Result<Embedded, Error> {
        let prefix = match input {
            EmbeddingInput::Query => &self.settings.query_prefix,
            EmbeddingInput::Document => &self.settings.document_prefix,
        };
        let batch_max = self.settings.batch_max.max(1);
        let mut pieces: Vec<Piece> = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            pieces.extend(self.pieces(index, text.clone()));
        }
        let mut batches: VecDeque<Vec<Piece>> = VecDeque::new();
        let mut rest = pieces.into_iter().peekable();
        while rest.peek().is_some() {
            batches.push_back(rest.by_ref().take(batch_max).collect());
        }
        let mut sums: Vec<Vec<f32>> = vec![Vec::new(); texts.len()];
        let mut tokens = 0_u32;
        // Each rejected batch becomes two smaller ones, so this ends.
        while let Some(mut batch) = batches.pop_front() {
            let sent: Vec<String> = batch.iter().map(|piece| format!("{prefix}{}", piece.text)).collect();
            match self.request(sent).await? {
                Answered::Vectors(vectors, counted) => {
                    let estimated = || batch.iter().map(|piece| tokens::estimate(&piece.text)).sum::<usize>();
                    let counted = counted.unwrap_or_else(|| u32::try_from(estimated()).unwrap_or(u32::MAX));
                    tokens = tokens.saturating_add(counted);
                    for (piece, vector) in batch.iter().zip(vectors) {
                        add(&mut sums[piece.index], &unit(vector), piece.text.len());
                    }
                }
                Answered::TooLarge(_) if batch.len() > 1 => {
                    let second = batch.split_off(batch.len().div_ceil(2));
                    batches.push_front(second);
                    batches.push_front(batch);
                }
                Answered::TooLarge(error) => match batch.first().and_then(|piece| self.cut(piece)) {
                    Some(windows) => batches.push_front(windows),
                    None => return Err(error),
                },
            }
        }
        let dimensions = self.dimensions.get().copied().unwrap_or_default();
        let vectors = sums.into_iter().map(unit).collect();
        Ok(Embedded { vectors, tokens, model: format!("{}@{dimensions}", self.settings.model) })
    }

    fn model(&self) -> &str {
        &self.settings.model
    }

    async fn key(&self) -> Result<String, Error> {
        let known = self.settings.dimensions.or_else(|| self.dimensions.get().copied());
        match known {
            Some(dimensions) => Ok(format!("{}@{dimensions}", self.settings.model)),
            None => Ok(self.embed(EmbeddingInput::Query, &[PROBE.to_owned()]).await?.model),
        }
    }
}

/// A text, or a window of one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    /// The index of the text.
    index: usize,
    /// Number of times that the text was split to get this window.
    splits: u32,
    text: String,
}

/// The answer to one request.
enum Answered {
    /// The embeddings, and the tokens that the server counted.
    Vectors(Vec<Vec<f32>>, Option<u32>),
    /// The texts are too long, or too many.
    TooLarge(Error),
}

/// The body of an answer.
#[derive(Deserialize)]
struct Answer {
    data: Vec<Item>,
    #[serde(default)]
    usage: Value,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    index: Option<usize>,
    embedding: Vector,
}

/// A vector: numbers, or little-endian 32-bit floats in Base64.
struct Vector(Vec<f32>);

impl<'de> Deserialize<'de> for Vector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Vector;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a list of numbers, or a Base64 text")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Vector, A::Error> {
                let mut vector = Vec::new();
                while let Some(number) = numbers.next_element()? {
                    vector.push(number);
                }
                Ok(Vector(vector))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Vector, E> {
                let bytes = BASE64.decode(text).map_err(E::custom)?;
                let (floats, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err(E::custom("the number of bytes is not a multiple of 4"));
                }
                Ok(Vector(floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

fn invalid(what: &str) -> Error {
    Error::Unavailable(format!("The embedding server answered with {what}.").into())
}

/// Returns the outcome of a request that the server has rejected.
fn failed(report: &Report) -> Result<Answered, Error> {
    let message: String = report.message.trim().chars().take(REPORT_CHARS_MAX).collect();
    let message = if message.is_empty() { "no message".to_owned() } else { message };
    let cause = Cause {
        text: format!("The embedding server answered {}: {message}", report.status),
        for_log: format!("The embedding server answered {}", report.status),
        status: (report.status > 0).then_some(report.status),
    };
    if report.is_rate_limit() {
        return Err(Error::RateLimited(cause));
    }
    if is_too_large(report) {
        return Ok(Answered::TooLarge(Error::Rejected(cause)));
    }
    Err(match report.status {
        400..500 if report.status != 408 => Error::Rejected(cause),
        _ => Error::Unavailable(cause),
    })
}

/// Returns whether an error says that the texts are too long or too many, in the words of OpenAI, vLLM, Ollama, llama.cpp,
/// LM Studio, Text Embeddings Inference, Infinity, Mistral, Voyage, Cohere and Jina.
fn is_too_large(report: &Report) -> bool {
    const WORDS: [&str; 15] = [
        "context length",
        "context size",
        "context window",
        "context_length",
        "too long",
        "too large",
        "too many tokens",
        "too many inputs",
        "max_tokens_per_",
        "tokens per request",
        "must have less than",
        "maximum allowed",
        "longer than",
        "exceeds",
        "sequence length",
    ];
    let text = report.message.to_lowercase();
    report.status == 413
        || report.codes.iter().any(|code| WORDS.iter().any(|word| code.to_lowercase().contains(word)))
        || WORDS.iter().any(|word| text.contains(word))
}

fn count(text: &str) -> usize {
    match tokens::count_up_to(text, usize::MAX, &|| false) {
        Counted::Tokens(tokens) | Counted::MoreThan(tokens) => tokens,
        Counted::Cancelled => 0,
    }
}

/// Splits a text into about `count` windows of about the same length, if possible between words.
fn split(text: &str, count: usize) -> impl Iterator<Item = &str> {
    let count = count.clamp(2, WINDOWS_MAX);
    let mut rest = text;
    let mut left = count;
    std::iter::from_fn(move || {
        if rest.is_empty() || left == 0 {
            return None;
        }
        let end = if left == 1 { rest.len() } else { cut_before(rest, rest.len().div_ceil(left)) };
        left -= 1;
        let (window, after) = rest.split_at(end);
        rest = after;
        Some(window)
    })
}

/// Returns the position of the last blank in the second half of `..end`, or else of the last character.
fn cut_before(text: &str, end: usize) -> usize {
    let end = text.floor_char_boundary(end);
    let blank = text[..end].rfind(char::is_whitespace).filter(|blank| *blank >= end / 2 && *blank > 0);
    match blank.unwrap_or(end) {
        0 => text.chars().next().map_or(0, char::len_utf8),
        end => end,
    }
}

/// Adds a vector with a weight.
fn add(sum: &mut Vec<f32>, vector: &[f32], weight: usize) {
    #[expect(clippy::cast_precision_loss, reason = "a weight need not be exact")]
    let weight = weight as f32;
    if sum.is_empty() {
        sum.resize(vector.len(), 0.0);
    }
    for (sum, value) in sum.iter_mut().zip(vector) {
        *sum += value * weight;
    }
}

/// Returns the vector with the same direction and the length 1. Zeros remain zeros.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let square: f64 = vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
    let length = square.sqrt();
    if length > 0.0 {
        for value in &mut vector {
            #[expect(clippy::cast_possible_truncation, reason = "the quotient is at most 1")]
            let scaled = (f64::from(*value) / length) as f32;
            *value = scaled;
        }
    }
    vector
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use futures_util::stream;
    use proptest::prelude::*;

    use super::*;
    use crate::llm::{ChatRequest, ChatStream, Echo, ModelObject};

    /// A server that accepts texts with up to `words_max` words, and up to `inputs_max` of them. The embedding of a text has
    /// its first letter and its length.
    #[derive(Debug)]
    struct Server {
        words_max: usize,
        inputs_max: usize,
        requests: Mutex<Vec<Vec<String>>>,
        answer: Option<(u16, String)>,
    }

    impl Server {
        fn new(words_max: usize, inputs_max: usize) -> Arc<Self> {
            Arc::new(Self { words_max, inputs_max, requests: Mutex::default(), answer: None })
        }

        fn answering(status: u16, body: &str) -> Arc<Self> {
            let answer = Some((status, body.to_owned()));
            Arc::new(Self { words_max: 0, inputs_max: 0, requests: Mutex::default(), answer })
        }

        fn answer(&self, texts: &[String]) -> (u16, String) {
            if let Some(answer) = &self.answer {
                return answer.clone();
            }
            if texts.len() > self.inputs_max {
                return (422, json!({"error": "batch size 9 > maximum allowed batch size 4"}).to_string());
            }
            if texts.iter().any(|text| text.split_whitespace().count() > self.words_max) {
                let message = "This model's maximum context length is 8 tokens.";
                return (400, json!({"error": {"message": message}}).to_string());
            }
            // In reverse order, so that the index counts.
            let data: Vec<Value> = texts
                .iter()
                .enumerate()
                .rev()
                .map(|(index, text)| json!({"index": index, "embedding": vector(text)}))
                .collect();
            (200, json!({"data": data, "usage": {"prompt_tokens": texts.len(), "total_tokens": 0}}).to_string())
        }
    }

    fn vector(text: &str) -> [f32; 2] {
        [f32::from(text.trim_start().as_bytes()[0]), 1.0]
    }

    #[async_trait]
    impl ChatModel for Server {
        fn chat(&self, request: ChatRequest) -> ChatStream {
            Echo.chat(request)
        }

        async fn proxy(&self, _: Endpoint, request: Map<String, Value>) -> Result<Proxied, Error> {
            let texts: Vec<String> = serde_json::from_value(request["input"].clone()).unwrap();
            let (status, body) = self.answer(&texts);
            self.requests.lock().unwrap().push(texts);
            Ok(Proxied {
                status,
                content_type: None,
                retry_after: None,
                is_stream: false,
                usage_was_added: false,
                body: stream::iter([Ok(Bytes::from(body))]).boxed(),
            })
        }

        async fn list(&self) -> Result<Vec<ModelObject>, Error> {
            Ok(Vec::new())
        }

        fn name(&self) -> &'static str {
            "test"
        }
    }

    fn embeddings(server: &Arc<Server>) -> Embeddings {
        let settings = EmbeddingSettings {
            model: "m".to_owned(),
            dimensions: None,
            batch_max: 3,
            tokens_max: None,
            query_prefix: String::new(),
            document_prefix: String::new(),
        };
        Embeddings::new(EmbeddingServer::Fixed(server.clone()), settings)
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[tokio::test]
    async fn texts_are_embedded_in_batches_and_in_their_order() {
        let server = Server::new(10, 10);
        let embeddings = embeddings(&server);

        let embedded = embeddings.embed(EmbeddingInput::Document, &texts(&["a", "b", "c", "d"])).await.unwrap();

        let expected: Vec<Vec<f32>> = ["a", "b", "c", "d"].iter().map(|text| unit(vector(text).to_vec())).collect();
        assert_eq!(embedded, Embedded { vectors: expected, tokens: 4, model: "m@2".to_owned() });
        assert_eq!(server.requests.lock().unwrap().iter().map(Vec::len).collect::<Vec<_>>(), [3, 1]);
        assert_eq!(embeddings.key().await.unwrap(), "m@2", "known without a request");
        assert_eq!(server.requests.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn the_dimensions_are_asked_for_once() {
        let server = Server::new(10, 10);
        let embeddings = embeddings(&server);

        assert_eq!(embeddings.key().await.unwrap(), "m@2");
        assert_eq!(embeddings.key().await.unwrap(), "m@2");
        assert_eq!(*server.requests.lock().unwrap(), [texts(&[PROBE])]);
    }

    #[tokio::test]
    async fn prefixes_are_those_of_the_input() {
        let server = Server::new(10, 10);
        let mut embeddings = embeddings(&server);
        embeddings.settings.query_prefix = "query: ".to_owned();
        embeddings.settings.document_prefix = "passage: ".to_owned();

        embeddings.embed(EmbeddingInput::Query, &texts(&["a"])).await.unwrap();
        embeddings.embed(EmbeddingInput::Document, &texts(&["b"])).await.unwrap();

        assert_eq!(*server.requests.lock().unwrap(), [texts(&["query: a"]), texts(&["passage: b"])]);
    }

    #[tokio::test]
    async fn a_rejected_batch_is_halved_and_a_long_text_is_averaged_over_its_windows() {
        let server = Server::new(20, 2);
        let embeddings = embeddings(&server);
        let long = format!("{}{}", "apple ".repeat(40), "zebra ".repeat(40));

        let embedded = embeddings.embed(EmbeddingInput::Document, &texts(&["a", &long, "c"])).await.unwrap();

        let a_and_z: Vec<f32> = [vector("a"), vector("z")].iter().fold(vec![0.0; 2], |mut sum, vector| {
            add(&mut sum, &unit(vector.to_vec()), 1);
            sum
        });
        let cosine: f32 = embedded.vectors[1].iter().zip(unit(a_and_z)).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.999_99, "{cosine}");
        assert_eq!(embedded.vectors[2], unit(vector("c").to_vec()));
        let rejections = server.requests.lock().unwrap().len();

        // The length that was rejected is known.
        embeddings.embed(EmbeddingInput::Document, &texts(&[&long])).await.unwrap();
        let more = server.requests.lock().unwrap().len() - rejections;
        assert!(more < rejections, "{more} {rejections}");
    }

    #[tokio::test]
    async fn a_configured_length_is_never_exceeded() {
        let server = Server::new(20, 10);
        let mut embeddings = embeddings(&server);
        embeddings.split_from = AtomicUsize::new(17);

        embeddings.embed(EmbeddingInput::Document, &texts(&[&"word ".repeat(100)])).await.unwrap();

        let requests = server.requests.lock().unwrap();
        assert!(requests.iter().flatten().all(|text| text.split_whitespace().count() <= 17), "{requests:?}");
    }

    #[tokio::test]
    async fn a_text_that_cannot_be_split_further_is_an_error() {
        let error = embeddings(&Server::new(0, 10)).embed(EmbeddingInput::Query, &texts(&["a b c"])).await.unwrap_err();

        assert!(
            matches!(&error, Error::Rejected(cause) if cause.text.contains("maximum context length is 8")),
            "{error}"
        );
    }

    #[tokio::test]
    async fn wrong_answers_are_errors() {
        for (status, body, expected) in [
            (200, r#"{"data": []}"#, "0 embeddings for 2 texts"),
            (200, r#"{"data": [{"embedding": [1]}, {"embedding": [1, 2]}]}"#, "2 dimensions instead of 1"),
            (200, r#"{"data": [{"embedding": []}, {"embedding": []}]}"#, "0 dimensions"),
            (200, r#"{"data": [{"embedding": [1], "index": 1}, {"embedding": [1], "index": 1}]}"#, "the index 1 twice"),
            (200, r#"{"data": [{"embedding": [1], "index": 7}, {"embedding": [1]}]}"#, "the index 7"),
            (200, r#"{"data": [{"embedding": [null]}, {"embedding": [1]}]}"#, "other than embeddings"),
            (200, r#"{"data": [{"embedding": [1e39]}, {"embedding": [1]}]}"#, "other than embeddings"),
            (200, r#"{"data": [{"embedding": "AACAfw=="}, {"embedding": [1]}]}"#, "not finite"),
            (200, r#"{"data": [{"embedding": "AAA="}, {"embedding": [1]}]}"#, "multiple of 4"),
            (200, "busy", "other than embeddings"),
            (200, r#"{"error": {"message": "no GPU", "code": 500}}"#, "no GPU"),
            (404, r#"{"error": "model \"m\" not found"}"#, "answered 404: model \"m\" not found"),
            (503, "", "answered 503: no message"),
        ] {
            let outcome =
                embeddings(&Server::answering(status, body)).embed(EmbeddingInput::Query, &texts(&["a", "b"])).await;
            let error = outcome.unwrap_err();
            assert!(error.to_string().contains(expected), "{body}: {error}");
            assert_eq!(matches!(error, Error::Rejected(_)), status == 404, "{error}");
        }
        let limited =
            embeddings(&Server::answering(429, "slow down")).embed(EmbeddingInput::Query, &texts(&["a"])).await;
        assert!(matches!(limited, Err(Error::RateLimited(_))));
    }

    #[tokio::test]
    async fn base64_is_read_and_tokens_are_estimated() {
        let body = r#"{"data": [{"embedding": "AAAAAAAAAEA="}]}"#;
        let embedded =
            embeddings(&Server::answering(200, body)).embed(EmbeddingInput::Query, &texts(&["two words"])).await;

        let expected = Embedded { vectors: vec![vec![0.0, 1.0]], tokens: 2, model: "m@2".to_owned() };
        assert_eq!(embedded, Ok(expected));
    }

    #[test]
    fn errors_about_the_size_are_recognized() {
        for message in [
            "This model's maximum context length is 8192 tokens, however you requested 9000 tokens",
            "the input length exceeds the context length",
            "input is too large to process. increase the physical batch size",
            "input (800 tokens) is larger than the max context size (512 tokens). skipping",
            "Input validation error: `inputs` must have less than 512 tokens. Given: 800",
            "batch size 64 > maximum allowed batch size 32",
            "Too many inputs in request",
            "Requested 310000 tokens, max 300000 tokens per request",
        ] {
            assert!(is_too_large(&Report { status: 400, ..Report::new(message) }), "{message}");
        }
        for message in ["model not found", "invalid API key", "dimensions must be at most 1024"] {
            assert!(!is_too_large(&Report { status: 400, ..Report::new(message) }), "{message}");
        }
    }

    proptest! {
        #[test]
        fn windows_are_the_whole_text(text in "\\PC{1,200}", count in 2_usize..100) {
            let windows: Vec<&str> = split(&text, count).collect();

            prop_assert_eq!(windows.concat(), text.as_str());
            prop_assert!(windows.iter().all(|window| !window.is_empty()));
            prop_assert!(windows.len() <= count);
        }
    }
}
