//! `quotesign keys`: makes keys on a device, shows and checks those that are there. No command prints or takes a
//! private key.

use std::{fs, path::Path};

use clap::{Args, Subcommand, ValueEnum};

use crate::{config::Config, domain::Kid, gateway, jwk::PublicKey, signer::provision::Provision};

use super::{ConfigPath, Failure, block_on};

mod activate;
mod check;
mod generate;
mod list;
mod report;
mod revoke;
mod rotate;

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Generate a key on the device, write its public JWK, and print what goes into policy.toml.
    Generate(generate::Generate),
    /// Write the public JWK of a key that the device already holds, and print what goes into policy.toml.
    Jwk(generate::Jwk),
    /// List the RSA keys that the devices hold, and which of them policy knows.
    List(list::List),
    /// Try every key of the policy bundle on every device that should hold it; exit code 0 where all sign.
    Check(check::Check),
    /// Rotate a partner's key: begin, see where it stands and what is next, or replace a key that was lost.
    Rotate(rotate::Rotate),
    /// Revoke a key for good, on every gateway of the ledger; through a running gateway.
    Revoke(revoke::Revoke),
    /// Tell what a key has signed, as the operator's notification of an incident asks for it.
    Report(report::ReportCommand),
    /// Let a key sign before its propagation time is over, in an emergency; policy can want two operators for it.
    Activate(activate::Activate),
}

/// Which key of which device.
#[derive(Debug, Args)]
struct KeyArgs {
    #[command(flatten)]
    path: ConfigPath,
    /// The signer of the config that holds the key.
    #[arg(long)]
    signer: String,
    /// The key id: readable, never used before, such as `quote-signing-2026-06`. The device's label too.
    #[arg(long)]
    kid: String,
    /// The partner whose quotes the key signs.
    #[arg(long, required_if_eq("purpose", "quotes"))]
    partner: Option<String>,
    /// What the key signs: one key serves one purpose.
    #[arg(long = "for", value_enum, default_value = "quotes")]
    purpose: Purpose,
    /// Write the JWK to this directory, not to `keys/` of the policy bundle.
    #[arg(long, value_name = "DIR")]
    out: Option<std::path::PathBuf>,
}

/// What a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Purpose {
    /// The quotes of a partner.
    Quotes,
    /// Checkpoints of the journal.
    Checkpoints,
    /// Policy bundles.
    Bundles,
}

impl KeysCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Generate(command) => command.run(),
            Self::Jwk(command) => command.run(),
            Self::List(command) => command.run(),
            Self::Check(command) => command.run(),
            Self::Rotate(command) => command.run(),
            Self::Revoke(command) => command.run(),
            Self::Report(command) => command.run(),
            Self::Activate(command) => command.run(),
        }
    }
}

fn device(config: &Config, name: &str) -> Result<Box<dyn Provision>, Failure> {
    gateway::provisioner(config, name).ok_or_else(|| {
        let names = config.signer_names().collect::<Vec<_>>().join(", ");
        Failure::unfit(format!("--signer: the config has no `{name}`; it has: {names}"))
    })
}

fn parse_kid(kid: &str) -> Result<Kid, Failure> {
    kid.parse().map_err(|fault| Failure::unfit(format!("--kid: {fault}")))
}

/// Writes the JWK file of a key; never over one that is there.
pub(super) fn write_jwk(folder: &Path, key: &PublicKey) -> Result<String, Failure> {
    let path = folder.join(format!("{}.jwk.json", key.kid()));
    let named = |fault: &dyn std::fmt::Display| Failure::failed(format!("{}: {fault}", path.display()));
    let text = format!("{:#}\n", key.to_jwk());
    if fs::read_to_string(&path).is_ok_and(|present| present != text) {
        return Err(named(&"is there already and holds another key; a kid is never used again"));
    }
    fs::create_dir_all(folder).map_err(|fault| named(&fault))?;
    fs::write(&path, text).map_err(|fault| named(&fault))?;
    Ok(path.display().to_string())
}
