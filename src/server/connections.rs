//! Accepts and serves a limited number of connections.
//!
//! At the limit, the connection that has been idle longest is closed to accept a new one. If none is idle, a few more
//! connections are accepted that serve only `/health` and `/ready`. Further connections wait in the socket's backlog, also
//! while many closed connections still have their file handles.
//!
//! A connection that is closed before its client has sent the whole request lingers: see [`ClientStream::linger`].

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::CONNECTION;
use axum::response::Response;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use crate::http::{self, ClientAddress};

/// Timeout for open connections to finish sending when the server stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a connection could not be accepted, for example because no file handles are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Number of connections above the maximum that serve only health checks.
const HEALTH_CONNECTIONS: usize = 8;
/// Number of connections that were closed for others and may still have their file handles.
const CLOSING_CONNECTIONS: usize = 32;
/// Minimum time between two warnings that the connection limit is reached.
const WARN_EVERY: Duration = Duration::from_mins(1);
/// Limits of closing a connection while its client may still be sending.
const LINGER: Linger = Linger {
    // Enough for clients that send the whole body before they read the response: 32 MiB at 9 Mbit/s.
    time: Duration::from_secs(30),
    // A client that neither sends nor closes for this long has received the response or is lost.
    idle_time: Duration::from_secs(5),
    // Eight times the default of body_bytes_max. Discarding it takes a few hundredths of a second.
    bytes_max: 256 * 1024 * 1024,
};
/// Maximum time to process a request after its client has closed the write side of the connection. Some clients close it
/// after the request and wait for the response; others have disconnected.
const HALF_CLOSED_TIME: Duration = Duration::from_secs(1);
/// Time for the rest of a request's headers to arrive when the connection is to be closed.
const HEADERS_TIME: Duration = Duration::from_millis(50);
/// Time for the next pipelined request to start after a response.
const NEXT_REQUEST_TIME: Duration = Duration::from_millis(20);
/// Size of the buffer for discarded bytes.
const DISCARD_BYTES: usize = 16 * 1024;
/// File handles that are not available for connections: the log, the database files, and the runtime.
const OTHER_HANDLES: u64 = 32;

/// Limits of connections.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// Maximum number of connections. 0: as many as the limit of open files allows.
    pub connections_max: usize,
    /// Maximum size of the request line and headers, in bytes.
    pub head_bytes_max: usize,
    /// Timeout for receiving the request headers, and idle timeout of a connection.
    pub header_timeout: Duration,
    /// How long a client may read nothing of a response.
    pub write_timeout: Duration,
    /// File handles that are reserved for database connections.
    pub reserved_handles: u64,
}

/// Limits of closing a connection whose client may still be sending.
#[derive(Debug, Clone, Copy)]
struct Linger {
    /// Maximum total time.
    time: Duration,
    /// Maximum time without data from the client.
    idle_time: Duration,
    /// Maximum number of discarded bytes.
    bytes_max: usize,
}

/// Raises the limit of file handles to the maximum that the system allows. Returns the maximum number of connections.
pub(super) fn connections_allowed(settings: &Settings) -> usize {
    let handles = rlimit::increase_nofile_limit(u64::MAX).or_else(|_| rlimit::Resource::NOFILE.get_soft());
    let handles = handles.unwrap_or(1024);
    // Half of the rest: the run of a connection needs another connection, to its model server.
    let not_available = OTHER_HANDLES + CLOSING_CONNECTIONS as u64 + settings.reserved_handles;
    let left = handles.saturating_sub(not_available) / 2;
    let left = usize::try_from(left).unwrap_or(usize::MAX).saturating_sub(HEALTH_CONNECTIONS).max(1);
    match settings.connections_max {
        0 => left,
        wanted if wanted > left => {
            tracing::warn!(
                connections_max = wanted,
                allowed = left,
                handles,
                "connections are limited by file handles"
            );
            left
        }
        wanted => wanted,
    }
}

/// The open connections.
#[derive(Debug, Default)]
struct Connections {
    open: Mutex<Open>,
    next: AtomicU64,
    /// When the last warning was logged that the limit is reached.
    warned_at: Mutex<Option<Instant>>,
}

/// The open connections, by their numbers.
#[derive(Debug, Default)]
struct Open {
    by_number: HashMap<u64, Arc<Connection>>,
    /// How many of them serve only health checks.
    extra: usize,
}

impl Open {
    fn remove(&mut self, number: u64) -> Option<Arc<Connection>> {
        let connection = self.by_number.remove(&number)?;
        self.extra -= usize::from(connection.is_extra);
        Some(connection)
    }
}

