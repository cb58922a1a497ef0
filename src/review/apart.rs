//! What two environments must not share: whoever can sign in one must gain nothing in the other.

use std::collections::BTreeSet;

use crate::policy::{Bundle, Problem};

/// What `bundle` shares with `other`, a line each: kids, public keys, places of keys, callers, trust domains.
#[must_use]
pub fn shared(bundle: &Bundle, other: &Bundle) -> Vec<Problem> {
    let mut problems = Vec::new();
    let theirs = other.environment;
    if bundle.environment == theirs {
        problems.push(Problem(format!("policy.toml: `environment` = `{theirs}`, and so is the other's; compare two")));
    }
    let of = |bundle: &Bundle| -> [(&'static str, BTreeSet<String>); 5] {
        let keys = || bundle.timeline.all();
        let places = keys().flat_map(|key| key.places.iter().map(|(_, place)| place.clone()));
        let domains = bundle.callers().filter_map(|caller| {
            let text = caller.to_string();
            text.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next()).map(str::to_owned)
        });
        [
            ("the kid", keys().map(|key| key.kid.to_string()).collect()),
            ("the public key with the thumbprint", keys().map(|key| key.public.thumbprint()).collect()),
            ("the place of a key", places.collect()),
            ("the caller", bundle.callers().map(ToString::to_string).collect()),
            ("the trust domain", domains.collect()),
        ]
    };
    for ((what, ours), (_, theirs_too)) in of(bundle).into_iter().zip(of(other)) {
        for both in ours.intersection(&theirs_too) {
            problems.push(Problem(format!("{what} `{both}` is {theirs}'s too; give each environment its own")));
        }
    }
    problems
}
