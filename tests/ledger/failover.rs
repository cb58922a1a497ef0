//! What a gateway reads and tells while its database fails over: the server of before lives on, or a standby never had what is shown.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use quotesign::{
    control::look_at_stops,
    domain::Environment,
    ledger::{
        Engine as _, EngineError, Holding, Journal as _, Ledger, LedgerConfig, LedgerError, Op, Reads as _, Refusal,
        Reserved,
        postgres::{Postgres, Reader, Server, Settings},
    },
    pipeline::{canonicalise::Mark, reserve::recall},
    stopped::Stopped,
};
use tokio::runtime::Runtime;

use crate::{
    ops::{A, commit, context, identity, now, one, pending, reserve, seed, stop},
    server::{Address, Cluster, Cutter, Database},
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

/// What the primary writes from now on the standby never has.
fn cut_off(standby: &Cluster, primary: &Cluster) {
    standby.sql("postgres", "ALTER SYSTEM SET primary_conninfo = ''");
    standby.sql("postgres", "SELECT pg_reload_conf()");
    until(|| primary.sql("postgres", "SELECT count(*) FROM pg_stat_replication") == "0");
}

/// Has the standby take over from a server that crashes, with a standby of its own that commits wait for.
fn leads(old: &Cluster, standby: &Cluster, database: &Database, address: &Address) -> (Cluster, Database) {
    old.crash();
    standby.sql("postgres", "SELECT pg_promote()");
    let follows = standby.standby();
    standby.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'standby'");
    standby.sql("postgres", "SELECT pg_reload_conf()");
    until(|| standby.sql("postgres", "SELECT string_agg(sync_state, ',') FROM pg_stat_replication") == "sync");
    address.leads_to(standby);
    (follows, Database { port: standby.port, name: database.name.clone() })
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
    let mut second = None;
    until(|| {
        second = Postgres::open(settings(&new, new.port, "gw-2", false), Environment::Sandbox).ok();
        second.is_some()
    });
    one(&mut second.unwrap(), Op::Stop(stop(&format!("revoked/{A}"), true))).unwrap();
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
    let again = || runtime.block_on(recall(&mark, &ledger, &stopped, now(), &context(), || true));
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

/// The standby never had what one gateway was acknowledged: the others, who lost nothing that they know of, sign no more than that one.
#[test]
fn what_only_one_gateway_knows_to_be_lost_stops_all() {
    let (old, database, standby) = pair(false);
    let address = Address::of(old.port);
    let settings = |replica| settings(&database, address.port, replica, false);
    let of_the_first = settings("gw-1");
    let read_by_the_first = of_the_first.server.clone();
    let (mut first, mut second) = (opened(of_the_first), opened(settings("gw-2")));
    one(&mut first, Op::Seed(seed("GB-IN", 0))).unwrap();
    one(&mut second, Op::Seed(seed("GB-US", 0))).unwrap();
    for engine in [&mut first, &mut second] {
        engine.renew(&Holding { serial: 1, shown: BTreeSet::new() }).unwrap();
    }
    let new = Database { port: standby.port, name: database.name.clone() };
    until(|| new.sql("SELECT count(*) FROM replica") == "2");
    cut_off(&standby, &old);
    pending(one(&mut first, Op::Reserve(reserve("q1", 1))));
    old.crash();
    new.sql("SELECT pg_promote()");
    address.leads_to(&standby);
    let told = |engine: &mut Postgres| engine.reopen().unwrap_err().to_string();
    // One that starts now knows no other server, and waits with the others.
    let starts = || Postgres::open(settings("gw-3"), Environment::Sandbox);
    let waits = [told(&mut second), starts().err().unwrap().to_string()];
    assert!(waits.iter().all(|waits| waits.contains("another server has taken over")), "{waits:?}");
    let lost = told(&mut first);
    assert!(lost.contains("is not where this gateway left it"), "{lost}");
    let mut reader = Reader::open(&read_by_the_first).unwrap();
    assert!(
        reader.stops().unwrap().iter().any(|stop| stop.to_string() == "halted/all"),
        "it learns of stops all the same"
    );
    second.reopen().unwrap();
    let stopped = one(&mut second, Op::Reserve(reserve("q2", 1)));
    assert!(matches!(stopped, Err(Refusal::Halted { .. })), "{stopped:?}");
    // Somebody resumes it, and the one that lost something does not undo that each time it tries.
    one(&mut second, Op::Stop(stop("halted/all", false))).unwrap();
    told(&mut first);
    pending(one(&mut second, Op::Reserve(reserve("q2", 1))));
    starts().unwrap();
}

/// Commits waited for the standby that takes over: nothing is gone, and nobody waits for anybody.
#[test]
fn a_standby_that_commits_waited_for_takes_over_at_once() {
    let (old, database, standby) = pair(true);
    let address = Address::of(old.port);
    let opened = |replica| opened(settings(&database, address.port, replica, true));
    let (mut first, mut second) = (opened("gw-1"), opened("gw-2"));
    one(&mut first, Op::Seed(seed("GB-IN", 0))).unwrap();
    let held = pending(one(&mut first, Op::Reserve(reserve("q1", 1))));
    one(&mut second, Op::Seed(seed("GB-US", 0))).unwrap();
    for engine in [&mut first, &mut second] {
        engine.renew(&Holding { serial: 1, shown: BTreeSet::new() }).unwrap();
    }
    let (_follows, new) = leads(&old, &standby, &database, &address);
    for engine in [&mut first, &mut second] {
        engine.reopen().unwrap();
    }
    one(&mut second, Op::Commit(commit(&held, "e30.e30.x"))).unwrap();
    pending(one(&mut first, Op::Reserve(reserve("q2", 2))));
    assert_eq!(new.sql("SELECT what FROM stop"), "");
}

/// Commits waited for another standby than the one that was made the new server: what is gone was acknowledged.
#[test]
fn what_was_acknowledged_and_is_gone_stops_all_also_where_commits_wait_for_a_standby() {
    let (old, database, standby) = pair(true);
    let address = Address::of(old.port);
    let opened = |replica| opened(settings(&database, address.port, replica, true));
    let (mut first, mut second) = (opened("gw-1"), opened("gw-2"));
    one(&mut first, Op::Seed(seed("GB-IN", 0))).unwrap();
    let follower = old.standby();
    until(|| old.sql("postgres", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "2");
    let has_all = "SELECT bool_and(replay_lsn >= pg_current_wal_flush_lsn()) FROM pg_stat_replication";
    until(|| old.sql("postgres", has_all) == "t");
    standby.sql("postgres", "ALTER SYSTEM SET primary_conninfo = ''");
    standby.sql("postgres", "SELECT pg_reload_conf()");
    until(|| old.sql("postgres", "SELECT string_agg(sync_state, ',') FROM pg_stat_replication") == "sync");
    pending(one(&mut first, Op::Reserve(reserve("q1", 1))));
    drop(follower);
    let (_follows, new) = leads(&old, &standby, &database, &address);
    let lost = first.reopen().unwrap_err().to_string();
    assert!(lost.contains("is not where this gateway left it"), "{lost}");
    assert_eq!(new.sql("SELECT what FROM stop"), "halted/all");
    second.reopen().unwrap();
    let stopped = one(&mut second, Op::Reserve(reserve("q2", 1)));
    assert!(matches!(stopped, Err(Refusal::Halted { .. })), "{stopped:?}");
}

/// The connection is lost behind the commit and before the answer to what follows it: whether a standby has it is not known.
#[test]
fn a_commit_that_is_not_known_to_be_kept_is_not_told() {
    let (primary, database, _standby) = pair(true);
    let cutter = Cutter::before(primary.port);
    let mut engine = opened(settings(&database, cutter.port, "gw-1", true));
    one(&mut engine, Op::Seed(seed("GB-IN", 0))).unwrap();
    cutter.ready();
    pending(one(&mut engine, Op::Reserve(reserve("q1", 1))));
    let answers = cutter.ready();
    cutter.cut_after(answers - 1);
    let told = engine.apply(&[Op::Reserve(reserve("q2", 2))]);
    assert!(matches!(told, Err(EngineError::Unknown(_))), "{told:?}");
    assert_eq!(database.sql("SELECT count(*) FROM quote"), "2", "the answer to the commit came");
    cutter.cut_after(u32::MAX);
    let replies = engine.reopen().unwrap().expect("it had been applied");
    assert_eq!(pending(replies.into_iter().next().unwrap()).sequence().get(), 2);
}

/// The standby did not even have it that gateways took their lanes: that is no other that writes under their names, and a loss only of
/// what was in them.
#[test]
fn a_lane_that_was_never_taken_is_taken_again_and_one_that_lacks_records_is_a_loss() {
    let (old, database, standby) = pair(false);
    let address = Address::of(old.port);
    let opened = |replica| opened(settings(&database, address.port, replica, false));
    one(&mut opened("gw-1"), Op::Seed(seed("GB-IN", 0))).unwrap();
    let new = Database { port: standby.port, name: database.name.clone() };
    until(|| new.sql("SELECT count(*) FROM scope") == "1");
    cut_off(&standby, &old);
    let (mut first, mut never_seen) = (opened("gw-1"), opened("gw-2"));
    one(&mut first, Op::Seed(seed("GB-US", 0))).unwrap();
    old.crash();
    new.sql("SELECT pg_promote()");
    address.leads_to(&standby);
    never_seen.reopen().unwrap();
    assert_eq!(new.sql("SELECT what FROM stop"), "");
    let lost = first.reopen().unwrap_err().to_string();
    assert!(lost.contains("is not where this gateway left it"), "{lost}");
    assert_eq!(new.sql("SELECT what FROM stop"), "halted/all");
}

/// The old server lives on with the connection that writes, and the address leads to the new one: nothing is read there before the
/// writer is there, too.
#[test]
fn nothing_is_read_of_another_server_than_the_one_that_is_written_to() {
    let (old, database, standby) = pair(false);
    let address = Address::of(old.port);
    let settings = settings(&database, address.port, "gw-1", false);
    let server = settings.server.clone();
    let ledger = Ledger::start(Box::new(opened(settings)), CONFIG);
    let runtime = Runtime::new().unwrap();
    runtime.block_on(ledger.seed(seed("GB-IN", 0))).unwrap();
    let new = Database { port: standby.port, name: database.name.clone() };
    until(|| new.sql("SELECT count(*) FROM scope") == "1");
    new.sql("SELECT pg_promote()");
    address.leads_to(&standby);
    let refused = |read: Result<Reader, EngineError>| match read {
        Err(EngineError::Away(why)) => why.contains("another server than what writes"),
        _ => false,
    };
    assert!(refused(Reader::open(&server)));
    assert!(runtime.block_on(ledger.stops()).is_err(), "the desk has not asked before");
    // The writer looks where the address leads, and is there once the others have had their time.
    until(|| runtime.block_on(ledger.seed(seed("GB-US", 0))).is_ok());
    assert!(Reader::open(&server).is_ok());
    assert_eq!(new.sql("SELECT count(*) FROM scope"), "2");
    runtime.block_on(ledger.close());
}

/// The name of the standby is taken away while a commit waits for it: the wait ends without a word, and nobody is told of the commit.
#[test]
fn a_wait_for_a_standby_that_is_taken_away_is_no_word_of_it() {
    let (primary, database, standby) = pair(true);
    let mut engine = opened(settings(&database, primary.port, "gw-1", true));
    one(&mut engine, Op::Seed(seed("GB-IN", 0))).unwrap();
    standby.crash();
    let told = thread::scope(|scope| {
        let told = scope.spawn(|| engine.apply(&[Op::Reserve(reserve("q1", 1))]).map(drop));
        until(|| database.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == "1");
        primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = ''");
        primary.sql("postgres", "SELECT pg_reload_conf()");
        told.join().unwrap()
    });
    assert!(matches!(told, Err(EngineError::Unknown(_))), "{told:?}");
    let unfit = engine.reopen().unwrap_err().to_string();
    assert!(unfit.contains("names no synchronous standby"), "{unfit}");
}

/// What a server is asked for before it is written to is asked each time: settings change under sessions that go on.
#[test]
fn a_server_that_comes_to_keep_less_is_written_to_no_more() {
    for (waits, setting, remedy) in [
        (false, "fsync = off", "turn it on"),
        (false, "full_page_writes = off", "turn it on"),
        (true, "synchronous_standby_names = ''", "set synchronous_standby_names"),
    ] {
        let (primary, database, _standby) = pair(waits);
        let mut engine = opened(settings(&database, primary.port, "gw-1", waits));
        one(&mut engine, Op::Seed(seed("GB-IN", 0))).unwrap();
        primary.sql("postgres", &format!("ALTER SYSTEM SET {setting}"));
        primary.sql("postgres", "SELECT pg_reload_conf()");
        let mut told = String::new();
        let mut floor = 0;
        until(|| {
            floor += 1;
            let outcome = engine.apply(&[Op::Seed(seed("GB-IN", floor))]);
            told = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
            outcome.is_err()
        });
        assert!(told.contains(remedy), "{setting}: {told}");
    }
}

/// Another gateway has taken the lane: the store can still be read, and its writer is not to be asked. Nothing that is stopped ends by
/// what is read there, and nothing is given that nobody could be told of.
#[test]
fn a_store_that_its_writer_does_not_trust_gives_nothing_and_ends_no_stop() {
    let cluster = Cluster::new(&[]);
    let database = cluster.database();
    let engine = Box::new(opened(settings(&database, cluster.port, "gw-1", false)));
    let (runtime, stopped) = (Runtime::new().unwrap(), Stopped::open(None).unwrap());
    let ledger = Ledger::start(engine, CONFIG);
    let wanted = reserve("q1", 1);
    let mark = Mark { identity: identity("q1"), payload: wanted.payload };
    let again = || runtime.block_on(recall(&mark, &ledger, &stopped, now(), &context(), || true));
    runtime.block_on(async {
        ledger.seed(seed("GB-IN", 0)).await.unwrap();
        let Reserved::Pending(held) = ledger.reserve(wanted).await.unwrap() else { panic!("it is new") };
        ledger.commit(commit(&held, "e30.e30.x")).await.unwrap();
    });
    assert!(again().unwrap().is_some());
    runtime.block_on(async {
        ledger.stop(stop("halted/partner/other", true)).await.unwrap();
        look_at_stops(&ledger, &stopped).await;
        assert_eq!(stopped.known().iter().count(), 1);
    });
    let _other = opened(settings(&database, cluster.port, "gw-1", false));
    runtime.block_on(async {
        ledger.seed(seed("GB-US", 0)).await.unwrap_err();
        database.sql("DELETE FROM stop");
        look_at_stops(&ledger, &stopped).await;
    });
    assert_eq!(stopped.known().iter().count(), 1, "what was read there ended it");
    let given = again();
    assert!(matches!(given, Err(LedgerError::Unavailable(_))), "{given:?}");
    runtime.block_on(ledger.close());
}

/// A server that stands still answers no question of the journal: whoever asks learns that, and can ask another.
#[test]
fn a_question_to_a_server_that_stands_still_has_an_end() {
    let cluster = Cluster::new(&[]);
    let database = cluster.database();
    let server = Server { timeout: Duration::from_millis(300), ..database.server() };
    let reader = Reader::open(&server).unwrap();
    assert!(reader.lanes().unwrap().is_empty());
    let pid = database.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'quotesign'");
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let (began, told) = (Instant::now(), reader.lanes());
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    assert!(matches!(told, Err(EngineError::Unknown(_))), "{told:?}");
    assert!(began.elapsed() < Duration::from_secs(10));
}
