//! Processes the files of vector stores: extracts their texts, divides and analyses them, computes embeddings, and makes
//! them searchable. Files are a kind of background work ([`crate::work::Job`]).
//!
//! ```text
//! claim ──▶ extract ──▶ divide and analyse ──▶ embed a batch, store it ──▶ … ──▶ complete
//!              │                                        │
//!              └─▶ fail: the file cannot be read        └─▶ retry later; after the last attempt, fail
//! ```
//!
//! What was stored is not computed again after a crash: the chunks are stored before the first embedding, and the embeddings
//! of each batch before the next one. A file with one batch, or without embeddings, is stored as a whole in one transaction.
//! Embeddings of equal texts are reused within a project.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::chunk;
use super::extract::{self, Extractor, FileFormat, Rejected};
use super::index::to_f16_bytes;
use super::lexical::{Analyzer, detect};
use super::repeated::{RepeatedWarning, Repetitions};
use crate::access::{self, Tokens};
use crate::api::File;
use crate::api::organization::Scope;
use crate::api::organization::usage::{CallKind, ModelCall};
use crate::api::vector_store::{StaticChunking, StoreFileError, StoreFileErrorCode};
use crate::files::service::FileService;
use crate::llm::{self, Embedder, EmbeddingInput};
use crate::priority;
use crate::store::{self, ChunkToEmbed, ClaimedStoreFile, CompletedFile, JobKind, NewChunk, Store};
use crate::work::{Attempt, Claim, Job, Outcome, Queue};

/// Maximum number of tokens of a file.
///
/// Source: API reference, "Files": 5,000,000 tokens.
const FILE_TOKENS_MAX: u64 = 5_000_000;
/// How often the dimensions of the embedding model may change while one file is processed.
const MODEL_CHANGES_MAX: u32 = 2;
/// Pause before a job is released that the database has interrupted, so that it is not claimed again at once.
const DATABASE_PAUSE: Duration = Duration::from_secs(1);
/// Size of the stored text that is read at once to determine its length, in bytes.
const STORED_TEXT_BYTES: usize = 1024 * 1024;
/// How much background computations yield to others, so that they do not slow down runs.
/// The message for clients of an error whose cause is in this server. The log has the cause.
const SERVER_ERROR: &str =
    "The server had an error processing this file. Retry it, or contact the operator of the server.";

/// The settings of the processing.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Maximum number of files that are processed concurrently.
    pub concurrency_max: usize,
    /// The duration of a lease.
    pub lease: Duration,
    /// Maximum number of attempts without progress.
    pub attempts_max: u32,
    /// Maximum number of texts whose embeddings are computed and stored together.
    pub batch_max: usize,
}

/// What the processing uses.
#[derive(Debug, Clone)]
pub struct Dependencies {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The bytes of the files.
    pub files: FileService,
    /// Extracts texts.
    pub extractor: Extractor,
    /// Computes embeddings. `None`: files are found by their words alone.
    pub embedder: Option<Arc<dyn Embedder>>,
    /// The limits of tokens of each project.
    pub tokens: Arc<Tokens>,
}

/// Processes files for a worker.
#[derive(Debug)]
pub struct Ingester {
    dependencies: Dependencies,
    settings: Settings,
    queue: Arc<Queue>,
    /// Limits the threads that compute in the background.
    computations: Arc<Semaphore>,
    /// The vector store whose file was claimed last. The next claim starts after this one.
    last_store: Mutex<String>,
    /// Files without embeddings, because the embedding server has not answered as it should.
    waiting: RepeatedWarning,
}

/// Why the processing of a file ends early.
#[derive(Debug)]
enum Failure {
    /// The file cannot be processed. A retry does not help.
    Rejected(StoreFileError),
    /// The lease is lost.
    LeaseLost,
    /// The database is unavailable, which is not the fault of the file.
    Database(store::Error),
    /// The embedding server has not answered as it should. Other files have the same problem.
    NoEmbeddings(llm::Cause),
    /// The attempt failed for a reason that clients may read.
    Public(String),
    /// The attempt failed for a reason that is only logged.
    Internal(String),
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Stale => Self::LeaseLost,
            store::Error::Unavailable(_) => Self::Database(error),
            error => Self::Internal(error.to_string()),
        }
    }
}