/// One connection.
#[derive(Debug)]
struct Connection {
    /// Number of requests whose response was not sent completely; 0 while the connection is idle.
    active_requests: AtomicUsize,
    idle_since: Mutex<Instant>,
    close: CancellationToken,
    /// Whether it serves only health checks.
    is_extra: bool,
    /// Whether it closes after the response, although the client may still be sending the request.
    has_unread_request: AtomicBool,
    /// Whether a request was received, at least in part, and its response was not sent yet.
    awaits_reply: AtomicBool,
    /// Wakes the reader of a half-closed connection when the response was sent.
    reader: Mutex<Option<Waker>>,
}

/// Selects connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// All connections.
    All,
    /// All except those that serve only health checks.
    Normal,
}

impl Connections {
    fn count(&self, which: Which) -> usize {
        let open = self.lock();
        match which {
            Which::All => open.by_number.len(),
            Which::Normal => open.by_number.len() - open.extra,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, is_extra: bool) -> (u64, Arc<Connection>) {
        let connection = Arc::new(Connection {
            active_requests: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
            close: CancellationToken::new(),
            is_extra,
            has_unread_request: AtomicBool::new(false),
            awaits_reply: AtomicBool::new(false),
            reader: Mutex::default(),
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut open = self.lock();
        open.extra += usize::from(is_extra);
        open.by_number.insert(number, connection.clone());
        drop(open);
        (number, connection)
    }

    fn remove(&self, number: u64) {
        self.lock().remove(number);
    }

    /// Closes the connection that has been idle longest. Returns false if no connection is idle.
    fn close_longest_idle(&self, which: Which) -> bool {
        let mut open = self.lock();
        let idle = open.by_number.iter().filter(|(_, connection)| {
            connection.active_requests.load(Ordering::Acquire) == 0 && (which == Which::All || !connection.is_extra)
        });
        let Some(number) = idle.min_by_key(|(_, connection)| connection.idle_since()).map(|(number, _)| *number) else {
            return false;
        };
        if let Some(connection) = open.remove(number) {
            connection.close.cancel();
        }
        true
    }

    /// Logs that the connection limit is reached, at most once per [`WARN_EVERY`].
    fn warn_full(&self, connections_max: usize) {
        let mut warned_at = self.warned_at.lock().unwrap_or_else(PoisonError::into_inner);
        if warned_at.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            *warned_at = Some(Instant::now());
            tracing::warn!(connections_max, "connection limit reached (connections_max)");
        }
    }
}

impl Connection {
    fn idle_since(&self) -> Instant {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a part of a request's headers was received, and the rest does not arrive.
    async fn sends_headers_only(&self) {
        loop {
            tokio::time::sleep(HEADERS_TIME).await;
            if self.awaits_reply.load(Ordering::Acquire) && self.active_requests.load(Ordering::Acquire) == 0 {
                return;
            }
        }
    }

    fn has_unread_request(&self) -> bool {
        self.has_unread_request.load(Ordering::Acquire)
    }
}

/// A request in progress. Dropped when its response was sent.
struct ActiveRequest(Arc<Connection>);

impl ActiveRequest {
    fn new(connection: Arc<Connection>) -> Self {
        connection.active_requests.fetch_add(1, Ordering::AcqRel);
        Self(connection)
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if self.0.active_requests.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.awaits_reply.store(false, Ordering::Release);
            if let Some(reader) = self.0.reader.lock().unwrap_or_else(PoisonError::into_inner).take() {
                reader.wake();
            }
        }
    }
}

/// Accepts connections until `closing` is cancelled. Then waits for open connections to finish sending.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    settings: Settings,
    connections_max: usize,
    closing: CancellationToken,
) {
    let connections = Arc::new(Connections::default());
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => break,
            accepted = accept(&listener, &connections, &tasks, connections_max) => accepted,
        };
        let (stream, is_extra) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "failed to accept a connection");
                // File handles may be exhausted: closing an idle connection frees one.
                connections.close_longest_idle(Which::All);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Tokens are small and must be sent without delay.
        let _ = stream.set_nodelay(true);
        let (number, connection) = connections.add(is_extra);
        let served = serve_connection(stream, router.clone(), settings.clone(), connection, closing.clone());
        let connections = connections.clone();
        tasks.spawn(async move {
            served.await;
            connections.remove(number);
        });
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(CLOSE_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::debug!(connections = tasks.len(), "connections were still open at exit");
    }
}

