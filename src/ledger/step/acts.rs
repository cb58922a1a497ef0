//! What people do to the ledger: scopes are seeded, signing is stopped and resumed, keys are made known.

use super::{Step, Stop, Stops};
use crate::{
    audit::{Event, Facts, Record},
    domain::SequenceNumber,
    ledger::{Done, Kept, Publish, Refusal, Seed, StopAct},
};

pub(super) fn seed(last: Option<SequenceNumber>, op: &Seed) -> Result<Step, Refusal> {
    if let Some(present) = last.filter(|last| op.floor <= *last) {
        return Err(Refusal::FloorNotRaised { given: op.floor, present });
    }
    let facts = Facts {
        scope: Some(op.scope.to_string()),
        sequence: Some(op.floor),
        previous_sequence: last,
        detail: Some(op.reason.clone()),
        ..Facts::default()
    };
    let record = Record::new(Event::Seeded, op.now, op.context.clone(), facts);
    let done = Done::Seeded(last, record.id);
    Ok(Step { taken: Some((op.scope.clone(), op.floor)), record: Some(record), ..Step::unchanged(done) })
}

pub(super) fn stop(stops: &Stops, op: &StopAct) -> Result<Step, Refusal> {
    let event = match (&op.stop, op.stands) {
        (Stop::Revoked(_), true) => Event::Revoked,
        (Stop::Revoked(kid), false) => return Err(Refusal::KidRevoked { kid: kid.clone() }),
        (Stop::Halted(_), true) => Event::Halted,
        (_, false) if !stops.contains(&op.stop) => return Err(Refusal::NotStopped { stop: op.stop.clone() }),
        (Stop::Halted(_), false) => Event::Resumed,
        (Stop::Suspended(_), true) => Event::Suspended,
        (Stop::Suspended(_), false) => Event::Reinstated,
    };
    let kid = if let Stop::Revoked(kid) = &op.stop { Some(kid.clone()) } else { None };
    let facts = Facts { kid, stop: Some(op.stop.to_string()), detail: Some(op.reason.clone()), ..Facts::default() };
    let record = Record::new(event, op.now, op.context.clone(), facts);
    let done = Done::Stopped(record.id);
    Ok(Step { stop: Some((op.stop.clone(), op.stands)), record: Some(record), ..Step::unchanged(done) })
}

/// A kid is one key of one partner for ever, whatever a bundle says later.
pub(super) fn publish(kept: Option<&Kept>, op: &Publish) -> Result<Step, Refusal> {
    match kept {
        Some(kept) if kept.is_same_key(&op.kept) => return Ok(Step::unchanged(Done::Published)),
        Some(_) => return Err(Refusal::KidReused { kid: op.kid.clone() }),
        None => {}
    }
    let facts = Facts {
        kid: Some(op.kid.clone()),
        detail: Some(format!("for {}, published since {}", op.kept.partner, op.kept.published_since)),
        ..Facts::default()
    };
    Ok(Step {
        kept: Some((op.kid.clone(), op.kept.clone())),
        record: Some(Record::new(Event::Published, op.now, op.context.clone(), facts)),
        ..Step::unchanged(Done::Published)
    })
}
