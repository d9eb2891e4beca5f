//! A relay in front of Postgres that counts what a server asks of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::Result;

/// Requests before the first typed message, told apart from the start-up message by their code: for TLS and for GSS.
const ENCRYPTION_REQUESTS: [u32; 2] = [80_877_103, 80_877_104];

/// A whole request in one message.
const QUERY: u8 = b'Q';
/// Ends a request of several messages; without any before it, it is a ping.
const SYNC: u8 = b'S';
/// Runs a prepared statement.
const EXECUTE: u8 = b'E';

/// The running relay; it ends when dropped.
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
    /// Starts to relay connections from this listener to this host and port.
    pub fn start(listener: TcpListener, postgres: String) -> Self {
        let counts = Arc::new(Counts::default());
        let task = tokio::spawn({
            let counts = Arc::clone(&counts);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (postgres, counts) = (postgres.clone(), Arc::clone(&counts));
                    // A broken connection shows at the server that is measured.
                    tokio::spawn(async move { relay(client, &postgres, &counts).await });
                }
            }
        });
        Self { counts, task }
    }

    /// How often a server waited for Postgres: each ready-for-query it asked for, but for pings.
    pub fn round_trips(&self) -> u64 {
        self.counts.round_trips.load(Ordering::Relaxed)
    }

    /// How often a server asked only whether Postgres is still there.
    pub fn pings(&self) -> u64 {
        self.counts.pings.load(Ordering::Relaxed)
    }

    /// Statements executed, `begin` and `commit` among them.
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

/// Finds the messages in what a client sends to Postgres.
///
/// Each is a type byte and a length of four bytes that counts itself, then the content. The first messages have no type
/// byte: requests for encryption, which the throwaway server declines, and the start-up message.
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
            // A type and a length, or at the start a length and a code.
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
                // What follows is a new request, as after a sync.
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
