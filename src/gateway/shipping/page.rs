//! Finds what is to be shipped next: of all lanes that wait, a page of the one that has waited longest.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    clock::UtcTime,
    ledger::{EngineError, Stretch, chain::StoredRecord},
    telemetry::otlp::records::{LogRecords, LogWriter},
};

/// How many records are sent at once at most, and how many bytes of them: a quarter of what collectors take.
const RECORDS_MAX: u32 = 512;
const BYTES_MAX: usize = 1 << 20;

/// What is to be shipped of a lane next.
pub(super) struct Page {
    pub lane: String,
    /// The record before them, which the collector has taken.
    pub before: Option<LogRecords>,
    pub records: LogRecords,
}

/// A lane with records to be shipped.
pub(super) struct Waiting {
    pub name: String,
    /// How many.
    pub records: u64,
    /// When the first of them was made, where that can be read.
    pub oldest: Option<UtcTime>,
    from: u64,
}

/// What was found.
pub(super) struct Found {
    /// The lanes that wait, but those that are torn.
    pub waiting: Vec<Waiting>,
    /// The lanes whose journal ends before its head says.
    pub torn: Vec<String>,
    /// The page; or, where there is none, the room for the next one.
    pub page: Result<Page, Vec<u8>>,
}

/// What a lane is that lost records.
pub(super) fn torn(lane: &str) -> String {
    format!("lane `{lane}` of the journal ends before its head says: run `quotesign audit verify`")
}

/// Gives at most so many records of a lane, from an index on, one by one until no more are wanted.
pub(super) type Scan<'a> = &'a dyn Fn(&str, u64, u32, &mut dyn FnMut(StoredRecord) -> bool) -> Result<(), EngineError>;

/// Looks in these lanes, each from the record that is its next. The page is written into `room`.
///
/// # Errors
/// Where the journal cannot be read.
pub(super) fn find(
    scan: Scan<'_>,
    lanes: &[Stretch],
    next: &BTreeMap<String, u64>,
    aside: &BTreeSet<(String, u64)>,
    room: Vec<u8>,
) -> Result<Found, EngineError> {
    let mut found = Found { waiting: Vec::new(), torn: Vec::new(), page: Err(room) };
    for Stretch { lane, first, head } in lanes {
        let from = next.get(lane).copied().unwrap_or(first.next_index);
        if from >= head.next_index {
            continue;
        }
        let Some(record) = one(scan, lane, from)? else {
            found.torn.push(lane.clone());
            continue;
        };
        let made = record.first().map(|mark| mark.at_ms).filter(|at_ms| *at_ms > 0);
        let (records, oldest) = (head.next_index.saturating_sub(from), made.map(UtcTime::from_millis));
        found.waiting.push(Waiting { name: lane.clone(), records, oldest, from });
    }
    // One whose time cannot be read is not left to wait for ever.
    if let Some(longest) = found.waiting.iter().min_by_key(|lane| lane.oldest)
        && let Err(room) = &mut found.page
    {
        found.page = Ok(read(scan, longest, aside, std::mem::take(room))?);
    }
    Ok(found)
}

fn read(
    scan: Scan<'_>,
    Waiting { name, from, .. }: &Waiting,
    aside: &BTreeSet<(String, u64)>,
    mut room: Vec<u8>,
) -> Result<Page, EngineError> {
    // It is kept from page to page, but for the one that held a record larger than a page.
    room.shrink_to(2 * BYTES_MAX);
    room.reserve(BYTES_MAX);
    let mut writer = LogWriter::new(room);
    scan(name, *from, RECORDS_MAX, &mut |stored| writer.add(name, &stored, BYTES_MAX))?;
    let records = writer.into_records();
    if records.marks().is_empty() {
        return Err(EngineError::Unfit(torn(name)));
    }
    let known = from.checked_sub(1).filter(|before| !aside.contains(&(name.clone(), *before)));
    let before = known.map(|before| one(scan, name, before)).transpose()?.flatten();
    let before = before.filter(|record| record.first().is_some_and(|first| first.index < *from));
    Ok(Page { lane: name.clone(), before, records })
}

