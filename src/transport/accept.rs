//! Accepts connections and shakes hands, within bounds on both, so that no stranger holds the gateway up. A
//! connection of a caller ends no later than its certificate.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::{ServerConfig, ServerConnection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::clock::{Clock as _, SystemClock};

use super::peer::Peer;

/// Handshakes under way at once, on one listener.
const HANDSHAKES_MAX: usize = 256;

/// Bounds on a listener's connections.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How many there may be.
    pub connections_max: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
}

/// A connection after its handshake.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Option<Arc<Peer>>,
    ends: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
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
    let acceptor = TlsAcceptor::from(tls);
    tokio::spawn(async move {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let Ok(handshake) = handshakes.clone().acquire_owned().await else { return };
            let socket = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((socket, _)) => socket,
                    Err(fault) => {
                        tracing::warn!(%fault, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
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
    place: OwnedSemaphorePermit,
) -> Option<Connection> {
    let _without_nodelay_it_is_slower = socket.set_nodelay(true);
    let stream = match timeout(bounds.handshake_timeout, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(fault)) => {
            tracing::info!(%fault, "a handshake failed");
            return None;
        }
        Err(_) => {
            tracing::info!("a handshake took too long");
            return None;
        }
    };
    let peer = identify(stream.get_ref().1).map(Arc::new);
    let ends = peer.as_ref().map(|peer| Box::pin(tokio::time::sleep(peer.not_after.since(SystemClock.now()))));
    Some(Connection { stream, peer, ends, _place: place })
}

impl Connected for Connection {
    type ConnectInfo = Option<Arc<Peer>>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    /// Nothing more is read once the peer's certificate has ended; to the server that is a closed connection.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(ends) = &mut self.ends
            && ends.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
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
