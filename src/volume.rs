//! How much each key signs, against what policy says is too much in an hour and against what the key itself has signed in
//! the hours before. It warns, long before a quota refuses, and never blocks. Kept in memory, by each gateway for what it
//! signs itself: a restart begins to learn again.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::{clock::UtcTime, domain::Kid, policy::Volume};

const MILLIS_PER_HOUR: i64 = 3_600_000;
/// The mean of so many hours is what is usual.
const HOURS_USUAL: u32 = 24;
/// Before so many hours have ended nothing is usual.
const HOURS_LEAST: u32 = 3;
/// Hours without a signature beyond this change nothing any more.
const HOURS_IDLE_MAX: i64 = 200;

/// The hours of each key that has signed.
#[derive(Debug, Default)]
pub struct Volumes(Mutex<HashMap<Kid, Hours>>);

/// One key's hours: the present one, and the mean of those that have ended.
#[derive(Debug, Clone, Default)]
struct Hours {
    hour: i64,
    count: u64,
    total: u64,
    usual: f64,
    ended: u32,
    is_told: bool,
}

/// How a key stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The key.
    pub kid: Kid,
    /// Signed in this hour.
    pub count: u64,
    /// Signed since this gateway started.
    pub total: u64,
    /// Why that is unusual.
    pub unusual: Option<String>,
    /// Whether that was not told yet in this hour.
    pub is_news: bool,
}

impl Volumes {
    /// Counts a signature that was released.
    pub fn signed(&self, kid: &Kid, now: UtcTime) {
        let mut keys = self.0.lock();
        if !keys.contains_key(kid) {
            keys.insert(kid.clone(), Hours { hour: hour_of(now), ..Hours::default() });
        }
        if let Some(hours) = keys.get_mut(kid) {
            hours.roll(hour_of(now));
            hours.count += 1;
            hours.total += 1;
        }
    }

    /// How each key stands at `now`.
    pub fn look(&self, now: UtcTime, rule: Volume) -> Vec<Standing> {
        let mut keys = self.0.lock();
        let mut standings: Vec<Standing> = keys
            .iter_mut()
            .map(|(kid, hours)| {
                hours.roll(hour_of(now));
                let unusual = hours.unusual(rule);
                let is_news = unusual.is_some() && !hours.is_told;
                hours.is_told |= is_news;
                Standing { kid: kid.clone(), count: hours.count, total: hours.total, unusual, is_news }
            })
            .collect();
        standings.sort_by(|a, b| a.kid.cmp(&b.kid));
        standings
    }
}

impl Hours {
    /// Ends the hours before `hour`. A clock that falls back ends none.
    fn roll(&mut self, hour: i64) {
        for _ in 0..(hour - self.hour).min(HOURS_IDLE_MAX) {
            self.ended = self.ended.saturating_add(1);
            #[expect(clippy::cast_precision_loss, reason = "a mean of counts, which are below 2^52")]
            let count = self.count as f64;
            self.usual += (count - self.usual) / f64::from(self.ended.min(HOURS_USUAL));
            (self.count, self.is_told) = (0, false);
        }
        self.hour = self.hour.max(hour);
    }

    fn unusual(&self, rule: Volume) -> Option<String> {
        let count = self.count;
        if count > u64::from(rule.warn_per_hour.get()) {
            return Some(format!("{count} signatures in this hour, above `volume.warn_per_hour`"));
        }
        let often = self.usual * f64::from(rule.warn_times_usual.get());
        #[expect(clippy::cast_precision_loss, reason = "compared with a mean, which is no integer either")]
        let is_more = count as f64 > often;
        let is_much = count > u64::from(rule.ignore_below);
        (self.ended >= HOURS_LEAST && is_more && is_much)
            .then(|| format!("{count} signatures in this hour, where {:.0} are usual", self.usual))
    }
}

fn hour_of(at: UtcTime) -> i64 {
    at.millis().div_euclid(MILLIS_PER_HOUR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: i64) -> UtcTime {
        UtcTime::from_millis(hour * MILLIS_PER_HOUR + 1)
    }

    fn rule() -> Volume {
        Volume { warn_per_hour: 1000.try_into().unwrap(), warn_times_usual: 5.try_into().unwrap(), ignore_below: 20 }
    }

    fn sign(volumes: &Volumes, hour: i64, count: u32) -> Standing {
        let kid = "quote-a".parse().unwrap();
        for _ in 0..count {
            volumes.signed(&kid, at(hour));
        }
        volumes.look(at(hour), rule()).pop().unwrap()
    }

    #[test]
    fn more_than_five_times_the_usual_is_told_once_in_its_hour() {
        let volumes = Volumes::default();
        for hour in 0..3 {
            assert_eq!(sign(&volumes, hour, 100).unusual, None, "nothing is usual yet");
        }
        assert_eq!(sign(&volumes, 3, 500).unusual, None, "five times is not more than that");
        let standing = sign(&volumes, 3, 1);
        assert_eq!(standing.unusual.as_deref(), Some("501 signatures in this hour, where 100 are usual"));
        assert!(standing.is_news);
        assert!(!sign(&volumes, 3, 1).is_news);
        // The hour that was unusual is one of those that make the usual.
        assert_eq!(sign(&volumes, 4, 900).unusual, None);
        assert!(sign(&volumes, 4, 101).unusual.unwrap().contains("above `volume.warn_per_hour`"));
    }

    #[test]
    fn what_is_little_is_never_unusual_and_idle_hours_count() {
        let volumes = Volumes::default();
        sign(&volumes, 0, 1);
        assert_eq!(sign(&volumes, 400, 20).unusual, None);
        let standing = sign(&volumes, 400, 1);
        assert_eq!(standing.unusual.as_deref(), Some("21 signatures in this hour, where 0 are usual"));
        // A clock that falls back ends no hour.
        assert_eq!(sign(&volumes, 399, 1).count, 22);
    }
}
