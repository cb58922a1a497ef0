//! A batch of operations, carried out on what a store holds that bears on it: the part of an engine that is the
//! same for all of them. Reading the snapshot and making the changes durable is the engine's.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use super::{
    Done, EngineError, Kept, Op, Proposal, Refusal, Stop,
    chain::Position,
    encoding::{is_timed, state_of},
    step::{Cut, Holds, Quotas, Quote, Stage, State, Step, in_order, step},
    stops::Stops,
};
use crate::{
    audit::{self, Record},
    clock::UtcTime,
    domain::{Identity, Kid, Scope, SequenceNumber},
};

/// What a batch came to, in the order of its operations.
pub type Replies = Vec<Result<Done, Refusal>>;

/// A batch that takes in what comes while it is written.
pub trait Growing {
    /// All of it so far, in order.
    fn ops(&self) -> &[Op];

    /// Takes in what waits by now, behind the rest, and says whether anything did. It ends: there is a bound to a batch.
    fn grow(&mut self) -> bool;
}

/// One that is as it is.
impl Growing for &[Op] {
    fn ops(&self) -> &[Op] {
        self
    }

    fn grow(&mut self) -> bool {
        false
    }
}

/// What must be read before a batch can be carried out, each once and in order.
#[derive(Debug, Default)]
pub struct Needs<'a> {
    /// Quotes.
    pub quotes: BTreeSet<&'a Identity>,
    /// Last numbers.
    pub scopes: BTreeSet<&'a Scope>,
    /// Quotas.
    pub quotas: BTreeSet<&'a str>,
    /// Kids.
    pub kids: BTreeSet<&'a Kid>,
    /// Acts that somebody may have asked for.
    pub acts: BTreeSet<String>,
    /// Records that may be in the journal already.
    pub records: BTreeSet<Uuid>,
    /// Quotes that wait for nothing and expired before this, so many of them.
    pub prunable: Option<(UtcTime, u32)>,
    /// The newest checkpoint.
    pub checkpoint: bool,
    /// Where lanes begin, each with the place where it is to be cut; one cut of each.
    pub cuts: BTreeMap<&'a str, Position>,
}

impl<'a> Needs<'a> {
    /// What `batch` needs.
    #[must_use]
    pub fn of(batch: &'a [Op]) -> Self {
        let mut needs = Self::default();
        for op in batch {
            needs.quotes.extend(op.identity());
            needs.scopes.extend(op.scope());
            needs.kids.extend(op.kid());
            match op {
                Op::Reserve(op) => needs.quotas.extend(op.charges.iter().map(|charge| charge.quota.as_str())),
                Op::Propose(op) => drop(needs.acts.insert(op.key())),
                Op::Record(record) => drop(needs.records.insert(record.id)),
                Op::Checkpoint(_) => needs.checkpoint = true,
                Op::PruneJournal(op) => drop(needs.cuts.entry(&op.lane).or_insert(op.to)),
                Op::Prune(op) => needs.prunable = Some((op.before, op.count_max)),
                _ => {}
            }
        }
        needs
    }
}

/// What a store holds of a batch's [`Needs`], and what bears on every batch.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Quotes.
    pub quotes: HashMap<Identity, Quote>,
    /// Last numbers taken.
    pub lasts: HashMap<Scope, SequenceNumber>,
    /// Quotas.
    pub quotas: Quotas,
    /// Kids.
    pub kids: HashMap<Kid, Kept>,
    /// Those records that the journal holds.
    pub records: HashSet<Uuid>,
    /// What may not be signed.
    pub stops: Stops,
    /// Quotes that expired before this may have been pruned.
    pub pruned: Option<UtcTime>,
    /// Quotes that may be pruned, with their expiry.
    pub prunable: Vec<(Identity, UtcTime)>,
    /// What keeps the ledger from pruning.
    pub holds: Holds,
    /// Acts that wait for a second person.
    pub proposals: HashMap<String, Proposal>,
    /// How many links the newest checkpoint has; 0 where there is none.
    pub checkpoint: u64,
    /// Where those lanes begin that hold the link of their cut and something after it; and the cut.
    pub beginnings: BTreeMap<String, (Position, Position)>,
}

