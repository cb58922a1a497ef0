//! `quotesign ledger`: makes, copies and reads the ledger, and decides what is to become of one that has gone back in
//! time.

use clap::{Args, Subcommand};

use crate::{config::Config, ledger::Place};

use super::{ConfigPath, Failure, out::say};

mod act;
mod backup;
mod gaps;
mod hold;
mod rollback;
mod seed;

#[derive(Debug, Subcommand)]
pub(super) enum LedgerCommand {
    /// Create the ledger, or bring it to this version's schema. Run it before the first `serve` and at upgrades.
    Migrate(Migrate),
    /// Create a sequence with a floor or raise its floor, with no gateway at the ledger. While one runs there is
    /// `quotesign admin seed-sequence`.
    Seed(seed::Seed),
    /// Tell every number that no released quote carries: who skipped or burnt it, and why.
    Gaps(gaps::Gaps),
    /// Copy a SQLite ledger to a file, also while a gateway writes it.
    Backup(backup::Backup),
    /// Put a backup in the place of a ledger that is lost or damaged.
    Restore(backup::Restore),
    /// Keep what is in the ledger from being pruned.
    Hold(hold::Hold),
    /// Release a hold.
    Release(hold::Release),
    /// Take a ledger that has gone back in time as it is, and raise its floors over the numbers that were lost.
    AcceptRollback(rollback::AcceptRollback),
    /// The file that tells whether the ledger has gone back in time.
    #[command(subcommand)]
    Anchor(rollback::AnchorCommand),
}

/// What a ledger that has gone back in time does not hold, and no file beside it.
const GONE_SINCE: &str = "halts, suspended callers, holds and acts that waited for a second caller are as they were then: make those since anew before `serve`";

#[derive(Debug, Args)]
pub(super) struct Migrate {
    #[command(flatten)]
    path: ConfigPath,
}

impl LedgerCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Migrate(command) => {
                let config = command.path.load()?;
                let place = migrate(&config)?;
                say!("{place}: ready for {}", config.environment);
                Ok(())
            }
            Self::Seed(command) => command.run(),
            Self::Gaps(command) => command.run(),
            Self::Backup(command) => command.run(),
            Self::Restore(command) => command.run(),
            Self::Hold(command) => command.run(),
            Self::Release(command) => command.run(),
            Self::AcceptRollback(command) => command.run(),
            Self::Anchor(rollback::AnchorCommand::Adopt(command)) => command.run(),
        }
    }
}

/// Makes the ledger, or brings it to this version; says where it is.
pub(super) fn migrate(config: &Config) -> Result<Place, Failure> {
    let place = config.ledger.place().map_err(Failure::unfit)?;
    place.migrate(config.environment).map_err(Failure::failed)?;
    Ok(place)
}
