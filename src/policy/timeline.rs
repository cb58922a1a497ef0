//! The key timeline: which key signs for a partner at an instant, and which keys its JWKS shows. It is read
//! off the clock; no state is flipped by hand.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use crate::{
    clock::UtcTime,
    domain::{Environment, KeyState, Kid, PartnerId},
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
    /// Leaves the JWKS, or with the last quote that it signed and that can be presented.
    pub retire_at: UtcTime,
    /// Signs only where no other key may.
    pub standby: bool,
    /// Why it may stand in the bundle with less than the propagation time before `sign_from`; it waits for that time all the
    /// same, unless two operators activate it.
    pub emergency: Option<String>,
}

/// What is known of a key beside its bundle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// It never signs again.
    pub is_revoked: bool,
    /// Since when every gateway that counts was seen to serve it.
    pub served_since: Option<UtcTime>,
    /// It may sign before its propagation time is over and without the operator's confirmation.
    pub is_activated: bool,
    /// How far it has come, as it was journalled: whatever a bundle says later, it does not come back from there.
    pub furthest: Option<KeyState>,
    /// No quote that it signed is valid for longer; absent where it has signed none.
    pub last_expiry: Option<UtcTime>,
}

impl Standing {
    /// As the bundle plans it: served as soon as it says, never revoked.
    pub const PLANNED: Self = Self {
        is_revoked: false,
        served_since: Some(UtcTime::from_millis(0)),
        is_activated: false,
        furthest: None,
        last_expiry: None,
    };

    /// As planned, unless the key was revoked.
    #[must_use]
    pub const fn planned(is_revoked: bool) -> Self {
        Self { is_revoked, ..Self::PLANNED }
    }
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
    /// How long after its expiry a quote may still be presented.
    pub(super) late_acceptance: Duration,
    pub(super) keys: Vec<Arc<TimedKey>>,
}

