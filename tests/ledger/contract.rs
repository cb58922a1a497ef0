//! What every engine does, each in a store of its own: what was told once is told again whoever asks, after
//! closing and opening, and the journal holds.

use std::time::Duration;

use quotesign::{
    audit::{Event, Facts, Record},
    domain::{KeyState, SequenceNumber},
    ledger::{
        Allowance, Charge, Done, Engine, HoldAct, Journal, Note, Noted, Op, Propose, Prune, PruneJournal, Quarantined,
        Refusal, Reserve, Reserved, Shipment,
        chain::{self, Break, Position, StoredRecord},
        step::Stage,
    },
};
use uuid::Uuid;

use crate::ops::{
    A, B, commit, context, identity, now, one, pending, publish, reserve, reserve_with, scope, seed, stop, void,
};

/// A store that can be closed and opened again.
pub trait Store {
    fn open(&self) -> Box<dyn Engine>;
    /// The whole journal, from its beginning.
    fn journal(&self) -> Vec<StoredRecord>;
    /// The engine's lane.
    fn lane(&self) -> &'static str;
    /// What reads beside it.
    fn reader(&self) -> Box<dyn Journal>;
    /// Has the store find the record at `index` by another id, as whoever owns it can.
    fn put_id(&self, index: u64, id: Uuid);
    /// Has the lane begin there.
    fn begin_at(&self, index: u64);
}

