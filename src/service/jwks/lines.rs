//! The line that a request to the key sets leaves in the log, and its count. Strangers ask here: nothing that they chose is in
//! a line but a well-formed correlation id, and no flood of theirs fills a disk.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, Method},
    middleware::Next,
    response::Response,
};
use parking_lot::Mutex;

use crate::{
    domain::{Environment, PartnerId},
    telemetry::Metrics,
    transport::edge,
};

/// So many lines are written in a window; the rest of it is told in one.
const LINES_MAX: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// Writes the lines of one gateway.
#[derive(Clone)]
pub struct Lines(Arc<Inner>);

struct Inner {
    environment: Environment,
    metrics: Arc<Metrics>,
    share: Mutex<Share>,
}

/// What was written of late.
#[derive(Debug)]
struct Share {
    since: Instant,
    written: u32,
    left_out: u64,
}

/// What becomes of a request's line.
#[derive(Debug, PartialEq, Eq)]
enum Entered {
    Written,
    /// It is counted; the first one sees to it that the count is told.
    LeftOut {
        first: bool,
    },
}

impl Share {
    fn enter(&mut self, now: Instant) -> Entered {
        if now.saturating_duration_since(self.since) >= WINDOW {
            (self.since, self.written) = (now, 0);
        }
        if self.written < LINES_MAX {
            self.written += 1;
            return Entered::Written;
        }
        self.left_out = self.left_out.saturating_add(1);
        Entered::LeftOut { first: self.left_out == 1 }
    }
}

/// Whose set was asked for, as an extension of the answer.
#[derive(Debug, Clone)]
pub(super) struct Of(pub PartnerId);

impl Lines {
    /// Lines of a gateway of this environment.
    #[must_use]
    pub fn new(environment: Environment, metrics: Arc<Metrics>) -> Self {
        let share = Mutex::new(Share { since: Instant::now(), written: 0, left_out: 0 });
        Self(Arc::new(Inner { environment, metrics, share }))
    }

    fn write(&self, method: &str, correlation_id: &str, response: &Response, took: Duration) {
        let status = response.status().as_u16();
        self.0.metrics.jwks_request(status);
        let entered = self.0.share.lock().enter(Instant::now());
        match entered {
            Entered::Written => tracing::info!(
                method,
                status,
                partner = response.extensions().get::<Of>().map(|Of(partner)| partner.as_str()),
                correlation_id,
                environment = self.0.environment.as_str(),
                version = env!("CARGO_PKG_VERSION"),
                micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                "request"
            ),
            Entered::LeftOut { first: true } => drop(tokio::spawn(self.clone().tell())),
            Entered::LeftOut { first: false } => {}
        }
    }

    /// Tells at the end of a window how many requests have no line of their own, whether or not another one comes.
    async fn tell(self) {
        tokio::time::sleep(WINDOW).await;
        let requests = std::mem::take(&mut self.0.share.lock().left_out);
        tracing::info!(
            requests,
            environment = self.0.environment.as_str(),
            version = env!("CARGO_PKG_VERSION"),
            "requests without a line of their own"
        );
    }
}

/// Answers a request, with its correlation id, and writes its line.
pub(super) async fn answer(State(lines): State<Lines>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let correlation_id = edge::correlation_id(request.headers());
    let method = told(request.method(), request.extensions().get::<MatchedPath>());
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(correlation_id.as_str()) {
        response.headers_mut().insert(edge::CORRELATION, value);
    }
    lines.write(&method, correlation_id.as_str(), &response, started.elapsed());
    response
}

/// Method and route, of which there are few; never what a stranger has made up.
fn told(method: &Method, path: Option<&MatchedPath>) -> String {
    let method = if [Method::GET, Method::HEAD].contains(method) { method.as_str() } else { "other" };
    format!("{method} {}", path.map_or("unknown", MatchedPath::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_has_its_lines_and_one_that_tells_of_the_rest() {
        let start = Instant::now();
        let mut share = Share { since: start, written: 0, left_out: 0 };
        let entered: Vec<_> = (0..1000).map(|_| share.enter(start)).collect();
        assert!(entered[..20].iter().all(|entered| *entered == Entered::Written));
        assert_eq!(entered[20], Entered::LeftOut { first: true });
        assert!(entered[21..].iter().all(|entered| *entered == Entered::LeftOut { first: false }));
        // What is still to be told is told once, also where the next window has begun.
        let next = start + WINDOW;
        let entered: Vec<_> = (0..21).map(|_| share.enter(next)).collect();
        assert_eq!((&entered[19], &entered[20]), (&Entered::Written, &Entered::LeftOut { first: false }));
        assert_eq!(share.left_out, 981);
    }
}
