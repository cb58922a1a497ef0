//! Acts on a ledger that a running gateway would refuse or cannot do: on the store itself, with no gateway at it.

use crate::{
    audit::{Context, Event, Facts, Record},
    clock::{Clock as _, SystemClock},
    config::Config,
    domain::CorrelationId,
    ledger::{Done, Engine, Op},
};

use super::super::Failure;

/// A command decides under no policy of its own: of those that gateways' newest records name the newest is in force still.
pub(super) fn trail(engine: &mut dyn Engine, config: &Config) -> Result<Context, Failure> {
    let newest = engine.newest_records().map_err(Failure::failed)?.into_iter().map(|newest| newest.context);
    let newest = newest.max_by_key(|context| context.policy_serial);
    let (digest, serial) = newest.map_or_else(Default::default, |newest| (newest.policy_digest, newest.policy_serial));
    Ok(Context::new(CorrelationId::made(), config.environment, digest, serial))
}

/// A record of what the command decided.
pub(super) fn record(context: Context, event: Event, detail: String) -> Op {
    Op::Record(Record::new(event, SystemClock.now(), context, Facts { detail: Some(detail), ..Facts::default() }))
}

/// Applies all of `batch` or says what was refused; a refused operation of several leaves the others applied.
pub(super) fn apply(engine: &mut dyn Engine, batch: &[Op]) -> Result<Vec<Done>, Failure> {
    let replies = engine.apply(batch).map_err(Failure::failed)?;
    replies.into_iter().map(|reply| reply.map_err(Failure::failed)).collect()
}

/// Opens the ledger that no gateway is at, and does one thing to it.
pub(super) fn alone(config: &Config, op: impl FnOnce(Context) -> Op) -> Result<Done, Failure> {
    let place = config.ledger.place().map_err(Failure::unfit)?;
    let mut engine = place.open(config.environment).map_err(Failure::failed)?;
    let context = trail(&mut *engine, config)?;
    apply(&mut *engine, &[op(context)])?.pop().ok_or_else(|| Failure::failed("the ledger gave no answer"))
}
