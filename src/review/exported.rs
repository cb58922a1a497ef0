//! A journal in a file: records with their links, a JSON line each, so that the chain can be recomputed anywhere, with nothing
//! but the file.

use std::{
    fmt,
    io::{self, BufRead, Write},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{
    audit::{self, Event},
    clock::UtcTime,
    ledger::{
        EngineError, Journal, PruneJournal, Stretch,
        chain::{Break, Position, StoredRecord, Summary, Verifier},
    },
};

/// The version of the file's form, in its first line.
pub const SCHEMA: &str = "quotesign.journal.v1";

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    /// A lane begins here.
    Begin { schema: String, lane: String, first_index: u64, first_link: String },
    /// A record, as its bytes are, and the link of its batch on the batch's last one.
    Record {
        index: u64,
        record: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        link: Option<String>,
    },
    /// Where the lane stood.
    End { head_index: u64, head_link: String },
}

/// A lane that was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Lane {
    /// Its name.
    pub name: String,
    /// Where it begins.
    pub first: Position,
    /// What holds.
    pub summary: Summary,
    /// The lanes that its records say were pruned, and up to which record; of those that something that was kept binds.
    pub pruned: Vec<(String, u64)>,
    /// The index before which something that was kept binds its records; nothing where what was kept does not know the lane.
    pub bound: Option<u64>,
    /// Of the records that nothing binds which was kept, the one that says it was made first.
    pub earliest: Option<(UtcTime, u64)>,
}

/// Why a file vouches for nothing, and where.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It cannot be read.
    #[error("the file cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] EngineError),
    /// A line is none of a journal.
    #[error("line {line}: {why}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// The chain does not hold.
    #[error("{}{fault}", named(.lane))]
    Broken {
        /// In which lane.
        lane: String,
        /// Where, and what.
        fault: Break,
    },
    /// The journal ends before it should.
    #[error("{}the journal ends at {is}, and its head says {said}", named(.lane))]
    Short {
        /// In which lane.
        lane: String,
        /// Where it ends.
        is: u64,
        /// Where it stood.
        said: u64,
    },
    /// A head that was kept, or that the journal says, is not the one that follows from the records.
    #[error("{}the head at {index} is another one than follows from the records: they were written anew", named(.lane))]
    Head {
        /// In which lane.
        lane: String,
        /// The head's index.
        index: u64,
    },
    /// A head that was kept cannot be held against what begins after it.
    #[error("{}the records begin at {first}, after the head at {index} that was kept: verify an export that goes back to it", named(.lane))]
    Before {
        /// In which lane.
        lane: String,
        /// The head's index.
        index: u64,
        /// Where the records begin.
        first: u64,
    },
    /// The journal does not begin where it began, and a head was kept.
    #[error(
        "{}records 0 to {} are not in it, and no record that what was kept binds says that they were pruned: the front was cut off, \
         or this was pruned since; take a newer checkpoint",
        named(.lane), .first.saturating_sub(1)
    )]
    Front {
        /// In which lane.
        lane: String,
        /// Where the records begin.
        first: u64,
    },
    /// A ledger holds a record that its journal does not reach.
    #[error("{}record {index} stands in the ledger, and the journal does not reach it: somebody put it there", named(.lane))]
    Outside {
        /// In which lane.
        lane: String,
        /// The record's index.
        index: u64,
    },
    /// A head was kept of a lane that is not there.
    #[error("the journal has no lane `{lane}`, and a head of it was kept")]
    NoLane {
        /// Its name.
        lane: String,
    },
}

fn named(lane: &str) -> String {
    if lane.is_empty() { String::new() } else { format!("lane {lane}: ") }
}

