//! What the engine of PostgreSQL must bear beside the contract.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use quotesign::{
    domain::Environment,
    ledger::{
        self, Allowance, Charge, Done, Engine, EngineError, HoldAct, Holding, Journal, Ledger, LedgerConfig,
        LedgerError, Op, PruneJournal, Reads as _, Refusal, Reserve,
        chain::{self, Position, StoredRecord},
        postgres::{Postgres, Reader, Server},
    },
};
use uuid::Uuid;

use crate::{
    contract::{CASES, Store},
    ops::{self, A, commit, one, pending, reserve, seed, stop},
    server::{Cluster, Database},
};

impl Store for Database {
    fn open(&self) -> Box<dyn Engine> {
        Box::new(Database::open(self, "gw-1"))
    }

    fn journal(&self) -> Vec<StoredRecord> {
        journal(self, "gw-1")
    }

    fn lane(&self) -> &'static str {
        "gw-1"
    }

    fn reader(&self) -> Box<dyn Journal> {
        Box::new(Reader::open(&self.server()).unwrap())
    }

    fn put_id(&self, index: u64, id: Uuid) {
        self.sql(&format!("UPDATE audit SET record_id = '\\x{}' WHERE idx = {index}", id.simple()));
    }

    fn begin_at(&self, index: u64) {
        self.sql(&format!("UPDATE lane SET first_idx = {index}"));
    }
}

/// A lane's records, read by `psql`.
fn journal(database: &Database, lane: &str) -> Vec<StoredRecord> {
    let sql = format!(
        "SELECT idx, encode(record, 'hex'), encode(leaf, 'hex'), encode(link, 'hex') FROM audit
         WHERE lane = '{lane}' ORDER BY idx"
    );
    let row = |line: &str| {
        let fields: Vec<&str> = line.split('|').collect();
        let [index, record, leaf, link] = fields[..] else { panic!("{line}") };
        let digest = |text: &str| hex::decode(text).unwrap().try_into().unwrap();
        StoredRecord {
            index: index.parse().unwrap(),
            bytes: hex::decode(record).unwrap(),
            leaf: digest(leaf),
            link: (!link.is_empty()).then(|| digest(link)),
            id: None,
        }
    };
    database.sql(&sql).lines().map(row).collect()
}

#[test]
fn postgres_keeps_the_contract() {
    for (name, case) in CASES {
        println!("postgres: {name}");
        case(&Cluster::shared().database());
    }
}

