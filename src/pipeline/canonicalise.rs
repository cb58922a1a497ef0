//! Builds the bytes to be signed: the RFC 8785 form of the quote, behind the fixed header. From here on
//! nothing looks at the caller's own bytes. A quote whose number the ledger is to give stays a draft until then.

use std::sync::Arc;

use crate::{
    domain::{PayloadDigest, SequenceNumber},
    jws::{Draft, SigningInput},
    policy::{Partner, timeline::TimedKey},
    terms::Terms,
};

use super::{admit::Place, authorize::Subject, select::Keyed};

/// The quote has no canonical form. A fault of the gateway: the parse stage lets no such quote through.
#[derive(Debug, thiserror::Error)]
#[error("the quote has no canonical form")]
pub struct NoCanonicalForm(#[from] serde_json::Error);

/// A quote as the bytes that are to be signed.
#[derive(Debug)]
pub struct Canonical(pub(super) Ready);

/// What the ledger has to be told of a quote, and the device after it.
#[derive(Debug)]
pub(super) struct Ready {
    pub terms: Terms,
    pub partner: Partner,
    pub key: Arc<TimedKey>,
    /// SHA-256 of the RFC 8785 form of what the caller sent.
    pub payload: PayloadDigest,
    pub unsigned: Unsigned,
    pub place: Place,
}

/// What is to be signed.
#[derive(Debug)]
pub(super) enum Unsigned {
    /// The caller gave the number.
    Numbered(SequenceNumber, SigningInput),
    /// The ledger gives it.
    Draft(Arc<Draft>),
}

/// Canonicalises a quote.
///
/// # Errors
/// Never for what the parse stage lets through.
pub fn canonicalise(keyed: Keyed) -> Result<Canonical, NoCanonicalForm> {
    let (subject, key, place) = keyed.taken();
    let Subject { quote, terms, contract, partner } = subject;
    let canonical = serde_jcs::to_vec(&quote)?;
    let payload = PayloadDigest::of(&canonical);
    let unsigned = match terms.sequence {
        Some(sequence) => Unsigned::Numbered(sequence, SigningInput::of_quote(&key.kid, &canonical)),
        None => Unsigned::Draft(Arc::new(Draft::new(key.kid.clone(), quote, contract.claims.sequence.clone()))),
    };
    Ok(Canonical(Ready { terms, partner, key, payload, unsigned, place }))
}
