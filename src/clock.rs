//! Time: UTC instants to the millisecond, the clock that gives them, and the guard that says whether to
//! trust it. Nothing else in the gateway asks the system for the time of day.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::domain::Malformed;

/// An instant in UTC, in milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UtcTime(i64);

impl UtcTime {
    /// The instant `millis` after the epoch.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// This much later, held at the end of time.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(millis_of(span)))
    }

    /// This much earlier, held at the beginning of time.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(millis_of(span)))
    }

    /// The time from `earlier` to this; zero where `earlier` is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Reads RFC 3339 with a capital `T`, a capital `Z`, whole seconds or milliseconds, and a date that
    /// exists. No other offset, no leap second: a quote's times have one spelling.
    ///
    /// # Errors
    /// Names the rule where the text breaks it.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let shape: &[u8] = match text.len() {
            20 => b"dddd-dd-ddTdd:dd:ddZ",
            24 => b"dddd-dd-ddTdd:dd:dd.dddZ",
            _ => return Err(Malformed::time()),
        };
        let fits = |(byte, want): (u8, &u8)| if *want == b'd' { byte.is_ascii_digit() } else { byte == *want };
        if !text.bytes().zip(shape).all(fits) || text.get(17..19) == Some("60") {
            return Err(Malformed::time());
        }
        let instant = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| Malformed::time())?;
        i64::try_from(instant.unix_timestamp_nanos().div_euclid(1_000_000)).map(Self).map_err(|_| Malformed::time())
    }
}

fn millis_of(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

impl fmt::Display for UtcTime {
    /// Whole seconds, or three digits behind them: what [`UtcTime::parse`] takes back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instant = OffsetDateTime::from_unix_timestamp(self.0.div_euclid(1000)).ok();
        let Some(instant) = instant.filter(|instant| (0..=9999).contains(&instant.year())) else {
            return f.write_str("beyond-the-calendar");
        };
        let (date, time, millis) = (instant.date(), instant.time(), self.0.rem_euclid(1000));
        let (hour, minute, second) = time.as_hms();
        let [month, day, hour, minute, second] = [date.month().into(), date.day(), hour, minute, second].map(i64::from);
        // Digit by digit: every record has a time or two, and seven numbers in a format string take their time.
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let numbers = [i64::from(date.year()), month, day, hour, minute, second, millis];
        for (digits, mut number) in text.split_mut(|byte| !byte.is_ascii_digit()).zip(numbers) {
            for digit in digits.iter_mut().rev() {
                *digit = b'0' + u8::try_from(number.rem_euclid(10)).unwrap_or_default();
                number /= 10;
            }
        }
        let text = str::from_utf8(&text).unwrap_or_default();
        match text.strip_suffix(".000Z") {
            Some(whole) => f.write_str(whole).and_then(|()| f.write_str("Z")),
            None => f.write_str(text),
        }
    }
}

impl Serialize for UtcTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UtcTime {
    /// Takes a TOML date-time or a string; both by the rule of [`UtcTime::parse`].
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Text {
            Toml(toml::value::Datetime),
            Plain(String),
        }
        let text = match Text::deserialize(deserializer)? {
            Text::Toml(instant) => instant.to_string(),
            Text::Plain(text) => text,
        };
        Self::parse(&text).map_err(D::Error::custom)
    }
}

/// Where instants come from. A parameter everywhere, so that a test can move it.
pub trait Clock: Send + Sync + 'static {
    /// The time of day.
    fn now(&self) -> UtcTime;
    /// Time that runs evenly whatever is done to the time of day, from an arbitrary start.
    fn steady(&self) -> Duration;
}

/// The machine's clocks: `CLOCK_REALTIME`, and `CLOCK_BOOTTIME` for the steady one.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one clock that asks the machine")]
    fn now(&self) -> UtcTime {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        UtcTime(since_epoch.map_or(0, millis_of))
    }

    fn steady(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of [`Instant`], which processes of one machine share.
#[must_use]
pub fn steady_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    seconds * 1_000_000_000 + nanos
}

/// What [`steady_ns`] will say at `instant`; now, where it has passed.
#[must_use]
pub fn steady_ns_at(instant: Instant) -> u64 {
    let left = instant.saturating_duration_since(Instant::now());
    steady_ns().saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
}

/// Why the clock is not trusted for the moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClockFault {
    /// The time of day jumped against the steady clock.
    #[error("the clock was stepped; signing resumes once it has been steady for {settle_s} s")]
    Stepped {
        /// By how much, in milliseconds.
        step_ms: i64,
        /// How long it must run evenly before it is trusted again.
        settle_s: u64,
    },
    /// The time of day is before something that the journal says has happened.
    #[error("the clock is behind the newest journal record")]
    BehindJournal {
        /// By how much, in milliseconds.
        behind_ms: i64,
    },
}

/// How far the clock may stray before the gateway stops signing.
#[derive(Debug, Clone, Copy)]
pub struct ClockBounds {
    /// The largest step against the steady clock, and the largest distance behind the journal.
    pub step_max: Duration,
    /// How long a stepped clock must run evenly before it is trusted again.
    pub settle: Duration,
}

/// Watches the time of day: a step, or a time before the newest journal record, stops signing until it heals.
pub struct ClockGuard {
    clock: Arc<dyn Clock>,
    bounds: ClockBounds,
    state: Mutex<GuardState>,
}

