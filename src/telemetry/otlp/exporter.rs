//! One request to a collector and what its answer means, by the OTLP specification 1.x: what may be sent again, what was too
//! large, what it will never take. No answer in time means that it may have been taken.

use std::{
    error::Error as _,
    fmt, io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceResponse,
    metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse},
    trace::v1::ExportTraceServiceResponse,
};
use prost::Message as _;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Mutex,
};
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Status,
    body::Body,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    metadata::MetadataMap,
    transport::{self, Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;
use tower::{Service, service_fn};

use super::{headers::Headers, written::Written};
use crate::outgoing::Outgoing;

/// What a collector's answer means for what was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Taken but for so many records, of which it does not tell which they are.
    Taken {
        /// How many it would not take.
        rejected: u64,
        /// What it said of them.
        why: String,
    },
    /// It is more than it takes at once.
    TooLarge(String),
    /// It will not take this, however often it is sent.
    Bad(String),
    /// It takes nothing of us as things are: credentials, or no such service.
    Denied(String),
    /// It may take it later, and may have taken it.
    Later {
        /// When to send it again, where it said so.
        after: Option<Duration>,
        /// What is known.
        why: String,
    },
}

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP with binary Protobuf.
    HttpProtobuf,
}

/// A collector.
pub struct Exporter {
    transport: Transport,
    headers: Arc<Headers>,
    timeout: Duration,
}

enum Transport {
    Grpc(Channel),
    Http { base: Uri, dialer: Dialer, kept: Mutex<Option<http1::SendRequest<Written>>> },
}

/// No answer of a collector is larger.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Exporter {
    /// A collector at `endpoint`, which is reached when something is sent. `tls` is for one at an https:// address.
    #[must_use]
    pub fn new(
        protocol: Protocol,
        endpoint: &Uri,
        tls: Option<Arc<Outgoing>>,
        headers: Headers,
        timeout: Duration,
    ) -> Self {
        let dialer = Dialer { tls };
        let transport = match protocol {
            Protocol::Grpc => {
                let target = Endpoint::from(endpoint.clone()).connect_timeout(CONNECT_TIMEOUT);
                let target =
                    target.http2_keep_alive_interval(Duration::from_secs(30)).keep_alive_timeout(CONNECT_TIMEOUT);
                let connect = service_fn(move |uri: Uri| {
                    let dialer = dialer.clone();
                    async move { dialer.dial(&uri).await.map(TokioIo::new) }
                });
                Transport::Grpc(target.connect_with_connector_lazy(connect))
            }
            Protocol::HttpProtobuf => Transport::Http { base: endpoint.clone(), dialer, kept: Mutex::default() },
        };
        Self { transport, headers: Arc::new(headers), timeout }
    }

    /// Sends an `ExportLogsServiceRequest` that is written already, part by part, once.
    pub async fn logs(&self, request: [Bytes; 2]) -> Answer {
        self.send::<ExportLogsServiceResponse>(Signal::Logs, request.into()).await.map_or_else(|answer| answer, taken)
    }

    /// Sends an `ExportTraceServiceRequest` likewise. What a collector rejects of it is its own affair.
    pub async fn spans(&self, request: [Bytes; 2]) -> Result<(), Answer> {
        self.send::<ExportTraceServiceResponse>(Signal::Traces, request.into()).await.map(drop)
    }

    /// Sends metrics, once.
    pub async fn metrics(&self, request: &ExportMetricsServiceRequest) -> Result<(), Answer> {
        self.send::<ExportMetricsServiceResponse>(Signal::Metrics, request.encode_to_vec().into()).await.map(drop)
    }

    async fn send<R>(&self, signal: Signal, request: Written) -> Result<R, Answer>
    where
        R: prost::Message + Default + 'static,
    {
        let sent = async {
            match &self.transport {
                Transport::Grpc(channel) => self.over_grpc::<R>(signal, channel.clone(), request).await,
                Transport::Http { base, dialer, kept } => self.over_http(signal, base, dialer, kept, request).await,
            }
        };
        let late = |_| Err(Answer::Later { after: None, why: format!("no answer in {:?}", self.timeout) });
        let answered = tokio::time::timeout(self.timeout, sent).await.unwrap_or_else(late);
        if let Err(Answer::Denied(_)) = &answered {
            // Its token may have been exchanged.
            let headers = Arc::clone(&self.headers);
            let read = tokio::task::spawn_blocking(move || headers.again()).await;
            if let Ok(Err(fault)) = read {
                tracing::warn!(fault, "the headers stay as they were");
            }
        }
        answered
    }

    async fn over_grpc<R>(&self, signal: Signal, channel: Channel, request: Written) -> Result<R, Answer>
    where
        R: prost::Message + Default + 'static,
    {
        let mut client = Grpc::new(InItsPlace { channel, written: Some(request.into_message()) });
        client.ready().await.map_err(|fault| later(&fault))?;
        let mut request = tonic::Request::new(());
        *request.metadata_mut() = MetadataMap::from_headers(self.headers.get());
        let path = PathAndQuery::from_static(signal.method());
        let answered = client.unary(request, path, ProstCodec::<(), R>::default()).await;
        answered.map(tonic::Response::into_inner).map_err(|status| of_status(&status))
    }

    async fn over_http<R: prost::Message + Default>(
        &self,
        signal: Signal,
        base: &Uri,
        dialer: &Dialer,
        kept: &Mutex<Option<http1::SendRequest<Written>>>,
        request: Written,
    ) -> Result<R, Answer> {
        let mut kept = kept.lock().await;
        let answered = async {
            let mut sender = match kept.take().filter(|kept| !kept.is_closed()) {
                Some(sender) => sender,
                None => dialer.http1(base).await?,
            };
            sender.ready().await?;
            let response = sender.send_request(self.http_request(signal, base, request)?).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
            *kept = Some(sender);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((head, body))
        };
        match answered.await {
            Ok((head, body)) if head.status == StatusCode::OK && is_protobuf(&head.headers) => {
                R::decode(body).map_err(|_| Answer::Later { after: None, why: "the answer cannot be read".to_owned() })
            }
            Ok((head, _)) => Err(of_http(head.status, &head.headers)),
            Err(fault) => Err(later(&*fault)),
        }
    }

    fn http_request(&self, signal: Signal, base: &Uri, request: Written) -> http::Result<Request<Written>> {
        let path = format!("{}{}", base.path().trim_end_matches('/'), signal.path());
        let authority = base.authority().map(ToString::to_string).unwrap_or_default();
        let mut built = Request::post(path)
            .header(header::HOST, authority)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .body(request)?;
        built.headers_mut().extend(self.headers.get());
        Ok(built)
    }
}

