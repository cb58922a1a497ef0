//! Verifies the very text that is to be released, with the published key of its kid, by the code that answers
//! `VerifyQuote`. Looks at the clock once more: an expired quote is not released.

use std::sync::Arc;

use crate::{
    clock::{ClockFault, ClockGuard, UtcTime},
    domain::Kid,
    jws::CompactJws,
    ledger::{Released, Reservation},
    policy::Bundle,
    verification::{self, Binding, Evidence, Unverified},
};

use super::{admit::Seat, reserve::Stored, sign::Signed};

/// Why a signature is not released.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It does not verify. An alarm: the device or its key is not what it should be.
    #[error("the signature does not verify: {0}")]
    Mismatch(#[from] Unverified),
    /// The key of a stored JWS is not in the bundle of this gateway, which has not followed a newer one yet: no bundle drops a key
    /// while a quote of it can be presented.
    #[error("this gateway's policy bundle does not have the key that signed this quote; send the same quote again")]
    KeyGone,
    /// The quote expired while it was being signed.
    #[error("the quote expired before its signature could be released")]
    Expired,
    /// The clock cannot be trusted.
    #[error(transparent)]
    Clock(#[from] ClockFault),
}

/// A quote whose JWS verifies.
#[derive(Debug)]
pub struct Verified {
    reservation: Reservation,
    jws: CompactJws,
    seat: Seat,
}

/// Verifies a new signature.
///
/// # Errors
/// Where it does not verify, or the quote has expired.
pub fn verify(signed: Signed, policy: &Bundle, clock: &ClockGuard) -> Result<Verified, VerifyError> {
    let (reservation, jws, key, source, expires_at, seat) = signed.taken();
    let now = clock.now()?;
    if expires_at <= now {
        return Err(VerifyError::Expired);
    }
    let binding = Binding { sequence: reservation.sequence(), input: reservation.input() };
    check(&jws, &key.kid, policy, now, &binding).inspect_err(|fault| source.distrust(&fault.to_string()))?;
    Ok(Verified { reservation, jws, seat })
}

/// Verifies a stored JWS before it is released again: the store may have been changed.
///
/// # Errors
/// Where the store no longer holds what was released.
pub fn verify_again(stored: Stored, policy: &Bundle, now: UtcTime) -> Result<Released, VerifyError> {
    let released = stored.taken();
    let binding = Binding { sequence: released.sequence, input: released.input };
    check(&released.jws, &released.kid, policy, now, &binding)?;
    Ok(released)
}

/// Every step, with the pinned key of this kid alone, and with what the ledger binds.
fn check(jws: &CompactJws, kid: &Kid, policy: &Bundle, now: UtcTime, binding: &Binding) -> Result<(), VerifyError> {
    let key = policy.key(kid).ok_or(VerifyError::KeyGone)?;
    let evidence = Evidence {
        key: &|named| (named == kid).then_some(&*key.public),
        partner: Some(&key.partner),
        contract: &|quote| policy.contract_of(quote).map(Arc::as_ref),
        now,
    };
    verification::verify(jws, &evidence).bound(Some(binding)).into_result()?;
    Ok(())
}

impl Verified {
    pub(super) fn taken(self) -> (Reservation, CompactJws, Seat) {
        (self.reservation, self.jws, self.seat)
    }
}
