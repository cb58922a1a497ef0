//! What a ledger's journal has grown by since a checkpoint: every record is held against its leaf and every link recomputed, so
//! that a checkpoint vouches for nothing that was not looked at.

use super::{
    checkpoint::entry,
    tree::{Hash, leaf},
};
use crate::{
    audit::Event,
    ledger::{
        EngineError, Journal, Stretch,
        chain::{Break, Heads, Position, StoredRecord, Verifier},
    },
};

/// What is new in a journal.
#[derive(Debug, Default)]
pub struct Growth {
    /// Where every lane stands.
    pub heads: Heads,
    /// The leaves of the new links, in their order: lane by lane in the order of their names.
    pub leaves: Vec<Hash>,
    /// Whether it tells of anything but checkpoints.
    pub is_news: bool,
}

/// Why a journal is not the one that a checkpoint was made of, with what came after it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] EngineError),
    /// A lane's chain does not hold.
    #[error("lane `{lane}`: {fault}")]
    Broken {
        /// Which.
        lane: String,
        /// Where, and what.
        fault: Break,
    },
    /// A lane stands elsewhere than its records lead to.
    #[error("lane `{lane}`: the journal does not go on from {from} to its head at {to}")]
    Elsewhere {
        /// Which.
        lane: String,
        /// Where the newest checkpoint left it.
        from: u64,
        /// Where it stands.
        to: u64,
    },
    /// The newest checkpoint is none that this gateway can rely on.
    #[error("the newest checkpoint in the ledger: {0}")]
    Checkpoint(#[from] super::checkpoint::Fault),
    /// The ledger has another newest checkpoint than it had.
    #[error("the ledger had a checkpoint of {had} links and has one of {has}, or another one of as many")]
    GoneBack {
        /// How many links the newest one had that was seen there.
        had: u64,
        /// How many it has now.
        has: u64,
    },
    /// A lane of the newest checkpoint is gone.
    #[error("lane `{lane}` is gone, and the newest checkpoint has it")]
    Gone {
        /// Which.
        lane: String,
    },
}

const PAGE: u32 = 1000;
/// Among more new records than this there is one that is no checkpoint's.
const CHECKPOINTS_MAX: usize = 8;

/// What has come since lanes stood at `since`.
///
/// # Errors
/// The first thing that does not hold, and where the ledger cannot be read.
pub fn growth(journal: &dyn Journal, since: &Heads) -> Result<Growth, Fault> {
    let mut growth = Growth::default();
    for Stretch { lane, first, head } in journal.lanes()? {
        let from = since.get(&lane).copied().unwrap_or(first);
        growth.add(journal, &lane, from, head)?;
        growth.heads.insert(lane, head);
    }
    match since.keys().find(|lane| !growth.heads.contains_key(*lane)) {
        Some(lane) => Err(Fault::Gone { lane: lane.clone() }),
        None => Ok(growth),
    }
}

impl Growth {
    fn add(&mut self, journal: &dyn Journal, lane: &str, from: Position, head: Position) -> Result<(), Fault> {
        let broken = |fault| Fault::Broken { lane: lane.to_owned(), fault };
        let mut verifier = Verifier::new(from);
        let mut next = from.next_index;
        while next < head.next_index {
            let page = journal.records(lane, next, PAGE)?;
            let Some(last) = page.last() else { break };
            next = last.index.saturating_add(1);
            self.is_news |= page.len() > CHECKPOINTS_MAX || !page.iter().all(is_checkpoint);
            // What is written meanwhile is for the next checkpoint.
            for stored in page.iter().filter(|stored| stored.index < head.next_index) {
                verifier.push(stored).map_err(broken)?;
                let position = stored.link.map(|link| Position { next_index: stored.index.saturating_add(1), link });
                self.leaves.extend(position.map(|position| leaf(&entry(lane, position))));
            }
        }
        if verifier.finish().map_err(broken)?.head != head {
            return Err(Fault::Elsewhere { lane: lane.to_owned(), from: from.next_index, to: head.next_index });
        }
        Ok(())
    }
}

fn is_checkpoint(stored: &StoredRecord) -> bool {
    stored.record().is_ok_and(|record| record.event == Event::Checkpointed)
}
