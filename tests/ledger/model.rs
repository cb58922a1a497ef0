//! The whole of what can happen to two quotes on two gateways, searched exhaustively: calls of the same quote, of a rival
//! for its number and of another payload under its id; a reply that is lost and a gateway that crashes, anywhere; and beside
//! them a key that is rotated and revoked, or time that passes with sweep and pruning, or a halt; `TRIALS=200` has all of that at
//! once. What each operation comes to is `step` itself.

use std::time::Duration;

use quotesign::{
    clock::UtcTime,
    domain::{InputDigest, Kid, PayloadDigest, SequenceNumber},
    jws::CompactJws,
    ledger::{
        Commit, Done, HoldAct, Numbering, Op, Prune, PruneJournal, Refusal, Reservation, Reserve, Reserved, StopAct,
        chain::Position,
        step::{Holds, Quotas, Quote, Stage, State, Step, step},
        stops::Stops,
    },
};
use stateright::{Checker as _, Model, Property};
use uuid::Uuid;

use crate::ops::{A, B, context, identity, scope, void};

const KIDS: [&str; 2] = [A, B];
/// A JWS: RS256 gives the same one for the same payload (which holds the number) and kid.
type Jws = (u8, u64, usize);

/// A quote as the ledger holds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Row {
    number: u64,
    payload: u8,
    kid: usize,
    generation: u32,
    stage: RowStage,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum RowStage {
    Reserved,
    Signed(Jws),
    Voided,
}

/// The ledger; what is in it is durable.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Book {
    last: u64,
    quotes: [Option<Row>; 2],
    revoked: bool,
    halted: bool,
    pruned: bool,
}

/// What a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Want {
    quote: usize,
    payload: u8,
    number: u64,
}

/// How far a call has come.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stands {
    Begun,
    Reserved { number: u64, kid: usize, generation: u32 },
    Signed { number: u64, kid: usize, generation: u32 },
    Lost,
    Told(Answer),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Answer {
    Jws(Jws),
    Refused(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Call {
    want: Want,
    gateway: usize,
    stands: Stands,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "each is a thing that has happened, in any order")]
struct World {
    book: Book,
    calls: [Call; 3],
    /// The kid that each gateway's bundle makes current.
    current: [usize; 2],
    expired: bool,
    /// Whether a reply was lost already, a gateway has crashed, and there was a halt.
    was_lost: bool,
    has_crashed: bool,
    was_halted: bool,
    /// What was told and must not have been.
    fault: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    /// The ledger reserves for a call; the reply may be lost.
    Reserve(usize, bool),
    /// The device signs.
    Sign(usize),
    /// The ledger commits for a call; the reply may be lost.
    Commit(usize, bool),
    /// A gateway loses all that it had in memory.
    Crash(usize),
    /// Who was told nothing asks the other gateway.
    Again(usize),
    Rotate(usize),
    Revoke,
    Halt(bool),
    Expire,
    Void(usize),
    Prune,
}

/// What happens beside calls and crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Keys,
    Time,
    Halt,
    All,
}

struct Gateways(Beside);

const BEGAN: UtcTime = UtcTime::from_millis(1_700_000_000_000);

fn expires() -> UtcTime {
    BEGAN.plus(Duration::from_mins(1))
}

fn quote_name(quote: usize) -> &'static str {
    ["q0", "q1"][quote]
}

fn kid(at: usize) -> Kid {
    KIDS[at].parse().unwrap()
}

fn number(number: u64) -> SequenceNumber {
    number.try_into().unwrap()
}

fn payload(payload: u8) -> PayloadDigest {
    PayloadDigest([payload; 32])
}

fn input(payload: u8, number: u64, kid: usize) -> InputDigest {
    InputDigest::of(format!("{payload} {number} {kid}").as_bytes())
}

fn text(jws: Jws) -> CompactJws {
    CompactJws::from_text(format!("{}.{}.{}", jws.0, jws.1, jws.2))
}

fn jws_of(jws: &CompactJws) -> Jws {
    let parts: Vec<&str> = jws.as_str().split('.').collect();
    (parts[0].parse().unwrap(), parts[1].parse().unwrap(), parts[2].parse().unwrap())
}

