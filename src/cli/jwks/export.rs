//! `quotesign jwks export`.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::{ConfigPath, out::say, policy::bundle_in},
    clock::{Clock as _, SystemClock},
    disk,
    domain::PartnerId,
    published::Published,
    service::jwks::set_of,
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
        let partner: PartnerId = self.partner.parse().map_err(|fault| Failure::unfit(format!("--partner: {fault}")))?;
        if bundle.partner(&partner).is_none() {
            return Err(Failure::unfit(format!("--partner: the bundle has no `{partner}`")));
        }
        let place = config.ledger.place().map_err(Failure::unfit)?;
        let stopped = Stopped::open(place.anchor.as_deref()).map_err(Failure::unfit)?;
        // A set that shows a revoked key would be worse than none.
        let read = place.reads().and_then(|mut reads| Ok((reads.stops()?, reads.kids()?)));
        let (stops, kids) = read.map_err(|fault| {
            Failure::failed(format!("{fault}; without the ledger nobody knows which keys were revoked"))
        })?;
        let revoked = |kid: &_| stops.is_revoked(kid) || stopped.known().is_revoked(kid);
        let published = Published::default();
        published.learn(kids);
        // For this look alone: the mirror is the gateway's to write.
        let known = Stopped::knowing(bundle.timeline.all().map(|key| &key.kid).filter(|kid| revoked(kid)));
        let set = set_of(&bundle, &partner, &known, &published, SystemClock.now());
        let set = set.map_err(|fault| Failure::failed(format!("the set is not written: {fault}")))?;
        match &self.out {
            None => say!("{set}"),
            Some(path) => disk::put(path, set.as_bytes())
                .map_err(|fault| Failure::failed(format!("{}: {fault}", path.display())))?,
        }
        Ok(())
    }
}
