//! What the checks have found, and how it is printed.

use serde::Serialize;
use serde_json::json;

use crate::{
    cli::{Failure, Format, out::say},
    clock::UtcTime,
};

/// Every check, by the name under which `docs/doctor.md` explains it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Check {
    ConfigLoads,
    ConfigOperations,
    FilesSecret,
    FilesTrusted,
    FilesPolicy,
    FilesLedger,
    FilesDirectory,
    TlsKey,
    TlsChain,
    TlsNames,
    TlsUsage,
    TlsStrength,
    TlsExpiry,
    TlsClientCa,
    TlsPublic,
    HostOpenFiles,
    HostCoreDumps,
    ClockSynchronised,
    ClockJournal,
    ClockServer,
    PolicyLoads,
    PolicyFits,
    PolicyCases,
    PolicySigning,
    PolicyAhead,
    LedgerOpens,
    LedgerWhole,
    LedgerAnchor,
    LedgerRoom,
    SignerReached,
    SignerLogin,
    KeyFound,
    KeyPinned,
    KeyAttributes,
    KeySigns,
    KeySize,
    JwksPublished,
    AuditReferenceKey,
    AuditCheckpoints,
    CollectorReached,
    CollectorBehind,
    GatewayLive,
    GatewayReady,
    GatewayVersion,
    GatewayPolicy,
    GatewayHealth,
}

use Check as C;

impl Check {
    /// All of them, in the order in which they are printed.
    const ALL: [(Self, &'static str); 46] = [
        (C::ConfigLoads, "config.loads"),
        (C::ConfigOperations, "config.operations"),
        (C::FilesSecret, "files.secret"),
        (C::FilesTrusted, "files.trusted"),
        (C::FilesPolicy, "files.policy"),
        (C::FilesLedger, "files.ledger"),
        (C::FilesDirectory, "files.directory"),
        (C::TlsKey, "tls.key"),
        (C::TlsChain, "tls.chain"),
        (C::TlsNames, "tls.names"),
        (C::TlsUsage, "tls.usage"),
        (C::TlsStrength, "tls.strength"),
        (C::TlsExpiry, "tls.expiry"),
        (C::TlsClientCa, "tls.client_ca"),
        (C::TlsPublic, "tls.public"),
        (C::HostOpenFiles, "host.open_files"),
        (C::HostCoreDumps, "host.core_dumps"),
        (C::ClockSynchronised, "clock.synchronised"),
        (C::ClockJournal, "clock.journal"),
        (C::ClockServer, "clock.server"),
        (C::PolicyLoads, "policy.loads"),
        (C::PolicyFits, "policy.fits"),
        (C::PolicyCases, "policy.cases"),
        (C::PolicySigning, "policy.signing"),
        (C::PolicyAhead, "policy.ahead"),
        (C::LedgerOpens, "ledger.opens"),
        (C::LedgerWhole, "ledger.whole"),
        (C::LedgerAnchor, "ledger.anchor"),
        (C::LedgerRoom, "ledger.room"),
        (C::SignerReached, "signer.reached"),
        (C::SignerLogin, "signer.login"),
        (C::KeyFound, "key.found"),
        (C::KeyPinned, "key.pinned"),
        (C::KeyAttributes, "key.attributes"),
        (C::KeySigns, "key.signs"),
        (C::KeySize, "key.size"),
        (C::JwksPublished, "jwks.published"),
        (C::AuditReferenceKey, "audit.reference_key"),
        (C::AuditCheckpoints, "audit.checkpoints"),
        (C::CollectorReached, "collector.reached"),
        (C::CollectorBehind, "collector.behind"),
        (C::GatewayLive, "gateway.live"),
        (C::GatewayReady, "gateway.ready"),
        (C::GatewayVersion, "gateway.version"),
        (C::GatewayPolicy, "gateway.policy"),
        (C::GatewayHealth, "gateway.health"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(check, _)| *check == self).map_or("", |(_, name)| name)
    }
}

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Fault,
    Skipped,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "WARNING",
            Self::Fault => "FAULT",
            Self::Skipped => "skipped",
        }
    }
}

/// What a check found of one thing.
#[derive(Debug)]
struct Finding {
    check: Check,
    of: String,
    verdict: Verdict,
    evidence: String,
    remedy: String,
}

/// All that was found.
#[derive(Debug, Default)]
pub(super) struct Report(Vec<Finding>);

