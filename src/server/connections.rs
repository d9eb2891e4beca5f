//! Accepts connections, within bounds, and serves them.
//!
//! When there are as many connections as there may be, the one that has been idle longest is closed for a new one. Where
//! none is idle, a few more are served for `/health` and `/ready` alone; others wait until one ends.
//!
//! A connection that closes before its client has sent all of a request lingers: see [`Stalling::linger`].

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
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

use crate::http;

/// How long open connections get to send their last bytes after everything under way has ended.
const LAST_BYTES: Duration = Duration::from_secs(2);
/// Pause after a connection could not be accepted, such as when there are no file handles left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections beyond the maximum, for health checks alone.
const HEALTH_CONNECTIONS: usize = 8;
/// Minimum time between two warnings that the maximum is reached.
const WARN_EVERY: Duration = Duration::from_mins(1);
/// How a connection is closed whose client may still be sending.
const LINGER: Linger = Linger {
    // Clients that read a reply only after they have sent the whole body get it too, if they send 32 MiB at 9 Mbit/s.
    time: Duration::from_secs(30),
    // A client that neither sends nor closes for so long has the reply, or is gone.
    idle_time: Duration::from_secs(5),
    // Eight times the usual maximum of a body. To read and discard it takes a few hundredths of a second.
    bytes_max: 256 * 1024 * 1024,
};
/// Size of the buffer for bytes that are discarded.
const DISCARD_BYTES: usize = 16 * 1024;
/// File handles that are not for connections: the log, the database's files, and what the runtime needs.
const OTHER_HANDLES: u64 = 32;

/// Bounds of connections.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// Maximum number of connections; 0 for as many as the file handles allow.
    pub connections_max: usize,
    /// Maximum size of a request's head, in bytes.
    pub head_bytes_max: usize,
    /// How long a request's head may take to arrive, and a connection may be idle.
    pub header_timeout: Duration,
    /// How long a client may take no byte of a reply.
    pub write_timeout: Duration,
    /// Handles that the database and the model servers need.
    pub reserved_handles: u64,
}

/// Limits of closing a connection whose client may still be sending.
#[derive(Debug, Clone, Copy)]
struct Linger {
    /// Maximum time in all.
    time: Duration,
    /// Maximum time in which the client sends nothing.
    idle_time: Duration,
    /// Maximum number of bytes that are read and discarded.
    bytes_max: usize,
}

/// Raises the limit of file handles as far as the system allows, and returns how many connections that leaves.
pub(super) fn connections_allowed(settings: &Settings) -> usize {
    let handles = rlimit::increase_nofile_limit(u64::MAX).or_else(|_| rlimit::Resource::NOFILE.get_soft());
    let handles = handles.unwrap_or(1024);
    // Half of what is left: each run that a connection asks for has a connection to its model server.
    let left = handles.saturating_sub(OTHER_HANDLES + settings.reserved_handles) / 2;
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

/// The connections that are open.
#[derive(Debug, Default)]
struct Connections {
    open: Mutex<Open>,
    next: AtomicU64,
    /// When it was last reported that the maximum is reached.
    warned_at: Mutex<Option<Instant>>,
}

/// The open connections, by their numbers.
#[derive(Debug, Default)]
struct Open {
    by_number: HashMap<u64, Arc<Connection>>,
    /// How many of them are for health checks alone.
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
    /// Requests whose reply is not sent yet; 0 while it is idle.
    under_way: AtomicUsize,
    idle_since: Mutex<Instant>,
    close: CancellationToken,
    /// Whether it is for health checks alone.
    is_extra: bool,
    /// Whether it closes after its reply, although the client may still be sending the request.
    has_unread_request: AtomicBool,
}

/// A kind of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// All.
    All,
    /// All but those for health checks alone.
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
            under_way: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
            close: CancellationToken::new(),
            is_extra,
            has_unread_request: AtomicBool::new(false),
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

    /// Closes the connection that has been idle longest; returns whether there was one.
    fn close_an_idle_one(&self, which: Which) -> bool {
        let mut open = self.lock();
        let idle = open.by_number.iter().filter(|(_, connection)| {
            connection.under_way.load(Ordering::Acquire) == 0 && (which == Which::All || !connection.is_extra)
        });
        let Some(number) = idle.min_by_key(|(_, connection)| connection.idle_since()).map(|(number, _)| *number) else {
            return false;
        };
        if let Some(connection) = open.remove(number) {
            connection.close.cancel();
        }
        true
    }

    /// Reports that the maximum is reached, but not too often.
    fn warn_full(&self, connections_max: usize) {
        let mut warned_at = self.warned_at.lock().unwrap_or_else(PoisonError::into_inner);
        if warned_at.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            *warned_at = Some(Instant::now());
            tracing::warn!(connections_max, "no more connections are served (connections_max)");
        }
    }
}