impl Row {
    fn quote(&self) -> Quote {
        Quote {
            scope: scope("GB-IN"),
            sequence: number(self.number),
            payload: payload(self.payload),
            kid: kid(self.kid),
            generation: self.generation,
            input: input(self.payload, self.number, self.kid),
            expires_at: expires(),
            stage: match &self.stage {
                RowStage::Reserved => Stage::Reserved,
                RowStage::Signed(jws) => Stage::Signed { jws: text(*jws), record: Uuid::nil() },
                RowStage::Voided => Stage::Voided,
            },
        }
    }

    fn of(quote: &Quote) -> Self {
        Self {
            number: quote.sequence.get(),
            payload: quote.payload.0[0],
            kid: KIDS.iter().position(|kid| *kid == quote.kid.as_str()).unwrap(),
            generation: quote.generation,
            stage: match &quote.stage {
                Stage::Reserved => RowStage::Reserved,
                Stage::Signed { jws, .. } => RowStage::Signed(jws_of(jws)),
                Stage::Voided => RowStage::Voided,
            },
        }
    }
}

impl Book {
    fn stops(&self) -> Stops {
        let revoked = self.revoked.then(|| format!("revoked/{A}"));
        let halted = self.halted.then(|| "halted/all".to_owned());
        revoked.into_iter().chain(halted).map(|stop| stop.parse().unwrap()).collect()
    }

    fn apply(&mut self, op: &Op) -> Result<Done, Refusal> {
        let of = |at: usize| identity(quote_name(at));
        let quotes = [0, 1].map(|at| self.quotes[at].as_ref().map(Row::quote));
        let about = op.identity().and_then(|identity| [0, 1].into_iter().find(|at| of(*at) == *identity));
        let done =
            [0, 1].into_iter().filter(|at| quotes[*at].as_ref().is_some_and(|quote| quote.stage != Stage::Reserved));
        let prunable: Vec<_> = done.map(|at| (of(at), expires())).collect();
        let state = State {
            quote: about.and_then(|at| quotes[at].as_ref()),
            last: Some(number(self.last)),
            quotas: &Quotas::new(),
            recorded: false,
            stops: &self.stops(),
            kept: None,
            pruned: self.pruned.then(|| expires().plus(Duration::from_millis(1))),
            prunable: &prunable,
            holds: &Holds::new(),
            proposal: None,
            checkpoint: 0,
            beginning: None,
        };
        let step = step(&state, op)?;
        if let Some((_, quote)) = &step.quote {
            self.quotes[about.unwrap()] = Some(Row::of(quote));
        }
        if let Some((_, last)) = step.taken {
            self.last = last.get();
        }
        if let Some((stop, stands)) = &step.stop {
            let which = if stop.to_string() == "halted/all" { &mut self.halted } else { &mut self.revoked };
            *which = *stands;
        }
        for gone in step.pruned.iter().flat_map(|(gone, _)| gone) {
            let at = [0, 1].into_iter().find(|at| of(*at) == *gone).unwrap();
            self.quotes[at] = None;
            self.pruned = true;
        }
        Ok(step.done)
    }
}

impl World {
    fn now(&self) -> UtcTime {
        if self.expired { expires().plus(Duration::from_secs(1)) } else { BEGAN }
    }

    fn reserve(&self, call: &Call) -> Reserve {
        let Want { quote, payload: wanted, number: given } = call.want;
        let current = self.current[call.gateway];
        reserve(quote, wanted, given, current, self.now())
    }

    /// What a call is told, unless its reply is lost: a JWS, or why not.
    fn tell(&mut self, call: usize, told: Result<Jws, Refusal>, is_lost: bool) {
        self.was_lost |= is_lost;
        if let Ok(jws) = &told {
            let fault = [
                (self.book.revoked && jws.2 == 0, "a revoked key's"),
                (self.book.halted, "while it was halted"),
                (self.expired, "expired"),
            ];
            self.fault = self.fault.or(fault.into_iter().find_map(|(is, fault)| is.then_some(fault)));
        }
        self.calls[call].stands = match told {
            _ if is_lost => Stands::Lost,
            Ok(jws) => Stands::Told(Answer::Jws(jws)),
            Err(refusal) => Stands::Told(Answer::Refused(match refusal {
                Refusal::Conflict { .. } => "conflict",
                Refusal::NotMonotonic { .. } => "not monotonic",
                Refusal::Expired => "expired",
                Refusal::KidRevoked { .. } => "revoked",
                Refusal::KidWithdrawn { .. } => "withdrawn",
                Refusal::Halted { .. } => "halted",
                Refusal::NotReserved => "not reserved",
                other => panic!("{other}"),
            })),
        };
    }