impl From<Rejected> for Failure {
    fn from(Rejected { is_unsupported, message }: Rejected) -> Self {
        let code = if is_unsupported { StoreFileErrorCode::UnsupportedFile } else { StoreFileErrorCode::InvalidFile };
        Self::Rejected(StoreFileError { code, message: message.into_owned() })
    }
}

impl From<llm::Error> for Failure {
    fn from(error: llm::Error) -> Self {
        Self::NoEmbeddings(error.cause().clone())
    }
}

impl From<extract::Error> for Failure {
    fn from(error: extract::Error) -> Self {
        Self::Internal(error.to_string())
    }
}

/// The text of a file, divided and analysed.
struct Prepared {
    language: Option<&'static str>,
    chunks: Vec<NewChunk>,
    /// The size of the whole text.
    usage_bytes: u64,
}

impl Ingester {
    /// Creates the processing. `queue` is the one of the worker.
    #[must_use]
    pub fn new(dependencies: Dependencies, settings: Settings, queue: Arc<Queue>) -> Self {
        // On a machine with one processor, background computations use the time that is left.
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let computations = Arc::new(Semaphore::new(processors.min(settings.concurrency_max).max(1)));
        Self {
            dependencies,
            settings,
            queue,
            computations,
            last_store: Mutex::default(),
            waiting: RepeatedWarning::default(),
        }
    }

    async fn process(&self, file: &ClaimedStoreFile, attempt: &Attempt) -> Result<(), Failure> {
        let usage_bytes = if file.chunks.is_some() {
            self.stored_bytes(file).await?
        } else {
            let prepared = self.prepare(file).await?;
            let usage_bytes = prepared.usage_bytes;
            if self.store_text(file, attempt, prepared).await? {
                return Ok(());
            }
            usage_bytes
        };
        let model = match &self.dependencies.embedder {
            Some(embedder) => Some(self.embed_stored(file, &**embedder).await?),
            None => None,
        };
        let completed = CompletedFile { usage_bytes, embedding_model: model.as_deref(), text: None };
        self.complete(file, attempt, &completed).await
    }

    async fn complete(
        &self,
        file: &ClaimedStoreFile,
        attempt: &Attempt,
        completed: &CompletedFile<'_>,
    ) -> Result<(), Failure> {
        let _critical = attempt.critical();
        Ok(self.dependencies.store.complete_store_file(&file.lease, completed).await?)
    }

    /// Extracts, divides and analyses the text of a file.
    async fn prepare(&self, file: &ClaimedStoreFile) -> Result<Prepared, Failure> {
        let scope = Scope::of(file.project.clone());
        // The file was deleted or has expired, and so has its row in the vector store.
        let stored = self.dependencies.store.file(&scope, &file.file_id).await?.ok_or(Failure::LeaseLost)?;
        let Some(format) = FileFormat::of(&file.filename) else {
            let message = "The file type is not supported.".to_owned();
            return Err(Failure::Rejected(StoreFileError { code: StoreFileErrorCode::UnsupportedFile, message }));
        };
        let open = || open(self.dependencies.files.clone(), scope.clone(), stored.clone());
        let text = self.dependencies.extractor.extract(format, stored.bytes, &open).await??;
        let sizes = file.chunking.sizes();
        self.compute(move || prepare(&text, sizes)).await?.map_err(Failure::from)
    }

