//! Accepts connections, within bounds, and serves them.
//!
//! When there are as many connections as there may be, the one that has been idle longest is closed for a new one. Where
//! none is idle, a few more are served for `/health` and `/ready` alone; others wait until one ends.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
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
}

impl Connections {
    fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, is_extra: bool) -> (u64, Arc<Connection>) {
        let connection = Arc::new(Connection {
            under_way: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
            close: CancellationToken::new(),
            is_extra,
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, connection.clone());
        (number, connection)
    }

    fn remove(&self, number: u64) {
        self.lock().remove(&number);
    }

    /// Closes the connection that has been idle longest; returns whether there was one.
    fn close_an_idle_one(&self) -> bool {
        let mut open = self.lock();
        let idle = open.iter().filter(|(_, connection)| connection.under_way.load(Ordering::Acquire) == 0);
        let Some(number) = idle.min_by_key(|(_, connection)| connection.idle_since()).map(|(number, _)| *number) else {
            return false;
        };
        if let Some(connection) = open.remove(&number) {
            connection.close.cancel();
        }
        true
    }
}

impl Connection {
    fn idle_since(&self) -> Instant {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
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
                connections.close_an_idle_one();
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
    while connections.len() >= connections_max + HEALTH_CONNECTIONS && !connections.close_an_idle_one() {
        tokio::time::sleep(ACCEPT_PAUSE / 10).await;
    }
    let (stream, _) = listener.accept().await?;
    let is_extra = connections.len() >= connections_max && !connections.close_an_idle_one();
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
    let service = hyper::service::service_fn(move |request| {
        let under_way = UnderWay::new(connection.clone());
        let router = router.clone();
        async move { Ok::<_, Infallible>(respond(router, request, under_way).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(settings.header_timeout).max_buf_size(settings.head_bytes_max);
    let io = TokioIo::new(Stalling::new(stream, settings.write_timeout));
    let mut served = std::pin::pin!(builder.serve_connection(io, service));
    let outcome = tokio::select! {
        outcome = &mut served => outcome,
        () = async { tokio::select! { () = close.cancelled() => {}, () = closing.cancelled() => {} } } => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection broke");
    }
}

async fn respond(mut router: Router, request: hyper::Request<Incoming>, under_way: UnderWay) -> Response {
    if under_way.0.is_extra && !["/health", "/ready"].contains(&request.uri().path()) {
        return http::overloaded();
    }
    let request: Request = request.map(Body::new);
    let Ok(response) = router.call(request).await;
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
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Stalling {
    fn new(stream: TcpStream, write_timeout: Duration) -> Self {
        Self { stream, write_timeout, stalled: None }
    }

    /// Passes a write on, or fails when it has waited for too long.
    fn watch<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let write_timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_timeout)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing (write_timeout_s)")))
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
