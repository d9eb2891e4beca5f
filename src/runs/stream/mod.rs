//! The event streams of runs.
//!
//! A run has one snapshot ([`Live`]): its stored state and what its model is writing. Each reader has a [`Transcript`] of
//! the events that it was sent, and receives the events that the snapshot adds. So a reader can join at any time, read
//! slowly, and follow a run that another server drives.

mod live;
mod transcript;

pub use live::{Listener, Live, Registry};
pub use transcript::{LiveCall, Snapshot, Transcript};
