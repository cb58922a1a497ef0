//! The edge of every gRPC call: correlation id, deadline, panics, and one access-log line.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio_util::task::TaskTracker;
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;
use tower::{Layer, Service};
use tracing::Instrument as _;

use crate::{
    call::{Course, Parent, Subject, Trace},
    clock::{Clock as _, SystemClock},
    domain::{CorrelationId, Environment, PartnerId, QuoteId},
    proto::Reason,
    service::{access, status},
    telemetry::{Metrics, Tracer, otlp::spans::Ended},
};

use super::peer::{Peer, Unidentified};

/// The header that joins a call's log lines, records and answers.
pub const CORRELATION: &str = "x-correlation-id";
const TIMEOUT: &str = "grpc-timeout";
/// The header of W3C Trace Context, and the one that answers it.
const PARENT: &str = "traceparent";
const RESPONSE: &str = "traceresponse";

/// What the edge tells a service method.
#[derive(Debug, Clone)]
pub struct Edge {
    /// As sent where well formed, else made here.
    pub correlation_id: CorrelationId,
    /// When the caller ceases to wait.
    pub deadline: Instant,
    /// What the method learns of what the call is about.
    pub subject: Arc<OnceLock<Subject>>,
    /// When the stages of the call ran.
    pub course: Arc<Course>,
    /// The call's place in a trace, where it has one.
    pub trace: Option<Trace>,
}

/// Puts the edge around a server's services.
#[derive(Clone)]
pub struct EdgeLayer {
    /// Where this is, for the log.
    pub environment: Environment,
    /// The longest a call may take, and what a call without a deadline gets.
    pub deadline_max: Duration,
    /// Where calls are counted.
    pub metrics: Arc<Metrics>,
    /// Calls whose answer is not made yet; a drain waits for them.
    pub calls: TaskTracker,
    /// Where recorded calls go.
    pub tracer: Arc<Tracer>,
}

impl<S> Layer<S> for EdgeLayer {
    type Service = EdgeService<S>;

    fn layer(&self, inner: S) -> EdgeService<S> {
        EdgeService { inner, layer: self.clone() }
    }
}

/// See [`EdgeLayer`].
#[derive(Clone)]
pub struct EdgeService<S> {
    inner: S,
    layer: EdgeLayer,
}

impl<S> Service<Request<Body>> for EdgeService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let started = Instant::now();
        let correlation_id = correlation_id(request.headers());
        let wait = timeout(request.headers_mut(), self.layer.deadline_max);
        let why = unidentified(&request).map(ToString::to_string);
        // Nobody's traces are gone on with.
        let trace = if why.is_none() { self.layer.tracer.begin(parent(request.headers())) } else { None };
        let course = Arc::new(Course::new(started));
        let edge = Edge { correlation_id, deadline: started + wait, subject: Arc::default(), course, trace };
        let line = AccessLine::of(&request, &edge, &self.layer);
        request.extensions_mut().insert(edge);
        if let Some(why) = why {
            let response = status::plain(Reason::CallerUnidentified, why).into_http();
            return Box::pin(async move { Ok(line.end(response)) });
        }
        // As severe as can be: a filter that lets a line through lets it through with the id.
        let call = tracing::error_span!("call", correlation_id = %line.correlation_id);
        let answer = AssertUnwindSafe(tokio::time::timeout(wait, self.inner.call(request))).catch_unwind();
        let under_way = self.layer.calls.token();
        let answered = async move {
            let response = match answer.await {
                Ok(Ok(Ok(response))) => response,
                Ok(Err(_)) => deadline_exceeded(),
                Err(_) => {
                    status::plain(Reason::Internal, "a fault of the gateway; make the same call again").into_http()
                }
            };
            drop(under_way);
            Ok(line.end(with_reason(response)))
        };
        Box::pin(answered.instrument(call))
    }
}

/// Why the peer is nobody, where it is. It gets no service at all, health and reflection included.
fn unidentified(request: &Request<Body>) -> Option<&Unidentified> {
    let peer = request.extensions().get::<Option<Arc<Peer>>>()?.as_ref()?;
    peer.caller.as_ref().err()
}

fn deadline_exceeded() -> Response<Body> {
    status::plain(Reason::DeadlineExceeded, "the call's deadline passed; make the same call again").into_http()
}

