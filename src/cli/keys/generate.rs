//! `quotesign keys generate` and `keys jwk`: a key's public half, as a JWK and as an entry of policy.toml.

use std::path::PathBuf;

use clap::Args;

use crate::signer::{
    Attributes,
    locator::Locator,
    provision::{NewKey, Provisioned},
};

use crate::cli::out::{self, say};

use super::{Failure, KeyArgs, Purpose, block_on, device, parse_kid, write_jwk};

#[derive(Debug, Args)]
pub(in crate::cli) struct Generate {
    #[command(flatten)]
    key: KeyArgs,
    /// The modulus' length in bits; 3072 is recommended, 2048 the least.
    #[arg(long, default_value_t = 3072)]
    bits: u32,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Jwk {
    #[command(flatten)]
    key: KeyArgs,
    /// Where the key is: an RFC 7512 URI or a key ARN. For a token, the key labelled as the kid by itself.
    #[arg(long, value_name = "URI")]
    locator: Option<String>,
    /// Show the key also where its attributes do not say that it was generated on the device and cannot leave it.
    #[arg(long)]
    unproven: bool,
}

impl Generate {
    pub(super) fn run(self) -> Result<(), Failure> {
        let kid = parse_kid(&self.key.kid)?;
        let config = self.key.path.load()?;
        let device = device(&config, &self.key.signer)?;
        let key = NewKey { kid, partner: self.key.partner.clone().unwrap_or_default(), bits: self.bits };
        let made = block_on(async { device.generate(&key).await.map_err(Failure::failed) })?;
        if made.existed {
            say!("# an earlier run made this key; nothing was generated");
        }
        self.key.show(&config, &made)
    }
}

impl Jwk {
    pub(super) fn run(self) -> Result<(), Failure> {
        let kid = parse_kid(&self.key.kid)?;
        let config = self.key.path.load()?;
        let device = device(&config, &self.key.signer)?;
        let attributes = if self.unproven { Attributes::Warn } else { Attributes::Require };
        let locator = match (self.locator, config.token_of(&self.key.signer)) {
            (Some(locator), _) => locator,
            (None, Some(token)) => Locator::uri_of(token, kid.as_str()),
            (None, None) => {
                return Err(Failure::unfit("--locator: give the ARN of the key; `quotesign keys list` shows it"));
            }
        };
        let tried = block_on(async { device.try_out(&kid, &locator, attributes).await.map_err(Failure::failed) })?;
        self.key.show(&config, &tried)
    }
}

impl KeyArgs {
    /// Writes the JWK and prints the entry.
    fn show(&self, config: &crate::config::Config, key: &Provisioned) -> Result<(), Failure> {
        let own = match self.purpose {
            Purpose::Quotes => config.policy.join("keys"),
            Purpose::Checkpoints | Purpose::Bundles => PathBuf::new(),
        };
        let file = write_jwk(&self.out.clone().unwrap_or(own), &key.public)?;
        let (signer, locator) = (&self.signer, &key.locator);
        say!("# the public half is in {file}; the private half is in `{signer}` and stays there");
        match (self.purpose, &self.partner) {
            (Purpose::Quotes, partner) => {
                say!("# add this to policy.toml, with the times of your plan, and raise its serial");
                out::write(format_args!("{}", entry(key, partner.as_deref().unwrap_or_default(), signer)));
            }
            (Purpose::Checkpoints, _) => {
                say!("# add this to the config of every gateway of the ledger, where the file is");
                say!(
                    "[audit.checkpoint]\nsigner     = \"{signer}\"\nlocator    = \"{locator}\"\npublic_key = \"{file}\""
                );
            }
            (Purpose::Bundles, _) => {
                say!("# add this to the top of every gateway's config, where the file is; sign bundles with");
                say!("# quotesign policy sign DIR --signer {signer} --locator '{locator}' --jwk {file}");
                say!("policy_key = \"{file}\"");
            }
        }
        Ok(())
    }
}

fn entry(key: &Provisioned, partner: &str, signer: &str) -> String {
    let (kid, locator) = (key.public.kid(), &key.locator);
    format!(
        "[[keys]]\n\
         kid        = \"{kid}\"\n\
         partner    = \"{partner}\"\n\
         signer     = \"{signer}\"\n\
         locator    = \"{locator}\"\n\
         # publish_at = when it enters the JWKS\n\
         # confirmed  = {{ at = when the operator acknowledged it, ref = where that is on record }}\n\
         # sign_from  = at least the propagation time after publish_at\n\
         # sign_until = when it ceases to sign\n\
         # retire_at  = when it leaves the JWKS\n"
    )
}
