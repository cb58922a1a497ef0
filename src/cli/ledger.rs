//! `quotesign ledger`.

use clap::{Args, Subcommand};

use crate::ledger::sqlite::Sqlite;

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
        let Self::Migrate(migrate) = self;
        let config = migrate.path.load()?;
        Sqlite::migrate(&config.ledger.sqlite, config.environment).map_err(Failure::failed)?;
        say!("{}: ready for {}", config.ledger.sqlite.display(), config.environment);
        Ok(())
    }
}
