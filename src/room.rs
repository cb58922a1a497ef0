//! How much room there is on the volumes that a SQLite ledger and its anchor are on. Below one bound it is told, below another
//! nothing new is signed: what is begun is ended, and an operator can act, while the disk still takes it.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use crate::disk::free_bytes;

const MIB: u64 = 1 << 20;

/// The volumes, and how they stood at the last look.
#[derive(Debug, Default)]
pub struct Room {
    /// What is on them, by what it is called.
    files: BTreeMap<&'static str, PathBuf>,
    warn_bytes: u64,
    min_bytes: u64,
    free: Mutex<BTreeMap<&'static str, Result<u64, String>>>,
}

impl Room {
    /// Of the volumes that `files` are on; none where there are none.
    #[must_use]
    pub fn new(files: BTreeMap<&'static str, PathBuf>, warn_mib: u64, min_mib: u64) -> Self {
        let (warn_bytes, min_bytes) = (warn_mib.saturating_mul(MIB), min_mib.saturating_mul(MIB));
        Self { files, warn_bytes, min_bytes, free: Mutex::default() }
    }

    /// Looks. Waits for the file systems, so that it is not to be called where tasks run.
    pub fn look(&self) {
        self.look_by(free_bytes);
    }

    fn look_by(&self, free: impl Fn(&Path) -> io::Result<u64>) {
        let look = |(name, file): (&&'static str, &PathBuf)| (*name, free(file).map_err(|fault| fault.to_string()));
        let found = self.files.iter().map(look).collect();
        *self.free.lock() = found;
    }

    /// How many bytes are free on each volume, as far as that is known.
    #[must_use]
    pub fn free(&self) -> Vec<(&'static str, u64)> {
        self.free.lock().iter().filter_map(|(name, free)| Some((*name, *free.as_ref().ok()?))).collect()
    }

    /// Whether anything is watched.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        !self.files.is_empty()
    }

    /// What is to be warned of.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let free = self.free.lock();
        let told = |(name, free): (&&'static str, &Result<u64, String>)| match free {
            Ok(free) => (*free < self.warn_bytes).then(|| self.told(name, *free)),
            Err(fault) => Some(format!("how much is free where the {name} is cannot be told: {fault}")),
        };
        let told: Vec<String> = free.iter().filter_map(told).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// Whether there is room to begin anything.
    ///
    /// # Errors
    /// That there is none, and how little.
    pub fn suffices(&self) -> Result<(), String> {
        let free = self.free.lock();
        let short = free.iter().find_map(|(name, free)| {
            let free = free.as_ref().ok().filter(|free| **free < self.min_bytes)?;
            Some(format!("{}, and nothing is begun below {} MiB", self.told(name, *free), self.min_bytes / MIB))
        });
        short.map_or(Ok(()), Err)
    }

    fn told(&self, name: &str, free: u64) -> String {
        let file = self.files.get(name).map(|file| file.display().to_string()).unwrap_or_default();
        format!("{} MiB are free on the volume of the {name} `{file}`", free / MIB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(free: Result<u64, io::ErrorKind>) -> Room {
        let files = [("ledger", PathBuf::from("/there/ledger.sqlite")), ("anchor", PathBuf::from("/here/anchor"))];
        let room = Room::new(files.into(), 1024, 128);
        let plenty = |path: &Path| if path.starts_with("/here") { Ok(1 << 40) } else { free.map_err(io::Error::from) };
        room.look_by(plenty);
        room
    }

    #[test]
    fn it_warns_before_it_refuses_and_does_neither_where_there_is_room() {
        let enough = room(Ok(1024 * MIB));
        assert_eq!((enough.warning(), enough.suffices()), (None, Ok(())));
        let low = room(Ok(1024 * MIB - 1));
        let told = "1023 MiB are free on the volume of the ledger `/there/ledger.sqlite`".to_owned();
        assert_eq!((low.warning(), low.suffices()), (Some(told), Ok(())));
        assert_eq!(room(Ok(128 * MIB)).suffices(), Ok(()));
        let full = room(Ok(128 * MIB - 1));
        let told = "127 MiB are free on the volume of the ledger `/there/ledger.sqlite`".to_owned();
        let refused = format!("{told}, and nothing is begun below 128 MiB");
        assert_eq!((full.warning(), full.suffices()), (Some(told), Err(refused)));
        assert_eq!(full.free(), [("anchor", 1 << 40), ("ledger", 128 * MIB - 1)]);
    }

    #[test]
    fn what_cannot_be_told_is_warned_of_and_refuses_nothing() {
        let blind = room(Err(io::ErrorKind::PermissionDenied));
        assert_eq!(blind.suffices(), Ok(()));
        assert!(blind.warning().unwrap().contains("cannot be told: permission denied"), "{:?}", blind.warning());
        assert_eq!(blind.free(), [("anchor", 1 << 40)]);
        let nothing = Room::default();
        nothing.look();
        assert_eq!((nothing.warning(), nothing.suffices(), nothing.is_watched()), (None, Ok(()), false));
    }

    #[test]
    fn a_real_volume_has_room() {
        let here = Room::new([("ledger", PathBuf::from("Cargo.toml"))].into(), 0, 0);
        here.look();
        assert!(here.free()[0].1 > 0 && here.warning().is_none());
        let nowhere = Room::new([("ledger", PathBuf::from("/nowhere/at/all"))].into(), 0, 0);
        nowhere.look();
        assert!(nowhere.warning().is_some() && nowhere.suffices().is_ok());
    }
}