    /// Computes on a thread of its own, which yields to others.
    async fn compute<T: Send + 'static>(&self, compute: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
        let _permit = self.computations.acquire().await;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("ingest".to_owned()).spawn(move || {
            priority::lower_thread();
            // The receiver is gone if the job was cancelled.
            let _ = sender.send(compute());
        });
        thread.map_err(|error| Failure::Internal(format!("failed to start a thread: {error}")))?;
        receiver.await.map_err(|_| Failure::Internal("the analysis of the text panicked".to_owned()))
    }

    /// Stores the chunks of a file. Returns whether the file is complete.
    async fn store_text(
        &self,
        file: &ClaimedStoreFile,
        attempt: &Attempt,
        Prepared { language, mut chunks, usage_bytes }: Prepared,
    ) -> Result<bool, Failure> {
        let store = &self.dependencies.store;
        let Some(embedder) = &self.dependencies.embedder else {
            let completed = CompletedFile { usage_bytes, embedding_model: None, text: Some((language, &chunks)) };
            self.complete(file, attempt, &completed).await?;
            return Ok(true);
        };
        let embedded = if chunks.len() <= self.settings.batch_max {
            self.embed_new(file, &**embedder, &mut chunks).await
        } else {
            Ok(None)
        };
        if let Ok(Some(model)) = &embedded {
            let completed =
                CompletedFile { usage_bytes, embedding_model: Some(model), text: Some((language, &chunks)) };
            self.complete(file, attempt, &completed).await?;
            return Ok(true);
        }
        // The next attempt continues with these chunks.
        store.save_chunks(&file.lease, language, &chunks).await?;
        embedded?;
        Ok(false)
    }

    /// Computes the embeddings of new chunks. Returns their model, or `None` if it has changed meanwhile.
    async fn embed_new(
        &self,
        file: &ClaimedStoreFile,
        embedder: &dyn Embedder,
        chunks: &mut [NewChunk],
    ) -> Result<Option<String>, Failure> {
        let model = embedder.key().await?;
        let texts = chunks.iter().map(|chunk| (chunk.content_hash, chunk.text.as_str()));
        let Some(vectors) = self.vectors(file, embedder, &model, texts).await? else { return Ok(None) };
        for chunk in chunks {
            chunk.embedding = vectors.get(&chunk.content_hash).cloned();
        }
        Ok(Some(model))
    }

    /// Computes and stores the embeddings that stored chunks lack. Returns their model.
    async fn embed_stored(&self, file: &ClaimedStoreFile, embedder: &dyn Embedder) -> Result<String, Failure> {
        let store = &self.dependencies.store;
        let limit = u32::try_from(self.settings.batch_max).unwrap_or(u32::MAX);
        let mut changes = 0;
        let mut model = embedder.key().await?;
        let mut after = None;
        loop {
            let chunks = store.chunks_to_embed(&file.id(), &model, after, limit).await?;
            let Some(last) = chunks.last() else { return Ok(model) };
            let texts = chunks.iter().map(|ChunkToEmbed { content_hash, text, .. }| (*content_hash, text.as_str()));
            match self.vectors(file, embedder, &model, texts).await? {
                Some(vectors) => {
                    let embeddings: Vec<(u32, Vec<u8>)> = chunks
                        .iter()
                        .filter_map(|chunk| Some((chunk.number, vectors.get(&chunk.content_hash)?.clone())))
                        .collect();
                    store.save_embeddings(&file.lease, &model, &embeddings).await?;
                    after = Some(last.number);
                }
                None if changes == MODEL_CHANGES_MAX => {
                    let text = "The dimensions of the embedding model change from request to request.";
                    return Err(Failure::Public(text.to_owned()));
                }
                None => {
                    changes += 1;
                    model = embedder.key().await?;
                    after = None;
                }
            }
        }
    }

    /// Returns the embeddings of texts by their hashes: those that are stored, and else new ones. Returns `None` if the model
    /// server answers with other dimensions than those of `model`.
    async fn vectors<'a>(
        &self,
        file: &ClaimedStoreFile,
        embedder: &dyn Embedder,
        model: &str,
        texts: impl Iterator<Item = ([u8; 32], &'a str)>,
    ) -> Result<Option<HashMap<[u8; 32], Vec<u8>>>, Failure> {
        let texts: HashMap<[u8; 32], &str> = texts.collect();
        let hashes: Vec<[u8; 32]> = texts.keys().copied().collect();
        let mut vectors = self.dependencies.store.known_embeddings(&file.project, model, &hashes).await?;
        let missing: Vec<([u8; 32], &str)> =
            texts.into_iter().filter(|(hash, _)| !vectors.contains_key(hash)).collect();
        if missing.is_empty() {
            return Ok(Some(vectors));
        }
        let texts: Vec<String> = missing.iter().map(|(_, text)| (*text).to_owned()).collect();
        let embedded = self.embed(file, embedder, &texts).await?;
        if embedded.model != model {
            return Ok(None);
        }
        for ((hash, _), vector) in missing.iter().zip(&embedded.vectors) {
            // A text without direction is found by its words alone.
            let bytes = to_f16_bytes(vector).unwrap_or_else(|| vec![0; vector.len() * 2]);
            vectors.insert(*hash, bytes);
        }
        Ok(Some(vectors))
    }

    /// Computes embeddings within the limits of the project, and records the call in the ledger.
    async fn embed(
        &self,
        file: &ClaimedStoreFile,
        embedder: &dyn Embedder,
        texts: &[String],
    ) -> Result<llm::Embedded, Failure> {
        let Dependencies { store, tokens, .. } = &self.dependencies;
        let scope = Scope::of(file.project.clone());
        let id = format!("emb_{}", Uuid::now_v7().simple());
        // Most texts have three to four bytes for each token.
        let prompt = texts.iter().map(String::len).sum::<usize>() as u64 / 3;
        let call = access::Call { id: &id, scope: &scope, prompt, output_max: Some(0) };
        let _reservation = match tokens.reserve(&call).await? {
            Ok(reservation) => reservation,
            Err(reached) => return Err(Failure::Public(reached.message())),
        };
        let embedded = embedder.embed(EmbeddingInput::Document, texts).await?;
        let call = ModelCall {
            kind: CallKind::Embeddings,
            scope,
            api_key_id: None,
            origin: None,
            model: embedder.model().to_owned(),
            input_tokens: embedded.tokens,
            cached_tokens: 0,
            output_tokens: 0,
            stood: true,
        };
        store.record_call(&call).await?;
        Ok(embedded)
    }

    /// Returns the size of the text of a file whose chunks are stored.
    async fn stored_bytes(&self, file: &ClaimedStoreFile) -> Result<u64, Failure> {
        let scope = Scope::of(file.project.clone());
        let (mut bytes, mut after) = (0, None);
        loop {
            let page = self
                .dependencies
                .store
                .store_file_text(&scope, &file.vector_store, &file.file_id, after, STORED_TEXT_BYTES)
                .await?
                .ok_or(Failure::LeaseLost)?;
            bytes += page.texts.iter().map(String::len).sum::<usize>() as u64;
            match page.next {
                Some(number) => after = Some(number),
                None => return Ok(bytes),
            }
        }
    }

    async fn fail(&self, file: &ClaimedStoreFile, attempt: &Attempt, error: &StoreFileError) -> Outcome {
        let _critical = attempt.critical();
        tracing::info!(code = ?error.code, "the file cannot be searched");
        match self.dependencies.store.fail_store_file(&file.lease, error).await {
            Ok(()) => Outcome::Done,
            Err(error) => self.outcome(file, Failure::from(error)).await,
        }
    }

    /// Logs that files wait for the embedding server, once per minute for all of them.
    fn warn_of_waiting_file(&self, file: &ClaimedStoreFile, cause: &str) {
        let id = format!("{} {}", file.vector_store, file.file_id);
        let Some(Repetitions { times: attempts, subjects: files }) = self.waiting.count(&id, Instant::now()) else {
            return;
        };
        let model = self.dependencies.embedder.as_ref().map(|embedder| embedder.model());
        // The span of one file would look as if it were the only one.
        tracing::warn!(parent: None, model, files, attempts, cause, "files wait for the embedding server");
    }

    /// Returns the outcome of a failure that does not end the job.
    async fn outcome(&self, file: &ClaimedStoreFile, failure: Failure) -> Outcome {
        match failure {
            Failure::LeaseLost => Outcome::LeaseLost,
            Failure::Database(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the database interrupted the processing of a file; retrying"
                );
                tokio::time::sleep(DATABASE_PAUSE).await;
                Outcome::Stopped
            }
            Failure::NoEmbeddings(cause) => {
                self.warn_of_waiting_file(file, &cause.for_log);
                Outcome::Waiting(cause.text)
            }
            Failure::Public(cause) => Outcome::Failed(cause),
            Failure::Internal(cause) => {
                tracing::error!(cause, filename_extension = extension_of(&file.filename), "failed to process a file");
                Outcome::Failed(SERVER_ERROR.to_owned())
            }
            Failure::Rejected(error) => Outcome::Failed(error.message),
        }
    }
}