impl Report {
    fn put(&mut self, check: Check, of: &str, verdict: Verdict, evidence: String, remedy: String) {
        // Evidence is a line, whoever's words are in it.
        let line = |text: String| text.split('\n').map(str::trim).collect::<Vec<_>>().join("; ");
        self.0.push(Finding { check, of: of.to_owned(), verdict, evidence: line(evidence), remedy: line(remedy) });
    }

    /// As it should be.
    pub(super) fn ok(&mut self, check: Check, of: &str, evidence: impl Into<String>) {
        self.put(check, of, Verdict::Ok, evidence.into(), String::new());
    }

    /// It works, and something should be better.
    pub(super) fn warning(&mut self, check: Check, of: &str, evidence: impl Into<String>, remedy: impl Into<String>) {
        self.put(check, of, Verdict::Warning, evidence.into(), remedy.into());
    }

    /// It does not work, or not safely.
    pub(super) fn fault(&mut self, check: Check, of: &str, evidence: impl Into<String>, remedy: impl Into<String>) {
        self.put(check, of, Verdict::Fault, evidence.into(), remedy.into());
    }

    /// It was not looked at.
    pub(super) fn skipped(&mut self, check: Check, of: &str, why: impl Into<String>) {
        self.put(check, of, Verdict::Skipped, why.into(), String::new());
    }

    /// These checks were not made of this.
    pub(super) fn all_skipped(&mut self, checks: &[Check], of: &str, why: &str) {
        for check in checks {
            self.skipped(*check, of, why);
        }
    }

    /// Has every check in it, in order.
    pub(super) fn complete(&mut self, why: &str) {
        for (check, _) in Check::ALL {
            if self.0.iter().all(|found| found.check != check) {
                self.skipped(check, "", why);
            }
        }
        self.0.sort_by_key(|found| found.check);
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.0.iter().filter(|found| found.verdict == verdict).count()
    }

    fn counted(&self) -> String {
        let [ok, warnings, faults, skipped] =
            [Verdict::Ok, Verdict::Warning, Verdict::Fault, Verdict::Skipped].map(|verdict| self.count(verdict));
        format!("{ok} ok, {warnings} warnings, {faults} faults, {skipped} skipped")
    }

    /// Verdict and evidence of each finding, in a line.
    #[cfg(test)]
    pub(super) fn told(&self) -> Vec<String> {
        self.0.iter().map(|found| format!("{} {}", found.verdict.word(), found.evidence)).collect()
    }

    pub(super) fn print(&self, format: Format, place: &str, now: UtcTime) {
        match format {
            Format::Json => {
                let told = |found: &Finding| {
                    json!({
                        "check": found.check.name(),
                        "of": found.of,
                        "verdict": found.verdict,
                        "evidence": found.evidence,
                        "remedy": found.remedy,
                    })
                };
                say!(
                    "{:#}",
                    json!({
                        "config": place,
                        "looked_at": now.to_string(),
                        "version": env!("CARGO_PKG_VERSION"),
                        "summary": self.counted(),
                        "checks": self.0.iter().map(told).collect::<Vec<_>>(),
                    })
                );
            }
            Format::Text => self.print_table(),
        }
    }

    fn print_table(&self) {
        let widest = self.0.iter().map(|found| found.of.chars().count()).max().unwrap_or_default();
        for Finding { check, of, verdict, evidence, remedy } in &self.0 {
            say!("{:<8} {:<19} {of:<widest$}  {evidence}", verdict.word(), check.name());
            if !remedy.is_empty() {
                say!("{:<8} {:<19} {:<widest$}  -> {remedy}", "", "", "");
            }
        }
        say!("{}", self.counted());
    }

    /// What the command ends with.
    pub(super) fn outcome(&self, is_usable: bool, is_strict: bool) -> Result<(), Failure> {
        let (faults, warnings) = (self.count(Verdict::Fault), self.count(Verdict::Warning));
        match () {
            () if !is_usable => {
                Err(Failure::unfit("the config cannot be used; what could be looked at without it was"))
            }
            () if faults > 0 => Err(Failure::failed(format!("{faults} faults; `docs/doctor.md` explains each check"))),
            () if warnings > 0 && is_strict => {
                Err(Failure::failed(format!("{warnings} warnings, and --strict takes none")))
            }
            () => Ok(()),
        }
    }
}
