//! The clock: what the kernel says of it, and whether it agrees with the ledger's server and its journal.

use std::time::Duration;

use quotesign_kernel_clock::KernelClock;

use crate::{
    clock::{Clock as _, SystemClock},
    domain::Environment,
    ledger::ServerClock,
};

use super::{
    Site,
    report::{Check, Report},
};

const DAEMON: &str = "have chrony, ntpd or systemd-timesyncd keep it, and wait until it has";

pub(super) fn look(site: &Site<'_>, report: &mut Report) {
    let is_production = site.config.environment == Environment::Production;
    of_kernel(quotesign_kernel_clock::ask(), is_production, report);
    let Some(found) = site.condition else {
        report.all_skipped(&[Check::ClockJournal, Check::ClockServer], "", "the ledger was not read");
        return;
    };
    let (check, most) = (Check::ClockJournal, Duration::from_millis(site.config.clock.step_ms_max));
    match found.newest_at {
        None => report.ok(check, "", "the journal holds no time yet"),
        Some(newest) if newest > SystemClock.now().plus(most) => {
            let behind = newest.since(SystemClock.now());
            let evidence =
                format!("the journal holds a time that is still to come, {newest}, by {} s", behind.as_secs());
            report.fault(check, "", evidence, "set the clock: nothing is signed while it is behind the journal");
        }
        Some(newest) => report.ok(check, "", format!("the journal's newest time is {newest}")),
    }
    match found.server {
        None => report.skipped(Check::ClockServer, "", "the ledger has no server"),
        Some(ServerClock { offset, most }) if offset > most => {
            let evidence = format!("the ledger's server and this machine are {offset:?} apart; {most:?} are allowed");
            report.fault(Check::ClockServer, "", evidence, "set both by the same source");
        }
        Some(ServerClock { offset, most }) => {
            report.ok(Check::ClockServer, "", format!("{offset:?} from the ledger's server, of {most:?}"));
        }
    }
}

pub(super) fn look_at_the_kernel(report: &mut Report) {
    of_kernel(quotesign_kernel_clock::ask(), false, report);
}

/// Quotes live for minutes, and two gateways that disagree by one refuse each other's.
fn of_kernel(told: std::io::Result<KernelClock>, is_production: bool, report: &mut Report) {
    let check = Check::ClockSynchronised;
    match told {
        Err(fault) => report.skipped(check, "", format!("the kernel does not tell: {fault}")),
        Ok(KernelClock { is_synchronised: true, error_us_max }) => {
            report.ok(check, "", format!("the kernel holds it for synchronised, to {} ms", error_us_max / 1000));
        }
        Ok(_) if is_production => {
            report.fault(check, "", "the kernel does not hold the clock for synchronised", DAEMON);
        }
        Ok(_) => report.warning(check, "", "the kernel does not hold the clock for synchronised", DAEMON),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_clock_that_nobody_keeps_is_a_fault_in_production_alone() {
        let of = |told: io::Result<KernelClock>, is_production| {
            let mut report = Report::default();
            of_kernel(told, is_production, &mut report);
            report.told()
        };
        let kept = KernelClock { is_synchronised: true, error_us_max: 4_500 };
        let left = KernelClock { is_synchronised: false, error_us_max: 16_000_000 };
        assert_eq!(of(Ok(kept), true), ["ok the kernel holds it for synchronised, to 4 ms"]);
        assert_eq!(of(Ok(left), true), ["FAULT the kernel does not hold the clock for synchronised"]);
        assert_eq!(of(Ok(left), false), ["WARNING the kernel does not hold the clock for synchronised"]);
        let refused = of(Err(io::Error::from(io::ErrorKind::PermissionDenied)), true);
        assert_eq!(refused, ["skipped the kernel does not tell: permission denied"]);
    }
}
