//! Calls that are recorded, on their way to a collector. Their spans are written one behind the other into pages, which are sent as they
//! are. What finds no place is dropped and counted: traces are for looking at, and cost no call anything.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::otlp::spans::{Ended, SpanWriter};
use crate::call::{Parent, Sampler, Trace};

/// How many calls are of one page at most, and how many full pages may wait.
const CALLS_MAX: usize = 512;
const PAGES_MAX: usize = 16;

/// Decides which calls are recorded, and keeps those that have ended.
#[derive(Debug)]
pub struct Tracer {
    sampler: Sampler,
    is_on: bool,
    waiting: Mutex<Waiting>,
    came: Notify,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    full: VecDeque<Recorded>,
    page: SpanWriter,
    /// How many calls are of the page.
    calls: usize,
    /// For the next page.
    room: Vec<u8>,
}

/// The spans of calls, as a request has them.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Their bytes.
    pub spans: Vec<u8>,
    /// How many calls they are of.
    pub calls: usize,
}

impl Waiting {
    fn turn(&mut self) -> Recorded {
        let room = std::mem::take(&mut self.room);
        Recorded { spans: self.page.take(room), calls: std::mem::take(&mut self.calls) }
    }
}

impl Tracer {
    /// One that records this share of calls.
    #[must_use]
    pub fn new(ratio: f64) -> Self {
        Self {
            sampler: Sampler::new(ratio),
            is_on: ratio > 0.0,
            waiting: Mutex::default(),
            came: Notify::new(),
            dropped: AtomicU64::new(0),
        }
    }

    /// Whether it records any.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// A call's place in a trace.
    #[must_use]
    pub fn begin(&self, parent: Option<Parent>) -> Option<Trace> {
        self.sampler.begin(parent)
    }

    /// Ids for the stages of a call.
    #[must_use]
    pub fn ids<const N: usize>(&self) -> [[u8; 8]; N] {
        std::array::from_fn(|_| self.sampler.span_id())
    }

    /// A call has ended.
    pub fn ended(&self, call: &Ended<'_>) {
        if !self.is_on {
            return;
        }
        let mut waiting = self.waiting.lock();
        if waiting.full.len() >= PAGES_MAX {
            drop(waiting);
            return self.drop_some(1);
        }
        waiting.page.add(call);
        waiting.calls += 1;
        let (is_first, is_full) = (waiting.calls == 1, waiting.calls == CALLS_MAX);
        if is_full {
            let page = waiting.turn();
            waiting.full.push_back(page);
        }
        drop(waiting);
        // Whoever sends them is not woken for each.
        if is_first || is_full {
            self.came.notify_one();
        }
    }

    /// Waits until a page is full; at most so long after a first call has come.
    pub async fn gathered(&self, most: Duration) {
        while !self.waits() {
            self.came.notified().await;
        }
        let until = Instant::now() + most;
        while !self.has_full() && tokio::time::timeout_at(until, self.came.notified()).await.is_ok() {}
    }

    /// Whether any call waits.
    fn waits(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.calls > 0 || !waiting.full.is_empty()
    }

    /// Whether a page is full.
    #[must_use]
    pub fn has_full(&self) -> bool {
        !self.waiting.lock().full.is_empty()
    }

    /// The calls that have waited longest, of one page.
    #[must_use]
    pub fn take(&self) -> Option<Recorded> {
        let mut waiting = self.waiting.lock();
        if waiting.calls == 0 && waiting.full.is_empty() {
            return None;
        }
        Some(waiting.full.pop_front().unwrap_or_else(|| waiting.turn()))
    }

    /// Gives back the room of calls that were sent, for others.
    pub fn reuse(&self, room: Vec<u8>) {
        self.waiting.lock().room = room;
    }

    /// So many were not taken by a collector.
    pub fn drop_some(&self, calls: usize) {
        self.dropped.fetch_add(calls as u64, Ordering::Relaxed);
    }

    /// How many recorded calls were dropped since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::{call::Course, clock::UtcTime, domain::CorrelationId};

    fn end(tracer: &Tracer) {
        end_of(tracer, &tracer.begin(None).unwrap());
    }

    fn end_of(tracer: &Tracer, trace: &Trace) {
        let (course, correlation_id) = (Course::new(std::time::Instant::now()), CorrelationId::made());
        tracer.ended(&Ended {
            trace,
            stage_ids: tracer.ids(),
            method: "m",
            correlation_id: &correlation_id,
            began: UtcTime::from_millis(1),
            took: Duration::ZERO,
            course: &course,
            code: Code::Ok,
            reason: "",
            subject: None,
        });
    }

    #[test]
    fn calls_wait_in_pages_of_bounded_size_and_number() {
        let tracer = Tracer::new(1.0);
        assert!(tracer.take().is_none());
        end(&tracer);
        assert!(!tracer.has_full());
        let page = tracer.take().unwrap();
        assert!((page.calls, page.spans.is_empty()) == (1, false) && tracer.take().is_none());

        for _ in 0..CALLS_MAX * PAGES_MAX + 3 {
            end(&tracer);
        }
        assert!(tracer.has_full());
        assert_eq!(tracer.dropped(), 3);
        let sizes: Vec<_> = std::iter::from_fn(|| tracer.take()).map(|page| page.calls).collect();
        assert_eq!(sizes, [CALLS_MAX; PAGES_MAX]);
        end(&tracer);
        assert_eq!((tracer.take().map(|page| page.calls), tracer.dropped()), (Some(1), 3));
    }

    #[tokio::test]
    async fn calls_are_gathered_until_a_page_is_full_or_for_so_long() {
        let (tracer, most) = (Tracer::new(1.0), Duration::from_millis(400));
        let gathered = async |patience| {
            let began = Instant::now();
            let gathered = tokio::time::timeout(Duration::from_millis(patience), tracer.gathered(most)).await;
            gathered.is_ok().then(|| began.elapsed() >= most)
        };
        assert_eq!(gathered(50).await, None, "nothing has come");
        // One that was told of, and taken before, is none that is waited for.
        end(&tracer);
        assert!(tracer.take().is_some());
        assert_eq!(gathered(600).await, None);
        end(&tracer);
        end(&tracer);
        assert_eq!(gathered(60_000).await, Some(true));
        for _ in 2..=CALLS_MAX {
            end(&tracer);
        }
        assert_eq!(gathered(60_000).await, Some(false), "a full page is not left to wait");
        assert_eq!(tracer.take().map(|page| page.calls), Some(CALLS_MAX));
        assert_eq!(gathered(60_000).await, Some(true), "the one behind the page is not forgotten");
        assert_eq!(tracer.take().map(|page| page.calls), Some(1));
    }

    #[test]
    fn one_that_records_none_keeps_none() {
        let (on, off) = (Tracer::new(1.0), Tracer::new(0.0));
        assert!(on.is_on() && !off.is_on());
        let parent = Parent { trace_id: [1; 16], span_id: [2; 8], is_sampled: true };
        assert!(off.begin(Some(parent)).is_none_or(|trace| !trace.is_sampled));
        let trace = on.begin(None).unwrap();
        for tracer in [&on, &off] {
            end_of(tracer, &trace);
        }
        assert_eq!((on.take().map(|page| page.calls), off.take().is_none(), off.dropped()), (Some(1), true, 0));
    }
}