struct GuardState {
    /// Time of day less steady time, in milliseconds, as last trusted.
    offset_ms: i64,
    /// An offset beyond the bound, and the steady time since which it has held.
    strayed: Option<(i64, Duration)>,
    /// The newest time the journal holds.
    journal: UtcTime,
}

impl ClockGuard {
    /// A guard that trusts the clock as it now is, but never below `journal`, the newest record's time.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, bounds: ClockBounds, journal: UtcTime) -> Self {
        let offset_ms = offset_ms(&*clock);
        Self { clock, bounds, state: Mutex::new(GuardState { offset_ms, strayed: None, journal }) }
    }

    /// Tells the guard that the journal holds a record of this time.
    pub fn journal_reached(&self, at: UtcTime) {
        let mut state = self.state.lock();
        state.journal = state.journal.max(at);
    }

    /// The time, if it can be trusted.
    ///
    /// # Errors
    /// Says how the clock strayed. The fault heals by itself once the clock runs evenly again.
    pub fn now(&self) -> Result<UtcTime, ClockFault> {
        let now = self.clock.now();
        let steady = self.clock.steady();
        let offset = now.millis().saturating_sub(millis_of(steady));
        let bound = millis_of(self.bounds.step_max);
        let mut state = self.state.lock();
        let step = offset.saturating_sub(state.offset_ms);
        if step.abs() <= bound {
            state.strayed = None;
        } else {
            let since = match state.strayed {
                Some((held, since)) if offset.saturating_sub(held).abs() <= bound => since,
                _ => steady,
            };
            state.strayed = Some((offset, since));
            if steady.saturating_sub(since) < self.bounds.settle {
                return Err(ClockFault::Stepped { step_ms: step, settle_s: self.bounds.settle.as_secs() });
            }
            state.offset_ms = offset;
            state.strayed = None;
        }
        let behind = state.journal.millis().saturating_sub(now.millis());
        if behind > bound {
            return Err(ClockFault::BehindJournal { behind_ms: behind });
        }
        Ok(now)
    }
}

fn offset_ms(clock: &dyn Clock) -> i64 {
    clock.now().millis().saturating_sub(millis_of(clock.steady()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_have_one_spelling() {
        assert_eq!(UtcTime::parse("1970-01-01T00:00:01Z"), Ok(UtcTime(1000)));
        assert_eq!(
            UtcTime::parse("2026-02-28T23:59:59.250Z").map(|t| t.to_string()).as_deref(),
            Ok("2026-02-28T23:59:59.250Z")
        );
        for bad in [
            "2026-02-29T00:00:00Z",
            "2026-06-30T23:59:60Z",
            "2026-06-30t23:59:59z",
            "2026-06-30T23:59:59+00:00",
            "2026-06-30T24:00:00Z",
            "2026-06-30T23:59:59.1Z",
            "2026-06-30 23:59:59Z",
            "２026-06-30T23:59Z",
        ] {
            assert!(UtcTime::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(millis in -62_167_219_200_000_i64..253_402_300_800_000) {
            for at in [UtcTime(millis), UtcTime(millis - millis.rem_euclid(1_000))] {
                prop_assert_eq!(UtcTime::parse(&at.to_string()), Ok(at));
            }
        }
    }

    #[derive(Default)]
    struct Hands(Mutex<(i64, u64)>);

    impl Clock for Hands {
        fn now(&self) -> UtcTime {
            UtcTime(self.0.lock().0)
        }
        fn steady(&self) -> Duration {
            Duration::from_millis(self.0.lock().1)
        }
    }

    impl Hands {
        fn run(&self, day_ms: i64, steady_ms: u64) {
            let mut hands = self.0.lock();
            hands.0 += day_ms;
            hands.1 += steady_ms;
        }
    }

    fn guard(journal: i64) -> (Arc<Hands>, ClockGuard) {
        let hands = Arc::new(Hands(Mutex::new((1_000_000, 0))));
        let bounds = ClockBounds { step_max: Duration::from_secs(1), settle: Duration::from_mins(1) };
        (hands.clone(), ClockGuard::new(hands, bounds, UtcTime(journal)))
    }

    #[test]
    fn a_step_stops_signing_until_the_clock_has_settled() {
        let (hands, guard) = guard(0);
        hands.run(5_000, 5_000);
        assert!(guard.now().is_ok());
        hands.run(3_600_000, 0);
        assert_eq!(guard.now(), Err(ClockFault::Stepped { step_ms: 3_600_000, settle_s: 60 }));
        hands.run(59_000, 59_000);
        assert!(guard.now().is_err());
        hands.run(1_000, 1_000);
        assert!(guard.now().is_ok());
    }

    #[test]
    fn a_step_that_is_undone_heals_at_once() {
        let (hands, guard) = guard(0);
        hands.run(-30_000, 0);
        assert!(guard.now().is_err());
        hands.run(30_000, 0);
        assert!(guard.now().is_ok());
    }

    #[test]
    fn time_is_never_below_the_journal() {
        let (hands, guard) = guard(1_010_000);
        assert_eq!(guard.now(), Err(ClockFault::BehindJournal { behind_ms: 10_000 }));
        hands.run(9_500, 9_500);
        assert!(guard.now().is_ok());
        guard.journal_reached(UtcTime(1_020_000));
        assert!(guard.now().is_err());
    }
}
