//! When a key is taken out of service and when it comes back; pure, time is an argument. A lasting fault opens the
//! breaker at once, others when they come one after another. Only a test signature that verified closes it, and
//! only one that was begun after it opened.

use std::time::{Duration, Instant};

use super::fault::{Fault, Kind};

/// How many faults one after another open the breaker.
pub(super) const FAULTS_MAX: u32 = 5;
/// How long throttling must have lasted to be one of them. A moment of it is what retries are for.
pub(super) const THROTTLED_MAX: Duration = Duration::from_secs(2);

/// A key's breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    open: Option<Fault>,
    /// How often it opened, so that a probe knows whether it is of before or after.
    opened: u64,
    faults: u32,
    throttled_since: Option<Instant>,
    signed_at: Option<Instant>,
}

impl Breaker {
    /// A breaker that is open because of this until a first test signature verifies.
    pub(super) fn open(why: Fault) -> Self {
        Self { open: Some(why), opened: 0, faults: 0, throttled_since: None, signed_at: None }
    }

    /// Why nothing is to be tried.
    pub(super) fn why_open(&self) -> Option<&Fault> {
        self.open.as_ref()
    }

    /// How often it opened; what [`Self::verified`] wants to hear again.
    pub(super) fn opened(&self) -> u64 {
        self.opened
    }

    /// Whether the last call failed.
    pub(super) fn is_troubled(&self) -> bool {
        self.open.is_some() || self.faults > 0
    }

    /// When a signature last came.
    pub(super) fn signed_at(&self) -> Option<Instant> {
        self.signed_at
    }

    /// A signature came. That it verifies is not known yet, so it closes nothing.
    pub(super) fn signed(&mut self, now: Instant) {
        (self.faults, self.throttled_since) = (0, None);
        self.signed_at = Some(now);
    }

    /// A test signature verified that was begun when the breaker had opened `opened` times.
    pub(super) fn verified(&mut self, opened: u64, now: Instant) {
        self.signed(now);
        if opened == self.opened {
            self.open = None;
        }
    }

    /// A call failed.
    pub(super) fn failed(&mut self, fault: &Fault, now: Instant) {
        if fault.is_lasting() || self.open.is_some() {
            return self.trip(fault.clone());
        }
        self.faults = self.faults.saturating_add(1);
        if fault.kind == Kind::Throttled {
            let since = *self.throttled_since.get_or_insert(now);
            if now.saturating_duration_since(since) < THROTTLED_MAX {
                return;
            }
        }
        if self.faults >= FAULTS_MAX {
            self.trip(fault.clone());
        }
    }

    /// Opens it, or says why it is open now.
    pub(super) fn trip(&mut self, why: Fault) {
        self.opened += 1;
        self.open = Some(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: Kind) -> Fault {
        Fault::new(kind, "why")
    }

    fn closed(now: Instant) -> Breaker {
        let mut breaker = Breaker::open(fault(Kind::Refused));
        breaker.verified(0, now);
        assert!(breaker.why_open().is_none());
        breaker
    }

    #[test]
    fn a_lasting_fault_opens_at_once_and_others_when_they_come_one_after_another() {
        let now = Instant::now();
        for kind in [Kind::Unfit, Kind::Refused, Kind::Credentials] {
            let mut breaker = closed(now);
            breaker.failed(&fault(kind), now);
            assert!(breaker.why_open().is_some(), "{kind:?}");
        }
        for kind in [Kind::Failed, Kind::Unreachable] {
            let mut breaker = closed(now);
            for _ in 1..FAULTS_MAX {
                breaker.failed(&fault(kind), now);
            }
            assert!(breaker.why_open().is_none() && breaker.is_troubled());
            breaker.signed(now);
            breaker.failed(&fault(kind), now);
            assert!(breaker.why_open().is_none(), "a signature between them starts the count anew");
            for _ in 1..FAULTS_MAX {
                breaker.failed(&fault(kind), now);
            }
            assert!(breaker.why_open().is_some());
        }
    }

    #[test]
    fn throttling_opens_it_only_if_it_lasts() {
        let now = Instant::now();
        let mut breaker = closed(now);
        for _ in 0..3 * FAULTS_MAX {
            breaker.failed(&fault(Kind::Throttled), now);
        }
        assert!(breaker.why_open().is_none());
        breaker.failed(&fault(Kind::Throttled), now + THROTTLED_MAX);
        assert!(breaker.why_open().is_some());
    }

    #[test]
    fn only_a_probe_that_began_after_it_opened_closes_it() {
        let now = Instant::now();
        let mut breaker = closed(now);
        let began = breaker.opened();
        breaker.trip(fault(Kind::Failed));
        breaker.verified(began, now);
        assert!(breaker.why_open().is_some(), "this probe says nothing of what came after it began");
        breaker.signed(now);
        assert!(breaker.why_open().is_some(), "a signature that nobody has verified yet closes nothing");
        breaker.verified(breaker.opened(), now);
        assert!(breaker.why_open().is_none());
    }
}
