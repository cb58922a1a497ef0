//! A collector that takes whatever comes and looks at none of it, so that nothing but the gateway is at work for it: one that decodes,
//! on the same processors, would be measured as well.

use std::{
    convert::Infallible,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request, Response,
    body::{Body as _, Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// A message of gRPC without a field: everything was taken.
const TAKEN: [u8; 5] = [0; 5];

pub struct Drain {
    pub port: u16,
    /// What came, of all signals.
    pub bytes: Arc<AtomicU64>,
}

impl Drain {
    pub async fn new() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (port, bytes) = (listener.local_addr().unwrap().port(), Arc::<AtomicU64>::default());
        let count = Arc::clone(&bytes);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let count = Arc::clone(&count);
                let take = service_fn(move |request| take(request, Arc::clone(&count)));
                tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), take));
            }
        });
        Self { port, bytes }
    }
}

async fn take(
    request: Request<Incoming>,
    count: Arc<AtomicU64>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let mut body = request.into_body();
    while !body.is_end_stream() {
        let Some(Ok(frame)) = body.frame().await else { break };
        count.fetch_add(frame.data_ref().map_or(0, Bytes::len) as u64, Ordering::Relaxed);
    }
    let well = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let body = Full::new(Bytes::from_static(&TAKEN)).with_trailers(ready(Some(Ok(well))));
    Ok(Response::builder().header(CONTENT_TYPE, "application/grpc").body(body).unwrap())
}
