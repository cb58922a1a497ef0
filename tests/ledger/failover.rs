//! What a gateway reads and tells while its database fails over: the server of before lives on, or a standby never had what is shown.

use std::{
    thread,
    time::{Duration, Instant},
};

use quotesign::{
    domain::Environment,
    ledger::{
        Engine as _, EngineError, Ledger, LedgerConfig, LedgerError, Op, Reserved,
        postgres::{Postgres, Server, Settings},
    },
    pipeline::{canonicalise::Mark, reserve::recall},
    stopped::Stopped,
};
use tokio::runtime::Runtime;

use crate::{
    ops::{A, commit, context, identity, now, one, pending, reserve, seed, stop},
    server::{Address, Cluster, Database},
};

const CONFIG: LedgerConfig = LedgerConfig { queue_max: 64, batch_max: 16 };

/// A server with a standby, which is named as one that commits wait for where `waits`.
fn pair(waits: bool) -> (Cluster, Database, Cluster) {
    let cluster = Cluster::new(&[]);
    let database = cluster.database();
    let standby = cluster.standby();
    if waits {
        cluster.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'standby'");
        cluster.sql("postgres", "SELECT pg_reload_conf()");
    }
    let state = if waits { "sync" } else { "async" };
    until(|| {
        cluster.sql("postgres", "SELECT string_agg(sync_state, ',') FROM pg_stat_replication WHERE state = 'streaming'")
            == state
    });
    (cluster, database, standby)
}

fn until(mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < until, "it never comes to that");
        thread::sleep(Duration::from_millis(20));
    }
}

fn settings(database: &Database, port: u16, replica: &str, high_availability: bool) -> Settings {
    let address = format!("host=127.0.0.1 port={port} user=postgres dbname={}", database.name);
    let timeout = Duration::from_secs(3);
    let server = Server { address: address.parse().unwrap(), high_availability, timeout, ..database.server() };
    Settings { server, ..database.settings(replica) }
}

fn opened(settings: Settings) -> Postgres {
    Postgres::open(settings, Environment::Sandbox).unwrap()
}

/// As an operator's script does whose commit waits for a standby that is away: the server then shows what it may lose.
fn cut_off_the_wait(database: &Database) {
    let cut = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until(|| database.sql(cut) == "1");
}

#[test]
fn what_is_read_after_a_failover_is_of_the_server_that_is_written_to() {
    let (old, database, standby) = pair(false);
    let address = Address::of(old.port);
    let engine = Box::new(opened(settings(&database, address.port, "gw-1", false)));
    let runtime = Runtime::new().unwrap();
    let ledger = Ledger::start(engine, CONFIG);
    runtime.block_on(async {
        ledger.seed(seed("GB-IN", 0)).await.unwrap();
        assert!(ledger.stops().await.unwrap().iter().next().is_none());
    });
    let new = database.fails_over_to(&standby, &address);
    let mut second = opened(settings(&new, new.port, "gw-2", false));
    one(&mut second, Op::Stop(stop(&format!("revoked/{A}"), true))).unwrap();
    runtime.block_on(async {
        // Whoever was told that it is unavailable asks again.
        while ledger.seed(seed("GB-US", 0)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(
            ledger.stops().await.unwrap().is_revoked(&A.parse().unwrap()),
            "it still reads of the server of before"
        );
        ledger.close().await;
    });
    assert_eq!(database.sql("SELECT count(*) FROM stop"), "0", "that one lives, and knows nothing of it");
}

#[test]
fn what_a_standby_may_never_have_had_is_not_given_again() {
    let (primary, database, standby) = pair(true);
    let engine = Box::new(opened(settings(&database, primary.port, "gw-1", true)));
    let (runtime, mut standby) = (Runtime::new().unwrap(), standby);
    let ledger = Ledger::start(engine, CONFIG);
    let held = runtime.block_on(async {
        ledger.seed(seed("GB-IN", 0)).await.unwrap();
        let reserved = ledger.reserve(reserve("q1", 1)).await.unwrap();
        let Reserved::Pending(held) = reserved else { panic!("{reserved:?}") };
        held
    });
    standby.crash();
    let wanted = reserve("q1", 1);
    let mark = Mark { identity: identity("q1"), payload: wanted.payload };
    let stopped = Stopped::open(None).unwrap();
    let again = || runtime.block_on(recall(&mark, &ledger, &stopped, now(), &context()));
    let committing = runtime.spawn({
        let ledger = ledger.clone();
        async move { ledger.commit(commit(&held, "e30.e30.x")).await }
    });
    cut_off_the_wait(&database);
    until(|| runtime.block_on(ledger.quote(identity("q1"))).is_ok_and(|quote| quote.unwrap().released().is_some()));
    let given = again();
    assert!(matches!(given, Err(LedgerError::Unavailable(_))), "{given:?}");
    assert!(runtime.block_on(committing).unwrap().is_err(), "nor was it told");
    standby.start(&[]);
    until(|| again().is_ok_and(|given| given.is_some()));
    let seen = Database { port: standby.port, name: database.name.clone() };
    until(|| seen.sql("SELECT count(*) FROM quote WHERE state = 2") == "1");
    runtime.block_on(ledger.close());
}

#[test]
fn a_lane_that_is_taken_with_a_warning_tells_nothing_of_a_commit() {
    let (primary, database, standby) = pair(true);
    let mut engine = opened(settings(&database, primary.port, "gw-1", true));
    one(&mut engine, Op::Seed(seed("GB-IN", 0))).unwrap();
    standby.crash();
    let cut = |outcome: &mut (dyn FnMut() -> Result<(), EngineError> + Send)| {
        thread::scope(|scope| {
            let outcome = scope.spawn(outcome);
            cut_off_the_wait(&database);
            outcome.join().unwrap()
        })
    };
    let told = cut(&mut || engine.apply(&[Op::Reserve(reserve("q1", 1))]).map(drop));
    assert!(matches!(told, Err(EngineError::Unknown(_))), "{told:?}");
    let told = cut(&mut || engine.reopen().map(drop));
    assert!(matches!(told, Err(EngineError::Unknown(_))), "its replies would be released: {told:?}");
    let mut standby = standby;
    standby.start(&[]);
    let mut replies = None;
    until(|| engine.reopen().map(|found| replies = found).is_ok());
    // It is known from then on, and what it came to with it.
    let again = pending(one(&mut engine, Op::Reserve(reserve("q1", 1))));
    assert_eq!(pending(replies.expect("it had been applied").remove(0)), again);
}
