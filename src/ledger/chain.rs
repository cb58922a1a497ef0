//! The verifier of the journal: recomputes every leaf and link and names the first place that does not hold.
//!
//! It vouches for what lies between its start and the head it returns. That the start, or the head, is the true
//! one is for the caller to know: a whole chain can be written anew by whoever owns the store.

use serde::Deserialize;
use uuid::Uuid;

use super::EngineError;
use crate::audit::{self, Event, Record};

/// A place in the journal: the link so far, and the index of the record to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The index of the next record.
    pub next_index: u64,
    /// The link of the last batch.
    pub link: [u8; 32],
}

impl Position {
    /// Before the first record.
    pub const GENESIS: Self = Self { next_index: 0, link: audit::GENESIS };

    /// The place after a batch with these leaves. A batch without records leaves it where it is.
    #[must_use]
    pub fn after(self, leaves: &[[u8; 32]]) -> Self {
        let Ok(count @ 1..) = u64::try_from(leaves.len()) else { return self };
        Self {
            next_index: self.next_index.saturating_add(count),
            link: audit::link(&self.link, self.next_index, leaves),
        }
    }
}

/// Where lanes of a journal stand, by name.
pub type Heads = std::collections::BTreeMap<String, Position>;

/// What is wrong where a lane once stood at `was` and now stands at `is`, with `link` on the record before `was`;
/// nothing where it has only grown, or begins, at `first`, only after that place: what lay there was pruned, and was older
/// than anything that is kept.
pub(super) fn regression(
    lane: &str,
    was: Position,
    is: Position,
    first: Position,
    link: Option<[u8; 32]>,
) -> Option<String> {
    let name = if lane.is_empty() { "the journal".to_owned() } else { format!("lane {lane}") };
    if is.next_index < was.next_index {
        return Some(format!("{name} stood at {} and stands at {}", was.next_index, is.next_index));
    }
    let same = match was.next_index {
        index if index == is.next_index => is.link == was.link,
        index if index < first.next_index => true,
        index if index == first.next_index => first.link == was.link,
        _ => link == Some(was.link),
    };
    (!same).then(|| format!("{name} has another past before {}", was.next_index))
}

/// Where a lane of the journal stands, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lane {
    /// How often it was taken over; whoever took it over before can write no more.
    pub epoch: i64,
    /// Where it stands.
    pub position: Position,
}

/// A record as the journal holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// Its index in the journal.
    pub index: u64,
    /// The record's bytes, in RFC 8785 form.
    pub bytes: Vec<u8>,
    /// Their leaf.
    pub leaf: [u8; 32],
    /// The link of its batch, on the batch's last record.
    pub link: Option<[u8; 32]>,
    /// The id by which its store finds it; absent where it comes from none, such as from a file.
    pub id: Option<Uuid>,
}

impl StoredRecord {
    /// The record.
    ///
    /// # Errors
    /// Where its bytes are no record of this version.
    pub fn record(&self) -> Result<Record, EngineError> {
        serde_json::from_slice(&self.bytes)
            .map_err(|fault| EngineError::Unfit(format!("the record at {} cannot be read: {fault}", self.index)))
    }

    /// What was found by an id, where that is its own. Whoever read on from another would leave records out, or come back to some.
    pub(super) fn by_its_id(self) -> Result<Self, EngineError> {
        if self.is_under_its_id() {
            return Ok(self);
        }
        let fault = Break::Id { index: self.index };
        Err(EngineError::Unfit(format!("the journal is damaged: {fault}; run `quotesign audit verify`")))
    }

    /// Whether its store finds it by the id that its bytes tell. By any other it would be left out of what is read by id.
    fn is_under_its_id(&self) -> bool {
        #[derive(Deserialize)]
        struct Told {
            id: Uuid,
        }
        let Some(id) = self.id else { return true };
        // Records end with their id and the schema, so that of millions none need be taken apart for that.
        let mut text = Uuid::encode_buffer();
        let end = [",\"id\":\"", id.hyphenated().encode_lower(&mut text), "\",\"schema\":\"", audit::SCHEMA, "\"}"];
        let before = end.iter().rev().try_fold(&*self.bytes, |bytes, part| bytes.strip_suffix(part.as_bytes()));
        before.is_some() || serde_json::from_slice::<Told>(&self.bytes).is_ok_and(|told| told.id == id)
    }

