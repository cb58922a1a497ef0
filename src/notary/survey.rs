//! What a ledger's journal has grown by since a checkpoint: every record is held against its leaf and every link recomputed, so
//! that a checkpoint vouches for nothing that was not looked at.

use super::{
    checkpoint::{Checkpoint, entry},
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
    /// How many links the checkpoint has that it is held against.
    size: u64,
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
    /// A lane has a name that no gateway can have.
    #[error("the ledger has a lane with a name that no gateway can have")]
    Name,
    /// A lane that no checkpoint has yet does not begin at its beginning.
    #[error("lane `{lane}` begins at {first}, and no checkpoint has it: its front was cut off")]
    Front {
        /// Which.
        lane: String,
        /// Where it begins.
        first: u64,
    },
    /// A lane of the newest checkpoint is gone.
    #[error("lane `{lane}` is gone, and the newest checkpoint has it")]
    Gone {
        /// Which.
        lane: String,
    },
}

impl Fault {
    /// Whether somebody has changed the ledger; otherwise it cannot be read, or a key is missing in the config.
    #[must_use]
    pub fn is_tampering(&self) -> bool {
        !matches!(self, Self::Ledger(_) | Self::Checkpoint(super::checkpoint::Fault::Key))
    }
}

const PAGE: u32 = 1000;

/// What has come since the checkpoint of `size` links, which left the lanes at `since`; where there is none yet, since the
/// beginning that the ledger tells, for which nothing vouches then.
///
/// # Errors
/// The first thing that does not hold, and where the ledger cannot be read.
pub fn growth(journal: &dyn Journal, since: &Heads, size: u64) -> Result<Growth, Fault> {
    let mut growth = Growth { size, ..Growth::default() };
    let mut lanes = journal.lanes()?;
    // By their bytes, whatever order the store has for texts.
    lanes.sort_by(|one, other| one.lane.cmp(&other.lane));
    for Stretch { lane, first, head } in lanes {
        if !is_name(&lane) {
            return Err(Fault::Name);
        }
        let known = since.get(&lane).copied();
        if known.is_none() && size > 0 && first != Position::GENESIS {
            return Err(Fault::Front { lane, first: first.next_index });
        }
        growth.add(journal, &lane, known.unwrap_or(first), head)?;
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
            let (from, mut fault) = (next, None);
            journal.scan(lane, from, PAGE, &mut |stored| {
                next = stored.index.saturating_add(1);
                fault = self.take(lane, &stored, head, &mut verifier).err();
                fault.is_none()
            })?;
            if let Some(fault) = fault {
                return Err(fault);
            }
            if next == from {
                break;
            }
        }
        if verifier.finish().map_err(broken)?.head != head {
            return Err(Fault::Elsewhere { lane: lane.to_owned(), from: from.next_index, to: head.next_index });
        }
        Ok(())
    }

    fn take(
        &mut self,
        lane: &str,
        stored: &StoredRecord,
        head: Position,
        verifier: &mut Verifier,
    ) -> Result<(), Fault> {
        let bound = checkpoint(stored);
        self.is_news |= bound.is_none();
        // The record of a checkpoint that came later than the newest one there is.
        if let Some(had) = bound.filter(|had| *had > self.size) {
            return Err(Fault::GoneBack { had, has: self.size });
        }
        // What is written meanwhile is for the next checkpoint.
        if stored.index >= head.next_index {
            return Ok(());
        }
        verifier.push(stored).map_err(|fault| Fault::Broken { lane: lane.to_owned(), fault })?;
        let position = stored.link.map(|link| Position { next_index: stored.index.saturating_add(1), link });
        self.leaves.extend(position.map(|position| leaf(&entry(lane, position))));
        Ok(())
    }
}

/// How many links the checkpoint has that a record tells of; nothing of another record.
fn checkpoint(stored: &StoredRecord) -> Option<u64> {
    let record = stored.of_event(Event::Checkpointed)?;
    Checkpoint::unverified(&record.facts.checkpoint?).ok().map(|checkpoint| checkpoint.tree.size())
}

/// Whether a gateway can have this name; one that is alone has none.
fn is_name(lane: &str) -> bool {
    lane.len() <= 63 && lane.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}
