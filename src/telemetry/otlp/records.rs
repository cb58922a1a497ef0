//! An audit record as an OTLP log record: the same bytes whenever it is made, so that one that comes twice is seen to be one. The
//! body is the record as it was hashed; the attributes say what is searched for, and where the record stands in its chain.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
};
use prost::{Message as _, bytes::Bytes};
use serde::Deserialize;

use super::{
    room,
    wire::{Wire, sized_len},
};
use crate::{
    audit::{Event, SCHEMA},
    clock::UtcTime,
    domain::Environment,
    ledger::chain::StoredRecord,
};

/// The name of the scope of audit records.
pub const SCOPE: &str = "quotesign.audit";

/// Log records that follow each other, as a request has them. They are one stretch of bytes, of which no copy is made to be sent, nor
/// to send a part of it.
#[derive(Debug, Clone, Default)]
pub struct LogRecords {
    bytes: Bytes,
    marks: Vec<Mark>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Its index in its lane.
    pub index: u64,
    /// Where it ends in the bytes.
    end: usize,
}

impl LogRecords {
    /// This record at its place in `lane`, alone.
    #[must_use]
    pub fn one(lane: &str, stored: &StoredRecord) -> Self {
        let mut writer = LogWriter::default();
        writer.add(lane, stored, usize::MAX);
        writer.into_records()
    }

    /// Each of them, in order.
    #[must_use]
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// The first.
    #[must_use]
    pub fn first(&self) -> Option<Mark> {
        self.marks.first().copied()
    }

    /// The last, alone.
    #[must_use]
    pub fn last(&self) -> Self {
        self.split(self.marks.len().saturating_sub(1)).1
    }

    /// The first half of them and the second, which is the longer one where they are odd.
    #[must_use]
    pub fn halves(&self) -> (Self, Self) {
        self.split(self.marks.len() / 2)
    }

    fn split(&self, at: usize) -> (Self, Self) {
        let (before, after) = self.marks.split_at(at);
        let begins = before.last().map_or(0, |last| last.end);
        let moved = |mark: &Mark| Mark { end: mark.end.saturating_sub(begins), ..*mark };
        (
            Self { bytes: self.bytes.slice(..begins), marks: before.to_vec() },
            Self { bytes: self.bytes.slice(begins..), marks: after.iter().map(moved).collect() },
        )
    }

    /// The room that they took, for others; none where somebody still holds a part of it.
    #[must_use]
    pub fn into_room(self) -> Vec<u8> {
        room(self.bytes)
    }
}

/// Writes log records one behind the other.
#[derive(Debug, Default)]
pub struct LogWriter {
    page: Wire,
    marks: Vec<Mark>,
    /// One record, whose length comes before it.
    record: Wire,
}

impl LogWriter {
    /// A writer that uses the room of what was written before.
    #[must_use]
    pub fn new(room: Vec<u8>) -> Self {
        Self { page: room.into(), ..Self::default() }
    }

    /// Adds the record at its place in `lane`, where all of them take at most so many bytes with it, or it is the first; whether it
    /// did. One that cannot be read is shipped all the same, as the bytes that it is.
    pub fn add(&mut self, lane: &str, stored: &StoredRecord, bytes_max: usize) -> bool {
        self.record.clear();
        if readable(&mut self.record, lane, stored).is_none() {
            self.record.clear();
            unreadable(&mut self.record, lane, stored);
        }
        let record = self.record.written();
        let takes = self.page.written().len().saturating_add(sized_len(field::LOG_RECORDS, record.len()));
        if takes > bytes_max && !self.marks.is_empty() {
            return false;
        }
        self.page.bytes(field::LOG_RECORDS, record);
        self.marks.push(Mark { index: stored.index, end: takes });
        true
    }

    /// What was written.
    #[must_use]
    pub fn into_records(self) -> LogRecords {
        LogRecords { bytes: self.page.into_bytes().into(), marks: self.marks }
    }
}

/// What is told of a record outside its body; its texts are borrowed where nothing in them is escaped.
#[derive(Deserialize)]
struct Seen<T> {
    at: T,
    event: T,
    id: T,
    context: Context<T>,
    #[serde(default = "Facts::none")]
    facts: Facts<T>,
}

#[derive(Deserialize)]
struct Context<T> {
    caller: Option<T>,
    correlation_id: T,
    corridor: Option<T>,
    environment: T,
    gateway_version: T,
    method: Option<T>,
    partner: Option<T>,
    quote_id: Option<T>,
    span_id: Option<T>,
    trace_id: Option<T>,
}

#[derive(Deserialize)]
struct Facts<T> {
    kid: Option<T>,
    reason: Option<T>,
    sequence: Option<u64>,
}

