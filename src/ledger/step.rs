//! The ledger's state machine: what one operation comes to, given what the store holds that bears on it.
//!
//! Pure but for the ids of the records it makes. Loading the state, writing the step and making it durable are
//! the engines'; queueing is the front's. A refused operation has no step, so it cannot change anything.
//! `docs/ledger.md` has every transition.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::{
    Commit, Done, Kept, Numbering, Op, Proposal, Refusal, Released, Reservation, Reserve, Reserved, Stop, Void,
    chain::Position, stops::Stops,
};
use crate::{
    audit::{Context, Event, Facts, Record, Status},
    clock::UtcTime,
    domain::{Identity, InputDigest, Kid, PayloadDigest, Scope, SequenceNumber},
    jws::CompactJws,
};

mod acts;
mod keep;
mod quota;

pub use quota::charge;

/// What the store holds that bears on one operation.
#[derive(Debug, Clone, Copy)]
pub struct State<'a> {
    /// The operation's quote.
    pub quote: Option<&'a Quote>,
    /// The last number taken in the operation's scope.
    pub last: Option<SequenceNumber>,
    /// The quotas that the operation is charged to.
    pub quotas: &'a Quotas,
    /// Whether the journal holds the operation's record already.
    pub recorded: bool,
    /// What may not be signed.
    pub stops: &'a Stops,
    /// What is remembered of the operation's kid.
    pub kept: Option<&'a Kept>,
    /// Quotes that expired before this may have been pruned.
    pub pruned: Option<UtcTime>,
    /// Quotes that the operation may prune: none waits for a signature.
    pub prunable: &'a [(Identity, UtcTime)],
    /// What keeps the ledger from pruning, by name: all since then.
    pub holds: &'a Holds,
    /// What somebody asked for of the operation's act.
    pub proposal: Option<&'a Proposal>,
    /// How many links the newest checkpoint has; 0 where there is none.
    pub checkpoint: u64,
    /// Where the operation's lane begins, where it holds the link that the operation would have it begin after.
    pub beginning: Option<Position>,
}

/// What keeps the ledger from pruning, by name: all since then.
pub type Holds = BTreeMap<String, UtcTime>;

/// What is taken of each quota. Of a rate it is GCRA's theoretical arrival time, in nanoseconds since 1970: milliseconds would
/// bend a rate such as 400 a second. Of a day it is the day's beginning, likewise, and the number of units taken in it.
pub type Quotas = BTreeMap<String, i64>;

/// A quote, as the ledger keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// Its sequence.
    pub scope: Scope,
    /// Its number.
    pub sequence: SequenceNumber,
    /// What its identity is bound to.
    pub payload: PayloadDigest,
    /// The key it is bound to.
    pub kid: Kid,
    /// How often it was bound to a key; the first time is 1.
    pub generation: u32,
    /// What is signed with `kid`.
    pub input: InputDigest,
    /// From when on it is refused.
    pub expires_at: UtcTime,
    /// How far it came.
    pub stage: Stage,
}

/// How far a quote came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Its number is held.
    Reserved,
    /// Its JWS is stored, for good.
    Signed {
        /// The JWS, byte for byte as first released.
        jws: CompactJws,
        /// The audit record of the commit.
        record: Uuid,
    },
    /// It expired unsigned. Its number is burnt.
    Voided,
}

impl Quote {
    /// What may be released; absent until signed.
    #[must_use]
    pub fn released(&self) -> Option<Released> {
        match &self.stage {
            Stage::Signed { jws, record } => Some(self.release(jws, *record)),
            Stage::Reserved | Stage::Voided => None,
        }
    }

    fn release(&self, jws: &CompactJws, record: Uuid) -> Released {
        Released {
            jws: jws.clone(),
            kid: self.kid.clone(),
            sequence: self.sequence,
            payload: self.payload,
            input: self.input,
            expires_at: self.expires_at,
            record,
        }
    }

    fn pending(&self, identity: &Identity) -> Done {
        Done::Reserved(Reserved::Pending(Reservation {
            identity: identity.clone(),
            sequence: self.sequence,
            kid: self.kid.clone(),
            generation: self.generation,
            input: self.input,
        }))
    }

    /// What a record says of it.
    #[must_use]
    pub fn facts(&self) -> Facts {
        Facts {
            scope: Some(self.scope.to_string()),
            sequence: Some(self.sequence),
            kid: Some(self.kid.clone()),
            generation: Some(self.generation),
            payload_sha256: Some(self.payload.to_string()),
            input_sha256: Some(self.input.to_string()),
            expires_at: Some(self.expires_at),
            ..Facts::default()
        }
    }

    /// What a record says of it where `jws` is given to whoever called.
    #[must_use]
    pub fn given(&self, jws: &CompactJws, context: &Context) -> Facts {
        Facts { jws_sha256: Some(jws.digest().to_string()), status: context.answered(Status::Ok), ..self.facts() }
    }
}

