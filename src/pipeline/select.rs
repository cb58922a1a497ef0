//! Picks the key that the timeline makes current for the quote's partner at this instant.

use std::sync::Arc;

use crate::{
    clock::UtcTime,
    domain::PartnerId,
    policy::{Bundle, timeline::TimedKey},
};

use super::{
    admit::{Admitted, Place},
    authorize::Subject,
};

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
    subject: Subject,
    key: Arc<TimedKey>,
    place: Place,
}

/// Selects the key.
///
/// # Errors
/// Where none may sign at `now`.
pub fn select_key(admitted: Admitted, policy: &Bundle, now: UtcTime) -> Result<Keyed, NoActiveKey> {
    let (subject, place) = admitted.taken();
    match policy.timeline.current(&subject.partner.id, now) {
        Some(key) => Ok(Keyed { subject, key: key.clone(), place }),
        None => Err(NoActiveKey { partner: subject.partner.id }),
    }
}

impl Keyed {
    pub(super) fn taken(self) -> (Subject, Arc<TimedKey>, Place) {
        (self.subject, self.key, self.place)
    }
}