/// Writes a lane: `page` gives some records from an index on, and none only where the lane ends.
///
/// # Errors
/// Where the file cannot be written or the journal not read, or where it ends before its head.
pub fn write(
    out: &mut (impl Write + ?Sized),
    Stretch { lane, first, head }: &Stretch,
    mut page: impl FnMut(u64) -> io::Result<Vec<StoredRecord>>,
) -> io::Result<()> {
    let first_link = hex::encode(first.link);
    let begin =
        Line::Begin { schema: SCHEMA.to_owned(), lane: lane.clone(), first_index: first.next_index, first_link };
    put(out, &begin)?;
    let mut next = first.next_index;
    // What is written meanwhile is left for the next export: the head is the one that was read before.
    while next < head.next_index {
        let records = page(next)?;
        let Some(last) = records.last().map(|last| last.index) else {
            return Err(io::Error::other(Fault::Short { lane: lane.clone(), is: next, said: head.next_index }));
        };
        for stored in records.into_iter().filter(|stored| stored.index < head.next_index) {
            let record = String::from_utf8_lossy(&stored.bytes).into_owned();
            put(out, &Line::Record { index: stored.index, record, link: stored.link.map(hex::encode) })?;
        }
        next = last.saturating_add(1);
    }
    put(out, &Line::End { head_index: head.next_index, head_link: hex::encode(head.link) })
}

fn put(out: &mut (impl Write + ?Sized), line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// A head that somebody kept: a lane, and where it stood. Its text is what `audit verify` prints: `LANE=INDEX:LINK`, without
/// `LANE=` for the lane that has no name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The lane's name.
    pub lane: String,
    /// Where it stood.
    pub head: Position,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lane, head } = self;
        let equals = if lane.is_empty() { "" } else { "=" };
        write!(f, "{lane}{equals}{}:{}", head.next_index, hex::encode(head.link))
    }
}

impl FromStr for Kept {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (lane, head) = text.rsplit_once('=').unwrap_or(("", text));
        let (index, link) = head.split_once(':').ok_or(NO_HEAD)?;
        let head = index.parse().ok().and_then(|index| position(index, link)).ok_or(NO_HEAD)?;
        Ok(Self { lane: lane.to_owned(), head })
    }
}

const NO_HEAD: &str = "a head is LANE=INDEX:LINK, or INDEX:LINK, as `quotesign audit verify` prints it";

