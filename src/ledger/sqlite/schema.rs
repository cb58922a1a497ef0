//! The SQLite file as such: its tables, who may open it, and the settings that make a commit durable. What the
//! rows mean is for [`super::rows`].

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{
    Connection, OpenFlags, OptionalExtension as _, TransactionBehavior,
    config::DbConfig,
    functions::{Context, FunctionFlags},
};

use crate::{
    disk,
    domain::Environment,
    ledger::{EngineError, encoding::key_of},
};

/// What brings a file of version n to version n + 1.
pub(super) const MIGRATIONS: [&str; 8] = [
    include_str!("v1.sql"),
    include_str!("v2.sql"),
    include_str!("v3.sql"),
    include_str!("v4.sql"),
    include_str!("v5.sql"),
    include_str!("v6.sql"),
    include_str!("v7.sql"),
    include_str!("v8.sql"),
];

/// Longer than a checkpoint by another process, shorter than an operator's patience.
const BUSY_MAX: Duration = Duration::from_secs(5);
const WAL_BYTES_MAX: i64 = 64 << 20;
const STATEMENTS_MAX: usize = 32;
/// What the writer keeps of the file, in KiB: 8 MiB of a file that is smaller than 1 GiB, and of a larger one 64, which hold the
/// inner pages of ten million quotes. In a smaller file SQLite numbers a page as the one at 1 GiB for a moment when it
/// divides others, and the next commit looks through all that is kept for pages that are behind the end.
const CACHE_KIB: (i64, i64) = (8 << 10, 64 << 10);
const SMALLER_BYTES: i64 = 1 << 30;

/// Holds the file for this process, until dropped.
pub(super) fn lock(path: &Path) -> Result<File, EngineError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = private().create(true).truncate(false).open(&name).map_err(|error| unusable(&name, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(unfit(path, "is in use by another process")),
        Err(TryLockError::Error(error)) => Err(unusable(&name, &error)),
    }
}

/// Creates the file where it is absent, and brings it to this version.
pub(super) fn migrate(path: &Path, environment: Environment) -> Result<(), EngineError> {
    match private().create_new(true).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(unusable(path, &error)),
        _ => {}
    }
    let mut connection = connect(path)?;
    give_key_of(&connection)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version = match stamp(&transaction, path)? {
        Some((version, stamped)) => {
            same_environment(path, &stamped, environment)?;
            version
        }
        None if is_empty(&transaction)? => 0,
        None => return Err(unfit(path, "is not a ledger")),
    };
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    let missing = MIGRATIONS.get(done..).ok_or_else(|| newer(path))?;
    for migration in missing {
        transaction.execute_batch(migration).map_err(|error| not_migrated(path, &error))?;
    }
    let sql =
        "INSERT INTO meta (one, version, environment) VALUES (1, ?1, ?2) ON CONFLICT (one) DO UPDATE SET version = ?1";
    transaction.execute(sql, (current(), environment.as_str()))?;
    transaction.commit().map_err(|error| not_migrated(path, &error))?;
    if !missing.is_empty() {
        // Of a large ledger it is gigabytes, and the first gateway would have to wait for it.
        let stays = |why: &str| unfit(path, &format!("was migrated, but its log stays: {why}"));
        match fold_wal(&connection).map_err(|error| stays(&error.to_string()))? {
            Folded::Whole => {}
            Folded::IsRead => return Err(stays("another process reads it: end it and try again")),
        }
    }
    drop(connection);
    disk::sync_folder_of(path).map_err(|error| unusable(disk::folder_of(path), &error))
}

/// Has SQL know [`key_of`].
pub(super) fn give_key_of(connection: &Connection) -> rusqlite::Result<()> {
    let key = |call: &Context<'_>| Ok(key_of(call.get_raw(0).as_str()?));
    connection.create_scalar_function("key_of", 1, FunctionFlags::SQLITE_UTF8, key)
}

fn not_migrated(path: &Path, error: &rusqlite::Error) -> EngineError {
    let remedy = "have SQLITE_TMPDIR name a directory that can be written, see that it and the ledger's volume have room, and try \
                  again: it is done altogether or not at all";
    unfit(path, &format!("cannot be migrated: {error}; {remedy}"))
}

