//! Verifies the very text that is to be released, with the published key of its kid, by the code that answers
//! `VerifyQuote`. Looks at the clock once more: an expired quote is not released.

use crate::{
    clock::{ClockFault, ClockGuard},
    domain::PayloadDigest,
    jws::{self, CompactJws, Unverified},
    ledger::{Released, Reservation},
    policy::Bundle,
};

use super::{admit::Place, reserve::Stored, sign::Signed};

/// Why a signature is not released.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It does not verify. An alarm: the device or its key is not what it should be.
    #[error("the signature does not verify: {0}")]
    Mismatch(#[from] Unverified),
    /// The stored JWS is not bound to what the caller sent. An alarm: the store was changed.
    #[error("the stored JWS is not the one its record is bound to")]
    Altered,
    /// The key of a stored JWS is in the bundle no more.
    #[error("the key of the stored JWS is in the policy bundle no more")]
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
    /// The ledger's word.
    reservation: Reservation,
    /// The JWS.
    jws: CompactJws,
    place: Place,
}

/// Verifies a new signature.
///
/// # Errors
/// Where it does not verify, or the quote has expired.
pub fn verify(signed: Signed, clock: &ClockGuard) -> Result<Verified, VerifyError> {
    let (reservation, jws, key, expires_at, place) = signed.taken();
    jws::verify(&jws, |kid| (*kid == key.kid).then_some(&*key.public))?;
    if expires_at <= clock.now()? {
        return Err(VerifyError::Expired);
    }
    Ok(Verified { reservation, jws, place })
}

/// Verifies a stored JWS before it is released again, and that it holds the payload it is bound to.
///
/// # Errors
/// Where the store no longer holds what was released.
pub fn verify_again(stored: Stored, policy: &Bundle) -> Result<Released, VerifyError> {
    let released = stored.taken();
    let key = policy.key(&released.kid).ok_or(VerifyError::KeyGone)?;
    let verified = jws::verify(&released.jws, |kid| (*kid == key.kid).then_some(&*key.public))?;
    let payload = serde_jcs::to_vec(&verified.payload).map_err(|_| VerifyError::Altered)?;
    if PayloadDigest::of(&payload) != released.payload {
        return Err(VerifyError::Altered);
    }
    Ok(released)
}

impl Verified {
    pub(super) fn taken(self) -> (Reservation, CompactJws, Place) {
        let Self { reservation, jws, place } = self;
        (reservation, jws, place)
    }
}
