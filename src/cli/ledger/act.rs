//! Acts on a ledger that a running gateway would refuse or cannot do: on the store itself, with no gateway at it.

use std::path::Path;

use crate::{
    audit::{Context, Event, Facts, Record},
    clock::{Clock as _, SystemClock},
    config::Config,
    domain::CorrelationId,
    ledger::{
        Done, Engine, Journal, Op, Place,
        anchor::Anchor,
        batch::{self, Snapshot},
        chain::Position,
    },
    policy::{Bundle, Problem},
};

use super::super::{Failure, noted::user};

/// The ledger as it stands, to decide by before it is opened to write.
pub(super) fn journal(place: &Place, config: &Config) -> Result<Box<dyn Journal>, Failure> {
    place.is_of(config.environment).and_then(|()| place.journal()).map_err(Failure::failed)
}

/// A command decides under no policy of its own: of those that gateways' newest records name the newest is in force still.
pub(super) fn trail(journal: &dyn Journal, config: &Config) -> Result<Context, Failure> {
    let mut newest = None;
    for lane in journal.lanes().map_err(Failure::failed)? {
        let last = lane.head.next_index.saturating_sub(1);
        for stored in journal.records(&lane.lane, last, 1).map_err(Failure::failed)? {
            let context = stored.record().map_err(Failure::failed)?.context;
            newest = newest.max(Some((context.policy_serial, context.policy_digest)));
        }
    }
    let (serial, digest) = newest.unwrap_or_default();
    let context = Context::new(CorrelationId::made(), config.environment, digest, serial);
    Ok(Context { operator: Some(user()), ..context })
}

/// The anchor where it is there and whole.
pub(super) fn whole_anchor(path: &Path, config: &Config) -> Result<Option<Anchor>, Failure> {
    Anchor::open_whole(path, config.environment).map_err(Failure::failed)
}

/// A record of what the command decided.
pub(super) fn record(context: Context, event: Event, detail: String) -> Op {
    Op::Record(Record::new(event, SystemClock.now(), context, Facts { detail: Some(detail), ..Facts::default() }))
}

/// What policy says, by the config.
pub(super) fn policy(config: &Config) -> Result<Bundle, Failure> {
    Bundle::load(&config.policy)
        .map_err(|problems| Failure::unfit(problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")))
}

/// Refuses what the ledger would refuse of `batch`, before it is opened to write: that takes a database's lane, and a refused
/// operation of several leaves the others applied.
pub(super) fn weigh(journal: &dyn Journal, batch: &[Op]) -> Result<(), Failure> {
    let lasts = journal.scopes().map_err(Failure::failed)?.into_iter().collect();
    let snapshot = Snapshot { lasts, holds: journal.holds().map_err(Failure::failed)?, ..Snapshot::default() };
    let weighed = batch::run(snapshot, Position::GENESIS, batch).map_err(Failure::failed)?;
    weighed.replies.into_iter().try_for_each(|reply| reply.map(drop).map_err(Failure::failed))
}

/// Applies all of `batch` or says what was refused.
pub(super) fn apply(engine: &mut dyn Engine, batch: &[Op]) -> Result<Vec<Done>, Failure> {
    let replies = engine.apply(batch).map_err(Failure::failed)?;
    replies.into_iter().map(|reply| reply.map_err(Failure::failed)).collect()
}

/// Opens the ledger that no gateway is at, and does one thing to it.
pub(super) fn alone(config: &Config, op: impl FnOnce(Context) -> Op) -> Result<Done, Failure> {
    let place = config.ledger.place().map_err(Failure::unfit)?;
    let journal = journal(&place, config)?;
    let batch = [op(trail(&*journal, config)?)];
    weigh(&*journal, &batch)?;
    drop(journal);
    let mut engine = place.open_alone(config.environment).map_err(Failure::failed)?;
    apply(&mut *engine, &batch)?.pop().ok_or_else(|| Failure::failed("the ledger gave no answer"))
}
