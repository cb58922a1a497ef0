//! `quotesign ledger backup` and `restore`: a copy of the SQLite ledger while a gateway writes it, and its way back. A
//! database has its own: `pg_basebackup` with the log archived, or `pg_dump`.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;

use crate::{
    clock::{Clock as _, SystemClock},
    config::Config,
    disk::sync_folder_of,
    ledger::{
        Journal as _, Place, Store,
        chain::Position,
        sqlite::{self, Reader},
    },
    review::exported::Kept,
};

use super::{
    super::{ConfigPath, Failure, out::say},
    act,
};

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
        let head = sqlite::backup(&file, config.environment, &self.target).map_err(Failure::failed)?;
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
        let past = Past::of(&place, &config, &reader)?;
        drop(reader);
        if !self.go_back {
            past.refuse()?;
        }
        let aside =
            put(&self.backup, &file).map_err(|fault| Failure::failed(format!("{}: {fault}", file.display())))?;
        say!("{}: restored up to record {}", file.display(), last(head));
        if let Some(aside) = aside {
            say!("what was there is now {}", aside.display());
        }
        match past {
            Past::Kept => {}
            Past::Lost(_) => {
                say!("it has gone back in time: run `quotesign ledger accept-rollback` before `serve`");
                say!("{}", super::GONE_SINCE);
            }
            Past::Untold(anchor) => {
                say!(
                    "whether it has gone back in time cannot be told, since its anchor is {anchor}: see `quotesign ledger anchor adopt`"
                );
                say!("{}", super::GONE_SINCE);
            }
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
    if present == Position::GENESIS {
        // Made anew, where it was lost, and nothing was written to it.
        return Ok(());
    }
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

/// What the anchor says of a backup.
enum Past {
    /// Nothing is lost, or the config names no anchor.
    Kept,
    /// What is.
    Lost(String),
    /// There is no anchor to say it: how that is.
    Untold(&'static str),
}

impl Past {
    fn of(place: &Place, config: &Config, backup: &Reader) -> Result<Self, Failure> {
        let Some(path) = &place.anchor else { return Ok(Self::Kept) };
        let Some(anchor) = act::whole_anchor(path, config)? else {
            return Ok(Self::Untold(if path.exists() { "damaged" } else { "missing" }));
        };
        let lost = anchor.heads().and_then(|heads| backup.gone_back(&heads)).map_err(Failure::failed)?;
        Ok(if lost.is_empty() { Self::Kept } else { Self::Lost(lost.join("; ")) })
    }

    /// Refuses what may go back in time. An anchor that is missing is nobody's word, and one that is damaged had some.
    fn refuse(&self) -> Result<(), Failure> {
        let remedy = "if there is none, ask the callers for the greatest numbers they were answered, and restore with `--go-back`";
        match self {
            Self::Kept | Self::Untold("missing") => Ok(()),
            Self::Lost(lost) => Err(Failure::failed(format!(
                "the backup is older than the ledger was: {lost}. Look for a newer one; {remedy}"
            ))),
            Self::Untold(anchor) => Err(Failure::failed(format!(
                "whether the backup is older than the ledger was cannot be told, since the anchor is {anchor}. Look for a copy of \
                 it; {remedy}"
            ))),
        }
    }
}

/// Puts a copy of the backup in the ledger's place, and what was there aside. The log beside it belongs to what was there.
fn put(backup: &Path, file: &Path) -> io::Result<Option<PathBuf>> {
    let new = file.with_added_extension("restoring");
    if let Err(fault) = copy(backup, &new) {
        let _removed = fs::remove_file(&new);
        return Err(fault);
    }
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

/// Makes a durable copy that its owner alone reads and writes, whatever others may do to the backup.
fn copy(backup: &Path, new: &Path) -> io::Result<()> {
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // A restore that was cut short left it.
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    io::copy(&mut File::open(backup)?, &mut file)?;
    file.sync_all()
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

fn last(head: Position) -> u64 {
    head.next_index.saturating_sub(1)
}
