//! `quotesign jwks`: fetches a partner's key set, holds one against what verifiers expect, and writes one for a CDN.

use clap::{Args, Subcommand};

use crate::{client::ClientFile, domain::PartnerId};

use super::{ClientPath, Failure, block_on, out::say};

mod check;
mod export;
mod watch;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Jwks {
    #[command(subcommand)]
    command: Option<JwksCommand>,
    #[command(flatten)]
    fetch: Fetch,
}

#[derive(Debug, Subcommand)]
enum JwksCommand {
    /// Hold a key set, wherever it is from, against what verifiers and the operator expect.
    Check(check::Check),
    /// Write a partner's key set as the gateway would serve it now, for a CDN.
    Export(export::Export),
    /// Look at a key set again and again, and tell monitoring what is found.
    Watch(watch::Watch),
}

#[derive(Debug, Args)]
struct Fetch {
    #[command(flatten)]
    path: ClientPath,
    /// The partner; the client file's own where it is not given.
    #[arg(long)]
    partner: Option<String>,
}

impl Jwks {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.command {
            Some(JwksCommand::Check(command)) => command.run(),
            Some(JwksCommand::Export(command)) => command.run(),
            Some(JwksCommand::Watch(command)) => command.run(),
            None => self.fetch.run(),
        }
    }
}

impl Fetch {
    fn run(self) -> Result<(), Failure> {
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
