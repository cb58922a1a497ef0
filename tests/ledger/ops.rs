//! Operations as a gateway sends them.

use std::time::Duration;

use quotesign::{
    audit::Context,
    clock::{Clock as _, SystemClock, UtcTime},
    domain::{Environment, Identity, InputDigest, PayloadDigest, Scope},
    jws::CompactJws,
    ledger::{
        Commit, Done, Engine, Kept, Numbering, Op, Publish, Refusal, Reservation, Reserve, Reserved, Seed, StopAct,
        Void,
    },
};

pub const A: &str = "quote-signing-a";
pub const B: &str = "quote-signing-b";

pub fn now() -> UtcTime {
    SystemClock.now()
}

pub fn context() -> Context {
    Context::new("test-1".parse().unwrap(), Environment::Sandbox, "00".to_owned(), 1)
}

pub fn scope(corridor: &str) -> Scope {
    Scope::new(Environment::Sandbox, &"acme-remit".parse().unwrap(), Some(&corridor.parse().unwrap()))
}

pub fn identity(quote: &str) -> Identity {
    Identity::new(Environment::Sandbox, &"acme-remit".parse().unwrap(), &quote.parse().unwrap())
}

pub fn reserve(quote: &str, number: u64) -> Reserve {
    reserve_with(quote, number, A)
}

pub fn reserve_with(quote: &str, number: u64, kid: &str) -> Reserve {
    Reserve {
        identity: identity(quote),
        scope: scope("GB-IN"),
        numbering: Numbering::Given {
            sequence: number.try_into().unwrap(),
            input: InputDigest::of(format!("{quote} {number} {kid}").as_bytes()),
        },
        jump_max: 1_000_000,
        stays: false,
        seed_if_unknown: false,
        payload: PayloadDigest::of(format!("{quote} {number}").as_bytes()),
        kid: kid.parse().unwrap(),
        expires_at: now().plus(Duration::from_mins(10)),
        useful: Duration::ZERO,
        charges: Vec::new(),
        context: context(),
        now: now(),
    }
}

pub fn commit(reservation: &Reservation, jws: &str) -> Commit {
    Commit {
        reservation: reservation.clone(),
        jws: CompactJws::from_text(jws.to_owned()),
        context: context(),
        now: now(),
    }
}

pub fn seed(corridor: &str, floor: u64) -> Seed {
    Seed {
        scope: scope(corridor),
        floor: floor.try_into().unwrap(),
        reason: "OPS-1".to_owned(),
        context: context(),
        now: now(),
    }
}

pub fn void(quote: &str, at: UtcTime) -> Void {
    Void { identity: identity(quote), context: context(), now: at }
}

pub fn stop(what: &str, stands: bool) -> StopAct {
    StopAct { stop: what.parse().unwrap(), stands, reason: "OPS-2".to_owned(), context: context(), now: now() }
}

pub fn publish(kid: &str, jwk: &str) -> Publish {
    let kept = Kept::new(jwk.to_owned(), "acme-remit".parse().unwrap(), "quote", now());
    Publish { kid: kid.parse().unwrap(), kept, context: context(), now: now() }
}

pub fn pending(done: Result<Done, Refusal>) -> Reservation {
    match done {
        Ok(Done::Reserved(Reserved::Pending(reservation))) => reservation,
        other => panic!("{other:?}"),
    }
}

/// One operation, alone.
pub fn one(engine: &mut dyn Engine, op: Op) -> Result<Done, Refusal> {
    engine.apply(&[op]).unwrap().pop().unwrap()
}
