//! What joins a batch while it is written is as if it had come in a batch of its own.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use proptest::{collection::vec, prelude::*};

use super::{
    super::{
        Allowance, Charge, CheckpointAct, Done, HoldAct, Propose, Prune, Refusal, Reservation, Reserve, chain,
        step::tests::{at, commit, context, identity, pending, publish, reserve, seed, stop, void},
    },
    tests::Home,
    *,
};
use crate::audit::{Event, Facts};

/// A batch that others join, part by part; then it ends, or its writer does.
struct Joined {
    ops: Vec<Op>,
    others: VecDeque<Vec<Op>>,
    dies: bool,
}

impl Joined {
    fn new(parts: impl IntoIterator<Item = Vec<Op>>, dies: bool) -> Self {
        let mut others: VecDeque<_> = parts.into_iter().collect();
        Self { ops: others.pop_front().unwrap_or_default(), others, dies }
    }
}

impl Growing for Joined {
    fn ops(&self) -> &[Op] {
        &self.ops
    }

    fn grow(&mut self) -> bool {
        let more = self.others.pop_front();
        assert!(more.is_some() || !self.dies, "the writer dies");
        let grows = more.is_some();
        self.ops.extend(more.unwrap_or_default());
        grows
    }
}

fn ledger() -> (Home, Sqlite) {
    let home = Home::new();
    let engine = home.open();
    (home, engine)
}

#[test]
fn who_joins_a_batch_sees_what_came_before_and_is_committed_with_it() {
    let (home, mut engine) = ledger();
    engine.apply(&[Op::Seed(seed(0))]).unwrap();
    let parts = || {
        [
            vec![Op::Reserve(reserve("q1", 1)), Op::Reserve(reserve("q2", 2))],
            vec![Op::Reserve(reserve("q1", 1)), Op::Reserve(reserve("q3", 2))],
            vec![Op::Stop(stop("revoked/quote-signing-a", true))],
            vec![
                Op::Reserve(reserve("q4", 4)),
                Op::Record(Record::new(Event::Refused, at(0), context(), Facts::default())),
            ],
        ]
    };
    let (chain, dead) = (engine.chain, &mut Joined::new(parts(), true));
    let died = catch_unwind(AssertUnwindSafe(|| engine.apply_growing(dead)));
    assert!(died.is_err());
    assert_eq!(engine.reopen().unwrap(), None);
    assert_eq!((engine.chain.position, engine.quote(&identity("q1")).unwrap()), (chain.position, None));

    let mut replies = engine.apply_growing(&mut Joined::new(parts(), false)).unwrap().into_iter();
    let mut next = || replies.next().unwrap();
    let first = pending(next().unwrap());
    assert!(next().is_ok());
    assert_eq!(pending(next().unwrap()), first, "the same quote again");
    assert!(matches!(next(), Err(Refusal::NotMonotonic { .. })), "its number is taken");
    assert!(matches!(next(), Ok(Done::Stopped(_))));
    assert!(matches!(next(), Err(Refusal::KidWithdrawn { .. })), "since the stop");
    assert!(matches!(next(), Ok(Done::Recorded)));
    assert!(replies.next().is_none());
    // A part has a link where it has a record.
    drop(engine);
    let records = Reader::open(&home.path()).unwrap().records(0, u32::MAX).unwrap();
    let journal = chain::verify(Position::GENESIS, records).unwrap();
    assert_eq!((journal.records, journal.links), (5, 4));
}

fn kid(one: bool) -> Kid {
    if one { "quote-signing-a" } else { "quote-signing-b" }.parse().unwrap()
}