/// The first record of a lane from an index on, alone.
fn one(scan: Scan<'_>, lane: &str, from: u64) -> Result<Option<LogRecords>, EngineError> {
    let mut found = None;
    scan(lane, from, 1, &mut |stored| {
        found = Some(LogRecords::one(lane, &stored));
        false
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{self, Context, Event, Facts, Record},
        domain::{CorrelationId, Environment},
        ledger::chain::Position,
    };

    /// Lanes with a record at each index below `heads`, made a second after each other from `begins` on, but those that are gone.
    struct Lanes<'a> {
        heads: &'a [(&'a str, u64, i64)],
        gone: &'a [(&'a str, u64)],
    }

    impl Lanes<'_> {
        fn records(&self, lane: &str, from: u64, count: u32) -> Vec<StoredRecord> {
            let (_, head, begins) = *self.heads.iter().find(|(name, ..)| *name == lane).unwrap();
            let indexes = (from..head).filter(|index| !self.gone.contains(&(lane, *index)));
            let stored = |index: u64| {
                let context = Context::new(CorrelationId::made(), Environment::Sandbox, "00".to_owned(), 1);
                let at = UtcTime::from_millis(begins + i64::try_from(index).unwrap() * 1000);
                let bytes = Record::new(Event::Refused, at, context, Facts::default()).to_bytes().unwrap();
                StoredRecord { index, leaf: audit::leaf(&bytes), bytes, link: None }
            };
            indexes.map(stored).take(usize::try_from(count).unwrap()).collect()
        }

        fn find(&self, next: &[(&str, u64)]) -> Found {
            let head = |next_index| Position { next_index, ..Position::GENESIS };
            let lanes = self.heads.iter().map(|(lane, end, _)| Stretch {
                lane: (*lane).to_owned(),
                first: Position::GENESIS,
                head: head(*end),
            });
            let next = next.iter().map(|(lane, next)| ((*lane).to_owned(), *next)).collect();
            let scan = |lane: &str, from, count, take: &mut dyn FnMut(StoredRecord) -> bool| {
                let _all = self.records(lane, from, count).into_iter().all(take);
                Ok(())
            };
            find(&scan, &lanes.collect::<Vec<_>>(), &next, &BTreeSet::new(), Vec::new()).unwrap()
        }
    }

    fn page(found: &Found) -> Option<(&str, Vec<u64>)> {
        let Page { lane, records, .. } = found.page.as_ref().ok()?;
        Some((lane, records.marks().iter().map(|mark| mark.index).collect()))
    }

    fn waiting(found: &Found) -> Vec<(&str, u64, i64)> {
        let oldest = |lane: &Waiting| lane.oldest.map_or(0, UtcTime::millis);
        found.waiting.iter().map(|lane| (lane.name.as_str(), lane.records, oldest(lane))).collect()
    }

    #[test]
    fn the_lane_that_has_waited_longest_comes_first() {
        let lanes = Lanes { heads: &[("a", 3, 5_000), ("b", 2, 1_000), ("c", 1, 9_000)], gone: &[] };
        let found = lanes.find(&[("b", 1), ("c", 1)]);
        assert_eq!(waiting(&found), [("a", 3, 5_000), ("b", 1, 2_000)]);
        assert_eq!(page(&found), Some(("b", vec![1])));
        let before = found.page.ok().and_then(|page| page.before);
        assert_eq!(before.and_then(|before| before.first()).map(|mark| mark.index), Some(0), "it was taken before");
        assert_eq!(page(&lanes.find(&[("b", 2), ("c", 1)])), Some(("a", vec![0, 1, 2])));
        let found = lanes.find(&[("a", 3), ("b", 2), ("c", 1)]);
        assert_eq!((page(&found), found.waiting.len(), found.torn.len()), (None, 0, 0));
        let many = Lanes { heads: &[("a", 600, 1_000)], gone: &[] };
        assert_eq!(page(&many.find(&[])).unwrap().1.len(), 512);
    }

    /// What is gone is told over and over, and keeps no other lane from being shipped.
    #[test]
    fn a_lane_that_lost_its_end_is_told_and_the_others_are_shipped() {
        let lanes = Lanes { heads: &[("a", 3, 1_000), ("b", 2, 5_000)], gone: &[("a", 2)] };
        assert_eq!(page(&lanes.find(&[])), Some(("a", vec![0, 1])), "up to there it is shipped");
        let found = lanes.find(&[("a", 2)]);
        assert_eq!((page(&found), waiting(&found)), (Some(("b", vec![0, 1])), vec![("b", 2, 5_000)]));
        assert_eq!(found.torn, ["a"]);
        let found = lanes.find(&[("a", 2), ("b", 2)]);
        assert_eq!((page(&found), waiting(&found).len()), (None, 0));
        assert_eq!(found.torn, ["a"]);
    }
}
