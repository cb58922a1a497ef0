//! This replica's share of the account's quota. AWS counts the signing requests of an account and region, whoever
//! sends them, so each replica keeps to a share. A request books the moment at which it may go; one that would get
//! its turn too late is told so at once. A retry that the SDK sends by itself is booked afterwards.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A token bucket that gives out moments rather than tokens, so that nobody wakes up to find them taken.
#[derive(Debug)]
pub(super) struct Share {
    /// How far apart two requests are in the long run.
    spacing: Duration,
    /// How far ahead of that pace a request may go.
    slack: Duration,
    /// When the next request would go if none went ahead.
    next: Mutex<Instant>,
}

impl Share {
    /// At most `per_second` requests in any second. A twentieth of them may go at once, since timers are coarse.
    pub(super) fn new(per_second: u32) -> Self {
        let per_second = per_second.max(1);
        let burst = 1 + per_second / 20;
        let spacing = Duration::from_nanos(1_000_000_000_u64.div_ceil(u64::from(per_second - (burst - 1))));
        Self { spacing, slack: spacing * (burst - 1), next: Mutex::new(Instant::now()) }
    }

    /// Books a request that must go by `latest`: gives the moment at which it may, or nothing if that is later.
    pub(super) fn book(&self, now: Instant, latest: Instant) -> Option<Instant> {
        let mut next = self.next.lock();
        let turn = (*next).max(now);
        let may_go = turn.checked_sub(self.slack).map_or(now, |early| early.max(now));
        if may_go > latest {
            return None;
        }
        *next = turn + self.spacing;
        Some(may_go)
    }

    /// Books a request that has gone already.
    pub(super) fn charge(&self) {
        let mut next = self.next.lock();
        *next = (*next).max(Instant::now()) + self.spacing;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_beyond_the_share_wait_or_are_refused_at_once() {
        let share = Share::new(10);
        let now = Instant::now();
        let later = |ms| now + Duration::from_millis(ms);
        assert_eq!(share.book(now, later(1_000)), Some(now));
        assert_eq!(share.book(now, later(1_000)), Some(later(100)));
        assert_eq!(share.book(now, later(150)), None);
        assert_eq!(share.book(now, later(200)), Some(later(200)), "a refusal books nothing");
        assert_eq!(share.book(later(5_000), later(5_000)), Some(later(5_000)), "what was not used is not saved up");
        assert_eq!(share.book(later(5_000), later(5_050)), None);
    }

    #[test]
    fn a_retry_is_booked_too() {
        let share = Share::new(10);
        let now = Instant::now() + Duration::from_millis(1);
        share.charge();
        share.charge();
        assert!(share.book(now, now + Duration::from_secs(1)).unwrap() >= now + Duration::from_millis(100));
    }

    proptest! {
        #[test]
        fn no_second_holds_more_than_the_share(
            per_second in 1_u32..400,
            gaps in prop::collection::vec(0_u64..20_000, 1..900),
        ) {
            let share = Share::new(per_second);
            let mut now = Instant::now() + Duration::from_secs(1);
            let mut went = Vec::new();
            for gap in gaps {
                now += Duration::from_micros(gap);
                went.extend(share.book(now, now + Duration::from_secs(1)));
            }
            for (at, first) in went.iter().enumerate() {
                let within = went.iter().skip(at).take_while(|gone| **gone < *first + Duration::from_secs(1)).count();
                prop_assert!(within <= per_second as usize, "{within} in a second");
            }
        }
    }
}
