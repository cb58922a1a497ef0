//! `quotesign verify`.

use std::{fs, path::PathBuf, sync::Arc};

use clap::Args;

use crate::{
    client,
    clock::{Clock as _, SystemClock},
    domain::{Malformed, PartnerId},
    jwk::{self, PublicKey},
    jws::CompactJws,
    policy::shipped,
    verification::{self, Evidence, Finding},
};

use super::{ClientPath, Failure, block_on, jwks::partner_of, out::say, policy::bundle_in};

#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    path: ClientPath,
    /// The signed quote: a compact JWS, or a file that holds one.
    jws: String,
    /// Verify with this JWKS, a file or an https:// address, not with the one that the gateway publishes.
    #[arg(long, value_name = "FILE|URL")]
    jwks: Option<String>,
    /// The CAs that the address of --jwks is held against, PEM.
    #[arg(long, value_name = "FILE", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    ca: PathBuf,
    /// The partner; the client file's own where it is not given.
    #[arg(long)]
    partner: Option<String>,
    /// Hold the quote against the contracts of this policy bundle, not against the shipped one.
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
}

impl Verify {
    pub(super) fn run(self) -> Result<(), Failure> {
        let jws = match fs::read_to_string(&self.jws) {
            Ok(text) => text.trim_end().to_owned(),
            Err(_) if self.jws.matches('.').count() == 2 => self.jws.clone(),
            Err(fault) => return Err(Failure::unfit(format!("{}: {fault}", self.jws))),
        };
        let (keys, partner) = self.keys()?;
        let policy = match &self.policy {
            Some(dir) => bundle_in(dir)?,
            None => shipped::bundle().map_err(|problems| Failure::failed(format!("{problems:?}")))?,
        };
        let evidence = Evidence {
            key: &|kid| keys.iter().find(|key| key.kid() == kid),
            partner: partner.as_ref(),
            contract: &|quote| policy.contract_of(quote).map(Arc::as_ref),
            now: SystemClock.now(),
        };
        let report = verification::verify(&CompactJws::from_text(jws), &evidence);
        for (step, finding) in report.findings() {
            match finding {
                Finding::Passed => say!("passed       {}", step.name()),
                Finding::Failed(why) => say!("FAILED       {}: {why}", step.name()),
                Finding::NotChecked(why) => say!("not checked  {}: {why}", step.name()),
            }
        }
        if report.is_valid() { Ok(()) } else { Err(Failure::failed("the signed quote is not valid")) }
    }

    /// The key set, and whose it is where that is known.
    fn keys(&self) -> Result<(Vec<PublicKey>, Option<PartnerId>), Failure> {
        let (set, partner) = if let Some(place) = &self.jwks {
            (self.key_set_at(place)?, self.named_partner()?)
        } else {
            let client = self.path.load()?;
            let partner = partner_of(&client, self.partner.as_deref())?;
            let set = block_on(async { client.jwks(&partner).await.map_err(Failure::failed) })?;
            (set.to_vec(), Some(partner))
        };
        let keys = jwk::read_jwks(&set).map_err(|fault| Failure::failed(format!("the JWKS: {fault}")))?;
        Ok((keys, partner))
    }

    fn key_set_at(&self, place: &str) -> Result<Vec<u8>, Failure> {
        match place.split_once("://") {
            Some(("https", _)) => {
                Ok(block_on(async { client::fetch(place, &self.ca).await.map_err(Failure::failed) })?.to_vec())
            }
            Some(_) => Err(Failure::unfit(format!("{place}: keys are fetched over https:// alone"))),
            None => fs::read(place).map_err(|fault| Failure::unfit(format!("{place}: {fault}"))),
        }
    }

    fn named_partner(&self) -> Result<Option<PartnerId>, Failure> {
        let partner = self.partner.as_deref().map(str::parse).transpose();
        partner.map_err(|fault: Malformed| Failure::unfit(format!("--partner: {fault}")))
    }
}
