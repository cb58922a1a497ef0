//! `quotesign ledger accept-rollback` and `anchor adopt`: somebody decides what is to become of a ledger that has gone
//! back in time, or has lost the file that tells.

use clap::{Args, Subcommand};

use crate::{
    audit::{Context, Event},
    clock::{Clock as _, SystemClock},
    config::Config,
    domain::{Scope, SequenceNumber},
    ledger::{EngineError, Op, Place, Reach, Seed, Stop, StopAct, anchor::Anchor},
};

use super::{
    super::{ConfigPath, Failure, out::say},
    act::{apply, record, trail},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct AcceptRollback {
    #[command(flatten)]
    path: ConfigPath,
    /// A scope and the last number that counts as taken, as `["production","acme-remit","GB-IN"]=1200`. Every scope of
    /// the ledger must be named, and every one that was seeded since and is lost: ask the callers for the greatest number they were answered.
    #[arg(long = "raise-floor", value_name = "SCOPE=NUMBER", required = true)]
    floors: Vec<String>,
    /// Have nothing signed until `quotesign resume --all`: where the gateway assigns numbers, until what was signed since, and is not known
    /// any more, has expired.
    #[arg(long)]
    halt: bool,
    /// Why, for the record.
    #[arg(long)]
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
    #[arg(long)]
    reason: String,
}

impl AcceptRollback {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.path.load()?;
        let place = config.ledger.place().map_err(Failure::unfit)?;
        let mut engine = place.open_as_it_is(config.environment).map_err(Failure::failed)?;
        let (path, anchor) = opened(&place, &config)?;
        let anchor = anchor.ok_or_else(|| {
            Failure::failed(format!("the anchor `{}` is missing: see `quotesign ledger anchor adopt`", path.display()))
        })?;
        let behind = anchor.heads().and_then(|heads| engine.gone_back(&heads)).map_err(Failure::failed)?;
        if behind.is_empty() {
            return Err(Failure::failed("the ledger has not gone back in time: there is nothing to accept"));
        }
        let context = trail(&mut *engine, &config)?;
        let mut batch = self.seeds(&place, &context)?;
        let floors = batch.len();
        if self.halt {
            let (stop, reason, context) = (Stop::Halted(Reach::All), self.reason.clone(), context.clone());
            batch.push(Op::Stop(StopAct { stop, stands: true, reason, context, now: SystemClock.now() }));
        }
        batch.push(record(context, Event::RollbackAccepted, format!("{}: {}", behind.join("; "), self.reason)));
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
    fn seeds(&self, place: &Place, context: &Context) -> Result<Vec<Op>, Failure> {
        let floor = |text: &String| {
            let (scope, number) = text.rsplit_once('=')?;
            let number: SequenceNumber = number.parse::<u64>().ok()?.try_into().ok()?;
            Some((scope.to_owned(), number))
        };
        let floors = self
            .floors
            .iter()
            .map(|text| floor(text).ok_or_else(|| Failure::unfit(format!("`{text}`: write it as `SCOPE=NUMBER`"))));
        let floors: Vec<(String, SequenceNumber)> = floors.collect::<Result<_, _>>()?;
        let scopes = place.journal().and_then(|journal| journal.scopes()).map_err(Failure::failed)?;
        let seed = |scope, floor| {
            let (reason, context) = (self.reason.clone(), context.clone());
            Op::Seed(Seed { scope, floor, reason, context, now: SystemClock.now() })
        };
        // One that was made since is not in the ledger any more: what was taken of it is lost with it.
        let lost = floors.iter().filter(|(name, _)| scopes.iter().all(|(scope, _)| scope.as_str() != name));
        let lost = lost.map(|(name, floor)| {
            let scope = Scope::read(name).filter(|(environment, _)| *environment == context.environment);
            let (_, scope) = scope.ok_or_else(|| {
                Failure::unfit(format!("`{name}` is no scope of the ledger, and none that it can have had"))
            })?;
            Ok(seed(scope, *floor))
        });
        let lost: Vec<Op> = lost.collect::<Result<_, Failure>>()?;
        let raised = |(scope, last): (Scope, SequenceNumber)| {
            let named = floors.iter().find(|(name, _)| name == scope.as_str());
            let (_, floor) = named.ok_or_else(|| {
                Failure::unfit(format!("name a floor for `{}` too: its last number here is {last}", scope.as_str()))
            })?;
            if *floor < last {
                let name = scope.as_str();
                return Err(Failure::unfit(format!(
                    "the floor {floor} of `{name}` is below {last}, taken here already"
                )));
            }
            // Where nothing was lost the floor stands already.
            Ok((*floor > last).then(|| seed(scope, *floor)))
        };
        let raised: Vec<Op> = scopes.into_iter().map(raised).filter_map(Result::transpose).collect::<Result<_, _>>()?;
        Ok(raised.into_iter().chain(lost).collect())
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
        let mut engine = place.open_as_it_is(config.environment).map_err(Failure::failed)?;
        // A whole anchor that says something else is for `accept-rollback` to overrule.
        if let (_, Some(anchor)) = opened(&place, &config)? {
            let behind = anchor.heads().and_then(|heads| engine.gone_back(&heads)).map_err(Failure::failed)?;
            let why = if behind.is_empty() { "it agrees with the ledger".to_owned() } else { behind.join("; ") };
            return Err(Failure::failed(format!("there is an anchor, and it is not lost: {why}")));
        }
        let context = trail(&mut *engine, &config)?;
        apply(&mut *engine, &[record(context, Event::AnchorAdopted, self.reason)])?;
        Anchor::create(&path, config.environment, &engine.heads()).map_err(Failure::failed)?;
        say!("{}: written from the ledger as it stands", path.display());
        Ok(())
    }
}

fn path_of(place: &Place) -> Result<std::path::PathBuf, Failure> {
    place.anchor.clone().ok_or_else(|| Failure::unfit("`ledger.anchor`: the config names none"))
}

/// The anchor's place, and the anchor where it is whole.
fn opened(place: &Place, config: &Config) -> Result<(std::path::PathBuf, Option<Anchor>), Failure> {
    let path = path_of(place)?;
    match Anchor::open(&path, config.environment) {
        Ok(anchor) => Ok((path, anchor)),
        Err(EngineError::Unfit(why)) if why.contains("holds no whole slot") => Ok((path, None)),
        Err(error) => Err(Failure::failed(error)),
    }
}
