//! What waits for the writer, bounded, and how it is batched.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::LedgerConfig;
use crate::{
    audit::Record,
    ledger::{Done, Engine, EngineError, LedgerError, Op, batch::Growing},
};

pub(super) const CLOSED: &str = "the ledger is closed";

pub(super) type Outcome = Result<Done, LedgerError>;

/// So many parts a batch has before its reservations end it.
const PARTS_MAX: usize = 8;

/// Answers its caller, and says what it told him of the store.
pub(super) type Read = Box<dyn FnOnce(&mut dyn Engine) -> Result<(), EngineError> + Send>;

#[expect(clippy::large_enum_variant, reason = "nearly every job is an operation")]
pub(super) enum Job {
    Op(Op, oneshot::Sender<Outcome>),
    Read(Read),
}

/// Jobs and records on their way to the writer, and what is to be known of it.
pub(super) struct Queue {
    config: LedgerConfig,
    waiting: Mutex<Waiting>,
    ready: Condvar,
    fault: Mutex<Option<String>>,
    dropped: AtomicU64,
    batches: AtomicU64,
    ops: AtomicU64,
    took_ns: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    records: VecDeque<Record>,
    /// Since when there is a job, or there was none left over.
    since: Option<Instant>,
    closed: bool,
}

/// How the writer fares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// How many operations and records wait.
    pub waiting: usize,
    /// How long the first of them has waited.
    pub waits: Duration,
    /// How many batches there were since the start.
    pub batches: u64,
    /// How many operations and records were in them.
    pub ops: u64,
    /// How long they took, together.
    pub took: Duration,
}

/// What the writer took, and takes along while it writes. Of each quote there is one operation in it.
pub(super) struct Batch<'a> {
    queue: &'a Queue,
    pub reads: Vec<Read>,
    ops: Vec<Op>,
    /// Of each operation; journalled records have none.
    pub answers: Vec<Option<oneshot::Sender<Outcome>>>,
    /// Reservations that came while it was written. They end it together: whoever races for numbers until then gets them in
    /// their order.
    held: Vec<(Op, oneshot::Sender<Outcome>)>,
    records: usize,
    parts: usize,
    /// The hashes of its quotes: one that is not the same and is taken for it waits for a batch, and no identity is copied.
    quotes: (RandomState, HashSet<u64>),
}

impl<'a> Batch<'a> {
    fn new(queue: &'a Queue) -> Self {
        let (ops, answers, held, quotes) = (Vec::new(), Vec::new(), Vec::new(), Default::default());
        Self { queue, reads: Vec::new(), ops, answers, held, records: 0, parts: 0, quotes }
    }

    /// For how many operations and records there is room.
    fn room(&self) -> (usize, usize) {
        let most = self.queue.config.batch_max.max(1);
        let taken = self.ops.len().saturating_sub(self.records).saturating_add(self.held.len());
        (most.saturating_sub(taken), most.div_ceil(4).saturating_sub(self.records))
    }

    /// Whether `op` is the first of its quote, or of none.
    fn is_first(&mut self, op: &Op) -> bool {
        let (hasher, quotes) = &mut self.quotes;
        op.identity().is_none_or(|quote| quotes.insert(hasher.hash_one(quote)))
    }

    /// The next part: at first whatever waits, then what comes beside reservations, and at last these.
    fn part(&mut self, waiting: &mut Waiting) -> bool {
        let before = self.ops.len();
        if self.parts < PARTS_MAX {
            waiting.move_into(self);
        }
        self.parts = self.parts.saturating_add(1);
        if self.ops.len() == before && self.parts > 1 {
            self.parts = PARTS_MAX;
            for (op, answer) in self.held.drain(..) {
                self.ops.push(op);
                self.answers.push(Some(answer));
            }
        }
        self.ops.len() > before
    }
}

impl Growing for Batch<'_> {
    fn ops(&self) -> &[Op] {
        &self.ops
    }

    fn grow(&mut self) -> bool {
        let queue = self.queue;
        self.part(&mut queue.waiting.lock())
    }
}