/// A record on its way into the journal.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The quote it is about.
    pub identity: Option<&'a Identity>,
    /// The record.
    pub record: Record,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their leaf.
    pub leaf: [u8; 32],
}

/// A quote's stage and generation: who sees it unchanged sees the quote unchanged.
pub type Version = (i16, i32);

/// A quote's [`Version`].
#[must_use]
pub fn version(quote: &Quote) -> Version {
    (state_of(&quote.stage), i32::try_from(quote.generation).unwrap_or(i32::MAX))
}

/// What is to be written, all of it or nothing: `after` at the keys of the maps, which hold what stood there before.
#[derive(Debug)]
pub struct Changes<'a> {
    /// What the store holds then.
    pub after: Snapshot,
    /// The quotes: each with the version before, and the index of the record of its commit.
    pub quotes: BTreeMap<Identity, (Option<Version>, Option<u64>)>,
    /// The last numbers taken.
    pub scopes: BTreeMap<Scope, Option<SequenceNumber>>,
    /// The quotas.
    pub quotas: BTreeMap<String, Option<i64>>,
    /// The kids.
    pub kids: BTreeMap<Kid, bool>,
    /// What is stopped from now on, or no longer.
    pub stops: Vec<(Stop, bool)>,
    /// The quotes to forget.
    pub pruned: Vec<Identity>,
    /// Holds, and since when they keep what there is; absent where they are released.
    pub holds: Vec<(String, Option<UtcTime>)>,
    /// All holds as they were, where anything is forgotten or a hold is changed.
    pub held: Option<Holds>,
    /// Acts that wait for a second person from now on, or no longer.
    pub proposals: Vec<(String, Option<Proposal>)>,
    /// The signed checkpoints to add: how many links the one before has, how many it has, and its JWS.
    pub checkpoints: Vec<(u64, u64, String)>,
    /// What to forget of lanes' beginnings.
    pub cuts: Vec<Cut>,
    /// The records to append.
    pub entries: Vec<Entry<'a>>,
    /// Where the journal stands then.
    pub position: Position,
    /// The answers.
    pub replies: Replies,
}

impl Changes<'_> {
    /// The greatest time of a record that is made only while the clock is trusted.
    #[must_use]
    pub fn newest(&self) -> Option<UtcTime> {
        self.entries.iter().filter(|entry| is_timed(entry.record.event)).map(|entry| entry.record.at).max()
    }

    /// Whether any of it depends on what is stopped.
    #[must_use]
    pub fn heed_stops(batch: &[Op]) -> bool {
        batch.iter().any(|op| matches!(op, Op::Reserve(_) | Op::Commit(_)))
    }
}

/// Carries `batch` out on `snapshot`, where the journal stands at `position`. A refused operation is refused alone.
///
/// # Errors
/// Where a record cannot be written.
pub fn run(snapshot: Snapshot, position: Position, batch: &[Op]) -> Result<Changes<'_>, EngineError> {
    let mut changes = Changes {
        after: snapshot,
        quotes: BTreeMap::new(),
        scopes: BTreeMap::new(),
        quotas: BTreeMap::new(),
        kids: BTreeMap::new(),
        stops: Vec::new(),
        pruned: Vec::new(),
        holds: Vec::new(),
        held: None,
        proposals: Vec::new(),
        checkpoints: Vec::new(),
        cuts: Vec::new(),
        entries: Vec::with_capacity(batch.len()),
        position,
        replies: Vec::new(),
    };
    let mut replies = Vec::with_capacity(batch.len());
    let mut index = position.next_index;
    for (place, op) in in_order(batch) {
        let reply = match step(&changes.after.state(op), op) {
            Ok(step) => {
                let (done, records) = changes.take(step, index);
                for record in records {
                    changes.entries.push(entry(op.identity(), record)?);
                    index = index.saturating_add(1);
                }
                Ok(done)
            }
            Err(refusal) => Err(refusal),
        };
        replies.push((place, reply));
    }
    replies.sort_unstable_by_key(|(place, _)| *place);
    changes.replies = replies.into_iter().map(|(_, reply)| reply).collect();
    let leaves: Vec<_> = changes.entries.iter().map(|entry| entry.leaf).collect();
    changes.position = position.after(&leaves);
    Ok(changes)
}