    /// The record where it tells of `event`; nothing where it tells of another, or cannot be read.
    #[must_use]
    pub fn of_event(&self, event: Event) -> Option<Record> {
        // Where nearly all records are others, those are not taken apart for that.
        let may_be = std::str::from_utf8(&self.bytes).is_ok_and(|text| text.contains(event.name()));
        may_be.then(|| self.record().ok()).flatten().filter(|record| record.event == event)
    }
}

/// Where a journal ends whose newest record this is.
pub(super) fn end_of(newest: Option<&StoredRecord>) -> Position {
    newest.map_or(Position::GENESIS, |newest| Position {
        next_index: newest.index.saturating_add(1),
        link: newest.link.unwrap_or_default(),
    })
}

/// What was found to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// How many records.
    pub records: u64,
    /// How many links.
    pub links: u64,
    /// Where the journal stands after them.
    pub head: Position,
}

/// The first place where the journal does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    /// A record is missing, or out of its place.
    #[error("record {expected} is missing: record {found} stands in its place")]
    Gap {
        /// The index that should stand here.
        expected: u64,
        /// The one that does.
        found: u64,
    },
    /// A record's bytes are not those that were hashed.
    #[error("record {index} is not the one its leaf was made of")]
    Leaf {
        /// Which.
        index: u64,
    },
    /// The store finds a record by another id than its own.
    #[error("record {index} stands under another id than its own, so that whoever reads by ids is not told of it")]
    Id {
        /// Which.
        index: u64,
    },
    /// The link does not follow from the records and the link before.
    #[error("the link at record {index} does not follow from the records {first} to {index} and the link before")]
    Link {
        /// The first record of the batch.
        first: u64,
        /// The last one, which holds the link.
        index: u64,
    },
    /// Records that no link covers.
    #[error("no link covers the records from {first} on")]
    Unlinked {
        /// The first of them.
        first: u64,
    },
}

/// Checks a journal record by record, for sources that give it in pages.
#[derive(Debug)]
pub struct Verifier {
    start: Position,
    head: Position,
    links: u64,
    leaves: Vec<[u8; 32]>,
    next_index: u64,
}

