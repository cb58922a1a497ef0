//! Accepts connections and shakes hands, within bounds on both, so that no stranger holds the gateway up: a connection has a
//! place only once its handshake is done, and where too many handshakes are under way, the oldest gives way of whoever has more
//! than a share, else the oldest of all. A connection of a caller ends no later than its certificate.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::AbortHandle,
    time::{Instant, Sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock as _, SystemClock},
    telemetry::{Metrics, Share},
};

use super::{live::Live, peer::Peer};

/// Handshakes under way at once, on one listener.
const HANDSHAKES_MAX: usize = 256;
/// So many of them one address may have while there are too many.
const HANDSHAKES_SHARE: usize = HANDSHAKES_MAX / 16;

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

/// Where a listener counts the connections that come to nothing.
#[derive(Clone)]
pub struct Counts {
    /// The listener's name.
    pub front: &'static str,
    /// All metrics.
    pub metrics: Arc<Metrics>,
}

/// What a listener speaks.
#[derive(Clone)]
pub enum Protocol {
    /// Mutual TLS, with the SPIFFE trust domain of its callers.
    Mutual(Arc<Live>, Option<String>),
    /// TLS for anyone.
    Public(Arc<Live>),
    /// No TLS: loopback, or a pod's own network.
    Plain,
}

/// A connection after its handshake.
pub struct Connection {
    stream: Stream,
    peer: Option<Arc<Peer>>,
    ends: Option<Pin<Box<Sleep>>>,
    silent: Pin<Box<Sleep>>,
    idle_max: Duration,
    _place: Place,
}

enum Stream {
    Tls(Box<TlsStream<TcpStream>>),
    Plain(TcpStream),
}

/// A place among the connections of a listener and of its address; dropping it gives both back.
struct Place {
    holder: IpAddr,
    addresses: Arc<Addresses>,
    _permit: OwnedSemaphorePermit,
}

/// How many connections each address holds, by [`whose`] it is.
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
        if let Some(count) = held.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.holder);
            }
        }
    }
}

/// Handshakes under way, oldest first, each with whose it is.
#[derive(Default)]
struct Handshakes(Mutex<BTreeMap<u64, (IpAddr, AbortHandle)>>);

/// The oldest handshake of whoever has the most, where that is more than a share: so one address crowds itself out. Else the oldest
/// of all: those who reconnect from behind one address have more than an attacker has of each of many, and finish theirs.
fn to_give_way(under_way: &BTreeMap<u64, (IpAddr, AbortHandle)>) -> Option<u64> {
    let mut held: HashMap<IpAddr, (usize, Reverse<u64>)> = HashMap::new();
    for (id, (address, _)) in under_way {
        held.entry(*address).or_insert((0, Reverse(*id))).0 += 1;
    }
    let most = held.into_values().max().filter(|(count, _)| *count > HANDSHAKES_SHARE);
    most.map(|(_, Reverse(oldest))| oldest).or_else(|| under_way.first_key_value().map(|(id, _)| *id))
}