    fn jws_told(&self) -> impl Iterator<Item = (&Call, Jws)> {
        self.calls.iter().filter_map(|call| match &call.stands {
            Stands::Told(Answer::Jws(jws)) => Some((call, *jws)),
            _ => None,
        })
    }

    fn was_refused(&self, why: &str) -> bool {
        self.calls.iter().any(|call| matches!(&call.stands, Stands::Told(Answer::Refused(told)) if *told == why))
    }
}

/// The reservation as the ledger gave it: nobody else can make one.
fn reservation(call: &Call, kid: usize, generation: u32) -> Reservation {
    let Want { quote, payload: wanted, number: given } = call.want;
    let row = Row { number: given, payload: wanted, kid, generation, stage: RowStage::Reserved };
    let mut quotes = [None, None];
    quotes[quote] = Some(row);
    let mut book = Book { last: given, quotes, ..Book::default() };
    match book.apply(&Op::Reserve(reserve(quote, wanted, given, kid, BEGAN))) {
        Ok(Done::Reserved(Reserved::Pending(reservation))) => reservation,
        other => panic!("{other:?}"),
    }
}

fn reserve(quote: usize, wanted: u8, given: u64, current: usize, now: UtcTime) -> Reserve {
    Reserve {
        identity: identity(quote_name(quote)),
        scope: scope("GB-IN"),
        numbering: Numbering::Given { sequence: number(given), input: input(wanted, given, current) },
        jump_max: 1_000,
        stays: false,
        seed_if_unknown: false,
        payload: payload(wanted),
        kid: kid(current),
        expires_at: expires(),
        useful: Duration::ZERO,
        charges: Vec::new(),
        context: context(),
        now,
    }
}

