//! A signed quote in the hands of others: openssl, and a JOSE library in Python, with the JWKS as the public
//! endpoint serves it. They share no code with the gateway.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;

use quotesign::proto::{RevokeKeyRequest, VerificationOutcome, VerifyQuoteRequest};

use crate::harness::{PARTNER, Quote, Site, done};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn openssl(jws: &Path, jwks: &Path) -> Output {
    Command::new(format!("{ROOT}/scripts/verify-jws-openssl.sh")).args([jws, jwks]).output().unwrap()
}

fn python(jws: &Path, jwks: &Path) -> Output {
    let script = format!("{ROOT}/tests/external/verify_jws.py");
    Command::new("/usr/bin/python3").arg(script).args([jws, jwks]).output().unwrap()
}

/// The same text with another letter at this place.
fn with_another_letter(text: &str, at: usize) -> String {
    let other = if &text[at..=at] == "A" { "B" } else { "A" };
    format!("{}{other}{}", &text[..at], &text[at + 1..])
}

#[tokio::test(flavor = "multi_thread")]
async fn others_verify_what_was_signed_and_refuse_what_was_changed() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1);
    // Members from last to first and white space between them: what comes back is canonical all the same.
    let claims: BTreeMap<String, Value> = serde_json::from_value(quote.0.clone()).unwrap();
    let sent: Vec<_> = claims.iter().rev().map(|(name, value)| format!("\n  \"{name}\" : {value}")).collect();
    let signed = pricing.sign_bytes(format!("{{{}\n}}", sent.join(",")).into_bytes()).await.unwrap();

    let (jws, jwks) = (site.path("signed.jws"), site.path("jwks.json"));
    fs::write(&jws, &signed.jws).unwrap();
    fs::write(&jwks, gateway.client("pricing").jwks(&PARTNER.parse().unwrap()).await.unwrap()).unwrap();
    assert_eq!(done(openssl(&jws, &jwks)), "Verified OK\n");
    let payload = done(python(&jws, &jwks));
    // Every value is a plain string or integer, so RFC 8785 comes to this: names in order, no white space.
    assert_eq!(payload.trim_end(), serde_json::to_string(&claims).unwrap());
    assert_eq!(
        hex::encode(&signed.payload_sha256),
        hex::encode(quotesign::domain::sha256(payload.trim_end().as_bytes()))
    );

    let [header, payload, _] = signed.jws.split('.').collect::<Vec<_>>().try_into().unwrap();
    for at in [3, header.len() + 9, header.len() + payload.len() + 9] {
        fs::write(&jws, with_another_letter(&signed.jws, at)).unwrap();
        assert_eq!(openssl(&jws, &jwks).status.code(), Some(1), "openssl took a change at {at}");
        assert_eq!(python(&jws, &jwks).status.code(), Some(1), "python took a change at {at}");
    }
    let other_key = fs::read_to_string(&jwks).unwrap().replace("\"n\":\"", "\"n\":\"x");
    fs::write(&jws, &signed.jws).unwrap();
    fs::write(&jwks, other_key).unwrap();
    assert_eq!(openssl(&jws, &jwks).status.code(), Some(1));
    assert_eq!(python(&jws, &jwks).status.code(), Some(1));
}

/// What verifiers in other languages say, who fetch the set from the endpoint itself: curl with openssl, Python, Node and Go.
#[tokio::test(flavor = "multi_thread")]
async fn clients_in_other_languages_fetch_the_set_and_verify_with_it() {
    let site = Site::new();
    let gateway = site.serve().await;
    let signed = gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    let (jws, fetched) = (site.path("signed.jws"), site.path("fetched.json"));
    let (ca, url) = (site.path("tls/ca.pem"), gateway.client("pricing").jwks_url(&PARTNER.parse().unwrap()));
    let tools = format!("{ROOT}/.tools/clients");
    let curl = || {
        let fetch = Command::new("curl")
            .args(["-sSf", "--cacert"])
            .arg(&ca)
            .arg("-o")
            .arg(&fetched)
            .arg(&url)
            .output()
            .unwrap();
        assert!(fetch.status.success(), "{fetch:?}");
        openssl(&jws, &fetched)
    };
    let python = || {
        let script = format!("{ROOT}/tests/external/fetch_and_verify.py");
        Command::new("/usr/bin/python3").arg(script).arg(&url).arg(&jws).arg(&ca).output().unwrap()
    };
    let node = || {
        let mut node = Command::new("node");
        node.current_dir(format!("{tools}/node")).env("NODE_EXTRA_CA_CERTS", &ca);
        node.arg("verify.mjs").arg(&url).arg(&jws).output().unwrap()
    };
    let go = || Command::new(format!("{tools}/verify-go")).arg(&url).arg(&jws).arg(&ca).output().unwrap();
    let clients: [(&str, &dyn Fn() -> Output); 4] =
        [("curl", &curl), ("python", &python), ("node", &node), ("go", &go)];
    let payload = signed.jws.split('.').nth(1).unwrap();
    let payload = String::from_utf8(URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
    fs::write(&jws, &signed.jws).unwrap();
    for (name, verify) in clients {
        let said = done(verify());
        let expected = if name == "curl" { "Verified OK".to_owned() } else { format!("{} {payload}", signed.kid) };
        assert_eq!(said.trim_end(), expected, "{name}");
    }
    let (input, signature) = signed.jws.rsplit_once('.').unwrap();
    fs::write(&jws, format!("{input}.{}", with_another_letter(signature, 9))).unwrap();
    for (name, verify) in clients {
        assert_eq!(verify().status.code(), Some(1), "{name} took another signature");
    }
    // A key that was revoked is gone at the next fetch.
    fs::write(&jws, &signed.jws).unwrap();
    let request = RevokeKeyRequest { kid: signed.kid.clone(), reason: "OPS-19".to_owned(), cause: 0 };
    gateway.admin("operator").await.revoke_key(request).await.unwrap();
    for (name, verify) in clients {
        assert!(!verify().status.success(), "{name} took a revoked key");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_verifies_what_it_signed_and_nothing_else() {
    let site = Site::new();
    let gateway = site.serve().await;
    let mut pricing = gateway.quotes("pricing").await;
    let signed = pricing.sign(&Quote::number(1)).await.unwrap();
    let mut verify = async |jws: String| {
        let request = VerifyQuoteRequest { partner: PARTNER.to_owned(), jws };
        pricing.0.verify_quote(request).await.unwrap().into_inner()
    };
    let good = verify(signed.jws.clone()).await;
    let all_passed = good.steps.iter().all(|step| step.outcome() == VerificationOutcome::Passed);
    assert!(good.valid && all_passed && good.steps.len() == 13, "the sequence too, from the ledger: {good:?}");
    let (input, signature) = signed.jws.rsplit_once('.').unwrap();
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    let bad = verify(format!("{input}.{flipped}{}", &signature[1..])).await;
    let failed: Vec<_> = bad.steps.iter().filter(|step| step.outcome() == VerificationOutcome::Failed).collect();
    assert!(!bad.valid && failed.len() == 1 && failed[0].name == "verify_rs256_signature", "{bad:?}");
}
