//! Between a gateway and its database: passes bytes on, and cuts the connection where it hurts most.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// A proxy on a port of its own, for as long as the test runs.
#[derive(Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    /// Swallow the next answer of the server and cut the connection: what was asked may have been done.
    swallow: Arc<AtomicBool>,
    pub swallowed: Arc<AtomicU64>,
}

/// Bytes that are replaced on their way to the server, with as many others.
type Lies = &'static [(&'static str, &'static str)];

/// Has the server run without synchronous commits, and the gateway believe that it does not.
pub const LAZY: Lies = &[
    ("synchronous_commit=on", "synchronous_commit=no"),
    ("current_setting('synchronous_commit') = 'on'", "current_setting('synchronous_commit') <>'on'"),
];

impl Proxy {
    pub async fn new(port: u16, lies: Lies) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy =
            Self { address: listener.local_addr().unwrap(), swallow: Arc::default(), swallowed: Arc::default() };
        let served = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                tokio::spawn(served.clone().carry(client, server, lies));
            }
        });
        proxy
    }

    /// The next answer is lost.
    pub fn cut(&self) {
        self.swallow.store(true, Ordering::SeqCst);
    }

    async fn carry(self, mut client: TcpStream, mut server: TcpStream, lies: Lies) {
        let (mut from_client, mut from_server) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        loop {
            tokio::select! {
                            read = client.read(&mut from_client) => match read {
                                Ok(count @ 1..) => {
                                    let bytes = &mut from_client[..count];
                                    for (told, heard) in lies {
             replace(bytes, told.as_bytes(), heard.as_bytes());
            }
                                    if server.write_all(bytes).await.is_err() {
                                        return;
                                    }
                                }
                                _ => return,
                            },
                            read = server.read(&mut from_server) => match read {
                                Ok(count @ 1..) => {
                                    if self.swallow.swap(false, Ordering::SeqCst) {
                                        self.swallowed.fetch_add(1, Ordering::SeqCst);
                                        return;
                                    }
                                    if client.write_all(&from_server[..count]).await.is_err() {
                                        return;
                                    }
                                }
                                _ => return,
                            },
                        }
        }
    }
}

fn replace(bytes: &mut [u8], told: &[u8], heard: &[u8]) {
    assert_eq!(told.len(), heard.len());
    if let Some(at) = bytes.windows(told.len()).position(|window| window == told) {
        bytes[at..at + told.len()].copy_from_slice(heard);
    }
}
