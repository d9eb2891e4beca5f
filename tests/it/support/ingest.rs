//! Processing of the files of vector stores by the test, on a server with `ingest_concurrency` 0.

use std::sync::Arc;
use std::time::Duration;

use assistd::api::file::Purpose;
use assistd::api::{File, FileId, Scope, Timestamp};
use assistd::clock::Clock;
use assistd::store::{self, ClaimedStoreFile, CompletedFile, NewChunk, Store};

use super::database::Database;

/// The lease of a claimed file.
const LEASE: Duration = Duration::from_mins(1);

/// Opens the store of a running server.
pub async fn open(database: &Database, clock: &Arc<Clock>) -> Arc<dyn Store> {
    store::open_beside_server(&database.settings(), clock.clone()).await.unwrap()
}

/// Stores a file of the default project; returns its ID.
pub async fn create_file(store: &Arc<dyn Store>, id: FileId, now: Timestamp, filename: &str) -> FileId {
    let scope = Scope::default_project();
    let filename = filename.to_owned();
    let file = File { id, created_at: now, purpose: Purpose::Assistants, filename, bytes: 3, expires_at: None };
    store.create_pending_file(&scope, &file.id, now, LEASE).await.unwrap();
    assert!(store.finish_file(&scope, &file).await.unwrap());
    file.id
}

/// Claims the next file.
pub async fn claim(store: &Arc<dyn Store>) -> Option<ClaimedStoreFile> {
    store.claim_store_file(LEASE, "", &[], u32::MAX).await.unwrap()
}

/// Makes a claimed file searchable, with a text in several chunks.
pub async fn complete(store: &Arc<dyn Store>, claimed: &ClaimedStoreFile, texts: &[&str]) {
    let chunks: Vec<NewChunk> = texts
        .iter()
        .map(|text| NewChunk {
            text: (*text).to_owned(),
            overlap_bytes: 0,
            tokens: 1,
            terms: vec![1],
            content_hash: [0; 32],
            embedding: None,
        })
        .collect();
    let usage_bytes = texts.iter().map(|text| text.len() as u64).sum();
    let completed = CompletedFile { usage_bytes, embedding_model: None, text: Some((Some("en"), &chunks)) };
    store.complete_store_file(&claimed.lease, &completed).await.unwrap();
}

/// Processes all files.
pub async fn process_all(database: &Database, clock: &Arc<Clock>) {
    let store = open(database, clock).await;
    for _ in 0..3_000 {
        while let Some(claimed) = claim(&store).await {
            complete(&store, &claimed, &["text"]).await;
        }
        let count = "select cast(count(*) as text) from vector_store_files where status = 'in_progress'";
        if database.text(count).await == "0" {
            store.close().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("files are still in progress");
}