/// What came before a file is opened.
#[derive(Debug, Clone, Copy)]
pub(super) enum After {
    /// The start of this process.
    Start,
    /// A commit whose outcome is unknown.
    Unknown,
}

/// A connection that writes, durably.
///
/// A log that another process is reading cannot be folded into the file. That is borne at a start, and refused
/// after a commit whose outcome is unknown.
pub(super) fn open(path: &Path, environment: Environment, after: After) -> Result<Connection, EngineError> {
    present(path)?;
    let connection = connect(path)?;
    let stamped = this_version(&connection, path)?;
    same_environment(path, &stamped, environment)?;
    size_cache(&connection)?;
    let folded = match fold_wal(&connection) {
        Err(error) => {
            let error = not_moved(error);
            if matches!(error, EngineError::Lost(_)) {
                // The last connection that is closed folds the log, and removes it.
                std::mem::forget(connection);
            }
            return Err(error);
        }
        Ok(folded) => folded,
    };
    match (folded, after) {
        (Folded::Whole, _) => {}
        (Folded::IsRead, After::Start) => {
            tracing::warn!("the ledger's log could not be folded into its file: another process reads it");
        }
        (Folded::IsRead, After::Unknown) => {
            return Err(unfit(path, "is being read by another process: end it and try again"));
        }
    }
    Ok(connection)
}

/// Has the writer keep as much of the file as its size asks for.
pub(super) fn size_cache(writer: &Connection) -> rusqlite::Result<()> {
    let pragma = |name| writer.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let bytes = pragma("page_count")?.saturating_mul(pragma("page_size")?);
    let kib = if bytes < SMALLER_BYTES { CACHE_KIB.0 } else { CACHE_KIB.1 };
    // SQLite takes what is below zero for KiB.
    writer.pragma_update(None, "cache_size", -kib)
}

/// A connection that only reads; the file may be in use.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, EngineError> {
    present(path)?;
    let connection = read_only(path)?;
    this_version(&connection, path)?;
    Ok(connection)
}

/// The same of a ledger of whatever version, with its version.
pub(super) fn open_any_to_read(path: &Path) -> Result<(Connection, i64), EngineError> {
    present(path)?;
    let connection = read_only(path)?;
    let (version, _) = stamp(&connection, path)?.ok_or_else(|| unfit(path, "is not a ledger"))?;
    Ok((connection, version))
}

fn read_only(path: &Path) -> Result<Connection, EngineError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    tune(&connection)?;
    Ok(connection)
}

/// The same of a file that must be of `environment`.
pub(super) fn open_to_read_of(path: &Path, environment: Environment) -> Result<Connection, EngineError> {
    let connection = open_to_read(path)?;
    same_environment(path, &this_version(&connection, path)?, environment)?;
    Ok(connection)
}

/// The same of a file that no process has open. Neither log nor shared memory is made beside it: without a log it is taken for
/// one that cannot change, and with one that somebody has left behind the log's index is held in this process, and nobody's locks
/// are asked for. Whoever looks so must look whether somebody has opened it meanwhile.
pub(super) fn open_to_look(path: &Path, environment: Environment, has_log: bool) -> Result<Connection, EngineError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = if has_log {
        let connection = Connection::open_with_flags_and_vfs(path, flags, "unix-none")?;
        let _mode: String = connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |row| row.get(0))?;
        connection
    } else {
        let absolute = std::path::absolute(path).map_err(|error| unusable(path, &error))?;
        // What has a meaning in a URI is escaped, and whatever is not plain ASCII.
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-".contains(byte);
        let escape = |byte: &u8| if plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") };
        let escaped: String = absolute.as_os_str().as_bytes().iter().map(escape).collect();
        let uri = format!("file://{escaped}?immutable=1");
        Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?
    };
    tune(&connection)?;
    same_environment(path, &this_version(&connection, path)?, environment)?;
    Ok(connection)
}