#[test]
fn a_database_that_is_not_ours_is_refused_in_a_line() {
    let database = Cluster::shared().empty();
    let refusal = || Postgres::open(database.settings("gw-1"), Environment::Sandbox).err().unwrap().to_string();
    assert!(refusal().ends_with("was never migrated: run `quotesign ledger migrate`"), "{}", refusal());
    let migrated: Vec<_> = thread::scope(|scope| {
        let migrate = || Postgres::migrate(&database.server(), Environment::Sandbox);
        let both: Vec<_> = (0..2).map(|_| scope.spawn(migrate)).collect();
        both.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(migrated.iter().all(Result::is_ok), "two at once: {migrated:?}");
    let other = Postgres::open(database.settings("gw-1"), Environment::Production).err().unwrap().to_string();
    assert!(other.contains("belongs to the environment `sandbox`, not to `production`"), "{other}");
    assert!(Postgres::migrate(&database.server(), Environment::Production).is_err());
    let place = || {
        let store = ledger::Store::Postgres(Box::new(database.settings("gw-1")));
        ledger::Place { store, anchor: None }.is_of(Environment::Sandbox).err().map(|fault| fault.to_string())
    };
    assert_eq!(place(), None);
    database.sql("UPDATE meta SET version = 9");
    assert!(place().unwrap().ends_with("has a newer schema than this gateway knows"));
    assert!(refusal().ends_with("has a newer schema than this gateway knows"), "{}", refusal());
    database.sql("UPDATE meta SET version = 0");
    assert!(refusal().ends_with("has an older schema: run `quotesign ledger migrate`"), "{}", refusal());
}

#[test]
fn a_database_of_the_version_before_is_brought_up_with_all_it_holds() {
    let database = Cluster::shared().empty();
    database.sql("CREATE SCHEMA quotesign");
    for version in [
        include_str!("../../src/ledger/postgres/v1.sql"),
        include_str!("../../src/ledger/postgres/v2.sql"),
        include_str!("../../src/ledger/postgres/v3.sql"),
    ] {
        database.sql(version);
    }
    database.sql("INSERT INTO meta (one, version, environment) VALUES (true, 3, 'sandbox')");
    database.sql("INSERT INTO hold VALUES ('case-1', 4)");
    let refusal = Postgres::open(database.settings("gw-1"), Environment::Sandbox).err().unwrap().to_string();
    assert!(refusal.ends_with("has an older schema: run `quotesign ledger migrate`"), "{refusal}");
    Postgres::migrate(&database.server(), Environment::Sandbox).unwrap();
    one(&mut database.open("gw-1"), Op::Seed(seed("GB-IN", 0))).unwrap();
    assert_eq!(database.sql("SELECT id, since FROM hold"), "case-1|4");
    // Gateways of the version before go on until they are restarted.
    assert_eq!(database.sql("SELECT count(*) FROM pg_proc WHERE proname = 'apply'"), "4");
}

#[test]
fn a_server_that_could_lose_what_it_acknowledged_is_refused() {
    for (setting, told) in [("fsync=off", "fsync = off"), ("full_page_writes=off", "full_page_writes = off")] {
        let cluster = Cluster::new(&[setting]);
        let refused = Postgres::migrate(&cluster.empty().server(), Environment::Sandbox).unwrap_err().to_string();
        assert!(refused.contains(told), "{refused}");
    }
    let database = Cluster::shared().database();
    let server = Server { high_availability: true, ..database.server() };
    let refused = Postgres::check(&server, Environment::Sandbox).unwrap_err().to_string();
    assert!(refused.contains("names no synchronous standby"), "{refused}");
    // What a role or a database sets for its sessions does not reach ours.
    database.sql(&format!("ALTER DATABASE {} SET synchronous_commit = off", database.name));
    assert!(Postgres::check(&database.server(), Environment::Sandbox).is_ok());
}

/// No clock can be moved here; how far is too far can.
#[test]
fn a_clock_too_far_from_the_servers_stops_signing() {
    let database = Cluster::shared().database();
    let mut settings = database.settings("gw-1");
    settings.clock_offset_max = Duration::ZERO;
    let mut refused = None;
    for _ in 0..50 {
        match Postgres::open(settings.clone(), Environment::Sandbox) {
            Ok(_) => thread::sleep(Duration::from_micros(300)),
            Err(error) => refused = Some(error.to_string()),
        }
    }
    let refused = refused.expect("two readings of a clock are never always the same millisecond");
    assert!(refused.contains("apart: set both by the same source"), "{refused}");
}

#[test]
fn whoever_takes_a_lane_fences_out_the_one_before() {
    let database = Cluster::shared().database();
    let mut first = database.open("gw-1");
    one(&mut first, Op::Seed(seed("GB-IN", 0))).unwrap();
    let mut second = database.open("gw-1");
    let refused = first.apply(&[Op::Reserve(reserve("q1", 1))]);
    assert!(matches!(&refused, Err(EngineError::Unfit(why)) if why.contains("ledger.postgres.replica")), "{refused:?}");
    assert!(matches!(first.reopen(), Err(EngineError::Unfit(_))), "it does not take it back");
    assert!(one(&mut second, Op::Reserve(reserve("q1", 1))).is_ok());
    assert_eq!(journal(&database, "gw-1").len(), 2);
}

#[test]
fn a_command_leaves_a_gateway_that_lives_its_lane() {
    let database = Cluster::shared().database();
    let alone = || Postgres::open_alone(database.settings("gw-1"), Environment::Sandbox);
    let mut gateway = database.open("gw-1");
    one(&mut gateway, Op::Seed(seed("GB-IN", 0))).unwrap();
    gateway.renew(&Holding { serial: 1, shown: BTreeSet::new() }).unwrap();
    let refused = alone().err().unwrap().to_string();
    assert!(refused.contains("the gateway `gw-1` is at the ledger"), "{refused}");
    assert!(refused.ends_with("try again in 10 s"), "{refused}");
    assert!(one(&mut gateway, Op::Reserve(reserve("q1", 1))).is_ok());
    database.sql("UPDATE replica SET seen_at = seen_at - interval '10 s'");
    assert!(one(&mut alone().unwrap(), Op::Reserve(reserve("q2", 2))).is_ok());
}

#[test]
fn a_lost_connection_is_found_and_made_again() {
    let database = Cluster::shared().database();
    let mut engine = database.open("gw-1");
    one(&mut engine, Op::Seed(seed("GB-IN", 0))).unwrap();
    let others = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND application_name = 'quotesign'",
        database.name
    );
    database.sql(&others);
    let lost = engine.apply(&[Op::Reserve(reserve("q1", 1))]);
    assert!(matches!(lost, Err(EngineError::Unknown(_))), "{lost:?}");
    assert!(matches!(engine.apply(&[Op::Reserve(reserve("q1", 1))]), Err(EngineError::Unknown(_))));
    assert_eq!(engine.reopen().unwrap(), None);
    assert!(one(&mut engine, Op::Reserve(reserve("q1", 1))).is_ok());
}

#[test]
fn what_reads_is_let_go_of_also_where_tasks_run() {
    let database = Cluster::shared().database();
    let (reader, engine) = (Reader::open(&database.server()).unwrap(), database.open("gw-1"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { drop((reader, engine)) });
    let open =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'quotesign' AND datname = current_database()";
    while database.sql(open) != "0" {
        thread::sleep(Duration::from_millis(20));
    }
}

/// Several gateways on one scope: exactly one wins each number, and whoever loses learns the true last one.
#[test]
fn of_several_gateways_one_wins_each_number() {
    const GATEWAYS: usize = 3;
    const NUMBERS: u64 = 120;
    let database = Cluster::shared().database();
    one(&mut database.open("gw-0"), Op::Seed(seed("GB-IN", 0))).unwrap();
    let next = AtomicU64::new(1);
    let won: Vec<BTreeMap<u64, String>> = thread::scope(|scope| {
        let gateway = |at: usize| {
            let mut engine = database.open(&format!("gw-{at}"));
            let mut won = BTreeMap::new();
            loop {
                let number = next.load(Ordering::SeqCst);
                if number > NUMBERS {
                    return won;
                }
                let quote = format!("q{number}-{at}");
                match one(&mut engine, Op::Reserve(reserve(&quote, number))) {
                    Ok(_) => drop(won.insert(number, quote)),
                    Err(Refusal::NotMonotonic { last, .. }) => assert!(last.get() >= number),
                    Err(other) => panic!("{other}"),
                }
                next.fetch_max(number + 1, Ordering::SeqCst);
            }
        };
        let gateways: Vec<_> = (0..GATEWAYS).map(|at| scope.spawn(move || gateway(at))).collect();
        gateways.into_iter().map(|gateway| gateway.join().unwrap()).collect()
    });
    let mut owner = HashMap::new();
    for (at, won) in won.iter().enumerate() {
        for number in won.keys() {
            assert_eq!(owner.insert(*number, at), None, "{number} was won twice");
        }
    }
    println!("won: {:?} of {NUMBERS}", won.iter().map(BTreeMap::len).collect::<Vec<_>>());
    assert_eq!(database.sql("SELECT count(*) FROM quote"), owner.len().to_string());
    for at in 0..GATEWAYS {
        chain::verify(Position::GENESIS, journal(&database, &format!("gw-{at}"))).unwrap();
    }
}

/// The same quote through two gateways: one JWS is stored, and both release it.
#[test]
fn a_quote_that_two_gateways_sign_has_one_jws() {
    let database = Cluster::shared().database();
    let (mut first, mut second) = (database.open("gw-1"), database.open("gw-2"));
    one(&mut first, Op::Seed(seed("GB-IN", 0))).unwrap();
    let held = pending(one(&mut first, Op::Reserve(reserve("q1", 1))));
    assert_eq!(pending(one(&mut second, Op::Reserve(reserve("q1", 1)))), held);
    let Ok(Done::Committed { released, first: true }) = one(&mut second, Op::Commit(commit(&held, "e30.e30.second")))
    else {
        panic!()
    };
    let late = one(&mut first, Op::Commit(commit(&held, "e30.e30.first")));
    assert_eq!(late, Ok(Done::Committed { released, first: false }));
}

/// A revocation that has answered holds in every gateway.
#[test]
fn what_one_gateway_stops_no_gateway_signs() {
    let database = Cluster::shared().database();
    let (mut first, mut second) = (database.open("gw-1"), database.open("gw-2"));
    one(&mut first, Op::Seed(seed("GB-IN", 0))).unwrap();
    let held = pending(one(&mut first, Op::Reserve(reserve("q1", 1))));
    one(&mut second, Op::Stop(stop(&format!("revoked/{A}"), true))).unwrap();
    let revoked = Err(Refusal::KidWithdrawn { kid: A.parse().unwrap() });
    assert_eq!(one(&mut first, Op::Commit(commit(&held, "e30.e30.late"))), revoked);
    assert_eq!(one(&mut first, Op::Reserve(reserve("q2", 2))), revoked);
    // Under load: no commit that came after the act's answer is a success.
    let (mut third, mut fourth) = (database.open("gw-3"), database.open("gw-4"));
    let committed = thread::scope(|scope| {
        let signing = scope.spawn(|| {
            let mut committed = Vec::new();
            for number in 10..2_000 {
                let quote = format!("q{number}");
                let op = ops::reserve_with(&quote, number, ops::B);
                let held = match one(&mut third, Op::Reserve(op)) {
                    Ok(done) => pending(Ok(done)),
                    Err(_) => break,
                };
                let begun = std::time::Instant::now();
                match one(&mut third, Op::Commit(commit(&held, &format!("e30.e30.{number}")))) {
                    Ok(_) => committed.push(begun),
                    Err(_) => break,
                }
            }
            committed
        });
        thread::sleep(Duration::from_millis(300));
        one(&mut fourth, Op::Stop(stop("halted/all", true))).unwrap();
        let answered = std::time::Instant::now();
        (signing.join().unwrap(), answered)
    });
    let (begun, answered) = committed;
    assert!(!begun.is_empty(), "it signed before");
    assert!(begun.iter().all(|begun| *begun < answered), "a commit begun after the halt's answer went through");
}

/// Three gateways on sequences of their own, and one quota: it gives what it gives, whoever asks.
#[test]
fn a_quota_is_exact_across_gateways() {
    let database = Cluster::shared().database();
    let corridors = ["GB-IN", "GB-NG", "GB-US"];
    let mut engine = database.open("gw-0");
    for corridor in corridors {
        one(&mut engine, Op::Seed(seed(corridor, 0))).unwrap();
    }
    drop(engine);
    for (name, allowance) in
        [("rate", Allowance::Rate { interval: Duration::from_hours(1), burst: 50 }), ("day", Allowance::Day(40))]
    {
        let admitted = AtomicU64::new(0);
        thread::scope(|scope| {
            for (at, corridor) in corridors.iter().enumerate() {
                let (database, admitted) = (&database, &admitted);
                scope.spawn(move || {
                    let mut engine = database.open(&format!("gw-{at}"));
                    for round in 0..20 {
                        let reserve = |number: u64| Reserve {
                            scope: ops::scope(corridor),
                            charges: vec![Charge { quota: name.to_owned(), allowance }],
                            ..reserve(&format!("{name}-{at}-{number}"), number)
                        };
                        let last = engine.last_taken(&ops::scope(corridor)).unwrap().unwrap().get();
                        let batch: Vec<Op> = (1..=3).map(|more| Op::Reserve(reserve(last + more + round))).collect();
                        for reply in engine.apply(&batch).unwrap() {
                            match reply {
                                Ok(_) => drop(admitted.fetch_add(1, Ordering::Relaxed)),
                                Err(Refusal::QuotaSpent { quota, .. }) => assert_eq!(quota, name),
                                Err(other) => panic!("{other}"),
                            }
                        }
                    }
                });
            }
        });
        let most = if let Allowance::Day(most) = allowance { most.into() } else { 50 };
        assert_eq!(admitted.into_inner(), most, "{name}");
    }
}

/// Of two gateways that forget the beginning of a lane that is gone, one is first; what is held stays, also where the hold comes
/// between the look and the statement; and the lane's own gateway finds it whole when it comes back.
#[test]
fn the_lane_of_a_gateway_that_is_gone_is_pruned_once_and_nothing_that_is_held() {
    let database = Cluster::shared().database();
    let mut gone = database.open("gw-gone");
    one(&mut gone, Op::Seed(seed("GB-IN", 0))).unwrap();
    for number in 1..200 {
        one(&mut gone, Op::Reserve(reserve(&format!("q{number}"), number))).unwrap();
    }
    drop(gone);
    let records = journal(&database, "gw-gone");
    let place = |index: u64| match index {
        0 => Position::GENESIS,
        _ => Position { next_index: index, link: records[usize::try_from(index).unwrap() - 1].link.unwrap() },
    };
    let newest = |to: u64| records[usize::try_from(to).unwrap() - 1].record().unwrap().at;
    let later = ops::now().plus(Duration::from_hours(1));
    let prune = |from, to| {
        let (lane, newest) = ("gw-gone".to_owned(), newest(to));
        Op::PruneJournal(PruneJournal {
            lane,
            from: place(from),
            to: place(to),
            newest,
            before: later,
            again: Vec::new(),
            context: ops::context(),
            now: later,
        })
    };
    let counts: Vec<u64> = thread::scope(|scope| {
        let run = |name: &'static str| {
            let (database, prune) = (&database, &prune);
            scope.spawn(move || {
                let mut engine = database.open(name);
                let count = |to| match one(&mut engine, prune(to - 5, to)) {
                    Ok(Done::PrunedJournal(count)) => count,
                    other => panic!("{other:?}"),
                };
                (5..=100).step_by(5).map(count).sum::<u64>()
            })
        };
        ["gw-1", "gw-2"].map(run).map(|run| run.join().unwrap()).into()
    });
    println!("pruned by each: {counts:?}");
    let first = || {
        let lanes = Reader::open(&database.server()).unwrap().lanes().unwrap();
        lanes.into_iter().find(|stretch| stretch.lane == "gw-gone").unwrap().first
    };
    let after_race = first();
    assert_eq!(after_race, place(counts.iter().sum()), "each record was forgotten once");
    // A hold against many cuts, side by side: once it is answered nothing goes that it keeps.
    let since = newest(151);
    let begins = thread::scope(|scope| {
        let pruning = scope.spawn(|| {
            let mut engine = database.open("gw-1");
            let mut from = after_race.next_index;
            for to in from + 1..199 {
                if matches!(one(&mut engine, prune(from, to)), Ok(Done::PrunedJournal(1))) {
                    from = to;
                }
            }
        });
        let mut engine = database.open("gw-2");
        thread::sleep(Duration::from_millis(50));
        let hold = HoldAct {
            id: "case-1".to_owned(),
            since: Some(since),
            reason: "LEGAL-1".to_owned(),
            context: ops::context(),
            now: ops::now(),
        };
        one(&mut engine, Op::Hold(hold)).unwrap();
        let begins = first();
        pruning.join().unwrap();
        begins
    });
    let kept = records.iter().position(|stored| stored.record().unwrap().at >= since).unwrap() as u64;
    let limit = begins.next_index.max(kept);
    assert!(first().next_index <= limit, "{} of {limit}", first().next_index);
    chain::verify(first(), journal(&database, "gw-gone")).unwrap();
    // Its own gateway comes back, with what it had seen.
    let mut back = database.open("gw-gone");
    let seen = [("gw-gone".to_owned(), place(3))].into();
    assert_eq!(back.gone_back(&seen).unwrap(), Vec::<String>::new());
    one(&mut back, Op::Reserve(reserve("q500", 500))).unwrap();
    chain::verify(first(), journal(&database, "gw-gone")).unwrap();
}

/// A server that can be reached and takes nothing, as where its disk is full: that is told until it takes something again.
#[test]
fn a_server_that_takes_nothing_is_told_of_until_it_does() {
    let database = Cluster::shared().database();
    let ledger = Ledger::start(Box::new(database.open("gw-1")), LedgerConfig { queue_max: 64, batch_max: 16 });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(ledger.seed(seed("GB-IN", 0))).unwrap();
    database.sql(
        "CREATE FUNCTION is_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
         CREATE TRIGGER is_full BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION is_full()",
    );
    for floor in 1..4 {
        let refused = runtime.block_on(ledger.seed(seed("GB-IN", floor)));
        assert!(matches!(refused, Err(LedgerError::Unavailable(_))), "{refused:?}");
        let told = ledger.health().unwrap_err();
        assert!(told.contains("No space left on device"), "{told}");
    }
    database.sql("DROP TRIGGER is_full ON audit");
    let mut floor = 4;
    while runtime.block_on(ledger.seed(seed("GB-IN", floor))).is_err() {
        assert!(floor < 400, "it stays away");
        floor += 1;
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(ledger.health(), Ok(()));
    runtime.block_on(ledger.close());
}
