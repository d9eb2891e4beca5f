//! Writes a run's events as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;

use super::drain::Drain;
use crate::api::StreamEvent;
use crate::metrics::OpenStream;
use crate::runs::stream::Listener;

/// A comment line, which clients ignore. It is not followed by an empty line, because one client fails on a block without
/// an event.
const KEEP_ALIVE: &[u8] = b": keep-alive\n";
const DONE: &[u8] = b"event: done\ndata: [DONE]\n\n";

/// Returns a response that streams a run to its end. The text of search results is sent only if `with_content` is set. If
/// the client disconnects, the stream ends, but the run continues.
pub(super) fn stream(
    mut listener: Listener,
    with_content: bool,
    keep_alive: Duration,
    drain: &Drain,
    mut open_stream: OpenStream,
) -> Response {
    let open_response = drain.register();
    let frames = async_stream::stream! {
        let _open_response = open_response;
        loop {
            let (events, more) = listener.take();
            let mut bytes = Vec::new();
            for event in &events {
                write_frame(&mut bytes, event, with_content);
            }
            if !more {
                bytes.extend_from_slice(DONE);
                // Some clients disconnect when they have read it.
                open_stream.complete();
            }
            if !bytes.is_empty() {
                yield Ok::<_, Infallible>(Bytes::from(bytes));
            }
            if !more {
                return;
            }
            if events.is_empty() {
                tokio::select! {
                    () = listener.wait() => {}
                    () = tokio::time::sleep(keep_alive) => yield Ok(Bytes::from_static(KEEP_ALIVE)),
                }
            }
        }
    };
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    // Disables buffering in a reverse proxy.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

fn write_frame(out: &mut Vec<u8>, event: &StreamEvent, with_content: bool) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(event.name().as_bytes());
    out.extend_from_slice(b"\ndata: ");
    event.write_data(out, with_content).expect("values with string keys are always valid JSON");
    out.extend_from_slice(b"\n\n");
}
