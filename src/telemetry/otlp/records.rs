//! An audit record as an OTLP log record: the same bytes whenever it is made, so that one that comes twice is seen to be one. The
//! body is the record as it was hashed; the attributes say what is searched for, and where the record stands in its chain.

use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
};
use prost::Message as _;

use crate::{
    audit::{Event, Record, SCHEMA},
    domain::Environment,
    ledger::{EngineError, chain::StoredRecord},
};

/// The name of the scope of audit records.
pub const SCOPE: &str = "quotesign.audit";

/// A record that is to be shipped.
#[derive(Debug, Clone)]
pub struct Shippable {
    /// Its index in its lane.
    pub index: u64,
    /// When it was made, in milliseconds since 1970.
    pub at_ms: i64,
    /// How many bytes it takes in a request.
    pub bytes: usize,
    /// What is sent.
    pub log: LogRecord,
}

/// Attributes whose names are in `docs/audit-record.md`.
pub(super) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(string(value)), ..KeyValue::default() }
}

fn string(value: impl Into<String>) -> AnyValue {
    AnyValue { value: Some(Value::StringValue(value.into())) }
}

pub(super) fn number(key: &str, value: u64) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX))) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

impl Shippable {
    /// The record at its place in `lane`.
    ///
    /// # Errors
    /// Where its bytes are no record of this version.
    pub fn new(lane: &str, stored: &StoredRecord) -> Result<Self, EngineError> {
        let record = stored.record()?;
        let nanos = u64::try_from(record.at.millis()).unwrap_or_default().saturating_mul(1_000_000);
        let (severity, name) = severity(record.event);
        let log = LogRecord {
            time_unix_nano: nanos,
            observed_time_unix_nano: nanos,
            severity_number: severity.into(),
            severity_text: name.to_owned(),
            body: Some(string(String::from_utf8_lossy(&stored.bytes))),
            attributes: attributes(lane, stored, &record),
            trace_id: id(record.context.trace_id.as_deref()),
            span_id: id(record.context.span_id.as_deref()),
            event_name: format!("quotesign.{}", record.event.name()),
            ..LogRecord::default()
        };
        let bytes = log.encoded_len();
        Ok(Self { index: stored.index, at_ms: record.at.millis(), bytes, log })
    }
}

fn id(hex: Option<&str>) -> Vec<u8> {
    hex.and_then(|hex| hex::decode(hex).ok()).unwrap_or_default()
}

fn attributes(lane: &str, stored: &StoredRecord, Record { context, facts, id, .. }: &Record) -> Vec<KeyValue> {
    let mut attributes = vec![
        text("quotesign.audit.lane", lane),
        number("quotesign.audit.index", stored.index),
        text("quotesign.audit.id", id.to_string()),
        text("quotesign.audit.schema", SCHEMA),
        text("quotesign.audit.leaf", hex::encode(stored.leaf)),
    ];
    let mut some = |key, value: Option<String>| attributes.extend(value.map(|value| text(key, value)));
    some("quotesign.audit.link", stored.link.map(hex::encode));
    some("quotesign.correlation_id", Some(context.correlation_id.to_string()));
    some("quotesign.environment", Some(context.environment.to_string()));
    some("quotesign.gateway.version", Some(context.gateway_version.clone()));
    some("quotesign.caller", context.caller.as_ref().map(ToString::to_string));
    some("rpc.method", context.method.clone());
    some("quotesign.partner", context.partner.as_ref().map(ToString::to_string));
    some("quotesign.quote_id", context.quote_id.as_ref().map(ToString::to_string));
    some("quotesign.corridor", context.corridor.as_ref().map(ToString::to_string));
    some("quotesign.kid", facts.kid.as_ref().map(ToString::to_string));
    some("quotesign.reason", facts.reason.clone());
    attributes.extend(facts.sequence.map(|sequence| number("quotesign.sequence", sequence.get())));
    attributes
}

/// What somebody should look at is a warning; nothing here is an error of the program.
fn severity(event: Event) -> (SeverityNumber, &'static str) {
    match event {
        Event::Refused
        | Event::Voided
        | Event::VolumeUnusual
        | Event::Revoked
        | Event::Halted
        | Event::Suspended
        | Event::RollbackAccepted
        | Event::AnchorAdopted
        | Event::PolicyRefused => (SeverityNumber::Warn, "WARN"),
        _ => (SeverityNumber::Info, "INFO"),
    }
}

/// Who sends.
#[must_use]
pub fn resource(environment: Environment, replica: &str) -> Resource {
    let instance = if replica.is_empty() { "quotesign" } else { replica };
    Resource {
        attributes: vec![
            text("service.name", "quotesign"),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", instance),
            text("deployment.environment.name", environment.as_str()),
        ],
        ..Resource::default()
    }
}

/// A request with these records.
#[must_use]
pub fn request(resource: &Resource, records: &[Shippable]) -> ExportLogsServiceRequest {
    let scope =
        InstrumentationScope { name: SCOPE.to_owned(), version: SCHEMA.to_owned(), ..InstrumentationScope::default() };
    let log_records = records.iter().map(|record| record.log.clone()).collect();
    let scope_logs = vec![ScopeLogs { scope: Some(scope), log_records, schema_url: String::new() }];
    let resource = Some(resource.clone());
    ExportLogsServiceRequest { resource_logs: vec![ResourceLogs { resource, scope_logs, schema_url: String::new() }] }
}
