//! Customers in audit records: never by their reference, only by its keyed hash, so that who has the key can match a customer's
//! quotes, and a reader of records can neither read nor guess whose they are.

use aws_lc_rs::hmac;

/// The key under which customers' references are hashed. All gateways of a ledger have the same one.
#[derive(Debug, Clone)]
pub struct ReferenceKey {
    key: hmac::Key,
    id: String,
}

/// A key that is too short to be one, or no key at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("has {0} bytes; give 32 to 1024 random ones, as `openssl rand -out FILE 32` writes them")]
pub struct NoReferenceKey(usize);

impl ReferenceKey {
    /// A key of these bytes.
    ///
    /// # Errors
    /// Where they are fewer than 32 or more than 1024.
    pub fn new(bytes: &[u8]) -> Result<Self, NoReferenceKey> {
        if !(32..=1024).contains(&bytes.len()) {
            return Err(NoReferenceKey(bytes.len()));
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let id = hmac::sign(&key, b"quotesign customer reference key");
        let id = id.as_ref().get(..4).map(hex::encode).unwrap_or_default();
        Ok(Self { key, id })
    }

    /// What its hashes begin with, and nothing of the key.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What records call this customer of `partner`: the key's id, and HMAC-SHA-256 over the RFC 8785 form of
    /// `[partner, reference]`, hex.
    #[must_use]
    pub fn of(&self, partner: &str, reference: &str) -> String {
        // Texts have no form that JSON lacks.
        let bytes = serde_json::to_vec(&[partner, reference]).unwrap_or_default();
        format!("{}:{}", self.id, hex::encode(hmac::sign(&self.key, &bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_is_the_same_under_one_key_and_partner_and_under_no_other() {
        let key = |byte| ReferenceKey::new(&[byte; 32]).unwrap();
        let one = key(1).of("acme-remit", "sub_1");
        assert_eq!(one, key(1).of("acme-remit", "sub_1"));
        for other in [
            key(2).of("acme-remit", "sub_1"),
            key(1).of("acme-remit", "sub_2"),
            key(1).of("acme-remi", "tsub_1"),
            key(1).of("other", "sub_1"),
        ] {
            assert_ne!(one, other);
        }
        assert!(one.len() == 8 + 1 + 64 && !one.contains("sub"), "{one}");
        assert_eq!(ReferenceKey::new(&[0; 31]).unwrap_err(), NoReferenceKey(31));
    }

    /// RFC 2104 by another implementation:
    /// `printf '["acme-remit","sub_1"]' | openssl dgst -sha256 -mac HMAC -macopt hexkey:0101…01`.
    #[test]
    fn the_hash_is_the_one_that_openssl_makes() {
        let told = ReferenceKey::new(&[1; 32]).unwrap().of("acme-remit", "sub_1");
        assert_eq!(told, EXPECTED);
    }

    const EXPECTED: &str = "e9bdc699:23dd6a44bf6d7d0bf3c4a20a420626e9ce46c92589e82dce733ed07ea9c3ac6e";
}
