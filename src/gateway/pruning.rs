//! Forgets the oldest records of the journal: what was shipped, is past its time, is bound by a checkpoint where there are any, and
//! is held by nobody. It is verified once more before it goes: what does not hold stays, for whoever looks into it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::lanes::OwnLanes;
use crate::{
    audit::{Event, Record},
    clock::UtcTime,
    ledger::{
        EngineError, Journal, LedgerError, Place, PruneJournal, Stretch,
        chain::{Break, Position, Verifier},
    },
    notary::checkpoint::{self, Checkpoint},
    pipeline::Pipeline,
    service::access,
    signer::jittered,
};

/// How many records go at once, so that calls need not wait behind them: a batch more at most.
const RECORDS_MAX: u32 = 1_000;
/// How many times in one round, of all lanes.
const CUTS_MAX: u32 = 200;
/// Records may stay so much longer than they must, so that not every one that ends is a transaction with a record of its own.
const SLACK_MAX: Duration = Duration::from_hours(1);

/// What prunes.
pub(super) struct Pruning {
    pub pipeline: Arc<Pipeline>,
    /// Where the journal is read, on a connection of its own.
    pub place: Place,
    /// The lanes that it prunes.
    pub own: Arc<OwnLanes>,
    /// How long records are kept.
    pub keep: Duration,
    /// How often the ledger is swept.
    pub sweep: Duration,
    /// Whether the journal is bound by checkpoints.
    pub is_bound: bool,
}

/// Why nothing more is pruned now.
#[derive(Debug, thiserror::Error)]
enum Fault {
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] EngineError),
    /// What was pruned could not be made durable.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A checkpoint in the ledger is none.
    #[error("a checkpoint in the ledger: {0}")]
    Checkpoint(#[from] checkpoint::Fault),
    /// What would be pruned is not what was journalled.
    #[error("lane `{lane}`: {fault}")]
    Broken { lane: String, fault: Break },
}

impl Pruning {
    /// Looks now and then, until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        let mut told = String::new();
        let mut pause = this.sweep;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(jittered(pause)) => {}
            }
            pause = this.sweep.max(this.slack() / 4);
            let (round, ends) = (Arc::clone(&this), stop.clone());
            let runs = Handle::current();
            let pruned = tokio::task::spawn_blocking(move || round.round(&runs, &ends)).await;
            told = match pruned {
                Ok(Ok(0)) | Err(_) => String::new(),
                Ok(Ok(records)) => {
                    tracing::info!(records, "records of the journal were pruned");
                    String::new()
                }
                Ok(Err(fault)) => {
                    let why = fault.to_string();
                    match fault {
                        _ if why == told => {}
                        Fault::Broken { .. } => {
                            tracing::error!(why, "THE JOURNAL DOES NOT HOLD; what would be pruned of it stays");
                        }
                        _ => tracing::warn!(why, "the journal could not be pruned"),
                    }
                    why
                }
            };
        }
    }

    fn slack(&self) -> Duration {
        SLACK_MAX.min(self.keep / 64)
    }

    /// Prunes what is due, each time a bounded part of a lane; says how many records. Waits, so that it is not to be called where
    /// tasks run.
    fn round(&self, runs: &Handle, stop: &CancellationToken) -> Result<u64, Fault> {
        let Ok(now) = self.pipeline.clock.now() else { return Ok(0) };
        if self.pipeline.has_joined().is_err() {
            return Ok(0);
        }
        let before = now.minus(self.keep);
        let journal = self.place.journal()?;
        let mine = self.own.among(&journal.lanes()?);
        let (mut pruned, mut cuts) = (0_u64, 0);
        let until: Vec<_> =
            bounds(&*journal, before, self.is_bound)?.into_iter().filter(|(lane, _)| mine.contains(lane)).collect();
        for (lane, until) in until {
            if !is_due(&*journal, &lane, before.minus(self.slack()))? {
                continue;
            }
            while cuts < CUTS_MAX && !stop.is_cancelled() {
                cuts += 1;
                let Some(cut) = next_cut(&*journal, &lane, until, before)? else { break };
                let Cut { from, to, newest, again } = cut;
                let context = access::own_trail(self.pipeline.environment, &self.pipeline.policy.load());
                let op = PruneJournal { lane: lane.clone(), from, to, newest, before, again, context, now };
                let began = Instant::now();
                match runs.block_on(self.pipeline.ledger.prune_journal(op))? {
                    // Another was first, or somebody holds it now.
                    0 => break,
                    count => pruned = pruned.saturating_add(count),
                }
                // Half of the time is the calls'.
                std::thread::sleep(began.elapsed().min(Duration::from_secs(1)));
            }
        }
        Ok(pruned)
    }
}