/// What every connection has, whether it writes or reads.
fn tune(connection: &Connection) -> Result<(), EngineError> {
    connection.busy_timeout(BUSY_MAX)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // Or SQLite, as it is built here, plans a statement anew for each value that it is given.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// Whether [`open`] would take the file; it may be in use, and nothing of it is changed.
pub(super) fn check(path: &Path, environment: Environment) -> Result<(), EngineError> {
    open_to_read_of(path, environment).map(drop)
}

pub(super) fn connect(path: &Path) -> Result<Connection, EngineError> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    tune(&connection)?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(unfit(path, "cannot be used with a write-ahead log"));
    }
    connection.pragma_update(None, "synchronous", synchronous())?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_MAX)?;
    // No commit moves the log: see `checkpoint`.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(connection)
}

/// Every commit is on the disk when it returns.
fn synchronous() -> &'static str {
    // For the trial that must find out a ledger whose commits are not.
    fail::fail_point!("ledger::synchronous-normal", |_| "NORMAL");
    "FULL"
}

/// What became of the log.
enum Folded {
    Whole,
    /// Another process reads it.
    IsRead,
}

/// Moves the whole log into the file. After a failed fsync the kernel may hold the log's newest pages without
/// ever writing them; to append behind them would put every later commit behind a hole.
fn fold_wal(connection: &Connection) -> rusqlite::Result<Folded> {
    let busy: bool = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get(0))?;
    Ok(if busy { Folded::IsRead } else { Folded::Whole })
}

/// Why the log was not moved. Where the disk did not take it, the kernel may have forgotten what it was to write, and says so once: the log is
/// the only place where that still is.
pub(super) fn not_moved(error: rusqlite::Error) -> EngineError {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) if failure.extended_code == rusqlite::ffi::SQLITE_IOERR_FSYNC => {
            lost(&error)
        }
        error => EngineError::from(error),
    }
}

/// The file could not be synchronised.
pub(super) fn lost(fault: &dyn std::fmt::Display) -> EngineError {
    EngineError::Lost(format!(
        "the disk did not take what was moved into the ledger's file ({fault}): see to the disk, end this gateway and whoever else has the \
         file open, and start it again, which moves it anew"
    ))
}

pub(super) fn present(path: &Path) -> Result<(), EngineError> {
    match path.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(unfit(
            path,
            "does not exist: run `quotesign ledger migrate`, or, where it was lost, `quotesign ledger restore`",
        )),
        Err(error) => Err(unusable(path, &error)),
    }
}

/// The environment of a file of this version.
fn this_version(connection: &Connection, path: &Path) -> Result<String, EngineError> {
    match stamp(connection, path)? {
        None => Err(unfit(path, "was never migrated: run `quotesign ledger migrate`")),
        Some((version, _)) if version < current() => {
            Err(unfit(path, "has an older schema: run `quotesign ledger migrate`"))
        }
        Some((version, _)) if version > current() => Err(newer(path)),
        Some((_, environment)) => Ok(environment),
    }
}

/// The version and environment a file bears; absent in a file without tables of ours.
fn stamp(connection: &Connection, path: &Path) -> Result<Option<(i64, String)>, EngineError> {
    if !connection.table_exists(None, "meta")? {
        return Ok(None);
    }
    let sql = "SELECT version, environment FROM meta";
    let row = connection.query_row(sql, (), |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    row.map_or_else(|| Err(unfit(path, "bears no version")), |row| Ok(Some(row)))
}

fn is_empty(connection: &Connection) -> Result<bool, EngineError> {
    Ok(connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", (), |row| row.get(0))?)
}

pub(super) fn current() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

fn same_environment(path: &Path, stamped: &str, wanted: Environment) -> Result<(), EngineError> {
    if stamped == wanted.as_str() {
        return Ok(());
    }
    let why = format!("belongs to the environment `{stamped}`, not to `{wanted}`: name that environment's own");
    Err(unfit(path, &why))
}

pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn newer(path: &Path) -> EngineError {
    unfit(path, "has a newer schema than this gateway knows")
}

pub(super) fn unusable(path: &Path, error: &io::Error) -> EngineError {
    unfit(path, &format!("cannot be used: {error}"))
}

fn unfit(path: &Path, why: &str) -> EngineError {
    EngineError::Unfit(format!("the ledger `{}` {why}", path.display()))
}
