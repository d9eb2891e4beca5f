//! Files and uploads: receives and joins their bytes, and removes what is no longer needed.

pub mod blobs;
pub mod reaper;
pub mod service;

use std::time::Duration;

use crate::api;
use crate::store;

/// The lease of a file or a part that is being received. If its server is lost, the reaper removes it afterwards.
pub const LEASE: Duration = Duration::from_mins(10);
/// How often the lease is renewed.
const RENEW_EVERY: Duration = Duration::from_mins(1);

/// Why a file cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is invalid.
    #[error(transparent)]
    Rejected(#[from] api::Error),
    /// The rows cannot be stored or read.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The bytes cannot be stored or read. A retry can help.
    #[error("the storage of files is unavailable")]
    Blobs(#[from] blobs::Error),
    /// The server could not renew the lease of a file that it was receiving, and the file was removed.
    #[error("the lease of a file ended while it was being received")]
    LeaseEnded,
    /// The server receives as many files as it may.
    #[error("the server is receiving too many files")]
    TooMany,
}
