//! The ledger in one SQLite file, for a gateway that runs alone: the engine that writes, and the reader for all
//! who only look.
//!
//! Each batch is one transaction, durable when COMMIT returns (write-ahead log, `synchronous = FULL`). What an
//! operation comes to is for [`step`](super::step()) to say; queueing and retrying are the front's.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use rusqlite::{Connection, TransactionBehavior};
use uuid::Uuid;

use super::{
    Engine, EngineError, Holding, Kept, Lease, Op, OpenReads, Quarantined, Reads, Shipment, Waiting,
    batch::{self, Growing, Needs, Replies},
    chain::{Heads, Lane, Position, StoredRecord, end_of, regression},
    place::{Journal, Stretch},
    step::{Holds, Quote},
    stops::Stops,
};
use crate::{
    audit::Record,
    clock::UtcTime,
    domain::{Environment, Identity, Kid, Scope, SequenceNumber},
};
use checkpoint::Checkpoints;
use known::Known;
use schema::After;

mod checkpoint;
mod condition;
mod copy;
mod held;
#[cfg(test)]
mod joined;
mod journal;
mod known;
#[cfg(test)]
mod migrated;
mod rows;
mod schema;
mod shipment;
mod spool;

pub(super) use condition::condition;
pub use copy::{backup, check_whole, is_damaged, lock};
pub(super) use spool::note;

/// The one writer of a ledger's file.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    environment: Environment,
    /// Absent after an error that leaves the connection's state in doubt, together with what moves the log.
    connection: Option<Writing>,
    /// Where this gateway left the journal. The file must agree before anything is written.
    chain: Lane,
    /// Quotes that wait for their signature. A transaction takes it away, and gives it back once it is durable.
    known: Known,
    /// A batch whose COMMIT was begun: where the journal stands if it was applied, and its replies.
    undecided: Option<(Lane, Replies)>,
    /// Why nothing more may be written before this process has ended.
    lost: Option<String>,
    _lock: File,
}

/// What writes the file. The thread that moves the log ends first, so that the last connection closes the log.
#[derive(Debug)]
struct Writing {
    checkpoints: Checkpoints,
    connection: Connection,
}

impl Sqlite {
    /// Creates the file at `path` for `environment`, or brings an older one to this version.
    ///
    /// # Errors
    /// Where the file cannot be made, is in use, belongs to another environment, is newer, or is no ledger.
    pub fn migrate(path: &Path, environment: Environment) -> Result<(), EngineError> {
        let _lock = schema::lock(path)?;
        schema::migrate(path, environment)
    }

    /// Whether [`Sqlite::open`] would take the file; it may be in use.
    ///
    /// # Errors
    /// Where the file is absent, or of another environment or version.
    pub fn check(path: &Path, environment: Environment) -> Result<(), EngineError> {
        schema::check(path, environment)
    }

    /// Opens the file at `path` and holds it for this process.
    ///
    /// # Errors
    /// Where the file is absent, in use, of another environment or version, or not whole.
    pub fn open(path: &Path, environment: Environment) -> Result<Self, EngineError> {
        schema::present(path)?;
        let lock = schema::lock(path)?;
        let (writing, chain) = begin(path, environment, After::Start)?;
        let (path, connection, known) = (path.to_owned(), Some(writing), Known::default());
        Ok(Self { path, environment, connection, chain, known, undecided: None, lost: None, _lock: lock })
    }

    fn connection(&self) -> Result<&Connection, EngineError> {
        let writing = self.connection.as_ref().ok_or_else(|| closed(self.lost.as_deref()))?;
        Ok(&writing.connection)
    }

    /// Leaves the file as it is until this process ends. No connection is closed: the last one would fold the log, and remove it.
    fn lose(&mut self, why: &str) {
        std::mem::forget(self.connection.take());
        self.lost = Some(why.to_owned());
    }

    fn transact(&mut self, batch: &mut dyn Growing) -> Result<Replies, EngineError> {
        let Writing { checkpoints, connection } =
            self.connection.as_mut().ok_or_else(|| closed(self.lost.as_deref()))?;
        checkpoints.before_batch(connection)?;
        // No operation is to blame where a transaction cannot begin: the store is to be opened again.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(unknown)?;
        let mut known = std::mem::take(&mut self.known);
        self.undecided = Some(write(&transaction, self.chain, batch, &mut known)?);
        fail::fail_point!("ledger::before-commit");
        transaction.commit().map_err(unknown)?;
        fail::fail_point!("ledger::after-commit");
        checkpoints.after_batch(batch.ops().len());
        let (chain, replies) = self.undecided.take().ok_or_else(|| unknown("the replies are gone"))?;
        (self.chain, self.known) = (chain, known);
        Ok(replies)
    }
}