/// What to write, in one transaction, and what to answer once that is durable.
#[derive(Debug, Clone)]
pub struct Step {
    /// The quote to store in place of the one before. One that is [`Stage::Signed`] was not so before.
    pub quote: Option<(Identity, Quote)>,
    /// The last number taken in a scope.
    pub taken: Option<(Scope, SequenceNumber)>,
    /// The quotas that were charged.
    pub quotas: Quotas,
    /// What is stopped from now on, or no longer.
    pub stop: Option<(Stop, bool)>,
    /// What is to be remembered of a kid.
    pub kept: Option<(Kid, Kept)>,
    /// The quotes to forget, and before when all of them expired.
    pub pruned: Option<(Vec<Identity>, UtcTime)>,
    /// A hold, and since when it keeps what there is; absent where it is released.
    pub hold: Option<(String, Option<UtcTime>)>,
    /// An act that waits for a second person; nothing where it waits no longer.
    pub proposal: Option<(String, Option<Proposal>)>,
    /// A signed checkpoint: how many links the one before it has, how many it has, and its JWS.
    pub checkpoint: Option<(u64, u64, String)>,
    /// A lane, where it begins, and where it is to begin.
    pub cut: Option<Cut>,
    /// The record to append. A step that changes anything has one.
    pub record: Option<Record>,
    /// Records to append behind it, in the place of some that the cut takes.
    pub again: Vec<Record>,
    /// The answer.
    pub done: Done,
}

/// The beginning of a lane that is forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The lane.
    pub lane: String,
    /// Where it begins.
    pub from: Position,
    /// Where it is to begin.
    pub to: Position,
}

impl Step {
    fn unchanged(done: Done) -> Self {
        let quotas = Quotas::new();
        let (proposal, checkpoint, cut, record) = (None, None, None, None);
        Self {
            quote: None,
            taken: None,
            quotas,
            stop: None,
            kept: None,
            pruned: None,
            hold: None,
            proposal,
            checkpoint,
            cut,
            record,
            again: Vec::new(),
            done,
        }
    }
}

impl Op {
    /// The quote it is about; absent for what is not about one quote.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Reserve(op) => Some(&op.identity),
            Self::Commit(op) => Some(op.reservation.identity()),
            Self::Void(op) => Some(&op.identity),
            Self::Seed(_)
            | Self::Stop(_)
            | Self::Publish(_)
            | Self::Note(_)
            | Self::Propose(_)
            | Self::Prune(_)
            | Self::PruneJournal(_)
            | Self::Hold(_)
            | Self::Checkpoint(_)
            | Self::Record(_) => None,
        }
    }

    /// The kid whose memory bears on it.
    #[must_use]
    pub fn kid(&self) -> Option<&Kid> {
        match self {
            Self::Commit(op) => Some(op.reservation.kid()),
            Self::Publish(op) => Some(&op.kid),
            Self::Note(op) => Some(&op.kid),
            _ => None,
        }
    }

    /// The scope whose last number bears on it.
    #[must_use]
    pub fn scope(&self) -> Option<&Scope> {
        match self {
            Self::Reserve(op) => Some(&op.scope),
            Self::Seed(op) => Some(&op.scope),
            _ => None,
        }
    }
}

impl Numbering {
    /// The number that the caller gave.
    #[must_use]
    pub fn given(&self) -> Option<SequenceNumber> {
        match self {
            Self::Given { sequence, .. } => Some(*sequence),
            Self::Assigned(_) => None,
        }
    }

    /// The number and what is then signed, where the ledger's own number is `own`.
    fn at(&self, own: SequenceNumber) -> Result<(SequenceNumber, InputDigest), Refusal> {
        match self {
            Self::Given { sequence, input } => Ok((*sequence, *input)),
            Self::Assigned(draft) => Ok((own, draft.numbered(own).map_err(|_| Refusal::InputMismatch)?.digest())),
        }
    }
}

/// Says what `op` comes to.
///
/// # Errors
/// Where it is refused.
pub fn step(state: &State<'_>, op: &Op) -> Result<Step, Refusal> {
    match (op, state.quote) {
        (Op::Reserve(op), None) => reserve(state, op),
        (Op::Reserve(op), Some(quote)) => reserve_again(state, quote, op),
        (Op::Commit(op), Some(quote)) => commit(state, quote, op),
        (Op::Void(op), Some(quote)) => void(quote, op),
        (Op::Commit(_) | Op::Void(_), None) => Err(Refusal::NotReserved),
        (Op::Seed(op), _) => acts::seed(state.last, op),
        (Op::Stop(op), _) => acts::stop(state.stops, op),
        (Op::Publish(op), _) => acts::publish(state.kept, op),
        (Op::Note(op), _) => acts::note(state.kept, op),
        (Op::Propose(op), _) => Ok(acts::propose(state.proposal, state.stops, op)),
        (Op::Prune(op), _) => Ok(keep::prune(state, op)),
        (Op::PruneJournal(op), _) => Ok(keep::prune_journal(state, op)),
        (Op::Hold(op), _) => keep::hold(state.holds, op),
        (Op::Checkpoint(op), _) => Ok(keep::checkpoint(state.checkpoint, op)),
        (Op::Record(_), _) if state.recorded => Ok(Step::unchanged(Done::Recorded)),
        (Op::Record(record), _) => Ok(Step { record: Some(record.clone()), ..Step::unchanged(Done::Recorded) }),
    }
}

/// The batch in the order to apply it, each with its place: the reservations of one scope change places so that
/// they come by number, since callers who race must not refuse each other; all else stays.
pub fn in_order(batch: &[Op]) -> impl Iterator<Item = (usize, &Op)> {
    let mut by_number: HashMap<&Scope, BTreeMap<(Option<SequenceNumber>, usize), &Op>> = HashMap::new();
    for (place, op) in batch.iter().enumerate() {
        if let Op::Reserve(reserve) = op {
            by_number.entry(&reserve.scope).or_default().insert((reserve.numbering.given(), place), op);
        }
    }
    batch.iter().enumerate().map(move |(place, op)| match op {
        Op::Reserve(reserve) => by_number
            .get_mut(&reserve.scope)
            .and_then(BTreeMap::pop_first)
            .map_or((place, op), |((_, place), op)| (place, op)),
        _ => (place, op),
    })
}