/// Up to which index each lane may be pruned, as far as that is not a matter of its records' own time: what is after it was not
/// shipped for good, is after a record in quarantine, or is after a checkpoint that everything of its time has been bound by. All
/// lanes are cut at one checkpoint, so that what is left of any of them can be proven; the newest batch of a lane that is written
/// no more stays, by which whoever takes the lane up again knows where it stands.
fn bounds(journal: &dyn Journal, before: UtcTime, is_bound: bool) -> Result<BTreeMap<String, u64>, Fault> {
    let (shipped, quarantined) = (journal.shipped()?, journal.quarantined()?);
    let (mut exported, mut bounds) = (BTreeMap::new(), BTreeMap::new());
    for Stretch { lane, first, .. } in journal.lanes()? {
        let shipped = shipped.get(&lane).copied().unwrap_or_default();
        let aside = quarantined.iter().filter(|record| record.lane == lane && record.index >= first.next_index);
        let until = aside.map(|record| record.index).fold(shipped, u64::min);
        // By the record before the next one to ship it is seen whether a collector takes anything.
        bounds.insert(lane.clone(), until.min(shipped.saturating_sub(1)));
        exported.insert(lane, until);
    }
    let newest = journal.newest_checkpoint()?.map(|(size, _)| size);
    // A ledger that was bound once goes on from its newest checkpoint, whatever this config says.
    if !is_bound && newest.is_none() {
        return Ok(bounds);
    }
    let held = journal.holds()?.into_values().fold(before, UtcTime::min);
    let fits = |checkpoint: &Checkpoint| {
        let is_within =
            |(lane, head): (&String, &Position)| exported.get(lane).is_some_and(|until| head.next_index <= *until);
        checkpoint.at < held && checkpoint.heads.iter().all(is_within)
    };
    let heads = last_that(journal, newest.unwrap_or(0), fits)?.map(|checkpoint| checkpoint.heads).unwrap_or_default();
    bounds.retain(|lane, until| heads.get(lane).map(|head| *until = head.next_index.min(*until)).is_some());
    Ok(bounds)
}

/// The greatest checkpoint that `fits`, of no more than `newest` links: those before one that fits do so, too.
fn last_that(
    journal: &dyn Journal,
    newest: u64,
    fits: impl Fn(&Checkpoint) -> bool,
) -> Result<Option<Checkpoint>, Fault> {
    let (mut found, mut low, mut high) = (None, 0, newest);
    while low < high {
        let middle = low.midpoint(high);
        let next = journal.checkpoints(middle, 1)?.pop().filter(|(size, _)| *size <= high);
        let Some((size, jws)) = next else {
            high = middle;
            continue;
        };
        // Who can write one into the ledger can remove records as well.
        let checkpoint = Checkpoint::unverified(&jws)?;
        if fits(&checkpoint) {
            (found, low) = (Some(checkpoint), size);
        } else {
            high = middle;
        }
    }
    Ok(found)
}

fn stretch(journal: &dyn Journal, lane: &str) -> Result<Option<Stretch>, EngineError> {
    Ok(journal.lanes()?.into_iter().find(|stretch| stretch.lane == lane))
}