/// Whose connections come from an address: a network of IPv6 is given to one, who has all of its addresses.
fn whose(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Handshakes {
    /// Begins one. Where there are too many, [`to_give_way`] says which ends.
    fn begin(self: &Arc<Self>, id: u64, address: IpAddr, handshake: impl Future<Output = ()> + Send + 'static) {
        // Its end waits for this lock, so that it is never taken out before it was put in.
        let mut under_way = self.0.lock();
        if under_way.len() >= HANDSHAKES_MAX
            && let Some((_, gives_way)) = to_give_way(&under_way).and_then(|id| under_way.remove(&id))
        {
            gives_way.abort();
        }
        let handshakes = Arc::clone(self);
        let task = tokio::spawn(async move {
            handshake.await;
            handshakes.0.lock().remove(&id);
        });
        under_way.insert(id, (address, task.abort_handle()));
    }
}

/// What every handshake of a listener needs.
struct Door {
    protocol: Protocol,
    bounds: Bounds,
    places: Arc<Semaphore>,
    addresses: Arc<Addresses>,
    counts: Counts,
    lines: Arc<Share>,
    ready: mpsc::Sender<Connection>,
}

/// Accepts until `stop`, and ends with the handshakes that are under way then. Whoever fails the handshake is dropped without an
/// answer beyond the TLS alert.
pub fn accept(
    listener: TcpListener,
    protocol: Protocol,
    bounds: Bounds,
    counts: Counts,
    stop: CancellationToken,
) -> mpsc::Receiver<Connection> {
    let (ready, connections) = mpsc::channel(1);
    let places = Arc::new(Semaphore::new(bounds.connections_max));
    let door =
        Arc::new(Door { protocol, bounds, places, addresses: Arc::default(), counts, lines: Arc::default(), ready });
    let handshakes = Arc::new(Handshakes::default());
    tokio::spawn(async move {
        for id in 0.. {
            let (socket, address) = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((socket, from)) => (socket, from.ip().to_canonical()),
                    Err(fault) => {
                        tracing::warn!(%fault, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let door = door.clone();
            handshakes.begin(id, whose(address), async move { door.let_in(socket, address).await });
        }
    });
    connections
}

impl Door {
    async fn let_in(&self, socket: TcpStream, address: IpAddr) {
        let _without_nodelay_it_is_slower = socket.set_nodelay(true);
        let (stream, peer) = match timeout(self.bounds.handshake_timeout, self.shake(socket)).await {
            Ok(Ok(shaken)) => shaken,
            Ok(Err(fault)) => return self.turned_away(address, kind(&fault), &format!("a handshake failed: {fault}")),
            Err(_) => return self.turned_away(address, "timeout", "a handshake took too long"),
        };
        let Ok(permit) = self.places.clone().try_acquire_owned() else {
            return self.turned_away(address, "no_room", "the listener holds as many connections as it may");
        };
        let holder = whose(address);
        if !self.addresses.enter(holder, self.bounds.connections_per_address_max) {
            return self.turned_away(address, "no_room", "an address holds as many connections as it may");
        }
        let place = Place { holder, addresses: self.addresses.clone(), _permit: permit };
        let ends = peer.as_ref().map(|peer| Box::pin(tokio::time::sleep(life(peer))));
        let silent = Box::pin(tokio::time::sleep(self.bounds.handshake_timeout));
        let connection = Connection { stream, peer, ends, silent, idle_max: self.bounds.idle_max, _place: place };
        let _gone_when_stopped = self.ready.send(connection).await;
    }

    /// Counts and tells a connection that comes to nothing. Anybody can make as many of them as he likes.
    fn turned_away(&self, address: IpAddr, kind: &'static str, why: &str) {
        self.counts.metrics.connection_refused(self.counts.front, kind);
        self.lines.tell(
            || tracing::info!(%address, why, "a connection was turned away"),
            |connections| tracing::info!(connections, "connections that were turned away without a line of their own"),
        );
    }

    async fn shake(&self, socket: TcpStream) -> io::Result<(Stream, Option<Arc<Peer>>)> {
        let (live, trust_domain) = match &self.protocol {
            Protocol::Plain => return Ok((Stream::Plain(socket), None)),
            Protocol::Public(live) => (live, None),
            Protocol::Mutual(live, trust_domain) => (live, Some(trust_domain.as_deref())),
        };
        // Before the settings are taken: what is swapped in between is asked for again.
        let swaps = live.swaps();
        let stream = TlsAcceptor::from(live.settings().server.clone()).accept(socket).await?;
        let peer = trust_domain.and_then(|domain| {
            let chain = stream.get_ref().1.peer_certificates()?;
            Peer::of(chain, domain, live.clone(), swaps)
        });
        Ok((Stream::Tls(Box::new(stream)), peer.map(Arc::new)))
    }
}

/// In which way a handshake failed: of a peer without a certificate, or with one that counts for nothing, somebody is to know.
fn kind(fault: &io::Error) -> &'static str {
    match fault.get_ref().and_then(|fault| fault.downcast_ref()) {
        Some(rustls::Error::NoCertificatesPresented) => "no_certificate",
        Some(rustls::Error::InvalidCertificate(_)) => "bad_certificate",
        _ => "handshake",
    }
}

/// As long as the peer's certificate; one that names no caller has time to read why, and no more.
fn life(peer: &Peer) -> Duration {
    let life = peer.not_after.since(SystemClock.now());
    if peer.caller().is_ok() { life } else { life.min(UNIDENTIFIED_LIFE) }
}

impl Connection {
    /// Who is at its other end; nobody where clients show no certificate.
    #[must_use]
    pub fn peer(&self) -> Option<Arc<Peer>> {
        self.peer.clone()
    }

    /// When it ends at the latest, where its peer's certificate says so.
    #[must_use]
    pub fn ends(&self) -> Option<Instant> {
        self.ends.as_ref().map(|ends| ends.deadline())
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
        let read = match &mut self.stream {
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        match read {
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
        match &mut self.stream {
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_has_more_than_a_share_gives_way_and_else_the_oldest() {
        let task = || tokio::spawn(async {}).abort_handle();
        let [few, many]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse().unwrap());
        let of = |addresses: &[IpAddr]| {
            let all = addresses.iter().enumerate().map(|(id, address)| (id as u64, (*address, task())));
            to_give_way(&all.collect())
        };
        let share = vec![many; HANDSHAKES_SHARE];
        assert_eq!(of(&[&[few][..], &share, &[many]].concat()), Some(1), "one crowds itself out");
        assert_eq!(of(&[&[few][..], &share].concat()), Some(0), "and is let be within its share");
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_one_of_ipv4_is_itself() {
        let of = |address: &str| whose(address.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
    }
}
