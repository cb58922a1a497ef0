//! The gateway's only memory: which number belongs to which payload, which JWS to which quote, and the
//! journal of what was decided. A reservation is durable before a key is used; a JWS is durable before it is
//! released.
//!
//! [`step`] is the whole state machine, pure; an [`Engine`] makes batches of steps durable; [`Ledger`] is the
//! front that the pipeline calls: it queues operations to one writer, which commits whatever waits together.

use std::{sync::Arc, time::Duration};

use crate::{
    audit,
    clock::UtcTime,
    domain::{Caller, Identity, InputDigest, Kid, PayloadDigest, Scope, SequenceNumber},
    jws::{CompactJws, Draft},
};

mod absent;
mod acts;
pub mod anchor;
pub mod asked;
pub mod batch;
pub mod chain;
mod condition;
mod encoding;
mod engine;
mod front;
mod kept;
mod lease;
mod place;
pub mod postgres;
mod reading;
mod reads;
mod shipment;
pub mod sqlite;
pub mod step;
pub mod stops;

pub use absent::Absent;
pub use acts::{CheckpointAct, HoldAct, Note, Noted, Proposal, Propose, Prune, PruneJournal, Publish, Seed, StopAct};
pub use condition::{AnchorState, Condition, ServerClock};
pub use engine::{Engine, EngineError};
pub use front::{Ledger, LedgerConfig, Load, Opening, Recalled, SWEEP_MAX};
pub use kept::Kept;
pub use lease::{Holding, LEASE, Lease};
pub use place::{Journal, Place, Store, Stretch};
pub use reading::{Reading, Waiting};
pub use reads::{OpenReads, Reads};
pub use shipment::{Quarantined, Shipment};
pub use stops::{Reach, Stop};

/// Binds a number and a key to a payload, before anything is signed.
#[derive(Debug, Clone)]
pub struct Reserve {
    /// The quote.
    pub identity: Identity,
    /// Its sequence.
    pub scope: Scope,
    /// How it gets its number.
    pub numbering: Numbering,
    /// How far beyond the last number a number may lie.
    pub jump_max: u64,
    /// Development alone: an unknown scope starts at zero by itself.
    pub seed_if_unknown: bool,
    /// What the identity is bound to.
    pub payload: PayloadDigest,
    /// The key that signs.
    pub kid: Kid,
    /// From when on the quote is refused.
    pub expires_at: UtcTime,
    /// The least time it must have left to be worth a signature; a quote signed before is given until its expiry.
    pub useful: Duration,
    /// Whether it is written although nobody waits for it any more: what came behind it in a stream takes its number after it, and it
    /// is asked for again.
    pub stays: bool,
    /// The quotas that a new reservation is charged to. A replay or retry is free.
    pub charges: Vec<Charge>,
    /// For the record.
    pub context: audit::Context,
    /// The gateway's time.
    pub now: UtcTime,
}

/// How a quote gets its number.
#[derive(Debug, Clone)]
pub enum Numbering {
    /// The caller gave it.
    Given {
        /// The number.
        sequence: SequenceNumber,
        /// What will be signed.
        input: InputDigest,
    },
    /// The ledger gives the next one; the draft says what will then be signed.
    Assigned(Arc<Draft>),
}

/// One unit taken from a quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// The quota's name and what it is counted for, such as `signed_per_partner/acme-remit`.
    pub quota: String,
    /// What it gives.
    pub allowance: Allowance,
}

/// What a quota gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// By GCRA: `burst` at once, one more each `interval`.
    Rate {
        /// The time in which one unit comes back.
        interval: Duration,
        /// How many units may be taken at once.
        burst: u32,
    },
    /// So many in each day of UTC.
    Day(u32),
}

/// Stores the verified JWS of a reservation and its audit record, so that it may be released.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The reservation, as [`Reserved::Pending`] gave it.
    pub reservation: Reservation,
    /// The verified JWS.
    pub jws: CompactJws,
    /// For the record.
    pub context: audit::Context,
    /// The gateway's time.
    pub now: UtcTime,
}

