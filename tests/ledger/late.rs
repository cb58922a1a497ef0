//! What holds keep and who agrees, on a database that two gateways share: one of them decides by what it read before the other's
//! act, and writes after that was answered.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use quotesign::{
    clock::UtcTime,
    ledger::{
        CheckpointAct, Done, Engine as _, HoldAct, Op, Propose, Prune, Reads as _, Refusal,
        postgres::{Postgres, Reader},
    },
};

use crate::{
    ops::{commit, context, identity, now, one, pending, reserve, seed},
    server::{Cluster, Database},
};

/// Of the lock that a batch with a checkpoint takes before all else.
const CHECKPOINTS: u64 = 7_810_770;

/// A session that holds a lock until it is let go.
struct Held(Child);

impl Held {
    fn new(database: &Database) -> Self {
        let mut psql = Command::new("/usr/lib/postgresql/15/bin/psql");
        psql.args([
            "-qAtX",
            "-U",
            "postgres",
            "-h",
            "127.0.0.1",
            "-p",
            &database.port.to_string(),
            "-d",
            &database.name,
        ]);
        let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let sql = format!("SELECT pg_advisory_lock({CHECKPOINTS}), 'held';\n");
        std::io::Write::write_all(psql.stdin.as_mut().unwrap(), sql.as_bytes()).unwrap();
        let mut told = String::new();
        BufReader::new(psql.stdout.take().unwrap()).read_line(&mut told).unwrap();
        assert_eq!(told.trim(), "|held");
        Self(psql)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// What `op` comes to on `engine`, where `meanwhile` happens after it was decided and before anything of it is written. It shares
/// its batch with a checkpoint that follows one of `size` links.
fn late(
    database: &Database,
    engine: &mut Postgres,
    op: Op,
    size: u64,
    meanwhile: impl FnOnce(),
) -> Result<Done, Refusal> {
    let jws = "e30..x".to_owned();
    let act = CheckpointAct { before: size, size: size + 1, jws, context: context(), now: now() };
    let batch = [op, Op::Checkpoint(act)];
    let held = Held::new(database);
    thread::scope(|scope| {
        let written = scope.spawn(|| engine.apply(&batch));
        let waits = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
                     WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()";
        while database.sql(waits) != "1" {
            assert!(!written.is_finished(), "it did not wait");
            thread::sleep(Duration::from_millis(10));
        }
        meanwhile();
        drop(held);
        written.join().unwrap().unwrap().swap_remove(0)
    })
}

fn hold(since: Option<UtcTime>) -> Op {
    let (id, reason) = ("case-1".to_owned(), "LEGAL-1".to_owned());
    Op::Hold(HoldAct { id, since, reason, context: context(), now: now() })
}

fn prune() -> Op {
    let later = now().plus(Duration::from_hours(24));
    Op::Prune(Prune { before: later, count_max: 8, context: context(), now: later })
}

/// Two gateways, and a quote that one of them had signed.
fn gateways(database: &Database) -> (Postgres, Postgres) {
    let (mut first, second) = (database.open("gw-1"), database.open("gw-2"));
    one(&mut first, Op::Seed(seed("GB-IN", 0))).unwrap();
    let reserved = pending(one(&mut first, Op::Reserve(reserve("q1", 1))));
    one(&mut first, Op::Commit(commit(&reserved, "e30.e30.x"))).unwrap();
    (first, second)
}

#[test]
fn a_hold_that_was_answered_keeps_what_another_gateway_was_about_to_forget() {
    let database = Cluster::shared().database();
    let (mut first, mut second) = gateways(&database);
    let pruned = late(&database, &mut first, prune(), 0, || {
        one(&mut second, hold(Some(UtcTime::from_millis(1)))).unwrap();
    });
    assert_eq!(pruned, Ok(Done::Pruned(0)));
    let kept = Reader::open(&database.server()).unwrap().quote(&identity("q1")).unwrap();
    assert!(kept.is_some_and(|quote| quote.released().is_some()));
    // Once nobody holds it any more it goes.
    one(&mut second, hold(None)).unwrap();
    assert_eq!(one(&mut first, prune()), Ok(Done::Pruned(1)));
}

#[test]
fn of_two_gateways_that_set_one_hold_neither_narrows_the_others() {
    let database = Cluster::shared().database();
    let (mut first, mut second) = gateways(&database);
    let [before, after] = [1, 2].map(UtcTime::from_millis);
    let set = late(&database, &mut first, hold(Some(after)), 0, || {
        one(&mut second, hold(Some(before))).unwrap();
    });
    assert_eq!(set, Err(Refusal::HoldKeepsMore { id: "case-1".to_owned(), present: before }));
    assert_eq!(database.sql("SELECT since FROM hold"), before.millis().to_string());
    let released = late(&database, &mut first, hold(None), 1, || {
        one(&mut second, hold(None)).unwrap();
    });
    assert_eq!(released, Err(Refusal::NoSuchHold { id: "case-1".to_owned() }));
    // Of two acts that share a batch the second is what stands.
    first.apply(&[hold(Some(before)), hold(None)]).unwrap();
    assert_eq!(database.sql("SELECT count(*) FROM hold"), "0");
}

/// Two second persons agree at once: the act is done once.
#[test]
fn what_two_agree_to_at_once_is_agreed_to_once() {
    let database = Cluster::shared().database();
    let (mut first, mut second) = gateways(&database);
    let propose = |caller: &str| {
        let (act, caller, within) = ("Resume all".to_owned(), caller.parse().unwrap(), Duration::from_mins(1));
        Op::Propose(Propose { act, caller, within, context: context(), now: now() })
    };
    let asked_before = |done: Result<Done, Refusal>| match done {
        Ok(Done::Proposed(before, _)) => before.map(|caller| caller.to_string()),
        other => panic!("{other:?}"),
    };
    assert_eq!(asked_before(one(&mut first, propose("dns:one.example"))), None);
    let mut agreed = None;
    let comes_late = late(&database, &mut first, propose("dns:two.example"), 0, || {
        agreed = asked_before(one(&mut second, propose("dns:three.example")));
    });
    assert_eq!(agreed.as_deref(), Some("dns:one.example"));
    assert_eq!(asked_before(comes_late), None, "it was agreed to already");
    assert_eq!(database.sql("SELECT caller FROM proposal"), "dns:two.example", "who waits for another in turn");
    assert_eq!(database.sql("SELECT count(*) FROM stop"), "0");
}