impl Model for Gateways {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let call = |quote, payload, number, gateway| Call {
            want: Want { quote, payload, number },
            gateway,
            stands: Stands::Begun,
        };
        // A rival for the number, the next number, and another payload under the id.
        let thirds = [(1, 1, 1), (1, 1, 2), (0, 2, 2)];
        let world = |(quote, payload, number)| World {
            book: Book::default(),
            calls: [call(0, 0, 1, 0), call(0, 0, 1, 1), call(quote, payload, number, 1)],
            current: [0, 0],
            expired: false,
            was_lost: false,
            has_crashed: false,
            was_halted: false,
            fault: None,
        };
        thirds.map(world).into()
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        for (at, call) in world.calls.iter().enumerate() {
            match &call.stands {
                Stands::Begun => acts.extend([Act::Reserve(at, false), Act::Reserve(at, true)]),
                Stands::Reserved { .. } => acts.push(Act::Sign(at)),
                Stands::Signed { .. } => acts.extend([Act::Commit(at, false), Act::Commit(at, true)]),
                Stands::Lost => acts.push(Act::Again(at)),
                Stands::Told(_) => {}
            }
        }
        acts.extend([Act::Crash(0), Act::Crash(1)]);
        let has = |beside| [beside, Beside::All].contains(&self.0);
        if has(Beside::Keys) {
            acts.extend([Act::Rotate(0), Act::Rotate(1), Act::Revoke]);
        }
        if has(Beside::Time) {
            acts.extend([Act::Expire, Act::Void(0), Act::Void(1), Act::Prune]);
        }
        if has(Beside::Halt) {
            acts.extend([Act::Halt(true), Act::Halt(false)]);
        }
    }

    fn next_state(&self, before: &World, act: Act) -> Option<World> {
        let mut world = before.clone();
        let now = world.now();
        match act {
            Act::Reserve(at, is_lost) => {
                if is_lost && world.was_lost {
                    return None;
                }
                match world.book.apply(&Op::Reserve(before.reserve(&world.calls[at]))) {
                    Ok(Done::Reserved(Reserved::Pending(held))) if !is_lost => {
                        let kid = KIDS.iter().position(|kid| *kid == held.kid().as_str()).unwrap();
                        let (number, generation) = (held.sequence().get(), held.generation());
                        world.calls[at].stands = Stands::Reserved { number, kid, generation };
                    }
                    Ok(Done::Reserved(Reserved::Replay(released))) => {
                        world.tell(at, Ok(jws_of(&released.jws)), is_lost);
                    }
                    Ok(_) => world.tell(at, Err(Refusal::NotReserved), true),
                    Err(refusal) => world.tell(at, Err(refusal), is_lost),
                }
            }
            Act::Sign(at) => {
                let Stands::Reserved { number, kid, generation } = world.calls[at].stands else { return None };
                world.calls[at].stands = Stands::Signed { number, kid, generation };
            }
            Act::Commit(at, is_lost) => {
                let Stands::Signed { number, kid, generation } = world.calls[at].stands else { return None };
                if is_lost && world.was_lost {
                    return None;
                }
                let call = &world.calls[at];
                let (reservation, jws) = (reservation(call, kid, generation), text((call.want.payload, number, kid)));
                let op = Op::Commit(Commit { reservation, jws, context: context(), now });
                let told = world.book.apply(&op).map(|done| match done {
                    Done::Committed { released, .. } => jws_of(&released.jws),
                    other => panic!("{other:?}"),
                });
                world.tell(at, told, is_lost);
            }
            Act::Crash(_) if world.has_crashed => return None,
            Act::Crash(gateway) => {
                world.has_crashed = true;
                for call in world.calls.iter_mut().filter(|call| call.gateway == gateway) {
                    if !matches!(call.stands, Stands::Told(_)) {
                        call.stands = Stands::Lost;
                    }
                }
            }
            Act::Again(at) => {
                let call = &mut world.calls[at];
                (call.gateway, call.stands) = (1 - call.gateway, Stands::Begun);
            }
            Act::Rotate(gateway) => world.current[gateway] = 1,
            Act::Revoke => {
                let act = stop_act(&format!("revoked/{A}"), true);
                world.book.apply(&act).unwrap();
            }
            Act::Halt(stands) => {
                if stands == world.book.halted || (stands && world.was_halted) {
                    return None;
                }
                world.book.apply(&stop_act("halted/all", stands)).unwrap();
                world.was_halted = true;
            }
            Act::Expire => world.expired = true,
            Act::Void(quote) => {
                world.book.apply(&Op::Void(void(quote_name(quote), now))).ok()?;
            }
            Act::Prune => {
                let before = if world.expired { expires().plus(Duration::from_millis(1)) } else { BEGAN };
                world.book.apply(&Op::Prune(Prune { before, count_max: 2, context: context(), now })).ok()?;
            }
        }
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("no number is two payloads", |_, world: &World| {
                let told = world.jws_told().map(|(call, jws)| (jws.1, jws.0, call.want.quote));
                let stored = [0, 1]
                    .into_iter()
                    .filter_map(|at| world.book.quotes[at].as_ref().map(|row| (row.number, row.payload, at)));
                let all: Vec<_> = told.chain(stored).collect();
                all.iter().all(|one| all.iter().all(|other| one.0 != other.0 || one == other))
            }),
            Property::always("no quote is two JWS", |_, world: &World| {
                world.jws_told().all(|(call, jws)| {
                    world.jws_told().all(|(other, another)| call.want.quote != other.want.quote || jws == another)
                })
            }),
            Property::always("what was told is stored, until it is pruned", |_, world: &World| {
                world.jws_told().all(|(call, jws)| match &world.book.quotes[call.want.quote] {
                    Some(row) => row.stage == RowStage::Signed(jws),
                    None => world.book.pruned,
                })
            }),
            Property::always("what was told is what was asked for", |_, world: &World| {
                world.jws_told().all(|(call, jws)| (jws.0, jws.1) == (call.want.payload, call.want.number))
            }),
            Property::always("a JWS is stored under the key that signed it", |_, world: &World| {
                let signed = |row: &Row| if let RowStage::Signed(jws) = row.stage { jws.2 == row.kid } else { true };
                world.book.quotes.iter().flatten().all(signed)
            }),
            Property::always("a number is taken for ever", |_, world: &World| {
                let stored = world.book.quotes.iter().flatten().map(|row| row.number);
                stored.chain(world.jws_told().map(|(_, jws)| jws.1)).all(|number| number <= world.book.last)
            }),
            Property::always("nothing is released that was revoked, halted or expired", |_, world: &World| {
                world.fault.is_none()
            }),
            Property::sometimes("all three are signed", |_, world: &World| world.jws_told().count() == 3),
            Property::sometimes("all is told after a crash and a lost reply", |_, world: &World| {
                world.was_lost && world.has_crashed && world.jws_told().count() == 3
            }),
            Property::sometimes("a rival loses", |_, world: &World| world.was_refused("not monotonic")),
            Property::sometimes("another payload is refused", |_, world: &World| world.was_refused("conflict")),
        ];
        let of_keys = [
            Property::sometimes("one is signed by the second key after a re-keying", |_, world: &World| {
                let rekeyed = world.book.quotes.iter().flatten().any(|row| row.generation > 1);
                rekeyed && world.jws_told().any(|(_, jws)| jws.2 == 1)
            }),
            Property::sometimes("a commit of an older generation releases nothing", |_, world: &World| {
                world.was_refused("not reserved")
            }),
            Property::sometimes("a revoked one is refused", |_, world: &World| world.was_refused("revoked")),
        ];
        let of_time = [
            Property::sometimes("one is burnt", |_, world: &World| {
                world.book.quotes.iter().flatten().any(|row| row.stage == RowStage::Voided)
            }),
            Property::sometimes("a signed one is pruned", |_, world: &World| {
                world.book.pruned && world.jws_told().next().is_some()
            }),
        ];
        match self.0 {
            Beside::Keys => properties.extend(of_keys),
            Beside::Time => properties.extend(of_time),
            Beside::Halt => {
                let halted = |_: &Self, world: &World| world.was_refused("halted") && world.jws_told().count() == 2;
                properties.push(Property::sometimes("one is halted, and others are signed", halted));
            }
            Beside::All => properties.extend(of_keys.into_iter().chain(of_time)),
        }
        properties
    }
}

