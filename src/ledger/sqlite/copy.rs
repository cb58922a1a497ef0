//! A ledger's file as a whole: copied while it is written, and checked from end to end.

use std::{
    fs::{self, File},
    path::Path,
};

use rusqlite::Connection;

use super::{Position, journal, schema};
use crate::{
    disk::{folder_of, is_read_only, sync_folder_of},
    domain::Environment,
    ledger::{EngineError, chain::end_of},
};

/// Holds the file at `path`, which need not be there, for this process until it is dropped.
///
/// # Errors
/// Where another process holds it.
pub fn lock(path: &Path) -> Result<File, EngineError> {
    schema::lock(path)
}

/// Copies the file at `path` as of one instant to `target`, also while a gateway writes it; says where the copy's journal
/// stands. The copy is durable when this returns.
///
/// # Errors
/// Where the file cannot be read, or `target` is there already or cannot be written. Nothing is left behind then.
pub fn backup(path: &Path, environment: Environment, target: &Path) -> Result<Position, EngineError> {
    let source = open_whole(path, environment)?;
    schema::private().create_new(true).open(target).map_err(|error| schema::unusable(target, &error))?;
    let head = copy(&source, target);
    if head.is_err() {
        // What there is of it is of no use, and would pass for a backup.
        let _removed = fs::remove_file(target);
    }
    head
}

/// Opens a file of which all is to be read, also on a volume that has become read-only: there nobody writes, and what connections
/// share cannot be made.
fn open_whole(path: &Path, environment: Environment) -> Result<Connection, EngineError> {
    match schema::open_to_read_of(path, environment) {
        Err(_) if is_read_only(folder_of(path)) => {
            let mut log = path.as_os_str().to_owned();
            log.push("-wal");
            schema::open_to_look(path, environment, Path::new(&log).exists())
        }
        opened => opened,
    }
}

fn copy(source: &Connection, target: &Path) -> Result<Position, EngineError> {
    let name = target.to_str().ok_or_else(|| EngineError::Unfit("the target's path must be UTF-8".to_owned()))?;
    source.execute("VACUUM INTO ?1", [name])?;
    let synced = File::open(target).and_then(|file| file.sync_all()).and_then(|()| sync_folder_of(target));
    synced.map_err(|error| schema::unusable(target, &error))?;
    journal::chain(&schema::open_to_read(target)?).map(|chain| chain.position)
}

/// Whether the file at `path` is a whole ledger of this environment and version: by its own pages, and with a journal that
/// ends where its chain says. Reads all of it.
///
/// # Errors
/// Why it is not.
pub fn check_whole(path: &Path, environment: Environment) -> Result<(), EngineError> {
    let connection = open_whole(path, environment)?;
    pages_are_whole(&connection, path)?;
    quotes_are_found(&connection, path)?;
    ends_where_it_says(&connection, path)
}

/// Whether the file at `path` is damaged, or no ledger at all. One of another environment or version is not damaged. Reads all of it.
#[must_use]
pub fn is_damaged(path: &Path) -> bool {
    let check = || {
        let (connection, version) = schema::open_any_to_read(path)?;
        pages_are_whole(&connection, path)?;
        // Of a newer one it is not known where its journal is.
        if version > schema::current() { Ok(()) } else { ends_where_it_says(&connection, path) }
    };
    check().is_err()
}

fn pages_are_whole(connection: &Connection, path: &Path) -> Result<(), EngineError> {
    let found: String = connection.query_row("PRAGMA integrity_check(1)", (), |row| row.get(0))?;
    let damaged = || EngineError::Unfit(format!("the ledger `{}` is damaged: {found}", path.display()));
    if found == "ok" { Ok(()) } else { Err(damaged()) }
}

/// Whether each quote stands under the key of its identity.
fn quotes_are_found(connection: &Connection, path: &Path) -> Result<(), EngineError> {
    schema::give_key_of(connection)?;
    let sql = "SELECT EXISTS (SELECT 1 FROM quote WHERE key <> key_of(identity))";
    let lost: bool = connection.query_row(sql, (), |row| row.get(0))?;
    let damaged =
        || format!("the ledger `{}` is damaged: a quote does not stand where it is looked for", path.display());
    if lost { Err(EngineError::Unfit(damaged())) } else { Ok(()) }
}

fn ends_where_it_says(connection: &Connection, path: &Path) -> Result<(), EngineError> {
    let elsewhere =
        || EngineError::Unfit(format!("the journal of `{}` does not end where its chain says", path.display()));
    let ends = end_of(journal::tail(connection, 1)?.last()) == journal::chain(connection)?.position;
    if ends { Ok(()) } else { Err(elsewhere()) }
}
