//! How far the shipping of the journal is behind what is written there.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use crate::clock::UtcTime;

/// How far it is behind. Written by what ships, read by all who tell of it, and by the path of a quote where the config says
/// that nothing is signed beyond a bound.
#[derive(Debug, Default)]
pub struct Backlog {
    /// When the oldest record was made that no collector has taken, in milliseconds since 1970; 0 where there is none.
    oldest_ms: AtomicI64,
    /// Of those that this gateway wrote itself.
    own_ms: AtomicI64,
    records: AtomicU64,
    shipped: AtomicU64,
    aside: AtomicU64,
    gone: AtomicU64,
    failures: AtomicU64,
    fault: Mutex<Option<String>>,
}

/// Nothing is signed while the oldest record waits for so long to be shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit journal was not shipped for {} s, and this gateway signs nothing beyond {} s of that", .waits.as_secs(), .most.as_secs())]
pub struct TooFarBehind {
    /// How long the oldest one has waited.
    pub waits: Duration,
    /// How long it may.
    pub most: Duration,
}

impl Backlog {
    /// So many records wait, the oldest of them made at `oldest`, and the oldest that this gateway wrote at `own`.
    pub fn is(&self, records: u64, oldest: Option<UtcTime>, own: Option<UtcTime>) {
        self.records.store(records, Ordering::Relaxed);
        self.oldest_ms.store(oldest.map_or(0, UtcTime::millis), Ordering::Relaxed);
        self.own_ms.store(own.map_or(0, UtcTime::millis), Ordering::Relaxed);
    }

    /// It is not known, at `now`, what waits: whatever is written from now on does, at least.
    pub fn is_unknown(&self, now: UtcTime) {
        for oldest in [&self.oldest_ms, &self.own_ms] {
            let _known = oldest.compare_exchange(0, now.millis(), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// So many more were taken.
    pub fn shipped(&self, records: u64) {
        if records > 0 {
            self.shipped.fetch_add(records, Ordering::Relaxed);
            *self.fault.lock() = None;
        }
    }

    /// The journal is not whole: for this reason not all of it can be shipped.
    pub fn is_torn(&self, why: String) {
        *self.fault.lock() = Some(why);
    }

    /// A collector did not take what it was sent.
    pub fn failed(&self, why: String) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        *self.fault.lock() = Some(why);
    }

    /// So many records no collector will take.
    pub fn aside(&self, records: u64) {
        self.aside.store(records, Ordering::Relaxed);
    }

    /// So many more records are not where they were written.
    pub fn are_gone(&self, records: u64) {
        self.gone.fetch_add(records, Ordering::Relaxed);
    }

    /// How many records were found gone since the start.
    #[must_use]
    pub fn gone(&self) -> u64 {
        self.gone.load(Ordering::Relaxed)
    }

    /// How long the oldest record has waited at `now`.
    #[must_use]
    pub fn waits(&self, now: UtcTime) -> Duration {
        since(&self.oldest_ms, now)
    }

    /// How many records wait.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// How many were taken since the start, how many no collector will take, and how often one did not take what it was sent.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (count(&self.shipped), count(&self.aside), count(&self.failures))
    }

    /// Why the last request failed, or what of the journal is lost; nothing where all is well.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().clone()
    }

    /// Whether a quote may be signed at `now` where nothing may wait longer than `most`.
    ///
    /// # Errors
    /// Where something does.
    pub fn bears(&self, now: UtcTime, most: Option<Duration>) -> Result<(), TooFarBehind> {
        let waits = since(&self.own_ms, now);
        match most {
            Some(most) if waits > most => Err(TooFarBehind { waits, most }),
            _ => Ok(()),
        }
    }
}

fn since(oldest_ms: &AtomicI64, now: UtcTime) -> Duration {
    match oldest_ms.load(Ordering::Relaxed) {
        0 => Duration::ZERO,
        oldest => now.since(UtcTime::from_millis(oldest)),
    }
}