fn entry(identity: Option<&Identity>, record: Record) -> Result<Entry<'_>, EngineError> {
    let bytes = record.to_bytes().map_err(|error| EngineError::RolledBack(error.to_string()))?;
    Ok(Entry { identity, leaf: audit::leaf(&bytes), record, bytes })
}

impl Snapshot {
    /// What of it bears on every batch.
    #[must_use]
    pub fn standing(self) -> Self {
        Self { stops: self.stops, pruned: self.pruned, holds: self.holds, ..Self::default() }
    }

    fn state<'a>(&'a self, op: &Op) -> State<'a> {
        State {
            quote: op.identity().and_then(|identity| self.quotes.get(identity)),
            last: op.scope().and_then(|scope| self.lasts.get(scope)).copied(),
            quotas: &self.quotas,
            recorded: matches!(op, Op::Record(record) if self.records.contains(&record.id)),
            stops: &self.stops,
            kept: op.kid().and_then(|kid| self.kids.get(kid)),
            pruned: self.pruned,
            prunable: &self.prunable,
            holds: &self.holds,
            checkpoint: self.checkpoint,
            beginning: match op {
                Op::PruneJournal(op) => {
                    self.beginnings.get(&op.lane).filter(|(_, cut)| *cut == op.to).map(|(first, _)| *first)
                }
                _ => None,
            },
            proposal: if let Op::Propose(op) = op { self.proposals.get(&op.key()) } else { None },
        }
    }
}

impl Changes<'_> {
    /// Applies `step`, whose record will stand at `index`, and remembers what it replaced. Gives what is to be journalled.
    fn take(&mut self, step: Step, index: u64) -> (Done, impl Iterator<Item = Record> + use<>) {
        let Self {
            after, quotes, scopes, quotas, kids, stops, pruned, holds, held, proposals, checkpoints, cuts, ..
        } = self;
        if step.pruned.is_some() || step.cut.is_some() || step.hold.is_some() {
            held.get_or_insert_with(|| after.holds.clone());
        }
        if let Some((identity, quote)) = step.quote {
            let signed = matches!(quote.stage, Stage::Signed { .. }).then_some(index);
            let before = after.quotes.get(&identity).map(version);
            quotes.entry(identity.clone()).or_insert((before, None)).1 = signed;
            after.quotes.insert(identity, quote);
        }
        if let Some((scope, last)) = step.taken {
            scopes.entry(scope.clone()).or_insert_with(|| after.lasts.get(&scope).copied());
            after.lasts.insert(scope, last);
        }
        for (quota, arrival) in step.quotas {
            quotas.entry(quota.clone()).or_insert_with(|| after.quotas.get(&quota).copied());
            after.quotas.insert(quota, arrival);
        }
        if let Some((kid, kept)) = step.kept {
            kids.entry(kid.clone()).or_insert_with(|| after.kids.contains_key(&kid));
            after.kids.insert(kid, kept);
        }
        if let Some((stop, stands)) = step.stop {
            after.stops.put(&stop, stands);
            stops.push((stop, stands));
        }
        if let Some((identities, before)) = step.pruned {
            after.pruned = after.pruned.max(Some(before));
            after.prunable.clear();
            pruned.extend(identities);
        }
        if let Some((id, since)) = step.hold {
            match since {
                Some(since) => drop(after.holds.insert(id.clone(), since)),
                None => drop(after.holds.remove(&id)),
            }
            holds.push((id, since));
        }
        if let Some((act, waits)) = step.proposal {
            match &waits {
                Some(proposal) => drop(after.proposals.insert(act.clone(), proposal.clone())),
                None => drop(after.proposals.remove(&act)),
            }
            proposals.push((act, waits));
        }
        if let Some(signed) = step.checkpoint {
            after.checkpoint = signed.1;
            checkpoints.push(signed);
        }
        if let Some(cut) = step.cut {
            after.beginnings.remove(&cut.lane);
            cuts.push(cut);
        }
        after.records.extend(step.record.as_ref().map(|record| record.id));
        (step.done, step.record.into_iter().chain(step.again))
    }
}
