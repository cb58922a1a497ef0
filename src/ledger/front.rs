//! The ledger's front: a bounded queue before one writer thread, which commits whatever waits together (group
//! commit, no timer).
//!
//! What only reads has a thread and a connection of its own. The queue bounds and batches, the writer retries and reopens: once, for all engines. What an operation comes to
//! is for [`step`](super::step()) to say, and making it durable is the engine's.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    thread::{self, JoinHandle},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    CheckpointAct, Commit, Done, Engine, EngineError, HoldAct, Holding, Kept, Lease, LedgerError, Note, Op, Propose,
    Prune, PruneJournal, Publish, Reads, Released, Reservation, Reserve, Reserved, Seed, Shipment, StopAct, Void,
    step::{Holds, Quote},
    stops::Stops,
};
use crate::{
    audit::{Context, Record},
    clock::UtcTime,
    domain::{Caller, Environment, Identity, Kid, PartnerId, QuoteId, Scope, SequenceNumber},
};

mod desk;
mod openings;
mod queue;
mod readings;
mod recall;
mod writer;

use desk::Desk;
pub use openings::Opening;
use openings::Openings;
pub use queue::Load;
use queue::{Job, Outcome, Queue};
pub use recall::Recalled;
use writer::Writer;

/// How many reservations one sweep voids, so that calls need not wait behind it.
pub const SWEEP_MAX: usize = 64;

/// The bounds of the front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerConfig {
    /// How many operations may wait; as many journalled records may wait besides.
    pub queue_max: usize,
    /// How many operations are committed together at most; a quarter as many journalled records join them.
    pub batch_max: usize,
}

/// A handle on the ledger. Clones share one writer, which ends with the last of them or by [`Ledger::close`].
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    queue: Arc<Queue>,
    desk: Desk,
    openings: Openings,
    /// Whether what is read beside the writer is as durable as what the writer says.
    reads_are_durable: bool,
    /// The last number that this gateway has seen taken in each scope.
    passed: Mutex<HashMap<Scope, SequenceNumber>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.desk.close();
        self.queue.close();
    }
}

impl Ledger {
    /// Starts the writer over `engine`, which is open.
    #[must_use]
    pub fn start(engine: Box<dyn Engine>, config: LedgerConfig) -> Self {
        let (queue, openings) = (Arc::new(Queue::new(config)), Openings::default());
        let reads_are_durable = engine.reads_are_durable();
        let (desk, reader) = Desk::start(engine.reads(), openings.clone(), config.queue_max);
        let writer = Writer::new(engine, Arc::clone(&queue), openings.clone(), reader);
        // A thread that cannot start drops the writer, which closes the queue: every call is then refused.
        let writer = thread::Builder::new().name("ledger-writer".to_owned()).spawn(move || writer.run());
        let (passed, writer) = (Mutex::default(), Mutex::new(writer.ok()));
        Self(Arc::new(Handle { queue, desk, openings, reads_are_durable, passed, writer }))
    }

    /// Binds a number and a key to a payload; ends once that is durable. It has its place among all operations by the time
    /// this returns: what is asked for later is done later.
    ///
    /// # Errors
    /// Where it is refused, or cannot be made durable.
    pub fn reserve(&self, op: Reserve) -> impl Future<Output = Result<Reserved, LedgerError>> + Send + use<> {
        let (scope, begun, ledger) = (op.scope.clone(), self.begin(Op::Reserve(op)), self.clone());
        async move {
            match answered(begun?).await? {
                Done::Reserved(reserved) => {
                    let (Reserved::Pending(Reservation { sequence, .. }) | Reserved::Replay(Released { sequence, .. })) =
                        &reserved;
                    let mut passed = ledger.0.passed.lock();
                    let last = passed.entry(scope).or_insert(*sequence);
                    *last = (*last).max(*sequence);
                    Ok(reserved)
                }
                _ => Err(misplaced()),
            }
        }
    }

    /// Whether this gateway has seen this number taken in `scope`, or a greater one: a quote that carries it is no new one.
    #[must_use]
    pub fn has_passed(&self, scope: &Scope, sequence: SequenceNumber) -> bool {
        self.0.passed.lock().get(scope).is_some_and(|last| sequence <= *last)
    }

    /// Stores a verified JWS; returns what may be released once that is durable, and whether it is this very one.
    ///
    /// # Errors
    /// Where it is refused, or cannot be made durable.
    pub async fn commit(&self, op: Commit) -> Result<(Released, bool), LedgerError> {
        match self.ask(Op::Commit(op)).await? {
            Done::Committed { released, first } => Ok((released, first)),
            _ => Err(misplaced()),
        }
    }