impl Connection {
    fn idle_since(&self) -> Instant {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_unread_request(&self) -> bool {
        self.has_unread_request.load(Ordering::Acquire)
    }
}

/// A request that is under way, to the end of its reply.
struct UnderWay(Arc<Connection>);

impl UnderWay {
    fn new(connection: Arc<Connection>) -> Self {
        connection.under_way.fetch_add(1, Ordering::AcqRel);
        Self(connection)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Accepts connections until `closing`, then lets those that are open finish what they are sending.
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
            accepted = accept(&listener, &connections, connections_max) => accepted,
        };
        let (stream, is_extra) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a connection could not be accepted");
                // File handles may be exhausted: closing an idle connection frees one.
                connections.close_an_idle_one(Which::All);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Tokens are small and must leave at once.
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
    if tokio::time::timeout(LAST_BYTES, tasks.wait()).await.is_err() {
        tracing::debug!(connections = tasks.len(), "connections were still open at the end");
    }
}

/// Waits for a connection, and for room for it.
async fn accept(
    listener: &TcpListener,
    connections: &Connections,
    connections_max: usize,
) -> io::Result<(TcpStream, bool)> {
    while connections.count(Which::All) >= connections_max + HEALTH_CONNECTIONS
        && !connections.close_an_idle_one(Which::All)
    {
        connections.warn_full(connections_max);
        tokio::time::sleep(ACCEPT_PAUSE / 10).await;
    }
    let (stream, _) = listener.accept().await?;
    let is_extra = connections.count(Which::Normal) >= connections_max && !connections.close_an_idle_one(Which::Normal);
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
    let io = TokioIo::new(Stalling::new(stream, settings.write_timeout, connection.clone()));
    let served = connection.clone();
    let service = hyper::service::service_fn(move |request| {
        let under_way = UnderWay::new(served.clone());
        let router = router.clone();
        async move { Ok::<_, Infallible>(respond(router, request, under_way).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(settings.header_timeout).max_buf_size(settings.head_bytes_max);
    let mut serving = builder.serve_connection(io, service);
    let outcome = tokio::select! {
        outcome = &mut serving => outcome,
        () = async { tokio::select! { () = close.cancelled() => {}, () = closing.cancelled() => {} } } => {
            Pin::new(&mut serving).graceful_shutdown();
            (&mut serving).await
        }
    };
    let io = serving.into_parts().io.into_inner();
    if let Err(error) = &outcome {
        if io.is_stalled {
            // The system would hold what was not sent for minutes.
            let _ = io.stream.set_zero_linger();
            tracing::info!(
                write_timeout_s = settings.write_timeout.as_secs(),
                "closed a connection whose client reads nothing"
            );
        } else {
            tracing::debug!(error = error as &dyn std::error::Error, "a connection broke");
        }
    }
    // hyper has answered what it could not parse, such as a head that is too large.
    let is_unreadable = outcome.is_err_and(|error| error.is_parse());
    if is_unreadable || connection.has_unread_request() {
        tokio::select! {
            () = io.linger(LINGER) => {}
            () = close.cancelled() => {}
        }
    }
}

async fn respond(mut router: Router, request: hyper::Request<Incoming>, under_way: UnderWay) -> Response {
    let response = if under_way.0.is_extra && !["/health", "/ready"].contains(&request.uri().path()) {
        http::overloaded()
    } else {
        let request: Request = request.map(Body::new);
        let Ok(response) = router.call(request).await;
        response
    };
    if response.headers().get(CONNECTION).is_some_and(|value| value == "close") {
        under_way.0.has_unread_request.store(true, Ordering::Release);
    }
    response.map(|body| Body::new(Guarded { body, _under_way: under_way }))
}

/// A reply's body; while it is sent, its connection is not idle.
struct Guarded {
    body: Body,
    _under_way: UnderWay,
}

impl hyper::body::Body for Guarded {
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

/// A connection that fails if its client reads nothing for too long.
struct Stalling {
    stream: TcpStream,
    write_timeout: Duration,
    connection: Arc<Connection>,
    timeout: Option<Pin<Box<Sleep>>>,
    /// Whether it has failed because the client reads nothing.
    is_stalled: bool,
}

impl Stalling {
    fn new(stream: TcpStream, write_timeout: Duration, connection: Arc<Connection>) -> Self {
        Self { stream, write_timeout, connection, timeout: None, is_stalled: false }
    }

    /// Passes a write on, or fails when it has waited for too long.
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

    /// Discards what has arrived of a request that is not read any more: the client may read the reply only after it has
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

    /// Closes a connection so that its client gets the reply: ends the server's side, and discards what the client sends
    /// until it closes its side, or a limit is reached.
    ///
    /// If the socket were closed at once, the system would answer further bytes with a reset. A client that gets a reset
    /// while it sends may not read the reply.
    async fn linger(mut self, limits: Linger) {
        let _ = self.stream.shutdown().await;
        let discard = async {
            let mut space = vec![0; DISCARD_BYTES];
            let mut bytes = 0;
            while bytes < limits.bytes_max {
                match tokio::time::timeout(limits.idle_time, self.stream.read(&mut space)).await {
                    Ok(Ok(read)) if read > 0 => bytes += read,
                    // The client has closed, or does nothing.
                    Ok(_) | Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(limits.time, discard).await;
    }
}

impl AsyncRead for Stalling {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stalling {
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
    async fn connect() -> (Stalling, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (_, connection) = Connections::default().add(false);
        (Stalling::new(accepted.unwrap().0, LONG, connection), client.unwrap())
    }

    #[tokio::test]
    async fn to_close_a_connection_for_health_checks_makes_no_room_for_others() {
        let connections = Connections::default();
        let (_, busy) = connections.add(false);
        let _under_way = UnderWay::new(busy);
        let (_, extra) = connections.add(true);

        assert_eq!((connections.count(Which::All), connections.count(Which::Normal)), (2, 1));
        assert!(!connections.close_an_idle_one(Which::Normal) && !extra.close.is_cancelled());
        assert!(connections.close_an_idle_one(Which::All) && extra.close.is_cancelled());
        assert_eq!((connections.count(Which::All), connections.count(Which::Normal)), (1, 1));
    }

    #[tokio::test]
    async fn a_lingering_connection_discards_what_is_sent_until_the_client_closes() {
        let (server, mut client) = connect().await;
        let limits = Linger { time: LONG, idle_time: LONG, bytes_max: usize::MAX };

        let sent = async {
            client.write_all(&vec![0; 5_000_000]).await.unwrap();
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "the server has ended its side");
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
            tokio::time::timeout(LONG / 2, server.linger(limits)).await.expect("the limit is kept");
        }
        let (server, mut client) = connect().await;
        let send = async { while client.write_all(&[0; 4096]).await.is_ok() {} };
        let limits = Linger { bytes_max: 1_000_000, ..limits };
        tokio::time::timeout(LONG / 2, async { tokio::join!(server.linger(limits), send) })
            .await
            .expect("it is closed");
    }
}
