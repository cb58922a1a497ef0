//! `quotesign config check`.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::{
    clock::{Clock as _, SystemClock},
    config::Config,
    domain::Environment,
    gateway,
    policy::Bundle,
    review::apart,
    transport::tls,
};

use super::{ConfigPath, Failure, out::say, policy::bundle_in};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check config, certificates, PINs' places, policy bundle and ledger, as `serve` would.
    Check(Check),
}

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    #[command(flatten)]
    path: ConfigPath,
    /// The config of another environment's gateway, with which this one may share no CA of callers, trust domain, ledger or
    /// token, and whose bundle may share nothing with this one's either.
    #[arg(long, value_name = "FILE")]
    apart_from: Option<PathBuf>,
}

fn is_apart(config: &Config, bundle: &Bundle, other: &Path) -> Result<(), Failure> {
    let theirs = Config::load(other).map_err(Failure::unfit)?;
    let mut shared = config.shared_with(&theirs).map_err(Failure::unfit)?;
    shared.extend(apart::shared(bundle, &bundle_in(&theirs.policy)?).iter().map(ToString::to_string));
    if shared.is_empty() { Ok(()) } else { Err(Failure::unfit(shared.join("\n"))) }
}

impl ConfigCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self::Check(check) = self;
        let config = check.path.load()?;
        let bundle = gateway::check(&config).map_err(Failure::unfit)?;
        if config.environment == Environment::Production {
            let fit = tls::is_fit_for_the_public(&config.jwks, SystemClock.now());
            fit.map_err(|fault| Failure::unfit(format!("[jwks]: {fault}")))?;
        }
        let place = config.ledger.place().map_err(Failure::unfit)?;
        place.check(config.environment).map_err(Failure::unfit)?;
        if let Some(other) = &check.apart_from {
            is_apart(&config, &bundle, other)?;
        }
        if let Some(warning) = config.keeps_for_nothing() {
            say!("warning: {warning}");
        }
        say!("{}: good", check.path.config.display());
        say!("environment {}, policy serial {}, digest {}", bundle.environment, bundle.serial, bundle.digest);
        Ok(())
    }
}
