//! Has the ledger store the JWS and its audit record, durably, in one transaction. Only what it then gives back
//! is released: ours, or the JWS of whoever was first.

use crate::{
    audit,
    clock::{ClockFault, ClockGuard},
    ledger::{Commit, Ledger, LedgerError, Released},
};

use super::verify::Verified;

/// Why a verified signature was not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The ledger refused or failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The clock cannot be trusted.
    #[error(transparent)]
    Clock(#[from] ClockFault),
}

/// Commits. Tells also whether it was the first to.
///
/// # Errors
/// Where the ledger did not confirm; nothing is released then.
pub async fn commit(
    verified: Verified,
    ledger: &Ledger,
    clock: &ClockGuard,
    context: audit::Context,
) -> Result<(Released, bool), CommitError> {
    let now = clock.now()?;
    let (reservation, jws, _seat) = verified.taken();
    let committed = ledger.commit(Commit { reservation, jws, context, now }).await?;
    clock.journal_reached(now);
    Ok(committed)
}
