//! A look at a ledger's file that leaves no trace: see [`crate::ledger::Condition`].

use std::{fs, path::Path};

use rusqlite::Connection;

use super::{gone_back, rows, schema};
use crate::{
    domain::Environment,
    ledger::{
        Condition, EngineError,
        chain::{Heads, end_of},
        place::Stretch,
    },
};

/// Looks at the file at `path`.
pub(in crate::ledger) fn condition(
    path: &Path,
    environment: Environment,
    anchored: &Heads,
) -> Result<Condition, EngineError> {
    schema::present(path)?;
    let log =
        path.with_file_name(format!("{}-wal", path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default()));
    if !fs::exists(&log).unwrap_or(true) {
        // Nobody writes, and to open the file in the usual way would leave an empty log beside it.
        let seen = look(&schema::open_to_look(path, environment)?, anchored);
        if !fs::exists(&log).unwrap_or(true) {
            return seen;
        }
        // A gateway has begun meanwhile, and may have moved pages under the look.
    }
    look(&schema::open_to_read_of(path, environment)?, anchored)
}

fn look(db: &Connection, anchored: &Heads) -> Result<Condition, EngineError> {
    let found: String = db.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
    let damage = (found != "ok").then_some(found);
    let (first, head) = (rows::first(db)?, rows::chain(db)?.position);
    let damage = damage.or_else(|| match rows::tail(db, 1) {
        Ok(newest) if end_of(newest.last()) == head => None,
        Ok(_) => Some("the journal does not end where its chain says".to_owned()),
        Err(fault) => Some(fault.to_string()),
    });
    Ok(Condition {
        store: format!("SQLite, schema {}", schema::current()),
        damage,
        lanes: vec![Stretch { lane: String::new(), first, head }],
        shipped: rows::shipped(db)?,
        quarantined: rows::quarantined(db)?.len(),
        newest_at: rows::newest_record_at(db)?,
        kids: rows::kids(db)?,
        stops: rows::stops(db)?,
        server: None,
        behind: gone_back(db, head, anchored)?,
    })
}