impl Reads for Sqlite {
    fn quote(&mut self, identity: &Identity) -> Result<Option<Quote>, EngineError> {
        rows::quote(self.connection()?, identity)
    }

    fn records_after(&mut self, id: Uuid, count: u32) -> Result<Vec<Record>, EngineError> {
        journal::records_after(self.connection()?, id, count)
    }

    fn stops(&mut self) -> Result<Stops, EngineError> {
        rows::stops(self.connection()?)
    }

    fn holds(&mut self) -> Result<Holds, EngineError> {
        rows::holds(self.connection()?)
    }

    fn kids(&mut self) -> Result<BTreeMap<Kid, Kept>, EngineError> {
        rows::kids(self.connection()?)
    }

    fn numbered(&mut self, scope: &Scope, sequence: SequenceNumber) -> Result<Option<Quote>, EngineError> {
        rows::numbered(self.connection()?, scope, sequence)
    }

    fn last_taken(&mut self, scope: &Scope) -> Result<Option<SequenceNumber>, EngineError> {
        rows::last_taken(self.connection()?, scope)
    }
}

impl Engine for Sqlite {
    fn renew(&mut self, holding: &Holding) -> Result<Vec<Lease>, EngineError> {
        // Whoever holds the file is alone.
        Ok(vec![Lease::own(holding.clone())])
    }

    fn ship(&mut self, shipment: &Shipment) -> Result<(), EngineError> {
        let Writing { connection, .. } = self.connection.as_mut().ok_or_else(|| closed(self.lost.as_deref()))?;
        let shipped = (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(unknown)?;
            shipment::put(&transaction, shipment)?;
            transaction.commit().map_err(unknown)
        })();
        if matches!(shipped, Err(EngineError::Unknown(_))) {
            self.connection = None;
        }
        shipped
    }

    fn take_readings(&mut self) -> Result<Vec<Waiting>, EngineError> {
        spool::take(&self.path)
    }

    fn drop_readings(&mut self, _: &[i64]) -> Result<(), EngineError> {
        spool::clear(&self.path)
    }

    fn reads(&self) -> OpenReads {
        let path = self.path.clone();
        Box::new(move || Ok(Box::new(Reader::open(&path)?)))
    }

    fn reads_are_durable(&self) -> bool {
        true
    }

    fn apply(&mut self, mut batch: &[Op]) -> Result<Replies, EngineError> {
        self.apply_growing(&mut batch)
    }

    fn apply_growing(&mut self, batch: &mut dyn Growing) -> Result<Replies, EngineError> {
        match self.transact(batch) {
            Err(EngineError::Unknown(why)) => {
                self.connection = None;
                Err(EngineError::Unknown(why))
            }
            Err(EngineError::Lost(why)) => {
                self.lose(&why);
                Err(EngineError::Lost(why))
            }
            // Rolled back; where even that failed, only closing ends the transaction.
            Err(error) if self.connection().is_ok_and(|connection| !connection.is_autocommit()) => {
                self.connection = None;
                Err(unknown(error))
            }
            decided => decided,
        }
    }

    fn reopen(&mut self) -> Result<Option<Replies>, EngineError> {
        if self.lost.is_some() {
            return Err(closed(self.lost.as_deref()));
        }
        (self.connection, self.known) = (None, Known::default());
        let begun = begin(&self.path, self.environment, After::Unknown);
        if let Err(EngineError::Lost(why)) = &begun {
            self.lose(why);
        }
        let (writing, chain) = begun?;
        let replies = match self.undecided.take_if(|(after, _)| after.position == chain.position) {
            Some((_, replies)) => Some(replies),
            None if self.chain.position == chain.position => None,
            None => return Err(moved()),
        };
        (self.connection, self.chain, self.undecided) = (Some(writing), chain, None);
        Ok(replies)
    }

    fn heads(&self) -> Heads {
        [(String::new(), self.chain.position)].into()
    }

    fn gone_back(&mut self, heads: &Heads) -> Result<Vec<String>, EngineError> {
        gone_back(self.connection()?, self.chain.position, heads)
    }

    fn expired(&mut self, now: UtcTime, count: usize) -> Result<Vec<Identity>, EngineError> {
        rows::expired(self.connection()?, now, count)
    }

    fn newest_records(&mut self) -> Result<Vec<Record>, EngineError> {
        journal::tail(self.connection()?, 1)?.iter().map(StoredRecord::record).collect()
    }

    fn newest_record_at(&mut self) -> Result<Option<UtcTime>, EngineError> {
        journal::newest_record_at(self.connection()?)
    }
}

