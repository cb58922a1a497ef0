//! Compact JWS (RFC 7515) with RS256: the only bytes a device is ever asked to sign, and their text form.
//! Verifying them is for [`crate::verification`].

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use crate::domain::{InputDigest, JwsDigest, Kid, SequenceNumber};

/// Bytes for a device to sign, with their SHA-256. Only this crate's canonicaliser, its probe, its list of a bundle's files and
/// its checkpoints choose a byte of one,
/// so that nothing a caller sends is ever signed as it is.
#[derive(Clone)]
pub struct SigningInput {
    bytes: Vec<u8>,
    digest: InputDigest,
}

impl SigningInput {
    /// The signing input of a quote: `BASE64URL(header) "." BASE64URL(payload)` with the fixed header.
    pub(crate) fn of_quote(kid: &Kid, canonical_payload: &[u8]) -> Self {
        Self::of(&header(kid), canonical_payload)
    }

    /// The signing input of a policy bundle, whose header is another.
    pub(crate) fn of_bundle(kid: &Kid, manifest: &[u8]) -> Self {
        Self::of(&bundle_header(kid), manifest)
    }

    /// The signing input of a checkpoint of the journal, whose header is another again.
    pub(crate) fn of_checkpoint(kid: &Kid, text: &[u8]) -> Self {
        Self::of(&checkpoint_header(kid), text)
    }

    /// Bytes that prove a key works, different ones each time. Nobody chooses any of them, so anyone may have them.
    #[must_use]
    pub fn fresh_probe() -> Self {
        Self::probe(uuid::Uuid::now_v7().into_bytes())
    }

    /// Bytes that prove a key works. They begin with NUL, which no JWS signing input can.
    pub(crate) fn probe(nonce: [u8; 16]) -> Self {
        Self::new([b"\0quotesign health probe\0".as_slice(), nonce.as_slice()].concat())
    }

    /// What the gateway has built and sent to the process that alone touches the device.
    pub(crate) fn received(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }

    fn of(header: &str, payload: &[u8]) -> Self {
        let mut text = URL_SAFE_NO_PAD.encode(header);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(payload, &mut text);
        Self::new(text.into_bytes())
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

/// A quote that still lacks its number, which the ledger is to give.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    kid: Kid,
    quote: Map<String, Value>,
    claim: String,
}

impl Draft {
    /// `quote` as sent, to be signed by `kid` with its number in `claim`.
    pub(crate) fn new(kid: Kid, quote: Map<String, Value>, claim: String) -> Self {
        Self { kid, quote, claim }
    }

    /// What is signed once the number is `sequence`: the same bytes for the same number, whoever asks.
    ///
    /// # Errors
    /// Never for what the parse stage lets through.
    pub(crate) fn numbered(&self, sequence: SequenceNumber) -> Result<SigningInput, serde_json::Error> {
        let mut quote = self.quote.clone();
        quote.insert(self.claim.clone(), sequence.get().into());
        Ok(SigningInput::of_quote(&self.kid, &serde_jcs::to_vec(&quote)?))
    }
}

/// The protected header: these three members, in JCS order, and nothing else.
pub(crate) fn header(kid: &Kid) -> String {
    format!(r#"{{"alg":"RS256","kid":"{kid}","typ":"JWT"}}"#)
}

/// The protected header of a bundle's detached JWS.
pub(crate) fn bundle_header(kid: &Kid) -> String {
    format!(r#"{{"alg":"RS256","kid":"{kid}","typ":"quotesign-policy+jws"}}"#)
}

/// The type of a checkpoint's JWS.
pub(crate) const CHECKPOINT: &str = "quotesign-checkpoint+jws";

/// The protected header of a checkpoint's JWS.
pub(crate) fn checkpoint_header(kid: &Kid) -> String {
    format!(r#"{{"alg":"RS256","kid":"{kid}","typ":"{CHECKPOINT}"}}"#)
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

/// The decoded parts of a compact JWS, and what of its text is signed.
pub(crate) struct Parts<'j> {
    /// The header's bytes.
    pub header: Vec<u8>,
    /// The payload's bytes.
    pub payload: Vec<u8>,
    /// The signature.
    pub signature: Vec<u8>,
    /// The JWS signing input, as it stands in the text.
    pub input: &'j str,
}

impl CompactJws {
    /// Takes the text apart. The decoder takes no padding and no stray trailing bits, so each part has one spelling.
    pub(crate) fn parts(&self) -> Result<Parts<'_>, &'static str> {
        let (input, signature) = self.0.rsplit_once('.').ok_or("a compact JWS has three parts")?;
        let (header, payload) = input.split_once('.').ok_or("a compact JWS has three parts")?;
        let decode = |part: &str| match URL_SAFE_NO_PAD.decode(part) {
            Ok(bytes) if !bytes.is_empty() => Ok(bytes),
            _ => Err("a part is not canonical base64url without padding"),
        };
        Ok(Parts { header: decode(header)?, payload: decode(payload)?, signature: decode(signature)?, input })
    }
}