/// Sends what is written already in the place of an empty message: tonic itself would write it once more.
struct InItsPlace {
    channel: Channel,
    written: Option<Written>,
}

impl Service<Request<Body>> for InItsPlace {
    type Response = Response<Body>;
    type Error = transport::Error;
    type Future = <Channel as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // There is one call. A second would have a body that is no message, which nobody takes.
        let written = self.written.take().unwrap_or_default();
        self.channel.call(request.map(|_empty| Body::new(written)))
    }
}

/// What is sent.
#[derive(Debug, Clone, Copy)]
enum Signal {
    Logs,
    Traces,
    Metrics,
}

impl Signal {
    fn method(self) -> &'static str {
        match self {
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Logs => "/v1/logs",
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
        }
    }
}

/// Whether an answer is one of this protocol: anything else that says OK has taken nothing.
fn is_protobuf(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim() == "application/x-protobuf")
}

fn later(fault: &(dyn std::error::Error + 'static)) -> Answer {
    let mut fault: &dyn std::error::Error = fault;
    while let Some(cause) = fault.source() {
        fault = cause;
    }
    Answer::Later { after: None, why: fault.to_string() }
}

fn taken(response: ExportLogsServiceResponse) -> Answer {
    let partial = response.partial_success.unwrap_or_default();
    // A collector that counts below zero has taken everything.
    let rejected = u64::try_from(partial.rejected_log_records).unwrap_or_default();
    Answer::Taken { rejected, why: told(&partial.error_message) }
}

fn of_status(status: &Status) -> Answer {
    // One with a cause is no answer: the connection broke, and the code is a guess at why.
    if let Some(cause) = status.source() {
        return later(cause);
    }
    let why = told(&format!("{:?}: {}", status.code(), status.message()));
    let after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    match status.code() {
        Code::ResourceExhausted if after.is_none() => Answer::TooLarge(why),
        Code::OutOfRange => Answer::TooLarge(why),
        Code::InvalidArgument | Code::Internal | Code::Unknown | Code::DataLoss | Code::FailedPrecondition => {
            Answer::Bad(why)
        }
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::NotFound => Answer::Denied(why),
        _ => Answer::Later { after, why },
    }
}

fn of_http(status: StatusCode, headers: &HeaderMap) -> Answer {
    let after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let why = status.to_string();
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => Answer::TooLarge(why),
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::INTERNAL_SERVER_ERROR => {
            Answer::Bad(why)
        }
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::REQUEST_TIMEOUT
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Answer::Later { after: after.map(Duration::from_secs), why },
        _ => Answer::Denied(why),
    }
}

