//! This replica's share of the account's quota. AWS counts the signing requests of an account and region, whoever
//! sends them, so each replica keeps to a share. It is the pace at which orders get their turns; a retry that the SDK
//! sends by itself is counted afterwards.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::signer::turns::Pace;

/// A token bucket that tells moments rather than tokens.
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
}

impl Pace for Share {
    fn next(&self, now: Instant) -> Instant {
        self.next.lock().checked_sub(self.slack).map_or(now, |early| early.max(now))
    }

    fn spacing(&self) -> Duration {
        self.spacing
    }

    fn take(&self, now: Instant) {
        let mut next = self.next.lock();
        *next = (*next).max(now) + self.spacing;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let share = Share::new(10);
        let now = Instant::now();
        let later = |ms| now + Duration::from_millis(ms);
        for (at, next) in [(0, 100), (100, 200), (5_000, 5_100)] {
            assert_eq!(share.next(later(at)), later(at));
            share.take(later(at));
            assert_eq!(share.next(later(at)), later(next));
        }
        assert_eq!(share.next(later(6_000)), later(6_000));
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
                if share.next(now) == now {
                    share.take(now);
                    went.push(now);
                }
            }
            for (at, first) in went.iter().enumerate() {
                let within = went.iter().skip(at).take_while(|gone| **gone < *first + Duration::from_secs(1)).count();
                prop_assert!(within <= per_second as usize, "{within} in a second");
            }
        }
    }
}
