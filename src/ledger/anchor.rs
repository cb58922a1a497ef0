//! A small file on another volume that remembers where the ledger stood: a store that comes back older than it was
//! (a restored backup, an asynchronous failover, a log cut short by a flipped bit) is told by it.
//!
//! Two slots are written in turn, each with its digest, so that a torn write leaves the one before. The file is at
//! most one batch behind: it is written beside the next batch, which waits for it.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::mpsc,
    thread::{self, JoinHandle},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Engine, EngineError, Holding, Kept, Lease, Op, OpenReads, Reads, Shipment, Waiting,
    batch::{Growing, Replies},
    chain::{Heads, Position},
    step::{Holds, Quote},
    stops::Stops,
};
use crate::{
    audit::Record,
    clock::UtcTime,
    disk::{folder_of, sync_folder_of},
    domain::{Environment, Identity, Kid, Scope, SequenceNumber, sha256},
};

/// The most that one slot holds: a hundred lanes and more.
const SLOT_BYTES: usize = 32 * 1024;
const FORMAT: &str = "quotesign.anchor.v1";

/// What a slot says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    format: String,
    environment: Environment,
    /// Rises with every write.
    count: u64,
    /// Each lane with its next index and its link.
    lanes: Vec<(String, u64, String)>,
}

impl Mark {
    fn new(environment: Environment, count: u64, heads: &Heads) -> Self {
        let lanes = heads.iter().map(|(lane, at)| (lane.clone(), at.next_index, hex::encode(at.link))).collect();
        Self { format: FORMAT.to_owned(), environment, count, lanes }
    }

    fn heads(&self) -> Option<Heads> {
        let position = |(lane, next_index, link): &(String, u64, String)| {
            let link = hex::decode(link).ok()?.try_into().ok()?;
            Some((lane.clone(), Position { next_index: *next_index, link }))
        };
        self.lanes.iter().map(position).collect()
    }

    /// A line of JSON, its digest before it.
    fn bytes(&self) -> io::Result<Vec<u8>> {
        let json = serde_json::to_string(self)?;
        let mut bytes = format!("{} {json}\n", hex::encode(sha256(json.as_bytes()))).into_bytes();
        if bytes.len() > SLOT_BYTES {
            return Err(io::Error::other("there are more lanes than it holds: remove those of gateways long gone"));
        }
        bytes.resize(SLOT_BYTES, b' ');
        Ok(bytes)
    }

    fn read(slot: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(slot).ok()?.lines().next()?;
        let (digest, json) = line.split_once(' ')?;
        let mark: Self = serde_json::from_str(json).ok()?;
        (hex::encode(sha256(json.as_bytes())) == digest && mark.format == FORMAT).then_some(mark)
    }
}

/// The anchor's file.
#[derive(Debug)]
pub struct Anchor {
    path: PathBuf,
    file: File,
    mark: Mark,
}

impl Anchor {
    /// Opens the file; absent where there is none.
    ///
    /// # Errors
    /// Where it cannot be used, is of another environment, or holds no whole slot.
    pub fn open(path: &Path, environment: Environment) -> Result<Option<Self>, EngineError> {
        let Some(file) = Self::file(path)? else { return Ok(None) };
        let mark = Self::mark(path, environment)?.ok_or_else(|| damaged(path))?;
        Ok(Some(Self { path: path.to_owned(), file, mark }))
    }

    /// Opens the file for whoever can do without it; absent also where it is damaged.
    ///
    /// # Errors
    /// Where it cannot be used, or is of another environment.
    pub fn open_whole(path: &Path, environment: Environment) -> Result<Option<Self>, EngineError> {
        let Some(file) = Self::file(path)? else { return Ok(None) };
        Ok(Self::mark(path, environment)?.map(|mark| Self { path: path.to_owned(), file, mark }))
    }