/// Few of each, so that they meet.
fn op() -> impl Strategy<Value = Op> {
    let quote = (1_u8..5).prop_map(|quote| format!("q{quote}"));
    // A quote has its own number, nearly always.
    let numbered = || {
        let own = (1_u64..5).prop_map(|number| (format!("q{number}"), number));
        prop_oneof![5 => own, 1 => (1_u64..5, 1_u64..6).prop_map(|(quote, number)| (format!("q{quote}"), number))]
    };
    let mostly = || proptest::bool::weighted(0.8);
    let charged =
        || Charge { quota: "q".to_owned(), allowance: Allowance::Rate { interval: Duration::from_mins(1), burst: 4 } };
    let reserved = (numbered(), mostly(), any::<bool>()).prop_map(move |((quote, number), one, pays)| {
        let charges = pays.then(charged).into_iter().collect();
        Op::Reserve(Reserve { kid: kid(one), charges, ..reserve(&quote, number) })
    });
    let committed = (numbered(), mostly(), mostly()).prop_map(|((quote, number), one, is_first)| {
        let generation = if is_first { 1 } else { 2 };
        let op = reserve(&quote, number);
        let (sequence, input) = match op.numbering {
            super::super::Numbering::Given { sequence, input } => (sequence, input),
            super::super::Numbering::Assigned(_) => panic!("it is given"),
        };
        let held = Reservation { identity: identity(&quote), sequence, kid: kid(one), generation, input };
        Op::Commit(commit(&held, &format!("{quote} {number}")))
    });
    let proposed = any::<bool>().prop_map(|one| {
        let caller = format!("spiffe://sandbox.example/{one}").parse().unwrap();
        let within = Duration::from_mins(1);
        Op::Propose(Propose { act: "act".to_owned(), caller, within, context: context(), now: at(0) })
    });
    let held = any::<bool>().prop_map(|stands| {
        let (id, since, reason) = ("h".to_owned(), stands.then(|| at(0)), "OPS-1".to_owned());
        Op::Hold(HoldAct { id, since, reason, context: context(), now: at(0) })
    });
    let checkpointed = (0_u64..3).prop_map(|before| {
        let (size, jws) = (before + 1, format!("{before}"));
        Op::Checkpoint(CheckpointAct { before, size, jws, context: context(), now: at(0) })
    });
    prop_oneof![
        8 => reserved,
        6 => committed,
        2 => quote.prop_map(|quote| Op::Void(void(&quote, 60_000))),
        1 => (0_u64..6).prop_map(|floor| Op::Seed(seed(floor))),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(one, stands)| {
            Op::Stop(stop(&format!("halted/kid/{}", kid(one)), stands))
        }),
        1 => any::<bool>().prop_map(|one| Op::Publish(publish(kid(one).as_str(), "{}"))),
        2 => Just(Op::Prune(Prune { before: at(60_001), count_max: 2, context: context(), now: at(90_000) })),
        1 => proposed,
        1 => held,
        1 => checkpointed,
    ]
}

/// All that a ledger holds but the ids of records and what they are hashed into, and all that was answered.
fn told(engine: &Sqlite, replies: &[Result<Done, Refusal>]) -> String {
    let db = engine.connection().unwrap();
    let mut ids = db.prepare("SELECT record_id FROM audit ORDER BY idx").unwrap();
    let ids: Vec<Uuid> =
        ids.query_map((), |row| Ok(Uuid::from_bytes(row.get(0)?))).unwrap().collect::<Result<_, _>>().unwrap();
    let mut told = format!("{replies:#?}");
    for (identity, known) in engine.known.all() {
        assert_eq!(rows::quote(db, identity).unwrap().as_ref(), Some(known), "what is known is what stands");
    }
    for (sql, columns) in [
        ("SELECT scope, last FROM scope", 2),
        ("SELECT identity, key, sequence, kid, generation, state, release_idx FROM quote ORDER BY identity", 7),
        ("SELECT idx, jws FROM release", 2),
        ("SELECT key, tat_ns FROM quota", 2),
        ("SELECT what FROM stop", 1),
        ("SELECT kid, last_expiry FROM kid", 2),
        ("SELECT id, since FROM hold", 2),
        ("SELECT act, caller, until FROM proposal", 3),
        ("SELECT size, before, jws FROM checkpoint", 3),
        ("SELECT pruned FROM meta", 1),
        ("SELECT next_idx, newest_at FROM chain", 2),
        ("SELECT idx, event, CAST(record AS TEXT), link IS NULL FROM audit", 4),
    ] {
        let mut select = db.prepare(sql).unwrap();
        let mut rows = select.query(()).unwrap();
        while let Some(row) = rows.next().unwrap() {
            for column in 0..columns {
                write!(told, "{:?} ", row.get::<_, rusqlite::types::Value>(column).unwrap()).unwrap();
            }
            told.push('\n');
        }
    }
    for (place, id) in ids.iter().enumerate() {
        told = told.replace(&id.to_string(), &format!("record {place}"));
    }
    told
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn parts_of_a_batch_come_to_what_batches_of_their_own_do(parts in vec(vec(op(), 1..6), 2..8)) {
        let (_home, mut apart) = ledger();
        let (_other, mut together) = ledger();
        let (_third, mut forgetful) = ledger();
        for ledger in [&mut apart, &mut together, &mut forgetful] {
            ledger.apply(&[Op::Seed(seed(0))]).unwrap();
        }
        let (mut replies, mut read) = (Vec::new(), Vec::new());
        for part in &parts {
            replies.extend(apart.apply(part).unwrap());
            // One that knows nothing reads it all.
            forgetful.known = Known::default();
            read.extend(forgetful.apply(part).unwrap());
        }
        prop_assert_eq!(told(&apart, &replies), told(&forgetful, &read));
        let joined = together.apply_growing(&mut Joined::new(parts, false)).unwrap();
        prop_assert_eq!(told(&apart, &replies), told(&together, &joined));
    }
}
