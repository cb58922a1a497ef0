//! The one thread that holds the engine: applies batch after batch, and sees to it that every caller is answered
//! whatever the engine does.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    openings::Openings,
    queue::{Batch, Outcome, Queue, Read},
};
use crate::ledger::{
    Engine, EngineError, LedgerError, Op,
    batch::{Growing as _, Replies},
};

/// How often a batch that the store refuses is divided to find the operation to blame.
const DIVISIONS_MAX: u32 = 32;
/// The first and the longest pause between attempts to open a store that failed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The engine, its queue, and whether it is to be opened again.
pub(super) struct Writer {
    engine: Box<dyn Engine>,
    queue: Arc<Queue>,
    outage: Option<Outage>,
    /// How often it failed since it last took a batch.
    failures: u32,
    /// Followed by who reads beside.
    openings: Openings,
    /// The thread that reads. It ends first: the connection that closes last folds the store's log.
    reader: Option<JoinHandle<()>>,
}

/// The store failed, and is to be opened again before anything is applied.
struct Outage {
    why: String,
    retry_at: Instant,
    pause: Duration,
}

impl Writer {
    pub fn new(engine: Box<dyn Engine>, queue: Arc<Queue>, openings: Openings, reader: Option<JoinHandle<()>>) -> Self {
        Self { engine, queue, outage: None, failures: 0, openings, reader }
    }

    /// Until the queue is closed and empty.
    pub fn run(mut self) {
        let queue = Arc::clone(&self.queue);
        while let Some(mut batch) = queue.take(self.outage.as_ref().map(|outage| outage.retry_at)) {
            self.recover();
            self.read(batch.reads.drain(..));
            let began = Instant::now();
            let mut outcomes = self.write(&mut batch).into_iter();
            if !batch.ops().is_empty() {
                queue.batch_took(batch.ops().len(), began.elapsed());
            }
            let answers = std::mem::take(&mut batch.answers);
            for ((op, answer), outcome) in batch.ops().iter().zip(answers).zip(&mut outcomes) {
                match (answer, op) {
                    // A caller that went away asks again and finds what became of it.
                    (Some(answer), _) => drop(answer.send(outcome)),
                    (None, Op::Record(record)) if outcome.is_err() => queue.drop_record(record),
                    (None, _) => {}
                }
            }
            // What was asked for meanwhile.
            self.read(batch.reads.drain(..));
        }
        // Whoever closed the queue closed the desk before.
        if let Some(reader) = self.reader.take() {
            // Its panics are caught where they arise.
            let _ended = reader.join();
        }
    }

    fn read(&mut self, reads: impl Iterator<Item = Read>) {
        for read in reads {
            // Its caller learns of a panic from the answer that never comes.
            match self.guarded(|engine| read(engine)) {
                Err(
                    EngineError::Failing(why)
                    | EngineError::Unknown(why)
                    | EngineError::Unfit(why)
                    | EngineError::Lost(why)
                    | EngineError::Away(why),
                ) if self.outage.is_none() => {
                    self.fail(&why, PAUSES.0);
                }
                _ => {}
            }
        }
    }

    /// Writes `batch`, and whatever joins it until it is committed.
    fn write(&mut self, batch: &mut Batch<'_>) -> Vec<Outcome> {
        match &self.outage {
            _ if batch.ops().is_empty() => Vec::new(),
            Some(outage) => unavailable(batch.ops(), &outage.why),
            None => {
                let mut divisions = DIVISIONS_MAX;
                let first = self.guarded(|engine| engine.apply_growing(batch));
                self.conclude(batch.ops(), first, &mut divisions)
            }
        }
    }

    /// Applies `ops`, which are a part of what the store refused.
    fn apply(&mut self, ops: &[Op], divisions: &mut u32) -> Vec<Outcome> {
        if let Some(outage) = &self.outage {
            return unavailable(ops, &outage.why);
        }
        let first = self.guarded(|engine| engine.apply(ops));
        self.conclude(ops, first, divisions)
    }