impl Drop for Batch<'_> {
    /// Reservations that it was not written far enough for wait as before, in front of all that came later.
    fn drop(&mut self) {
        if !self.held.is_empty() {
            let mut waiting = self.queue.waiting.lock();
            for (op, answer) in self.held.drain(..).rev() {
                waiting.jobs.push_front(Job::Op(op, answer));
            }
            waiting.since.get_or_insert_with(Instant::now);
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Queue {
    pub fn new(config: LedgerConfig) -> Self {
        Self {
            config,
            waiting: Mutex::default(),
            ready: Condvar::new(),
            fault: Mutex::new(None),
            dropped: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            ops: AtomicU64::new(0),
            took_ns: AtomicU64::new(0),
        }
    }

    /// A batch of so many operations took so long.
    pub fn batch_took(&self, ops: usize, took: Duration) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.ops.fetch_add(ops as u64, Ordering::Relaxed);
        self.took_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn load(&self) -> Load {
        let (waiting, waits) = {
            let waiting = self.waiting.lock();
            (waiting.jobs.len() + waiting.records.len(), waiting.since.map_or(Duration::ZERO, |since| since.elapsed()))
        };
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let took = Duration::from_nanos(count(&self.took_ns));
        Load { waiting, waits, batches: count(&self.batches), ops: count(&self.ops), took }
    }

    pub fn push(&self, job: Job) -> Result<(), LedgerError> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(LedgerError::Unavailable(CLOSED.to_owned()));
        }
        // What stops signing has room where signing has none left.
        let is_stop = matches!(job, Job::Op(Op::Stop(_), _));
        if waiting.jobs.len() >= self.config.queue_max && !is_stop {
            return Err(LedgerError::Full);
        }
        waiting.jobs.push_back(job);
        waiting.since.get_or_insert_with(Instant::now);
        self.ready.notify_one();
        Ok(())
    }

    pub fn journal(&self, record: Record) {
        let mut waiting = self.waiting.lock();
        if waiting.closed || waiting.records.len() >= self.config.queue_max {
            self.drop_record(&record);
            return;
        }
        waiting.records.push_back(record);
        self.ready.notify_one();
    }

    /// Why the writer cannot do its part, or that it can again.
    pub fn set_fault(&self, fault: Option<String>) {
        *self.fault.lock() = fault;
    }

    /// Whether the writer does its part.
    pub fn health(&self) -> Result<(), String> {
        if self.waiting.lock().closed {
            return Err(CLOSED.to_owned());
        }
        self.fault.lock().clone().map_or(Ok(()), Err)
    }

    pub fn dropped_records(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// One that stands for many is as many.
    pub fn drop_record(&self, record: &Record) {
        self.dropped.fetch_add(record.facts.count.unwrap_or(1), Ordering::Relaxed);
    }

    /// What waits, as soon as anything does; nothing at `until`; absent once closed and empty.
    pub fn take(&self, until: Option<Instant>) -> Option<Batch<'_>> {
        let mut waiting = self.waiting.lock();
        while waiting.jobs.is_empty() && waiting.records.is_empty() {
            if waiting.closed {
                return None;
            }
            match until {
                None => self.ready.wait(&mut waiting),
                Some(until) if self.ready.wait_until(&mut waiting, until).timed_out() => break,
                Some(_) => {}
            }
        }
        let mut batch = Batch::new(self);
        batch.part(&mut waiting);
        // What is left over waits anew: this batch is what it waits for.
        waiting.since = (!waiting.jobs.is_empty()).then(Instant::now);
        Some(batch)
    }

    pub fn close(&self) {
        self.waiting.lock().closed = true;
        self.ready.notify_one();
    }

    /// Closes it, and lets nobody wait for what will not come.
    pub fn abandon(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        waiting.jobs.clear();
        waiting.records.drain(..).for_each(|record| self.drop_record(&record));
    }
}

