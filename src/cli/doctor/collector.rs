//! The collector: whether it takes what is sent to it, and how far behind the shipping of the journal is.

use crate::{cli::block_on, telemetry::otlp::exporter::Answer};

use super::{
    Site,
    report::{Check, Report},
};

/// More than a busy gateway ships in a few seconds.
const WAITING_MAX: u64 = 10_000;

pub(super) fn look(site: &Site<'_>, report: &mut Report) {
    let Some(section) = &site.config.otlp else {
        let why = site.config.keeps_for_nothing().unwrap_or("the config names no collector");
        return report.all_skipped(&[Check::CollectorReached, Check::CollectorBehind], "", why);
    };
    let check = Check::CollectorReached;
    // An export of nothing, which changes nothing.
    let answer = block_on(async {
        match section.exporter() {
            Ok(exporter) => Ok(Ok(exporter.logs(Default::default()).await)),
            Err(why) => Ok(Err(why)),
        }
    });
    let remedy = "see that it runs, speaks this protocol, and takes this gateway's certificate and headers";
    match answer {
        Ok(Ok(Answer::Taken { .. })) => report.ok(check, "", "it takes an export of nothing"),
        Ok(Ok(Answer::Bad(why) | Answer::TooLarge(why))) => {
            report.warning(check, "", format!("it answers, and will not take an export of nothing: {why}"), remedy);
        }
        Ok(Ok(Answer::Denied(why) | Answer::Later { why, .. }) | Err(why)) => report.fault(check, "", why, remedy),
        Err(failure) => report.skipped(check, "", failure.text),
    }
    look_at_backlog(site, report);
}

fn look_at_backlog(site: &Site<'_>, report: &mut Report) {
    let check = Check::CollectorBehind;
    let Some(found) = site.condition else { return report.skipped(check, "", "the ledger was not read") };
    let waiting = found.waiting();
    match () {
        () if found.quarantined > 0 => {
            let evidence = format!("{waiting} records wait, and {} are in quarantine", found.quarantined);
            report.warning(
                check,
                "",
                evidence,
                "`quotesign audit quarantine` lists them, with what the collector said",
            );
        }
        () if waiting > WAITING_MAX => {
            let remedy = "see that the collector keeps up, and that a gateway runs that ships";
            report.warning(check, "", format!("{waiting} records wait to be shipped"), remedy);
        }
        () => report.ok(check, "", format!("{waiting} records wait to be shipped")),
    }
}
