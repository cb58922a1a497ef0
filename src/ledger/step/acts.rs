//! What people do to the ledger: scopes are seeded, signing is stopped and resumed, keys are made known.

use super::{Step, Stop, Stops};
use crate::{
    audit::{self, Event, Facts, Record, Status},
    domain::SequenceNumber,
    ledger::{Done, Kept, Note, Noted, Proposal, Propose, Publish, Refusal, Seed, StopAct, acts::key_of},
};

pub(super) fn seed(last: Option<SequenceNumber>, op: &Seed) -> Result<Step, Refusal> {
    if let Some(present) = last.filter(|last| op.floor <= *last) {
        return Err(Refusal::FloorNotRaised { given: op.floor, present });
    }
    let facts = Facts {
        scope: Some(op.scope.to_string()),
        sequence: Some(op.floor),
        previous_sequence: last,
        status: op.context.answered(Status::Ok),
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
    let kid = op.stop.kid().cloned();
    let partner = op.stop.partner().or(op.context.partner.as_ref()).cloned();
    let context = audit::Context { partner, ..op.context.clone() };
    let (stop, status) = (Some(op.stop.to_string()), op.context.answered(Status::Ok));
    let facts = Facts { kid, stop, status, detail: Some(op.reason.clone()), ..Facts::default() };
    let record = Record::new(event, op.now, context, facts);
    let done = Done::Stopped(record.id);
    // Nobody has agreed to the end of what had not begun.
    let ends = op.stop.act_that_ends_it().filter(|_| op.stands);
    let proposal = ends.map(|act| (key_of(&act), None));
    Ok(Step { stop: Some((op.stop.clone(), op.stands)), proposal, record: Some(record), ..Step::unchanged(done) })
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
    let context = audit::Context { partner: Some(op.kept.partner.clone()), ..op.context.clone() };
    Ok(Step {
        kept: Some((op.kid.clone(), op.kept.clone())),
        record: Some(Record::new(Event::Published, op.now, context, facts)),
        ..Step::unchanged(Done::Published)
    })
}

/// What is noted twice is noted once, and a state never goes back.
pub(super) fn note(kept: Option<&Kept>, op: &Note) -> Result<Step, Refusal> {
    let kept = kept.ok_or_else(|| Refusal::KidUnknown { kid: op.kid.clone() })?;
    let unchanged = Step::unchanged(Done::Noted(None));
    let (kept, event, detail) = match &op.noted {
        Noted::Served if kept.served_since.is_some() => return Ok(unchanged),
        Noted::Served => (Kept { served_since: Some(op.now), ..kept.clone() }, Event::Served, None),
        Noted::Turned(state) if kept.state >= Some(*state) => return Ok(unchanged),
        Noted::Turned(state) => {
            let before = kept.state.map(|before| format!(", before {before}")).unwrap_or_default();
            (Kept { state: Some(*state), ..kept.clone() }, Event::Turned, Some(format!("{state}{before}")))
        }
        Noted::Activated { .. } if kept.activated_at.is_some() => return Ok(unchanged),
        Noted::Activated { reason } => {
            (Kept { activated_at: Some(op.now), ..kept.clone() }, Event::Activated, Some(reason.clone()))
        }
    };
    // No call asks for what else is noted.
    let status = if event == Event::Activated { op.context.answered(Status::Ok) } else { None };
    let facts = Facts { kid: Some(op.kid.clone()), status, detail, ..Facts::default() };
    let context = audit::Context { partner: Some(kept.partner.clone()), ..op.context.clone() };
    let record = Record::new(event, op.now, context, facts);
    let done = Done::Noted(Some(record.id));
    Ok(Step { kept: Some((op.kid.clone(), kept)), record: Some(record), ..Step::unchanged(done) })
}

/// The first who asks waits; another who asks for the very same within the time agrees. Whoever asks twice is still one.
pub(super) fn propose(proposal: Option<&Proposal>, stops: &Stops, op: &Propose) -> Step {
    let counts = |first: &&Proposal| first.until > op.now && !stops.is_suspended(&first.caller);
    let first = proposal.filter(counts).filter(|first| first.caller != op.caller);
    let (event, waits, status, detail) = if let Some(first) = first {
        // The act's own record says what the call was answered with.
        (Event::Agreed, None, None, format!("{}; first asked for by {}", op.act, first.caller))
    } else {
        let until = op.now.plus(op.within);
        let waits = Proposal { caller: op.caller.clone(), until };
        let status = op.context.answered(Status::FailedPrecondition);
        (Event::Proposed, Some(waits), status, format!("{}; another may agree until {until}", op.act))
    };
    let facts = Facts { status, detail: Some(detail), ..Facts::default() };
    let record = Record::new(event, op.now, op.context.clone(), facts);
    let done = Done::Proposed(first.map(|first| first.caller.clone()), record.id);
    Step { proposal: Some((op.key(), waits)), record: Some(record), ..Step::unchanged(done) }
}