/// Opens the file to write, and takes its journal over.
fn begin(path: &Path, environment: Environment, after: After) -> Result<(Writing, Lane), EngineError> {
    let mut connection = schema::open(path, environment, after)?;
    let chain = take_over(&mut connection)?;
    Ok((Writing { checkpoints: Checkpoints::start(path)?, connection }, chain))
}

fn gone_back(connection: &Connection, position: Position, heads: &Heads) -> Result<Vec<String>, EngineError> {
    let first = journal::first(connection)?;
    let mut found = Vec::new();
    for (lane, was) in heads {
        let link = journal::link_before(connection, was.next_index)?;
        found.extend(regression(lane, *was, position, first, link));
    }
    Ok(found)
}

/// Raises the epoch, so that whoever held the file before can write no more. Its commit also makes durable
/// whatever a process that was killed had written and not yet synchronised.
fn take_over(connection: &mut Connection) -> Result<Lane, EngineError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let Lane { epoch, position } = journal::chain(&transaction)?;
    if end_of(journal::tail(&transaction, 1)?.last()) != position {
        return Err(EngineError::Unfit("the journal does not end where the ledger's chain says".to_owned()));
    }
    let chain = Lane { epoch: epoch.saturating_add(1), position };
    journal::put_chain(&transaction, chain, None)?;
    transaction.commit()?;
    Ok(chain)
}

/// Writes all of a batch but the COMMIT, part by part as it grows, and says where the journal stands then.
fn write(
    transaction: &Connection,
    held: Lane,
    batch: &mut dyn Growing,
    known: &mut Known,
) -> Result<(Lane, Replies), EngineError> {
    if journal::chain(transaction)? != held {
        return Err(moved());
    }
    let (mut position, mut newest, mut replies, mut written) = (held.position, None, Replies::new(), 0);
    let mut standing = rows::standing(transaction)?;
    loop {
        let part = batch.ops().get(written..).unwrap_or_default();
        let mut changes = batch::run(rows::load(transaction, standing, &Needs::of(part), known)?, position, part)?;
        rows::put(transaction, &changes)?;
        journal::append(transaction, position, &changes)?;
        (position, newest) = (changes.position, newest.max(changes.newest()));
        replies.extend(changes.replies);
        known.put(std::mem::take(&mut changes.after.quotes));
        standing = changes.after.standing();
        written = batch.ops().len();
        if !batch.grow() {
            break;
        }
    }
    let chain = Lane { position, ..held };
    if chain != held {
        journal::put_chain(transaction, chain, newest)?;
    }
    Ok((chain, replies))
}

fn unknown(why: impl std::fmt::Display) -> EngineError {
    EngineError::Unknown(why.to_string())
}

fn closed(lost: Option<&str>) -> EngineError {
    lost.map_or_else(|| unknown("the ledger is closed"), |why| EngineError::Lost(why.to_owned()))
}

fn moved() -> EngineError {
    EngineError::Unfit("the journal is not where this gateway left it".to_owned())
}

/// Reads a ledger's file on a connection of its own: needs no lock, changes nothing, and waits for no writer.
#[derive(Debug)]
pub struct Reader(Mutex<Connection>);

impl Reader {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// Where it is absent, of another version, or cannot be read.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        schema::open_to_read(path).map(Mutex::new).map(Self)
    }

    /// The record of this id.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn record(&self, id: &Uuid) -> Result<Option<StoredRecord>, EngineError> {
        journal::record(&self.0.lock(), *id)
    }

    /// At most `count` records, from the index `from` on.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn records(&self, from: u64, count: u32) -> Result<Vec<StoredRecord>, EngineError> {
        journal::records(&self.0.lock(), from, count)
    }

    /// The newest `count` records, oldest first.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn tail(&self, count: u32) -> Result<Vec<StoredRecord>, EngineError> {
        journal::tail(&self.0.lock(), count)
    }

    /// Where the journal stands: what a verifier's head must equal, or the newest records are missing.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn head(&self) -> Result<Position, EngineError> {
        journal::chain(&self.0.lock()).map(|chain| chain.position)
    }

    /// The quote of this identity.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn quote(&self, identity: &Identity) -> Result<Option<Quote>, EngineError> {
        rows::quote(&self.0.lock(), identity)
    }

    /// The last number taken in `scope`; absent where it was never seeded.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn last_taken(&self, scope: &Scope) -> Result<Option<SequenceNumber>, EngineError> {
        rows::last_taken(&self.0.lock(), scope)
    }
}

impl Reads for Reader {
    fn quote(&mut self, identity: &Identity) -> Result<Option<Quote>, EngineError> {
        rows::quote(self.0.get_mut(), identity)
    }

