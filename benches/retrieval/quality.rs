//! How good searches are: a collection is uploaded, and its queries are searched for, all through the API.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use hyper::Method;
use serde_json::{Value, json};

use crate::Result;
use crate::client::Client;
use crate::collection::{Collection, Document};
use crate::server::{Server, Setup};

/// Concurrent uploads.
const UPLOADS: usize = 8;
/// Files of a batch.
const BATCH: usize = 2_000;
/// How long the files may take to be processed without progress.
const STALLED_AFTER: Duration = Duration::from_mins(2);

/// The weights of embeddings and words.
type Weights = (f64, f64);

/// The measured rankings: a name, the weights, and what the project wants to reach.
const RANKINGS: [(&str, Option<Weights>, &str); 3] =
    [("words", Some((0.0, 1.0)), "≥ 0.68"), ("embeddings", Some((1.0, 0.0)), ""), ("both (default)", None, "≥ 0.725")];

/// Measures nDCG@10 and recall@10, and prints a table.
pub async fn measure(setup: &Setup, database_url: &str, collection: &Collection) -> Result<()> {
    let server = Server::start(setup, database_url).await?;
    let http = http_client()?;
    let upload = async |document: &Document| {
        let text = format!("{}\n\n{}", document.title, document.text);
        upload_text(&http, &server, &format!("{}.txt", document.id), &text).await
    };
    let uploads = futures_util::stream::iter(collection.documents.iter().map(upload)).buffered(UPLOADS);
    let files: Vec<String> = uploads.try_collect().await?;
    let document_of: HashMap<&str, &str> = files
        .iter()
        .map(String::as_str)
        .zip(collection.documents.iter().map(|document| document.id.as_str()))
        .collect();
    let mut client = Client::new(server.address);
    let store = post(&mut client, "/v1/vector_stores", &json!({})).await?;
    let store = format!("/v1/vector_stores/{}", store["id"].as_str().ok_or("the vector store has no ID")?);
    let started = Instant::now();
    for batch in files.chunks(BATCH) {
        post(&mut client, &format!("{store}/file_batches"), &json!({"file_ids": batch})).await?;
    }
    wait_until_processed(&mut client, &store).await?;
    let seconds = started.elapsed().as_secs_f64();

    println!("| ranking | nDCG@10 | recall@10 | target |\n| --- | --- | --- | --- |");
    for (name, weights, target) in RANKINGS {
        let (mut ndcg, mut recall, mut count) = (0.0, 0.0, 0_u32);
        for query in &collection.queries {
            let mut request = json!({"query": query.text, "max_num_results": 20});
            if let Some((embedding, text)) = weights {
                let weights = json!({"embedding_weight": embedding, "text_weight": text});
                request["ranking_options"] = json!({"hybrid_search": weights});
            }
            let found = post(&mut client, &format!("{store}/search"), &request).await?;
            let files = found["data"].as_array().into_iter().flatten().filter_map(|hit| hit["file_id"].as_str());
            let found: Vec<String> =
                files.filter_map(|file| document_of.get(file)).map(|id| (*id).to_owned()).collect();
            if let Some((query_ndcg, query_recall)) = collection.judge(query, &found) {
                ndcg += query_ndcg;
                recall += query_recall;
                count += 1;
            }
        }
        let count = f64::from(count.max(1));
        println!("| {name} | {:.4} | {:.4} | {target} |", ndcg / count, recall / count);
    }
    println!("\n{} files were processed in {seconds:.1} s, with embeddings.\n", files.len());
    Ok(())
}

/// Returns a client for requests with forms.
pub fn http_client() -> Result<reqwest::Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().no_proxy().build()?)
}

/// Uploads a text file, and returns the file ID.
pub async fn upload_text(http: &reqwest::Client, server: &Server, name: &str, text: &str) -> Result<String> {
    let boundary = "retrieval-benchmark-boundary";
    let body = format!(
        "--{boundary}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nassistants\r\n\
         --{boundary}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n{text}\r\n\
         --{boundary}--\r\n"
    );
    let request = http
        .post(format!("http://{}/v1/files", server.address))
        .bearer_auth("bench")
        .header("content-type", format!("multipart/form-data; boundary={boundary}"))
        .body(body);
    let file: Value = serde_json::from_slice(&request.send().await?.error_for_status()?.bytes().await?)?;
    Ok(file["id"].as_str().ok_or("the file has no ID")?.to_owned())
}

/// Waits until all files of a vector store, given by its path, are processed.
pub async fn wait_until_processed(client: &mut Client, store: &str) -> Result<()> {
    let (mut last, mut progress) = (Value::Null, Instant::now());
    loop {
        let found: Value = client.fetch_json(Method::GET, store, Bytes::new()).await?;
        let counts = &found["file_counts"];
        if counts["in_progress"] == 0 {
            if counts["completed"] == counts["total"] {
                return Ok(());
            }
            return Err(format!("some files failed: {counts}").into());
        }
        if *counts != last {
            (last, progress) = (counts.clone(), Instant::now());
        } else if progress.elapsed() > STALLED_AFTER {
            return Err(format!("files are not processed: {counts}").into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub async fn post(client: &mut Client, path: &str, body: &Value) -> Result<Value> {
    client.fetch_json(Method::POST, path, Bytes::from(body.to_string())).await
}
