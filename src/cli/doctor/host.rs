//! What the machine lets a process have, and whom the operations listener answers.

use std::fs;

use rustix::process::{Resource, getrlimit};

use crate::config::Config;

use super::report::{Check, Report};

/// What a gateway has open beside its callers' connections: ledger, devices, logs, its own connections.
const OWN: u64 = 256;
/// gRPC, admin, JWKS and operations.
const LISTENERS: u64 = 4;
const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";
/// The handler that heeds a process' own limit.
const HEEDS: &str = "systemd-coredump";

pub(super) fn look(config: &Config, report: &mut Report) {
    let connections = u64::try_from(config.limits.connections_max).unwrap_or(u64::MAX);
    of_open_files(connections, getrlimit(Resource::Nofile).current, report);
    look_at_core_dumps(report);
    let listen = config.operations.listen;
    if listen.ip().is_loopback() {
        report.ok(Check::ConfigOperations, "", format!("{listen} is of this machine alone"));
    } else {
        let evidence = format!("{listen} answers /metrics and /readyz without TLS to whoever reaches it");
        let remedy = "bind it to loopback, or let nothing but the pod's network and Prometheus reach it";
        report.warning(Check::ConfigOperations, "", evidence, remedy);
    }
}

/// The gateway's own limits are those that its service manager gives it; these are this process' own.
fn of_open_files(connections: u64, most: Option<u64>, report: &mut Report) {
    let wanted = connections.saturating_mul(LISTENERS).saturating_add(OWN);
    let check = Check::HostOpenFiles;
    let told = |most: u64| {
        format!(
            "this process may open {most} files; {connections} connections on each of {LISTENERS} listeners want {wanted}"
        )
    };
    let remedy = format!("give the gateway `LimitNOFILE={wanted}`, or lower `limits.connections_max`");
    match most {
        None => report.ok(check, "", "no limit of open files"),
        Some(most) if most >= wanted => report.ok(check, "", told(most)),
        Some(most) if most > connections => report.warning(check, "", told(most), remedy),
        Some(most) => report.fault(check, "", told(most), remedy),
    }
}

/// The gateway forbids itself core dumps; a handler that the kernel pipes them to need not heed that.
pub(super) fn look_at_core_dumps(report: &mut Report) {
    match fs::read_to_string(CORE_PATTERN) {
        Ok(pattern) => of_pattern(pattern.trim(), report),
        Err(fault) => report.skipped(Check::HostCoreDumps, "", format!("{CORE_PATTERN}: {fault}")),
    }
}

fn of_pattern(pattern: &str, report: &mut Report) {
    match pattern.strip_prefix('|') {
        Some(handler) if !handler.contains(HEEDS) => {
            let evidence =
                format!("the kernel pipes core dumps to `{handler}`, which the gateway's limit of 0 does not bind");
            let remedy = "have the handler drop those of the gateway, or set kernel.core_pattern to a file";
            report.warning(Check::HostCoreDumps, "", evidence, remedy);
        }
        _ => report.ok(Check::HostCoreDumps, "", format!("`{pattern}`, and the gateway sets its limit to 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_that_need_not_heed_the_limit_is_told() {
        for (pattern, verdict) in [
            ("core", "ok"),
            ("/var/crash/core.%p", "ok"),
            ("|/usr/lib/systemd/systemd-coredump %P", "ok"),
            ("|/usr/share/apport/apport %p", "WARNING"),
        ] {
            let mut report = Report::default();
            of_pattern(pattern, &mut report);
            assert!(report.told().concat().starts_with(verdict), "{pattern}: {:?}", report.told());
        }
    }

    #[test]
    fn fewer_files_than_connections_are_a_fault_and_few_more_a_warning() {
        for (files, verdict) in
            [(Some(1024), "FAULT"), (Some(1025), "WARNING"), (Some(4352), "ok"), (None, "ok"), (Some(4351), "WARNING")]
        {
            let mut report = Report::default();
            of_open_files(1024, files, &mut report);
            assert!(report.told().concat().starts_with(verdict), "{files:?}: {:?}", report.told());
        }
    }
}