    /// Creates a scope or raises its floor; returns the floor before, and the record of the act.
    ///
    /// # Errors
    /// Where it is refused, or cannot be made durable.
    pub async fn seed(&self, op: Seed) -> Result<(Option<SequenceNumber>, Uuid), LedgerError> {
        match self.ask(Op::Seed(op)).await? {
            Done::Seeded(before, record) => Ok((before, record)),
            _ => Err(misplaced()),
        }
    }

    /// Stops signing or resumes it; returns the record of the act once it is durable: from then on nothing is
    /// reserved or committed that it forbids.
    ///
    /// # Errors
    /// Where it is refused, or cannot be made durable.
    pub async fn stop(&self, op: StopAct) -> Result<Uuid, LedgerError> {
        match self.ask(Op::Stop(op)).await? {
            Done::Stopped(record) => Ok(record),
            _ => Err(misplaced()),
        }
    }

    /// Makes a kid known; returns once that is durable. The same key again changes nothing.
    ///
    /// # Errors
    /// Where the kid was another key, or it cannot be made durable.
    pub async fn publish(&self, op: Publish) -> Result<(), LedgerError> {
        match self.ask(Op::Publish(op)).await? {
            Done::Published => Ok(()),
            _ => Err(misplaced()),
        }
    }

    /// Notes what has become of a kid; returns the record once that is durable, nothing where it was no news.
    ///
    /// # Errors
    /// Where no bundle has made the kid known, or it cannot be made durable.
    pub async fn note(&self, op: Note) -> Result<Option<Uuid>, LedgerError> {
        match self.ask(Op::Note(op)).await? {
            Done::Noted(record) => Ok(record),
            _ => Err(misplaced()),
        }
    }

    /// Asks for an act that needs two; returns who had asked for it before, where this is the second, and the record.
    ///
    /// # Errors
    /// Where it cannot be made durable.
    pub async fn propose(&self, op: Propose) -> Result<(Option<Caller>, Uuid), LedgerError> {
        match self.ask(Op::Propose(op)).await? {
            Done::Proposed(first, record) => Ok((first, record)),
            _ => Err(misplaced()),
        }
    }

    /// Forgets some of what expired long ago; returns how many quotes, once that is durable.
    ///
    /// # Errors
    /// Where it cannot be made durable.
    pub async fn prune(&self, op: Prune) -> Result<usize, LedgerError> {
        match self.ask(Op::Prune(op)).await? {
            Done::Pruned(count) => Ok(count),
            _ => Err(misplaced()),
        }
    }

    /// Forgets the oldest records of a lane; returns how many, once that is durable.
    ///
    /// # Errors
    /// Where it cannot be made durable.
    pub async fn prune_journal(&self, op: PruneJournal) -> Result<u64, LedgerError> {
        match self.ask(Op::PruneJournal(op)).await? {
            Done::PrunedJournal(count) => Ok(count),
            _ => Err(misplaced()),
        }
    }

    /// Keeps the ledger from pruning or lets it prune again; returns the record of the act once it is durable.
    ///
    /// # Errors
    /// Where it is refused, or cannot be made durable.
    pub async fn hold(&self, op: HoldAct) -> Result<Uuid, LedgerError> {
        match self.ask(Op::Hold(op)).await? {
            Done::Held(record) => Ok(record),
            _ => Err(misplaced()),
        }
    }

    /// Stores a signed checkpoint of the journal; returns the record once that is durable, nothing where another was first.
    ///
    /// # Errors
    /// Where it cannot be made durable.
    pub async fn checkpoint(&self, op: CheckpointAct) -> Result<Option<Uuid>, LedgerError> {
        match self.ask(Op::Checkpoint(op)).await? {
            Done::Checkpointed(record) => Ok(record),
            _ => Err(misplaced()),
        }
    }

    /// Journals a record; returns once it is durable. The same record again is journalled once.
    ///
    /// # Errors
    /// Where it cannot be made durable.
    pub async fn record(&self, record: Record) -> Result<(), LedgerError> {
        match self.ask(Op::Record(record)).await? {
            Done::Recorded => Ok(()),
            _ => Err(misplaced()),
        }
    }

    /// Journals a record with the next batch and does not wait for it. Where its share of the queue is full, or
    /// the batch fails, it is dropped and counted.
    pub fn journal(&self, record: Record) {
        self.0.queue.journal(record);
    }

