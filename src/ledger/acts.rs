//! What people and the gateway itself do to the ledger beside quotes.

use std::time::Duration;

use super::{Kept, Stop, chain::Position};
use crate::{
    audit,
    clock::UtcTime,
    domain::{Caller, KeyState, Kid, Scope, SequenceNumber, sha256},
};

/// Creates a scope, or raises its floor.
#[derive(Debug, Clone)]
pub struct Seed {
    /// The scope.
    pub scope: Scope,
    /// The last number that counts as taken.
    pub floor: SequenceNumber,
    /// Why, in the operator's words.
    pub reason: String,
    /// For the record.
    pub context: audit::Context,
    /// The gateway's time.
    pub now: UtcTime,
}

/// Stops signing, or resumes it.
#[derive(Debug, Clone)]
pub struct StopAct {
    /// What.
    pub stop: Stop,
    /// Whether it stands from now on. A revocation stands for good.
    pub stands: bool,
    /// Why, in the operator's words.
    pub reason: String,
    /// For the record.
    pub context: audit::Context,
    /// The gateway's time.
    pub now: UtcTime,
}

/// Makes a kid known, before it is published for the first time.
#[derive(Debug, Clone)]
pub struct Publish {
    /// Which.
    pub kid: Kid,
    /// What is to be remembered of it.
    pub kept: Kept,
    /// For the record.
    pub context: audit::Context,
    /// The gateway's time.
    pub now: UtcTime,
}

/// Notes what has become of a known kid.
#[derive(Debug, Clone)]
pub struct Note {
    /// Which.
    pub kid: Kid,
    /// What.
    pub noted: Noted,
    /// For the record.
    pub context: audit::Context,
    /// The gateway's time.
    pub now: UtcTime,
}

/// What can become of a kid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Noted {
    /// Every gateway that counts serves it, and the partner's registered URL shows it where policy names one.
    Served,
    /// It has come to this state of its timeline.
    Turned(KeyState),
    /// It may sign before its propagation time is over.
    Activated {
        /// Why, in the operators' words.
        reason: String,
    },
}

/// One of two people asks for an act that needs two.
#[derive(Debug, Clone)]
pub struct Propose {
    /// The act with all that it depends on: two mean the same where this is the same.
    pub act: String,
    /// Who asks.
    pub caller: Caller,
    /// How long another may agree.
    pub within: Duration,
    /// For the record.
    pub context: audit::Context,
    /// The gateway's time.
    pub now: UtcTime,
}

impl Propose {
    /// By what the act is found again.
    #[must_use]
    pub fn key(&self) -> String {
        key_of(&self.act)
    }
}

/// By what a proposed act is found again.
pub(super) fn key_of(act: &str) -> String {
    hex::encode(sha256(act.as_bytes()))
}

/// An act that waits for a second person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Who asked.
    pub caller: Caller,
    /// Until when another may agree.
    pub until: UtcTime,
}

/// Forgets quotes that expired long ago; their numbers stay taken.
#[derive(Debug, Clone)]
pub struct Prune {
    /// Those that expired before this.
    pub before: UtcTime,
    /// How many at most.
    pub count_max: u32,
    /// For the record.
    pub context: audit::Context,
    /// The gateway's time.
    pub now: UtcTime,
}

/// Forgets the oldest records of a lane: whole batches, up to a link that the rest hangs on.
#[derive(Debug, Clone)]
pub struct PruneJournal {
    /// The lane.
    pub lane: String,
    /// Where it begins, as whoever asks has seen it.
    pub from: Position,
    /// Where it is to begin: after a batch that is not its newest.
    pub to: Position,
    /// The newest time of a record between the two.
    pub newest: UtcTime,
    /// Nothing that was journalled then or later goes.
    pub before: UtcTime,
    /// What records between the two say of other lanes, as [`PruneJournal::again`] says it again.
    pub again: Vec<String>,
    /// For the record.
    pub context: audit::Context,
    /// The gateway's time.
    pub now: UtcTime,
}

/// What follows on what a record said that went.
const AGAIN: &str = "; said again where the record of it went";

impl PruneJournal {
    /// What its record says.
    #[must_use]
    pub fn detail(&self) -> String {
        let (first, last) = (self.from.next_index, self.to.next_index.saturating_sub(1));
        let of = if self.lane.is_empty() { String::new() } else { format!(" of lane {}", self.lane) };
        format!("records {first} to {last}{of}, journalled before {}", self.before)
    }

    /// What is journalled in the place of a record that said `detail`.
    #[must_use]
    pub fn again(detail: &str) -> String {
        format!("{}{AGAIN}", detail.strip_suffix(AGAIN).unwrap_or(detail))
    }

    /// The lane, and the index of the last record that went, as [`PruneJournal::detail`] says it.
    #[must_use]
    pub fn told(detail: &str) -> Option<(String, u64)> {
        let (records, _) = detail.strip_prefix("records ")?.split_once(", journalled before ")?;
        let (_, rest) = records.split_once(" to ")?;
        let (last, lane) = rest.split_once(" of lane ").unwrap_or((rest, ""));
        Some((lane.to_owned(), last.parse().ok()?))
    }
}

/// Stores a signed checkpoint of the journal.
#[derive(Debug, Clone)]
pub struct CheckpointAct {
    /// How many links the newest one had that it follows; 0 where it is the first.
    pub before: u64,
    /// How many it has.
    pub size: u64,
    /// The signed checkpoint, a compact JWS.
    pub jws: String,
    /// For the record.
    pub context: audit::Context,
    /// The gateway's time.
    pub now: UtcTime,
}

/// Keeps the ledger from pruning, or releases it again.
#[derive(Debug, Clone)]
pub struct HoldAct {
    /// Its name, by which it is released.
    pub id: String,
    /// What expired or was journalled since then is kept; absent to release the hold.
    pub since: Option<UtcTime>,
    /// Why, in the operator's words.
    pub reason: String,
    /// For the record.
    pub context: audit::Context,
    /// The gateway's time.
    pub now: UtcTime,
}
