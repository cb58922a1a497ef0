//! `quotesign jwks export`.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::{
        ConfigPath,
        out::say,
        policy::{bundle_in, partner_in},
    },
    clock::{Clock as _, SystemClock},
    disk,
    published::Standings,
    service::jwks::set_with,
    stopped::Stopped,
};

use super::Failure;

#[derive(Debug, Args)]
pub(in crate::cli) struct Export {
    #[command(flatten)]
    path: ConfigPath,
    /// The partner.
    #[arg(long)]
    partner: String,
    /// Write it here, in one piece or not at all; to standard output where it is not given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Export {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.path.load()?;
        let bundle = bundle_in(&config.policy)?;
        let partner = partner_in(&bundle, &self.partner)?;
        let place = config.ledger.place().map_err(Failure::unfit)?;
        let stopped = Stopped::open(place.anchor.as_deref()).map_err(Failure::unfit)?;
        // A set that shows a revoked key would be worse than none.
        let reads = place.is_of(config.environment).and_then(|()| place.reads());
        let read = reads.and_then(|mut reads| Ok((reads.stops()?, reads.kids()?)));
        let (stops, kids) = read.map_err(|fault| {
            Failure::failed(format!("{fault}; without the ledger nobody knows which keys were revoked"))
        })?;
        // For this look alone: the mirror is the gateway's to write.
        let stops = stops.iter().chain(stopped.known().iter()).cloned().collect();
        let set = set_with(&bundle, &partner.id, &Standings::of_ledger(stops, kids), SystemClock.now());
        let set = set.map_err(|fault| Failure::failed(format!("the set is not written: {fault}")))?;
        match &self.out {
            None => say!("{set}"),
            Some(path) => disk::put(path, set.as_bytes())
                .map_err(|fault| Failure::failed(format!("{}: {fault}", path.display())))?,
        }
        Ok(())
    }
}