    fn file(path: &Path) -> Result<Option<File>, EngineError> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unusable(path, &error)),
        }
    }

    /// Where the lanes stood, of a file that is read and no more; absent where there is none.
    ///
    /// # Errors
    /// As for [`Anchor::open`].
    pub fn heads_at(path: &Path, environment: Environment) -> Result<Option<Heads>, EngineError> {
        if !path.try_exists().map_err(|error| unusable(path, &error))? {
            return Ok(None);
        }
        let mark = Self::mark(path, environment)?.ok_or_else(|| damaged(path))?;
        mark.heads().map(Some).ok_or_else(|| unread(path))
    }

    /// The newest whole slot, where there is one.
    fn mark(path: &Path, environment: Environment) -> Result<Option<Mark>, EngineError> {
        let bytes = fs::read(path).map_err(|error| unusable(path, &error))?;
        let marks = bytes.chunks(SLOT_BYTES).filter_map(Mark::read);
        let mark = marks.max_by_key(|mark| mark.count);
        if let Some(theirs) = mark.as_ref().map(|mark| mark.environment).filter(|theirs| *theirs != environment) {
            return Err(EngineError::Unfit(format!(
                "the anchor `{}` belongs to the environment `{theirs}`, not to `{environment}`: name that \
                 environment's own",
                path.display()
            )));
        }
        Ok(mark)
    }

    /// Makes the file, in place of one that may be there.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn create(path: &Path, environment: Environment, heads: &Heads) -> Result<Self, EngineError> {
        let written = || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
            let mark = Mark::new(environment, 1, heads);
            file.write_all_at(&mark.bytes()?, 0)?;
            file.write_all_at(&vec![b' '; SLOT_BYTES], SLOT_BYTES as u64)?;
            file.sync_all()?;
            sync_folder_of(path)?;
            Ok(Self { path: path.to_owned(), file, mark })
        };
        written().map_err(|error| unusable(path, &error))
    }

    /// Where the lanes stood.
    ///
    /// # Errors
    /// Where what it holds cannot be read.
    pub fn heads(&self) -> Result<Heads, EngineError> {
        self.mark.heads().ok_or_else(|| unread(&self.path))
    }

    /// Writes where they stand now, and returns when it is durable.
    ///
    /// # Errors
    /// Also where another file has its name, or none: whoever opens the ledger next would not find what is written.
    fn keep(&mut self, heads: &Heads) -> io::Result<()> {
        let same = |here: &Metadata, named: &Metadata| (here.dev(), here.ino()) == (named.dev(), named.ino());
        if !fs::metadata(&self.path).is_ok_and(|named| self.file.metadata().is_ok_and(|here| same(&here, &named))) {
            return Err(io::Error::other("it was moved, removed or replaced; bring back the one that was there"));
        }
        let mark = Mark::new(self.mark.environment, self.mark.count.saturating_add(1), heads);
        let at = if mark.count % 2 == 1 { 0 } else { SLOT_BYTES as u64 };
        self.file.write_all_at(&mark.bytes()?, at)?;
        self.file.sync_data()?;
        self.mark = mark;
        Ok(())
    }
}

/// Refuses an anchor on the ledger's own volume, which would come back together with it.
///
/// # Errors
/// Where both are on one, or that cannot be told.
pub fn is_elsewhere(anchor: &Path, store: &Path) -> Result<(), String> {
    let device = |path: &Path| {
        let folder = folder_of(path);
        fs::metadata(folder)
            .map(|found| found.dev())
            .map_err(|error| format!("`ledger.anchor`: the directory `{}` cannot be used: {error}", folder.display()))
    };
    if device(anchor)? == device(store)? {
        return Err(format!(
            "`ledger.anchor` = `{}` is on the ledger's own volume and would be restored together with it; put it on another",
            anchor.display()
        ));
    }
    Ok(())
}

/// An engine that writes its anchor beside each batch.
pub struct Anchored {
    inner: Box<dyn Engine>,
    keeper: Keeper,
}

/// The thread that writes, and what came of its last write.
struct Keeper {
    heads: Option<mpsc::Sender<Heads>>,
    kept: mpsc::Receiver<io::Result<()>>,
    /// Whether a write is under way.
    writing: bool,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Anchored {
    /// Checks `inner`, just opened, against the anchor at `path`.
    ///
    /// # Errors
    /// Where the store is older than the anchor, or the anchor is missing beside a ledger that is not empty.
    pub fn open(mut inner: Box<dyn Engine>, path: &Path, environment: Environment) -> Result<Self, EngineError> {
        let anchor = match Anchor::open(path, environment)? {
            Some(anchor) => {
                let behind = inner.gone_back(&anchor.heads()?)?;
                if !behind.is_empty() {
                    return Err(EngineError::Unfit(format!(
                        "the ledger has gone back in time: {}. Nothing is signed: restore the newest store, or let \
                         somebody decide with `quotesign ledger accept-rollback`",
                        behind.join("; ")
                    )));
                }
                anchor
            }
            None if inner.heads().values().all(|at| *at == Position::GENESIS) => {
                Anchor::create(path, environment, &inner.heads())?
            }
            None => {
                return Err(EngineError::Unfit(format!(
                    "the anchor `{}` is missing, and the ledger is not empty. Nothing is signed: bring the anchor back, \
                     or, if this ledger is the newest, run `quotesign ledger anchor adopt`",
                    path.display()
                )));
            }
        };
        Ok(Self { inner, keeper: Keeper::start(anchor, path) })
    }
}

impl Keeper {
    fn start(mut anchor: Anchor, path: &Path) -> Self {
        let (heads, wanted) = mpsc::channel::<Heads>();
        let (told, kept) = mpsc::channel();
        let thread = thread::Builder::new().name("ledger-anchor".to_owned()).spawn(move || {
            for heads in wanted {
                if told.send(anchor.keep(&heads)).is_err() {
                    return;
                }
            }
        });
        Self { heads: Some(heads), kept, writing: false, thread: thread.ok(), path: path.to_owned() }
    }

