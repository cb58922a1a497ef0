//! What the public URL shows.

use std::path::Path;

use crate::{
    client,
    clock::UtcTime,
    domain::Kid,
    key_set::{self, Severity},
    review::golive::Facts,
};

use super::offline::put;

/// Which check of a key set is which fact.
const CHECKS: [(&str, &str); 8] = [
    ("HTTP 200", "jwks.status"),
    ("valid JSON", "jwks.json"),
    ("the active kid", "jwks.active"),
    ("kty is RSA", "jwks.kty"),
    ("alg is RS256", "jwks.alg"),
    ("use is sig", "jwks.use"),
    ("no private key material", "jwks.private"),
    ("2048 bits or more", "jwks.size"),
];

pub(super) async fn look(url: &str, ca: &Path, active: Option<&Kid>, now: UtcTime, facts: &mut Facts) {
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
    for finding in key_set::inspect(&body, Some(&fetched), active, now) {
        let Some((_, name)) = CHECKS.iter().find(|(check, _)| *check == finding.check) else { continue };
        let seen = format!("{url} at {now}");
        let holds = finding.severity <= Severity::Warning;
        put(facts, name, holds, if holds { seen } else { finding.detail });
    }
}
