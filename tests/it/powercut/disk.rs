//! What a power cut may leave of files that were written as `tests/powercut` noted: all that was synchronised, and of the
//! rest any part, down to a sector.

use std::{collections::BTreeMap, fs, path::Path};

use crate::kills::Dice;

/// What is written to a disk in one piece.
const SECTOR: usize = 512;

/// One thing that was done to a file.
#[derive(Debug, Clone)]
pub struct Note {
    /// When it was done, on `CLOCK_MONOTONIC`, in nanoseconds.
    pub at: u64,
    path: String,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Write(usize, Vec<u8>),
    Truncate(usize),
    Sync,
    Create,
    Rename(String),
    Unlink,
    SyncDirectory,
}

/// The notes of a run; one that was torn at the end is left out.
pub fn notes(log: &Path) -> Vec<Note> {
    let bytes = fs::read(log).unwrap();
    let mut rest = bytes.as_slice();
    let mut notes = Vec::new();
    while let Some(note) = read(&mut rest) {
        notes.push(note);
    }
    notes
}

fn read(rest: &mut &[u8]) -> Option<Note> {
    let mut take = |count: usize| rest.split_off(..count);
    let at = u64::from_le_bytes(take(8)?.try_into().unwrap());
    let kind = take(1)?[0];
    let place = usize::try_from(u64::from_le_bytes(take(8)?.try_into().unwrap())).unwrap();
    let length = u16::from_le_bytes(take(2)?.try_into().unwrap());
    let path = String::from_utf8(take(length.into())?.to_vec()).unwrap();
    let length = u32::from_le_bytes(take(4)?.try_into().unwrap());
    let data = take(length as usize)?.to_vec();
    let what = match kind {
        b'w' => What::Write(place, data),
        b't' => What::Truncate(place),
        b's' => What::Sync,
        b'c' => What::Create,
        b'r' => What::Rename(String::from_utf8(data).unwrap()),
        b'u' => What::Unlink,
        b'd' => What::SyncDirectory,
        other => panic!("`{other}` is no note"),
    };
    Some(Note { at, path, what })
}

/// Files by name, as they are on a disk.
pub type Files = BTreeMap<String, Vec<u8>>;

#[derive(Debug, Clone, Default)]
struct File {
    synced: Vec<u8>,
    since: Vec<What>,
}

/// What a name was, and which it is now, of which file.
type Renamed = (Option<String>, Option<(String, usize)>);

/// A disk, with what is on its way to it.
#[derive(Debug, Clone)]
pub struct Disk {
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    /// Each change of a name since.
    renamed: Vec<Renamed>,
}

impl Disk {
    /// A disk on which all of this is.
    pub fn with(files: Files) -> Self {
        let names: BTreeMap<String, usize> = files.keys().cloned().zip(0..).collect();
        let files = files.into_values().map(|synced| File { synced, since: Vec::new() }).collect();
        Self { files, names: names.clone(), synced_names: names, renamed: Vec::new() }
    }

    pub fn note(&mut self, note: &Note) {
        let file = self.names.get(&note.path).copied();
        match (&note.what, file) {
            (What::Create, _) => {
                self.files.push(File::default());
                let new = (note.path.clone(), self.files.len() - 1);
                self.names.insert(new.0.clone(), new.1);
                self.renamed.push((None, Some(new)));
            }
            (What::Write(..) | What::Truncate(_), Some(file)) => self.files[file].since.push(note.what.clone()),
            (What::Sync, Some(file)) => {
                let File { synced, since } = &mut self.files[file];
                for what in since.drain(..) {
                    apply(synced, &what, &mut |_| true);
                }
            }
            (What::Rename(to), Some(file)) => {
                self.names.remove(&note.path);
                self.names.insert(to.clone(), file);
                self.renamed.push((Some(note.path.clone()), Some((to.clone(), file))));
            }
            (What::Unlink, Some(_)) => {
                self.names.remove(&note.path);
                self.renamed.push((Some(note.path.clone()), None));
            }
            (What::SyncDirectory, _) => {
                self.synced_names = self.names.clone();
                self.renamed.clear();
            }
            (what, None) => panic!("{what:?} of `{}`, which is not there", note.path),
        }
    }

    /// What a cut of the power at this moment may leave.
    pub fn cut(&self, dice: &mut Dice) -> Files {
        let mut names = self.synced_names.clone();
        // A directory's changes are kept in order, as far as they are kept.
        let kept = usize::try_from(dice.throw(self.renamed.len() as u64 + 1)).unwrap();
        for (was, is) in &self.renamed[..kept] {
            if let Some(was) = was {
                names.remove(was);
            }
            names.extend(is.clone());
        }
        let way = dice.throw(4);
        let content = |file: usize| {
            let File { mut synced, since } = self.files[file].clone();
            for what in since {
                match way {
                    0 => {}
                    1 => apply(&mut synced, &what, &mut |_| true),
                    2 => {
                        let is_kept = dice.throw(2) == 0;
                        apply(&mut synced, &what, &mut |_| is_kept);
                    }
                    _ => apply(&mut synced, &what, &mut |_| dice.throw(2) == 0),
                }
            }
            synced
        };
        let mut content = content;
        // What is mapped into memory is not there after a start.
        names
            .into_iter()
            .filter(|(name, _)| !name.ends_with("-shm"))
            .map(|(name, file)| (name, content(file)))
            .collect()
    }
}

/// Does to `bytes` what was done, but for sectors that are not kept.
fn apply(bytes: &mut Vec<u8>, what: &What, is_kept: &mut impl FnMut(usize) -> bool) {
    match what {
        What::Write(offset, data) => {
            let mut at = *offset;
            let end = offset + data.len();
            while at < end {
                let next = ((at / SECTOR + 1) * SECTOR).min(end);
                if is_kept(at) {
                    bytes.resize(bytes.len().max(next), 0);
                    bytes[at..next].copy_from_slice(&data[at - offset..next - offset]);
                }
                at = next;
            }
        }
        What::Truncate(length) if is_kept(*length) => bytes.resize(*length, 0),
        _ => {}
    }
}

#[test]
fn what_was_synchronised_stays_and_the_rest_may_be_torn() {
    let note = |what| Note { at: 0, path: "a".to_owned(), what };
    let mut disk = Disk::with(Files::new());
    disk.note(&note(What::Create));
    disk.note(&note(What::Write(0, vec![1; 2 * SECTOR])));
    disk.note(&note(What::Sync));
    let mut dice = Dice::new(1);
    let mut seen = |disk: &Disk| -> std::collections::BTreeSet<Option<Vec<u8>>> {
        (0..200)
            .map(|_| disk.cut(&mut dice).remove("a").map(|bytes| bytes.chunks(SECTOR).map(|part| part[0]).collect()))
            .collect()
    };
    assert_eq!(seen(&disk), [None, Some(vec![1, 1])].into(), "its name was not synchronised");
    disk.note(&note(What::SyncDirectory));
    assert_eq!(seen(&disk), [Some(vec![1, 1])].into());
    disk.note(&note(What::Write(SECTOR, vec![2; 2 * SECTOR])));
    let torn = [vec![1, 1], vec![1, 2], vec![1, 1, 2], vec![1, 2, 2]];
    assert_eq!(seen(&disk), torn.map(Some).into());
    disk.note(&note(What::Sync));
    disk.note(&note(What::Rename("b".to_owned())));
    assert_eq!(seen(&disk), [None, Some(vec![1, 2, 2])].into());
}