/// The server below refuses messages that are too large or that it cannot read, and knows no reasons.
fn with_reason(response: Response<Body>) -> Response<Body> {
    let Some(refused) = Status::from_header_map(response.headers()) else { return response };
    let why = match refused.code() {
        Code::OutOfRange => "the request is larger than the gateway takes",
        Code::Internal if refused.get_details_error_info().is_none() => "the request is no message of this method",
        _ => return response,
    };
    status::plain(Reason::InvalidRequest, why).into_http()
}

/// The correlation id that was sent, where it is well formed; else one that is made here.
#[must_use]
pub fn correlation_id(headers: &HeaderMap) -> CorrelationId {
    let sent = headers.get(CORRELATION).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    sent.unwrap_or_else(CorrelationId::made)
}

/// What the caller says of its trace.
fn parent(headers: &HeaderMap) -> Option<Parent> {
    Parent::parse(headers.get(PARENT)?.to_str().ok()?)
}

/// Takes `grpc-timeout` out of the headers, since the server below would answer it as CANCELLED.
fn timeout(headers: &mut HeaderMap, most: Duration) -> Duration {
    let sent = headers.remove(TIMEOUT);
    sent.and_then(|value| value.to_str().ok().and_then(grpc_timeout)).map_or(most, |sent| sent.min(most))
}

/// At most eight digits and a unit, as the gRPC protocol has it.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

struct AccessLine {
    method: &'static str,
    caller: String,
    correlation_id: CorrelationId,
    subject: Arc<OnceLock<Subject>>,
    course: Arc<Course>,
    trace: Option<Trace>,
    layer: EdgeLayer,
}

impl AccessLine {
    fn of(request: &Request<Body>, edge: &Edge, layer: &EdgeLayer) -> Self {
        let peer = request.extensions().get::<Option<Arc<Peer>>>().and_then(Option::as_ref);
        let caller = match peer.map(|peer| &peer.caller) {
            Some(Ok(caller)) => caller.to_string(),
            _ => "unidentified".to_owned(),
        };
        let method = access::known(request.uri().path()).unwrap_or("unknown");
        let Edge { correlation_id, subject, course, trace, .. } = edge.clone();
        Self { method, caller, correlation_id, subject, course, trace, layer: layer.clone() }
    }

    /// Echoes the correlation id and writes the line.
    fn end(self, mut response: Response<Body>) -> Response<Body> {
        if let Some(trace) = &self.trace
            && let Ok(value) = HeaderValue::from_str(&trace.response())
        {
            response.headers_mut().insert(RESPONSE, value);
        }
        if let Ok(value) = HeaderValue::from_str(self.correlation_id.as_str()) {
            response.headers_mut().insert(CORRELATION, value);
        }
        self.write(&response);
        response
    }

    fn write(self, response: &Response<Body>) {
        let status = Status::from_header_map(response.headers());
        let code = status.as_ref().map_or(Code::Ok, Status::code);
        let info = status.and_then(|status| status.get_details_error_info());
        let reason = info.as_ref().map_or("", |info| info.reason.as_str());
        let took = self.course.started().elapsed();
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let subject = self.subject.get();
        self.layer.metrics.call(self.method, code, reason, took);
        self.layer.metrics.stages(&self.course);
        tracing::info!(
            method = self.method,
            caller = self.caller,
            correlation_id = %self.correlation_id,
            status = ?code,
            reason,
            partner = subject.and_then(|subject| subject.partner.as_ref()).map(PartnerId::as_str),
            quote_id = subject.and_then(|subject| subject.quote_id.as_ref()).map(QuoteId::as_str),
            environment = self.layer.environment.as_str(),
            version = env!("CARGO_PKG_VERSION"),
            micros,
            trace_id = self.trace.as_ref().map(|trace| hex::encode(trace.trace_id)),
            "call"
        );
        if let Some(trace) = self.trace.filter(|trace| trace.is_sampled) {
            self.layer.tracer.ended(Ended {
                trace,
                stage_ids: self.layer.tracer.ids(),
                method: self.method,
                correlation_id: self.correlation_id,
                began: SystemClock.now().minus(took),
                took,
                course: self.course,
                code,
                reason: reason.to_owned(),
                subject: self.subject.get().cloned(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_has_them() {
        assert_eq!(grpc_timeout("1S"), Some(Duration::from_secs(1)));
        assert_eq!(grpc_timeout("99999999H"), Some(Duration::from_hours(99_999_999)));
        for bad in ["", "S", "1", "1s", "-1S", "123456789S", "1 S", "١S"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