/// Recomputes the chain of every lane of a file, and holds the heads against it that somebody kept.
///
/// # Errors
/// The first thing that does not hold.
pub fn verify(file: impl BufRead, kept: &[Kept]) -> Result<Vec<Lane>, Fault> {
    let (mut lanes, mut open): (Vec<Lane>, Option<Reading<'_>>) = (Vec::new(), None);
    let mut lines = 0;
    for (at, text) in file.lines().enumerate() {
        lines = at.saturating_add(1);
        let fault = |why: &str| Fault::Line { line: lines, why: why.to_owned() };
        let line: Line = serde_json::from_str(&text?).map_err(|_| fault("it is no line of a journal"))?;
        match (line, &mut open) {
            (Line::Begin { schema, .. }, _) if schema != SCHEMA => return Err(fault("it is of another version")),
            (Line::Begin { lane, .. }, None) if lanes.iter().any(|before| before.name == lane) => {
                return Err(fault("its lane was there before"));
            }
            (Line::Begin { lane, first_index, first_link, .. }, None) => {
                let first = position(first_index, &first_link).ok_or_else(|| fault("it has no link"))?;
                open = Some(Reading::new(lane, first, kept)?);
            }
            (Line::Record { index, record, link }, Some(reading)) => {
                let link = link.map(|link| digest(&link).ok_or_else(|| fault("its link is none"))).transpose()?;
                let bytes = record.into_bytes();
                reading.take(&StoredRecord { index, leaf: audit::leaf(&bytes), bytes, link, id: None })?;
            }
            (Line::End { head_index, head_link }, Some(_)) => {
                let head = position(head_index, &head_link).ok_or_else(|| fault("it has no link"))?;
                lanes.extend(open.take().map(|reading| reading.end(head)).transpose()?);
            }
            _ => return Err(fault("it does not belong here")),
        }
    }
    match open {
        Some(reading) => Err(Fault::Line { line: lines, why: format!("lane `{}` does not end", reading.name) }),
        None if lanes.is_empty() => Err(Fault::Line { line: lines, why: "the file holds no journal".to_owned() }),
        None => every_kept_is_there(&lanes, kept).map(|()| lanes),
    }
}

/// Recomputes the chain of every lane of a ledger, and holds the heads against it that somebody kept.
///
/// # Errors
/// The first thing that does not hold, and where the ledger cannot be read.
pub fn verify_ledger(journal: &dyn Journal, kept: &[Kept]) -> Result<Vec<Lane>, Fault> {
    let mut lanes = Vec::new();
    for mut stretch in journal.lanes()? {
        let lane = loop {
            match verify_lane(journal, &stretch, kept) {
                Err(fault @ Fault::Broken { .. }) => {
                    stretch = pruned_since(journal, &stretch)?.ok_or(fault)?;
                }
                read => break read?,
            }
        };
        nothing_is_outside(journal, &lane)?;
        lanes.push(lane);
    }
    every_kept_is_there(&lanes, kept)?;
    Ok(lanes)
}

/// Whether what was read of a lane is within the bounds that it has now, and nothing stands before them.
fn nothing_is_outside(journal: &dyn Journal, Lane { name, summary, .. }: &Lane) -> Result<(), Fault> {
    // Asked after what was read and before what is: meanwhile both bounds can only rise.
    let Some(now) = journal.lanes()?.into_iter().find(|now| now.lane == *name) else { return Ok(()) };
    let behind = (summary.head.next_index > now.head.next_index).then_some(now.head.next_index);
    let oldest = journal.records(name, 0, 1)?.first().map(|stored| stored.index);
    let before = oldest.filter(|oldest| *oldest < now.first.next_index);
    match behind.or(before) {
        Some(index) => Err(Fault::Outside { lane: name.clone(), index }),
        None => Ok(()),
    }
}

fn verify_lane(journal: &dyn Journal, stretch: &Stretch, kept: &[Kept]) -> Result<Lane, Fault> {
    let Stretch { lane, first, head } = stretch;
    let mut reading = Reading::new(lane.clone(), *first, kept)?;
    let mut next = first.next_index;
    loop {
        let page = journal.records(lane, next, PAGE)?;
        let Some(last) = page.last() else { return reading.end(*head) };
        next = last.index.saturating_add(1);
        page.iter().try_for_each(|stored| reading.take(stored))?;
    }
}

/// The lane as it stands now, where it begins later than it did.
///
/// # Errors
/// Where the ledger cannot be read.
pub fn pruned_since(journal: &dyn Journal, was: &Stretch) -> Result<Option<Stretch>, EngineError> {
    let now = journal.lanes()?.into_iter().find(|stretch| stretch.lane == was.lane);
    Ok(now.filter(|now| now.first.next_index > was.first.next_index))
}

/// What to add where a record is not found: that some were pruned.
///
/// # Errors
/// Where the ledger cannot be read.
pub fn pruned(journal: &dyn Journal) -> Result<&'static str, EngineError> {
    let is_pruned = journal.lanes()?.iter().any(|stretch| stretch.first.next_index > 0);
    Ok(if is_pruned { "; its oldest records were pruned, and whoever was shipped the journal has them" } else { "" })
}

/// How many records are read at once.
const PAGE: u32 = 1000;

fn every_kept_is_there(lanes: &[Lane], kept: &[Kept]) -> Result<(), Fault> {
    let gone = kept.iter().find(|kept| lanes.iter().all(|there| there.name != kept.lane));
    if let Some(gone) = gone {
        return Err(Fault::NoLane { lane: gone.lane.clone() });
    }
    // What is not there was pruned where a record says so that is bound itself; else it was cut off.
    let is_pruned = |lane: &Lane| {
        let last = lane.first.next_index.checked_sub(1);
        let told = lanes.iter().flat_map(|lane| &lane.pruned).any(|(name, to)| *name == lane.name && Some(*to) == last);
        last.is_none() || told
    };
    match lanes.iter().find(|lane| !kept.is_empty() && !is_pruned(lane)) {
        Some(Lane { name, first, .. }) => Err(Fault::Front { lane: name.clone(), first: first.next_index }),
        None => Ok(()),
    }
}

/// The lane that a record says was pruned, and up to which record.
fn pruned_by(stored: &StoredRecord) -> Option<(String, u64)> {
    PruneJournal::told(&stored.of_event(Event::Pruned)?.facts.detail?)
}

/// When a record says that it was made. A read's is journalled later than it was, and tells nothing.
fn made_at(stored: &StoredRecord) -> Option<UtcTime> {
    stored.record().ok().filter(|record| record.event != Event::Read).map(|record| record.at)
}

