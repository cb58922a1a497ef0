//! Calls as OTLP spans: one for the call, with a child for each stage that waits for something else (the ledger, the device); how
//! long the others took are attributes of the call's. They are written as they are sent when the call has ended.

use std::time::Duration;

use opentelemetry_proto::tonic::{
    common::v1::InstrumentationScope,
    resource::v1::Resource,
    trace::v1::{span::SpanKind, status::StatusCode},
};
use prost::bytes::Bytes;
use tonic::Code;

use super::{records::of_one, wire::Wire};
use crate::{
    call::{Course, Stage, Subject, Trace},
    clock::UtcTime,
    domain::{CorrelationId, PartnerId, QuoteId},
};

/// A call that has ended and is recorded.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    /// Its place in a trace.
    pub trace: &'a Trace,
    /// An id for the span of each stage that has one.
    pub stage_ids: [[u8; 8]; SPANNED.len()],
    /// The gRPC method.
    pub method: &'a str,
    /// Joins its log lines, records and answers.
    pub correlation_id: &'a CorrelationId,
    /// When it began.
    pub began: UtcTime,
    /// How long it took.
    pub took: Duration,
    /// When each stage ran.
    pub course: &'a Course,
    /// How it was answered.
    pub code: Code,
    /// Why it was refused; empty where it was not.
    pub reason: &'a str,
    /// What it was about.
    pub subject: Option<&'a Subject>,
}

/// The stages that have a span of their own.
const SPANNED: [Stage; 4] = [Stage::Recall, Stage::Reserve, Stage::Sign, Stage::Commit];

/// Fields of `Span`, and of its `Status`.
mod field {
    pub(super) const TRACE_ID: u32 = 1;
    pub(super) const SPAN_ID: u32 = 2;
    pub(super) const PARENT: u32 = 4;
    pub(super) const NAME: u32 = 5;
    pub(super) const KIND: u32 = 6;
    pub(super) const BEGAN: u32 = 7;
    pub(super) const ENDED: u32 = 8;
    pub(super) const ATTRIBUTES: u32 = 9;
    pub(super) const STATUS: u32 = 15;
    pub(super) const FLAGS: u32 = 16;
    /// Of `ScopeSpans`.
    pub(super) const SPANS: u32 = 2;
    /// Of `Status`.
    pub(super) const MESSAGE: u32 = 2;
    pub(super) const CODE: u32 = 3;
}

/// Sampled, by W3C's flags.
const SAMPLED: u32 = 1;

/// Writes spans one behind the other, as a request has them.
#[derive(Debug, Default)]
pub struct SpanWriter {
    spans: Wire,
    /// One span, whose length comes before it.
    span: Wire,
}

impl SpanWriter {
    /// What was written, and from now on into `room`.
    pub fn take(&mut self, room: Vec<u8>) -> Vec<u8> {
        std::mem::replace(&mut self.spans, room.into()).into_bytes()
    }

    /// Adds the spans of a call.
    pub fn add(&mut self, call: &Ended<'_>) {
        let began = u64::try_from(call.began.millis()).unwrap_or_default().saturating_mul(1_000_000);
        self.begin(call.trace, call.trace.span_id, call.trace.parent.as_ref());
        self.timed(call.method, SpanKind::Server, began, call.took);
        attributes(&mut self.span, call);
        if failed(call.code) {
            let mut status = Wire::default();
            status.bytes(field::MESSAGE, call.reason.as_bytes());
            status.number(field::CODE, StatusCode::Error as u64);
            self.span.bytes(field::STATUS, status.written());
        }
        self.end();
        let ran = call.course.stages().map(|(stage, from, took)| (stage, from, Some(took)));
        // A call that was cut off, and what it waited for until then.
        let open = call.course.open().map(|(stage, from)| (stage, from, None));
        let spanned = ran.chain(open).filter(|(stage, ..)| SPANNED.contains(stage));
        for ((stage, from, took), id) in spanned.zip(call.stage_ids) {
            self.begin(call.trace, id, Some(&call.trace.span_id));
            let until_end = call.took.saturating_sub(from);
            self.timed(stage.name(), SpanKind::Internal, began.saturating_add(nanos(from)), took.unwrap_or(until_end));
            if took.is_none() {
                self.span.true_attribute(field::ATTRIBUTES, "quotesign.unfinished");
            }
            self.end();
        }
    }

    fn begin(&mut self, trace: &Trace, id: [u8; 8], parent: Option<&[u8; 8]>) {
        self.span.clear();
        self.span.bytes(field::TRACE_ID, &trace.trace_id);
        self.span.bytes(field::SPAN_ID, &id);
        self.span.bytes(field::PARENT, parent.map_or(&[], <[u8; 8]>::as_slice));
    }

    fn timed(&mut self, name: &str, kind: SpanKind, began: u64, took: Duration) {
        self.span.bytes(field::NAME, name.as_bytes());
        self.span.number(field::KIND, kind as u64);
        self.span.fixed(field::BEGAN, began);
        self.span.fixed(field::ENDED, began.saturating_add(nanos(took)));
    }

    fn end(&mut self) {
        self.span.fixed32(field::FLAGS, SAMPLED);
        self.spans.bytes(field::SPANS, self.span.written());
    }
}