    fn begin(&mut self, heads: Heads) {
        self.writing = self.heads.as_ref().is_some_and(|wanted| wanted.send(heads).is_ok());
    }

    /// Returns when the write under way is durable.
    fn settle(&mut self) -> Result<(), EngineError> {
        if self.thread.is_none() {
            return Err(unusable(&self.path, &io::Error::other("the thread that writes it could not start")));
        }
        if !std::mem::take(&mut self.writing) {
            return Ok(());
        }
        let kept = self.kept.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that writes it has ended")));
        kept.map_err(|error| unusable(&self.path, &error))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.heads.take());
        if let Some(thread) = self.thread.take() {
            // What it could not write was told, or is told at the next start by what it wrote before.
            let _ = thread.join();
        }
    }
}

impl Reads for Anchored {
    fn quote(&mut self, identity: &Identity) -> Result<Option<Quote>, EngineError> {
        self.inner.quote(identity)
    }

    fn numbered(&mut self, scope: &Scope, sequence: SequenceNumber) -> Result<Option<Quote>, EngineError> {
        self.inner.numbered(scope, sequence)
    }

    fn records_after(&mut self, id: Uuid, count: u32) -> Result<Vec<Record>, EngineError> {
        self.inner.records_after(id, count)
    }

    fn kids(&mut self) -> Result<BTreeMap<Kid, Kept>, EngineError> {
        self.inner.kids()
    }

    fn stops(&mut self) -> Result<Stops, EngineError> {
        self.inner.stops()
    }

    fn holds(&mut self) -> Result<Holds, EngineError> {
        self.inner.holds()
    }

    fn last_taken(&mut self, scope: &Scope) -> Result<Option<SequenceNumber>, EngineError> {
        self.inner.last_taken(scope)
    }
}

impl Engine for Anchored {
    fn renew(&mut self, holding: &Holding) -> Result<Vec<Lease>, EngineError> {
        self.inner.renew(holding)
    }

    fn ship(&mut self, shipment: &Shipment) -> Result<(), EngineError> {
        self.inner.ship(shipment)
    }

    fn take_readings(&mut self) -> Result<Vec<Waiting>, EngineError> {
        self.inner.take_readings()
    }

    fn drop_readings(&mut self, places: &[i64]) -> Result<(), EngineError> {
        self.inner.drop_readings(places)
    }

    fn reads(&self) -> OpenReads {
        self.inner.reads()
    }

    fn reads_are_durable(&self) -> bool {
        self.inner.reads_are_durable()
    }

    fn apply(&mut self, mut batch: &[Op]) -> Result<Replies, EngineError> {
        self.apply_growing(&mut batch)
    }

    fn apply_growing(&mut self, batch: &mut dyn Growing) -> Result<Replies, EngineError> {
        // A store that runs ahead of an anchor that cannot be written could go back unnoticed.
        if let Err(error) = self.keeper.settle() {
            self.keeper.begin(self.inner.heads());
            return Err(error);
        }
        let replies = self.inner.apply_growing(batch)?;
        self.keeper.begin(self.inner.heads());
        Ok(replies)
    }

    fn reopen(&mut self) -> Result<Option<Replies>, EngineError> {
        let settled = self.keeper.settle();
        let replies = self.inner.reopen()?;
        self.keeper.begin(self.inner.heads());
        settled?;
        Ok(replies)
    }

    fn heads(&self) -> Heads {
        self.inner.heads()
    }

