//! Compact JWS (RFC 7515) with RS256: the only bytes a device is ever asked to sign, and the one piece of
//! code that verifies them, for the pipeline, for `VerifyQuote` and for `quotesign verify`.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::{
    domain::{InputDigest, JwsDigest, Kid},
    jwk::PublicKey,
};

/// Bytes for a device to sign, with their SHA-256. Only this crate's canonicaliser and probe can build one,
/// so that nothing a caller sends is ever signed as it is.
#[derive(Clone)]
pub struct SigningInput {
    bytes: Vec<u8>,
    digest: InputDigest,
}

impl SigningInput {
    /// The signing input of a quote: `BASE64URL(header) "." BASE64URL(payload)` with the fixed header.
    pub(crate) fn of_quote(kid: &Kid, canonical_payload: &[u8]) -> Self {
        let mut text = URL_SAFE_NO_PAD.encode(header(kid));
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(canonical_payload, &mut text);
        Self::new(text.into_bytes())
    }

    /// Bytes that prove a key works. They begin with NUL, which no JWS signing input can.
    pub(crate) fn probe(nonce: [u8; 16]) -> Self {
        Self::new([b"\0quotesign health probe\0".as_slice(), nonce.as_slice()].concat())
    }

    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: InputDigest::of(&bytes), bytes }
    }

    /// The bytes, for mechanisms that hash by themselves.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The digest, for mechanisms that take one.
    #[must_use]
    pub fn digest(&self) -> InputDigest {
        self.digest
    }

    /// The compact JWS of this input and its signature.
    pub(crate) fn into_jws(self, signature: &[u8]) -> CompactJws {
        let mut text = String::from_utf8_lossy(&self.bytes).into_owned();
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut text);
        CompactJws(text)
    }
}

impl fmt::Debug for SigningInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningInput({})", self.digest)
    }
}

/// The protected header: these three members, in JCS order, and nothing else.
fn header(kid: &Kid) -> String {
    format!(r#"{{"alg":"RS256","kid":"{kid}","typ":"JWT"}}"#)
}

/// A compact JWS. Its text holds a payload and is never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct CompactJws(String);

impl CompactJws {
    /// A JWS that came from outside or from the ledger; nothing is checked yet.
    #[must_use]
    pub fn from_text(text: String) -> Self {
        Self(text)
    }

    /// The compact serialisation.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its SHA-256, for records.
    #[must_use]
    pub fn digest(&self) -> JwsDigest {
        JwsDigest::of(self.0.as_bytes())
    }
}

impl fmt::Debug for CompactJws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompactJws({})", self.digest())
    }
}

/// The steps of a verification, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Three canonical base64url parts.
    ReadCompactJws,
    /// The header is exactly `alg`, `kid`, `typ`, in JCS form, with RS256 and JWT.
    ExtractKid,
    /// The key set holds the kid.
    SelectPublicKey,
    /// The RS256 signature.
    VerifyRs256Signature,
    /// The payload is a JSON object in RFC 8785 form.
    DecodePayload,
}

impl Check {
    /// The stable name, as `VerifyQuote` and `quotesign verify` print it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadCompactJws => "read_compact_jws",
            Self::ExtractKid => "extract_kid",
            Self::SelectPublicKey => "select_public_key",
            Self::VerifyRs256Signature => "verify_rs256_signature",
            Self::DecodePayload => "decode_payload",
        }
    }

    /// All of them, in order.
    pub const ALL: [Self; 5] = [
        Self::ReadCompactJws,
        Self::ExtractKid,
        Self::SelectPublicKey,
        Self::VerifyRs256Signature,
        Self::DecodePayload,
    ];
}

/// The check that failed, and why; never a value of the payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", check.name())]
pub struct Unverified {
    /// The first check that failed.
    pub check: Check,
    /// Why.
    pub detail: &'static str,
}

/// A JWS that passed every check.
#[derive(Debug)]
pub struct Verified {
    /// The kid of its header.
    pub kid: Kid,
    /// Its payload.
    pub payload: serde_json::Map<String, Value>,
}

/// Reads the kid of a compact JWS whose header is the one this gateway writes.
///
/// # Errors
/// The first check that failed.
pub fn kid_of(jws: &CompactJws) -> Result<Kid, Unverified> {
    let [protected, ..] = parts(jws)?;
    kid_of_header(&protected)
}

/// Verifies the exact text of a compact JWS with the key that `select` gives for its kid.
///
/// # Errors
/// The first check that failed. Nothing about the payload is said before the signature holds.
pub fn verify<'k>(
    jws: &CompactJws,
    select: impl FnOnce(&Kid) -> Option<&'k PublicKey>,
) -> Result<Verified, Unverified> {
    let [protected, payload, signature] = parts(jws)?;
    let kid = kid_of_header(&protected)?;
    let key = select(&kid)
        .ok_or(Unverified { check: Check::SelectPublicKey, detail: "the key set holds no key of this kid" })?;
    let input = jws.0.rsplit_once('.').map_or("", |(input, _)| input);
    if !key.verifies(input.as_bytes(), &signature) {
        let detail = "the signature is not this key's over these bytes";
        return Err(Unverified { check: Check::VerifyRs256Signature, detail });
    }
    let decode = |detail| Unverified { check: Check::DecodePayload, detail };
    let value: Value = serde_json::from_slice(&payload).map_err(|_| decode("the payload is not JSON"))?;
    if serde_jcs::to_vec(&value).ok().as_deref() != Some(&payload) {
        return Err(decode("the payload is not in RFC 8785 form"));
    }
    match value {
        Value::Object(payload) => Ok(Verified { kid, payload }),
        _ => Err(decode("the payload is not a JSON object")),
    }
}

