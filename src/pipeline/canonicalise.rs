//! Builds the bytes to be signed: the RFC 8785 form of the quote, behind the fixed header. From here on
//! nothing looks at the caller's own bytes.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    domain::PayloadDigest,
    jws::SigningInput,
    policy::{Partner, timeline::TimedKey},
    terms::Terms,
};

use super::{admit::Place, select::Keyed};

/// The quote has no canonical form. A fault of the gateway: the parse stage lets no such quote through.
#[derive(Debug, thiserror::Error)]
#[error("the quote has no canonical form")]
pub struct NoCanonicalForm(#[source] serde_json::Error);

/// A quote as the bytes that are to be signed.
#[derive(Debug)]
pub struct Canonical {
    /// What it says.
    terms: Terms,
    /// Its partner.
    partner: Partner,
    /// The key that is to sign it.
    key: Arc<TimedKey>,
    /// SHA-256 of its RFC 8785 form.
    digest: PayloadDigest,
    /// The JWS signing input.
    input: SigningInput,
    /// Its place in flight.
    place: Place,
}

/// Canonicalises a quote.
///
/// # Errors
/// Never for what the parse stage lets through.
pub fn canonicalise(keyed: Keyed) -> Result<Canonical, NoCanonicalForm> {
    let (quote, terms, partner, key, place) = keyed.taken();
    let payload = serde_jcs::to_vec(&Value::Object(quote)).map_err(NoCanonicalForm)?;
    let digest = PayloadDigest::of(&payload);
    let input = SigningInput::of_quote(&key.kid, &payload);
    Ok(Canonical { terms, partner, key, digest, input, place })
}

impl Canonical {
    pub(super) fn taken(self) -> (Terms, Partner, Arc<TimedKey>, PayloadDigest, SigningInput, Place) {
        let Self { terms, partner, key, digest, input, place } = self;
        (terms, partner, key, digest, input, place)
    }
}