impl Waiting {
    /// As much as there is room for. A second operation on a quote stays, before all that came later.
    fn move_into(&mut self, batch: &mut Batch<'_>) {
        let (mut room, room_for_records) = batch.room();
        let mut carried = Vec::new();
        while room > 0
            && let Some(job) = self.jobs.pop_front()
        {
            match job {
                Job::Read(read) => batch.reads.push(read),
                Job::Op(Op::Reserve(op), answer) if answer.is_closed() && !op.stays => {}
                Job::Op(op, answer) if !batch.is_first(&op) => carried.push(Job::Op(op, answer)),
                Job::Op(op, answer) => {
                    room = room.saturating_sub(1);
                    if matches!(op, Op::Reserve(_)) && batch.parts > 0 {
                        batch.held.push((op, answer));
                    } else {
                        batch.ops.push(op);
                        batch.answers.push(Some(answer));
                    }
                }
            }
        }
        for job in carried.into_iter().rev() {
            self.jobs.push_front(job);
        }
        let records = self.records.len().min(room_for_records);
        batch.records = batch.records.saturating_add(records);
        batch.ops.extend(self.records.drain(..records).map(Op::Record));
        batch.answers.resize_with(batch.ops.len(), || None);
        if self.jobs.is_empty() {
            self.since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit,
        ledger::step::tests::{at, context, reserve, stop, void},
    };

    const CONFIG: LedgerConfig = LedgerConfig { queue_max: 16, batch_max: 9 };

    impl Queue {
        pub fn len(&self) -> usize {
            let waiting = self.waiting.lock();
            waiting.jobs.len() + waiting.records.len()
        }
    }

    #[test]
    fn what_stops_signing_is_taken_where_nothing_else_is() {
        let queue = Queue::new(LedgerConfig { queue_max: 1, ..CONFIG });
        let push = |op| queue.push(Job::Op(op, oneshot::channel().0));
        push(Op::Reserve(reserve("a", 1))).unwrap();
        assert!(matches!(push(Op::Reserve(reserve("b", 2))), Err(LedgerError::Full)));
        push(Op::Stop(stop("revoked/quote-a", true))).unwrap();
    }

    /// A stream that is left ends quote by quote: one that is gone already must not let those behind it take their numbers first.
    #[test]
    fn what_nobody_waits_for_is_not_written_unless_others_came_behind_it() {
        for stays in [false, true] {
            let (answer, gone) = oneshot::channel();
            let (behind, _waits) = oneshot::channel();
            drop(gone);
            let queue = Queue::new(CONFIG);
            let first = crate::ledger::Reserve { stays, ..reserve("a", 1) };
            queue.push(Job::Op(Op::Reserve(first), answer)).unwrap();
            queue.push(Job::Op(Op::Reserve(reserve("b", 2)), behind)).unwrap();
            assert_eq!(queue.take(None).unwrap().ops.len(), 1 + usize::from(stays));
        }
    }

    /// Somebody asks for it, and waits while this is kept.
    fn asked(queue: &Queue, op: Op) -> oneshot::Receiver<Outcome> {
        let (answer, outcome) = oneshot::channel();
        queue.push(Job::Op(op, answer)).unwrap();
        outcome
    }

    fn numbers(ops: &[Op]) -> Vec<u64> {
        ops.iter().map(|op| if let Op::Reserve(op) = op { op.numbering.given().unwrap().get() } else { 0 }).collect()
    }

    #[test]
    fn two_operations_on_a_quote_are_not_taken_at_once() {
        let queue = Queue::new(CONFIG);
        let mut answers = Vec::new();
        for (quote, number) in [("a", 1), ("a", 2), ("b", 3), ("a", 4), ("c", 5)] {
            answers.push(asked(&queue, Op::Reserve(reserve(quote, number))));
        }
        let batch = || {
            let mut batch = queue.take(None).unwrap();
            while batch.grow() {}
            numbers(&batch.ops)
        };
        assert_eq!([batch(), batch(), batch()], [vec![1, 3, 5], vec![2], vec![4]]);
    }

    /// What is no reservation: it joins a batch at once.
    fn void_of(number: u64) -> Op {
        Op::Void(void(&format!("q{number}"), i64::try_from(number).unwrap()))
    }

    #[test]
    fn reservations_end_a_batch_together_and_each_operation_has_its_own_answer() {
        let queue = Queue::new(LedgerConfig { queue_max: 16, batch_max: 8 });
        let mut outcomes = Vec::new();
        let mut push = |op| outcomes.push(asked(&queue, op));
        let refused = || Record::new(audit::Event::Refused, at(0), context(), audit::Facts::default());
        push(Op::Reserve(reserve("q4", 4)));
        push(void_of(1));
        let mut batch = queue.take(None).unwrap();
        assert_eq!(numbers(batch.ops()), [4, 0], "it begins with whatever waits");
        (0..3).for_each(|_| queue.journal(refused()));
        push(Op::Reserve(reserve("q7", 7)));
        push(void_of(2));
        push(Op::Reserve(reserve("q6", 6)));
        assert!(batch.grow());
        assert_eq!(
            numbers(batch.ops()),
            [4, 0, 0, 0, 0],
            "a quarter as many records, and the reservations wait for their rivals"
        );
        push(Op::Reserve(reserve("q5", 5)));
        assert!(batch.grow());
        assert_eq!(numbers(&batch.ops), [4, 0, 0, 0, 0, 7, 6, 5]);
        let behind = queue.take(None).unwrap();
        assert_eq!((behind.ops().len(), behind.records), (1, 1), "the third record");
        push(void_of(3));
        assert!(!batch.grow(), "it has ended");
        assert_eq!(queue.load().waiting, 1);
        let order: Vec<_> = batch.answers.iter().map(Option::is_some).collect();
        assert_eq!(order, [true, true, true, false, false, true, true, true]);
        for (place, answer) in (0..).zip(batch.answers.drain(..)) {
            if let Some(answer) = answer {
                answer.send(Err(LedgerError::Unavailable(place.to_string()))).unwrap();
            }
        }
        let told = outcomes.iter_mut().take(6).map(|outcome| match outcome.try_recv() {
            Ok(Err(LedgerError::Unavailable(place))) => place,
            other => panic!("{other:?}"),
        });
        assert_eq!(told.collect::<Vec<_>>(), ["0", "1", "5", "2", "6", "7"]);
    }

    #[test]
    fn a_dropped_record_that_stands_for_many_counts_as_many() {
        let queue = Queue::new(LedgerConfig { queue_max: 1, batch_max: 4 });
        let facts = |count| audit::Facts { count: Some(count), ..audit::Facts::default() };
        let record = |count| Record::new(audit::Event::Refused, at(0), context(), facts(count));
        queue.journal(record(5));
        queue.journal(record(30));
        assert_eq!(queue.dropped_records(), 30);
        queue.abandon();
        assert_eq!(queue.dropped_records(), 35);
    }

    #[test]
    fn what_a_batch_was_not_written_far_enough_for_waits_as_before() {
        let queue = Queue::new(CONFIG);
        let mut outcomes = Vec::new();
        let mut push = |op| outcomes.push(asked(&queue, op));
        push(void_of(1));
        let mut batch = queue.take(None).unwrap();
        push(Op::Reserve(reserve("q5", 5)));
        push(void_of(2));
        push(Op::Reserve(reserve("q4", 4)));
        assert!(batch.grow());
        push(Op::Reserve(reserve("q3", 3)));
        drop(batch);
        assert!(queue.load().waits > Duration::ZERO);
        assert_eq!(numbers(queue.take(None).unwrap().ops()), [5, 4, 3]);
    }

    #[test]
    fn a_batch_ends_though_more_and_more_comes_and_what_is_left_is_seen_to_wait() {
        let queue = Queue::new(LedgerConfig { queue_max: 64, batch_max: 4 });
        let mut outcomes = Vec::new();
        let mut push = |op| outcomes.push(asked(&queue, op));
        push(Op::Reserve(reserve("q50", 50)));
        (1..7).for_each(|number| push(void_of(number)));
        let mut batch = queue.take(None).unwrap();
        while batch.grow() {}
        assert_eq!((batch.ops().len(), queue.len()), (4, 3), "it is full");
        std::thread::sleep(Duration::from_millis(5));
        assert!(!batch.grow() && queue.load().waits >= Duration::from_millis(5));

        let queue = Queue::new(LedgerConfig { queue_max: 64, batch_max: 64 });
        let mut parts = 0;
        let mut batch = None;
        for number in 1..20 {
            outcomes.push(asked(&queue, void_of(number)));
            match &mut batch {
                None => batch = queue.take(None),
                Some(batch) => parts += usize::from(batch.grow()),
            }
        }
        assert_eq!(parts + 1, PARTS_MAX);
    }
}
