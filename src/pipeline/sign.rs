//! Has the device sign, in the caller's turn and within the deadline.

use std::{sync::Arc, time::Instant};

use tokio_util::sync::CancellationToken;

use crate::{
    clock::UtcTime,
    jws::CompactJws,
    ledger::Reservation,
    policy::timeline::TimedKey,
    signer::{Order, SignError, Signature, keyring::BoundKey},
};

use super::{admit::Seat, reserve::Pending};

/// A quote with what the device says is its signature.
#[derive(Debug)]
pub struct Signed {
    /// The ledger's word.
    reservation: Reservation,
    /// The compact JWS; not to be trusted yet.
    jws: CompactJws,
    /// The key that should have signed it.
    key: Arc<TimedKey>,
    /// Whose it is.
    source: Source,
    /// From when on it must not be released.
    expires_at: UtcTime,
    seat: Seat,
}

/// Which device gave a signature.
#[derive(Debug)]
pub(super) struct Source {
    signer: Arc<BoundKey>,
    replica: usize,
}

impl Source {
    /// Its signature does not verify.
    pub(super) fn distrust(&self, why: &str) {
        self.signer.distrust(self.replica, why);
    }
}

/// Signs. `gone` is cancelled when the caller has left: what has not reached its device by then is not signed.
///
/// # Errors
/// Where the device is full, away, or too slow. The reservation stands, so asking again finishes it.
pub async fn sign(pending: Pending, deadline: Instant, gone: CancellationToken) -> Result<Signed, SignError> {
    let (reservation, input, key, signer, expires_at, seat) = pending.taken();
    let given = signer.sign(&input, &Order { deadline, flow: seat.flow, gone }, seat.replica).await?;
    let jws = input.into_jws(corruptible(given.signature).bytes());
    let source = Source { signer, replica: given.replica };
    Ok(Signed { reservation, jws, key, source, expires_at, seat })
}

/// The signature as given. A test can have the device give another.
fn corruptible(signature: Signature) -> Signature {
    fail::fail_point!("device::corrupt-signature", |_| Signature(signature.0.iter().map(|byte| !byte).collect()));
    signature
}

impl Signed {
    pub(super) fn taken(self) -> (Reservation, CompactJws, Arc<TimedKey>, Source, UtcTime, Seat) {
        (self.reservation, self.jws, self.key, self.source, self.expires_at, self.seat)
    }
}
