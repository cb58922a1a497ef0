//! Makes the RFC 8785 form of the quote and its digest. From here on nothing looks at the caller's own bytes.

use crate::{
    domain::{Identity, PartnerId, PayloadDigest, Scope, SequenceNumber},
    policy::Bundle,
};

use super::authorize::{Authorized, Subject};

/// The quote has no canonical form. A fault of the gateway: the parse stage lets no such quote through.
#[derive(Debug, thiserror::Error)]
#[error("the quote has no canonical form")]
pub struct NoCanonicalForm(#[from] serde_json::Error);

/// A quote in its canonical form.
#[derive(Debug)]
pub struct Canonical {
    subject: Subject,
    bytes: Vec<u8>,
    mark: Mark,
}

/// By what the ledger knows a quote: its identity, and what that is bound to.
#[derive(Debug, Clone)]
pub struct Mark {
    /// The quote.
    pub identity: Identity,
    /// SHA-256 of the RFC 8785 form of what the caller sent.
    pub payload: PayloadDigest,
}

/// Canonicalises a quote.
///
/// # Errors
/// Never for what the parse stage lets through.
pub fn canonicalise(authorized: Authorized, policy: &Bundle) -> Result<Canonical, NoCanonicalForm> {
    let subject = authorized.taken();
    let bytes = serde_jcs::to_vec(&subject.quote)?;
    let identity = Identity::new(policy.environment, &subject.partner.id, &subject.terms.quote_id);
    let mark = Mark { identity, payload: PayloadDigest::of(&bytes) };
    Ok(Canonical { subject, bytes, mark })
}

impl Canonical {
    /// By what the ledger knows it.
    #[must_use]
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Whose it is.
    pub(super) fn partner(&self) -> &PartnerId {
        &self.subject.partner.id
    }

    /// The number that the caller gave, and its sequence; nothing where the ledger gives it.
    pub(super) fn numbered(&self, policy: &Bundle) -> Option<(Scope, SequenceNumber)> {
        let Subject { terms, partner, .. } = &self.subject;
        terms.sequence.map(|sequence| (policy.scope(partner, Some(&terms.corridor)), sequence))
    }

    pub(super) fn taken(self) -> (Subject, Vec<u8>, Mark) {
        (self.subject, self.bytes, self.mark)
    }
}
