//! Accepts connections and shakes hands, within bounds on both, so that no stranger holds the gateway up. A
//! connection of a caller ends no later than its certificate.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use rustls::{ServerConfig, ServerConnection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, Sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::clock::{Clock as _, SystemClock};

use super::peer::Peer;

/// Handshakes under way at once, on one listener.
const HANDSHAKES_MAX: usize = 256;

/// How long a peer that names no caller may stay.
const UNIDENTIFIED_LIFE: Duration = Duration::from_secs(5);

/// Bounds on a listener's connections.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How many there may be.
    pub connections_max: usize,
    /// How many there may be from one address.
    pub connections_per_address_max: usize,
    /// How long a handshake may take, and after it the first bytes of a request.
    pub handshake_timeout: Duration,
    /// How long a connection may be silent.
    pub idle_max: Duration,
}

/// A connection after its handshake.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Option<Arc<Peer>>,
    ends: Option<Pin<Box<Sleep>>>,
    silent: Pin<Box<Sleep>>,
    idle_max: Duration,
    _place: Place,
}

/// A place among the connections of a listener and of its address; dropping it gives both back.
struct Place {
    address: IpAddr,
    addresses: Arc<Addresses>,
    _permit: OwnedSemaphorePermit,
}

/// How many connections each address holds.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

impl Addresses {
    fn enter(&self, address: IpAddr, most: usize) -> bool {
        let mut held = self.0.lock();
        let count = held.entry(address).or_default();
        let fits = *count < most;
        *count += usize::from(fits);
        fits
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.addresses.0.lock();
        if let Some(count) = held.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.address);
            }
        }
    }
}

/// Reads the peer of a finished handshake; absent on a listener without client certificates.
pub type Identify = Arc<dyn Fn(&ServerConnection) -> Option<Peer> + Send + Sync>;

/// Accepts until `stop`. Whoever fails the handshake is dropped without an answer beyond the TLS alert.
pub fn accept(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    identify: Identify,
    bounds: Bounds,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(1);
    let places = Arc::new(Semaphore::new(bounds.connections_max));
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let addresses = Arc::new(Addresses::default());
    let acceptor = TlsAcceptor::from(tls);
    tokio::spawn(async move {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let Ok(handshake) = handshakes.clone().acquire_owned().await else { return };
            let (socket, address) = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((socket, from)) => (socket, from.ip()),
                    Err(fault) => {
                        tracing::warn!(%fault, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            if !addresses.enter(address, bounds.connections_per_address_max) {
                tracing::info!(%address, "an address holds as many connections as it may");
                continue;
            }
            let place = Place { address, addresses: addresses.clone(), _permit: place };
            let (acceptor, identify, ready) = (acceptor.clone(), identify.clone(), ready.clone());
            tokio::spawn(async move {
                if let Some(connection) = shake(socket, acceptor, &identify, bounds, place).await {
                    drop(handshake);
                    let _gone_when_stopped = ready.send(Ok(connection)).await;
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

async fn shake(
    socket: TcpStream,
    acceptor: TlsAcceptor,
    identify: &Identify,
    bounds: Bounds,
    place: Place,
) -> Option<Connection> {
    let _without_nodelay_it_is_slower = socket.set_nodelay(true);
    let stream = match timeout(bounds.handshake_timeout, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(fault)) => {
            tracing::info!(address = %place.address, %fault, "a handshake failed");
            return None;
        }
        Err(_) => {
            tracing::info!(address = %place.address, "a handshake took too long");
            return None;
        }
    };
    let peer = identify(stream.get_ref().1).map(Arc::new);
    let ends = peer.as_ref().map(|peer| Box::pin(tokio::time::sleep(life(peer))));
    let silent = Box::pin(tokio::time::sleep(bounds.handshake_timeout));
    Some(Connection { stream, peer, ends, silent, idle_max: bounds.idle_max, _place: place })
}

/// As long as the peer's certificate; one that names no caller has time to read why, and no more.
fn life(peer: &Peer) -> Duration {
    let life = peer.not_after.since(SystemClock.now());
    if peer.caller.is_ok() { life } else { life.min(UNIDENTIFIED_LIFE) }
}

impl Connected for Connection {
    type ConnectInfo = Option<Arc<Peer>>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    /// Nothing more is read once the peer's certificate has ended or it was silent for too long; to the server that
    /// is a closed connection. Live clients answer keepalives, so they are never silent.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(ends) = &mut self.ends
            && ends.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Ok(()));
        }
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(read) => {
                let wait = self.idle_max;
                self.silent.as_mut().reset(Instant::now() + wait);
                Poll::Ready(read)
            }
            Poll::Pending if self.silent.as_mut().poll(cx).is_ready() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