/// Ends a reservation that expired unsigned. Its number stays taken.
#[derive(Debug, Clone)]
pub struct Void {
    /// The quote.
    pub identity: Identity,
    /// For the record.
    pub context: audit::Context,
    /// The gateway's time.
    pub now: UtcTime,
}

/// One operation of the ledger.
#[derive(Debug, Clone)]
pub enum Op {
    /// See [`Reserve`].
    Reserve(Reserve),
    /// See [`Commit`].
    Commit(Commit),
    /// See [`Void`].
    Void(Void),
    /// See [`Seed`].
    Seed(Seed),
    /// See [`StopAct`].
    Stop(StopAct),
    /// See [`Publish`].
    Publish(Publish),
    /// See [`Note`].
    Note(Note),
    /// See [`Propose`].
    Propose(Propose),
    /// See [`Prune`].
    Prune(Prune),
    /// See [`PruneJournal`].
    PruneJournal(PruneJournal),
    /// See [`HoldAct`].
    Hold(HoldAct),
    /// See [`CheckpointAct`].
    Checkpoint(CheckpointAct),
    /// Journals a refusal or an administrative act.
    Record(audit::Record),
}

/// A durable hold on a number for a payload. Only the ledger makes one; the sign stage takes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    identity: Identity,
    sequence: SequenceNumber,
    kid: Kid,
    generation: u32,
    input: InputDigest,
}

impl Reservation {
    /// The quote.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
    /// Its number.
    #[must_use]
    pub fn sequence(&self) -> SequenceNumber {
        self.sequence
    }
    /// The key it is bound to.
    #[must_use]
    pub fn kid(&self) -> &Kid {
        &self.kid
    }
    /// How often it was bound to a key; the first time is 1. A commit of an older generation releases nothing.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }
    /// What is to be signed.
    #[must_use]
    pub fn input(&self) -> InputDigest {
        self.input
    }
}

/// What reserving came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reserved {
    /// The number is held: sign and commit. The same for a new reservation and for one that an earlier call left.
    Pending(Reservation),
    /// Signed by an earlier call: here it is again.
    Replay(Released),
}

/// A stored JWS that may leave the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// The JWS, byte for byte as first released.
    pub jws: CompactJws,
    /// The key that signed it.
    pub kid: Kid,
    /// Its number.
    pub sequence: SequenceNumber,
    /// The digest its identity is bound to.
    pub payload: PayloadDigest,
    /// The digest of the signing input.
    pub input: InputDigest,
    /// The quote's expiry.
    pub expires_at: UtcTime,
    /// The audit record of the commit.
    pub record: uuid::Uuid,
}

