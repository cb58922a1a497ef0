//! Picks the key that the timeline makes current for the quote's partner at this instant, and builds with it what
//! is to be signed. A key whose device is known to be down is refused here, before a number is taken.

use std::sync::Arc;

use crate::{
    clock::UtcTime,
    domain::{Kid, PartnerId, SequenceNumber},
    jws::{Draft, SigningInput},
    policy::{
        Bundle, Partner,
        timeline::{Standing, TimedKey},
    },
    published::Standings,
    signer::{
        Health,
        keyring::{BoundKey, Keyring},
    },
    terms::Terms,
};

use super::{
    authorize::Subject,
    canonicalise::{Canonical, Mark},
};

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
pub struct Keyed(pub(super) Ready);

/// What the ledger has to be told of a quote, and the device after it.
#[derive(Debug)]
pub(super) struct Ready {
    pub terms: Terms,
    pub partner: Partner,
    pub mark: Mark,
    pub key: Arc<TimedKey>,
    pub signer: Arc<BoundKey>,
    pub unsigned: Unsigned,
}

/// What is to be signed.
#[derive(Debug)]
pub(super) enum Unsigned {
    /// The caller gave the number.
    Numbered(SequenceNumber, SigningInput),
    /// The ledger gives it.
    Draft(Arc<Draft>),
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
    let (subject, bytes, mark) = canonical.taken();
    let Subject { quote, terms, contract, partner } = subject;
    let current = policy.timeline.current(&partner.id, now, |kid| standings.of(kid));
    let key = current.cloned().ok_or_else(|| why_none(policy, &partner.id, standings, now))?;
    let signer = keyring.get(&key.kid);
    let signer = signer.ok_or_else(|| NoKey::NotServing("no signer is bound to it".to_owned()))?;
    if let Health::NotServing(why) = signer.health() {
        return Err(NoKey::NotServing(why));
    }
    let unsigned = match terms.sequence {
        Some(sequence) => Unsigned::Numbered(sequence, SigningInput::of_quote(&key.kid, &bytes)),
        None => Unsigned::Draft(Arc::new(Draft::new(key.kid.clone(), quote, contract.claims.sequence.clone()))),
    };
    Ok(Keyed(Ready { terms, partner, mark, key, signer, unsigned }))
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
