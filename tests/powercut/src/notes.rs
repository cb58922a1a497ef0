//! What is noted, and where.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use libc::c_int;

use super::real;

/// What was done to a file.
#[derive(Clone, Copy)]
pub(crate) enum Noted {
    Write,
    Truncate,
    Sync,
    Create,
    Rename,
    Unlink,
    SyncDirectory,
}

/// Which files are noted, and where the notes go.
pub(crate) struct Notes {
    prefix: Vec<u8>,
    log: Option<c_int>,
    /// How much longer each synchronisation takes, in microseconds.
    sync_us: u32,
    /// While a file of this name is there, the disk is full.
    full: Option<CString>,
    open: Mutex<HashMap<c_int, Vec<u8>>>,
}

impl Notes {
    /// Those of this process; nothing where the variables are not set.
    pub(crate) fn of_process() -> Option<&'static Self> {
        static NOTES: LazyLock<Option<Notes>> = LazyLock::new(Notes::begin);
        NOTES.as_ref()
    }

    fn begin() -> Option<Self> {
        let prefix = variable(c"POWERCUT_FILES")?.into_bytes();
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_CLOEXEC;
        let log = variable(c"POWERCUT_LOG").map(|log| {
            // SAFETY: a C string and plain flags.
            unsafe { (real().open)(log.as_ptr(), flags, 0o600) }
        });
        let sync_us = variable(c"POWERCUT_SYNC_US").and_then(|text| text.to_str().ok()?.parse().ok());
        let (sync_us, full) = (sync_us.unwrap_or_default(), variable(c"POWERCUT_FULL"));
        Some(Self { prefix, log: log.filter(|log| *log >= 0), sync_us, full, open: Mutex::default() })
    }

    /// Whether anything is noted: only then must calls go one at a time.
    pub(crate) fn keeps(&self) -> bool {
        self.log.is_some()
    }

    /// Whether the disk is full at the moment.
    pub(crate) fn is_full(&self) -> bool {
        // SAFETY: a C string.
        self.full.as_ref().is_some_and(|full| unsafe { libc::access(full.as_ptr(), libc::F_OK) } == 0)
    }

    /// Waits for as much longer as a synchronisation takes.
    pub(crate) fn wait(&self) {
        if self.sync_us > 0 {
            std::thread::sleep(std::time::Duration::from_micros(self.sync_us.into()));
        }
    }

    /// The paths of the files that are open. Calls on them go one at a time, under this lock.
    pub(crate) fn open(&self) -> MutexGuard<'_, HashMap<c_int, Vec<u8>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_noted(&self, path: &[u8]) -> bool {
        path.starts_with(&self.prefix)
    }

    /// Whether it is the directory of noted files.
    pub(crate) fn is_parent(&self, path: &[u8]) -> bool {
        let cut = self.prefix.iter().rposition(|byte| *byte == b'/').unwrap_or_default();
        self.prefix.get(..cut) == Some(path)
    }

    pub(crate) fn note(&self, what: Noted, at: u64, path: &[u8], data: &[u8]) {
        let Some(log) = self.log else { return };
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a whole timespec.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
        let [seconds, nanos] = [now.tv_sec, now.tv_nsec].map(|part| u64::try_from(part).unwrap_or_default());
        let mut note = Vec::with_capacity(path.len() + data.len() + 32);
        note.extend((seconds * 1_000_000_000 + nanos).to_le_bytes());
        note.push(match what {
            Noted::Write => b'w',
            Noted::Truncate => b't',
            Noted::Sync => b's',
            Noted::Create => b'c',
            Noted::Rename => b'r',
            Noted::Unlink => b'u',
            Noted::SyncDirectory => b'd',
        });
        note.extend(at.to_le_bytes());
        note.extend(u16::try_from(path.len()).unwrap_or_default().to_le_bytes());
        note.extend(path);
        note.extend(u32::try_from(data.len()).unwrap_or_default().to_le_bytes());
        note.extend(data);
        // SAFETY: the note's own bytes; whoever reads the log sees whether all of them are there.
        unsafe { (real().write)(log, note.as_ptr().cast(), note.len()) };
    }
}

fn variable(name: &CStr) -> Option<CString> {
    // SAFETY: a C string.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: what `getenv` gives is a C string, and is copied at once.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_owned())
}
