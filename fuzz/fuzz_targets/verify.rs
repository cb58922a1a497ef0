//! Verification takes any text. Input that begins with `{` is a payload, signed behind the gateway's own header;
//! input that begins with `.` is a header, a line feed and a payload, signed as they stand; anything else is the
//! text itself. What holds every step must be in the one form that the gateway writes.

#![no_main]

use std::sync::{Arc, LazyLock};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use quotesign::{
    jwk::PublicKey,
    jws::CompactJws,
    verification::{self, Evidence, Step},
};

const HEADER: &[u8] = br#"{"alg":"RS256","kid":"quote-signing-fuzz","typ":"JWT"}"#;

static PAIR: LazyLock<(RsaKeyPair, PublicKey)> = LazyLock::new(|| {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key pair");
    let public = pair.public_key();
    let (n, e) = (public.modulus().big_endian_without_leading_zero(), public.exponent());
    let kid = "quote-signing-fuzz".parse().expect("a kid");
    let key = PublicKey::new(kid, n, e.big_endian_without_leading_zero()).expect("a public key");
    (pair, key)
});

fuzz_target!(|input: &[u8]| {
    let signed = match input {
        [b'{', ..] => Some((HEADER, input)),
        [b'.', rest @ ..] => rest.iter().position(|byte| *byte == b'\n').map(|at| (&rest[..at], &rest[at + 1..])),
        _ => None,
    };
    let text = signed.map_or_else(|| String::from_utf8_lossy(input).into_owned(), |(header, payload)| jws(header, payload));
    let jws = CompactJws::from_text(text);
    let evidence = Evidence {
        key: &|kid| (kid == PAIR.1.kid()).then_some(&PAIR.1),
        partner: None,
        contract: &|quote| quotesign_fuzz::POLICY.contract_of(quote).map(Arc::as_ref),
        now: quotesign_fuzz::now(),
    };
    let report = verification::verify(&jws, &evidence);
    let steps: Vec<_> = report.findings().iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, Step::ALL);
    if report.is_valid() {
        let (header, payload) = signed.expect("nobody else has the private key");
        assert_eq!(header, HEADER);
        assert_eq!(serde_jcs::to_vec(&report.payload).expect("a canonical form"), payload);
    }
});

fn jws(header: &[u8], payload: &[u8]) -> String {
    let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let mut signature = vec![0; PAIR.0.public_modulus_len()];
    PAIR.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input.as_bytes(), &mut signature).expect("a signature");
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(&signature))
}
