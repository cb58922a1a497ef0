//! `quotesign ledger backup` and `restore`: a copy of the SQLite ledger while a gateway writes it, and its way back. A
//! database has its own: `pg_basebackup` with the log archived, or `pg_dump`.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use clap::Args;

use crate::{
    clock::{Clock as _, SystemClock},
    config::Config,
    disk::sync_folder_of,
    ledger::{
        Journal as _, Place, Store,
        anchor::Anchor,
        chain::Position,
        sqlite::{self, Reader},
    },
    review::exported::Kept,
};

use super::super::{ConfigPath, Failure, out::say};

#[derive(Debug, Args)]
pub(in crate::cli) struct Backup {
    #[command(flatten)]
    path: ConfigPath,
    /// The file to write; never over one that is there.
    target: PathBuf,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Restore {
    #[command(flatten)]
    path: ConfigPath,
    /// A file that `quotesign ledger backup` wrote.
    backup: PathBuf,
    /// Restore it although the anchor shows that records are lost. `serve` then refuses the ledger until
    /// `quotesign ledger accept-rollback` has raised the floors.
    #[arg(long)]
    go_back: bool,
}

impl Backup {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let config = self.path.load()?;
        let file = file_of(&config.ledger.place().map_err(Failure::unfit)?)?;
        sqlite::check_whole(&file, config.environment).map_err(Failure::failed)?;
        let head = sqlite::backup(&file, &self.target).map_err(Failure::failed)?;
        say!("{}: a copy of the ledger up to record {}", self.target.display(), last(head));
        say!("head {}", Kept { lane: String::new(), head });
        Ok(())
    }
}

impl Restore {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let config = self.path.load()?;
        let place = config.ledger.place().map_err(Failure::unfit)?;
        let file = file_of(&place)?;
        let _lock = sqlite::lock(&file).map_err(Failure::failed)?;
        refuse_a_log(&self.backup)?;
        sqlite::check_whole(&self.backup, config.environment).map_err(Failure::failed)?;
        let reader = Reader::open(&self.backup).map_err(Failure::failed)?;
        let head = reader.head().map_err(Failure::failed)?;
        refuse_a_whole_one(&file, &config, head)?;
        let behind = behind(&place, &config, &reader)?;
        drop(reader);
        if let Some(behind) = behind.as_ref().filter(|_| !self.go_back) {
            return Err(Failure::failed(format!(
                "the backup is older than the ledger was: {behind}. Look for a newer one; if there is none, ask the callers for \
                 the greatest numbers they were answered, and restore with `--go-back`"
            )));
        }
        let aside =
            put(&self.backup, &file).map_err(|fault| Failure::failed(format!("{}: {fault}", file.display())))?;
        say!("{}: restored up to record {}", file.display(), last(head));
        if let Some(aside) = aside {
            say!("what was there is now {}", aside.display());
        }
        if behind.is_some() {
            say!("it has gone back in time: run `quotesign ledger accept-rollback` before `serve`");
            say!("{}", super::GONE_SINCE);
        } else if place.anchor.as_ref().is_some_and(|anchor| !anchor.exists()) {
            say!(
                "whether it has gone back in time cannot be told, since its anchor is missing: see `quotesign ledger anchor adopt`"
            );
            say!("{}", super::GONE_SINCE);
        }
        Ok(())
    }
}

/// What is looked at must be what is put in place, which is the file alone: a log beside it would be read with it and left behind.
fn refuse_a_log(backup: &Path) -> Result<(), Failure> {
    let log = beside(backup, "-wal");
    let named = |fault: io::Error| Failure::failed(format!("{}: {fault}", log.display()));
    match fs::metadata(&log) {
        Ok(found) if found.len() > 0 => Err(Failure::failed(format!(
            "{}: a log lies beside the backup, with records that the backup itself does not hold, so that it is a copy made by hand. Take one \
             with `quotesign ledger backup`, or have SQLite move the log into it: sqlite3 {} 'PRAGMA wal_checkpoint(TRUNCATE)'",
            log.display(),
            backup.display()
        ))),
        Err(fault) if fault.kind() != io::ErrorKind::NotFound => Err(named(fault)),
        _ => Ok(()),
    }
}

/// A ledger that is whole needs no restoring, and a backup may only take it back.
fn refuse_a_whole_one(file: &Path, config: &Config, backup: Position) -> Result<(), Failure> {
    if !file.exists() || sqlite::is_damaged(file) {
        return Ok(());
    }
    sqlite::Sqlite::check(file, config.environment).map_err(|misfit| {
        Failure::failed(format!("{misfit}; it is not damaged: move it away by hand if it is not the right one"))
    })?;
    let present = Reader::open(file).and_then(|reader| reader.head()).map_err(Failure::failed)?;
    Err(Failure::failed(format!(
        "{}: the ledger is whole, up to record {}; the backup ends at {}. Move the ledger away by hand if it is not the \
         right one",
        file.display(),
        last(present),
        last(backup)
    )))
}

fn file_of(place: &Place) -> Result<PathBuf, Failure> {
    match &place.store {
        Store::Sqlite(file) => Ok(file.clone()),
        Store::Postgres(_) => Err(Failure::unfit(
            "the ledger is a PostgreSQL database: back it up and restore it with PostgreSQL's own means (pg_basebackup with \
             an archived log, or pg_dump); the anchor tells whether it has gone back",
        )),
    }
}

/// What the anchor says that the backup has lost.
fn behind(place: &Place, config: &Config, backup: &Reader) -> Result<Option<String>, Failure> {
    let Some(path) = &place.anchor else { return Ok(None) };
    let Some(anchor) = Anchor::open(path, config.environment).map_err(Failure::failed)? else { return Ok(None) };
    let lost = anchor.heads().and_then(|heads| backup.gone_back(&heads)).map_err(Failure::failed)?;
    Ok((!lost.is_empty()).then(|| lost.join("; ")))
}

/// Puts a copy of the backup in the ledger's place, and what was there aside. The log beside it belongs to what was there.
fn put(backup: &Path, file: &Path) -> io::Result<Option<PathBuf>> {
    let new = file.with_added_extension("restoring");
    fs::copy(backup, &new)?;
    File::open(&new)?.sync_all()?;
    let aside = file.with_added_extension(format!("before-{}", SystemClock.now().millis()));
    let mut was_there = false;
    for end in ["", "-wal", "-shm"] {
        match fs::rename(beside(file, end), beside(&aside, end)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => {
                moved?;
                was_there = true;
            }
        }
    }
    fs::rename(&new, file)?;
    sync_folder_of(file)?;
    Ok(was_there.then_some(aside))
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

fn last(head: Position) -> u64 {
    head.next_index.saturating_sub(1)
}
