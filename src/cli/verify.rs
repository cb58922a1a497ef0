//! `quotesign verify`.

use std::{fs, path::PathBuf};

use clap::Args;

use crate::{
    jwk::{self, PublicKey},
    jws::{self, Check, CompactJws},
};

use super::{ClientPath, Failure, block_on, jwks::partner_of};

#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    path: ClientPath,
    /// The signed quote: a compact JWS, or a file that holds one.
    jws: String,
    /// Verify with this JWKS, not with the one that the gateway publishes.
    #[arg(long, value_name = "FILE")]
    jwks: Option<PathBuf>,
    /// The partner; the client file's own where it is not given.
    #[arg(long)]
    partner: Option<String>,
}

impl Verify {
    pub(super) fn run(self) -> Result<(), Failure> {
        let jws = match fs::read_to_string(&self.jws) {
            Ok(text) => text.trim_end().to_owned(),
            Err(_) if self.jws.matches('.').count() == 2 => self.jws.clone(),
            Err(fault) => return Err(Failure::unfit(format!("{}: {fault}", self.jws))),
        };
        let keys = self.keys()?;
        let outcome = jws::verify(&CompactJws::from_text(jws), |kid| keys.iter().find(|key| key.kid() == kid));
        for check in Check::ALL {
            let fault = outcome.as_ref().err().filter(|fault| fault.check == check);
            println!(
                "{}  {}{}",
                if fault.is_none() { "passed" } else { "FAILED" },
                check.name(),
                fault.map(|fault| format!(": {}", fault.detail)).unwrap_or_default()
            );
            if fault.is_some() {
                return Err(Failure::failed("the signature is not valid"));
            }
        }
        if let Ok(verified) = outcome {
            println!("kid     {}", verified.kid);
        }
        Ok(())
    }

    fn keys(&self) -> Result<Vec<PublicKey>, Failure> {
        let set = if let Some(path) = &self.jwks {
            fs::read(path).map_err(|fault| Failure::unfit(format!("{}: {fault}", path.display())))?
        } else {
            let client = self.path.load()?;
            let partner = partner_of(&client, self.partner.as_deref())?;
            block_on(async { client.jwks(&partner).await.map_err(Failure::failed) })?.to_vec()
        };
        jwk::read_jwks(&set).map_err(|fault| Failure::failed(format!("the JWKS: {fault}")))
    }
}