/// Accepts a connection, and waits while there are too many. Returns also whether it serves only health checks.
async fn accept(
    listener: &TcpListener,
    connections: &Connections,
    tasks: &TaskTracker,
    connections_max: usize,
) -> io::Result<(TcpStream, bool)> {
    // Each task has a file handle until it ends. The wait is bounded, because a connection that received a request at the
    // moment when it was closed serves that request first.
    let closing = async {
        while tasks.len() >= connections_max + HEALTH_CONNECTIONS + CLOSING_CONNECTIONS {
            tokio::time::sleep(ACCEPT_PAUSE / 10).await;
        }
    };
    let _ = tokio::time::timeout(HEADERS_TIME * 4, closing).await;
    while connections.count(Which::All) >= connections_max + HEALTH_CONNECTIONS
        && !connections.close_longest_idle(Which::All)
    {
        connections.warn_full(connections_max);
        tokio::time::sleep(ACCEPT_PAUSE / 10).await;
    }
    let (stream, _) = listener.accept().await?;
    let is_extra =
        connections.count(Which::Normal) >= connections_max && !connections.close_longest_idle(Which::Normal);
    if is_extra {
        connections.warn_full(connections_max);
    }
    Ok((stream, is_extra))
}

async fn serve_connection(
    stream: TcpStream,
    router: Router,
    settings: Settings,
    connection: Arc<Connection>,
    closing: CancellationToken,
) {
    let close = connection.close.clone();
    let address = stream.peer_addr().ok().map(|address| ClientAddress(address.ip()));
    let io = TokioIo::new(ClientStream::new(stream, settings.write_timeout, connection.clone()));
    let served = connection.clone();
    let service = hyper::service::service_fn(move |request| {
        let active_request = ActiveRequest::new(served.clone());
        let router = router.clone();
        async move { Ok::<_, Infallible>(respond(router, request, address, active_request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(settings.header_timeout).max_buf_size(settings.head_bytes_max);
    let mut serving = builder.serve_connection(io, service);
    let outcome = tokio::select! {
        outcome = &mut serving => outcome,
        () = async { tokio::select! { () = close.cancelled() => {}, () = closing.cancelled() => {} } } => {
            Pin::new(&mut serving).graceful_shutdown();
            // hyper would wait for the rest of a request's headers until the timeout.
            tokio::select! {
                outcome = &mut serving => outcome,
                () = connection.sends_headers_only() => Ok(()),
            }
        }
    };
    let io = serving.into_parts().io.into_inner();
    if let Err(error) = &outcome {
        if io.is_stalled {
            // Discards unsent data, which the system would otherwise keep for minutes.
            let _ = io.stream.set_zero_linger();
            tracing::info!(
                write_timeout_s = settings.write_timeout.as_secs(),
                "connection closed: the client reads nothing (write_timeout_s)"
            );
        } else {
            tracing::debug!(error = error as &dyn std::error::Error, "connection failed");
        }
    }
    // hyper has already responded to a request that it could not parse, such as one with too large headers.
    let is_unreadable = outcome.is_err_and(|error| error.is_parse());
    if is_unreadable || connection.has_unread_request() {
        tokio::select! {
            () = io.linger(LINGER) => {}
            () = close.cancelled() => {}
        }
    }
}

async fn respond(
    mut router: Router,
    request: hyper::Request<Incoming>,
    address: Option<ClientAddress>,
    active_request: ActiveRequest,
) -> Response {
    let response = if active_request.0.is_extra && !["/health", "/ready"].contains(&request.uri().path()) {
        http::overloaded()
    } else {
        let mut request: Request = request.map(Body::new);
        if let Some(address) = address {
            request.extensions_mut().insert(address);
        }
        let Ok(response) = router.call(request).await;
        response
    };
    if response.headers().get(CONNECTION).is_some_and(|value| value == "close") {
        active_request.0.has_unread_request.store(true, Ordering::Release);
    }
    response.map(|body| Body::new(ActiveBody { body, _active_request: active_request }))
}

/// A response body that keeps its connection active until it is sent.
struct ActiveBody {
    body: Body,
    _active_request: ActiveRequest,
}

impl hyper::body::Body for ActiveBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A client connection. Writes fail if the client reads nothing for longer than the write timeout.
struct ClientStream {
    stream: TcpStream,
    write_timeout: Duration,
    connection: Arc<Connection>,
    timeout: Option<Pin<Box<Sleep>>>,
    /// Timeout that starts if the client closes its write side before it has received the response.
    half_closed: Option<Pin<Box<Sleep>>>,
    /// Timeout of the next pipelined request after a response on such a connection.
    answered: Option<Pin<Box<Sleep>>>,
    /// Whether the write timeout has expired.
    is_stalled: bool,
}

impl ClientStream {
    fn new(stream: TcpStream, write_timeout: Duration, connection: Arc<Connection>) -> Self {
        Self { stream, write_timeout, connection, timeout: None, half_closed: None, answered: None, is_stalled: false }
    }

    /// Returns the result of a write, or an error if writes have been blocked for longer than the write timeout.
    fn watch<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.timeout = None;
            return written;
        }
        if self.connection.has_unread_request() {
            self.discard(context);
        }
        let write_timeout = self.write_timeout;
        let timeout = self.timeout.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_timeout)));
        ready!(timeout.as_mut().poll(context));
        self.is_stalled = true;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing (write_timeout_s)")))
    }

    /// Discards received bytes of a request that is no longer read. The client may read the response only after it has
    /// sent the whole request.
    fn discard(&mut self, context: &mut Context<'_>) {
        let mut space = [0; DISCARD_BYTES];
        loop {
            let mut buffer = ReadBuf::new(&mut space);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) | Poll::Pending => return,
            }
        }
    }

    /// Closes the connection without losing the response: shuts down the write side, and discards what the client sends
    /// until the client closes the connection or a limit is reached.
    ///
    /// If the socket were closed immediately, the system would respond to further bytes with a reset, and a client that
    /// receives a reset while it sends may not read the response.
    async fn linger(mut self, limits: Linger) {
        let _ = self.stream.shutdown().await;
        let discard = async {
            let mut space = vec![0; DISCARD_BYTES];
            let mut bytes = 0;
            while bytes < limits.bytes_max {
                match tokio::time::timeout(limits.idle_time, self.stream.read(&mut space)).await {
                    Ok(Ok(read)) if read > 0 => bytes += read,
                    // The client has closed the connection or sends nothing.
                    Ok(_) | Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(limits.time, discard).await;
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > filled {
            self.connection.awaits_reply.store(true, Ordering::Release);
            return Poll::Ready(Ok(()));
        }
        // The client has closed its write side. hyper would cancel a request that has no response yet.
        *self.connection.reader.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
        let connection = self.connection.clone();
        let is_active = || connection.active_requests.load(Ordering::Acquire) > 0;
        let awaits_reply = is_active() || connection.awaits_reply.load(Ordering::Acquire);
        if self.half_closed.is_none() && !awaits_reply {
            return Poll::Ready(Ok(()));
        }
        let half_closed = self.half_closed.get_or_insert_with(|| Box::pin(tokio::time::sleep(HALF_CLOSED_TIME)));
        if half_closed.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if awaits_reply {
            self.answered = None;
            return Poll::Pending;
        }
        // Another request may have been received before.
        let answered = self.answered.get_or_insert_with(|| Box::pin(tokio::time::sleep(NEXT_REQUEST_TIME)));
        answered.as_mut().poll(context).map(Ok)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    /// Returns the server's side and the client's side of a connection.
    async fn connect() -> (ClientStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (_, connection) = Connections::default().add(false);
        (ClientStream::new(accepted.unwrap().0, LONG, connection), client.unwrap())
    }

    #[tokio::test]
    async fn closing_a_health_check_connection_does_not_free_a_slot_for_others() {
        let connections = Connections::default();
        let (_, busy) = connections.add(false);
        let _active_request = ActiveRequest::new(busy);
        let (_, extra) = connections.add(true);

        assert_eq!((connections.count(Which::All), connections.count(Which::Normal)), (2, 1));
        assert!(!connections.close_longest_idle(Which::Normal) && !extra.close.is_cancelled());
        assert!(connections.close_longest_idle(Which::All) && extra.close.is_cancelled());
        assert_eq!((connections.count(Which::All), connections.count(Which::Normal)), (1, 1));
    }

    #[tokio::test]
    async fn a_lingering_connection_discards_what_is_sent_until_the_client_closes() {
        let (server, mut client) = connect().await;
        let limits = Linger { time: LONG, idle_time: LONG, bytes_max: usize::MAX };

        let sent = async {
            client.write_all(&vec![0; 5_000_000]).await.unwrap();
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "the server has shut down its write side");
            drop(client);
        };
        tokio::time::timeout(LONG / 2, async { tokio::join!(server.linger(limits), sent) }).await.unwrap();
    }

    #[tokio::test]
    async fn a_lingering_connection_is_closed_at_each_limit() {
        let limits = Linger { time: LONG, idle_time: LONG, bytes_max: usize::MAX };
        let one = Duration::from_millis(1);

        for limits in [Linger { time: one, ..limits }, Linger { idle_time: one, ..limits }] {
            let (server, _client) = connect().await;
            tokio::time::timeout(LONG / 2, server.linger(limits)).await.expect("the time limit applies");
        }
        let (server, mut client) = connect().await;
        let send = async { while client.write_all(&[0; 4096]).await.is_ok() {} };
        let limits = Linger { bytes_max: 1_000_000, ..limits };
        tokio::time::timeout(LONG / 2, async { tokio::join!(server.linger(limits), send) })
            .await
            .expect("the byte limit applies");
    }
}
