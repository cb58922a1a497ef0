//! Calls that are recorded, on their way to a collector. What finds no place is dropped and counted: traces are for looking at, and
//! cost no call anything.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::otlp::spans::Ended;
use crate::call::{Parent, Sampler, Trace};

/// How many calls may wait.
const WAITING_MAX: usize = 8192;

/// Decides which calls are recorded, and takes those that have ended.
#[derive(Debug)]
pub struct Tracer {
    sampler: Sampler,
    ended: Option<mpsc::Sender<Ended>>,
    dropped: AtomicU64,
}

impl Tracer {
    /// One that records this share of calls, and where they come out; nowhere where it records none.
    #[must_use]
    pub fn new(ratio: f64) -> (Self, Option<mpsc::Receiver<Ended>>) {
        let (sampler, dropped) = (Sampler::new(ratio), AtomicU64::new(0));
        if ratio <= 0.0 {
            return (Self { sampler, ended: None, dropped }, None);
        }
        let (ended, calls) = mpsc::channel(WAITING_MAX);
        (Self { sampler, ended: Some(ended), dropped }, Some(calls))
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
    pub fn ended(&self, call: Ended) {
        if self.ended.as_ref().is_some_and(|ended| ended.try_send(call).is_err()) {
            self.drop_some(1);
        }
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
