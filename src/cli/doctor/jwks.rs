//! The key sets as verifiers see them.

use std::path::Path;

use crate::{
    cli::block_on,
    client,
    domain::Kid,
    key_set::{self, Finding, Severity, Shown},
    policy::{Bundle, Partner, timeline::Standing},
    published::Standings,
};

use super::{
    Site,
    report::{Check, Report},
};

/// `runs` says whether a gateway answers here.
pub(super) fn look(site: &Site<'_>, runs: bool, report: &mut Report) {
    let check = Check::JwksPublished;
    let Some(bundle) = site.bundle else { return report.skipped(check, "", "the bundle does not load") };
    for partner in bundle.partners() {
        let of = partner.id.as_str();
        match (&partner.jwks_url, site.client) {
            (Some(url), _) => look_at(site, bundle, partner, (url, &site.config.jwks.url_ca), report),
            (None, Some(client)) if runs => {
                look_at(site, bundle, partner, (&client.jwks_url(&partner.id), &client.ca), report);
            }
            (None, Some(_)) => report.skipped(check, of, "policy names no `jwks_url`, and no gateway runs here"),
            (None, None) => {
                report.skipped(check, of, "policy names no `jwks_url`; give --client to see the listener's own");
            }
        }
    }
}

fn look_at(site: &Site<'_>, bundle: &Bundle, partner: &Partner, (url, ca): (&str, &Path), report: &mut Report) {
    let (check, of) = (Check::JwksPublished, partner.id.as_str());
    let got = block_on(async { Ok(client::look(url, ca).await) });
    let (fetched, body) = match got {
        Ok(Ok(got)) => got,
        Ok(Err(fault)) => {
            let remedy =
                "see that the URL leads to the gateway or its CDN, with a certificate of a CA in `jwks.url_ca`";
            return report.fault(check, of, fault.to_string(), remedy);
        }
        Err(failure) => return report.skipped(check, of, failure.text),
    };
    let standings = site.standings();
    let standing = |kid: &Kid| standings.as_ref().map_or(Standing::PLANNED, |known| Standings::of(known, kid));
    let active = bundle.timeline.current(&partner.id, site.now, standing).map(|key| &key.kid);
    let findings = key_set::inspect(&body, Some(&fetched), active, site.now);
    let worst = findings.iter().map(|found| found.severity).max().unwrap_or(Severity::Passed);
    let bad = findings.iter().filter(|found| found.severity == worst);
    let told: Vec<_> = bad.map(|Finding { check, detail, .. }| format!("{check}: {detail}")).collect();
    let evidence = format!("{url}: {}", told.join("; "));
    let remedy = format!("`quotesign jwks check {url}` tells it line by line");
    match worst {
        Severity::Critical => {
            report.fault(check, of, evidence, "revoke the key and rotate now: docs/runbooks/emergency-rotation.md");
        }
        Severity::Failed => report.fault(check, of, evidence, remedy),
        Severity::Warning | Severity::Passed => {
            let shown = key_set::shown(&body).unwrap_or_default();
            match differs(site, bundle, partner, standing, &shown) {
                Some(why) => {
                    report.fault(check, of, format!("{url}: {why}"), "purge its caches, and look at `jwks.export`");
                }
                None if worst == Severity::Warning => report.warning(check, of, evidence, remedy),
                None => report.ok(check, of, format!("{url}: {} keys, as policy has it", shown.kids.len())),
            }
        }
    }
}

/// How the set differs from what the bundle publishes.
fn differs(
    site: &Site<'_>,
    bundle: &Bundle,
    partner: &Partner,
    standing: impl Fn(&Kid) -> Standing + Copy,
    shown: &Shown,
) -> Option<String> {
    let published: Vec<_> = bundle.timeline.published(&partner.id, site.now, standing).collect();
    if let Some(missing) = published.iter().find(|key| !shown.has(&key.public)) {
        return Some(format!("`{}` is not shown as policy pins it", missing.kid));
    }
    let is_known = |kid: &&String| published.iter().any(|key| key.kid.as_str() == kid.as_str());
    let stranger = shown.kids.iter().find(|kid| !is_known(kid))?;
    Some(format!("`{stranger}` is shown, and policy does not publish it now"))
}