fn stop_act(what: &str, stands: bool) -> Op {
    let (stop, reason) = (what.parse().unwrap(), "OPS-2".to_owned());
    Op::Stop(StopAct { stop, stands, reason, context: context(), now: BEGAN })
}

#[test]
fn whatever_happens_to_two_quotes_on_two_gateways_holds() {
    let all = std::env::var("TRIALS").is_ok_and(|trials| trials == "200");
    let besides = [Beside::Keys, Beside::Time, Beside::Halt, Beside::All];
    for beside in &besides[..if all { 4 } else { 3 }] {
        let checked = Gateways(*beside).checker().threads(2).spawn_bfs().join();
        println!("{beside:?}: {} states, {} steps deep", checked.unique_state_count(), checked.max_depth());
        checked.assert_properties();
    }
}

/// What can happen to a lane of five batches: two gateways that look and then cut it, by what they saw, late or twice; a hold that
/// is set and released between any two of that; and a clock that goes on.
struct Cutting;

const BATCHES: u8 = 5;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Lane {
    written: u8,
    first: u8,
    /// Since which batch a hold keeps, and where the lane began when it was set.
    hold: Option<(u8, u8)>,
    /// What each gateway has seen: where the lane begins, and where it would cut it.
    seen: [Option<(u8, u8)>; 2],
    cuts: u8,
    was_refused: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Cutter {
    Write,
    Look(usize, u8),
    Cut(usize),
    Hold(u8),
    Release,
}

/// A batch is one record, journalled a second after the one before.
fn journalled(batch: u8) -> UtcTime {
    BEGAN.plus(Duration::from_secs(batch.into()))
}

fn after(batches: u8) -> Position {
    match batches {
        0 => Position::GENESIS,
        _ => Position { next_index: batches.into(), link: [batches; 32] },
    }
}

/// A ledger that holds nothing but these.
fn empty<'a>(quotas: &'a Quotas, stops: &'a Stops, holds: &'a Holds) -> State<'a> {
    State {
        quote: None,
        last: None,
        quotas,
        recorded: false,
        stops,
        kept: None,
        pruned: None,
        prunable: &[],
        holds,
        proposal: None,
        checkpoint: 0,
        beginning: None,
    }
}

