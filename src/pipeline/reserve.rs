//! Has the ledger bind number, payload and key to each other, durably, before any key is used; or learns that
//! the quote was signed before.

use std::{sync::Arc, time::Duration};

use crate::{
    audit::{self, Event, Record},
    call::Call,
    clock::UtcTime,
    domain::{Environment, SequenceNumber},
    jws::{Draft, SigningInput},
    ledger::{
        Allowance, Charge, Ledger, LedgerError, Numbering, Refusal, Released, Reservation, Reserve, Reserved, Stop,
    },
    policy::{Bundle, Quotas, timeline::TimedKey},
    signer::keyring::BoundKey,
    stopped::Stopped,
};

use super::{
    admit::{Admitted, Seat},
    authorize::Subject,
    canonicalise::Mark,
    select::Keyed,
};

/// What reserving came to.
#[derive(Debug)]
pub enum Held {
    /// The number is held: the quote may be signed.
    Pending(Pending),
    /// The quote was signed before.
    Replay(Stored),
}

/// A quote that may be signed, since its reservation is durable.
#[derive(Debug)]
pub struct Pending {
    reservation: Reservation,
    input: SigningInput,
    key: Arc<TimedKey>,
    signer: Arc<BoundKey>,
    expires_at: UtcTime,
    seat: Seat,
}

/// A JWS of an earlier call.
#[derive(Debug)]
pub struct Stored {
    released: Released,
}

/// What is to be signed.
enum Unsigned {
    /// The caller gave the number.
    Numbered(SequenceNumber, SigningInput),
    /// The ledger gives it.
    Draft(Arc<Draft>),
}

/// Reserves.
///
/// # Errors
/// The ledger's refusal, or that it could not do its part in time. In both cases asking again is safe.
pub async fn reserve(
    admitted: Admitted,
    policy: &Bundle,
    ledger: &Ledger,
    call: &Call,
    now: UtcTime,
    trail: &audit::Context,
) -> Result<Held, LedgerError> {
    let Admitted { keyed: Keyed { canonical, key, signer }, seat } = admitted;
    let (Subject { quote, terms, contract, partner }, bytes, mark) = canonical.taken();
    let unsigned = match terms.sequence {
        Some(sequence) => Unsigned::Numbered(sequence, SigningInput::of_quote(&key.kid, &bytes)),
        None => Unsigned::Draft(Arc::new(Draft::new(key.kid.clone(), quote, contract.claims.sequence.clone()))),
    };
    let op = Reserve {
        identity: mark.identity,
        scope: policy.scope(&partner, Some(&terms.corridor)),
        numbering: numbering(&unsigned),
        jump_max: partner.sequence.jump_max,
        seed_if_unknown: policy.environment == Environment::Development,
        payload: mark.payload,
        kid: key.kid.clone(),
        expires_at: terms.expires_at,
        useful: policy.validity.useful(),
        stays: call.turn.is_some(),
        charges: charges(&policy.quotas, partner.id.as_str(), &call.caller.to_string(), key.kid.as_str()),
        context: trail.clone(),
        now,
    };
    let reserving = ledger.reserve(op);
    // The ledger has it in its place now.
    if let Some(turn) = &call.turn {
        turn.pass();
    }
    match reserving.await? {
        Reserved::Replay(released) => Ok(Held::Replay(Stored { released })),
        Reserved::Pending(reservation) => {
            let input = input_of(unsigned, &reservation)?;
            Ok(Held::Pending(Pending { reservation, input, key, signer, expires_at: terms.expires_at, seat }))
        }
    }
}

/// What an earlier call had signed: no key, device or place is needed to give it again, and no transaction. It is
/// journalled with the next batch, where it `is_written` and not only counted; where the ledger must be on two servers, always, and
/// before it is given.
///
/// # Errors
/// Where the key that signed it was revoked since, the ledger cannot be read, or the JWS may not be on both.
pub async fn recall(
    mark: &Mark,
    ledger: &Ledger,
    stopped: &Stopped,
    now: UtcTime,
    trail: &audit::Context,
    is_written: impl FnOnce() -> bool,
) -> Result<Option<Stored>, LedgerError> {
    let found = ledger.released(mark.identity.clone(), mark.payload, trail.caller.clone()).await?;
    let Some(recalled) = found.filter(|found| now < found.quote.expires_at) else { return Ok(None) };
    // What this replica knows to be stopped counts too: a store that has gone back may have lost it.
    match stopped.known().on(&mark.identity, &recalled.quote.kid, trail.caller.as_ref()) {
        None => {}
        Some(Stop::Revoked(kid)) => return Err(Refusal::KidRevoked { kid: kid.clone() }.into()),
        Some(_) => return Ok(None),
    }
    let record = Record::new(Event::Replayed, now, trail.clone(), recalled.given(trail));
    let released = ledger.give_again(recalled, record, is_written).await?;
    Ok(Some(Stored { released }))
}

fn numbering(unsigned: &Unsigned) -> Numbering {
    match unsigned {
        Unsigned::Numbered(sequence, input) => Numbering::Given { sequence: *sequence, input: input.digest() },
        Unsigned::Draft(draft) => Numbering::Assigned(draft.clone()),
    }
}

/// The bytes of the reservation. They must be those whose digest it holds.
fn input_of(unsigned: Unsigned, reservation: &Reservation) -> Result<SigningInput, Refusal> {
    let input = match unsigned {
        Unsigned::Numbered(_, input) => input,
        Unsigned::Draft(draft) => draft.numbered(reservation.sequence()).map_err(|_| Refusal::InputMismatch)?,
    };
    if input.digest() == reservation.input() { Ok(input) } else { Err(Refusal::InputMismatch) }
}

/// What a new quote is charged. The days stand first, so that whoever has spent both is told the longer wait.
#[must_use]
pub fn charges(quotas: &Quotas, partner: &str, caller: &str, kid: &str) -> Vec<Charge> {
    let all = [
        ("signed_per_partner", partner, quotas.signed_per_partner),
        ("signed_per_caller", caller, quotas.signed_per_caller),
        ("signed_per_key", kid, quotas.signed_per_key),
    ];
    let days = all.iter().filter_map(|(name, of, quota)| {
        let allowance = Allowance::Day(quota.per_day?.get());
        Some(Charge { quota: format!("{name}.per_day/{of}"), allowance })
    });
    let rates = all.iter().map(|(name, of, quota)| {
        let interval = Duration::from_nanos(1_000_000_000 / u64::from(quota.per_second.get()));
        Charge { quota: format!("{name}/{of}"), allowance: Allowance::Rate { interval, burst: quota.burst.get() } }
    });
    days.chain(rates).collect()
}

impl Pending {
    pub(super) fn taken(self) -> (Reservation, SigningInput, Arc<TimedKey>, Arc<BoundKey>, UtcTime, Seat) {
        (self.reservation, self.input, self.key, self.signer, self.expires_at, self.seat)
    }
}

impl Stored {
    pub(super) fn taken(self) -> Released {
        self.released
    }
}