type Case = (&'static str, fn(&dyn Store));

pub const CASES: &[Case] = &[
    ("a quote is reserved, signed and replayed, also after reopening", signed_and_replayed),
    ("an identity is bound to one payload", bound_to_one_payload),
    ("numbers rise, within a batch in their order", numbers_rise),
    ("a scope that nobody seeded is refused, and a floor only rises", scopes_are_seeded),
    ("a batch answers in its order and refuses alone", refuses_alone),
    ("quotas survive reopening, and a replay is free", quotas),
    ("another kid takes a waiting reservation over", rekeyed),
    ("what expires unsigned is found and voided", voided),
    ("a revocation is for good and a halt until it is resumed", stopped),
    ("a kid is one key for ever, and its last expiry is remembered", kids),
    ("what becomes of a kid is noted once and never goes back", noted),
    ("an act that needs two is agreed to by another", proposed),
    ("what expired long ago is pruned, but nothing that is held", pruned),
    ("whole batches of the journal are pruned, but nothing that is held, and the rest hangs on", journal_pruned),
    ("a record is journalled once", recorded_once),
    ("a record is read by its own id, as far as the chain reaches, or not at all", read_by_ids),
    ("how far it was shipped only rises, and what was taken after all leaves quarantine", shipped),
    ("two operations on one quote in a batch", same_quote_twice),
    ("reopening in between changes nothing", reopened),
];

/// The journal holds, and says of each record what its row says.
pub fn verify(store: &dyn Store) -> Vec<Record> {
    let journal = store.journal();
    chain::verify(Position::GENESIS, journal.clone()).unwrap();
    journal.iter().map(|stored| serde_json::from_slice(&stored.bytes).unwrap()).collect()
}

fn seeded(store: &dyn Store) -> Box<dyn Engine> {
    let mut engine = store.open();
    one(&mut *engine, Op::Seed(seed("GB-IN", 0))).unwrap();
    engine
}

fn events(records: &[Record]) -> Vec<Event> {
    records.iter().map(|record| record.event).collect()
}

fn signed_and_replayed(store: &dyn Store) {
    let mut engine = seeded(store);
    let held = pending(one(&mut *engine, Op::Reserve(reserve("q1", 7))));
    assert_eq!(pending(one(&mut *engine, Op::Reserve(reserve("q1", 7)))), held, "a retry takes no number");
    let Ok(Done::Committed { released: first, first: true }) =
        one(&mut *engine, Op::Commit(commit(&held, "e30.e30.first")))
    else {
        panic!()
    };
    drop(engine);
    let mut engine = store.open();
    let replay = one(&mut *engine, Op::Reserve(reserve("q1", 7)));
    assert_eq!(replay, Ok(Done::Reserved(Reserved::Replay(first.clone()))));
    let late = one(&mut *engine, Op::Commit(commit(&held, "e30.e30.second")));
    assert_eq!(late, Ok(Done::Committed { released: first.clone(), first: false }));
    let stored = engine.quote(&identity("q1")).unwrap().unwrap();
    assert_eq!(stored.released(), Some(first.clone()));
    assert_eq!(engine.numbered(&scope("GB-IN"), held.sequence()).unwrap(), Some(stored));
    assert_eq!(engine.numbered(&scope("GB-US"), held.sequence()).unwrap(), None);
    let records = verify(store);
    assert_eq!(events(&records), [Event::Seeded, Event::Reserved, Event::Committed, Event::Replayed, Event::Replayed]);
    assert_eq!(records[2].id, first.record);
    assert_eq!(records[1].facts.previous_sequence, Some(SequenceNumber::ZERO));
    let newest: Vec<_> = engine.newest_records().unwrap().into_iter().map(|record| record.id).collect();
    assert_eq!(newest, [records.last().unwrap().id]);
    assert_eq!(engine.newest_record_at().unwrap(), Some(records[2].at));
}

fn bound_to_one_payload(store: &dyn Store) {
    let mut engine = seeded(store);
    let held = pending(one(&mut *engine, Op::Reserve(reserve("q1", 1))));
    for op in [reserve("q1", 2), Reserve { numbering: reserve("q1", 1).numbering, ..reserve("q1", 3) }] {
        let bound = (reserve("q1", 1).payload, held.sequence());
        assert_eq!(one(&mut *engine, Op::Reserve(op)), Err(Refusal::Conflict { bound }));
    }
    assert_eq!(engine.last_taken(&scope("GB-IN")).unwrap(), Some(held.sequence()));
}

fn numbers_rise(store: &dyn Store) {
    let mut engine = seeded(store);
    let batch: Vec<Op> = [5, 3, 9, 4].map(|number| Op::Reserve(reserve(&format!("q{number}"), number))).into();
    let replies = engine.apply(&batch).unwrap();
    let numbers: Vec<u64> = replies.into_iter().map(|reply| pending(reply).sequence().get()).collect();
    assert_eq!(numbers, [5, 3, 9, 4]);
    let last = 9.try_into().unwrap();
    let given = 9.try_into().unwrap();
    assert_eq!(one(&mut *engine, Op::Reserve(reserve("q10", 9))), Err(Refusal::NotMonotonic { given, last }));
    let far = Reserve { jump_max: 10, ..reserve("q11", 20) };
    assert!(matches!(one(&mut *engine, Op::Reserve(far)), Err(Refusal::TooFarAhead { .. })));
    let records = verify(store);
    let journalled: Vec<u64> = records[1..].iter().map(|record| record.facts.sequence.unwrap().get()).collect();
    assert_eq!(journalled, [3, 4, 5, 9], "the journal rises");
    let before: Vec<u64> = records[1..].iter().map(|record| record.facts.previous_sequence.unwrap().get()).collect();
    assert_eq!(before, [0, 3, 4, 5], "each names the one before it");
}

fn scopes_are_seeded(store: &dyn Store) {
    let mut engine = store.open();
    assert_eq!(one(&mut *engine, Op::Reserve(reserve("q1", 1))), Err(Refusal::UnknownScope));
    assert_eq!(engine.last_taken(&scope("GB-IN")).unwrap(), None);
    one(&mut *engine, Op::Seed(seed("GB-IN", 10))).unwrap();
    for floor in [0, 9, 10] {
        let refused = one(&mut *engine, Op::Seed(seed("GB-IN", floor)));
        assert!(matches!(refused, Err(Refusal::FloorNotRaised { .. })), "{floor}");
    }
    assert!(
        matches!(one(&mut *engine, Op::Seed(seed("GB-IN", 12))), Ok(Done::Seeded(Some(before), _)) if before.get() == 10)
    );
    assert!(matches!(one(&mut *engine, Op::Reserve(reserve("q1", 12))), Err(Refusal::NotMonotonic { .. })));
    assert!(one(&mut *engine, Op::Reserve(reserve("q1", 13))).is_ok());
    let own = Reserve { scope: scope("GB-US"), seed_if_unknown: true, ..reserve("q2", 1) };
    assert!(one(&mut *engine, Op::Reserve(own)).is_ok(), "development seeds itself");
    assert_eq!(verify(store).len(), 4, "a refusal of the ledger is for the gateway to journal");
}

fn refuses_alone(store: &dyn Store) {
    let mut engine = seeded(store);
    let held = pending(one(&mut *engine, Op::Reserve(reserve("q1", 1))));
    let batch = [
        Op::Reserve(reserve("q2", 1)),
        Op::Commit(commit(&held, "e30.e30.one")),
        Op::Void(void("q9", now())),
        Op::Reserve(reserve("q3", 3)),
        Op::Seed(seed("GB-US", 0)),
        Op::Record(Record::new(Event::Refused, now(), context(), Facts::default())),
    ];
    let replies = engine.apply(&batch).unwrap();
    assert!(matches!(replies[0], Err(Refusal::NotMonotonic { .. })));
    assert!(matches!(replies[1], Ok(Done::Committed { first: true, .. })));
    assert_eq!(replies[2], Err(Refusal::NotReserved));
    assert_eq!(pending(replies[3].clone()).sequence().get(), 3);
    assert!(matches!(replies[4], Ok(Done::Seeded(None, _))));
    assert_eq!(replies[5], Ok(Done::Recorded));
    assert_eq!(verify(store).len(), 6);
    assert_eq!(engine.apply(&[]).unwrap(), []);
}

fn quotas(store: &dyn Store) {
    let charges = vec![
        Charge {
            quota: "caller/x".to_owned(),
            allowance: Allowance::Rate { interval: Duration::from_hours(1), burst: 9 },
        },
        Charge { quota: "caller.per_day/x".to_owned(), allowance: Allowance::Day(2) },
    ];
    let charged = |quote, number| Op::Reserve(Reserve { charges: charges.clone(), ..reserve(quote, number) });
    let mut engine = seeded(store);
    assert!(one(&mut *engine, charged("q1", 1)).is_ok());
    drop(engine);
    let mut engine = store.open();
    let batch = [charged("q2", 2), charged("q3", 3), charged("q1", 1)];
    let replies = engine.apply(&batch).unwrap();
    assert!(replies[0].is_ok() && replies[2].is_ok(), "{replies:?}");
    assert!(matches!(&replies[1], Err(Refusal::QuotaSpent { quota, .. }) if quota == "caller.per_day/x"));
    assert_eq!(engine.last_taken(&scope("GB-IN")).unwrap().map(SequenceNumber::get), Some(2), "no number was taken");
}

fn rekeyed(store: &dyn Store) {
    let mut engine = seeded(store);
    let old = pending(one(&mut *engine, Op::Reserve(reserve("q1", 1))));
    let new = pending(one(&mut *engine, Op::Reserve(reserve_with("q1", 1, B))));
    assert_eq!((new.generation(), new.kid().as_str(), new.sequence()), (2, B, old.sequence()));
    assert_eq!(one(&mut *engine, Op::Commit(commit(&old, "e30.e30.old"))), Err(Refusal::NotReserved));
    assert!(one(&mut *engine, Op::Commit(commit(&new, "e30.e30.new"))).is_ok());
    let late = one(&mut *engine, Op::Commit(commit(&old, "e30.e30.old")));
    assert!(matches!(late, Ok(Done::Committed { released, first: false }) if released.jws.as_str() == "e30.e30.new"));
}

fn voided(store: &dyn Store) {
    let mut engine = seeded(store);
    let end = now().plus(Duration::from_mins(1));
    for number in 1..4 {
        let op = Reserve { expires_at: end, ..reserve(&format!("q{number}"), number) };
        one(&mut *engine, Op::Reserve(op)).unwrap();
    }
    assert_eq!(engine.expired(now(), 9).unwrap(), []);
    assert_eq!(engine.expired(end, 2).unwrap().len(), 2);
    assert_eq!(one(&mut *engine, Op::Void(void("q2", now()))), Err(Refusal::NotReserved), "not before its time");
    assert_eq!(one(&mut *engine, Op::Void(void("q2", end))), Ok(Done::Voided));
    let mut left = engine.expired(end, 9).unwrap();
    left.sort();
    assert_eq!(left, [identity("q1"), identity("q3")]);
    assert_eq!(engine.quote(&identity("q2")).unwrap().map(|quote| quote.stage), Some(Stage::Voided));
    assert_eq!(one(&mut *engine, Op::Reserve(reserve("q2", 2))), Err(Refusal::Expired));
}

fn stopped(store: &dyn Store) {
    let mut engine = seeded(store);
    let signed = pending(one(&mut *engine, Op::Reserve(reserve("q1", 1))));
    one(&mut *engine, Op::Commit(commit(&signed, "e30.e30.one"))).unwrap();
    let waiting = pending(one(&mut *engine, Op::Reserve(reserve("q2", 2))));
    one(&mut *engine, Op::Stop(stop("halted/partner/acme-remit", true))).unwrap();
    for op in [Op::Reserve(reserve("q1", 1)), Op::Reserve(reserve("q3", 3)), Op::Commit(commit(&waiting, "e30.e30.x"))]
    {
        assert!(matches!(one(&mut *engine, op), Err(Refusal::Halted { .. })));
    }
    drop(engine);
    let mut engine = store.open();
    assert_eq!(engine.stops().unwrap().iter().count(), 1);
    let both = [Op::Stop(stop("halted/partner/acme-remit", false)), Op::Stop(stop(&format!("revoked/{A}"), true))];
    engine.apply(&both).unwrap();
    let revoked = Err(Refusal::KidRevoked { kid: A.parse().unwrap() });
    assert_eq!(one(&mut *engine, Op::Reserve(reserve("q1", 1))), revoked);
    // What was not signed is signed by another key.
    let withdrawn = Err(Refusal::KidWithdrawn { kid: A.parse().unwrap() });
    for op in [Op::Reserve(reserve("q3", 3)), Op::Commit(commit(&waiting, "e30.e30.x"))] {
        assert_eq!(one(&mut *engine, op), withdrawn);
    }
    assert_eq!(one(&mut *engine, Op::Stop(stop(&format!("revoked/{A}"), false))), revoked);
    let rekeyed = pending(one(&mut *engine, Op::Reserve(reserve_with("q2", 2, B))));
    assert!(one(&mut *engine, Op::Commit(commit(&rekeyed, "e30.e30.two"))).is_ok());
    // Within one batch, what comes after the act heeds it.
    let batch = [Op::Stop(stop("halted/all", true)), Op::Reserve(reserve_with("q4", 4, B))];
    let replies = engine.apply(&batch).unwrap();
    assert!(replies[0].is_ok() && matches!(replies[1], Err(Refusal::Halted { .. })));
    let told: Vec<String> = engine.stops().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(told, [format!("revoked/{A}"), "halted/all".to_owned()]);
    verify(store);
}

fn kids(store: &dyn Store) {
    let mut engine = seeded(store);
    for _ in 0..2 {
        assert_eq!(one(&mut *engine, Op::Publish(publish(A, "{}"))), Ok(Done::Published));
    }
    let held = pending(one(&mut *engine, Op::Reserve(reserve("q1", 1))));
    one(&mut *engine, Op::Commit(commit(&held, "e30.e30.one"))).unwrap();
    drop(engine);
    let mut engine = store.open();
    let reused = Err(Refusal::KidReused { kid: A.parse().unwrap() });
    assert_eq!(one(&mut *engine, Op::Publish(publish(A, "{\"n\":1}"))), reused);
    assert_eq!(one(&mut *engine, Op::Publish(publish(A, "{}"))), Ok(Done::Published));
    let records = verify(store);
    assert_eq!(events(&records), [Event::Seeded, Event::Published, Event::Reserved, Event::Committed]);
}

/// What becomes of a kid is noted once, survives reopening, and never goes back.
fn noted(store: &dyn Store) {
    let mut engine = store.open();
    let note = |noted| Op::Note(Note { kid: A.parse().unwrap(), noted, context: context(), now: now() });
    let turned = |state| note(Noted::Turned(state));
    let activated = || note(Noted::Activated { reason: "OPS-3".to_owned() });
    let unknown = Err(Refusal::KidUnknown { kid: A.parse().unwrap() });
    assert_eq!(one(&mut *engine, note(Noted::Served)), unknown);
    one(&mut *engine, Op::Publish(publish(A, "{}"))).unwrap();
    let is_news = |done: Result<Done, Refusal>| matches!(done, Ok(Done::Noted(Some(_))));
    for op in [turned(KeyState::Prepared), note(Noted::Served), turned(KeyState::Active), activated()] {
        assert!(is_news(one(&mut *engine, op.clone())));
        assert_eq!(one(&mut *engine, op), Ok(Done::Noted(None)));
    }
    let kept = engine.kids().unwrap();
    drop(engine);
    let mut engine = store.open();
    assert_eq!(engine.kids().unwrap(), kept);
    let kept = &kept[&A.parse().unwrap()];
    assert!(kept.served_since.is_some() && kept.activated_at.is_some() && kept.last_expiry.is_none());
    assert_eq!(kept.state, Some(KeyState::Active));
    for op in [turned(KeyState::Prepared), note(Noted::Served), activated()] {
        assert_eq!(one(&mut *engine, op), Ok(Done::Noted(None)));
    }
    let batch = [turned(KeyState::Retiring), turned(KeyState::Retiring), turned(KeyState::Retired)];
    let replies = engine.apply(&batch).unwrap();
    assert!(is_news(replies[0].clone()) && replies[1] == Ok(Done::Noted(None)) && is_news(replies[2].clone()));
    let told = [Event::Published, Event::Turned, Event::Served, Event::Turned, Event::Activated];
    assert_eq!(events(&verify(store)), [&told[..], &[Event::Turned, Event::Turned]].concat());
}

/// Two who ask for the very same act in time agree; one alone never does, however often.
fn proposed(store: &dyn Store) {
    let mut engine = store.open();
    let (first, second) = ("dns:one.example", "dns:two.example");
    let propose = |act: &str, caller: &str, after: u64| {
        Op::Propose(Propose {
            act: act.to_owned(),
            caller: caller.parse().unwrap(),
            within: Duration::from_mins(1),
            context: context(),
            now: now().plus(Duration::from_secs(after)),
        })
    };
    let asked = |done: Result<Done, Refusal>| match done {
        Ok(Done::Proposed(first, _)) => first.map(|first| first.to_string()),
        other => panic!("{other:?}"),
    };
    assert_eq!(asked(one(&mut *engine, propose("Resume all", first, 0))), None);
    assert_eq!(asked(one(&mut *engine, propose("Resume all", first, 1))), None, "still one person");
    assert_eq!(asked(one(&mut *engine, propose("Resume kid/quote-a", second, 1))), None, "another act");
    drop(engine);
    let mut engine = store.open();
    assert_eq!(asked(one(&mut *engine, propose("Resume all", second, 2))), Some(first.to_owned()));
    assert_eq!(asked(one(&mut *engine, propose("Resume all", second, 3))), None, "it was used");
    assert_eq!(asked(one(&mut *engine, propose("Resume all", first, 120))), None, "too late");
    let both = [propose("Halt", first, 0), propose("Halt", second, 0), propose("Halt", second, 0)];
    let replies: Vec<_> = engine.apply(&both).unwrap().into_iter().map(asked).collect();
    assert_eq!(replies, [None, Some(first.to_owned()), None]);
    // Nobody has agreed to the end of what had not begun, nor of what begins anew.
    let (id, reason) = ("case-1".to_owned(), "LEGAL-1".to_owned());
    let held = Op::Hold(HoldAct { id, since: Some(now()), reason, context: context(), now: now() });
    let reach = "suspended/dns:three.example";
    for (end, begins) in [
        ("Resume halted/all", Op::Stop(stop("halted/all", true))),
        ("ReinstateCaller suspended/dns:three.example", Op::Stop(stop(reach, true))),
        ("ReleaseHold case-1", held),
    ] {
        assert_eq!(asked(one(&mut *engine, propose(end, first, 0))), None);
        one(&mut *engine, begins).unwrap();
        assert_eq!(asked(one(&mut *engine, propose(end, second, 1))), None, "{end}");
    }
    let agreed = events(&verify(store)).into_iter().filter(|event| *event == Event::Agreed).count();
    assert_eq!(agreed, 2);
}

fn pruned(store: &dyn Store) {
    let mut engine = seeded(store);
    let end = now().plus(Duration::from_mins(1));
    for number in 1..5 {
        let op = Reserve { expires_at: end, ..reserve(&format!("q{number}"), number) };
        let held = pending(one(&mut *engine, Op::Reserve(op)));
        if number != 4 {
            one(&mut *engine, Op::Commit(commit(&held, "e30.e30.x"))).unwrap();
        }
    }
    let later = end.plus(Duration::from_hours(1));
    let prune = |before, count_max| Op::Prune(Prune { before, count_max, context: context(), now: later });
    let hold = |since| {
        let (id, reason) = ("case-1".to_owned(), "LEGAL-1".to_owned());
        Op::Hold(HoldAct { id, since, reason, context: context(), now: now() })
    };
    assert_eq!(one(&mut *engine, prune(end, 9)), Ok(Done::Pruned(0)), "nothing had expired before its expiry");
    assert!(matches!(one(&mut *engine, hold(None)), Err(Refusal::NoSuchHold { .. })));
    let since = now();
    one(&mut *engine, hold(Some(since))).unwrap();
    // To keep less is to release it.
    let less = one(&mut *engine, hold(Some(since.plus(Duration::from_hours(1)))));
    assert!(matches!(less, Err(Refusal::HoldKeepsMore { .. })), "{less:?}");
    one(&mut *engine, hold(Some(since.minus(Duration::from_secs(1))))).unwrap();
    drop(engine);
    let mut engine = store.open();
    assert_eq!(one(&mut *engine, prune(later, 9)), Ok(Done::Pruned(0)), "it is held");
    one(&mut *engine, hold(None)).unwrap();
    assert_eq!(one(&mut *engine, prune(later, 2)), Ok(Done::Pruned(2)));
    assert_eq!(one(&mut *engine, prune(later, 9)), Ok(Done::Pruned(1)));
    assert_eq!(one(&mut *engine, prune(later, 9)), Ok(Done::Pruned(0)));
    assert_eq!(engine.quote(&identity("q1")).unwrap(), None);
    assert!(engine.quote(&identity("q4")).unwrap().is_some(), "what waits is for the sweep to end");
    assert_eq!(engine.last_taken(&scope("GB-IN")).unwrap().map(SequenceNumber::get), Some(4), "numbers stay taken");
    // By a clock that fell behind it looks new; it is not.
    let again = Reserve { expires_at: end, ..reserve("q1", 9) };
    assert_eq!(one(&mut *engine, Op::Reserve(again)), Err(Refusal::Expired));
    // The clock that they went by may have been ahead: what expires after all of them is new.
    let new = Reserve { expires_at: end.plus(Duration::from_millis(1)), ..reserve("q9", 9) };
    pending(one(&mut *engine, Op::Reserve(new)));
    let told: Vec<Event> = events(&verify(store)).into_iter().filter(|event| *event == Event::Pruned).collect();
    assert_eq!(told.len(), 2, "where nothing is pruned there is nothing to tell");
}

fn journal_pruned(store: &dyn Store) {
    let mut engine = seeded(store);
    let lane = store.lane();
    let held = pending(one(&mut *engine, Op::Reserve(reserve("q1", 1))));
    one(&mut *engine, Op::Commit(commit(&held, "e30.e30.first"))).unwrap();
    let batch: Vec<Op> = [2, 3].map(|number| Op::Reserve(reserve(&format!("q{number}"), number))).into();
    engine.apply(&batch).unwrap();
    one(&mut *engine, Op::Reserve(reserve("q4", 4))).unwrap();
    let records = store.journal();
    let place = |next_index: u64| {
        let before = next_index.checked_sub(1).map(|at| records[usize::try_from(at).unwrap()].link.unwrap_or_default());
        before.map_or(Position::GENESIS, |link| Position { next_index, link })
    };
    let (newest, later) = (now(), now().plus(Duration::from_hours(1)));
    let cut = |from: Position, to: Position| PruneJournal {
        lane: lane.to_owned(),
        from,
        to,
        newest,
        before: later,
        again: Vec::new(),
        context: context(),
        now: later,
    };
    let prune = |from, to| Op::PruneJournal(cut(from, to));
    let hold = |since| {
        let (id, reason) = ("case-1".to_owned(), "LEGAL-1".to_owned());
        Op::Hold(HoldAct { id, since, reason, context: context(), now: now() })
    };
    let nothing = Ok(Done::PrunedJournal(0));
    for (why, op) in [
        ("it ends within a batch", prune(place(0), place(4))),
        ("it does not begin there", prune(place(1), place(3))),
        ("its link is another", prune(place(0), Position { link: [7; 32], ..place(3) })),
        ("nothing would be left", prune(place(0), place(6))),
        ("it is nothing", prune(place(0), place(0))),
        ("it is too new", Op::PruneJournal(PruneJournal { before: newest, ..cut(place(0), place(3)) })),
        (
            "there is no such lane",
            Op::PruneJournal(PruneJournal { lane: "none".to_owned(), ..cut(place(0), place(3)) }),
        ),
    ] {
        assert_eq!(one(&mut *engine, op), nothing, "{why}");
    }
    one(&mut *engine, hold(Some(newest))).unwrap();
    assert_eq!(store.reader().holds().unwrap().get("case-1"), Some(&newest));
    assert_eq!(one(&mut *engine, prune(place(0), place(3))), nothing, "it is held");
    // Whoever comes later in a batch heeds what came before, and of two who would cut one is first.
    let replies = engine.apply(&[prune(place(0), place(3)), hold(None)]).unwrap();
    assert_eq!(replies[0], nothing);
    let replies = engine.apply(&[prune(place(0), place(3)), prune(place(0), place(3)), hold(Some(newest))]).unwrap();
    assert_eq!([&replies[0], &replies[1]], [&Ok(Done::PrunedJournal(3)), &nothing]);
    assert_eq!(one(&mut *engine, prune(place(3), place(5))), nothing, "it is held again");
    let replies = engine.apply(&[hold(None), prune(place(3), place(5))]).unwrap();
    assert_eq!(replies[1], Ok(Done::PrunedJournal(2)));
    let again = vec![PruneJournal::again("records 0 to 9 of lane gone, journalled before then")];
    let late = Op::PruneJournal(PruneJournal { again: again.clone(), ..cut(place(0), place(3)) });
    assert_eq!(one(&mut *engine, late), nothing, "it is gone");

    // The rest hangs on the link, whoever looks.
    let begins = || store.reader().lanes().unwrap().into_iter().find(|stretch| stretch.lane == lane).unwrap().first;
    assert_eq!(begins(), place(5));
    let left = store.journal();
    let head = chain::verify(place(5), left.clone()).unwrap().head;
    assert_eq!(engine.heads()[lane], head);
    let pruned = left.iter().map(|stored| stored.record().unwrap()).filter(|record| record.event == Event::Pruned);
    let of = if lane.is_empty() { String::new() } else { format!(" of lane {lane}") };
    let told: Vec<_> = pruned.map(|record| record.facts.detail.unwrap()).collect();
    let detail = |which: &str| format!("records {which}{of}, journalled before {later}");
    assert_eq!(told, [detail("0 to 2"), detail("3 to 4")]);
    let is_told =
        |engine: &mut dyn Engine, head| !engine.gone_back(&[(lane.to_owned(), head)].into()).unwrap().is_empty();
    for seen in [place(0), place(2), place(5), place(6), head] {
        assert!(!is_told(&mut *engine, seen), "{seen:?}: it has only grown, and was pruned");
    }
    for other in [place(5), place(6), head].map(|seen| Position { link: [7; 32], ..seen }) {
        assert!(is_told(&mut *engine, other), "{other:?}: another past");
    }
    assert!(is_told(&mut *engine, Position { next_index: head.next_index + 1, ..head }));

    // Down to the newest batch, closed, opened, written on; what was signed is still given.
    let before = left.iter().rev().skip(1).find(|stored| stored.link.is_some()).unwrap();
    let last = before.index + 1;
    let to = Position { next_index: last, link: before.link.unwrap() };
    let of_another = Op::PruneJournal(PruneJournal { again: again.clone(), ..cut(place(5), to) });
    assert_eq!(one(&mut *engine, of_another), Ok(Done::PrunedJournal(last - 5)));
    // What went said something that is said nowhere else: it is, in the same batch.
    let [told, again_told] =
        &store.journal()[..].last_chunk::<2>().unwrap().clone().map(|stored| stored.record().unwrap());
    assert_eq!(told.facts.detail, Some(detail(&format!("5 to {}", last - 1))));
    assert_eq!((again_told.event, &again_told.facts.detail), (Event::Pruned, &Some(again[0].clone())));
    assert_eq!(PruneJournal::told(&again[0]), Some(("gone".to_owned(), 9)));
    assert_eq!(PruneJournal::again(&again[0]), again[0], "however often");
    drop(engine);
    let mut engine = store.open();
    let replay = one(&mut *engine, Op::Reserve(reserve("q1", 1)));
    assert!(
        matches!(replay, Ok(Done::Reserved(Reserved::Replay(released))) if released.jws.as_str() == "e30.e30.first")
    );
    assert_eq!(engine.reopen().unwrap(), None);
    assert_eq!(begins(), to);
    assert_eq!(chain::verify(to, store.journal()).unwrap().head, engine.heads()[lane]);
}

fn recorded_once(store: &dyn Store) {
    let mut engine = store.open();
    let record = Record::new(Event::Refused, now(), context(), Facts::default());
    let twice = [Op::Record(record.clone()), Op::Record(record.clone())];
    assert_eq!(engine.apply(&twice).unwrap(), [Ok(Done::Recorded), Ok(Done::Recorded)]);
    assert_eq!(one(&mut *engine, Op::Record(record.clone())), Ok(Done::Recorded));
    assert_eq!(verify(store), [record]);
    assert_eq!(engine.newest_record_at().unwrap(), None, "the time of a refusal was not trusted");
}

fn read_by_ids(store: &dyn Store) {
    let mut engine = seeded(store);
    for number in 1..=3 {
        one(&mut *engine, Op::Reserve(reserve(&format!("q{number}"), number))).unwrap();
    }
    let all: Vec<Uuid> = verify(store).iter().map(|record| record.id).collect();
    let verified = || chain::verify(Position::GENESIS, store.reader().records(store.lane(), 0, 9).unwrap());
    let mut read = || {
        let read = engine.records_after(Uuid::nil(), 9).map_err(|fault| fault.to_string())?;
        Ok::<_, String>(read.iter().map(|record| record.id).collect::<Vec<_>>())
    };
    assert_eq!((read(), verified().is_ok()), (Ok(all.clone()), true));
    // Put where nobody looks it is left out, and whoever reads on from a greater one would come back to where it belongs.
    store.put_id(2, Uuid::nil());
    assert_eq!((read(), verified()), (Ok(vec![all[0], all[1], all[3]]), Err(Break::Id { index: 2 })));
    assert!(store.reader().record(&all[2]).unwrap().is_none());
    store.put_id(2, Uuid::max());
    assert!(read().unwrap_err().contains("record 2 stands under another id than its own"));
    assert!(store.reader().record(&Uuid::max()).is_err());
    store.put_id(2, all[2]);
    assert_eq!((read(), verified().is_ok()), (Ok(all.clone()), true));
    store.begin_at(2);
    assert_eq!(read(), Ok(all[2..].to_vec()), "what no chain reaches is none of the journal's");
    assert!(store.reader().record(&all[1]).unwrap().is_none() && store.reader().record(&all[2]).unwrap().is_some());
}

fn shipped(store: &dyn Store) {
    let mut engine = store.open();
    let lane = store.lane();
    let aside = |index| Quarantined { lane: lane.to_owned(), index, why: "too odd".to_owned() };
    let mut ship = |next_index, quarantined: &[u64], taken: &[u64]| {
        let quarantined = quarantined.iter().copied().map(aside).collect();
        engine.ship(&Shipment { lane: lane.to_owned(), next_index, quarantined, taken: taken.to_vec() }).unwrap();
        let reader = store.reader();
        (reader.shipped().unwrap()[lane], reader.quarantined().unwrap())
    };
    assert_eq!(ship(5, &[2, 4], &[]), (5, vec![aside(2), aside(4)]));
    assert_eq!(ship(3, &[4], &[3]), (5, vec![aside(2), aside(4)]));
    assert_eq!(ship(5, &[], &[2]), (5, vec![aside(4)]));
    assert_eq!(ship(7, &[6], &[4]), (7, vec![aside(6)]));
}

fn same_quote_twice(store: &dyn Store) {
    let mut engine = seeded(store);
    let batch = [Op::Reserve(reserve("q1", 1)), Op::Reserve(reserve("q1", 1)), Op::Reserve(reserve_with("q1", 1, B))];
    let replies = engine.apply(&batch).unwrap();
    assert_eq!(replies[0], replies[1]);
    let last = pending(replies[2].clone());
    assert_eq!(last.generation(), 2);
    let both = [Op::Commit(commit(&last, "e30.e30.one")), Op::Commit(commit(&last, "e30.e30.two"))];
    let replies = engine.apply(&both).unwrap();
    assert!(matches!(replies[0], Ok(Done::Committed { first: true, .. })));
    assert!(matches!(replies[1], Ok(Done::Committed { first: false, .. })));
    let stored = engine.quote(&identity("q1")).unwrap().unwrap().released().unwrap();
    assert_eq!(stored.jws.as_str(), "e30.e30.one");
    let committed = verify(store).into_iter().find(|record| record.event == Event::Committed).unwrap();
    assert_eq!(committed.id, stored.record);
}

fn reopened(store: &dyn Store) {
    let mut engine = seeded(store);
    let held = pending(one(&mut *engine, Op::Reserve(reserve("q1", 1))));
    assert_eq!(engine.reopen().unwrap(), None);
    one(&mut *engine, Op::Commit(commit(&held, "e30.e30.one"))).unwrap();
    assert_eq!(engine.reopen().unwrap(), None);
    assert!(matches!(one(&mut *engine, Op::Reserve(reserve("q1", 1))), Ok(Done::Reserved(Reserved::Replay(_)))));
    assert_eq!(verify(store).len(), 4);
}
