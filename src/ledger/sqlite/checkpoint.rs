//! Moves the log into the file beside the writer, so that no commit pays for it. A thread with a connection of its own does
//! nearly all of it while commits go on, and sees to it that nearly all of that is on the disk; the writer does what is left between two
//! batches, when that is little or the log has become long, since the log begins anew only where all of it has been moved.

use std::{
    fs::File,
    path::Path,
    sync::{
        Arc,
        mpsc::{self, SyncSender},
    },
    thread::{self, JoinHandle},
};

use parking_lot::Mutex;
use rusqlite::Connection;

use super::{held, schema};
use crate::ledger::EngineError;

/// After so many operations the thread looks at the log.
const LOOK_AFTER: usize = 512;
/// With so many pages in it, 8 MiB, the log begins anew.
const PAGES_MOVED: u32 = 2_000;
/// How often in a row the thread moves what came while it moved the rest.
const MOVES_MAX: usize = 4;
/// So few pages the writer moves itself.
const PAGES_LEFT: u32 = 500;
/// With so many in it, 64 MiB, it moves whatever is left: where commits are large and the disk is slow, it is never little.
const PAGES_MAX: u32 = 16_000;
/// A log of so many pages, 256 MiB, is told: somebody reads the file without end.
const PAGES_TOLD: u32 = 64_000;

/// The thread, and what it found.
#[derive(Debug)]
pub(super) struct Checkpoints {
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    found: Arc<Mutex<Found>>,
    ops: usize,
}

#[derive(Debug, Default)]
struct Found {
    /// Pages in the log, and how many of them are not in the file yet.
    log: Log,
    /// Why it could not be moved. Then nothing is known of what is on the disk.
    fault: Option<EngineError>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Log {
    pages: u32,
    left: u32,
    /// Somebody reads the file as it was, so that no more of it can be moved.
    is_read: bool,
}

impl Log {
    fn moved(self) -> u32 {
        self.pages.saturating_sub(self.left)
    }

    /// Whether it is to begin anew.
    fn is_due(self) -> bool {
        self.pages >= PAGES_MOVED
    }

    /// Whether the writer is to move what is left of it.
    fn is_the_writers(self) -> bool {
        self.is_due() && !self.is_read && (self.left <= PAGES_LEFT || self.pages >= PAGES_MAX)
    }
}

impl Checkpoints {
    /// Starts the thread for the file at `path`; the writer's own connection must not move the log by itself.
    pub(super) fn start(path: &Path) -> Result<Self, EngineError> {
        let connection = schema::connect(path)?;
        let file = held::file(path).map_err(|error| EngineError::RolledBack(format!("{}: {error}", path.display())))?;
        let found = Arc::new(Mutex::new(Found::default()));
        let (wake, woken) = mpsc::sync_channel(1);
        let finding = Arc::clone(&found);
        let work = move || {
            let mut is_told = false;
            while woken.recv().is_ok() {
                if finding.lock().log.is_the_writers() {
                    // Whoever of the two came second would find the first at it, and move nothing.
                    continue;
                }
                let mut found = match catch_up(&connection, file) {
                    Ok(Some(log)) => Found { log, fault: None },
                    // It is told by whoever is at it, and by the next look.
                    Ok(None) => continue,
                    Err(fault) => Found { log: Log::default(), fault: Some(fault) },
                };
                let pages = found.log.pages;
                let was_told = std::mem::replace(&mut is_told, pages > PAGES_TOLD);
                if is_told && !was_told {
                    tracing::warn!(pages, "the ledger's log grows: another process reads the file and does not end");
                }
                let mut known = finding.lock();
                found.fault = known.fault.take().or(found.fault);
                *known = found;
            }
        };
        let thread = thread::Builder::new().name("ledger-checkpoint".to_owned()).spawn(work);
        let thread = thread.map_err(|error| EngineError::RolledBack(format!("a thread cannot be started: {error}")))?;
        Ok(Self { wake: Some(wake), thread: Some(thread), found, ops: 0 })
    }

    /// Before a batch: moves what is left of a log where that is the writer's.
    ///
    /// # Errors
    /// Where the log could not be moved: the file is to be opened again.
    pub(super) fn before_batch(&mut self, writer: &Connection) -> Result<(), EngineError> {
        let log = {
            let mut found = self.found.lock();
            if let Some(fault) = found.fault.take() {
                return Err(fault);
            }
            found.log
        };
        if log.is_the_writers() {
            let moved = move_log(writer)?;
            schema::size_cache(writer).map_err(failed)?;
            if moved.is_some() {
                // From here on it is the thread's again.
                self.found.lock().log = Log::default();
            }
        }
        Ok(())
    }

    /// After a batch of so many operations: has the thread look now and then.
    pub(super) fn after_batch(&mut self, ops: usize) {
        self.ops += ops;
        if self.ops >= LOOK_AFTER {
            self.ops = 0;
            // One that is at work looks again when it is done.
            let _awake = self.wake.as_ref().map(|wake| wake.try_send(()));
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// Moves the log, and one that is to begin anew until so little is left that the writer can move the rest. All but what came last is on the
/// disk by then: SQLite itself synchronises the file when nothing is left, and the writer would wait for all of it. Nothing where another
/// process is at it.
fn catch_up(connection: &Connection, file: &File) -> Result<Option<Log>, EngineError> {
    let Some(mut log) = move_log(connection)? else { return Ok(None) };
    for _ in 1..MOVES_MAX {
        if !log.is_due() || log.is_read {
            break;
        }
        synchronise(file).map_err(|fault| schema::lost(&fault))?;
        let Some(moved) = move_log(connection)? else { return Ok(None) };
        let is_read = moved.left > 0 && moved.moved() <= log.moved();
        log = Log { is_read, ..moved };
        if log.is_the_writers() {
            break;
        }
    }
    Ok(Some(log))
}

fn synchronise(file: &File) -> std::io::Result<()> {
    fail::fail_point!("ledger::synchronise", |_| Err(std::io::Error::other("so it was asked for")));
    file.sync_data()
}

/// Moves as much as can be without waiting for anybody; nothing where another connection is at it.
fn move_log(connection: &Connection) -> Result<Option<Log>, EngineError> {
    let moved = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |row| {
        let [pages, moved] =
            [row.get::<_, i64>(1)?, row.get::<_, i64>(2)?].map(|pages| u32::try_from(pages).unwrap_or(0));
        let is_busy: bool = row.get(0)?;
        Ok((!is_busy).then_some(Log { pages, left: pages.saturating_sub(moved), is_read: false }))
    });
    moved.map_err(failed)
}

/// Nothing is known then of what is on the disk.
fn failed(error: rusqlite::Error) -> EngineError {
    match schema::not_moved(error) {
        lost @ EngineError::Lost(_) => lost,
        fault => EngineError::Unknown(format!("the ledger's log could not be moved: {fault}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writer_moves_what_is_little_or_what_has_become_much() {
        let is_the_writers = |pages, left| Log { pages, left, is_read: false }.is_the_writers();
        assert!(!is_the_writers(PAGES_MOVED - 1, 0) && is_the_writers(PAGES_MOVED, PAGES_LEFT));
        assert!(!is_the_writers(PAGES_MAX - 1, PAGES_LEFT + 1) && is_the_writers(PAGES_MAX, PAGES_MAX));
        // In vain.
        assert!(!Log { pages: PAGES_MAX, left: 1, is_read: true }.is_the_writers());
    }
}