    fn records_after(&mut self, id: Uuid, count: u32) -> Result<Vec<Record>, EngineError> {
        journal::records_after(self.0.get_mut(), id, count)
    }

    fn stops(&mut self) -> Result<Stops, EngineError> {
        rows::stops(self.0.get_mut())
    }

    fn holds(&mut self) -> Result<Holds, EngineError> {
        rows::holds(self.0.get_mut())
    }

    fn kids(&mut self) -> Result<BTreeMap<Kid, Kept>, EngineError> {
        rows::kids(self.0.get_mut())
    }

    fn numbered(&mut self, scope: &Scope, sequence: SequenceNumber) -> Result<Option<Quote>, EngineError> {
        rows::numbered(self.0.get_mut(), scope, sequence)
    }

    fn last_taken(&mut self, scope: &Scope) -> Result<Option<SequenceNumber>, EngineError> {
        rows::last_taken(self.0.get_mut(), scope)
    }
}

impl Journal for Reader {
    fn lanes(&self) -> Result<Vec<Stretch>, EngineError> {
        let connection = self.0.lock();
        let (first, head) = (journal::first(&connection)?, journal::chain(&connection)?.position);
        Ok(vec![Stretch { lane: String::new(), first, head }])
    }

    fn records(&self, _: &str, from: u64, count: u32) -> Result<Vec<StoredRecord>, EngineError> {
        self.records(from, count)
    }

    fn scan(
        &self,
        _: &str,
        from: u64,
        count: u32,
        take: &mut dyn FnMut(StoredRecord) -> bool,
    ) -> Result<(), EngineError> {
        journal::scan(&self.0.lock(), from, count, take)
    }

    fn tail(&self, count: u32) -> Result<Vec<StoredRecord>, EngineError> {
        self.tail(count)
    }

    fn scopes(&self) -> Result<Vec<(Scope, SequenceNumber)>, EngineError> {
        rows::scopes(&self.0.lock())
    }

    fn links(&self, _: &str, from: u64, count: u32) -> Result<Vec<Position>, EngineError> {
        journal::links(&self.0.lock(), from, count)
    }

    fn checkpoints(&self, size: u64, count: u32) -> Result<Vec<(u64, String)>, EngineError> {
        journal::checkpoints(&self.0.lock(), size, count)
    }

    fn newest_checkpoint(&self) -> Result<Option<(u64, String)>, EngineError> {
        journal::newest_checkpoint(&self.0.lock())
    }

    fn shipped(&self) -> Result<BTreeMap<String, u64>, EngineError> {
        shipment::shipped(&self.0.lock())
    }

    fn quarantined(&self) -> Result<Vec<Quarantined>, EngineError> {
        shipment::quarantined(&self.0.lock())
    }

    fn record(&self, id: &Uuid) -> Result<Option<StoredRecord>, EngineError> {
        self.record(id)
    }

    fn gone_back(&self, heads: &Heads) -> Result<Vec<String>, EngineError> {
        let connection = self.0.lock();
        let position = journal::chain(&connection)?.position;
        gone_back(&connection, position, heads)
    }

