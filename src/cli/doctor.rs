//! `quotesign doctor`: looks at a deployment from end to end, from the host of the gateway, whether or not it runs. It changes
//! nothing: it makes no file, writes no record and reads none. One log-in is tried at each token, and each key signs once.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    client::ClientFile,
    clock::{Clock as _, SystemClock, UtcTime},
    config::Config,
    ledger::Condition,
    policy::Bundle,
    published::Standings,
};

use super::{ConfigPath, Failure, Format};
use report::{Check, Report};

mod audit;
mod certificates;
mod clock;
mod collector;
mod files;
mod gateway;
mod host;
mod jwks;
mod ledger;
mod policy;
mod report;
mod signers;

/// Exit codes: 0 all is well, warnings aside, 1 a fault was found, 2 the config cannot be used.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    path: ConfigPath,
    /// A client file, by which the running gateway is asked as a caller would; an operator's shows more.
    #[arg(long, env = "QUOTESIGN_CLIENT", value_name = "FILE")]
    client: Option<PathBuf>,
    /// Take warnings for faults.
    #[arg(long)]
    strict: bool,
    /// How to print.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// What is looked at, as far as it could be read.
struct Site<'s> {
    config: &'s Config,
    client: Option<&'s ClientFile>,
    bundle: Option<&'s Bundle>,
    condition: Option<&'s Condition>,
    now: UtcTime,
}

impl Site<'_> {
    /// What is known of the keys; as policy plans it where the ledger tells nothing.
    fn standings(&self) -> Option<Standings> {
        self.condition.map(|found| Standings::of_ledger(found.stops.clone(), found.kids.clone()))
    }
}

impl Doctor {
    pub(super) fn run(self) -> Result<(), Failure> {
        let client = self.client.as_deref().map(ClientFile::load).transpose().map_err(Failure::unfit)?;
        let (path, now, mut report) = (&self.path.config, SystemClock.now(), Report::default());
        let named = files::named(path);
        files::look(&named, path, &mut report);
        certificates::look(&named, client.as_ref(), now, &mut report);
        let config = Config::load(path);
        match &config {
            Ok(config) => {
                let of = format!("environment {}", config.environment);
                report.ok(Check::ConfigLoads, "", format!("{}: {of}", path.display()));
                look(config, client.as_ref(), now, &mut report);
            }
            Err(fault) => {
                report.fault(
                    Check::ConfigLoads,
                    "",
                    fault.to_string(),
                    "mend it; `quotesign config check` reads it alike",
                );
                without_config(&named, path, now, &mut report);
            }
        }
        let why = if config.is_ok() { "nothing of the kind is configured" } else { "the config cannot be used" };
        report.complete(why);
        report.print(self.format, &path.display().to_string(), now);
        report.outcome(config.is_ok(), self.strict)
    }
}

fn look(config: &Config, client: Option<&ClientFile>, now: UtcTime, report: &mut Report) {
    host::look(config, report);
    let bundle = policy::look(config, report);
    let condition = ledger::look(config, report);
    let site = Site { config, client, bundle: bundle.as_ref(), condition: condition.as_ref(), now };
    clock::look(&site, report);
    policy::look_at_keys(&site, report);
    audit::look(&site, report);
    signers::look(&site, report);
    certificates::look_at_the_public(&site, report);
    let runs = gateway::look(&site, report);
    jwks::look(&site, runs, report);
    collector::look(&site, report);
}

/// The bundle can be looked at by itself.
fn without_config(named: &files::Named, path: &Path, now: UtcTime, report: &mut Report) {
    host::look_at_core_dumps(report);
    clock::look_at_the_kernel(report);
    if let Some(dir) = named.of("policy") {
        policy::look_at_bundle(dir, now, report);
    } else {
        report.skipped(Check::PolicyLoads, "", format!("{}: names no `policy` that can be read", path.display()));
    }
}
