//! Picks the key that the timeline makes current for the quote's partner at this instant. A key whose device is known to be down
//! is refused here, before a number is taken.

use std::sync::Arc;

use crate::{
    clock::UtcTime,
    domain::{Kid, PartnerId},
    policy::{
        Bundle,
        timeline::{Standing, TimedKey},
    },
    published::Standings,
    signer::{
        Health,
        keyring::{BoundKey, Keyring},
    },
};

use super::canonicalise::Canonical;

/// Why no key can sign for the partner now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// The timeline has none.
    #[error("no key of `{0}` may sign now; `quotesign policy check` shows the timeline")]
    NoneActive(PartnerId),
    /// The one that would sign was revoked, and there is no other.
    #[error("the key `{0}` was revoked, and no other may sign now")]
    Revoked(Kid),
    /// The one that would sign must not yet.
    #[error("the key `{0}` may not sign yet: {1}")]
    Waits(Kid, String),
    /// The key's device cannot sign.
    #[error("the key cannot sign at the moment: {0}")]
    NotServing(String),
}

/// A quote with the key that is to sign it.
#[derive(Debug)]
pub struct Keyed {
    pub(super) canonical: Canonical,
    pub(super) key: Arc<TimedKey>,
    pub(super) signer: Arc<BoundKey>,
}

/// Selects the key.
///
/// # Errors
/// Where none may sign at `now`, or the one that may cannot.
pub fn select_key(
    canonical: Canonical,
    policy: &Bundle,
    keyring: &Keyring,
    standings: &Standings,
    now: UtcTime,
) -> Result<Keyed, NoKey> {
    let partner = canonical.partner();
    let current = policy.timeline.current(partner, now, |kid| standings.of(kid));
    let key = current.cloned().ok_or_else(|| why_none(policy, partner, standings, now))?;
    let signer = keyring.get(&key.kid);
    let signer = signer.ok_or_else(|| NoKey::NotServing("no signer is bound to it".to_owned()))?;
    if let Health::NotServing(why) = signer.health() {
        return Err(NoKey::NotServing(why));
    }
    Ok(Keyed { canonical, key, signer })
}

/// What stands in the way of the key that the timeline would have sign.
fn why_none(policy: &Bundle, partner: &PartnerId, standings: &Standings, now: UtcTime) -> NoKey {
    let timeline = &policy.timeline;
    let mut waiting = timeline.of(partner).rev().map(|key| (key, timeline.waits_for(key, now, standings.of(&key.kid))));
    if let Some((key, Some(why))) = waiting.find(|(_, why)| why.is_some()) {
        return NoKey::Waits(key.kid.clone(), why);
    }
    match timeline.current(partner, now, |_| Standing::PLANNED) {
        Some(revoked) => NoKey::Revoked(revoked.kid.clone()),
        None => NoKey::NoneActive(partner.clone()),
    }
}
