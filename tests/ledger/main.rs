//! The ledger's engines: one contract for all of them, and what each must bear.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test that cannot go on fails"
)]

mod contract;
mod failover;
mod late;
mod model;
mod ops;
mod postgres;
mod reached;
#[allow(dead_code, reason = "the trials of replicas use the rest of it")]
mod server;

use contract::{CASES, Store};
use quotesign::{
    audit::{Event, Facts, Record},
    domain::Environment,
    ledger::{
        Done, Engine, EngineError, Journal, Op, PruneJournal,
        chain::{self, StoredRecord},
        sqlite::{Reader, Sqlite},
    },
};
use rusqlite::Connection;
use tempfile::TempDir;
use uuid::Uuid;

struct File(TempDir);

impl File {
    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("ledger.sqlite")
    }

    fn shell(&self, sql: &str) {
        Connection::open(self.path()).unwrap().execute_batch(sql).unwrap();
    }
}

impl Store for File {
    /// A program that another test starts holds all that is open here for a moment, the lock of an engine that was dropped
    /// among it.
    fn open(&self) -> Box<dyn Engine> {
        let tries = (0..100).map(|_| Sqlite::open(&self.path(), Environment::Sandbox));
        let is_held = |opened: &Result<Sqlite, EngineError>| {
            let is_held = matches!(opened, Err(EngineError::Unfit(why)) if why.ends_with("in use by another process"));
            if is_held {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            is_held
        };
        Box::new({ tries }.find(|opened| !is_held(opened)).unwrap().unwrap())
    }

    fn journal(&self) -> Vec<StoredRecord> {
        Reader::open(&self.path()).unwrap().records(0, u32::MAX).unwrap()
    }

    fn lane(&self) -> &'static str {
        ""
    }

    fn reader(&self) -> Box<dyn Journal> {
        Box::new(Reader::open(&self.path()).unwrap())
    }

    fn put_id(&self, index: u64, id: Uuid) {
        self.shell(&format!("UPDATE audit SET record_id = x'{}' WHERE idx = {index}", id.simple()));
    }

    fn begin_at(&self, index: u64) {
        self.shell(&format!("UPDATE chain SET first_idx = {index}"));
    }
}

#[test]
fn sqlite_keeps_the_contract() {
    for (name, case) in CASES {
        println!("sqlite: {name}");
        let file = File(TempDir::new().unwrap());
        Sqlite::migrate(&file.path(), Environment::Sandbox).unwrap();
        case(&file);
    }
}

/// What is pruned makes room for what comes: under a steady load the file stays as large as it is.
#[test]
fn a_journal_that_is_pruned_does_not_grow_its_file() {
    let file = File(TempDir::new().unwrap());
    Sqlite::migrate(&file.path(), Environment::Sandbox).unwrap();
    let mut engine = file.open();
    let (mut places, mut sizes) = (vec![chain::Position::GENESIS], Vec::new());
    let later = ops::now().plus(std::time::Duration::from_hours(1));
    for round in 1..=400_usize {
        let record = || Op::Record(Record::new(Event::Refused, ops::now(), ops::context(), Facts::default()));
        let batch: Vec<_> = std::iter::repeat_with(record).take(50).collect();
        engine.apply(&batch).unwrap();
        places.push(engine.heads()[""]);
        if round % 10 == 0 && round > 50 {
            let (from, to) = (places[round - 60], places[round - 50]);
            let from = if round == 60 { chain::Position::GENESIS } else { from };
            let (lane, context, newest, now) = (String::new(), ops::context(), ops::now(), later);
            let cut = PruneJournal { lane, from, to, newest, before: later, again: Vec::new(), context, now };
            assert!(matches!(ops::one(&mut *engine, Op::PruneJournal(cut)), Ok(Done::PrunedJournal(1..))));
        }
        if round % 50 == 0 {
            let log = file.path().with_extension("sqlite-wal");
            let size = |path: std::path::PathBuf| std::fs::metadata(path).map_or(0, |found| found.len());
            sizes.push(size(file.path()) + size(log));
        }
    }
    println!("bytes after each 50 batches of 50 records, pruned from the sixtieth on: {sizes:?}");
    let rows = Reader::open(&file.path()).unwrap().records(0, u32::MAX).unwrap().len();
    assert!(rows < 3_200, "{rows}");
    drop(engine);
    let settled = std::fs::metadata(file.path()).unwrap().len();
    println!("{rows} records in {settled} bytes");
    assert!(sizes[7] < sizes[3] * 3 / 2, "{sizes:?}");
    assert!(settled < 4 << 20, "{settled}: {sizes:?}");
}

/// The log is moved while the gateway writes, and begins anew; whoever reads with a shell and ends takes nothing away, however often
/// the file was opened and closed here.
#[test]
fn a_log_is_bounded_and_is_left_alone_by_who_reads_it() {
    const MIB: u64 = 1 << 20;
    let file = File(TempDir::new().unwrap());
    Sqlite::migrate(&file.path(), Environment::Sandbox).unwrap();
    let mut engine = file.open();
    let log = file.path().with_extension("sqlite-wal");
    let size = || std::fs::metadata(&log).map_or(0, |found| found.len());
    let record = || {
        let facts = Facts { detail: Some("x".repeat(6_000)), ..Facts::default() };
        Op::Record(Record::new(Event::Refused, ops::now(), ops::context(), facts))
    };
    let (mut written, mut longest) = (0, 0);
    // So much in each transaction that the thread that moves it is woken after every one.
    while written < 200 * MIB {
        let batch: Vec<_> = std::iter::repeat_with(record).take(520).collect();
        engine.apply(&batch).unwrap();
        written += 520 * 6_000;
        longest = longest.max(size());
    }
    println!("{written} bytes through a log of at most {longest}");
    assert!(longest < 80 * MIB, "{longest}");
    let shell = || {
        let shell = std::process::Command::new("sqlite3").arg(file.path()).arg("SELECT count(*) FROM audit").output();
        String::from_utf8(shell.unwrap().stdout).unwrap().trim().parse::<u64>().unwrap()
    };
    // A connection that goes on while the engine is closed keeps its locks.
    let reader = Reader::open(&file.path()).unwrap();
    assert!(reader.head().unwrap().next_index > 0);
    drop(engine);
    assert_eq!((shell(), size() > 0), (written / 6_000, true), "another process took itself for the last");
    let mut engine = file.open();
    drop(reader);
    for _ in 0..10 {
        let batch: Vec<_> = std::iter::repeat_with(record).take(520).collect();
        engine.apply(&batch).unwrap();
        written += 520 * 6_000;
    }
    assert_eq!((shell(), size() > 0), (written / 6_000, true), "another process took itself for the last");
    engine.apply(&[record()]).unwrap();
}
