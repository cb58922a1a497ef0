//! `quotesign keys check`: has every key of the bundle sign on every device that should hold it, and compares it.

use std::collections::BTreeSet;

use clap::Args;

use crate::{
    control,
    policy::timeline::TimedKey,
    signer::provision::{Provision, ProvisionError},
};

use crate::cli::{out::say, policy::bundle_in};

use super::{ConfigPath, Failure, block_on, device};

#[derive(Debug, Args)]
pub(in crate::cli) struct Check {
    #[command(flatten)]
    path: ConfigPath,
    /// One key of the bundle; all of them by itself.
    #[arg(long)]
    kid: Option<String>,
}

impl Check {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.path.load()?;
        let bundle = bundle_in(&config.policy)?;
        let misfits = control::fits(&bundle, config.environment, &config.trust_domains(), |signer, locator| {
            config.accepts(signer, locator)
        });
        if !misfits.is_empty() {
            return Err(Failure::unfit(misfits.join("\n")));
        }
        let wanted = |key: &TimedKey| self.kid.as_deref().is_none_or(|kid| key.kid.as_str() == kid);
        let (mut tried, mut unfit) = (0, 0);
        // Signers whose PIN was refused: each key would be another try, and a few lock a token.
        let mut given_up: BTreeSet<&str> = BTreeSet::new();
        for key in bundle.timeline.all().filter(|key| wanted(key)) {
            for (signer, locator) in &key.places {
                tried += 1;
                let device = device(&config, signer)?;
                let verdict = if given_up.contains(signer.as_str()) {
                    Err("its signer refuses the PIN; not tried".to_owned())
                } else {
                    let verdict = block_on(async { Ok(try_one(&*device, key, locator).await) })?;
                    if let Err(ProvisionError::Pin(_)) = &verdict {
                        given_up.insert(signer);
                    }
                    verdict.map_err(|fault| fault.to_string())
                };
                unfit += u32::from(verdict.is_err());
                let said = verdict.map_or_else(|why| format!("does not sign: {why}"), |()| "signs".to_owned());
                say!("{}\t{signer}\t{said}", key.kid);
            }
        }
        match (tried, unfit) {
            (0, _) => Err(Failure::unfit("the bundle has no such key")),
            (_, 0) => Ok(()),
            (tried, unfit) => Err(Failure::failed(format!("{unfit} of {tried} do not sign"))),
        }
    }
}

async fn try_one(device: &dyn Provision, key: &TimedKey, locator: &str) -> Result<(), ProvisionError> {
    let attributes = control::attributes_of(key);
    let tried = device.try_out(&key.kid, locator, attributes).await?;
    if tried.public.same_key(key.public.modulus(), key.public.exponent()) {
        Ok(())
    } else {
        Err(ProvisionError::Unfit("it is not the key that policy pins".to_owned()))
    }
}
