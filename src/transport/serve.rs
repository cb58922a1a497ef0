//! Serves requests over accepted connections, gRPC and HTTP alike, with bounds on each. A connection that is to end is told
//! so first: its client opens another, and calls under way are finished.

use std::{
    convert::Infallible,
    error::Error,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};

use super::{accept::Connection, peer::Peer};

/// How long the head of an HTTP/1.1 request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How large the head of a request may be.
const HEAD_BYTES_MAX: u32 = 16 * 1024;
/// How often an idle connection is asked whether it lives, and how long it may take to say so.
pub const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// Streams that were reset before anybody looked at them; whoever has more is cut off (CVE-2023-44487, rapid reset).
const RESET_STREAMS_MAX: usize = 64;
/// How much of the answers to one stream may wait for a client that does not read.
const UNREAD_BYTES_MAX: usize = 64 * 1024;
/// How much earlier than a peer's certificate its connection is told to end.
const BEFORE_THE_END: Duration = Duration::from_secs(10);

/// How a listener's connections are served.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// HTTP/2 alone, as gRPC has it.
    pub http2_only: bool,
    /// How many requests one connection may have under way.
    pub streams_max: u32,
    /// How old a connection may be.
    pub age_max: Duration,
    /// How long its last calls may take.
    pub last_calls: Duration,
}

/// That the connection of a request is about to end: what lasts longer than a call ends itself then.
#[derive(Debug, Clone)]
pub struct Retiring(pub CancellationToken);

/// Serves `routes` until no connection comes any more and the last call of each has ended, which each is told at `stop`. Dropping
/// it cuts them off.
pub async fn serve<S, B>(mut connections: mpsc::Receiver<Connection>, routes: S, terms: Terms, stop: CancellationToken)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let server = Arc::new(server(terms));
    let ages = RandomState::new();
    let mut served = JoinSet::new();
    for id in 0_u64.. {
        // None comes any more once it was stopped and the handshakes that were under way have ended. Over HTTP/2 alone, whoever was let
        // in meanwhile is told of the end as everyone is, and what it sent is answered.
        let Some(connection) = connections.recv().await else { break };
        while served.try_join_next().is_some() {}
        let retires = retires(&connection, terms.age_max, ages.hash_one(id));
        served.spawn(one(server.clone(), connection, routes.clone(), retires, terms.last_calls, stop.clone()));
    }
    while served.join_next().await.is_some() {}
}

/// When a connection is told to end: by its age, a tenth of which is left to chance, or a while before its peer's certificate.
fn retires(connection: &Connection, age_max: Duration, chance: u64) -> Instant {
    let now = Instant::now();
    let early = age_max.div_f64(10.0).mul_f64(f64::from(u8::try_from(chance % 256).unwrap_or_default()) / 256.0);
    let aged = now + age_max.saturating_sub(early);
    connection.ends().map_or(aged, |ends| {
        let left = ends.saturating_duration_since(now);
        aged.min(now + left.saturating_sub(BEFORE_THE_END.min(left / 10)))
    })
}

fn server(terms: Terms) -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    if terms.http2_only {
        server = server.http2_only();
    }
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX as usize);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(terms.streams_max)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_send_buf_size(UNREAD_BYTES_MAX)
        .keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1);
    server
}

async fn one<S, B>(
    server: Arc<auto::Builder<TokioExecutor>>,
    connection: Connection,
    routes: S,
    retires: Instant,
    last_calls: Duration,
    stop: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (peer, retiring) = (connection.peer(), CancellationToken::new());
    let service = hyper::service::service_fn({
        let (peer, retiring) = (peer.clone(), Retiring(retiring.clone()));
        move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            request.extensions_mut().insert(retiring.clone());
            routes.clone().oneshot(request)
        }
    });
    let mut serving = std::pin::pin!(server.serve_connection(TokioIo::new(connection), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => Some(ended),
        () = sleep_until(retires) => None,
        () = stop.cancelled() => None,
        () = distrusted(peer.as_deref()) => None,
    };
    let ended = if let Some(ended) = ended {
        ended
    } else {
        retiring.cancel();
        serving.as_mut().graceful_shutdown();
        let Ok(ended) = timeout(last_calls, serving).await else {
            return tracing::debug!("a connection was cut off with calls under way");
        };
        ended
    };
    if let Err(fault) = ended {
        tracing::debug!(%fault, "a connection ended");
    }
}

/// Waits until the peer is not accepted any more; for ever where clients show no certificate.
async fn distrusted(peer: Option<&Peer>) {
    match peer {
        Some(peer) => peer.distrusted().await,
        None => std::future::pending().await,
    }
}
