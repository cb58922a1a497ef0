//! What is told of a call when it has ended: one line in the access log, its metrics, and its spans where it is recorded.

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    audit,
    clock::{Clock as _, SystemClock},
    domain::{Caller, PartnerId, QuoteId},
    proto::Reason,
    service::{access, status},
    telemetry::otlp::spans::Ended,
};

use super::edge::Edge;

/// A call that has not ended. One that is dropped was cancelled by its client, or cut off; that is told, too.
#[must_use]
pub struct Line {
    edge: Edge,
    method: &'static str,
    /// Nobody, where the peer cannot be told.
    caller: Option<Caller>,
    is_told: bool,
}

impl Line {
    pub(super) fn new(edge: Edge, method: &'static str, caller: Option<Caller>) -> Self {
        Self { edge, method, caller, is_told: false }
    }

    pub(super) fn edge(&self) -> &Edge {
        &self.edge
    }

    /// Whether it is of a stream, of whose quotes each is a call to whoever counts them.
    pub(super) fn is_of_stream(&self) -> bool {
        self.method == access::SIGN_QUOTES.method
    }

    /// A stream is open.
    pub(super) fn opened(mut self) {
        self.is_told = true;
        let Self { edge, method, .. } = &self;
        let (caller, environment) = (self.caller(), edge.site().environment.as_str());
        tracing::info!(method, caller, correlation_id = %edge.correlation_id, environment, "stream");
    }

    /// The call has ended: well, or with this status.
    pub fn end(mut self, refused: Option<&Status>) {
        self.is_told = true;
        let info = refused.and_then(Status::get_details_error_info);
        let reason = info.as_ref().map_or("", |info| info.reason.as_str());
        self.tell(refused.map_or(Code::Ok, Status::code), reason);
        if let (Some(refused), Some(reason)) = (refused, Reason::from_str_name(&format!("REASON_{reason}"))) {
            self.journal(reason, refused.message());
        }
    }

    fn caller(&self) -> String {
        self.caller.as_ref().map_or_else(|| "unidentified".to_owned(), Caller::to_string)
    }

    /// Journals a refusal of a caller that is known, unless whoever refused has done so.
    fn journal(&self, reason: Reason, why: &str) {
        let Self { edge, method, caller: Some(caller), .. } = self else { return };
        if edge.journalled.is_set() {
            return;
        }
        let (pipeline, subject) = (&edge.site().pipeline, edge.subject.get().cloned().unwrap_or_default());
        let policy = pipeline.policy.load();
        let trail = access::trail(&edge.call(method, caller.clone()), pipeline.environment, &policy);
        let context = audit::Context { partner: subject.partner, quote_id: subject.quote_id, ..trail };
        pipeline.journal_denial(context, reason, status::answer(reason), why.to_owned());
    }

    fn tell(&self, code: Code, reason: &str) {
        let Self { edge, method, .. } = self;
        let (method, caller) = (*method, self.caller());
        let took = edge.course.started().elapsed();
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let (subject, site) = (edge.subject.get(), edge.site());
        site.metrics.call(method, code, reason, took);
        site.metrics.stages(&edge.course);
        tracing::info!(
            method,
            caller,
            correlation_id = %edge.correlation_id,
            status = ?code,
            reason,
            partner = subject.and_then(|subject| subject.partner.as_ref()).map(PartnerId::as_str),
            quote_id = subject.and_then(|subject| subject.quote_id.as_ref()).map(QuoteId::as_str),
            environment = site.environment.as_str(),
            version = env!("CARGO_PKG_VERSION"),
            micros,
            trace_id = edge.trace.as_ref().map(|trace| hex::encode(trace.trace_id)),
            "call"
        );
        if let Some(trace) = edge.trace.as_ref().filter(|trace| trace.is_sampled) {
            site.tracer.ended(&Ended {
                trace,
                stage_ids: site.tracer.ids(),
                method,
                correlation_id: &edge.correlation_id,
                began: SystemClock.now().minus(took),
                took,
                course: &edge.course,
                code,
                reason,
                subject,
            });
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.is_told {
            self.tell(Code::Cancelled, "");
        }
    }
}
