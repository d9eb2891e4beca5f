//! What readers of a run's stream are sent.
//!
//! A run has one snapshot ([`Live`]): what is stored of it and what its model is writing. Each reader has a
//! [`Transcript`] of what it was sent, and gets the rest of the sequence that the snapshot implies. So a reader may join
//! at any moment, be as slow as it likes, and follow a run that another server drives.

mod live;
mod transcript;

pub use live::{Listener, Live, Registry};
pub use transcript::{LiveCall, Snapshot, Transcript};
