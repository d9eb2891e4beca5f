//! A relay in front of Postgres that counts round trips, pings and statements.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::Result;

/// The codes that distinguish the requests for TLS and GSS encryption from the startup message.
const ENCRYPTION_REQUESTS: [u32; 2] = [80_877_103, 80_877_104];

/// A simple query: a whole request in one message.
const QUERY: u8 = b'Q';
/// Ends a request of several messages. Without other messages, it is a ping.
const SYNC: u8 = b'S';
/// Executes a prepared statement.
const EXECUTE: u8 = b'E';

/// A running relay. Stopped when dropped.
pub struct WireCount {
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    round_trips: AtomicU64,
    pings: AtomicU64,
    statements: AtomicU64,
}

impl WireCount {
    /// Starts to relay connections from the listener to the host and port `postgres`.
    pub fn start(listener: TcpListener, postgres: String) -> Self {
        let counts = Arc::new(Counts::default());
        let task = tokio::spawn({
            let counts = Arc::clone(&counts);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (postgres, counts) = (postgres.clone(), Arc::clone(&counts));
                    // The measured server reports a broken connection.
                    tokio::spawn(async move { relay(client, &postgres, &counts).await });
                }
            }
        });
        Self { counts, task }
    }

    /// Returns the number of round trips: requests that end with a `ReadyForQuery`, except pings.
    pub fn round_trips(&self) -> u64 {
        self.counts.round_trips.load(Ordering::Relaxed)
    }

    /// Returns the number of pings: requests without a statement.
    pub fn pings(&self) -> u64 {
        self.counts.pings.load(Ordering::Relaxed)
    }

    /// Returns the number of executed statements, including `begin` and `commit`.
    pub fn statements(&self) -> u64 {
        self.counts.statements.load(Ordering::Relaxed)
    }
}

impl Drop for WireCount {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens on a free port for [`WireCount::start`].
pub async fn bind() -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

async fn relay(client: TcpStream, postgres: &str, counts: &Counts) -> Result<()> {
    let server = TcpStream::connect(postgres).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async {
        let mut reader = MessageReader::default();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let length = from_client.read(&mut buffer).await?;
            if length == 0 {
                return Ok::<(), crate::Error>(());
            }
            reader.read(&buffer[..length], counts);
            to_server.write_all(&buffer[..length]).await?;
        }
    };
    let replies = tokio::io::copy(&mut from_server, &mut to_client);
    tokio::select! {
        outcome = requests => outcome,
        outcome = replies => outcome.map(|_| ()).map_err(Into::into),
    }
}

/// Parses the messages that a client sends to Postgres.
///
/// A message has a type byte, a length of four bytes that includes itself, and the content. The first messages have no type
/// byte: requests for encryption, which the test server declines, and the startup message.
#[derive(Default)]
struct MessageReader {
    started: bool,
    head: Vec<u8>,
    content_left: usize,
    last_kind: u8,
}

impl MessageReader {
    fn read(&mut self, mut bytes: &[u8], counts: &Counts) {
        loop {
            let skipped = self.content_left.min(bytes.len());
            self.content_left -= skipped;
            bytes = &bytes[skipped..];
            // A type and a length; before the startup message, a length and a code.
            let head_length = if self.started { 5 } else { 8 };
            let taken = (head_length - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.head.len() < head_length {
                return;
            }
            self.read_head(counts);
            self.head.clear();
        }
    }

    fn read_head(&mut self, counts: &Counts) {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number: u32, byte| number << 8 | u32::from(*byte));
        if !self.started {
            self.content_left = (number(&self.head[..4]) as usize).saturating_sub(8);
            self.started = !ENCRYPTION_REQUESTS.contains(&number(&self.head[4..]));
            return;
        }
        self.content_left = (number(&self.head[1..]) as usize).saturating_sub(4);
        let kind = self.head[0];
        let alone = self.last_kind == SYNC;
        self.last_kind = kind;
        match kind {
            QUERY => {
                counts.round_trips.fetch_add(1, Ordering::Relaxed);
                counts.statements.fetch_add(1, Ordering::Relaxed);
                // The next message starts a new request, as after a sync.
                self.last_kind = SYNC;
            }
            SYNC if alone => {
                counts.pings.fetch_add(1, Ordering::Relaxed);
            }
            SYNC => {
                counts.round_trips.fetch_add(1, Ordering::Relaxed);
            }
            EXECUTE => {
                counts.statements.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}
