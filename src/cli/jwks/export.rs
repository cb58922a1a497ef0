//! `quotesign jwks export`.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::{ConfigPath, out::say, policy::bundle_in},
    clock::{Clock as _, SystemClock},
    disk,
    domain::PartnerId,
    jwk, key_set,
    ledger::stops::Stops,
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
        let stops: Stops = place.reads().and_then(|mut reads| reads.stops()).map_err(|fault| {
            Failure::failed(format!("{fault}; without the ledger nobody knows which keys were revoked"))
        })?;
        let revoked = |kid: &_| stops.is_revoked(kid) || stopped.known().is_revoked(kid);
        let published = bundle.timeline.published(&partner, SystemClock.now(), revoked);
        let set = jwk::jwks(published.map(|key| &*key.public));
        let private = key_set::private_parts(set.as_bytes());
        if !private.is_empty() {
            return Err(Failure::failed(format!("the set has {}; it is not written", private.join(", "))));
        }
        match &self.out {
            None => say!("{set}"),
            Some(path) => disk::put(path, set.as_bytes())
                .map_err(|fault| Failure::failed(format!("{}: {fault}", path.display())))?,
        }
        Ok(())
    }
}
