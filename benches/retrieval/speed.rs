//! How fast searches are: vector stores with made-up texts are written to the database, and searched by concurrent clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use assistd::api::file::Purpose;
use assistd::api::rule::Request as _;
use assistd::api::vector_store::{Attributes, ChunkingStrategy, CreateVectorStore, NewStoreFile};
use assistd::api::{File, Ids, Scope, VectorStoreId};
use assistd::clock::Clock;
use assistd::retrieval::index::to_f16_bytes;
use assistd::retrieval::lexical::{Analyzer, Language};
use assistd::store::{self, CompletedFile, NewChunk, NewFileBatch, Synchronous};
use axum::Router;
use axum::serve::ListenerExt as _;
use bytes::Bytes;
use hyper::Method;
use hyper::header::CONTENT_TYPE;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

use crate::client::Client;
use crate::collection::DIMENSIONS;
use crate::embeddings::{MODEL, bag_of_words};
use crate::server::{Server, Setup};
use crate::store::Store;
use crate::{Error, Result};

/// Chunks of a file.
const FILE_CHUNKS: usize = 100;
/// Words of a chunk: about 800 tokens.
const CHUNK_WORDS: usize = 550;
/// Number of different words.
const WORDS: usize = 50_000;
/// Number of different queries: few enough for their embeddings to be in memory, because those are not what is measured.
const QUERIES: usize = 200;
/// Words of a query.
const QUERY_WORDS: usize = 8;
/// How long writing an index to the database can take.
const WRITE_TIMEOUT: Duration = Duration::from_mins(20);
/// The lease of a file, which is renewed by nobody.
const LEASE: Duration = Duration::from_hours(1);
/// Targets for the median, in milliseconds, by number of chunks.
const TARGETS: [(usize, &str); 3] = [(1_000, "≤ 3"), (10_000, "≤ 8"), (100_000, "≤ 40")];

