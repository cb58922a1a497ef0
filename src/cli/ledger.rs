//! `quotesign ledger`.

use clap::{Args, Subcommand};

use crate::{config::Config, ledger::Place};

use super::{ConfigPath, Failure, out::say};

#[derive(Debug, Subcommand)]
pub(super) enum LedgerCommand {
    /// Create the ledger, or bring it to this version's schema. Run it before the first `serve` and at upgrades.
    Migrate(Migrate),
}

#[derive(Debug, Args)]
pub(super) struct Migrate {
    #[command(flatten)]
    path: ConfigPath,
}

impl LedgerCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self::Migrate(command) = self;
        let config = command.path.load()?;
        let place = migrate(&config)?;
        say!("{place}: ready for {}", config.environment);
        Ok(())
    }
}

/// Makes the ledger, or brings it to this version; says where it is.
pub(super) fn migrate(config: &Config) -> Result<Place, Failure> {
    let place = config.ledger.place().map_err(Failure::unfit)?;
    place.migrate(config.environment).map_err(Failure::failed)?;
    Ok(place)
}
