//! How long things are kept: quotes until they were pruned, and for as long as somebody holds them.

use std::time::Duration;

use super::{Cut, Holds, State, Step};
use crate::{
    audit::{Event, Facts, Record, Status},
    clock::UtcTime,
    domain::Identity,
    ledger::{CheckpointAct, Done, HoldAct, Prune, PruneJournal, Refusal, acts::key_of},
};

/// Before when something must have been to go.
fn unheld(holds: &Holds, before: UtcTime) -> UtcTime {
    holds.values().copied().fold(before, UtcTime::min)
}

/// Nothing is pruned that a hold keeps, and nothing is journalled where nothing is pruned. What is remembered of it is when the last
/// of it expired, and not by which clock it went: one that was ahead says nothing of quotes that come later.
pub(super) fn prune(state: &State<'_>, op: &Prune) -> Step {
    let before = unheld(state.holds, op.before);
    let gone = state.prunable.iter().filter(|(_, expired_at)| *expired_at < before).take(op.count_max as usize);
    let (gone, expired): (Vec<Identity>, Vec<UtcTime>) = gone.cloned().unzip();
    let unchanged = Step::unchanged(Done::Pruned(gone.len()));
    let Some(last) = expired.into_iter().max() else { return unchanged };
    let detail = Some(format!("{} quotes that expired before {before}", gone.len()));
    let record = Record::new(Event::Pruned, op.now, op.context.clone(), Facts { detail, ..Facts::default() });
    let pruned = Some((gone, last.plus(Duration::from_millis(1))));
    Step { pruned, record: Some(record), ..unchanged }
}

/// Of two who would forget the same records one is first, and the other forgets nothing.
pub(super) fn prune_journal(state: &State<'_>, op: &PruneJournal) -> Step {
    let count = op.to.next_index.saturating_sub(op.from.next_index);
    let may_go = op.newest < unheld(state.holds, op.before);
    if count == 0 || !may_go || state.beginning != Some(op.from) {
        return Step::unchanged(Done::PrunedJournal(0));
    }
    let record = |detail| {
        let facts = Facts { detail: Some(detail), ..Facts::default() };
        Record::new(Event::Pruned, op.now, op.context.clone(), facts)
    };
    let again = op.again.iter().cloned().map(record).collect();
    let cut = Cut { lane: op.lane.clone(), from: op.from, to: op.to };
    Step { cut: Some(cut), record: Some(record(op.detail())), again, ..Step::unchanged(Done::PrunedJournal(count)) }
}

/// Of two gateways that bind the same stretch of the journal together, one is first: there is one tree, whoever lets it grow.
pub(super) fn checkpoint(newest: u64, op: &CheckpointAct) -> Step {
    if newest != op.before || op.size <= op.before {
        return Step::unchanged(Done::Checkpointed(None));
    }
    let detail = Some(format!("{} links", op.size));
    let facts = Facts { detail, checkpoint: Some(op.jws.clone()), ..Facts::default() };
    let record = Record::new(Event::Checkpointed, op.now, op.context.clone(), facts);
    let done = Done::Checkpointed(Some(record.id));
    let checkpoint = Some((op.before, op.size, op.jws.clone()));
    Step { checkpoint, record: Some(record), ..Step::unchanged(done) }
}

pub(super) fn hold(holds: &Holds, op: &HoldAct) -> Result<Step, Refusal> {
    let event = match (op.since, holds.get(&op.id)) {
        // To keep less is to let go, which can need two people.
        (Some(since), Some(present)) if since > *present => {
            return Err(Refusal::HoldKeepsMore { id: op.id.clone(), present: *present });
        }
        (Some(_), _) => Event::HoldSet,
        (None, None) => return Err(Refusal::NoSuchHold { id: op.id.clone() }),
        (None, Some(_)) => Event::HoldReleased,
    };
    let since = op.since.map(|since| format!(" since {since}")).unwrap_or_default();
    let detail = Some(format!("{}{since}: {}", op.id, op.reason));
    let facts = Facts { detail, status: op.context.answered(Status::Ok), ..Facts::default() };
    let record = Record::new(event, op.now, op.context.clone(), facts);
    let done = Done::Held(record.id);
    // Nobody has agreed to let go of what was not held yet.
    let proposal = op.since.map(|_| (key_of(&format!("ReleaseHold {}", op.id)), None));
    Ok(Step { hold: Some((op.id.clone(), op.since)), proposal, record: Some(record), ..Step::unchanged(done) })
}
