//! What config and bundle show by themselves.

use std::path::Path;

use crate::{
    config::Config,
    policy::authority::{Action, Resource},
    review::{
        apart,
        golive::{Fact, Facts},
    },
};

use super::{Failure, Here, bundle_in};

/// Puts down what was seen.
pub(super) fn put(facts: &mut Facts, name: &'static str, holds: bool, evidence: impl Into<String>) {
    facts.insert(name, Fact { holds, evidence: evidence.into() });
}

pub(super) fn look(here: &Here<'_>, facts: &mut Facts) {
    let Here { config, bundle, partner, .. } = *here;
    if let Some(url) = &partner.jwks_url {
        put(facts, "jwks.registered", true, format!("policy names {url}"));
    }
    for (name, role) in [("contact.technical", "technical"), ("contact.incident", "incident")] {
        if let Some(who) = partner.contacts.get(role) {
            put(facts, name, true, format!("policy names {who}"));
        }
    }
    let filter = &config.log.filter;
    put(facts, "log", filter != "off", format!("`log.filter` = `{filter}`"));
    let may_halt = |caller: &&crate::domain::Caller| {
        bundle.authority.decide(caller, Action::Halt, Resource::Gateway, None).allowed
    };
    let count = bundle.callers().filter(may_halt).count();
    put(facts, "halt", count > 0, format!("`quotesign halt`; {count} callers may"));
    let approved = if config.policy_key.is_some() { ", and bundles are signed" } else { "" };
    let count = bundle.timeline.of(&partner.id).count();
    put(facts, "key.approved", true, format!("policy pins the public half of each of {count} keys{approved}"));
    contract(here, facts);
}

/// The loader refuses a contract of which one of these does not hold.
fn contract(here: &Here<'_>, facts: &mut Facts) {
    for contract in here.bundle.contracts_of(here.partner) {
        let (claims, name) = (&contract.claims, &contract.name);
        let all = [&claims.partner, &claims.subscription, &claims.sequence, &claims.corridor, &claims.issued_at];
        let all: Vec<_> = all.into_iter().chain([&claims.expires_at]).chain(&claims.quote_id).cloned().collect();
        put(
            facts,
            "contract.claims",
            true,
            format!("contract `{name}` requires {} and the money claims", all.join(", ")),
        );
        let money = [&claims.send_amount, &claims.receive_amount, &claims.total].map(String::as_str).join(", ");
        put(
            facts,
            "contract.money",
            true,
            format!("contract `{name}`: {money} and the fees are exact decimal strings"),
        );
        let times = [&claims.issued_at, &claims.expires_at].map(String::as_str).join(" and ");
        put(facts, "contract.utc", true, format!("contract `{name}`: {times} are RFC 3339 in UTC"));
        put(facts, "contract.subscription", true, format!("contract `{name}` requires {}", claims.subscription));
        let version = &contract.version;
        put(facts, "contract.version", true, format!("contract `{name}`: {} = {}", version.claim, version.value));
    }
}

pub(super) fn apart(here: &Here<'_>, other: &Path, facts: &mut Facts) -> Result<(), Failure> {
    let theirs = Config::load(other).map_err(Failure::unfit)?;
    let environment = theirs.environment;
    let shared = here.config.shared_with(&theirs).map_err(Failure::unfit)?;
    let nothing = format!(
        "no CA of callers, trust domain, ledger, anchor, token or key of bundles, checkpoints and references is shared with {environment}"
    );
    let told = |lines: &[String], nothing: String| if lines.is_empty() { nothing } else { lines.join("; ") };
    put(facts, "apart.config", shared.is_empty(), told(&shared, nothing));
    let bundle = bundle_in(&theirs.policy)?;
    let shared: Vec<_> = apart::shared(here.bundle, &bundle).iter().map(ToString::to_string).collect();
    let nothing = format!("no kid, public key, place of a key, caller or trust domain is shared with {environment}");
    put(facts, "apart", shared.is_empty(), told(&shared, nothing));
    Ok(())
}