/// Why the ledger refuses an operation. Nothing was changed; no number was taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The identity is bound to another payload.
    #[error("the quote id is bound to another payload (number {})", bound.1)]
    Conflict {
        /// The digest and number of the payload it is bound to: for the record, not for another caller.
        bound: (PayloadDigest, SequenceNumber),
    },
    /// The number is not greater than the last one taken.
    #[error("the number {given} is not greater than {last}, the last one taken")]
    NotMonotonic {
        /// The number given.
        given: SequenceNumber,
        /// The last one taken in its scope.
        last: SequenceNumber,
    },
    /// The number is further ahead than policy allows.
    #[error("the number {given} is beyond {highest}, the highest one acceptable after {last}")]
    TooFarAhead {
        /// The number given.
        given: SequenceNumber,
        /// The last one taken in its scope.
        last: SequenceNumber,
        /// The highest one acceptable now.
        highest: SequenceNumber,
    },
    /// The scope was never seeded.
    #[error("the sequence's scope was never seeded")]
    UnknownScope,
    /// A quota is spent.
    #[error("the quota `{quota}` is spent")]
    QuotaSpent {
        /// Which.
        quota: String,
        /// When to come again, from now.
        retry_after: Duration,
    },
    /// The quote's expiry has come, or leaves a new one too little time to be of use.
    #[error("the quote has expired, or ends too soon to be of use; issue a new one under a new id")]
    Expired,
    /// A reservation's rebuilt signing input is not what was reserved. A fault of the gateway.
    #[error("the signing input is not the one that was reserved")]
    InputMismatch,
    /// No reservation of that generation waits: it was never made, was voided, or was bound to another key since.
    #[error("no such reservation waits for a signature")]
    NotReserved,
    /// The key that signed the quote was revoked: what it signed is never given again.
    #[error("the key `{kid}` was revoked")]
    KidRevoked {
        /// Which.
        kid: Kid,
    },
    /// The key that was to sign the quote was revoked before it did: another key can sign it.
    #[error("the key `{kid}` was revoked before it signed the quote")]
    KidWithdrawn {
        /// Which.
        kid: Kid,
    },
    /// An operator halted signing.
    #[error("signing is halted ({reach})")]
    Halted {
        /// How far.
        reach: Reach,
    },
    /// An operator suspended the caller.
    #[error("this caller is suspended by the operators")]
    Suspended,
    /// The kid is another key's, or another partner's.
    #[error("the kid `{kid}` was another key before; a kid is one key of one partner for ever: take a new kid")]
    KidReused {
        /// Which.
        kid: Kid,
    },
    /// No bundle has made the kid known.
    #[error("the kid `{kid}` is not known; a bundle must name it first")]
    KidUnknown {
        /// Which.
        kid: Kid,
    },
    /// There is no such stop to end.
    #[error("`{stop}` does not stand; `quotesign admin status` shows what does")]
    NotStopped {
        /// What was to be ended.
        stop: Stop,
    },
    /// No hold has this name.
    #[error("no hold is named `{id}`")]
    NoSuchHold {
        /// The name.
        id: String,
    },
    /// The hold keeps more already than it would.
    #[error("the hold `{id}` keeps everything since {present} already; release it, or give an earlier time")]
    HoldKeepsMore {
        /// Its name.
        id: String,
        /// Since when.
        present: UtcTime,
    },
    /// The floor is not above the present one.
    #[error("the floor {given} is not above {present}")]
    FloorNotRaised {
        /// The floor asked for.
        given: SequenceNumber,
        /// The last number taken, or the present floor.
        present: SequenceNumber,
    },
}

/// What an operation came to, once durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// Of [`Op::Reserve`].
    Reserved(Reserved),
    /// Of [`Op::Commit`].
    Committed {
        /// Ours, or the one that was first.
        released: Released,
        /// Whether it is ours.
        first: bool,
    },
    /// Of [`Op::Void`].
    Voided,
    /// Of [`Op::Seed`]: the floor before, and the record of the act.
    Seeded(Option<SequenceNumber>, uuid::Uuid),
    /// Of [`Op::Stop`]: the record of the act.
    Stopped(uuid::Uuid),
    /// Of [`Op::Publish`].
    Published,
    /// Of [`Op::Note`]: the record, where it was news.
    Noted(Option<uuid::Uuid>),
    /// Of [`Op::Propose`]: who had asked before, where another one has now agreed; and the record.
    Proposed(Option<Caller>, uuid::Uuid),
    /// Of [`Op::Prune`]: how many quotes.
    Pruned(usize),
    /// Of [`Op::PruneJournal`]: how many records; none where the lane begins elsewhere, or a hold keeps them.
    PrunedJournal(u64),
    /// Of [`Op::Hold`]: the record of the act.
    Held(uuid::Uuid),
    /// Of [`Op::Checkpoint`]: the record; nothing where another gateway made one first.
    Checkpointed(Option<uuid::Uuid>),
    /// Of [`Op::Record`].
    Recorded,
}

/// Why the ledger could not do its part. Nothing is released on any of these.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Refused; the caller's or the operator's to mend.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The queue is full. Nothing was begun.
    #[error("the ledger's queue is full")]
    Full,
    /// The store failed, or its outcome is unknown. Asking again is safe.
    #[error("the ledger is unavailable: {0}")]
    Unavailable(String),
}