fn attributes(span: &mut Wire, call: &Ended<'_>) {
    let mut text = |key, value: &str| span.attribute(field::ATTRIBUTES, key, value.as_bytes());
    text("rpc.system.name", "grpc");
    text("rpc.method", call.method);
    text("rpc.response.status_code", code_name(call.code));
    text("quotesign.correlation_id", call.correlation_id.as_str());
    if !call.reason.is_empty() {
        text("error.type", call.reason);
    }
    if let Some(partner) = call.subject.and_then(|subject| subject.partner.as_ref()) {
        text("quotesign.partner", PartnerId::as_str(partner));
    }
    if let Some(quote_id) = call.subject.and_then(|subject| subject.quote_id.as_ref()) {
        text("quotesign.quote_id", QuoteId::as_str(quote_id));
    }
    for (stage, _, took) in call.course.stages().filter(|(stage, ..)| !SPANNED.contains(stage)) {
        span.number_attribute(field::ATTRIBUTES, stage.attribute(), nanos(took));
    }
}

/// Whether the gateway did, by the conventions for servers; a refusal is no error.
fn failed(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// The canonical name of a gRPC code.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// An `ExportTraceServiceRequest` with these spans, as it is sent: what comes before them, and the spans.
#[must_use]
pub fn request(resource: &Resource, spans: Bytes) -> [Bytes; 2] {
    of_one(resource, &InstrumentationScope { name: "quotesign".to_owned(), ..InstrumentationScope::default() }, spans)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use opentelemetry_proto::tonic::{
        collector::trace::v1::ExportTraceServiceRequest,
        common::v1::{AnyValue, KeyValue, any_value::Value},
        trace::v1::{ResourceSpans, ScopeSpans, Status},
    };
    use prost::Message as _;

    use super::*;
    use crate::{
        domain::Environment,
        telemetry::otlp::records::{self, number, text},
    };

    /// The generated types read what is written, and write it the same way.
    #[test]
    fn what_is_written_is_what_the_generated_types_write() {
        let trace = Trace { trace_id: [1; 16], span_id: [2; 8], parent: Some([3; 8]), is_sampled: true };
        let begun = Trace { parent: None, ..trace.clone() };
        let (course, idle) = (Course::new(Instant::now()), Course::new(Instant::now()));
        for stage in Stage::ALL.iter().filter(|stage| **stage != Stage::Recall) {
            course.ran(*stage, Instant::now());
        }
        let subject = Subject { partner: Some("acme-remit".parse().unwrap()), quote_id: Some("q1".parse().unwrap()) };
        let correlation_id = CorrelationId::made();
        let well = Ended {
            trace: &trace,
            stage_ids: [[4; 8], [5; 8], [6; 8], [7; 8]],
            method: "quotesign.v1.QuoteSigningService/SignQuote",
            correlation_id: &correlation_id,
            began: UtcTime::from_millis(1_765_432_100_123),
            took: Duration::from_millis(3),
            course: &course,
            code: Code::Ok,
            reason: "",
            subject: Some(&subject),
        };
        idle.ran(Stage::Parse, idle.started());
        idle.begins(Stage::Sign);
        let failed = Ended {
            trace: &begun,
            course: &idle,
            code: Code::Unavailable,
            reason: "OVERLOADED",
            subject: None,
            ..well
        };
        let mut writer = SpanWriter::default();
        writer.add(&well);
        writer.add(&failed);
        let resource = records::resource(Environment::Sandbox, "gw-1");
        let sent = request(&resource, writer.take(Vec::new()).into()).concat();
        assert!(writer.take(Vec::new()).is_empty());

        let read = ExportTraceServiceRequest::decode(&*sent).unwrap();
        assert_eq!(read.encode_to_vec(), sent);
        let [ResourceSpans { resource: Some(of), scope_spans, .. }] = read.resource_spans.as_slice() else {
            panic!("{read:?}")
        };
        let [ScopeSpans { spans, scope: Some(scope), .. }] = scope_spans.as_slice() else { panic!("{read:?}") };
        assert_eq!((of, scope.name.as_str(), spans.len()), (&resource, "quotesign", 6));
        let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, [well.method, "reserve", "sign", "commit", well.method, "sign"]);
        let [root, reserve, .., refused, unfinished] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!((root.kind(), root.flags, &root.parent_span_id[..]), (SpanKind::Server, 1, &[3; 8][..]));
        assert_eq!(root.end_time_unix_nano - root.start_time_unix_nano, 3_000_000);
        assert_eq!((&reserve.trace_id, &reserve.span_id), (&vec![1; 16], &vec![4; 8]));
        assert_eq!((&reserve.parent_span_id, reserve.kind()), (&root.span_id, SpanKind::Internal));
        let took = |wanted| course.stages().find(|(stage, ..)| *stage == wanted).map(|(_, _, took)| nanos(took));
        for attribute in [
            text("rpc.response.status_code", "OK"),
            text("quotesign.correlation_id", correlation_id.as_str()),
            text("quotesign.partner", "acme-remit"),
            text("quotesign.quote_id", "q1"),
            number("quotesign.stage.parse_ns", took(Stage::Parse).unwrap()),
        ] {
            assert!(root.attributes.contains(&attribute), "{attribute:?}");
        }
        assert!(refused.parent_span_id.is_empty() && refused.attributes.contains(&text("error.type", "OVERLOADED")));
        let value = AnyValue { value: Some(Value::BoolValue(true)) };
        let flag = KeyValue { key: "quotesign.unfinished".to_owned(), value: Some(value), ..KeyValue::default() };
        assert_eq!(
            (&unfinished.attributes[..], unfinished.end_time_unix_nano),
            (&[flag][..], refused.end_time_unix_nano)
        );
        assert!(unfinished.start_time_unix_nano >= refused.start_time_unix_nano && reserve.attributes.is_empty());
        let error = Status { message: "OVERLOADED".to_owned(), code: StatusCode::Error.into() };
        assert_eq!((&root.status, &refused.status), (&None, &Some(error)));
    }
}
