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
