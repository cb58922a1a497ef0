//! Calls as OTLP spans: one for the call, with a child for each stage that waits for something else (the ledger, the device); how
//! long the others took are attributes of the call's.

use std::{sync::Arc, time::Duration};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{InstrumentationScope, KeyValue},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status as SpanStatus, span::SpanKind, status::StatusCode},
};
use tonic::Code;

use super::records::{number, text};
use crate::{
    call::{Course, Stage, Subject, Trace},
    clock::UtcTime,
    domain::CorrelationId,
};

/// A call that has ended and is recorded.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its place in a trace.
    pub trace: Trace,
    /// An id for the span of each stage that has one.
    pub stage_ids: [[u8; 8]; SPANNED.len()],
    /// The gRPC method.
    pub method: &'static str,
    /// Joins its log lines, records and answers.
    pub correlation_id: CorrelationId,
    /// When it began.
    pub began: UtcTime,
    /// How long it took.
    pub took: Duration,
    /// When each stage ran.
    pub course: Arc<Course>,
    /// How it was answered.
    pub code: Code,
    /// Why it was refused; empty where it was not.
    pub reason: String,
    /// What it was about.
    pub subject: Option<Subject>,
}

/// The stages that have a span of their own.
const SPANNED: [Stage; 4] = [Stage::Recall, Stage::Reserve, Stage::Sign, Stage::Commit];

impl Ended {
    fn spans(self) -> Vec<Span> {
        let began = u64::try_from(self.began.millis()).unwrap_or_default().saturating_mul(1_000_000);
        let root = Span {
            trace_id: self.trace.trace_id.to_vec(),
            span_id: self.trace.span_id.to_vec(),
            parent_span_id: self.trace.parent.map(|parent| parent.to_vec()).unwrap_or_default(),
            // Sampled, by W3C's flags.
            flags: 1,
            name: self.method.to_owned(),
            kind: SpanKind::Server.into(),
            start_time_unix_nano: began,
            end_time_unix_nano: began.saturating_add(nanos(self.took)),
            attributes: self.attributes(),
            status: self.status(),
            ..Span::default()
        };
        let stage = |((stage, from, took), id): ((Stage, Duration, Duration), [u8; 8])| {
            let start = began.saturating_add(nanos(from));
            Span {
                trace_id: self.trace.trace_id.to_vec(),
                span_id: id.to_vec(),
                parent_span_id: self.trace.span_id.to_vec(),
                flags: 1,
                name: stage.name().to_owned(),
                kind: SpanKind::Internal.into(),
                start_time_unix_nano: start,
                end_time_unix_nano: start.saturating_add(nanos(took)),
                ..Span::default()
            }
        };
        let ran = self.course.stages().filter(|(stage, ..)| SPANNED.contains(stage));
        let mut spans: Vec<Span> = ran.zip(self.stage_ids).map(stage).collect();
        spans.insert(0, root);
        spans
    }

    fn attributes(&self) -> Vec<KeyValue> {
        let mut attributes = vec![
            text("rpc.system.name", "grpc"),
            text("rpc.method", self.method),
            text("rpc.response.status_code", code_name(self.code)),
            text("quotesign.correlation_id", self.correlation_id.to_string()),
        ];
        let subject = self.subject.as_ref();
        let mut some = |key, value: Option<String>| attributes.extend(value.map(|value| text(key, value)));
        some("error.type", (!self.reason.is_empty()).then(|| self.reason.clone()));
        some("quotesign.partner", subject.and_then(|subject| subject.partner.as_ref()).map(ToString::to_string));
        some("quotesign.quote_id", subject.and_then(|subject| subject.quote_id.as_ref()).map(ToString::to_string));
        let timed = self.course.stages().filter(|(stage, ..)| !SPANNED.contains(stage));
        attributes
            .extend(timed.map(|(stage, _, took)| number(&format!("quotesign.stage.{}_ns", stage.name()), nanos(took))));
        attributes
    }

    /// An error where the gateway failed, by the conventions for servers; a refusal is none.
    fn status(&self) -> Option<SpanStatus> {
        let failed = matches!(
            self.code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        );
        failed.then(|| SpanStatus { message: self.reason.clone(), code: StatusCode::Error.into() })
    }
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

/// A request with the spans of these calls.
#[must_use]
pub fn request(resource: &Resource, calls: Vec<Ended>) -> ExportTraceServiceRequest {
    let scope = InstrumentationScope { name: "quotesign".to_owned(), ..InstrumentationScope::default() };
    let spans = calls.into_iter().flat_map(Ended::spans).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, schema_url: String::new() }];
    let resource_spans =
        vec![ResourceSpans { resource: Some(resource.clone()), scope_spans, schema_url: String::new() }];
    ExportTraceServiceRequest { resource_spans }
}
