//! Calls that are recorded, on their way to a collector. Their spans are written one behind the other into pages, which are sent as they
//! are. What finds no place is dropped and counted: traces are for looking at, and cost no call anything.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

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
        let (is_first, is_full) = (waiting.calls == 1 && waiting.full.is_empty(), waiting.calls == CALLS_MAX);
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

    /// Waits until a first call has come, or a page is full.
    pub async fn came(&self) {
        self.came.notified().await;
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
    use std::time::{Duration, Instant};

    use tonic::Code;

    use super::*;
    use crate::{call::Course, clock::UtcTime, domain::CorrelationId};

    fn end(tracer: &Tracer) {
        let (course, correlation_id) = (Course::new(Instant::now()), CorrelationId::made());
        tracer.ended(&Ended {
            trace: &tracer.begin(None).unwrap(),
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
    async fn whoever_sends_them_is_woken_for_the_first_and_for_a_full_page() {
        let tracer = Tracer::new(1.0);
        let is_woken = async || tokio::time::timeout(Duration::from_millis(1), tracer.came()).await.is_ok();
        assert!(!is_woken().await);
        end(&tracer);
        assert!(is_woken().await);
        end(&tracer);
        assert!(!is_woken().await, "the second does not wake it");
        for _ in 2..CALLS_MAX {
            end(&tracer);
        }
        assert!(is_woken().await);
    }

    #[test]
    fn one_that_records_none_keeps_none() {
        let (on, off) = (Tracer::new(0.5), Tracer::new(0.0));
        assert!(on.is_on() && !off.is_on());
        assert!(off.begin(None).is_none_or(|trace| !trace.is_sampled));
    }
}
