//! Responses that are sent before the request body was read, such as 401, 404 or 413.
//!
//! If a server closes a socket that has unread bytes, the system sends a reset, and the client may lose the response.
//! So a small unread remainder of the body is discarded before the response, and the connection stays open. Otherwise
//! the response has `connection: close`, and the server discards what the client sends until the client closes the
//! connection (`server/connections.rs`).
//!
//! | request body | response |
//! | --- | --- |
//! | was read | unchanged |
//! | the remainder is at most `DRAIN_BYTES_MAX` and arrives within `DRAIN_TIME` | unchanged |
//! | the remainder is larger or slower, or invalid | `connection: close` |
//! | the client waits for 100 (`expect: 100-continue`) | `connection: close`, 100 is not sent |

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::{CONNECTION, EXPECT};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};

/// Maximum size of a remainder that is discarded before the response, in bytes. Sending more takes a client about as
/// long as opening a new connection.
const DRAIN_BYTES_MAX: usize = 256 * 1024;
/// Maximum time to discard a remainder before the response. Enough for bytes that were already sent, and too short to
/// be noticed.
const DRAIN_TIME: Duration = Duration::from_millis(200);

/// Runs the request. If its body was not read to the end, discards a small remainder, or adds `connection: close`.
pub(in crate::http) async fn finish_body(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let expects_continue = request.headers().contains_key(EXPECT);
    let unread = Unread::default();
    let request = request.map(|body| Body::new(TrackedBody::new(body, unread.clone())));
    let mut response = next.run(request).await;
    let Some(remainder) = unread.take() else { return response };
    // hyper sends 100 when the body is polled for the first time.
    let awaits_continue = expects_continue && !remainder.is_polled;
    if awaits_continue || remainder.is_broken || !drain(remainder.body).await {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Discards the remainder of a body. Returns whether the end was reached within the limits.
async fn drain(mut body: Body) -> bool {
    let known = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if known > DRAIN_BYTES_MAX {
        return false;
    }
    let read = async {
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > DRAIN_BYTES_MAX {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(DRAIN_TIME, read).await.unwrap_or(false)
}

/// Receives the remainder of a body that was dropped before its end.
#[derive(Clone, Default)]
struct Unread(Arc<Mutex<Option<Remainder>>>);

impl Unread {
    fn put(&self, remainder: Remainder) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(remainder);
    }

    fn take(&self) -> Option<Remainder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The unread remainder of a body.
#[derive(Default)]
struct Remainder {
    body: Body,
    is_polled: bool,
    /// Whether the body ended with an error, such as an invalid chunk.
    is_broken: bool,
}

/// A body that passes its remainder to `unread` if it is dropped before its end.
struct TrackedBody {
    remainder: Remainder,
    is_finished: bool,
    unread: Unread,
}

impl TrackedBody {
    fn new(body: Body, unread: Unread) -> Self {
        Self { remainder: Remainder { body, is_polled: false, is_broken: false }, is_finished: false, unread }
    }
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.remainder.is_polled = true;
        let frame = ready!(Pin::new(&mut self.remainder.body).poll_frame(context));
        match &frame {
            None => self.is_finished = true,
            Some(Ok(_)) => {}
            Some(Err(_)) => self.remainder.is_broken = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.remainder.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.remainder.body.size_hint()
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        let is_finished = self.is_finished || self.remainder.body.is_end_stream();
        if !is_finished || self.remainder.is_broken {
            self.unread.put(std::mem::take(&mut self.remainder));
        }
    }
}
