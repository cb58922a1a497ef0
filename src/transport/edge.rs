//! The edge of every gRPC call: correlation id, deadline, panics.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;
use tower::{Layer, Service};
use tracing::Instrument as _;

use crate::{
    call::{Call, Course, Journalled, Parent, Subject, Trace},
    domain::{Caller, CorrelationId, Environment},
    pipeline::Pipeline,
    proto::Reason,
    service::{access, status},
    telemetry::{Metrics, Tracer},
};

use super::{
    line::Line,
    peer::{Peer, Unidentified},
};

/// The header that joins a call's log lines, records and answers.
pub const CORRELATION: &str = "x-correlation-id";
const TIMEOUT: &str = "grpc-timeout";
/// How the messages of a request are compressed.
const ENCODING: &str = "grpc-encoding";
/// The header of W3C Trace Context, and the one that answers it.
const PARENT: &str = "traceparent";
const RESPONSE: &str = "traceresponse";

/// What the edge tells a service method.
#[derive(Clone)]
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
    /// Whether the journal has how the call ended.
    pub journalled: Journalled,
    /// What the caller says of its trace.
    parent: Option<Parent>,
    /// When a call that lasts ends, where its caller says so.
    until: Option<Instant>,
    site: Arc<Site>,
}

/// Where calls are counted, recorded and waited for.
pub struct Site {
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
    /// Where refusals are journalled that nobody else has journalled.
    pub pipeline: Arc<Pipeline>,
}

/// Puts the edge around a server's services.
#[derive(Clone)]
pub struct EdgeLayer(pub Arc<Site>);

impl Edge {
    /// The edge of one quote of a stream, as of a call of its own that begins now: what it does has the stream's correlation
    /// id with the tag behind it, and a span of its own in the caller's trace.
    #[must_use]
    pub fn of_item(&self, tag: u64) -> Self {
        let now = Instant::now();
        let deadline = now + self.site.deadline_max;
        Self {
            correlation_id: self.correlation_id.tagged(tag),
            deadline: self.until.map_or(deadline, |until| deadline.min(until)),
            subject: Arc::default(),
            course: Arc::new(Course::new(now)),
            trace: self.site.tracer.begin(self.parent.clone()),
            journalled: Journalled::default(),
            ..self.clone()
        }
    }

    /// When a stream ends, where its caller says so.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Keeps a drain waiting while it is held.
    pub fn under_way(&self) -> TaskTrackerToken {
        self.site.calls.token()
    }

    /// The line of a call of `caller`, to be ended with it.
    pub fn line(&self, method: &'static str, caller: Caller) -> Line {
        Line::new(self.clone(), method, Some(caller))
    }

    /// The call of `caller` that this is the edge of.
    #[must_use]
    pub fn call(&self, method: &'static str, caller: Caller) -> Call {
        let Self { correlation_id, deadline, subject, course, trace, journalled, .. } = self.clone();
        Call { caller, method, correlation_id, deadline, subject, course, trace, turn: None, journalled }
    }

    pub(super) fn site(&self) -> &Site {
        &self.site
    }
}

impl<S> Layer<S> for EdgeLayer {
    type Service = EdgeService<S>;

    fn layer(&self, inner: S) -> EdgeService<S> {
        EdgeService { inner, site: self.0.clone() }
    }
}

/// See [`EdgeLayer`].
#[derive(Clone)]
pub struct EdgeService<S> {
    inner: S,
    site: Arc<Site>,
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
        let sent = timeout(request.headers_mut());
        let wait = sent.map_or(self.site.deadline_max, |sent| sent.min(self.site.deadline_max));
        let caller = caller(&request);
        let parent = parent(request.headers());
        // Nobody's traces are gone on with.
        let trace = if caller.is_ok() { self.site.tracer.begin(parent.clone()) } else { None };
        let course = Arc::new(Course::new(started));
        let until = sent.and_then(|sent| started.checked_add(sent));
        let (deadline, subject, site) = (started + wait, Arc::default(), self.site.clone());
        let journalled = Journalled::default();
        let edge = Edge { correlation_id, deadline, subject, course, trace, journalled, parent, until, site };
        let method = access::known(request.uri().path()).unwrap_or("unknown");
        let line = Line::new(edge.clone(), method, caller.as_ref().ok().cloned());
        if let Err(why) = caller {
            let response = status::plain(Reason::CallerUnidentified, why.to_string()).into_http();
            return Box::pin(async move { Ok(ended(line, response)) });
        }
        if request.headers().get(ENCODING).is_some_and(|encoding| encoding != "identity") {
            let why = format!("the gateway takes no compressed request; send it without `{ENCODING}`");
            let response = status::plain(Reason::InvalidRequest, why).into_http();
            return Box::pin(async move { Ok(ended(line, response)) });
        }
        // As severe as can be: a filter that lets a line through lets it through with the id.
        let call = tracing::error_span!("call", correlation_id = %edge.correlation_id);
        request.extensions_mut().insert(edge);
        let answer = AssertUnwindSafe(tokio::time::timeout(wait, self.inner.call(request))).catch_unwind();
        let under_way = self.site.calls.token();
        let answered = async move {
            let response = match answer.await {
                Ok(Ok(Ok(response))) => response,
                Ok(Err(_)) => deadline_exceeded().into_http(),
                Err(_) => torn().into_http(),
            };
            drop(under_way);
            Ok(ended(line, response))
        };
        Box::pin(answered.instrument(call))
    }
}

/// Who calls, or why the peer is nobody. Nobody gets any service at all, health and reflection included.
fn caller(request: &Request<Body>) -> Result<Caller, Unidentified> {
    let peer = request.extensions().get::<Option<Arc<Peer>>>().and_then(Option::as_ref);
    peer.ok_or(Unidentified::NoName)?.caller().cloned()
}

/// What a call is answered whose deadline has passed.
#[must_use]
pub fn deadline_exceeded() -> Status {
    status::plain(Reason::DeadlineExceeded, "the call's deadline passed; make the same call again")
}

/// What a call is answered whose task panicked.
#[must_use]
pub fn torn() -> Status {
    status::plain(Reason::Internal, "a fault of the gateway; make the same call again")
}

/// Gives a refusal its reason, echoes what joins the call to its answer, and writes its line.
fn ended(line: Line, mut response: Response<Body>) -> Response<Body> {
    let mut refused = Status::from_header_map(response.headers());
    if let Some(reasoned) = refused.as_ref().and_then(with_reason) {
        response = reasoned.clone().into_http();
        refused = Some(reasoned);
    }
    let Edge { trace, correlation_id, .. } = line.edge();
    let echoes = [(RESPONSE, trace.as_ref().map(Trace::response)), (CORRELATION, Some(correlation_id.to_string()))];
    for (name, value) in echoes {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
            response.headers_mut().insert(name, value);
        }
    }
    match refused {
        // Its quotes have lines of their own.
        None if line.is_of_stream() => line.opened(),
        refused => line.end(refused.as_ref()),
    }
    response
}

/// The server below refuses messages that are too large or that it cannot read, and knows no reasons.
#[must_use]
pub fn with_reason(refused: &Status) -> Option<Status> {
    let why = match refused.code() {
        Code::OutOfRange => "the request is larger than the gateway takes",
        Code::Internal if refused.get_details_error_info().is_none() => "the request is no message of this method",
        _ => return None,
    };
    Some(status::plain(Reason::InvalidRequest, why))
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
fn timeout(headers: &mut HeaderMap) -> Option<Duration> {
    headers.remove(TIMEOUT)?.to_str().ok().and_then(grpc_timeout)
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
