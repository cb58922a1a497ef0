//! Lets no more quotes towards a device than it can take, and shares it fairly among callers: what cannot be served
//! soon enough is refused before a number is taken, with an honest time to come again.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Instant,
};

use crate::{
    call::Call,
    clock::UtcTime,
    domain::Caller,
    signer::{
        Flow,
        turns::{Busy, Place},
    },
};

use super::{canonicalise::Canonical, select::Keyed};

/// Which callers take turns with which: each with all others.
#[derive(Debug, Default)]
pub struct Flows(RandomState);

impl Flows {
    /// The flow of this caller; never the gateway's own.
    fn of(&self, caller: &Caller) -> Flow {
        Flow(self.0.hash_one(caller.to_string()) | 1)
    }
}

/// A quote with a place at its key's device; the place is given back when its signature is committed or refused.
#[derive(Debug)]
pub struct Admitted {
    pub(super) keyed: Keyed,
    pub(super) seat: Seat,
}

/// A place, and whose turns it takes.
#[derive(Debug)]
pub struct Seat {
    pub(super) flow: Flow,
    /// The device of the key at which it is.
    pub(super) replica: usize,
    _place: Place,
}

impl Admitted {
    /// The key was chosen before the quote had its place. One that waited for it until that key's time was over gets another key, and a place
    /// at that one's device.
    ///
    /// # Errors
    /// The quote, where its key may sign no more at `now`.
    pub fn in_time(self, now: UtcTime) -> Result<Self, Box<Canonical>> {
        if now < self.keyed.key.sign_until { Ok(self) } else { Err(Box::new(self.keyed.canonical)) }
    }
}

/// Takes a place. A quote of a stream waits for one, and those behind it with it: a stream is held back rather than refused.
///
/// # Errors
/// Where none is free for this caller, or its turn would come after its deadline.
pub async fn admit(keyed: Keyed, flows: &Flows, call: &Call) -> Result<Admitted, Busy> {
    let flow = flows.of(&call.caller);
    loop {
        match keyed.signer.place(flow, call.deadline) {
            Ok((replica, place)) => return Ok(Admitted { keyed, seat: Seat { flow, replica, _place: place } }),
            Err(Busy { retry_after }) if call.turn.is_some() && Instant::now() + retry_after < call.deadline => {
                tokio::time::sleep(retry_after).await;
            }
            Err(busy) => return Err(busy),
        }
    }
}