impl Verifier {
    /// Begins at `start`: [`Position::GENESIS`], or a place that is vouched for.
    #[must_use]
    pub fn new(start: Position) -> Self {
        Self { start, head: start, links: 0, leaves: Vec::new(), next_index: start.next_index }
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// Where the journal does not hold. There is no going on after that.
    pub fn push(&mut self, record: &StoredRecord) -> Result<(), Break> {
        let index = record.index;
        if index != self.next_index {
            return Err(Break::Gap { expected: self.next_index, found: index });
        }
        let leaf = audit::leaf(&record.bytes);
        if leaf != record.leaf {
            return Err(Break::Leaf { index });
        }
        if !record.is_under_its_id() {
            return Err(Break::Id { index });
        }
        self.next_index = self.next_index.saturating_add(1);
        self.leaves.push(leaf);
        let Some(link) = record.link else { return Ok(()) };
        let head = self.head.after(&self.leaves);
        if head.link != link {
            return Err(Break::Link { first: self.head.next_index, index });
        }
        self.head = head;
        self.links = self.links.saturating_add(1);
        self.leaves.clear();
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// Where the last records have no link.
    pub fn finish(self) -> Result<Summary, Break> {
        if !self.leaves.is_empty() {
            return Err(Break::Unlinked { first: self.head.next_index });
        }
        let records = self.head.next_index.saturating_sub(self.start.next_index);
        Ok(Summary { records, links: self.links, head: self.head })
    }
}

/// Checks all of `records`, from `start` on.
///
/// # Errors
/// The first place where the journal does not hold.
pub fn verify(start: Position, records: impl IntoIterator<Item = StoredRecord>) -> Result<Summary, Break> {
    let mut verifier = Verifier::new(start);
    for record in records {
        verifier.push(&record)?;
    }
    verifier.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::UtcTime,
        domain::{CorrelationId, Environment},
    };

    /// Three batches: of two, one and three records.
    fn journal() -> Vec<StoredRecord> {
        let mut records = Vec::new();
        let mut head = Position::GENESIS;
        for size in [2, 1, 3] {
            let batch: Vec<_> = (0..size)
                .map(|at| {
                    let bytes = format!("record {}", head.next_index + at).into_bytes();
                    StoredRecord { index: head.next_index + at, leaf: audit::leaf(&bytes), bytes, link: None, id: None }
                })
                .collect();
            head = head.after(&batch.iter().map(|record| record.leaf).collect::<Vec<_>>());
            records.extend(batch);
            records.last_mut().unwrap().link = Some(head.link);
        }
        records
    }

    fn found(change: impl FnOnce(&mut Vec<StoredRecord>)) -> Result<Summary, Break> {
        let mut records = journal();
        change(&mut records);
        verify(Position::GENESIS, records)
    }

    #[test]
    fn what_was_written_holds_from_any_link_on() {
        let summary = found(|_| {}).unwrap();
        assert_eq!((summary.records, summary.links, summary.head.next_index), (6, 3, 6));
        let records = journal();
        let middle = Position { next_index: 2, link: records[1].link.unwrap() };
        let rest = verify(middle, records[2..].to_vec()).unwrap();
        assert_eq!((rest.records, rest.head), (4, summary.head));
        assert_eq!(verify(Position::GENESIS, []).unwrap().head, Position::GENESIS);
    }

    #[test]
    fn a_record_that_its_store_finds_by_another_id_is_a_break() {
        let context = audit::Context::new(CorrelationId::made(), Environment::Sandbox, "00".to_owned(), 1);
        let record = Record::new(Event::Refused, UtcTime::from_millis(0), context, audit::Facts::default());
        let found_by = |bytes: &[u8], id| {
            let leaf = audit::leaf(bytes);
            let link = Some(Position::GENESIS.after(&[leaf]).link);
            let stored = StoredRecord { index: 0, bytes: bytes.to_vec(), leaf, link, id };
            assert_eq!(stored.clone().by_its_id().is_ok(), verify(Position::GENESIS, [stored.clone()]).is_ok());
            verify(Position::GENESIS, [stored]).map(|summary| summary.records)
        };
        // As it is written, and as it might have been; the ids of others that it tells of are not its own.
        let other = format!("{{\"schema\":\"x\",\"id\":\"{}\",\"facts\":{{\"id\":\"{}\"}}}}", record.id, Uuid::max());
        for bytes in [record.to_bytes().unwrap(), other.into_bytes()] {
            for id in [None, Some(record.id)] {
                assert_eq!(found_by(&bytes, id), Ok(1));
            }
            for id in [Uuid::nil(), Uuid::max(), Uuid::now_v7()] {
                assert_eq!(found_by(&bytes, Some(id)), Err(Break::Id { index: 0 }));
            }
        }
    }

    #[test]
    fn the_first_break_is_named() {
        assert_eq!(found(|r| r[3].bytes[0] ^= 1), Err(Break::Leaf { index: 3 }));
        assert_eq!(found(|r| drop(r.remove(2))), Err(Break::Gap { expected: 2, found: 3 }));
        assert_eq!(found(|r| r.swap(3, 4)), Err(Break::Gap { expected: 3, found: 4 }));
        assert_eq!(found(|r| r[5].link = None), Err(Break::Unlinked { first: 3 }));
        assert_eq!(found(|r| r[1].link = None), Err(Break::Link { first: 0, index: 2 }));
        assert_eq!(found(|r| r[2].link = Some([7; 32])), Err(Break::Link { first: 2, index: 2 }));
        let renumbered = found(|r| {
            r.swap(3, 4);
            (r[3].index, r[4].index) = (3, 4);
        });
        assert_eq!(renumbered, Err(Break::Link { first: 3, index: 5 }));
        let rewritten = found(|r| {
            r[0].bytes = b"another".to_vec();
            r[0].leaf = audit::leaf(b"another");
        });
        assert_eq!(rewritten, Err(Break::Link { first: 0, index: 1 }));
        assert_eq!(found(Vec::clear).map(|summary| summary.records), Ok(0));
    }
}
