//! What quotas give: rates by GCRA, and days by count. Wide integers, so that nothing overflows or is rounded but the wait,
//! upwards.

use std::time::Duration;

use super::{Quotas, Refusal};
use crate::{
    clock::UtcTime,
    ledger::{Allowance, Charge},
};

const NANOS_PER_MILLI: i128 = 1_000_000;
/// So far may the times of operations be apart that follow each other: those of gateways whose clocks differ, and of calls that waited.
const APART: i128 = 15_000 * NANOS_PER_MILLI;
const NANOS_PER_DAY: i128 = 86_400_000 * NANOS_PER_MILLI;

/// Takes one unit from every quota, or none from any.
///
/// # Errors
/// The first that is spent, and for how long.
pub fn charge(held: &Quotas, charges: &[Charge], now: UtcTime) -> Result<Quotas, Refusal> {
    let now = i128::from(now.millis()) * NANOS_PER_MILLI;
    let mut taken = Quotas::new();
    for Charge { quota, allowance } in charges {
        let held = taken.get(quota).or_else(|| held.get(quota)).copied().map(i128::from);
        let next = match allowance {
            Allowance::Rate { interval, burst } => of_rate(held, *interval, *burst, now),
            Allowance::Day(most) => of_day(held, *most, now),
        };
        let next = next.map_err(|opens| {
            let wait_ms = u64::try_from((opens - now - 1) / NANOS_PER_MILLI + 1).unwrap_or(u64::MAX);
            Refusal::QuotaSpent { quota: quota.clone(), retry_after: Duration::from_millis(wait_ms) }
        })?;
        taken.insert(quota.clone(), i64::try_from(next).unwrap_or(i64::MAX));
    }
    Ok(taken)
}

/// What is held after one more; or when there is one again.
fn of_rate(held: Option<i128>, interval: Duration, burst: u32, now: i128) -> Result<i128, i128> {
    let interval = i128::try_from(interval.as_nanos()).unwrap_or(i128::from(i64::MAX));
    // No use of a quota reaches further than its burst; what lies beyond comes from a clock that ran ahead.
    let furthest = now.saturating_add(interval.saturating_mul(i128::from(burst)));
    let arrival = held.map_or(now, |at| at.clamp(now, furthest));
    let next = arrival.saturating_add(interval);
    let opens = next.saturating_sub(interval.saturating_mul(i128::from(burst)));
    if opens > now { Err(opens) } else { Ok(next) }
}