fn extension_of(filename: &str) -> Option<String> {
    crate::api::vector_store::extension(filename)
}

/// Opens the bytes of a file when the stream is first polled.
fn open(files: FileService, scope: Scope, file: File) -> BoxStream<'static, std::io::Result<Bytes>> {
    let opened = async move { files.open_range(&scope, &file, None).await.map_err(std::io::Error::other) };
    opened.into_stream().try_flatten().boxed()
}

/// Divides and analyses a text.
fn prepare(text: &str, sizes: StaticChunking) -> Result<Prepared, Rejected> {
    let (max, overlap) = (sizes.max_chunk_size_tokens as usize, sizes.chunk_overlap_tokens as usize);
    let ranges = chunk::chunks(text, max, overlap);
    // The tokens of an overlap count once. They are about as long as those of the whole chunk.
    let new_tokens = |chunk: &chunk::Chunk| {
        let bytes = chunk.range.len().max(1) as u64;
        chunk.tokens as u64 * (bytes - chunk.overlap_bytes as u64) / bytes
    };
    let tokens: u64 = ranges.iter().map(new_tokens).sum();
    if tokens > FILE_TOKENS_MAX {
        return Err(Rejected::too_many_tokens(tokens, FILE_TOKENS_MAX));
    }
    let language = detect(text);
    let mut analyzer = Analyzer::new(language);
    let chunks = ranges
        .into_iter()
        .map(|chunk::Chunk { range, overlap_bytes, tokens }| {
            let text = &text[range];
            NewChunk {
                text: text.to_owned(),
                overlap_bytes: u32::try_from(overlap_bytes).unwrap_or(u32::MAX),
                tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
                terms: analyzer.analyze(text).to_bytes(),
                content_hash: Sha256::digest(text).into(),
                embedding: None,
            }
        })
        .collect();
    Ok(Prepared { language: language.map(super::lexical::Language::code), chunks, usage_bytes: text.len() as u64 })
}

