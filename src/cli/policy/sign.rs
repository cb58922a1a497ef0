//! `quotesign policy sign` and `policy verify`: a bundle's detached JWS by a device key of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    cli::{ConfigPath, block_on, out::say},
    config::{CheckpointSection, Config},
    disk, gateway,
    jwk::PublicKey,
    policy::{Bundle, files, seal},
    signer::{Attributes, Device, Flow, Health, Order, Pinned},
};

use super::{Dir, Failure, Format};

/// How long a device may take to be ready and to sign.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub(in crate::cli) struct Sign {
    #[command(flatten)]
    dir: Dir,
    #[command(flatten)]
    config: ConfigPath,
    /// The signer of the config that holds the key.
    #[arg(long)]
    signer: String,
    /// Where the key is on it: an RFC 7512 URI or a key ARN.
    #[arg(long, value_name = "URI")]
    locator: String,
    /// The key's public JWK, as `quotesign keys jwk` writes it. Gateways pin it as `policy_key`.
    #[arg(long, value_name = "FILE")]
    jwk: PathBuf,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Verify {
    #[command(flatten)]
    dir: Dir,
    /// The public JWK of the key that must have signed it.
    #[arg(long, value_name = "FILE")]
    jwk: PathBuf,
}

impl Sign {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (dir, key) = (&self.dir.dir, Arc::new(jwk(&self.jwk)?));
        // What is signed is good: nobody has to find that out at a gateway.
        let bundle = self.dir.load()?;
        let digest = bundle.digest;
        let files = files::read(dir).map_err(|problems| self.dir.unfit(&problems))?;
        let config = self.config.load()?;
        signs_nothing_else(&key, &bundle, &config)?;
        let names = || config.signer_names().collect::<Vec<_>>().join(", ");
        let unknown = || Failure::unfit(format!("--signer: the config has no `{}`; it has: {}", self.signer, names()));
        let signature = block_on(async {
            let device = gateway::device(&config, &self.signer).ok_or_else(unknown)?;
            let signature = sign(&*device, &key, &self.locator, &files).await;
            device.close().await;
            signature
        })?;
        let text = seal::text(&key, &signature);
        seal::check(&files, &text, &key).map_err(Failure::failed)?;
        let path = dir.join(seal::SEAL_FILE);
        disk::put(&path, text.as_bytes()).map_err(|fault| Failure::failed(format!("{}: {fault}", path.display())))?;
        self.dir.tell(&key, &digest.to_string(), "is signed");
        Ok(())
    }
}

/// One key serves one purpose: one that a gateway of this config has sign anything else signs no bundle, not even once.
fn signs_nothing_else(key: &PublicKey, bundle: &Bundle, config: &Config) -> Result<(), Failure> {
    let in_force = Bundle::load(&config.policy).ok();
    for bundle in [Some(bundle), in_force.as_ref()].into_iter().flatten() {
        if let Some(problem) = seal::is_apart(key, &bundle.timeline) {
            return Err(Failure::unfit(format!("--jwk: {problem}")));
        }
    }
    let checkpoints = config.audit.checkpoint.as_ref().map(CheckpointSection::keys).transpose();
    let checkpoints = checkpoints.map_err(Failure::unfit)?.unwrap_or_default();
    if checkpoints.iter().any(|other| other.same_key(key.modulus(), key.exponent())) {
        return Err(Failure::unfit("--jwk: the key signs checkpoints of the journal; give bundles a key of their own"));
    }
    Ok(())
}

async fn sign(
    device: &dyn Device,
    key: &Arc<PublicKey>,
    locator: &str,
    files: &crate::policy::Files,
) -> Result<Vec<u8>, Failure> {
    let pinned = Pinned { public: Arc::clone(key), locator: locator.to_owned(), attributes: Attributes::Require };
    let signer = device.key(pinned).map_err(|fault| Failure::unfit(format!("--locator: {fault}")))?;
    let until = Instant::now() + PATIENCE;
    while let Health::NotServing(why) = signer.health() {
        if Instant::now() > until {
            return Err(Failure::failed(format!("the key cannot sign: {why}")));
        }
        sleep(Duration::from_millis(20)).await;
    }
    let order = Order::new(Flow(0), until);
    let signed = signer.sign(&seal::input(files, key), &order).await;
    signed.map(|signature| signature.0).map_err(Failure::failed)
}

impl Verify {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (dir, key) = (&self.dir.dir, jwk(&self.jwk)?);
        let files = files::read(dir).map_err(|problems| self.dir.unfit(&problems))?;
        let text = files::read_seal(dir).map_err(Failure::failed)?.unwrap_or_default();
        seal::check(&files, &text, &key).map_err(Failure::failed)?;
        self.dir.tell(&key, &files::digest(&files).to_string(), "was signed");
        Ok(())
    }
}

impl Dir {
    fn tell(&self, key: &PublicKey, digest: &str, what: &str) {
        match self.format {
            Format::Text => say!("{} {what} by `{}`: digest {digest}", self.dir.display(), key.kid()),
            Format::Json => say!("{:#}", json!({ "kid": key.kid(), "digest": digest })),
        }
    }
}

fn jwk(path: &Path) -> Result<PublicKey, Failure> {
    let named = |fault: &dyn std::fmt::Display| Failure::unfit(format!("{}: {fault}", path.display()));
    let bytes = fs::read(path).map_err(|fault| named(&fault))?;
    PublicKey::from_jwk(&bytes).map_err(|fault| named(&fault))
}