    fn gone_back(&mut self, heads: &Heads) -> Result<Vec<String>, EngineError> {
        self.inner.gone_back(heads)
    }

    fn expired(&mut self, now: UtcTime, count: usize) -> Result<Vec<Identity>, EngineError> {
        self.inner.expired(now, count)
    }

    fn newest_records(&mut self) -> Result<Vec<Record>, EngineError> {
        self.inner.newest_records()
    }

    fn newest_record_at(&mut self) -> Result<Option<UtcTime>, EngineError> {
        self.inner.newest_record_at()
    }
}

fn damaged(path: &Path) -> EngineError {
    let remedy = "if the ledger is the right one, run `quotesign ledger anchor adopt`";
    EngineError::Unfit(format!("the anchor `{}` holds no whole slot: {remedy}", path.display()))
}

fn unread(path: &Path) -> EngineError {
    EngineError::Unfit(format!("the anchor `{}` cannot be read", path.display()))
}

fn unusable(path: &Path, error: &io::Error) -> EngineError {
    EngineError::Unfit(format!("the anchor `{}` cannot be used: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn heads(index: u64) -> Heads {
        let link = [u8::try_from(index).unwrap(); 32];
        [(String::new(), Position { next_index: index, link })].into()
    }

    #[test]
    fn a_torn_slot_leaves_the_one_before() {
        let home = TempDir::new().unwrap();
        let path = home.path().join("anchor");
        let here = Environment::Sandbox;
        assert!(Anchor::open(&path, here).unwrap().is_none());
        let mut anchor = Anchor::create(&path, here, &heads(0)).unwrap();
        for index in 1..6 {
            anchor.keep(&heads(index)).unwrap();
            assert_eq!(Anchor::open(&path, here).unwrap().unwrap().heads().unwrap(), heads(index));
        }
        // The fifth write went into the slot of an even count.
        let mut bytes = fs::read(&path).unwrap();
        bytes[SLOT_BYTES + 80] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(Anchor::open(&path, here).unwrap().unwrap().heads().unwrap(), heads(4));
        bytes[80] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let refused = Anchor::open(&path, here).unwrap_err().to_string();
        assert!(refused.contains("holds no whole slot"), "{refused}");
        Anchor::create(&path, here, &heads(7)).unwrap();
        let other = Anchor::open(&path, Environment::Production).unwrap_err().to_string();
        assert!(other.contains("belongs to the environment `sandbox`, not to `production`"), "{other}");
    }

    #[test]
    fn one_that_is_moved_or_replaced_is_missed() {
        let home = TempDir::new().unwrap();
        let (path, elsewhere) = (home.path().join("anchor"), home.path().join("elsewhere"));
        let mut anchor = Anchor::create(&path, Environment::Sandbox, &heads(1)).unwrap();
        fs::copy(&path, home.path().join("older")).unwrap();
        fs::rename(&path, &elsewhere).unwrap();
        assert!(anchor.keep(&heads(2)).unwrap_err().to_string().contains("bring back"));
        fs::rename(home.path().join("older"), &path).unwrap();
        assert!(anchor.keep(&heads(2)).is_err(), "an older copy of it");
        fs::rename(&elsewhere, &path).unwrap();
        anchor.keep(&heads(2)).unwrap();
    }

    #[test]
    fn more_lanes_than_fit_are_refused_and_nothing_is_written() {
        let home = TempDir::new().unwrap();
        let path = home.path().join("anchor");
        let mut anchor = Anchor::create(&path, Environment::Sandbox, &heads(1)).unwrap();
        let many: Heads = (0..400).map(|lane| (format!("gateway-{lane}"), Position::GENESIS)).collect();
        assert!(anchor.keep(&many).is_err());
        assert_eq!(Anchor::open(&path, Environment::Sandbox).unwrap().unwrap().heads().unwrap(), heads(1));
    }

    #[test]
    fn an_anchor_on_the_ledgers_own_volume_is_refused() {
        let home = TempDir::new().unwrap();
        let told = is_elsewhere(&home.path().join("anchor"), &home.path().join("ledger.sqlite")).unwrap_err();
        assert!(told.contains("put it on another"), "{told}");
        assert!(is_elsewhere(Path::new("/proc/anchor"), &home.path().join("ledger.sqlite")).is_ok());
        assert!(is_elsewhere(&home.path().join("none/anchor"), &home.path().join("ledger.sqlite")).is_err());
    }
}
