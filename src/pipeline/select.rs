//! Picks the key that the timeline makes current for the quote's partner at this instant.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    clock::UtcTime,
    domain::PartnerId,
    policy::{Bundle, Partner, timeline::TimedKey},
    terms::Terms,
};

use super::admit::{Admitted, Place};

/// No key of the partner may sign now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no key of `{partner}` may sign now; `quotesign policy check` shows the timeline")]
pub struct NoActiveKey {
    /// The partner.
    pub partner: PartnerId,
}

/// A quote with the key that is to sign it.
#[derive(Debug)]
pub struct Keyed {
    /// The quote as sent.
    quote: Map<String, Value>,
    /// What it says.
    terms: Terms,
    /// Its partner.
    partner: Partner,
    /// The key.
    key: Arc<TimedKey>,
    /// Its place in flight.
    place: Place,
}

/// Selects the key.
///
/// # Errors
/// Where none may sign at `now`.
pub fn select_key(admitted: Admitted, policy: &Bundle, now: UtcTime) -> Result<Keyed, NoActiveKey> {
    let (quote, terms, partner, place) = admitted.taken();
    match policy.timeline.current(&partner.id, now) {
        Some(key) => Ok(Keyed { quote, terms, partner, key: key.clone(), place }),
        None => Err(NoActiveKey { partner: partner.id }),
    }
}

impl Keyed {
    pub(super) fn taken(self) -> (Map<String, Value>, Terms, Partner, Arc<TimedKey>, Place) {
        let Self { quote, terms, partner, key, place } = self;
        (quote, terms, partner, key, place)
    }
}
