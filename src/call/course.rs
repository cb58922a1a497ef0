//! When each stage of a call ran. Written without a lock by whichever task runs the stage, read when the call has ended.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Defines the stages with their names, of which there is one list.
macro_rules! stages {
    ($($(#[$about:meta])* $stage:ident = $name:literal,)+) => {
        /// A stage of the path of a quote.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Stage {
            $($(#[$about])* $stage,)+
        }

        impl Stage {
            /// All of them, in the order in which a quote meets them.
            pub const ALL: &[Self] = &[$(Self::$stage),+];

            /// Its name in metrics and traces.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$stage => $name,)+
                }
            }

            /// The name of the attribute that tells how long it took, in nanoseconds.
            #[must_use]
            pub const fn attribute(self) -> &'static str {
                match self {
                    $(Self::$stage => concat!("quotesign.stage.", $name, "_ns"),)+
                }
            }
        }
    };
}

stages! {
    /// The payload is read.
    Parse = "parse",
    /// It is held against its contract.
    Validate = "validate",
    /// Policy is asked.
    Authorize = "authorize",
    /// Its canonical form is built.
    Canonicalise = "canonicalise",
    /// A key is found.
    Select = "select",
    /// A place at its device is taken.
    Admit = "admit",
    /// A quote that was signed before is looked up.
    Recall = "recall",
    /// The ledger binds a number and a key to it.
    Reserve = "reserve",
    /// The device signs.
    Sign = "sign",
    /// The signature is verified.
    Verify = "verify",
    /// The ledger stores the result.
    Commit = "commit",
}

/// The course of one call.
#[derive(Debug)]
pub struct Course {
    started: Instant,
    laps: [Lap; Stage::ALL.len()],
}

/// In nanoseconds; a stage that did not run took none.
#[derive(Debug, Default)]
struct Lap {
    from: AtomicU64,
    took: AtomicU64,
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

impl Course {
    /// Of a call that started then.
    #[must_use]
    pub fn new(started: Instant) -> Self {
        Self { started, laps: Default::default() }
    }

    /// When the call started.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// `stage` begins now: until it has run it is one that the call waits for.
    pub fn begins(&self, stage: Stage) -> Instant {
        let from = Instant::now();
        if let Some(lap) = self.laps.get(stage as usize) {
            lap.took.store(0, Ordering::Relaxed);
            lap.from.store(nanos(from.saturating_duration_since(self.started)).max(1), Ordering::Relaxed);
        }
        from
    }

    /// `stage` ran from `from` until now. Where it ran twice, the last time counts.
    pub fn ran(&self, stage: Stage, from: Instant) {
        if let Some(lap) = self.laps.get(stage as usize) {
            lap.from.store(nanos(from.saturating_duration_since(self.started)), Ordering::Relaxed);
            lap.took.store(nanos(from.elapsed()).max(1), Ordering::Relaxed);
        }
    }

    /// Runs `stage`.
    pub fn time<T>(&self, stage: Stage, run: impl FnOnce() -> T) -> T {
        let from = Instant::now();
        let done = run();
        self.ran(stage, from);
        done
    }

    /// The stages that have begun and not ended, each with how long after the call's start it began.
    pub fn open(&self) -> impl Iterator<Item = (Stage, Duration)> {
        Stage::ALL.iter().zip(&self.laps).filter_map(|(stage, lap)| {
            let (from, took) = (lap.from.load(Ordering::Relaxed), lap.took.load(Ordering::Relaxed));
            (from > 0 && took == 0).then(|| (*stage, Duration::from_nanos(from)))
        })
    }

    /// The stages that ran: each with how long after the call's start it began and how long it took.
    pub fn stages(&self) -> impl Iterator<Item = (Stage, Duration, Duration)> {
        Stage::ALL.iter().zip(&self.laps).filter_map(|(stage, lap)| {
            let took = lap.took.load(Ordering::Relaxed);
            let span = |nanos| Duration::from_nanos(nanos);
            (took > 0).then(|| (*stage, span(lap.from.load(Ordering::Relaxed)), span(took)))
        })
    }
}