/// What a collector said, of bounded length and in one line.
fn told(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(200).collect()
}

/// How a connection is made.
#[derive(Clone)]
struct Dialer {
    tls: Option<Arc<Outgoing>>,
}

impl Dialer {
    async fn dial(&self, uri: &Uri) -> io::Result<Box<dyn Stream>> {
        let host = uri.host().ok_or_else(|| io::Error::other("the address has no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let socket = TcpStream::connect((host.as_str(), port)).await?;
        socket.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(socket)) };
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let tls = Arc::clone(tls);
        let settings = tokio::task::spawn_blocking(move || tls.now()).await?;
        Ok(Box::new(TlsConnector::from(settings).connect(name, socket).await?))
    }

    async fn http1(&self, base: &Uri) -> Result<http1::SendRequest<Written>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, self.dial(base)).await??;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// A connection.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exporter")
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tonic_types::ErrorDetails;

    use super::*;

    /// What is made of a collector that is sent a request and says this frame of HTTP/2, if any, and no more.
    async fn cut_off_with(frame: &[u8]) -> Answer {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint: Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Settings, and those of the client, which has no more to say before its request.
            stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            let (mut came, mut room) = (0, [0; 4096]);
            while came < 150 {
                came += stream.read(&mut room).await.unwrap();
            }
            stream.write_all(frame).await.unwrap();
            // It is read before the connection is closed.
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let timeout = Duration::from_secs(5);
        let exporter = Exporter::new(Protocol::Grpc, &endpoint, None, Headers::default(), timeout);
        let (answer, ()) = tokio::join!(exporter.logs([Bytes::new(), Bytes::new()]), serve);
        answer
    }

    #[tokio::test]
    async fn a_connection_that_breaks_says_nothing_of_what_was_sent() {
        let reset = |code| [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, code];
        let go_away = |code| [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, code];
        // Of the codes of HTTP/2 each that gRPC makes another code of, and an end without one.
        let resets = [1, 2, 3, 7, 8, 11, 12].map(reset).map(Vec::from);
        for frame in resets.into_iter().chain([1, 2, 11].map(go_away).map(Vec::from)).chain([Vec::new()]) {
            let answer = cut_off_with(&frame).await;
            let Answer::Later { why, .. } = answer else { panic!("{frame:?}: {answer:?}") };
            assert!(!why.contains("no answer"), "{frame:?}: {why}");
        }
    }

    #[test]
    fn what_may_be_sent_again_is_told_from_what_may_not() {
        let of = |code| of_status(&Status::new(code, "x"));
        assert!(matches!(of(Code::ResourceExhausted), Answer::TooLarge(_)));
        assert!(matches!(of(Code::OutOfRange), Answer::TooLarge(_)));
        assert!(matches!(of(Code::InvalidArgument), Answer::Bad(_)));
        assert!(matches!(of(Code::Unauthenticated), Answer::Denied(_)));
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Aborted] {
            assert!(matches!(of(code), Answer::Later { after: None, .. }));
        }
        let wait = Duration::from_millis(700);
        let details = ErrorDetails::with_retry_info(Some(wait));
        let busy = Status::with_error_details(Code::ResourceExhausted, "x", details);
        assert!(matches!(of_status(&busy), Answer::Later { after: Some(after), .. } if after == wait));
        let http = |status: u16, after: &'static str| {
            let headers = [(header::RETRY_AFTER, http::HeaderValue::from_static(after))].into_iter().collect();
            of_http(StatusCode::from_u16(status).unwrap(), &headers)
        };
        let wait = Duration::from_secs(3);
        assert!(matches!(http(429, "3"), Answer::Later { after: Some(after), .. } if after == wait));
        assert!(matches!(http(503, "Fri, 31 Dec 1999"), Answer::Later { after: None, .. }));
        assert!(matches!(
            (http(413, ""), http(400, ""), http(401, "")),
            (Answer::TooLarge(_), Answer::Bad(_), Answer::Denied(_))
        ));
        assert_eq!(taken(ExportLogsServiceResponse::default()), Answer::Taken { rejected: 0, why: String::new() });
    }
}
