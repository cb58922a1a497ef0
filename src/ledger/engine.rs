//! What makes batches durable, whichever store it is.

use crate::{audit, clock::UtcTime, domain::Identity};

use super::{
    Holding, Lease, Op, OpenReads, Reads, Shipment, Waiting,
    batch::{self, Replies},
    chain,
};

/// Why an engine could not make a batch durable.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nothing of the batch was applied.
    #[error("the store refused the transaction: {0}")]
    RolledBack(String),
    /// Nothing of the batch was applied, whatever is in it: the store takes nothing just now, of anybody.
    #[error("the store takes nothing: {0}")]
    Failing(String),
    /// Whether the batch was applied is not known; the engine was closed and must be opened again.
    #[error("the outcome of a transaction is unknown: {0}")]
    Unknown(String),
    /// The store cannot be reached; nothing was begun.
    #[error("{0}")]
    Away(String),
    /// The disk did not take what was written, and may never: nothing more is written before this process has ended. Whoever synchronises
    /// again is told that all is well, and it is not.
    #[error("{0}")]
    Lost(String),
    /// The store is not what this gateway can use: another environment, another version, a broken chain.
    #[error("{0}")]
    Unfit(String),
}

/// One durable transaction per call. Queueing, batching and retrying live above it, once.
pub trait Engine: Reads + Send + 'static {
    /// Renews this gateway's lease, and says which gateways of this ledger there are, itself among them. Beside the batches:
    /// leases are no memory, and nothing of the chain depends on them.
    ///
    /// # Errors
    /// Where the store cannot be reached.
    fn renew(&mut self, lease: &Holding) -> Result<Vec<Lease>, EngineError>;

    /// Takes down how far a lane was shipped, durably. It never goes back.
    ///
    /// # Errors
    /// Where that cannot be made durable; it may have been all the same.
    fn ship(&mut self, shipment: &Shipment) -> Result<(), EngineError>;

    /// Notes of reads that wait to be journalled, as commands left them. What is taken is given again until it is dropped.
    ///
    /// # Errors
    /// Where they cannot be read.
    fn take_readings(&mut self) -> Result<Vec<Waiting>, EngineError>;

    /// Forgets notes that were taken, all of one [`Engine::take_readings`], by their places.
    ///
    /// # Errors
    /// Where that cannot be done; they may be given again.
    fn drop_readings(&mut self, places: &[i64]) -> Result<(), EngineError>;

    /// How another connection to the same store is opened, that only reads.
    fn reads(&self) -> OpenReads;

    /// Whether what such a connection shows is durable wherever it must be. It is not where a commit waits for another server: one
    /// whose wait was cut off is shown all the same.
    fn reads_are_durable(&self) -> bool;

    /// Carries a batch out by [`batch::run`], appends the records with one link, and commits once. A refused operation
    /// is refused alone.
    ///
    /// # Errors
    /// Where the transaction did not commit, or may not have.
    fn apply(&mut self, batch: &[Op]) -> Result<Replies, EngineError>;

    /// The same of a batch that may still grow. An engine whose transaction is its own process's writes what came meanwhile
    /// into the same one, part by part, each with its link: whoever waits at the commit is in it.
    ///
    /// # Errors
    /// As for [`Engine::apply`], for the whole batch as it is then.
    fn apply_growing(&mut self, batch: &mut dyn batch::Growing) -> Result<Replies, EngineError> {
        self.apply(batch.ops())
    }

    /// Opens the store again after [`EngineError::Unknown`] and says what became of that batch: its replies where
    /// it had been committed after all, nothing where none of it was applied.
    ///
    /// # Errors
    /// Where it cannot be opened.
    fn reopen(&mut self) -> Result<Option<Replies>, EngineError>;

    /// Where every lane stands that this engine knows of; its own as it left it.
    fn heads(&self) -> chain::Heads;

    /// Those of `heads` that the store does not hold any more, each in words: it has gone back in time.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn gone_back(&mut self, heads: &chain::Heads) -> Result<Vec<String>, EngineError>;

    /// Reservations that expired unsigned before `now`, at most `count`.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn expired(&mut self, now: UtcTime, count: usize) -> Result<Vec<Identity>, EngineError>;

    /// The newest record of each lane that has any.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn newest_records(&mut self) -> Result<Vec<audit::Record>, EngineError>;

    /// The greatest time of any record of a reservation and what became of it: those alone are made only while the
    /// clock is trusted. Absent where there is none.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn newest_record_at(&mut self) -> Result<Option<UtcTime>, EngineError>;
}
