//! Public RSA keys as JSON Web Keys (RFC 7517) and sets of them. No type here can hold a private member.

use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::domain::{Kid, sha256};

/// The smallest modulus that is accepted, in bits.
pub const MODULUS_BITS_MIN: usize = 2048;
/// The largest modulus that is accepted, in bits.
pub const MODULUS_BITS_MAX: usize = 8192;

/// Why a JWK is not a public RSA key that the gateway works with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwkError {
    /// Not JSON of the expected members; a private member lands here too.
    #[error("not a public RSA JWK with exactly `kty`, `kid`, `use`, `alg`, `n` and `e`: {0}")]
    Shape(String),
    /// A member has another value than the only one allowed.
    #[error("`{member}` must be `{want}`")]
    Member {
        /// The member.
        member: &'static str,
        /// Its only value.
        want: &'static str,
    },
    /// `n` or `e` is not the canonical base64url of an unsigned big-endian integer.
    #[error("`{0}` is not the shortest base64url form of its integer")]
    Encoding(&'static str),
    /// The modulus is too short or too long.
    #[error("the modulus has {0} bits; it needs 2048 to 8192")]
    Size(usize),
    /// Not a usable RSA key.
    #[error("not a usable RSA public key")]
    Unusable,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    kty: String,
    kid: Kid,
    #[serde(rename = "use")]
    usage: String,
    alg: String,
    n: String,
    e: String,
}

/// A public RSA key with its kid, ready to verify.
#[derive(Debug)]
pub struct PublicKey {
    kid: Kid,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
    parsed: ParsedPublicKey,
}

impl PublicKey {
    /// A key of the given big-endian integers; leading zeros are dropped.
    ///
    /// # Errors
    /// Where the size is out of bounds or the integers are no RSA key.
    pub fn new(kid: Kid, modulus: &[u8], exponent: &[u8]) -> Result<Self, JwkError> {
        let (modulus, exponent) = (unsigned(modulus), unsigned(exponent));
        let bits = bit_len(modulus);
        if !(MODULUS_BITS_MIN..=MODULUS_BITS_MAX).contains(&bits) {
            return Err(JwkError::Size(bits));
        }
        let parsed = RsaPublicKeyComponents { n: modulus, e: exponent }
            .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
            .map_err(|_| JwkError::Unusable)?;
        Ok(Self { kid, modulus: modulus.to_vec(), exponent: exponent.to_vec(), parsed })
    }

    /// Reads one JWK with exactly the public members.
    ///
    /// # Errors
    /// Where a member is missing, unknown (every private one is), or has a value that is not allowed.
    pub fn from_jwk(json: &[u8]) -> Result<Self, JwkError> {
        let members: Members = serde_json::from_slice(json).map_err(|fault| JwkError::Shape(fault.to_string()))?;
        for (member, is, want) in
            [("kty", &members.kty, "RSA"), ("use", &members.usage, "sig"), ("alg", &members.alg, "RS256")]
        {
            if is != want {
                return Err(JwkError::Member { member, want });
            }
        }
        Self::new(members.kid, &integer("n", &members.n)?, &integer("e", &members.e)?)
    }

    /// The kid.
    #[must_use]
    pub fn kid(&self) -> &Kid {
        &self.kid
    }

    /// The modulus, big-endian without leading zeros.
    #[must_use]
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// The public exponent, big-endian without leading zeros.
    #[must_use]
    pub fn exponent(&self) -> &[u8] {
        &self.exponent
    }

    /// The modulus' length in bits.
    #[must_use]
    pub fn bits(&self) -> usize {
        bit_len(&self.modulus)
    }

    /// Whether both are one key, whatever they are called.
    #[must_use]
    pub fn same_key(&self, modulus: &[u8], exponent: &[u8]) -> bool {
        self.modulus == unsigned(modulus) && self.exponent == unsigned(exponent)
    }

