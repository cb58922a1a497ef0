//! What the public URL shows, and what the gateway says of the key that signs.

use std::path::Path;

use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    client::{self, ClientFile},
    clock::UtcTime,
    jwk::PublicKey,
    key_set::{self, Severity},
    policy::{AttributesRule, timeline::TimedKey},
    review::golive::Facts,
};

use super::{super::health, offline::put};

/// Which check of a key set is which fact. What keeps a verifier from finding the key is the active key's.
fn fact_of(check: &str) -> Option<&'static str> {
    Some(match check {
        "HTTP 200" | "no redirect" | "Content-Type" => "jwks.status",
        "valid JSON" | "a `keys` array" | "every entry a key" => "jwks.json",
        "the active kid" | "it has keys" | "kty, kid, n and e" | "each key once" | "each kid once" => "jwks.active",
        "kty is RSA" => "jwks.kty",
        "alg is RS256" => "jwks.alg",
        "use is sig" => "jwks.use",
        "no private key material" => "jwks.private",
        "2048 bits or more" => "jwks.size",
        _ => return None,
    })
}

/// Whether the gateway has the key sign, which it does only where the device says what policy requires of the key.
pub(super) async fn protected(client: &ClientFile, key: &TimedKey, facts: &mut Facts) {
    let places: Vec<_> = key.places.iter().map(|(signer, _)| signer.as_str()).collect();
    let places = places.join(", ");
    let (holds, what) = match key.attributes {
        AttributesRule::Require => (true, "which states that it was generated there and cannot leave it"),
        AttributesRule::Warn => (true, "and policy says why the device cannot state that it never left it"),
        AttributesRule::Off => (false, "and nobody looks at its attributes"),
    };
    match health::of_key(client, &key.kid).await {
        Ok(ServingStatus::Serving) => {
            put(facts, "key.protected", holds, format!("the gateway has it sign on {places}, {what}"));
        }
        Ok(_) => {
            let evidence = format!("the gateway has it sign on none of {places}; `quotesign admin status` says why");
            put(facts, "key.protected", false, evidence);
        }
        Err(failure) => put(facts, "key.protected", false, format!("the gateway does not say: {}", failure.text)),
    }
}

pub(super) async fn look(url: &str, ca: &Path, active: Option<&PublicKey>, now: UtcTime, facts: &mut Facts) {
    let is_https = url.starts_with("https://");
    put(facts, "jwks.https", is_https, url.to_owned());
    let (fetched, body) = match client::look(url, ca).await {
        Ok(got) => got,
        Err(fault) => {
            for name in ["jwks.status", "jwks.tls"] {
                put(facts, name, false, fault.to_string());
            }
            return;
        }
    };
    let ends = fetched.certificate_ends.map_or_else(|| "an unknown time".to_owned(), |ends| ends.to_string());
    put(facts, "jwks.tls", true, format!("of a known CA, until {ends}"));
    let seen = format!("{url} at {now}");
    for finding in key_set::inspect(&body, Some(&fetched), active.map(PublicKey::kid), now) {
        let Some(name) = fact_of(finding.check) else { continue };
        let holds = finding.severity <= Severity::Warning;
        // What has failed once has failed, whatever else is as it should be.
        if facts.get(name).is_none_or(|fact| fact.holds) {
            put(facts, name, holds, if holds { seen.clone() } else { finding.detail });
        }
    }
    if let Some(active) = active
        && facts.get("jwks.active").is_some_and(|fact| fact.holds)
        && !key_set::shown(&body).is_some_and(|shown| shown.has(active))
    {
        let kid = active.kid();
        put(facts, "jwks.active", false, format!("`{kid}` is there with another key than policy pins"));
    }
}
