//! A bundle's signature: a detached JWS (RFC 7515, appendix F) by a device key of its own, in `bundle.jws`. What is
//! signed is the list of the bundle's files with their digests; the bundle's digest is that list's. The header's type
//! is another than a quote's, so that neither can be taken for the other.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{Files, Problem, files, timeline::Timeline};
use crate::{
    jwk::PublicKey,
    jws::{SigningInput, bundle_header},
};

/// Where the signature is.
pub const SEAL_FILE: &str = "bundle.jws";

/// What is signed of a bundle by `key`.
#[must_use]
pub fn input(files: &Files, key: &PublicKey) -> SigningInput {
    SigningInput::of_bundle(key.kid(), files::manifest(files).as_bytes())
}

/// The detached JWS of that and its signature.
#[must_use]
pub fn text(key: &PublicKey, signature: &[u8]) -> String {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    format!("{}..{}\n", encode(bundle_header(key.kid()).as_bytes()), encode(signature))
}

/// Holds `seal`, the text of `bundle.jws`, against the bundle.
///
/// # Errors
/// What is wrong with it and what to do.
pub fn check(files: &Files, seal: &str, key: &PublicKey) -> Result<(), Problem> {
    let kid = key.kid();
    let wrong = |why: String| Err(Problem(format!("{SEAL_FILE}: {why}; sign the bundle with `quotesign policy sign`")));
    let Some((header, signature)) = seal.trim_end().split_once("..") else {
        return wrong("is no detached JWS".to_owned());
    };
    if URL_SAFE_NO_PAD.decode(header).ok().as_deref() != Some(bundle_header(kid).as_bytes()) {
        return wrong(format!("its header is not that of a bundle signed by `{kid}`"));
    }
    let Ok(signature) = URL_SAFE_NO_PAD.decode(signature) else { return wrong("is no detached JWS".to_owned()) };
    if key.verifies(input(files, key).bytes(), &signature) {
        Ok(())
    } else {
        wrong(format!("its signature is not `{kid}`'s of these files"))
    }
}

/// The key that signs bundles signs no quotes.
#[must_use]
pub fn is_apart(key: &PublicKey, timeline: &Timeline) -> Option<Problem> {
    let same = timeline.all().find(|quotes| quotes.public.same_key(key.modulus(), key.exponent()))?;
    Some(Problem(format!("policy.toml: the key `{}` is the one that signs bundles; take another for quotes", same.kid)))
}