/// Refuses what is stopped; a signature that there is already where the quote `is_signed`.
fn may_sign(
    stops: &Stops,
    identity: &Identity,
    (kid, is_signed): (&Kid, bool),
    context: &Context,
) -> Result<(), Refusal> {
    match stops.on(identity, kid, context.caller.as_ref()) {
        None => Ok(()),
        Some(Stop::Revoked(kid)) if is_signed => Err(Refusal::KidRevoked { kid: kid.clone() }),
        Some(Stop::Revoked(kid)) => Err(Refusal::KidWithdrawn { kid: kid.clone() }),
        Some(Stop::Halted(reach)) => Err(Refusal::Halted { reach: reach.clone() }),
        Some(Stop::Suspended(_)) => Err(Refusal::Suspended),
    }
}

fn reserve(state: &State<'_>, op: &Reserve) -> Result<Step, Refusal> {
    // What was pruned had expired by then: under a clock that fell behind, its identity must not look new.
    if op.expires_at <= op.now.plus(op.useful) || state.pruned.is_some_and(|pruned| op.expires_at < pruned) {
        return Err(Refusal::Expired);
    }
    may_sign(state.stops, &op.identity, (&op.kid, false), &op.context)?;
    let unknown = op.seed_if_unknown.then_some(SequenceNumber::ZERO);
    let last = state.last.or(unknown).ok_or(Refusal::UnknownScope)?;
    let (given, input) = op.numbering.at(last.ahead(1))?;
    let highest = last.ahead(op.jump_max);
    if given <= last {
        return Err(Refusal::NotMonotonic { given, last });
    }
    if given > highest {
        return Err(Refusal::TooFarAhead { given, last, highest });
    }
    let quotas = charge(state.quotas, &op.charges, op.now)?;
    let quote = Quote {
        scope: op.scope.clone(),
        sequence: given,
        payload: op.payload,
        kid: op.kid.clone(),
        generation: 1,
        input,
        expires_at: op.expires_at,
        stage: Stage::Reserved,
    };
    let facts = Facts { previous_sequence: Some(last), ..quote.facts() };
    Ok(Step {
        done: quote.pending(&op.identity),
        record: Some(Record::new(Event::Reserved, op.now, op.context.clone(), facts)),
        quote: Some((op.identity.clone(), quote)),
        taken: Some((op.scope.clone(), given)),
        quotas,
        stop: None,
        kept: None,
        pruned: None,
        hold: None,
        proposal: None,
        checkpoint: None,
        cut: None,
        again: Vec::new(),
    })
}

fn reserve_again(state: &State<'_>, quote: &Quote, op: &Reserve) -> Result<Step, Refusal> {
    if quote.payload != op.payload {
        return Err(Refusal::Conflict { bound: (quote.payload, quote.sequence) });
    }
    // A quote that is signed so late as well as one that is reserved so late is of no use.
    let from = if quote.stage == Stage::Reserved { op.now.plus(op.useful) } else { op.now };
    if quote.expires_at <= from {
        return Err(Refusal::Expired);
    }
    let (sequence, input) = op.numbering.at(quote.sequence)?;
    // Who signed it; or who would.
    let kid = if quote.stage == Stage::Reserved { (&op.kid, false) } else { (&quote.kid, true) };
    may_sign(state.stops, &op.identity, kid, &op.context)?;
    match &quote.stage {
        Stage::Voided => Err(Refusal::Expired),
        Stage::Signed { jws, record } => Ok(replay(quote, quote.release(jws, *record), op)),
        Stage::Reserved if quote.sequence != sequence => Err(Refusal::InputMismatch),
        Stage::Reserved if quote.kid != op.kid => Ok(rekey(quote, op, input)),
        Stage::Reserved if quote.input != input => Err(Refusal::InputMismatch),
        Stage::Reserved => Ok(Step::unchanged(quote.pending(&op.identity))),
    }
}

fn replay(quote: &Quote, released: Released, op: &Reserve) -> Step {
    let record = Record::new(Event::Replayed, op.now, op.context.clone(), quote.given(&released.jws, &op.context));
    Step { record: Some(record), ..Step::unchanged(Done::Reserved(Reserved::Replay(released))) }
}

fn rekey(quote: &Quote, op: &Reserve, input: InputDigest) -> Step {
    let generation = quote.generation.saturating_add(1);
    let quote = Quote { kid: op.kid.clone(), generation, input, ..quote.clone() };
    let record = Record::new(Event::Rekeyed, op.now, op.context.clone(), quote.facts());
    let pending = quote.pending(&op.identity);
    Step { quote: Some((op.identity.clone(), quote)), record: Some(record), ..Step::unchanged(pending) }
}

