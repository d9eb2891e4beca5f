//! What is counted and traced about one model call.

use super::Dependencies;
use super::turn::Turn;
use crate::api::run::{FinishReason, RunSpec};
use crate::llm::{self, Route};
use crate::metrics;
use crate::traces::CallSpan;

/// A model call in progress. If it is dropped before its end, it was interrupted.
#[derive(Debug)]
pub(super) struct ObservedCall {
    counted: metrics::Call,
    span: CallSpan,
}

impl ObservedCall {
    /// Starts the clock.
    pub fn start(dependencies: &Dependencies, spec: &RunSpec, route: &Route) -> Self {
        let upstream = route.server.name();
        Self {
            counted: dependencies.metrics.call_started(&spec.model, upstream),
            span: dependencies.traces.call_started(spec, &route.model, upstream),
        }
    }

    /// A part of the answer has arrived.
    pub fn chunk_received(&mut self) {
        self.counted.chunk_received();
        self.span.chunk_received();
    }

    /// The answer is complete.
    pub fn completed(self, turn: &Turn) {
        self.counted.completed();
        let finish = turn.finish.map(|finish| match finish {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::ContentFilter => "content_filter",
        });
        self.span.completed(turn.usage, finish);
    }

    /// The call has failed.
    pub fn failed(self, turn: &Turn, error: &llm::Error) {
        self.counted.failed(error.label());
        self.span.failed(turn.usage, error.label());
    }
}