impl Lane {
    fn apply(&self, op: &Op) -> Step {
        let holds = self.hold.map(|(since, _)| ("case-1".to_owned(), journalled(since))).into_iter().collect();
        // As engines have it: where the lane holds the link, and something after it.
        let holds_link = |op: &PruneJournal| (self.first + 1..self.written).any(|at| after(at) == op.to);
        let beginning = matches!(op, Op::PruneJournal(op) if holds_link(op)).then(|| after(self.first));
        let (quotas, stops) = (Quotas::new(), Stops::default());
        let state = State { beginning, ..empty(&quotas, &stops, &holds) };
        step(&state, op).unwrap()
    }
}

impl Model for Cutting {
    type State = Lane;
    type Action = Cutter;

    fn init_states(&self) -> Vec<Lane> {
        vec![Lane { written: 2, ..Lane::default() }]
    }

    fn actions(&self, lane: &Lane, acts: &mut Vec<Cutter>) {
        acts.extend([Cutter::Write, Cutter::Release]);
        acts.extend([0, 1].map(Cutter::Cut));
        acts.extend((0..BATCHES).map(Cutter::Hold));
        acts.extend((lane.first..=lane.written).flat_map(|to| [0, 1].map(|gateway| Cutter::Look(gateway, to))));
    }

    fn next_state(&self, before: &Lane, act: Cutter) -> Option<Lane> {
        let mut lane = before.clone();
        match act {
            Cutter::Write if lane.written < BATCHES => lane.written += 1,
            Cutter::Hold(since) if lane.hold.is_none() => lane.hold = Some((since, lane.first)),
            Cutter::Release => lane.hold = None,
            Cutter::Look(gateway, to) => lane.seen[gateway] = Some((lane.first, to)),
            Cutter::Cut(gateway) => {
                let (from, to) = lane.seen[gateway]?;
                let op = Op::PruneJournal(PruneJournal {
                    lane: String::new(),
                    from: after(from),
                    to: after(to),
                    newest: journalled(to.saturating_sub(1)),
                    before: journalled(BATCHES),
                    again: Vec::new(),
                    context: context(),
                    now: journalled(BATCHES),
                });
                let step = lane.apply(&op);
                assert_eq!(step.cut.is_some(), step.record.is_some(), "every cut is journalled");
                match step.cut {
                    Some(cut) => {
                        assert_eq!(cut.from, after(lane.first));
                        (lane.first, lane.cuts) = (to, lane.cuts + 1);
                    }
                    None => lane.was_refused = true,
                }
            }
            Cutter::Write | Cutter::Hold(_) => return None,
        }
        (lane != *before).then_some(lane)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing goes that a hold keeps", |_, lane: &Lane| {
                lane.hold.is_none_or(|(since, began)| lane.first <= since.max(began))
            }),
            Property::always("the newest batch stays", |_, lane: &Lane| lane.first < lane.written),
            Property::sometimes("it is cut more than once", |_, lane: &Lane| lane.cuts > 1),
            Property::sometimes("one is late, and cuts nothing", |_, lane: &Lane| lane.cuts > 0 && lane.was_refused),
            Property::sometimes("it is cut under a hold up to what that keeps", |_, lane: &Lane| {
                lane.hold.is_some_and(|(since, began)| since > began && lane.first == since)
            }),
        ]
    }
}

#[test]
fn whatever_cuts_a_lane_leaves_what_is_held_and_what_the_rest_hangs_on() {
    let checked = Cutting.checker().threads(2).spawn_bfs().join();
    println!("{} states, {} steps deep", checked.unique_state_count(), checked.max_depth());
    checked.assert_properties();
}

/// What can happen to three quotes that have expired and to a hold on them: two gateways that decide, by `step`, what they forget
/// and whether the hold is set, moved or released, and write it later, when the other may have been first. What is written, and
/// when it is not, is as in the engine of PostgreSQL.
struct Keeping;