impl<T> Facts<T> {
    fn none() -> Self {
        Self { kid: None, reason: None, sequence: None }
    }
}

/// An attribute.
pub(super) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.into())) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

/// Likewise, of a number.
#[cfg(test)]
pub(super) fn number(key: &str, value: u64) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX))) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

/// Fields of `LogRecord`.
mod field {
    /// Of `ScopeLogs`.
    pub(super) const LOG_RECORDS: u32 = 2;
    pub(super) const TIME: u32 = 1;
    pub(super) const SEVERITY: u32 = 2;
    pub(super) const SEVERITY_TEXT: u32 = 3;
    pub(super) const BODY: u32 = 5;
    pub(super) const ATTRIBUTES: u32 = 6;
    pub(super) const TRACE_ID: u32 = 9;
    pub(super) const SPAN_ID: u32 = 10;
    pub(super) const OBSERVED: u32 = 11;
    pub(super) const EVENT_NAME: u32 = 12;
    /// Of `AnyValue`.
    pub(super) const STRING: u32 = 1;
    pub(super) const BYTES: u32 = 7;
}

fn unreadable(log: &mut Wire, lane: &str, stored: &StoredRecord) {
    log.number(field::SEVERITY, 17);
    log.bytes(field::SEVERITY_TEXT, b"ERROR");
    log.sized(field::BODY, sized_len(field::BYTES, stored.bytes.len()));
    log.sized(field::BYTES, stored.bytes.len());
    log.extend(&stored.bytes);
    place(log, lane, stored);
    log.bytes(field::EVENT_NAME, b"quotesign.audit.unreadable");
}

/// Writes the record; nothing where it cannot be read.
fn readable(log: &mut Wire, lane: &str, stored: &StoredRecord) -> Option<()> {
    // Whether it is UTF-8 is asked once of the whole and not of each text.
    let record = std::str::from_utf8(&stored.bytes).ok()?;
    match serde_json::from_str::<Seen<&str>>(record) {
        Ok(seen) => written(log, lane, stored, &seen),
        Err(_) => written(log, lane, stored, &serde_json::from_str::<Seen<String>>(record).ok()?),
    }
}

fn written<T: AsRef<str>>(log: &mut Wire, lane: &str, stored: &StoredRecord, seen: &Seen<T>) -> Option<()> {
    let at = UtcTime::parse(seen.at.as_ref()).ok()?;
    let nanos = u64::try_from(at.millis()).unwrap_or_default().saturating_mul(1_000_000);
    let (severity, severity_text) = severity(seen.event.as_ref());
    log.fixed(field::TIME, nanos);
    log.number(field::SEVERITY, severity);
    log.bytes(field::SEVERITY_TEXT, severity_text.as_bytes());
    log.sized(field::BODY, sized_len(field::STRING, stored.bytes.len()));
    log.bytes(field::STRING, &stored.bytes);
    attributes(log, lane, stored, seen);
    put_id::<16>(log, field::TRACE_ID, seen.context.trace_id.as_ref());
    put_id::<8>(log, field::SPAN_ID, seen.context.span_id.as_ref());
    log.fixed(field::OBSERVED, nanos);
    log.bytes(field::EVENT_NAME, ["quotesign.", seen.event.as_ref()].concat().as_bytes());
    Some(())
}

/// The id of so many bytes that is told in hexadecimal; nothing where it is none.
fn put_id<const N: usize>(log: &mut Wire, field: u32, told: Option<&impl AsRef<str>>) {
    let mut id = [0; N];
    if told.is_some_and(|told| hex::decode_to_slice(told.as_ref(), &mut id).is_ok()) {
        log.bytes(field, &id);
    }
}

/// The attributes, whose names are in `docs/audit-record.md`.
fn attributes<T: AsRef<str>>(log: &mut Wire, lane: &str, stored: &StoredRecord, seen: &Seen<T>) {
    let Seen { context, facts, id, .. } = seen;
    place(log, lane, stored);
    put_text(log, "quotesign.audit.id", id.as_ref());
    put_text(log, "quotesign.audit.schema", SCHEMA);
    put_text(log, "quotesign.correlation_id", context.correlation_id.as_ref());
    put_text(log, "quotesign.environment", context.environment.as_ref());
    put_text(log, "quotesign.gateway.version", context.gateway_version.as_ref());
    for (key, value) in [
        ("quotesign.caller", &context.caller),
        ("rpc.method", &context.method),
        ("quotesign.partner", &context.partner),
        ("quotesign.quote_id", &context.quote_id),
        ("quotesign.corridor", &context.corridor),
        ("quotesign.kid", &facts.kid),
        ("quotesign.reason", &facts.reason),
    ] {
        if let Some(value) = value {
            put_text(log, key, value.as_ref());
        }
    }
    if let Some(sequence) = facts.sequence {
        put_number(log, "quotesign.sequence", sequence);
    }
}

