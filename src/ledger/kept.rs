//! What the ledger remembers of a kid for ever: whose key it was and until when its signatures count.

use crate::{
    clock::UtcTime,
    domain::{KeyState, PartnerId},
};

/// The memory of one kid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The public key as a JWK (RFC 7517), one JSON text.
    pub jwk: String,
    /// The one partner it signs for.
    pub partner: PartnerId,
    /// What it signs, such as `quote`.
    pub purpose: String,
    /// From when on it was to be published, as the first bundle that named it says.
    pub published_since: UtcTime,
    /// Since when every gateway that counts has been seen to serve it; absent until then. Once written it stays.
    pub served_since: Option<UtcTime>,
    /// Since when it may sign although its propagation time is not over, as two operators decided.
    pub activated_at: Option<UtcTime>,
    /// How far it has come on its timeline, as it was journalled; it never goes back.
    pub state: Option<KeyState>,
    /// No quote it signed is valid for longer: the last expiry signed, or up to a minute more.
    pub last_expiry: Option<UtcTime>,
}

/// Rounded up to whole minutes, so that not every commit writes the kid's row.
const STEP_MS: i64 = 60_000;

impl Kept {
    /// Whether `other` is the same key of the same partner for the same purpose.
    #[must_use]
    pub fn is_same_key(&self, other: &Self) -> bool {
        (&self.jwk, &self.partner, &self.purpose) == (&other.jwk, &other.partner, &other.purpose)
    }

    /// Newly known.
    #[must_use]
    pub fn new(jwk: String, partner: PartnerId, purpose: &str, published_since: UtcTime) -> Self {
        Self {
            jwk,
            partner,
            purpose: purpose.to_owned(),
            published_since,
            served_since: None,
            activated_at: None,
            state: None,
            last_expiry: None,
        }
    }

    /// After it signed a quote that expires at `expires_at`; absent where nothing changes.
    #[must_use]
    pub fn signed(&self, expires_at: UtcTime) -> Option<Self> {
        if self.last_expiry.is_some_and(|last| last >= expires_at) {
            return None;
        }
        let up = expires_at.millis().rem_euclid(STEP_MS);
        let rounded = expires_at.millis().saturating_add(if up == 0 { 0 } else { STEP_MS.saturating_sub(up) });
        Some(Self { last_expiry: Some(UtcTime::from_millis(rounded)), ..self.clone() })
    }
}