impl Timeline {
    /// The key that signs for `partner` at `now`: of those that may, the one with the latest `sign_from`; a standby only where
    /// no other may.
    #[must_use]
    pub fn current<'t>(
        &'t self,
        partner: &'t PartnerId,
        now: UtcTime,
        standing: impl Fn(&Kid) -> Standing,
    ) -> Option<&'t Arc<TimedKey>> {
        self.of(partner)
            .filter(|key| self.may_sign(key, now, standing(&key.kid)))
            .max_by_key(|key| (!key.standby, key.sign_from, Reverse(&key.kid)))
    }

    /// Whether `key` may sign at `now`: inside its window, not revoked, served for the propagation time, and in production
    /// confirmed by the operator; the last two unless it was activated.
    #[must_use]
    pub fn may_sign(&self, key: &TimedKey, now: UtcTime, standing: Standing) -> bool {
        key.state(now) == KeyState::Active
            && !standing.is_revoked
            && standing.furthest <= Some(KeyState::Active)
            && (standing.is_activated || self.is_confirmed(key, now) && self.is_known(key, now, standing))
    }

    /// Why a key inside its window does not sign although it was not revoked; nothing where it does.
    #[must_use]
    pub fn waits_for(&self, key: &TimedKey, now: UtcTime, standing: Standing) -> Option<String> {
        if key.state(now) != KeyState::Active || standing.is_revoked || self.may_sign(key, now, standing) {
            return None;
        }
        if standing.furthest > Some(KeyState::Active) {
            return Some(
                "it has ended before; a key that was taken back is not known to verifiers any more".to_owned(),
            );
        }
        if !self.is_confirmed(key, now) {
            return Some("the operator has not confirmed it".to_owned());
        }
        Some(self.known_from(key, standing).map_or_else(
            || "not every gateway, nor its registered URL where policy names one, has been seen to serve it".to_owned(),
            |known| format!("its propagation time ends at {known}"),
        ))
    }

    /// Why `key` does not sign inside its window, or will not from its beginning if nothing changes.
    #[must_use]
    pub fn obstacle(&self, key: &TimedKey, now: UtcTime, standing: Standing) -> Option<String> {
        match key.state(now) {
            KeyState::Planned | KeyState::Retiring | KeyState::Retired => None,
            KeyState::Active => self.waits_for(key, now, standing),
            KeyState::Prepared if standing.is_revoked || standing.is_activated => None,
            KeyState::Prepared if !self.is_confirmed(key, key.sign_from) => {
                Some("the operator has not confirmed it".to_owned())
            }
            KeyState::Prepared if self.propagation.is_zero() => None,
            KeyState::Prepared => match self.known_from(key, standing) {
                Some(known) if known <= key.sign_from => None,
                Some(known) => Some(format!("its propagation time ends at {known}, after `sign_from`")),
                // It may still be seen in time.
                None if now.plus(self.propagation) < key.sign_from => None,
                None => Some(
                    "not every gateway, nor its registered URL where policy names one, has been seen to serve it in time"
                        .to_owned(),
                ),
            },
        }
    }

    /// From when on verifiers know `key`: the propagation time after it was seen to be served.
    #[must_use]
    pub fn known_from(&self, key: &TimedKey, standing: Standing) -> Option<UtcTime> {
        Some(standing.served_since?.max(key.publish_at).plus(self.propagation))
    }

    fn is_known(&self, key: &TimedKey, now: UtcTime, standing: Standing) -> bool {
        // Without a propagation time, in development, there is nothing to wait for.
        self.propagation.is_zero() || self.known_from(key, standing).is_some_and(|known| known <= now)
    }

    fn is_confirmed(&self, key: &TimedKey, now: UtcTime) -> bool {
        match &key.confirmed {
            Some(confirmation) => confirmation.at <= now,
            None => self.environment != Environment::Production,
        }
    }

    /// The keys that `partner`'s JWKS shows at `now`, by `sign_from`, then kid: none that was revoked.
    pub fn published<'t>(
        &'t self,
        partner: &'t PartnerId,
        now: UtcTime,
        standing: impl Fn(&Kid) -> Standing + 't,
    ) -> impl Iterator<Item = &'t Arc<TimedKey>> {
        self.of(partner).filter(move |key| self.is_shown(key, now, standing(&key.kid)))
    }

    /// Whether the JWKS shows `key` at `now`: from `publish_at` to `retire_at`, and for as long as a quote that it has signed
    /// can be presented, whatever a gateway that did not follow a bundle in time has signed with it.
    #[must_use]
    pub fn is_shown(&self, key: &TimedKey, now: UtcTime, standing: Standing) -> bool {
        let is_needed = || standing.last_expiry.is_some_and(|last| now < last.plus(self.late_acceptance));
        !standing.is_revoked && (key.is_published(now) || key.state(now) == KeyState::Retired && is_needed())
    }

    /// When a key of `partner` comes to another state next.
    #[must_use]
    pub fn next_change(&self, partner: &PartnerId, now: UtcTime) -> Option<UtcTime> {
        let turns = self.of(partner).flat_map(|key| [key.publish_at, key.sign_from, key.sign_until, key.retire_at]);
        turns.filter(|turn| *turn > now).min()
    }

    /// Which key signs for `partner` from `from` to `until`, in spans that follow each other without a gap: as planned, but for
    /// keys that are revoked.
    #[must_use]
    pub fn spans<'t>(
        &'t self,
        partner: &'t PartnerId,
        (from, until): (UtcTime, UtcTime),
        is_revoked: impl Fn(&Kid) -> bool,
    ) -> Vec<Span<'t>> {
        let turns = self.of(partner).flat_map(|key| {
            let confirmed = key.confirmed.as_ref().map(|confirmation| confirmation.at);
            [Some(key.sign_from), Some(key.sign_until), Some(key.publish_at.plus(self.propagation)), confirmed]
        });
        let mut turns: Vec<_> = turns.flatten().filter(|turn| from < *turn && *turn < until).chain([from]).collect();
        turns.sort_unstable();
        turns.dedup();
        let mut spans: Vec<Span<'t>> = Vec::new();
        for turn in turns {
            let key = self.current(partner, turn, |kid| Standing::planned(is_revoked(kid)));
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
    #[must_use]
    pub fn of<'t>(&'t self, partner: &'t PartnerId) -> impl DoubleEndedIterator<Item = &'t Arc<TimedKey>> {
        self.keys.iter().filter(move |key| key.partner == *partner)
    }

    /// How long a key must have been served before it signs.
    #[must_use]
    pub fn propagation(&self) -> Duration {
        self.propagation
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
    const LATE: Duration = Duration::from_secs(5);

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
            emergency: None,
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
            served in prop::collection::vec(prop::option::of(0..100_i64), 9),
            furthest in prop::collection::vec(prop::option::of(prop::sample::select(vec![0, 1, 2, 2, 2, 3, 4])), 9),
            last in prop::collection::vec(prop::option::of(0..110_i64), 9),
            activated in prop::collection::vec(prop::sample::select(vec![false, false, false, true]), 9),
        ) {
            let propagation = Duration::from_secs(propagation);
            let timeline = Timeline { environment, propagation, late_acceptance: LATE, keys: keys.clone() };
            let now = UtcTime::from_millis(now * 1000);
            let at = |kid: &Kid| keys.iter().position(|key| key.kid == *kid).unwrap();
            let is_revoked = |kid: &Kid| revoked[at(kid)];
            let standing = |kid: &Kid| Standing {
                is_revoked: revoked[at(kid)],
                served_since: served[at(kid)].map(|second| UtcTime::from_millis(second * 1000)),
                is_activated: activated[at(kid)],
                furthest: furthest[at(kid)].map(|place| KeyState::ALL[place]),
                last_expiry: last[at(kid)].map(|second| UtcTime::from_millis(second * 1000)),
            };
            for partner in ["partner-0", "partner-1"] {
                let partner: PartnerId = partner.parse().unwrap();
                let may = |key: &TimedKey| {
                    let confirmed = key.confirmed.as_ref().is_some_and(|confirmed| confirmed.at <= now);
                    let served = served[at(&key.kid)].map(|second| UtcTime::from_millis(second * 1000));
                    let known = served.is_some_and(|served| served.plus(propagation) <= now) || propagation.is_zero();
                    key.partner == partner
                        && key.publish_at <= now
                        && key.sign_from <= now && now < key.sign_until
                        && !is_revoked(&key.kid)
                        && !matches!(furthest[at(&key.kid)], Some(3 | 4))
                        && (activated[at(&key.kid)]
                            || (confirmed || key.confirmed.is_none() && environment != Environment::Production)
                                && key.publish_at.plus(propagation) <= now && known)
                };
                let current = timeline.current(&partner, now, standing);
                prop_assert_eq!(current.is_some(), keys.iter().any(|key| may(key)));
                let shown: Vec<&Kid> = timeline.published(&partner, now, standing).map(|key| &key.kid).collect();
                for key in &keys {
                    let presentable = last[at(&key.kid)].is_some_and(|last| now < UtcTime::from_millis(last * 1000).plus(LATE));
                    let state = key.state(now);
                    let in_time = key.is_published(now) || state == KeyState::Retired && presentable;
                    prop_assert!(!in_time || key.publish_at <= now);
                    let wanted = key.partner == partner && !is_revoked(&key.kid) && in_time;
                    prop_assert_eq!(shown.contains(&&key.kid), wanted, "a set shows its own partner's keys alone, while they count");
                }
                let Some(current) = current else { continue };
                prop_assert!(may(current));
                for other in keys.iter().filter(|other| may(other) && other.kid != current.kid) {
                    prop_assert!(!current.standby || other.standby, "a standby only where no other may");
                    prop_assert!(other.standby != current.standby || other.sign_from <= current.sign_from);
                }
                let mut turned = keys.clone();
                turned.reverse();
                let again = Timeline { environment, propagation, late_acceptance: LATE, keys: turned };
                let again = again.current(&partner, now, standing).map(|key| key.kid.clone());
                prop_assert_eq!(again, Some(current.kid.clone()), "whatever the order of the entries");
            }
        }

        /// The spans say of every instant what is asked of it alone, and lie end to end.
        #[test]
        fn spans_tell_of_every_instant(keys in keys(), environment in environment(), propagation in 0..20_u64) {
            let timeline = Timeline { environment, propagation: Duration::from_secs(propagation), late_acceptance: LATE, keys };
            let partner: PartnerId = "partner-0".parse().unwrap();
            let (from, until) = (UtcTime::from_millis(5_000), UtcTime::from_millis(105_000));
            let spans = timeline.spans(&partner, (from, until), |_| false);
            prop_assert_eq!(spans[0].from, from);
            prop_assert!(spans.windows(2).all(|pair| pair[0].until == Some(pair[1].from)));
            prop_assert_eq!(spans[spans.len() - 1].until, None);
            for second in 5..105 {
                let now = UtcTime::from_millis(second * 1000);
                let span = spans.iter().rev().find(|span| span.from <= now).unwrap();
                let kid = |key: Option<&Arc<TimedKey>>| key.map(|key| key.kid.clone());
                prop_assert_eq!(kid(span.key), kid(timeline.current(&partner, now, |_| Standing::PLANNED)));
            }
        }
    }
}
