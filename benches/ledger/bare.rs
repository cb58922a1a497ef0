//! What SQLite alone takes for pairs: as many bytes in as few rows as a ledger can have, each found by what it must be found by, and
//! nothing decided, checked or told. What the ledger takes beyond that is its own.

use std::{
    fs::File,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
};

use aws_lc_rs::digest::{SHA256, digest};
use rusqlite::{Connection, params};
use tokio::sync::oneshot;

use crate::{JWS_BYTES, Measured, PAIR_BYTES, callers};

const TABLES: &str = "
    PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = 67108864;
    PRAGMA cache_size = -8192;
    CREATE TABLE scope (scope TEXT PRIMARY KEY, last INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO scope VALUES ('GB-IN', 0);
    CREATE TABLE quote (id INTEGER PRIMARY KEY, key BLOB NOT NULL, sequence INTEGER NOT NULL, payload BLOB NOT NULL, state INTEGER NOT NULL) STRICT;
    CREATE UNIQUE INDEX quote_key ON quote (key);
    CREATE TABLE release (idx INTEGER PRIMARY KEY, jws TEXT NOT NULL) STRICT;
    CREATE TABLE audit (idx INTEGER PRIMARY KEY, record BLOB NOT NULL, link BLOB NOT NULL) STRICT;";
/// Much as the ledger does it: after so many operations a thread moves the log, and of one of so many pages, once the file is on the disk,
/// the writer moves the rest.
const LOOK_AFTER: usize = 512;
const PAGES: (i64, i64) = (2_000, 500);

enum Op {
    Reserve([u8; 16], i64),
    Commit([u8; 16]),
}

type Asked = (Op, oneshot::Sender<()>);

/// Has `count` callers make pairs.
pub(crate) fn measure(path: &Path, count: usize) -> Measured {
    let db = Connection::open(path).unwrap();
    db.set_prepared_statement_cache_capacity(32);
    db.execute_batch(TABLES).unwrap();
    let (queue, waiting) = mpsc::sync_channel(4_096);
    let (look, looks) = mpsc::sync_channel::<()>(1);
    let (beside, is_low) = (Connection::open(path).unwrap(), Arc::new(AtomicBool::new(false)));
    // Never closed: that would let go of SQLite's locks.
    let file: &File = Box::leak(Box::new(File::open(path).unwrap()));
    let checkpoints = thread::spawn({
        let is_low = Arc::clone(&is_low);
        move || {
            while looks.recv().is_ok() {
                let [mut pages, mut left] = move_log(&beside);
                if pages >= PAGES.0 {
                    file.sync_data().unwrap();
                    [pages, left] = move_log(&beside);
                }
                is_low.store(pages >= PAGES.0 && left <= PAGES.1, Ordering::Release);
            }
        }
    });
    let writer = thread::spawn(move || write(&db, &waiting, &look, &is_low));
    let next = Arc::new(AtomicU64::new(1));
    let measured = callers(count, |_| {
        let (queue, next) = (queue.clone(), Arc::clone(&next));
        move || {
            let (queue, number) = (queue.clone(), next.fetch_add(1, Ordering::Relaxed));
            async move {
                let id = uuid::Uuid::new_v4().into_bytes();
                for op in [Op::Reserve(id, number.cast_signed()), Op::Commit(id)] {
                    let (answer, answered) = oneshot::channel();
                    queue.send((op, answer)).unwrap();
                    answered.await.unwrap();
                }
            }
        }
    });
    drop(queue);
    writer.join().unwrap();
    checkpoints.join().unwrap();
    measured
}

fn write(db: &Connection, waiting: &Receiver<Asked>, look: &mpsc::SyncSender<()>, is_low: &AtomicBool) {
    let (mut index, mut link, mut ops) = (0_i64, [0_u8; 32], 0);
    while let Ok(first) = waiting.recv() {
        if is_low.swap(false, Ordering::AcqRel) {
            move_log(db);
        }
        db.execute_batch("BEGIN IMMEDIATE").unwrap();
        let (mut answers, mut next) = (Vec::new(), Some(first));
        while let Some((op, answer)) = next {
            apply(db, &op, index);
            let record = [&link[..], &[b'r'; (PAIR_BYTES - JWS_BYTES) / 2 - 32]].concat();
            link.copy_from_slice(digest(&SHA256, &record).as_ref());
            let mut insert = db.prepare_cached("INSERT INTO audit VALUES (?1, ?2, ?3)").unwrap();
            insert.execute(params![index, record, link]).unwrap();
            index += 1;
            answers.push(answer);
            next = waiting.try_recv().ok().filter(|_| answers.len() < 512);
        }
        db.execute_batch("COMMIT").unwrap();
        ops += answers.len();
        for answer in answers {
            let _gone = answer.send(());
        }
        if ops >= LOOK_AFTER {
            ops = 0;
            let _looks = look.try_send(());
        }
    }
}

fn apply(db: &Connection, op: &Op, index: i64) {
    match op {
        Op::Reserve(key, number) => {
            let seen = db.prepare_cached("SELECT 1 FROM quote WHERE key = ?1").unwrap().exists([key]).unwrap();
            assert!(!seen);
            let mut raise = db.prepare_cached("UPDATE scope SET last = max(last, ?1) WHERE scope = 'GB-IN'").unwrap();
            raise.execute([number]).unwrap();
            let mut insert = db.prepare_cached("INSERT INTO quote VALUES (NULL, ?1, ?2, ?3, 1)").unwrap();
            insert.execute(params![key, number, [7_u8; 32]]).unwrap();
        }
        Op::Commit(key) => {
            let mut update = db.prepare_cached("UPDATE quote SET state = 2 WHERE key = ?1").unwrap();
            assert_eq!(update.execute([key]).unwrap(), 1);
            let mut insert = db.prepare_cached("INSERT INTO release VALUES (?1, ?2)").unwrap();
            insert.execute(params![index, "j".repeat(JWS_BYTES)]).unwrap();
        }
    }
}

/// Says how many pages the log has, and how many are left in it.
fn move_log(db: &Connection) -> [i64; 2] {
    let moved = |row: &rusqlite::Row<'_>| Ok([row.get(1)?, row.get::<_, i64>(1)? - row.get::<_, i64>(2)?]);
    db.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), moved).unwrap()
}