fn commit(state: &State<'_>, quote: &Quote, op: &Commit) -> Result<Step, Refusal> {
    let kid = (&quote.kid, quote.stage != Stage::Reserved);
    may_sign(state.stops, op.reservation.identity(), kid, &op.context)?;
    // Whoever is second gets nothing that has expired either.
    if quote.expires_at <= op.now {
        return Err(Refusal::Expired);
    }
    if let Some(first) = quote.released() {
        let facts = quote.given(&first.jws, &op.context);
        let record = Record::new(Event::Replayed, op.now, op.context.clone(), facts);
        return Ok(Step { record: Some(record), ..Step::unchanged(Done::Committed { released: first, first: false }) });
    }
    if quote.stage == Stage::Voided {
        return Err(Refusal::Expired);
    }
    let held = &op.reservation;
    let same = (quote.sequence, &quote.kid, quote.generation, quote.input)
        == (held.sequence, &held.kid, held.generation, held.input);
    if !same {
        return Err(Refusal::NotReserved);
    }
    let facts = quote.given(&op.jws, &op.context);
    let record = Record::new(Event::Committed, op.now, op.context.clone(), facts);
    let released = quote.release(&op.jws, record.id);
    let stage = Stage::Signed { jws: op.jws.clone(), record: record.id };
    Ok(Step {
        quote: Some((held.identity.clone(), Quote { stage, ..quote.clone() })),
        kept: state.kept.and_then(|kept| Some((quote.kid.clone(), kept.signed(quote.expires_at)?))),
        record: Some(record),
        ..Step::unchanged(Done::Committed { released, first: true })
    })
}

fn void(quote: &Quote, op: &Void) -> Result<Step, Refusal> {
    if quote.stage != Stage::Reserved || quote.expires_at > op.now {
        return Err(Refusal::NotReserved);
    }
    let facts = Facts { reason: Some("QUOTE_EXPIRED".to_owned()), ..quote.facts() };
    Ok(Step {
        quote: Some((op.identity.clone(), Quote { stage: Stage::Voided, ..quote.clone() })),
        record: Some(Record::new(Event::Voided, op.now, op.context.clone(), facts)),
        ..Step::unchanged(Done::Voided)
    })
}

#[cfg(test)]
pub(in crate::ledger) mod tests {
    use std::{sync::Arc, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        audit::Context,
        domain::Environment,
        jws::Draft,
        ledger::{Publish, Reach, Seed, StopAct},
    };

    pub fn at(millis: i64) -> UtcTime {
        UtcTime::from_millis(1_780_000_000_000 + millis)
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
        Reserve {
            identity: identity(quote),
            scope: scope("GB-IN"),
            numbering: Numbering::Given {
                sequence: number.try_into().unwrap(),
                input: InputDigest::of(format!("{quote} {number} quote-signing-a").as_bytes()),
            },
            jump_max: 1_000,
            stays: false,
            seed_if_unknown: false,
            payload: PayloadDigest::of(format!("{quote} {number}").as_bytes()),
            kid: "quote-signing-a".parse().unwrap(),
            expires_at: at(60_000),
            useful: Duration::ZERO,
            charges: Vec::new(),
            context: context(),
            now: at(0),
        }
    }

    fn numbered(number: u64, input: [u8; 32]) -> Numbering {
        Numbering::Given { sequence: number.try_into().unwrap(), input: InputDigest(input) }
    }

    /// A reservation of a quote that comes without its number.
    fn draft(quote: &str, kid: &str) -> Reserve {
        let kid: Kid = kid.parse().unwrap();
        let claims = serde_json::json!({ "quote_id": quote }).as_object().cloned().unwrap();
        let draft = Draft::new(kid.clone(), claims, "quote_sequence".to_owned());
        Reserve { numbering: Numbering::Assigned(Arc::new(draft)), kid, ..reserve(quote, 0) }
    }

    #[test]
    fn an_assigned_number_is_the_next_one_and_stays() {
        let mut book = Book::default();
        book.apply(&Op::Seed(seed(7))).unwrap();
        let mut held = |op| match book.reserve(op) {
            Ok(Done::Reserved(Reserved::Pending(held))) => held,
            other => panic!("{other:?}"),
        };
        let first = held(draft("q1", "quote-signing-a"));
        let second = held(draft("q2", "quote-signing-a"));
        assert_eq!([first.sequence().get(), second.sequence().get()], [8, 9]);
        assert_eq!(held(draft("q1", "quote-signing-a")), first, "a retry keeps its number");
        let rekeyed = held(draft("q1", "quote-signing-b"));
        assert_eq!((rekeyed.sequence(), rekeyed.generation()), (first.sequence(), 2));
        assert_ne!(rekeyed.input(), first.input());
    }

    #[test]
    fn behind_the_last_number_there_is_none_to_give_and_nothing_is_taken() {
        let mut book = Book::default();
        let top = crate::domain::INTEGER_MAX;
        book.apply(&Op::Seed(seed(top - 1))).unwrap();
        assert_eq!(pending(book.reserve(draft("q1", "quote-signing-a")).unwrap()).sequence().get(), top);
        let before = book.clone();
        let last = number(top);
        assert_eq!(book.reserve(draft("q2", "quote-signing-a")), Err(Refusal::NotMonotonic { given: last, last }));
        assert_eq!(book, before);
    }

    pub fn commit(reservation: &Reservation, jws: &str) -> Commit {
        Commit {
            reservation: reservation.clone(),
            jws: CompactJws::from_text(jws.to_owned()),
            context: context(),
            now: at(1),
        }
    }

    pub fn seed(floor: u64) -> Seed {
        Seed {
            scope: scope("GB-IN"),
            floor: floor.try_into().unwrap(),
            reason: "OPS-1".to_owned(),
            context: context(),
            now: at(0),
        }
    }

    pub fn stop(what: &str, stands: bool) -> StopAct {
        let (stop, reason) = (what.parse().unwrap(), "OPS-2".to_owned());
        StopAct { stop, stands, reason, context: context(), now: at(0) }
    }

    pub fn publish(kid: &str, jwk: &str) -> Publish {
        let kept = Kept::new(jwk.to_owned(), "acme-remit".parse().unwrap(), "quote", at(-1));
        Publish { kid: kid.parse().unwrap(), kept, context: context(), now: at(0) }
    }