/// Measures searches in vector stores of different sizes, and prints a table.
pub async fn measure(setup: &Setup, store: &Store, sizes: &[usize], clients: usize, measured: Duration) -> Result<()> {
    println!(
        "| chunks | first search, ms | index to database, s | 1 client: p50 / p95, ms | {clients} clients: p50 / p95, ms | searches/s | target p50 | \
         memory, MiB |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    );
    let mut floor = None;
    for size in sizes {
        let url = store.create_database().await?;
        let id = fill(&url, *size).await?;
        let server = Server::start(setup, &url).await?;
        let bodies: Arc<Vec<Bytes>> = Arc::new((0..QUERIES).map(body).collect());
        let path = format!("/v1/vector_stores/{id}/search");
        let mut client = Client::new(server.address);
        let started = Instant::now();
        let response = client.fetch(Method::POST, &path, bodies[0].clone()).await?;
        let first = started.elapsed();
        // Afterwards, the embeddings of all queries are in memory.
        for body in bodies.iter() {
            client.fetch(Method::POST, &path, body.clone()).await?;
        }
        let written = written_index(&url, &id, setup.memory_chunks, *size).await?;
        let written = written.map_or_else(String::new, |duration| format!("{:.0}", duration.as_secs_f64()));
        // The server reads what it has written.
        for body in bodies.iter() {
            client.fetch(Method::POST, &path, body.clone()).await?;
        }
        let alone = closed_loop(server.address, &path, &bodies, 1, measured).await?;
        let together = closed_loop(server.address, &path, &bodies, clients, measured).await?;
        let target = TARGETS.iter().find(|(chunks, _)| chunks == size).map_or("", |(_, target)| target);
        let per_second = f64::from(u32::try_from(together.len())?) / measured.as_secs_f64();
        let memory = server.memory_mib().map_or_else(String::new, |mib| format!("{mib:.0}"));
        println!(
            "| {size} | {:.0} | {written} | {} | {} | {per_second:.0} | {target} | {memory} |",
            first.as_secs_f64() * 1e3,
            percentiles(alone),
            percentiles(together),
        );
        floor.get_or_insert((path, bodies, response));
    }
    if let Some((path, bodies, response)) = floor {
        let address = serve_only(response).await?;
        let alone = closed_loop(address, &path, &bodies, 1, measured).await?;
        let together = closed_loop(address, &path, &bodies, clients, measured).await?;
        let per_second = f64::from(u32::try_from(together.len())?) / measured.as_secs_f64();
        println!("| floor | | | {} | {} | {per_second:.0} | | |", percentiles(alone), percentiles(together));
    }
    println!();
    Ok(())
}

/// Starts a server that reads each request and responds with the same bytes: what no search can be faster than here.
async fn serve_only(response: Bytes) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new().fallback(move |_: Bytes| {
        let response = response.clone();
        async move { ([(CONTENT_TYPE, "application/json")], response) }
    });
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

/// If the index of a vector store is to be in the database: waits until it is, and returns how long that took.
async fn written_index(
    url: &str,
    id: &VectorStoreId,
    memory_chunks: Option<usize>,
    chunks: usize,
) -> Result<Option<Duration>> {
    let store = open(url).await?;
    let default = store.vector_search().map_or(usize::MAX, |_| 50_000);
    let mut written = None;
    let in_memory = memory_chunks.unwrap_or(default);
    if chunks > in_memory {
        let started = Instant::now();
        // A rest that is smaller than a segment stays in memory.
        while store.segments(id).await?.iter().map(|segment| segment.chunks).sum::<u64>() + (in_memory as u64)
            < chunks as u64
        {
            if started.elapsed() > WRITE_TIMEOUT {
                return Err("the index was not written to the database".into());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        written = Some(started.elapsed());
    }
    store.close().await;
    Ok(written)
}

/// Returns the latencies of the searches that clients make in this time, each one after the other.
async fn closed_loop(
    address: SocketAddr,
    path: &str,
    bodies: &Arc<Vec<Bytes>>,
    clients: usize,
    measured: Duration,
) -> Result<Vec<Duration>> {
    let end = Instant::now() + measured;
    let tasks: Vec<_> = (0..clients)
        .map(|number| {
            let (path, bodies) = (path.to_owned(), bodies.clone());
            tokio::spawn(async move {
                let mut client = Client::new(address);
                let mut latencies = Vec::new();
                let mut next = number * QUERIES / 16;
                while Instant::now() < end {
                    let started = Instant::now();
                    client.fetch(Method::POST, &path, bodies[next % QUERIES].clone()).await?;
                    latencies.push(started.elapsed());
                    next += 1;
                }
                Ok::<_, Error>(latencies)
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await??);
    }
    Ok(all)
}

fn percentiles(mut latencies: Vec<Duration>) -> String {
    latencies.sort_unstable();
    let at = |per_cent: usize| {
        let index = (latencies.len() * per_cent / 100).min(latencies.len().saturating_sub(1));
        latencies.get(index).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    };
    format!("{:.1} / {:.1}", at(50), at(95))
}

fn body(number: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(u64::MAX - number as u64);
    Bytes::from(json!({"query": text(&mut random, QUERY_WORDS)}).to_string())
}

/// Makes up a text whose words are as unevenly common as in a natural language.
pub fn text(random: &mut fastrand::Rng, words: usize) -> String {
    let word = |random: &mut fastrand::Rng| {
        // By Zipf's law: the n-th word is n times less common than the first.
        let limit = f64::from(u32::try_from(WORDS).unwrap_or(u32::MAX));
        let rank = limit.powf(random.f64());
        format!("w{:x}", rank.to_bits() >> 40)
    };
    (0..words).map(|_| word(random)).collect::<Vec<_>>().join(" ")
}

/// Opens a database, next to a server.
async fn open(url: &str) -> Result<Arc<dyn store::Store>> {
    let clock = Arc::new(Clock::system());
    let settings = store::Settings {
        url: url.to_owned(),
        connections_max: 4,
        statement_timeout: Duration::from_mins(1),
        start_timeout: Duration::from_mins(1),
        synchronous: Synchronous::Normal,
    };
    Ok(store::open_beside_server(&settings, clock).await?)
}

/// Writes a vector store with this number of chunks to a database, without a server.
async fn fill(url: &str, chunks: usize) -> Result<VectorStoreId> {
    let (store, clock) = (open(url).await?, Clock::system());
    let (ids, scope, now) = (Ids::unique_everywhere(), Scope::default_project(), clock.now());
    let (new, _) = CreateVectorStore::parse(json!({})).map_err(Box::new)?.into_vector_store(&ids, now);
    let id = store.create_vector_store(&scope, &new, &[]).await?.id;
    let model = format!("{MODEL}@{DIMENSIONS}");
    let mut random = fastrand::Rng::with_seed(7);
    let mut left = chunks;
    while left > 0 {
        let file = File {
            id: ids.generate(),
            created_at: now,
            purpose: Purpose::Assistants,
            filename: format!("{left}.txt"),
            bytes: 1,
            expires_at: None,
        };
        store.create_pending_file(&scope, &file.id, now, LEASE).await?;
        store.finish_file(&scope, &file).await?;
        let batch = NewFileBatch { id: ids.generate(), created_at: now };
        let new = NewStoreFile {
            id: ids.generate(),
            file_id: file.id,
            attributes: Attributes::default(),
            chunking: ChunkingStrategy::default(),
        };
        store.add_file_batch(&scope, &id, &batch, &[new]).await?;
        let claimed = store.claim_store_file(LEASE, "", &[], u32::MAX).await?.ok_or("no file was due")?;
        let mut analyzer = Analyzer::new(Some(Language::English));
        let texts = (0..left.min(FILE_CHUNKS)).map(|_| text(&mut random, CHUNK_WORDS));
        let new_chunks: Vec<NewChunk> = texts.map(|text| chunk(text, &mut analyzer)).collect();
        let completed =
            CompletedFile { usage_bytes: 1, embedding_model: Some(&model), text: Some((Some("en"), &new_chunks)) };
        store.complete_store_file(&claimed.lease, &completed).await?;
        left -= new_chunks.len();
    }
    store.close().await;
    Ok(id)
}

fn chunk(text: String, analyzer: &mut Analyzer) -> NewChunk {
    NewChunk {
        overlap_bytes: 0,
        tokens: 800,
        terms: analyzer.analyze(&text).to_bytes(),
        content_hash: Sha256::digest(&text).into(),
        embedding: to_f16_bytes(&bag_of_words(&text)),
        text,
    }
}