    fn holds(&self) -> Result<Holds, EngineError> {
        rows::holds(&self.0.lock())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

    use tempfile::TempDir;

    use super::{
        super::{
            Allowance, Charge, Done, Prune, Refusal, Reserve, Reserved, Seed,
            chain::{self, Break, Summary},
            encoding::key_of,
            step::tests::{at, commit, context, identity, pending, publish, reserve, scope, seed, stop, void},
        },
        *,
    };
    use crate::audit::{Event, Facts, Record};

    pub(super) const HERE: Environment = Environment::Sandbox;

    /// A ledger in a directory of its own, closed and opened again at will.
    pub(super) struct Home(TempDir);

    impl Home {
        pub(super) fn new() -> Self {
            let home = Self(TempDir::new().unwrap());
            Sqlite::migrate(&home.path(), HERE).unwrap();
            home
        }

        pub(super) fn path(&self) -> PathBuf {
            self.0.path().join("ledger.sqlite")
        }

        pub(super) fn open(&self) -> Sqlite {
            Sqlite::open(&self.path(), HERE).unwrap()
        }

        pub(super) fn seeded(&self) -> Sqlite {
            let mut ledger = self.open();
            ledger.one(Op::Seed(seed(0))).unwrap();
            ledger
        }

        pub(super) fn refusal(&self) -> String {
            Sqlite::open(&self.path(), HERE).unwrap_err().to_string()
        }

        /// An operator with a shell.
        pub(super) fn shell(&self, sql: &str) {
            Connection::open(self.path()).unwrap().execute_batch(sql).unwrap();
        }

        fn verified(&self) -> Result<Summary, Break> {
            let reader = Reader::open(&self.path()).unwrap();
            chain::verify(Position::GENESIS, reader.records(0, u32::MAX).unwrap())
        }
    }

    impl Sqlite {
        pub(super) fn one(&mut self, op: Op) -> Result<Done, Refusal> {
            self.apply(&[op]).unwrap().pop().unwrap()
        }
    }

    fn other_payload(op: Reserve) -> Reserve {
        Reserve { payload: crate::domain::PayloadDigest([9; 32]), ..op }
    }

    #[test]
    fn what_was_told_is_told_again_after_reopening() {
        let home = Home::new();
        let mut ledger = home.seeded();
        let held = pending(ledger.one(Op::Reserve(reserve("q1", 5))).unwrap());
        let Ok(Done::Committed { released: first, first: true }) =
            ledger.one(Op::Commit(commit(&held, "e30.e30.first")))
        else {
            panic!()
        };
        let waiting = ledger.one(Op::Reserve(reserve("q2", 6))).unwrap();
        drop(ledger);

        let mut ledger = home.open();
        let replay = Ok(Done::Reserved(Reserved::Replay(first.clone())));
        assert_eq!(ledger.one(Op::Reserve(reserve("q1", 5))), replay);
        assert_eq!(
            ledger.one(Op::Commit(commit(&held, "e30.e30.second"))),
            Ok(Done::Committed { released: first, first: false })
        );
        assert_eq!(ledger.one(Op::Reserve(reserve("q2", 6))), Ok(waiting));
        let conflict = ledger.one(Op::Reserve(other_payload(reserve("q1", 7))));
        assert!(matches!(conflict, Err(Refusal::Conflict { .. })));
        let repeated = ledger.one(Op::Reserve(reserve("q3", 6)));
        assert!(matches!(repeated, Err(Refusal::NotMonotonic { .. })));
        assert_eq!(ledger.last_taken(&scope("GB-IN")).unwrap().map(SequenceNumber::get), Some(6));
        assert_eq!(ledger.last_taken(&scope("GB-US")).unwrap(), None);
        assert_eq!(ledger.newest_record_at().unwrap(), Some(at(1)), "the greatest time, not the last");
    }

    #[test]
    fn quotas_survive_reopening() {
        let home = Home::new();
        let charges = vec![Charge {
            quota: "q".to_owned(),
            allowance: Allowance::Rate { interval: Duration::from_secs(10), burst: 2 },
        }];
        let charged = |quote, number| Op::Reserve(Reserve { charges: charges.clone(), ..reserve(quote, number) });
        let mut ledger = home.seeded();
        assert!(ledger.one(charged("q1", 1)).is_ok());
        assert!(ledger.one(charged("q2", 2)).is_ok());
        drop(ledger);
        let mut ledger = home.open();
        let retry_after = Duration::from_secs(10);
        assert_eq!(ledger.one(charged("q3", 3)), Err(Refusal::QuotaSpent { quota: "q".to_owned(), retry_after }));
        assert!(ledger.one(charged("q2", 2)).is_ok(), "a retry is free");
        assert_eq!(ledger.last_taken(&scope("GB-IN")).unwrap().map(SequenceNumber::get), Some(2));
    }

    #[test]
    fn a_batch_answers_in_its_order_and_refuses_alone() {
        let home = Home::new();
        let mut ledger = home.seeded();
        let batch = [
            Op::Reserve(reserve("q3", 3)),
            Op::Reserve(reserve("q1", 1)),
            Op::Void(void("q9", 0)),
            Op::Reserve(reserve("q2", 2)),
        ];
        let replies = ledger.apply(&batch).unwrap();
        assert_eq!(replies[2], Err(Refusal::NotReserved));
        for (place, number) in [(0, 3), (1, 1), (3, 2)] {
            assert_eq!(pending(replies[place].clone().unwrap()).sequence().get(), number);
        }
        let summary = home.verified().unwrap();
        assert_eq!((summary.records, summary.links), (4, 2));
        assert_eq!(Reader::open(&home.path()).unwrap().head().unwrap(), summary.head);
    }

    #[test]
    fn what_expires_unsigned_is_found_and_voided() {
        let home = Home::new();
        let mut ledger = home.seeded();
        for number in 1..4 {
            ledger.one(Op::Reserve(reserve(&format!("q{number}"), number))).unwrap();
        }
        assert_eq!(ledger.expired(at(59_999), 9).unwrap(), []);
        assert_eq!(ledger.expired(at(60_000), 2).unwrap().len(), 2);
        assert_eq!(ledger.one(Op::Void(void("q2", 60_000))), Ok(Done::Voided));
        assert_eq!(ledger.expired(at(60_000), 9).unwrap(), [identity("q1"), identity("q3")]);
    }

    #[test]
    fn readers_see_what_was_committed_while_the_writer_is_open_and_after() {
        let home = Home::new();
        let mut ledger = home.seeded();
        let held = pending(ledger.one(Op::Reserve(reserve("q1", 1))).unwrap());
        let Ok(Done::Committed { released, .. }) = ledger.one(Op::Commit(commit(&held, "e30.e30.x"))) else { panic!() };
        let check = || {
            let reader = Reader::open(&home.path()).unwrap();
            let quote = reader.quote(&identity("q1")).unwrap().unwrap();
            assert_eq!(quote.released().as_ref(), Some(&released));
            let stored = reader.record(&released.record).unwrap().unwrap();
            let record: Record = serde_json::from_slice(&stored.bytes).unwrap();
            assert_eq!((record.id, record.event), (released.record, Event::Committed));
            assert_eq!(reader.tail(2).unwrap(), reader.records(1, 5).unwrap());
            assert_eq!(reader.last_taken(&scope("GB-IN")).unwrap().map(SequenceNumber::get), Some(1));
            assert_eq!(reader.record(&Uuid::nil()).unwrap(), None);
        };
        check();
        drop(ledger);
        check();
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused_in_a_line() {
        let home = Home::new();
        let other = Sqlite::open(&home.path(), Environment::Production).unwrap_err().to_string();
        assert!(other.contains("belongs to the environment `sandbox`, not to `production`"), "{other}");
        assert!(Sqlite::migrate(&home.path(), Environment::Production).is_err());
        Sqlite::migrate(&home.path(), HERE).unwrap();

        let held = home.open();
        assert!(home.refusal().ends_with("is in use by another process"));
        assert!(Sqlite::migrate(&home.path(), HERE).is_err());
        drop(held);

        home.shell("UPDATE meta SET version = version + 1");
        assert!(home.refusal().ends_with("has a newer schema than this gateway knows"));
        assert!(Sqlite::migrate(&home.path(), HERE).is_err());
        home.shell("UPDATE meta SET version = 0");
        assert!(home.refusal().ends_with("run `quotesign ledger migrate`"));
        home.shell("DROP TABLE meta");
        assert!(Sqlite::migrate(&home.path(), HERE).unwrap_err().to_string().ends_with("is not a ledger"));

        fs::remove_file(home.path()).unwrap();
        let refusal = home.refusal();
        assert!(
            refusal.contains("does not exist: run `quotesign ledger migrate`, or, where it was lost,"),
            "{refusal}"
        );
        fs::write(home.path(), "").unwrap();
        assert!(home.refusal().ends_with("was never migrated: run `quotesign ledger migrate`"));
        fs::write(home.path(), "x".repeat(4096)).unwrap();
        assert!(home.refusal().starts_with("the ledger's file is damaged"));
    }

    #[test]
    fn what_was_stopped_and_which_key_a_kid_was_survives_reopening() {
        let home = Home::new();
        let mut ledger = home.seeded();
        ledger.one(Op::Publish(publish("quote-signing-a", "{}"))).unwrap();
        let held = pending(ledger.one(Op::Reserve(reserve("q1", 1))).unwrap());
        ledger.one(Op::Commit(commit(&held, "e30.e30.x"))).unwrap();
        for (what, stands) in [("halted/all", true), ("halted/all", false), ("revoked/quote-signing-a", true)] {
            ledger.one(Op::Stop(stop(what, stands))).unwrap();
        }
        drop(ledger);
        let mut ledger = home.open();
        assert_eq!(ledger.stops().unwrap(), ["revoked/quote-signing-a".parse().unwrap()].into_iter().collect());
        let kid: Kid = "quote-signing-a".parse().unwrap();
        assert_eq!(ledger.one(Op::Reserve(reserve("q1", 1))), Err(Refusal::KidRevoked { kid: kid.clone() }));
        let reused = ledger.one(Op::Publish(publish("quote-signing-a", "{2}")));
        assert_eq!(reused, Err(Refusal::KidReused { kid: kid.clone() }));
        let batch = [Op::Publish(publish("quote-signing-a", "{}"))];
        let db = ledger.connection().unwrap();
        let loaded = rows::load(db, rows::standing(db).unwrap(), &Needs::of(&batch), &mut Known::default()).unwrap();
        let last = loaded.kids[&kid].last_expiry.unwrap();
        assert!(last >= at(60_000) && last < at(120_000));
    }

    #[test]
    fn no_number_is_ever_two_quotes_whatever_writes() {
        let home = Home::new();
        let mut ledger = home.seeded();
        ledger.one(Op::Reserve(reserve("q1", 5))).unwrap();
        home.shell("UPDATE scope SET last = 0");
        assert!(matches!(ledger.apply(&[Op::Reserve(reserve("q2", 5))]), Err(EngineError::RolledBack(_))));
    }

    #[test]
    fn a_quote_is_found_by_its_identity_and_never_by_a_digest_that_is_anothers() {
        let home = Home::new();
        let mut ledger = home.seeded();
        let held = pending(ledger.one(Op::Reserve(reserve("q1", 1))).unwrap());
        let rows = ledger.connection().unwrap().execute("UPDATE quote SET key = ?1", [key_of(identity("q2").as_str())]);
        assert_eq!(rows.unwrap(), 1);
        for quote in ["q1", "q2"] {
            assert_eq!(ledger.quote(&identity(quote)).unwrap(), None);
        }
        assert!(matches!(ledger.apply(&[Op::Reserve(reserve("q2", 2))]), Err(EngineError::RolledBack(_))));
        assert_eq!(ledger.last_taken(&scope("GB-IN")).unwrap(), Some(held.sequence()));
        let damaged = check_whole(&home.path(), HERE).unwrap_err().to_string();
        assert!(damaged.ends_with("is damaged: a quote does not stand where it is looked for"), "{damaged}");
    }

    #[test]
    fn only_the_quote_that_was_chosen_is_forgotten() {
        let home = Home::new();
        let mut ledger = home.seeded();
        for (quote, number) in [("q1", 1), ("q2", 2)] {
            ledger.one(Op::Reserve(reserve(quote, number))).unwrap();
            ledger.one(Op::Void(void(quote, 600_000))).unwrap();
        }
        let prune = || Op::Prune(Prune { before: at(700_000), count_max: 1, context: context(), now: at(900_000) });
        // One stands under the key of the other, and that one in no index.
        let [first, second] = ["q1", "q2"].map(|quote| key_of(identity(quote).as_str()));
        let shell = Connection::open(home.path()).unwrap();
        let put = |key: [u8; 16], before: [u8; 16]| {
            shell.execute("UPDATE quote SET key = ?1 WHERE key = ?2", [key, before]).unwrap()
        };
        assert_eq!((put([0; 16], second), put(second, first)), (1, 1));
        assert!(matches!(ledger.apply(&[prune()]), Err(EngineError::Unfit(_))));
        assert_eq!((put(first, second), put(second, [0; 16])), (1, 1));
        ledger.apply(&[prune(), prune()]).unwrap();
        let left: i64 = shell.query_row("SELECT count(*) FROM quote", (), |row| row.get(0)).unwrap();
        assert_eq!(left, 1);
    }

    #[test]
    fn only_the_owner_may_read_what_it_writes() {
        let home = Home::new();
        let _ledger = home.seeded();
        let files: Vec<_> = fs::read_dir(home.0.path()).unwrap().map(Result::unwrap).collect();
        assert!(files.len() >= 4, "{files:?}");
        for file in files {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
        }
    }

    #[test]
    fn tampering_with_the_journal_is_found() {
        let tampered = |sql: &str| {
            let home = Home::new();
            let mut ledger = home.seeded();
            let batch: Vec<_> = (1..4).map(|n| Op::Reserve(reserve(&format!("q{n}"), n))).collect();
            ledger.apply(&batch).unwrap();
            drop(ledger);
            home.shell(sql);
            (home.verified(), Sqlite::open(&home.path(), HERE).is_ok())
        };
        assert!(tampered("").0.is_ok());
        let flip = "UPDATE audit SET record = CAST(replace(CAST(record AS TEXT), 'q', 'p') AS BLOB) WHERE idx = 2";
        assert_eq!(tampered(flip).0, Err(Break::Leaf { index: 2 }));
        assert_eq!(tampered("DELETE FROM audit WHERE idx = 1").0, Err(Break::Gap { expected: 1, found: 2 }));
        let swap = "UPDATE audit SET idx = 9 WHERE idx = 1; UPDATE audit SET idx = 1 WHERE idx = 2;
                    UPDATE audit SET idx = 2 WHERE idx = 9";
        assert_eq!(tampered(swap).0, Err(Break::Link { first: 1, index: 3 }));
        // A missing end is whole in itself; what gives it away is the head kept elsewhere.
        let (verified, opens) = tampered("DELETE FROM audit WHERE idx > 0");
        assert_eq!((verified.unwrap().records, opens), (1, false));
    }

    #[test]
    fn stored_values_that_cannot_be_are_unfit_and_never_a_panic() {
        for sql in [
            "UPDATE quote SET scope = '[\"sandbox\", \"acme-remit\"]'",
            "UPDATE quote SET sequence = -1",
            "UPDATE quote SET kid = 'key'",
            "UPDATE quote SET generation = 4294967296",
            "PRAGMA ignore_check_constraints = 1; UPDATE quote SET input = x'00'",
            "PRAGMA ignore_check_constraints = 1; UPDATE quote SET state = 7",
            "PRAGMA ignore_check_constraints = 1; UPDATE quote SET state = 2",
            "UPDATE quote SET state = 2, release_idx = 1, record_id = x'00'",
            "DELETE FROM chain",
            "UPDATE chain SET epoch = epoch + 1",
            "UPDATE chain SET next_idx = -1",
        ] {
            let home = Home::new();
            let mut ledger = home.seeded();
            ledger.one(Op::Reserve(reserve("q1", 1))).unwrap();
            home.shell(sql);
            // What the gateway wrote itself it knows.
            ledger.known = Known::default();
            let applied = ledger.apply(&[Op::Reserve(reserve("q1", 1))]);
            assert!(matches!(applied, Err(EngineError::Unfit(_))), "{sql}: {applied:?}");
        }
    }

    #[test]
    fn a_batch_that_the_store_refuses_leaves_no_trace() {
        let home = Home::new();
        let mut ledger = home.seeded();
        let record = Record::new(Event::Refused, at(0), context(), Facts::default());
        ledger.one(Op::Reserve(reserve("q1", 1))).unwrap();
        home.shell("UPDATE scope SET last = 0");
        let batch = [Op::Record(record.clone()), Op::Reserve(reserve("q2", 1)), Op::Reserve(reserve("q3", 2))];
        assert!(matches!(ledger.apply(&batch), Err(EngineError::RolledBack(_))));
        assert_eq!(ledger.last_taken(&scope("GB-IN")).unwrap(), Some(SequenceNumber::ZERO));
        for _ in 0..2 {
            assert_eq!(ledger.one(Op::Record(record.clone())), Ok(Done::Recorded));
        }
        let twice = [Op::Record(record.clone()), Op::Record(record)];
        assert_eq!(ledger.apply(&twice).unwrap(), [Ok(Done::Recorded), Ok(Done::Recorded)]);
        assert_eq!(home.verified().unwrap().records, 3);
    }

    #[test]
    fn a_store_that_cannot_begin_is_opened_again() {
        let home = Home::new();
        let mut ledger = home.seeded();
        ledger.connection().unwrap().busy_timeout(Duration::ZERO).unwrap();
        let shell = Connection::open(home.path()).unwrap();
        shell.execute_batch("BEGIN IMMEDIATE").unwrap();
        let op = [Op::Reserve(reserve("q1", 1))];
        assert!(matches!(ledger.apply(&op), Err(EngineError::Unknown(_))));
        assert!(matches!(ledger.apply(&op), Err(EngineError::Unknown(_))));
        drop(shell);
        assert_eq!(ledger.reopen().unwrap(), None);
        assert!(ledger.apply(&op).is_ok());
    }

    #[test]
    fn reopening_says_what_became_of_a_batch() {
        let home = Home::new();
        let mut ledger = home.seeded();
        let before = ledger.chain;
        let raise = Op::Seed(Seed { floor: 5_u64.try_into().unwrap(), ..seed(0) });
        let replies = ledger.apply(&[raise]).unwrap();
        ledger.one(Op::Reserve(reserve("q0", 6))).unwrap();
        let after = ledger.chain;
        assert!(ledger.known.holds(&identity("q0")));
        (ledger.chain, ledger.undecided) = (before, Some((after, replies.clone())));
        assert_eq!(ledger.reopen().unwrap(), Some(replies.clone()));
        assert!(ledger.chain.epoch > after.epoch && ledger.chain.position == after.position);
        assert!(!ledger.known.holds(&identity("q0")), "what is known was of before");

        let never = Lane { position: Position { next_index: 9, ..after.position }, ..after };
        ledger.undecided = Some((never, replies));
        assert_eq!(ledger.reopen().unwrap(), None);
        assert!(ledger.one(Op::Reserve(reserve("q1", 7))).is_ok());

        ledger.chain = never;
        assert!(matches!(ledger.reopen(), Err(EngineError::Unfit(_))));
        assert!(matches!(ledger.expired(at(0), 1), Err(EngineError::Unknown(_))));
    }
}