#[async_trait]
impl Job for Ingester {
    type Work = ClaimedStoreFile;

    const KIND: JobKind = JobKind::StoreFile;

    fn span(&self, file: &ClaimedStoreFile) -> tracing::Span {
        tracing::info_span!("ingest", vector_store.id = %file.vector_store, file.id = %file.file_id)
    }

    async fn claim(
        &self,
        except: &[String],
        attempts_max: u32,
    ) -> Result<Option<Claim<ClaimedStoreFile>>, store::Error> {
        let after = self.last_store.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let claimed =
            self.dependencies.store.claim_store_file(self.settings.lease, &after, except, attempts_max).await?;
        let Some(file) = claimed else { return Ok(None) };
        *self.last_store.lock().unwrap_or_else(PoisonError::into_inner) = file.vector_store.to_string();
        // There may be more, which another server or an earlier one has left.
        self.queue.wake();
        Ok(Some(Claim {
            lease: file.lease.clone(),
            attempts: file.attempts,
            last_failure: file.last_failure.clone(),
            work: file,
        }))
    }

    async fn drive(&self, file: &mut ClaimedStoreFile, attempt: &Attempt) -> Outcome {
        if file.attempts > 1 && file.last_failure.is_none() {
            tracing::warn!(attempts = file.attempts, "file taken over from a server that was lost");
        }
        let processed = tokio::select! {
            biased;
            processed = self.process(file, attempt) => processed,
            () = attempt.stopping().cancelled() => return Outcome::Stopped,
        };
        match processed {
            Ok(()) => {
                tracing::debug!("the file can be searched");
                Outcome::Done
            }
            Err(Failure::Rejected(error)) => self.fail(file, attempt, &error).await,
            Err(failure) => self.outcome(file, failure).await,
        }
    }

    async fn give_up(&self, file: ClaimedStoreFile, attempts: u32, cause: &str) -> Result<(), store::Error> {
        // The cause of each attempt was logged. This one may have text of the embedding server, which may repeat the file.
        tracing::error!(attempts, vector_store.id = %file.vector_store, file.id = %file.file_id, "gave up a file");
        let error = StoreFileError { code: StoreFileErrorCode::ServerError, message: cause.to_owned() };
        match self.dependencies.store.fail_store_file(&file.lease, &error).await {
            // It was deleted or cancelled.
            Err(store::Error::Stale) => Ok(()),
            done => done,
        }
    }
}
