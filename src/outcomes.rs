//! What the operator's API said of quotes, by the key that signed them: counted, and told where verification fails more than
//! now and then. A key that verifiers do not know, or know wrongly, shows here first.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    clock::UtcTime,
    domain::{Kid, QuoteId},
};

/// What the API said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It took the quote.
    Accepted,
    /// It refused it, for what has nothing to do with the signature.
    Refused,
    /// It refused the signature or its key.
    Unverified,
}

impl Outcome {
    /// Its name in records and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Unverified => "verification failed",
        }
    }
}

/// So far back outcomes count for the alert.
const WINDOW: Duration = Duration::from_mins(10);
/// As many are kept of each key.
const KEPT_MAX: usize = 2_000;
/// A spike is at least so many failures, and one in so many of all.
const SPIKE: (usize, usize) = (3, 20);

/// What was reported to this gateway.
#[derive(Debug, Default)]
pub struct Outcomes(Mutex<BTreeMap<Kid, Told>>);

#[derive(Debug, Default)]
struct Told {
    counts: BTreeMap<Outcome, u64>,
    /// Each quote once, as it was last told of.
    lately: VecDeque<(UtcTime, QuoteId, Outcome)>,
}

/// How the quotes of one key fare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fate {
    /// The key.
    pub kid: Kid,
    /// How many of each, since the start.
    pub counts: BTreeMap<Outcome, u64>,
    /// Whether verification fails more than now and then.
    pub is_spike: bool,
}

impl Outcomes {
    /// Takes one down. The same of the same quote counts once, so that a retry or a zealous caller raises nothing.
    pub fn reported(&self, kid: &Kid, quote: &QuoteId, outcome: Outcome, now: UtcTime) {
        let mut all = self.0.lock();
        let told = all.entry(kid.clone()).or_default();
        if told.lately.iter().any(|(_, known, said)| known == quote && *said == outcome) {
            return;
        }
        let count = told.counts.entry(outcome).or_default();
        *count = count.saturating_add(1);
        told.lately.retain(|(_, known, _)| known != quote);
        told.lately.push_back((now, quote.clone(), outcome));
        if told.lately.len() > KEPT_MAX {
            told.lately.pop_front();
        }
    }

    /// How the quotes of every key fare.
    #[must_use]
    pub fn look(&self, now: UtcTime) -> Vec<Fate> {
        let since = now.minus(WINDOW);
        let fate = |(kid, told): (&Kid, &mut Told)| {
            told.lately.retain(|(at, ..)| *at > since);
            let failed = told.lately.iter().filter(|(.., outcome)| *outcome == Outcome::Unverified).count();
            let is_spike = failed >= SPIKE.0 && failed.saturating_mul(SPIKE.1) >= told.lately.len();
            Fate { kid: kid.clone(), counts: told.counts.clone(), is_spike }
        };
        self.0.lock().iter_mut().map(fate).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_more_than_now_and_then_and_ends() {
        let (outcomes, kid) = (Outcomes::default(), "quote-signing-a".parse::<Kid>().unwrap());
        let at = |second: i64| UtcTime::from_millis(second * 1000);
        let is_spike = |second| outcomes.look(at(second))[0].is_spike;
        let quote = |name: String| name.parse::<QuoteId>().unwrap();
        for second in 0..100 {
            outcomes.reported(&kid, &quote(format!("good-{second}")), Outcome::Accepted, at(second));
        }
        for (failures, spike) in [(1, false), (2, false), (3, false), (4, false), (5, false), (6, true)] {
            for _again in 0..3 {
                outcomes.reported(&kid, &quote(format!("bad-{failures}")), Outcome::Unverified, at(100));
            }
            assert_eq!(is_spike(100), spike, "{failures}");
        }
        outcomes.reported(&kid, &quote("other".to_owned()), Outcome::Refused, at(101));
        assert!(is_spike(101) && is_spike(699));
        assert!(!is_spike(701));
        let counts = outcomes.look(at(701)).remove(0).counts;
        assert_eq!(counts, [(Outcome::Accepted, 100), (Outcome::Refused, 1), (Outcome::Unverified, 6)].into());
    }
}
