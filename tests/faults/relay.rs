//! A TCP relay in front of the database, which simulates network faults.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The state of the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Network {
    Good,
    /// Connections are closed, including new ones.
    Unreachable,
    /// Connections remain open, but no bytes are forwarded.
    Unresponsive,
    /// Each read is forwarded after this many milliseconds.
    Slow(u64),
}

/// A relay. Runs as long as the runtime.
#[derive(Debug, Clone)]
pub struct Relay {
    pub port: u16,
    network: Arc<watch::Sender<Network>>,
}

impl Relay {
    /// Starts a relay to `target`, an address with a port.
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let (network, _) = watch::channel(Network::Good);
        let network = Arc::new(network);
        let relay = Self { port, network: network.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *network.borrow() == Network::Unreachable {
                    continue;
                }
                let (target, watched) = (target.clone(), network.subscribe());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(target).await else { return };
                    let _ = (client.set_nodelay(true), server.set_nodelay(true));
                    let (client_reads, client_writes) = client.into_split();
                    let (server_reads, server_writes) = server.into_split();
                    tokio::select! {
                        () = forward(client_reads, server_writes, watched.clone()) => {}
                        () = forward(server_reads, client_writes, watched.clone()) => {}
                        () = unreachable(watched) => {}
                    }
                });
            }
        });
        relay
    }

    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }
}

async fn unreachable(mut network: watch::Receiver<Network>) {
    let _ = network.wait_for(|network| *network == Network::Unreachable).await;
}

async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut network: watch::Receiver<Network>,
) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        let now = *network.borrow();
        if let Network::Slow(milliseconds) = now {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        }
        if network.wait_for(|network| *network != Network::Unresponsive).await.is_err() {
            return;
        }
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}