    /// Whether `signature` is this key's RS256 (RSASSA-PKCS1-v1_5 with SHA-256) over `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.parsed.verify_sig(message, signature).is_ok()
    }

    /// The RFC 7638 SHA-256 thumbprint, base64url.
    #[must_use]
    pub fn thumbprint(&self) -> String {
        let members = format!(
            r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#,
            URL_SAFE_NO_PAD.encode(&self.exponent),
            URL_SAFE_NO_PAD.encode(&self.modulus)
        );
        URL_SAFE_NO_PAD.encode(sha256(members.as_bytes()))
    }

    /// The JWK with exactly `kty`, `kid`, `use`, `alg`, `n`, `e`.
    #[must_use]
    pub fn to_jwk(&self) -> serde_json::Value {
        serde_json::json!({
            "kty": "RSA",
            "kid": self.kid.as_str(),
            "use": "sig",
            "alg": "RS256",
            "n": URL_SAFE_NO_PAD.encode(&self.modulus),
            "e": URL_SAFE_NO_PAD.encode(&self.exponent),
        })
    }
}

/// A JWK Set of these keys in this order, as the public endpoint serves it.
#[must_use]
pub fn jwks<'a>(keys: impl IntoIterator<Item = &'a PublicKey>) -> String {
    let keys: Vec<_> = keys.into_iter().map(PublicKey::to_jwk).collect();
    serde_json::json!({ "keys": keys }).to_string()
}

/// Reads a JWK Set.
///
/// # Errors
/// Names the first key that is not a public RSA signing key.
pub fn read_jwks(json: &[u8]) -> Result<Vec<PublicKey>, JwkError> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(json).map_err(|fault| JwkError::Shape(fault.to_string()))?;
    set.keys.iter().map(|key| PublicKey::from_jwk(key.to_string().as_bytes())).collect()
}

fn unsigned(integer: &[u8]) -> &[u8] {
    let zeros = integer.iter().take_while(|byte| **byte == 0).count();
    integer.get(zeros..).unwrap_or_default()
}

fn bit_len(integer: &[u8]) -> usize {
    integer.first().map_or(0, |top| integer.len() * 8 - top.leading_zeros() as usize)
}

fn integer(member: &'static str, text: &str) -> Result<Vec<u8>, JwkError> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| JwkError::Encoding(member))?;
    if bytes.is_empty() || bytes.first() == Some(&0) {
        return Err(JwkError::Encoding(member));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of RFC 7638 section 3.1, with the members this gateway wants beside it.
    const RFC7638_N: &str = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";

    fn jwk(extra: &str) -> String {
        format!(r#"{{"kty":"RSA","kid":"2011-04-29","use":"sig","alg":"RS256","e":"AQAB","n":"{RFC7638_N}"{extra}}}"#)
    }

    #[test]
    fn thumbprint_is_that_of_rfc_7638() {
        let key = PublicKey::from_jwk(jwk("").as_bytes()).unwrap();
        assert_eq!(key.thumbprint(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
        assert_eq!(key.bits(), 2048);
    }

    #[test]
    fn a_private_member_is_refused_wherever_it_stands() {
        for member in ["d", "p", "q", "dp", "dq", "qi", "oth"] {
            let json = jwk(&format!(r#","{member}":"AQAB""#));
            assert!(matches!(PublicKey::from_jwk(json.as_bytes()), Err(JwkError::Shape(_))), "{member}");
            assert!(read_jwks(format!(r#"{{"keys":[{json}]}}"#).as_bytes()).is_err(), "{member}");
        }
    }

    #[test]
    fn a_set_reads_back_as_it_was_written() {
        let key = PublicKey::from_jwk(jwk("").as_bytes()).unwrap();
        let set = jwks([&key]);
        let back = read_jwks(set.as_bytes()).unwrap();
        assert_eq!(jwks(&back), set);
    }

    #[test]
    fn short_keys_and_loose_integers_are_refused() {
        let kid = || "2011-04-29".parse::<Kid>().unwrap();
        assert_eq!(PublicKey::new(kid(), &[0xff; 128], &[1, 0, 1]).err(), Some(JwkError::Size(1024)));
        let padded = jwk("").replace("AQAB", "AAEAAQ");
        assert_eq!(PublicKey::from_jwk(padded.as_bytes()).err(), Some(JwkError::Encoding("e")));
    }
}
