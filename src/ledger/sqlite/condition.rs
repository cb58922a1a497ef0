//! A look at a ledger's file that leaves no trace: see [`crate::ledger::Condition`].

use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode};

use super::{gone_back, journal, rows, schema, shipment};
use crate::{
    domain::Environment,
    ledger::{
        Condition, EngineError,
        chain::{Heads, end_of},
        place::Stretch,
    },
};

/// How long pages are looked at: some GiB.
const LOOK_MAX: Duration = Duration::from_secs(30);

/// Looks at the file at `path`.
pub(in crate::ledger) fn condition(
    path: &Path,
    environment: Environment,
    anchored: &Heads,
) -> Result<Condition, EngineError> {
    schema::present(path)?;
    let [log, shared] = ["-wal", "-shm"].map(|ending| beside(path, ending));
    let are_there = || [&log, &shared].map(|file| fs::exists(file).unwrap_or(true));
    let before = are_there();
    if before != [true, true] {
        // Nobody has it open, and the usual way would leave beside it what is missing.
        let [has_log, _] = before;
        let seen = look(&schema::open_to_look(path, environment, has_log)?, anchored);
        if are_there() == before {
            return seen;
        }
        // A gateway has begun meanwhile, and may have moved pages under the look.
    }
    look(&schema::open_to_read_of(path, environment)?, anchored)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn look(db: &Connection, anchored: &Heads) -> Result<Condition, EngineError> {
    let (damage, unseen) = pages(db, LOOK_MAX)?;
    let (first, head) = (journal::first(db)?, journal::chain(db)?.position);
    let damage = damage.or_else(|| match journal::tail(db, 1) {
        Ok(newest) if end_of(newest.last()) == head => None,
        Ok(_) => Some("the journal does not end where its chain says".to_owned()),
        Err(fault) => Some(fault.to_string()),
    });
    Ok(Condition {
        store: format!("SQLite, schema {}", schema::current()),
        damage,
        unseen,
        lanes: vec![Stretch { lane: String::new(), first, head }],
        shipped: shipment::shipped(db)?,
        quarantined: shipment::quarantined(db)?.len(),
        newest_at: journal::newest_record_at(db)?,
        kids: rows::kids(db)?,
        stops: rows::stops(db)?,
        server: None,
        behind: gone_back(db, head, anchored)?,
    })
}

/// What is wrong with the file's pages, and why not all of them were looked at. While a reader reads, a gateway's log only grows,
/// so that it is given up after `most`.
fn pages(db: &Connection, most: Duration) -> Result<(Option<String>, Option<String>), EngineError> {
    let (interrupt, (done, ended)) = (db.get_interrupt_handle(), mpsc::channel::<()>());
    let watch = thread::spawn(move || {
        let mut wait = most;
        // Until it has ended: an interruption before the look has begun is none.
        while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            interrupt.interrupt();
            wait = Duration::from_millis(10);
        }
    });
    let found: rusqlite::Result<String> = db.query_row("PRAGMA quick_check(1)", (), |row| row.get(0));
    drop(done);
    let _ended = watch.join();
    match found {
        Ok(found) => Ok(((found != "ok").then_some(found), None)),
        Err(fault) if fault.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok((
            None,
            Some(format!("not all pages were looked at in {most:?}; check a copy: `quotesign ledger backup`")),
        )),
        Err(fault) => Err(fault.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tempfile::TempDir;

    use super::*;
    use crate::ledger::sqlite::Sqlite;

    fn names(dir: &Path) -> BTreeSet<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_look_leaves_no_file_whatever_lies_beside_the_ledger() {
        let (home, here) = (TempDir::new().unwrap(), Environment::Sandbox);
        // What means something in a URI means nothing here.
        let path = home.path().join("a ledger?mode=rw#%41.sqlite");
        Sqlite::migrate(&path, here).unwrap();
        let before = names(home.path());
        assert!(condition(&path, here, &Heads::new()).unwrap().is_empty());
        assert_eq!(names(home.path()), before);
        // A copy of a file that was in use, with its log and without what its processes shared.
        let engine = Sqlite::open(&path, here).unwrap();
        let copy = home.path().join("copy.sqlite");
        fs::copy(&path, &copy).unwrap();
        fs::copy(beside(&path, "-wal"), beside(&copy, "-wal")).unwrap();
        let before = names(home.path());
        assert!(condition(&path, here, &Heads::new()).unwrap().damage.is_none(), "while it is written");
        assert!(condition(&copy, here, &Heads::new()).unwrap().damage.is_none());
        assert!(fs::metadata(beside(&copy, "-wal")).unwrap().len() > 0);
        assert_eq!(names(home.path()), before);
        drop(engine);
        assert!(condition(&path, Environment::Production, &Heads::new()).is_err());
    }

    #[test]
    fn a_look_that_takes_too_long_is_given_up_and_said() {
        let home = TempDir::new().unwrap();
        let db = Connection::open(home.path().join("large.sqlite")).unwrap();
        db.execute_batch(
            "CREATE TABLE t (x); CREATE INDEX i ON t (x);
             WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 400000) INSERT INTO t SELECT x FROM n",
        )
        .unwrap();
        assert_eq!(pages(&db, Duration::from_mins(1)).unwrap(), (None, None));
        let (damage, unseen) = pages(&db, Duration::ZERO).unwrap();
        assert!(damage.is_none() && unseen.unwrap().contains("not all pages were looked at"));
    }
}