    pub fn void(quote: &str, millis: i64) -> Void {
        Void { identity: identity(quote), context: context(), now: at(millis) }
    }

    pub fn pending(done: Done) -> Reservation {
        match done {
            Done::Reserved(Reserved::Pending(reservation)) => reservation,
            other => panic!("{other:?}"),
        }
    }

    /// The simplest store there is.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct Book {
        quotes: HashMap<Identity, Quote>,
        scopes: HashMap<Scope, SequenceNumber>,
        quotas: Quotas,
        stops: Stops,
        kept: HashMap<Kid, Kept>,
        pruned: Option<UtcTime>,
        records: Vec<Record>,
    }

    impl Book {
        fn seeded() -> Self {
            let mut book = Self::default();
            book.apply(&Op::Seed(seed(0))).unwrap();
            book
        }

        fn apply(&mut self, op: &Op) -> Result<Done, Refusal> {
            let state = State {
                quote: op.identity().and_then(|identity| self.quotes.get(identity)),
                last: op.scope().and_then(|scope| self.scopes.get(scope)).copied(),
                quotas: &self.quotas,
                recorded: matches!(op, Op::Record(record) if self.records.contains(record)),
                stops: &self.stops,
                kept: op.kid().and_then(|kid| self.kept.get(kid)),
                pruned: self.pruned,
                prunable: &[],
                holds: &Holds::new(),
                proposal: None,
                checkpoint: 0,
                beginning: None,
            };
            let step = step(&state, op)?;
            let changes = step.quote.is_some() || step.taken.is_some() || !step.quotas.is_empty();
            let changes = changes || step.stop.is_some() || step.kept.is_some();
            assert!(step.record.is_some() || !changes, "every change is journalled");
            if let Some((stop, stands)) = &step.stop {
                self.stops.put(stop, *stands);
            }
            self.kept.extend(step.kept);
            self.quotes.extend(step.quote);
            self.scopes.extend(step.taken);
            self.quotas.extend(step.quotas);
            self.records.extend(step.record);
            Ok(step.done)
        }

        fn reserve(&mut self, op: Reserve) -> Result<Done, Refusal> {
            self.apply(&Op::Reserve(op))
        }

        fn events(&self) -> Vec<Event> {
            self.records.iter().map(|record| record.event).collect()
        }
    }

    fn number(number: u64) -> SequenceNumber {
        number.try_into().unwrap()
    }

    #[test]
    fn a_quote_is_reserved_signed_and_replayed() {
        let mut book = Book::seeded();
        let held = pending(book.reserve(reserve("q1", 7)).unwrap());
        assert_eq!(pending(book.reserve(reserve("q1", 7)).unwrap()), held);
        let Done::Committed { released: first, .. } = book.apply(&Op::Commit(commit(&held, "first"))).unwrap() else {
            panic!()
        };
        let second = book.apply(&Op::Commit(commit(&held, "second"))).unwrap();
        assert_eq!(second, Done::Committed { released: first.clone(), first: false });
        assert_eq!(book.reserve(reserve("q1", 7)), Ok(Done::Reserved(Reserved::Replay(first.clone()))));
        assert_eq!(book.reserve(Reserve { now: at(60_000), ..reserve("q1", 7) }), Err(Refusal::Expired));
        assert_eq!(book.events(), [Event::Seeded, Event::Reserved, Event::Committed, Event::Replayed, Event::Replayed]);
        assert_eq!(first.record, book.records[2].id);
        assert_eq!(book.records[1].facts.previous_sequence, Some(SequenceNumber::ZERO));
        assert_eq!(book.records[2].facts.jws_sha256, Some(first.jws.digest().to_string()));
        assert_eq!(book.records[3].facts.jws_sha256, Some(first.jws.digest().to_string()));
    }

    #[test]
    fn refusals_are_told_apart() {
        let mut book = Book::default();
        assert_eq!(book.reserve(reserve("q1", 1)), Err(Refusal::UnknownScope));
        book.apply(&Op::Seed(seed(10))).unwrap();
        let last = number(10);
        assert_eq!(book.reserve(reserve("q1", 10)), Err(Refusal::NotMonotonic { given: last, last }));
        let (given, highest) = (number(1_011), number(1_010));
        assert_eq!(book.reserve(reserve("q1", 1_011)), Err(Refusal::TooFarAhead { given, last, highest }));
        assert_eq!(book.reserve(Reserve { now: at(60_000), ..reserve("q1", 11) }), Err(Refusal::Expired));
        book.reserve(reserve("q1", 11)).unwrap();
        let bound = (reserve("q1", 11).payload, number(11));
        assert_eq!(book.reserve(reserve("q1", 12)), Err(Refusal::Conflict { bound }));
        let other_input = Reserve { numbering: numbered(11, [0; 32]), ..reserve("q1", 11) };
        assert_eq!(book.reserve(other_input), Err(Refusal::InputMismatch));
        let other_number = Reserve {
            numbering: Numbering::Given {
                sequence: number(12),
                input: reserve("q1", 11).numbering.at(number(0)).unwrap().1,
            },
            ..reserve("q1", 11)
        };
        assert_eq!(book.reserve(other_number), Err(Refusal::InputMismatch));
        for floor in [10, 11] {
            let refusal = Refusal::FloorNotRaised { given: number(floor), present: number(11) };
            assert_eq!(book.apply(&Op::Seed(seed(floor))), Err(refusal));
        }
        let self_seeded = Reserve { seed_if_unknown: true, scope: scope("GB-US"), ..reserve("q2", 1) };
        assert!(book.reserve(self_seeded).is_ok());
    }

    #[test]
    fn another_kid_takes_a_waiting_reservation_over() {
        let mut book = Book::seeded();
        let old = pending(book.reserve(reserve("q1", 1)).unwrap());
        let kid: Kid = "quote-signing-b".parse().unwrap();
        let rekey = Reserve { kid: kid.clone(), numbering: numbered(1, [1; 32]), ..reserve("q1", 1) };
        let new = pending(book.reserve(rekey).unwrap());
        assert_eq!((new.generation(), new.kid(), new.sequence()), (2, &kid, old.sequence()));
        assert_eq!(book.apply(&Op::Commit(commit(&old, "old"))), Err(Refusal::NotReserved));
        assert!(book.apply(&Op::Commit(commit(&new, "new"))).is_ok());
        let Ok(Done::Committed { released: late, .. }) = book.apply(&Op::Commit(commit(&old, "old"))) else { panic!() };
        assert_eq!((late.jws.as_str(), late.kid), ("new", kid));
    }

    #[test]
    fn a_kid_that_comes_back_does_not_bring_its_old_generation_back() {
        let mut book = Book::seeded();
        let first = pending(book.reserve(reserve("q1", 1)).unwrap());
        let kid = "quote-signing-b".parse().unwrap();
        book.reserve(Reserve { kid, numbering: numbered(1, [1; 32]), ..reserve("q1", 1) }).unwrap();
        let third = pending(book.reserve(reserve("q1", 1)).unwrap());
        assert_eq!((third.generation(), third.input()), (3, first.input()));
        assert_eq!(book.apply(&Op::Commit(commit(&first, "old"))), Err(Refusal::NotReserved));
        assert!(book.apply(&Op::Commit(commit(&third, "new"))).is_ok());
    }

    #[test]
    fn what_expires_unsigned_is_voided_and_stays_so() {
        let mut book = Book::seeded();
        let held = pending(book.reserve(reserve("q1", 1)).unwrap());
        assert_eq!(book.apply(&Op::Void(void("q1", 59_999))), Err(Refusal::NotReserved));
        let late = Commit { now: at(60_000), ..commit(&held, "late") };
        assert_eq!(book.apply(&Op::Commit(late)), Err(Refusal::Expired));
        assert_eq!(book.apply(&Op::Void(void("q1", 60_000))), Ok(Done::Voided));
        assert_eq!(book.records[2].facts.reason.as_deref(), Some("QUOTE_EXPIRED"));
        assert_eq!(book.apply(&Op::Void(void("q1", 60_000))), Err(Refusal::NotReserved));
        assert_eq!(book.apply(&Op::Commit(commit(&held, "late"))), Err(Refusal::Expired));
        assert_eq!(book.reserve(reserve("q1", 1)), Err(Refusal::Expired));
        assert!(matches!(book.reserve(reserve("q2", 1)), Err(Refusal::NotMonotonic { .. })));
    }

    #[test]
    fn what_a_revoked_key_signed_or_would_sign_is_not_given() {
        let mut book = Book::seeded();
        let signed = pending(book.reserve(reserve("q1", 1)).unwrap());
        book.apply(&Op::Commit(commit(&signed, "first"))).unwrap();
        let waiting = pending(book.reserve(reserve("q2", 2)).unwrap());
        let act = Op::Stop(stop("revoked/quote-signing-a", true));
        assert!(matches!(book.apply(&act), Ok(Done::Stopped(_))));
        assert!(matches!(book.apply(&act), Ok(Done::Stopped(_))), "a second time is as good");
        let kid: Kid = "quote-signing-a".parse().unwrap();
        let revoked = Err(Refusal::KidRevoked { kid: kid.clone() });
        assert_eq!(book.reserve(reserve("q1", 1)), revoked, "no replay");
        assert_eq!(book.apply(&Op::Commit(commit(&signed, "again"))), revoked, "nor to the loser of a race");
        let withdrawn = Err(Refusal::KidWithdrawn { kid: kid.clone() });
        assert_eq!(book.apply(&Op::Commit(commit(&waiting, "late"))), withdrawn);
        assert_eq!(book.reserve(reserve("q2", 2)), withdrawn);
        assert_eq!(book.reserve(reserve("q3", 3)), withdrawn);
        let other_payload = Reserve { payload: PayloadDigest([0; 32]), ..reserve("q1", 1) };
        assert!(matches!(book.reserve(other_payload), Err(Refusal::Conflict { .. })), "the binding stays");
        let current: Kid = "quote-signing-b".parse().unwrap();
        let rekey = Reserve { kid: current.clone(), numbering: numbered(2, [1; 32]), ..reserve("q2", 2) };
        let rekeyed = pending(book.reserve(rekey).unwrap());
        assert_eq!((rekeyed.generation(), rekeyed.kid()), (2, &current), "what waits goes to the current key");
        assert!(book.apply(&Op::Commit(commit(&rekeyed, "second"))).is_ok());
        assert_eq!(book.apply(&Op::Stop(stop("revoked/quote-signing-a", false))), revoked, "it is for good");
        let [.., record] = book.records.iter().filter(|record| record.event == Event::Revoked).collect::<Vec<_>>()[..]
        else {
            panic!()
        };
        assert_eq!((record.facts.kid.as_ref(), record.facts.detail.as_deref()), (Some(&kid), Some("OPS-2")));
    }

    #[test]
    fn what_is_halted_waits_until_it_is_resumed() {
        for reach in ["all", "partner/acme-remit", "kid/quote-signing-a"] {
            let mut book = Book::seeded();
            let signed = pending(book.reserve(reserve("q1", 1)).unwrap());
            book.apply(&Op::Commit(commit(&signed, "first"))).unwrap();
            let waiting = pending(book.reserve(reserve("q2", 2)).unwrap());
            let what = format!("halted/{reach}");
            book.apply(&Op::Stop(stop(&what, true))).unwrap();
            let Record { context, facts, .. } = book.records.last().unwrap();
            let told = (context.partner.is_some(), facts.kid.is_some());
            assert_eq!(told, (reach.starts_with("partner/"), reach.starts_with("kid/")));
            let halted = Err(Refusal::Halted { reach: reach.parse::<Reach>().unwrap() });
            assert_eq!(book.reserve(reserve("q1", 1)), halted);
            assert_eq!(book.reserve(reserve("q3", 3)), halted);
            assert_eq!(book.apply(&Op::Commit(commit(&waiting, "late"))), halted);
            assert!(book.apply(&Op::Void(void("q2", 60_000))).is_ok(), "what expires is still ended");
            book.apply(&Op::Stop(stop(&what, false))).unwrap();
            assert!(matches!(book.reserve(reserve("q1", 1)), Ok(Done::Reserved(Reserved::Replay(_)))));
            assert!(book.reserve(reserve("q3", 3)).is_ok());
        }
        let mut book = Book::seeded();
        book.apply(&Op::Stop(stop("halted/partner/other", true))).unwrap();
        assert!(book.reserve(reserve("q1", 1)).is_ok());
    }

    #[test]
    fn a_kid_is_one_key_for_ever_and_its_last_expiry_is_remembered() {
        let mut book = Book::seeded();
        for _ in 0..2 {
            assert_eq!(book.apply(&Op::Publish(publish("quote-signing-a", "{1}"))), Ok(Done::Published));
        }
        assert_eq!(book.events(), [Event::Seeded, Event::Published], "the second time changed nothing");
        assert!(book.records.last().unwrap().context.partner.is_some(), "it is its partner's");
        let kid: Kid = "quote-signing-a".parse().unwrap();
        let reused = Err(Refusal::KidReused { kid: kid.clone() });
        assert_eq!(book.apply(&Op::Publish(publish("quote-signing-a", "{2}"))), reused);
        let mut other = publish("quote-signing-a", "{1}");
        other.kept.partner = "other".parse().unwrap();
        assert_eq!(book.apply(&Op::Publish(other)), reused);
        let mut last = |quote, number, expires_at| {
            let held = pending(book.reserve(Reserve { expires_at, ..reserve(quote, number) }).unwrap());
            book.apply(&Op::Commit(commit(&held, quote))).unwrap();
            book.kept[&kid].last_expiry.unwrap()
        };
        let first = last("q1", 1, at(60_000));
        assert!(first >= at(60_000) && first < at(120_000));
        assert_eq!(last("q2", 2, first), first, "within the same minute");
        let later = UtcTime::from_millis(first.millis() + 1);
        assert_eq!(last("q3", 3, later), UtcTime::from_millis(first.millis() + 60_000));
        assert_eq!(last("q4", 4, at(30_000)).millis(), first.millis() + 60_000, "it never falls");
    }

    #[test]
    fn an_identity_that_may_have_been_pruned_is_not_taken_for_new() {
        let mut book = Book { pruned: Some(at(60_001)), ..Book::seeded() };
        // The clock fell behind: the quote has not expired by it, and may have been pruned.
        assert_eq!(book.reserve(reserve("q1", 1)), Err(Refusal::Expired));
        assert!(book.reserve(Reserve { expires_at: at(60_001), ..reserve("q2", 2) }).is_ok());
    }

    #[test]
    fn a_record_is_journalled_once() {
        let mut book = Book::default();
        let record = Record::new(Event::Refused, at(0), context(), Facts::default());
        for _ in 0..2 {
            assert_eq!(book.apply(&Op::Record(record.clone())), Ok(Done::Recorded));
        }
        assert_eq!(book.records, [record]);
    }

    #[test]
    fn a_scopes_reservations_come_by_number_and_all_else_stays() {
        let other = Op::Reserve(Reserve { scope: scope("GB-US"), ..reserve("x", 5) });
        let batch = [
            Op::Reserve(reserve("c", 3)),
            other,
            Op::Seed(seed(0)),
            Op::Reserve(reserve("a", 1)),
            Op::Reserve(reserve("b", 2)),
        ];
        let places: Vec<_> = in_order(&batch).map(|(place, _)| place).collect();
        assert_eq!(places, [3, 1, 2, 4, 0]);
    }

    /// What a caller may do next; small numbers, so that everything collides.
    #[derive(Debug, Clone)]
    enum Act {
        Reserve { quote: u8, corridor: u8, number: u64, kid: u8, lifetime: i64 },
        Commit { held: usize },
        Void { quote: u8 },
        Seed { corridor: u8, floor: u64 },
        Revoke { kid: u8 },
        Halt { stands: bool },
    }

    const KIDS: [&str; 2] = ["quote-signing-a", "quote-signing-b"];

    fn acts() -> impl Strategy<Value = Vec<(i64, Act)>> {
        let act = prop_oneof![
            6 => (0..4_u8, 0..2_u8, 1..9_u64, 0..2_u8, 1..3_i64).prop_map(
                |(quote, corridor, number, kid, lifetime)| Act::Reserve {
                    quote, corridor, number, kid, lifetime
                }
            ),
            4 => (0..8_usize).prop_map(|held| Act::Commit { held }),
            1 => (0..4_u8).prop_map(|quote| Act::Void { quote }),
            1 => (0..2_u8, 0..4_u64).prop_map(|(corridor, floor)| Act::Seed { corridor, floor }),
            1 => (0..2_u8).prop_map(|kid| Act::Revoke { kid }),
            1 => (0..8_u8).prop_map(|one| Act::Halt { stands: one == 0 }),
        ];
        prop::collection::vec((-2..8_i64, act), 1..60)
    }

    /// What callers have been told so far.
    #[derive(Default)]
    struct Told {
        held: Vec<Reservation>,
        bound: HashMap<(Scope, SequenceNumber), PayloadDigest>,
        highest: HashMap<Scope, SequenceNumber>,
        released: HashMap<Identity, CompactJws>,
        revoked: Vec<Kid>,
        halted: bool,
    }

    impl Told {
        fn release(&mut self, identity: &Identity, released: &Released) {
            let first = self.released.entry(identity.clone()).or_insert_with(|| released.jws.clone());
            assert_eq!(*first, released.jws, "one JWS for each identity, ever");
            assert!(first.as_str().starts_with(released.kid.as_str()), "no JWS of an older generation");
            assert!(!self.halted && !self.revoked.contains(&released.kid), "nothing that was stopped");
        }
    }

    fn reserve_of(act: &Act, now: UtcTime) -> Option<Reserve> {
        let Act::Reserve { quote, corridor, number, kid, lifetime } = act else { return None };
        let corridor = ["GB-IN", "GB-US"][usize::from(*corridor)];
        let kid = KIDS[usize::from(*kid)];
        let payload = format!("{quote} {corridor} {number} {lifetime}");
        Some(Reserve {
            scope: scope(corridor),
            payload: PayloadDigest::of(payload.as_bytes()),
            numbering: numbered(*number, InputDigest::of(format!("{payload} {kid}").as_bytes()).0),
            kid: kid.parse().unwrap(),
            expires_at: at(*lifetime * 60),
            jump_max: 4,
            now,
            ..reserve(&format!("q{quote}"), *number)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_number_has_one_payload_and_a_quote_one_jws(acts in acts()) {
            let (mut book, mut told, mut millis) = (Book::default(), Told::default(), 0);
            for (attempt, (pause, act)) in acts.into_iter().enumerate() {
                millis += pause;
                let now = at(millis);
                let reserve = reserve_of(&act, now);
                let op = match (&act, &reserve) {
                    (_, Some(reserve)) => Op::Reserve(reserve.clone()),
                    (Act::Commit { held }, _) => {
                        let Some(held) = told.held.iter().rev().nth(*held) else { continue };
                        Op::Commit(Commit { now, ..commit(held, &format!("{} {attempt}", held.kid())) })
                    }
                    (Act::Void { quote }, _) => Op::Void(void(&format!("q{quote}"), millis)),
                    (Act::Seed { corridor, floor }, _) => {
                        let scope = scope(["GB-IN", "GB-US"][usize::from(*corridor)]);
                        Op::Seed(Seed { scope, ..seed(*floor) })
                    }
                    (Act::Revoke { kid }, _) => {
                        Op::Stop(stop(&format!("revoked/{}", KIDS[usize::from(*kid)]), true))
                    }
                    (Act::Halt { stands }, _) => Op::Stop(stop("halted/partner/acme-remit", *stands)),
                    _ => continue,
                };
                let before = book.clone();
                match (book.apply(&op), reserve) {
                    (Err(_), _) => prop_assert_eq!(&book, &before, "a refusal changes nothing"),
                    (Ok(Done::Reserved(Reserved::Pending(held))), Some(op)) => {
                        let (sequence, input) = op.numbering.at(SequenceNumber::ZERO).unwrap();
                        prop_assert!(op.expires_at > now);
                        prop_assert!(!told.halted && !told.revoked.contains(held.kid()));
                        if !before.quotes.contains_key(&op.identity) {
                            let highest = told.highest.insert(op.scope.clone(), sequence);
                            prop_assert!(highest < Some(sequence), "numbers rise");
                        }
                        let bound = *told.bound.entry((op.scope, sequence)).or_insert(op.payload);
                        prop_assert_eq!(bound, op.payload, "a number belongs to one payload");
                        prop_assert_eq!((held.sequence(), held.input()), (sequence, input));
                        told.held.push(held);
                    }
                    (Ok(Done::Reserved(Reserved::Replay(released))), Some(op)) => {
                        prop_assert!(released.expires_at > now);
                        prop_assert_eq!((released.payload, Some(released.sequence)), (op.payload, op.numbering.given()));
                        told.release(&op.identity, &released);
                    }
                    (Ok(Done::Committed { released, .. }), _) => told.release(op.identity().unwrap(), &released),
                    (Ok(Done::Seeded(..)), _) => {
                        let Op::Seed(op) = op else { panic!() };
                        let highest = told.highest.insert(op.scope, op.floor);
                        prop_assert!(highest < Some(op.floor), "floors rise");
                    }
                    (Ok(Done::Stopped(_)), _) => match act {
                        Act::Revoke { kid } => told.revoked.push(KIDS[usize::from(kid)].parse().unwrap()),
                        Act::Halt { stands } => told.halted = stands,
                        _ => panic!(),
                    },
                    (Ok(_), _) => {}
                }
            }
        }
    }
}
