//! How much room there is on the volumes that a SQLite ledger and its anchor are on. Below one bound it is told, below another
//! nothing new is signed: what is begun is ended, and an operator can act, while the disk still takes it.

use std::{
    collections::BTreeMap,
    io, iter,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use crate::disk::free_bytes;

const MIB: u64 = 1 << 20;
/// What an anchor needs at most, however large its ledger is: it is 64 KiB, and the list of revoked kids beside it is small and
/// written anew as a whole.
const ANCHOR: Bounds = Bounds { warn_bytes: 8 * MIB, min_bytes: MIB };

/// Below how much is warned, and below how much nothing is begun.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    warn_bytes: u64,
    min_bytes: u64,
}

/// What is on a volume that is watched.
#[derive(Debug)]
struct Watched {
    file: PathBuf,
    bounds: Bounds,
}

/// The volumes, and how they stood at the last look.
#[derive(Debug, Default)]
pub struct Room {
    /// What is on them, by what it is called.
    files: BTreeMap<&'static str, Watched>,
    free: Mutex<BTreeMap<&'static str, Result<u64, String>>>,
}

impl Room {
    /// Of the volumes that a ledger and its anchor are on; the anchor's bounds are its own, and never higher than the ledger's.
    #[must_use]
    pub fn new(ledger: &Path, anchor: Option<&Path>, warn_mib: u64, min_mib: u64) -> Self {
        let bounds = Bounds { warn_bytes: warn_mib.saturating_mul(MIB), min_bytes: min_mib.saturating_mul(MIB) };
        let small = Bounds {
            warn_bytes: bounds.warn_bytes.min(ANCHOR.warn_bytes),
            min_bytes: bounds.min_bytes.min(ANCHOR.min_bytes),
        };
        let ledger = ("ledger", Watched { file: ledger.to_owned(), bounds });
        let anchor = anchor.map(|anchor| ("anchor", Watched { file: anchor.to_owned(), bounds: small }));
        Self { files: iter::once(ledger).chain(anchor).collect(), free: Mutex::default() }
    }

    /// Looks. Waits for the file systems, so that it is not to be called where tasks run.
    pub fn look(&self) {
        self.look_by(free_bytes);
    }

    fn look_by(&self, free: impl Fn(&Path) -> io::Result<u64>) {
        let look = |(name, on): (&&'static str, &Watched)| (*name, free(&on.file).map_err(|fault| fault.to_string()));
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
        let told = |(name, on): (&&'static str, &Watched)| match free.get(name)? {
            Ok(free) => (*free < on.bounds.warn_bytes).then(|| on.told(name, *free)),
            Err(fault) => Some(format!("how much is free where the {name} is cannot be told: {fault}")),
        };
        let told: Vec<String> = self.files.iter().filter_map(told).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// Whether there is room to begin anything.
    ///
    /// # Errors
    /// That there is none, and how little.
    pub fn suffices(&self) -> Result<(), String> {
        let free = self.free.lock();
        let short = self.files.iter().find_map(|(name, on)| {
            let free = free.get(name)?.as_ref().ok().filter(|free| **free < on.bounds.min_bytes)?;
            Some(format!("{}, and nothing is begun below {} MiB", on.told(name, *free), on.bounds.min_bytes / MIB))
        });
        short.map_or(Ok(()), Err)
    }
}

impl Watched {
    fn told(&self, name: &str, free: u64) -> String {
        format!("{} MiB are free on the volume of the {name} `{}`", free / MIB, self.file.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(free: Result<u64, io::ErrorKind>) -> Room {
        let room = Room::new(Path::new("/there/ledger.sqlite"), Some(Path::new("/here/anchor")), 1024, 128);
        let plenty = |path: &Path| if path.starts_with("/here") { Ok(1 << 40) } else { free.map_err(io::Error::from) };
        room.look_by(plenty);
        room
    }

    #[test]
    fn an_anchor_s_volume_has_bounds_of_its_own_which_are_none_where_the_ledger_has_none() {
        let anchor = |warn_mib: u64, min_mib: u64, free: u64| {
            let room = Room::new(Path::new("/there/ledger.sqlite"), Some(Path::new("/here/anchor")), warn_mib, min_mib);
            room.look_by(|path| Ok(if path.starts_with("/here") { free } else { 1 << 40 }));
            (room.warning(), room.suffices())
        };
        // What a volume of 64 MiB, as the chart asks for one, leaves free.
        assert_eq!(anchor(1024, 128, 50 * MIB), (None, Ok(())));
        assert_eq!(anchor(1024, 128, 8 * MIB), (None, Ok(())));
        let told = "7 MiB are free on the volume of the anchor `/here/anchor`".to_owned();
        assert_eq!(anchor(1024, 128, 8 * MIB - 1), (Some(told), Ok(())));
        assert_eq!(anchor(1024, 128, MIB).1, Ok(()));
        let refused = anchor(1024, 128, MIB - 1).1.unwrap_err();
        assert!(refused.ends_with("`/here/anchor`, and nothing is begun below 1 MiB"), "{refused}");
        assert_eq!(anchor(0, 0, 0), (None, Ok(())));
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
        let here = Room::new(Path::new("Cargo.toml"), None, 0, 0);
        here.look();
        assert!(here.free()[0].1 > 0 && here.warning().is_none());
        let nowhere = Room::new(Path::new("/nowhere/at/all"), None, 0, 0);
        nowhere.look();
        assert!(nowhere.warning().is_some() && nowhere.suffices().is_ok());
    }
}
