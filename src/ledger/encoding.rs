//! How values stand in a store's rows, the same in every engine.

use super::{EngineError, step::Stage};
use crate::{
    audit::Event,
    domain::{Environment, Identity, KeyState, PartnerId, QuoteId, Scope, SequenceNumber, sha256},
};

pub(super) const RESERVED: i16 = 1;
pub(super) const SIGNED: i16 = 2;
pub(super) const VOIDED: i16 = 3;

pub(super) fn state_of(stage: &Stage) -> i16 {
    match stage {
        Stage::Reserved => RESERVED,
        Stage::Signed { .. } => SIGNED,
        Stage::Voided => VOIDED,
    }
}

/// A key's state by its place in order; -1 where it has none yet.
pub(super) fn key_state(state: Option<KeyState>) -> i16 {
    let place = KeyState::ALL.iter().position(|known| Some(*known) == state);
    place.and_then(|place| i16::try_from(place).ok()).unwrap_or(-1)
}

/// Takes only what [`key_state`] gives.
#[expect(clippy::option_option, reason = "a state that is none yet is well formed, one that is unknown is not")]
pub(super) fn key_state_of(place: i16) -> Option<Option<KeyState>> {
    if place == -1 { Some(None) } else { KeyState::ALL.get(usize::try_from(place).ok()?).copied().map(Some) }
}

pub(super) fn stored(number: u64) -> Result<i64, EngineError> {
    i64::try_from(number).map_err(|_| EngineError::Unfit("a number is larger than the ledger can hold".to_owned()))
}

pub(super) fn index_of(index: i64) -> Option<u64> {
    index.try_into().ok()
}

pub(super) fn sequence_of(number: i64) -> Option<SequenceNumber> {
    u64::try_from(number).ok()?.try_into().ok()
}

/// Takes only the one encoding that an identity has.
pub(super) fn identity_of(text: &str) -> Option<Identity> {
    let (environment, partner, quote): (Environment, PartnerId, QuoteId) = serde_json::from_str(text).ok()?;
    Some(Identity::new(environment, &partner, &quote)).filter(|identity| identity.as_str() == text)
}

/// What a quote is found by where the text of its identity would be long: the first half of the text's SHA-256.
pub(super) fn key_of(identity: &str) -> [u8; 16] {
    let digest = sha256(identity.as_bytes());
    std::array::from_fn(|place| digest.get(place).copied().unwrap_or_default())
}

/// Takes only the one encoding that a scope has.
pub(super) fn scope_of(text: &str) -> Option<Scope> {
    Scope::read(text).map(|(_, scope)| scope)
}

/// Whether records of this event are made only while the clock is trusted.
pub(super) fn is_timed(event: Event) -> bool {
    matches!(event, Event::Reserved | Event::Rekeyed | Event::Committed | Event::Voided)
}
