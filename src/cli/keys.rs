//! `quotesign keys`: makes keys on a device. No command prints or takes a private key.

use std::{fs, path::Path};

use clap::{Args, Subcommand};

use crate::{
    config::{Config, SignerEntry},
    domain::Kid,
    gateway,
    jwk::PublicKey,
    signer::{locator::Locator, pkcs11::keygen},
};

use super::{ConfigPath, Failure};

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Generate a key on the device, write its public JWK, and print what goes into policy.toml.
    Generate(Generate),
    /// Write the public JWK of a key that the device already holds, and print what goes into policy.toml.
    Jwk(Jwk),
}

#[derive(Debug, Args)]
pub(super) struct Generate {
    #[command(flatten)]
    key: Key,
    /// The modulus' length in bits; 3072 is recommended, 2048 the least.
    #[arg(long, default_value_t = 3072)]
    bits: u32,
}

#[derive(Debug, Args)]
pub(super) struct Jwk {
    #[command(flatten)]
    key: Key,
}

#[derive(Debug, Args)]
struct Key {
    #[command(flatten)]
    path: ConfigPath,
    /// The signer of the config that holds the key.
    #[arg(long)]
    signer: String,
    /// The key id: readable, never used before, such as `quote-signing-2026-06`. The device's label too.
    #[arg(long)]
    kid: String,
    /// The partner that the key signs for.
    #[arg(long)]
    partner: String,
    /// Write the JWK to this directory, not to `keys/` of the policy bundle.
    #[arg(long, value_name = "DIR")]
    out: Option<std::path::PathBuf>,
}

impl KeysCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (key, bits) = match &self {
            Self::Generate(generate) => (&generate.key, Some(generate.bits)),
            Self::Jwk(jwk) => (&jwk.key, None),
        };
        let kid: Kid = key.kid.parse().map_err(|fault| Failure::unfit(format!("--kid: {fault}")))?;
        let config = key.path.load()?;
        let entry = signer_of(&config, &key.signer)?;
        let token = gateway::token_config(entry).map_err(Failure::unfit)?;
        let public = match bits {
            Some(bits) => keygen::generate(&token, &kid, bits).map_err(Failure::failed)?,
            None => keygen::public_key(&token, &kid).map_err(Failure::failed)?,
        };
        let folder = key.out.clone().unwrap_or_else(|| config.policy.join("keys"));
        let file = write_jwk(&folder, &public)?;
        println!("# the public half is in {file}; the private half is in `{}` and stays there", entry.token);
        println!("# add this to policy.toml, with the times of your plan, and raise its serial");
        print!("{}", policy_entry(&public, &key.partner, entry));
        Ok(())
    }
}

fn signer_of<'c>(config: &'c Config, name: &str) -> Result<&'c SignerEntry, Failure> {
    let names = || config.signers.iter().map(|signer| signer.name.as_str()).collect::<Vec<_>>().join(", ");
    let found = config.signers.iter().find(|signer| signer.name == name);
    found.ok_or_else(|| Failure::unfit(format!("--signer: the config has no `{name}`; it has: {}", names())))
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

fn policy_entry(key: &PublicKey, partner: &str, signer: &SignerEntry) -> String {
    let kid = key.kid();
    format!(
        "[[keys]]\n\
         kid        = \"{kid}\"\n\
         partner    = \"{partner}\"\n\
         signer     = \"{}\"\n\
         locator    = \"{}\"\n\
         # publish_at = when it enters the JWKS\n\
         # confirmed  = {{ at = when the operator acknowledged it, ref = where that is on record }}\n\
         # sign_from  = at least the propagation time after publish_at\n\
         # sign_until = when it ceases to sign\n\
         # retire_at  = when it leaves the JWKS\n",
        signer.name,
        Locator::uri_of(&signer.token, kid.as_str())
    )
}
