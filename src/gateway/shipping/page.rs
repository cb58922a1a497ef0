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
    /// What is missing before and among them: from this index up to that one.
    pub gone: Vec<(u64, u64)>,
}

/// A lane with records to be shipped.
pub(super) struct Waiting {
    pub name: String,
    /// How many.
    pub records: u64,
    /// When the first of them was made of which that can be read; of a lane without any, when the one before them was.
    pub oldest: Option<UtcTime>,
    /// Whether the journal ends before its head says.
    pub is_torn: bool,
    from: u64,
}

/// What was found.
pub(super) struct Found {
    pub waiting: Vec<Waiting>,
    /// The page, where there is one.
    pub page: Option<Page>,
}

/// What a lane is that lost its end.
pub(super) fn torn(lane: &str) -> String {
    format!("lane `{lane}` of the journal ends before its head says: run `quotesign audit verify`")
}

/// Gives at most so many records of a lane, from an index on, one by one until no more are wanted.
pub(super) type Scan<'a> = &'a dyn Fn(&str, u64, u32, &mut dyn FnMut(StoredRecord) -> bool) -> Result<(), EngineError>;

/// What is known of how far lanes were shipped.
pub(super) struct Cursors<'a> {
    /// The index of the next record of each.
    pub next: &'a BTreeMap<String, u64>,
    /// The records that no collector would take.
    pub aside: &'a BTreeSet<(String, u64)>,
    /// The lane whose page the collector would not take just now: others come before it.
    pub behind: Option<&'a str>,
}

/// Looks in these lanes. A page takes `room` to be written into.
///
/// # Errors
/// Where the journal cannot be read.
pub(super) fn find(
    scan: Scan<'_>,
    lanes: &[Stretch],
    cursors: &Cursors<'_>,
    room: &mut Vec<u8>,
) -> Result<Found, EngineError> {
    let mut waiting = Vec::new();
    for Stretch { lane, first, head } in lanes {
        let from = cursors.next.get(lane).copied().unwrap_or(first.next_index);
        if from < head.next_index {
            let records = head.next_index.saturating_sub(from);
            waiting.push(look(scan, lane, from, records)?);
        }
    }
    // One whose time cannot be read is not left to wait for ever.
    let whole = waiting.iter().filter(|lane| !lane.is_torn);
    let longest = whole.min_by_key(|lane| (Some(lane.name.as_str()) == cursors.behind, lane.oldest));
    let page = longest.map(|lane| read(scan, lane, cursors.aside, std::mem::take(room))).transpose()?;
    Ok(Found { waiting, page })
}

