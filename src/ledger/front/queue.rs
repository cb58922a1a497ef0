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
    ledger::{Done, Engine, EngineError, LedgerError, Op},
};

pub(super) const CLOSED: &str = "the ledger is closed";

pub(super) type Outcome = Result<Done, LedgerError>;

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

/// What the writer took at once.
#[derive(Default)]
pub(super) struct Batch {
    pub reads: Vec<Read>,
    pub ops: Vec<Op>,
    /// Of the operations in their order; journalled records stand last and have none.
    pub answers: Vec<oneshot::Sender<Outcome>>,
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
        if waiting.jobs.len() >= self.config.queue_max {
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
            // One that stands for many is as many.
            self.drop_records(record.facts.count.and_then(|count| usize::try_from(count).ok()).unwrap_or(1));
            return;
        }
        waiting.records.push_back(record);
        self.ready.notify_one();
    }

    /// Why the writer cannot do its part, or that it can again.
    pub fn set_fault(&self, fault: Option<String>) {
        *self.fault.lock() = fault;
    }

    pub fn health(&self) -> Result<(), String> {
        if self.waiting.lock().closed {
            return Err(CLOSED.to_owned());
        }
        self.fault.lock().clone().map_or(Ok(()), Err)
    }

    pub fn dropped_records(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub fn drop_records(&self, count: usize) {
        self.dropped.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What waits, as soon as anything does; nothing at `until`; absent once closed and empty.
    pub fn take(&self, until: Option<Instant>) -> Option<Batch> {
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
        Some(waiting.batch(self.config.batch_max.max(1)))
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
        self.drop_records(waiting.records.drain(..).count());
    }
}

impl Waiting {
    /// At most one operation of each quote: another waits for the next batch, before all that came later.
    fn batch(&mut self, ops_max: usize) -> Batch {
        let size = self.jobs.len().min(ops_max);
        let (ops, answers) = (Vec::with_capacity(size), Vec::with_capacity(size));
        let mut batch = Batch { reads: Vec::new(), ops, answers };
        // By their hash: one that is not the same and is taken for it waits for a batch, and no identity is copied.
        let (hasher, mut quotes) = (RandomState::new(), HashSet::with_capacity(size));
        let mut carried = Vec::new();
        while batch.ops.len() < ops_max
            && let Some(job) = self.jobs.pop_front()
        {
            match job {
                Job::Read(read) => batch.reads.push(read),
                Job::Op(Op::Reserve(op), answer) if answer.is_closed() && !op.stays => {}
                Job::Op(op, answer) if op.identity().is_some_and(|quote| !quotes.insert(hasher.hash_one(quote))) => {
                    carried.push(Job::Op(op, answer));
                }
                Job::Op(op, answer) => {
                    batch.ops.push(op);
                    batch.answers.push(answer);
                }
            }
        }
        for job in carried.into_iter().rev() {
            self.jobs.push_front(job);
        }
        let records = self.records.len().min(ops_max.div_ceil(4));
        batch.ops.extend(self.records.drain(..records).map(Op::Record));
        // What is left over waits anew: the batch before it is what it waits for.
        self.since = (!self.jobs.is_empty()).then(Instant::now);
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::step::tests::reserve;

    impl Queue {
        pub fn len(&self) -> usize {
            let waiting = self.waiting.lock();
            waiting.jobs.len() + waiting.records.len()
        }
    }

    /// A stream that is left ends quote by quote: one that is gone already must not let those behind it take their numbers first.
    #[test]
    fn what_nobody_waits_for_is_not_written_unless_others_came_behind_it() {
        for stays in [false, true] {
            let (answer, gone) = oneshot::channel();
            let (behind, _waits) = oneshot::channel();
            drop(gone);
            let mut waiting = Waiting::default();
            let first = crate::ledger::Reserve { stays, ..reserve("a", 1) };
            waiting.jobs.push_back(Job::Op(Op::Reserve(first), answer));
            waiting.jobs.push_back(Job::Op(Op::Reserve(reserve("b", 2)), behind));
            assert_eq!(waiting.batch(9).ops.len(), 1 + usize::from(stays));
        }
    }

    #[test]
    fn two_operations_on_a_quote_go_into_two_batches() {
        let mut waiting = Waiting::default();
        let mut answers = Vec::new();
        for (quote, number) in [("a", 1), ("a", 2), ("b", 3), ("a", 4), ("c", 5)] {
            let (answer, outcome) = oneshot::channel();
            answers.push(outcome);
            waiting.jobs.push_back(Job::Op(Op::Reserve(reserve(quote, number)), answer));
        }
        let mut numbers = || {
            let number = |op: &Op| if let Op::Reserve(op) = op { op.numbering.given().unwrap().get() } else { 0 };
            waiting.batch(9).ops.iter().map(number).collect::<Vec<_>>()
        };
        assert_eq!([numbers(), numbers(), numbers(), numbers()], [vec![1, 3, 5], vec![2], vec![4], vec![]]);
    }
}
