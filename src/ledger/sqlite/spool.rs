//! The notes of reads that wait beside a ledger's file, in `<ledger>.reads`: a line each, appended by commands. The gateway takes
//! the file away by another name before it reads it, and removes it once its lines are records. Where it dies in between it
//! finds the file again, and the records by their ids.
//!
//! Whoever writes holds the file's lock, and holds it against its name before: what was taken away is not written any more.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::schema;
use crate::{
    disk,
    ledger::{
        EngineError,
        reading::{WAITING_BYTES_MAX, Waiting},
    },
};

/// How long a command waits for others that write.
const WAIT_MAX: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(10);

fn spool(ledger: &Path) -> PathBuf {
    ledger.with_added_extension("reads")
}

fn taken(ledger: &Path) -> PathBuf {
    ledger.with_added_extension("reads.taken")
}

/// Leaves a note, durably.
pub(in crate::ledger) fn note(ledger: &Path, line: &str) -> Result<(), EngineError> {
    schema::present(ledger)?;
    let path = spool(ledger);
    append(ledger, &path, line).map_err(|fault| {
        let why = match (fault.kind(), fault.raw_os_error()) {
            (io::ErrorKind::PermissionDenied, _) => {
                format!("cannot be written: {fault}: run this as the ledger's owner")
            }
            (_, Some(_)) => format!("cannot be written: {fault}"),
            (_, None) => fault.to_string(),
        };
        EngineError::Unfit(format!("`{}` {why}", path.display()))
    })
}

fn append(ledger: &Path, path: &Path, line: &str) -> io::Result<()> {
    let until = Instant::now() + WAIT_MAX;
    while Instant::now() < until {
        let file = match open(ledger, path) {
            // Taken between two looks.
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        match file.try_lock() {
            Ok(()) if is_at(&file, path)? => return write(&file, ledger, line),
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => thread::sleep(AGAIN),
            Err(fs::TryLockError::Error(fault)) => return Err(fault),
        }
    }
    Err(io::Error::other("is held by another process: look with `fuser`"))
}

fn open(ledger: &Path, path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o600);
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            // What root leaves here the gateway must be able to read.
            let owner = fs::metadata(ledger)?;
            if file.metadata()?.uid() != owner.uid() {
                fchown(&file, Some(owner.uid()), Some(owner.gid())).inspect_err(|_| drop(fs::remove_file(path)))?;
            }
            Ok(file)
        }
        Err(fault) if fault.kind() == io::ErrorKind::AlreadyExists => options.open(path),
        Err(fault) => Err(fault),
    }
}

/// Whether `file` is the very file that has this name now.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (opened, named) = match fs::symlink_metadata(path) {
        Ok(named) => (file.metadata()?, named),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(fault) => return Err(fault),
    };
    if !named.is_file() {
        return Err(io::Error::other("is no file: remove it"));
    }
    Ok((opened.dev(), opened.ino()) == (named.dev(), named.ino()))
}

fn write(mut file: &File, ledger: &Path, line: &str) -> io::Result<()> {
    let length = file.metadata()?.len();
    let waits = fs::metadata(taken(ledger)).map_or(0, |taken| taken.len());
    if length.saturating_add(waits).saturating_add(line.len() as u64) >= u64::from(WAITING_BYTES_MAX) {
        return Err(io::Error::other(
            "is full of notes that no gateway has journalled: start the gateway of this ledger, which journals and removes them",
        ));
    }
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    // A line that a crash cut short spoils itself alone.
    let begin = if last == [b'\n'] { "" } else { "\n" };
    file.write_all(format!("{begin}{line}\n").as_bytes())?;
    file.sync_all()?;
    // Whoever made the file may have died before its name was durable.
    disk::sync_folder_of(ledger)
}

/// Takes what waits. The same again until it is [`clear`]ed.
pub(super) fn take(ledger: &Path) -> Result<Vec<Waiting>, EngineError> {
    let path = taken(ledger);
    let text = lines(ledger, &path).map_err(|fault| unusable(&path, &fault))?;
    Ok((0..).zip(text.lines().map(str::to_owned)).collect())
}

