//! The bundle: whether it loads and fits, whether its cases pass, whether a key signs now, and what lies ahead.

use std::{path::Path, time::Duration};

use crate::{
    clock::UtcTime,
    config::{Config, LimitsSection},
    domain::{Environment, Kid},
    gateway,
    json::Limits,
    policy::{Bundle, Partner, timeline::Standing},
    published::Standings,
    review::cases,
};

use super::{
    Site,
    report::{Check, Report},
};

/// How far ahead is looked.
const AHEAD: Duration = Duration::from_hours(24 * 30);
const CHECK: &str = "`quotesign policy check` tells of it, too";

/// The bundle, where it loads.
pub(super) fn look(config: &Config, report: &mut Report) -> Option<Bundle> {
    let bundle = match gateway::bundle(config) {
        Ok(bundle) => bundle,
        Err(fault) => {
            report.fault(Check::PolicyLoads, "", fault.to_string(), CHECK);
            report.all_skipped(
                &[Check::PolicyFits, Check::PolicyCases, Check::PolicySigning, Check::PolicyAhead],
                "",
                "the bundle does not load",
            );
            return None;
        }
    };
    loaded(&bundle, report);
    match gateway::fits(config, &bundle) {
        Ok(()) => report.ok(Check::PolicyFits, "", "every key has a signer of the config, and no other purpose"),
        Err(fault) => {
            report.fault(Check::PolicyFits, "", fault.to_string(), "mend policy or config: `quotesign config check`");
        }
    }
    look_at_cases(&config.policy, &bundle, &config.limits.payload(), report);
    Some(bundle)
}

/// A bundle alone, whose config cannot be used.
pub(super) fn look_at_bundle(dir: &Path, now: UtcTime, report: &mut Report) {
    match Bundle::load(dir) {
        Ok(bundle) => {
            loaded(&bundle, report);
            look_at_cases(dir, &bundle, &LimitsSection::default().payload(), report);
            look_ahead(&bundle, None, now, report);
        }
        Err(problems) => {
            let lines: Vec<_> = problems.iter().map(|problem| format!("{}/{problem}", dir.display())).collect();
            report.fault(Check::PolicyLoads, "", lines.join("; "), CHECK);
        }
    }
}

fn loaded(bundle: &Bundle, report: &mut Report) {
    let told = format!("{} serial {}, digest {}", bundle.environment, bundle.serial, bundle.digest);
    report.ok(Check::PolicyLoads, "", told);
}

fn look_at_cases(dir: &Path, bundle: &Bundle, limits: &Limits, report: &mut Report) {
    let check = Check::PolicyCases;
    let outcomes = match cases::run(dir, bundle, limits) {
        Ok(outcomes) => outcomes,
        Err(problems) => {
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            return report.fault(check, "", lines.join("; "), "mend the cases: `quotesign policy test`");
        }
    };
    let failed: Vec<_> =
        outcomes.iter().filter(|outcome| !outcome.differs.is_empty()).map(ToString::to_string).collect();
    match (outcomes.len(), failed.len()) {
        (0, _) if bundle.environment == Environment::Production => {
            report.warning(check, "", "the bundle has no cases", "write down in cases/ what it is meant to do");
        }
        (0, _) => report.skipped(check, "", "the bundle has no cases"),
        (all, 0) => report.ok(check, "", format!("{all} cases come out as written")),
        (all, count) => {
            let evidence = format!("{count} of {all} come out otherwise: {}", failed.join("; "));
            report.fault(check, "", evidence, "find out which is wrong, bundle or case: `quotesign policy test`");
        }
    }
}

pub(super) fn look_at_keys(site: &Site<'_>, report: &mut Report) {
    let Some(bundle) = site.bundle else { return };
    let standings = site.standings();
    for partner in bundle.partners() {
        look_at_signing(site, bundle, partner, standings.as_ref(), report);
    }
    look_ahead(bundle, standings.as_ref(), site.now, report);
}

/// Whether a key signs for the partner now.
fn look_at_signing(
    site: &Site<'_>,
    bundle: &Bundle,
    partner: &Partner,
    standings: Option<&Standings>,
    report: &mut Report,
) {
    let (check, of, now) = (Check::PolicySigning, partner.id.as_str(), site.now);
    let Some(planned) = bundle.timeline.current(&partner.id, now, |_| Standing::PLANNED) else {
        let remedy = "add a key, or mend its times: `quotesign policy calendar` shows them";
        return report.fault(check, of, "no key of the timeline signs now", remedy);
    };
    let Some(standings) = standings else {
        return report.skipped(check, of, format!("`{}` signs as planned; the ledger was not read", planned.kid));
    };
    let Some(active) = bundle.timeline.current(&partner.id, now, |kid| standings.of(kid)) else {
        let standing = standings.of(&planned.kid);
        let why = bundle.timeline.waits_for(planned, now, standing);
        let evidence = format!("`{}` does not sign: {}", planned.kid, why.as_deref().unwrap_or("it was revoked"));
        return if standing.is_revoked || standing.served_since.is_some() {
            report.fault(
                check,
                of,
                evidence,
                "`quotesign admin status` tells of it; `quotesign keys rotate` replaces a lost key",
            );
        } else {
            report.warning(
                check,
                of,
                evidence,
                "start every gateway of this ledger, and wait for the propagation time",
            );
        };
    };
    match site.condition.and_then(|found| found.stops.halt(&partner.id, Some(&active.kid))) {
        Some(halt) => report.fault(
            check,
            of,
            format!("`{}` would sign, but for {halt}", active.kid),
            "`quotesign resume`, once its reason is gone",
        ),
        None => report.ok(check, of, format!("`{}` signs until {}", active.kid, active.sign_until)),
    }
}

/// What will go wrong unless somebody acts.
fn look_ahead(bundle: &Bundle, standings: Option<&Standings>, now: UtcTime, report: &mut Report) {
    let is_revoked = |kid: &Kid| standings.is_some_and(|standings| standings.of(kid).is_revoked);
    let mut notices = bundle.ahead_within(now, AHEAD, is_revoked);
    if let Some(standings) = standings {
        let obstacles = bundle.obstacles(now, |kid| standings.of(kid));
        // What stands in the way already is told by another check.
        notices.extend(obstacles.into_iter().filter(|notice| notice.at > now));
    }
    for notice in &notices {
        let of = notice.partner.as_str();
        report.warning(
            Check::PolicyAhead,
            of,
            format!("{}: {}", notice.at, notice.text),
            "`quotesign policy calendar` shows who signs when",
        );
    }
    if notices.is_empty() {
        report.ok(Check::PolicyAhead, "", "nothing within 30 days: no gap, a standby for every key that signs");
    }
}
