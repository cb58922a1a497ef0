//! `quotesign jwks`.

use clap::Args;

use crate::{client::ClientFile, domain::PartnerId};

use super::{ClientPath, Failure, block_on, out::say};

#[derive(Debug, Args)]
pub(super) struct Jwks {
    #[command(flatten)]
    path: ClientPath,
    /// The partner; the client file's own where it is not given.
    #[arg(long)]
    partner: Option<String>,
}

impl Jwks {
    pub(super) fn run(self) -> Result<(), Failure> {
        let client = self.path.load()?;
        let partner = partner_of(&client, self.partner.as_deref())?;
        let set = block_on(async { client.jwks(&partner).await.map_err(Failure::failed) })?;
        say!("{}", String::from_utf8_lossy(&set));
        Ok(())
    }
}

/// The partner that a command means.
pub(super) fn partner_of(client: &ClientFile, named: Option<&str>) -> Result<PartnerId, Failure> {
    match named {
        Some(text) => text.parse().map_err(|fault| Failure::unfit(format!("--partner: {fault}"))),
        None => client.partner.clone().ok_or_else(|| Failure::unfit("name the partner with --partner")),
    }
}
