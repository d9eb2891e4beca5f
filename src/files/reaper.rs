//! Removes files and parts that are deleted or expired, or whose server was lost while it received them, bytes that no row
//! names, and the data of deleted and expired vector stores.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use tokio::time::{Instant, MissedTickBehavior};

use super::Error;
use super::blobs::StoredBlob;
use super::service::FileService;
use crate::api::upload::EXPIRES_AFTER_S;
use crate::store::BlobKind;

/// Interval of removals.
const EVERY: Duration = Duration::from_secs(2);
/// Maximum number of rows of each kind per interval. The next one handles the rest.
const ROWS_MAX: u32 = 100;
/// Maximum number of rows of vector stores that one transaction removes.
const STORE_ROWS_MAX: u32 = 200;
/// Maximum number of these transactions per interval. The next one handles the rest.
const STORE_STEPS_MAX: u32 = 50;
/// How long the row of an upload is kept after the upload has expired, in seconds. Until then, its status is reported.
const UPLOAD_KEPT_S: u64 = 24 * EXPIRES_AFTER_S;
/// Interval of the search for bytes that no row names. It lists all bytes. There are none, unless a database was restored
/// from a backup or files were copied.
const SEARCH_EVERY: Duration = Duration::from_hours(6);
/// Age at which bytes that no row names are deleted, in seconds. Far more than the time between row and bytes.
const UNNAMED_AGE_S: i64 = 86_400;
/// Number of IDs that are looked up together.
const LOOKUP_MAX: usize = 500;

/// Removes what is no longer needed once per interval, without end.
pub async fn reap(files: FileService) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut search_at = Instant::now();
    loop {
        ticks.tick().await;
        report("expired files", remove_rows(&files).await);
        report("vector stores", remove_store_data(&files).await);
        if Instant::now() >= search_at {
            search_at = Instant::now() + SEARCH_EVERY;
            report("bytes without a row", remove_unnamed(&files).await);
        }
    }
}

fn report(what: &'static str, outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        tracing::warn!(error = &error as &dyn std::error::Error, what, "removal of files failed");
    }
}

async fn remove_rows(files: &FileService) -> Result<(), Error> {
    for kind in BlobKind::ALL {
        for blob in files.store().blobs_to_remove(kind, ROWS_MAX).await? {
            if !files.remove(&blob).await {
                // The storage is unavailable, which is logged. The next interval tries again.
                return Ok(());
            }
        }
    }
    let now = files.now();
    let before = crate::api::Timestamp(now.0.saturating_sub_unsigned(UPLOAD_KEPT_S));
    files.store().delete_uploads_before(before, ROWS_MAX).await?;
    Ok(())
}

/// Removes data of vector stores in small steps, so that other transactions are not delayed.
async fn remove_store_data(files: &FileService) -> Result<(), Error> {
    for _ in 0..STORE_STEPS_MAX {
        if !files.store().remove_store_data(STORE_ROWS_MAX).await? {
            break;
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Deletes bytes that no row names. If those are most of the bytes, they belong to another database, such as before an empty
/// one was created, and nothing is deleted.
async fn remove_unnamed(files: &FileService) -> Result<(), Error> {
    let mut named_count = 0;
    let mut unnamed = Vec::new();
    for kind in BlobKind::ALL {
        let mut listed = files.blobs().list(kind).try_chunks(LOOKUP_MAX);
        while let Some(some) = listed.try_next().await.map_err(|error| error.1)? {
            let now = files.now();
            let ids: Vec<String> = some.iter().map(|stored| stored.blob.id.clone()).collect();
            let named = files.store().blobs_with_row(kind, &ids).await?;
            named_count += named.len();
            let is_old = |stored: &StoredBlob| now.0 - stored.stored_at.0 >= UNNAMED_AGE_S;
            let without_row = some.into_iter().filter(|stored| is_old(stored) && !named.contains(&stored.blob.id));
            unnamed.extend(without_row.map(|stored| stored.blob));
        }
    }
    if unnamed.len() > named_count {
        tracing::warn!(
            storage = files.blobs().display_name(),
            unnamed = unnamed.len(),
            named = named_count,
            "most files in the storage are not in the database; they are not deleted: check that database_url and files_url \
             belong together"
        );
        return Ok(());
    }
    for blob in unnamed {
        tracing::warn!(blob.id, project.id = %blob.project, "deleting bytes that no file in the database has");
        files.blobs().delete(&blob).await?;
    }
    Ok(())
}
