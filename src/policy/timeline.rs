//! The key timeline: which key signs for a partner at an instant, and which keys its JWKS shows. It is read
//! off the clock; no state is flipped by hand.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use crate::{
    clock::UtcTime,
    domain::{Environment, Kid, PartnerId},
    jwk::PublicKey,
};

use super::file::{AttributesRule, Confirmation};

/// One key with its place in time.
#[derive(Debug, Clone)]
pub struct TimedKey {
    /// The key id.
    pub kid: Kid,
    /// The one partner it signs for.
    pub partner: PartnerId,
    /// The signers of the gateway's config that hold it, the preferred one first, each with where it finds it: an
    /// RFC 7512 URI, or a key ARN.
    pub places: Vec<(String, String)>,
    /// What it must state of itself before it signs.
    pub attributes: AttributesRule,
    /// Its public half, as the bundle pins it.
    pub public: Arc<PublicKey>,
    /// Enters the JWKS.
    pub publish_at: UtcTime,
    /// The operator's word that it knows the key.
    pub confirmed: Option<Confirmation>,
    /// Starts to sign.
    pub sign_from: UtcTime,
    /// Ceases to sign.
    pub sign_until: UtcTime,
    /// Leaves the JWKS.
    pub retire_at: UtcTime,
    /// Signs only where no other key may.
    pub standby: bool,
}

/// A key's place on its timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// Not yet in the JWKS.
    Planned,
    /// In the JWKS, not signing.
    Prepared,
    /// Inside its signing window.
    Active,
    /// Past its signing window, still in the JWKS.
    Retiring,
    /// Gone from the JWKS.
    Retired,
}

impl TimedKey {
    /// Where the key stands at `now`.
    #[must_use]
    pub fn state(&self, now: UtcTime) -> KeyState {
        match () {
            () if now < self.publish_at => KeyState::Planned,
            () if now < self.sign_from => KeyState::Prepared,
            () if now < self.sign_until => KeyState::Active,
            () if now < self.retire_at => KeyState::Retiring,
            () => KeyState::Retired,
        }
    }

    /// Whether the JWKS shows it at `now`.
    #[must_use]
    pub fn is_published(&self, now: UtcTime) -> bool {
        matches!(self.state(now), KeyState::Prepared | KeyState::Active | KeyState::Retiring)
    }
}

/// A time during which one key signs, or none.
#[derive(Debug, Clone, Copy)]
pub struct Span<'t> {
    /// Its beginning.
    pub from: UtcTime,
    /// Its end, where that is within the time that was asked about.
    pub until: Option<UtcTime>,
    /// The key.
    pub key: Option<&'t Arc<TimedKey>>,
}

/// All keys of a bundle.
#[derive(Debug, Clone)]
pub struct Timeline {
    pub(super) environment: Environment,
    pub(super) propagation: Duration,
    pub(super) keys: Vec<Arc<TimedKey>>,
}

