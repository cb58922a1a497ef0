//! That somebody reads the journal with a command. Gateways alone write the ledger, so the command leaves a note beside it, a
//! line, and a gateway journals it with its next sweep: once, since the note has the record's id already.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::EngineError;
use crate::{
    audit::{Context, Event, Facts, Record, id_before},
    clock::{Clock as _, SystemClock, UtcTime},
    json::is_hidden,
};

/// The longest note.
pub(super) const LINE_BYTES_MAX: usize = 8 * 1024;
/// So much may wait in all; beyond it nothing is read before a gateway has journalled what waits.
pub(super) const WAITING_BYTES_MAX: u32 = 1 << 20;
/// How far a note may lie ahead of the gateway's clock.
const AHEAD_MAX: Duration = Duration::from_mins(1);

/// A note of a read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// When.
    at: UtcTime,
    /// By which command, as `audit tail`.
    command: String,
    /// What was asked for, as `partner=acme-remit`; the name alone where the value is nobody's to know.
    filters: Vec<String>,
    /// The id of its record.
    id: Uuid,
    /// Who.
    reader: String,
}

/// A note that a gateway was given to journal, with its place among those that wait.
pub type Waiting = (i64, String);

impl Reading {
    /// That `reader` reads now.
    #[must_use]
    pub fn new(reader: String, command: &str, filters: Vec<String>) -> Self {
        Self { at: SystemClock.now(), command: command.to_owned(), filters, id: Uuid::now_v7(), reader }
    }

    /// The note, a line of JSON without its end.
    pub(super) fn line(&self) -> Result<String, EngineError> {
        let line = serde_json::to_string(self).map_err(|fault| EngineError::Unfit(fault.to_string()))?;
        if line.len() > LINE_BYTES_MAX {
            return Err(EngineError::Unfit(format!("what was asked for is longer than {LINE_BYTES_MAX} bytes")));
        }
        Ok(line)
    }

    /// Reads a note. What a command would not have written is none: somebody else did.
    pub(super) fn read(line: &str, now: UtcTime) -> Result<Self, &'static str> {
        let reading: Self = serde_json::from_str(line).map_err(|_| "it is no note")?;
        let hides = |text: &String| text.chars().any(is_hidden);
        if line.len() > LINE_BYTES_MAX || reading.filters.iter().chain([&reading.command, &reading.reader]).any(hides) {
            return Err("it holds what no command writes");
        }
        // Ids rise with time, and whoever reads on by them must not be led ahead.
        if reading.id.get_version_num() != 7 || reading.id >= id_before(now.plus(AHEAD_MAX)) {
            return Err("its id is of no time, or of one to come");
        }
        Ok(reading)
    }

    /// Its record, with what the gateway says of itself.
    pub(super) fn record(self, context: &Context, now: UtcTime) -> Record {
        let Self { at, command, filters, id, reader } = self;
        let correlation_id = id.to_string().parse().unwrap_or_else(|_| context.correlation_id.clone());
        let context = Context { correlation_id, ..context.clone() };
        let facts = Facts { detail: Some(command), filters, reader: Some(reader), ..Facts::default() };
        Record { id, ..Record::new(Event::Read, at.min(now), context, facts) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::step::tests::context;

    #[test]
    fn a_note_becomes_the_same_record_however_often_it_is_read() {
        let reading = Reading::new("alice (uid 1000)".to_owned(), "audit tail", vec!["partner=acme-remit".to_owned()]);
        let now = SystemClock.now();
        let record = || Reading::read(&reading.line().unwrap(), now).unwrap().record(&context(), now);
        assert_eq!(record(), record());
        assert_eq!((record().id, record().at), (reading.id, reading.at));
        assert_eq!(record().context.correlation_id.as_str(), reading.id.to_string());
        assert_eq!(record().facts.reader.as_deref(), Some("alice (uid 1000)"));
        assert_eq!(record().facts.filters, ["partner=acme-remit"]);
    }

    #[test]
    fn what_no_command_writes_is_no_note() {
        let reading = Reading::new("alice (uid 1000)".to_owned(), "audit tail", Vec::new());
        let now = SystemClock.now();
        let (line, ahead) = (reading.line().unwrap(), now.minus(Duration::from_mins(2)));
        assert!(Reading::read(&line, now).is_ok());
        for (line, now) in [
            (String::new(), now),
            (line.replacen('{', "{\"more\":1,", 1), now),
            (line.replacen("alice", "al\\u0007ice", 1), now),
            (line.replacen("alice", &"a".repeat(LINE_BYTES_MAX), 1), now),
            (line.replacen(&reading.id.to_string(), &Uuid::nil().to_string(), 1), now),
            (line.clone(), ahead),
        ] {
            assert!(Reading::read(&line, now).is_err(), "{line}");
        }
        let long = Reading { filters: vec!["a".repeat(LINE_BYTES_MAX)], ..reading };
        assert!(long.line().is_err());
    }
}
