//! Serves HTTP routes over accepted TLS connections, with bounds on how long a request's head may take.

use std::{io, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

use crate::transport::accept::Connection;

const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A request's head is a path and a few headers.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long connections may take to end when the gateway does.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves `routes` until `stop`.
pub(super) async fn serve_https(
    mut connections: ReceiverStream<io::Result<Connection>>,
    routes: Router,
    stop: CancellationToken,
) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(16)
        .max_header_list_size(16 * 1024)
        .keep_alive_interval(Duration::from_secs(30));
    let ending = GracefulShutdown::new();
    loop {
        let connection = tokio::select! {
            () = stop.cancelled() => break,
            next = connections.next() => match next {
                Some(Ok(connection)) => connection,
                Some(Err(_)) => continue,
                None => break,
            },
        };
        let service = TowerToHyperService::new(routes.clone());
        let serving = server.serve_connection(TokioIo::new(connection), service).into_owned();
        let serving = ending.watch(serving);
        tokio::spawn(async move {
            if let Err(fault) = serving.await {
                tracing::debug!(%fault, "a connection to the JWKS ended");
            }
        });
    }
    let _late_ones_are_dropped = tokio::time::timeout(END_TIMEOUT, ending.shutdown()).await;
}
