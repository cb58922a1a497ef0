//! Has the device sign, within the deadline.

use std::{sync::Arc, time::Instant};

use crate::{
    clock::UtcTime,
    jws::CompactJws,
    ledger::Reservation,
    policy::timeline::TimedKey,
    signer::{SignError, Signature, keyring::Keyring},
};

use super::{admit::Place, reserve::Pending};

/// A quote with what the device says is its signature.
#[derive(Debug)]
pub struct Signed {
    /// The ledger's word.
    reservation: Reservation,
    /// The compact JWS; not to be trusted yet.
    jws: CompactJws,
    /// The key that should have signed it.
    key: Arc<TimedKey>,
    /// From when on it must not be released.
    expires_at: UtcTime,
    place: Place,
}

/// Signs.
///
/// # Errors
/// Where the device is full, away, or too slow. The reservation stands, so asking again finishes it.
pub async fn sign(pending: Pending, keyring: &Keyring, deadline: Instant) -> Result<Signed, SignError> {
    let (reservation, input, key, expires_at, place) = pending.taken();
    let signer =
        keyring.get(&key.kid).ok_or_else(|| SignError::Unavailable(format!("no signer is bound to `{}`", key.kid)))?;
    let signature = given(signer.sign(&input, deadline).await?);
    Ok(Signed { reservation, jws: input.into_jws(&signature.0), key, expires_at, place })
}

/// The signature as given. A test can have the device give another.
fn given(signature: Signature) -> Signature {
    fail::fail_point!("device::corrupt-signature", |_| Signature(signature.0.iter().map(|byte| !byte).collect()));
    signature
}

impl Signed {
    pub(super) fn taken(self) -> (Reservation, CompactJws, Arc<TimedKey>, UtcTime, Place) {
        (self.reservation, self.jws, self.key, self.expires_at, self.place)
    }
}
