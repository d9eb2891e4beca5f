//! Replies that are ready before the request body was read, such as 401, 404 or 413.
//!
//! If a server closes a socket that has unread bytes, the system sends a reset, and the client may lose the reply. So a small
//! rest of the body is read and discarded before the reply, and the connection stays usable. Otherwise the reply says
//! `connection: close`, and the server discards what the client still sends until the client has closed as well
//! (`server/connections.rs`).
//!
//! | body | reply |
//! | --- | --- |
//! | was read | unchanged |
//! | the rest is at most `DRAIN_BYTES_MAX` and arrives within `DRAIN_TIME` | unchanged |
//! | the rest is larger or slower, or invalid | `connection: close` |
//! | not asked for yet (`expect: 100-continue`) | `connection: close`; 100 is not sent, so the client need not send the body |

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

/// Maximum size of a rest that is discarded before the reply, in bytes. To send more costs a client about as much as a new
/// connection.
const DRAIN_BYTES_MAX: usize = 256 * 1024;
/// Maximum time to discard a rest before the reply. Enough for what is already on its way, and too short to be noticed.
const DRAIN_TIME: Duration = Duration::from_millis(200);

/// Runs the request. If its body was not read to the end, discards a small rest, or announces that the connection closes.
pub(in crate::http) async fn finish_body(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let expects_continue = request.headers().contains_key(EXPECT);
    let unread = Unread::default();
    let request = request.map(|body| Body::new(Watched::new(body, unread.clone())));
    let mut response = next.run(request).await;
    let Some(rest) = unread.take() else { return response };
    // hyper sends 100 when the body is polled for the first time.
    let is_held_back = expects_continue && !rest.is_polled;
    if is_held_back || rest.is_broken || !drain(rest.body).await {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Reads the rest of a body and discards it. Returns whether it reached the end within the limits.
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

/// Where a body is put that its reader drops before the end.
#[derive(Clone, Default)]
struct Unread(Arc<Mutex<Option<Rest>>>);

impl Unread {
    fn put(&self, rest: Rest) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(rest);
    }

    fn take(&self) -> Option<Rest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The rest of a body.
#[derive(Default)]
struct Rest {
    body: Body,
    is_polled: bool,
    /// Whether the body ended with an error, such as an invalid chunk.
    is_broken: bool,
}

/// A body that is put aside if it is dropped before its end.
struct Watched {
    rest: Rest,
    is_finished: bool,
    unread: Unread,
}

impl Watched {
    fn new(body: Body, unread: Unread) -> Self {
        Self { rest: Rest { body, is_polled: false, is_broken: false }, is_finished: false, unread }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.rest.is_polled = true;
        let frame = ready!(Pin::new(&mut self.rest.body).poll_frame(context));
        match &frame {
            None => self.is_finished = true,
            Some(Ok(_)) => {}
            Some(Err(_)) => self.rest.is_broken = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.rest.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let is_finished = self.is_finished || self.rest.body.is_end_stream();
        if !is_finished || self.rest.is_broken {
            self.unread.put(std::mem::take(&mut self.rest));
        }
    }
}