impl Timeline {
    /// The key that signs for `partner` at `now`: of those that may and were not revoked, the one with the latest
    /// `sign_from`; a standby only where no other may.
    #[must_use]
    pub fn current<'t>(
        &'t self,
        partner: &'t PartnerId,
        now: UtcTime,
        is_revoked: impl Fn(&Kid) -> bool,
    ) -> Option<&'t Arc<TimedKey>> {
        self.of(partner)
            .filter(|key| self.may_sign(key, now) && !is_revoked(&key.kid))
            .max_by_key(|key| (!key.standby, key.sign_from, Reverse(&key.kid)))
    }

    /// Whether `key` may sign at `now`: inside its window, published for the propagation time, and in production
    /// confirmed by the operator.
    #[must_use]
    pub fn may_sign(&self, key: &TimedKey, now: UtcTime) -> bool {
        let confirmed = match &key.confirmed {
            Some(confirmation) => confirmation.at <= now,
            None => self.environment != Environment::Production,
        };
        confirmed && key.state(now) == KeyState::Active && key.publish_at.plus(self.propagation) <= now
    }

    /// The keys that `partner`'s JWKS shows at `now`, by `sign_from`, then kid: none that was revoked.
    pub fn published<'t>(
        &'t self,
        partner: &'t PartnerId,
        now: UtcTime,
        is_revoked: impl Fn(&Kid) -> bool + 't,
    ) -> impl Iterator<Item = &'t Arc<TimedKey>> {
        self.of(partner).filter(move |key| key.is_published(now) && !is_revoked(&key.kid))
    }

    /// Which key signs for `partner` from `from` to `until`, in spans that follow each other without a gap.
    #[must_use]
    pub fn spans<'t>(&'t self, partner: &'t PartnerId, from: UtcTime, until: UtcTime) -> Vec<Span<'t>> {
        let turns = self.of(partner).flat_map(|key| {
            let confirmed = key.confirmed.as_ref().map(|confirmation| confirmation.at);
            [Some(key.sign_from), Some(key.sign_until), Some(key.publish_at.plus(self.propagation)), confirmed]
        });
        let mut turns: Vec<_> = turns.flatten().filter(|turn| from < *turn && *turn < until).chain([from]).collect();
        turns.sort_unstable();
        turns.dedup();
        let mut spans: Vec<Span<'t>> = Vec::new();
        for turn in turns {
            let key = self.current(partner, turn, |_| false);
            match spans.last_mut() {
                Some(last) if last.key.map(|key| &key.kid) == key.map(|key| &key.kid) => {}
                Some(last) => {
                    last.until = Some(turn);
                    spans.push(Span { from: turn, until: None, key });
                }
                None => spans.push(Span { from: turn, until: None, key }),
            }
        }
        spans
    }

    /// All keys of `partner`, by `sign_from`, then kid.
    pub fn of<'t>(&'t self, partner: &'t PartnerId) -> impl Iterator<Item = &'t Arc<TimedKey>> {
        self.keys.iter().filter(move |key| key.partner == *partner)
    }

    /// All keys.
    pub fn all(&self) -> impl Iterator<Item = &Arc<TimedKey>> {
        self.keys.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BITS: [u8; 256] = [0xc3; 256];

    /// A key whose times are in seconds; the loader's rules need not hold of them.
    fn key(at: usize, partner: u8, times: [i64; 4], confirmed: Option<i64>, standby: bool) -> Arc<TimedKey> {
        let kid: Kid = format!("quote-{at}").parse().unwrap();
        let mut modulus = BITS;
        modulus[255] = u8::try_from(at).unwrap() * 2 + 1;
        let [publish_at, sign_from, sign_until, retire_at] = times.map(|second| UtcTime::from_millis(second * 1000));
        let confirmed = confirmed
            .map(|second| Confirmation { at: UtcTime::from_millis(second * 1000), reference: "OPS-1".to_owned() });
        Arc::new(TimedKey {
            public: Arc::new(PublicKey::new(kid.clone(), &modulus, &[1, 0, 1]).unwrap()),
            kid,
            partner: format!("partner-{partner}").parse().unwrap(),
            places: Vec::new(),
            attributes: AttributesRule::Require,
            publish_at,
            confirmed,
            sign_from,
            sign_until,
            retire_at,
            standby,
        })
    }

    prop_compose! {
        fn keys()(all in prop::collection::vec(
            (0..2_u8, [0..40_i64, 0..60, 0..80, 0..100], prop::option::of(0..60_i64), any::<bool>()), 0..9,
        )) -> Vec<Arc<TimedKey>> {
            all.into_iter().enumerate().map(|(at, (partner, times, confirmed, standby))| key(at, partner, times, confirmed, standby)).collect()
        }
    }

    fn environment() -> impl Strategy<Value = Environment> {
        prop::sample::select(vec![Environment::Development, Environment::Sandbox, Environment::Production])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Whatever the times and wherever the clock stands: the key that signs is the partner's own, inside its window, known
        /// for the propagation time, confirmed in production, not revoked; no other that may comes before it; a standby signs
        /// only where no other may; and the answer depends on nothing else.
        #[test]
        fn whoever_signs_may(
            keys in keys(), environment in environment(), propagation in 0..20_u64, now in 0..110_i64,
            revoked in prop::collection::vec(any::<bool>(), 9),
        ) {
            let propagation = Duration::from_secs(propagation);
            let timeline = Timeline { environment, propagation, keys: keys.clone() };
            let now = UtcTime::from_millis(now * 1000);
            let is_revoked = |kid: &Kid| keys.iter().position(|key| key.kid == *kid).is_some_and(|at| revoked[at]);
            for partner in ["partner-0", "partner-1"] {
                let partner: PartnerId = partner.parse().unwrap();
                let may = |key: &TimedKey| {
                    let confirmed = key.confirmed.as_ref().is_some_and(|confirmed| confirmed.at <= now);
                    key.partner == partner
                        && key.publish_at <= now && key.publish_at.plus(propagation) <= now
                        && key.sign_from <= now && now < key.sign_until
                        && (confirmed || key.confirmed.is_none() && environment != Environment::Production)
                        && !is_revoked(&key.kid)
                };
                let current = timeline.current(&partner, now, is_revoked);
                prop_assert_eq!(current.is_some(), keys.iter().any(|key| may(key)));
                for shown in timeline.published(&partner, now, is_revoked) {
                    prop_assert!(shown.partner == partner && !is_revoked(&shown.kid), "a set shows its own partner's keys alone");
                    prop_assert!(shown.publish_at <= now);
                }
                let Some(current) = current else { continue };
                prop_assert!(may(current));
                for other in keys.iter().filter(|other| may(other) && other.kid != current.kid) {
                    prop_assert!(!current.standby || other.standby, "a standby only where no other may");
                    prop_assert!(other.standby != current.standby || other.sign_from <= current.sign_from);
                }
                let mut turned = keys.clone();
                turned.reverse();
                let again = Timeline { environment, propagation, keys: turned };
                let again = again.current(&partner, now, is_revoked).map(|key| key.kid.clone());
                prop_assert_eq!(again, Some(current.kid.clone()), "whatever the order of the entries");
            }
        }

        /// The spans say of every instant what is asked of it alone, and lie end to end.
        #[test]
        fn spans_tell_of_every_instant(keys in keys(), environment in environment(), propagation in 0..20_u64) {
            let timeline = Timeline { environment, propagation: Duration::from_secs(propagation), keys };
            let partner: PartnerId = "partner-0".parse().unwrap();
            let (from, until) = (UtcTime::from_millis(5_000), UtcTime::from_millis(105_000));
            let spans = timeline.spans(&partner, from, until);
            prop_assert_eq!(spans[0].from, from);
            prop_assert!(spans.windows(2).all(|pair| pair[0].until == Some(pair[1].from)));
            prop_assert_eq!(spans[spans.len() - 1].until, None);
            for second in 5..105 {
                let now = UtcTime::from_millis(second * 1000);
                let span = spans.iter().rev().find(|span| span.from <= now).unwrap();
                let kid = |key: Option<&Arc<TimedKey>>| key.map(|key| key.kid.clone());
                prop_assert_eq!(kid(span.key), kid(timeline.current(&partner, now, |_| false)));
            }
        }
    }
}