const QUOTES: u8 = 3;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Shelf {
    gone: [bool; QUOTES as usize],
    /// Since which quote it keeps.
    hold: Option<u8>,
    /// What each gateway has decided, and the hold that it decided by.
    decided: [Option<(Option<u8>, Decided)>; 2],
    was_late: bool,
    /// What was done and must not have been.
    fault: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Decided {
    Forget([bool; QUOTES as usize]),
    Hold(Option<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Keeper {
    Prune(usize),
    Hold(usize, Option<u8>),
    Write(usize),
}

impl Shelf {
    fn step(&self, op: &Op) -> Option<Step> {
        let holds = self.hold.map(|since| ("case-1".to_owned(), journalled(since))).into_iter().collect();
        let there = (0..QUOTES).filter(|quote| !self.gone[usize::from(*quote)]);
        let prunable: Vec<_> = there.map(|quote| (identity(&format!("q{quote}")), journalled(quote))).collect();
        let (quotas, stops) = (Quotas::new(), Stops::default());
        step(&State { prunable: &prunable, ..empty(&quotas, &stops, &holds) }, op).ok()
    }

    fn prune(&self) -> Option<Decided> {
        let (before, now) = (journalled(QUOTES), journalled(QUOTES));
        let step = self.step(&Op::Prune(Prune { before, count_max: QUOTES.into(), context: context(), now }))?;
        let (gone, _) = step.pruned?;
        Some(Decided::Forget([0, 1, 2].map(|quote| gone.contains(&identity(&format!("q{quote}"))))))
    }

    fn set(&self, since: Option<u8>) -> Option<Decided> {
        let (id, reason, now) = ("case-1".to_owned(), "LEGAL-1".to_owned(), journalled(QUOTES));
        let act = HoldAct { id, since: since.map(journalled), reason, context: context(), now };
        self.step(&Op::Hold(act)).map(|_| Decided::Hold(since))
    }

    fn write(&mut self, decided: Decided) {
        match decided {
            Decided::Forget(quotes) => {
                let is_held = |quote: u8| self.hold.is_some_and(|since| since <= quote);
                let (mut forgotten, gone) = ((0..QUOTES).filter(|quote| quotes[usize::from(*quote)]), self.gone);
                if forgotten.any(|quote| is_held(quote) && !gone[usize::from(quote)]) {
                    self.fault = Some("what is held is forgotten");
                }
                self.gone = [0, 1, 2].map(|quote| self.gone[quote] || quotes[quote]);
            }
            Decided::Hold(since) => {
                match (self.hold, since) {
                    (None, None) => self.fault = Some("what does not stand is released"),
                    (Some(present), Some(since)) if since > present => self.fault = Some("a hold is narrowed"),
                    _ => {}
                }
                self.hold = since;
            }
        }
    }
}

impl Model for Keeping {
    type State = Shelf;
    type Action = Keeper;

    fn init_states(&self) -> Vec<Shelf> {
        vec![Shelf::default()]
    }

    fn actions(&self, _: &Shelf, acts: &mut Vec<Keeper>) {
        for gateway in [0, 1] {
            acts.extend([Keeper::Prune(gateway), Keeper::Hold(gateway, None), Keeper::Write(gateway)]);
            acts.extend((0..=QUOTES).map(|since| Keeper::Hold(gateway, Some(since))));
        }
    }

    fn next_state(&self, before: &Shelf, act: Keeper) -> Option<Shelf> {
        let mut shelf = before.clone();
        match act {
            Keeper::Prune(gateway) => shelf.decided[gateway] = Some((before.hold, before.prune()?)),
            Keeper::Hold(gateway, since) => shelf.decided[gateway] = Some((before.hold, before.set(since)?)),
            Keeper::Write(gateway) => match shelf.decided[gateway].take()? {
                (seen, decided) if seen == before.hold => shelf.write(decided),
                _ => shelf.was_late = true,
            },
        }
        Some(shelf)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing goes that is held, and no hold is narrowed", |_, shelf: &Shelf| {
                shelf.fault.is_none()
            }),
            Property::sometimes("all goes", |_, shelf: &Shelf| shelf.gone == [true; 3]),
            Property::sometimes("what comes before the hold goes, and no more", |_, shelf: &Shelf| {
                shelf.gone == [true, true, false] && shelf.hold == Some(2)
            }),
            Property::sometimes("one is late, and writes nothing", |_, shelf: &Shelf| {
                shelf.was_late && shelf.hold.is_some() && shelf.gone == [false; 3]
            }),
        ]
    }
}

#[test]
fn whatever_prunes_quotes_and_sets_holds_forgets_nothing_that_is_held() {
    let checked = Keeping.checker().threads(2).spawn_bfs().join();
    println!("{} states, {} steps deep", checked.unique_state_count(), checked.max_depth());
    checked.assert_properties();
}
