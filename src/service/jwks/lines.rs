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

use crate::{
    domain::{Environment, PartnerId},
    telemetry::{Metrics, Share},
    transport::edge,
};

/// Writes the lines of one gateway.
#[derive(Clone)]
pub struct Lines {
    environment: Environment,
    metrics: Arc<Metrics>,
    share: Arc<Share>,
}

/// Whose set was asked for, as an extension of the answer.
#[derive(Debug, Clone)]
pub(super) struct Of(pub PartnerId);

impl Lines {
    /// Lines of a gateway of this environment.
    #[must_use]
    pub fn new(environment: Environment, metrics: Arc<Metrics>) -> Self {
        Self { environment, metrics, share: Arc::default() }
    }

    fn write(&self, method: &str, correlation_id: &str, response: &Response, took: Duration) {
        let status = response.status().as_u16();
        self.metrics.jwks_request(status);
        let environment = self.environment.as_str();
        self.share.tell(
            || {
                tracing::info!(
                    method,
                    status,
                    partner = response.extensions().get::<Of>().map(|Of(partner)| partner.as_str()),
                    correlation_id,
                    environment,
                    version = env!("CARGO_PKG_VERSION"),
                    micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                    "request"
                );
            },
            move |requests| {
                tracing::info!(
                    requests,
                    environment,
                    version = env!("CARGO_PKG_VERSION"),
                    "requests without a line of their own"
                );
            },
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