    /// The quote of this identity, as the ledger has it.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn quote(&self, identity: Identity) -> Result<Option<Quote>, LedgerError> {
        self.look(move |reads| reads.quote(&identity)).await
    }

    /// At most `count` records whose ids are greater than `id`, by their ids, which rise with time.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn records_after(&self, id: Uuid, count: u32) -> Result<Vec<Record>, LedgerError> {
        self.look(move |reads| reads.records_after(id, count)).await
    }

    /// What may not be signed now.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn stops(&self) -> Result<Stops, LedgerError> {
        self.look(|reads| reads.stops()).await
    }

    /// What keeps the ledger from pruning.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn holds(&self) -> Result<Holds, LedgerError> {
        self.look(|reads| reads.holds()).await
    }

    /// All that is remembered of kids.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn kids(&self) -> Result<BTreeMap<Kid, Kept>, LedgerError> {
        self.look(|reads| reads.kids()).await
    }

    /// Renews this gateway's lease, and says which gateways of this ledger there are.
    ///
    /// # Errors
    /// Where the store cannot be reached.
    pub async fn renew(&self, holding: Holding) -> Result<Vec<Lease>, LedgerError> {
        self.read(move |engine| engine.renew(&holding)).await
    }

    /// Takes down how far a lane of the journal was shipped, durably.
    ///
    /// # Errors
    /// Where it cannot be made durable; it may have been all the same.
    pub async fn ship(&self, shipment: Shipment) -> Result<(), LedgerError> {
        self.read(move |engine| engine.ship(&shipment)).await
    }

    /// The quote that holds this number of `scope`.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn numbered(&self, scope: Scope, sequence: SequenceNumber) -> Result<Option<Quote>, LedgerError> {
        self.look(move |reads| reads.numbered(&scope, sequence)).await
    }

    /// The last number taken in `scope`; absent where it was never seeded.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn last_taken(&self, scope: Scope) -> Result<Option<SequenceNumber>, LedgerError> {
        self.look(move |reads| reads.last_taken(&scope)).await
    }

    /// The newest record of each lane that has any.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn newest_records(&self) -> Result<Vec<Record>, LedgerError> {
        self.read(Engine::newest_records).await
    }

    /// The greatest time of any record that was made while the clock was trusted; absent where there is none.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn newest_record_at(&self) -> Result<Option<UtcTime>, LedgerError> {
        self.read(Engine::newest_record_at).await
    }

    /// Voids at most [`SWEEP_MAX`] of what expired unsigned, and says how many. `context` is completed with each quote's partner
    /// and id.
    ///
    /// # Errors
    /// Where the store cannot be read, or not all of them can be made durable.
    pub async fn sweep(&self, context: Context, now: UtcTime) -> Result<usize, LedgerError> {
        let expired = self.read(move |engine| engine.expired(now, SWEEP_MAX)).await?;
        let voids = expired.into_iter().map(|identity| {
            let mut context = context.clone();
            if let Ok((_, partner, quote)) =
                serde_json::from_str::<(Environment, PartnerId, QuoteId)>(identity.as_str())
            {
                (context.partner, context.quote_id) = (Some(partner), Some(quote));
            }
            self.begin(Op::Void(Void { identity, context, now }))
        });
        let mut voided = 0;
        for answer in voids.collect::<Result<Vec<_>, _>>()? {
            match answered(answer).await {
                Ok(_) => voided += 1,
                // Signed or voided by another call meanwhile.
                Err(LedgerError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(voided)
    }

    /// What a connection that is opened now counts for: while this is the same the writer is where it was.
    #[must_use]
    pub fn opening(&self) -> Opening {
        self.0.openings.now()
    }

    /// Whether the ledger does its part.
    ///
    /// # Errors
    /// Why it does not.
    pub fn health(&self) -> Result<(), String> {
        self.0.queue.health()?;
        self.0.desk.health()
    }

    /// How the writer fares.
    #[must_use]
    pub fn load(&self) -> Load {
        self.0.queue.load()
    }

    /// How many journalled records were dropped since the start.
    #[must_use]
    pub fn dropped_records(&self) -> u64 {
        self.0.queue.dropped_records()
    }

    /// Takes no more operations, finishes those that wait, and returns when the engine is closed.
    pub async fn close(&self) {
        self.0.desk.close();
        self.0.queue.close();
        let writer = self.0.writer.lock().take();
        if let Some(writer) = writer {
            // The writer's panics are caught where they arise, so there is nothing to learn from the join.
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }

    async fn ask(&self, op: Op) -> Result<Done, LedgerError> {
        answered(self.begin(op)?).await
    }

    fn begin(&self, op: Op) -> Result<oneshot::Receiver<Outcome>, LedgerError> {
        let (answer, outcome) = oneshot::channel();
        self.0.queue.push(Job::Op(op, answer))?;
        Ok(outcome)
    }

    /// Reads on the connection that only reads, as of the last commit.
    async fn look<T: Send + 'static>(
        &self,
        read: impl FnMut(&mut dyn Reads) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        self.look_as_of(read).await.map(|(found, _)| found)
    }

    async fn look_as_of<T: Send + 'static>(
        &self,
        mut read: impl FnMut(&mut dyn Reads) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<(T, Opening), LedgerError> {
        let (answer, outcome) = oneshot::channel();
        self.0.desk.ask(Box::new(move |reader| {
            // Nobody waits for it any more.
            if answer.is_closed() {
                return;
            }
            let found = reader.read(&mut read).map_err(|error| LedgerError::Unavailable(error.to_string()));
            drop(answer.send(found));
        }))?;
        answered(outcome).await
    }

    /// Reads on the writer's connection, between two batches.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut dyn Engine) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let (answer, outcome) = oneshot::channel();
        let read = move |engine: &mut dyn Engine| match read(engine) {
            Ok(found) => {
                drop(answer.send(Ok(found)));
                Ok(())
            }
            Err(error) => {
                drop(answer.send(Err(LedgerError::Unavailable(error.to_string()))));
                Err(error)
            }
        };
        self.0.queue.push(Job::Read(Box::new(read)))?;
        answered(outcome).await
    }
}

async fn answered<T>(answer: oneshot::Receiver<Result<T, LedgerError>>) -> Result<T, LedgerError> {
    answer.await.unwrap_or_else(|_| Err(LedgerError::Unavailable("the writer gave no answer".to_owned())))
}

fn misplaced() -> LedgerError {
    LedgerError::Unavailable("the engine answered another operation".to_owned())
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        time::Duration,
    };

    use tempfile::TempDir;

    use super::{
        super::{
            OpenReads, Refusal, Waiting,
            batch::{Growing, Replies},
            chain::{self, Position, Summary},
            sqlite::{Reader, Sqlite},
            step::tests::{at, commit, context, identity, reserve, scope, seed},
        },
        *,
    };
    use crate::{
        audit::{Event, Facts},
        domain::Identity,
    };
    use queue::CLOSED;

    const CONFIG: LedgerConfig = LedgerConfig { queue_max: 8, batch_max: 64 };

    /// What goes wrong with the next call of the engine.
    #[derive(Debug, Clone, Copy)]
    enum Fault {
        RolledBack,
        /// Once others have joined.
        RolledBackLate,
        /// The connection is lost before the commit, or after it.
        LostBefore,
        LostAfter,
        Panic,
        /// The store cannot be opened again.
        Shut,
    }

    /// The real engine behind faults, and a gate that each batch waits at.
    struct Flaky {
        inner: Sqlite,
        faults: VecDeque<Fault>,
        poison: Option<Identity>,
        gate: Option<mpsc::Receiver<()>>,
        lost: Option<Vec<Result<Done, Refusal>>>,
        /// How many connections were opened to read.
        opened: Arc<AtomicUsize>,
        shows_what_may_be_lost: bool,
    }

    impl Reads for Flaky {
        fn quote(&mut self, identity: &Identity) -> Result<Option<Quote>, EngineError> {
            self.inner.quote(identity)
        }

        fn records_after(&mut self, id: Uuid, count: u32) -> Result<Vec<Record>, EngineError> {
            self.inner.records_after(id, count)
        }

        fn stops(&mut self) -> Result<Stops, EngineError> {
            self.inner.stops()
        }

        fn holds(&mut self) -> Result<Holds, EngineError> {
            self.inner.holds()
        }

        fn numbered(&mut self, scope: &Scope, sequence: SequenceNumber) -> Result<Option<Quote>, EngineError> {
            self.inner.numbered(scope, sequence)
        }

        fn last_taken(&mut self, scope: &Scope) -> Result<Option<SequenceNumber>, EngineError> {
            self.inner.last_taken(scope)
        }

        fn kids(&mut self) -> Result<BTreeMap<Kid, Kept>, EngineError> {
            self.inner.kids()
        }
    }

    impl Engine for Flaky {
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
            let (open, opened) = (self.inner.reads(), self.opened.clone());
            Box::new(move || {
                opened.fetch_add(1, Ordering::Relaxed);
                open()
            })
        }

        fn apply(&mut self, mut batch: &[Op]) -> Result<Replies, EngineError> {
            self.apply_growing(&mut batch)
        }

        fn apply_growing(&mut self, batch: &mut dyn Growing) -> Result<Replies, EngineError> {
            if let Some(gate) = &self.gate {
                let _ = gate.recv();
            }
            if self.poison.is_some() {
                while batch.grow() {}
                if batch.ops().iter().any(|op| op.identity().is_some() && op.identity() == self.poison.as_ref()) {
                    return Err(EngineError::RolledBack("poison".to_owned()));
                }
            }
            match self.faults.pop_front() {
                None => self.inner.apply_growing(batch),
                Some(Fault::RolledBack) => Err(EngineError::RolledBack("not now".to_owned())),
                Some(Fault::RolledBackLate) => {
                    assert!(batch.grow());
                    Err(EngineError::RolledBack("not any more".to_owned()))
                }
                Some(Fault::LostBefore) => Err(EngineError::Unknown("lost".to_owned())),
                Some(Fault::LostAfter) => {
                    self.lost = Some(self.inner.apply_growing(batch)?);
                    Err(EngineError::Unknown("lost".to_owned()))
                }
                Some(fault) => panic!("{fault:?}"),
            }
        }

        fn reopen(&mut self) -> Result<Option<Vec<Result<Done, Refusal>>>, EngineError> {
            if let Some(Fault::Shut) = self.faults.front() {
                self.faults.pop_front();
                return Err(EngineError::RolledBack("shut".to_owned()));
            }
            self.inner.reopen().map(|replies| self.lost.take().or(replies))
        }

        fn reads_are_durable(&self) -> bool {
            !self.shows_what_may_be_lost
        }

        fn heads(&self) -> chain::Heads {
            self.inner.heads()
        }

        fn gone_back(&mut self, heads: &chain::Heads) -> Result<Vec<String>, EngineError> {
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

    struct Bench {
        home: TempDir,
        ledger: Ledger,
    }

    fn bench(faults: &[Fault], config: LedgerConfig, change: impl FnOnce(&mut Flaky)) -> Bench {
        let home = TempDir::new().unwrap();
        let path = home.path().join("ledger.sqlite");
        Sqlite::migrate(&path, Environment::Sandbox).unwrap();
        let mut inner = Sqlite::open(&path, Environment::Sandbox).unwrap();
        inner.apply(&[Op::Seed(seed(0))]).unwrap();
        let faults = faults.iter().copied().collect();
        let mut engine = Flaky {
            inner,
            faults,
            poison: None,
            gate: None,
            lost: None,
            opened: Arc::default(),
            shows_what_may_be_lost: false,
        };
        change(&mut engine);
        Bench { ledger: Ledger::start(Box::new(engine), config), home }
    }

    impl Bench {
        fn journal(&self) -> Summary {
            let reader = Reader::open(&self.home.path().join("ledger.sqlite")).unwrap();
            chain::verify(Position::GENESIS, reader.records(0, u32::MAX).unwrap()).unwrap()
        }

        /// Until the writer has taken all that waits.
        async fn taken(&self) {
            while self.ledger.0.queue.len() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    fn refused() -> Record {
        Record::new(Event::Refused, at(0), context(), Facts::default())
    }

    async fn sign(ledger: &Ledger, quote: &str, number: u64, jws: &str) -> Result<Released, LedgerError> {
        match ledger.reserve(reserve(quote, number)).await? {
            Reserved::Pending(held) => ledger.commit(commit(&held, jws)).await.map(|(released, _)| released),
            Reserved::Replay(released) => Ok(released),
        }
    }

    /// 64 callers, each for two quotes that another caller asks for as well.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn callers_who_race_get_one_jws_for_each_quote_and_share_commits() {
        let bench = bench(&[], LedgerConfig { queue_max: 256, batch_max: 64 }, |_| {});
        let callers: Vec<_> = (0..64_u64)
            .map(|caller| {
                let ledger = bench.ledger.clone();
                tokio::spawn(async move {
                    let mut released = Vec::new();
                    for round in 0..8 {
                        let number = 1 + caller / 2 + round * 32;
                        let quote = format!("q{number}");
                        match sign(&ledger, &quote, number, &format!("{quote} {caller}")).await {
                            Ok(one) => released.push((number, one.jws, one.record)),
                            // A later number of another caller was first.
                            Err(LedgerError::Refused(Refusal::NotMonotonic { .. })) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                    released
                })
            })
            .collect();
        let mut by_number = HashMap::new();
        for caller in callers {
            for (number, jws, record) in caller.await.unwrap() {
                let first = by_number.entry(number).or_insert_with(|| (jws.clone(), record));
                assert_eq!(*first, (jws, record), "number {number}");
            }
        }
        bench.ledger.close().await;
        let journal = bench.journal();
        assert!(by_number.len() >= 32, "{}", by_number.len());
        assert!(journal.links * 4 < journal.records, "{journal:?}");
        assert_eq!(bench.ledger.health(), Err(CLOSED.to_owned()));
        assert!(matches!(bench.ledger.last_taken(scope("GB-IN")).await, Err(LedgerError::Unavailable(_))));
    }

    #[tokio::test]
    async fn a_batch_that_is_rolled_back_once_is_tried_again() {
        let bench = bench(&[Fault::RolledBack], CONFIG, |_| {});
        assert!(sign(&bench.ledger, "q1", 1, "x").await.is_ok());
        assert_eq!(bench.ledger.newest_record_at().await.unwrap(), Some(at(1)));
    }

    #[tokio::test]
    async fn an_unknown_outcome_is_resolved_and_nothing_is_done_twice() {
        for fault in [Fault::LostBefore, Fault::LostAfter, Fault::Panic] {
            let bench = bench(&[fault], CONFIG, |_| {});
            let (before, _) = bench.ledger.seed(seed(7)).await.unwrap();
            assert_eq!(before, Some(SequenceNumber::ZERO), "{fault:?}");
            assert_eq!(bench.journal().records, 2, "{fault:?}");
            assert_eq!(bench.ledger.health(), Ok(()));
        }
    }

    #[tokio::test]
    async fn an_outage_is_told_and_heals_by_itself() {
        let bench = bench(&[Fault::LostBefore, Fault::Shut, Fault::Shut], CONFIG, |_| {});
        assert!(matches!(bench.ledger.reserve(reserve("q1", 1)).await, Err(LedgerError::Unavailable(_))));
        assert!(bench.ledger.health().unwrap_err().ends_with("shut"));
        assert!(matches!(bench.ledger.record(refused()).await, Err(LedgerError::Unavailable(_))));
        while bench.ledger.health().is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(sign(&bench.ledger, "q1", 1, "x").await.is_ok());
    }

    #[tokio::test]
    async fn a_journalled_record_that_fails_is_as_many_as_it_stands_for() {
        let bench = bench(&[Fault::RolledBack, Fault::RolledBack], CONFIG, |_| {});
        bench.ledger.journal(Record { facts: Facts { count: Some(7), ..Facts::default() }, ..refused() });
        bench.ledger.close().await;
        assert_eq!((bench.journal().records, bench.ledger.dropped_records()), (1, 7));
    }

    #[tokio::test]
    async fn one_bad_operation_fails_alone() {
        let (open, gate) = mpsc::channel();
        let bench = bench(&[], CONFIG, |engine| {
            engine.gate = Some(gate);
            engine.poison = Some(identity("q3"));
        });
        let first = bench.ledger.begin(Op::Reserve(reserve("q0", 1))).unwrap();
        bench.taken().await;
        let begin = |number: u64| bench.ledger.begin(Op::Reserve(reserve(&format!("q{number}"), number + 1)));
        let mut rest: Vec<_> = (1..3).map(|number| begin(number).unwrap()).collect();
        bench.ledger.journal(refused());
        rest.extend((3..6).map(|number| begin(number).unwrap()));
        drop(open);
        assert!(answered(first).await.is_ok());
        for (number, answer) in (1..).zip(rest) {
            assert_eq!(answered(answer).await.is_ok(), number != 3, "q{number}");
        }
        bench.ledger.close().await;
        assert_eq!((bench.journal().records, bench.ledger.dropped_records()), (7, 0));
    }

    /// The engine waits at its gate with the first of them in hand.
    #[tokio::test]
    async fn whoever_comes_before_the_commit_is_in_it() {
        // What is rolled back is tried again as it was, and who came meanwhile has the next one.
        for (fault, batches) in [(None, 1), (Some(Fault::LostAfter), 1), (Some(Fault::RolledBack), 2)] {
            let (open, gate) = mpsc::channel();
            let faults: Vec<_> = fault.into_iter().collect();
            let bench = bench(&faults, CONFIG, |engine| engine.gate = Some(gate));
            let mut waiting = vec![bench.ledger.begin(Op::Reserve(reserve("q1", 1))).unwrap()];
            bench.taken().await;
            for number in [5, 2, 4, 3] {
                waiting.push(bench.ledger.begin(Op::Reserve(reserve(&format!("q{number}"), number))).unwrap());
            }
            bench.ledger.journal(refused());
            drop(open);
            for answer in waiting {
                assert!(answered(answer).await.is_ok(), "{fault:?}");
            }
            bench.ledger.close().await;
            let load = bench.ledger.load();
            assert_eq!((load.ops, load.batches), (6, batches), "{fault:?}");
            assert_eq!(bench.journal().records, 7, "{fault:?}");
        }
    }

    #[tokio::test]
    async fn whoever_joined_a_batch_that_is_rolled_back_is_answered_all_the_same() {
        let (open, gate) = mpsc::channel();
        let bench = bench(&[Fault::RolledBackLate], CONFIG, |engine| engine.gate = Some(gate));
        let first = bench.ledger.begin(Op::Record(refused())).unwrap();
        bench.taken().await;
        let rest = [Op::Reserve(reserve("q1", 1)), Op::Record(refused()), Op::Reserve(reserve("q2", 2))];
        let rest: Vec<_> = rest.into_iter().map(|op| bench.ledger.begin(op).unwrap()).collect();
        drop(open);
        for answer in rest.into_iter().chain([first]) {
            assert!(answered(answer).await.is_ok());
        }
        bench.ledger.close().await;
        assert_eq!((bench.journal().records, bench.ledger.load().batches), (5, 2));
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_journalled_records_have_their_own() {
        let (open, gate) = mpsc::channel();
        let bench = bench(&[], CONFIG, |engine| engine.gate = Some(gate));
        let first = bench.ledger.begin(Op::Reserve(reserve("q0", 1))).unwrap();
        bench.taken().await;
        for _ in 0..10 {
            bench.ledger.journal(refused());
        }
        assert_eq!(bench.ledger.dropped_records(), 2);
        let waiting: Vec<_> = (1..9)
            .map(|number| bench.ledger.begin(Op::Reserve(reserve(&format!("q{number}"), number + 1))).unwrap())
            .collect();
        assert!(matches!(bench.ledger.reserve(reserve("q9", 10)).await, Err(LedgerError::Full)));
        drop(open);
        for answer in waiting.into_iter().chain([first]) {
            assert!(answered(answer).await.is_ok());
        }
        bench.ledger.close().await;
        bench.ledger.journal(refused());
        assert_eq!(bench.ledger.dropped_records(), 3);
        assert_eq!((bench.journal().records, bench.journal().links), (18, 4));
    }

    #[tokio::test]
    async fn a_reservation_nobody_waits_for_is_not_begun() {
        let (open, gate) = mpsc::channel();
        let bench = bench(&[], CONFIG, |engine| engine.gate = Some(gate));
        let first = bench.ledger.begin(Op::Record(refused())).unwrap();
        bench.taken().await;
        drop(bench.ledger.begin(Op::Reserve(reserve("q1", 1))).unwrap());
        drop(bench.ledger.begin(Op::Seed(seed(3))).unwrap());
        drop(open);
        assert!(answered(first).await.is_ok());
        assert!(matches!(
            bench.ledger.reserve(reserve("q1", 1)).await,
            Err(LedgerError::Refused(Refusal::NotMonotonic { .. }))
        ));
        bench.ledger.close().await;
        assert_eq!(bench.journal().records, 3);
    }

    /// What is asked waits for no batch, sees what was committed, and says so where it cannot be read.
    #[tokio::test]
    async fn what_is_read_waits_for_no_batch() {
        let (open, gate) = mpsc::channel();
        let bench = bench(&[], CONFIG, |engine| engine.gate = Some(gate));
        open.send(()).unwrap();
        open.send(()).unwrap();
        let released = sign(&bench.ledger, "q1", 1, "e30.e30.x").await.unwrap();
        assert!(bench.ledger.has_passed(&scope("GB-IN"), released.sequence));
        assert!(!bench.ledger.has_passed(&scope("GB-IN"), 2.try_into().unwrap()));
        let waiting = bench.ledger.begin(Op::Reserve(reserve("q2", 2))).unwrap();
        bench.taken().await;
        let found = bench.ledger.released(identity("q1"), reserve("q1", 1).payload, None).await.unwrap();
        assert_eq!(found.map(|found| found.released), Some(released));
        assert_eq!(bench.ledger.last_taken(scope("GB-IN")).await.unwrap().map(SequenceNumber::get), Some(1));
        assert!(bench.ledger.stops().await.unwrap().iter().next().is_none());
        drop(open);
        answered(waiting).await.unwrap();
        assert_eq!(bench.ledger.last_taken(scope("GB-IN")).await.unwrap().map(SequenceNumber::get), Some(2));
        bench.ledger.close().await;
        assert!(matches!(bench.ledger.stops().await, Err(LedgerError::Unavailable(why)) if why == CLOSED));
        assert!(!bench.home.path().join("ledger.sqlite-wal").exists(), "the writer's connection closed last");
    }

    /// A connection that lives on can be one to the server of before.
    #[tokio::test]
    async fn where_the_writer_opens_its_store_anew_what_is_read_is_read_anew() {
        let opened = Arc::new(AtomicUsize::new(0));
        let bench = bench(&[Fault::LostAfter, Fault::LostAfter], CONFIG, |engine| engine.opened = opened.clone());
        for _ in 0..2 {
            bench.ledger.stops().await.unwrap();
        }
        assert_eq!(opened.load(Ordering::Relaxed), 1);
        bench.ledger.seed(seed(7)).await.unwrap();
        assert_eq!(bench.ledger.last_taken(scope("GB-IN")).await.unwrap().map(SequenceNumber::get), Some(7));
        assert_eq!(opened.load(Ordering::Relaxed), 2);
        // Nor is the answer to a question of before given after that.
        let ((begun, begins), (open, gate)) = (mpsc::channel(), mpsc::channel::<()>());
        let ledger = bench.ledger.clone();
        let asked = tokio::spawn(async move {
            let read = move |reads: &mut dyn Reads| {
                let last = reads.last_taken(&scope("GB-IN"))?;
                let _ = (begun.send(()), gate.recv());
                Ok(last.map(SequenceNumber::get))
            };
            ledger.look(read).await.unwrap()
        });
        tokio::task::spawn_blocking(move || begins.recv().unwrap()).await.unwrap();
        bench.ledger.seed(seed(9)).await.unwrap();
        drop(open);
        assert_eq!((asked.await.unwrap(), opened.load(Ordering::Relaxed)), (Some(9), 3));
    }

    #[tokio::test]
    async fn what_a_failover_could_lose_is_given_again_once_it_is_durable_where_it_was_read() {
        let cases: [(&[Fault], bool); 4] = [
            (&[], true),
            (&[Fault::LostBefore], false),
            (&[Fault::LostAfter], false),
            (&[Fault::LostBefore, Fault::Shut], false),
        ];
        for (faults, is_given) in cases {
            let bench = bench(faults, CONFIG, |engine| {
                engine.shows_what_may_be_lost = true;
                let reserved = engine.inner.apply(&[Op::Reserve(reserve("q1", 1))]).unwrap().remove(0);
                let Ok(Done::Reserved(Reserved::Pending(held))) = reserved else { panic!("{reserved:?}") };
                engine.inner.apply(&[Op::Commit(commit(&held, "e30.e30.x"))]).unwrap();
            });
            let recalled =
                bench.ledger.released(identity("q1"), reserve("q1", 1).payload, None).await.unwrap().unwrap();
            let record = Record::new(Event::Replayed, at(1), context(), recalled.given(&context()));
            // Also what would only be counted elsewhere: it is what proves that both have it.
            let given = bench.ledger.give_again(recalled, record, || false).await;
            assert_eq!(given.is_ok(), is_given, "{faults:?}: {given:?}");
            if is_given {
                assert_eq!(bench.journal().records, 4, "it is durable");
            }
        }
    }

    #[tokio::test]
    async fn a_sweep_voids_what_expired_unsigned() {
        let bench = bench(&[], CONFIG, |_| {});
        sign(&bench.ledger, "q1", 1, "x").await.unwrap();
        for number in 2..5 {
            bench.ledger.reserve(reserve(&format!("q{number}"), number)).await.unwrap();
        }
        assert_eq!(bench.ledger.sweep(context(), at(59_999)).await.unwrap(), 0);
        assert_eq!(bench.ledger.sweep(context(), at(60_000)).await.unwrap(), 3);
        assert_eq!(bench.ledger.sweep(context(), at(60_000)).await.unwrap(), 0);
        let reader = Reader::open(&bench.home.path().join("ledger.sqlite")).unwrap();
        let record: Record = serde_json::from_slice(&reader.tail(1).unwrap()[0].bytes).unwrap();
        assert_eq!((record.event, record.context.quote_id), (Event::Voided, Some("q4".parse().unwrap())));
    }
}