/// A lane that is being read.
struct Reading<'k> {
    name: String,
    first: Position,
    verifier: Verifier,
    kept: Vec<&'k Kept>,
    pruned: Vec<(String, u64)>,
    is_held: bool,
    bound: Option<u64>,
    earliest: Option<(UtcTime, u64)>,
}

impl<'k> Reading<'k> {
    fn new(name: String, first: Position, kept: &'k [Kept]) -> Result<Self, Fault> {
        let is_held = !kept.is_empty();
        let kept: Vec<_> = kept.iter().filter(|kept| kept.lane == name).collect();
        if let Some(Kept { head, .. }) = kept.iter().find(|kept| kept.head.next_index < first.next_index) {
            return Err(Fault::Before { lane: name, index: head.next_index, first: first.next_index });
        }
        if let Some(Kept { head, .. }) = kept.iter().find(|kept| is_another(kept.head, first)) {
            return Err(Fault::Head { lane: name, index: head.next_index });
        }
        let bound = kept.iter().map(|kept| kept.head.next_index).max();
        Ok(Self {
            name,
            first,
            verifier: Verifier::new(first),
            kept,
            pruned: Vec::new(),
            is_held,
            bound,
            earliest: None,
        })
    }

    fn take(&mut self, stored: &StoredRecord) -> Result<(), Fault> {
        self.verifier.push(stored).map_err(|fault| Fault::Broken { lane: self.name.clone(), fault })?;
        if self.bound.is_some_and(|bound| stored.index < bound) {
            self.pruned.extend(pruned_by(stored));
        } else if self.is_held
            && let Some(at) = made_at(stored)
            && self.earliest.is_none_or(|(earliest, _)| at < earliest)
        {
            self.earliest = Some((at, stored.index));
        }
        let here = Position { next_index: stored.index.saturating_add(1), link: stored.link.unwrap_or_default() };
        match self.kept.iter().find(|kept| is_another(kept.head, here)) {
            Some(kept) => Err(Fault::Head { lane: self.name.clone(), index: kept.head.next_index }),
            None => Ok(()),
        }
    }

    /// Ends it where the journal says that it stands, or after that, where it was written meanwhile.
    fn end(self, said: Position) -> Result<Lane, Fault> {
        let Self { name, first, verifier, kept, pruned, bound, earliest, .. } = self;
        let summary = verifier.finish().map_err(|fault| Fault::Broken { lane: name.clone(), fault })?;
        let head = summary.head;
        if head.next_index < said.next_index {
            return Err(Fault::Short { lane: name, is: head.next_index, said: said.next_index });
        }
        if is_another(said, head) {
            return Err(Fault::Head { lane: name, index: said.next_index });
        }
        match kept.iter().find(|kept| kept.head.next_index > head.next_index) {
            Some(kept) => Err(Fault::Short { lane: name, is: head.next_index, said: kept.head.next_index }),
            None => Ok(Lane { name, first, summary, pruned, bound, earliest }),
        }
    }
}

fn is_another(kept: Position, here: Position) -> bool {
    kept.next_index == here.next_index && kept.link != here.link
}

fn digest(text: &str) -> Option<[u8; 32]> {
    hex::decode(text).ok()?.try_into().ok()
}