fn lines(ledger: &Path, taken: &Path) -> io::Result<String> {
    if !taken.try_exists()? {
        match fs::rename(spool(ledger), taken) {
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            renamed => renamed?,
        }
    }
    if !fs::symlink_metadata(taken)?.is_file() {
        return Err(io::Error::other("is no file"));
    }
    let file = File::open(taken)?;
    match file.try_lock_shared() {
        Ok(()) => {}
        // Who writes there now was in time, and is read with the next sweep.
        Err(fs::TryLockError::WouldBlock) => return Ok(String::new()),
        Err(fs::TryLockError::Error(fault)) => return Err(fault),
    }
    let mut bytes = Vec::new();
    file.take(u64::from(WAITING_BYTES_MAX)).read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        // A command that died before it wrote.
        fs::remove_file(taken)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Removes what was taken. Where a power cut brings it back, its records are there.
pub(super) fn clear(ledger: &Path) -> Result<(), EngineError> {
    let path = taken(ledger);
    match fs::remove_file(&path) {
        Err(fault) if fault.kind() != io::ErrorKind::NotFound => Err(unusable(&path, &fault)),
        _ => Ok(()),
    }
}

/// Not a fault of the ledger, which goes on without.
fn unusable(path: &Path, fault: &io::Error) -> EngineError {
    EngineError::RolledBack(format!("`{}`: {fault}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tempfile::TempDir;

    use super::*;

    fn ledger() -> (TempDir, PathBuf) {
        let home = TempDir::new().unwrap();
        let ledger = home.path().join("ledger.sqlite");
        fs::write(&ledger, "").unwrap();
        (home, ledger)
    }

    fn taken_lines(ledger: &Path) -> Vec<String> {
        take(ledger).unwrap().into_iter().map(|(_, line)| line).collect()
    }

    #[test]
    fn what_was_noted_is_taken_until_it_is_cleared() {
        let (_home, ledger) = ledger();
        assert!(taken_lines(&ledger).is_empty());
        note(&ledger, "a").unwrap();
        note(&ledger, "b").unwrap();
        let mode = fs::metadata(spool(&ledger)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(taken_lines(&ledger), ["a", "b"]);
        // Meanwhile more is noted; it waits for its turn.
        note(&ledger, "c").unwrap();
        assert_eq!(taken_lines(&ledger), ["a", "b"]);
        clear(&ledger).unwrap();
        assert_eq!(taken_lines(&ledger), ["c"]);
        clear(&ledger).unwrap();
        clear(&ledger).unwrap();
        assert!(taken_lines(&ledger).is_empty());
    }

    #[test]
    fn a_file_that_was_taken_is_told_from_the_one_that_has_its_name() {
        let (_home, ledger) = ledger();
        let path = spool(&ledger);
        let file = open(&ledger, &path).unwrap();
        assert!(is_at(&file, &path).unwrap());
        fs::rename(&path, taken(&ledger)).unwrap();
        assert!(!is_at(&file, &path).unwrap());
        let next = open(&ledger, &path).unwrap();
        assert!(!is_at(&file, &path).unwrap() && is_at(&next, &path).unwrap());
    }

    #[test]
    fn a_line_that_was_cut_short_spoils_itself_alone() {
        let (_home, ledger) = ledger();
        fs::write(spool(&ledger), "a\nhal").unwrap();
        note(&ledger, "b").unwrap();
        assert_eq!(taken_lines(&ledger), ["a", "hal", "b"]);
    }

    #[test]
    fn a_file_without_a_line_does_not_stay_in_the_way() {
        let (_home, ledger) = ledger();
        fs::write(spool(&ledger), "").unwrap();
        assert!(taken_lines(&ledger).is_empty());
        note(&ledger, "a").unwrap();
        assert_eq!(taken_lines(&ledger), ["a"]);
    }

    #[test]
    fn so_much_may_wait_and_no_more() {
        let (_home, ledger) = ledger();
        let line = "a".repeat(100_000);
        for _ in 0..5 {
            note(&ledger, &line).unwrap();
        }
        take(&ledger).unwrap();
        for _ in 0..5 {
            note(&ledger, &line).unwrap();
        }
        let full = note(&ledger, &line).unwrap_err().to_string();
        assert!(full.contains("start the gateway"), "{full}");
        clear(&ledger).unwrap();
        note(&ledger, &line).unwrap();
    }

    #[test]
    fn nothing_is_noted_where_there_is_no_ledger_or_where_a_note_would_go_elsewhere() {
        let (home, ledger) = ledger();
        assert!(note(&home.path().join("other.sqlite"), "a").is_err());
        assert!(!home.path().join("other.sqlite.reads").exists());
        fs::write(home.path().join("elsewhere"), "").unwrap();
        symlink(home.path().join("elsewhere"), spool(&ledger)).unwrap();
        assert!(note(&ledger, "a").is_err());
        assert_eq!(fs::read(home.path().join("elsewhere")).unwrap(), b"");
    }

    #[test]
    fn many_note_at_once_while_the_gateway_takes_and_none_is_lost() {
        let (_home, ledger) = ledger();
        let mut seen = Vec::new();
        thread::scope(|scope| {
            let writers: Vec<_> = (0..8)
                .map(|writer| {
                    let ledger = &ledger;
                    scope.spawn(move || (0..20).for_each(|line| note(ledger, &format!("{writer}-{line}")).unwrap()))
                })
                .collect();
            while !writers.iter().all(thread::ScopedJoinHandle::is_finished) {
                let lines = taken_lines(&ledger);
                if !lines.is_empty() {
                    seen.extend(lines);
                    clear(&ledger).unwrap();
                }
            }
        });
        for _ in 0..2 {
            seen.extend(taken_lines(&ledger));
            clear(&ledger).unwrap();
        }
        seen.sort();
        let mut noted: Vec<_> = (0..8).flat_map(|writer| (0..20).map(move |line| format!("{writer}-{line}"))).collect();
        noted.sort();
        assert_eq!(seen, noted);
    }
}
