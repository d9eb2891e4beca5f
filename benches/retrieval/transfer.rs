//! Upload and download of a large file: time, compared with a minimal server that stores the body in a file, and memory.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use crate::Result;
use crate::quality::http_client;
use crate::server::{Server, Setup};

/// Size of the file, in bytes.
const FILE_BYTES: usize = 512 * 1024 * 1024 - 1024 * 1024;
/// Size of a part of the body that a client sends, in bytes.
const PART_BYTES: usize = 64 * 1024;
const BOUNDARY: &str = "retrieval-benchmark-boundary";

/// Measures an upload and a download, and prints a table.
pub async fn measure(setup: &Setup, database_url: &str) -> Result<()> {
    let http = http_client()?;
    let floor = floor(&setup.folder).await?;
    let started = Instant::now();
    http.post(&floor).body(reqwest::Body::wrap_stream(parts(FILE_BYTES))).send().await?.error_for_status()?;
    let floor_up = started.elapsed();
    let floor_down = download(&http, &floor).await?;

    let server = Server::start_with(setup, database_url, false).await?;
    let files = format!("http://{}/v1/files", server.address);
    // A small file first, so that what is allocated once does not count.
    upload(&http, &files, 1024).await?;
    let before = server.take_peak_mib().map(|_| server.memory_mib().unwrap_or_default());
    let started = Instant::now();
    let id = upload(&http, &files, FILE_BYTES).await?;
    let up = started.elapsed();
    let peak_up = server.take_peak_mib();
    let down = download(&http, &format!("{files}/{id}/content")).await?;
    let peak_down = server.take_peak_mib();
    let grown = |peak: Option<f64>| match (before, peak) {
        (Some(before), Some(peak)) => format!("{:.0}", (peak - before).max(0.0)),
        _ => String::new(),
    };
    println!(
        "| 511 MiB | MB/s | of a plain copy | target | memory grows by, MiB | target |\n| --- | --- | --- | --- | --- | --- |"
    );
    for (name, time, floor, peak) in [("upload", up, floor_up, peak_up), ("download", down, floor_down, peak_down)] {
        let rate = 536.9 / time.as_secs_f64();
        let ratio = floor.as_secs_f64() / time.as_secs_f64();
        println!("| {name} | {rate:.0} | {ratio:.2} | ≥ 0.5 | {} | ≤ 16 |", grown(peak));
    }
    println!();
    Ok(())
}

/// Returns a body of this size in parts.
fn parts(bytes: usize) -> impl futures_util::Stream<Item = std::result::Result<Bytes, Infallible>> + Send + 'static {
    let part = Bytes::from(vec![b'a'; PART_BYTES]);
    futures_util::stream::iter(
        (0..bytes.div_ceil(PART_BYTES))
            .map(move |number| Ok(part.slice(..PART_BYTES.min(bytes - number * PART_BYTES)))),
    )
}

async fn upload(http: &reqwest::Client, url: &str, bytes: usize) -> Result<String> {
    let head = format!(
        "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nvision\r\n\
         --{BOUNDARY}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.png\"\r\n\r\n"
    );
    let tail = format!("\r\n--{BOUNDARY}--\r\n");
    let edge = |text: String| futures_util::stream::iter([Ok::<_, Infallible>(Bytes::from(text))]);
    let body = edge(head).chain(parts(bytes)).chain(edge(tail));
    let request = http
        .post(url)
        .bearer_auth("bench")
        .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
        .body(reqwest::Body::wrap_stream(body));
    let file: Value = request.send().await?.error_for_status()?.json().await?;
    Ok(file["id"].as_str().ok_or("the file has no ID")?.to_owned())
}

async fn download(http: &reqwest::Client, url: &str) -> Result<Duration> {
    let started = Instant::now();
    let mut body = http.get(url).bearer_auth("bench").send().await?.error_for_status()?.bytes_stream();
    let mut bytes = 0;
    while let Some(part) = body.try_next().await? {
        bytes += part.len();
    }
    if bytes == FILE_BYTES { Ok(started.elapsed()) } else { Err(format!("{bytes} bytes were downloaded").into()) }
}

/// Starts the server that stores a body in a file, and returns its URL.
async fn floor(folder: &Path) -> Result<String> {
    async fn store(State(path): State<PathBuf>, body: Body) -> std::result::Result<(), String> {
        let write = async {
            let mut file = tokio::fs::File::create(path).await?;
            let mut body = body.into_data_stream().map_err(std::io::Error::other);
            while let Some(part) = body.try_next().await? {
                file.write_all(&part).await?;
            }
            file.sync_all().await
        };
        write.await.map_err(|error: std::io::Error| error.to_string())
    }
    async fn read(State(path): State<PathBuf>) -> std::result::Result<Body, String> {
        let file = tokio::fs::File::open(path).await.map_err(|error| error.to_string())?;
        Ok(Body::from_stream(ReaderStream::with_capacity(file, PART_BYTES)))
    }
    let router = Router::new()
        .route("/", post(store).get(read))
        .layer(DefaultBodyLimit::disable())
        .with_state(folder.join("floor"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(format!("http://{address}/"))
}
