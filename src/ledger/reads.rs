//! What is asked of a ledger beside its batches, of whichever engine.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{
    EngineError, Kept,
    step::{Holds, Quote},
    stops::Stops,
};
use crate::{
    audit::Record,
    domain::{Identity, Kid, Scope, SequenceNumber},
};

/// What is asked of a ledger beside its batches.
pub trait Reads: Send {
    /// The quote of this identity.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn quote(&mut self, identity: &Identity) -> Result<Option<Quote>, EngineError>;

    /// The quote that holds this number of `scope`.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn numbered(&mut self, scope: &Scope, sequence: SequenceNumber) -> Result<Option<Quote>, EngineError>;

    /// At most `count` records whose ids are greater than `id`, by their ids. These are UUIDs of version 7, so that they
    /// rise with the time of the gateway that made them.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn records_after(&mut self, id: Uuid, count: u32) -> Result<Vec<Record>, EngineError>;

    /// What may not be signed now.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn stops(&mut self) -> Result<Stops, EngineError>;

    /// What keeps the ledger from pruning.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn holds(&mut self) -> Result<Holds, EngineError>;

    /// All that is remembered of kids.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn kids(&mut self) -> Result<BTreeMap<Kid, Kept>, EngineError>;

    /// The last number taken in `scope`; absent where it was never seeded.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn last_taken(&mut self, scope: &Scope) -> Result<Option<SequenceNumber>, EngineError>;
}

/// Opens a connection that only reads. It may wait, and is not to be called where tasks run.
pub type OpenReads = Box<dyn Fn() -> Result<Box<dyn Reads>, EngineError> + Send>;
