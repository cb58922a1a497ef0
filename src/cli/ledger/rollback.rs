//! `quotesign ledger accept-rollback` and `anchor adopt`: somebody decides what is to become of a ledger that has gone
//! back in time, or has lost the file that tells.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};

use crate::{
    audit::{Context, Event},
    clock::{Clock as _, SystemClock},
    config::Config,
    domain::{Scope, SequenceNumber},
    ledger::{
        Journal, Op, Place, Reach, Seed, Stop, StopAct,
        anchor::Anchor,
        asked::{floor_of, reason_of},
    },
};

use super::{
    super::{ConfigPath, Failure, out::say},
    act::{self, apply, record, trail, weigh},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct AcceptRollback {
    #[command(flatten)]
    path: ConfigPath,
    /// A scope and the last number that counts as taken, as `["production","acme-remit","GB-IN"]=1200`. Every scope of
    /// the ledger must be named once, and every one that was seeded since and is lost: ask the callers for the greatest number they were answered.
    #[arg(long = "raise-floor", value_name = "SCOPE=NUMBER", required = true)]
    floors: Vec<String>,
    /// Have nothing signed until `quotesign resume --all`: where the gateway assigns numbers, until what was signed since, and is not known
    /// any more, has expired.
    #[arg(long)]
    halt: bool,
    /// Why, for the record.
    #[arg(long, value_parser = reason_of)]
    reason: String,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum AnchorCommand {
    /// Write the anchor anew from the ledger as it stands, where the old one is lost.
    Adopt(Adopt),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Adopt {
    #[command(flatten)]
    path: ConfigPath,
    /// Do nothing where there is such a file, whatever it says: `serve` tells what is wrong with it. For whoever starts new gateways
    /// of a shared ledger by the same command.
    #[arg(long)]
    if_missing: bool,
    /// Why, for the record.
    #[arg(long, value_parser = reason_of)]
    reason: String,
}

impl AcceptRollback {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.path.load()?;
        let place = config.ledger.place().map_err(Failure::unfit)?;
        let journal = act::journal(&place, &config)?;
        let path = path_of(&place)?;
        let anchor = act::whole_anchor(&path, &config)?.ok_or_else(|| {
            Failure::failed(format!(
                "the anchor `{}` is missing or damaged: see `quotesign ledger anchor adopt`",
                path.display()
            ))
        })?;
        let behind = anchor.heads().and_then(|heads| journal.gone_back(&heads)).map_err(Failure::failed)?;
        if behind.is_empty() {
            return Err(Failure::failed("the ledger has not gone back in time: there is nothing to accept"));
        }
        let context = trail(&*journal, &config)?;
        let mut batch = self.seeds(&*journal, &config, &context)?;
        let floors = batch.len();
        if self.halt {
            let (stop, reason, context) = (Stop::Halted(Reach::All), self.reason.clone(), context.clone());
            batch.push(Op::Stop(StopAct { stop, stands: true, reason, context, now: SystemClock.now() }));
        }
        batch.push(record(context, Event::RollbackAccepted, format!("{}: {}", behind.join("; "), self.reason)));
        weigh(&*journal, &batch)?;
        drop(journal);
        let mut engine = place.open_as_it_is(config.environment).map_err(Failure::failed)?;
        apply(&mut *engine, &batch)?;
        Anchor::create(&path, config.environment, &engine.heads()).map_err(Failure::failed)?;
        say!("accepted: {}; {floors} floors raised", behind.join("; "));
        let stops: Vec<_> = engine.stops().map_err(Failure::failed)?.iter().map(ToString::to_string).collect();
        let stand = if stops.is_empty() { "nothing".to_owned() } else { stops.join(", ") };
        say!("stopped by the ledger as it is: {stand}");
        say!("{}", super::GONE_SINCE);
        Ok(())
    }

    /// One for every scope of the ledger whose floor rises, and for each that it has lost.
    fn seeds(&self, journal: &dyn Journal, config: &Config, context: &Context) -> Result<Vec<Op>, Failure> {
        let mut floors = named(&self.floors)?;
        let seed = |scope, floor| {
            let (reason, context) = (self.reason.clone(), context.clone());
            Op::Seed(Seed { scope, floor, reason, context, now: SystemClock.now() })
        };
        let mut seeds = Vec::new();
        for (scope, last) in journal.scopes().map_err(Failure::failed)? {
            let name = scope.as_str();
            let floor = floors.remove(name).ok_or_else(|| {
                Failure::unfit(format!("name a floor for `{name}` too: its last number here is {last}"))
            })?;
            if floor < last.get() {
                return Err(Failure::unfit(format!(
                    "the floor {floor} of `{name}` is below {last}, taken here already"
                )));
            }
            // Where nothing was lost the floor stands already.
            if floor > last.get() {
                let floor = floor_for(name, floor)?;
                seeds.push(seed(scope, floor));
            }
        }
        // One that was made since is not in the ledger any more: what was taken of it is lost with it.
        for (name, floor) in floors {
            seeds.push(seed(lost_scope(&name, config)?, floor_for(&name, floor)?));
        }
        Ok(seeds)
    }
}

/// The floors by their scopes. Of two for one scope nobody could say which is meant.
fn named(floors: &[String]) -> Result<BTreeMap<String, u64>, Failure> {
    let mut named = BTreeMap::new();
    for text in floors {
        let floor = text.rsplit_once('=').and_then(|(scope, number)| Some((scope, number.parse().ok()?)));
        let (scope, floor) = floor.ok_or_else(|| Failure::unfit(format!("`{text}`: write it as `SCOPE=NUMBER`")))?;
        if named.insert(scope.to_owned(), floor).is_some() {
            return Err(Failure::unfit(format!("`{scope}` is named twice: name it once, with the greatest number")));
        }
    }
    Ok(named)
}

fn floor_for(scope: &str, floor: u64) -> Result<SequenceNumber, Failure> {
    floor_of(floor).map_err(|fault| Failure::unfit(format!("the floor of `{scope}` {fault}")))
}

/// A scope that the ledger does not have, and policy has.
fn lost_scope(name: &str, config: &Config) -> Result<Scope, Failure> {
    let read = Scope::read(name).filter(|(environment, _)| *environment == config.environment);
    let (Some((_, scope)), Some((_, partner, corridor))) = (read, Scope::parts(name)) else {
        return Err(Failure::unfit(format!("`{name}` is no scope of the ledger, and none that it can have had")));
    };
    match act::policy(config)?.partner(&partner) {
        None => Err(Failure::unfit(format!("`{name}` is no scope of the ledger, and policy has no `{partner}`"))),
        Some(partner) if partner.numbers_by_corridor() != corridor.is_some() => {
            let how = if corridor.is_some() { "with no corridor" } else { "with a corridor" };
            Err(Failure::unfit(format!("`{name}` is no scope of the ledger, and policy has this partner's {how}")))
        }
        Some(_) => Ok(scope),
    }
}

impl Adopt {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.path.load()?;
        let place = config.ledger.place().map_err(Failure::unfit)?;
        let path = path_of(&place)?;
        if self.if_missing
            && path.try_exists().map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?
        {
            say!("{}: is there, and was left as it is", path.display());
            return Ok(());
        }
        let journal = act::journal(&place, &config)?;
        // A whole anchor that says something else is for `accept-rollback` to overrule.
        if let Some(anchor) = act::whole_anchor(&path, &config)? {
            let behind = anchor.heads().and_then(|heads| journal.gone_back(&heads)).map_err(Failure::failed)?;
            let why = if behind.is_empty() { "it agrees with the ledger".to_owned() } else { behind.join("; ") };
            return Err(Failure::failed(format!("there is an anchor, and it is not lost: {why}")));
        }
        let context = trail(&*journal, &config)?;
        drop(journal);
        let mut engine = place.open_as_it_is(config.environment).map_err(Failure::failed)?;
        apply(&mut *engine, &[record(context, Event::AnchorAdopted, self.reason)])?;
        Anchor::create(&path, config.environment, &engine.heads()).map_err(Failure::failed)?;
        say!("{}: written from the ledger as it stands", path.display());
        Ok(())
    }
}

fn path_of(place: &Place) -> Result<std::path::PathBuf, Failure> {
    place.anchor.clone().ok_or_else(|| Failure::unfit("`ledger.anchor`: the config names none"))
}
