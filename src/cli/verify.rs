//! `quotesign verify`.

use std::{fs, path::PathBuf, sync::Arc};

use clap::Args;

use crate::{
    clock::{Clock as _, SystemClock},
    jwk::{self, PublicKey},
    jws::CompactJws,
    policy::{Bundle, shipped},
    verification::{self, Evidence, Finding},
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
        let keys = self.keys()?;
        let policy = self.policy.as_deref().map_or_else(shipped::bundle, Bundle::load);
        let policy = policy.map_err(|problems| {
            Failure::unfit(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        })?;
        let evidence = Evidence {
            key: &|kid| keys.iter().find(|key| key.kid() == kid),
            contract: &|quote| policy.contract_of(quote).map(Arc::as_ref),
            now: SystemClock.now(),
        };
        let report = verification::verify(&CompactJws::from_text(jws), &evidence);
        for (step, finding) in report.findings() {
            match finding {
                Finding::Passed => println!("passed       {}", step.name()),
                Finding::Failed(why) => println!("FAILED       {}: {why}", step.name()),
                Finding::NotChecked(why) => println!("not checked  {}: {why}", step.name()),
            }
        }
        if report.is_valid() { Ok(()) } else { Err(Failure::failed("the signed quote is not valid")) }
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
