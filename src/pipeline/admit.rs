//! Lets no more quotes towards a device than it can take, and shares it fairly among callers: what cannot be served
//! soon enough is refused before a number is taken, with an honest time to come again.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Instant,
};

use crate::{
    call::Call,
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

/// Why there is no place for a quote, and the quote: by the time it asks again its key may be another.
#[derive(Debug)]
pub struct Full {
    /// When to ask again.
    pub busy: Busy,
    pub(super) canonical: Canonical,
}

impl Full {
    /// The quote, where it asks again itself: one of a stream waits, and those behind it with it, since a stream is held back rather
    /// than refused.
    ///
    /// # Errors
    /// That there is none, where nobody waits, or not for so long.
    pub(super) async fn waited(self, call: &Call) -> Result<Canonical, Busy> {
        let Self { busy, canonical } = self;
        if call.turn.is_none() || Instant::now() + busy.retry_after >= call.deadline {
            return Err(busy);
        }
        tokio::time::sleep(busy.retry_after).await;
        Ok(canonical)
    }
}

/// Takes a place at the device of the key.
///
/// # Errors
/// Where none is free for this caller, or its turn would come after its deadline.
pub fn admit(keyed: Keyed, flows: &Flows, call: &Call) -> Result<Admitted, Box<Full>> {
    let flow = flows.of(&call.caller);
    match keyed.signer.place(flow, call.deadline) {
        Ok((replica, place)) => Ok(Admitted { keyed, seat: Seat { flow, replica, _place: place } }),
        Err(busy) => Err(Box::new(Full { busy, canonical: keyed.canonical })),
    }
}