/// Whether the oldest record of a lane was journalled before `due`.
fn is_due(journal: &dyn Journal, lane: &str, due: UtcTime) -> Result<bool, EngineError> {
    let Some(Stretch { first, .. }) = stretch(journal, lane)? else { return Ok(false) };
    let oldest = journal.records(lane, first.next_index, 1)?;
    Ok(oldest
        .first()
        .map(crate::ledger::chain::StoredRecord::record)
        .transpose()?
        .is_some_and(|record| record.at < due))
}

/// A beginning of a lane: whole batches.
struct Cut {
    from: Position,
    to: Position,
    newest: UtcTime,
    /// What its records say of other lanes, to be journalled again.
    again: Vec<String>,
}

/// What goes next of a lane; nothing where its oldest batch has to stay.
fn next_cut(journal: &dyn Journal, lane: &str, until: u64, before: UtcTime) -> Result<Option<Cut>, Fault> {
    let mut told = Vec::new();
    let Some(cut) = whole_batches(journal, lane, until, before, &mut told)? else { return Ok(None) };
    told.retain(|(index, _)| *index < cut.to.next_index);
    let again = if told.is_empty() { Vec::new() } else { still_so(lane, &journal.lanes()?, told) };
    Ok(Some(Cut { again, ..cut }))
}

/// What records say that go with `lane`, of other lanes that begin where those say: of one that is written no more nothing else may
/// ever say it again, and without that its front would seem to have been cut off. The lanes are as they were after the records were
/// read: whoever cut one since then journalled that.
fn still_so(lane: &str, lanes: &[Stretch], told: Vec<(u64, String)>) -> Vec<String> {
    let is_so = |detail: &String| {
        let Some((of, last)) = PruneJournal::told(detail) else { return false };
        let begins = |stretch: &Stretch| stretch.lane == of && stretch.first.next_index == last.saturating_add(1);
        of != lane && lanes.iter().any(begins)
    };
    let again: BTreeSet<_> = told
        .iter()
        .map(|(_, detail)| detail)
        .filter(|detail| is_so(detail))
        .map(|detail| PruneJournal::again(detail))
        .collect();
    again.into_iter().collect()
}

/// Whole batches from the beginning of a lane, verified, and what records of pruning among what was read say, each with its index.
fn whole_batches(
    journal: &dyn Journal,
    lane: &str,
    until: u64,
    before: UtcTime,
    told: &mut Vec<(u64, String)>,
) -> Result<Option<Cut>, Fault> {
    let Some(Stretch { first: from, .. }) = stretch(journal, lane)? else { return Ok(None) };
    let (mut verifier, mut next) = (Verifier::new(from), from.next_index);
    let (mut newest, mut cut) = (UtcTime::from_millis(0), None);
    loop {
        let page = journal.records(lane, next, RECORDS_MAX)?;
        let Some(last) = page.last() else { return Ok(cut) };
        next = last.index.saturating_add(1);
        for stored in &page {
            let Record { at, event, facts, .. } = stored.record()?;
            if stored.index >= until || at >= before {
                return Ok(cut);
            }
            if let Err(fault) = verifier.push(stored) {
                // Another may have pruned it meanwhile.
                let is_moved = stretch(journal, lane)?.is_none_or(|now| now.first != from);
                return if is_moved { Ok(None) } else { Err(Fault::Broken { lane: lane.to_owned(), fault }) };
            }
            newest = newest.max(at);
            told.extend(facts.detail.filter(|_| event == Event::Pruned).map(|detail| (stored.index, detail)));
            if let Some(link) = stored.link {
                let to = Position { next_index: stored.index.saturating_add(1), link };
                cut = Some(Cut { from, to, newest, again: Vec::new() });
            }
        }
        // A batch that is larger than a page goes as a whole.
        if cut.is_some() {
            return Ok(cut);
        }
    }
}