fn position(next_index: u64, link: &str) -> Option<Position> {
    Some(Position { next_index, link: digest(link)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        audit::{Context, Facts, Record},
        domain::{CorrelationId, Environment},
    };

    /// A journal of batches of these sizes, as a file, and where it stood after each batch.
    fn journal(sizes: &[usize]) -> (Vec<u8>, Vec<Position>) {
        let (mut records, mut heads, mut head) = (Vec::new(), Vec::new(), Position::GENESIS);
        for size in sizes {
            let batch: Vec<_> = (0..*size as u64)
                .map(|at| {
                    let bytes = format!("{{\"n\":{}}}", head.next_index + at).into_bytes();
                    StoredRecord { index: head.next_index + at, leaf: audit::leaf(&bytes), bytes, link: None, id: None }
                })
                .collect();
            head = head.after(&batch.iter().map(|record| record.leaf).collect::<Vec<_>>());
            records.extend(batch);
            records.last_mut().unwrap().link = Some(head.link);
            heads.push(head);
        }
        let mut file = Vec::new();
        let page = |from: u64| Ok(records.iter().skip(usize::try_from(from).unwrap()).take(7).cloned().collect());
        write(&mut file, &Stretch { lane: String::new(), first: Position::GENESIS, head }, page).unwrap();
        (file, heads)
    }

    /// A lane of records of these events and times, a batch each, as a file; and where it ends.
    fn lane(name: &str, records: &[(Event, i64)]) -> (Vec<u8>, Position) {
        let (mut stored, mut head) = (Vec::new(), Position::GENESIS);
        for (event, at) in records {
            let context = Context::new(CorrelationId::made(), Environment::Sandbox, String::new(), 1);
            let record = Record::new(*event, UtcTime::from_millis(*at), context, Facts::default());
            let (index, bytes) = (head.next_index, record.to_bytes().unwrap());
            let leaf = audit::leaf(&bytes);
            head = head.after(&[leaf]);
            stored.push(StoredRecord { index, leaf, bytes, link: Some(head.link), id: None });
        }
        let mut file = Vec::new();
        let page = |from: u64| Ok(stored.iter().skip(usize::try_from(from).unwrap()).cloned().collect());
        write(&mut file, &Stretch { lane: name.to_owned(), first: Position::GENESIS, head }, page).unwrap();
        (file, head)
    }

    #[test]
    fn what_no_kept_head_binds_is_told_with_its_earliest_time_reads_apart() {
        use Event::{Committed, Read};
        let (before, head) = lane("gw-a", &[(Committed, 5), (Committed, 6)]);
        let (grown, _) = lane("gw-a", &[(Committed, 5), (Committed, 6), (Read, 1), (Committed, 9), (Committed, 4)]);
        let bound = |file: &[u8], kept: &[Kept]| {
            let lanes = verify(file, kept).unwrap();
            lanes
                .iter()
                .map(|lane| (lane.bound, lane.earliest.map(|(at, index)| (at.millis(), index))))
                .collect::<Vec<_>>()
        };
        assert_eq!(bound(&before, &[kept("gw-a", head)]), [(Some(2), None)]);
        assert_eq!(bound(&before, &[]), [(None, None)], "nobody asks");
        // Ids differ from run to run, so that the longer one has its own head.
        let first = verify(grown.as_slice(), &[]).unwrap()[0].first;
        assert_eq!(bound(&grown, &[kept("gw-a", first)]), [(Some(0), Some((4, 4)))]);
        let forged = [before, lane("gw-z", &[(Committed, 3)]).0].concat();
        assert_eq!(bound(&forged, &[kept("gw-a", head)]), [(Some(2), None), (None, Some((3, 0)))]);
    }

    fn kept(lane: &str, head: Position) -> Kept {
        Kept { lane: lane.to_owned(), head }
    }

    fn lines(file: &[u8]) -> Vec<String> {
        String::from_utf8(file.to_vec()).unwrap().lines().map(str::to_owned).collect()
    }

    fn verified(lines: &[String], kept: &[Kept]) -> Result<Vec<Lane>, Fault> {
        verify((lines.join("\n") + "\n").as_bytes(), kept)
    }

    #[test]
    fn what_was_written_is_vouched_for_and_a_kept_head_is_in_it() {
        let (file, heads) = journal(&[1, 30, 2, 5]);
        let last = *heads.last().unwrap();
        for head in &heads {
            let lanes = verify(file.as_slice(), &[kept("", *head)]).unwrap();
            assert_eq!((lanes[0].summary.head, lanes[0].summary.records), (last, 38));
        }
        assert!(matches!(verify(file.as_slice(), &[kept("gw-1", last)]), Err(Fault::NoLane { .. })));
        assert!(matches!(verify(&b""[..], &[]), Err(Fault::Line { .. })));
    }

    /// Whoever holds the newest head finds any change; without it, all but a journal that ends earlier, consistently.
    fn tampered(mut lines: Vec<String>, how: u8, at: usize, other: usize) -> Vec<String> {
        // The first line begins the lane, the last ends it.
        let (first, count) = (1, lines.len() - 2);
        let (at, other) = (first + at % count, first + other % count);
        match how {
            0 => lines[at] = lines[at].replace("\\\"n\\\":", "\\\"m\\\":"),
            1 => drop(lines.remove(at)),
            2 => lines.insert(at, lines[other].clone()),
            3 => lines.swap(at, other),
            4 => lines[at] = lines[at].replacen("\"link\":\"", "\"link\":\"0", 1),
            _ => lines.truncate(at),
        }
        lines
    }

    /// The indexes of records among which the fault is, where it names them.
    fn place(fault: &Fault) -> Option<std::ops::RangeInclusive<u64>> {
        match fault {
            Fault::Broken { fault: Break::Link { first, index }, .. } => Some(*first..=*index),
            Fault::Broken { fault: Break::Gap { expected, .. }, .. } => Some(*expected..=*expected),
            Fault::Broken { fault: Break::Unlinked { first }, .. } => Some(*first..=u64::MAX),
            Fault::Short { is, said, .. } => Some(*is..=*said),
            _ => None,
        }
    }

    #[test]
    fn a_head_is_told_from_its_text_and_one_that_lies_before_the_records_is_no_head_of_theirs() {
        let (_, heads) = journal(&[3, 4]);
        for one in [kept("", heads[0]), kept("gw=1", heads[1])] {
            assert_eq!(one.to_string().parse(), Ok(one));
        }
        for text in ["", "3", "3:00", "gw=3", &format!("x:{}", hex::encode([0; 32]))] {
            assert!(text.parse::<Kept>().is_err(), "{text}");
        }
        let before = |first| Reading::new(String::new(), first, &[kept("", heads[0])]).map(|_| ()).unwrap_err();
        assert!(matches!(before(heads[1]), Fault::Before { index: 3, first: 7, .. }));
        assert!(matches!(before(Position { link: [7; 32], ..heads[0] }), Fault::Head { index: 3, .. }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn no_tampering_goes_unnoticed_by_who_holds_the_newest_head(
            sizes in prop::collection::vec(1..6_usize, 2..12), how in 0..6_u8, at in any::<usize>(), other in any::<usize>(),
        ) {
            let (file, heads) = journal(&sizes);
            let before = lines(&file);
            let after = tampered(before.clone(), how, at, other);
            prop_assume!(before != after);
            let newest = [kept("", *heads.last().unwrap())];
            let found = verified(&after, &newest);
            prop_assert!(found.is_err(), "{:#?}", after);
            // The fault is where the change is; a record's line stands one after its index.
            let changed = before.iter().zip(&after).position(|(before, after)| before != after);
            let (Some(changed), Some(place)) = (changed, found.err().as_ref().and_then(place)) else { return Ok(()) };
            let index = changed as u64 - 1;
            prop_assert!(place.contains(&index), "{index} is not in {place:?}");
        }

        /// Every leaf and link is made anew over a changed record: nothing but a kept head tells.
        #[test]
        fn a_journal_that_was_written_anew_is_told_by_any_head_after_the_change(
            sizes in prop::collection::vec(1..6_usize, 2..12), from in any::<usize>(),
        ) {
            let (_, heads) = journal(&sizes);
            // As many records in other batches: from there on all links are others.
            let mut other = sizes.clone();
            let at = from % sizes.len();
            other[at] += 1;
            let (file, _) = journal(&other);
            prop_assert!(verify(file.as_slice(), &[]).is_ok());
            for (nth, head) in heads.iter().enumerate() {
                prop_assert_eq!(verify(file.as_slice(), &[kept("", *head)]).is_ok(), nth < at);
            }
        }

        /// The journal ends earlier, with a head of its own to match: only a head that was kept tells.
        #[test]
        fn a_journal_that_was_rolled_back_is_told_by_a_kept_head_alone(sizes in prop::collection::vec(1..6_usize, 2..12), cut in any::<usize>()) {
            let cut = 1 + cut % (sizes.len() - 1);
            let (file, _) = journal(&sizes[..cut]);
            let (_, heads) = journal(&sizes);
            prop_assert!(verify(file.as_slice(), &[]).is_ok());
            let newest = [kept("", *heads.last().unwrap())];
            let is_head = matches!(verify(file.as_slice(), &newest), Err(Fault::Short { .. }));
            prop_assert!(is_head);
        }
    }
}