/// The decoded parts. The decoder takes no padding and no stray trailing bits, so each part has one spelling.
fn parts(jws: &CompactJws) -> Result<[Vec<u8>; 3], Unverified> {
    let fault = |detail| Unverified { check: Check::ReadCompactJws, detail };
    let mut parts = jws.0.split('.').map(|part| URL_SAFE_NO_PAD.decode(part));
    let (Some(a), Some(b), Some(c), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(fault("a compact JWS has three parts"));
    };
    match (a, b, c) {
        (Ok(a), Ok(b), Ok(c)) if !a.is_empty() && !b.is_empty() && !c.is_empty() => Ok([a, b, c]),
        _ => Err(fault("a part is not canonical base64url without padding")),
    }
}

/// Takes the kid from a header and accepts it only where the header is, to the byte, the one we would write.
/// That refuses every other algorithm, every further member, duplicates and other spellings at once.
fn kid_of_header(protected: &[u8]) -> Result<Kid, Unverified> {
    let detail = r#"the header is not exactly {"alg":"RS256","kid":…,"typ":"JWT"}"#;
    let fault = || Unverified { check: Check::ExtractKid, detail };
    let value: Value = serde_json::from_slice(protected).map_err(|_| fault())?;
    let kid: Kid = value.get("kid").and_then(Value::as_str).and_then(|kid| kid.parse().ok()).ok_or_else(fault)?;
    if header(&kid).as_bytes() == protected { Ok(kid) } else { Err(fault()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::{
        rand::SystemRandom,
        rsa::KeySize,
        signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents},
    };

    struct Fixture {
        pair: RsaKeyPair,
        key: PublicKey,
    }

    impl Fixture {
        fn new() -> Self {
            let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
            let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
            let key = PublicKey::new("quote-signing-test".parse().unwrap(), &public.n, &public.e).unwrap();
            Self { pair, key }
        }

        fn sign(&self, input: &[u8]) -> Vec<u8> {
            let mut signature = vec![0; self.pair.public_modulus_len()];
            self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input, &mut signature).unwrap();
            signature
        }

        fn forge(&self, header: &str, payload: &str) -> CompactJws {
            let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
            let signature = URL_SAFE_NO_PAD.encode(self.sign(input.as_bytes()));
            CompactJws(format!("{input}.{signature}"))
        }

        fn verify(&self, jws: &CompactJws) -> Result<Verified, Unverified> {
            verify(jws, |kid| (kid == self.key.kid()).then_some(&self.key))
        }

        fn fails_at(&self, jws: &CompactJws) -> Option<Check> {
            self.verify(jws).err().map(|fault| fault.check)
        }
    }

    const HEADER: &str = r#"{"alg":"RS256","kid":"quote-signing-test","typ":"JWT"}"#;

    #[test]
    fn what_is_signed_verifies_and_no_byte_of_it_may_change() {
        let fixture = Fixture::new();
        let input = SigningInput::of_quote(fixture.key.kid(), br#"{"a":"1"}"#);
        let signature = fixture.sign(input.bytes());
        let jws = input.into_jws(&signature);
        assert_eq!(fixture.verify(&jws).unwrap().payload.len(), 1);
        for at in 0..jws.0.len() {
            let mut bytes = jws.0.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = CompactJws(String::from_utf8(bytes).unwrap());
            assert!(fixture.verify(&changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn headers_other_than_ours_are_refused_even_when_signed() {
        let fixture = Fixture::new();
        assert!(fixture.verify(&fixture.forge(HEADER, "{}")).is_ok());
        for header in [
            r#"{"alg":"none","kid":"quote-signing-test","typ":"JWT"}"#,
            r#"{"alg":"HS256","kid":"quote-signing-test","typ":"JWT"}"#,
            r#"{"alg":"RS256","kid":"quote-signing-test"}"#,
            r#"{"kid":"quote-signing-test","alg":"RS256","typ":"JWT"}"#,
            r#"{"alg":"RS256", "kid":"quote-signing-test","typ":"JWT"}"#,
            r#"{"alg":"RS256","crit":["b64"],"kid":"quote-signing-test","typ":"JWT"}"#,
            r#"{"alg":"RS256","jku":"https://a.example","kid":"quote-signing-test","typ":"JWT"}"#,
            r#"{"alg":"none","alg":"RS256","kid":"quote-signing-test","typ":"JWT"}"#,
        ] {
            assert_eq!(fixture.fails_at(&fixture.forge(header, "{}")), Some(Check::ExtractKid), "{header}");
        }
    }

    #[test]
    fn payloads_out_of_canonical_form_are_refused_even_when_signed() {
        let fixture = Fixture::new();
        for payload in [r#"{"b":1,"a":2}"#, r#"{"a": 1}"#, r#"{"a":1,"a":1}"#, "[]", "1", "x"] {
            assert_eq!(fixture.fails_at(&fixture.forge(HEADER, payload)), Some(Check::DecodePayload), "{payload}");
        }
    }

    #[test]
    fn a_probe_can_never_be_a_jws() {
        let fixture = Fixture::new();
        let probe = SigningInput::probe([7; 16]);
        let signature = fixture.sign(probe.bytes());
        assert_eq!(fixture.fails_at(&probe.into_jws(&signature)), Some(Check::ReadCompactJws));
    }
}
