//! The speed of a ledger with many quotes in it, and how long it takes to open after a kill. The quotes are put in by SQL, as the
//! engine would leave them but for shorter records and keys of nobody, and before all others: only where new ones come to stand matters here.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use quotesign::{
    domain::Environment,
    ledger::{Reads as _, sqlite::Sqlite},
};
use rusqlite::Connection;

use crate::{home, measure, started};

const COUNTS: [u64; 3] = [100_000, 5_000_000, 10_000_000];
const CALLERS: usize = 64;

pub(crate) fn run() {
    println!("| quotes | size | ledger, pairs/s | CPU a pair | p50 | p99 | open after a kill |");
    println!("|---|---|---|---|---|---|---|");
    let most = std::env::var("QUOTES").map_or(u64::MAX, |text| text.parse().unwrap());
    let path = home().join("log.sqlite");
    Sqlite::migrate(&path, Environment::Sandbox).unwrap();
    drop(started(Box::new(Sqlite::open(&path, Environment::Sandbox).unwrap())));
    let mut there = 0;
    for count in COUNTS.into_iter().filter(|count| *count <= most) {
        // What the rounds before have added stands behind.
        fill(&path, there, count);
        there = count;
        let mut engine = Sqlite::open(&path, Environment::Sandbox).unwrap();
        let first = next_number(&mut engine);
        let measured = measure(vec![started(Box::new(engine))], CALLERS, first);
        let bytes = fs::metadata(&path).unwrap().len();
        let opened = open_after_a_kill(&path);
        println!("| {count} | {} MB | {} | {} ms |", bytes >> 20, measured.cells(), opened.as_millis());
    }
}

/// Makes the file hold so many quotes. What they are found by is random; here it comes in order, which is quicker to fill and
/// leaves the same tree. It is of no identity, and nobody looks for these quotes.
fn fill(path: &Path, from: u64, to: u64) {
    let db = Connection::open(path).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -1000000; PRAGMA temp_store = FILE",
    )
    .unwrap();
    // A sequence of their own, so that their numbers are in nobody's way.
    let scope = crate::ops::scope("GB-NG");
    let fill = format!(
        "BEGIN;
         CREATE TEMP TABLE fresh AS WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {to})
           SELECT i, randomblob(16) AS key FROM n;
         INSERT INTO audit SELECT -2 * i - 2, 1, 'quote.reserved', NULL, randomblob(16), zeroblob(300), zeroblob(32), NULL
           FROM fresh;
         INSERT INTO release SELECT -2 * i - 2, hex(zeroblob(150)) FROM fresh;
         INSERT INTO quote SELECT NULL, key, '[\"sandbox\",\"acme-remit\",\"' || lower(hex(key)) || '\"]', '{}', i + 1, zeroblob(32), 'quote-signing-a', 1,
           zeroblob(32), 4000000000000, 2, -2 * i - 2, zeroblob(16) FROM fresh ORDER BY key;
         DROP TABLE fresh;
         COMMIT;",
        scope.as_str(),
    );
    db.execute_batch(&fill).unwrap();
    drop(db);
    // Or what fills it is still being written while the ledger is measured.
    fs::File::open(path).unwrap().sync_all().unwrap();
}

fn next_number(engine: &mut Sqlite) -> u64 {
    engine.last_taken(&crate::ops::scope("GB-IN")).unwrap().unwrap().get() + 1
}

/// Makes pairs in a process that is then killed, its log full, and opens what it leaves.
fn open_after_a_kill(path: &Path) -> Duration {
    let killed = Command::new(std::env::current_exe().unwrap()).arg("killed").arg(path).status().unwrap();
    assert_eq!(killed.signal(), Some(9));
    assert!(Path::new(&format!("{}-wal", path.display())).exists());
    let since = Instant::now();
    drop(Sqlite::open(path, Environment::Sandbox).unwrap());
    since.elapsed()
}

/// The process that is killed.
pub(crate) fn be_killed(path: &Path) {
    let mut engine = Sqlite::open(path, Environment::Sandbox).unwrap();
    let first = next_number(&mut engine);
    let ledger = started(Box::new(engine));
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        for number in first..first + 500 {
            assert!(crate::pair(&ledger, number).await);
        }
    });
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
}
