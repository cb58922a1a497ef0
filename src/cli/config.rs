//! `quotesign config check`.

use clap::Subcommand;

use crate::gateway;

use super::{ConfigPath, Failure, out::say};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check config, certificates, PINs' places, policy bundle and ledger, as `serve` would.
    Check(Check),
}

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    #[command(flatten)]
    path: ConfigPath,
}

impl ConfigCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self::Check(check) = self;
        let config = check.path.load()?;
        let bundle = gateway::check(&config).map_err(Failure::unfit)?;
        let place = config.ledger.place().map_err(Failure::unfit)?;
        place.check(config.environment).map_err(Failure::unfit)?;
        say!("{}: good", check.path.config.display());
        say!("environment {}, policy serial {}, digest {}", bundle.environment, bundle.serial, bundle.digest);
        Ok(())
    }
}
