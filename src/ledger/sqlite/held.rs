//! Files of ledgers that are held open beside SQLite, to be synchronised. None is ever closed: SQLite's locks on a file are its
//! process's, and whoever closes that file anywhere in the process lets go of all of them (POSIX). Then another process would take
//! itself for the last one, and remove the log under this one.

use std::{
    collections::BTreeMap,
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use parking_lot::Mutex;

/// By device and inode. While a file is open, no other one has its inode.
static HELD: Mutex<BTreeMap<(u64, u64), &'static File>> = Mutex::new(BTreeMap::new());

fn key(of: &Metadata) -> (u64, u64) {
    (of.dev(), of.ino())
}

/// The file at `path`, the same one for whoever asks.
///
/// # Errors
/// Where it cannot be opened.
pub(super) fn file(path: &Path) -> io::Result<&'static File> {
    let mut held = HELD.lock();
    if let Some(file) = held.get(&key(&path.metadata()?)) {
        return Ok(file);
    }
    let file: &File = Box::leak(Box::new(File::open(path)?));
    held.insert(key(&file.metadata()?), file);
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::Home, *};

    #[test]
    fn a_file_is_opened_once_however_often_its_ledger_is() {
        let (home, other) = (Home::new(), Home::new());
        let of = |home: &Home| {
            let _ledger = home.open();
            std::ptr::from_ref(file(&home.path()).unwrap())
        };
        let (first, another) = (of(&home), of(&other));
        assert_eq!((first, first == another), (of(&home), false));
    }
}
