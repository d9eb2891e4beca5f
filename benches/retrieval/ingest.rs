//! How fast files are processed, and what clients of runs notice of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use crate::client::{Client, Marks};
use crate::model::PACED;
use crate::quality::{post, upload_text, wait_until_processed};
use crate::server::{Server, Setup};
use crate::speed::text;
use crate::{Error, Result};

/// The large texts: their number, and the words of each, which are about 4 MB.
const TEXTS: usize = 8;
const TEXT_WORDS: usize = 600_000;
/// The small files of one batch, and the words of each.
const SMALL_FILES: usize = 2_000;
const SMALL_WORDS: usize = 150;
/// Clients that stream runs, one after the other.
const RUN_CLIENTS: usize = 4;
/// How long runs are measured without processing of files.
const ALONE: Duration = Duration::from_secs(10);

/// How to read the stream of a run.
pub const MARKS: Marks = Marks { first_token: "event: thread.message.delta", completed: "event: thread.run.completed" };

/// Measures the processing of files without embeddings, and prints a table.
pub async fn measure(setup: &Setup, database_url: &str) -> Result<()> {
    let server = Server::start_with(setup, database_url, false).await?;
    let mut client = Client::new(server.address);
    let http = crate::quality::http_client()?;
    println!("| processing of files, by words | figure | target |\n| --- | --- | --- |");

    let mut random = fastrand::Rng::with_seed(1);
    let mut files = Vec::new();
    let mut bytes = 0;
    for number in 0..TEXTS {
        let text = text(&mut random, TEXT_WORDS);
        bytes += text.len();
        files.push(upload_text(&http, &server, &format!("{number}.txt"), &text).await?);
    }
    let seconds = process(&mut client, &files).await?.as_secs_f64();
    println!("| {TEXTS} texts | {:.1} MB/s | ≥ 5 |", f64::from(u32::try_from(bytes)?) / 1e6 / seconds);

    let assistant = post(&mut client, "/v1/assistants", &json!({"model": PACED})).await?;
    let body = json!({"assistant_id": assistant["id"], "stream": true,
                      "thread": {"messages": [{"role": "user", "content": "Hello"}]}});
    let body = Bytes::from(body.to_string());
    let small: Vec<String> = (0..SMALL_FILES).map(|_| text(&mut random, SMALL_WORDS)).collect();
    let mut files = Vec::new();
    for (number, text) in small.iter().enumerate() {
        files.push(upload_text(&http, &server, &format!("small-{number}.txt"), text).await?);
    }
    let alone = Runs::start(&server, &body);
    tokio::time::sleep(ALONE).await;
    let mut alone = alone.end().await?;
    let during = Runs::start(&server, &body);
    let seconds = process(&mut client, &files).await?.as_secs_f64();
    let mut during = during.end().await?;
    println!(
        "| {SMALL_FILES} small files in one batch, beside runs | {:.0} files/s | ≥ 100 |",
        f64::from(u32::try_from(SMALL_FILES)?) / seconds
    );
    let (alone, during) = (percentiles(&mut alone), percentiles(&mut during));
    println!("| first token of runs, without that batch: p50 / p99 | {:.0} / {:.0} ms | |", alone.0, alone.1);
    println!(
        "| first token of runs, during it: p50 / p99 | {:.0} / {:.0} ms | p99 at most doubled |\n",
        during.0, during.1
    );
    Ok(())
}

/// Adds files to a new vector store as one batch, and returns how long their processing takes.
async fn process(client: &mut Client, files: &[String]) -> Result<Duration> {
    let store = post(client, "/v1/vector_stores", &json!({})).await?;
    let store = format!("/v1/vector_stores/{}", store["id"].as_str().ok_or("the vector store has no ID")?);
    let started = Instant::now();
    post(client, &format!("{store}/file_batches"), &json!({"file_ids": files})).await?;
    wait_until_processed(client, &store).await?;
    let deleted: Value = client.fetch_json(Method::DELETE, &store, Bytes::new()).await?;
    if deleted["deleted"] != true {
        return Err("the vector store was not deleted".into());
    }
    Ok(started.elapsed())
}

/// Clients that stream runs until they are told to end.
struct Runs {
    is_ended: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<Result<Vec<Duration>>>>,
}

impl Runs {
    fn start(server: &Server, body: &Bytes) -> Self {
        let is_ended = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let (address, body, is_ended) = (server.address, body.clone(), is_ended.clone());
            tokio::spawn(async move {
                let mut client = Client::new(address);
                let mut first_tokens = Vec::new();
                while !is_ended.load(Ordering::Relaxed) {
                    first_tokens.push(client.stream("/v1/threads/runs", body.clone(), MARKS).await?.first_token);
                }
                Ok::<_, Error>(first_tokens)
            })
        };
        Self { clients: (0..RUN_CLIENTS).map(client).collect(), is_ended }
    }

    /// Returns the times to the first token.
    async fn end(self) -> Result<Vec<Duration>> {
        self.is_ended.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for client in self.clients {
            all.extend(client.await??);
        }
        Ok(all)
    }
}

/// Returns the median and the 99th percentile, in milliseconds.
pub fn percentiles(times: &mut [Duration]) -> (f64, f64) {
    times.sort_unstable();
    let at = |per_cent: usize| {
        let index = (times.len() * per_cent / 100).min(times.len().saturating_sub(1));
        times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    };
    (at(50), at(99))
}