fn look(scan: Scan<'_>, lane: &str, from: u64, records: u64) -> Result<Waiting, EngineError> {
    let (mut is_torn, mut oldest) = (true, None);
    scan(lane, from, RECORDS_MAX, &mut |stored| {
        is_torn = false;
        oldest = stored.record().ok().map(|record| record.at);
        oldest.is_none()
    })?;
    if is_torn && let Some(before) = from.checked_sub(1) {
        scan(lane, before, 1, &mut |stored| {
            oldest = stored.record().ok().map(|record| record.at);
            false
        })?;
    }
    Ok(Waiting { name: lane.to_owned(), records, oldest, is_torn, from })
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
    let (mut next, mut gone) = (*from, Vec::new());
    for index in records.marks().iter().map(|mark| mark.index) {
        gone.extend((index > next).then_some((next, index)));
        next = index.saturating_add(1);
    }
    if next == *from {
        // It was there a moment ago.
        return Err(EngineError::Unfit(torn(name)));
    }
    let mut before = None;
    if let Some(index) = from.checked_sub(1).filter(|index| !aside.contains(&(name.clone(), *index))) {
        scan(name, index, 1, &mut |stored| {
            before = (stored.index == index).then(|| LogRecords::one(name, &stored));
            false
        })?;
    }
    Ok(Page { lane: name.clone(), before, records, gone })
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
        /// Those of which it cannot be read when they were made.
        unreadable: &'a [(&'a str, u64)],
        behind: Option<&'a str>,
    }

    const WHOLE: Lanes<'_> = Lanes { heads: &[], gone: &[], unreadable: &[], behind: None };

    impl Lanes<'_> {
        fn records(&self, lane: &str, from: u64, count: u32) -> Vec<StoredRecord> {
            let (_, head, begins) = *self.heads.iter().find(|(name, ..)| *name == lane).unwrap();
            let indexes = (from..head).filter(|index| !self.gone.contains(&(lane, *index)));
            let stored = |index: u64| {
                let context = Context::new(CorrelationId::made(), Environment::Sandbox, "00".to_owned(), 1);
                let at = UtcTime::from_millis(begins + i64::try_from(index).unwrap() * 1000);
                let bytes = Record::new(Event::Refused, at, context, Facts::default()).to_bytes().unwrap();
                let bytes = if self.unreadable.contains(&(lane, index)) { b"{}".to_vec() } else { bytes };
                StoredRecord { index, leaf: audit::leaf(&bytes), bytes, link: None, id: None }
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
            let cursors = Cursors { next: &next, aside: &BTreeSet::new(), behind: self.behind };
            let scan = |lane: &str, from, count, take: &mut dyn FnMut(StoredRecord) -> bool| {
                let _all = self.records(lane, from, count).into_iter().all(take);
                Ok(())
            };
            find(&scan, &lanes.collect::<Vec<_>>(), &cursors, &mut Vec::new()).unwrap()
        }
    }

    fn page(found: &Found) -> Option<(&str, Vec<u64>)> {
        let Page { lane, records, .. } = found.page.as_ref()?;
        Some((lane, records.marks().iter().map(|mark| mark.index).collect()))
    }

    fn waiting(found: &Found) -> Vec<(&str, u64, i64)> {
        let oldest = |lane: &Waiting| lane.oldest.map_or(0, UtcTime::millis);
        found.waiting.iter().map(|lane| (lane.name.as_str(), lane.records, oldest(lane))).collect()
    }

    fn torn_of(found: &Found) -> Vec<&str> {
        found.waiting.iter().filter(|lane| lane.is_torn).map(|lane| lane.name.as_str()).collect()
    }

    #[test]
    fn the_lane_that_has_waited_longest_comes_first() {
        let lanes = Lanes { heads: &[("a", 3, 5_000), ("b", 2, 1_000), ("c", 1, 9_000)], ..WHOLE };
        let found = lanes.find(&[("b", 1), ("c", 1)]);
        assert_eq!(waiting(&found), [("a", 3, 5_000), ("b", 1, 2_000)]);
        assert_eq!(page(&found), Some(("b", vec![1])));
        let before = found.page.and_then(|page| page.before);
        assert_eq!(before.and_then(|before| before.first()).map(|mark| mark.index), Some(0), "it was taken before");
        assert_eq!(page(&lanes.find(&[("b", 2), ("c", 1)])), Some(("a", vec![0, 1, 2])));
        let found = lanes.find(&[("a", 3), ("b", 2), ("c", 1)]);
        assert_eq!((page(&found), found.waiting.len()), (None, 0));
        let many = Lanes { heads: &[("a", 600, 1_000)], ..WHOLE };
        assert_eq!(page(&many.find(&[])).unwrap().1.len(), 512);
        // Not the one whose page was refused just now, unless there is no other.
        let behind = Lanes { behind: Some("b"), ..lanes };
        assert_eq!(page(&behind.find(&[("b", 1)])), Some(("a", vec![0, 1, 2])));
        assert_eq!(page(&behind.find(&[("a", 3), ("b", 1), ("c", 1)])), Some(("b", vec![1])));
    }

    /// What is gone is told over and over, and keeps no other lane from being shipped.
    #[test]
    fn a_lane_that_lost_its_end_is_told_and_the_others_are_shipped() {
        let lanes = Lanes { heads: &[("a", 4, 1_000), ("b", 2, 5_000)], gone: &[("a", 2), ("a", 3)], ..WHOLE };
        assert_eq!(page(&lanes.find(&[])), Some(("a", vec![0, 1])), "up to there it is shipped");
        let found = lanes.find(&[("a", 2)]);
        assert_eq!(page(&found), Some(("b", vec![0, 1])));
        // It waits since the last that is there, and so whatever restarts in between.
        assert_eq!((waiting(&found), torn_of(&found)), (vec![("a", 2, 2_000), ("b", 2, 5_000)], vec!["a"]));
        let found = lanes.find(&[("a", 2), ("b", 2)]);
        assert_eq!((page(&found), torn_of(&found)), (None, vec!["a"]));
        let all = Lanes { heads: &[("a", 1, 1_000)], gone: &[("a", 0)], ..WHOLE };
        let found = all.find(&[]);
        assert_eq!((waiting(&found), torn_of(&found)), (vec![("a", 1, 0)], vec!["a"]));
    }

    #[test]
    fn what_is_gone_before_and_among_others_is_told() {
        let gone = [("a", 1), ("a", 3), ("a", 4)];
        let lanes = Lanes { heads: &[("a", 7, 1_000)], gone: &gone, ..WHOLE };
        let of = |from| {
            let page = lanes.find(&[("a", from)]).page.unwrap();
            (page.before.is_some(), page.gone, page.records.marks().len())
        };
        assert_eq!(of(0), (false, vec![(1, 2), (3, 5)], 4));
        assert_eq!(of(1), (true, vec![(1, 2), (3, 5)], 3));
        assert_eq!(of(5), (false, vec![], 2), "the one before is not what comes after it");
    }

    #[test]
    fn a_record_that_cannot_be_read_hides_no_lag() {
        let unreadable = [("a", 0), ("a", 1)];
        let lanes = Lanes { heads: &[("a", 3, 1_000)], unreadable: &unreadable, ..WHOLE };
        let found = lanes.find(&[]);
        assert_eq!((waiting(&found), page(&found)), (vec![("a", 3, 3_000)], Some(("a", vec![0, 1, 2]))));
    }
}