/// Where a record stands in its chain.
fn place(log: &mut Wire, lane: &str, stored: &StoredRecord) {
    put_text(log, "quotesign.audit.lane", lane);
    put_number(log, "quotesign.audit.index", stored.index);
    put_digest(log, "quotesign.audit.leaf", &stored.leaf);
    if let Some(link) = &stored.link {
        put_digest(log, "quotesign.audit.link", link);
    }
}

fn put_digest(log: &mut Wire, key: &str, digest: &[u8; 32]) {
    let mut told = [0; 64];
    // It has room for just that.
    if hex::encode_to_slice(digest, &mut told).is_ok() {
        log.attribute(field::ATTRIBUTES, key, &told);
    }
}

fn put_text(log: &mut Wire, key: &str, value: &str) {
    log.attribute(field::ATTRIBUTES, key, value.as_bytes());
}

fn put_number(log: &mut Wire, key: &str, value: u64) {
    log.number_attribute(field::ATTRIBUTES, key, value);
}

/// What somebody should look at is a warning; nothing here is an error of the program.
fn severity(event: &str) -> (u64, &'static str) {
    const WARN: [Event; 9] = [
        Event::Refused,
        Event::Voided,
        Event::VolumeUnusual,
        Event::Revoked,
        Event::Halted,
        Event::Suspended,
        Event::RollbackAccepted,
        Event::AnchorAdopted,
        Event::PolicyRefused,
    ];
    if WARN.iter().any(|warn| warn.name() == event) { (13, "WARN") } else { (9, "INFO") }
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

/// An `ExportLogsServiceRequest` of one resource and one scope, as it is sent: what comes before the records, and the records.
#[must_use]
pub fn request(resource: &Resource, records: &LogRecords) -> [Bytes; 2] {
    let scope =
        InstrumentationScope { name: SCOPE.to_owned(), version: SCHEMA.to_owned(), ..InstrumentationScope::default() };
    of_one(resource, &scope, records.bytes.clone())
}

/// A request to export what is written already, of one resource and one scope: logs and spans have the same fields there.
pub(super) fn of_one(resource: &Resource, scope: &InstrumentationScope, written: Bytes) -> [Bytes; 2] {
    let (resource, scope) = (resource.encode_to_vec(), scope.encode_to_vec());
    let of_scope = sized_len(1, scope.len()) + written.len();
    let of_resource = sized_len(1, resource.len()) + sized_len(2, of_scope);
    let mut head = Wire::with_room(resource.len() + scope.len() + 32);
    head.sized(1, of_resource);
    head.bytes(1, &resource);
    head.sized(2, of_scope);
    head.bytes(1, &scope);
    [head.into_bytes().into(), written]
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        collector::logs::v1::ExportLogsServiceRequest,
        logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    };

    use super::*;
    use crate::{
        audit::{self, Facts, Record},
        domain::CorrelationId,
    };

    fn stored(event: Event, link: bool, change: impl FnOnce(&mut audit::Context, &mut Facts)) -> StoredRecord {
        let mut context = audit::Context::new(CorrelationId::made(), Environment::Sandbox, "00".to_owned(), 1);
        let mut facts = Facts::default();
        change(&mut context, &mut facts);
        let bytes = Record::new(event, UtcTime::from_millis(1_765_432_100_123), context, facts).to_bytes().unwrap();
        StoredRecord { index: 300, leaf: audit::leaf(&bytes), bytes, link: link.then_some([7; 32]), id: None }
    }

    /// The log record as it is sent, without what tells its length.
    fn alone(lane: &str, stored: &StoredRecord) -> Vec<u8> {
        let scope = ScopeLogs::decode(LogRecords::one(lane, stored).bytes).unwrap();
        assert_eq!(scope.log_records.len(), 1);
        let mut writer = LogWriter::default();
        assert!(writer.add(lane, stored, usize::MAX));
        writer.record.into_bytes()
    }

    /// The generated types read what is written, and write it the same way.
    #[test]
    fn what_is_written_is_what_the_generated_types_write() {
        let full = stored(Event::Refused, true, |context, facts| {
            context.caller = Some("spiffe://example.org/pricing".parse().unwrap());
            context.method = Some("a \"quoted\" \\ method\u{1f600}".to_owned());
            context.partner = Some("acme-remit".parse().unwrap());
            context.quote_id = Some("q1".parse().unwrap());
            context.corridor = Some("GB-IN".parse().unwrap());
            context.trace_id = Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned());
            context.span_id = Some("00f067aa0ba902b7".to_owned());
            facts.reason = Some("POLICY_DENIED".to_owned());
            facts.sequence = Some(9.try_into().unwrap());
            facts.kid = Some("quote-a".parse().unwrap());
        });
        let bare = stored(Event::Started, false, |_, _| {});
        for (lane, of) in [("", &bare), ("gw-1", &full)] {
            let written = alone(lane, of);
            let log = LogRecord::decode(&*written).unwrap();
            assert_eq!(log.encode_to_vec(), written);
            let body = log.body.and_then(|body| body.value);
            assert_eq!(body, Some(Value::StringValue(String::from_utf8(of.bytes.clone()).unwrap())));
            assert_eq!(log.time_unix_nano, 1_765_432_100_123_000_000);
        }
        let log = LogRecord::decode(&*alone("gw-1", &full)).unwrap();
        assert_eq!((log.severity_number, log.event_name.as_str()), (13, "quotesign.quote.refused"));
        assert_eq!((log.trace_id.len(), log.span_id.len(), log.attributes.len()), (16, 8, 17));
        assert!(log.attributes.contains(&text("rpc.method", "a \"quoted\" \\ method\u{1f600}")));
        assert!(
            log.attributes.contains(&number("quotesign.sequence", 9))
                && log.attributes.contains(&number("quotesign.audit.index", 300))
        );
        let log = LogRecord::decode(&*alone("", &bare)).unwrap();
        assert!(log.attributes.contains(&text("quotesign.audit.lane", "")) && log.severity_number == 9);

        let torn = StoredRecord { bytes: b"{}\xff".to_vec(), ..full.clone() };
        let torn = alone("gw-1", &torn);
        let log = LogRecord::decode(&*torn).unwrap();
        assert_eq!((log.encode_to_vec(), log.severity_number, log.attributes.len()), (torn, 17, 4));
        assert_eq!(log.body.and_then(|body| body.value), Some(Value::BytesValue(b"{}\xff".to_vec())));

        let empty = LogRecord::decode(&*alone("gw-1", &StoredRecord { bytes: Vec::new(), ..full.clone() })).unwrap();
        assert_eq!(empty.body.and_then(|body| body.value), Some(Value::BytesValue(Vec::new())));

        let resource = resource(Environment::Sandbox, "gw-1");
        let mut writer = LogWriter::default();
        assert!([&bare, &full].iter().all(|stored| writer.add("gw-1", stored, usize::MAX)));
        let sent = request(&resource, &writer.into_records()).concat();
        let read = ExportLogsServiceRequest::decode(&*sent).unwrap();
        assert_eq!(read.encode_to_vec(), sent);
        let [ResourceLogs { resource: Some(of), scope_logs, .. }] = read.resource_logs.as_slice() else {
            panic!("{read:?}")
        };
        let [ScopeLogs { log_records, scope: Some(scope), .. }] = scope_logs.as_slice() else { panic!("{read:?}") };
        assert_eq!((of, log_records.len(), scope.name.as_str()), (&resource, 2, SCOPE));
    }

    #[test]
    fn a_page_is_bounded_and_its_parts_are_what_they_would_be_alone() {
        let stored = |index| StoredRecord { index, ..stored(Event::Refused, false, |_, _| {}) };
        let all: Vec<_> = (0..5).map(stored).collect();
        let takes = LogRecords::one("", &all[0]).bytes.len();
        let mut writer = LogWriter::new(Vec::with_capacity(takes * 9));
        let added: Vec<_> = all.iter().map(|stored| writer.add("", stored, takes * 4)).collect();
        assert_eq!(added, [true, true, true, true, false]);
        let page = writer.into_records();
        let indexes = |part: &LogRecords| part.marks().iter().map(|mark| mark.index).collect::<Vec<_>>();
        let (before, after) = page.halves();
        assert_eq!((indexes(&before), indexes(&after), indexes(&page.last())), (vec![0, 1], vec![2, 3], vec![3]));
        let ((first, second), (third, _)) = (before.halves(), after.halves());
        let last = after.last();
        let parts = [&first, &second, &third, &last];
        for (part, stored) in parts.into_iter().zip(&all) {
            let alone = LogRecords::one("", stored);
            assert_eq!((&part.bytes, part.marks()), (&alone.bytes, alone.marks()));
        }
        assert_eq!([&before, &after].map(|part| part.bytes.to_vec()).concat(), page.bytes);
        assert!(LogWriter::default().add("", &all[0], 1), "one that is larger than a page is a page");

        drop((before, after, first, second, last));
        assert!(page.clone().into_room().is_empty(), "somebody holds it");
        drop(third);
        assert!(page.into_room().capacity() >= takes * 9);
        let none = LogRecords::default();
        assert!(none.first().is_none() && none.last().marks().is_empty() && none.into_room().is_empty());
    }
}