    /// What `ops` came to, of which `first` became the first time. Divides what the store refuses, so that one bad operation
    /// cannot fail the others.
    fn conclude(&mut self, ops: &[Op], first: Result<Replies, EngineError>, divisions: &mut u32) -> Vec<Outcome> {
        match self.again(ops, first) {
            Ok(replies) if replies.len() != ops.len() => unavailable(ops, "the engine's replies are not its batch's"),
            Ok(replies) => {
                self.failures = 0;
                replies.into_iter().map(|reply| reply.map_err(LedgerError::from)).collect()
            }
            Err(EngineError::RolledBack(_)) if ops.len() > 1 && *divisions > 0 => {
                *divisions = divisions.saturating_sub(1);
                let (first, second) = ops.split_at(ops.len() / 2);
                let mut outcomes = self.apply(first, divisions);
                outcomes.extend(self.apply(second, divisions));
                outcomes
            }
            Err(EngineError::RolledBack(why)) => unavailable(ops, &why),
            Err(
                EngineError::Failing(why)
                | EngineError::Unknown(why)
                | EngineError::Unfit(why)
                | EngineError::Lost(why)
                | EngineError::Away(why),
            ) => {
                // One that can be opened and takes nothing is left alone for longer and longer, and is told of all the while.
                self.fail(&why, PAUSES.0.saturating_mul(2_u32.saturating_pow(self.failures)).min(PAUSES.1));
                self.failures = self.failures.saturating_add(1);
                unavailable(ops, &why)
            }
        }
    }

    /// Applies `ops` a second time where the first is known to have left no trace.
    fn again(&mut self, ops: &[Op], first: Result<Replies, EngineError>) -> Result<Replies, EngineError> {
        match first {
            Err(EngineError::RolledBack(_) | EngineError::Failing(_)) => self.guarded(|engine| engine.apply(ops)),
            Err(EngineError::Unknown(_)) => match self.reopen() {
                Ok(Some(replies)) => Ok(replies),
                Ok(None) => self.guarded(|engine| engine.apply(ops)),
                // Still unknown, whatever kept the store from being opened: nothing of it may be tried again.
                Err(error) => Err(EngineError::Unknown(error.to_string())),
            },
            decided => decided,
        }
    }

    /// Opens the store anew. Before anybody hears of it, whoever reads beside does so, too.
    fn reopen(&mut self) -> Result<Option<Replies>, EngineError> {
        let reopened = self.guarded(<dyn Engine>::reopen);
        self.openings.next();
        reopened
    }

    /// After a panic nothing is known of the engine but that it can be opened again.
    fn guarded<T>(&mut self, act: impl FnOnce(&mut dyn Engine) -> Result<T, EngineError>) -> Result<T, EngineError> {
        catch_unwind(AssertUnwindSafe(|| act(&mut *self.engine)))
            .unwrap_or_else(|_| Err(EngineError::Unknown("the engine panicked".to_owned())))
    }

    /// Opens the store again where it failed and its pause is over.
    fn recover(&mut self) {
        let Some(outage) = self.outage.take_if(|outage| outage.retry_at <= Instant::now()) else { return };
        match self.reopen() {
            // Those who asked were told that it is unavailable: the replies of their batch are nobody's now.
            Ok(_) => self.queue.set_fault(None),
            Err(error) => self.fail(&error.to_string(), outage.pause.saturating_mul(2).min(PAUSES.1)),
        }
    }

    fn fail(&mut self, why: &str, pause: Duration) {
        self.openings.next();
        self.queue.set_fault(Some(why.to_owned()));
        self.outage = Some(Outage { why: why.to_owned(), retry_at: Instant::now() + pause, pause });
    }
}

fn unavailable(ops: &[Op], why: &str) -> Vec<Outcome> {
    ops.iter().map(|_| Err(LedgerError::Unavailable(why.to_owned()))).collect()
}

impl Drop for Writer {
    /// However the writer ends.
    fn drop(&mut self) {
        self.queue.abandon();
    }
}