/// The same of a day. A count of another day is of no matter, also of one that a clock which ran ahead has begun; but where the next
/// is about to begin, and another gateway has begun it, or who came later was first, it has begun.
fn of_day(held: Option<i128>, most: u32, now: i128) -> Result<i128, i128> {
    let began = now.div_euclid(NANOS_PER_DAY) * NANOS_PER_DAY;
    let next = began + NANOS_PER_DAY;
    let has_begun = held.is_some_and(|held| (next..next + NANOS_PER_DAY).contains(&held));
    let began = if has_begun && next - now <= APART { next } else { began };
    let count = held.map_or(0, |held| held - began);
    let count = if (0..NANOS_PER_DAY).contains(&count) { count } else { 0 };
    if count >= i128::from(most) { Err(began + NANOS_PER_DAY) } else { Ok(began + count + 1) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::step::tests::at;

    #[test]
    fn quotas_admit_their_burst_and_then_their_rate() {
        let charge = |quota: &str, per_s: u32, burst| Charge {
            quota: quota.to_owned(),
            allowance: Allowance::Rate { interval: Duration::from_secs(1) / per_s, burst },
        };
        let charges = [charge("burst", 400, 3), charge("daily", 100, 5)];
        let mut held = Quotas::new();
        let mut take = |millis| match super::charge(&held, &charges, at(millis)) {
            Ok(taken) => {
                held = taken;
                Ok(())
            }
            Err(Refusal::QuotaSpent { quota, retry_after }) => Err((quota, retry_after.as_millis())),
            Err(other) => panic!("{other}"),
        };
        for _ in 0..3 {
            assert_eq!(take(0), Ok(()));
        }
        assert_eq!(take(0), Err(("burst".to_owned(), 3)));
        assert_eq!(take(2), Err(("burst".to_owned(), 1)));
        assert_eq!(take(3), Ok(()));
        assert_eq!(take(5), Ok(()));
        // The refusals took nothing from the second quota either: five of five were admitted.
        assert_eq!(take(8), Err(("daily".to_owned(), 2)));
        assert_eq!(take(10), Ok(()));
    }

    #[test]
    fn a_quota_that_gives_nothing_or_gives_it_never_admits_nothing() {
        for (interval, burst) in [(Duration::from_secs(1), 0), (Duration::MAX, 0)] {
            let charge = Charge { quota: "q".to_owned(), allowance: Allowance::Rate { interval, burst } };
            assert!(super::charge(&Quotas::new(), &[charge], at(0)).is_err());
        }
    }

    #[test]
    fn a_day_gives_so_many_and_the_next_as_many_again() {
        let charge = [Charge { quota: "q".to_owned(), allowance: Allowance::Day(2) }];
        let mut held = Quotas::new();
        let mut take = |at: &str| {
            let taken = super::charge(&held, &charge, UtcTime::parse(at).unwrap());
            held.extend(taken.clone().unwrap_or_default());
            taken.map(drop)
        };
        assert!(take("2026-06-01T23:00:00Z").is_ok());
        assert!(take("2026-06-01T23:59:59Z").is_ok());
        let retry_after = Duration::from_secs(1);
        assert_eq!(take("2026-06-01T23:59:59Z"), Err(Refusal::QuotaSpent { quota: "q".to_owned(), retry_after }));
        assert!(take("2026-06-02T00:00:00Z").is_ok());
        assert!(take("2026-06-02T12:00:00Z").is_ok());
        assert!(take("2026-06-02T13:00:00Z").is_err());
        // A day that a clock had begun too early, or that is long past, counts for nothing.
        assert!(take("2026-06-01T13:00:00Z").is_ok());
        assert!(take("2027-06-01T13:00:00Z").is_ok());
        let none = [Charge { quota: "none".to_owned(), allowance: Allowance::Day(0) }];
        assert!(super::charge(&Quotas::new(), &none, at(0)).is_err());
    }

    /// Times of operations do not come in order: gateways' clocks differ, and calls wait.
    #[test]
    fn a_day_that_has_begun_is_not_begun_again() {
        let charge = [Charge { quota: "q".to_owned(), allowance: Allowance::Day(2) }];
        let mut held = Quotas::new();
        let mut take = |at: &str| {
            let taken = super::charge(&held, &charge, UtcTime::parse(at).unwrap());
            held.extend(taken.clone().unwrap_or_default());
            taken.is_ok()
        };
        for (at, is_given) in [
            ("2026-06-01T23:59:50Z", true),
            ("2026-06-01T23:59:50Z", true),
            ("2026-06-01T23:59:51Z", false),
            ("2026-06-02T00:00:01Z", true),
            ("2026-06-01T23:59:59Z", true),
            ("2026-06-02T00:00:02Z", false),
            ("2026-06-01T23:59:59Z", false),
        ] {
            assert_eq!(take(at), is_given, "{at}");
        }
    }

    proptest! {
        /// However the calls fall, a window admits its burst and what comes back in it, and never one more.
        #[test]
        fn quotas_never_admit_more(pauses in prop::collection::vec(0..30_i64, 1..200), per_s in 1..2_000_u32, burst in 1..20_u32) {
            let interval = Duration::from_secs(1) / per_s;
            let charge = [Charge { quota: "q".to_owned(), allowance: Allowance::Rate { interval, burst } }];
            let (mut held, mut millis, mut admitted) = (Quotas::new(), 0, 0_u128);
            for pause in pauses {
                millis += pause;
                match super::charge(&held, &charge, at(millis)) {
                    Ok(taken) => {
                        held = taken;
                        admitted += 1;
                    }
                    Err(Refusal::QuotaSpent { retry_after, .. }) => {
                        let wait = i64::try_from(retry_after.as_millis()).unwrap();
                        prop_assert!(wait >= 1 && super::charge(&held, &charge, at(millis + wait)).is_ok());
                        prop_assert!(super::charge(&held, &charge, at(millis + wait - 1)).is_err());
                    }
                    Err(other) => panic!("{other}"),
                }
                let back = u128::try_from(millis).unwrap() * 1_000_000 / interval.as_nanos();
                prop_assert!(admitted <= u128::from(burst) + back);
            }
        }
    }
}
